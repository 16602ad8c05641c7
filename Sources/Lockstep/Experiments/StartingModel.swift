/// The model that a run starts from.
public struct StartingModel: Equatable, Sendable {
    /// Where its weights come from.
    public enum Source: Equatable, Sendable {
        /// A Hugging Face folder.
        case folder(String)
        /// A new model: matrices normal with a deviation, of a seed.
        case new(ModelConfiguration, seed: UInt64, deviation: Double)
    }

    /// Where its weights come from.
    public var source: Source
    /// An adapter in PEFT's layout that is trained, the model's own weights being frozen.
    public var adapter: String?
    /// The same of a new adapter.
    public var lowRank: LowRank?

    /// Creates a starting point.
    public init(_ source: Source, adapter: String? = nil, lowRank: LowRank? = nil) {
        self.source = source
        self.adapter = adapter
        self.lowRank = lowRank
    }

    /// Whether an adapter is trained, and not the model.
    public var trainsAdapter: Bool { adapter != nil || lowRank != nil }

    func trainer(_ recipe: Recipe, _ options: TrainerOptions) throws(LockstepError) -> Trainer {
        switch source {
        case .folder(let path):
            return try Trainer(
                path: path, adapter: adapter, lowRank: lowRank, recipe: recipe, options: options)
        case .new(let configuration, let seed, let deviation):
            guard !trainsAdapter else {
                throw LockstepError(
                    .unsupported, "model: an adapter of a new model has nothing to adapt; give a folder")
            }
            return try Trainer(
                configuration: configuration, seed: seed, deviation: deviation, recipe: recipe,
                options: options)
        }
    }
}
