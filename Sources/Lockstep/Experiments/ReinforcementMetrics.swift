/// What happened in a step.
///
/// Means over tokens are of the responses' tokens. pi is the trainer before the step's updates, mu the rollout engine.
public struct ReinforcementMetrics: Equatable, Sendable {
    /// The step, from 1.
    public var step = 0
    /// Responses.
    public var responses = 0
    /// Their tokens.
    public var tokens = 0
    /// Mean reward.
    public var rewardMean = Double.nan
    /// Share of responses with a reward of at least 1.
    public var shareRight = Double.nan
    /// Groups all of whose rewards are equal: where advantages are differences in a group they teach nothing.
    public var equalGroups = 0
    /// Mean tokens of a response.
    public var responseLength = Double.nan
    /// Share of responses that were cut off at the most tokens.
    public var shareTruncated = Double.nan
    /// KL(mu || pi) of a token, estimated as k3.
    public var k3 = Double.nan
    /// Mean |ln pi - ln mu|.
    public var meanAbsLogRatio = Double.nan
    /// The largest.
    public var maxAbsLogRatio = Double.nan
    /// The largest |pi - mu|.
    public var maxAbsProbDiff = Double.nan
    /// Effective sample size of the tokens' ratios, as a share.
    public var ess = Double.nan
    /// The same of the sequences' ratios.
    public var sequenceESS = Double.nan
    /// Standard deviation of the sequences' log ratios.
    public var sequenceLogRatioStd = Double.nan
    /// Mean entropy of pi, nats.
    public var entropy = Double.nan
    /// Mean loss of the updates.
    public var loss = Double.nan
    /// Share of tokens that a bound of the objective held, mean over the updates.
    public var clipShare = Double.nan
    /// Share of tokens that the correction left out: rejected, or of weight 0.
    public var shareMasked = Double.nan
    /// Largest norm of a gradient before clipping, over the updates that were not skipped; NaN if all were.
    public var gradientNorm = Double.nan
    /// The learning rate of the last update.
    public var learningRate = Double.nan
    /// Updates taken since the start of the run.
    public var updates = 0
    /// Updates of this step that were skipped, as a gradient was not finite.
    public var skipped = 0
    /// The same since the start of the run.
    public var skippedTotal = 0
    /// The loss scale after the step.
    public var lossScale = Double.nan
    /// Whether the scale is at its floor, where the next overflow cannot be backed off from: an alarm.
    public var isScaleAtFloor = false
    /// What the early warning says.
    public var monitor = MonitorLevel.learning
    /// Its evidence.
    public var monitorScore = Double.nan
    /// The statistic with the most.
    public var monitorStatistic = MonitorStatistic.k3

    /// Nothing.
    public init() {}

    /// The metrics by their lasting names.
    public var named: [(name: String, value: Double)] {
        [
            ("step", Double(step)), ("responses", Double(responses)), ("tokens", Double(tokens)),
            ("reward_mean", rewardMean), ("share_right", shareRight), ("equal_groups", Double(equalGroups)),
            ("response_length", responseLength), ("share_truncated", shareTruncated), ("k3", k3),
            ("mean_abs_log_ratio", meanAbsLogRatio), ("max_abs_log_ratio", maxAbsLogRatio),
            ("max_abs_prob_diff", maxAbsProbDiff), ("ess", ess),
            ("sequence_ess", sequenceESS), ("sequence_log_ratio_std", sequenceLogRatioStd),
            ("entropy", entropy), ("loss", loss), ("clip_share", clipShare), ("share_masked", shareMasked),
            ("gradient_norm", gradientNorm), ("learning_rate", learningRate), ("updates", Double(updates)),
            ("skipped", Double(skipped)), ("skipped_total", Double(skippedTotal)), ("loss_scale", lossScale),
            ("scale_at_floor", isScaleAtFloor ? 1 : 0), ("monitor", Double(monitor.rawValue)),
            ("monitor_score", monitorScore), ("monitor_statistic", Double(monitorStatistic.rawValue)),
        ]
    }
}
