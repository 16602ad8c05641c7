import CLockstepKernels

extension TokenBatch {
    /// Weighs the tokens of the batch, and says which of them to keep.
    ///
    /// - Parameters:
    ///   - weights: fp32 or fp64 in the layout of the batch, written: 0 where a token does not count. A token that
    ///     is rejected keeps its weight.
    ///   - kept: written: 1 where a token counts and no rule rejects it.
    ///   - options: weights, bounds, and who is left out.
    ///   - policy: what to do with a NaN or infinity at a token that counts.
    ///   - execution: threads and instruction set; the result does not depend on them.
    /// - Throws: `.invalidArgument` for parts that are missing or do not fit; `.nonFinite` naming sequence and
    ///   position. Nothing was written then.
    /// - Returns: what the correction did. If every token was rejected it is empty, and no error.
    ///
    /// *Complexity*: two passes over the tokens; one more if weights are normalised, one if there is a second
    /// moment. Extra memory: none for tokens, but 8 bytes for each with a d^2 of `secondMoment` or more.
    public func correct(
        weights: MutableMatrixView? = nil, kept: MutableMaskView? = nil, options: CorrectionOptions = .init(),
        nonFinite policy: NonFinitePolicy = .strict, execution: Execution = .init()
    ) throws(LockstepError) -> CorrectionReport {
        try options.validate()
        try validate()
        let pass = try CorrectionPass(self, options, execution)
        try pass.check(weights, kept)
        return try withLockstepFloatMode { () throws(LockstepError) in
            if policy == .strict { try pass.checkFinite() }
            var rule = options.rule()
            if options.normalize {
                // Weights alone: what is rejected keeps its weight, and its place in the mean.
                rule.rejection_count = 0
                let weight = try pass.run(rule, nil, nil).weight
                rule.rejection_count = Int64(options.rejections.count)
                if weight.mean > 0 { rule.divisor = weight.mean }
            }
            if options.secondMoment > 0 {
                rule.second_moment_cut = try pass.secondMomentCut(below: options.secondMoment)
            }
            var report = try pass.run(rule, weights, kept)
            report.normalizer = rule.divisor
            report.secondMomentCut = rule.second_moment_cut
            return report
        }
    }
}

/// What a correction reads, and how it goes through the sequences.
struct CorrectionPass {
    let layout: SequenceLayout
    let trainer: MatrixView
    let rollout: MatrixView
    /// nil unless a rule compares it.
    let current: MatrixView?
    /// nil unless a rule asks for its sign.
    let advantages: TokenValues?
    let kernels: UnsafePointer<lsk_kernels>
    let threads: Int

    init(
        _ batch: TokenBatch, _ options: CorrectionOptions, _ execution: Execution
    ) throws(LockstepError) {
        func missing(_ name: String, _ reason: String) -> LockstepError {
            LockstepError(.invalidArgument, "\(name): is missing; \(reason)")
        }
        guard let trainer = batch.trainer else {
            throw missing("trainer_log_probs", "a correction compares them with rollout_log_probs")
        }
        guard let rollout = batch.rollout else {
            throw missing("rollout_log_probs", "a correction compares trainer_log_probs with them")
        }
        let current = options.rejections.firstIndex { $0.policies != .trainerRollout }
        if let current, batch.current == nil {
            throw missing("current_log_probs", "rejections[\(current)] compares them")
        }
        let sided = options.rejections.firstIndex { $0.side != .both }
        if let sided, batch.advantages == nil {
            throw missing("advantages", "the side of rejections[\(sided)] depends on their sign")
        }
        layout = batch.layout
        self.trainer = trainer
        self.rollout = rollout
        self.current = current == nil ? nil : batch.current
        advantages = sided == nil ? nil : batch.advantages
        kernels = try execution.kernels()
        threads = try execution.threadCount()
    }

    /// Throws unless outputs have the shape of the batch.
    func check(_ weights: MutableMatrixView?, _ kept: MutableMaskView?) throws(LockstepError) {
        func fits(_ rows: Int, _ columns: Int, _ name: String) throws(LockstepError) {
            guard rows == layout.rows, columns == layout.columns else {
                throw LockstepError(
                    .invalidArgument,
                    "\(name): shape is [\(rows) x \(columns)] but the batch is [\(layout.rows) x "
                        + "\(layout.columns)]; give one value for each token")
            }
        }
        if let weights {
            try fits(weights.rows, weights.columns, "weights")
            guard [.fp32, .fp64].contains(weights.format) else {
                throw LockstepError(
                    .invalidArgument, "weights: format is \(weights.format); give fp32 or fp64")
            }
        }
        if let kept { try fits(kept.rows, kept.columns, "kept") }
    }

    /// The kernels' view of some tokens of a sequence.
    @_optimize(speed)
    func span(of sequence: Int, _ positions: Range<Int>) -> lsk_correction_span {
        let place = layout.place(of: sequence, position: positions.lowerBound)
        var span = lsk_correction_span()
        span.log_probs = (trainer.address(place), rollout.address(place), current?.address(place))
        span.formats = (trainer.format.rawValue, rollout.format.rawValue, current?.format.rawValue ?? 0)
        switch advantages {
        case .perToken(let values):
            span.advantages = values.address(place)
            span.advantage_format = values.format.rawValue
            span.advantage_stride = 1
        case .perSequence(let values):
            span.advantages = values.base.map { $0 + sequence &* values.stride &* values.format.byteCount }
            span.advantage_format = values.format.rawValue
        case nil: break
        }
        span.mask = layout.mask?.address(place)
        span.count = Int64(positions.count)
        return span
    }

    /// Runs of sequences for the threads; none without columns, when there may be any number of rows.
    var tasks: [Range<Int>] { layout.columns == 0 ? [] : layout.sequenceTasks() }

    /// Throws for the first value that is not finite at a token that counts.
    func checkFinite() throws(LockstepError) {
        let tasks = tasks
        let refused = try Scratch<Int>(count: tasks.count, filledWith: -1)
        let refusals = refused.base
        parallelFor(tasks: tasks.count, threads: threads) { task, _ in
            for sequence in tasks[task] {
                var span = span(of: sequence, layout.extent(of: sequence))
                if span.count > 0, kernels.pointee.correction_check!(&span) > 0 {
                    refusals[task] = sequence
                    return
                }
            }
        }
        for task in 0..<tasks.count where refusals[task] >= 0 { try throwNonFinite(in: refusals[task]) }
    }

    /// Throws the error for the first value of a sequence that counts and is not finite.
    private func throwNonFinite(in sequence: Int) throws(LockstepError) {
        for position in layout.extent(of: sequence) {
            let place = layout.place(of: sequence, position: position)
            if let mask = layout.mask, mask.address(place).pointee == 0 { continue }
            var found: [(value: Double, name: String)] = []
            for (view, name) in [
                (trainer, "trainer_log_probs"), (rollout, "rollout_log_probs"),
                (current, "current_log_probs"),
            ] as [(MatrixView?, String)] {
                guard let view else { continue }
                found.append((VectorView(view.address(place), view.format, count: 1).double(0), name))
            }
            switch advantages {
            case .perToken(let view):
                found.append((VectorView(view.address(place), view.format, count: 1).double(0), "advantages"))
            case .perSequence(let values): found.append((values.double(sequence), "advantages"))
            case nil: break
            }
            for (value, name) in found where !value.isFinite {
                throw LockstepError(
                    .nonFinite,
                    "\(name): is \(value) at sequence \(sequence), position \(position); mask the token out, or "
                        + "use the non_finite option exclude")
            }
        }
    }

    /// Corrects all sequences; writes what is given.
    func run(
        _ rule: lsk_correction_rule, _ weights: MutableMatrixView?, _ kept: MutableMaskView?
    ) throws(LockstepError) -> CorrectionReport {
        let tasks = tasks
        let workers = max(1, min(threads, tasks.count))
        let rejections = Int(rule.rejection_count)
        let found = try Scratch<lsk_correction_sums>(count: workers, filledWith: lsk_correction_sums())
        let sums = found.base
        let totals = UnsafeMutablePointer<CorrectionTotals>.allocate(capacity: workers)
        for worker in 0..<workers {
            (totals + worker).initialize(to: CorrectionTotals(rejections: rejections))
        }
        defer {
            totals.deinitialize(count: workers)
            totals.deallocate()
        }
        parallelFor(tasks: tasks.count, threads: workers) { task, worker in
            withUnsafePointer(to: rule) { rule in
                for sequence in tasks[task] {
                    correct(sequence, rule, weights, kept, sums + worker)
                    totals[worker].add(sums + worker, length: layout.length(of: sequence), kernels)
                }
            }
        }
        if layout.columns == 0 { totals[0].addEmpty(layout.sequences) }
        for worker in 1..<max(workers, 1) { totals[0].merge(totals[worker]) }
        return totals[0].finished()
    }

    @_optimize(speed)
    private func correct(
        _ sequence: Int, _ rule: UnsafePointer<lsk_correction_rule>, _ weights: MutableMatrixView?,
        _ kept: MutableMaskView?, _ sums: UnsafeMutablePointer<lsk_correction_sums>
    ) {
        let extent = layout.extent(of: sequence)
        let length = layout.length(of: sequence)
        if length == 0 {
            sums.pointee = lsk_correction_sums()
            return
        }
        let start = layout.place(of: sequence)
        /// What is before and behind the tokens that count is 0.
        func clear(_ base: UnsafeMutableRawPointer, size: Int) {
            let behind = length - extent.upperBound
            if extent.lowerBound > 0 { base.clear(byteCount: extent.lowerBound * size) }
            if behind > 0 { (base + extent.upperBound * size).clear(byteCount: behind * size) }
        }
        if let weights { clear(weights.address(start), size: weights.format.byteCount) }
        if let kept { clear(kept.address(start), size: 1) }
        let first = layout.place(of: sequence, position: extent.lowerBound)
        var span = span(of: sequence, extent)
        kernels.pointee.correct_sequence!(
            sums, weights?.address(first), weights?.format.rawValue ?? 0, kept?.address(first), &span, rule)
    }
}
