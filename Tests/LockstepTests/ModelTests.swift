import Testing

@testable import Lockstep

/// Real folders of tiny models of each family, with log-probs in float64 (Tests/Vectors/models).
@Suite struct ModelTests {
    static let folder =
        #filePath.split(separator: "/", omittingEmptySubsequences: false).dropLast(2)
        .joined(separator: "/") + "/Vectors/models"
    static let families = [
        "llama_untied", "llama_tied_rope_llama3", "qwen2_bias", "qwen3_qknorm", "qwen3_moe",
    ]

    /// The sequences of a folder and what was expected of them.
    static func expected(_ name: String) throws -> (tokens: [[Int32]], logProbs: [[Double]]) {
        let file = try SafeTensors(path: "\(folder)/\(name)/expected.safetensors")
        var tokens: [[Int32]] = []
        var logProbs: [[Double]] = []
        while let found = file.tensors["tokens.\(tokens.count)"] {
            let wanted = file.tensors["logprobs.\(tokens.count)"]!
            tokens.append(try file.integers(found))
            let values = pinned([Double](repeating: 0, count: wanted.shape[0]))
            try file.read(
                wanted, "logprobs", shape: wanted.shape, as: .fp64,
                into: UnsafeMutableRawPointer(values.baseAddress!))
            logProbs.append(Array(values))
        }
        return (tokens, logProbs)
    }

    static func score(
        _ model: Model, _ sequences: [[Int32]], _ execution: Execution = .init(threads: 1)
    ) throws -> [[Double]] {
        let tokens = Array(sequences.joined())
        var offsets: [Int64] = [0]
        for sequence in sequences { offsets.append(offsets.last! + Int64(sequence.count)) }
        let out = pinned([Double](repeating: -7, count: tokens.count))
        try model.score(
            tokens: TokenView(pinned(tokens).baseAddress, count: tokens.count),
            offsets: TokenView(pinned(offsets).baseAddress, byteCount: 8, count: offsets.count),
            into: ScoringOutputs(
                logProbs: MutableVectorView(out.baseAddress, .fp64, count: tokens.count)),
            execution: execution)
        return sequences.indices.map { Array(out[Int(offsets[$0])..<Int(offsets[$0 + 1])]) }
    }

    static let recipes = ["fp32", "fp16", "bf16", "fp16-fp32head"]

    @Test(arguments: families, recipes) func theBatchDoesNotShow(family: String, recipe: String) throws {
        let (tokens, _) = try Self.expected(family)
        let model = try Model(path: "\(Self.folder)/\(family)", recipe: Recipe(named: recipe))
        let alone = try tokens.map { try Self.score(model, [$0])[0] }
        for set in instructionSets {
            for threads in [1, 2, 3] {
                let together = try Self.score(
                    model, tokens + tokens.reversed(), Execution(threads: threads, instructionSet: set))
                #expect(together == alone + alone.reversed(), "\(set) \(threads)")
            }
        }
    }

    @Test(arguments: families) func scoresAreClose(family: String) throws {
        let (tokens, wanted) = try Self.expected(family)
        let model = try Model(path: "\(Self.folder)/\(family)", recipe: Recipe(.fp32))
        let found = try Self.score(model, tokens)
        for (row, expected) in zip(found, wanted) {
            #expect(row[0] == 0)
            for (one, other) in zip(row.dropFirst(), expected) { #expect(abs(one - other) < 1e-5) }
        }
    }
}

extension SafeTensors {
    /// The values of a tensor of I64.
    fileprivate func integers(_ tensor: Tensor) throws -> [Int32] {
        let file = try SystemFile(name, SystemFile.readOnly)
        let values = pinned([Int64](repeating: 0, count: tensor.shape.reduce(1, *)))
        _ = try file.read(
            into: UnsafeMutableRawPointer(values.baseAddress!), at: tensor.bytes.lowerBound,
            count: tensor.bytes.count)
        return values.map(Int32.init)
    }
}
