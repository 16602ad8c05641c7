/// How a monitor judges a run at a step.
public enum MonitorLevel: Int32, Sendable {
    /// Too few steps: the floor is still being learnt.
    case learning = 0
    /// Nothing beyond what noise does.
    case ok = 1
    /// Higher than noise often gets: ten times as often as an alarm is tolerated (at most 30 times in 1,000 steps).
    case watch = 2
    /// The mismatch has left its floor.
    case alarm = 3
}

/// Choices of a monitor.
public struct MonitorOptions: Equatable, Sendable {
    /// Steps from which the floor is learnt, 20 to 1,000; the false-alarm rates were calibrated with 40.
    public var learningSteps: Int
    /// False alarms tolerated in 1,000 steps, 0.1 to 10.
    public var falseAlarmsPer1000: Double

    /// Creates options.
    public init(learningSteps: Int = 40, falseAlarmsPer1000: Double = 1) {
        self.learningSteps = learningSteps
        self.falseAlarmsPer1000 = falseAlarmsPer1000
    }
}

/// What a monitor says at a step.
public struct MonitorAlarm: Equatable, Sendable {
    /// The judgement.
    public var level: MonitorLevel
    /// The statistic that is furthest above its floor, measured by its threshold.
    public var statistic: MonitorStatistic
    /// The step.
    public var step: Int
    /// The first step of the growth, as far as can be told; nil where the score is 0.
    public var since: Int?
    /// How many more steps it takes to learn the floor; 0 after that.
    public var stepsToLearn: Int
    /// The statistic at this step; NaN where no token counts.
    public var value: Double
    /// What the floor lets expect at this step, in the same unit; NaN while learning.
    public var floor: Double
    /// The evidence: accumulated distance from the floor, in its standard deviations.
    ///
    /// +inf where a floor of exactly zero was left.
    public var score: Double
    /// The score at which the level is `alarm`; NaN while learning.
    public var threshold: Double
    /// How often in 1,000 steps noise gets a score this high, 0.1 to 30.
    ///
    /// That range is calibrated; no more is claimed at its ends. NaN while learning, 0 where a floor of exactly
    /// zero was left.
    public var falseAlarmsPer1000: Double
    /// The probability that noise gets a score this high within 1,000 steps.
    public var falseAlarmProbability: Double
}

/// One statistic of a monitor after its last step.
public struct MonitorReading: Equatable, Sendable {
    /// The statistic; NaN before the first step with tokens.
    public var value: Double
    /// What the floor lets expect, in the same unit; NaN while learning.
    public var floor: Double
    /// The floor's standard deviation, of the natural logarithm; NaN while learning.
    public var scale: Double
    /// As in `MonitorAlarm`.
    public var score: Double
    /// The score at which this statistic raises an alarm.
    public var threshold: Double
    /// The first step of the growth; nil where the score is 0.
    public var since: Int?
}

/// Watches the mismatch of a training run, one step at a time, and warns when it leaves its own floor.
///
/// Each of four tail-sensitive statistics has a cumulative-sum chart against a floor that the first steps of
/// the run teach. Thresholds come from a calibration, so that the rate of false alarms is known. How it
/// works, what was measured, and where it breaks: `docs/EarlyWarning.md`.
///
/// Deterministic: the same steps give the same alarms, also across `bytes` and `init(bytes:)`.
public struct MismatchMonitor: Sendable {
    /// The choices it was made with.
    public let options: MonitorOptions
    var state = MonitorState()

    /// Creates a monitor that knows nothing of the run.
    public init(options: MonitorOptions = MonitorOptions()) throws(LockstepError) {
        guard (20...1000).contains(options.learningSteps) else {
            throw LockstepError(
                .invalidArgument, "options: learning_steps is \(options.learningSteps); give 20 to 1000")
        }
        guard options.falseAlarmsPer1000 >= 0.1, options.falseAlarmsPer1000 <= 10 else {
            throw LockstepError(
                .invalidArgument,
                "options: false_alarms_per_1000 is \(options.falseAlarmsPer1000); give 0.1 to 10")
        }
        self.options = options
    }

    /// Takes one step's mismatch, and judges.
    ///
    /// Steps are not negative and increase; gaps are fine. A step without tokens changes nothing but the step. Throws, and
    /// changes nothing, if the step does not increase or a statistic is no statistic.
    public mutating func update(step: Int, _ mismatch: Mismatch) throws(LockstepError) -> MonitorAlarm {
        try withLockstepFloatMode { () throws(LockstepError) in
            try check(step, mismatch)
            state.lastStep = step
            if mismatch.tokens > 0 { observe(step, mismatch) }
            return alarm(step, hasTokens: mismatch.tokens > 0)
        }
    }

    /// Forgets floor and scores, and learns again.
    ///
    /// For use after a change that shifts the level on purpose, such as another weight format, engine version or
    /// batch size. Steps may start anew.
    public mutating func reset() { state = MonitorState() }

    /// One statistic after the last step.
    public func reading(_ statistic: MonitorStatistic) -> MonitorReading {
        let index = Int(statistic.rawValue)
        let chart = state.charts.isEmpty ? nil : state.charts[index]
        return MonitorReading(
            value: state.tokens == 0 ? .nan : state.values[index], floor: floor(of: statistic),
            scale: chart?.scale ?? .nan, score: chart?.score ?? 0, threshold: threshold(statistic),
            since: chart?.since)
    }

    private func check(_ step: Int, _ mismatch: Mismatch) throws(LockstepError) {
        guard step >= 0 else { throw LockstepError(.invalidArgument, "step is \(step); give 0 or more") }
        if let last = state.lastStep, step <= last {
            throw LockstepError(
                .invalidArgument,
                "step is \(step) but the last was \(last): steps must increase; on resuming from a checkpoint, "
                    + "load the monitor saved with it, or reset")
        }
        guard mismatch.tokens >= 0 else {
            throw LockstepError(.invalidArgument, "mismatch: tokens is \(mismatch.tokens); give 0 or more")
        }
        guard mismatch.tokens > 0 else { return }
        guard mismatch.maxAbsLogRatio.isFinite, !mismatch.k3.value.isNaN else {
            let name = mismatch.maxAbsLogRatio.isFinite ? "k3" : "max_abs_log_ratio"
            throw LockstepError(
                .nonFinite,
                "mismatch: \(name) is not a number although \(mismatch.tokens) tokens count; give what "
                    + "lockstep_mismatch_measure wrote")
        }
        guard mismatch.maxAbsLogRatio >= 0, mismatch.k3.value >= 0 else {
            let name = mismatch.maxAbsLogRatio >= 0 ? "k3" : "max_abs_log_ratio"
            throw LockstepError(
                .invalidArgument, "mismatch: \(name) is negative; give what lockstep_mismatch_measure wrote")
        }
    }

    private mutating func observe(_ step: Int, _ mismatch: Mismatch) {
        let statistics = MonitorStatistic.allCases
        state.tokens = mismatch.tokens
        state.values = statistics.map { $0.value(of: mismatch) }
        let isZero = mismatch.maxAbsLogRatio == 0
        let logarithms = zip(statistics, state.values).map {
            $0.logarithm(ofValue: $1, tokens: mismatch.tokens)
        }
        switch state.phase(options) {
        case .exact:
            state.leftZeroAt = isZero ? nil : state.leftZeroAt ?? step
        case .watching:
            let count = Double(mismatch.tokens)
            let inflation = max(1, (state.referenceTokens / count).squareRoot())
            for (index, statistic) in statistics.enumerated() {
                state.charts[index].update(
                    logarithms[index], inflation: inflation, perKL: statistic.perKL, step: step)
            }
        case .learning where isZero:
            // Not a level that a logarithm could have. Nothing but zeros is a floor of its own.
            state.zeroSteps += 1
        case .learning:
            state.reference.append(contentsOf: logarithms + [Double(mismatch.tokens)])
            if state.reference.count == options.learningSteps * MonitorState.referenceWidth { learn() }
        }
    }

    /// The floor of every statistic, from the reference steps.
    private mutating func learn() {
        let width = MonitorState.referenceWidth
        let rows = stride(from: 0, to: state.reference.count, by: width)
        let tokens = rows.map { state.reference[$0 + width - 1] }
        let referenceTokens = quantile(tokens, 0.5)
        // Noise goes with the root of the tokens, down to a part that does not.
        let weights = tokens.map { min(1, ($0 / referenceTokens).squareRoot()) }
        state.referenceTokens = referenceTokens
        state.charts = MonitorStatistic.allCases.map { statistic in
            MonitorChart(
                logarithms: rows.map { state.reference[$0 + Int(statistic.rawValue)] }, weights: weights,
                perKL: statistic.perKL)
        }
        state.reference = []
    }

    private mutating func alarm(_ step: Int, hasTokens: Bool) -> MonitorAlarm {
        let leading = leadingStatistic()
        let reading = reading(leading)
        var alarm = MonitorAlarm(
            level: .learning, statistic: leading, step: step, since: reading.since,
            stepsToLearn: state.stepsToLearn(options), value: hasTokens ? reading.value : .nan,
            floor: reading.floor, score: reading.score, threshold: .nan, falseAlarmsPer1000: .nan,
            falseAlarmProbability: .nan)
        switch state.phase(options) {
        case .learning: return alarm
        case .exact:
            alarm.level = state.leftZeroAt == nil ? .ok : .alarm
            alarm.since = state.leftZeroAt
            alarm.score = state.leftZeroAt == nil ? 0 : .infinity
            alarm.falseAlarmsPer1000 = state.leftZeroAt == nil ? MonitorThresholds.rates[0] : 0
        case .watching:
            alarm.falseAlarmsPer1000 = MonitorThresholds.rate(of: leading, score: reading.score)
            let watched = MonitorStatistic.allCases.contains {
                self.reading($0).score >= threshold($0, rateFactor: 10)
            }
            // An alarm ends when nothing is left to watch, so that a score near its threshold is one alarm.
            state.isAlarmed = reading.score >= reading.threshold || state.isAlarmed && watched
            alarm.level = state.isAlarmed ? .alarm : watched ? .watch : .ok
        }
        alarm.threshold = reading.threshold
        alarm.falseAlarmProbability = 1 - exponential(-alarm.falseAlarmsPer1000)
        return alarm
    }

    /// The statistic whose score is the largest share of its threshold; the first of equals.
    private func leadingStatistic() -> MonitorStatistic {
        if state.phase(options) == .exact { return .maxAbsLogRatio }
        var leading = MonitorStatistic.k3
        var highest = 0.0
        for statistic in MonitorStatistic.allCases where !state.charts.isEmpty {
            let share = state.charts[Int(statistic.rawValue)].score / threshold(statistic)
            if share > highest { (leading, highest) = (statistic, share) }
        }
        return leading
    }

    private func threshold(_ statistic: MonitorStatistic, rateFactor: Double = 1) -> Double {
        MonitorThresholds.score(of: statistic, rate: options.falseAlarmsPer1000 * rateFactor)
    }

    private func floor(of statistic: MonitorStatistic) -> Double {
        switch state.phase(options) {
        case .learning: .nan
        case .exact: 0
        case .watching:
            statistic.value(
                ofLogarithm: state.charts[Int(statistic.rawValue)].floor, tokens: max(state.tokens, 1))
        }
    }
}
