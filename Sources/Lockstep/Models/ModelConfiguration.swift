/// The shape of a decoder-only transformer of the Llama family, from a Hugging Face config.json.
///
/// Families: Llama, Mistral, Qwen2, Qwen3, Mixtral and Qwen3-MoE. What is not known is an error that says so: a
/// setting that were ignored would give other log-probs than the engines that mind it.
public struct ModelConfiguration: Equatable, Sendable {
    /// What tells the families apart, where no setting does.
    public enum Family: String, CaseIterable, Sendable {
        /// LlamaForCausalLM.
        case llama
        /// MistralForCausalLM.
        case mistral
        /// Qwen2ForCausalLM: biases on queries, keys and values.
        case qwen2
        /// Qwen3ForCausalLM: RMS norms on the heads of queries and keys.
        case qwen3
        /// MixtralForCausalLM: a mixture of experts in every layer.
        case mixtral
        /// Qwen3MoeForCausalLM: Qwen3 with mixtures of experts.
        case qwen3MoE = "qwen3_moe"
    }

    /// How the frequencies of the rotary embedding are stretched for long contexts.
    public struct Llama3Scaling: Equatable, Sendable {
        /// Low frequencies are divided by this.
        public var factor: Double
        /// Wavelengths longer than `originalPositions / lowFrequency` are low.
        public var lowFrequency: Double
        /// Wavelengths shorter than `originalPositions / highFrequency` stay.
        public var highFrequency: Double
        /// The context of the pretraining.
        public var originalPositions: Int

        /// Creates a scaling.
        public init(factor: Double, lowFrequency: Double, highFrequency: Double, originalPositions: Int) {
            self.factor = factor
            self.lowFrequency = lowFrequency
            self.highFrequency = highFrequency
            self.originalPositions = originalPositions
        }
    }

    /// A mixture of experts in place of the layers' MLP.
    public struct Experts: Equatable, Sendable {
        /// Number of experts of a layer.
        public var count: Int
        /// How many of them a token goes to.
        public var perToken: Int
        /// Width of each.
        public var intermediateSize: Int
        /// Whether the chosen experts' probabilities are divided by their sum.
        public var normalized: Bool
        /// Layers that have an MLP instead.
        public var denseLayers: Set<Int>

        /// Creates a mixture.
        public init(
            count: Int, perToken: Int, intermediateSize: Int, normalized: Bool = true,
            denseLayers: Set<Int> = []
        ) {
            self.count = count
            self.perToken = perToken
            self.intermediateSize = intermediateSize
            self.normalized = normalized
            self.denseLayers = denseLayers
        }
    }

    /// The family.
    public var family: Family
    /// Number of token ids.
    public var vocab: Int
    /// Width of the residual stream.
    public var hiddenSize: Int
    /// Width of the MLP.
    public var intermediateSize: Int
    /// Number of layers.
    public var layers: Int
    /// Number of query heads.
    public var heads: Int
    /// Number of key and value heads; a divisor of `heads`.
    public var keyValueHeads: Int
    /// Width of a head.
    public var headSize: Int
    /// Added to the mean square in RMS norms.
    public var normEpsilon: Double
    /// The base of the rotary embedding's frequencies.
    public var ropeTheta: Double
    /// How they are stretched; nil: not at all.
    public var ropeScaling: Llama3Scaling?
    /// The longest sequence.
    public var positions: Int
    /// Whether the output head is the embedding.
    public var isTied: Bool
    /// Whether queries, keys and values have biases.
    public var hasQueryBias: Bool
    /// Whether the attention's output has a bias.
    public var hasOutputBias: Bool
    /// Whether the MLP has biases.
    public var hasMLPBias: Bool
    /// Mixtures of experts; nil: none.
    public var experts: Experts?

    /// Whether the heads of queries and keys are normalised.
    public var hasQueryNorm: Bool { family == .qwen3 || family == .qwen3MoE }

    /// Reads the config.json of a folder.
    ///
    /// - Throws: `.file`; `.badData` naming a setting that is missing or out of range; `.unsupported` for one that is not
    ///   known.
    public init(path: String) throws(LockstepError) {
        let file = "\(path)/config.json"
        try self.init(try JSON(contentsOf: file), file)
    }

    /// Reads a config.json.
    ///
    /// - Throws: `.badData` naming a setting that is missing or out of range; `.unsupported` for one that is not
    ///   known.
    init(_ json: JSON, _ name: String) throws(LockstepError) {
        let reader = Reader(json: json, name: name)
        let type = try reader.text("model_type")
        guard let family = Family(rawValue: type) else {
            let known = Family.allCases.map(\.rawValue).joined(separator: ", ")
            throw reader.unsupported("model_type is '\(type)'; known are \(known)")
        }
        self.family = family
        vocab = try reader.count("vocab_size")
        hiddenSize = try reader.count("hidden_size")
        intermediateSize = try reader.count("intermediate_size")
        layers = try reader.count("num_hidden_layers", atMost: 10_000)
        heads = try reader.count("num_attention_heads", atMost: 100_000)
        keyValueHeads = try reader.count("num_key_value_heads", default: heads)
        headSize = try reader.count("head_dim", default: max(hiddenSize / heads, 1), atMost: 65_536)
        normEpsilon = try reader.number("rms_norm_eps")
        // Up to here the angles of the rotary embedding are exact to the last bit of a float (`sineAndCosine`).
        positions = try reader.count("max_position_embeddings", atMost: 1 << 20)
        isTied = try reader.flag("tie_word_embeddings", default: false)
        let attentionBias = try reader.flag("attention_bias", default: false)
        hasQueryBias = family == .qwen2 || attentionBias
        hasOutputBias = family != .qwen2 && attentionBias
        hasMLPBias = try reader.flag("mlp_bias", default: false)
        (ropeTheta, ropeScaling) = try reader.rope(family)
        experts = try reader.experts(family, layers: layers)

        guard heads % keyValueHeads == 0 else {
            throw reader.bad(
                "num_attention_heads is \(heads), no multiple of num_key_value_heads, \(keyValueHeads)")
        }
        guard headSize % 2 == 0 else { throw reader.bad("head_dim is \(headSize); it must be even") }
        guard heads.multipliedReportingOverflow(by: headSize).partialValue <= 1 << 24 else {
            throw reader.bad("num_attention_heads x head_dim is too large")
        }
        try reader.checkTheRest(family, positions: positions)
    }
}

extension ModelConfiguration {
    /// Reads settings, with errors that name the file and the setting.
    private struct Reader {
        let json: JSON
        let name: String

        func bad(_ what: String) -> LockstepError { LockstepError(.badData, "\(name): \(what)") }

        func unsupported(_ what: String) -> LockstepError { LockstepError(.unsupported, "\(name): \(what)") }

        func text(_ key: String) throws(LockstepError) -> String {
            guard let value = json[key]?.string else { throw bad("\(key) is missing or not a text") }
            return value
        }

        func count(
            _ key: String, default fallback: Int? = nil, atMost limit: Int = 1 << 24
        ) throws(LockstepError) -> Int {
            guard let found = json[key] else {
                guard let fallback else { throw bad("\(key) is missing") }
                return fallback
            }
            guard let value = found.integer, (1...limit).contains(value) else {
                throw bad("\(key) is not a count from 1 to \(limit)")
            }
            return value
        }

        func number(
            _ key: String, in json: JSON? = nil, atLeast least: Double = .leastNonzeroMagnitude
        ) throws(LockstepError) -> Double {
            guard let value = (json ?? self.json)[key]?.double, value >= least else {
                throw bad(
                    "\(key) is missing or not a number \(least < 1 ? "above 0" : "of at least \(least)")")
            }
            return value
        }

        func list<Element>(
            _ key: String, of what: String, _ element: (JSON) -> Element?
        ) throws(LockstepError) -> [Element] {
            guard let found = json[key] else { return [] }
            guard let values = found.array, case let elements = values.compactMap(element),
                elements.count == values.count
            else { throw bad("\(key) is not a list of \(what)") }
            return elements
        }

        func flag(_ key: String, default fallback: Bool) throws(LockstepError) -> Bool {
            guard let found = json[key] else { return fallback }
            guard let value = found.bool else { throw bad("\(key) is not true or false") }
            return value
        }

        /// The base and the stretching: since transformers 5 under rope_parameters, before at two places.
        ///
        /// Both are at least 1, or angles would outgrow what their sines can be had of.
        func rope(_ family: Family) throws(LockstepError) -> (Double, Llama3Scaling?) {
            let scaling = json["rope_parameters"] ?? json["rope_scaling"]
            let place = json["rope_parameters"]?["rope_theta"] == nil ? json : json["rope_parameters"]
            let fallback = family == .mixtral ? 1e6 : 10_000  // as transformers
            let theta =
                place?["rope_theta"] == nil ? fallback : try number("rope_theta", in: place, atLeast: 1)
            try checkShare(of: json)
            guard let scaling else { return (theta, nil) }
            guard case .object(let members) = scaling else {
                throw bad("rope_parameters, or rope_scaling, is not an object")
            }
            for (key, value) in members {
                if case .object = value {
                    throw unsupported(
                        "rope_parameters has an object '\(key)'; known is one rope for all layers")
                }
            }
            try checkShare(of: scaling)
            let type = scaling["rope_type"] ?? scaling["type"] ?? .string("default")
            guard let type = type.string else { throw bad("rope_type is not a text") }
            switch type {
            case "default": return (theta, nil)
            case "llama3":
                guard let original = scaling["original_max_position_embeddings"]?.integer, original > 0 else {
                    throw bad("original_max_position_embeddings is missing or not a count")
                }
                let found = Llama3Scaling(
                    factor: try number("factor", in: scaling, atLeast: 1),
                    lowFrequency: try number("low_freq_factor", in: scaling),
                    highFrequency: try number("high_freq_factor", in: scaling), originalPositions: original)
                guard found.lowFrequency < found.highFrequency else {
                    throw bad("low_freq_factor is not below high_freq_factor")
                }
                return (theta, found)
            default: throw unsupported("rope_type is '\(type)'; known are default and llama3")
            }
        }

        /// How much of a head is rotated: all of it.
        private func checkShare(of place: JSON) throws(LockstepError) {
            guard let share = place["partial_rotary_factor"] else { return }
            guard let share = share.double else { throw bad("partial_rotary_factor is not a number") }
            guard share == 1 else {
                throw unsupported("partial_rotary_factor is \(share); only 1 is known")
            }
        }

        func experts(_ family: Family, layers: Int) throws(LockstepError) -> Experts? {
            guard family == .mixtral || family == .qwen3MoE else { return nil }
            let count =
                json["num_local_experts"] == nil
                ? try count("num_experts", atMost: 65_536) : try count("num_local_experts", atMost: 65_536)
            let perToken = try self.count("num_experts_per_tok", atMost: count)
            guard family == .qwen3MoE else {
                let width = try self.count("intermediate_size")
                return Experts(
                    count: count, perToken: perToken, intermediateSize: width, normalized: true,
                    denseLayers: [])
            }
            let step = try self.count("decoder_sparse_step", default: 1)
            let dense = Set(try list("mlp_only_layers", of: "layers", \.integer))
            return Experts(
                count: count, perToken: perToken, intermediateSize: try self.count("moe_intermediate_size"),
                normalized: try flag("norm_topk_prob", default: false),
                denseLayers: dense.union((0..<layers).filter { ($0 + 1) % step != 0 }))
        }

        /// Settings that would change the result, and are known only where they do not.
        func checkTheRest(_ family: Family, positions: Int) throws(LockstepError) {
            let activation = json["hidden_act"] == nil ? "silu" : try text("hidden_act")
            guard activation == "silu" else {
                throw unsupported("hidden_act is '\(activation)'; known is silu")
            }
            if json["quantization_config"] != nil {
                throw unsupported("quantization_config is given; load the weights as they were before")
            }
            // Qwen's configurations carry a window that is used only if another setting says so.
            let isQwen = [.qwen2, .qwen3, .qwen3MoE].contains(family)
            let usesWindow = try flag("use_sliding_window", default: !isQwen)
            if usesWindow, let window = try window(family), window < positions {
                throw unsupported(
                    "sliding_window is \(window), less than max_position_embeddings; known is full attention, "
                        + "so set max_position_embeddings to the window to use the model up to there")
            }
            let types = Set(try list("layer_types", of: "texts", \.string))
            if let other = types.subtracting(["full_attention"]).min() {
                throw unsupported("layer_types has '\(other)'; known is full_attention")
            }
        }

        /// The tokens that attention reaches back; Mistral has a default, which null turns off.
        private func window(_ family: Family) throws(LockstepError) -> Int? {
            if case .object(let members) = json, members["sliding_window"] == nil {
                return family == .mistral ? 4096 : nil
            }
            return json["sliding_window"] == nil ? nil : try count("sliding_window")
        }
    }
}
