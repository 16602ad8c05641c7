import CLockstepKernels

/// A run of tokens of one sequence: the unit in which the kernels sum, and so part of what fixes the bits.
struct MismatchSpan {
    /// The most tokens of a span; a longer sequence is cut at multiples of it.
    static let tokens = 4096

    let sequence: Int
    /// Index in the sequence of the first token.
    let start: Int
    let count: Int
}

/// A pass over all tokens of a pair: which spans there are, and who works on which.
///
/// The spans depend on the pair alone. Tasks (runs of spans) depend on nothing either, but only hand out
/// work: what a span gives does not depend on the task, the thread or the instruction set that ran it.
struct MismatchScan {
    let pair: LogProbPair
    let spans: [MismatchSpan]
    let kernels: UnsafePointer<lsk_kernels>
    let threads: Int
    private let tasks: [Range<Int>]

    /// A task takes spans until it has this many tokens.
    private static let taskTokens = 1 << 17

    init(_ pair: LogProbPair, _ execution: Execution) throws(LockstepError) {
        self.pair = pair
        kernels = try execution.kernels()
        threads = try execution.threadCount()
        let sequences = pair.trainer.columns == 0 ? 0 : pair.sequences
        let room = (0..<sequences).reduce(0) {
            $0 + (pair.layout.length(of: $1) + MismatchSpan.tokens - 1) / MismatchSpan.tokens
        }
        try askForMemory(room, bytesEach: MemoryLayout<MismatchSpan>.stride)
        var spans: [MismatchSpan] = []
        spans.reserveCapacity(room)
        var tasks: [Range<Int>] = []
        var first = 0
        var tokens = 0
        // Without columns there may be any number of rows, and nothing to see in them.
        for sequence in 0..<sequences {
            let length = pair.layout.length(of: sequence)
            for start in stride(from: 0, to: length, by: MismatchSpan.tokens) {
                let count = min(MismatchSpan.tokens, length - start)
                spans.append(MismatchSpan(sequence: sequence, start: start, count: count))
                tokens += count
                if tokens >= MismatchScan.taskTokens {
                    tasks.append(first..<spans.count)
                    first = spans.count
                    tokens = 0
                }
            }
        }
        if first < spans.count { tasks.append(first..<spans.count) }
        self.spans = spans
        self.tasks = tasks
    }

    /// Number of workers that `forEachTask` may use: the size of per-worker scratch.
    var workers: Int { max(1, min(threads, tasks.count)) }

    /// Runs `body` once for each task, given its spans and its worker.
    func forEachTask(_ body: (_ spans: Range<Int>, _ worker: Int) -> Void) {
        parallelFor(tasks: tasks.count, threads: workers) { task, worker in body(tasks[task], worker) }
    }

    /// The kernel's view of a span.
    func view(_ span: MismatchSpan) -> lsk_mismatch_span {
        pair.tokens(of: span.sequence, from: span.start, count: span.count)
    }
}

extension LogProbPair {
    /// Throws the error for the first non-finite counted log-prob of a span.
    func throwNonFinite(in span: MismatchSpan) throws(LockstepError) {
        for position in span.start..<span.start + span.count {
            let place = layout.place(of: span.sequence, position: position)
            if let mask = layout.mask, mask.address(place).pointee == 0 { continue }
            for (matrix, name) in [(trainer, "trainer_log_probs"), (rollout, "rollout_log_probs")] {
                let value = VectorView(matrix.address(place), matrix.format, count: 1).double(0)
                if value.isFinite { continue }
                throw LockstepError(
                    .nonFinite,
                    "\(name): sequence \(span.sequence), position \(position) counts but is \(value); mask it, "
                        + "or set non_finite to exclude")
            }
        }
    }
}

/// What a scan has summed up: one record for each sequence that has tokens, in the order of sequences.
struct MismatchSequences: ~Copyable {
    private let parts: Scratch<lsk_mismatch_sums>
    /// The index of each record's sequence.
    let owners: [Int]

    /// Sums all spans.
    init(_ scan: MismatchScan, _ policy: NonFinitePolicy) throws(LockstepError) {
        let storage = try Scratch<lsk_mismatch_sums>(count: scan.spans.count)
        let parts = storage.base
        scan.forEachTask { range, _ in
            for index in range {
                var view = scan.view(scan.spans[index])
                scan.kernels.pointee.mismatch_sums!(parts + index, nil, nil, &view)
            }
        }
        try askForMemory(scan.spans.count, bytesEach: MemoryLayout<Int>.stride)
        var owners: [Int] = []
        owners.reserveCapacity(scan.spans.count)
        // The spans of a sequence are added in order, into the places of those already taken up.
        for (index, span) in scan.spans.enumerated() {
            let part = parts[index]
            if part.non_finite > 0, policy == .strict { try scan.pair.throwNonFinite(in: span) }
            if owners.last == span.sequence {
                parts[owners.count - 1].add(part, from: span.start)
            } else {
                parts[owners.count] = part
                owners.append(span.sequence)
            }
        }
        self.parts = storage
        self.owners = owners
    }

    /// The sums of each sequence in `owners`; those of the shifted probabilities mean nothing here.
    var sums: UnsafeBufferPointer<lsk_mismatch_sums> { .init(start: parts.base, count: owners.count) }
}

extension lsk_mismatch_sums {
    /// Adds the sums of a later span of the same sequence, which starts at `start`.
    ///
    /// The sums of the shifted probabilities are left alone.
    mutating func add(_ part: lsk_mismatch_sums, from start: Int) {
        tokens += part.tokens
        non_finite += part.non_finite
        differing += part.differing
        outside.0 += part.outside.0
        outside.1 += part.outside.1
        outside.2 += part.outside.2
        outside.3 += part.outside.3
        log_ratio += part.log_ratio
        square += part.square
        magnitude += part.magnitude
        k3 += part.k3
        ratio += part.ratio
        ratio_square += part.ratio_square
        exp_magnitude += part.exp_magnitude
        probability_gap += part.probability_gap
        rollout += part.rollout
        if part.largest > largest {
            largest = part.largest
            largest_at = part.largest_at + Int64(start)
        }
        largest_gap = part.largest_gap > largest_gap ? part.largest_gap : largest_gap
    }
}
