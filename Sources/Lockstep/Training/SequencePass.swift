import CLockstepKernels

/// Where in the backward pass, or in the forward pass before it, a value left its format's range.
struct PassFailure: Error {
    let place: Overflow
    /// Whether it was in the backward pass, whose loss scale may be too large; else the model's own values are.
    let isBackward: Bool
}

/// Forward and backward pass of one sequence after another: bits depend on the sequence and the weights alone.
///
/// Gradients of activations are floats that the recipe's gradients hold: rounded once after each operation. One worker
/// owns it, with all its memory.
final class SequencePass: @unchecked Sendable {
    private(set) var trained: TrainedModel
    let kernels: lsk_kernels
    let c: ModelConfiguration
    let recipe: Recipe
    let forward: Forward
    let gradients: WeightGradients
    private let recomputes: Bool
    private let cache: KeyValueCache
    /// Of sequences that are not kept.
    let own: PassState
    /// Of the sequence that is worked on.
    private var state: PassState
    /// The layers' rows where they are computed again.
    private let again: Scratch<UInt8>
    private let hiddenBytes: Int
    private let multiplier: TileMultiplier
    private let packed: PackedRows
    private let attention: AttentionBackward
    private let turningBack: RotaryTable
    let head: HeadPass
    /// Told the gradient of what an operation was given: layer, operation, values, how many.
    var observe: ((Int, StaticString, UnsafeRawPointer, Int) -> Void)?
    /// The gradient of the residual stream: [tokens x hidden].
    let residual: Scratch<Float>
    /// Gradients of the operations' results: [tokens x hidden], and two of [tokens x the widest].
    let narrow: Scratch<Float>
    let wide: Scratch<Float>
    let inner: Scratch<Float>
    /// Inputs of operations, widened: [tokens x the widest].
    let widened: Scratch<Float>
    /// A norm's gradient: the chain of at most 128 rows, and the sum.
    private let chain: Scratch<Float>
    private let chainSum: Scratch<Float>

    /// Room for sequences of up to `tokens` tokens.
    init(
        _ kernels: UnsafePointer<lsk_kernels>, _ trained: TrainedModel, _ sums: GradientSums, tokens: Int,
        recomputes: Bool, _ instructionSet: InstructionSet?
    ) throws(LockstepError) {
        let model = trained.model
        let c = model.configuration
        let bytes = model.recipe.activations.byteCount
        let widest = max(2 * c.widest, c.projectionWidth, c.hiddenSize, c.experts?.count ?? 0)
        let columns = max(c.widest, c.heads * c.headSize, c.hiddenSize)
        self.trained = trained
        self.kernels = kernels.pointee
        self.c = c
        self.recomputes = recomputes
        recipe = model.recipe
        forward = try Forward(
            model, rows: tokens, positions: tokens, Execution(threads: 1, instructionSet: instructionSet))
        cache = KeyValueCache(c, recipe.cache, layers: 1)
        try cache.reserve(tokens)
        own = try PassState(c, recipe, tokens: tokens, recomputes: recomputes)
        state = own
        again = try Scratch(count: recomputes ? tokens * c.hiddenSize * bytes : 0)
        hiddenBytes = c.hiddenSize * bytes
        multiplier = try TileMultiplier(kernels, .packed(model.head), rows: tokens)
        packed = try PackedRows(kernels, rows: tokens, depth: widest)
        attention = try AttentionBackward(kernels, model, tokens: tokens)
        turningBack = try RotaryTable(c, positions: tokens, isInverse: true)
        gradients = try WeightGradients(
            kernels, trained.weights, sums, tokens: tokens, columns: columns, widest: max(widest, c.vocab))
        head = try HeadPass(kernels, trained, gradients, tokens: tokens)
        residual = try Scratch(count: tokens * c.hiddenSize)
        narrow = try Scratch(count: tokens * c.hiddenSize)
        wide = try Scratch(count: tokens * widest)
        inner = try Scratch(count: tokens * max(columns, widest))
        widened = try Scratch(count: tokens * widest)
        chain = try Scratch(count: max(c.hiddenSize, c.headSize))
        chainSum = try Scratch(count: max(c.hiddenSize, c.headSize))
    }

    /// Goes on with another snapshot of the same weights.
    func use(_ trained: TrainedModel) {
        self.trained = trained
        forward.model = trained.model
        head.use(trained)
    }

    /// What the gradient's format is called with.
    var gradientFormat: Int32 { recipe.gradients.rawValue }

    // MARK: Forward

    /// Log-probs and entropies of a sequence, as `Model.score` gives them, with what a backward pass needs kept in `state`.
    ///
    /// `head.prepare` has said how tokens are scored.
    func run(_ tokens: UnsafeBufferPointer<Int32>, in state: PassState) throws(PassFailure) {
        let count = tokens.count
        let rows = state.rows.base
        self.state = state
        state.trained = nil
        do throws(Overflow) {
            forward.embed(tokens.lazy.map { Int($0) }, into: rows)
            for index in 0..<c.layers {
                if recomputes {
                    UnsafeMutableRawPointer(state.inputs.base + index * inputBytes).copyMemory(
                        from: rows, byteCount: count * hiddenBytes)
                }
                try layer(index, count, rows)
            }
            UnsafeMutableRawPointer(state.last.base).copyMemory(from: rows, byteCount: count * hiddenBytes)
            try forward.finalNorm(rows, count, into: rows)
            try head.run(rows, tokens, into: state.scores.base)
        } catch {
            throw PassFailure(place: error, isBackward: false)
        }
        state.tokens = Array(tokens)
        state.trained = trained
    }

    /// Bytes of the kept input of a layer.
    private var inputBytes: Int { state.inputs.count / max(c.layers, 1) }

    private func layer(_ index: Int, _ count: Int, _ rows: UnsafeMutablePointer<UInt8>) throws(Overflow) {
        forward.results = results(index)
        let span = TokenSpan(cache: cache, positions: 0..<count, row: 0)
        try forward.layer(index, cacheLayer: 0, rows, [span])
    }

    private func results(_ index: Int) -> LayerResults { state.layers[recomputes ? 0 : index] }

    // MARK: Backward

    /// Adds the gradients of the sequence of a `run`, which left `state`: those of its log-probs and entropies, which the
    /// loss scale has multiplied, are given by position.
    func runBackward(
        _ tokens: UnsafeBufferPointer<Int32>, from state: PassState, dLogProb: (Int) -> Double,
        dEntropy: ((Int) -> Double)?
    ) throws(PassFailure) {
        let count = tokens.count
        self.state = state
        do throws(Overflow) {
            try head.runBackward(
                state.rows.base, tokens, state.scores.base, dLogProb: dLogProb, dEntropy: dEntropy,
                into: narrow.base)
            observe?(c.layers, "output head", narrow.base, count * c.hiddenSize)
            try norm(
                state.last.base, count, trained.model.finalNorm, to: trained.finalNorm, narrow.base,
                c.layers, "final norm")
            residual.base.update(from: narrow.base, count: count * c.hiddenSize)
            for index in (0..<c.layers).reversed() {
                if recomputes {
                    UnsafeMutableRawPointer(again.base).copyMemory(
                        from: state.inputs.base + index * inputBytes, byteCount: count * hiddenBytes)
                    try layer(index, count, again.base)
                }
                try layerBackward(index, count)
            }
            var failures = 0
            for part in trained.embedding.parts {
                guard let weight = part.weight else { continue }
                for (row, token) in tokens.enumerated() {
                    failures += gradients.add(
                        residual.base + row * c.hiddenSize, c.hiddenSize, to: weight,
                        at: Int(token) * c.hiddenSize)
                }
            }
            try check(failures, -1, "embedding")
        } catch {
            throw PassFailure(place: error, isBackward: true)
        }
    }

    func check(
        _ failures: Int, _ layer: Int, _ operation: StaticString, _ values: UnsafePointer<Float>? = nil,
        _ count: Int = 0
    ) throws(Overflow) {
        if failures > 0 { throw Overflow(layer: layer, operation: operation) }
        if let values { observe?(layer, operation, values, count) }
    }

    private func layerBackward(_ index: Int, _ count: Int) throws(Overflow) {
        let (layer, model, results) = (trained.layers[index], trained.model.layers[index], results(index))
        forward.results = results
        switch (layer.feedForward, model.feedForward) {
        case (.dense(let mlp), .dense):
            try feedForward(
                mlp, results.mlpNormed, count, residual.base, into: narrow.base, index, isRounded: true)
        case (.experts(let router, let experts), .experts(let routerWeight, let weights)):
            try mix(router, routerWeight, experts, weights, count, index)
        default: break
        }
        if let middle = results.middle {
            try norm(middle, count, model.mlpNorm, to: layer.mlpNorm, narrow.base, index, "MLP norm")
        }
        try addToResidual(narrow.base, count, index, "residual sum after the MLP")

        try weightGradient(
            residual.base, c.hiddenSize, results.attended, count, c.heads * c.headSize, layer.output, index,
            "attention output")
        try multiply(
            residual.base, count, by: layer.output.transposed, into: inner.base, index, "attention output")
        var failures = attention.run(results.projected, count, inner.base, into: wide.base)
        failures += round(wide.base, count * c.projectionWidth)
        try check(failures, index, "attention", wide.base, count * c.projectionWidth)
        try turnBack(layer, model, results, count, index)
        try weightGradient(
            wide.base, c.projectionWidth, results.attentionNormed, count, c.hiddenSize, layer.projection,
            index,
            "attention projection")
        try multiply(
            wide.base, count, by: layer.projection.transposed, into: narrow.base, index,
            "attention projection")
        if let input = results.input {
            try norm(
                input, count, model.attentionNorm, to: layer.attentionNorm, narrow.base, index,
                "attention norm")
        }
        try addToResidual(narrow.base, count, index, "residual sum after attention")
    }

    /// The backward pass of an MLP: `d` [count x hidden] to `out`, rounded or as floats.
    func feedForward(
        _ mlp: TrainedModel.MLP, _ x: UnsafeRawPointer, _ count: Int, _ d: UnsafePointer<Float>,
        into out: UnsafeMutablePointer<Float>, _ index: Int, isRounded: Bool
    ) throws(Overflow) {
        let width = mlp.down.transposed.vocab
        let results = forward.results
        try weightGradient(d, c.hiddenSize, results.activated, count, width, mlp.down, index, "MLP down")
        try multiply(d, count, by: mlp.down.transposed, into: inner.base, index, "MLP down")
        let gates = widen(results.wide, count * 2 * width)
        for row in 0..<count {
            let (gate, out) = (gates + row * 2 * width, wide.base + row * 2 * width)
            kernels.silu_multiply_backward(
                out, out + width, gate, gate + width, inner.base + row * width, width)
        }
        try check(
            round(wide.base, count * 2 * width), index, "MLP activation", wide.base, count * 2 * width)
        try weightGradient(
            wide.base, 2 * width, x, count, c.hiddenSize, mlp.gateAndUp, index, "MLP gate and up")
        try multiply(
            wide.base, count, by: mlp.gateAndUp.transposed, into: out, index, "MLP gate and up",
            isRounded: isRounded)
    }

    /// Turns the gradients of queries and keys, in `wide`, back to before rotation and head norms.
    private func turnBack(
        _ layer: TrainedModel.Layer, _ model: Model.Layer, _ results: LayerResults, _ count: Int, _ index: Int
    ) throws(Overflow) {
        let (size, width, half) = (c.headSize, c.projectionWidth, c.headSize / 2)
        let turned = (c.heads + c.keyValueHeads) * size
        for row in 0..<count {
            for head in 0..<c.heads + c.keyValueHeads {
                kernels.rotate(
                    wide.base + row * width + head * size, turningBack.cosines(at: row),
                    turningBack.sines(at: row), Format.fp32.rawValue, half, 0)
            }
        }
        var failures = Int(
            kernels.store_rounded(wide.base, width, gradientFormat, wide.base, width, count, turned))
        try check(failures, index, "rotation", wide.base, count * width)
        guard let norms = model.headNorms, let unnormed = results.unnormedHeads else { return }
        let x = widen(unnormed, count * width)
        for (heads, weight, target) in [
            (0..<c.heads, norms.query, layer.headNorms.query),
            (c.heads..<c.heads + c.keyValueHeads, norms.key, layer.headNorms.key),
        ] {
            failures += normRows(
                count * heads.count, size, weight, to: target,
                { (row) in (row / heads.count) * width + (heads.lowerBound + row % heads.count) * size }, x,
                wide.base)
        }
        failures += Int(
            kernels.store_rounded(wide.base, width, gradientFormat, wide.base, width, count, turned))
        try check(failures, index, "head norm", wide.base, count * width)
    }

    // MARK: Operations

    /// dx of a norm, in place of `d` [count x hidden], rounded.
    private func norm(
        _ x: UnsafeRawPointer, _ count: Int, _ weight: [Float], to target: Int?,
        _ d: UnsafeMutablePointer<Float>,
        _ index: Int, _ operation: StaticString
    ) throws(Overflow) {
        let x = widen(x, count * c.hiddenSize)
        let failures = normRows(count, c.hiddenSize, weight, to: target, { $0 * c.hiddenSize }, x, d)
        try check(
            failures + round(d, count * c.hiddenSize), index, operation, d, count * c.hiddenSize)
    }

    /// Norms of `width` values at places, one row after another: the weight's gradient is a chain over them.
    private func normRows(
        _ count: Int, _ width: Int, _ weight: [Float], to target: Int?, _ place: (Int) -> Int,
        _ x: UnsafePointer<Float>, _ d: UnsafeMutablePointer<Float>
    ) -> Int {
        for row in 0..<count {
            if row % Int(LSK_CHAIN) == 0 {
                if row == Int(LSK_CHAIN) { chainSum.base.update(from: chain.base, count: width) }
                if row > Int(LSK_CHAIN) { addChain(width) }
                chain.base.update(repeating: 0, count: width)
            }
            let at = place(row)
            kernels.rms_norm_backward(d + at, chain.base, x + at, d + at, weight, width, c.normEpsilon)
        }
        guard let target else { return 0 }
        if count > Int(LSK_CHAIN) { addChain(width) }
        return gradients.add(count > Int(LSK_CHAIN) ? chainSum.base : chain.base, width, to: target)
    }

    private func addChain(_ width: Int) {
        kernels.add_times(chainSum.base, chainSum.base, chain.base, 1, Format.fp32.rawValue, width)
    }

    /// Rounds gradients in place.
    func round(_ values: UnsafeMutablePointer<Float>, _ count: Int) -> Int {
        Int(kernels.store_rounded(values, count, gradientFormat, values, count, 1, count))
    }

    /// The residual stream's gradient plus what came through the layer: one rounding.
    private func addToResidual(
        _ d: UnsafePointer<Float>, _ count: Int, _ index: Int, _ operation: StaticString
    ) throws(Overflow) {
        let total = count * c.hiddenSize
        kernels.add_times(residual.base, residual.base, d, 1, Format.fp32.rawValue, total)
        try check(round(residual.base, total), index, operation, residual.base, total)
    }

    /// d [count x rows of the weight] times the weight, rounded or as floats.
    func multiply(
        _ d: UnsafePointer<Float>, _ count: Int, by transposed: Head, into out: UnsafeMutablePointer<Float>,
        _ index: Int, _ operation: StaticString, isRounded: Bool = true
    ) throws(Overflow) {
        packed.pack(MatrixView(d, .fp32, rows: count, columns: transposed.hiddenSize), 0..<count)
        multiplier.columns = .packed(transposed)
        let format = isRounded ? gradientFormat : Format.fp32.rawValue
        var failures = 0
        for first in stride(from: 0, to: transposed.vocab, by: TileMultiplier.width) {
            let columns = min(TileMultiplier.width, transposed.vocab - first)
            multiplier.multiply(packed, first: first, count: columns, bias: nil)
            failures += Int(
                kernels.store_rounded(
                    out + first, transposed.vocab, format, multiplier.tile.base, TileMultiplier.width, count,
                    columns))
        }
        try check(failures, index, operation, out, count * transposed.vocab)
    }

    func weightGradient(
        _ d: UnsafePointer<Float>, _ stride: Int, _ x: UnsafeRawPointer, _ count: Int, _ columns: Int,
        _ matrix: TrainedModel.Matrix, _ index: Int, _ operation: StaticString
    ) throws(Overflow) {
        try check(
            gradients.add(
                d, stride: stride, MatrixView(x, recipe.activations, rows: count, columns: columns),
                to: matrix.target), index, operation)
    }

    /// Activations as floats.
    func widen(_ x: UnsafeRawPointer, _ count: Int) -> UnsafePointer<Float> {
        if recipe.activations.storage == .fp32 { return x.assumingMemoryBound(to: Float.self) }
        Lockstep.widen(x, recipe.activations, count, into: widened.base, kernels)
        return UnsafePointer(widened.base)
    }
}
