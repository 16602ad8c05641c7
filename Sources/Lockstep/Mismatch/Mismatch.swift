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
    /// The sequence of the token with max |d|, of equals the first; -1 if no token counts.
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

    /// Standard error of `ess`.
    public var essStandardError = Double.nan
    /// Standard error of `trainerPerplexity`.
    public var trainerPerplexityStandardError = Double.nan
    /// Standard error of `rolloutPerplexity`.
    public var rolloutPerplexityStandardError = Double.nan
    /// Standard error of `perplexityRatio`.
    public var perplexityRatioStandardError = Double.nan
    /// Standard error of `sequenceLogRatioStd`.
    public var sequenceLogRatioStdStandardError = Double.nan
    /// Share of sequences with exp(mean d) outside [0.999, 1.002].
    public var shareSequencesOutsideMLPerf = Estimate.none

    /// No data: counts of zero, everything else NaN.
    public init() {}
}

extension LogProbPair {
    /// Measures the mismatch of the pair: all statistics in one call.
    ///
    /// Reads the log-probs twice. Extra memory: about 100 KB for each thread and, for the quantiles, at most
    /// 8 bytes a token, in practice a twentieth of that.
    public func mismatch(
        nonFinite policy: NonFinitePolicy = .strict, execution: Execution = Execution()
    ) throws(LockstepError) -> Mismatch {
        try withLockstepFloatMode { () throws(LockstepError) in
            let state = try MismatchState(of: self, ids: .index(from: 0), .init(), policy, execution)
            var mismatch = state.moments.mismatch()
            mismatch.logRatioQuantiles = try MismatchQuantiles.measure(
                MismatchScan(self, execution), histogram: state.sketch.histogram, tokens: mismatch.tokens)
            return mismatch
        }
    }
}
