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
        var spans: [MismatchSpan] = []
        var tasks: [Range<Int>] = []
        var first = 0
        var tokens = 0
        // Without columns there may be any number of rows, and nothing to see in them.
        for sequence in 0..<(pair.trainer.columns == 0 ? 0 : pair.sequences) {
            let length = pair.length(of: sequence)
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

    /// Throws the error for the first non-finite counted log-prob of a span.
    func throwNonFinite(in span: MismatchSpan) throws(LockstepError) {
        let row = pair.offsets == nil ? span.sequence : 0
        let column = pair.offsets?[span.sequence] ?? 0
        for position in span.start..<span.start + span.count {
            if let mask = pair.mask, mask.base![row &* mask.rowStride + column + position] == 0 { continue }
            for (matrix, name) in [(pair.trainer, "trainer_log_probs"), (pair.rollout, "rollout_log_probs")] {
                let value = VectorView(matrix.row(row), matrix.format, count: matrix.columns)
                    .double(column + position)
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
    /// Centred second moments of the two probabilities, over all tokens.
    let moments: ProbabilityMoments

    /// Sums all spans; with `bins`, also counts the tokens of each bin (`MismatchHistogram.workerBins`).
    init(
        _ scan: MismatchScan, _ policy: NonFinitePolicy, counting bins: UnsafeMutablePointer<UInt64>? = nil
    ) throws(LockstepError) {
        let storage = try Scratch<lsk_mismatch_sums>(count: scan.spans.count)
        let parts = storage.base
        scan.forEachTask { range, worker in
            let bins = bins.map { $0 + worker * MismatchHistogram.bins }
            for index in range {
                var view = scan.view(scan.spans[index])
                scan.kernels.pointee.mismatch_sums!(parts + index, bins, &view)
            }
        }
        var owners: [Int] = []
        var moments = ProbabilityMoments()
        // The spans of a sequence are added in order, into the places of those already taken up.
        for (index, span) in scan.spans.enumerated() {
            let part = parts[index]
            if part.non_finite > 0, policy == .strict { try scan.throwNonFinite(in: span) }
            moments.add(part)
            if owners.last == span.sequence {
                parts[owners.count - 1].add(part, from: span.start)
            } else {
                parts[owners.count] = part
                owners.append(span.sequence)
            }
        }
        self.parts = storage
        self.owners = owners
        self.moments = moments
    }

    /// The sums of each sequence in `owners`.
    ///
    /// Those of the shifted probabilities mean nothing here: see `moments`.
    var sums: UnsafeBufferPointer<lsk_mismatch_sums> { .init(start: parts.base, count: owners.count) }
}

extension lsk_mismatch_sums {
    /// Adds the sums of a later span of the same sequence, which starts at `start`.
    fileprivate mutating func add(_ part: lsk_mismatch_sums, from start: Int) {
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

/// Centred second moments of s = p + q and g = p - q, p and q being the two probabilities of a token.
///
/// Spans are merged by the pairwise update of Chan, Golub and LeVeque (1979), so no large square is
/// subtracted from another.
struct ProbabilityMoments {
    private var count = 0.0
    private var sumMean = 0.0
    private var gapMean = 0.0
    private var sumSum = 0.0
    private var gapGap = 0.0
    private var sumGap = 0.0

    /// Adds the tokens of a span.
    mutating func add(_ part: lsk_mismatch_sums) {
        guard part.tokens > 0 else { return }
        let n = Double(part.tokens)
        let total = count + n
        let sumStep = part.sum_shift + part.sum / n - sumMean
        let gapStep = part.gap_shift + part.gap / n - gapMean
        let weight = count * n / total
        sumSum += (part.sum_square - part.sum * part.sum / n) + sumStep * sumStep * weight
        gapGap += (part.gap_square - part.gap * part.gap / n) + gapStep * gapStep * weight
        sumGap += (part.sum_gap - part.sum * part.gap / n) + sumStep * gapStep * weight
        sumMean += sumStep * n / total
        gapMean += gapStep * n / total
        count = total
    }

    /// 1 - Pearson's correlation of p and q; NaN if one of them does not vary.
    ///
    /// With S the centred sums of products, S_pp - S_qq = S_sg and S_pp + S_qq - 2 S_pq = S_gg, so
    ///
    ///     1 - rho = (S_gg - (S_sg / (sqrt S_pp + sqrt S_qq))^2) / (2 sqrt(S_pp S_qq))
    ///
    /// in which every term is as small as the gap between the policies.
    var oneMinusPearson: Double {
        let trainer = ((sumSum + gapGap + 2 * sumGap) / 4).squareRoot()
        let rollout = ((sumSum + gapGap - 2 * sumGap) / 4).squareRoot()
        guard trainer > 0, rollout > 0 else { return .nan }
        let scale = sumGap / (trainer + rollout)
        let value = (gapGap - scale * scale) / (2 * trainer * rollout)
        return value < 0 ? 0 : value > 2 ? 2 : value
    }
}
