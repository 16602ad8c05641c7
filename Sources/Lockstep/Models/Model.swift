/// A model's weights, once, in the layout the kernels read and the recipe's format.
///
/// Safe to use from many threads.
public final class Model: @unchecked Sendable {
    /// The model's shape.
    public let configuration: ModelConfiguration
    /// The formats it computes in.
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
    public init(path: String, adapter: String? = nil, recipe: Recipe) throws(LockstepError) {
        try recipe.check()
        let checkpoint = try Checkpoint(path: path)
        let configuration = checkpoint.configuration
        let adapter: Adapter? = if let adapter { try Adapter(path: adapter) } else { nil }
        parameterCount = checkpoint.parameterCount
        let loader = WeightLoader(checkpoint, adapter, recipe)
        let (hidden, vocab) = (configuration.hiddenSize, configuration.vocab)
        self.configuration = configuration
        self.recipe = recipe
        embedding = try loader.matrix([("model.embed_tokens", vocab)], columns: hidden)
        head = configuration.isTied ? embedding : try loader.matrix([("lm_head", vocab)], columns: hidden)
        finalNorm = try loader.vector("model.norm", hidden)
        var layers: [Layer] = []
        for index in 0..<configuration.layers { layers.append(try loader.layer(index)) }
        self.layers = layers
        try checkpoint.checkAllRead { name in
            name.hasSuffix("rotary_emb.inv_freq") || configuration.isTied && name == "lm_head.weight"
        }
        try adapter?.checkAllRead()
    }
}

/// Reads the weights of a checkpoint by their names.
private struct WeightLoader {
    let checkpoint: Checkpoint
    let adapter: Adapter?
    let recipe: Recipe
    let configuration: ModelConfiguration
    let memory = PanelMemory(isShared: true)

    init(_ checkpoint: Checkpoint, _ adapter: Adapter?, _ recipe: Recipe) {
        self.checkpoint = checkpoint
        self.adapter = adapter
        self.recipe = recipe
        configuration = checkpoint.configuration
    }

    func layer(_ index: Int) throws(LockstepError) -> Model.Layer {
        let c = configuration
        let (name, attention) = ("model.layers.\(index)", "model.layers.\(index).self_attn")
        let (queries, keys) = (c.heads * c.headSize, c.keyValueHeads * c.headSize)
        return Model.Layer(
            attentionNorm: try vector("\(name).input_layernorm", c.hiddenSize),
            projection: try matrix(
                [
                    ("\(attention).q_proj", queries), ("\(attention).k_proj", keys),
                    ("\(attention).v_proj", keys),
                ],
                columns: c.hiddenSize, hasBias: c.hasQueryBias),
            headNorms: c.hasQueryNorm
                ? (
                    try vector("\(attention).q_norm", c.headSize),
                    try vector("\(attention).k_norm", c.headSize)
                ) : nil,
            output: try matrix(
                [("\(attention).o_proj", c.hiddenSize)], columns: queries, hasBias: c.hasOutputBias),
            mlpNorm: try vector("\(name).post_attention_layernorm", c.hiddenSize),
            feedForward: try feedForward(index, name))
    }

    private func feedForward(_ index: Int, _ name: String) throws(LockstepError) -> Model.FeedForward {
        guard let experts = configuration.experts, !experts.denseLayers.contains(index) else {
            return .dense(
                try mlp("\(name).mlp", ("gate_proj", "up_proj", "down_proj"), configuration.intermediateSize))
        }
        let isMixtral = configuration.family == .mixtral
        let block = isMixtral ? "\(name).block_sparse_moe" : "\(name).mlp"
        var all: [Model.MLP] = []
        for expert in 0..<experts.count {
            all.append(
                try mlp(
                    "\(block).experts.\(expert)",
                    isMixtral ? ("w1", "w3", "w2") : ("gate_proj", "up_proj", "down_proj"),
                    experts.intermediateSize))
        }
        return .experts(
            router: try matrix([("\(block).gate", experts.count)], columns: configuration.hiddenSize), all)
    }

    private func mlp(
        _ name: String, _ parts: (gate: String, up: String, down: String), _ width: Int
    ) throws(LockstepError) -> Model.MLP {
        let hasBias = configuration.hasMLPBias
        return Model.MLP(
            gateAndUp: try matrix(
                [("\(name).\(parts.gate)", width), ("\(name).\(parts.up)", width)],
                columns: configuration.hiddenSize, hasBias: hasBias),
            down: try matrix(
                [("\(name).\(parts.down)", configuration.hiddenSize)], columns: width, hasBias: hasBias))
    }

    /// A norm's weight.
    ///
    /// It is rounded to the parameters' format, and kept as floats.
    func vector(_ name: String, _ count: Int) throws(LockstepError) -> [Float] {
        try checkpoint.check("\(name).weight", shape: [count])
        let stored = try Scratch<UInt8>(count: count * recipe.parameters.byteCount)
        try checkpoint.read("\(name).weight", shape: [count], as: recipe.parameters, into: stored.base)
        let view = VectorView(stored.base, recipe.parameters, count: count)
        return (0..<count).map { Float(view.double($0)) }
    }

    /// Weights of one input, one below the other.
    func matrix(
        _ parts: [(name: String, rows: Int)], columns: Int, hasBias: Bool = false
    ) throws(LockstepError) -> Head {
        let format = recipe.parameters
        for (name, count) in parts { try checkpoint.check("\(name).weight", shape: [count, columns]) }
        let rows = parts.reduce(0) { $0 + $1.rows }
        let weights = try Scratch<UInt8>(count: rows * columns * format.byteCount)
        let biases = try Scratch<UInt8>(count: rows * format.byteCount)
        var first = 0
        for (name, count) in parts {
            try weight(
                "\(name).weight", count, columns, into: weights.base + first * columns * format.byteCount)
            if hasBias {
                try checkpoint.read(
                    "\(name).bias", shape: [count], as: format, into: biases.base + first * format.byteCount)
            }
            first += count
        }
        return try Head(
            weight: MatrixView(weights.base, format.storage, rows: rows, columns: columns),
            bias: hasBias ? VectorView(biases.base, format.storage, count: rows) : nil, in: memory)
    }

    private func weight(
        _ name: String, _ rows: Int, _ columns: Int, into target: UnsafeMutableRawPointer
    ) throws(LockstepError) {
        guard let adapter else {
            return try checkpoint.read(name, shape: [rows, columns], as: recipe.parameters, into: target)
        }
        let values = try Scratch<Float>(count: rows * columns)
        try checkpoint.read(name, shape: [rows, columns], as: .fp32, into: values.base)
        try adapter.add(to: name, rows: rows, columns: columns, values.base)
        try convert(
            TensorView(values.base, .fp32, shape: [values.count]),
            into: MutableTensorView(target, recipe.parameters, shape: [values.count]))
        try SafeTensors.checkFinite(
            target, recipe.parameters, values.count, "\(checkpoint.path): tensor '\(name)' with the adapter")
    }
}
