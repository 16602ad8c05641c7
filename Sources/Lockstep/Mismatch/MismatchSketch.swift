import CLockstepKernels

/// How many tokens have their log ratio in each of 8,193 bins: a sketch of the distribution of d that merges
/// by adding counts.
///
/// A bin is 1/128 of an octave step wide, for 2^-24 <= |d| < 2^8: |d| in [2^e (1 + j / 128), 2^e (1 + (j + 1) /
/// 128)). What is smaller shares the smallest bin of its sign, what is larger the largest; 0 has a bin of its
/// own. `lsk_mismatch.h` says the same, and the kernels count.
struct MismatchSketch: ~Copyable {
    /// Number of counters: the last is the kernels', for tokens that do not count.
    static let bins = Int(LSK_MISMATCH_BINS)
    /// Number of bins that have a meaning.
    static let usedBins = bins - 1
    private static let zero = Int(LSK_MISMATCH_ZERO_BIN)

    /// The counts, in order of d.
    let counts: UnsafeMutablePointer<UInt64>

    init() {
        counts = .allocate(capacity: MismatchSketch.bins)
        counts.initialize(repeating: 0, count: MismatchSketch.bins)
    }

    deinit { counts.deallocate() }

    /// The counts of the bins, in order of d.
    var histogram: [Int] { (0..<MismatchSketch.usedBins).map { Int(counts[$0]) } }

    /// Adds the counts of another sketch.
    func merge(_ other: borrowing MismatchSketch) {
        for bin in 0..<MismatchSketch.bins { counts[bin] &+= other.counts[bin] }
    }

    /// The bin of a value: what the kernels compute.
    ///
    /// A NaN, which no token has, is put into the last.
    static func bin(of d: Double) -> Int {
        if d == 0 { return zero }
        let magnitude = d.magnitude < 0x1p8 ? max(d.magnitude, 0x1p-24) : 0x1.fffffffffffffp7
        let step = Int(magnitude.bitPattern >> 45) - Int(0x1p-24.bitPattern >> 45) + 1
        return d < 0 ? zero - step : zero + step
    }

    /// The magnitudes of a bin other than that of 0: [low, high).
    private static func magnitudes(_ step: Int) -> (low: Double, high: Double) {
        func edge(_ step: Int) -> Double {
            Double(bitPattern: UInt64(Int(0x1p-24.bitPattern >> 45) + step) << 45)
        }
        return (step == 1 ? 0 : edge(step - 1), step == Int(LSK_MISMATCH_HALF_BINS) ? .infinity : edge(step))
    }

    /// The values of a bin, as [lower, upper): the first double in it and the first beyond.
    static func edges(_ bin: Int) -> (lower: Double, upper: Double) {
        if bin == zero { return (0, Double.leastNonzeroMagnitude) }
        let (low, high) = magnitudes((bin - zero).magnitude.asInt)
        // The smallest bins do not hold 0, the largest are open.
        if bin > zero { return (low == 0 ? .leastNonzeroMagnitude : low, high) }
        return (high == .infinity ? -.infinity : (-high).nextUp, low == 0 ? 0 : (-low).nextUp)
    }

    /// The value that stands for a bin: its middle, so within 2^-8 of the magnitude of every value of a bin
    /// that has two ends; 2^-24 or 2^8 for those that are open.
    static func middle(_ bin: Int) -> Double {
        if bin == zero { return 0 }
        let (low, high) = magnitudes((bin - zero).magnitude.asInt)
        let value = low == 0 ? 0x1p-24 : high == .infinity ? 0x1p8 : (low + high) / 2
        return bin < zero ? -value : value
    }

    /// The bins with tokens, as buckets without means.
    func buckets() -> [MismatchBucket] {
        (0..<MismatchSketch.usedBins).filter { counts[$0] > 0 }.map { bin in
            let (lower, upper) = MismatchSketch.edges(bin)
            return MismatchBucket(lower: lower, upper: upper, tokens: Int(counts[bin]))
        }
    }

    /// The reported quantiles of d over the `tokens` counted ones, each order statistic replaced by the middle
    /// of its bin, none beyond `limit` in magnitude; NaN where no token counts.
    func quantiles(tokens: Int, limit: Double) -> [Double] {
        guard tokens > 0 else { return MismatchQuantiles.thousandths.map { _ in .nan } }
        var values: [Int: Double] = [:]
        var below = 0
        let ranks = MismatchQuantiles.ranks(tokens)
        var next = 0
        for bin in 0..<MismatchSketch.usedBins {
            below += Int(counts[bin])
            while next < ranks.count, ranks[next] < below {
                values[ranks[next]] = min(max(MismatchSketch.middle(bin), -limit), limit)
                next += 1
            }
        }
        return MismatchQuantiles.interpolate(values, tokens)
    }
}

extension UInt {
    fileprivate var asInt: Int { Int(self) }
}
