import CLockstep
import Lockstep

// Section 11 of the header: training.

extension lockstep_trainer_options: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_trainer_options>.size }
}

extension lockstep_backward_report: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_backward_report>.size }
}

/// What a lockstep_trainer points to: with the names of its tensors, which are lent.
private final class TrainerBox {
    let trainer: Trainer
    let names: [UnsafeMutableBufferPointer<CChar>]

    init(_ trainer: Trainer) {
        self.trainer = trainer
        names = trainer.parameters.tensors.map { tensor in
            let text = tensor.name.utf8CString
            let name = UnsafeMutableBufferPointer<CChar>.allocate(capacity: text.count)
            _ = name.initialize(from: text)
            return name
        }
    }

    deinit { for name in names { name.deallocate() } }
}

@_cdecl("lockstep_trainer_create") @implementation
public func lockstep_trainer_create(
    _ trainer: UnsafeMutablePointer<OpaquePointer?>!, _ path: UnsafePointer<CChar>!,
    _ recipe: UnsafePointer<lockstep_recipe>!, _ options: UnsafePointer<lockstep_trainer_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        guard let trainer else {
            throw invalid("trainer is NULL; give the address of a lockstep_trainer pointer")
        }
        let core = try coreRecipe(recipe)
        let folder = try text(path, "path")
        let given = try read(options, defaults: lockstep_trainer_options())
        guard given.recomputes == 0 || given.recomputes == 1 else {
            throw invalid("options: recomputes is \(given.recomputes); give 0 or 1")
        }
        let execution = try execution(threads: given.threads, given.instruction_set)
        let settings = TrainerOptions(
            recomputes: given.recomputes == 1, threads: execution.threads,
            instructionSet: execution.instructionSet)
        let adapter: String? = if given.adapter == nil { nil } else { try text(given.adapter, "adapter") }
        var lowRank: LowRank?
        if given.rank != 0 {
            lowRank = LowRank(rank: Int(given.rank), alpha: given.alpha, seed: given.seed)
            if given.targets != nil {
                lowRank?.targets = try text(given.targets, "targets").utf8.split(separator: 32).map {
                    String(Substring($0))
                }
            }
        }
        let isNew = given.deviation.sign == .minus || !given.deviation.isZero
        guard !isNew || adapter == nil && lowRank == nil else {
            throw invalid("options: deviation is set beside an adapter; a model that begins anew has none")
        }
        let made =
            isNew
            ? try Trainer(
                configuration: ModelConfiguration(path: folder), seed: given.seed, deviation: given.deviation,
                recipe: core, options: settings)
            : try Trainer(path: folder, adapter: adapter, lowRank: lowRank, recipe: core, options: settings)
        trainer.pointee = retained(TrainerBox(made))
    }
}

@_cdecl("lockstep_trainer_parameter") @implementation
public func lockstep_trainer_parameter(
    _ parameter: UnsafeMutablePointer<lockstep_parameter>!, _ tensors: UnsafeMutablePointer<Int>!,
    _ elements: UnsafeMutablePointer<Int>!, _ trainer: OpaquePointer!, _ index: Int
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let box = try trainerBox(trainer)
        let all = box.trainer.parameters.tensors
        if let parameter {
            guard all.indices.contains(index) else {
                throw invalid("index is \(UInt(bitPattern: index)); there are \(all.count) tensors")
            }
            let tensor = all[index]
            parameter.pointee = lockstep_parameter(
                name: UnsafePointer(box.names[index].baseAddress), offset: tensor.range.lowerBound,
                count: tensor.range.count,
                shape: (Int64(tensor.shape[0]), Int64(tensor.shape.count > 1 ? tensor.shape[1] : 1)),
                dimensions: Int32(tensor.shape.count), decays: tensor.decays ? 1 : 0)
        }
        tensors?.pointee = all.count
        elements?.pointee = box.trainer.parameters.count
    }
}

@_cdecl("lockstep_trainer_masters") @implementation
public func lockstep_trainer_masters(
    _ masters: UnsafeMutablePointer<UnsafeMutablePointer<Float>?>!, _ count: UnsafeMutablePointer<Int>!,
    _ trainer: OpaquePointer!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        guard let masters else { throw invalid("masters is NULL; give the address of a pointer to float") }
        let box = try trainerBox(trainer)
        // Lent for longer than the closure: the trainer keeps the buffer in its place.
        try box.trainer.withMasters { (values) throws(LockstepError) in
            masters.pointee = values.baseAddress
            count?.pointee = values.count
        }
    }
}

@_cdecl("lockstep_trainer_accumulate") @implementation
public func lockstep_trainer_accumulate(
    _ report: UnsafeMutablePointer<lockstep_backward_report>!, _ log_probs: UnsafePointer<lockstep_tensor>!,
    _ entropy: UnsafePointer<lockstep_tensor>!, _ trainer: OpaquePointer!,
    _ tokens: UnsafePointer<lockstep_tensor>!, _ offsets: UnsafePointer<lockstep_tensor>!,
    _ d_log_probs: UnsafePointer<lockstep_tensor>!, _ d_entropy: UnsafePointer<lockstep_tensor>!,
    _ loss_scale: Double, _ temperature: Double
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        if report != nil { try checkGrowable(report, "report") }
        let box = try trainerBox(trainer)
        let ids = try CheckedTensor(tokens, "tokens")
        let view = try ids.tokens("[tokens]")
        let gradients = LogProbGradients(
            logProbs: try CheckedTensor(d_log_probs, "d_log_probs").vector([.fp32, .fp64], "[tokens]"),
            entropy: d_entropy == nil
                ? nil : try CheckedTensor(d_entropy, "d_entropy").vector([.fp32, .fp64], "[tokens]"))
        let outputs = BackwardOutputs(
            logProbs: try optionalVector(log_probs, "log_probs", count: view.count),
            entropy: try optionalVector(entropy, "entropy", count: view.count))
        let found = try box.trainer.accumulate(
            tokens: view, offsets: optionalOffsets(offsets, for: ids), gradients, lossScale: loss_scale,
            temperature: temperature, into: outputs)
        guard let report else { return }
        var written = lockstep_backward_report()
        written.overflow_layer = Int32(found.overflowLayer)
        written.sequences = Int64(found.sequences)
        written.overflows = Int64(found.overflows)
        written.overflow_sequence = Int64(found.overflowSequence)
        withUnsafeMutableBytes(of: &written.overflow_operation) { name in
            name.copyBytes(from: found.overflowOperation.utf8.prefix(name.count - 1))
        }
        try write(written, to: report, "report")
    }
}

@_cdecl("lockstep_trainer_gradients") @implementation
public func lockstep_trainer_gradients(
    _ gradients: UnsafePointer<lockstep_tensor>!, _ trainer: OpaquePointer!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let box = try trainerBox(trainer)
        let view = try CheckedTensor(gradients, "gradients").mutableVector("[elements]")
        guard view.format == .fp32, view.count <= 1 || view.stride == 1 else {
            throw invalid("gradients: give contiguous fp32")
        }
        try box.trainer.gradients(
            into: UnsafeMutableBufferPointer(
                start: view.base?.assumingMemoryBound(to: Float.self), count: view.count))
    }
}

@_cdecl("lockstep_trainer_clear") @implementation
public func lockstep_trainer_clear(_ trainer: OpaquePointer!) -> lockstep_status {
    guarded { () throws(LockstepError) in try trainerBox(trainer).trainer.clearGradients() }
}

@_cdecl("lockstep_trainer_snapshot") @implementation
public func lockstep_trainer_snapshot(
    _ model: UnsafeMutablePointer<OpaquePointer?>!, _ trainer: OpaquePointer!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        guard let model else { throw invalid("model is NULL; give the address of a lockstep_model pointer") }
        model.pointee = handOver(try trainerBox(trainer).trainer.snapshot())
    }
}

@_cdecl("lockstep_trainer_destroy") @implementation
public func lockstep_trainer_destroy(_ trainer: OpaquePointer!) {
    release(trainer)
}

private func trainerBox(_ trainer: OpaquePointer?) throws(LockstepError) -> TrainerBox {
    try held(trainer, "trainer", from: "lockstep_trainer_create")
}
