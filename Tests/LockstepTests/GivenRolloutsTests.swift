import Testing

@testable import Lockstep

/// Rollouts that were drawn elsewhere and are given to a run.
@Suite struct GivenRolloutsTests {
    struct Setting: Sendable {
        var trainer = Recipe(.fp16)
        var rollout: Recipe?
        var temperature = 1.0
        var stopIDs: Set<Int32> = []
    }

    static func run(_ setting: Setting = Setting()) throws -> ReinforcementRun {
        var options = ReinforcementOptions(
            model: StartingModel(.new(.chain, seed: 1, deviation: 0.1)), trainer: setting.trainer,
            rollout: setting.rollout, algorithm: try Algorithm(preset: "paper/grpo-token-tis"))
        (options.prompts, options.samples, options.temperature) = (4, 4, setting.temperature)
        options.execution.threads = 1
        return try ReinforcementRun(
            options,
            environment: Environment(
                name: "given", maxTokens: 6, stopIDs: setting.stopIDs,
                prompt: { [Int32($0 % 7), 1, 2] }, reward: { Double($0.response.last! % 2) }))
    }

    /// What the next step asks for, by an engine of the policy's bytes, in the order of ids.
    static func drawn(_ run: ReinforcementRun) throws -> [Rollout] {
        let bytes = try run.policy()
        let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: bytes.count, alignment: 64)
        defer { memory.deallocate() }
        try bytes.write(to: memory.baseAddress!)
        let model = try Model(bytes: UnsafeRawBufferPointer(memory), recipe: run.options.rollout)
        let engine = try RolloutEngine(
            model, settings: run.samplingSettings, capacity: 5, execution: Execution(threads: 2))
        for request in try run.requests() { try engine.add(prompt: request.prompt, ids: Array(request.ids)) }
        var rollouts: [Rollout] = []
        while !engine.isIdle { rollouts += try engine.step() }
        return rollouts.sorted { $0.id < $1.id }
    }

    private static func bits(_ metrics: ReinforcementMetrics) -> [UInt64] {
        metrics.named.map(\.value.bitPattern)
    }

    private static func masters(_ run: ReinforcementRun) throws -> [UInt32] {
        try run.trainer.withMasters { $0.map(\.bitPattern) }
    }

    /// All responses of some prompts, of which the engine says less than it should: a policy of another kind.
    private static func shifted(_ rollouts: ArraySlice<Rollout>, by shift: Double) -> [Rollout] {
        rollouts.map { rollout in
            var rollout = rollout
            rollout.rawLogProbs = rollout.rawLogProbs.map { $0 - shift }
            return rollout
        }
    }

    static let settings = [
        Setting(), Setting(rollout: Recipe(.bf16)), Setting(stopIDs: [3, 5, 11]),
        Setting(trainer: Recipe(.bf16), rollout: Recipe(.fp16), temperature: 0.7, stopIDs: [1, 2]),
    ]

    @Test(arguments: settings) func aStepHasTheBitsOfOneThatDraws(_ setting: Setting) throws {
        let (alone, run, mixed) = (try Self.run(setting), try Self.run(setting), try Self.run(setting))
        for step in 1...3 {
            let rollouts = try Self.drawn(run)
            #expect(rollouts.count == 16)
            try run.give(rollouts[9...].reversed(), step: step)
            try run.give(Array(rollouts[..<12]), step: step)  // some twice
            try mixed.give(Array(rollouts[3..<9]), step: step)  // of two prompts not all
            let expected = Self.bits(try alone.step())
            #expect(try Self.bits(run.step()) == expected)
            #expect(try Self.bits(mixed.step()) == expected)
        }
        #expect(try Self.masters(run) == Self.masters(alone))
        #expect(try Self.masters(mixed) == Self.masters(alone))
    }

    @Test func requestsAreTheNextSteps() throws {
        let run = try Self.run()
        let first = try run.requests()
        #expect(try run.requests() == first)
        #expect(first.map(\.problem) == [0, 1, 2, 3] && first.map(\.step) == [1, 1, 1, 1])
        #expect(first[3].prompt == [3, 1, 2])
        let ids = first.flatMap { Array($0.ids) }
        #expect(ids.count == 16 && zip(ids, ids.dropFirst()).allSatisfy { $0 + 1 == $1 })
        _ = try run.step()
        let second = try run.requests()
        #expect(second.map(\.problem) == [4, 5, 6, 7] && second.allSatisfy { $0.step == 2 })
        #expect(Set(ids).isDisjoint(with: second.flatMap { Array($0.ids) }))
    }

    /// The engines agree to the bit, so that a log ratio is there only where it was given.
    @Test func whatWasGivenIsTaken() throws {
        let (whole, part) = (try Self.run(), try Self.run())
        let rollouts = try Self.drawn(whole)
        try whole.give(Self.shifted(rollouts[4..<8], by: 0.5), step: 1)
        let metrics = try whole.step()
        #expect(abs(metrics.maxAbsLogRatio - 0.5) < 1e-9 && abs(metrics.meanAbsLogRatio - 0.125) < 1e-9)
        // A prompt of which some lack is drawn anew, all of it.
        try part.give(Self.shifted(rollouts[4..<7], by: 0.5), step: 1)
        #expect(try part.step().maxAbsLogRatio == 0)
        // Given again for the next step, with their old ids, they are refused.
        #expect(throws: LockstepError.self) { try part.give(rollouts, step: 2) }
    }

    /// One that cannot have been drawn is refused, with all that came with it.
    static let wrong: [(String, @Sendable (inout Rollout) -> Void)] = [
        ("has 0 tokens", { ($0.tokens, $0.rawLogProbs, $0.processedLogProbs) = ([], [], []) }),
        ("has 6 tokens and 5 log-probs", { $0.rawLogProbs.removeLast() }),
        ("has 6 tokens and 6 log-probs", { $0.processedLogProbs.removeLast() }),
        (
            "has 7 tokens",
            {
                $0.tokens.append(0)
                $0.rawLogProbs.append(-1)
                $0.processedLogProbs.append(-1)
            }
        ),
        ("token 2 is 16, outside the vocabulary of 16", { $0.tokens[2] = 16 }),
        ("token 5 is -1, outside", { $0.tokens[5] = -1 }),
        ("log-prob 4 is not finite", { $0.rawLogProbs[4] = .nan }),
        ("log-prob 1 is not finite", { $0.processedLogProbs[1] = -.infinity }),
        ("has not ended as it says", { $0.finish = .running }),
        ("has not ended as it says", { $0.finish = .stop }),
        ("has not ended as it says", { $0.tokens[2] = 15 }),
        (
            "has not ended as it says",
            {
                $0.tokens.removeLast()
                $0.rawLogProbs.removeLast()
                $0.processedLogProbs.removeLast()
            }
        ),
        ("was given before, with other tokens or log-probs", { $0.tokens[3] = ($0.tokens[3] + 1) % 15 }),
        ("was given before, with other tokens or log-probs", { $0.rawLogProbs[0] -= 1 }),
    ]

    @Test func whatNoEngineDrawsIsRefused() throws {
        let setting = Setting(stopIDs: [15])
        for (message, change) in Self.wrong {
            let run = try Self.run(setting)
            let rollouts = try Self.drawn(run)
            // One that was cut off; all of prompts before it come with it, and must not be taken.
            let place = try #require(rollouts.indices.last { rollouts[$0].finish == .length && $0 >= 4 })
            let isRepeated = message.hasPrefix("was given before")
            if isRepeated { try run.give([rollouts[place]], step: 1) }
            var bad = rollouts[place]
            change(&bad)
            var given = Self.shifted(rollouts[..<4], by: 0.5)
            given.append(bad)
            let error = #expect(throws: LockstepError.self) { try run.give(given, step: 1) }
            #expect(error?.kind == .invalidArgument)
            #expect(error?.message.hasPrefix("rollouts[4]: ") == true, "\(error?.message ?? "")")
            #expect(error?.message.contains(message) == true, "\(error?.message ?? "")")
            #expect(try run.step().maxAbsLogRatio == 0, "\(message)")
        }
    }

    @Test func ofAnotherStepOrRunTheyAreRefused() throws {
        let run = try Self.run()
        let rollouts = try Self.drawn(run)
        for step in [0, 2] {
            let error = #expect(throws: LockstepError.self) { try run.give(rollouts, step: step) }
            #expect(error?.message.hasPrefix("step is \(step), but the run's next is 1") == true)
        }
        let stranger = Rollout(
            id: rollouts[15].id + 1, tokens: rollouts[15].tokens, rawLogProbs: rollouts[15].rawLogProbs,
            processedLogProbs: rollouts[15].processedLogProbs, finish: .length)
        let error = #expect(throws: LockstepError.self) { try run.give([stranger], step: 1) }
        #expect(error?.message.contains("is none that step 1 asked for") == true)
    }
}
