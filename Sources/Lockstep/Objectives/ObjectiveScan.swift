import CLockstepKernels

/// A pass over the tokens of a batch, sequence by sequence: which of them count, and who works on what.
///
/// Everything is checked here. A sequence is worked on by one thread; which one does not show.
final class ObjectiveScan {
    let batch: TokenBatch
    let options: ObjectiveOptions
    /// One rule, where kernels read it: copying it for each sequence shows.
    let rules: Scratch<lsk_objective_rule>
    var rule: lsk_objective_rule { rules.base.pointee }
    let kernels: UnsafePointer<lsk_kernels>
    let threads: Int
    let sequences: Int
    /// What counts of each sequence.
    let counts: Scratch<lsk_objective_counts>
    /// The ratio of each sequence; empty where it is a token's or was not asked for.
    let levels: Scratch<lsk_objective_level>
    /// The positions of each sequence from its first token that counts to its last, and the kernels' view of them.
    private let extents: Scratch<(first: Int, end: Int)>
    let spans: Scratch<lsk_objective_span>
    private let arrays: Scratch<lsk_objective_arrays>
    private let tasks: [Range<Int>]

    /// A task takes sequences until it has this many tokens.
    private static let taskTokens = 1 << 16

    /// Counts the tokens of a batch, or throws if it lacks something, or has a value that is not finite at a
    /// token that counts and the policy is strict.
    ///
    /// `divergenceOnly`: nothing but the divergence from the reference is wanted. `countsOnly`: the ratios of
    /// sequences, which come with the counts as the tokens are read, are not.
    init(
        _ batch: TokenBatch, _ options: ObjectiveOptions, divergenceOnly: Bool = false,
        countsOnly: Bool = false, _ execution: Execution
    ) throws(LockstepError) {
        try batch.validate()
        rules = try Scratch<lsk_objective_rule>(count: 1, filledWith: options.rule())
        self.batch =
            try divergenceOnly
            ? ObjectiveScan.neededForDivergence(batch) : ObjectiveScan.needed(batch, options)
        self.options = options
        kernels = try execution.kernels()
        threads = try execution.threadCount()
        // Without columns there may be any number of rows, and nothing to see in them.
        sequences = batch.layout.columns == 0 && batch.layout.offsets == nil ? 0 : batch.layout.sequences
        var tasks: [Range<Int>] = []
        var (first, tokens) = (0, 0)
        for sequence in 0..<sequences {
            tokens += batch.layout.length(of: sequence)
            if tokens >= ObjectiveScan.taskTokens || sequence == sequences - 1 {
                tasks.append(first..<sequence + 1)
                (first, tokens) = (sequence + 1, 0)
            }
        }
        self.tasks = tasks
        // Each task writes those of its sequences.
        counts = try Scratch<lsk_objective_counts>(count: sequences)
        extents = try Scratch<(first: Int, end: Int)>(count: sequences)
        spans = try Scratch<lsk_objective_span>(count: sequences)
        arrays = try Scratch<lsk_objective_arrays>(count: 1, filledWith: ObjectiveScan.arrays(self.batch))
        let hasLevels = !divergenceOnly && !countsOnly && rules.base.pointee.level != LSK_RATIO_TOKEN
        levels = try Scratch<lsk_objective_level>(count: hasLevels ? sequences : 0)
        forEachTask { sequences, _ in count(sequences, hasLevels: hasLevels) }
        if options.nonFinite == .exclude { return }
        for sequence in 0..<sequences where counts.base[sequence].non_finite > 0 {
            throw nonFinite(in: sequence)
        }
    }

    /// The parts of a batch that a divergence reads, or an error for one that is missing.
    private static func neededForDivergence(_ batch: TokenBatch) throws(LockstepError) -> TokenBatch {
        var needs = batch
        (needs.trainer, needs.entropies, needs.advantages) = (nil, nil, nil)
        (needs.kept, needs.selected) = (nil, nil)
        try require(batch.current != nil, "current_log_probs", "the divergence is of the current policy")
        try require(batch.reference != nil, "reference_log_probs", "the divergence is from the reference")
        return needs
    }

    /// The parts of a batch that an objective reads, or an error for one that is missing.
    private static func needed(
        _ batch: TokenBatch, _ options: ObjectiveOptions
    ) throws(LockstepError) -> TokenBatch {
        var needs = batch
        try require(batch.current != nil, "current_log_probs", "objectives are of the current policy")
        try require(batch.advantages != nil, "advantages", "every objective needs them")
        if options.needsTrainer {
            try require(batch.trainer != nil, "trainer_log_probs", "the ratio is against them")
        }
        if options.kl == .none {
            needs.reference = nil
        } else {
            try require(batch.reference != nil, "reference_log_probs", "kl is of the reference")
        }
        if options.entropyCoefficient != 0 {
            try require(batch.entropies != nil, "entropies", "entropy_coefficient is not 0")
        }
        if options.term == .klCov {
            try require(batch.selected != nil, "selected", "kl_cov adds its penalty there")
        }
        if options.aggregation == .promptMean {
            try require(batch.groups != nil, "groups", "prompt_mean is by prompt")
        }
        return needs
    }

    /// Number of workers that `forEachSequence` may use: the size of per-worker memory.
    var workers: Int { max(1, min(threads, tasks.count)) }

    /// Runs `body` once for each run of sequences, given its worker.
    func forEachTask(_ body: (_ sequences: Range<Int>, _ worker: Int) -> Void) {
        parallelFor(tasks: tasks.count, threads: workers) { task, worker in body(tasks[task], worker) }
    }

    /// Finds out which tokens of some sequences count, and their ratios where a sequence has one.
    @_optimize(speed)
    private func count(_ sequences: Range<Int>, hasLevels: Bool) {
        // A copy of the batch for each sequence would take longer than a short sequence does.
        let layout = batch.layout
        let advantages = sequenceAdvantages
        let (level, count) = (kernels.pointee.objective_level!, kernels.pointee.objective_count!)
        for sequence in sequences {
            let extent = findExtent(of: sequence, layout)
            extents.base[sequence] = (extent.lowerBound, extent.upperBound)
            let (place, span) = (
                layout.place(of: sequence, position: extent.lowerBound), spans.base + sequence
            )
            lsk_objective_span_at(
                span, arrays.base, Int64(place.row), Int64(place.column), Int64(extent.count),
                advantages?.double(sequence) ?? 0)
            if hasLevels {
                level(levels.base + sequence, counts.base + sequence, span, rules.base)
            } else {
                count(counts.base + sequence, span, rules.base)
            }
        }
    }

    /// The advantages, where each sequence has one.
    private var sequenceAdvantages: VectorView? {
        if case .perSequence(let vector) = batch.advantages { vector } else { nil }
    }

    /// The positions of a sequence from its first token that counts to its last.
    func extent(of sequence: Int) -> Range<Int> {
        extents.base[sequence].first..<extents.base[sequence].end
    }

    private func findExtent(of sequence: Int, _ layout: SequenceLayout) -> Range<Int> {
        var extent = layout.extent(of: sequence)
        guard options.denominator == .kept, !extent.isEmpty, let kept = batch.kept else { return extent }
        let place = layout.place(of: sequence)
        let mask = layout.mask?.address(place)
        let bytes = kept.address(place)
        func counts(_ position: Int) -> Bool {
            bytes[position] != 0 && (mask.map { $0[position] != 0 } ?? true)
        }
        guard let first = extent.first(where: counts) else { return 0..<0 }
        extent = first..<extent.last(where: counts)! + 1
        return extent
    }

    /// The kernels' view of some tokens of a sequence.
    func span(of sequence: Int, _ extent: Range<Int>) -> lsk_objective_span {
        let place = batch.layout.place(of: sequence, position: extent.lowerBound)
        var span = lsk_objective_span()
        lsk_objective_span_at(
            &span, arrays.base, Int64(place.row), Int64(place.column), Int64(extent.count),
            sequenceAdvantages?.double(sequence) ?? 0)
        return span
    }

    /// The kernels' view of the arrays of a batch.
    private static func arrays(_ batch: TokenBatch) -> lsk_objective_arrays {
        let advantages: MatrixView? = if case .perToken(let view) = batch.advantages { view } else { nil }
        let views = (
            batch.current, batch.trainer, batch.reference, batch.entropies, advantages, batch.weights
        )
        func each<Value>(_ value: (MatrixView?) -> Value) -> (Value, Value, Value, Value, Value, Value) {
            (value(views.0), value(views.1), value(views.2), value(views.3), value(views.4), value(views.5))
        }
        var arrays = lsk_objective_arrays()
        arrays.first.input = each { $0?.base }
        arrays.first.format = each { $0?.format.rawValue ?? 0 }
        arrays.size = each { Int64($0?.format.byteCount ?? 0) }
        arrays.row_bytes = each { Int64(($0?.rowStride ?? 0) &* ($0?.format.byteCount ?? 0)) }
        (arrays.first.mask, arrays.mask_row_bytes) = (
            batch.layout.mask?.base, Int64(batch.layout.mask?.rowStride ?? 0)
        )
        (arrays.first.kept, arrays.kept_row_bytes) = (batch.kept?.base, Int64(batch.kept?.rowStride ?? 0))
        (arrays.first.selected, arrays.selected_row_bytes) = (
            batch.selected?.base, Int64(batch.selected?.rowStride ?? 0)
        )
        return arrays
    }

    /// The error for the first value of a sequence that counts and is not finite.
    private func nonFinite(in sequence: Int) -> LockstepError {
        let arrays: [(MatrixView?, String)] = [
            (batch.current, "current_log_probs"), (batch.trainer, "trainer_log_probs"),
            (batch.reference, "reference_log_probs"), (batch.entropies, "entropies"),
            (batch.weights, "weights"),
        ]
        let mask = batch.layout.mask
        for position in extent(of: sequence) {
            let place = batch.layout.place(of: sequence, position: position)
            if let mask, mask.address(place).pointee == 0 { continue }
            if options.denominator == .kept, let kept = batch.kept, kept.address(place).pointee == 0 {
                continue
            }
            var values = arrays.compactMap { (view, name) in
                view.map { (VectorView($0.address(place), $0.format, count: 1).double(0), name) }
            }
            switch batch.advantages {
            case .perToken(let view):
                values.append(
                    (VectorView(view.address(place), view.format, count: 1).double(0), "advantages"))
            case .perSequence(let vector): values.append((vector.double(sequence), "advantages"))
            case nil: break
            }
            for (value, name) in values where !value.isFinite {
                return LockstepError(
                    .nonFinite,
                    "\(name): sequence \(sequence), position \(position) counts but is \(value); mask it, or "
                        + "set non_finite to exclude")
            }
        }
        return LockstepError(.internalError, "sequence \(sequence): a value that is not finite was lost")
    }
}

/// Throws unless a part that is needed is there.
private func require(_ there: Bool, _ name: StaticString, _ why: StaticString) throws(LockstepError) {
    guard there else { throw LockstepError(.invalidArgument, "\(name): is missing; give it, \(why)") }
}
