/// Count, mean and squared deviations of some numbers, whatever their order.
///
/// Sums have 106 bits, and a mean that is a float64 is exactly that: equal numbers deviate from their mean by
/// exactly 0, which in float64 they would often not (3 times 0.1, divided by 3, is not 0.1).
struct RewardMoments {
    let count: Int
    private let exactMean: DoubleDouble
    /// Sum of (x - mean)^2.
    private(set) var squares = DoubleDouble(0)

    private init(count: Int, sum: DoubleDouble) {
        self.count = count
        let mean = count == 0 ? DoubleDouble(0) : sum / Double(count)
        // The division is good to 100 bits or so: where its float64 is the mean, the rest is its error.
        let rest = Double(count) * DoubleDouble(mean.high) - sum
        exactMean = rest.high == 0 && rest.low == 0 ? DoubleDouble(mean.high) : mean
    }

    /// The mean; 0 of nothing.
    var mean: Double { exactMean.high }

    /// x - mean.
    @inline(__always)
    func deviation(of x: Double) -> Double { (x - exactMean.high) - exactMean.low }

    /// x - mean of all but x, which is one of them; there must be two.
    func deviationFromOthers(of x: Double) -> Double {
        (Double(count) * (DoubleDouble(x) - exactMean) / Double(count - 1)).high
    }

    /// Mean of (x - mean)^2 over n - 1, or over n; 0 where that is 0.
    func variance(population: Bool = false) -> Double {
        RewardMoments.variance(squares.high, count, population: population)
    }

    /// The variance of all but x, which is one of them; only where the others are known to differ.
    ///
    /// It rests on `squares` without what x adds to it, which is `n / (n - 1) (x - mean)^2`.
    func varianceOfOthers(than x: Double, population: Bool) -> Double {
        let own = DoubleDouble(x) - exactMean
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
            let deviation = DoubleDouble(x) - moments[group].exactMean
            let scaled = Double(times) * deviation.high
            squares.addProduct(scaled, deviation.high, to: group)
            if deviation.low != 0 { squares.addProduct(2 * scaled, deviation.low, to: group) }
        }
        for group in 0..<groups { moments[group].squares = squares.number(group).doubleDouble() }
        return moments
    }

    /// The moments of rows of numbers: eight lanes a row, exact sums over rows.
    ///
    /// `each` calls what it is given with every row; it is asked twice.
    static func of(rows each: ((UnsafeBufferPointer<Double>) -> Void) -> Void) -> RewardMoments {
        var count = 0
        var sums = ExactSums(count: 1)
        each {
            count += $0.count
            sums.add(laneSum($0) { $0 }, to: 0)
        }
        var moments = RewardMoments(count: count, sum: sums.number(0).doubleDouble())
        let (high, low) = (moments.exactMean.high, moments.exactMean.low)
        var squares = ExactSums(count: 1)
        each {
            let row = laneSum($0) { x in
                let deviation = (x - high) - low
                return deviation * deviation
            }
            squares.add(row, to: 0)
        }
        moments.squares = squares.number(0).doubleDouble()
        return moments
    }

    /// The sum of a row's terms: number i is added to lane i mod 8, then the lanes from first to last.
    @inline(__always)
    private static func laneSum(
        _ row: UnsafeBufferPointer<Double>, _ term: (SIMD8<Double>) -> SIMD8<Double>
    ) -> Double {
        var lanes = SIMD8<Double>(repeating: 0)
        let whole = row.count & ~7
        for start in stride(from: 0, to: whole, by: 8) {
            lanes += term(
                UnsafeRawPointer(row.baseAddress! + start).loadUnaligned(as: SIMD8<Double>.self))
        }
        for index in whole..<row.count { lanes[index - whole] += term(SIMD8(repeating: row[index]))[0] }
        return (1..<8).reduce(lanes[0]) { $0 + lanes[$1] }
    }
}
