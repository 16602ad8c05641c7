import CLockstepKernels

/// A model's weights, once, in the layout the kernels read and the recipe's format.
///
/// Safe to use from many threads.
public final class Model: @unchecked Sendable {
    /// The model's shape.
    public let configuration: ModelConfiguration
    /// The formats it computes in, and the order.
    public let recipe: Recipe
    let layers: [Layer]
    let finalNorm: [Float]
    /// The output head; of a tied model the embedding too.
    let head: Head
    /// The rows of the token ids.
    let embedding: Head

    /// Number of weights, those of a tied head once.
    public let parameterCount: Int

    /// One layer.
    struct Layer {
        let attentionNorm: [Float]
        /// Queries, keys and values: the rows of all heads, one after another.
        let projection: Head
        /// The norms of the heads of queries and keys.
        let headNorms: (query: [Float], key: [Float])?
        let output: Head
        let mlpNorm: [Float]
        let feedForward: FeedForward
    }

    /// What follows the attention of a layer.
    enum FeedForward {
        case dense(MLP)
        /// Experts, and the router that chooses them.
        case experts(router: Head, [MLP])
    }

    /// down(silu(gate x) * up x).
    struct MLP {
        /// The rows of gate, then those of up.
        let gateAndUp: Head
        let down: Head
    }

    /// Loads a Hugging Face folder, and a LoRA adapter in PEFT's layout if there is one, merged into the weights.
    ///
    /// - Throws: `.file`, `.badData`, `.nonFinite` or `.unsupported`, naming file and tensor; `.invalidArgument` for
    ///   the recipe; `.outOfMemory`.
    public convenience init(path: String, adapter: String? = nil, recipe: Recipe) throws(LockstepError) {
        try recipe.check()
        let checkpoint = try Checkpoint(path: path)
        let adapter: Adapter? = if let adapter { try Adapter(path: adapter) } else { nil }
        try self.init(
            MergedCheckpoint(checkpoint, adapter), checkpoint.configuration, recipe,
            parameterCount: checkpoint.parameterCount)
        try checkpoint.checkAllRead()
        try adapter?.checkAllRead()
    }

    /// Makes a model of named tensors; what `frozen` knows is not read.
    init(
        _ source: any TensorSource, _ configuration: ModelConfiguration, _ recipe: Recipe,
        parameterCount: Int,
        frozen: @escaping (WeightNames.Matrix) -> Head? = { _ in nil }
    ) throws(LockstepError) {
        try recipe.check()
        let names = WeightNames(configuration)
        let loader = WeightLoader(source, recipe, frozen)
        self.parameterCount = parameterCount
        self.configuration = configuration
        self.recipe = recipe
        embedding = try loader.matrix(names.embedding)
        head = configuration.isTied ? embedding : try loader.matrix(names.head)
        finalNorm = try loader.vector(names.finalNorm, configuration.hiddenSize)
        var layers: [Layer] = []
        for index in 0..<configuration.layers { layers.append(try loader.layer(names, index)) }
        self.layers = layers
    }
}

/// Where weights come from, by their names in a checkpoint.
protocol TensorSource {
    /// Throws unless a tensor is there and has a shape: before memory is asked for that it would not fill.
    func check(_ name: String, shape: [Int]) throws(LockstepError)
    /// Reads a tensor of a known shape, rounded once to a format.
    ///
    /// - Throws: `.badData` if it is missing, has another shape, or a value that is NaN or infinite afterwards.
    func read(_ name: String, shape: [Int], as format: Format, into target: UnsafeMutableRawPointer)
        throws(LockstepError)
}

/// A checkpoint with an adapter merged into its weights as they are read.
struct MergedCheckpoint: TensorSource {
    let checkpoint: Checkpoint
    let adapter: Adapter?

    init(_ checkpoint: Checkpoint, _ adapter: Adapter?) {
        self.checkpoint = checkpoint
        self.adapter = adapter
    }

    func check(_ name: String, shape: [Int]) throws(LockstepError) {
        try checkpoint.check(name, shape: shape)
    }

    func read(
        _ name: String, shape: [Int], as format: Format, into target: UnsafeMutableRawPointer
    ) throws(LockstepError) {
        guard let adapter, shape.count == 2 else {
            return try checkpoint.read(name, shape: shape, as: format, into: target)
        }
        let values = try Scratch<Float>(count: shape[0] * shape[1])
        try checkpoint.read(name, shape: shape, as: .fp32, into: values.base)
        try adapter.add(to: name, rows: shape[0], columns: shape[1], values.base)
        try store(
            values.base, values.count, as: format, into: target,
            "\(checkpoint.path): tensor '\(name)' with the adapter")
    }
}

/// Rounds floats to a format, once.
///
/// - Throws: `.nonFinite` naming `what` if a value is NaN or infinite afterwards.
func store(
    _ values: UnsafePointer<Float>, _ count: Int, as format: Format, into target: UnsafeMutableRawPointer,
    _ what: @autoclosure () -> String
) throws(LockstepError) {
    try convert(
        TensorView(values, .fp32, shape: [count]), into: MutableTensorView(target, format, shape: [count]),
        execution: Execution(threads: 1))
    try SafeTensors.checkFinite(target, format, count, what())
}

/// Makes heads of named tensors.
private struct WeightLoader {
    let source: any TensorSource
    let recipe: Recipe
    let memory = PanelMemory(isShared: true)
    /// Matrices that are there already.
    let frozen: (WeightNames.Matrix) -> Head?

    init(
        _ source: any TensorSource, _ recipe: Recipe, _ frozen: @escaping (WeightNames.Matrix) -> Head?
    ) {
        self.source = source
        self.recipe = recipe
        self.frozen = frozen
    }

    func layer(_ names: WeightNames, _ index: Int) throws(LockstepError) -> Model.Layer {
        let c = names.configuration
        let heads = names.headNorms(index)
        return Model.Layer(
            attentionNorm: try vector(names.attentionNorm(index), c.hiddenSize),
            projection: try matrix(names.projection(index), as: recipe.parameters),
            headNorms: c.hasQueryNorm
                ? (try vector(heads.query, c.headSize), try vector(heads.key, c.headSize)) : nil,
            output: try matrix(names.output(index), as: recipe.parameters),
            mlpNorm: try vector(names.mlpNorm(index), c.hiddenSize),
            feedForward: try feedForward(names, index))
    }

    private func feedForward(
        _ names: WeightNames, _ index: Int
    ) throws(LockstepError) -> Model.FeedForward {
        guard let experts = names.experts(index) else { return .dense(try mlp(names.mlp(index))) }
        var all: [Model.MLP] = []
        for expert in 0..<experts.count { all.append(try mlp(names.mlp(index, expert: expert))) }
        return .experts(router: try matrix(names.router(index)), all)
    }

    private func mlp(
        _ names: (gateAndUp: WeightNames.Matrix, down: WeightNames.Matrix)
    ) throws(LockstepError) -> Model.MLP {
        Model.MLP(
            gateAndUp: try matrix(names.gateAndUp, as: recipe.parameters),
            down: try matrix(names.down, as: recipe.parameters))
    }

    /// A norm's weight.
    ///
    /// It is rounded to the parameters' format, and kept as floats.
    func vector(_ name: String, _ count: Int) throws(LockstepError) -> [Float] {
        try source.check(name, shape: [count])
        let format = recipe.wideParameters
        let stored = try Scratch<UInt8>(count: count * format.byteCount)
        try source.read(name, shape: [count], as: format, into: stored.base)
        let view = VectorView(stored.base, format, count: count)
        return (0..<count).map { Float(view.double($0)) }
    }

    /// Weights of one input, one below the other; biases stay in the wide format.
    func matrix(
        _ matrix: WeightNames.Matrix, as wanted: Format? = nil
    ) throws(LockstepError) -> Head {
        if let same = frozen(matrix) { return same }
        let (wide, columns) = (recipe.wideParameters, matrix.columns)
        // Weights that become 8 bits are rounded once, from float32.
        let isNarrow = wanted == .e4m3fn
        let format = isNarrow ? .fp32 : wide
        for (name, count) in matrix.parts { try source.check("\(name).weight", shape: [count, columns]) }
        let rows = matrix.rows
        let weights = try Scratch<UInt8>(count: rows * columns * format.byteCount)
        let biases = try Scratch<UInt8>(count: rows * wide.byteCount)
        var first = 0
        for (name, count) in matrix.parts {
            try source.read(
                "\(name).weight", shape: [count, columns], as: format,
                into: weights.base + first * columns * format.byteCount)
            if matrix.hasBias {
                try source.read(
                    "\(name).bias", shape: [count], as: wide, into: biases.base + first * wide.byteCount)
            }
            first += count
        }
        let bias = matrix.hasBias ? VectorView(biases.base, wide.storage, count: rows) : nil
        let scales = isNarrow ? try narrow(weights.base, rows: rows, columns: columns) : nil
        return try Head(
            weight: MatrixView(
                weights.base, isNarrow ? .e4m3fn : format.storage, rows: rows, columns: columns),
            bias: bias, in: memory, splitsProducts: recipe.order.splitsProducts, scales: scales)
    }

    /// Turns rows of floats into codes of e4m3fn, in place, and tells their scales, zeros up to a whole panel.
    private func narrow(
        _ weights: UnsafeMutablePointer<UInt8>, rows: Int, columns: Int
    ) throws(LockstepError) -> [Float] {
        let kernels = try Execution().kernels().pointee
        let width = Int(LSK_PANEL)
        var scales = [Float](repeating: 0, count: (rows + width - 1) / width * width)
        let floats = UnsafeMutableRawPointer(weights).assumingMemoryBound(to: Float.self)
        for row in 0..<rows {
            let values = UnsafeMutableBufferPointer(start: floats + row * columns, count: columns)
            let scale = rowScale(largest: values.reduce(0) { max($0, $1.magnitude) })
            for column in 0..<columns { values[column] /= scale }
            var counts = lsk_convert_counts()
            kernels.convert(
                weights + row * columns, Format.e4m3fn.rawValue, values.baseAddress!, Format.fp32.rawValue,
                columns, LSK_NEAREST_EVEN, 0, 0, &counts)
            scales[row] = scale
        }
        return scales
    }
}

/// The scale of a row whose largest magnitude is known: the smallest power of two with which e4m3fn, to 448, holds it.
///
/// Not below 2^-100, so that a row of tiny values has no infinite quotients.
func rowScale(largest: Float) -> Float {
    if largest == 0 { return 1 }
    let power = Float(sign: .plus, exponent: largest.exponent - 8, significand: 1)
    return max(largest > 448 * power ? 2 * power : power, 0x1p-100)
}
