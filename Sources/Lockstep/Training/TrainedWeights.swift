/// New low-rank adapters for some of a model's matrices.
///
/// *Source*: Hu et al., LoRA (2021).
public struct LowRank: Equatable, Sendable {
    /// Rows of A, columns of B.
    public var rank: Int
    /// W' = W + alpha / rank B A.
    public var alpha: Double
    /// Ends of the names of the matrices that are adapted, such as `q_proj`.
    public var targets: [String]
    /// A is normal with deviation 1 / rank, of this seed; B is 0.
    public var seed: UInt64

    /// Creates adapters; by default of queries, keys, values and the output of attention.
    public init(
        rank: Int, alpha: Double, targets: [String] = ["q_proj", "k_proj", "v_proj", "o_proj"],
        seed: UInt64 = 0
    ) {
        self.rank = rank
        self.alpha = alpha
        self.targets = targets
        self.seed = seed
    }
}

/// The float32 weights of a model that is trained: its own parameters, or frozen ones and the factors of adapters.
///
/// With adapters the weights are `W + alpha / r B A`, rounded as a merged checkpoint is: what a rollout engine that is
/// given the adapter has, bit for bit (docs/Training.md).
final class TrainedWeights: TensorSource, @unchecked Sendable {
    /// An adapter's factors, by the number of their tensors.
    struct Factors {
        let a: Int
        let b: Int
        let rank: Int
        let scale: Double
    }

    let configuration: ModelConfiguration
    /// What is trained.
    let parameters: Parameters
    /// What is frozen; nil without adapters.
    private let frozen: Parameters?
    private var factors: [String: Factors] = [:]

    /// All weights of a checkpoint, or the factors of an adapter that exists, or of a new one.
    init(
        _ checkpoint: Checkpoint, adapter: Adapter?, lowRank: LowRank?
    ) throws(LockstepError) {
        configuration = checkpoint.configuration
        let shapes = WeightNames(configuration).tensors
        for (name, shape) in shapes { try checkpoint.check(name, shape: shape) }
        let all = try Parameters(shapes)
        try all.fill(from: checkpoint)
        try checkpoint.checkAllRead()
        if let adapter {
            var found: [(name: String, shape: [Int], values: (a: [Float], b: [Float]))] = []
            for (name, shape) in shapes where shape.count == 2 {
                if let values = try adapter.factors(of: name, rows: shape[0], columns: shape[1]) {
                    found.append((name, shape, values))
                }
            }
            try adapter.checkAllRead()
            (parameters, factors) = try TrainedWeights.factors(
                of: found.map { ($0.name, $0.shape) }, rank: adapter.rank, scale: adapter.scale)
            for (name, _, values) in found {
                guard let place = factors[name] else { continue }
                parameters.values(of: place.a).update(from: values.a, count: values.a.count)
                parameters.values(of: place.b).update(from: values.b, count: values.b.count)
            }
            frozen = all
        } else if let lowRank {
            (parameters, factors) = try TrainedWeights.new(lowRank, shapes)
            frozen = all
        } else {
            (parameters, frozen) = (all, nil)
        }
    }

    /// The weights of a model that begins anew.
    init(_ configuration: ModelConfiguration, seed: UInt64, deviation: Double) throws(LockstepError) {
        self.configuration = configuration
        parameters = try Parameters(WeightNames(configuration).tensors)
        frozen = nil
        parameters.initialize(seed: seed, deviation: deviation)
    }

    /// The largest rank of an adapter; 0 without.
    var largestRank: Int { factors.values.map(\.rank).max() ?? 0 }

    /// CRC-32C of the frozen weights, if there are any, and of the masters as they are.
    var checksums: (frozen: UInt32?, masters: UInt32) {
        func checksum(_ parameters: Parameters) -> UInt32 {
            CRC32C.checksum(
                UnsafeRawBufferPointer(start: parameters.values.base, count: 4 * parameters.count))
        }
        return (frozen.map(checksum), checksum(parameters))
    }

    /// Number of weights of the model.
    var modelCount: Int { (frozen ?? parameters).count }

    private static func new(
        _ lowRank: LowRank, _ shapes: [(name: String, shape: [Int])]
    ) throws(LockstepError) -> (Parameters, [String: Factors]) {
        guard lowRank.rank >= 1, lowRank.rank <= 1 << 16, lowRank.alpha.isFinite else {
            throw LockstepError(
                .invalidArgument,
                "low_rank: rank is \(lowRank.rank) and alpha \(lowRank.alpha); give a positive rank of at most "
                    + "65,536 and a finite alpha")
        }
        let adapted = shapes.filter { name, shape in
            shape.count == 2 && lowRank.targets.contains { name.hasSuffix(".\($0).weight") }
        }
        for target in lowRank.targets
        where !adapted.contains(where: { $0.name.hasSuffix(".\(target).weight") }) {
            throw LockstepError(.invalidArgument, "low_rank: no matrix of the model is called '\(target)'")
        }
        guard !adapted.isEmpty else {
            throw LockstepError(.invalidArgument, "low_rank: targets is empty; name matrices, such as q_proj")
        }
        let made = try factors(
            of: adapted, rank: lowRank.rank, scale: lowRank.alpha / Double(lowRank.rank))
        for place in made.1.values {
            let range = made.0.tensors[place.a].range
            for value in range {
                made.0.values.base[value] = Float(normal(lowRank.seed, UInt64(value)) / Double(lowRank.rank))
            }
        }
        return made
    }

    private static func factors(
        of matrices: [(name: String, shape: [Int])], rank: Int, scale: Double
    ) throws(LockstepError) -> (Parameters, [String: Factors]) {
        // Gradients of factors come from products with a matrix; an embedding is looked up.
        for (name, _) in matrices where name.hasSuffix(".embed_tokens.weight") {
            throw LockstepError(
                .unsupported, "adapter: the factors of '\(name)' cannot be trained; adapt other matrices")
        }
        var shapes: [(name: String, shape: [Int])] = []
        for (name, shape) in matrices {
            let names = Adapter.names(of: name)
            shapes += [(names.a, [rank, shape[1]]), (names.b, [shape[0], rank])]
        }
        let parameters = try Parameters(shapes)
        var factors: [String: Factors] = [:]
        for (name, _) in matrices {
            let names = Adapter.names(of: name)
            guard let a = parameters.index(of: names.a), let b = parameters.index(of: names.b) else {
                continue
            }
            factors[name] = Factors(a: a, b: b, rank: rank, scale: scale)
        }
        return (parameters, factors)
    }

    // MARK: As a source of a model's weights

    /// The configuration fixed names and shapes.
    func check(_ name: String, shape: [Int]) throws(LockstepError) {}

    func read(
        _ name: String, shape: [Int], as format: Format, into target: UnsafeMutableRawPointer
    ) throws(LockstepError) {
        let all = frozen ?? parameters
        guard let index = all.index(of: name) else { return }
        let count = all.tensors[index].range.count
        guard let place = factors[name] else {
            return try store(
                all.values(of: index), count, as: format, into: target, "parameters: tensor '\(name)'")
        }
        let merged = try Scratch<Float>(count: count)
        merged.base.update(from: all.values(of: index), count: count)
        try Adapter.merge(
            parameters.values(of: place.a), parameters.values(of: place.b), rank: place.rank,
            scale: place.scale,
            rows: shape[0], columns: shape[1], into: merged.base)
        try store(
            merged.base, count, as: format, into: target, "parameters: tensor '\(name)' with its adapter")
    }

    // MARK: As what gradients belong to

    /// Where the gradient of a norm's weight goes; nil if it is frozen.
    func target(_ name: String) -> Int? { frozen == nil ? parameters.index(of: name) : nil }

    /// Where the gradients of a matrix go.
    func target(_ matrix: WeightNames.Matrix) -> MatrixTarget {
        var parts: [MatrixTarget.Part] = []
        var first = 0
        for (name, rows) in matrix.parts {
            parts.append(
                MatrixTarget.Part(
                    rows: first..<first + rows, weight: target("\(name).weight"),
                    bias: target("\(name).bias"),
                    factors: factors["\(name).weight"]))
            first += rows
        }
        return MatrixTarget(
            columns: matrix.columns, parts: parts.filter { $0.weight != nil || $0.factors != nil })
    }
}

/// Where the gradients of weights of one input go.
struct MatrixTarget {
    /// Some rows that are a tensor of their own.
    struct Part {
        let rows: Range<Int>
        let weight: Int?
        let bias: Int?
        let factors: TrainedWeights.Factors?
    }

    let columns: Int
    /// Those that are trained.
    let parts: [Part]
}
