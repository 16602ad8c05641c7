import Testing

@testable import Lockstep

/// LoRA adapters: merged at load, to the float64 log-probs of the vectors; other kinds are refused by name.
@Suite struct AdapterTests {
    private static let folder = "\(ModelTests.folder)/llama_untied_lora"

    /// The adapter of the vectors, changed and written to a folder.
    private static func load(
        _ recipe: Recipe = Recipe(.fp32), _ change: (inout TinyCheckpoint) -> Void = { _ in }
    ) throws -> Model {
        var adapter = try TinyCheckpoint(
            "llama_untied_lora", file: "adapter_model.safetensors", config: "adapter_config.json")
        change(&adapter)
        return try withTemporaryFolder { folder in
            try write(
                Array(JSON.object(adapter.config).text.utf8), to: "\(folder)/adapter_config.json")
            try write(SafeTensors.bytes(adapter.tensors), to: "\(folder)/adapter_model.safetensors")
            return try Model(path: "\(ModelTests.folder)/llama_untied", adapter: folder, recipe: recipe)
        }
    }

    @Test func logProbsAreThoseOfTheMergedWeights() throws {
        let (tokens, wanted) = try ModelTests.expected("llama_untied_lora")
        let model = try Model(
            path: "\(ModelTests.folder)/llama_untied", adapter: Self.folder, recipe: Recipe(.fp32))
        let plain = try Model(path: "\(ModelTests.folder)/llama_untied", recipe: Recipe(.fp32))
        let found = try ModelTests.score(model, tokens)
        for (row, expected) in zip(found, wanted) {
            for (one, other) in zip(row.dropFirst(), expected) { #expect(abs(one - other) < 1e-5) }
        }
        #expect(try ModelTests.score(plain, tokens) != found)
        #expect(model.parameterCount == plain.parameterCount)
    }

    /// One rounding: the merged weight as float64 has it, then the recipe's format.
    @Test(arguments: logitFormats) func weightsAreRoundedOnce(format: Format) throws {
        let name = "model.layers.0.self_attn.q_proj"
        var checkpoint = try TinyCheckpoint("llama_untied")
        let adapter = try TinyCheckpoint(
            "llama_untied_lora", file: "adapter_model.safetensors", config: "adapter_config.json")
        for weight in checkpoint.tensors.keys.filter({ $0.contains("self_attn") }) {
            let stem = "base_model.model.\(weight.dropLast(7))"
            let a = adapter.values("\(stem).lora_A.weight"), b = adapter.values("\(stem).lora_B.weight")
            let (rows, columns) = (b.count / 4, a.count / 4)
            let base = checkpoint.values(weight)
            checkpoint.set(
                weight, [rows, columns],
                (0..<rows * columns).map { place in
                    let change = (0..<4).reduce(0.0) {
                        $0 + b[place / columns * 4 + $1] * a[$1 * columns + place % columns]
                    }
                    return Float(base[place] + 8.0 / 4 * change)
                })
        }
        let (tokens, _) = try ModelTests.expected("llama_untied_lora")
        #expect(checkpoint.tensors["\(name).weight"] != nil)
        #expect(
            try ModelTests.score(Self.load(Recipe(format)), tokens)
                == ModelTests.score(checkpoint.model(Recipe(format)), tokens))
    }

    @Test func scalesAreThoseOfPEFT() throws {
        let (tokens, _) = try ModelTests.expected("llama_untied_lora")
        // alpha / sqrt r with alpha 4 and r 4 is alpha / r with alpha 8.
        let rooted = try Self.load {
            $0.config["use_rslora"] = .bool(true)
            $0.config["lora_alpha"] = .integer(4)
        }
        #expect(try ModelTests.score(rooted, tokens) == ModelTests.score(Self.load(), tokens))
    }

    /// What is changed, and a word of the message.
    static let changes: [(@Sendable (inout TinyCheckpoint) -> Void, String, LockstepError.Kind)] = {
        let a = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        let b = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
        func set(_ key: String, _ value: JSON?, _ kind: LockstepError.Kind)
            -> (@Sendable (inout TinyCheckpoint) -> Void, String, LockstepError.Kind)
        {
            ({ $0.config[key] = value }, key, kind)
        }
        return [
            set("peft_type", .string("IA3"), .unsupported), set("peft_type", nil, .unsupported),
            set("use_dora", .bool(true), .unsupported), set("bias", .string("all"), .unsupported),
            set("rank_pattern", .object(["q_proj": .integer(8)]), .unsupported),
            set("alpha_pattern", .object(["q_proj": .integer(8)]), .unsupported),
            set("fan_in_fan_out", .bool(true), .unsupported),
            // These change the base's weights, or apply to some tokens only.
            set("init_lora_weights", .string("pissa"), .unsupported),
            set("init_lora_weights", .string("pissa_niter_16"), .unsupported),
            set("init_lora_weights", .string("olora"), .unsupported),
            set("alora_invocation_tokens", .array([.integer(1)]), .unsupported),
            set("layer_replication", .array([.array([.integer(0), .integer(2)])]), .unsupported),
            set("r", nil, .badData), set("r", .integer(0), .badData), set("r", .number(4.5), .badData),
            set("lora_alpha", nil, .badData), set("lora_alpha", .string("8"), .badData),
            set("use_rslora", .integer(1), .badData),
            ({ $0.config["r"] = .integer(8) }, "shape is", .badData),
            ({ $0.config["lora_alpha"] = .number(1e300) }, "layers.0.self_attn.q_proj.weight", .nonFinite),
            ({ $0.tensors[a] = nil }, "lora_A", .badData), ({ $0.tensors[b] = nil }, "lora_B", .badData),
            ({ $0.tensors["base_model.model.lm_head.weight"] = $0.tensors[a] }, "lm_head", .badData),
            ({ $0.tensors[a]!.dtype = "I32" }, "dtype", .unsupported),
            (
                {
                    var values = $0.values(b).map(Float.init)
                    values[3] = .nan
                    $0.set(b, $0.tensors[b]!.shape, values)
                }, "lora_B", .nonFinite
            ),
        ]
    }()

    @Test(arguments: changes.indices) func othersAreRefused(_ index: Int) throws {
        let (change, word, kind) = Self.changes[index]
        let error = #expect(throws: LockstepError.self) { _ = try Self.load(Recipe(.fp32), change) }
        #expect(error?.kind == kind && error?.message.contains(word) == true, "\(word): \(error as Any)")
    }

    @Test func defaultsOfPEFTAreNoHindrance() throws {
        _ = try Self.load {
            for key in ["rank_pattern", "alpha_pattern"] { $0.config[key] = .object([:]) }
            $0.config["use_dora"] = .bool(false)
            $0.config["init_lora_weights"] = .bool(true)
            for key in ["layer_replication", "alora_invocation_tokens", "corda_config"] {
                $0.config[key] = .null
            }
        }
        _ = try Self.load { $0.config["init_lora_weights"] = .string("gaussian") }
    }

    /// What fp16 cannot hold after the merge, though both parts can.
    @Test func aMergedWeightMustFit() throws {
        let large: (inout TinyCheckpoint) -> Void = { $0.config["lora_alpha"] = .integer(4_000_000) }
        _ = try Self.load(Recipe(.fp32), large)
        let error = #expect(throws: LockstepError.self) { _ = try Self.load(Recipe(.fp16), large) }
        #expect(error?.kind == .nonFinite)
    }
}
