/// What a monitor follows: statistics that the tail of the log ratios moves.
///
/// The mean |pi - mu| is not among them: in published runs it moved only after the reward had peaked.
public enum MonitorStatistic: Int32, CaseIterable, Sendable {
    /// KL(mu || pi) as mean(exp(d) - 1 - d).
    case k3 = 0
    /// The chi-square divergence as mean((r - 1)^2) = `chiSquare` - 2 (`meanRatio` - 1): never negative, and
    /// without the noise of mean r that `chiSquare` carries.
    case chiSquare = 1
    /// 1 - ESS of the token weights r.
    case essLoss = 2
    /// Max |d|, judged against what that many tokens should show.
    case maxAbsLogRatio = 3
}

extension MonitorStatistic {
    /// Growth of a statistic is counted in doublings of a KL: |d| goes with its root.
    var perKL: Double { self == .maxAbsLogRatio ? 0.5 : 1 }

    /// The statistic in its own unit; +inf where the ratios overflow.
    func value(of mismatch: Mismatch) -> Double {
        let value =
            switch self {
            case .k3: mismatch.k3.value
            case .chiSquare: mismatch.chiSquare.value - 2 * (mismatch.meanRatio.value - 1)
            case .essLoss: 1 - mismatch.ess
            case .maxAbsLogRatio: mismatch.maxAbsLogRatio
            }
        // With a finite max |d| (which update() demands), NaN comes from infinity over infinity.
        return value.isNaN ? .infinity : max(value, 0)
    }

    /// A value on the scale the monitor computes on: a logarithm, so that growth by a factor is a distance.
    ///
    /// 1 - ESS becomes 1 / ESS - 1, which does not saturate; max |d| is divided by ln(tokens) + 0.577, what the
    /// largest of so many exponentially distributed |d| is in expectation (in units of their mean).
    func logarithm(ofValue value: Double, tokens: Int) -> Double {
        // Chi-square and ESS are differences of numbers near 1: below this they are rounding errors.
        let resolution = 1e-12
        let scaled =
            switch self {
            case .k3: value
            case .chiSquare: max(value, resolution)
            case .essLoss: max(value / (1 - value), resolution)
            case .maxAbsLogRatio: value / expectedMaximum(tokens)
            }
        return Lockstep.logarithm(min(max(scaled, 1e-300), 1e300))
    }

    /// The inverse of `logarithm(ofValue:tokens:)`.
    func value(ofLogarithm x: Double, tokens: Int) -> Double {
        let scaled = exponential(x)
        return switch self {
        case .k3, .chiSquare: scaled
        case .essLoss: scaled / (1 + scaled)
        case .maxAbsLogRatio: scaled * expectedMaximum(tokens)
        }
    }
}

private func expectedMaximum(_ tokens: Int) -> Double {
    logarithm(Double(max(tokens, 1))) + 0.5772156649015329
}
