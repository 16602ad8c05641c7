import CLockstep
import Lockstep

// Section 8 of the header: objectives.

extension lockstep_objective_options: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_objective_options>.size }
}

extension lockstep_objective_report: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_objective_report>.size }
}

extension lockstep_covariance_options: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_covariance_options>.size }
}

/// What a handle holds.
private final class ObjectiveHandle {
    let objective: Objective
    let execution: Execution

    init(_ options: UnsafePointer<lockstep_objective_options>?) throws(LockstepError) {
        let (objective, execution) = try objectiveOptions(options)
        self.objective = try Objective(objective)
        self.execution = execution
    }
}

@_cdecl("lockstep_objective_loss") @implementation
public func lockstep_objective_loss(
    _ report: UnsafeMutablePointer<lockstep_objective_report>!,
    _ d_log_probs: UnsafePointer<lockstep_tensor>!, _ d_entropies: UnsafePointer<lockstep_tensor>!,
    _ batch: UnsafePointer<lockstep_batch>!, _ options: UnsafePointer<lockstep_objective_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try checkGrowable(report, "report")
        let (options, execution) = try objectiveOptions(options)
        let checked = try CheckedBatch(batch)
        let found = try Objective.loss(
            options, of: checked.batch, gradient: checked.output(d_log_probs, "d_log_probs"),
            entropyGradient: checked.output(d_entropies, "d_entropies"), execution: execution)
        try write(lockstep_objective_report(found), to: report, "report")
    }
}

@_cdecl("lockstep_objective_create") @implementation
public func lockstep_objective_create(
    _ objective: UnsafeMutablePointer<OpaquePointer?>!,
    _ options: UnsafePointer<lockstep_objective_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        guard let objective else { throw invalid("objective is NULL; give the address of a pointer") }
        objective.pointee = retained(try ObjectiveHandle(options))
    }
}

@_cdecl("lockstep_objective_destroy") @implementation
public func lockstep_objective_destroy(_ objective: OpaquePointer!) {
    release(objective)
}

@_cdecl("lockstep_objective_count") @implementation
public func lockstep_objective_count(
    _ objective: OpaquePointer!, _ batch: UnsafePointer<lockstep_batch>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let handle = try handle(objective)
        try handle.objective.count(try CheckedBatch(batch).batch, execution: handle.execution)
    }
}

@_cdecl("lockstep_objective_counted") @implementation
public func lockstep_objective_counted(
    _ counts: UnsafeMutablePointer<lockstep_objective_counts>!, _ objective: OpaquePointer!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let found = try handle(objective).objective.counts
        try checkArray(counts, "counts", count: 1)
        counts.pointee = lockstep_objective_counts(
            tokens: Int64(found.tokens), sequences: Int64(found.sequences), prompts: Int64(found.prompts))
    }
}

@_cdecl("lockstep_objective_add_counts") @implementation
public func lockstep_objective_add_counts(
    _ objective: OpaquePointer!, _ counts: UnsafePointer<lockstep_objective_counts>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let handle = try handle(objective)
        try checkArray(counts, "counts", count: 1)
        try handle.objective.add(
            ObjectiveCounts(
                tokens: Int(counts.pointee.tokens), sequences: Int(counts.pointee.sequences),
                prompts: Int(counts.pointee.prompts)))
    }
}

@_cdecl("lockstep_objective_evaluate") @implementation
public func lockstep_objective_evaluate(
    _ objective: OpaquePointer!, _ d_log_probs: UnsafePointer<lockstep_tensor>!,
    _ d_entropies: UnsafePointer<lockstep_tensor>!, _ batch: UnsafePointer<lockstep_batch>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let handle = try handle(objective)
        let checked = try CheckedBatch(batch)
        try handle.objective.evaluate(
            checked.batch, gradient: checked.output(d_log_probs, "d_log_probs"),
            entropyGradient: checked.output(d_entropies, "d_entropies"), execution: handle.execution)
    }
}

@_cdecl("lockstep_objective_read") @implementation
public func lockstep_objective_read(
    _ report: UnsafeMutablePointer<lockstep_objective_report>!, _ objective: OpaquePointer!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let handle = try handle(objective)
        try write(lockstep_objective_report(handle.objective.report()), to: report, "report")
    }
}

@_cdecl("lockstep_objective_reset") @implementation
public func lockstep_objective_reset(_ objective: OpaquePointer!) -> lockstep_status {
    guarded { () throws(LockstepError) in try handle(objective).objective.reset() }
}

@_cdecl("lockstep_kl_penalty") @implementation
public func lockstep_kl_penalty(
    _ values: UnsafePointer<lockstep_tensor>!, _ gradients: UnsafePointer<lockstep_tensor>!,
    _ batch: UnsafePointer<lockstep_batch>!, _ options: UnsafePointer<lockstep_objective_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let (options, execution) = try objectiveOptions(options)
        let checked = try CheckedBatch(batch)
        guard let output = try checked.output(values, "values") else { throw invalid("values is NULL") }
        try klPenalty(
            into: output, gradients: checked.output(gradients, "gradients"), of: checked.batch,
            options: options, execution: execution)
    }
}

@_cdecl("lockstep_kl_coefficient_update") @implementation
public func lockstep_kl_coefficient_update(
    _ coefficient: UnsafeMutablePointer<Double>!, _ kl: Double, _ target: Double, _ horizon: Double,
    _ steps: Double
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try checkArray(coefficient, "coefficient", count: 1)
        coefficient.pointee = try adaptedKLCoefficient(
            coefficient.pointee, kl: kl, target: target, horizon: horizon, steps: steps)
    }
}

@_cdecl("lockstep_covariance_select") @implementation
public func lockstep_covariance_select(
    _ selected: UnsafePointer<lockstep_tensor>!, _ count: UnsafeMutablePointer<Int>!,
    _ batch: UnsafePointer<lockstep_batch>!, _ options: UnsafePointer<lockstep_covariance_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let options = try covarianceOptions(options)
        let checked = try CheckedBatch(batch)
        guard let output = try checked.maskOutput(selected, "selected") else {
            throw invalid("selected is NULL")
        }
        if count != nil { try checkArray(count, "count", count: 1) }
        let picked = try selectByCovariance(into: output, of: checked.batch, options: options)
        count?.pointee = picked
    }
}

private func handle(_ pointer: OpaquePointer?) throws(LockstepError) -> ObjectiveHandle {
    try held(pointer, "objective", from: "lockstep_objective_create")
}

/// The objective that an options struct describes, and how it runs. In it 0 is no bound.
func objectiveOptions(
    _ pointer: UnsafePointer<lockstep_objective_options>?
) throws(LockstepError) -> (ObjectiveOptions, Execution) {
    var options = ObjectiveOptions()
    guard pointer != nil else { return (options, Execution()) }
    let raw = try read(pointer, defaults: lockstep_objective_options())
    options.term = try choice(raw.term, "term", "LOCKSTEP_TERM")
    options.ratioLevel = try choice(raw.ratio_level, "ratio_level", "LOCKSTEP_RATIO")
    options.aggregation = try choice(raw.aggregation, "aggregation", "LOCKSTEP_TOKEN_MEAN...")
    options.denominator = try choice(raw.denominator, "denominator", "LOCKSTEP_DENOMINATOR")
    options.kl = try choice(raw.kl, "kl", "LOCKSTEP_KL")
    options.klGradient = try choice(raw.kl_gradient, "kl_gradient", "LOCKSTEP_KL_GRADIENT")
    options.nonFinite = try choice(raw.non_finite, "non_finite", "LOCKSTEP_NON_FINITE")
    (options.low, options.high) = (raw.low, raw.high)
    options.dual = raw.dual == 0 ? .infinity : raw.dual
    options.ratioMax = raw.ratio_max == 0 ? .infinity : raw.ratio_max
    options.coefficient = raw.coefficient
    (options.tauPositive, options.tauNegative) = (raw.tau_positive, raw.tau_negative)
    (options.shapePositive, options.ratePositive) = (raw.shape_positive, raw.rate_positive)
    (options.shapeNegative, options.rateNegative) = (raw.shape_negative, raw.rate_negative)
    (options.logRatioMin, options.logRatioMax) = (raw.log_ratio_min, raw.log_ratio_max)
    options.klCoefficient = raw.kl_coefficient
    options.klInputMax = raw.kl_input_max == 0 ? .infinity : raw.kl_input_max
    options.klOutputMax = raw.kl_output_max == 0 ? .infinity : raw.kl_output_max
    options.entropyCoefficient = raw.entropy_coefficient
    (options.length, options.scale) = (raw.length, raw.scale)
    return (options, try execution(threads: raw.threads, raw.instruction_set))
}

private func covarianceOptions(
    _ pointer: UnsafePointer<lockstep_covariance_options>?
) throws(LockstepError) -> CovarianceOptions {
    var options = CovarianceOptions()
    guard pointer != nil else { return options }
    let raw = try read(pointer, defaults: lockstep_covariance_options())
    options.rule = try choice(raw.rule, "rule", "LOCKSTEP_COVARIANCE")
    options.share = raw.share
    (options.low, options.high) = (raw.low, raw.high)
    (options.ratioLow, options.ratioHigh) = (raw.ratio_low, raw.ratio_high)
    options.seed = raw.seed
    return options
}

/// A value of an enumeration, or an error that says where to look.
private func choice<Value: RawRepresentable<Int32>>(
    _ raw: Int32, _ name: StaticString, _ constants: StaticString
) throws(LockstepError) -> Value {
    guard let value = Value(rawValue: raw) else {
        throw invalid("options: \(name) is \(raw); see the \(constants) constants")
    }
    return value
}

extension lockstep_objective_report {
    fileprivate init(_ r: ObjectiveReport) {
        self.init()
        struct_size = UInt32(MemoryLayout<lockstep_objective_report>.size)
        empty = r.empty ? 1 : 0
        loss = r.loss
        policy_loss = r.policyLoss
        kl_loss = r.klLoss
        entropy_loss = r.entropyLoss
        tokens = Int64(r.tokens)
        masked_tokens = Int64(r.maskedTokens)
        excluded_tokens = Int64(r.excludedTokens)
        rejected_tokens = Int64(r.rejectedTokens)
        sequences = Int64(r.sequences)
        empty_sequences = Int64(r.emptySequences)
        rejected_sequences = Int64(r.rejectedSequences)
        clamped_tokens = Int64(r.clampedTokens)
        kl_clamped_tokens = Int64(r.klClampedTokens)
        ratio_mean = r.ratioMean
        ratio_min = r.ratioMin
        ratio_max = r.ratioMax
        clip_low = r.clipLow
        clip_high = r.clipHigh
        clip_dual = r.clipDual
        approx_kl_k1 = r.approxKLK1
        approx_kl_k3 = r.approxKLK3
        kl = r.kl
        entropy = r.entropy
    }
}
