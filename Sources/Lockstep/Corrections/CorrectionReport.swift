/// Statistics of a ratio or weight over units; NaN without units.
public struct WeightStatistics: Equatable, Sendable {
    /// How many tokens, sequences or segments.
    public var units = 0
    /// Their mean.
    public var mean = Double.nan
    /// Their standard deviation, of the population.
    public var std = Double.nan
    /// The smallest.
    public var min = Double.nan
    /// The largest.
    public var max = Double.nan
    /// Effective sample size as a share: (sum w)^2 / (units sum w^2); 0 if all are 0.
    public var ess = Double.nan

    /// No units.
    public init() {}
}

/// What one rejection did, whatever the others did.
public struct RejectionCount: Equatable, Sendable {
    /// Tokens it rejected.
    public var tokens = 0
    /// Sequences of which it rejected all tokens.
    public var sequences = 0
    /// Sequences of which it rejected any token.
    public var touchedSequences = 0
    /// Log ratios that were clamped.
    public var clamped = 0
    /// Values of the statistic: tokens, sequences or segments, as its level says.
    public var units = 0
    /// Mean of the statistic; NaN without units.
    public var mean = Double.nan
    /// The smallest.
    public var min = Double.nan
    /// The largest.
    public var max = Double.nan

    /// Nothing.
    public init() {}
}

/// What a correction did.
///
/// A unit is a token, sequence or segment, as the level of the weights says.
public struct CorrectionReport: Equatable, Sendable {
    /// Whether no token is left: all were rejected, or none counts.
    public var isEmpty: Bool { tokens == rejectedTokens }
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
    /// Tokens that count and were rejected.
    public var rejectedTokens = 0
    /// Sequences with all their tokens rejected.
    public var rejectedSequences = 0
    /// Sequences with any token rejected.
    public var touchedSequences = 0
    /// Units whose log ratio was clamped.
    public var clamped = 0
    /// Units with a ratio below `low`.
    public var below = 0
    /// Units with a ratio above `high`.
    public var above = 0
    /// Tokens rejected by the second moment.
    public var secondMomentTokens = 0
    /// The most counted tokens of a sequence.
    public var maxSequenceLength = 0
    /// Counted tokens a sequence; NaN without any.
    public var meanSequenceLength = Double.nan
    /// Tokens with a d^2 above this were rejected by the second moment; infinity if none was.
    public var secondMomentCut = Double.infinity
    /// What the weights were divided by.
    public var normalizer = 1.0
    /// The ratio, after the clamp of its exponent.
    public var ratio = WeightStatistics()
    /// The weight, after the bounds and before it is normalised.
    public var weight = WeightStatistics()
    /// The same over units of which a token is kept.
    public var keptWeight = WeightStatistics()
    /// What each rejection did.
    public var rejections: [RejectionCount] = []

    /// No data.
    public init() {}
}
