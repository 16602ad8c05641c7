import CLockstep
import Lockstep

// Section 10 of the header: scoring.

extension lockstep_score_options: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_score_options>.size }
}

extension lockstep_score_report: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_score_report>.size }
}

@_cdecl("lockstep_model_score") @implementation
public func lockstep_model_score(
    _ log_probs: UnsafePointer<lockstep_tensor>!, _ entropy: UnsafePointer<lockstep_tensor>!,
    _ model: OpaquePointer!, _ tokens: UnsafePointer<lockstep_tensor>!,
    _ offsets: UnsafePointer<lockstep_tensor>!, _ options: UnsafePointer<lockstep_score_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let call = try Scoring(log_probs, entropy, model, tokens, offsets, options)
        try call.box.model.score(
            tokens: call.tokens, offsets: call.offsets, options: call.options, into: call.outputs,
            execution: call.execution)
    }
}

@_cdecl("lockstep_model_score_counting") @implementation
public func lockstep_model_score_counting(
    _ report: UnsafeMutablePointer<lockstep_score_report>!, _ log_probs: UnsafePointer<lockstep_tensor>!,
    _ entropy: UnsafePointer<lockstep_tensor>!, _ model: OpaquePointer!,
    _ tokens: UnsafePointer<lockstep_tensor>!, _ offsets: UnsafePointer<lockstep_tensor>!,
    _ options: UnsafePointer<lockstep_score_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try checkGrowable(report, "report")
        let call = try Scoring(log_probs, entropy, model, tokens, offsets, options)
        let found = try call.box.model.scoreCountingOverflows(
            tokens: call.tokens, offsets: call.offsets, options: call.options, into: call.outputs,
            execution: call.execution)
        try write(
            lockstep_score_report(
                struct_size: report.pointee.struct_size, overflow_layer: Int32(found.overflowLayer),
                sequences: Int64(found.sequences), overflows: Int64(found.overflows),
                overflow_tokens: Int64(found.overflowTokens),
                overflow_sequence: Int64(found.overflowSequence),
                overflow_operation: call.box.texts.lend(found.overflowOperation)),
            to: report, "report")
    }
}

/// What the caller of a scoring function gave, checked.
private struct Scoring {
    let box: ModelBox
    let tokens: TokenView
    let offsets: TokenView?
    let options: LogProbOptions
    let outputs: ScoringOutputs
    let execution: Execution

    init(
        _ logProbs: UnsafePointer<lockstep_tensor>?, _ entropy: UnsafePointer<lockstep_tensor>?,
        _ model: OpaquePointer?, _ tokens: UnsafePointer<lockstep_tensor>?,
        _ offsets: UnsafePointer<lockstep_tensor>?, _ given: UnsafePointer<lockstep_score_options>?
    ) throws(LockstepError) {
        box = try modelBox(model)
        let given = try scoreOptions(given)
        let ids = try CheckedTensor(tokens, "tokens")
        self.tokens = try ids.tokens("[tokens]")
        guard let out = try optionalVector(logProbs, "log_probs", count: self.tokens.count) else {
            throw invalid("log_probs is NULL")
        }
        self.offsets = try optionalOffsets(offsets, for: ids)
        options = LogProbOptions(temperature: given.temperature)
        outputs = ScoringOutputs(
            logProbs: out, entropy: try optionalVector(entropy, "entropy", count: self.tokens.count))
        execution = try LockstepABI.execution(threads: given.threads, given.instruction_set)
    }
}

@_cdecl("lockstep_model_logits") @implementation
public func lockstep_model_logits(
    _ logits: UnsafePointer<lockstep_tensor>!, _ model: OpaquePointer!,
    _ tokens: UnsafePointer<lockstep_tensor>!, _ offsets: UnsafePointer<lockstep_tensor>!,
    _ options: UnsafePointer<lockstep_score_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let box = try modelBox(model)
        let options = try scoreOptions(options)
        let ids = try CheckedTensor(tokens, "tokens")
        let view = try ids.tokens("[tokens]")
        let out = try CheckedTensor(logits, "logits").mutableMatrix([.fp32], "[tokens x vocab]")
        try box.model.logits(
            tokens: view, offsets: optionalOffsets(offsets, for: ids), into: out,
            execution: execution(threads: options.threads, options.instruction_set))
    }
}

private func scoreOptions(
    _ options: UnsafePointer<lockstep_score_options>?
) throws(LockstepError) -> lockstep_score_options {
    var defaults = lockstep_score_options()
    defaults.temperature = 1
    let options = try read(options, defaults: defaults)
    guard options.reserved == 0 else {
        throw invalid("options: reserved is \(options.reserved); leave it 0")
    }
    return options
}
