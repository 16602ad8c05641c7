import CLockstepKernels

/// Exact sums by bucket of position and of probability, over any number of spans.
///
/// The buckets are fixed, so that profiles of parts can be merged; `lsk_mismatch.h` says which they are. What
/// the kernel sums up of a span for a bucket enters exact sums.
struct MismatchProfileSums: ~Copyable {
    static let positions = Int(LSK_POSITION_BUCKETS)
    static let probabilities = Int(LSK_PROBABILITY_BUCKETS)
    static let buckets = positions + probabilities

    /// Tokens in each bucket: positions, then probabilities.
    private let tokens: UnsafeMutablePointer<Int>
    /// Sum of d, of |d| and of k3 for each bucket.
    private(set) var sums: ExactSums
    /// What the kernel writes for a span.
    let span: UnsafeMutablePointer<lsk_mismatch_profile>
    /// What of it is about to be added to `sums`.
    private let values: UnsafeMutablePointer<Double>

    init() {
        tokens = .allocate(capacity: MismatchProfileSums.buckets)
        tokens.initialize(repeating: 0, count: MismatchProfileSums.buckets)
        sums = ExactSums(count: 3 * MismatchProfileSums.buckets)
        span = .allocate(capacity: 1)
        span.initialize(to: lsk_mismatch_profile())
        values = .allocate(capacity: sums.count)
        values.initialize(repeating: 0, count: sums.count)
    }

    deinit {
        tokens.deallocate()
        span.deallocate()
        values.deallocate()
    }

    /// Adds what the kernel wrote to `span`.
    @_optimize(speed)
    mutating func addSpan(_ kernels: UnsafePointer<lsk_kernels>) {
        let raw = UnsafeRawPointer(span)
        let positions = raw + MemoryLayout<lsk_mismatch_profile>.offset(of: \.position)!
        let probabilities = raw + MemoryLayout<lsk_mismatch_profile>.offset(of: \.probability)!
        values.update(repeating: 0, count: sums.count)
        take(positions, MismatchProfileSums.positions, from: 0)
        take(probabilities, MismatchProfileSums.probabilities, from: MismatchProfileSums.positions)
        sums.add(values, kernels)
    }

    @inline(__always)
    private mutating func take(_ raw: UnsafeRawPointer, _ count: Int, from first: Int) {
        // A bucket is four doubles: its tokens, then the sums of d, of k3 and of |d|.
        var bucket = raw.assumingMemoryBound(to: Double.self)
        for number in first..<first + count {
            if bucket[0] != 0 {
                tokens[number] += Int(bucket[0])
                let value = values + 3 * number
                (value[0], value[1], value[2]) = (bucket[1], bucket[3], bucket[2])
            }
            bucket += 4
        }
    }

    /// Adds the sums of another part of the log.
    mutating func merge(_ other: borrowing MismatchProfileSums) {
        for index in 0..<MismatchProfileSums.buckets { tokens[index] += other.tokens[index] }
        sums.merge(other.sums)
    }

    /// The profile by position.
    func byPosition() -> [MismatchBucket] {
        (0..<MismatchProfileSums.positions).map { number in
            bucket(
                number, MismatchProfileSums.positionEdge(number), MismatchProfileSums.positionEdge(number + 1)
            )
        }
    }

    /// The profile by rollout probability.
    func byProbability() -> [MismatchBucket] {
        (0..<MismatchProfileSums.probabilities).map { number in
            bucket(
                MismatchProfileSums.positions + number, MismatchProfileSums.probabilityEdge(number),
                MismatchProfileSums.probabilityEdge(number + 1))
        }
    }

    /// The lower edge of a position bucket: 0, 1, 2, 3, 4, 6, 8, 12...; infinite beyond the last.
    private static func positionEdge(_ number: Int) -> Double {
        if number == positions { return .infinity }
        return number < 2 ? Double(number) : Double((2 + number % 2) << (number / 2 - 1))
    }

    /// The lower edge of a probability bucket: 0, then exp(-64), exp(-48), exp(-32) and so on to exp(-2^-20).
    ///
    /// Infinite beyond the last, because a probability may be above 1 by a rounding.
    private static func probabilityEdge(_ number: Int) -> Double {
        if number == 0 { return 0 }
        if number == probabilities { return .infinity }
        let step = probabilities - 2 - number + 1  // half octaves above 2^-20
        return exponential(
            -Double(sign: .plus, exponent: step / 2 - 20, significand: step % 2 == 0 ? 1 : 1.5))
    }

    private func bucket(_ index: Int, _ lower: Double, _ upper: Double) -> MismatchBucket {
        var bucket = MismatchBucket(lower: lower, upper: upper, tokens: tokens[index])
        if tokens[index] == 0 { return bucket }
        let n = Double(tokens[index])
        bucket.meanLogRatio = sums.value(3 * index) / n
        bucket.meanAbsLogRatio = sums.value(3 * index + 1) / n
        bucket.k3 = sums.value(3 * index + 2) / n
        return bucket
    }

    /// Tokens of each bucket, then the sums.
    func write(to out: inout ByteWriter) {
        for index in 0..<MismatchProfileSums.buckets { out.append(tokens[index]) }
        sums.write(to: &out)
    }

    mutating func read(from body: inout ByteReader) throws(LockstepError) {
        for index in 0..<MismatchProfileSums.buckets { tokens[index] = try body.readTotal() }
        try sums.read(from: &body, places: -34...35)
    }

    /// Whether both profiles are of so many tokens.
    func isOf(_ count: Int) -> Bool {
        (0..<MismatchProfileSums.positions).reduce(0) { $0 + tokens[$1] } == count
            && (MismatchProfileSums.positions..<MismatchProfileSums.buckets).reduce(0) { $0 + tokens[$1] }
                == count
    }
}
