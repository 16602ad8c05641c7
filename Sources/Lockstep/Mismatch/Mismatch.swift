import CLockstepKernels

/// A mean and its standard error, clustered by sequence; the error is NaN with fewer than two sequences.
public struct Estimate: Equatable, Sendable {
    /// The mean.
    public var value: Double
    /// Its standard error.
    public var standardError: Double

    /// Creates an estimate.
    public init(value: Double, standardError: Double) {
        self.value = value
        self.standardError = standardError
    }

    /// No data: both NaN.
    static let none = Estimate(value: .nan, standardError: .nan)
}

/// How far a trainer policy pi is from a rollout policy mu, on tokens that mu drew.
///
/// With d = ln pi - ln mu and r = exp d, per token. Values are NaN where no token counts. Formulas, what
/// is normal, and what other systems call each: `docs/Glossary.md`.
public struct Mismatch: Sendable {
    /// Tokens that count.
    public var tokens = 0
    /// Tokens the mask leaves out.
    public var maskedTokens = 0
    /// Tokens dropped as non-finite (`NonFinitePolicy.exclude`).
    public var excludedTokens = 0
    /// Sequences with a token that counts.
    public var sequences = 0
    /// Sequences without; they enter nothing else.
    public var emptySequences = 0

    /// Mean d.
    public var meanLogRatio = Estimate.none
    /// KL(mu || pi) as mean(-d): unbiased, may be negative.
    public var k1 = Estimate.none
    /// KL(mu || pi) as mean(d^2 / 2).
    public var k2 = Estimate.none
    /// KL(mu || pi) as mean(exp(d) - 1 - d), never negative.
    public var k3 = Estimate.none
    /// Mean |d|.
    public var meanAbsLogRatio = Estimate.none
    /// Root of the mean d^2.
    public var rmsLogRatio = Estimate.none
    /// Max |d|.
    public var maxAbsLogRatio = Double.nan
    /// The sequence of the first token with max |d|; -1 if no token counts.
    public var maxAbsSequence = -1
    /// The index of that token in its sequence; -1 if no token counts.
    public var maxAbsPosition = -1
    /// Mean |pi - mu| of the token's probability.
    public var meanAbsProbDiff = Estimate.none
    /// Max |pi - mu|.
    public var maxAbsProbDiff = Double.nan
    /// Pearson's correlation of the two probabilities; NaN if one of them does not vary.
    public var pearson = Double.nan
    /// 1 - Pearson, computed without cancellation.
    public var oneMinusPearson = Double.nan
    /// Share of tokens whose two log-probs differ in bits.
    public var shareDiffering = Estimate.none
    /// Share of tokens with r outside [0.999, 1.002].
    public var shareOutsideMLPerf = Estimate.none
    /// Share of tokens with r outside [0.99, 1.01].
    public var shareOutside1pct = Estimate.none
    /// Share of tokens with r outside [0.95, 1.05].
    public var shareOutside5pct = Estimate.none
    /// Share of tokens with r outside [0.9, 1.1].
    public var shareOutside10pct = Estimate.none
    /// Mean r^2 - 1: a sample value, may be negative.
    public var chiSquare = Estimate.none
    /// Mean r.
    public var meanRatio = Estimate.none
    /// Effective sample size of the token weights r, as a share: (sum r)^2 / (n sum r^2).
    public var ess = Double.nan
    /// Mean exp|d|.
    public var meanExpAbsLogRatio = Estimate.none
    /// exp(-mean ln pi).
    public var trainerPerplexity = Double.nan
    /// exp(-mean ln mu).
    public var rolloutPerplexity = Double.nan
    /// Trainer over rollout perplexity.
    public var perplexityRatio = Double.nan
    /// Mean ln mu: minus the rollout's sample entropy.
    public var meanRolloutLogProb = Estimate.none
    /// Quantiles of d at 0.1, 1, 5, 25, 50, 75, 95, 99 and 99.9 %, linear between order statistics.
    public var logRatioQuantiles = [Double](repeating: .nan, count: MismatchQuantiles.thousandths.count)

    /// Mean over sequences of S, the sum of d over a sequence.
    public var sequenceLogRatio = Estimate.none
    /// Sample standard deviation of S.
    public var sequenceLogRatioStd = Double.nan
    /// Mean over sequences of mean d.
    public var sequenceMeanLogRatio = Estimate.none
    /// Mean over sequences of mean exp|d|.
    public var sequenceMeanExpAbs = Estimate.none
    /// Effective sample size of the sequence weights exp(S), as a share.
    public var sequenceESS = Double.nan
    /// Share of sequences with mean exp|d| above 2.
    public var shareSequencesMasked = Estimate.none
    /// Least-squares slope of S on length, per 1,000 tokens; NaN if all lengths are the same.
    public var slopePer1000 = Estimate.none
    /// Counted tokens a sequence.
    public var meanSequenceLength = Double.nan
    /// The most counted tokens of a sequence.
    public var maxSequenceLength = 0

    /// No data: counts of zero, everything else NaN.
    public init() {}
}

extension LogProbPair {
    /// Measures the mismatch of the pair: all statistics in one call.
    ///
    /// Reads the log-probs twice. Extra memory: about 250 bytes a sequence (or 4,096 tokens of one) and, for
    /// the quantiles, at most 8 bytes a token, in practice a twentieth of that.
    public func mismatch(
        nonFinite policy: NonFinitePolicy = .strict, execution: Execution = Execution()
    ) throws(LockstepError) -> Mismatch {
        try withLockstepFloatMode { () throws(LockstepError) in
            let scan = try MismatchScan(self, execution)
            let histogram = try MismatchHistogram(workers: scan.workers)
            let sequences = try MismatchSequences(scan, policy, counting: histogram.workerBins)
            var mismatch = Mismatch(sequences.sums, of: self, owners: sequences.owners)
            mismatch.oneMinusPearson = sequences.moments.oneMinusPearson
            mismatch.pearson = 1 - mismatch.oneMinusPearson
            mismatch.logRatioQuantiles = try MismatchQuantiles.measure(
                scan, histogram: histogram.total(), tokens: mismatch.tokens)
            return mismatch
        }
    }
}

extension Mismatch {
    /// Everything that follows from the sums of each sequence.
    fileprivate init(_ sums: UnsafeBufferPointer<lsk_mismatch_sums>, of pair: LogProbPair, owners: [Int]) {
        var total = SIMD16<Double>(repeating: 0)
        for (record, sum) in sums.enumerated() {
            excludedTokens += Int(sum.non_finite)
            if sum.tokens == 0 { continue }
            tokens += Int(sum.tokens)
            sequences += 1
            total += sum.averaged
            maxSequenceLength = max(maxSequenceLength, Int(sum.tokens))
            if !(sum.largest <= maxAbsLogRatio) {
                maxAbsLogRatio = sum.largest
                maxAbsSequence = owners[record]
                maxAbsPosition = Int(sum.largest_at)
            }
            if !(sum.largest_gap <= maxAbsProbDiff) { maxAbsProbDiff = sum.largest_gap }
        }
        emptySequences = pair.sequences - sequences
        maskedTokens = pair.trainer.rows * pair.trainer.columns - tokens - excludedTokens
        guard tokens > 0 else { return }

        // A mean over tokens is a ratio of two sums over sequences, sum x_i / sum n_i. Linearised, its error
        // is that of the mean of x_i - m n_i: k / (k - 1) sum (x_i - m n_i)^2 / (sum n_i)^2 for k sequences.
        let means = total / Double(tokens)
        var squares = SIMD16<Double>(repeating: 0)
        for sum in sums where sum.tokens > 0 {
            let residual = sum.averaged - means * Double(sum.tokens)
            squares += residual * residual
        }
        let k = Double(sequences)
        let errors = (squares * (k / (k - 1))).squareRoot() / Double(tokens)
        func estimate(_ average: Average, scale: Double = 1, offset: Double = 0) -> Estimate {
            Estimate(
                value: means[average.rawValue] * scale + offset,
                standardError: sequences < 2 ? .nan : errors[average.rawValue] * scale.magnitude)
        }
        meanLogRatio = estimate(.logRatio)
        k1 = estimate(.logRatio, scale: -1)
        k2 = estimate(.square, scale: 0.5)
        k3 = estimate(.k3)
        meanAbsLogRatio = estimate(.magnitude)
        meanAbsProbDiff = estimate(.probabilityGap)
        shareDiffering = estimate(.differing)
        shareOutsideMLPerf = estimate(.outsideMLPerf)
        shareOutside1pct = estimate(.outside1pct)
        shareOutside5pct = estimate(.outside5pct)
        shareOutside10pct = estimate(.outside10pct)
        chiSquare = estimate(.ratioSquare, offset: -1)
        meanRatio = estimate(.ratio)
        meanExpAbsLogRatio = estimate(.expMagnitude)
        meanRolloutLogProb = estimate(.rollout)

        // The root by the delta method: the error of x over 2 sqrt x.
        let square = estimate(.square)
        rmsLogRatio.value = square.value.squareRoot()
        rmsLogRatio.standardError =
            square.value > 0 ? square.standardError / (2 * rmsLogRatio.value) : square.standardError

        let (ratio, ratioSquare) = (means[Average.ratio.rawValue], means[Average.ratioSquare.rawValue])
        ess = ratio * ratio / ratioSquare
        rolloutPerplexity = exponential(-meanRolloutLogProb.value)
        trainerPerplexity = exponential(-(meanRolloutLogProb.value + meanLogRatio.value))
        perplexityRatio = exponential(-meanLogRatio.value)
        meanSequenceLength = Double(tokens) / k
        measureSequences(sums)
    }

    /// The statistics over sequences, each of which counts once.
    private mutating func measureSequences(_ sums: UnsafeBufferPointer<lsk_mismatch_sums>) {
        let k = Double(sequences)
        var largest = -Double.infinity
        for sum in sums where sum.tokens > 0 { largest = max(largest, sum.log_ratio) }

        var total = SIMD4<Double>(repeating: 0)
        var weights = 0.0
        var weightSquares = 0.0
        for sum in sums where sum.tokens > 0 {
            total += sum.sequenceAverages
            // The largest weight is taken out of all of them: it leaves the ESS as it is.
            let weight = exponential(sum.log_ratio - largest)
            weights += weight
            weightSquares += weight * weight
        }
        let means = total / k
        sequenceESS = weights * weights / (k * weightSquares)

        var squares = SIMD4<Double>(repeating: 0)
        var lengthSquares = 0.0
        var products = 0.0
        for sum in sums where sum.tokens > 0 {
            let centred = sum.sequenceAverages - means
            let length = Double(sum.tokens) - meanSequenceLength
            squares += centred * centred
            lengthSquares += length * length
            products += length * centred[0]
        }
        let deviations = (squares / (k - 1)).squareRoot()
        func estimate(_ index: Int) -> Estimate {
            Estimate(
                value: means[index],
                standardError: sequences < 2 ? .nan : deviations[index] / k.squareRoot())
        }
        sequenceLogRatio = estimate(0)
        sequenceMeanLogRatio = estimate(1)
        sequenceMeanExpAbs = estimate(2)
        shareSequencesMasked = estimate(3)
        if sequences >= 2 { sequenceLogRatioStd = deviations[0] }

        guard lengthSquares > 0 else { return }
        let slope = products / lengthSquares
        slopePer1000.value = 1000 * slope
        guard sequences > 2 else { return }
        // The spread of S grows with length, so the error is the one that does not assume it constant:
        // White's (1980), with the factor k / (k - 2).
        var spread = 0.0
        for sum in sums where sum.tokens > 0 {
            let length = Double(sum.tokens) - meanSequenceLength
            let residual = sum.log_ratio - means[0] - slope * length
            spread += (length * residual) * (length * residual)
        }
        slopePer1000.standardError = 1000 * (spread * (k / (k - 2))).squareRoot() / lengthSquares
    }
}

/// The sums whose averages over tokens are reported: lanes of `lsk_mismatch_sums.averaged`.
private enum Average: Int {
    case logRatio, square, magnitude, k3, ratio, ratioSquare, expMagnitude, probabilityGap
    case rollout, differing, outsideMLPerf, outside1pct, outside5pct, outside10pct
}

extension lsk_mismatch_sums {
    /// In the order of `Average`.
    fileprivate var averaged: SIMD16<Double> {
        SIMD16(
            log_ratio, square, magnitude, k3, ratio, ratio_square, exp_magnitude, probability_gap,
            rollout, Double(differing), Double(outside.0), Double(outside.1), Double(outside.2),
            Double(outside.3), 0, 0)
    }

    /// S, mean d, mean exp|d|, and 1 where the last is above 2.
    fileprivate var sequenceAverages: SIMD4<Double> {
        let n = Double(tokens)
        return SIMD4(log_ratio, log_ratio / n, exp_magnitude / n, exp_magnitude / n > 2 ? 1 : 0)
    }
}
