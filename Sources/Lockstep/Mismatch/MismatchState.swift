import CLockstepKernels

/// What a state keeps beside what a report needs.
struct MismatchExtent: Equatable {
    /// Count the bins of the sketch.
    var sketch = true
    /// Keep `MismatchDetails`.
    var details = false
    /// Keep every d that is not 0, for exact quantiles.
    var exactQuantiles = false

    /// Whether all that this extent has is in the other too.
    func isWithin(_ other: MismatchExtent) -> Bool {
        (other.sketch || !sketch) && (other.details || !details) && (other.exactQuantiles || !exactQuantiles)
    }
}

/// What an accumulator offers beside the report.
struct MismatchDetails: ~Copyable {
    var profile = MismatchProfileSums()
    var histograms = SequenceHistograms()
    var sample = SequenceSample()
    var worst = WorstTokens()
    var worstSequences = WorstSequences()
    /// What speaks for which cause.
    var evidence = EvidenceSums()

    /// Adds a sequence, its spans apart.
    @inline(never)
    mutating func add(_ sums: UnsafePointer<lsk_mismatch_sums>, id: UInt64) {
        histograms.add(tokens: Int(sums.pointee.tokens), logRatio: sums.pointee.log_ratio)
        let sequence = SampledSequence(id: id, mismatch: SequenceMismatch(sums.pointee))
        sample.add(sequence)
        worstSequences.add(sequence)
    }

    /// Adds the details of another part of the log.
    mutating func merge(_ other: borrowing MismatchDetails) {
        profile.merge(other.profile)
        histograms.merge(other.histograms)
        sample.merge(other.sample)
        worst.merge(other.worst)
        worstSequences.merge(other.worstSequences)
        evidence.merge(other.evidence)
    }
}

/// How the sequences of a log are called.
enum SequenceIDs {
    /// By their index in the log, counted from a start.
    case index(from: UInt64)
    /// By given numbers.
    case given(TokenView)

    /// The identity of the sequence with this index in the log.
    func callAsFunction(_ sequence: Int) -> UInt64 {
        switch self {
        case .index(let start): start &+ UInt64(sequence)
        case .given(let ids): UInt64(bitPattern: Int64(ids[sequence]))
        }
    }
}

/// Room for what the kernels find in a sequence, and in a later span of it.
///
/// Copies would take longer than a short sequence does.
private struct FoundSums: ~Copyable {
    let sums = UnsafeMutablePointer<lsk_mismatch_sums>.allocate(capacity: 2)
    let evidence = UnsafeMutablePointer<lsk_evidence>.allocate(capacity: 2)

    init() {
        sums.initialize(repeating: lsk_mismatch_sums(), count: 2)
        evidence.initialize(repeating: lsk_evidence(), count: 2)
    }

    deinit {
        sums.deallocate()
        evidence.deallocate()
    }
}

/// All that is known of a part of a log.
///
/// States of parts merge, in any order, into the state of the whole.
struct MismatchState: ~Copyable {
    let extent: MismatchExtent
    var moments = MismatchMoments()
    let sketch = MismatchSketch()
    /// Every d that is not 0, in no order; empty unless `extent` asks for them.
    var values = Growing<Double>()
    /// Whether memory for them was lacking, in a thread that cannot throw.
    private var lacksMemory = false
    /// Unused unless `extent` asks for it.
    var details = MismatchDetails()
    /// What the kernels write.
    private let found = FoundSums()

    /// The state of an empty log.
    init(_ extent: MismatchExtent) { self.extent = extent }

    /// The state of a log.
    ///
    /// A sequence is the atom: what the kernels sum up for it, in their fixed order, enters exact sums. So
    /// neither which thread took a sequence, nor in which order, can show.
    init(
        of pair: LogProbPair, ids: SequenceIDs, _ extent: MismatchExtent, _ policy: NonFinitePolicy,
        _ execution: Execution
    ) throws(LockstepError) {
        self.init(extent)
        let (kernels, threads) = (try execution.kernels(), try execution.threadCount())
        if pair.trainer.columns == 0 {
            // There may be any number of rows, and nothing to see in them.
            moments.emptySequences = pair.sequences
            return
        }
        let tasks = pair.layout.sequenceTasks()
        let workers = max(1, min(threads, tasks.count))
        let refused = try Scratch<Refusal>(count: tasks.count, filledWith: Refusal())
        let refusals = refused.base
        let states = UnsafeMutablePointer<MismatchState>.allocate(capacity: workers)
        for worker in 0..<workers { (states + worker).initialize(to: MismatchState(extent)) }
        parallelFor(tasks: tasks.count, threads: workers) { task, worker in
            for sequence in tasks[task] {
                if let span = states[worker].add(sequence, of: pair, ids(sequence), policy, kernels) {
                    refusals[task] = Refusal(sequence: sequence, start: span.start, count: span.count)
                    return
                }
            }
        }
        defer {
            states.deinitialize(count: workers)
            states.deallocate()
        }
        for task in 0..<tasks.count where refusals[task].count > 0 {
            let span = refusals[task]
            try pair.throwNonFinite(
                in: MismatchSpan(sequence: span.sequence, start: span.start, count: span.count))
        }
        for worker in 0..<workers where states[worker].lacksMemory {
            throw LockstepError(.outOfMemory, "8 bytes for each log ratio that is not 0 cannot be had")
        }
        for worker in 0..<workers { try merge(states[worker]) }
    }

    /// The span with a log-prob that is not finite, where such is an error.
    private struct Refusal: BitwiseCopyable {
        var sequence = 0
        var start = 0
        var count = 0
    }

    /// Adds a sequence; returns the span in which a counted log-prob is not finite, if that is an error.
    @_optimize(speed)
    private mutating func add(
        _ sequence: Int, of pair: LogProbPair, _ id: UInt64, _ policy: NonFinitePolicy,
        _ kernels: UnsafePointer<lsk_kernels>
    ) -> MismatchSpan? {
        let length = pair.layout.length(of: sequence)
        if length == 0 {
            moments.emptySequences += 1
            return nil
        }
        let profile = extent.details ? details.profile.span : nil
        let counts = extent.sketch ? sketch.counts : nil
        profile?.pointee.before = 0
        let (sums, evidence) = (found.sums, found.evidence)
        var start = 0
        while start < length {
            defer { start += MismatchSpan.tokens }
            let count = min(MismatchSpan.tokens, length - start)
            let (part, evidencePart) = start == 0 ? (sums, evidence) : (sums + 1, evidence + 1)
            var view = pair.tokens(of: sequence, from: start, count: count)
            if extent.details {
                let ends = MismatchState.ends(start: start, count: count, length: length)
                kernels.pointee.mismatch_evidence!(
                    part, counts, profile, evidencePart, details.evidence.octaves, ends, &view)
                if start > 0 { evidence.pointee.add(evidencePart.pointee) }
            } else {
                kernels.pointee.mismatch_sums!(part, counts, profile, &view)
            }
            if part.pointee.non_finite > 0, policy == .strict {
                return MismatchSpan(sequence: sequence, start: start, count: count)
            }
            moments.addProbabilities(part, kernels)
            if extent.details {
                details.profile.addSpan(kernels)
                details.worst.add(view, largest: part.pointee.largest, id: id, start: start)
            }
            if extent.exactQuantiles, part.pointee.differing > 0 { keepValues(&view, kernels) }
            if start > 0 { sums.pointee.add(part.pointee, from: start) }
        }
        if extent.details, !details.evidence.add(evidence, kernels) {
            takeOctavesBack(sequence, of: pair, kernels)
        }
        let (tokens, excluded) = (Int(sums.pointee.tokens), Int(sums.pointee.non_finite))
        moments.excludedTokens += excluded
        moments.maskedTokens += length - tokens - excluded
        if tokens == 0 {
            moments.emptySequences += 1
            return nil
        }
        moments.add(sums, id: id, kernels)
        if extent.details { details.add(sums, id: id) }
        return nil
    }

    /// Where in its sequence a span is, for the kernel.
    private static func ends(start: Int, count: Int, length: Int) -> Int32 {
        Int32(start == 0 ? LSK_SPAN_STARTS_SEQUENCE : 0)
            | Int32(start + count == length ? LSK_SPAN_ENDS_SEQUENCE : 0)
    }

    /// Takes the octaves of a misaligned sequence back: so rare that they are counted again for it.
    private func takeOctavesBack(
        _ sequence: Int, of pair: LogProbPair, _ kernels: UnsafePointer<lsk_kernels>
    ) {
        let length = pair.layout.length(of: sequence)
        var sums = lsk_mismatch_sums()
        var part = lsk_evidence()
        withUnsafeTemporaryAllocation(of: UInt64.self, capacity: EvidenceSums.room) { taken in
            taken.initialize(repeating: 0)
            for start in stride(from: 0, to: length, by: MismatchSpan.tokens) {
                let count = min(MismatchSpan.tokens, length - start)
                var view = pair.tokens(of: sequence, from: start, count: count)
                let ends = MismatchState.ends(start: start, count: count, length: length)
                kernels.pointee.mismatch_evidence!(&sums, nil, nil, &part, taken.baseAddress!, ends, &view)
            }
            details.evidence.subtract(taken.baseAddress!)
        }
    }

    /// Keeps every d of a span that is not 0.
    private mutating func keepValues(
        _ view: inout lsk_mismatch_span, _ kernels: UnsafePointer<lsk_kernels>
    ) {
        withUnsafeTemporaryAllocation(of: Double.self, capacity: MismatchSpan.tokens + 1) { found in
            let count = kernels.pointee.mismatch_select!(
                found.baseAddress!, MismatchState.allButZero, Int64(MismatchState.allButZero.count), &view)
            do throws(LockstepError) {
                try values.append(contentsOf: UnsafeBufferPointer(rebasing: found.prefix(Int(count))))
            } catch { lacksMemory = true }
        }
    }

    /// Every bin but that of 0 and that of tokens that do not count.
    private static let allButZero = [
        lsk_bin_range(first: 0, count: UInt32(LSK_MISMATCH_ZERO_BIN)),
        lsk_bin_range(first: Int32(LSK_MISMATCH_ZERO_BIN) + 1, count: UInt32(LSK_MISMATCH_HALF_BINS)),
    ]

    /// Adds the state of another part of the log, whose extent is not less.
    ///
    /// Throws, with nothing added, if there is no memory for the values.
    mutating func merge(_ other: borrowing MismatchState) throws(LockstepError) {
        if extent.exactQuantiles { try values.append(contentsOf: other.values.elements) }
        moments.merge(other.moments)
        if extent.sketch { sketch.merge(other.sketch) }
        if extent.details { details.merge(other.details) }
    }

    /// Every statistic; the quantiles are those of the sketch, or exact where every d was kept, or NaN without both.
    func mismatch() -> Mismatch {
        var mismatch = moments.mismatch()
        guard extent.sketch else { return mismatch }
        mismatch.logRatioQuantiles =
            extent.exactQuantiles
            ? MismatchQuantiles.exact(of: values.elements, zeros: moments.tokens - values.count)
            : sketch.quantiles(tokens: moments.tokens, limit: mismatch.maxAbsLogRatio)
        return mismatch
    }
}
