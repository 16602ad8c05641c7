import CLockstepKernels

/// The plain form of a correction: one token at a time, in loops a reader can check by eye.
///
/// The kernels equal it bit for bit, on every instruction set.
struct ReferenceCorrection {
    /// One token: nil where it does not count.
    struct Token {
        /// ln of the trainer's, the rollout's and the current probability; 0 where not given.
        let logProbs: [Double]
        let advantage: Double

        /// The two log-probs that a rule compares, the first over the second.
        func pair(_ policies: Rejection.Policies) -> (Double, Double) {
            switch policies {
            case .trainerRollout: (logProbs[0], logProbs[1])
            case .currentRollout: (logProbs[2], logProbs[1])
            case .currentTrainer: (logProbs[2], logProbs[0])
            }
        }
    }

    let options: CorrectionOptions
    let divisor: Double
    let secondMomentCut: Double

    /// What was found; `rejections` of the options' number.
    var sums = lsk_correction_sums()
    var weights: [Double] = []
    var kept: [UInt8] = []

    /// Corrects the sequence `span`.
    init(
        _ span: lsk_correction_span, _ options: CorrectionOptions, divisor: Double = 1,
        secondMomentCut: Double = .infinity
    ) {
        self.options = options
        self.divisor = divisor
        self.secondMomentCut = secondMomentCut
        (sums.ratio, sums.weight, sums.kept_weight) = (noWeights(), noWeights(), noWeights())
        for index in options.rejections.indices {
            change(index) {
                $0.least = .infinity
                $0.largest = -.infinity
            }
        }
        let tokens = ReferenceCorrection.tokens(span)
        let maskedIn =
            span.mask.map { mask in (0..<tokens.count).count { mask[$0] != 0 } } ?? tokens.count
        sums.tokens = Int64(tokens.count { $0 != nil })
        sums.non_finite = Int64(maskedIn) - sums.tokens

        var units = [Double](repeating: 0, count: options.rejections.count)
        var ratio = 0.0
        if sums.tokens > 0 { (ratio, units) = measure(tokens, .sequence, ratio, units) }
        let hasSegments = ([options.level] + options.rejections.map(\.level)).contains {
            reach($0) == .segment
        }
        for run in hasSegments ? ReferenceCorrection.runs(tokens) : [0..<tokens.count] {
            let run = Array(tokens[run])
            let before = sums.kept
            if hasSegments, run[0] != nil { (ratio, units) = measure(run, .segment, ratio, units) }
            apply(run, ratio, units)
            if hasSegments, run[0] != nil, reach(options.level) == .segment {
                weigh(ratio, kept: sums.kept > before)
            }
        }
        if reach(options.level) == .sequence, sums.tokens > 0 { weigh(ratio, kept: sums.kept > 0) }
    }

    /// The tokens of a span: nil where one does not count.
    static func tokens(_ span: lsk_correction_span) -> [Token?] {
        let addresses = [span.log_probs.0, span.log_probs.1, span.log_probs.2]
        let formats = [span.formats.0, span.formats.1, span.formats.2]
        return (0..<Int(span.count)).map { index in
            if let mask = span.mask, mask[index] == 0 { return nil }
            let values = zip(addresses, formats).map { address, format in
                address.map { VectorView($0, Format(rawValue: format)!, count: 1).double(index) } ?? 0
            }
            let advantage =
                span.advantages.map {
                    VectorView($0, Format(rawValue: span.advantage_format)!, count: 1)
                        .double(index * Int(span.advantage_stride))
                } ?? 0
            guard (values + [advantage]).allSatisfy(\.isFinite) else { return nil }
            return Token(logProbs: values, advantage: advantage)
        }
    }

    /// Runs of counted tokens, and of others between them.
    private static func runs(_ tokens: [Token?]) -> [Range<Int>] {
        var runs: [Range<Int>] = []
        for index in tokens.indices {
            if index > 0, (tokens[index] == nil) == (tokens[index - 1] == nil) {
                runs[runs.count - 1] = runs[runs.count - 1].lowerBound..<index + 1
            } else {
                runs.append(index..<index + 1)
            }
        }
        return runs
    }

    /// Over what a level reaches.
    private enum Reach { case token, sequence, segment }

    private func reach(_ level: CorrectionLevel) -> Reach {
        switch level {
        case .token: .token
        case .sequenceSum, .sequenceMean, .sequenceEvery: .sequence
        case .segmentSum, .segmentMean: .segment
        }
    }

    private func isMean(_ level: CorrectionLevel) -> Bool { level == .sequenceMean || level == .segmentMean }

    private func clamp(_ x: Double) -> Double {
        let below = x < options.logRatioMax ? x : options.logRatioMax
        return below > options.logRatioMin ? below : options.logRatioMin
    }

    private func isClamped(_ x: Double) -> Bool { x < options.logRatioMin || x > options.logRatioMax }

    /// The statistic of a token.
    func statistic(_ token: Token, _ rule: Rejection) -> Double {
        let (a, b) = token.pair(rule.policies)
        let d = clamp(a - b)
        switch rule.statistic {
        case .ratio: return ReferenceMismatch.exponential(d)
        case .k2: return d * d * 0.5
        case .k3: return ReferenceMismatch.Token(trainer: d, rollout: 0).k3
        case .expAbs: return ReferenceMismatch.exponential(d.magnitude)
        case .probabilityDifference: return ReferenceMismatch.Token(trainer: a, rollout: b).gap
        case .binaryKL: return ReferenceCorrection.binaryKL(a, b)
        }
    }

    /// KL(Bernoulli(q) || Bernoulli(p)) with the sign of p - q, from ln p and ln q.
    static func binaryKL(_ a: Double, _ b: Double) -> Double {
        let token = ReferenceMismatch.Token(trainer: a, rollout: b)
        let q = ReferenceMismatch.exponential(b)
        let (othersQ, othersP) = (-exponentialLessOne(b), -exponentialLessOne(a))
        let second =
            othersQ > 0x1p-1000
            ? othersQ * lessLog(-token.gap / othersQ, othersP / othersQ) : othersP > 0 ? othersP : 0
        let kl = second.addingProduct(q, token.k3)
        return a - b < 0 ? -kl : kl
    }

    private static func exponentialLessOne(_ x: Double) -> Double {
        x > 709 ? .infinity : ReferenceMismatch.ExpParts(x < -709 ? -709 : x).ofXLessOne
    }

    /// z - ln y for y = 1 + z; infinite where y is not positive.
    private static func lessLog(_ z: Double, _ y: Double) -> Double {
        guard y > 0 else { return .infinity }
        let n = (Int64(bitPattern: y.bitPattern) - Int64(bitPattern: 0x1.6a09e667f3bcdp-1.bitPattern)) >> 52
        let m = Double(bitPattern: y.bitPattern &- UInt64(bitPattern: n << 52))
        let f = n == 0 ? z : m - 1
        let s = f / (2 + f)
        let square = s * s
        var series = 1.0 / 23
        for k in stride(from: 21.0, through: 3, by: -2) { series = (1 / k).addingProduct(series, square) }
        let rest = s * f.addingProduct(square * -2, series)
        return (z - f).addingProduct(Double(n), -0x1.62e42fefa39efp-1) + rest
    }

    private func passes(_ x: Double, _ advantage: Double, _ rule: Rejection) -> Bool {
        switch rule.side {
        case .both: rule.low <= x && x <= rule.high
        case .byAdvantage: advantage > 0 ? x <= rule.high : x >= rule.low
        case .negativeAdvantage: advantage >= 0 || (rule.low <= x && x <= rule.high)
        }
    }

    /// Whether a rule clamps the log ratios of tokens.
    private func clampsTokens(_ rule: Rejection) -> Bool {
        rule.statistic == .ratio
            ? rule.level == .token || rule.level == .sequenceEvery : rule.statistic.isNonNegative
    }

    /// What a sequence or segment comes to: its ratio, and for each rule its statistic (NaN: a token failed).
    private mutating func measure(
        _ tokens: [Token?], _ scope: Reach, _ ratio: Double, _ units: [Double]
    ) -> (Double, [Double]) {
        var (ratio, units) = (ratio, units)
        let counted = tokens.compactMap { $0 }
        if reach(options.level) == scope {
            var x = sumInLanes(tokens) { $0.logProbs[0] - $0.logProbs[1] }
            if isMean(options.level) { x /= Double(counted.count) }
            sums.clamped += isClamped(x) ? 1 : 0
            ratio = ReferenceMismatch.exponential(clamp(x))
        }
        for (index, rule) in options.rejections.enumerated() where reach(rule.level) == scope {
            func logRatio(_ token: Token) -> Double {
                token.pair(rule.policies).0 - token.pair(rule.policies).1
            }
            if clampsTokens(rule) {
                let clamped = counted.count { isClamped(logRatio($0)) }
                change(index) { $0.clamped += Int64(clamped) }
            }
            if rule.level == .sequenceEvery {
                units[index] =
                    counted.allSatisfy { passes(statistic($0, rule), $0.advantage, rule) } ? 0 : .nan
                add(tokens, index, rule)
                continue
            }
            var x = sumInLanes(tokens) { rule.statistic == .ratio ? logRatio($0) : statistic($0, rule) }
            if isMean(rule.level) { x /= Double(counted.count) }
            if rule.statistic == .ratio {
                let isClamped = isClamped(x)
                change(index) { $0.clamped += isClamped ? 1 : 0 }
                x = ReferenceMismatch.exponential(clamp(x))
            }
            units[index] = x
            change(index) {
                $0.units += 1
                $0.sum += x
                $0.least = Swift.min($0.least, x)
                $0.largest = Swift.max($0.largest, x)
            }
        }
        return (ratio, units)
    }

    /// Adds the statistics of tokens.
    private mutating func add(_ tokens: [Token?], _ index: Int, _ rule: Rejection) {
        let values = tokens.compactMap { $0 }.map { statistic($0, rule) }
        let sum = sumInLanes(tokens) { statistic($0, rule) }
        change(index) {
            $0.units += Int64(values.count)
            $0.sum += sum
            $0.least = Swift.min($0.least, values.min() ?? .infinity)
            $0.largest = Swift.max($0.largest, values.max() ?? -.infinity)
        }
    }

    /// The weight of a ratio.
    private func weight(_ ratio: Double) -> Double {
        switch options.weights {
        case .one: 1
        case .raw: ratio
        case .truncate: ratio < options.high ? ratio : options.high
        case .clip: min(max(ratio, options.low), options.high)
        case .mask: ratio >= options.low && ratio <= options.high ? ratio : 0
        }
    }

    /// Weighs and judges tokens that share a sequence, or a segment.
    private mutating func apply(_ tokens: [Token?], _ unit: Double, _ units: [Double]) {
        let isByToken = options.level == .token
        var ratios: [Double?] = []
        var applied: [Double?] = []
        var keptOnes: [Double?] = []
        for token in tokens {
            guard let token else {
                ratios.append(nil)
                applied.append(nil)
                keptOnes.append(nil)
                weights.append(0)
                kept.append(0)
                continue
            }
            let d = token.logProbs[0] - token.logProbs[1]
            let ratio = isByToken ? ReferenceMismatch.exponential(clamp(d)) : unit
            if isByToken {
                sums.clamped += isClamped(d) ? 1 : 0
                sums.below += ratio < options.low ? 1 : 0
                sums.above += ratio > options.high ? 1 : 0
            }
            var isKept = true
            for (index, rule) in options.rejections.enumerated() {
                let isRejected =
                    switch rule.level {
                    case .token: !passes(statistic(token, rule), token.advantage, rule)
                    case .sequenceEvery: units[index].isNaN
                    default: !passes(units[index], token.advantage, rule)
                    }
                if isRejected { change(index) { $0.tokens += 1 } }
                isKept = isKept && !isRejected
            }
            if d * d > secondMomentCut {
                sums.second_moment += 1
                isKept = false
            }
            sums.kept += isKept ? 1 : 0
            kept.append(isKept ? 1 : 0)
            weights.append(divisor == 1 ? weight(ratio) : weight(ratio) / divisor)
            ratios.append(ratio)
            applied.append(weight(ratio))
            keptOnes.append(isKept ? weight(ratio) : nil)
        }
        for (index, rule) in options.rejections.enumerated() where rule.level == .token {
            add(tokens, index, rule)
            let clamped = tokens.compactMap { $0 }.count {
                isClamped($0.pair(rule.policies).0 - $0.pair(rule.policies).1)
            }
            if clampsTokens(rule) { change(index) { $0.clamped += Int64(clamped) } }
        }
        if isByToken {
            add(ratios, to: &sums.ratio)
            add(applied, to: &sums.weight)
            add(keptOnes, to: &sums.kept_weight)
        }
    }

    /// Adds a sequence or segment.
    private mutating func weigh(_ ratio: Double, kept: Bool) {
        sums.below += ratio < options.low ? 1 : 0
        sums.above += ratio > options.high ? 1 : 0
        add([ratio], to: &sums.ratio)
        add([weight(ratio)], to: &sums.weight)
        if kept { add([weight(ratio)], to: &sums.kept_weight) }
    }

    private func add(_ values: [Double?], to sums: inout lsk_weight_sums) {
        let counted = values.compactMap { $0 }
        sums.units += Int64(counted.count)
        sums.sum += inLanes(values) { $0 + $1 }
        sums.square += inLanes(values) { $0.addingProduct($1, $1) }
        sums.excess += inLanes(values) { $0 + ($1 - 1) }
        sums.excess_square += inLanes(values) { $0.addingProduct($1 - 1, $1 - 1) }
        sums.least = min(sums.least, counted.min() ?? .infinity)
        sums.largest = max(sums.largest, counted.max() ?? -.infinity)
    }

    private func sumInLanes(_ tokens: [Token?], _ value: (Token) -> Double) -> Double {
        inLanes(tokens.map { $0.map(value) }) { $0 + $1 }
    }

    /// Eight sums, of every eighth value; then halves are added: 8 to 4 to 2 to 1.
    private func inLanes(_ values: [Double?], _ add: (Double, Double) -> Double) -> Double {
        var lanes = [Double](repeating: 0, count: 8)
        for (index, value) in values.enumerated() {
            if let value { lanes[index % 8] = add(lanes[index % 8], value) }
        }
        for half in [4, 2, 1] {
            for lane in 0..<half { lanes[lane] += lanes[lane + half] }
        }
        return lanes[0]
    }

    private func noWeights() -> lsk_weight_sums {
        var sums = lsk_weight_sums()
        sums.least = .infinity
        sums.largest = -.infinity
        return sums
    }

    private mutating func change(_ index: Int, _ body: (inout lsk_rejection_sums) -> Void) {
        withUnsafeMutableBytes(of: &sums.rejections) { bytes in
            body(&bytes.assumingMemoryBound(to: lsk_rejection_sums.self)[index])
        }
    }
}
