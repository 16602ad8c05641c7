import CLockstep
import Lockstep

// Section 14 of the header, its second half: supervised training.

extension lockstep_supervised_options: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_supervised_options>.size }
}

extension lockstep_supervised_metrics: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_supervised_metrics>.size }
}

@_cdecl("lockstep_supervised_create") @implementation
public func lockstep_supervised_create(
    _ run: UnsafeMutablePointer<OpaquePointer?>!, _ options: UnsafePointer<lockstep_supervised_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        guard let run else { throw invalid("run is NULL; give the address of a lockstep_supervised pointer") }
        guard options != nil else {
            throw invalid("options is NULL; begin with LOCKSTEP_SUPERVISED_OPTIONS_INIT")
        }
        let given = try read(options, defaults: lockstep_supervised_options())
        var core = SupervisedRun.Options(
            model: try StartingModel(
                given.model, adapter: given.adapter, rank: given.lora_rank, alpha: given.lora_alpha,
                seed: given.model_seed, deviation: given.deviation),
            recipe: try coreRecipe(given.recipe), steps: Int(given.steps))
        (core.batch, core.seed, core.errorRate) = (Int(given.batch), given.seed, given.error_rate)
        core.learner.schedule.peak = given.learning_rate
        core.execution.threads = Int(given.threads)
        let made = try SupervisedRun(core, task: coreTask(given.task))
        run.pointee = retained(RunBox(made))
    }
}

@_cdecl("lockstep_supervised_step") @implementation
public func lockstep_supervised_step(
    _ metrics: UnsafeMutablePointer<lockstep_supervised_metrics>!, _ run: OpaquePointer!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try checkGrowable(metrics, "metrics")
        let core = try coreRun(run).step()
        try write(
            lockstep_supervised_metrics(
                struct_size: 0, skipped: core.isSkipped ? 1 : 0, step: Int64(core.step),
                tokens: Int64(core.tokens), loss: core.loss, gradient_norm: core.gradientNorm,
                learning_rate: core.learningRate, loss_scale: core.lossScale),
            to: metrics, "metrics")
    }
}

@_cdecl("lockstep_supervised_save") @implementation
public func lockstep_supervised_save(
    _ run: OpaquePointer!, _ folder: UnsafePointer<CChar>!, _ kept: Int64
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try save(coreRun(run), folder, kept)
    }
}

@_cdecl("lockstep_supervised_resume") @implementation
public func lockstep_supervised_resume(
    _ step: UnsafeMutablePointer<Int64>!, _ run: OpaquePointer!, _ folder: UnsafePointer<CChar>!,
    _ allow_older: Int32
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try resume(coreRun(run), step, folder, allow_older)
    }
}

@_cdecl("lockstep_supervised_save_model") @implementation
public func lockstep_supervised_save_model(
    _ run: OpaquePointer!, _ folder: UnsafePointer<CChar>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in try coreRun(run).saveModel(to: text(folder, "folder")) }
}

@_cdecl("lockstep_supervised_destroy") @implementation
public func lockstep_supervised_destroy(_ run: OpaquePointer!) {
    release(run)
}

private func coreRun(_ run: OpaquePointer?) throws(LockstepError) -> SupervisedRun {
    try RunBox.of(run, "lockstep_supervised_create").run
}
