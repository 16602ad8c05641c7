import Testing

@testable import Lockstep

/// Folders that are not what they should be: an error that names what is wrong, and the process lives on.
@Suite struct CheckpointTests {
    /// What loading says, and "" if it succeeds.
    private static func message(
        _ recipe: Recipe = Recipe(.fp32), adapter: String? = nil, _ change: (inout TinyCheckpoint) -> Void
    ) throws -> String {
        var checkpoint = try TinyCheckpoint("llama_untied")
        change(&checkpoint)
        do {
            _ = try checkpoint.model(recipe, adapter: adapter)
            return ""
        } catch let error as LockstepError {
            return "\(error.kind): \(error.message)"
        }
    }

    // MARK: safetensors

    private static func open(_ bytes: [UInt8]) throws -> String {
        try withTemporaryFolder { folder in
            try write(bytes, to: "\(folder)/a.safetensors")
            do {
                _ = try SafeTensors(path: "\(folder)/a.safetensors")
                return ""
            } catch let error as LockstepError {
                #expect(error.kind == .badData)
                return error.message
            }
        }
    }

    private static func tensor(_ shape: String, _ offsets: String, _ dtype: String = "F32") -> String {
        #""dtype": "\#(dtype)", "shape": \#(shape), "data_offsets": \#(offsets)"#
    }

    private static let one = #""a": {\#(tensor("[2]", "[0, 8]"))}"#

    /// A header, the length of what follows, what the message says.
    static let headers: [(String, Int, String)] = [
        ("{\(one)}", 8, ""),
        ("  {\(one)}   ", 8, ""),
        (#"{"__metadata__": {"format": "pt"}, \#(one)}"#, 8, ""),
        ("{}", 0, ""),
        (#"{"a": {\#(tensor("[0, 7]", "[0, 0]"))}}"#, 0, ""),
        ("{\(one)}", 7, "end at"), ("{\(one)}", 9, "end at"), ("{}", 1, "end at"),
        (#"{"a": {\#(tensor("[2]", "[4, 12]"))}}"#, 12, "begins"),
        (#"{\#(one), "b": {\#(tensor("[2]", "[4, 12]"))}}"#, 12, "begins"),
        (#"{\#(one), "b": {\#(tensor("[2]", "[12, 20]"))}}"#, 20, "begins"),
        (#"{\#(one), "b": {\#(tensor("[2]", "[0, 8]"))}}"#, 8, "begins"),
        (#"{\#(one), "a": {\#(tensor("[2]", "[8, 16]"))}}"#, 16, "twice"),
        (#"{"a": {\#(tensor("[2]", "[-8, 0]"))}}"#, 8, "data_offsets"),
        (#"{"a": {\#(tensor("[2]", "[8, 0]"))}}"#, 8, "data_offsets"),
        (#"{"a": {\#(tensor("[2]", "[0, 8, 16]"))}}"#, 8, "data_offsets"),
        (#"{"a": {\#(tensor("[2]", "[0, 8.0]"))}}"#, 8, "data_offsets"),
        (#"{"a": {\#(tensor("[2]", "[9223372036854775800, 9223372036854775807]"))}}"#, 8, "data_offsets"),
        (#"{"a": {\#(tensor("[2]", "[0, 18446744073709551616]"))}}"#, 8, "data_offsets"),
        (#"{"a": {\#(tensor("[2]", "null"))}}"#, 8, "data_offsets"),
        (#"{"a": {\#(tensor("[-2]", "[0, 8]"))}}"#, 8, "shape"),
        (#"{"a": {\#(tensor("2", "[0, 8]"))}}"#, 8, "shape"),
        (#"{"a": {\#(tensor("[\"2\"]", "[0, 8]"))}}"#, 8, "shape"),
        (#"{"a": {\#(tensor("[4294967296, 4294967296]", "[0, 8]"))}}"#, 8, "too large"),
        (#"{"a": {\#(tensor("[9223372036854775807]", "[0, 8]"))}}"#, 8, "too large"),
        (#"{"a": {\#(tensor("[3]", "[0, 8]"))}}"#, 8, "12 bytes"),
        (#"{"a": {\#(tensor("[2]", "[0, 8]", "F31"))}}"#, 8, "F31"),
        (#"{"a": {"shape": [2], "data_offsets": [0, 8]}}"#, 8, "dtype"),
        (#"{"a": 3}"#, 8, "dtype"), ("[]", 0, "object"), (#"{"__metadata__": 3}"#, 0, "__metadata__"),
        ("nul", 0, "null"), ("{", 0, "do not hold"), ("{ ", 0, "quotes"), ("{\"a", 0, "end"),
        ("{\"a\\u12", 0, "hexadecimal"),
        (#"{"\ud800": 1}"#, 0, "half"), (#"{"\ud800\u0041": 1}"#, 0, "half"), (#"{"\x": 1}"#, 0, "escape"),
        ("{\"a\n\": 1}", 0, "control"), ("{\"a\": 01}", 0, "begins with 0"), ("{\"a\": 1e999}", 0, "large"),
        ("{\"a\": -}", 0, "digit"), ("{\"a\": 1.}", 0, "digit"), ("{} {}", 0, "more text"),
        ("{\"a\": 1,}", 0, "quotes"),
        (String(repeating: "[", count: 100_000), 0, "nested"),
        (String(repeating: "{\"a\":", count: 100_000), 0, "nested"),
    ]

    @Test(arguments: headers) func headersAreNotBelieved(_ header: String, _ data: Int, _ wanted: String)
        throws
    {
        let found = try Self.open(
            SafeTensors.bytes(header: Array(header.utf8), data: [UInt8](repeating: 0, count: data)))
        #expect(wanted.isEmpty ? found.isEmpty : found.contains(wanted), "\(header.prefix(80)): \(found)")
    }

    @Test func lengthsAreNotBelieved() throws {
        let whole = SafeTensors.bytes(
            header: Array("{\(Self.one)}".utf8), data: [UInt8](repeating: 0, count: 8))
        #expect(try Self.open(whole).isEmpty)
        for length in [0, 1, UInt64(whole.count), 1 << 31, 1 << 63, UInt64.max, UInt64.max - 7] {
            var bytes = whole
            withUnsafeBytes(of: length.littleEndian) { bytes.replaceSubrange(0..<8, with: $0) }
            #expect(try !Self.open(bytes).isEmpty, "\(length)")
        }
        // Every cut, and what is no UTF-8.
        for count in whole.indices { #expect(try !Self.open(Array(whole[..<count])).isEmpty) }
        #expect(try Self.open(SafeTensors.bytes(header: [0x7b, 0x22, 0xff, 0xfe, 0x22])).contains("UTF-8"))
    }

    /// Seeded damage: bytes changed, cut out or put in, of a small file; it is refused or it is read.
    @Test func damagedFilesAreRefusedOrRead() throws {
        var tensors: [String: TinyCheckpoint.Tensor] = [:]
        for (name, dtype, shape) in [("a.weight", "F32", [2, 3]), ("b", "BF16", [4]), ("c", "I64", [1])] {
            let size = shape.reduce(1, *) * (dtype == "F32" ? 4 : dtype == "I64" ? 8 : 2)
            tensors[name] = .init(dtype: dtype, shape: shape, bytes: [UInt8](repeating: 1, count: size))
        }
        let whole = SafeTensors.bytes(tensors)
        let header = whole.count - 40
        var random = Random(23)
        var refused = 0
        try withTemporaryFolder { folder in
            for _ in 0..<4000 {
                var bytes = whole
                for _ in 0...Int.random(in: 0..<3, using: &random) {
                    let place = Int.random(in: 0..<header, using: &random)
                    switch Int.random(in: 0..<4, using: &random) {
                    case 0: bytes[place] = UInt8.random(in: 0...255, using: &random)
                    case 1: bytes[place] = Array(#"{}[]",:0123456789-e."#.utf8).randomElement(using: &random)!
                    case 2: bytes.remove(at: place)
                    default:
                        let end = min(place + Int.random(in: 0..<20, using: &random), bytes.count)
                        bytes.insert(contentsOf: bytes[place..<end], at: place)
                    }
                }
                let path = "\(folder)/model.safetensors"
                try write(bytes, to: path)
                do {
                    let file = try SafeTensors(path: path)
                    for (name, tensor) in file.tensors where tensor.format != nil {
                        let values = try file.floats(tensor, name, shape: tensor.shape)
                        #expect(values.count == tensor.shape.reduce(1, *))
                    }
                } catch is LockstepError {
                    refused += 1
                }
            }
        }
        #expect(refused > 2000 && refused < 4000)
    }

    @Test func aFileThatIsCutShortIsAnError() throws {
        let checkpoint = try TinyCheckpoint("llama_untied")
        try checkpoint.withFolder { folder in
            let path = "\(folder)/long.safetensors"
            let count = ByteSource.chunk  // more bytes than are read at once
            let header = #"{"long":{"dtype":"F32","shape":[\#(count)],"data_offsets":[0,\#(4 * count)]}}"#
            let length = withUnsafeBytes(of: UInt64(header.utf8.count).littleEndian) { Array($0) }
            let bytes = length + Array(header.utf8)
            try write(bytes + [UInt8](repeating: 0, count: 4 * count), to: path)
            let file = try SafeTensors(path: path)
            let tensor = try #require(file.tensors["long"])
            try write(bytes + [1, 2, 3], to: path)
            let error = #expect(throws: LockstepError.self) {
                try file.floats(tensor, "long", shape: [count])
            }
            #expect(error?.message.contains("cut short") == true)
        }
    }

    // MARK: config.json

    /// A setting, what it is set to (nil: removed), what the message has beside its name.
    static let settings: [(String, JSON?, LockstepError.Kind)] = {
        var all: [(String, JSON?, LockstepError.Kind)] = []
        for key in [
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "max_position_embeddings",
        ] {
            for bad in [
                nil, .null, .integer(0), .integer(-1), .integer(1 << 40), .number(1.5), .string("64"),
                .bool(true), .array([]), .integer(.max),
            ] as [JSON?] { all.append((key, bad, .badData)) }
        }
        for key in ["num_key_value_heads", "head_dim"] {
            for bad in [.integer(0), .integer(-4), .number(2.0001), .string("x"), .integer(3)] as [JSON] {
                all.append((key, bad, .badData))
            }
        }
        for bad in [nil, .integer(0), .integer(-1), .string("1e-5"), .null] as [JSON?] {
            all.append(("rms_norm_eps", bad, .badData))
        }
        for key in ["tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"] {
            for bad in [.integer(1), .string("true"), .array([])] as [JSON] {
                all.append((key, bad, .badData))
            }
        }
        for bad in [nil, .null, .integer(3), .array([])] as [JSON?] {
            all.append(("model_type", bad, .badData))
        }
        all.append(("model_type", .string("mamba"), .unsupported))
        all.append(("model_type", .string("Llama"), .unsupported))
        for bad in [.string("gelu"), .string("")] as [JSON] { all.append(("hidden_act", bad, .unsupported)) }
        all.append(("hidden_act", .integer(1), .badData))
        all.append(("quantization_config", .object([:]), .unsupported))
        all.append(("quantization_config", .string("awq"), .unsupported))
        all.append(("sliding_window", .integer(64), .unsupported))
        all.append(("sliding_window", .integer(0), .badData))
        all.append(("sliding_window", .string("64"), .badData))
        all.append(("layer_types", .array([.string("sliding_attention")]), .unsupported))
        all.append(("layer_types", .array([.integer(3)]), .badData))
        all.append(("layer_types", .string("full_attention"), .badData))
        return all
    }()

    @Test(arguments: settings) func settingsAreChecked(
        _ key: String, _ value: JSON?, _ kind: LockstepError.Kind
    ) throws {
        let found = try Self.message { $0.config[key] = value }
        #expect(found.contains("\(kind)") && found.contains(key) && found.contains("config.json"), "\(found)")
    }

    /// rope_parameters, and what of it is named.
    static let ropes: [(JSON, String, LockstepError.Kind)] = {
        let llama3: [String: JSON] = [
            "rope_type": .string("llama3"), "factor": .integer(8), "low_freq_factor": .integer(1),
            "high_freq_factor": .integer(4), "original_max_position_embeddings": .integer(16),
        ]
        func changed(_ key: String, _ value: JSON?) -> JSON {
            .object(llama3.filter { $0.key != key }.merging(value.map { [key: $0] } ?? [:]) { $1 })
        }
        var all: [(JSON, String, LockstepError.Kind)] = [
            (.string("yarn"), "rope", .badData), (.array([]), "rope", .badData),
            (.object(["rope_type": .string("yarn")]), "yarn", .unsupported),
            (.object(["type": .string("linear")]), "linear", .unsupported),
            (.object(["rope_type": .integer(3)]), "rope_type", .badData),
            (.object(["partial_rotary_factor": .number(0.5)]), "partial_rotary_factor", .unsupported),
            (.object(["partial_rotary_factor": .string("x")]), "partial_rotary_factor", .badData),
            (changed("high_freq_factor", .integer(1)), "high_freq_factor", .badData),
        ]
        for key in llama3.keys.sorted() where key != "rope_type" {
            for bad in [nil, .null, .integer(0), .integer(-8), .string("8")] as [JSON?] {
                all.append((changed(key, bad), key, .badData))
            }
        }
        // Numbers so far out that angles would be infinite.
        for bad in [.number(1e-300), .number(0.5), .integer(0), .string("x"), .bool(true)] as [JSON] {
            all.append((.object(["rope_theta": bad]), "rope_theta", .badData))
            all.append((changed("factor", bad), "factor", .badData))
        }
        return all
    }()

    @Test(arguments: ropes) func rotaryEmbeddingsAreChecked(
        _ rope: JSON, _ word: String, _ kind: LockstepError.Kind
    ) throws {
        for key in ["rope_parameters", "rope_scaling"] {
            // The base stands beside rope_scaling, not in it.
            if key == "rope_scaling", word == "rope_theta" { continue }
            let found = try Self.message {
                $0.config["rope_parameters"] = nil
                $0.config[key] = rope
            }
            #expect(found.contains("\(kind)") && found.contains(word), "\(key): \(found)")
        }
    }

    @Test func expertsAreChecked() throws {
        for (key, value) in [
            ("num_experts_per_tok", nil), ("num_experts_per_tok", .integer(5)),
            ("num_experts_per_tok", .integer(0)), ("moe_intermediate_size", nil),
            ("moe_intermediate_size", .integer(-1)), ("num_local_experts", .integer(0)),
            ("decoder_sparse_step", .integer(0)), ("norm_topk_prob", .integer(1)),
            ("mlp_only_layers", .integer(1)), ("mlp_only_layers", .array([.string("1")])),
        ] as [(String, JSON?)] {
            var checkpoint = try TinyCheckpoint("qwen3_moe")
            checkpoint.config[key] = value
            let error = #expect(throws: LockstepError.self) { _ = try checkpoint.model() }
            #expect(error?.message.contains(key) == true && error?.kind == .badData, "\(key) \(error as Any)")
        }
    }

    @Test func headsMustFit() throws {
        #expect(try Self.message { $0.config["num_key_value_heads"] = .integer(3) }.contains("multiple"))
        #expect(try Self.message { $0.config["head_dim"] = .integer(15) }.contains("even"))
    }

    /// A few thousand config.json, seeded damage: each gives an error or a configuration.
    @Test func damagedSettingsAreRefusedOrRead() throws {
        let whole = Array(JSON.object(try TinyCheckpoint("qwen3_moe").config).text.utf8)
        var random = Random(29)
        for _ in 0..<5000 {
            var bytes = whole
            for _ in 0...Int.random(in: 0..<3, using: &random) {
                let place = Int.random(in: 0..<bytes.count, using: &random)
                switch Int.random(in: 0..<3, using: &random) {
                case 0: bytes[place] = UInt8.random(in: 0...255, using: &random)
                case 1: bytes[place] = Array(#"{}[]",:0123456789-e."#.utf8).randomElement(using: &random)!
                default: bytes.remove(at: place)
                }
            }
            do {
                let json = try bytes.withUnsafeBytes { try JSON(parsing: $0, "config") }
                var configuration = try ModelConfiguration(json, "config")
                configuration.headSize = min(configuration.headSize, 64)
                _ = try RotaryTable(configuration, positions: min(configuration.positions, 8))
            } catch is LockstepError {}
        }
    }

    // MARK: Weights

    @Test func tensorsMustBeThoseOfTheModel() throws {
        let norm = "model.layers.1.input_layernorm.weight"
        #expect(try Self.message { $0.tensors[norm] = nil }.contains("'\(norm)' is missing"))
        #expect(
            try Self.message {
                $0.set("model.layers.2.input_layernorm.weight", [64], [Float](repeating: 1, count: 64))
            }
            .contains("belongs to no part of a llama model"))
        #expect(try Self.message { $0.tensors[norm]!.shape = [8, 8] }.contains("shape is [8, 8]"))
        #expect(try Self.message { $0.config["vocab_size"] = .integer(96) }.contains("shape is [97, 64]"))
        #expect(try Self.message { $0.config["num_hidden_layers"] = .integer(10_000) }.contains("missing"))
        // So large that there is no memory: the shape is looked at first.
        #expect(
            try Self.message {
                $0.config["vocab_size"] = .integer(1 << 24)
                $0.config["hidden_size"] = .integer(1 << 24)
            }.contains("shape is [97, 64]"))
        #expect(
            try Self.message {
                $0.tensors[norm] = .init(dtype: "I32", shape: [64], bytes: [UInt8](repeating: 0, count: 256))
            }.contains("dtype is I32"))
        // What a tied model says twice, and what old checkpoints carry along, is not in the way.
        #expect(
            try Self.message {
                $0.set("model.layers.0.self_attn.rotary_emb.inv_freq", [8], [Float](repeating: 1, count: 8))
            } == "")
        #expect(try Self.message { $0.config["tie_word_embeddings"] = .bool(true) } == "")
    }

    @Test func weightsMustBeNumbersOfTheRecipe() throws {
        let name = "model.layers.0.mlp.up_proj.weight"
        for (value, recipe, isRefused) in [
            (Float.nan, Recipe(.fp32), true), (.infinity, Recipe(.bf16), true), (70_000, Recipe(.fp16), true),
            (70_000, Recipe(.fp32), false), (70_000, Recipe(.bf16), false), (65_519, Recipe(.fp16), false),
            (3.4e38, Recipe(.bf16), true),
        ] as [(Float, Recipe, Bool)] {
            let found = try Self.message(recipe) {
                var values = $0.values(name).map(Float.init)
                values[100] = value
                $0.set(name, [48, 64], values)
            }
            #expect(
                isRefused ? found.hasPrefix("nonFinite") && found.contains(name) : found == "", "\(found)")
        }
    }

    @Test func shardsMustAgree() throws {
        let checkpoint = try TinyCheckpoint("llama_untied")
        func message(_ change: (String) throws -> Void) throws -> String {
            try checkpoint.withFolder(shards: 3) { folder in
                try change(folder)
                do {
                    _ = try Model(path: folder, recipe: Recipe(.fp32))
                    return ""
                } catch let error as LockstepError {
                    return error.message
                }
            }
        }
        #expect(try message { _ in } == "")
        let index = "model.safetensors.index.json"
        for (text, word) in [
            ("", "ends early"), ("{}", "weight_map"), (#"{"weight_map": []}"#, "weight_map"),
            (#"{"weight_map": {"a": "../model-0.safetensors"}}"#, "'a'"),
            (#"{"weight_map": {"a": ".."}}"#, "'a'"), (#"{"weight_map": {"a": ""}}"#, "'a'"),
            (#"{"weight_map": {"a": "/etc/passwd"}}"#, "'a'"), (#"{"weight_map": {"a": 3}}"#, "'a'"),
            (#"{"weight_map": {"a": "model\u0000.safetensors"}}"#, "'a'"),  // found by fuzzing
            (#"{"weight_map": {"a": "."}}"#, "regular file"),
            (#"{"weight_map": {"a": "nothing"}}"#, "cannot be opened"),
            (#"{"weight_map": {"a": "model-0.safetensors"}}"#, "is missing"),
        ] {
            let found = try message { try write(Array(text.utf8), to: "\($0)/\(index)") }
            #expect(found.contains(word), "\(text): \(found)")
        }
        let tensors = checkpoint.tensors
        let twice = try message {
            try write(SafeTensors.bytes(tensors), to: "\($0)/model-0.safetensors")
        }
        #expect(twice.contains("is in") && twice.contains("too"))
    }

    @Test func foldersMustBeThere() throws {
        for path in ["", "/nowhere", "/dev", "a\0b"] {
            #expect(throws: LockstepError.self) { try Model(path: path, recipe: Recipe(.fp32)) }
        }
    }
}
