import Glibc

@testable import Lockstep

/// A transformer in loops a reader can check by eye, in float64 and without a cache: what the engines approximate.
///
/// It knows nothing of how they work: only config.json's meaning and the names of the weights.
struct PlainTransformer {
    let c: ModelConfiguration
    let checkpoint: TinyCheckpoint
    private let isMixtral: Bool

    init(_ checkpoint: TinyCheckpoint) throws {
        self.checkpoint = checkpoint
        c = try ModelConfiguration(.object(checkpoint.config), "config")
        isMixtral = c.family == .mixtral
    }

    /// Log-prob of each token but the first, given those before it.
    func logProbs(_ tokens: [Int32]) -> [Double] {
        let logits = logits(tokens)
        return (1..<tokens.count).map { t in
            let row = logits[t - 1]
            let largest = row.max()!
            return row[Int(tokens[t])] - largest - log(row.reduce(0) { $0 + exp($1 - largest) })
        }
    }

    /// Logits of every position.
    func logits(_ tokens: [Int32]) -> [[Double]] {
        let embedding = checkpoint.values("model.embed_tokens.weight")
        var x = tokens.map { Array(embedding[Int($0) * c.hiddenSize..<(Int($0) + 1) * c.hiddenSize]) }
        for layer in 0..<c.layers {
            let name = "model.layers.\(layer)"
            let normed = norm(x, "\(name).input_layernorm")
            x = add(x, attention(normed, "\(name).self_attn"))
            x = add(x, feedForward(norm(x, "\(name).post_attention_layernorm"), layer))
        }
        return linear(norm(x, "model.norm"), c.isTied ? "model.embed_tokens" : "lm_head", c.vocab)
    }

    private func add(_ a: [[Double]], _ b: [[Double]]) -> [[Double]] {
        zip(a, b).map { zip($0, $1).map { $0 + $1 } }
    }

    private func norm(_ rows: [[Double]], _ name: String) -> [[Double]] {
        let weight = checkpoint.values("\(name).weight")
        return rows.map { row in
            let mean = row.reduce(0) { $0 + $1 * $1 } / Double(row.count)
            return zip(row, weight).map { $0 / (mean + c.normEpsilon).squareRoot() * $1 }
        }
    }

    private func linear(_ rows: [[Double]], _ name: String, _ width: Int) -> [[Double]] {
        let weight = checkpoint.values("\(name).weight")
        let bias = checkpoint.values("\(name).bias")
        return rows.map { row in
            (0..<width).map { o in
                row.indices.reduce(bias.isEmpty ? 0 : bias[o]) { $0 + row[$1] * weight[o * row.count + $1] }
            }
        }
    }

    /// The heads of some rows: normalised where the family does, and rotated.
    private func heads(_ rows: [[Double]], _ count: Int, _ norm: String, isRotated: Bool) -> [[[Double]]] {
        rows.enumerated().map { position, row in
            (0..<count).map { head in
                var x = Array(row[head * c.headSize..<(head + 1) * c.headSize])
                if isRotated, c.hasQueryNorm { x = self.norm([x], norm)[0] }
                return isRotated ? rotated(x, position) : x
            }
        }
    }

    private func rotated(_ x: [Double], _ position: Int) -> [Double] {
        let half = c.headSize / 2
        var out = x
        for i in 0..<half {
            var frequency = pow(c.ropeTheta, -2 * Double(i) / Double(c.headSize))
            if let s = c.ropeScaling {
                let wavelength = 2 * Double.pi / frequency
                let low = Double(s.originalPositions) / s.lowFrequency
                let high = Double(s.originalPositions) / s.highFrequency
                if wavelength > low {
                    frequency /= s.factor
                } else if wavelength >= high {
                    let smooth =
                        (Double(s.originalPositions) / wavelength - s.lowFrequency)
                        / (s.highFrequency - s.lowFrequency)
                    frequency = (1 - smooth) * frequency / s.factor + smooth * frequency
                }
            }
            let angle = Double(position) * frequency
            out[i] = x[i] * cos(angle) - x[i + half] * sin(angle)
            out[i + half] = x[i + half] * cos(angle) + x[i] * sin(angle)
        }
        return out
    }

    private func attention(_ x: [[Double]], _ name: String) -> [[Double]] {
        let group = c.heads / c.keyValueHeads
        func project(_ part: String, _ count: Int, isRotated: Bool) -> [[[Double]]] {
            heads(
                linear(x, "\(name).\(part)_proj", count * c.headSize), count, "\(name).\(part)_norm",
                isRotated: isRotated)
        }
        let queries = project("q", c.heads, isRotated: true)
        let keys = project("k", c.keyValueHeads, isRotated: true)
        let values = project("v", c.keyValueHeads, isRotated: false)
        let mixed = x.indices.map { t in
            (0..<c.heads).flatMap { head in
                let scores = (0...t).map { s in
                    zip(queries[t][head], keys[s][head / group]).reduce(0) { $0 + $1.0 * $1.1 }
                        / Double(c.headSize).squareRoot()
                }
                let terms = scores.map { exp($0 - scores.max()!) }
                let sum = terms.reduce(0, +)
                return (0..<c.headSize).map { i in
                    (0...t).reduce(0) { $0 + terms[$1] / sum * values[$1][head / group][i] }
                }
            }
        }
        return linear(mixed, "\(name).o_proj", c.hiddenSize)
    }

    private func feedForward(_ x: [[Double]], _ layer: Int) -> [[Double]] {
        let name = "model.layers.\(layer)"
        guard let experts = c.experts, !experts.denseLayers.contains(layer) else {
            return mlp(x, "\(name).mlp", ("gate_proj", "up_proj", "down_proj"), c.intermediateSize)
        }
        let block = isMixtral ? "\(name).block_sparse_moe" : "\(name).mlp"
        let router = linear(x, "\(block).gate", experts.count)
        return x.indices.map { t in
            let terms = router[t].map { exp($0 - router[t].max()!) }
            let chosen = terms.indices.sorted { terms[$0] > terms[$1] }.prefix(experts.perToken)
            let sum = experts.normalized ? chosen.reduce(0) { $0 + terms[$1] } : terms.reduce(0, +)
            var out = [Double](repeating: 0, count: c.hiddenSize)
            for expert in chosen {
                let names = isMixtral ? ("w1", "w3", "w2") : ("gate_proj", "up_proj", "down_proj")
                let found = mlp([x[t]], "\(block).experts.\(expert)", names, experts.intermediateSize)[0]
                for i in out.indices { out[i] += terms[expert] / sum * found[i] }
            }
            return out
        }
    }

    private func mlp(
        _ x: [[Double]], _ name: String, _ parts: (String, String, String), _ width: Int
    ) -> [[Double]] {
        let gate = linear(x, "\(name).\(parts.0)", width)
        let up = linear(x, "\(name).\(parts.1)", width)
        let inner = zip(gate, up).map { zip($0, $1).map { $0 / (1 + exp(-$0)) * $1 } }
        return linear(inner, "\(name).\(parts.2)", c.hiddenSize)
    }
}
