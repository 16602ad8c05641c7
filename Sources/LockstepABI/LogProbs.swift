import CLockstep
import Lockstep

// Section 3 of the header: log-probs.

private let logitFormats: [Format] = [.fp32, .fp16, .bf16]

extension lockstep_log_probs_options: GrowableOptions {
    static var firstSize: Int { 48 }

    static var defaults: lockstep_log_probs_options {
        lockstep_log_probs_options(
            struct_size: UInt32(MemoryLayout<lockstep_log_probs_options>.size), ignore_index: -100,
            temperature: 1, soft_cap: 0, top_p: 1, top_k: 0, logits_dtype: 0, threads: 0, instruction_set: 0,
            min_p: 0)
    }

    func core() throws(LockstepError) -> (LogProbOptions, Execution) {
        let format: Format
        switch Int(logits_dtype) {
        case 0, LOCKSTEP_FLOAT32: format = .fp32
        case LOCKSTEP_FLOAT16: format = .fp16
        case LOCKSTEP_BFLOAT16: format = .bf16
        default:
            guard let emulated = emulatedFormat(logits_dtype) else {
                throw invalid(
                    "options: logits_dtype is \(logits_dtype); give 0, LOCKSTEP_FLOAT32, LOCKSTEP_FLOAT16, "
                        + "LOCKSTEP_BFLOAT16, LOCKSTEP_E8M + N or LOCKSTEP_E5M + N")
            }
            format = emulated
        }
        let options = LogProbOptions(
            temperature: temperature, softCap: soft_cap, ignoreIndex: Int(ignore_index), topK: Int(top_k),
            topP: top_p, minP: min_p, logitsFormat: format)
        return (options, try execution(threads: threads, instruction_set))
    }
}

/// The three or four outputs of a forward call.
private func outputs(
    _ logProbs: UnsafePointer<lockstep_tensor>?, _ entropy: UnsafePointer<lockstep_tensor>?,
    _ logSumExp: UnsafePointer<lockstep_tensor>?, _ keptMass: UnsafePointer<lockstep_tensor>? = nil,
    tokens: Int
) throws(LockstepError) -> LogProbOutputs {
    LogProbOutputs(
        logProbs: try optionalVector(logProbs, "log_probs", count: tokens),
        entropy: try optionalVector(entropy, "entropy", count: tokens),
        logSumExp: try optionalVector(logSumExp, "log_sum_exp", count: tokens),
        keptMass: try optionalVector(keptMass, "kept_mass", count: tokens))
}

/// An optional input vector of `count` elements; NULL gives nil.
private func optionalInput(
    _ pointer: UnsafePointer<lockstep_tensor>?, _ name: StaticString, _ allowed: [Format],
    _ letters: StaticString, count: Int
) throws(LockstepError) -> VectorView? {
    guard let pointer else { return nil }
    let tensor = try CheckedTensor(pointer, name)
    let view = try tensor.vector(allowed, letters)
    try tensor.expect(0, is: count, "the size expected here")
    return view
}

@_cdecl("lockstep_log_probs") @implementation
public func lockstep_log_probs(
    _ log_probs: UnsafePointer<lockstep_tensor>!, _ entropy: UnsafePointer<lockstep_tensor>!,
    _ log_sum_exp: UnsafePointer<lockstep_tensor>!, _ kept_mass: UnsafePointer<lockstep_tensor>!,
    _ logits: UnsafePointer<lockstep_tensor>!, _ targets: UnsafePointer<lockstep_tensor>!,
    _ options: UnsafePointer<lockstep_log_probs_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let (core, execution) = try read(options, defaults: .defaults).core()
        let x = try CheckedTensor(logits, "logits").matrix(logitFormats, "[tokens x vocab]")
        let y = try CheckedTensor(targets, "targets").tokens("[tokens]")
        let out = try outputs(log_probs, entropy, log_sum_exp, kept_mass, tokens: x.rows)
        try logProbs(logits: x, targets: y, options: core, into: out, execution: execution)
    }
}

/// The upstream gradients of a backward call.
private func upstream(
    _ dLogProbs: UnsafePointer<lockstep_tensor>?, _ dEntropy: UnsafePointer<lockstep_tensor>?,
    _ logSumExp: UnsafePointer<lockstep_tensor>?, tokens: Int
) throws(LockstepError) -> LogProbGradients {
    LogProbGradients(
        logProbs: try optionalInput(dLogProbs, "d_log_probs", [.fp32, .fp64], "[tokens]", count: tokens),
        entropy: try optionalInput(dEntropy, "d_entropy", [.fp32, .fp64], "[tokens]", count: tokens),
        logSumExp: try optionalInput(logSumExp, "log_sum_exp", [.fp64], "[tokens]", count: tokens))
}

@_cdecl("lockstep_log_probs_backward") @implementation
public func lockstep_log_probs_backward(
    _ d_logits: UnsafePointer<lockstep_tensor>!, _ d_log_probs: UnsafePointer<lockstep_tensor>!,
    _ d_entropy: UnsafePointer<lockstep_tensor>!, _ log_sum_exp: UnsafePointer<lockstep_tensor>!,
    _ logits: UnsafePointer<lockstep_tensor>!, _ targets: UnsafePointer<lockstep_tensor>!,
    _ options: UnsafePointer<lockstep_log_probs_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let (core, execution) = try read(options, defaults: .defaults).core()
        let x = try CheckedTensor(logits, "logits").matrix(logitFormats, "[tokens x vocab]")
        let out = try CheckedTensor(d_logits, "d_logits").mutableMatrix(logitFormats, "[tokens x vocab]")
        let y = try CheckedTensor(targets, "targets").tokens("[tokens]")
        let gradients = try upstream(d_log_probs, d_entropy, log_sum_exp, tokens: x.rows)
        try logProbsBackward(
            into: out, gradients, logits: x, targets: y, options: core, execution: execution)
    }
}

@_cdecl("lockstep_linear_log_probs") @implementation
public func lockstep_linear_log_probs(
    _ log_probs: UnsafePointer<lockstep_tensor>!, _ entropy: UnsafePointer<lockstep_tensor>!,
    _ log_sum_exp: UnsafePointer<lockstep_tensor>!, _ hidden: UnsafePointer<lockstep_tensor>!,
    _ weight: UnsafePointer<lockstep_tensor>!, _ bias: UnsafePointer<lockstep_tensor>!,
    _ targets: UnsafePointer<lockstep_tensor>!, _ options: UnsafePointer<lockstep_log_probs_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let (core, execution) = try read(options, defaults: .defaults).core()
        let x = try CheckedTensor(hidden, "hidden").matrix(logitFormats, "[tokens x H]")
        let w = try CheckedTensor(weight, "weight").matrix(logitFormats, "[vocab x H]")
        let b = try optionalInput(bias, "bias", logitFormats, "[vocab]", count: w.rows)
        let y = try CheckedTensor(targets, "targets").tokens("[tokens]")
        let out = try outputs(log_probs, entropy, log_sum_exp, tokens: x.rows)
        try linearLogProbs(
            hidden: x, weight: w, bias: b, targets: y, options: core, into: out, execution: execution)
    }
}

@_cdecl("lockstep_head_create") @implementation
public func lockstep_head_create(
    _ head: UnsafeMutablePointer<OpaquePointer?>!, _ weight: UnsafePointer<lockstep_tensor>!,
    _ bias: UnsafePointer<lockstep_tensor>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        guard let head else { throw invalid("head is NULL; give the address of a lockstep_head pointer") }
        let w = try CheckedTensor(weight, "weight").matrix(logitFormats, "[vocab x H]")
        let b = try optionalInput(bias, "bias", logitFormats, "[vocab]", count: w.rows)
        head.pointee = retained(try Head(weight: w, bias: b))
    }
}

@_cdecl("lockstep_head_destroy") @implementation
public func lockstep_head_destroy(_ head: OpaquePointer!) {
    release(head)
}

@_cdecl("lockstep_head_log_probs") @implementation
public func lockstep_head_log_probs(
    _ log_probs: UnsafePointer<lockstep_tensor>!, _ entropy: UnsafePointer<lockstep_tensor>!,
    _ log_sum_exp: UnsafePointer<lockstep_tensor>!, _ head: OpaquePointer!,
    _ hidden: UnsafePointer<lockstep_tensor>!, _ targets: UnsafePointer<lockstep_tensor>!,
    _ options: UnsafePointer<lockstep_log_probs_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let head: Head = try held(head, "head", from: "lockstep_head_create")
        let (core, execution) = try read(options, defaults: .defaults).core()
        let x = try CheckedTensor(hidden, "hidden").matrix(logitFormats, "[tokens x H]")
        let y = try CheckedTensor(targets, "targets").tokens("[tokens]")
        let out = try outputs(log_probs, entropy, log_sum_exp, tokens: x.rows)
        try head.logProbs(hidden: x, targets: y, options: core, into: out, execution: execution)
    }
}

@_cdecl("lockstep_linear_log_probs_backward") @implementation
public func lockstep_linear_log_probs_backward(
    _ d_hidden: UnsafePointer<lockstep_tensor>!, _ d_weight: UnsafePointer<lockstep_tensor>!,
    _ d_bias: UnsafePointer<lockstep_tensor>!, _ d_log_probs: UnsafePointer<lockstep_tensor>!,
    _ d_entropy: UnsafePointer<lockstep_tensor>!, _ log_sum_exp: UnsafePointer<lockstep_tensor>!,
    _ hidden: UnsafePointer<lockstep_tensor>!, _ weight: UnsafePointer<lockstep_tensor>!,
    _ bias: UnsafePointer<lockstep_tensor>!, _ targets: UnsafePointer<lockstep_tensor>!,
    _ options: UnsafePointer<lockstep_log_probs_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let (core, execution) = try read(options, defaults: .defaults).core()
        let x = try CheckedTensor(hidden, "hidden").matrix(logitFormats, "[tokens x H]")
        let w = try CheckedTensor(weight, "weight").matrix(logitFormats, "[vocab x H]")
        let b = try optionalInput(bias, "bias", logitFormats, "[vocab]", count: w.rows)
        let y = try CheckedTensor(targets, "targets").tokens("[tokens]")
        var buffers = LinearGradients()
        if let d_hidden {
            buffers.hidden = try CheckedTensor(d_hidden, "d_hidden").mutableMatrix(
                logitFormats, "[tokens x H]")
        }
        if let d_weight {
            buffers.weight = try CheckedTensor(d_weight, "d_weight").mutableMatrix(
                logitFormats, "[vocab x H]")
        }
        buffers.bias = try optionalVector(d_bias, "d_bias", count: w.rows)
        let gradients = try upstream(d_log_probs, d_entropy, log_sum_exp, tokens: x.rows)
        try linearLogProbsBackward(
            into: buffers, gradients, hidden: x, weight: w, bias: b, targets: y, options: core,
            execution: execution)
    }
}
