import Testing

@testable import Lockstep

/// The proof: what the rollout engine says of its tokens is what scoring says of them, bit for bit.
@Suite struct RolloutEngineTests {
    private static func prompts(_ model: Model) -> [[Int32]] {
        var random = Random(11)
        return [1, 3, 17, 40, 70].map { length in
            (0..<length).map { _ in
                Int32.random(in: 0..<Int32(model.configuration.vocab), using: &random)
            }
        }
    }

    /// All rollouts, by id: three of each prompt.
    private static func roll(
        _ model: Model, _ settings: SamplingSettings, capacity: Int, _ execution: Execution,
        reversed: Bool = false
    ) throws -> [Rollout] {
        let engine = try RolloutEngine(model, settings: settings, capacity: capacity, execution: execution)
        let prompts = Array(prompts(model).enumerated())
        for (index, prompt) in reversed ? prompts.reversed() : prompts {
            try engine.add(prompt: prompt, ids: (0..<3).map { UInt64(index * 3 + $0) })
        }
        var rollouts: [Rollout] = []
        while !engine.isIdle { rollouts += try engine.step() }
        return rollouts.sorted { $0.id < $1.id }
    }

    @Test(arguments: ModelTests.families, ModelTests.recipes)
    func rolloutsHaveTheBitsOfScoring(family: String, recipe: String) throws {
        let model = try Model(path: "\(ModelTests.folder)/\(family)", recipe: Recipe(named: recipe))
        let settings = SamplingSettings(seed: 5, stopIDs: [7], maxTokens: 40)
        let rollouts = try Self.roll(model, settings, capacity: 32, .init(threads: 1))
        let prompts = Self.prompts(model)
        #expect(rollouts.map(\.id) == Array(0..<15))
        #expect(Set(rollouts.map(\.tokens)).count > 10, "draws differ within a group")
        let whole = rollouts.map { prompts[Int($0.id / 3)] + $0.tokens }
        let scores = try ModelTests.score(model, whole)
        for (rollout, score) in zip(rollouts, scores) {
            #expect(rollout.rawLogProbs == Array(score.suffix(rollout.tokens.count)))
            #expect(rollout.processedLogProbs == rollout.rawLogProbs)
            #expect(rollout.keptMass.allSatisfy { $0 == 1 })
            let stopped = rollout.tokens.last == 7
            #expect(rollout.finish == (stopped ? .stop : .length))
            #expect(stopped || rollout.tokens.count == 40)
        }
        // However they were batched.
        for (capacity, threads, reversed) in [(1, 1, false), (4, 2, true), (32, 3, true)] {
            let again = try Self.roll(
                model, settings, capacity: capacity, .init(threads: threads), reversed: reversed)
            #expect(again == rollouts, "\(capacity) \(threads)")
        }
    }

    @Test func everyInstructionSetDrawsTheSame() throws {
        let model = try Model(path: "\(ModelTests.folder)/qwen3_moe", recipe: Recipe(.bf16))
        let settings = SamplingSettings(temperature: 0.8, topK: 20, topP: 0.9, minP: 0.02, maxTokens: 16)
        let wanted = try Self.roll(model, settings, capacity: 8, .init(threads: 1))
        for set in instructionSets {
            let found = try Self.roll(
                model, settings, capacity: 3, Execution(threads: 2, instructionSet: set))
            #expect(found == wanted, "\(set)")
        }
        #expect(wanted.contains { $0.keptMass.contains { $0 < 0.95 } })
        #expect(wanted.allSatisfy { $0.processedLogProbs != $0.rawLogProbs })
    }

    @Test func greedyTakesTheMostProbable() throws {
        let model = try Model(path: "\(ModelTests.folder)/llama_untied", recipe: Recipe(.fp32))
        let greedy = try Self.roll(
            model, SamplingSettings(temperature: 0, maxTokens: 8), capacity: 8, .init(threads: 1))
        let topOne = try Self.roll(
            model, SamplingSettings(topK: 1, seed: 9, maxTokens: 8), capacity: 8, .init(threads: 1))
        #expect(greedy.map(\.tokens) == topOne.map(\.tokens))
        #expect(greedy.map(\.rawLogProbs) == topOne.map(\.rawLogProbs))
        #expect(greedy.allSatisfy { $0.processedLogProbs.allSatisfy { $0 == 0 } })
    }

    /// Tokens come as often as their probability says: a chi-square over 4,000 draws at one place.
    @Test func drawsFollowTheDistribution() throws {
        let model = try Model(path: "\(ModelTests.folder)/llama_untied", recipe: Recipe(.fp32))
        let engine = try RolloutEngine(
            model, settings: SamplingSettings(temperature: 0.3, maxTokens: 1), capacity: 32)
        try engine.add(prompt: [5, 6], ids: Array(0..<4000))
        var counts: [Int32: Int] = [:]
        var logProbs: [Int32: Double] = [:]
        while !engine.isIdle {
            for rollout in try engine.step() {
                counts[rollout.tokens[0], default: 0] += 1
                logProbs[rollout.tokens[0]] = rollout.processedLogProbs[0]
            }
        }
        var statistic = 0.0
        var cells = 0
        for (token, logProb) in logProbs where exponential(logProb) * 4000 >= 8 {
            let expected = exponential(logProb) * 4000
            let difference = Double(counts[token]!) - expected
            statistic += difference * difference / expected
            cells += 1
        }
        // The mean of the statistic is `cells`, its standard deviation sqrt(2 cells): five of them above.
        #expect(cells > 10)
        #expect(statistic < Double(cells) + 5 * (2 * Double(cells)).squareRoot())
    }

    /// Prompts around pages of 128 positions and a chunk of 512 rows, whose groups share what they begin with.
    @Test(arguments: ["llama_tied_rope_llama3", "qwen3_moe"], ["fp32", "fp16"])
    func prefixesAreSharedAcrossPages(family: String, recipe: String) throws {
        var checkpoint = try TinyCheckpoint(family)
        checkpoint.config["max_position_embeddings"] = .integer(2048)
        let model = try checkpoint.model(Recipe(named: recipe))
        let lengths = [1, 126, 127, 128, 129, 255, 256, 300, 511, 512, 513, 1100]
        let prompts = lengths.map { ModelTests.tokens($0, vocab: 97, seed: UInt64($0)) }
        func rollouts(_ capacity: Int, _ threads: Int, alone: Bool = false) throws -> [Rollout] {
            var found: [Rollout] = []
            var engine = try RolloutEngine(
                model, settings: SamplingSettings(seed: 2, maxTokens: 6), capacity: capacity,
                execution: .init(threads: threads))
            for (index, prompt) in prompts.enumerated() {
                try engine.add(prompt: prompt, ids: (0..<3).map { UInt64(index * 3 + $0) })
                if alone {
                    while !engine.isIdle { found += try engine.step() }
                    engine = try RolloutEngine(
                        model, settings: SamplingSettings(seed: 2, maxTokens: 6), capacity: capacity)
                }
            }
            while !engine.isIdle { found += try engine.step() }
            return found.sorted { $0.id < $1.id }
        }
        let found = try rollouts(32, 1)
        #expect(found.map(\.id) == Array(0..<UInt64(3 * lengths.count)))
        let scores = try ModelTests.score(model, found.map { prompts[Int($0.id / 3)] + $0.tokens })
        for (rollout, score) in zip(found, scores) {
            #expect(rollout.rawLogProbs == Array(score.suffix(6)), "\(prompts[Int(rollout.id / 3)].count)")
        }
        #expect(try rollouts(5, 2) == found)
        #expect(try rollouts(4, 1, alone: true) == found)
    }

    @Test func theContextEnds() throws {
        let model = try Model(path: "\(ModelTests.folder)/llama_untied", recipe: Recipe(.fp32))
        let engine = try RolloutEngine(model, settings: SamplingSettings(maxTokens: 1000))
        try engine.add(prompt: ModelTests.tokens(120, vocab: 97, seed: 1), ids: [0, 1])
        try engine.add(prompt: ModelTests.tokens(127, vocab: 97, seed: 1), ids: [2])
        var found: [Rollout] = []
        while !engine.isIdle { found += try engine.step() }
        #expect(found.allSatisfy { $0.finish == .length })
        #expect(found.map(\.id) == [2, 0, 1] && found.map(\.tokens.count) == [1, 8, 8])
    }

    /// What is taken before the end is the beginning of what would have been drawn.
    @Test(arguments: [0, 1, 2, 5]) func anInterruptedEngineKeepsWhatItDrew(steps: Int) throws {
        let model = try Model(path: "\(ModelTests.folder)/llama_untied", recipe: Recipe(.fp32))
        let settings = SamplingSettings(seed: 3, stopIDs: [4], maxTokens: 9)
        let whole = try Self.roll(model, settings, capacity: 4, .init(threads: 1))
        let engine = try RolloutEngine(model, settings: settings, capacity: 4)
        for (index, prompt) in Self.prompts(model).enumerated() {
            try engine.add(prompt: prompt, ids: (0..<3).map { UInt64(index * 3 + $0) })
        }
        var found: [Rollout] = []
        for _ in 0..<steps { found += try engine.step() }
        #expect(engine.count == 15 - found.count)
        found += engine.removeAll()
        #expect(engine.isIdle && engine.count == 0)
        #expect(found.map(\.id).sorted() == Array(0..<15))
        for rollout in found {
            let wanted = whole[Int(rollout.id)]
            #expect(Array(wanted.tokens.prefix(rollout.tokens.count)) == rollout.tokens)
            #expect(Array(wanted.rawLogProbs.prefix(rollout.tokens.count)) == rollout.rawLogProbs)
            if rollout.finish != .running { #expect(rollout == wanted) }
        }
        #expect((found.map(\.tokens.count).max() ?? 0) >= min(steps, 1))
        // The engine goes on with others.
        try engine.add(prompt: [1], ids: [77])
        while !engine.isIdle { #expect(try engine.step().allSatisfy { $0.id == 77 }) }
    }

    /// Logits that fp16 cannot hold, of some sequences and after some tokens.
    @Test func afterAnOverflowWhatWasDrawnIsKept() throws {
        var checkpoint = try TinyCheckpoint("llama_untied")
        var head = checkpoint.values("lm_head.weight").map(Float.init)
        for k in 0..<64 { head[96 * 64 + k] = head[96 * 64 + k] < 0 ? -4e3 : 4e3 }
        checkpoint.set("lm_head.weight", [97, 64], head)
        let model = try checkpoint.model(Recipe(.fp16))
        let settings = SamplingSettings(seed: 5, maxTokens: 40)
        let engine = try RolloutEngine(model, settings: settings, capacity: 6)
        for id in 0..<4 {
            try engine.add(prompt: [Int32(id) + 9], ids: [UInt64(2 * id), UInt64(2 * id + 1)])
        }
        var found: [Rollout] = []
        let error = #expect(throws: LockstepError.self) {
            while !engine.isIdle { found += try engine.step() }
        }
        #expect(error?.kind == .nonFinite && error?.message.contains("position") == true)
        // No step goes on from here, and says the same; nothing is lost.
        #expect(throws: try #require(error)) { try engine.step() }
        found += engine.removeAll()
        #expect(found.map(\.id).sorted() == Array(0..<8))
        let drawn = found.filter { !$0.tokens.isEmpty }
        #expect(!drawn.isEmpty)
        let alone = try ModelTests.score(model, drawn.map { [Int32($0.id / 2) + 9] + $0.tokens })
        for (rollout, score) in zip(drawn, alone) {
            #expect(rollout.rawLogProbs == Array(score.dropFirst()) && rollout.finish == .running)
        }
        #expect(engine.isIdle)
        #expect(try engine.step().isEmpty)
    }

    @Test func badPromptsAreRefused() throws {
        let model = try Model(path: "\(ModelTests.folder)/llama_untied", recipe: Recipe(.fp16))
        let engine = try RolloutEngine(model)
        for prompt in [[], [97], [-1], [Int32](repeating: 1, count: 128)] as [[Int32]] {
            #expect(throws: LockstepError.self) { try engine.add(prompt: prompt, ids: [0]) }
        }
        #expect(engine.isIdle)
        #expect(throws: LockstepError.self) { try RolloutEngine(model, capacity: 0) }
        #expect(throws: LockstepError.self) { try RolloutEngine(model, settings: .init(temperature: -1)) }
    }
}
