import CLockstepKernels

extension SequencePass {
    /// The backward pass of a mixture of experts, from the residual stream's gradient to that of the norm before it.
    ///
    /// Which experts a token went to, and what they gave, is found again as the forward pass found it. What experts
    /// and router give to a token's gradient is added in float32, experts ascending and the router last, and rounded once.
    func mix(
        _ router: TrainedModel.Matrix, _ routerWeight: Head, _ experts: [TrainedModel.MLP],
        _ weights: [Model.MLP],
        _ count: Int, _ index: Int
    ) throws(Overflow) {
        guard let scratch = forward.experts, let settings = c.experts else { return }
        let (hidden, results) = (c.hiddenSize, forward.results)
        let routings = forward.route(routerWeight, settings, count)
        var ofWeights = routings.map { [Float](repeating: 0, count: $0.choices.count) }
        let sums = scratch.sums.base
        sums.update(repeating: 0, count: count * hidden)
        for (number, expert) in experts.enumerated() {
            let chosen = try forward.apply(weights[number], number, to: routings, index)
            if chosen.isEmpty { continue }
            // The expert's own rows of the gradient, times their weight: in `narrow`, then what they give, there too.
            let given = widen(scratch.results.base, chosen.count * hidden)
            for (place, (row, weight)) in chosen.enumerated() {
                let d = residual.base + row * hidden
                if let choice = routings[row].choices.firstIndex(where: { $0.expert == number }) {
                    ofWeights[row][choice] = Float(kernels.dot(d, given + place * hidden, hidden))
                }
                let out = narrow.base + place * hidden
                for k in 0..<hidden { out[k] = d[k] * weight }
            }
            try check(round(narrow.base, chosen.count * hidden), index, "mixture of experts")
            try feedForward(
                expert, scratch.rows.base, chosen.count, narrow.base, into: narrow.base, index,
                isRounded: false)
            for (place, (row, _)) in chosen.enumerated() {
                kernels.add_times(
                    sums + row * hidden, sums + row * hidden, narrow.base + place * hidden, 1,
                    Format.fp32.rawValue,
                    hidden)
            }
        }

        let logits = scratch.logits.base
        for (row, routing) in routings.enumerated() {
            for (expert, gradient) in routing.backward(ofWeights[row]).enumerated() {
                logits[row * settings.count + expert] = gradient
            }
        }
        try weightGradient(
            logits, settings.count, results.mlpNormed, count, hidden, router, index, "router")
        try multiply(
            logits, count, by: router.transposed, into: narrow.base, index, "router", isRounded: false)
        kernels.add_times(
            narrow.base, sums, narrow.base, 1, Format.fp32.rawValue, count * hidden)
        try check(round(narrow.base, count * hidden), index, "mixture of experts")
    }
}
