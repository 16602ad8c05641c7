/// How high a score is reached how often without cause: measured by `benchmarks/calibrate_monitor.py`.
///
/// The constants are the script's `thresholds`, from in-control runs resampled from real rollouts (its
/// development seeds); the rates found on held-out seeds are in `benchmarks/results/monitor.json` and
/// `docs/EarlyWarning.md`.
enum MonitorThresholds {
    /// False alarms in 1,000 steps, all statistics together.
    static let rates: [Double] = [30, 10, 3, 1, 0.3, 0.1]

    /// The score each statistic may reach that often, in the order of `MonitorStatistic`.
    static let scores: [[Double]] = [
        [0.63, 2.5, 5.0, 7.95, 14.25, 28.88],
        [0.65, 2.5, 5.0, 8.03, 14.42, 29.43],
        [0.65, 2.5, 5.0, 8.02, 14.38, 29.36],
        [2.02, 3.52, 5.74, 8.96, 15.06, 27.12],
    ]

    /// The score that a statistic reaches `rate` times in 1,000 steps.
    static func score(of statistic: MonitorStatistic, rate: Double) -> Double {
        let scores = scores[Int(statistic.rawValue)]
        for next in 1..<rates.count where rate >= rates[next] {
            let share = min(
                max(logarithm(rate / rates[next]) / logarithm(rates[next - 1] / rates[next]), 0), 1)
            return scores[next] + share * (scores[next - 1] - scores[next])
        }
        return scores[rates.count - 1]
    }

    /// How often in 1,000 steps a statistic reaches `score`: no rate outside the measured ones is claimed.
    static func rate(of statistic: MonitorStatistic, score: Double) -> Double {
        let scores = scores[Int(statistic.rawValue)]
        guard score > scores[0] else { return rates[0] }
        for next in 1..<rates.count where score <= scores[next] {
            let share = (score - scores[next - 1]) / (scores[next] - scores[next - 1])
            return rates[next - 1] * exponential(share * logarithm(rates[next] / rates[next - 1]))
        }
        return rates[rates.count - 1]
    }
}
