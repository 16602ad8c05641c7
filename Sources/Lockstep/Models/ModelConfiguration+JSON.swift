extension ModelConfiguration {
    /// Creates the shape of a model; what is not given is as a Llama of transformers has it.
    ///
    /// With `hasAttentionBias` there are biases on queries, keys, values and, but for Qwen2, the output.
    ///
    /// - Throws: `.badData` or `.unsupported` naming a setting, by its name in config.json, that is out of range.
    public init(
        _ family: Family = .llama, vocab: Int, hiddenSize: Int, intermediateSize: Int, layers: Int,
        heads: Int,
        keyValueHeads: Int? = nil, headSize: Int? = nil, normEpsilon: Double = 1e-6,
        ropeTheta: Double = 10_000,
        ropeScaling: Llama3Scaling? = nil, positions: Int, isTied: Bool = false,
        hasAttentionBias: Bool = false,
        hasMLPBias: Bool = false, experts: Experts? = nil
    ) throws(LockstepError) {
        var made = ModelConfiguration.chain
        (made.family, made.vocab, made.hiddenSize) = (family, vocab, hiddenSize)
        (made.intermediateSize, made.layers, made.heads) = (intermediateSize, layers, heads)
        made.keyValueHeads = keyValueHeads ?? heads
        made.headSize = headSize ?? hiddenSize / max(heads, 1)
        (made.normEpsilon, made.ropeTheta, made.ropeScaling) = (normEpsilon, ropeTheta, ropeScaling)
        (made.positions, made.isTied, made.hasQueryBias) = (positions, isTied, hasAttentionBias)
        (made.hasMLPBias, made.experts) = (hasMLPBias, experts)
        // Read as any config.json, every bound is checked.
        self = try ModelConfiguration(made.json, "configuration")
    }
}

extension ModelConfiguration {
    /// The configuration as a config.json of transformers has it.
    var json: JSON {
        var members: [String: JSON] = [
            "architectures": .array([.string(family.architecture)]), "model_type": .string(family.rawValue),
            "vocab_size": .integer(vocab), "hidden_size": .integer(hiddenSize),
            "intermediate_size": .integer(intermediateSize), "num_hidden_layers": .integer(layers),
            "num_attention_heads": .integer(heads), "num_key_value_heads": .integer(keyValueHeads),
            "head_dim": .integer(headSize), "rms_norm_eps": .number(normEpsilon),
            "hidden_act": .string("silu"),
            "max_position_embeddings": .integer(positions), "tie_word_embeddings": .bool(isTied),
            "attention_bias": .bool(family == .qwen2 ? false : hasQueryBias), "mlp_bias": .bool(hasMLPBias),
            "rope_theta": .number(ropeTheta), "dtype": .string("float32"),
        ]
        if let scaling = ropeScaling {
            members["rope_scaling"] = .object([
                "rope_type": .string("llama3"), "factor": .number(scaling.factor),
                "low_freq_factor": .number(scaling.lowFrequency),
                "high_freq_factor": .number(scaling.highFrequency),
                "original_max_position_embeddings": .integer(scaling.originalPositions),
            ])
        }
        if let experts {
            members[family == .mixtral ? "num_local_experts" : "num_experts"] = .integer(experts.count)
            members["num_experts_per_tok"] = .integer(experts.perToken)
            if family == .qwen3MoE {
                members["moe_intermediate_size"] = .integer(experts.intermediateSize)
                members["norm_topk_prob"] = .bool(experts.normalized)
                members["mlp_only_layers"] = .array(experts.denseLayers.sorted().map { .integer($0) })
            }
        }
        if family == .mistral { members["sliding_window"] = .null }
        return .object(members)
    }
}

extension ModelConfiguration.Family {
    /// The class of transformers.
    var architecture: String {
        switch self {
        case .llama: "LlamaForCausalLM"
        case .mistral: "MistralForCausalLM"
        case .qwen2: "Qwen2ForCausalLM"
        case .qwen3: "Qwen3ForCausalLM"
        case .mixtral: "MixtralForCausalLM"
        case .qwen3MoE: "Qwen3MoeForCausalLM"
        }
    }
}
