import Testing

@testable import Lockstep

/// Runs of the chain task.
@Suite struct ReinforcementRunTests {
    private func supervised(_ steps: Int, threads: Int = 1) throws -> SupervisedRun {
        var options = SupervisedRun.Options(
            model: StartingModel(.new(.chain, seed: 1, deviation: 0.1)), steps: steps)
        options.errorRate = 0.018
        options.execution.threads = threads
        return try SupervisedRun(options, task: VerifiableTask("chain", options: TaskOptions(size: 8)))
    }

    private func run(
        _ algorithm: String = "paper/grpo", threads: Int = 1, trainer: Recipe = Recipe(.fp16),
        rollout: Recipe? = nil
    ) throws -> ReinforcementRun {
        var options = ReinforcementOptions(
            model: StartingModel(.new(.chain, seed: 1, deviation: 0.1)), trainer: trainer, rollout: rollout,
            algorithm: try Algorithm(preset: algorithm))
        options.prompts = 4
        options.execution.threads = threads
        let task = try VerifiableTask("chain", options: TaskOptions(size: 8))
        return try ReinforcementRun(options, environment: Environment(task, seed: 1))
    }

    private func masters(_ trainer: Trainer) throws -> [UInt32] {
        try trainer.withMasters { $0.map(\.bitPattern) }
    }

    @Test func demonstrationsAreLearnt() throws {
        let run = try supervised(60, threads: 2)
        let first = try run.step()
        var last = first
        for _ in 0..<59 { last = try run.step() }
        // Every token is one of two digits' 14 at first; afterwards at least the alphabet is known.
        #expect(first.loss > 2.5)
        #expect(last.loss < first.loss - 0.1)
    }

    @Test(arguments: ["paper/grpo", "paper/pg-seq-mis", "paper/gspo", "paper/grpo-token-tis"])
    func threadsDoNotShow(algorithm: String) throws {
        let (one, two) = (try run(algorithm, threads: 1), try run(algorithm, threads: 2))
        for _ in 0..<3 {
            let (a, b) = (try one.step(), try two.step())
            #expect(a.named.map(\.value.bitPattern) == b.named.map(\.value.bitPattern))
        }
        #expect(try masters(one.trainer) == masters(two.trainer))
    }

    @Test func lockstepEnginesAgreeAndOthersDoNot() throws {
        let same = try run().step()
        #expect(same.k3 == 0)
        #expect(same.maxAbsLogRatio == 0)
        #expect(same.ess == 1)
        let mixed = try run(trainer: Recipe(.fp32), rollout: Recipe(.bf16)).step()
        #expect(mixed.k3 > 0)
    }
}
