/// The names that the weights of a model have in a checkpoint.
struct WeightNames {
    let configuration: ModelConfiguration

    /// Weights of one input, one below the other: `name.weight`, and `name.bias`.
    struct Matrix {
        let parts: [(name: String, rows: Int)]
        let columns: Int
        var hasBias = false

        var rows: Int { parts.reduce(0) { $0 + $1.rows } }
    }

    init(_ configuration: ModelConfiguration) { self.configuration = configuration }

    var embedding: Matrix {
        Matrix(parts: [("model.embed_tokens", configuration.vocab)], columns: configuration.hiddenSize)
    }
    /// Of a model that is not tied.
    var head: Matrix { Matrix(parts: [("lm_head", configuration.vocab)], columns: configuration.hiddenSize) }
    var finalNorm: String { "model.norm.weight" }

    func attentionNorm(_ layer: Int) -> String { "model.layers.\(layer).input_layernorm.weight" }
    func mlpNorm(_ layer: Int) -> String { "model.layers.\(layer).post_attention_layernorm.weight" }
    func headNorms(_ layer: Int) -> (query: String, key: String) {
        let name = "model.layers.\(layer).self_attn"
        return ("\(name).q_norm.weight", "\(name).k_norm.weight")
    }

    /// Queries, keys and values.
    func projection(_ layer: Int) -> Matrix {
        let c = configuration
        let name = "model.layers.\(layer).self_attn"
        let keys = c.keyValueHeads * c.headSize
        return Matrix(
            parts: [
                ("\(name).q_proj", c.heads * c.headSize), ("\(name).k_proj", keys), ("\(name).v_proj", keys),
            ], columns: c.hiddenSize, hasBias: c.hasQueryBias)
    }

    func output(_ layer: Int) -> Matrix {
        let c = configuration
        return Matrix(
            parts: [("model.layers.\(layer).self_attn.o_proj", c.hiddenSize)], columns: c.heads * c.headSize,
            hasBias: c.hasOutputBias)
    }

    /// The experts of a layer; nil for one that has an MLP.
    func experts(_ layer: Int) -> ModelConfiguration.Experts? {
        guard let experts = configuration.experts, !experts.denseLayers.contains(layer) else { return nil }
        return experts
    }

    func router(_ layer: Int) -> Matrix {
        Matrix(
            parts: [("\(block(layer)).gate", configuration.experts?.count ?? 0)],
            columns: configuration.hiddenSize)
    }

    /// An MLP, or that of an expert.
    func mlp(_ layer: Int, expert: Int? = nil) -> (gateAndUp: Matrix, down: Matrix) {
        let c = configuration
        var (name, width) = ("model.layers.\(layer).mlp", c.intermediateSize)
        var (gate, up, down) = ("gate_proj", "up_proj", "down_proj")
        if let expert {
            (name, width) = ("\(block(layer)).experts.\(expert)", c.experts?.intermediateSize ?? 0)
            if c.family == .mixtral { (gate, up, down) = ("w1", "w3", "w2") }
        }
        return (
            Matrix(
                parts: [("\(name).\(gate)", width), ("\(name).\(up)", width)], columns: c.hiddenSize,
                hasBias: c.hasMLPBias),
            Matrix(parts: [("\(name).\(down)", c.hiddenSize)], columns: width, hasBias: c.hasMLPBias)
        )
    }

    private func block(_ layer: Int) -> String {
        "model.layers.\(layer).\(configuration.family == .mixtral ? "block_sparse_moe" : "mlp")"
    }

    /// All matrices.
    var matrices: [Matrix] {
        var all = [embedding]
        if !configuration.isTied { all.append(head) }
        for layer in 0..<configuration.layers {
            all += [projection(layer), output(layer)]
            if let experts = experts(layer) {
                all.append(router(layer))
                for expert in 0..<experts.count {
                    let names = mlp(layer, expert: expert)
                    all += [names.gateAndUp, names.down]
                }
            } else {
                let names = mlp(layer)
                all += [names.gateAndUp, names.down]
            }
        }
        return all
    }

    /// All tensors: name and shape, in the order of their names.
    var tensors: [(name: String, shape: [Int])] {
        let c = configuration
        var all: [(name: String, shape: [Int])] = [(finalNorm, [c.hiddenSize])]
        for layer in 0..<c.layers {
            all += [(attentionNorm(layer), [c.hiddenSize]), (mlpNorm(layer), [c.hiddenSize])]
            if c.hasQueryNorm {
                all += [(headNorms(layer).query, [c.headSize]), (headNorms(layer).key, [c.headSize])]
            }
        }
        for matrix in matrices {
            for (name, rows) in matrix.parts {
                all.append(("\(name).weight", [rows, matrix.columns]))
                if matrix.hasBias { all.append(("\(name).bias", [rows])) }
            }
        }
        return all.sorted { $0.name < $1.name }
    }
}
