/// How the learning rate moves over a run: a warm-up from 0, then constant, linear or half a cosine.
///
/// Steps count from 1, as AdamW's do. The values are those of `transformers`' schedules of the same names, whose first
/// update, number 0, has rate 0 where there is a warm-up; here that one is left out.
public struct LearningRateSchedule: Equatable, Sendable {
    /// What comes after the warm-up.
    public enum Shape: Int32, CaseIterable, Sendable {
        /// The peak.
        case constant = 0
        /// From the peak to the last rate in a straight line.
        case linear = 1
        /// The same along half a cosine.
        case cosine = 2
    }

    /// What comes after the warm-up.
    public var shape: Shape
    /// The highest rate; not negative.
    public var peak: Double
    /// Steps in which the rate rises to the peak; 0: none.
    public var warmupSteps: Int
    /// The step at which linear and cosine end; from there on the rate stays.
    ///
    /// More than `warmupSteps`.
    public var totalSteps: Int
    /// The last rate, as a share of the peak, in [0, 1].
    public var finalShare: Double

    /// Creates a schedule; `totalSteps` matters to linear and cosine only.
    public init(
        _ shape: Shape = .constant, peak: Double, warmupSteps: Int = 0, totalSteps: Int = 0,
        finalShare: Double = 0
    ) {
        self.shape = shape
        self.peak = peak
        self.warmupSteps = warmupSteps
        self.totalSteps = totalSteps
        self.finalShare = finalShare
    }

    /// The rate of update number `step`, the first being 1.
    ///
    /// - Throws: `.invalidArgument` for a step below 1, or a field out of range.
    public func rate(step: Int) throws(LockstepError) -> Double {
        guard step >= 1 else {
            throw LockstepError(.invalidArgument, "step is \(step); the first update is step 1")
        }
        guard peak >= 0, peak.isFinite else {
            throw LockstepError(.invalidArgument, "options: peak is \(peak); give a rate of 0 or more")
        }
        guard (0...1 << 40).contains(warmupSteps) else {
            throw LockstepError(.invalidArgument, "options: warmup_steps is \(warmupSteps); give 0 or more")
        }
        guard finalShare >= 0, finalShare <= 1 else {
            throw LockstepError(.invalidArgument, "options: final_share is \(finalShare); give 0 to 1")
        }
        guard shape == .constant || totalSteps > warmupSteps && totalSteps <= 1 << 40 else {
            throw LockstepError(
                .invalidArgument,
                "options: total_steps is \(totalSteps); give more than warmup_steps, \(warmupSteps)")
        }
        if step < warmupSteps { return peak * (Double(step) / Double(warmupSteps)) }
        if shape == .constant { return peak }
        if step >= totalSteps { return peak * finalShare }
        let progress = Double(step - warmupSteps) / Double(totalSteps - warmupSteps)
        let share = shape == .linear ? 1 - progress : 0.5 * (1 + sineAndCosine(.pi * progress).cosine)
        return peak * (finalShare + (1 - finalShare) * share)
    }
}
