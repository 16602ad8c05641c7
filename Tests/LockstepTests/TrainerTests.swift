import Testing

@testable import Lockstep

/// Gradients of the tiny models of each family against float64 (Tests/Vectors/models), and what must not show in them.
@Suite struct TrainerTests {
    /// A batch and the gradients of its loss, the mean of -log-prob over the responses.
    struct Batch {
        var sequences: [[Int32]]
        var dLogProbs: [[Double]]

        init(sequences: [[Int32]], dLogProbs: [[Double]]) {
            self.sequences = sequences
            self.dLogProbs = dLogProbs
        }

        /// That of a golden folder.
        init(_ name: String) throws {
            sequences = try ModelTests.expected(name).tokens
            guard
                case .object(let members) = try JSON(contentsOf: "\(ModelTests.folder)/\(name)/expected.json"),
                let rows = members["rows"]?.array
            else { fatalError() }
            let prompts = rows.map { $0["prompt_length"]!.integer! }
            let count = zip(sequences, prompts).reduce(0) { $0 + $1.0.count - $1.1 }
            dLogProbs = zip(sequences, prompts).map { tokens, prompt in
                tokens.indices.map { $0 < prompt ? 0 : -1 / Double(count) }
            }
        }

        func some(_ indices: [Int]) -> Batch {
            Batch(sequences: indices.map { sequences[$0] }, dLogProbs: indices.map { dLogProbs[$0] })
        }
    }

    /// Adds a batch, and returns what `score` would.
    @discardableResult
    static func add(
        _ batch: Batch, to trainer: Trainer, lossScale: Double = 1, temperature: Double = 1,
        entropy: Double? = nil
    ) throws -> (logProbs: [Double], entropy: [Double], report: BackwardReport) {
        let tokens = Array(batch.sequences.joined())
        var offsets: [Int64] = [0]
        for sequence in batch.sequences { offsets.append(offsets.last! + Int64(sequence.count)) }
        var logProbs = [Double](repeating: -7, count: tokens.count)
        var entropies = logProbs
        let given = Array(batch.dLogProbs.joined())
        let dEntropy = [Double](repeating: entropy ?? 0, count: tokens.count)
        let report = try tokens.withTokenView { (tokens) throws(LockstepError) in
            try given.withVectorView { (given) throws(LockstepError) in
                try dEntropy.withVectorView { (dEntropy) throws(LockstepError) in
                    try logProbs.withMutableVectorView { (logProbs) throws(LockstepError) in
                        try entropies.withMutableVectorView { (entropies) throws(LockstepError) in
                            try offsets.withUnsafeBufferPointer { (offsets) throws(LockstepError) in
                                try trainer.accumulate(
                                    tokens: tokens,
                                    offsets: TokenView(
                                        offsets.baseAddress, byteCount: 8, count: offsets.count),
                                    LogProbGradients(
                                        logProbs: given, entropy: entropy == nil ? nil : dEntropy),
                                    lossScale: lossScale, temperature: temperature,
                                    into: BackwardOutputs(logProbs: logProbs, entropy: entropies))
                            }
                        }
                    }
                }
            }
        }
        return (logProbs, entropies, report)
    }

    static func gradients(_ trainer: Trainer) throws -> [Float] {
        let out = pinned([Float](repeating: -7, count: trainer.parameters.count))
        try trainer.gradients(into: out)
        return Array(out)
    }

    static func trainer(
        _ family: String, _ recipe: Recipe = Recipe(.fp32), adapter: String? = nil,
        _ options: TrainerOptions = .init(threads: 1)
    ) throws -> Trainer {
        try Trainer(
            path: "\(ModelTests.folder)/\(family)", adapter: adapter.map { "\(ModelTests.folder)/\($0)" },
            recipe: recipe, options: options)
    }

    static func error(_ found: ArraySlice<Float>, _ wanted: [Double]) -> Double {
        let difference = zip(found, wanted).reduce(0) { $0 + (Double($1.0) - $1.1) * (Double($1.0) - $1.1) }
        return (difference / wanted.reduce(0) { $0 + $1 * $1 }).squareRoot()
    }

    /// Root mean square errors of each tensor, relative to it.
    static func errors(_ trainer: Trainer, _ gradients: [Float], _ golden: String) throws -> [String: Double]
    {
        let golden = try TinyCheckpoint(golden, file: "expected.safetensors", config: "expected.json")
        var errors: [String: Double] = [:]
        for tensor in trainer.parameters.tensors {
            let wanted = golden.values("grad.\(tensor.name)")
            #expect(wanted.count == tensor.range.count, "\(tensor.name)")
            errors[tensor.name] = error(gradients[tensor.range], wanted)
        }
        #expect(golden.tensors.keys.count { $0.hasPrefix("grad.") } == errors.count)
        return errors
    }

    static let all: [(family: String, adapter: String?)] =
        ModelTests.families.map { ($0, nil) } + [("llama_untied", "llama_untied_lora")]

    /// fp32 within a relative 5e-6 of float64, for each tensor.
    @Test(arguments: all) func gradientsAreThoseOfFloat64(family: String, adapter: String?) throws {
        let trainer = try Self.trainer(family, adapter: adapter)
        let batch = try Batch(adapter ?? family)
        let found = try Self.add(batch, to: trainer)
        #expect(found.report.overflows == 0 && found.report.sequences == batch.sequences.count)
        let errors = try Self.errors(trainer, Self.gradients(trainer), adapter ?? family)
        for (name, error) in errors { #expect(error < 5e-6, "\(name): \(error)") }
        // What it says of the tokens is what the model says.
        let scores = try trainer.snapshot().score(batch.sequences)
        #expect(found.logProbs == Array(scores.logProbs.joined()))
        #expect(found.entropy == Array(scores.entropy.joined()))
    }

    /// The error of 16 bits goes with their last place; fp16 needs a loss scale.
    @Test(arguments: all) func errorsOf16Bits(family: String, adapter: String?) throws {
        let batch = try Batch(adapter ?? family)
        func error(_ format: Format, _ lossScale: Double) throws -> Double {
            // The same weights in all: what is compared is the rounding of activations and gradients.
            var recipe = Recipe(format)
            recipe.parameters = .fp32
            let exact = try Self.trainer(family, adapter: adapter)
            try Self.add(batch, to: exact)
            let trainer = try Self.trainer(family, recipe, adapter: adapter)
            try Self.add(batch, to: trainer, lossScale: lossScale)
            return try Self.error(Self.gradients(trainer)[...], Self.gradients(exact).map(Double.init))
        }
        let (fp16, bf16) = (try error(.fp16, 1024), try error(.bf16, 1))
        let unscaled = try error(.fp16, 0x1p-12)
        // Where bf16 sends a token to another expert, the difference is not one of rounding.
        #expect(bf16 / fp16 > 4 && (bf16 / fp16 < 16 || family == "qwen3_moe"), "\(bf16) \(fp16)")
        #expect(unscaled > 2 * fp16, "\(unscaled) \(fp16)")
    }

    @Test(arguments: all, ["fp32", "bf16", "fp16"])
    func neitherThreadsNorOrderNorCutsShow(
        model: (family: String, adapter: String?), recipe: String
    ) throws {
        let (family, adapter) = model
        let golden = try Batch(adapter ?? family)
        // Other sequences too: one long enough for two links of every chain over tokens.
        var batch = golden
        let vocab = try Self.trainer(family).configuration.vocab
        var random = Random(5)
        for length in [1, 2, 33, 128, 90] {
            batch.sequences.append(ModelTests.tokens(length, vocab: vocab, seed: UInt64(length)))
            batch.dLogProbs.append(random.normal(length, scale: 0.01).map { Double($0) })
        }
        let indices = Array(batch.sequences.indices)
        func found(
            _ parts: [[Int]], _ options: TrainerOptions, entropy: Double? = 0.001
        ) throws -> [UInt32] {
            let trainer = try Self.trainer(family, Recipe(named: recipe), adapter: adapter, options)
            for part in parts {
                try Self.add(batch.some(part), to: trainer, lossScale: 256, entropy: entropy)
            }
            return try Self.gradients(trainer).map(\.bitPattern)
        }
        let wanted = try found([indices], TrainerOptions(threads: 1))
        #expect(try found([indices], TrainerOptions(threads: 1), entropy: nil) != wanted)
        #expect(try found([Array(indices.dropLast())], TrainerOptions(threads: 1)) != wanted)
        #expect(try found([indices.reversed()], TrainerOptions(threads: 2)) == wanted)
        #expect(
            try found(
                [[3], [0, 2], [], [6, 1], indices.filter { ![0, 1, 2, 3, 6].contains($0) }],
                TrainerOptions(threads: 3)) == wanted)
        #expect(try found([indices], TrainerOptions(recomputes: true, threads: 2)) == wanted)
        for set in instructionSets {
            #expect(
                try found(
                    [indices.reversed()], TrainerOptions(recomputes: true, threads: 1, instructionSet: set))
                    == wanted, "\(set)")
        }
    }

    /// Gradients in a format of any number of bits are those of its twin, dense and by adapter.
    @Test(arguments: [("e8m7", "bf16"), ("e5m10", "fp16"), ("e8m23", "fp32")], [0, all.count - 1])
    func emulatedFormatsAreTheirTwins(names: (emulated: String, stored: String), index: Int) throws {
        let (family, adapter) = Self.all[index]
        let batch = try Batch(adapter ?? family)
        func found(_ recipe: String, scale: Double = 1024) throws -> [UInt32] {
            let trainer = try Self.trainer(family, Recipe(named: recipe), adapter: adapter)
            try Self.add(batch, to: trainer, lossScale: scale, entropy: 0.001)
            return try Self.gradients(trainer).map(\.bitPattern)
        }
        #expect(try found(names.emulated) == found(names.stored))
        #expect(try found("e8m5") != found(names.stored))
    }

    /// A forward pass that scoring kept leaves no trace in the gradients, nor does one that is no longer of the batch: of
    /// other tokens, another temperature, or masters before they changed.
    @Test(arguments: all, [false, true])
    func keptPassesLeaveNoTrace(model: (family: String, adapter: String?), recomputes: Bool) throws {
        let (family, adapter) = model
        let batch = try Batch(adapter ?? family)
        var others = batch
        let vocab = Int32(try Self.trainer(family).configuration.vocab)
        others.sequences[0][1] = (others.sequences[0][1] + 1) % vocab
        func found(
            _ batch: Batch, keeping: Int?, temperature: Double = 0.7, moves: Bool = false
        ) throws -> (gradients: [UInt32], logProbs: [Double]) {
            let trainer = try Self.trainer(
                family, Recipe(.bf16), adapter: adapter, TrainerOptions(recomputes: recomputes, threads: 2))
            if let keeping { try Self.score(others, trainer, temperature: 0.7, keeping: keeping) }
            if moves {
                try trainer.withMasters { masters in
                    for index in masters.indices { masters[index] *= 1.25 }
                }
            }
            let logProbs = try Self.add(batch, to: trainer, temperature: temperature).logProbs
            return (try Self.gradients(trainer).map(\.bitPattern), logProbs)
        }
        let count = batch.sequences.count
        for (batch, temperature, moves) in [
            (others, 0.7, false), (batch, 0.7, false), (others, 1, false), (others, 0.7, true),
        ] {
            let wanted = try found(batch, keeping: nil, temperature: temperature, moves: moves)
            for keeping in [0, 1, count] {
                let kept = try found(batch, keeping: keeping, temperature: temperature, moves: moves)
                #expect(kept == wanted, "\(keeping) \(temperature) \(moves)")
            }
        }
    }

    /// What a run does before its updates: scores, and keeps the passes of the first sequences.
    static func score(_ batch: Batch, _ trainer: Trainer, temperature: Double, keeping: Int) throws {
        let tokens = Array(batch.sequences.joined())
        var offsets: [Int64] = [0]
        for sequence in batch.sequences { offsets.append(offsets.last! + Int64(sequence.count)) }
        var logProbs = [Double](repeating: -7, count: tokens.count)
        try tokens.withTokenView { (tokens) throws(LockstepError) in
            try logProbs.withMutableVectorView { (logProbs) throws(LockstepError) in
                try offsets.withUnsafeBufferPointer { (offsets) throws(LockstepError) in
                    try trainer.score(
                        tokens: tokens,
                        offsets: TokenView(offsets.baseAddress, byteCount: 8, count: offsets.count),
                        temperature: temperature, keeping: keeping, into: ScoringOutputs(logProbs: logProbs))
                }
            }
        }
        let options = LogProbOptions(temperature: temperature)
        let wanted = try trainer.snapshot().score(batch.sequences, options: options).logProbs
        #expect(logProbs == Array(wanted.joined()))
    }

    /// A loss scale that is a power of two leaves no trace in fp32, nor in 16 bits that hold what it makes.
    @Test(arguments: ["fp32", "bf16"]) func lossScalesLeaveNoTrace(recipe: String) throws {
        let batch = try Batch("qwen3_qknorm")
        func found(_ scale: Double) throws -> [Float] {
            let trainer = try Self.trainer("qwen3_qknorm", Recipe(named: recipe))
            try Self.add(batch, to: trainer, lossScale: scale)
            return try Self.gradients(trainer)
        }
        #expect(try found(1) == found(65536))
        let other = try found(1000)
        #expect(try Self.error(found(1)[...], other.map(Double.init)) < (recipe == "fp32" ? 1e-6 : 0.05))
    }

    @Test(arguments: [true, false]) func anOverflowIsSaid(recomputes: Bool) throws {
        let trainer = try Self.trainer(
            "llama_untied", Recipe(.fp16), TrainerOptions(recomputes: recomputes, threads: 2))
        let batch = try Batch("llama_untied")
        let before = try Self.add(batch, to: trainer, lossScale: 1024)
        #expect(before.report.overflows == 0)
        let good = try Self.gradients(trainer)
        #expect(trainer.gradientsAreFinite && good.allSatisfy(\.isFinite))
        let (logProbs, entropy, report) = try Self.add(batch, to: trainer, lossScale: 0x1p30)
        // The forward pass had no fault.
        #expect(logProbs == before.logProbs && entropy == before.entropy)
        #expect(report.overflows == 3 && report.overflowSequence == 0)
        #expect(report.overflowLayer == 2 && report.overflowOperation == "output head")
        #expect(try !trainer.gradientsAreFinite && Self.gradients(trainer).allSatisfy(\.isNaN))
        // One sequence of many, further down.
        trainer.clearGradients()
        var single = batch
        single.dLogProbs[1] = single.dLogProbs[1].map { $0 * 0x1p20 }
        let later = try Self.add(single, to: trainer, lossScale: 0.75).report
        #expect(later.overflows == 1 && later.overflowSequence == 1 && later.overflowLayer < 2, "\(later)")
        // Cleared, it goes on as if nothing had been.
        trainer.clearGradients()
        try Self.add(batch, to: trainer, lossScale: 1024)
        #expect(try Self.gradients(trainer) == good)
    }

    @Test func anOverflowOfTheForwardPassIsAnError() throws {
        var checkpoint = try TinyCheckpoint("llama_untied")
        let name = "model.layers.1.mlp.up_proj.weight"
        checkpoint.set(name, [48, 64], checkpoint.values(name).map { $0 < 0 ? -6e4 : 6e4 })
        let trainer = try checkpoint.withFolder {
            try Trainer(path: $0, recipe: Recipe(.fp16), options: TrainerOptions(threads: 1))
        }
        let error = #expect(throws: LockstepError.self) { try Self.add(Batch("llama_untied"), to: trainer) }
        #expect(error?.kind == .nonFinite && error?.message.contains("MLP gate and up of layer 1") == true)
        #expect(try !trainer.gradientsAreFinite && Self.gradients(trainer).allSatisfy(\.isNaN))
    }

    /// The families and settings without golden gradients, against differences of the plain transformer.
    @Test(arguments: ModelTests.others.indices) func othersAreAsDifferencesSay(_ index: Int) throws {
        let (name, base, change) = ModelTests.others[index]
        var checkpoint = try TinyCheckpoint(base)
        change(&checkpoint)
        // As float32: what is loaded is what the differences are of.
        for (tensor, value) in checkpoint.tensors {
            checkpoint.set(tensor, value.shape, checkpoint.values(tensor).map(Float.init))
        }
        let trainer = try checkpoint.withFolder {
            try Trainer(path: $0, recipe: Recipe(.fp32), options: TrainerOptions(threads: 1))
        }
        let tokens = ModelTests.tokens(9, vocab: trainer.configuration.vocab, seed: 3)
        var random = Random(11)
        let given = random.normal(9).map { Double($0) }
        try Self.add(Batch(sequences: [tokens], dLogProbs: [given]), to: trainer)
        let found = try Self.gradients(trainer)
        let largest = Double(found.map(\.magnitude).max()!)
        func loss(_ checkpoint: TinyCheckpoint) throws -> Double {
            zip(try PlainTransformer(checkpoint).logProbs(tokens), given.dropFirst()).reduce(0) {
                $0 + $1.0 * $1.1
            }
        }
        for tensor in trainer.parameters.tensors {
            // The value with the largest gradient.
            let place =
                tensor.range.max { found[$0].magnitude < found[$1].magnitude }! - tensor.range.lowerBound
            let values = checkpoint.values(tensor.name).map(Float.init)
            func moved(_ step: Float) throws -> (Double, Double) {
                var changed = checkpoint
                var moved = values
                moved[place] += step
                changed.set(tensor.name, tensor.shape, moved)
                return (try loss(changed), Double(moved[place]))
            }
            let (up, down) = (try moved(0x1p-12), try moved(-0x1p-12))
            let wanted = (up.0 - down.0) / (up.1 - down.1)
            #expect(
                abs(Double(found[tensor.range.lowerBound + place]) - wanted) < 1e-5 * largest,
                "\(name) \(tensor.name): \(found[tensor.range.lowerBound + place]) \(wanted)")
        }
    }

    // MARK: Steps

    /// What is sampled from, scored and trained on after a step is one model.
    @Test(arguments: ["fp32", "bf16"]) func snapshotsAreTheMasters(recipe: String) throws {
        let trainer = try Self.trainer("qwen3_moe", Recipe(named: recipe))
        let batch = try Batch("qwen3_moe")
        let before = try trainer.snapshot()
        let first = try Self.add(batch, to: trainer, temperature: 0.7).logProbs
        let gradients = try Self.gradients(trainer)
        try trainer.withMasters { masters in
            for index in masters.indices { masters[index] -= 0.05 * gradients[index] }
        }
        trainer.clearGradients()
        let second = try Self.add(batch, to: trainer, temperature: 0.7).logProbs
        let options = LogProbOptions(temperature: 0.7)
        #expect(try Array(before.score(batch.sequences, options: options).logProbs.joined()) == first)
        #expect(
            try Array(trainer.snapshot().score(batch.sequences, options: options).logProbs.joined()) == second
        )
        // Down the gradient the loss goes down.
        func loss(_ logProbs: [Double]) -> Double {
            zip(logProbs, batch.dLogProbs.joined()).reduce(0) { $0 + $1.0 * $1.1 }
        }
        #expect(loss(second) < loss(first) - 1e-3)
        #expect(throws: LockstepError.self) {
            try trainer.withMasters { $0[3] = .infinity }
            _ = try trainer.snapshot()
        }
    }

    @Test func aModelBeginsFromASeed() throws {
        let configuration = try Self.trainer("qwen2_bias").configuration
        let made = try (0..<2).map { _ in
            try Trainer(configuration: configuration, seed: 7, recipe: Recipe(.bf16))
        }
        let other = try Trainer(configuration: configuration, seed: 8, recipe: Recipe(.bf16))
        func masters(_ trainer: Trainer) throws -> [Float] { try trainer.withMasters { Array($0) } }
        #expect(try masters(made[0]) == masters(made[1]) && masters(made[0]) != masters(other))
        for tensor in made[0].parameters.tensors {
            let values = try masters(made[0])[tensor.range]
            let mean = values.reduce(0) { $0 + Double($1) } / Double(values.count)
            let deviation = (values.reduce(0) { $0 + Double($1) * Double($1) } / Double(values.count))
                .squareRoot()
            if tensor.decays {
                #expect(abs(mean) < 0.002 && abs(deviation - 0.02) < 0.001, "\(tensor.name)")
            } else {
                let wanted: Float = tensor.name.hasSuffix("bias") ? 0 : 1
                #expect(values.allSatisfy { $0 == wanted })
            }
        }
        let batch = try Batch("qwen2_bias")
        let found = try Self.add(batch, to: made[0])
        // It knows nothing: every token is about as likely.
        for (logProb, given) in zip(found.logProbs, batch.dLogProbs.joined()) where given != 0 {
            #expect(abs(logProb + 4.6) < 0.6)
        }
        #expect(try Self.gradients(made[0]).contains { $0 != 0 })
    }

    @Test func newAdaptersChangeNothingYet() throws {
        let path = "\(ModelTests.folder)/llama_untied"
        let lowRank = LowRank(rank: 5, alpha: 10, targets: ["v_proj", "down_proj"], seed: 3)
        let trainer = try Trainer(path: path, lowRank: lowRank, recipe: Recipe(.fp16))
        let batch = try Batch("llama_untied")
        let found = try Self.add(batch, to: trainer, lossScale: 512)
        #expect(
            try found.logProbs
                == Array(Model(path: path, recipe: Recipe(.fp16)).score(batch.sequences).logProbs.joined()))
        let gradients = try Self.gradients(trainer)
        #expect(trainer.parameters.tensors.count == 8)
        for tensor in trainer.parameters.tensors {
            // B is zero, so A has no gradient yet.
            let isA = tensor.name.hasSuffix("lora_A.weight")
            #expect(gradients[tensor.range].allSatisfy { $0 == 0 } == isA, "\(tensor.name)")
        }
        for bad in [
            LowRank(rank: 0, alpha: 1), LowRank(rank: 2, alpha: .nan),
            LowRank(rank: 2, alpha: 1, targets: []),
            LowRank(rank: 2, alpha: 1, targets: ["q_proj", "x_proj"]),
            LowRank(rank: 2, alpha: 1, targets: ["embed_tokens"]),
        ] {
            #expect(throws: LockstepError.self) {
                try Trainer(path: path, lowRank: bad, recipe: Recipe(.fp32))
            }
        }
    }

    /// It can be merged and scored, but its gradient would be wrong.
    @Test func adaptedEmbeddingsAreNotTrained() throws {
        var adapter = try TinyCheckpoint(
            "llama_untied_lora", file: "adapter_model.safetensors", config: "adapter_config.json")
        let (stem, path) = (
            "base_model.model.model.embed_tokens", "\(ModelTests.folder)/llama_untied"
        )
        let c = try Model(path: path, recipe: Recipe(.fp32)).configuration
        for (name, shape) in [("lora_A", [4, c.hiddenSize]), ("lora_B", [c.vocab, 4])] {
            adapter.set(
                "\(stem).\(name).weight", shape, Array(repeating: 0.01, count: shape[0] * shape[1]))
        }
        try withTemporaryFolder { folder in
            try write(
                Array(JSON.object(adapter.config).text.utf8), to: "\(folder)/adapter_config.json")
            try write(SafeTensors.bytes(adapter.tensors), to: "\(folder)/adapter_model.safetensors")
            _ = try Model(path: path, adapter: folder, recipe: Recipe(.fp32))
            let error = #expect(throws: LockstepError.self) {
                try Trainer(path: path, adapter: folder, recipe: Recipe(.fp32))
            }
            #expect(
                error?.kind == .unsupported && error?.message.contains("embed_tokens") == true,
                "\(error as Any)")
        }
    }

    // MARK: Bad input

    @Test func inputIsChecked() throws {
        let trainer = try Self.trainer("llama_untied")
        let good = try Batch("llama_untied")
        try Self.add(good, to: trainer)
        let before = try Self.gradients(trainer)
        for (change, word) in [
            ({ $0.sequences[1][3] = 97 }, "tokens[15] is 97"),
            ({ $0.dLogProbs[1][3] = .nan }, "d_log_probs[15] is nan"),
            ({ $0.dLogProbs[2].removeLast() }, "d_log_probs: has 27 elements"),
        ] as [((inout Batch) -> Void, String)] {
            var batch = good
            change(&batch)
            let error = #expect(throws: LockstepError.self) { try Self.add(batch, to: trainer) }
            #expect(
                error?.kind == .invalidArgument && error?.message.contains(word) == true, "\(error as Any)")
        }
        for scale in [0, -1, .infinity, .nan, 0x1p61] {
            #expect(throws: LockstepError.self) { try Self.add(good, to: trainer, lossScale: scale) }
        }
        #expect(throws: LockstepError.self) { try Self.add(good, to: trainer, temperature: 0) }
        #expect(throws: LockstepError.self) { try trainer.gradients(into: pinned([1, 2])) }
        #expect(try Self.gradients(trainer) == before)
        #expect(try Self.add(Batch(sequences: [], dLogProbs: []), to: trainer).report == BackwardReport())
        var unknown = Recipe(.fp32)
        unknown.gradients = .e5m2
        #expect(throws: LockstepError.self) { try Self.trainer("llama_untied", unknown) }
    }
}
