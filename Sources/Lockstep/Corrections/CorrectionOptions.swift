import CLockstepKernels

/// What is compared of two policies: the log ratio of a token, or those of many made one.
public enum CorrectionLevel: Int32, CaseIterable, Sendable {
    /// Each token on its own.
    case token = 0
    /// The ratio of the whole sequence, exp of the sum of d.
    case sequenceSum = 1
    /// Its geometric mean, exp of the mean of d.
    case sequenceMean = 2
    /// As `sequenceSum`, over a segment: a run of counted tokens.
    case segmentSum = 3
    /// As `sequenceMean`, over a segment.
    case segmentMean = 4
    /// For rejections only: each token is judged, and the whole sequence rejected with one of them.
    case sequenceEvery = 5
}

/// The weight of a ratio.
public enum CorrectionWeights: Int32, CaseIterable, Sendable {
    /// 1: no reweighting.
    case one = 0
    /// The ratio.
    case raw = 1
    /// min(ratio, high): TIS.
    case truncate = 2
    /// The ratio clipped into [low, high].
    case clip = 3
    /// The ratio inside [low, high], 0 outside: MIS, IcePop.
    case mask = 4
}

/// A rule that keeps tokens with low <= x <= high, for a statistic x of two policies.
///
/// At the level of a sequence or segment x is the sum or mean of its tokens' statistics (for `ratio`: exp of the
/// sum or mean of d), and all its tokens are judged by it.
public struct Rejection: Equatable, Sendable {
    /// What is looked at; p and q are the probabilities of the token under the two policies, d = ln p - ln q.
    public enum Statistic: Int32, CaseIterable, Sendable {
        /// exp of the level's d: p / q.
        case ratio = 0
        /// d^2 / 2.
        case k2 = 1
        /// exp(d) - 1 - d.
        case k3 = 2
        /// exp|d|.
        case expAbs = 3
        /// p - q.
        case probabilityDifference = 4
        /// KL(Bernoulli(q) || Bernoulli(p)) with the sign of p - q.
        case binaryKL = 5

        /// Whether it is never below 0.
        var isNonNegative: Bool { rawValue <= Statistic.expAbs.rawValue }
    }

    /// Which two policies are compared, the first over the second.
    public enum Policies: Int32, CaseIterable, Sendable {
        /// pi over mu.
        case trainerRollout = 0
        /// The current policy over mu.
        case currentRollout = 1
        /// The current policy over pi.
        case currentTrainer = 2
    }

    /// Whether the advantage A of a token decides which bound it must keep.
    public enum Side: Int32, CaseIterable, Sendable {
        /// Both bounds, whatever A.
        case both = 0
        /// `high` where A > 0, `low` where A <= 0: DPPO.
        case byAdvantage = 1
        /// Both bounds, but only where A < 0: off-policy sequence masking.
        case negativeAdvantage = 2
    }

    /// The statistic x.
    public var statistic: Statistic
    /// Over what it is taken.
    public var level: CorrectionLevel
    /// Of which policies.
    public var policies: Policies
    /// Whose tokens are judged by which bound.
    public var side: Side
    /// The least x that is kept; -infinity for none.
    public var low: Double
    /// The largest x that is kept; infinity for none.
    public var high: Double

    /// Creates a rule; without bounds it rejects nothing.
    public init(
        _ statistic: Statistic = .ratio, _ level: CorrectionLevel = .token, low: Double = -.infinity,
        high: Double = .infinity, policies: Policies = .trainerRollout, side: Side = .both
    ) {
        self.statistic = statistic
        self.level = level
        self.policies = policies
        self.side = side
        self.low = low
        self.high = high
    }

    func validate(_ name: String) throws(LockstepError) {
        if low.isNaN || high.isNaN {
            throw LockstepError(
                .invalidArgument, "\(name): a bound is NaN; give a number, or an infinity for no bound")
        }
        guard low <= high else {
            throw LockstepError(
                .invalidArgument,
                "\(name): low = \(low) is above high = \(high); give the interval that is kept, low first")
        }
        guard low < .infinity, high > -.infinity else {
            throw LockstepError(
                .invalidArgument,
                "\(name): [\(low), \(high)] holds no number; -infinity is no low bound, "
                    + "infinity no high bound")
        }
        if statistic.isNonNegative, high < 0 || (low < 0 && low > -.infinity) {
            throw LockstepError(
                .invalidArgument,
                "\(name): bounds are [\(low), \(high)] but \(statistic) is never negative (bounds of a ratio are "
                    + "not logarithms)")
        }
    }
}

/// What a correction does: how tokens, sequences or segments are weighted, and who is left out.
public struct CorrectionOptions: Sendable {
    /// How a ratio becomes a weight.
    public var weights: CorrectionWeights
    /// Of what the ratio is.
    public var level: CorrectionLevel
    /// The low bound of weights; at least 0.
    public var low: Double
    /// The high bound of weights.
    public var high: Double
    /// The least log ratio that is exponentiated; -infinity for no clamp.
    public var logRatioMin = -20.0
    /// The largest log ratio that is exponentiated; infinity for no clamp.
    public var logRatioMax = 20.0
    /// Whether the weights are divided by their mean over units of the level.
    public var normalize = false
    /// Not 0: reject the tokens with the largest d^2, so that the mean d^2 of the rest is below this (M2PO).
    public var secondMoment = 0.0
    /// Rules all of which must keep a token.
    public var rejections: [Rejection]

    /// Creates options; by default ratios of tokens are truncated at 2.
    public init(
        weights: CorrectionWeights = .truncate, level: CorrectionLevel = .token, low: Double = 0,
        high: Double = 2,
        rejections: [Rejection] = []
    ) {
        self.weights = weights
        self.level = level
        self.low = low
        self.high = high
        self.rejections = rejections
    }

    /// The log ratio from which a weight may be too large for float32.
    static let largestUnbounded = 80.0

    func validate() throws(LockstepError) {
        func refuse(_ message: String) -> LockstepError { LockstepError(.invalidArgument, message) }
        guard level != .sequenceEvery else {
            throw refuse(
                "level is sequenceEvery, which is for rejections; weights need a ratio, of token, "
                    + "sequence or segment")
        }
        guard low >= 0, low <= high else {
            throw refuse("low is \(low) and high is \(high); weights need 0 <= low <= high")
        }
        guard logRatioMin <= 0, logRatioMax >= 0, logRatioMin < logRatioMax else {
            throw refuse(
                "log_ratio_min is \(logRatioMin) and log_ratio_max is \(logRatioMax); give a range that holds 0"
            )
        }
        let isBounded = weights == .one || (weights != .raw && high <= 0x1p100)
        guard isBounded || logRatioMax <= CorrectionOptions.largestUnbounded else {
            throw refuse(
                "log_ratio_max is \(logRatioMax) but nothing else bounds the weights; give \(Int(80)) or less, or "
                    + "a bound high below 2^100")
        }
        guard secondMoment >= 0, secondMoment < .infinity else {
            throw refuse(
                "second_moment is \(secondMoment); give a positive bound of the mean d^2, or 0 for none")
        }
        guard rejections.count <= Int(LSK_REJECTIONS) else {
            throw refuse("rejections: there are \(rejections.count); give \(LSK_REJECTIONS) at most")
        }
        for (index, rejection) in rejections.enumerated() { try rejection.validate("rejections[\(index)]") }
    }

    /// The rule for the kernels; nothing is divided yet, nor cut by the second moment.
    func rule() -> lsk_correction_rule {
        var rule = lsk_correction_rule()
        rule.weights = weights.rawValue
        rule.level = level.rawValue
        rule.low = low
        rule.high = high
        rule.log_ratio_min = logRatioMin
        rule.log_ratio_max = logRatioMax
        rule.divisor = 1
        rule.second_moment_cut = .infinity
        rule.rejection_count = Int64(rejections.count)
        withUnsafeMutableBytes(of: &rule.rejections) { bytes in
            let out = bytes.assumingMemoryBound(to: lsk_rejection.self)
            for (index, each) in rejections.enumerated() {
                out[index] = lsk_rejection(
                    statistic: each.statistic.rawValue, level: each.level.rawValue,
                    policies: each.policies.rawValue, side: each.side.rawValue, low: each.low, high: each.high
                )
            }
        }
        return rule
    }
}
