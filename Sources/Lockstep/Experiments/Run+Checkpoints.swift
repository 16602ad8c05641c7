extension ReinforcementRun {
    /// Saves the run in a folder, as a folder `step-N` that transformers loads as a model (PEFT as an adapter).
    ///
    /// It is there as a whole or not at all, whatever happens meanwhile; the checkpoints before the last `kept` are removed
    /// after it.
    ///
    /// - Throws: `.file`, with what the system says, such as a disk that is full; the failure that stopped the run.
    /// - Returns: the checkpoint's folder.
    @discardableResult
    public func save(to folder: String, keeping kept: Int = 2) throws(LockstepError) -> String {
        try checkIsWell()
        return try RunCheckpoint.write(
            to: folder, learner, options.model,
            RunCheckpoint.State(
                step: stepsTaken, updates: learner.optimizer.step, scaler: learner.scaler.bytes,
                monitor: monitor.bytes),
            configuration: configuration, keeping: kept)
    }

    /// Goes on where the newest checkpoint in a folder was taken: the run, which has taken no step yet, is as it was then.
    ///
    /// - Throws: `.badData` for a damaged checkpoint, unless an older one may be taken; `.invalidArgument` for one of
    ///   a run with other options, naming the first, or if steps were taken.
    /// - Returns: whether there was one: else the run begins.
    public func resume(from folder: String, _ choice: ResumeOptions = .init()) throws(LockstepError) -> Bool {
        guard stepsTaken == 0 else {
            throw LockstepError(
                .invalidArgument, "run: has taken \(stepsTaken) steps; resume before the first")
        }
        guard let path = try RunCheckpoint.newest(in: folder, choice) else { return false }
        let state = try RunCheckpoint.read(path, into: learner, options.model, configuration: configuration)
        guard let saved = state.monitor else {
            throw LockstepError(.badData, "\(path): is no checkpoint of a reinforcement learning run")
        }
        monitor = try MismatchMonitor(bytes: saved)
        stepsTaken = state.step
        return true
    }
}

extension SupervisedRun {
    /// Saves the run, as `ReinforcementRun.save`.
    @discardableResult
    public func save(to folder: String, keeping kept: Int = 2) throws(LockstepError) -> String {
        try RunCheckpoint.write(
            to: folder, learner, options.model,
            RunCheckpoint.State(
                step: stepsTaken, updates: learner.optimizer.step, scaler: learner.scaler.bytes, monitor: nil),
            configuration: configuration, keeping: kept)
    }

    /// Goes on where the newest checkpoint in a folder was taken, as `ReinforcementRun.resume`.
    public func resume(from folder: String, _ choice: ResumeOptions = .init()) throws(LockstepError) -> Bool {
        guard stepsTaken == 0 else {
            throw LockstepError(
                .invalidArgument, "run: has taken \(stepsTaken) steps; resume before the first")
        }
        guard let path = try RunCheckpoint.newest(in: folder, choice) else { return false }
        stepsTaken = try RunCheckpoint.read(path, into: learner, options.model, configuration: configuration)
            .step
        return true
    }

    /// Writes the model alone, or its adapter, into a folder, whose files of these names must not be there yet.
    public func saveModel(to folder: String) throws(LockstepError) {
        try SystemFolder.make(folder)
        try ModelFolder.write(to: folder, learner.trainer, options.model)
    }
}
