/// What makes a reinforcement learning algorithm: advantages, correction, objective, and which log-probs stand where.
public struct Algorithm: Sendable {
    /// What it is called: a preset's name, or what checkpoints and messages say.
    public var name: String
    /// Which log-probs stand where.
    public var policies: Preset.Policies
    /// Weights and mask.
    public var correction: CorrectionOptions
    /// How rewards become advantages.
    public var advantages: AdvantageOptions
    /// Term, aggregation, regularisers; a `length` of 0 becomes the most tokens of a response.
    public var objective: ObjectiveOptions

    /// Creates an algorithm of its parts.
    public init(
        name: String = "custom", policies: Preset.Policies = .three,
        correction: CorrectionOptions = CorrectionOptions(weights: .one),
        advantages: AdvantageOptions = AdvantageOptions(.drGRPO),
        objective: ObjectiveOptions = ObjectiveOptions()
    ) {
        self.name = name
        self.policies = policies
        self.correction = correction
        self.advantages = advantages
        self.objective = objective
    }

    /// The algorithm of a preset.
    public init(_ preset: Preset) {
        self.init(
            name: preset.name, policies: preset.policies, correction: preset.correction,
            advantages: preset.advantages, objective: preset.objective)
    }

    /// The algorithm of a preset's name.
    ///
    /// - Throws: `.invalidArgument` listing the nearest.
    public init(preset name: String) throws(LockstepError) { self.init(try Preset(named: name)) }

    /// Whether the rollout's log-probs are also the reference's.
    var referenceIsRollout: Bool { policies == .two && objective.kl != .none }
    /// Whether log-probs of the starting model are needed.
    var needsReference: Bool { objective.kl != .none && !referenceIsRollout }
    /// Whether weights and mask depend on the policy that is updated.
    var correctsEachUpdate: Bool {
        policies == .two || correction.rejections.contains { $0.policies != .trainerRollout }
    }
}
