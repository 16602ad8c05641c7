import CLockstepKernels

/// The objective of one token: what it contributes to the loss, to be minimised.
///
/// A is the advantage, c the current log-prob, x = c - trainer the log ratio, r = exp(x) the ratio. What
/// stands in brackets is a constant to the gradient.
public enum ObjectiveTerm: Int32, CaseIterable, Sendable {
    /// max(-A min(r, ratioMax), -A clamp(r, low, high)), at most -A dual where A < 0: PPO, GRPO, DAPO.
    case clip = 0
    /// -A c: the policy gradient.
    case reinforce = 1
    /// -A r: importance sampling.
    case ratio = 2
    /// -[clamp(r, low, high)] A c.
    case cispo = 3
    /// -A 4 / tau sigmoid(tau (r - 1)), with tau by the sign of A.
    case sapo = 4
    /// -A c where A > 0, else -[min(r, 1)] A c.
    case topr = 5
    /// -A c + coefficient / 2 x^2: Kimi k1.5, DRO.
    case squared = 6
    /// -A r, + coefficient |x| for tokens that a covariance rule selected.
    case klCov = 7
    /// -A r of the sequence, whose log ratio is the mean of x held at ln low and ln high where A pulls beyond.
    case gmpo = 8
    /// -[phi] A c, ln phi = rate + shape ln w - rate w, w the ratio of the sequence's sum times its weights.
    case vespo = 9
}

/// What the ratio is of.
public enum RatioLevel: Int32, CaseIterable, Sendable {
    /// exp(x) of each token.
    case token = 0
    /// exp(mean of x) of the sequence: GSPO.
    case sequence = 1
    /// The same value, with the gradient of a token's own ratio: GSPO-token.
    case sequenceToken = 2
    /// exp(sum of x) of the sequence.
    case sequenceSum = 3
}

/// How terms become a loss.
public enum Aggregation: Int32, CaseIterable, Sendable {
    /// The sum over all tokens, by their number.
    case tokenMean = 0
    /// The sum over all tokens.
    case tokenSum = 1
    /// The mean over sequences of the sum over a sequence.
    case seqMeanTokenSum = 2
    /// The mean over sequences of the mean over a sequence.
    case seqMeanTokenMean = 3
    /// The mean over sequences of the sum by a constant length.
    case seqMeanTokenSumNorm = 4
    /// The mean over prompts of the mean over all tokens that answer one.
    case promptMean = 5
}

/// Which tokens denominators count.
public enum Denominator: Int32, CaseIterable, Sendable {
    /// All that count: a rejected token has no policy term, but stays in the number and keeps its regularisers.
    case original = 0
    /// Those that were kept: a rejected token is as if it were masked.
    case kept = 1
}

/// An estimator of the divergence of the current policy from the reference, of x = reference - current.
public enum KLEstimator: Int32, CaseIterable, Sendable {
    /// No regulariser.
    case none = 0
    /// -x: unbiased, may be negative.
    case k1 = 1
    /// x^2 / 2.
    case k2 = 2
    /// exp(x) - 1 - x.
    case k3 = 3
    /// |x|.
    case abs = 4
}

/// Where the gradient of the divergence comes from.
public enum KLGradient: Int32, CaseIterable, Sendable {
    /// The derivative of the estimator.
    case direct = 0
    /// The estimator times the ratio, differentiated: unbiased off policy.
    case ratio = 1
    /// The derivative of the estimator, and the estimator times that of the log-prob (score function).
    case scoreFunction = 2
    /// The derivative of k2, whatever the estimator (straight through).
    case k2 = 3
}

/// An objective: term, ratio, aggregation, regularisers.
///
/// The default is PPO's: clipped to [0.8, 1.2], the mean over tokens.
public struct ObjectiveOptions: Sendable {
    /// The objective of a token.
    public var term = ObjectiveTerm.clip
    /// What the ratio is of; GMPO and VESPO bring their own and take `token`.
    public var ratioLevel = RatioLevel.token
    /// How terms become a loss.
    public var aggregation = Aggregation.tokenMean
    /// What denominators count.
    public var denominator = Denominator.original
    /// The lower bound of the ratio itself, in [0, 1].
    public var low = 0.8
    /// The upper bound of the ratio itself, at least 1.
    public var high = 1.2
    /// Where A < 0, the term is at most -A dual; above 1, or infinity for none.
    public var dual = Double.infinity
    /// The most that an unclipped ratio is; at least 1, or infinity for none.
    public var ratioMax = Double.infinity
    /// The strength of what `squared` and `klCov` add.
    public var coefficient = 0.0
    /// SAPO's temperature where A > 0.
    public var tauPositive = 1.0
    /// SAPO's temperature elsewhere.
    public var tauNegative = 1.05
    /// VESPO's shape where A >= 0.
    public var shapePositive = 2.0
    /// VESPO's rate where A >= 0.
    public var ratePositive = 3.0
    /// VESPO's shape where A < 0.
    public var shapeNegative = 3.0
    /// VESPO's rate where A < 0.
    public var rateNegative = 2.0
    /// The least log ratio that is exponentiated; -infinity is -700.
    public var logRatioMin = -20.0
    /// The largest log ratio that is exponentiated; infinity is 700.
    public var logRatioMax = 20.0
    /// The estimator of the divergence from the reference.
    public var kl = KLEstimator.none
    /// Where its gradient comes from.
    public var klGradient = KLGradient.direct
    /// What the divergence counts in the loss.
    public var klCoefficient = 0.0
    /// The largest |reference - current| that goes into the estimator; infinity is 700.
    public var klInputMax = 20.0
    /// The largest magnitude that comes out of it; infinity for none.
    public var klOutputMax = Double.infinity
    /// What the entropy counts in the loss: the loss has -entropyCoefficient times it.
    public var entropyCoefficient = 0.0
    /// The constant length of `seqMeanTokenSumNorm`.
    public var length = 0.0
    /// What the loss is multiplied by.
    public var scale = 1.0
    /// What to do with a NaN or an infinity at a token that counts.
    public var nonFinite = NonFinitePolicy.strict

    /// Creates the default objective.
    public init() {}

    /// Creates an objective of a term, and of the defaults otherwise.
    public init(
        _ term: ObjectiveTerm, aggregation: Aggregation = .tokenMean, low: Double = 0.8, high: Double = 1.2
    ) {
        self.term = term
        self.aggregation = aggregation
        self.low = low
        self.high = high
    }

    /// Beyond it a double's exponential ends, and so do clamps that are none.
    static let furthest = 700.0

    /// The kernels' form, or an error that names the option.
    func rule() throws(LockstepError) -> lsk_objective_rule {
        try check()
        let level: RatioLevel =
            switch term {
            case .gmpo: .sequence
            case .vespo: .sequenceSum
            default: ratioLevel
            }
        return lsk_objective_rule(
            term: term.rawValue, level: level.rawValue, kl: kl.rawValue, kl_gradient: klGradient.rawValue,
            drop_rejected: denominator == .kept ? 1 : 0, exclude: nonFinite == .exclude ? 1 : 0,
            low: low, high: high, log_low: low > 0x1p-1000 ? logarithm(low) : -.infinity,
            log_high: high < .infinity ? logarithm(high) : .infinity, dual: dual, ratio_max: ratioMax,
            coefficient: coefficient, tau_positive: tauPositive, tau_negative: tauNegative,
            shape_positive: shapePositive, rate_positive: ratePositive, shape_negative: shapeNegative,
            rate_negative: rateNegative,
            log_ratio_min: Swift.max(logRatioMin, -ObjectiveOptions.furthest),
            log_ratio_max: Swift.min(logRatioMax, ObjectiveOptions.furthest), kl_coefficient: klCoefficient,
            kl_input: Swift.min(klInputMax, ObjectiveOptions.furthest), kl_output: klOutputMax,
            entropy_coefficient: entropyCoefficient)
    }

    private func check() throws(LockstepError) {
        try require(low >= 0 && low <= 1, "low", low, "a lower bound of the ratio itself, in [0, 1]")
        try require(
            high >= 1, "high", high,
            "an upper bound of the ratio itself, at least 1 (1.2 for the field's epsilon of 0.2)")
        try require(dual > 1, "dual", dual, "a number above 1, or infinity for none")
        try require(ratioMax >= 1, "ratio_max", ratioMax, "a number of at least 1, or infinity for none")
        try require(tauPositive > 0 && tauPositive.isFinite, "tau_positive", tauPositive, "a positive number")
        try require(tauNegative > 0 && tauNegative.isFinite, "tau_negative", tauNegative, "a positive number")
        for (value, name) in [
            (coefficient, "coefficient"), (shapePositive, "shape_positive"), (ratePositive, "rate_positive"),
            (shapeNegative, "shape_negative"), (rateNegative, "rate_negative"),
            (klCoefficient, "kl_coefficient"), (entropyCoefficient, "entropy_coefficient"),
        ] as [(Double, StaticString)] {
            try require(value.isFinite, name, value, "a finite number")
        }
        try require(logRatioMin <= 0, "log_ratio_min", logRatioMin, "a bound of at most 0")
        try require(logRatioMax >= 0, "log_ratio_max", logRatioMax, "a bound of at least 0")
        try require(klInputMax > 0, "kl_input_max", klInputMax, "a positive bound, or infinity for none")
        try require(klOutputMax > 0, "kl_output_max", klOutputMax, "a positive bound, or infinity for none")
        try require(scale >= 0 && scale.isFinite, "scale", scale, "a finite number of at least 0")
        if aggregation == .seqMeanTokenSumNorm || length != 0 {
            try require(
                length > 0 && length.isFinite, "length", length,
                "the constant length that sums are divided by")
        }
        let brought: RatioLevel? = term == .gmpo ? .sequence : term == .vespo ? .sequenceSum : nil
        if let brought, ratioLevel != .token, ratioLevel != brought {
            throw LockstepError(
                .unsupported, "options: \(term) has a ratio of its own; leave ratio_level at token")
        }
        if brought != nil, kl != .none, klGradient == .ratio {
            throw LockstepError(
                .unsupported, "options: kl_gradient is ratio, and the ratio of \(term) is not a token's")
        }
    }

    private func require(
        _ good: Bool, _ name: StaticString, _ value: Double, _ what: StaticString
    ) throws(LockstepError) {
        guard good else {
            throw LockstepError(.invalidArgument, "options: \(name) is \(value); give \(what)")
        }
    }

    /// Whether the objective is of a ratio against the trainer's log-probs.
    var needsTrainer: Bool {
        term != .reinforce || ratioLevel != .token || (kl != .none && klGradient == .ratio)
    }
}
