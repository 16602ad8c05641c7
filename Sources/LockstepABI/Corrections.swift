import CLockstep
import Lockstep

// Section 6 of the header: corrections.

extension lockstep_correction_options: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_correction_options>.size }
}

extension lockstep_correction: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_correction>.size }
}

@_cdecl("lockstep_correct") @implementation
public func lockstep_correct(
    _ weights: UnsafePointer<lockstep_tensor>!, _ kept: UnsafePointer<lockstep_tensor>!,
    _ correction: UnsafeMutablePointer<lockstep_correction>!,
    _ counts: UnsafeMutablePointer<lockstep_rejection_count>!, _ batch: UnsafePointer<lockstep_batch>!,
    _ options: UnsafePointer<lockstep_correction_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        if correction != nil {
            try checkArray(correction, "correction", count: 1)
            try checkGrowable(correction, "correction")
        }
        let given = try read(options, defaults: .defaults)
        let core = try CorrectionOptions(given)
        if counts != nil { try checkArray(counts, "counts", count: core.rejections.count) }
        let checked = try CheckedBatch(batch)
        let report = try checked.batch.correct(
            weights: try checked.output(weights, "weights"), kept: try checked.maskOutput(kept, "kept"),
            options: core, nonFinite: try nonFinitePolicy(given.non_finite),
            execution: try execution(threads: given.threads, given.instruction_set))
        if correction != nil { try write(lockstep_correction(report), to: correction, "correction") }
        for (index, count) in report.rejections.enumerated() {
            counts?[index] = lockstep_rejection_count(count)
        }
    }
}

extension CorrectionOptions {
    init(_ given: lockstep_correction_options) throws(LockstepError) {
        self.init(low: given.low, high: given.high)
        guard let weights = CorrectionWeights(rawValue: given.weights) else {
            throw invalid("options: weights is \(given.weights); see the LOCKSTEP_WEIGHTS constants")
        }
        guard let level = CorrectionLevel(rawValue: given.level) else {
            throw invalid("options: level is \(given.level); see the LOCKSTEP_LEVEL constants")
        }
        guard given.reserved == 0 else {
            throw invalid("options: reserved is \(given.reserved); it must be 0")
        }
        guard given.normalize == 0 || given.normalize == 1 else {
            throw invalid("options: normalize is \(given.normalize); give 0 or 1")
        }
        self.weights = weights
        self.level = level
        logRatioMin = given.log_ratio_min
        logRatioMax = given.log_ratio_max
        normalize = given.normalize == 1
        secondMoment = given.second_moment
        guard (0...1 << 16).contains(given.rejection_count) else {
            throw invalid(
                "options: rejection_count is \(UInt(bitPattern: given.rejection_count)); give 16 at most")
        }
        try checkArray(given.rejections, "options: rejections", count: given.rejection_count)
        for index in 0..<given.rejection_count {
            rejections.append(try Rejection(given.rejections[index], "options: rejections[\(index)]"))
        }
    }
}

extension Rejection {
    init(_ given: lockstep_rejection, _ name: String) throws(LockstepError) {
        guard let statistic = Statistic(rawValue: given.statistic) else {
            throw invalid("\(name): statistic is \(given.statistic); see the LOCKSTEP_STATISTIC constants")
        }
        guard let level = CorrectionLevel(rawValue: given.level) else {
            throw invalid("\(name): level is \(given.level); see the LOCKSTEP_LEVEL constants")
        }
        guard let policies = Policies(rawValue: given.policies) else {
            throw invalid("\(name): policies is \(given.policies); see the LOCKSTEP_POLICIES constants")
        }
        guard let side = Side(rawValue: given.side) else {
            throw invalid("\(name): side is \(given.side); see the LOCKSTEP_SIDE constants")
        }
        self.init(
            statistic, level, low: given.low, high: given.high, policies: policies, side: side)
    }
}

extension lockstep_correction_options {
    static var defaults: lockstep_correction_options {
        let core = CorrectionOptions()
        var options = lockstep_correction_options()
        options.struct_size = UInt32(MemoryLayout<lockstep_correction_options>.size)
        options.weights = core.weights.rawValue
        options.level = core.level.rawValue
        options.low = core.low
        options.high = core.high
        options.log_ratio_min = core.logRatioMin
        options.log_ratio_max = core.logRatioMax
        return options
    }
}

extension lockstep_weight_statistics {
    fileprivate init(_ core: WeightStatistics) {
        self.init(
            units: Int64(core.units), mean: core.mean, std: core.std, min: core.min, max: core.max,
            ess: core.ess)
    }
}

extension lockstep_rejection_count {
    fileprivate init(_ core: RejectionCount) {
        self.init(
            tokens: Int64(core.tokens), sequences: Int64(core.sequences),
            touched_sequences: Int64(core.touchedSequences), clamped: Int64(core.clamped),
            units: Int64(core.units), mean: core.mean, min: core.min, max: core.max)
    }
}

extension lockstep_correction {
    fileprivate init(_ core: CorrectionReport) {
        self.init(
            struct_size: 0, empty: core.isEmpty ? 1 : 0, tokens: Int64(core.tokens),
            masked_tokens: Int64(core.maskedTokens), excluded_tokens: Int64(core.excludedTokens),
            sequences: Int64(core.sequences), empty_sequences: Int64(core.emptySequences),
            rejected_tokens: Int64(core.rejectedTokens), rejected_sequences: Int64(core.rejectedSequences),
            touched_sequences: Int64(core.touchedSequences), clamped: Int64(core.clamped),
            below: Int64(core.below), above: Int64(core.above),
            second_moment_tokens: Int64(core.secondMomentTokens),
            max_sequence_length: Int64(core.maxSequenceLength), mean_sequence_length: core.meanSequenceLength,
            second_moment_cut: core.secondMomentCut, normalizer: core.normalizer,
            ratio: lockstep_weight_statistics(core.ratio), weight: lockstep_weight_statistics(core.weight),
            kept_weight: lockstep_weight_statistics(core.keptWeight))
    }
}
