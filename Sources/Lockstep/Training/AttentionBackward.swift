import CLockstepKernels

/// The backward pass of the attention of a whole sequence.
///
/// Scores are formed again, and the probabilities rounded to the recipe's as the forward pass had them. What is
/// between them and the gradients of queries, keys and values stays float32. Chains over queries are restarted every
/// 128 rows (tokens ascending, the heads that share a key head beside each other). One worker owns it.
final class AttentionBackward {
    private let kernels: lsk_kernels
    private let c: ModelConfiguration
    private let recipe: Recipe
    private let scale: Float
    private let softmax: ScoreSoftmax
    private let capacity: Int
    private let sizeStride: Int
    /// Tokens of the sequence that is worked on.
    private var length = 0
    /// Queries, keys and values as floats, keys and values as the cache holds them: [tokens x projectionWidth].
    private let projected: Scratch<Float>
    /// Right operands: keys and values by 32 positions, [headSize][32]; keys by 32 elements, [tokens][32].
    private let keysAcross: Scratch<Float>
    private let valuesAcross: Scratch<Float>
    private let keysDown: Scratch<Float>
    /// Of one block of queries.
    private let queries: Scratch<Float>
    private let gradients: Scratch<Float>
    private let rows: PackedRows
    private let positionRows: PackedRows
    private let probabilities: Scratch<Float>
    private let scoreGradients: Scratch<Float>
    private let panel: Scratch<Float>
    private let tile: Scratch<Float>
    private let keyGradients: Scratch<Float>
    private let valueGradients: Scratch<Float>

    /// Tokens whose queries are worked on at a time: the chain of a product, so that a block is whole links of it.
    private static let block = Int(LSK_CHAIN)
    private static let width = Int(LSK_PANEL)

    /// Room for sequences of up to `tokens` tokens.
    init(
        _ kernels: UnsafePointer<lsk_kernels>, _ model: Model, tokens: Int
    ) throws(LockstepError) {
        let width = AttentionBackward.width
        c = model.configuration
        recipe = model.recipe
        self.kernels = kernels.pointee
        scale = Float(1 / Double(c.headSize).squareRoot())
        softmax = try ScoreSoftmax(kernels, .fp32, positions: tokens)
        capacity = (tokens + width - 1) / width * width
        sizeStride = (c.headSize + width - 1) / width * width
        let blockRows = min(AttentionBackward.block, tokens) * (c.heads / c.keyValueHeads)
        projected = try Scratch(count: tokens * c.projectionWidth)
        keysAcross = try Scratch(count: capacity * c.headSize)
        valuesAcross = try Scratch(count: capacity * c.headSize)
        keysDown = try Scratch(count: tokens * sizeStride)
        queries = try Scratch(count: blockRows * c.headSize)
        gradients = try Scratch(count: blockRows * c.headSize)
        rows = try PackedRows(kernels, rows: blockRows, depth: max(c.headSize, tokens))
        positionRows = try PackedRows(kernels, rows: tokens, depth: blockRows)
        probabilities = try Scratch(count: blockRows * capacity)
        scoreGradients = try Scratch(count: blockRows * capacity)
        panel = try Scratch(count: blockRows * width)
        tile = try Scratch(count: blockRows * width)
        keyGradients = try Scratch(count: tokens * sizeStride)
        valueGradients = try Scratch(count: tokens * sizeStride)
    }

    /// Writes the gradients of queries, keys and values, unrounded, in the layout of `projected` [tokens x
    /// projectionWidth], from that of attention's results, `d` [tokens x heads x headSize].
    ///
    /// - Returns: how many scores are infinite or NaN: 0 where the forward pass came through.
    func run(
        _ projected: UnsafeRawPointer, _ tokens: Int, _ d: UnsafePointer<Float>,
        into out: UnsafeMutablePointer<Float>
    ) -> Int {
        length = tokens
        var failures = 0
        widenAll(projected, tokens)
        for head in 0..<c.keyValueHeads {
            pack(tokens, head)
            keyGradients.base.update(repeating: 0, count: tokens * sizeStride)
            valueGradients.base.update(repeating: 0, count: tokens * sizeStride)
            for first in stride(from: 0, to: tokens, by: AttentionBackward.block) {
                let positions = first..<min(first + AttentionBackward.block, tokens)
                failures += add(positions, d, head, into: out)
            }
            let place = out + (c.heads + head) * c.headSize
            for token in 0..<tokens {
                let row = place + token * c.projectionWidth
                row.update(from: keyGradients.base + token * sizeStride, count: c.headSize)
                (row + c.keyValueHeads * c.headSize).update(
                    from: valueGradients.base + token * sizeStride, count: c.headSize)
            }
        }
        return failures
    }

    private func widenAll(_ from: UnsafeRawPointer, _ tokens: Int) {
        let (width, turned) = (c.projectionWidth, c.heads * c.headSize)
        widen(from, recipe.activations, tokens * width, into: projected.base, kernels)
        if recipe.cache != recipe.activations {
            let keys = projected.base + turned
            _ = kernels.store_rounded(keys, width, recipe.cache.rawValue, keys, width, tokens, width - turned)
        }
    }

    /// Packs the keys and values of a head.
    private func pack(_ tokens: Int, _ head: Int) {
        let (size, width, stride) = (c.headSize, AttentionBackward.width, c.projectionWidth)
        let keys = projected.base + (c.heads + head) * size
        let values = keys + c.keyValueHeads * size
        for first in Swift.stride(from: 0, to: tokens, by: width) {
            let count = min(width, tokens - first)
            kernels.pack_panel_transposed(
                keysAcross.base + first * size, keys + first * stride, Format.fp32.rawValue, stride, count,
                size)
            kernels.pack_panel_transposed(
                valuesAcross.base + first * size, values + first * stride, Format.fp32.rawValue, stride,
                count,
                size)
        }
        for first in Swift.stride(from: 0, to: size, by: width) {
            kernels.pack_panel(
                keysDown.base + first * tokens, keys + first, Format.fp32.rawValue, stride,
                min(width, size - first), tokens)
        }
    }

    /// Adds what the queries at some positions give to keys and values, and writes their own gradients.
    private func add(
        _ positions: Range<Int>, _ d: UnsafePointer<Float>, _ head: Int, into out: UnsafeMutablePointer<Float>
    ) -> Int {
        let group = c.heads / c.keyValueHeads
        let (size, width, end) = (c.headSize, AttentionBackward.width, positions.upperBound)
        let count = positions.count * group
        for (index, token) in positions.enumerated() {
            let place = index * group * size
            (queries.base + place).update(
                from: projected.base + token * c.projectionWidth + head * group * size, count: group * size)
            (gradients.base + place).update(
                from: d + (token * c.heads + head * group) * size, count: group * size)
        }
        for index in 0..<count * size { queries.base[index] *= scale }

        multiply(queries.base, count, by: keysAcross.base, positions: end, into: probabilities.base)
        var failures = 0
        for row in 0..<count {
            let scores = probabilities.base + row * capacity
            failures += softmax.normalize(
                scores, count: positions.lowerBound + row / group + 1, of: end, into: scores)
        }
        if failures > 0 { return failures }
        if recipe.probabilities != .fp32 {
            _ = kernels.store_rounded(
                probabilities.base, capacity, recipe.probabilities.rawValue, probabilities.base, capacity,
                count,
                end)
        }

        multiply(gradients.base, count, by: valuesAcross.base, positions: end, into: scoreGradients.base)
        for row in 0..<count {
            let seen = positions.lowerBound + row / group + 1
            let scores = scoreGradients.base + row * capacity
            kernels.softmax_backward(scores, probabilities.base + row * capacity, scores, seen)
            (scores + seen).update(repeating: 0, count: end - seen)
        }

        addToPositions(probabilities.base, gradients.base, count, end, into: valueGradients.base)
        addToPositions(scoreGradients.base, queries.base, count, end, into: keyGradients.base)

        // Queries: the keys' sum, times the scale that they were multiplied by.
        rows.pack(
            MatrixView(scoreGradients.base, .fp32, rows: count, columns: end, rowStride: capacity), 0..<count)
        for element in stride(from: 0, to: size, by: width) {
            kernels.multiply(
                tile.base, width, rows.from(), end, 0, keysDown.base + element * length, Format.fp32.rawValue,
                count, end, 0)
            let part = min(width, size - element)
            for row in 0..<count {
                let token = positions.lowerBound + row / group
                let place = out + token * c.projectionWidth + (head * group + row % group) * size + element
                for k in 0..<part { place[k] = tile.base[row * width + k] * scale }
            }
        }
        return 0
    }

    /// rows times keys or values, at some positions: chains over a head's width.
    private func multiply(
        _ left: UnsafePointer<Float>, _ count: Int, by across: UnsafePointer<Float>, positions: Int,
        into out: UnsafeMutablePointer<Float>
    ) {
        rows.pack(MatrixView(left, .fp32, rows: count, columns: c.headSize), 0..<count)
        for position in stride(from: 0, to: positions, by: AttentionBackward.width) {
            kernels.multiply(
                out + position, capacity, rows.from(), c.headSize, 0, across + position * c.headSize,
                Format.fp32.rawValue, count, c.headSize, 0)
        }
    }

    /// out [positions x headSize] += (weights [rows x positions])^T rows: chains over rows.
    private func addToPositions(
        _ weights: UnsafePointer<Float>, _ right: UnsafePointer<Float>, _ count: Int, _ positions: Int,
        into out: UnsafeMutablePointer<Float>
    ) {
        positionRows.packTransposed(weights, rowStride: capacity, count: positions, depth: count)
        for element in stride(from: 0, to: c.headSize, by: AttentionBackward.width) {
            kernels.pack_panel(
                panel.base, right + element, Format.fp32.rawValue, c.headSize,
                min(AttentionBackward.width, c.headSize - element), count)
            kernels.multiply(
                out + element, sizeStride, positionRows.from(), count, 0, panel.base, Format.fp32.rawValue,
                positions, count, 1)
        }
    }
}

/// Values of the kernels' formats as floats: exact.
func widen(
    _ from: UnsafeRawPointer, _ format: Format, _ count: Int, into out: UnsafeMutablePointer<Float>,
    _ kernels: lsk_kernels
) {
    if format.byteCount == 4 {
        out.update(from: from.assumingMemoryBound(to: Float.self), count: count)
        return
    }
    var counts = lsk_convert_counts()
    kernels.convert(
        out, Format.fp32.rawValue, from, format.rawValue, count, LSK_NEAREST_EVEN, 0, 0, &counts)
}
