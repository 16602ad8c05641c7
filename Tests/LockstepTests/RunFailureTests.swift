import Testing

@testable import Lockstep

/// Runs that diverge: they stop, and say what was first not finite.
@Suite struct RunFailureTests {
    private static func run(
        rollout: Recipe? = nil, _ algorithm: Algorithm? = nil, reward: Double = 1
    ) throws -> ReinforcementRun {
        var options = ReinforcementOptions(
            model: StartingModel(.new(.chain, seed: 1, deviation: 0.1)), rollout: rollout,
            algorithm: try algorithm ?? Algorithm(preset: "paper/grpo"))
        (options.prompts, options.samples) = (2, 4)
        options.execution.threads = 2
        return try ReinforcementRun(
            options,
            environment: Environment(
                name: "failing", maxTokens: 6, prompt: { [Int32($0 % 7), 1, 2] },
                reward: { reward * Double($0.sample % 2) }))
    }

    /// Sets all values of a tensor.
    private static func set(_ name: String, to value: Float, _ run: ReinforcementRun) throws {
        let tensor = try #require(run.trainer.parameters.tensors.first { $0.name == name })
        try run.trainer.withMasters { masters in for place in tensor.range { masters[place] = value } }
    }

    /// The message of a step, which every later call repeats, but for its beginning.
    private static func message(_ run: ReinforcementRun) throws -> String {
        let error = try #require(#expect(throws: LockstepError.self) { try run.step() })
        #expect(error.kind == .nonFinite)
        for call in [
            { _ = try run.step() }, { _ = try run.save(to: "/nowhere") }, { _ = try run.policy() },
            { _ = try run.requests() }, { try run.give([], step: 1) },
        ] as [() throws -> Void] {
            #expect(throws: error) { try call() }
        }
        let beginning = "step 1: the run diverged and has stopped: "
        #expect(error.message.hasPrefix(beginning), "\(error.message)")
        return String(error.message.dropFirst(beginning.count))
    }

    /// In fp16 a weight of 60,000 makes sums that are too large; what comes after it overflows too, and is not named.
    @Test(arguments: [
        ("model.layers.1.mlp.up_proj.weight", "MLP gate and up of layer 1: "),
        ("model.layers.2.mlp.gate_proj.weight", "MLP gate and up of layer 2: "),
        ("model.layers.0.self_attn.o_proj.weight", "attention output of layer 0: "),
    ]) func theFirstOperationIsNamed(_ tensor: String, _ wanted: String) throws {
        // The rollout engine meets it first, or, in a wider format, the trainer.
        for rollout in [Recipe(.fp16), Recipe(.bf16)] {
            let run = try Self.run(rollout: rollout)
            try Self.set(tensor, to: 60_000, run)
            try Self.set("model.layers.3.mlp.up_proj.weight", to: 60_000, run)
            let message = try Self.message(run)
            #expect(message.hasPrefix(wanted), "\(message)")
        }
    }

    @Test func logitsAreNamed() throws {
        for (rollout, wanted) in [
            (Recipe(.fp16), "logits of sequence "), (Recipe(.bf16), "output head of the end: "),
        ] {
            let run = try Self.run(rollout: rollout)
            try Self.set("lm_head.weight", to: 60_000, run)
            let message = try Self.message(run)
            #expect(message.hasPrefix(wanted), "\(message)")
        }
    }

    @Test func aTensorThatIsNoLongerFiniteIsNamed() throws {
        let run = try Self.run()
        try Self.set("model.norm.weight", to: .infinity, run)
        #expect(try Self.message(run).contains("'model.norm.weight'"))
    }

    /// An old policy of e^-690 that nothing bounds: with rewards of 1e99 an infinite loss.
    ///
    /// What is to become less probable comes first: sample 0, whose prompt has 3 tokens.
    @Test func theLossSaysWhatMadeIt() throws {
        var objective = ObjectiveOptions()
        (objective.logRatioMin, objective.logRatioMax) = (-.infinity, .infinity)
        let run = try Self.run(Algorithm(policies: .two, objective: objective), reward: 1e99)
        let rollouts = try GivenRolloutsTests.drawn(run).map { rollout in
            var rollout = rollout
            rollout.rawLogProbs = rollout.rawLogProbs.map { _ in -690 }
            return rollout
        }
        try run.give(rollouts, step: 1)
        #expect(
            try Self.message(run)
                == "the loss is inf; first not finite is the gradient, of sequence 0 at position 3, inf")
    }

    // MARK: What of a loss was first

    private static func batch() throws -> RunBatch {
        func sample(_ prompt: [Int32], _ tokens: [Int32]) -> RunBatch.Sample {
            let logProbs = tokens.map { -Double($0) }
            return RunBatch.Sample(
                problem: 0, prompt: prompt,
                rollout: Rollout(
                    id: 0, tokens: tokens, rawLogProbs: logProbs, processedLogProbs: logProbs, finish: .length
                ))
        }
        return try RunBatch(
            [sample([1, 2], [3, 4]), sample([5], [6, 7, 8]), sample([1, 2, 3], [9])], drawnFrom: false)
    }

    /// In the order in which a step computes them, whatever else is not finite.
    @Test func theFirstColumnIsNamed() throws {
        let batch = try Self.batch()
        let whole = try batch.slice(0..<3)
        #expect(
            whole.whyNotFinite(loss: .infinity)
                == "the loss is inf, of finite log-probs, advantages and weights: their sum is too large")
        // Tokens: 0 1 [2 3], 4 [5 6 7], 8 9 10 [11]. What prompts hold does not count.
        for column in RunBatch.Column.allCases {
            for place in [0, 1, 4, 8, 9, 10] { batch[column][place] = .nan }
        }
        #expect(whole.whyNotFinite(loss: .nan).hasPrefix("the loss is nan, of finite"))
        for (column, place, wanted) in [
            (.gradient, 11, "gradient, of sequence 2 at position 3, inf"),
            (.current, 7, "log-prob of the policy, of sequence 1 at position 3, inf"),
            (.weight, 3, "weight, of sequence 0 at position 3, inf"),
            (.advantage, 5, "advantage, of sequence 1 at position 1, inf"),
            (.reference, 11, "log-prob of the reference, of sequence 2 at position 3, inf"),
            (.trainer, 6, "log-prob of the trainer, of sequence 1 at position 2, inf"),
            (.rollout, 2, "log-prob of the rollout engine, of sequence 0 at position 2, inf"),
        ] as [(RunBatch.Column, Int, String)] {
            batch[column][place] = .infinity
            #expect(whole.whyNotFinite(loss: .nan) == "the loss is nan; first not finite is the \(wanted)")
        }
    }

    /// Of an update's share of the sequences, counted as in the step.
    @Test func sequencesAreCountedAsInTheStep() throws {
        let batch = try Self.batch()
        let slice = try batch.slice(1..<3)
        batch[.weight][2] = .nan  // of sequence 0
        #expect(slice.firstNonFinite(.weight) == nil)
        batch[.weight][11] = -.infinity
        let found = try #require(slice.firstNonFinite(.weight))
        #expect(found == (2, 3))
        #expect(slice.whyNotFinite(loss: .nan).hasSuffix("weight, of sequence 2 at position 3, -inf"))
        batch[.weight][7] = .nan
        #expect(slice.whyNotFinite(loss: .nan).hasSuffix("weight, of sequence 1 at position 3, nan"))
    }
}
