import CLockstepKernels
import Testing

@testable import Lockstep

/// The orders of arithmetic: each a function of a sequence alone, close to float64, and other bits than the others.
@Suite struct OrderTests {
    static let names = ["lockstep", "split-k", "flash", "eager", "fused"]

    private static func model(_ family: String, _ recipe: String) throws -> Model {
        try Model(path: "\(ModelTests.folder)/\(family)", recipe: Recipe(named: recipe))
    }

    /// The bounds are those of the lockstep order (ModelTests.scoresAreClose).
    @Test(
        arguments: ModelTests.families,
        [("fp32", 1e-5), ("fp16", 0.02), ("bf16", 0.2)] as [(String, Double)])
    func scoresAreClose(family: String, format: (name: String, most: Double)) throws {
        let (tokens, wanted) = try ModelTests.expected(family)
        let most = family == "qwen3_moe" && format.name == "bf16" ? 2 : format.most
        var all: [[[Double]]] = []
        for order in Self.names {
            let found = try ModelTests.score(Self.model(family, "\(format.name)+\(order)"), tokens)
            var largest = 0.0
            for (row, expected) in zip(found, wanted) {
                for (one, other) in zip(row.dropFirst(), expected) {
                    largest = max(largest, abs(one - other))
                }
            }
            #expect(largest < most && largest > 0, "\(order): \(largest)")
            // In a net of two layers bf16 rounds away most of what another order of sums makes.
            let differs = format.name != "bf16" || order == "eager" || order == "fused"
            #expect(!differs || !all.contains(found), "\(order) has the bits of another order")
            all.append(found)
        }
    }

    @Test(arguments: names, ["llama_untied", "qwen3_moe"]) func theBatchDoesNotShow(
        order: String, family: String
    ) throws {
        let (tokens, _) = try ModelTests.expected(family)
        for format in ["fp32", "fp16", "bf16", "bf16-fp8weights-fp8cache"] {
            let model = try Self.model(family, "\(format)+\(order)")
            let alone = try tokens.map { try ModelTests.score(model, [$0])[0] }
            for set in instructionSets {
                let together = try ModelTests.score(
                    model, tokens + tokens.reversed(), Execution(threads: 3, instructionSet: set))
                #expect(together == alone + alone.reversed(), "\(format) \(set)")
            }
        }
    }

    /// Around tiles of 64 keys, pages of 128 and chunks of 512 rows: a prefix has the bits it has in the whole, and
    /// what is drawn after it those of scoring.
    @Test(arguments: names) func longSequences(order: String) throws {
        var checkpoint = try TinyCheckpoint("llama_tied_rope_llama3")
        checkpoint.config["max_position_embeddings"] = .integer(2048)
        let model = try checkpoint.model(Recipe(named: "bf16+\(order)"))
        let long = ModelTests.tokens(1100, vocab: 97, seed: 1)
        let whole = try ModelTests.score(model, [long])[0]
        let lengths = [1, 63, 64, 65, 127, 128, 129, 511, 513, 700]
        let parts = try ModelTests.score(model, lengths.map { Array(long[..<$0]) }, Execution(threads: 2))
        for (length, part) in zip(lengths, parts) { #expect(part == Array(whole[..<length]), "\(length)") }
        let wide = try checkpoint.model(Recipe(named: "fp32+\(order)"))
        let plain = try PlainTransformer(checkpoint).logProbs(Array(long[..<300]))
        for (one, other) in zip(try ModelTests.score(wide, [long])[0].dropFirst(), plain) {
            #expect(abs(one - other) < 1e-5)
        }
        for capacity in [1, 3, 16] {
            let engine = try RolloutEngine(
                model, settings: SamplingSettings(seed: 2, maxTokens: 4), capacity: capacity,
                execution: .init(threads: 2))
            for (index, length) in lengths.enumerated() {
                try engine.add(
                    prompt: Array(long[..<length]), ids: [UInt64(2 * index), UInt64(2 * index + 1)])
            }
            var rollouts: [Rollout] = []
            while !engine.isIdle { rollouts += try engine.step() }
            #expect(rollouts.count == 2 * lengths.count)
            let scores = try ModelTests.score(
                model, rollouts.map { Array(long[..<lengths[Int($0.id / 2)]]) + $0.tokens })
            for (rollout, score) in zip(rollouts, scores) {
                #expect(rollout.rawLogProbs == Array(score.suffix(4)), "\(capacity) \(rollout.id)")
            }
        }
    }

    /// The control of the proof: a key of the cache changed by 1 % shows in the next token.
    @Test(arguments: names, ["fp32", "fp16", "bf16"]) func aChangedKeyShows(order: String, format: String)
        throws
    {
        let model = try Self.model("llama_untied", "\(format)+\(order)")
        let tokens = ModelTests.tokens(30, vocab: 97, seed: 5)
        func lastLogits(changing: Bool) throws -> [Float] {
            let (recipe, c) = (model.recipe, model.configuration)
            let cache = KeyValueCache(c, recipe.cache, layers: c.layers)
            try cache.reserve(30)
            let forward = try Forward(model, rows: 29, positions: 30, .init(threads: 1))
            let rows = try Scratch<UInt8>(count: 29 * c.hiddenSize * recipe.activations.byteCount)
            for positions in [0..<29, 29..<30] {
                forward.embed(tokens[positions].map(Int.init), into: rows.base)
                for layer in 0..<c.layers {
                    try forward.layer(
                        layer, cacheLayer: layer, rows.base,
                        [TokenSpan(cache: cache, positions: positions, row: 0)])
                }
                if changing, positions.lowerBound == 0 {
                    // The first of a panel's 32 keys: its elements stand 32 apart.
                    let key = UnsafeMutableRawPointer(mutating: cache.keys(layer: 0, head: 0, position: 0))
                    for k in 0..<c.headSize {
                        let place = key + 32 * k * recipe.cache.byteCount
                        let value = Float(VectorView(place, recipe.cache, count: 1).double(0)) * 1.01
                        Stored([value], recipe.cache).bytes.withUnsafeBytes {
                            place.copyMemory(from: $0.baseAddress!, byteCount: $0.count)
                        }
                    }
                }
            }
            try forward.finalNorm(rows.base, 1, into: rows.base)
            let logits = try Scratch<Float>(count: c.vocab)
            forward.logits(rows.base, 1, into: logits.base)
            return Array(UnsafeBufferPointer(start: logits.base, count: c.vocab))
        }
        let plain = try lastLogits(changing: false)
        #expect(try lastLogits(changing: false) == plain)
        #expect(try lastLogits(changing: true) != plain)
    }

    /// Products of halves of k: in the few rows that decoding has, and in many.
    @Test(arguments: [1, 2, 63, 128, 300], [1, 5, 50]) func splitProducts(depth: Int, rows: Int) throws {
        var random = Random(6)
        let vocab = 130
        for format in [Format.fp32, .bf16] {
            let weight = Stored(random.normal(vocab * depth), format)
            let input = Stored(random.normal(rows * depth), format)
            let head = try weight.bytes.withUnsafeBytes {
                try Head(
                    weight: MatrixView($0.baseAddress, format, rows: vocab, columns: depth), bias: nil,
                    in: PanelMemory(isShared: false), splitsProducts: true)
            }
            let wanted = input.rows(depth).map { row in
                weight.rows(depth).map { ReferenceMatrixProduct.splitProduct(row, $0) }
            }
            for set in instructionSets {
                let kernels = lsk_kernels_for(set.rawValue)!
                let packed = try PackedRows(kernels, rows: rows, depth: depth)
                input.bytes.withUnsafeBytes {
                    packed.pack(
                        MatrixView($0.baseAddress, format, rows: rows, columns: depth), 0..<rows)
                }
                let multiplier = try TileMultiplier(kernels, .packed(head), rows: rows)
                for first in [0, 128] {
                    let count = min(128, vocab - first)
                    multiplier.multiply(packed, first: first, count: count, bias: nil)
                    for row in 0..<rows {
                        let found = UnsafeBufferPointer(
                            start: multiplier.tile.base + row * 128, count: count)
                        #expect(Array(found) == Array(wanted[row][first..<first + count]), "\(set) \(row)")
                    }
                }
            }
        }
    }

    /// Logits whose log-softmax is the log-probs of scoring, bit for bit.
    @Test(arguments: ["fp32", "fp16", "bf16-fp32head+fused"]) func logitsAreThoseOfScoring(recipe: String)
        throws
    {
        let model = try Self.model("llama_untied", recipe)
        let tokens = ModelTests.tokens(40, vocab: 97, seed: 8)
        let out = pinned([Float](repeating: 0, count: 40 * 97))
        try tokens.withTokenView { (view) throws(LockstepError) in
            try model.logits(
                tokens: view, into: MutableMatrixView(out.baseAddress, .fp32, rows: 40, columns: 97))
        }
        let rows = try Matrix<Float>(rows: 39, columns: 97, Array(out[..<(39 * 97)]))
        let found = try logProbs(logits: rows, targets: Array(tokens.dropFirst()))
        let wanted = try ModelTests.score(model, [tokens])[0].dropFirst()
        #expect(found.logProbs == wanted.map { Float($0) })
    }

    // MARK: Names

    @Test func recipesHaveNames() throws {
        #expect(Order.allCases.map(\.name) == Self.names)
        for name in ["fp32", "fp16", "bf16", "fp16-fp32head", "bf16-fp32head", "e8m5", "e5m10-fp32head"] {
            for order in Order.allCases {
                let full = order == .lockstep ? name : "\(name)+\(order.name)"
                let recipe = try Recipe(named: full)
                #expect(recipe.order == order && recipe.description == full)
                #expect(try recipe == Recipe(named: "\(name)+\(order.name)"))
            }
        }
        var mixed = Recipe(.bf16, .flash)
        mixed.cache = .fp16
        #expect(
            mixed.description
                == "parameters bf16, activations bf16, cache fp16, probabilities bf16, logits bf16+flash")
        for (name, word) in [
            ("bf16+", "the order ''"), ("bf16+Eager", "split-k"), ("+eager", "-fp32head"), ("", "fp16"),
            ("bf16+eager+fused", "'eager+fused'"),
        ] {
            let error = #expect(throws: LockstepError.self) { try Recipe(named: name) }
            #expect(error?.kind == .invalidArgument && error?.message.contains(word) == true, "\(name)")
        }
    }
}
