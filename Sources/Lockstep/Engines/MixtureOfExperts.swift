import CLockstepKernels

/// Which experts a token goes to, and how much each counts.
struct Routing {
    /// By expert, ascending; at most `perToken` of them.
    let choices: [(expert: Int, weight: Float)]
    /// The softmax that the weights are of, in float64: over all experts, or over those that were chosen (0 beyond).
    let probabilities: [Double]

    /// Chooses by the router's logits: the most probable experts, of equals those with the smaller index.
    ///
    /// The softmax over all experts is in float64, so are the weights until they are rounded to float32 once.
    /// *Source*: Shazeer et al., Outrageously Large Neural Networks (2017); Mixtral; Qwen3-MoE.
    init(logits: UnsafeBufferPointer<Float>, _ experts: ModelConfiguration.Experts) {
        let largest = logits.max() ?? 0
        let terms = logits.map { exponential(Double($0 - largest)) }
        let order = terms.indices.sorted { terms[$0] != terms[$1] ? terms[$0] > terms[$1] : $0 < $1 }
        let chosen = order.prefix(experts.perToken).sorted()
        let sum = (experts.normalized ? chosen.map { terms[$0] } : terms).reduce(0, +)
        choices = chosen.map { ($0, Float(terms[$0] / sum)) }
        probabilities = terms.indices.map { experts.normalized && !chosen.contains($0) ? 0 : terms[$0] / sum }
    }

    /// The gradient with respect to the router's logits, of gradients with respect to the weights of `choices`.
    ///
    /// p_j (g_j - sum p g), with g 0 for who was not chosen; float64, rounded to float32 once.
    func backward(_ gradients: [Float]) -> [Float] {
        var given = [Double](repeating: 0, count: probabilities.count)
        for (choice, gradient) in zip(choices, gradients) { given[choice.expert] = Double(gradient) }
        var mean = 0.0
        for (p, g) in zip(probabilities, given) { mean += p * g }
        return zip(probabilities, given).map { Float($0 * ($1 - mean)) }
    }
}

/// Memory of a mixture of experts for some rows.
final class ExpertScratch {
    let logits: Scratch<Float>
    /// The sums of what experts gave, in float32.
    let sums: Scratch<Float>
    /// The rows of one expert, and what it gave for them.
    let rows: Scratch<UInt8>
    let results: Scratch<UInt8>
    /// One row in float32.
    let row: Scratch<Float>

    init(rows count: Int, hiddenSize: Int, experts: Int, rowBytes: Int) throws(LockstepError) {
        logits = try Scratch(count: count * experts)
        sums = try Scratch(count: count * hiddenSize)
        rows = try Scratch(count: count * rowBytes)
        results = try Scratch(count: count * rowBytes)
        row = try Scratch(count: hiddenSize)
    }
}
