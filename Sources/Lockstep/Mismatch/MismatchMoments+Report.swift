/// From the moments of a log to its statistics. Differences of nearly equal sums are taken in twice the
/// precision, of exact sums: they keep the digits that the residuals themselves would have.
extension MismatchMoments {
    /// Every statistic but the quantiles, which are NaN.
    func mismatch() -> Mismatch {
        var m = Mismatch()
        m.tokens = tokens
        m.maskedTokens = maskedTokens
        m.excludedTokens = excludedTokens
        m.sequences = sequences
        m.emptySequences = emptySequences
        guard tokens > 0, sequences > 0, let largest else { return m }
        m.maxAbsLogRatio = largest.magnitude
        m.maxAbsSequence = Int(truncatingIfNeeded: largest.id)
        m.maxAbsPosition = largest.position
        m.maxAbsProbDiff = maxAbsProbDiff
        m.meanSequenceLength = Double(tokens) / Double(sequences)
        m.maxSequenceLength = maxSequenceLength
        reportTokens(&m)
        reportSequences(&m)
        m.oneMinusPearson = oneMinusPearson
        m.pearson = 1 - m.oneMinusPearson
        return m
    }

    /// The statistics over tokens.
    private func reportTokens(_ m: inout Mismatch) {
        m.meanLogRatio = mean(.logRatio)
        m.k1 = mean(.logRatio, scale: -1)
        m.k2 = mean(.square, scale: 0.5)
        m.k3 = mean(.k3)
        m.meanAbsLogRatio = mean(.magnitude)
        m.meanAbsProbDiff = mean(.probabilityGap)
        m.shareDiffering = mean(.differing)
        m.shareOutsideMLPerf = mean(.outsideMLPerf)
        m.shareOutside1pct = mean(.outside1pct)
        m.shareOutside5pct = mean(.outside5pct)
        m.shareOutside10pct = mean(.outside10pct)
        m.chiSquare = mean(.ratioSquare)
        m.chiSquare.value -= 1
        m.meanRatio = mean(.ratio)
        m.meanExpAbsLogRatio = mean(.expMagnitude)
        m.meanRolloutLogProb = mean(.rollout)

        // Functions of means, by the delta method: the error of f(x) is that of x times |f'(x)|.
        let square = mean(.square)
        m.rmsLogRatio.value = square.value.squareRoot()
        m.rmsLogRatio.standardError =
            square.value > 0 ? square.standardError / (2 * m.rmsLogRatio.value) : square.standardError
        m.rolloutPerplexity = exponential(-m.meanRolloutLogProb.value)
        m.rolloutPerplexityStandardError = m.rolloutPerplexity * m.meanRolloutLogProb.standardError
        m.perplexityRatio = exponential(-m.meanLogRatio.value)
        m.perplexityRatioStandardError = m.perplexityRatio * m.meanLogRatio.standardError
        m.trainerPerplexity = exponential(-(m.meanRolloutLogProb.value + m.meanLogRatio.value))
        m.trainerPerplexityStandardError = m.trainerPerplexity * trainerError
        (m.ess, m.essStandardError) = effectiveSampleSize
    }

    /// Sum x / sum n, and its clustered error.
    ///
    /// A mean over tokens is a ratio of two sums over sequences. Linearised, its error is that of the mean of
    /// x - m n: k / (k - 1) sum (x - m n)^2 / (sum n)^2 for k sequences.
    private func mean(_ average: Average, scale: Double = 1) -> Estimate {
        let index = average.rawValue
        let value = sums.value(Moment.total + index) / Double(tokens) * scale
        guard let x = scaledSums(of: index) else { return Estimate(value: value, standardError: .nan) }
        let m = x.total / Double(tokens)
        let squares = x.square - 2 * (m * x.product) + m * m * lengthSquare
        let error = scaled(clusteredRoot(squares) / Double(tokens), by: x.power)
        return Estimate(value: value, standardError: error * scale.magnitude)
    }

    /// Sums of one x, times powers of two that bring x near 1: 2^-power for x, 2^-2power for its square.
    private struct Scaled {
        var power: Int
        var total, square, product: DoubleDouble
    }

    /// The sums of x, x^2 and x n; nil if an x is infinite or NaN.
    private func scaledSums(of index: Int) -> Scaled? {
        if sums.specials[Moment.total + index] != 0 { return nil }
        let square = sums.number(Moment.square + index)
        let power = (square.exponent ?? 0) >> 1
        return Scaled(
            power: power, total: sums.number(Moment.total + index).doubleDouble(times2ToThe: -power),
            square: square.doubleDouble(times2ToThe: -2 * power),
            product: sums.number(Moment.product + index).doubleDouble(times2ToThe: -power))
    }

    private var lengthSquare: DoubleDouble { sums.number(Moment.length2).doubleDouble() }

    /// sqrt(k / (k - 1) x) of a sum of squares; NaN for k < 2.
    private func clusteredRoot(_ squares: DoubleDouble) -> Double {
        if sequences < 2 { return .nan }
        let k = Double(sequences)
        return (max(squares.high, 0) * (k / (k - 1))).squareRoot()
    }

    /// The error of the mean of ln pi, which is ln mu + d: its sequences' sums are those of both, added.
    private var trainerError: Double {
        guard sequences > 1, let x = scaledSums(of: Average.rollout.rawValue),
            let y = scaledSums(of: Average.logRatio.rawValue), sums.specials[Moment.rolloutCross] == 0
        else { return .nan }
        // In units of the larger of the two.
        let power = max(x.power, y.power)
        let (a, b) = (
            DoubleDouble(scaled(1, by: x.power - power)), DoubleDouble(scaled(1, by: y.power - power))
        )
        let cross = sums.number(Moment.rolloutCross).doubleDouble(times2ToThe: -2 * power)
        let product = a * x.product + b * y.product
        let m = (a * x.total + b * y.total) / Double(tokens)
        let squares =
            a * a * x.square + b * b * y.square + 2 * cross - 2 * (m * product) + m * m * lengthSquare
        return scaled(clusteredRoot(squares) / Double(tokens), by: power)
    }

    /// (sum r)^2 / (N sum r^2) and its clustered error.
    ///
    /// Linearised in the sums x of r and y of r^2 of each sequence, a sequence moves the value by the value
    /// times 2 x / X - y / Y - n / N, capitals being sums over all.
    private var effectiveSampleSize: (Double, Double) {
        guard let x = scaledSums(of: Average.ratio.rawValue),
            let y = scaledSums(of: Average.ratioSquare.rawValue)
        else { return (ratioOfInfinities, .nan) }
        guard y.total.high > 0 else { return (.nan, .nan) }
        let n = DoubleDouble(Double(tokens))
        let shift = scaled(1, by: 2 * x.power - y.power)
        let value = min((x.total * x.total / (n * y.total) * DoubleDouble(shift)).high, 1)
        guard sequences > 1, sums.specials[Moment.ratioCross] == 0 else { return (value, .nan) }
        let cross = sums.number(Moment.ratioCross).doubleDouble(times2ToThe: -x.power - y.power)
        let (a, b, c) = (DoubleDouble(2) / x.total, DoubleDouble(-1) / y.total, DoubleDouble(-1) / n)
        let squares =
            a * a * x.square + b * b * y.square + c * c * lengthSquare
            + 2 * (a * b * cross + a * c * x.product + b * c * y.product)
        return (value, value * clusteredRoot(squares))
    }

    /// What the formula of the effective sample size makes of an infinite sum of r or r^2.
    private var ratioOfInfinities: Double {
        let ratio = sums.value(Moment.total + Average.ratio.rawValue) / Double(tokens)
        return ratio * ratio / (sums.value(Moment.total + Average.ratioSquare.rawValue) / Double(tokens))
    }

    /// The statistics over sequences, each of which counts once.
    private func reportSequences(_ m: inout Mismatch) {
        let k = Double(sequences)
        let s = Average.logRatio.rawValue
        m.sequenceLogRatio = sequenceMean(Moment.total + s, Moment.square + s).mean
        m.sequenceMeanLogRatio = sequenceMean(Moment.mean, Moment.meanSquare).mean
        m.sequenceMeanExpAbs = sequenceMean(Moment.worst, Moment.worstSquare).mean
        func share(_ count: Int) -> Estimate {
            let some = Double(count)
            let error = (some * (k - some) / (k * (k - 1))).squareRoot() / k.squareRoot()
            return Estimate(value: some / k, standardError: sequences < 2 ? .nan : error)
        }
        m.shareSequencesMasked = share(maskedSequences)
        m.shareSequencesOutsideMLPerf = share(outsideSequences)
        m.sequenceESS = sequenceEffectiveSampleSize
        if sequences >= 2 {
            m.sequenceLogRatioStd = sequenceMean(Moment.total + s, Moment.square + s).deviation
        }
        guard let spread = SequenceSpread(self) else { return }
        m.sequenceLogRatioStdStandardError = spread.deviationError
        m.slopePer1000 = spread.slopePer1000
    }

    /// The mean over sequences of what has these sums, with its error; and the sample standard deviation.
    private func sequenceMean(_ total: Int, _ square: Int) -> (mean: Estimate, deviation: Double) {
        let k = Double(sequences)
        let value = sums.value(total) / k
        guard sequences > 1, sums.specials[total] == 0 else {
            return (Estimate(value: value, standardError: .nan), .nan)
        }
        let squares = sums.number(square)
        let power = (squares.exponent ?? 0) >> 1
        let x = sums.number(total).doubleDouble(times2ToThe: -power)
        let centred = squares.doubleDouble(times2ToThe: -2 * power) - x * x / k
        let deviation = scaled((max(centred.high, 0) / (k - 1)).squareRoot(), by: power)
        return (Estimate(value: value, standardError: deviation / k.squareRoot()), deviation)
    }

    /// (sum w)^2 / (k sum w^2) for w = exp S; weights of any size are in units of the largest.
    private var sequenceEffectiveSampleSize: Double {
        if weights.specials[0] != 0 { return .nan }
        let total = weights.number(0)
        guard let power = total.exponent else { return .nan }
        let w = total.doubleDouble(times2ToThe: -power)
        let squares = weights.number(1).doubleDouble(times2ToThe: -2 * power)
        return min((w * w / (Double(sequences) * squares)).high, 1)
    }

    /// 1 - Pearson's correlation of p and q; NaN if one of them does not vary.
    ///
    /// With S the centred sums of products, S_pp - S_qq = S_sg and S_pp + S_qq - 2 S_pq = S_gg, so
    ///
    ///     1 - rho = (S_gg - (S_sg / (sqrt S_pp + sqrt S_qq))^2) / (2 sqrt(S_pp S_qq))
    ///
    /// in which every term is as small as the gap between the policies.
    private var oneMinusPearson: Double {
        let n = Double(tokens)
        func read(_ index: Int) -> DoubleDouble { sums.number(index).doubleDouble() }
        guard (Moment.sum...Moment.sumGap).allSatisfy({ sums.specials[$0] == 0 }) else { return .nan }
        let (sum, gap) = (read(Moment.sum), read(Moment.gap))
        let sumSum = (read(Moment.sumSquare) - sum * sum / n).high
        let gapGap = max((read(Moment.gapSquare) - gap * gap / n).high, 0)
        let sumGap = (read(Moment.sumGap) - sum * gap / n).high
        let trainer = ((sumSum + gapGap + 2 * sumGap) / 4).squareRoot()
        let rollout = ((sumSum + gapGap - 2 * sumGap) / 4).squareRoot()
        guard trainer > 0, rollout > 0 else { return .nan }
        let scale = sumGap / (trainer + rollout)
        let value = (gapGap - scale * scale) / (2 * trainer * rollout)
        return value < 0 ? 0 : value > 2 ? 2 : value
    }
}

/// Central moments of the length n and the log ratio S of sequences.
private struct SequenceSpread {
    private let k: Double
    /// Sums of products of n and S less their means: nn is of (n - mean)^2, and so on.
    private let nn, ns, ss, nnnn, nnns, nnss, ssss: DoubleDouble

    /// Nil if S is infinite somewhere or too large for its powers.
    init?(_ moments: borrowing MismatchMoments) {
        let logRatio = Average.logRatio.rawValue
        let indices =
            Array(Moment.length2...Moment.s4) + [
                Moment.total + logRatio, Moment.square + logRatio, Moment.product + logRatio,
            ]
        for index in indices where moments.sums.specials[index] != 0 { return nil }
        func read(_ index: Int) -> DoubleDouble { moments.sums.number(index).doubleDouble() }
        k = Double(moments.sequences)
        let total = DoubleDouble(Double(moments.tokens))
        let s = read(Moment.total + logRatio)
        let (s2, ns1) = (read(Moment.square + logRatio), read(Moment.product + logRatio))
        let (n2, n3, n4) = (read(Moment.length2), read(Moment.length3), read(Moment.length4))
        let (n2s, n3s) = (read(Moment.length2S), read(Moment.length3S))
        let (ns2, n2s2) = (read(Moment.lengthS2), read(Moment.length2S2))
        let (s3, s4) = (read(Moment.s3), read(Moment.s4))
        let (c, b) = (total / k, s / k)  // the means
        nn = n2 - c * total
        ns = ns1 - c * s
        ss = s2 - b * s
        nnnn = n4 - 4 * (c * n3) + 6 * (c * c * n2) - 3 * (c * c * c * total)
        // sum (n - c)^3 (S - b), the powers of n - c multiplied out
        nnns = (n3s - b * n3) - 3 * (c * (n2s - b * n2)) + 3 * (c * c * (ns1 - b * total))
        nnss =
            (n2s2 - 2 * (b * n2s) + b * b * n2) - 2 * (c * (ns2 - 2 * (b * ns1) + b * b * total))
            + c * c * ss
        ssss = s4 - 4 * (b * s3) + 6 * (b * b * s2) - 3 * (b * b * b * s)
    }

    /// The error of the sample standard deviation of S, by the delta method from that of its variance.
    var deviationError: Double {
        if k < 2 { return .nan }
        let variance = max(ss.high, 0) / k
        if variance == 0 { return 0 }
        let error = (max((ssss / k).high - variance * variance, 0) / (k - 1)).squareRoot()
        return error / (2 * variance.squareRoot())
    }

    /// The least-squares slope of S on n, per 1,000 tokens.
    ///
    /// The spread of S grows with length, so the error is the one that does not assume it constant: White's
    /// (1980), with the factor k / (k - 2).
    var slopePer1000: Estimate {
        guard nn.high > 0 else { return .none }
        let slope = ns / nn
        let value = 1000 * slope.high
        if k <= 2 { return Estimate(value: value, standardError: .nan) }
        let spread = nnss - 2 * (slope * nnns) + slope * slope * nnnn
        let error = (max(spread.high, 0) * (k / (k - 2))).squareRoot() / nn.high
        return Estimate(value: value, standardError: 1000 * error)
    }
}
