import CLockstepKernels

/// The plain form of the exact divergences: one id of the vocabulary at a time.
///
/// The kernels equal it bit for bit, on every instruction set.
enum ReferenceDivergence {
    /// y = softCap(round(x)) / temperature, in float64 after the rounding.
    static func value(_ x: Float, _ rule: lsk_divergence_rule) -> Double {
        var y = Double(ReferenceFormats.rounded(x, Format(rawValue: rule.rounding)!))
        if rule.soft_cap != 0, y.isFinite { y = rule.soft_cap * tanh(y / rule.soft_cap) }
        return y / rule.temperature
    }

    /// tanh x = (1 - e) / (1 + e) with e = exp(-2|x|), and the sign of x.
    static func tanh(_ x: Double) -> Double {
        let twice = x.magnitude * 2 < 100 ? x.magnitude * 2 : 100
        let gone = -ReferenceMismatch.ExpParts(-twice).ofXLessOne
        return Double(signOf: x, magnitudeOf: gone / (2 - gone))
    }

    /// A row made ready: y - maximum, the first maximum, and the sum of exponentials.
    static func row(_ logits: [Float], _ rule: lsk_divergence_rule) -> (below: [Double], lsk_divergence_row) {
        var row = lsk_divergence_row()
        let values = logits.map { value($0, rule) }
        let rounding = lsk_divergence_rule(temperature: 1, soft_cap: 0, rounding: rule.rounding)
        let rounded = logits.map { value($0, rounding) }
        row.failed = rounded.contains { !($0 < .infinity) } ? 1 : 0
        row.maximum = values.max() ?? -.infinity
        if row.failed != 0 || row.maximum == -.infinity { return ([], row) }
        row.top = Int64(values.firstIndex(of: row.maximum)!)
        let below = values.map { $0 - row.maximum }
        row.total = sumInLanes(below.map(ReferenceMismatch.exponential))
        return (below, row)
    }

    /// The sums over the vocabulary, of p (trainer) and q (rollout).
    static func sums(
        p: [Double], _ pTotal: Double, q: [Double], _ qTotal: Double, logRatioOfTotals: Double
    ) -> lsk_divergence_sums {
        let terms = zip(p, q).map { u, w in
            Term(u, w, pTotal: pTotal, qTotal: qTotal, logRatioOfTotals: logRatioOfTotals)
        }
        return lsk_divergence_sums(
            kl_rollout_trainer: sumInLanes(terms.map(\.toTrainer)),
            kl_trainer_rollout: sumInLanes(terms.map(\.toRollout)),
            difference: sumInLanes(terms.map(\.difference)),
            jensen_shannon: sumInLanes(terms.map(\.shannon)))
    }

    /// What one id contributes.
    private struct Term {
        let toTrainer, toRollout, difference, shannon: Double

        init(_ u: Double, _ w: Double, pTotal: Double, qTotal: Double, logRatioOfTotals: Double) {
            let pNever = u == -.infinity
            let qNever = w == -.infinity
            let x = ((pNever ? -0x1p100 : u) - (qNever ? -0x1p100 : w)) - logRatioOfTotals
            let p = ReferenceMismatch.exponential(u) / pTotal
            let q = ReferenceMismatch.exponential(w) / qTotal

            let e = ReferenceMismatch.ExpParts(x < -1 ? -1 : x > 1 ? 1 : x)
            let k3 = fma(e.scale, e.qPlus, (e.scale - 1) + fma(e.scale, e.r, -x))
            let k3Back = fma(e.inverse, e.qMinus, (e.inverse - 1) + fma(e.inverse, -e.r, x))
            let near = x.magnitude <= 1
            let gap = p - q
            toTrainer = pNever && !qNever ? .infinity : near ? q * k3 : gap - q * x
            toRollout = qNever && !pNever ? .infinity : near ? p * k3Back : p * x - gap
            difference = (near ? q * e.ofXLessOne : gap).magnitude

            let gone = -ReferenceMismatch.ExpParts(-x.magnitude < -709 ? -709 : -x.magnitude).ofXLessOne
            let t = gone / (2 - gone)
            let sum = p + q
            let apart = fma(sum, Term.lnHalf(gone), -((p < q ? p : q) * x.magnitude))
            shannon =
                x.magnitude < 0.375 ? sum / 2 * Term.entropySeries(t * t) : apart > 0 ? apart : 0
        }

        /// (1 + t) ln(1 + t) + (1 - t) ln(1 - t), t^2 given.
        private static func entropySeries(_ square: Double) -> Double {
            var sum = 1.0 / 231
            for k in stride(from: 10.0, through: 1, by: -1) { sum = fma(sum, square, 1 / (k * (2 * k - 1))) }
            return sum * square
        }

        /// ln 2 - ln(1 + z), 1 - z given.
        private static func lnHalf(_ gone: Double) -> Double {
            let s = gone / (4 - gone)
            var sum = 1.0 / 35
            for k in stride(from: 33.0, through: 1, by: -2) { sum = fma(sum, s * s, 1 / k) }
            return 2 * s * sum
        }
    }

    /// Eight sums, of every eighth value; then halves are added: 8 to 4 to 2 to 1.
    private static func sumInLanes(_ values: [Double]) -> Double {
        var lanes = [Double](repeating: 0, count: 8)
        for (index, value) in values.enumerated() { lanes[index % 8] += value }
        for half in [4, 2, 1] {
            for lane in 0..<half { lanes[lane] += lanes[lane + half] }
        }
        return lanes[0]
    }

    /// a * b + c, rounded once.
    private static func fma(_ a: Double, _ b: Double, _ c: Double) -> Double { c.addingProduct(a, b) }
}
