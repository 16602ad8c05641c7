import CLockstepKernels

/// What a profile is taken over.
public enum MismatchAxis: Int32, CaseIterable, Sendable {
    /// How many counted tokens of its sequence came before a token.
    case position = 0
    /// The rollout probability, exp(ln mu).
    case probability = 1
    /// d itself: a histogram.
    case logRatio = 2
}

/// One bucket of a profile: tokens whose axis value is in [lower, upper).
///
/// Means are NaN in an empty bucket.
public struct MismatchBucket: Sendable {
    /// The lower edge, included.
    public var lower: Double
    /// The upper edge, included only in the last bucket.
    public var upper: Double
    /// Counted tokens in the bucket.
    public var tokens = 0
    /// Mean d.
    public var meanLogRatio = Double.nan
    /// Mean |d|.
    public var meanAbsLogRatio = Double.nan
    /// Mean(exp(d) - 1 - d).
    public var k3 = Double.nan
}

extension LogProbPair {
    /// Statistics by bucket of position, of probability, or of the log ratio.
    ///
    /// `edges` are strictly increasing, one more than there are buckets; infinities are allowed at the ends.
    /// Tokens outside all buckets are left out. Fewer than two edges make no bucket.
    ///
    /// *Order*: the sequences are cut into at most 32 runs (a function of the pair alone), each summed token
    /// by token, and the runs added in order.
    public func mismatchProfile(
        over axis: MismatchAxis, edges: [Double], nonFinite policy: NonFinitePolicy = .strict,
        execution: Execution = Execution()
    ) throws(LockstepError) -> [MismatchBucket] {
        try withLockstepFloatMode { () throws(LockstepError) in
            try profile(axis, edges, policy, execution)
        }
    }

    private func profile(
        _ axis: MismatchAxis, _ edges: [Double], _ policy: NonFinitePolicy, _ execution: Execution
    ) throws(LockstepError) -> [MismatchBucket] {
        try check(edges)
        let scan = try MismatchScan(self, execution)
        let buckets = edges.count - 1
        if buckets < 1 { return [] }
        try askForMemory(buckets, bytesEach: MemoryLayout<MismatchBucket>.stride)
        let runs = MismatchRuns(scan.spans, buckets: buckets)
        let sums = try Scratch<BucketSums>(count: runs.count * buckets, filledWith: BucketSums())
        let refused = try Scratch<Int>(count: runs.count, filledWith: -1)
        let workers = max(1, min(scan.threads, runs.count))
        let terms = try Scratch<Double>(count: workers * 3 * MismatchSpan.tokens)
        let counted = try Scratch<UInt8>(count: workers * MismatchSpan.tokens)
        let (sumsBase, refusedBase, termsBase, countedBase) = (
            sums.base, refused.base, terms.base, counted.base
        )
        parallelFor(tasks: runs.count, threads: workers) { run, worker in
            let logRatio = termsBase + worker * 3 * MismatchSpan.tokens
            let k3 = logRatio + MismatchSpan.tokens
            let probability = k3 + MismatchSpan.tokens
            let counted = countedBase + worker * MismatchSpan.tokens
            let sums = sumsBase + run * buckets
            var position = 0
            for index in runs[run] {
                let span = scan.spans[index]
                if span.start == 0 { position = 0 }
                var view = scan.view(span)
                let refused = scan.kernels.pointee.mismatch_terms!(logRatio, k3, probability, counted, &view)
                if refused > 0, policy == .strict {
                    refusedBase[run] = index
                    return
                }
                for token in 0..<span.count where counted[token] != 0 {
                    let value =
                        switch axis {
                        case .position: Double(position)
                        case .probability: probability[token]
                        case .logRatio: logRatio[token]
                        }
                    position += 1
                    guard let bucket = edges.bucket(of: value) else { continue }
                    sums[bucket].add(logRatio: logRatio[token], k3: k3[token])
                }
            }
        }
        for run in 0..<runs.count where refusedBase[run] >= 0 {
            try throwNonFinite(in: scan.spans[refusedBase[run]])
        }
        return (0..<buckets).map { bucket in
            var total = BucketSums()
            for run in 0..<runs.count { total.add(sums.base[run * buckets + bucket]) }
            return MismatchBucket(lower: edges[bucket], upper: edges[bucket + 1], total)
        }
    }

    private func check(_ edges: [Double]) throws(LockstepError) {
        for (index, edge) in edges.enumerated() {
            if edge.isNaN {
                throw LockstepError(.invalidArgument, "edges: edges[\(index)] is NaN; give a number")
            }
            if index > 0, edge <= edges[index - 1] {
                throw LockstepError(
                    .invalidArgument,
                    "edges: edges[\(index)] is \(edge), not above edges[\(index - 1)] = \(edges[index - 1]); "
                        + "edges must increase strictly")
            }
        }
    }
}

/// Runs of whole sequences, at most 32 and about equal in spans: a function of the spans alone, and of the
/// number of buckets where those are so many that a set for each run would be too much memory.
struct MismatchRuns {
    private var starts: [Int] = []

    init(_ spans: [MismatchSpan], buckets: Int) {
        let size = buckets > 1 << 16 ? spans.count : (spans.count + 31) / 32
        for (index, span) in spans.enumerated() where span.start == 0 {
            if starts.isEmpty || index - starts[starts.count - 1] >= size { starts.append(index) }
        }
        starts.append(spans.count)
    }

    var count: Int { starts.count - 1 }

    subscript(run: Int) -> Range<Int> { starts[run]..<starts[run + 1] }
}

/// What a bucket sums up.
struct BucketSums: BitwiseCopyable {
    var tokens = 0
    var logRatio = 0.0
    var magnitude = 0.0
    var k3 = 0.0

    mutating func add(logRatio d: Double, k3: Double) {
        tokens += 1
        logRatio += d
        magnitude += d.magnitude
        self.k3 += k3
    }

    mutating func add(_ other: BucketSums) {
        tokens += other.tokens
        logRatio += other.logRatio
        magnitude += other.magnitude
        k3 += other.k3
    }
}

extension MismatchBucket {
    init(lower: Double, upper: Double, _ sums: BucketSums) {
        self.init(lower: lower, upper: upper, tokens: sums.tokens)
        guard sums.tokens > 0 else { return }
        let n = Double(sums.tokens)
        meanLogRatio = sums.logRatio / n
        meanAbsLogRatio = sums.magnitude / n
        k3 = sums.k3 / n
    }
}

extension [Double] {
    /// The bucket between these edges that holds `value`, the last one with its upper edge; nil outside.
    func bucket(of value: Double) -> Int? {
        guard value >= self[0], value <= self[count - 1] else { return nil }
        var (low, high) = (0, count - 1)
        while high - low > 1 {
            let middle = (low + high) / 2
            if value < self[middle] { high = middle } else { low = middle }
        }
        return low
    }
}
