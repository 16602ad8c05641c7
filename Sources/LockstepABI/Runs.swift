import CLockstep
import Lockstep

// Section 14 of the header: runs.

extension lockstep_environment: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_environment>.size }
}

extension lockstep_run_options: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_run_options>.size }
}

extension lockstep_run_metrics: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_run_metrics>.size }
}

extension lockstep_rollout_request: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_rollout_request>.size }
}

/// What a lockstep_run or a lockstep_supervised points to.
final class RunBox<Run: TrainingRun> {
    let run: Run
    /// Ids that are lent until the next call.
    private var lent: [UnsafeMutableBufferPointer<Int32>] = []

    init(_ run: Run) { self.run = run }

    deinit { takeBack() }

    /// Ids as the caller sees them.
    func lend(_ ids: [Int32]) -> UnsafePointer<Int32>? {
        let copy = UnsafeMutableBufferPointer<Int32>.allocate(capacity: ids.count)
        _ = copy.initialize(from: ids)
        lent.append(copy)
        return UnsafePointer(copy.baseAddress)
    }

    func takeBack() {
        for ids in lent { ids.deallocate() }
        lent = []
    }

    static func of(_ pointer: OpaquePointer?, _ maker: StaticString) throws(LockstepError) -> RunBox {
        try held(pointer, "run", from: maker)
    }
}

/// Saves either kind of run.
func save(_ run: TrainingRun, _ folder: UnsafePointer<CChar>?, _ kept: Int64) throws(LockstepError) {
    try run.save(to: text(folder, "folder"), keeping: Int(kept))
}

/// Resumes either kind of run.
func resume(
    _ run: TrainingRun, _ step: UnsafeMutablePointer<Int64>?, _ folder: UnsafePointer<CChar>?,
    _ allowOlder: Int32
) throws(LockstepError) {
    _ = try run.resume(from: text(folder, "folder"), ResumeOptions(allowsOlder: allowOlder != 0))
    step?.pointee = Int64(run.stepsTaken)
}

@_cdecl("lockstep_run_create") @implementation
public func lockstep_run_create(
    _ run: UnsafeMutablePointer<OpaquePointer?>!, _ options: UnsafePointer<lockstep_run_options>!,
    _ environment: UnsafePointer<lockstep_environment>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        guard let run else { throw invalid("run is NULL; give the address of a lockstep_run pointer") }
        let core = try ReinforcementRun(
            ReinforcementOptions(options), environment: Environment(environment))
        run.pointee = retained(RunBox(core))
    }
}

@_cdecl("lockstep_run_step") @implementation
public func lockstep_run_step(
    _ metrics: UnsafeMutablePointer<lockstep_run_metrics>!, _ run: OpaquePointer!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try checkGrowable(metrics, "metrics")
        try write(lockstep_run_metrics(coreRun(run).step()), to: metrics, "metrics")
    }
}

@_cdecl("lockstep_run_request") @implementation
public func lockstep_run_request(
    _ request: UnsafeMutablePointer<lockstep_rollout_request>!, _ count: UnsafeMutablePointer<Int>!,
    _ run: OpaquePointer!, _ index: Int
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        if request != nil { try checkGrowable(request, "request") }
        let box = try runBox(run)
        let all = try box.run.requests()
        if request != nil {
            guard all.indices.contains(index) else {
                throw invalid("index is \(UInt(bitPattern: index)); the step has \(all.count) requests")
            }
            box.takeBack()
            let (found, settings) = (all[index], box.run.samplingSettings)
            let stops = settings.stopIDs.sorted()
            try write(
                lockstep_rollout_request(
                    struct_size: 0, max_tokens: Int32(settings.maxTokens), step: Int64(found.step),
                    problem: Int64(found.problem), first_id: found.ids.lowerBound,
                    samples: Int64(found.ids.count),
                    prompt: box.lend(found.prompt), prompt_count: found.prompt.count,
                    stop_ids: box.lend(stops), stop_id_count: stops.count,
                    temperature: settings.temperature, seed: settings.seed),
                to: request, "request")
        }
        count?.pointee = all.count
    }
}

@_cdecl("lockstep_run_give") @implementation
public func lockstep_run_give(
    _ run: OpaquePointer!, _ step: Int64, _ rollouts: UnsafePointer<lockstep_rollout>!, _ count: Int
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let core = try coreRun(run)
        guard (0...1 << 20).contains(count) else {
            throw invalid("count is \(UInt(bitPattern: count)); give 1,048,576 at most")
        }
        try checkArray(rollouts, "rollouts", count: count)
        var all: [Rollout] = []
        for index in 0..<count { all.append(try Rollout(rollouts[index], "rollouts[\(index)]")) }
        try core.give(all, step: Int(step))
    }
}

@_cdecl("lockstep_run_policy") @implementation
public func lockstep_run_policy(
    _ bytes: UnsafeMutableRawPointer!, _ size: UnsafeMutablePointer<Int>!, _ run: OpaquePointer!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try checkArray(size, "size", count: 1)
        let policy = try coreRun(run).policy()
        if let bytes {
            guard size.pointee >= policy.count else {
                throw invalid("size is \(size.pointee) but there are \(policy.count); ask with bytes NULL")
            }
            try policy.write(to: bytes)
        }
        size.pointee = policy.count
    }
}

@_cdecl("lockstep_run_evaluate") @implementation
public func lockstep_run_evaluate(
    _ rewards: UnsafeMutablePointer<Double>!, _ run: OpaquePointer!, _ problems: UnsafePointer<Int64>!,
    _ count: Int, _ samples: Int64, _ seed: UInt64, _ temperature: Double
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let core = try coreRun(run)
        let numbers = try problemNumbers(problems, count)
        try checkArray(rewards, "rewards", count: count)
        let found = try core.evaluate(
            problems: numbers, samples: Int(samples), seed: seed, temperature: temperature)
        for (index, reward) in found.rewards.enumerated() { rewards[index] = reward }
    }
}

@_cdecl("lockstep_run_save") @implementation
public func lockstep_run_save(
    _ run: OpaquePointer!, _ folder: UnsafePointer<CChar>!, _ kept: Int64
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try save(coreRun(run), folder, kept)
    }
}

@_cdecl("lockstep_run_resume") @implementation
public func lockstep_run_resume(
    _ step: UnsafeMutablePointer<Int64>!, _ run: OpaquePointer!, _ folder: UnsafePointer<CChar>!,
    _ allow_older: Int32
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try resume(coreRun(run), step, folder, allow_older)
    }
}

@_cdecl("lockstep_run_destroy") @implementation
public func lockstep_run_destroy(_ run: OpaquePointer!) {
    release(run)
}

@_cdecl("lockstep_find_perfectible") @implementation
public func lockstep_find_perfectible(
    _ problems: UnsafeMutablePointer<Int64>!, _ count: Int, _ model: OpaquePointer!,
    _ environment: UnsafePointer<lockstep_environment>!, _ candidates: Int64, _ samples: Int64, _ low: Double,
    _ high: Double, _ seed: UInt64, _ threads: Int32
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try checkArray(problems, "problems", count: count)
        var options = PerfectibleOptions()
        (options.count, options.candidates, options.samples) = (count, Int(candidates), Int(samples))
        (options.low, options.high, options.seed) = (low, high, seed)
        let found = try Environment(environment).perfectible(
            modelBox(model).model, options, execution: Execution(threads: Int(threads)))
        for (index, problem) in found.enumerated() { problems[index] = Int64(problem) }
    }
}

private func coreRun(_ run: OpaquePointer?) throws(LockstepError) -> ReinforcementRun {
    try runBox(run).run
}

private func runBox(_ run: OpaquePointer?) throws(LockstepError) -> RunBox<ReinforcementRun> {
    try RunBox.of(run, "lockstep_run_create")
}

private func problemNumbers(
    _ problems: UnsafePointer<Int64>?, _ count: Int
) throws(LockstepError) -> [Int] {
    guard (0...1 << 24).contains(count) else {
        throw invalid("problem_count is \(UInt(bitPattern: count)); give 16,777,216 at most")
    }
    try checkArray(problems, "problems", count: count)
    try askForMemory(count, bytesEach: 2 * MemoryLayout<Int>.stride)
    let numbers = UnsafeBufferPointer(start: problems, count: count).map { Int($0) }
    if let index = numbers.firstIndex(where: { !(0...1 << 44).contains($0) }) {
        throw invalid("problems[\(index)] is \(numbers[index]); give 0 to 2^44")
    }
    return numbers
}

extension Environment {
    fileprivate init(_ pointer: UnsafePointer<lockstep_environment>?) throws(LockstepError) {
        guard pointer != nil else { throw invalid("environment is NULL") }
        let given = try read(pointer, "environment", defaults: lockstep_environment())
        var problems: [Int]?
        if given.problems != nil || given.problem_count != 0 {
            problems = try problemNumbers(given.problems, given.problem_count)
        }
        if given.task != nil {
            self.init(try coreTask(given.task), seed: given.task_seed, problems: problems)
            if given.max_tokens != 0 { maxTokens = Int(given.max_tokens) }
            return
        }
        guard let prompt = given.prompt, let reward = given.reward else {
            throw invalid("environment: there is no task; give both callbacks, prompt and reward, or one")
        }
        try checkArray(given.stop_ids, "environment: stop_ids", count: given.stop_id_count)
        let context = given.context
        self.init(
            name: given.name == nil ? "callbacks" : try text(given.name, "environment: name"),
            maxTokens: Int(given.max_tokens),
            stopIDs: Set(UnsafeBufferPointer(start: given.stop_ids, count: given.stop_id_count)),
            problems: problems,
            prompt: { (problem) throws(LockstepError) in
                let room = Environment.longestPrompt
                let memory = UnsafeMutablePointer<Int32>.allocate(capacity: room)
                defer { memory.deallocate() }
                var count = 0
                guard prompt(context, memory, &count, room, Int64(problem)) == 0 else {
                    throw invalid("the callback refused")
                }
                guard (0...room).contains(count) else {
                    throw invalid(
                        "the callback wrote \(UInt(bitPattern: count)) ids; there is room for \(room)")
                }
                return Array(UnsafeBufferPointer(start: memory, count: count))
            },
            reward: { (request) throws(LockstepError) in
                var found = Double.nan
                guard
                    reward(
                        context, &found, Int64(request.step), Int64(request.problem), Int64(request.sample),
                        request.prompt, request.prompt.count, request.response, request.response.count) == 0
                else { throw invalid("the callback refused") }
                return found
            })
    }

    /// Ids that a callback may write.
    private static let longestPrompt = 1 << 17
}

extension ReinforcementOptions {
    fileprivate init(_ pointer: UnsafePointer<lockstep_run_options>?) throws(LockstepError) {
        guard pointer != nil else { throw invalid("options is NULL; begin with LOCKSTEP_RUN_OPTIONS_INIT") }
        let given = try read(pointer, defaults: lockstep_run_options())
        guard (0...1).contains(given.recompute), (0...1).contains(given.policies) else {
            throw invalid(
                "options: recompute is \(given.recompute) and policies \(given.policies); each is 0 or 1")
        }
        let execution = try LockstepABI.execution(threads: given.threads, given.instruction_set)
        let trainer = given.trainer == nil ? Recipe(.fp16) : try coreRecipe(given.trainer)
        self.init(
            model: try StartingModel(
                given.model, adapter: given.adapter, rank: given.lora_rank, alpha: given.lora_alpha,
                seed: given.model_seed, deviation: given.deviation), trainer: trainer,
            rollout: given.rollout == nil ? nil : try coreRecipe(given.rollout),
            algorithm: try Algorithm(given))
        (prompts, samples, updates) = (Int(given.prompts), Int(given.samples), Int(given.updates))
        (temperature, seed) = (given.temperature, given.seed)
        learner.adamW = AdamWOptions(
            beta1: given.beta1, beta2: given.beta2, epsilon: given.epsilon, weightDecay: given.weight_decay)
        if given.schedule != nil { learner.schedule = try coreSchedule(given.schedule) }
        learner.maxNorm = given.max_norm
        if given.scaler != nil { learner.scaler = try coreOptions(given.scaler) }
        monitor = MonitorOptions(
            learningSteps: Int(given.learning_steps), falseAlarmsPer1000: given.false_alarms_per_1000)
        self.execution = TrainerOptions(
            recomputes: given.recompute == 1, threads: execution.threads,
            instructionSet: execution.instructionSet)
    }
}

extension StartingModel {
    /// What either kind of run says of its model.
    init(
        _ model: UnsafePointer<CChar>?, adapter: UnsafePointer<CChar>?, rank: Int32, alpha: Double,
        seed: UInt64,
        deviation: Double
    ) throws(LockstepError) {
        self.init(
            model == nil
                ? .new(.chain, seed: seed, deviation: deviation) : .folder(try text(model, "options: model")),
            adapter: adapter == nil ? nil : try text(adapter, "options: adapter"),
            lowRank: rank == 0 ? nil : LowRank(rank: Int(rank), alpha: alpha, seed: seed))
    }
}

extension Algorithm {
    fileprivate init(_ given: lockstep_run_options) throws(LockstepError) {
        if given.algorithm != nil {
            try self.init(preset: text(given.algorithm, "options: algorithm"))
            return
        }
        self.init(policies: given.policies == 1 ? .two : .three)
        if given.correction != nil {
            correction = try CorrectionOptions(
                read(given.correction, "correction", defaults: lockstep_correction_options.defaults))
        }
        if given.advantages != nil { advantages = try advantageOptions(given.advantages) }
        objective = try objectiveOptions(given.objective).0
    }
}

extension Rollout {
    /// One of the caller's.
    fileprivate init(_ given: lockstep_rollout, _ name: String) throws(LockstepError) {
        guard (0...1 << 20).contains(given.token_count), let finish = Finish(rawValue: given.finish) else {
            throw invalid(
                "\(name): token_count is \(given.token_count) and finish \(given.finish); give up to 1,048,576 tokens and "
                    + "a LOCKSTEP_FINISH_ value")
        }
        let count = Int(given.token_count)
        try askForMemory(count, bytesEach: 20)
        guard let tokens = given.tokens, let raw = given.raw_log_probs,
            let processed = given.processed_log_probs
        else { throw invalid("\(name): tokens, raw_log_probs or processed_log_probs is NULL") }
        self.init(
            id: given.id, tokens: Array(UnsafeBufferPointer(start: tokens, count: count)),
            rawLogProbs: Array(UnsafeBufferPointer(start: raw, count: count)),
            processedLogProbs: Array(UnsafeBufferPointer(start: processed, count: count)), finish: finish)
    }
}

extension lockstep_run_metrics {
    fileprivate init(_ core: ReinforcementMetrics) {
        self.init(
            struct_size: 0, scale_at_floor: core.isScaleAtFloor ? 1 : 0, step: Int64(core.step),
            responses: Int64(core.responses), tokens: Int64(core.tokens),
            equal_groups: Int64(core.equalGroups),
            updates: Int64(core.updates), skipped: Int64(core.skipped),
            skipped_total: Int64(core.skippedTotal),
            reward_mean: core.rewardMean, share_right: core.shareRight, response_length: core.responseLength,
            share_truncated: core.shareTruncated, k3: core.k3, mean_abs_log_ratio: core.meanAbsLogRatio,
            max_abs_log_ratio: core.maxAbsLogRatio, ess: core.ess, sequence_ess: core.sequenceESS,
            sequence_log_ratio_std: core.sequenceLogRatioStd, entropy: core.entropy, loss: core.loss,
            clip_share: core.clipShare, share_masked: core.shareMasked, gradient_norm: core.gradientNorm,
            learning_rate: core.learningRate, loss_scale: core.lossScale, monitor_score: core.monitorScore,
            monitor: core.monitor.rawValue, monitor_statistic: core.monitorStatistic.rawValue,
            max_abs_prob_diff: core.maxAbsProbDiff)
    }
}
