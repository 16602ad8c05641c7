import CLockstep
import Lockstep

// Section 10 of the header: where two engines part.

extension lockstep_difference: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_difference>.size }
}

extension lockstep_localiser_options: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_localiser_options>.size }
}

/// What a lockstep_localiser points to.
private final class LocaliserBox {
    let core: Localiser
    let texts = LentTexts()
    /// What went wrong in a step: it cannot go on.
    var failure: LockstepError?

    init(_ core: Localiser) { self.core = core }
}

@_cdecl("lockstep_difference_measure") @implementation
public func lockstep_difference_measure(
    _ difference: UnsafeMutablePointer<lockstep_difference>!, _ first: UnsafePointer<lockstep_tensor>!,
    _ second: UnsafePointer<lockstep_tensor>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try checkGrowable(difference, "difference")
        let found = try measureDifference(rows(first, "first"), rows(second, "second"))
        try write(record(found, nil), to: difference, "difference")
    }
}

@_cdecl("lockstep_model_dump") @implementation
public func lockstep_model_dump(
    _ path: UnsafePointer<CChar>!, _ model: OpaquePointer!, _ tokens: UnsafePointer<lockstep_tensor>!,
    _ offsets: UnsafePointer<lockstep_tensor>!, _ options: UnsafePointer<lockstep_score_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let file = try text(path, "path")
        let box = try modelBox(model)
        let options = try read(options, defaults: lockstep_score_options())
        let ids = try CheckedTensor(tokens, "tokens")
        try box.model.dump(
            tokens: ids.tokens("[tokens]"), offsets: optionalOffsets(offsets, for: ids), to: file,
            execution: execution(threads: options.threads, options.instruction_set))
    }
}

@_cdecl("lockstep_localiser_create") @implementation
public func lockstep_localiser_create(
    _ localiser: UnsafeMutablePointer<OpaquePointer?>!, _ trainer: OpaquePointer!,
    _ rollout: OpaquePointer!, _ tokens: UnsafePointer<lockstep_tensor>!,
    _ offsets: UnsafePointer<lockstep_tensor>!, _ options: UnsafePointer<lockstep_localiser_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        guard let localiser else {
            throw invalid("localiser is NULL; give the address of a lockstep_localiser pointer")
        }
        let (first, second) = (try modelBox(trainer, "trainer"), try modelBox(rollout, "rollout"))
        let options = try read(options, defaults: lockstep_localiser_options())
        guard options.reserved == 0 else {
            throw invalid("options: reserved is \(options.reserved); leave it 0")
        }
        guard (0...1 << 16).contains(options.range_count) else {
            throw invalid(
                "options: range_count is \(UInt(bitPattern: options.range_count)); give 65,536 at most")
        }
        try checkArray(options.ranges, "options.ranges", count: options.range_count)
        var ranges: [Range<Int>] = []
        for index in 0..<options.range_count {
            let (first, end) = (options.ranges[2 * index], options.ranges[2 * index + 1])
            guard first < end else {
                throw invalid("options: ranges[\(index)] is \(first) ..< \(end), which holds no layer")
            }
            ranges.append(Int(first)..<Int(end))
        }
        let ids = try CheckedTensor(tokens, "tokens")
        let core = try Localiser(
            trainer: first.model, rollout: second.model,
            reference: options.reference == nil ? nil : modelBox(options.reference).model,
            tokens: ids.tokens("[tokens]"), offsets: optionalOffsets(offsets, for: ids), ranges: ranges,
            execution: execution(threads: options.threads, options.instruction_set))
        localiser.pointee = retained(LocaliserBox(core))
    }
}

@_cdecl("lockstep_localiser_step") @implementation
public func lockstep_localiser_step(
    _ localiser: OpaquePointer!, _ done: UnsafeMutablePointer<Int>!, _ total: UnsafeMutablePointer<Int>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let box = try localiserBox(localiser)
        if let failure = box.failure { throw failure }
        do throws(LockstepError) { try box.core.step() } catch {
            box.failure = error
            throw error
        }
        done?.pointee = box.core.stepsDone
        total?.pointee = box.core.stepCount
    }
}

@_cdecl("lockstep_localiser_read") @implementation
public func lockstep_localiser_read(
    _ row: UnsafeMutablePointer<lockstep_difference>!, _ count: UnsafeMutablePointer<Int>!,
    _ localiser: OpaquePointer!, _ index: Int
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let box = try localiserBox(localiser)
        let found = box.core.differences
        if row != nil {
            try checkGrowable(row, "row")
            guard found.indices.contains(index) else {
                throw invalid("index is \(UInt(bitPattern: index)) but there are \(found.count) rows")
            }
            try write(record(found[index], box.texts), to: row, "row")
        }
        count?.pointee = found.count
    }
}

@_cdecl("lockstep_localiser_log_probs") @implementation
public func lockstep_localiser_log_probs(
    _ trainer: UnsafePointer<lockstep_tensor>!, _ rollout: UnsafePointer<lockstep_tensor>!,
    _ localiser: OpaquePointer!, _ swap: lockstep_swap
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let box = try localiserBox(localiser)
        let chosen: Localiser.Swap =
            switch Int(swap) {
            case LOCKSTEP_SWAP_NONE: .none
            case LOCKSTEP_SWAP_HEAD_ALONE: .headAlone
            case LOCKSTEP_SWAP_BODY_ALONE: .bodyAlone
            case LOCKSTEP_SWAP_FP32_HEADS: .fp32Heads
            case LOCKSTEP_SWAP_FP32_HEAD_OF_TRAINER: .fp32HeadOfTrainer
            case LOCKSTEP_SWAP_FP32_HEAD_OF_ROLLOUT: .fp32HeadOfRollout
            case LOCKSTEP_SWAP_LAYERS...: .layers(index: Int(swap) - LOCKSTEP_SWAP_LAYERS)
            default: throw invalid("swap is \(swap); see the LOCKSTEP_SWAP constants")
            }
        let found = try box.core.logProbs(chosen)
        let count = found.trainer.count
        guard let first = try optionalVector(trainer, "trainer", count: count) else {
            throw invalid("trainer is NULL")
        }
        guard let second = try optionalVector(rollout, "rollout", count: count) else {
            throw invalid("rollout is NULL")
        }
        first.store(found.trainer)
        second.store(found.rollout)
    }
}

@_cdecl("lockstep_localiser_destroy") @implementation
public func lockstep_localiser_destroy(_ localiser: OpaquePointer!) {
    release(localiser)
}

private func localiserBox(_ localiser: OpaquePointer?) throws(LockstepError) -> LocaliserBox {
    try held(localiser, "localiser", from: "lockstep_localiser_create")
}

/// A matrix; a vector is one of one column.
private func rows(
    _ pointer: UnsafePointer<lockstep_tensor>?, _ name: StaticString
) throws(LockstepError) -> MatrixView {
    let tensor = try CheckedTensor(pointer, name)
    let formats: [Format] = [.fp32, .fp16, .bf16, .fp64]
    guard tensor.shape.count == 1 else { return try tensor.matrix(formats, "[tokens x width] or [tokens]") }
    let vector = try tensor.vector(formats, "[tokens]")
    return MatrixView(vector.base, vector.format, rows: vector.count, columns: 1, rowStride: vector.stride)
}

/// A difference as the caller sees it.
private func record(_ found: Difference, _ texts: LentTexts?) -> lockstep_difference {
    lockstep_difference(
        struct_size: 0, layer: Int32(found.layer), operation: texts?.lend(found.operation),
        rows: Int64(found.rows), columns: Int64(found.columns), differing: Int64(found.differing),
        non_finite: Int64(found.nonFinite), first_row: Int64(found.first?.row ?? -1),
        first_column: Int64(found.first?.column ?? -1), max_abs: found.maxAbs, mean_abs: found.meanAbs,
        rms: found.rms, relative_rms: found.relativeRMS)
}
