import Testing

@testable import Lockstep

/// Two engines side by side: what differs, where it begins, what swapping a part does.
@Suite struct LocaliserTests {
    private static let tokens = ModelTests.tokens(700, vocab: 97, seed: 8)
    private static let offsets: [Int64] = [0, 1, 100, 101, 600, 700]

    private static func models(_ family: String, _ recipes: [Recipe]) throws -> [Model] {
        var checkpoint = try TinyCheckpoint(family)
        checkpoint.config["max_position_embeddings"] = .integer(1024)
        return try recipes.map { try checkpoint.model($0) }
    }

    private static func located(
        _ trainer: Model, _ rollout: Model, reference: Model? = nil, ranges: [Range<Int>] = [],
        execution: Execution = .init(threads: 1)
    ) throws -> Localiser {
        let localiser = try tokens.withTokenView { (tokens) throws(LockstepError) in
            try offsets.withUnsafeBufferPointer { (offsets) throws(LockstepError) in
                try Localiser(
                    trainer: trainer, rollout: rollout, reference: reference, tokens: tokens,
                    offsets: TokenView(offsets.baseAddress, byteCount: 8, count: offsets.count),
                    ranges: ranges, execution: execution)
            }
        }
        while !localiser.isDone { try localiser.step() }
        return localiser
    }

    private static func scores(_ model: Model) throws -> [Double] {
        let bounds = offsets.map { Int($0) }
        let sequences = zip(bounds, bounds.dropFirst()).map { Array(tokens[$0..<$1]) }
        return Array(try ModelTests.score(model, sequences).joined())
    }

    @Test(arguments: ["llama_untied", "qwen3_moe"]) func oneRecipeTwiceDiffersNowhere(family: String) throws {
        let models = try Self.models(family, [Recipe(.bf16), Recipe(.bf16)])
        let found = try Self.located(models[0], models[1])
        #expect(found.differences.allSatisfy { $0.differing == 0 && $0.relativeRMS == 0 && $0.first == nil })
        #expect(found.differences.allSatisfy { $0.rows == 700 })
        let (trainer, rollout) = try found.logProbs(.none)
        #expect(trainer == rollout)
        #expect(trainer == (try Self.scores(models[0])))
        let inside = found.differences.filter { $0.operation == "MLP gate and up" }
        #expect(inside.isEmpty == (family == "qwen3_moe"))
    }

    /// Each recipe leaves the engines alike up to the operation that rounds otherwise.
    @Test func theFirstOperationIsWhatTheRecipeChanges() throws {
        var cache = Recipe(.fp32)
        cache.cache = .bf16
        var probabilities = Recipe(.fp32)
        probabilities.probabilities = .bf16
        var logits = Recipe(.fp32)
        logits.logits = .bf16
        var activations = Recipe(.fp32)
        activations.activations = .bf16
        for (recipe, wanted) in [
            (cache, "0 attention"), (probabilities, "0 attention"), (logits, "2 log-probs"),
            (activations, "-1 embedding"),
        ] {
            let models = try Self.models("llama_untied", [Recipe(.fp32), recipe])
            let found = try Self.located(models[0], models[1]).differences
            let first = found.first { $0.differing > 0 }
            #expect(first.map { "\($0.layer) \($0.operation)" } == wanted)
        }
    }

    /// A weight that differs in one place is found at its operation and its row's column.
    @Test func aChangedWeightIsFound() throws {
        var checkpoint = try TinyCheckpoint("llama_untied")
        checkpoint.config["max_position_embeddings"] = .integer(1024)
        let one = try checkpoint.model()
        let name = "model.layers.1.self_attn.o_proj.weight"
        var values = checkpoint.values(name).map { Float($0) }
        let width = checkpoint.tensors[name]!.shape[1]
        values[5 * width + 2] += 1
        checkpoint.set(name, checkpoint.tensors[name]!.shape, values)
        let found = try Self.located(one, try checkpoint.model()).differences
        let first = try #require(found.first { $0.differing > 0 })
        #expect(first.operation == "attention output" && first.layer == 1)
        #expect(first.first?.row == 0 && first.first?.column == 5)
        #expect(first.differing == 700, "one column of every row")
    }

    /// The statistics against sums in plain loops over what each engine gave.
    @Test func statisticsAreThoseOfTheResults() throws {
        let models = try Self.models("llama_untied", [Recipe(.fp16), Recipe(.bf16)])
        let found = try Self.located(models[0], models[1], execution: .init(threads: 3))
        let places = Self.offsets
        func results(_ model: Model) throws -> [String: [Float]] {
            var all: [String: [Float]] = [:]
            try Self.tokens.withTokenView { (tokens) throws(LockstepError) in
                try places.withUnsafeBufferPointer { (offsets) throws(LockstepError) in
                    try model.observe(
                        tokens: tokens,
                        offsets: TokenView(offsets.baseAddress, byteCount: 8, count: offsets.count),
                        execution: .init(threads: 1)
                    ) { layer, operation, values, count in
                        let view = VectorView(values, model.recipe.activations, count: count)
                        all["\(layer) \(operation)", default: []] += (0..<count).map {
                            Float(view.double($0))
                        }
                    }
                }
            }
            return all
        }
        let (a, b) = (try results(models[0]), try results(models[1]))
        #expect(Set(a.keys).count == found.differences.count - 1, "and the log-probs")
        for difference in found.differences.dropLast() {
            let key = "\(difference.layer) \(difference.operation)"
            let (x, y) = (try #require(a[key]), try #require(b[key]))
            let errors = zip(x, y).map { abs(Double($0) - Double($1)) }
            #expect(difference.differing == zip(x, y).count { $0.bitPattern != $1.bitPattern })
            #expect(difference.maxAbs == errors.max())
            let index = try #require(errors.firstIndex { $0 > 0 })
            #expect(difference.first?.row == index / difference.columns)
            let squares = errors.reduce(0) { $0 + $1 * $1 }
            let size = x.reduce(0) { $0 + Double($1) * Double($1) }
            #expect(abs(difference.relativeRMS / (squares / size).squareRoot() - 1) < 1e-12)
            #expect(abs(difference.meanAbs / (errors.reduce(0, +) / Double(errors.count)) - 1) < 1e-12)
        }
    }

    @Test func swapsAreWhatTheySay() throws {
        let models = try Self.models(
            "llama_untied", [Recipe(.bf16), Recipe(.fp16), Recipe(.fp32), Recipe(named: "bf16-fp32head")])
        let found = try Self.located(
            models[0], models[1], reference: models[2], ranges: [0..<2, 1..<2, 0..<1])
        let given = try found.logProbs(.none)
        #expect(given.trainer == (try Self.scores(models[0])))
        #expect(given.rollout == (try Self.scores(models[1])))
        #expect(try found.logProbs(.fp32HeadOfTrainer).trainer == Self.scores(models[3]))
        #expect(try found.logProbs(.fp32HeadOfTrainer).rollout == given.rollout)
        #expect(try found.logProbs(.headAlone).trainer == given.trainer)
        #expect(try found.logProbs(.headAlone).rollout != given.rollout)
        // The reference does all of both: nothing is left of their recipes.
        let all = try found.logProbs(.layers(index: 0))
        #expect(all.trainer == all.rollout)
        #expect(all.trainer == (try Self.scores(models[2])))
        for index in [1, 2] {
            let part = try found.logProbs(.layers(index: index))
            #expect(part.trainer != part.rollout && part.trainer != given.trainer)
        }
        #expect(throws: LockstepError.self) { try found.logProbs(.layers(index: 3)) }
        // Heads that are alike make nothing alone.
        let alike = try Self.located(models[3], models[3])
        #expect(try alike.logProbs(.headAlone).trainer == alike.logProbs(.headAlone).rollout)
    }

    @Test func threadsDoNotShow() throws {
        let models = try Self.models("qwen3_moe", [Recipe(.bf16), Recipe(.fp16), Recipe(.fp32)])
        let one = try Self.located(models[0], models[1], reference: models[2], ranges: [1..<2])
        let three = try Self.located(
            models[0], models[1], reference: models[2], ranges: [1..<2], execution: .init(threads: 3))
        #expect(one.differences == three.differences)
        #expect(try one.logProbs(.layers(index: 0)).rollout == three.logProbs(.layers(index: 0)).rollout)
        #expect(one.differences.contains { $0.operation == "mixture of experts" && $0.differing > 0 })
    }

    @Test func misuseIsRefused() throws {
        let models = try Self.models("llama_untied", [Recipe(.fp32), Recipe(.bf16)])
        let other = try Model(path: "\(ModelTests.folder)/qwen2_bias", recipe: Recipe(.fp32))
        #expect(throws: LockstepError.self) { try Self.located(models[0], other) }
        #expect(throws: LockstepError.self) { try Self.located(models[0], models[1], ranges: [0..<1]) }
        for range in [0..<0, -1..<1, 1..<3] {
            #expect(throws: LockstepError.self) {
                try Self.located(models[0], models[1], reference: models[0], ranges: [range])
            }
        }
        let begun = try Self.tokens.withTokenView { (tokens) throws(LockstepError) in
            try Localiser(trainer: models[0], rollout: models[1], tokens: tokens)
        }
        #expect(throws: LockstepError.self) { try begun.logProbs(.none) }
    }

    @Test func differencesOfFloats() throws {
        let a: [Float] = [1, -0.0, .infinity, 3, 0, .nan]
        let b: [Float] = [1, 0, .infinity, 5, 0, 2]
        let found = try a.withUnsafeBufferPointer { a throws(LockstepError) in
            try b.withUnsafeBufferPointer { b throws(LockstepError) in
                try measureDifference(
                    MatrixView(a.baseAddress, .fp32, rows: 3, columns: 2),
                    MatrixView(b.baseAddress, .fp32, rows: 3, columns: 2))
            }
        }
        #expect(found.differing == 3 && found.nonFinite == 2)
        #expect(found.first?.row == 0 && found.first?.column == 1)
        #expect(found.maxAbs == 2 && found.meanAbs == 0.5 && found.rms == 1)
        #expect(abs(found.relativeRMS - (4.0 / 10).squareRoot()) < 1e-15)
    }
}
