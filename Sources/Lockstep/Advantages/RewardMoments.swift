/// Count, sum and squared deviations of some numbers, whatever their order.
///
/// Sums have 106 bits, so equal numbers deviate from their mean by exactly 0, which in float64 they would
/// often not: 3 times 0.1, divided by 3, is not 0.1.
struct RewardMoments {
    let count: Int
    let sum: DoubleDouble
    /// Sum of (x - mean)^2.
    private(set) var squares = DoubleDouble(0)

    private init(count: Int, sum: DoubleDouble) {
        self.count = count
        self.sum = sum
    }

    /// The mean; 0 of nothing.
    var mean: Double { count == 0 ? 0 : (sum / Double(count)).high }

    /// x - mean.
    func deviation(of x: Double) -> DoubleDouble {
        (Double(count) * DoubleDouble(x) - sum) / Double(count)
    }

    /// Mean of (x - mean)^2 over n - 1, or over n; 0 where that is 0.
    func variance(population: Bool = false) -> Double {
        RewardMoments.variance(squares.high, count, population: population)
    }

    /// x - mean of all but x, which is one of them; there must be two.
    func deviationFromOthers(of x: Double) -> Double {
        ((Double(count) * DoubleDouble(x) - sum) / Double(count - 1)).high
    }

    /// The variance of all but x, which is one of them; only where the others are known to differ.
    ///
    /// It rests on `squares` without what x adds to it, which is `n / (n - 1) (x - mean)^2`.
    func varianceOfOthers(than x: Double, population: Bool) -> Double {
        let own = deviation(of: x)
        let rest = squares - (Double(count) * (own * own)) / Double(count - 1)
        return RewardMoments.variance(max(rest.high, 0), count - 1, population: population)
    }

    private static func variance(_ squares: Double, _ count: Int, population: Bool) -> Double {
        let divisor = count - (population ? 0 : 1)
        return divisor > 0 ? squares / Double(divisor) : 0
    }

    /// The moments of several groups of numbers.
    ///
    /// `each` calls what it is given with the group of a number, the number, and how often it counts; it is
    /// asked twice.
    static func of(
        groups: Int, _ each: ((_ group: Int, _ x: Double, _ times: Int) -> Void) -> Void
    ) -> [RewardMoments] {
        var counts = [Int](repeating: 0, count: groups)
        var sums = ExactSums(count: groups)
        each { group, x, times in
            counts[group] += times
            sums.addProduct(x, Double(times), to: group)
        }
        var moments = counts.enumerated().map {
            RewardMoments(count: $1, sum: sums.number($0).doubleDouble())
        }
        var squares = ExactSums(count: groups)
        each { group, x, times in
            let deviation = moments[group].deviation(of: x)
            let scaled = Double(times) * deviation.high
            squares.addProduct(scaled, deviation.high, to: group)
            squares.addProduct(2 * scaled, deviation.low, to: group)
        }
        for group in 0..<groups { moments[group].squares = squares.number(group).doubleDouble() }
        return moments
    }
}
