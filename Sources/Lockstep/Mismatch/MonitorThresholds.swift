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
        [0.49, 2.5, 4.64, 7.5, 12.75, 24.69],
        [0.51, 2.5, 4.65, 7.5, 12.78, 25.11],
        [0.51, 2.5, 4.65, 7.5, 12.77, 25.04],
        [1.39, 2.51, 4.02, 6.31, 9.46, 14.72],
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
