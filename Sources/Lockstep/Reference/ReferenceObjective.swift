import CLockstepKernels

/// The plain form of objectives: one token at a time, in loops a reader can check by eye.
///
/// The kernels equal it bit for bit, on every instruction set.
enum ReferenceObjective {
    /// A token of a span, as far as an objective reads it.
    struct Token {
        let current, trainer, reference, entropy, advantage, weight: Double
        let counts, acts, selected: Bool
        var delta: Double { current - trainer }
    }

    /// What a token contributes, and the derivatives through the log ratio and through the log-prob.
    struct Term {
        var value = 0.0
        var byLogRatio = 0.0
        var byCurrent = 0.0
        var low = false
        var high = false
        var dual = false
    }

    /// All tokens of a span; a value that is not finite takes a token out if the rule excludes it.
    static func tokens(_ span: lsk_objective_span, _ rule: lsk_objective_rule) -> [Token] {
        let bases = [
            span.input.0, span.input.1, span.input.2, span.input.3, span.input.4, span.input.5,
        ]
        let formats = [
            span.format.0, span.format.1, span.format.2, span.format.3, span.format.4, span.format.5,
        ]
        return (0..<Int(span.count)).map { index in
            func value(_ input: Int, or other: Double) -> Double {
                guard let base = bases[input] else { return other }
                return VectorView(base, Format(rawValue: formats[input])!, count: index + 1).double(index)
            }
            let kept = span.kept.map { $0[index] != 0 } ?? true
            let selected = span.selected.map { $0[index] != 0 } ?? false
            let values = [
                value(0, or: 0), value(1, or: 0), value(2, or: 0), value(3, or: 0),
                value(4, or: span.advantage),
                value(5, or: 1),
            ]
            var counts = span.mask.map { $0[index] != 0 } ?? true
            if rule.drop_rejected != 0 { counts = counts && kept }
            if rule.exclude != 0 { counts = counts && values.allSatisfy(\.isFinite) }
            return Token(
                current: values[0], trainer: values[1], reference: values[2], entropy: values[3],
                advantage: values[4], weight: values[5], counts: counts,
                acts: counts && kept && !(rule.term == LSK_CLIP && selected), selected: selected)
        }
    }

    /// The term of a token whose ratio is exp(x).
    static func term(
        _ t: Token, x: Double, ratio: Double, _ rule: lsk_objective_rule, _ level: lsk_objective_level
    ) -> Term {
        let a = t.advantage
        switch rule.term {
        case LSK_CLIP:
            let plain = -a * lesser(ratio, rule.ratio_max)
            let held = -a * hold(ratio, rule.low, rule.high)
            let bound = -a * rule.dual
            var term = Term(value: held > plain ? held : plain)
            let moves =
                held > plain ? ratio >= rule.low && ratio <= rule.high : ratio <= rule.ratio_max
            term.dual = a < 0 && term.value > bound
            term.byLogRatio = moves && !term.dual ? term.value : 0
            if term.dual { term.value = bound }
            term.low = ratio < rule.low && a < 0
            term.high = ratio > rule.high && a > 0
            return term
        case LSK_IMPORTANCE, LSK_GMPO:
            return Term(value: -a * ratio, byLogRatio: -a * ratio)
        case LSK_CISPO:
            let slope = -hold(ratio, rule.low, rule.high) * a
            return Term(
                value: slope * t.current, byCurrent: slope, low: ratio < rule.low, high: ratio > rule.high)
        case LSK_SAPO:
            let tau = a > 0 ? rule.tau_positive : rule.tau_negative
            let gate = 1 / (1 + ReferenceMismatch.exponential(-tau * (ratio - 1)))
            let scaled = -a * (4 * gate)
            return Term(value: scaled / tau, byLogRatio: scaled * (1 - gate) * ratio)
        case LSK_TOPR:
            let slope = -(a > 0 ? 1 : lesser(ratio, 1)) * a
            return Term(value: slope * t.current, byCurrent: slope, high: a <= 0 && ratio > 1)
        case LSK_SQUARED:
            let slope = rule.coefficient * x
            return Term(value: fma(slope * 0.5, x, -a * t.current), byLogRatio: slope, byCurrent: -a)
        case LSK_KL_COV:
            let penalty = t.selected ? rule.coefficient * x.magnitude : 0
            let slope = t.selected ? rule.coefficient * sign(x) : 0
            return Term(value: -a * ratio + penalty, byLogRatio: -a * ratio + slope)
        case LSK_VESPO:
            let slope = -(a >= 0 ? level.phi_positive : level.phi_negative) * a
            return Term(value: slope * t.current, byCurrent: slope)
        default:
            return Term(value: -a * t.current, byCurrent: -a)
        }
    }

    /// The divergence of a token from the reference, its derivative, and whether no clamp acts.
    static func divergence(_ t: Token, _ rule: lsk_objective_rule) -> (
        value: Double, slope: Double, open: Bool
    ) {
        let apart = t.reference - t.current
        let x = hold(apart, -rule.kl_input, rule.kl_input)
        var (value, slope) = (0.0, 0.0)
        switch rule.kl {
        case LSK_KL_K1: (value, slope) = (-x, 1)
        case LSK_KL_K2: (value, slope) = (x * x * 0.5, -x)
        case LSK_KL_ABS: (value, slope) = (x.magnitude, -sign(x))
        default:
            let e = ReferenceMismatch.ExpParts(x)
            (value, slope) = (k3(x), -fma(e.scale, e.r + e.qPlus, e.scale - 1))
        }
        let open = x == apart && value >= -rule.kl_output && value <= rule.kl_output
        if rule.kl_gradient == LSK_KL_SCORE { slope += value }
        if !open { slope = 0 }
        if rule.kl_gradient == LSK_KL_OF_K2 { slope = -apart }
        return (hold(value, -rule.kl_output, rule.kl_output), slope, open)
    }

    /// What a token's log-prob adds to the log ratio of its sequence, and whether it moves it.
    static func part(_ t: Token, _ rule: lsk_objective_rule) -> (value: Double, moves: Bool) {
        let x = hold(t.delta, rule.log_ratio_min, rule.log_ratio_max)
        let moves = x == t.delta
        guard rule.term == LSK_GMPO else { return (x, moves) }
        if t.advantage > 0 { return (lesser(x, rule.log_high), moves && x <= rule.log_high) }
        if t.advantage < 0 { return (greater(x, rule.log_low), moves && x >= rule.log_low) }
        return (0, false)
    }

    /// The ratio of a sequence.
    static func level(_ span: lsk_objective_span, _ rule: lsk_objective_rule) -> lsk_objective_level {
        let tokens = tokens(span, rule)
        let sum = rule.level == LSK_RATIO_SEQUENCE_SUM
        let gmpo = rule.term == LSK_GMPO
        let vespo = rule.term == LSK_VESPO
        func clamped(_ t: Token) -> Double { hold(t.delta, rule.log_ratio_min, rule.log_ratio_max) }
        let n = Double(tokens.count { $0.counts })
        var x = sumInLanes(tokens) { sum || gmpo ? part($0, rule).value : $0.delta }
        var weight = 0.0
        if (gmpo || vespo) && span.input.5 != nil {
            weight = sumInLanes(tokens) {
                logarithm(hold($0.weight, 1e-8, 0x1.ceb088b68e804p28))
            }
        }
        if n > 0 && !sum {
            x /= n
            weight /= n
        }
        var low = rule.log_ratio_min
        if vespo {
            x += weight
            low = greater(low, -0x1.26bb1bbb55516p4)  // ln 1e-8
        }
        let held = hold(x, low, rule.log_ratio_max)
        var ratio = ReferenceMismatch.exponential(held)
        if gmpo { ratio *= ReferenceMismatch.exponential(weight) }
        func phi(_ shape: Double, _ rate: Double) -> Double {
            ReferenceMismatch.exponential(rate + shape * held - rate * ratio)
        }
        return lsk_objective_level(
            log_ratio: held, ratio: ratio, inside: held == x ? -1 : 0,
            phi_positive: phi(rule.shape_positive, rule.rate_positive),
            phi_negative: phi(rule.shape_negative, rule.rate_negative),
            delta: sumInLanes(tokens) { $0.delta }, k3: sumInLanes(tokens) { k3(clamped($0)) },
            tokens: Int64(n), whole: tokens.allSatisfy { $0.counts && $0.acts } ? 1 : 0,
            even: tokens.allSatisfy { !$0.counts || !(sum || gmpo) || part($0, rule).moves } ? 1 : 0)
    }

    /// The sums of a sequence, and both gradients.
    static func terms(
        _ span: lsk_objective_span, _ rule: lsk_objective_rule, _ level: lsk_objective_level?, factor: Double
    ) -> (sums: lsk_objective_sums, gradient: [Double], entropyGradient: [Double]) {
        var sums = lsk_objective_sums()
        let tokens = tokens(span, rule)
        let hasTrainer = span.input.1 != nil
        let shared = rule.level == LSK_RATIO_SEQUENCE || rule.level == LSK_RATIO_SEQUENCE_SUM
        let uneven = rule.level == LSK_RATIO_SEQUENCE_SUM || rule.term == LSK_GMPO
        let weighted = rule.term != LSK_GMPO && rule.term != LSK_VESPO
        let none = lsk_objective_level()

        /// A token's log ratio and ratio, and whether its log-prob moves them.
        func ratio(_ t: Token) -> (x: Double, ratio: Double, moves: Bool) {
            if let level {
                let moves = level.inside != 0 && (uneven ? part(t, rule).moves : true)
                return (level.log_ratio, level.ratio, moves)
            }
            if !hasTrainer { return (0, 1, false) }
            let x = hold(t.delta, rule.log_ratio_min, rule.log_ratio_max)
            return (x, ReferenceMismatch.exponential(x), x == t.delta)
        }
        func slopes(_ t: Token) -> (policy: Double, byLogRatio: Double, byCurrent: Double, Term) {
            let r = ratio(t)
            let term = term(t, x: r.x, ratio: r.ratio, rule, level ?? none)
            let w = weighted ? t.weight : 1
            var found =
                t.acts ? (w * term.value, w * term.byLogRatio, w * term.byCurrent, term) : (0, 0, 0, term)
            guard rule.kl != LSK_KL_NONE else { return found }
            var kl = divergence(t, rule)
            if rule.kl_gradient == LSK_KL_RATIO {
                kl.value *= r.ratio
                kl.slope *= r.ratio
                found.1 += rule.kl_coefficient * kl.value
            }
            found.2 += rule.kl_coefficient * kl.slope
            return found
        }

        sums.policy = sumInLanes(tokens) { slopes($0).policy }
        if rule.kl != LSK_KL_NONE {
            sums.kl = sumInLanes(tokens) { divergence($0, rule).value }
            sums.kl_term = sumInLanes(tokens) {
                divergence($0, rule).value * (rule.kl_gradient == LSK_KL_RATIO ? ratio($0).ratio : 1)
            }
            sums.kl_clamped = Int64(tokens.count { $0.counts && !divergence($0, rule).open })
        }
        if span.input.3 != nil { sums.entropy = sumInLanes(tokens) { $0.entropy } }
        let counted = tokens.filter(\.counts)
        let found = counted.map { slopes($0).3 }
        sums.low = Int64(found.count { $0.low })
        sums.high = Int64(found.count { $0.high })
        sums.dual = Int64(found.count { $0.dual })
        if let level {
            sums.by_log_ratio = sumInLanes(tokens) { slopes($0).byLogRatio }
            sums.delta = level.delta
            sums.k3 = level.k3
            sums.ratio = Double(counted.count) * level.ratio
            sums.ratio_min = level.ratio
            sums.ratio_max = level.ratio
            sums.clamped = level.inside != 0 ? 0 : Int64(counted.count)
        } else {
            sums.ratio_min = .infinity
            sums.ratio_max = -.infinity
            if hasTrainer {
                let ratios = counted.map { ratio($0).ratio }
                sums.delta = sumInLanes(tokens) { ratio($0).x }
                sums.k3 = sumInLanes(tokens) { k3(ratio($0).x) }
                sums.ratio = sumInLanes(tokens) { ratio($0).ratio }
                sums.ratio_min = ratios.min() ?? .infinity
                sums.ratio_max = ratios.max() ?? -.infinity
                sums.clamped = Int64(counted.count { !ratio($0).moves })
            }
        }
        // What a token's log-prob does to the terms of the whole sequence, through its ratio.
        let spread =
            rule.level == LSK_RATIO_SEQUENCE ? sums.by_log_ratio / Double(counted.count) : sums.by_log_ratio
        let gradient = tokens.map { t -> Double in
            guard t.counts else { return 0 }
            let s = slopes(t)
            let own = shared ? spread : s.byLogRatio
            return factor * (s.byCurrent + (ratio(t).moves ? own : 0))
        }
        let slope = -rule.entropy_coefficient * factor
        return (sums, gradient, tokens.map { $0.counts ? slope : 0 })
    }

    /// exp(x) - 1 - x.
    private static func k3(_ x: Double) -> Double {
        let e = ReferenceMismatch.ExpParts(x)
        return fma(e.scale, e.qPlus, (e.scale - 1) + fma(e.scale, e.r, -x))
    }

    /// Eight sums, of every eighth token; then halves are added: 8 to 4 to 2 to 1.
    private static func sumInLanes(_ tokens: [Token], _ value: (Token) -> Double) -> Double {
        var lanes = [Double](repeating: 0, count: 8)
        for (index, token) in tokens.enumerated() where token.counts { lanes[index % 8] += value(token) }
        for half in [4, 2, 1] {
            for lane in 0..<half { lanes[lane] += lanes[lane + half] }
        }
        return lanes[0]
    }

    private static func greater(_ a: Double, _ b: Double) -> Double { a > b ? a : b }
    private static func lesser(_ a: Double, _ b: Double) -> Double { a < b ? a : b }
    private static func hold(_ x: Double, _ low: Double, _ high: Double) -> Double {
        lesser(greater(x, low), high)
    }
    private static func sign(_ x: Double) -> Double { (x > 0 ? 1 : 0) - (x < 0 ? 1 : 0) }
    private static func fma(_ a: Double, _ b: Double, _ c: Double) -> Double { c.addingProduct(a, b) }
}
