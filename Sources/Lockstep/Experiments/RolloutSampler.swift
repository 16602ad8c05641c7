/// Samples groups of responses with rollout engines that are kept from step to step.
///
/// A small model has an engine for each worker, as threads that share a layer would wait for each other longer than
/// they work. Draws depend on seed, id and position alone, so the bits are the same.
final class RolloutSampler {
    /// Responses to one prompt.
    struct Group {
        var prompt: [Int32]
        /// The id of the first; those of the others follow.
        var firstID: UInt64
        var count: Int
    }

    private let engines: [RolloutEngine]
    private let recipe: Recipe

    /// Weights up to which every worker has its own engine.
    private static let smallModel = 1 << 21
    /// Sequences in an engine at a time.
    private static let capacity = 64

    init(_ model: Model, _ settings: SamplingSettings, _ execution: Execution) throws(LockstepError) {
        let isSmall = model.parameterCount <= RolloutSampler.smallModel
        let own = Execution(threads: 1, instructionSet: execution.instructionSet)
        var engines: [RolloutEngine] = []
        for _ in 0..<(isSmall ? try execution.threadCount() : 1) {
            engines.append(
                try RolloutEngine(
                    model, settings: settings, capacity: RolloutSampler.capacity,
                    execution: isSmall ? own : execution))
        }
        self.engines = engines
        recipe = model.recipe
    }

    /// Samples all groups from a snapshot; rollouts are in the order of groups and ids.
    func sample(_ groups: [Group], from model: Model) throws(LockstepError) -> [Rollout] {
        for engine in engines { engine.use(model) }
        let workers = engines.count
        let responses = groups.reduce(0) { $0 + $1.count }
        try askForMemory(responses, bytesEach: 256)
        // Whole groups, which share their prompt; few enough for each worker to get some.
        let fitting = RolloutSampler.capacity / max(groups.first?.count ?? 1, 1)
        let size = max(1, min(fitting, (groups.count + workers - 1) / workers))
        let tasks = (groups.count + size - 1) / size
        let results = TaskResults<[Rollout]>(tasks)
        parallelFor(tasks: tasks, threads: workers) { task, worker in
            results.set(task) { () throws(LockstepError) in
                try RolloutSampler.run(
                    engines[worker], groups[task * size..<min((task + 1) * size, groups.count)])
            }
        }
        return try results.values().flatMap { $0 }
    }

    private static func run(
        _ engine: RolloutEngine, _ groups: ArraySlice<Group>
    ) throws(LockstepError) -> [Rollout] {
        var rollouts: [UInt64: Rollout] = [:]
        do throws(LockstepError) {
            for group in groups {
                try engine.add(
                    prompt: group.prompt, ids: (0..<group.count).map { group.firstID + UInt64($0) })
            }
            while !engine.isIdle { for rollout in try engine.step() { rollouts[rollout.id] = rollout } }
        } catch {
            _ = engine.removeAll()
            throw error
        }
        return groups.flatMap { group in (0..<group.count).compactMap { rollouts[group.firstID + UInt64($0)] }
        }
    }
}

/// What tasks on several threads gave: a value, or an error, each.
final class TaskResults<Value>: @unchecked Sendable {
    private let results: UnsafeMutableBufferPointer<Result<Value, LockstepError>?>

    init(_ count: Int) {
        results = .allocate(capacity: count)
        results.initialize(repeating: nil)
    }

    deinit {
        results.deinitialize()
        results.deallocate()
    }

    func set(_ task: Int, _ body: () throws(LockstepError) -> Value) {
        do throws(LockstepError) {
            results[task] = .success(try body())
        } catch {
            results[task] = .failure(error)
        }
    }

    /// All values, in the order of tasks, or the first error in that order.
    func values() throws(LockstepError) -> [Value] {
        var values: [Value] = []
        for result in results { if let result { values.append(try result.get()) } }
        return values
    }
}
