import CLockstepKernels

/// The sums over a log from which every mean and every standard error follows.
///
/// What the kernels sum up for a sequence enters exact sums, so the moments of a log do not depend on the
/// order of its sequences, nor on how it was cut between them and merged again.
struct MismatchMoments: ~Copyable {
    /// Counted tokens.
    var tokens = 0
    /// Tokens the mask leaves out.
    var maskedTokens = 0
    /// Tokens dropped as non-finite.
    var excludedTokens = 0
    /// Sequences with a counted token.
    var sequences = 0
    /// Sequences without.
    var emptySequences = 0
    /// Sequences with mean exp|d| above 2.
    var maskedSequences = 0
    /// Sequences with exp(mean d) outside [0.999, 1.002].
    var outsideSequences = 0
    /// The most counted tokens of a sequence.
    var maxSequenceLength = 0
    /// Max |p - q|.
    var maxAbsProbDiff = -1.0
    /// The token with the largest |d|; none while no token counts.
    var largest: LargestToken?
    /// The exact sums: see `Moment`.
    var sums = ExactSums(count: Moment.count, slots: Moment.slots)
    /// What is about to be added to `sums`.
    private let factors = FactorPairs(count: Moment.slots.count)
    /// Sum of w and of w^2 for the sequence weights w = exp S.
    var weights = ExactSums(count: 2)

    /// The token with the largest |d| of some.
    struct LargestToken: Equatable {
        var magnitude: Double
        /// The identity of its sequence.
        var id: UInt64
        var position: Int

        /// Whether this one is reported and not the other: ties go to the smaller id, then position.
        func leads(_ other: LargestToken) -> Bool {
            if magnitude != other.magnitude { return magnitude > other.magnitude }
            return id != other.id ? id < other.id : position < other.position
        }
    }

    /// |S| of a weight is at most this: a weight beyond enters as e^(2^20) or e^-(2^20).
    static let largestExponent = 0x1p20

    /// ln 0.999 and ln 1.002, as the kernels have them.
    private static let bandMLPerf = -0x1.06466ffffffffp-10...0x1.05e1dffffffffp-9

    /// Adds the probabilities of a span of tokens.
    ///
    /// The kernel's sums are of s - a and g - b with shifts a and b, which keeps their digits. As sums of s,
    /// s^2... they are added without rounding, each product on its own.
    @_optimize(speed)
    mutating func addProbabilities(
        _ found: UnsafePointer<lsk_mismatch_sums>, _ kernels: UnsafePointer<lsk_kernels>
    ) {
        if found.pointee.tokens == 0 { return }
        let span = found.pointee
        let n = Double(span.tokens)
        let (a, b) = (span.sum_shift, span.gap_shift)
        let (aa, ab, bb) = (Split(a, a), Split(a, b), Split(b, b))
        var slot = Moment.probabilitySlots.lowerBound
        func set(_ x: Double, _ y: Double) {
            factors.set(slot, x, y)
            slot += 1
        }
        set(span.sum, 1)
        set(n, a)
        set(span.gap, 1)
        set(n, b)
        // sum s^2 = sum (s - a)^2 + 2 a sum (s - a) + n a^2, and likewise for g^2 and s g.
        set(span.sum_square, 1)
        set(2 * a, span.sum)
        set(n, aa.high)
        set(n, aa.low)
        set(span.gap_square, 1)
        set(2 * b, span.gap)
        set(n, bb.high)
        set(n, bb.low)
        set(span.sum_gap, 1)
        set(a, span.gap)
        set(b, span.sum)
        set(n, ab.high)
        set(n, ab.low)
        sums.addProducts(factors, Moment.probabilitySlots, kernels)
    }

    /// Adds a sequence, whose counted tokens have these sums.
    @_optimize(speed)
    mutating func add(
        _ found: UnsafePointer<lsk_mismatch_sums>, id: UInt64, _ kernels: UnsafePointer<lsk_kernels>
    ) {
        let sequence = found.pointee
        tokens += Int(sequence.tokens)
        sequences += 1
        maxSequenceLength = max(maxSequenceLength, Int(sequence.tokens))
        maxAbsProbDiff = max(maxAbsProbDiff, sequence.largest_gap)
        note(LargestToken(magnitude: sequence.largest, id: id, position: Int(sequence.largest_at)))

        let n = Double(sequence.tokens)
        let averaged = sequence.averaged
        for index in 0..<Average.count {
            let x = averaged[index]
            factors.set(Moment.total + index, x, 1)
            factors.set(Moment.square + index, x, x)
            factors.set(Moment.product + index, x, n)
        }
        factors.set(Moment.ratioCross, sequence.ratio, sequence.ratio_square)
        factors.set(Moment.rolloutCross, sequence.rollout, sequence.log_ratio)

        let (mean, worst) = (sequence.log_ratio / n, sequence.exp_magnitude / n)
        factors.set(Moment.mean, mean, 1)
        factors.set(Moment.meanSquare, mean, mean)
        factors.set(Moment.worst, worst, 1)
        factors.set(Moment.worstSquare, worst, worst)
        if worst > 2 { maskedSequences += 1 }
        if !MismatchMoments.bandMLPerf.contains(mean) { outsideSequences += 1 }

        // What the slope, its error and the spread of S need. n^2 is exact below 2^26 tokens; above, still a
        // function of the sequence alone. A product of three or four factors has two terms.
        let s = sequence.log_ratio
        let n2 = n * n
        let (ns, s2) = (Split(n, s), Split(s, s))
        factors.set(Moment.length2, n, n)
        factors.set(Moment.length3, n2, n)
        factors.set(Moment.length4, n2, n2)
        factors.set(Moment.length2S, n2, s)
        factors.set(Moment.length3S, n2, ns.high)
        factors.set(Moment.lengthS2, n, s2.high)
        factors.set(Moment.length2S2, n2, s2.high)
        factors.set(Moment.s3, s2.high, s)
        factors.set(Moment.s4, s2.high, s2.high)
        let low = Moment.lowSlots.lowerBound
        factors.set(low, n2, ns.low)
        factors.set(low + 1, n, s2.low)
        factors.set(low + 2, n2, s2.low)
        factors.set(low + 3, s2.low, s)
        factors.set(low + 4, 2 * s2.high, s2.low)
        sums.addProducts(factors, 0..<Moment.lowSlots.upperBound, kernels)
        addWeight(s)
    }

    /// A product as the sum of two doubles, exactly unless it is beyond their range.
    private struct Split {
        let high, low: Double

        init(_ x: Double, _ y: Double) {
            high = x * y
            low = (-high).addingProduct(x, y)
        }
    }

    /// Adds w = exp S and w^2, whatever the size of S.
    private mutating func addWeight(_ s: Double) {
        if s.isNaN {
            weights.add(s, to: 0)
            return weights.add(s, to: 1)
        }
        let limit = MismatchMoments.largestExponent
        let (significand, exponent) = exponentialParts(min(max(s, -limit), limit))
        weights.add(significand, times2ToThe: exponent, to: 0)
        weights.addProduct(significand, significand, times2ToThe: 2 * exponent, to: 1)
    }

    /// Takes a token into account as the one with the largest |d|.
    private mutating func note(_ token: LargestToken) {
        if let largest, !token.leads(largest) { return }
        largest = token
    }

    /// The counts that grow with the log.
    private var totals: [Int] { [tokens, maskedTokens, excludedTokens, sequences, emptySequences] }

    /// The largest count there may be: sums of such cannot overflow.
    static let largestTotal = 1 << 48

    /// Throws unless the counts of both parts together are ones that can be held.
    func checkRoom(for other: borrowing MismatchMoments) throws(LockstepError) {
        for (one, another) in zip(totals, other.totals) where one + another > MismatchMoments.largestTotal {
            throw LockstepError(
                .invalidArgument,
                "accumulator: would hold \(one + another) tokens or sequences; 2^48 are the most, so begin "
                    + "another")
        }
    }

    /// Adds the moments of another part of the log.
    mutating func merge(_ other: borrowing MismatchMoments) {
        tokens += other.tokens
        maskedTokens += other.maskedTokens
        excludedTokens += other.excludedTokens
        sequences += other.sequences
        emptySequences += other.emptySequences
        maskedSequences += other.maskedSequences
        outsideSequences += other.outsideSequences
        maxSequenceLength = max(maxSequenceLength, other.maxSequenceLength)
        maxAbsProbDiff = max(maxAbsProbDiff, other.maxAbsProbDiff)
        if let token = other.largest { note(token) }
        sums.merge(other.sums)
        weights.merge(other.weights)
    }
}

/// The sums of a sequence whose averages over tokens are reported: lanes of `lsk_mismatch_sums.averaged`.
enum Average: Int, CaseIterable {
    case logRatio, square, magnitude, k3, ratio, ratioSquare, expMagnitude, probabilityGap
    case rollout, differing, outsideMLPerf, outside1pct, outside5pct, outside10pct

    static let count = Average.allCases.count
}

/// Which exact sum is which.
///
/// With x a sequence's sum of something, n its counted tokens, S its sum of d; s and
/// g the sum p + q and the gap p - q of a token's probabilities.
enum Moment {
    /// Sum of x, of x^2 and of x n, each for all of `Average`.
    static let total = 0
    static let square = Average.count
    static let product = 2 * Average.count
    private static let others = 3 * Average.count
    /// n^2, n^3, n^4.
    static let length2 = others
    static let length3 = others + 1
    static let length4 = others + 2
    /// n^2 S, n^3 S, n S^2, n^2 S^2.
    static let length2S = others + 3
    static let length3S = others + 4
    static let lengthS2 = others + 5
    static let length2S2 = others + 6
    /// S^3, S^4.
    static let s3 = others + 7
    static let s4 = others + 8
    /// A sequence's mean d, and its square; its mean exp|d|, and its square.
    static let mean = others + 9
    static let meanSquare = others + 10
    static let worst = others + 11
    static let worstSquare = others + 12
    /// A sequence's sum r times its sum r^2; its sum ln mu times S.
    static let ratioCross = others + 13
    static let rolloutCross = others + 14
    /// Over tokens: s, g, s^2, g^2, s g.
    static let sum = others + 15
    static let gap = others + 16
    static let sumSquare = others + 17
    static let gapSquare = others + 18
    static let sumGap = others + 19
    /// Number of sums.
    static let count = others + 20

    /// The sum of each slot: first those of a sequence, each once, then its products of which a low part is added
    /// too; behind them, from a multiple of 8 on, those of a span's probabilities, one for each term.
    static let slots =
        Array(0..<sum) + [length3S, lengthS2, length2S2, s3, s4]
        + [Int](repeating: sum, count: probabilitySlots.lowerBound - lowSlots.upperBound)
        + [sum, sum, gap, gap]
        + [Int](repeating: sumSquare, count: 4) + [Int](repeating: gapSquare, count: 4)
        + [Int](repeating: sumGap, count: 5)
    static let lowSlots = sum..<sum + 5
    static let probabilitySlots = (lowSlots.upperBound + 7) / 8 * 8..<(lowSlots.upperBound + 7) / 8 * 8 + 17
}

extension lsk_mismatch_sums {
    /// In the order of `Average`.
    fileprivate var averaged: SIMD16<Double> {
        SIMD16(
            log_ratio, square, magnitude, k3, ratio, ratio_square, exp_magnitude, probability_gap,
            rollout, Double(differing), Double(outside.0), Double(outside.1), Double(outside.2),
            Double(outside.3), 0, 0)
    }
}
