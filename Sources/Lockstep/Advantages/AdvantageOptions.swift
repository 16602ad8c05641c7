/// How rewards become advantages.
///
/// Most say `A = (R - baseline) / scale`: see `parts`.
public enum AdvantageEstimator: Int32, Sendable, CaseIterable {
    /// (R - group mean) / (group std + epsilon).
    case grpo = 0
    /// R - group mean.
    case drGRPO = 1
    /// R - mean of the group's others: RLOO.
    case leaveOneOut = 2
    /// Discounted rewards to go, whitened over the batch's tokens.
    case reinforcePlusPlus = 3
    /// R - group mean, whitened over the batch's tokens.
    case reinforcePlusPlusBaseline = 4
    /// R - group mean weighted by lengths.
    case opo = 5
    /// Discounted rewards to go - a given baseline: the reward of the greedy answer.
    case reMax = 6
    /// (R - group mean) / share of the batch's rewards that are not 0.
    case gpg = 7
    /// (R - second best) / (group std + epsilon) for the group's best, 0 for all others.
    case passAtK = 8
    /// (R - group mean) / (group mean + epsilon).
    case maxRL = 9
    /// GRPO of each kind of reward, weighted, summed, and whitened over the batch's tokens.
    case gdpo = 10
    /// Generalised advantage estimation from a critic's values, whitened over the batch's tokens.
    case gae = 11
    /// Rewards to go - a baseline for each position of a group's sequences, weighted by path variance.
    case optimalTokenBaseline = 12
    /// The same, positions being counted without the tokens that do not count: for several turns.
    case multiTurnTokenBaseline = 13

    /// What a reward is compared with.
    enum Baseline { case none, given, groupMean, othersMean, meanByLength, secondBest }

    /// What is computed for each token, not for each sequence.
    enum Recurrence { case rewardsToGo, values, groupPositions }

    /// What an estimator is made of.
    struct Parts {
        var baseline = Baseline.groupMean
        var scale = AdvantageScale.none
        var whitens = false
        var recurrence: Recurrence?
    }

    var parts: Parts {
        switch self {
        case .grpo: Parts(scale: .groupStd)
        case .drGRPO: Parts()
        case .leaveOneOut: Parts(baseline: .othersMean)
        case .reinforcePlusPlus: Parts(baseline: .none, whitens: true, recurrence: .rewardsToGo)
        case .reinforcePlusPlusBaseline: Parts(whitens: true)
        case .opo: Parts(baseline: .meanByLength)
        case .reMax: Parts(baseline: .given)
        case .gpg: Parts(scale: .nonZeroShare)
        case .passAtK: Parts(baseline: .secondBest, scale: .groupStd)
        case .maxRL: Parts(scale: .groupMean)
        case .gdpo: Parts(scale: .groupStd, whitens: true)
        case .gae: Parts(baseline: .none, whitens: true, recurrence: .values)
        case .optimalTokenBaseline, .multiTurnTokenBaseline:
            Parts(baseline: .none, recurrence: .groupPositions)
        }
    }

    /// Whether sequences are compared with others that answer the same prompt.
    var needsGroups: Bool {
        switch parts.baseline {
        case .none: parts.recurrence == .groupPositions
        case .given: false
        default: true
        }
    }
}

/// What the difference of reward and baseline is divided by.
///
/// Where it is 0 the difference stays as it is.
public enum AdvantageScale: Int32, Sendable {
    /// Nothing.
    case none = 1
    /// The standard deviation of the group's rewards, plus epsilon.
    case groupStd = 2
    /// The standard deviation of the rewards of the group's others, plus epsilon.
    case othersStd = 3
    /// The standard deviation of the batch's rewards, plus epsilon.
    case batchStd = 4
    /// The mean of the group's rewards, plus epsilon.
    case groupMean = 5
    /// The share of the batch's rewards that are not 0.
    case nonZeroShare = 6
}

/// What a group of one gets, which has nothing to be compared with.
public enum SingleSequenceRule: Int32, Sendable {
    /// Advantage 0, outside whitening too: it teaches nothing.
    case zero = 0
    /// Its reward, as if the group's mean were 0 and its standard deviation 1.
    case raw = 1
}

/// What becomes of a response that was cut off at the length limit.
public enum TruncatedRule: Int32, Sendable {
    /// Nothing special.
    case keep = 0
    /// Its reward counts in baselines and scales, its advantage is 0.
    case zero = 1
    /// Its reward is not read, and its advantage is 0.
    case drop = 2
}

/// Options of `RewardBatch.advantages`.
public struct AdvantageOptions: Sendable {
    /// How rewards become advantages.
    public var estimator = AdvantageEstimator.grpo
    /// Another scale than the estimator's own; nil for its own.
    public var scale: AdvantageScale?
    /// Whether advantages are whitened over the batch's tokens; nil as the estimator does.
    public var whiten: Bool?
    /// What a group of one gets.
    public var singles = SingleSequenceRule.zero
    /// What becomes of truncated responses.
    public var truncated = TruncatedRule.keep
    /// Standard deviations divide by n instead of n - 1.
    public var populationStd = false
    /// Optimal token baselines hold in the part of a group's longest sequence that no other reaches too.
    public var tailBaseline = false
    /// Added to the scale; nil for 1e-6, or 1e-8 for optimal token baselines.
    public var epsilon: Double?
    /// Discount of a token's reward for the token before, in [0, 1].
    public var gamma = 1.0
    /// GAE's weight of longer looks ahead, in [0, 1].
    public var lambda = 1.0

    /// Creates options with the defaults of an estimator.
    public init(_ estimator: AdvantageEstimator = .grpo) { self.estimator = estimator }

    var parts: AdvantageEstimator.Parts {
        var parts = estimator.parts
        parts.scale = scale ?? parts.scale
        parts.whitens = whiten ?? parts.whitens
        return parts
    }

    func validate() throws(LockstepError) {
        for (value, name) in [(gamma, "gamma"), (lambda, "lambda")] where !(0...1).contains(value) {
            throw LockstepError(.invalidArgument, "options: \(name) is \(value); give a number in [0, 1]")
        }
        if let epsilon, !(epsilon >= 0 && epsilon.isFinite) {
            throw LockstepError(
                .invalidArgument, "options: epsilon is \(epsilon); give a finite number, 0 or more")
        }
    }
}
