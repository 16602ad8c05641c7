/// What reinforcement learning and supervised runs have in common: steps, a learner, checkpoints, and how they stop.
public class TrainingRun {
    /// Steps taken.
    public final internal(set) var stepsTaken = 0
    final let learner: Learner
    final let model: StartingModel
    /// What it began with.
    private final let beginning: (frozen: UInt32?, masters: UInt32)
    /// What stopped the run.
    private final var failure: LockstepError?

    init(_ learner: Learner, _ model: StartingModel) {
        self.learner = learner
        self.model = model
        beginning = learner.trainer.weights.checksums
    }

    /// The trainer; its masters are the run's.
    public final var trainer: Trainer { learner.trainer }

    /// What the run is a function of, as names and texts: options, and the weights it began with, wherever they were.
    final var configuration: [(name: String, value: String)] {
        settings + [
            ("base_crc32c", beginning.frozen.map(RunCheckpoint.hex) ?? ""),
            ("start_crc32c", RunCheckpoint.hex(beginning.masters)),
        ]
    }

    /// The options as names and texts.
    var settings: [(name: String, value: String)] { [] }

    /// The bytes of the early warning, if the run has one; set to those of a checkpoint.
    func monitorBytes() -> [UInt8]? { nil }
    func setMonitor(_ bytes: [UInt8]?, _ path: String) throws(LockstepError) {}

    /// Throws what stopped the run, if anything did.
    final func checkIsWell() throws(LockstepError) {
        if let failure { throw failure }
    }

    /// Remembers a failure, after which no step can be taken and nothing is saved.
    final func stopping<Result>(_ body: () throws(LockstepError) -> Result) throws(LockstepError) -> Result {
        do throws(LockstepError) {
            return try body()
        } catch {
            let why =
                error.kind == .outOfMemory ? "has stopped for want of memory" : "diverged and has stopped"
            let stopped = LockstepError(
                error.kind, "step \(stepsTaken + 1): the run \(why): \(error.message)")
            failure = stopped
            throw stopped
        }
    }

    /// Saves the run in a folder, as a folder `step-N` that transformers loads as a model (PEFT as an adapter).
    ///
    /// It is there as a whole or not at all, whatever happens meanwhile; the checkpoints before the last `kept` are removed
    /// after it.
    ///
    /// - Throws: `.file`, with what the system says, such as a disk that is full; the failure that stopped the run.
    /// - Returns: the checkpoint's folder.
    @discardableResult
    public final func save(to folder: String, keeping kept: Int = 2) throws(LockstepError) -> String {
        try checkIsWell()
        return try RunCheckpoint.write(
            to: folder, learner, model,
            RunCheckpoint.State(
                step: stepsTaken, updates: learner.optimizer.step, scaler: learner.scaler.bytes,
                monitor: monitorBytes()),
            configuration: configuration, keeping: kept)
    }

    /// Goes on where the newest checkpoint in a folder was taken: the run, which has taken no step yet, is as it was then.
    ///
    /// - Throws: `.badData` for a damaged checkpoint, unless an older one may be taken; `.invalidArgument` for one of
    ///   a run with other options, naming the first, or if steps were taken. If reading failed half-way no step can be
    ///   taken until it succeeds.
    /// - Returns: whether there was one: else the run begins.
    public final func resume(
        from folder: String, _ choice: ResumeOptions = .init()
    ) throws(LockstepError) -> Bool {
        guard stepsTaken == 0 else {
            throw LockstepError(
                .invalidArgument, "run: has taken \(stepsTaken) steps; resume before the first")
        }
        guard let path = try RunCheckpoint.newest(in: folder, choice) else { return false }
        do throws(LockstepError) {
            let state = try RunCheckpoint.read(path, into: learner, model, configuration: configuration)
            try setMonitor(state.monitor, path)
            stepsTaken = state.step
        } catch {
            // Some of it may have been read: what is there belongs to no step.
            if error.kind != .invalidArgument {
                failure = LockstepError(
                    error.kind,
                    "run: was not resumed: \(error.message); resume it again, or begin another")
            }
            throw error
        }
        failure = nil
        return true
    }

    /// Writes the model alone, or its adapter, into a folder, whose files of these names must not be there yet.
    public final func saveModel(to folder: String) throws(LockstepError) {
        try SystemFolder.make(folder)
        try ModelFolder.write(to: folder, learner.trainer, model)
    }
}
