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
        counts = try Scratch<lsk_objective_counts>(count: sequences, filledWith: .init())
        extents = try Scratch<(first: Int, end: Int)>(count: sequences, filledWith: (0, 0))
        spans = try Scratch<lsk_objective_span>(count: sequences, filledWith: .init())
        let hasLevels = !divergenceOnly && !countsOnly && rules.base.pointee.level != LSK_RATIO_TOKEN
        levels = try Scratch<lsk_objective_level>(count: hasLevels ? sequences : 0, filledWith: .init())
        forEachSequence { sequence, _ in
            let extent = findExtent(of: sequence)
            extents.base[sequence] = (extent.lowerBound, extent.upperBound)
            let span = spans.base + sequence
            span.pointee = self.span(of: sequence, extent)
            if hasLevels {
                kernels.pointee.objective_level!(
                    levels.base + sequence, counts.base + sequence, span, rules.base)
            } else {
                kernels.pointee.objective_count!(counts.base + sequence, span, rules.base)
            }
        }
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

    /// Runs `body` once for each sequence, given its worker.
    func forEachSequence(_ body: (_ sequence: Int, _ worker: Int) -> Void) {
        parallelFor(tasks: tasks.count, threads: workers) { task, worker in
            for sequence in tasks[task] { body(sequence, worker) }
        }
    }

    /// The positions of a sequence from its first token that counts to its last.
    func extent(of sequence: Int) -> Range<Int> {
        extents.base[sequence].first..<extents.base[sequence].end
    }

    private func findExtent(of sequence: Int) -> Range<Int> {
        var extent = batch.layout.extent(of: sequence)
        guard options.denominator == .kept, let kept = batch.kept, !extent.isEmpty else { return extent }
        let place = batch.layout.place(of: sequence)
        let mask = batch.layout.mask?.address(place)
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
        var span = lsk_objective_span()
        span.count = Int64(extent.count)
        if extent.isEmpty { return span }
        let place = batch.layout.place(of: sequence, position: extent.lowerBound)
        span.mask = batch.layout.mask?.address(place)
        span.kept = batch.kept?.address(place)
        span.selected = batch.selected?.address(place)
        span.input.0 = batch.current?.address(place)
        span.input.1 = batch.trainer?.address(place)
        span.input.2 = batch.reference?.address(place)
        span.input.3 = batch.entropies?.address(place)
        span.input.5 = batch.weights?.address(place)
        span.format.0 = batch.current?.format.rawValue ?? 0
        span.format.1 = batch.trainer?.format.rawValue ?? 0
        span.format.2 = batch.reference?.format.rawValue ?? 0
        span.format.3 = batch.entropies?.format.rawValue ?? 0
        span.format.5 = batch.weights?.format.rawValue ?? 0
        switch batch.advantages {
        case .perToken(let view):
            span.input.4 = view.address(place)
            span.format.4 = view.format.rawValue
        case .perSequence(let vector): span.advantage = vector.double(sequence)
        case nil: break
        }
        return span
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
