import Testing

@testable import Lockstep

/// The forward pass equals the scalar layer, operation by operation, bit for bit.
@Suite struct ReferenceTransformerTests {
    /// The weights of a model as arrays.
    private struct Weights {
        let kernels = try! Execution().kernels().pointee
        /// Whether matrices, read from a model of wide ones, become codes of 8 bits.
        let narrows: Bool
        /// What biases are rounded to.
        let biasFormat: Format

        func matrix(_ head: Head, narrows: Bool) -> ReferenceTransformer.Matrix {
            let rows = (0..<head.vocab).map { row in
                var out = [Float](repeating: 0, count: head.hiddenSize)
                out.withUnsafeMutableBytes { head.copyRow(row, into: $0.baseAddress!, as: .fp32, kernels) }
                return narrows ? ReferenceFormats.scaledRow(out) : out
            }
            return .init(
                rows: rows,
                bias: head.bias.map { bias in
                    (0..<head.vocab).map { ReferenceFormats.rounded(Float(bias.double($0)), biasFormat) }
                })
        }

        func mlp(_ mlp: Model.MLP) -> ReferenceTransformer.MLP {
            .init(
                gateAndUp: matrix(mlp.gateAndUp, narrows: narrows), down: matrix(mlp.down, narrows: narrows))
        }

        /// `wide` has the matrices before they became 8 bits.
        func layer(_ layer: Model.Layer, wide: Model.Layer) -> ReferenceTransformer.Layer {
            let feedForward: ReferenceTransformer.FeedForward =
                switch (layer.feedForward, wide.feedForward) {
                case (.experts(let router, _), .experts(_, let all)):
                    .experts(router: matrix(router, narrows: false), all.map(mlp))
                case (_, .dense(let one)): .dense(mlp(one))
                default: fatalError("two models of one checkpoint differ")
                }
            return .init(
                attentionNorm: layer.attentionNorm, projection: matrix(wide.projection, narrows: narrows),
                headNorms: layer.headNorms, output: matrix(wide.output, narrows: narrows),
                mlpNorm: layer.mlpNorm, feedForward: feedForward)
        }
    }

    /// What each operation of a forward pass gave, as floats.
    private static func observed(_ model: Model, _ tokens: [Int32]) throws -> [String: [Float]] {
        var found: [String: [Float]] = [:]
        let format = model.recipe.activations
        try tokens.withTokenView { (view) throws(LockstepError) in
            try model.observe(tokens: view, offsets: nil, execution: .init(threads: 2)) {
                layer, operation, values, count in
                let view = VectorView(values, format, count: count)
                found["\(layer) \(operation)", default: []] += (0..<count).map { Float(view.double($0)) }
            }
        }
        return found
    }

    private static let mixed =
        [Recipe(.fp32), Recipe(.fp16), Recipe(.bf16)]
        + {
            var recipe = Recipe(.bf16)
            (recipe.cache, recipe.probabilities, recipe.parameters) = (.fp16, .fp32, .fp32)
            var eightBits = Recipe(.bf16)
            (eightBits.parameters, eightBits.cache) = (.e4m3fn, .e5m2)
            return [recipe, try! Recipe(named: "fp16-fp8weights-fp8cache"), eightBits]
        }()

    @Test(arguments: ModelTests.families + ["biases"], mixed)
    func forwardEqualsTheScalarLayer(family: String, recipe: Recipe) throws {
        // What is changed in a checkpoint is changed once: the order of a dictionary decides which bias is which.
        let other = ModelTests.others.first { $0.0 == family }
        var checkpoint = try TinyCheckpoint(other?.1 ?? family)
        other?.2(&checkpoint)
        func load(_ recipe: Recipe) throws -> Model { try checkpoint.model(recipe) }
        let model = try load(recipe)
        let narrows = recipe.parameters == .e4m3fn
        let wide = narrows ? try load(Recipe(.fp32)) : model
        // Beyond a page of 128 positions where the context allows, and beyond what is worked on at a time.
        let count = min(140, model.configuration.positions)
        let tokens = ModelTests.tokens(count, vocab: model.configuration.vocab, seed: 4)
        let found = try Self.observed(model, tokens)
        let reference = ReferenceTransformer(configuration: model.configuration, recipe: recipe)
        let weights = Weights(narrows: narrows, biasFormat: recipe.wideParameters)
        let embedding = weights.matrix(model.embedding, narrows: false).rows
        var x = tokens.map { embedding[Int($0)].map { ReferenceFormats.rounded($0, recipe.activations) } }
        Self.expect(found["-1 embedding"], x, "embedding")
        for (index, layer) in model.layers.enumerated() {
            let results = try reference.layer(x, weights.layer(layer, wide: wide.layers[index]))
            let isDense = if case .dense = layer.feedForward { true } else { false }
            for (name, wanted) in [
                ("attention norm", results.attentionNorm), ("attention projection", results.projection),
                ("queries, keys and values", results.placed), ("attention", results.attention),
                ("attention output", results.attentionOutput),
                ("residual sum after attention", results.middle), ("MLP norm", results.mlpNorm),
                (isDense ? "MLP down" : "mixture of experts", results.feedForward),
                ("residual sum after the MLP", results.output),
            ] { Self.expect(found["\(index) \(name)"], wanted, "\(name) of layer \(index)") }
            x = results.output
        }
        Self.expect(
            found["\(model.layers.count) final norm"], x.map { reference.norm($0, model.finalNorm) },
            "final norm")
    }

    private static func expect(_ found: [Float]?, _ wanted: [[Float]], _ name: String) {
        let bits = wanted.joined().map(\.bitPattern)
        #expect(found.map { $0.map(\.bitPattern) } == bits, "\(name)")
    }
}
