import CLockstepKernels

/// A layer of a transformer, one value at a time: arrays of floats in, arrays out, no cache, no tiles.
///
/// `Forward` equals it bit for bit in every recipe: what it is made of are the scalar forms of `ReferenceLayers`,
/// `ReferenceMatrixProduct` and `ReferenceLogProbs`. Inputs are floats that the recipe's activations hold.
struct ReferenceTransformer {
    let configuration: ModelConfiguration
    let recipe: Recipe

    /// Weights [out x in], and a bias [out].
    struct Matrix {
        let rows: [[Float]]
        let bias: [Float]?
    }

    /// down(silu(gate x) * up x): the rows of gate, then those of up.
    struct MLP {
        let gateAndUp: Matrix
        let down: Matrix
    }

    /// What follows attention.
    enum FeedForward {
        case dense(MLP)
        case experts(router: Matrix, [MLP])
    }

    /// A layer's weights.
    struct Layer {
        let attentionNorm: [Float]
        let projection: Matrix
        let headNorms: (query: [Float], key: [Float])?
        let output: Matrix
        let mlpNorm: [Float]
        let feedForward: FeedForward
    }

    /// What the operations of a layer give: a row for each token of a sequence.
    struct Results {
        let attentionNorm: [[Float]]
        /// Queries, keys and values of all heads in a row; then normalised and rotated.
        let projection: [[Float]]
        let placed: [[Float]]
        let attention: [[Float]]
        let attentionOutput: [[Float]]
        let middle: [[Float]]
        let mlpNorm: [[Float]]
        /// What is added to the residual stream.
        let feedForward: [[Float]]
        let output: [[Float]]
    }

    private var format: Format { recipe.activations }

    /// A layer over the tokens of one sequence, from position 0.
    func layer(_ x: [[Float]], _ layer: Layer) throws(LockstepError) -> Results {
        let attentionNorm = x.map { norm($0, layer.attentionNorm) }
        let projection = attentionNorm.map { multiply($0, layer.projection) }
        let placed = projection.enumerated().map { place($1, at: $0, layer.headNorms) }
        let attention = try attend(placed)
        let attentionOutput = attention.map { multiply($0, layer.output) }
        let middle = sum(x, attentionOutput)
        let mlpNorm = middle.map { norm($0, layer.mlpNorm) }
        let added = mlpNorm.map { feedForward($0, layer.feedForward) }
        return Results(
            attentionNorm: attentionNorm, projection: projection, placed: placed, attention: attention,
            attentionOutput: attentionOutput, middle: middle, mlpNorm: mlpNorm, feedForward: added,
            output: sum(middle, added))
    }

    /// x / rms(x) * weight, of a row or of a head.
    func norm(_ x: [Float], _ weight: [Float]) -> [Float] {
        ReferenceLayers.norm(x, weight, epsilon: configuration.normEpsilon, format)
    }

    /// A row times a matrix, plus its bias, rounded once.
    func multiply(_ x: [Float], _ weight: Matrix) -> [Float] {
        ReferenceLayers.stored(
            ReferenceMatrixProduct.logits([x], weight.rows, bias: weight.bias)[0], format
        ).values
    }

    private func sum(_ a: [[Float]], _ b: [[Float]]) -> [[Float]] {
        zip(a, b).map { ReferenceLayers.addTimes($0, $1, 1, format) }
    }

    /// Queries and keys normalised, where the family does, and turned by their position's angles; values as they are.
    private func place(
        _ row: [Float], at position: Int, _ norms: (query: [Float], key: [Float])?
    ) -> [Float] {
        let c = configuration
        let angles = RotaryTable.frequencies(c).map { sineAndCosine(Double(position) * $0) }
        let (sines, cosines) = (angles.map { Float($0.0) }, angles.map { Float($0.1) })
        var out = row
        for head in 0..<c.heads + c.keyValueHeads {
            let part = head * c.headSize..<(head + 1) * c.headSize
            var x = Array(row[part])
            if let norms { x = norm(x, head < c.heads ? norms.query : norms.key) }
            out.replaceSubrange(
                part, with: ReferenceLayers.rotated(x, cosines: cosines, sines: sines, format))
        }
        return out
    }

    /// Each token's queries over the keys and values of the tokens up to it.
    private func attend(_ placed: [[Float]]) throws(LockstepError) -> [[Float]] {
        let c = configuration
        let scale = Float(1 / Double(c.headSize).squareRoot())
        let group = c.heads / c.keyValueHeads
        // As the cache keeps them: keys, then values.
        let cached = placed.map { row in
            row[(c.heads * c.headSize)...].map { ReferenceFormats.rounded($0, recipe.cache) }
        }
        var out: [[Float]] = []
        for (position, row) in placed.enumerated() {
            var attended: [Float] = []
            for head in 0..<c.heads {
                let query = row[head * c.headSize..<(head + 1) * c.headSize].map { $0 * scale }
                let key = head / group * c.headSize
                let value = key + c.keyValueHeads * c.headSize
                let scores = cached[...position].map {
                    ReferenceMatrixProduct.product(query, Array($0[key..<key + c.headSize]))
                }
                let probabilities = try softmax(scores)
                for element in value..<value + c.headSize {
                    attended.append(
                        ReferenceMatrixProduct.product(probabilities, cached[...position].map { $0[element] })
                    )
                }
            }
            out.append(ReferenceLayers.stored(attended, format).values)
        }
        return out
    }

    /// The softmax of scores, rounded to the recipe's probabilities.
    private func softmax(_ scores: [Float]) throws(LockstepError) -> [Float] {
        let rule = try LogProbOptions().rule()
        var gradient = lsk_gradient_row()
        do {
            let sum = try ReferenceLogProbs.blocks(scores, rule).withUnsafeBufferPointer {
                (blocks) throws(RowSum.Failure) in try RowSum(blocks)
            }
            gradient.d_log_prob = -1
            gradient.inverse_sum = Float(1 / sum.sum)
            gradient.reference = sum.reference
        } catch {
            throw LockstepError(.nonFinite, "attention: a score is infinite, NaN or beyond 2^20")
        }
        return ReferenceLogProbs.gradient(scores, target: -1, rule, gradient).map {
            ReferenceFormats.rounded($0, recipe.probabilities)
        }
    }

    private func feedForward(_ x: [Float], _ part: FeedForward) -> [Float] {
        switch part {
        case .dense(let mlp): return apply(mlp, to: x)
        case .experts(let router, let experts):
            guard let settings = configuration.experts else { return [] }
            let logits = router.rows.map { ReferenceMatrixProduct.product(x, $0) }
            let routing = logits.withUnsafeBufferPointer { Routing(logits: $0, settings) }
            var sum = [Float](repeating: 0, count: x.count)
            for (expert, weight) in routing.choices {
                sum = ReferenceLayers.addTimes(sum, apply(experts[expert], to: x), weight, .fp32)
            }
            return ReferenceLayers.stored(sum, format).values
        }
    }

    private func apply(_ mlp: MLP, to x: [Float]) -> [Float] {
        let wide = multiply(x, mlp.gateAndUp)
        let (gate, up) = (Array(wide[..<(wide.count / 2)]), Array(wide[(wide.count / 2)...]))
        return multiply(ReferenceLayers.siluMultiply(gate, up, format), mlp.down)
    }
}
