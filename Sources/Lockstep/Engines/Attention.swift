import CLockstepKernels

/// Causal attention of some queries of one sequence over its cached keys and values.
///
/// A score is a chain over the head's width, the softmax over positions has the lanes and tiles of the log-softmax at
/// absolute positions, the weighted sum of values is a chain over positions restarted every 128. So a query's
/// result depends on its position and what it may see, not on the queries beside it.
///
/// Other orders differ in the softmax. Tiled, it is met 64 keys at a time: terms are relative to the largest score so far,
/// and what was summed before is scaled when that grows. Rounding each step, scores and their scaling are rounded to
/// the activations.
///
/// One worker owns it.
final class Attention: @unchecked Sendable {
    /// Tokens whose queries are worked on at a time: 64, fewer beyond 8,192 positions, so that scores do not grow.
    private(set) var block = 64

    private let table: UnsafePointer<lsk_kernels>
    private let kernels: lsk_kernels
    /// Query heads that share a key head.
    private let group: Int
    private let headSize: Int
    private let activations: Format
    private let cacheFormat: Format
    /// What the kernels multiply by: the cache's, or fp32 for one of 8 bits.
    private let panelFormat: Format
    private let probabilityFormat: Format
    /// 1 / sqrt(headSize), which queries are multiplied by in float32.
    private let scale: Float
    private let order: Order
    /// Rounds to the activations.
    private let stepRule: lsk_logit_rule
    private let queries: Scratch<UInt8>
    private let queryRows: PackedRows
    private var scores: Scratch<Float>
    private var probabilities: Scratch<UInt8>
    private var probabilityRows: PackedRows
    private var softmax: ScoreSoftmax
    private let tile: Scratch<Float>
    /// A panel of keys or values of 8 bits, widened.
    private let panel: Scratch<Float>
    /// Of a tiled softmax: what a row's earlier tiles are multiplied by, tile by tile, and 1 / the sum of its terms.
    private var corrections: Scratch<Float>
    private let inverseSums: Scratch<Float>
    private var capacity = 0

    /// Keys in a tile of a tiled softmax.
    private static let keyTile = Int(LSK_LANE_COUNT)

    /// Room for sequences of up to `positions` tokens.
    init(
        _ kernels: UnsafePointer<lsk_kernels>, _ model: Model, positions: Int
    ) throws(LockstepError) {
        table = kernels
        self.kernels = kernels.pointee
        let (configuration, recipe) = (model.configuration, model.recipe)
        group = configuration.heads / configuration.keyValueHeads
        headSize = configuration.headSize
        (activations, cacheFormat, probabilityFormat) = (
            recipe.activations, recipe.cache, recipe.probabilities
        )
        panelFormat = recipe.cache.byteCount == 1 ? .fp32 : recipe.cache
        stepRule = try LogProbOptions(logitsFormat: recipe.activations).rule()
        scale = Float(1 / Double(configuration.headSize).squareRoot())
        order = recipe.order
        let rows = block * group
        queries = try Scratch(count: rows * configuration.headSize * recipe.activations.byteCount)
        queryRows = try PackedRows(kernels, rows: rows, depth: configuration.headSize)
        scores = try Scratch(count: 0)
        probabilities = try Scratch(count: 0)
        probabilityRows = try PackedRows(kernels, rows: 0, depth: 0)
        softmax = try ScoreSoftmax(kernels, recipe.probabilities, positions: 0)
        tile = try Scratch(count: rows * Int(LSK_PANEL))
        let depth = max(configuration.headSize, KeyValueCache.pagePositions)
        panel = try Scratch(count: recipe.cache.byteCount == 1 ? depth * Int(LSK_PANEL) : 0)
        corrections = try Scratch(count: 0)
        inverseSums = try Scratch(count: rows)
        try reserve(positions: positions)
    }

    /// Makes room for sequences of up to `positions` tokens.
    func reserve(positions: Int) throws(LockstepError) {
        // Whole panels and pages: a product writes 32 columns, a strip reads what was packed.
        let pages = (positions + KeyValueCache.pagePositions - 1) / KeyValueCache.pagePositions
        let capacity = pages * KeyValueCache.pagePositions
        var block = 64
        while block > 1, block * capacity > 64 * 8192 { block /= 2 }
        let rows = block * group
        let scores = try Scratch<Float>(count: rows * capacity)
        let probabilities = try Scratch<UInt8>(count: rows * capacity * probabilityFormat.byteCount)
        softmax = try ScoreSoftmax(table, probabilityFormat, positions: capacity)
        probabilityRows = try PackedRows(table, rows: rows, depth: capacity)
        if order.tilesAttention { corrections = try Scratch(count: rows * capacity / Attention.keyTile) }
        self.scores = scores
        self.probabilities = probabilities
        (self.block, self.capacity) = (block, capacity)
    }

    /// Attends from tokens at `positions` (at most `block`) of a sequence, with the query heads that share a key head.
    ///
    /// `queries` and `output` are of the first of the tokens: all heads in a row, `queryStride` and `outputStride`
    /// elements from token to token.
    ///
    /// - Returns: how many scores or results are infinite or NaN.
    func attend(
        _ queries: UnsafeRawPointer, queryStride: Int, positions: Range<Int>, head: Int, layer: Int,
        cache: KeyValueCache, into output: UnsafeMutableRawPointer, outputStride: Int
    ) -> Int {
        let size = headSize
        let width = activations.byteCount
        let rows = positions.count * group
        let first = head * group * size * width
        if group == 1 || positions.count == 1 {
            // The rows are as far from each other as tokens are, or heads.
            queryRows.pack(
                MatrixView(
                    queries + first, activations, rows: rows, columns: size,
                    rowStride: group == 1 ? queryStride : size), 0..<rows)
        } else {
            for token in 0..<positions.count {
                (UnsafeMutableRawPointer(self.queries.base) + token * group * size * width).copyMemory(
                    from: queries + token * queryStride * width + first, byteCount: group * size * width)
            }
            queryRows.pack(MatrixView(self.queries.base, activations, rows: rows, columns: size), 0..<rows)
        }
        if !order.roundsEachStep { queryRows.multiply(by: scale) }
        for position in stride(from: 0, to: positions.upperBound, by: Int(LSK_PANEL)) {
            kernels.multiply(
                scores.base + position, capacity, queryRows.from(), size, 0,
                widened(cache.keys(layer: layer, head: head, position: position), size), panelFormat.rawValue,
                rows, size, 0)
        }
        var failures = 0
        for row in 0..<rows {
            let count = positions.lowerBound + row / group + 1
            failures +=
                order.tilesAttention
                ? normalizeByTiles(row, count: count, of: positions.upperBound)
                : normalize(row, count: count, of: positions.upperBound)
        }
        if failures > 0 { return failures }
        probabilityRows.pack(
            MatrixView(
                probabilities.base, probabilityFormat, rows: rows, columns: positions.upperBound,
                rowStride: capacity), 0..<rows)
        for element in stride(from: 0, to: size, by: Int(LSK_PANEL)) {
            if order.tilesAttention {
                sumByTiles(rows, positions.upperBound, element: element, head: head, layer: layer, cache)
            } else {
                sum(rows, positions.upperBound, element: element, head: head, layer: layer, cache)
            }
            let count = min(Int(LSK_PANEL), size - element)
            let out = output + first + element * width
            // All rows are as far from each other, or those of a token are.
            let together = group == 1 ? positions.count : 1
            for token in stride(from: 0, to: positions.count, by: together) {
                failures += Int(
                    kernels.store_rows(
                        out + token * outputStride * width, group == 1 ? outputStride : size,
                        activations.rawValue, tile.base + token * group * Int(LSK_PANEL), Int(LSK_PANEL),
                        group * together, count))
            }
        }
        return failures
    }

    /// Turns the scores of a row, of which `count` may be seen, into `total` probabilities: 0 beyond.
    private func normalize(_ row: Int, count: Int, of total: Int) -> Int {
        let scores = scores.base + row * capacity
        if order.roundsEachStep { roundSteps(scores, count) }
        return softmax.normalize(
            scores, count: count, of: total,
            into: UnsafeMutableRawPointer(probabilities.base) + row * capacity
                * probabilityFormat.byteCount)
    }

    /// Scores that are each rounded, as a product of matrices leaves them, then scaled and rounded again.
    private func roundSteps(_ scores: UnsafeMutablePointer<Float>, _ count: Int) {
        withUnsafePointer(to: stepRule) { rule in
            kernels.prepare_row(scores, scores, Format.fp32.rawValue, count, rule, 0)
            for index in 0..<count { scores[index] *= scale }
            kernels.prepare_row(scores, scores, Format.fp32.rawValue, count, rule, 0)
        }
    }

    /// Turns the scores of a row, of which `count` may be seen, into terms relative to the largest of their tile and those
    /// before it; notes how far each tile moves it, and the sum.
    private func normalizeByTiles(_ row: Int, count: Int, of total: Int) -> Int {
        let scores = scores.base + row * capacity
        let failures = kernels.non_finite_values(scores, Format.fp32.rawValue, count)
        if failures > 0 { return Int(failures) }
        var (maximum, sum) = (-Float.infinity, Float(0))
        for first in stride(from: 0, to: total, by: Attention.keyTile) {
            let seen = max(0, min(Attention.keyTile, count - first))
            corrections.base[correction(row, first)] =
                seen == 0 ? 1 : kernels.softmax_tile(scores + first, seen, &maximum, &sum)
        }
        inverseSums.base[row] = 1 / sum
        let size = probabilityFormat.byteCount
        let out = UnsafeMutableRawPointer(probabilities.base) + row * capacity * size
        (out + count * size).initializeMemory(as: UInt8.self, repeating: 0, count: (total - count) * size)
        _ = kernels.store_rows(out, count, probabilityFormat.rawValue, scores, count, 1, count)
        return 0
    }

    /// Which correction is that of a row's tile of keys from `first` on.
    private func correction(_ row: Int, _ first: Int) -> Int { (row * capacity + first) / Attention.keyTile }

    /// The sum over `count` positions of probability times value, for 32 of a head's elements.
    private func sum(
        _ rows: Int, _ count: Int, element: Int, head: Int, layer: Int, _ cache: KeyValueCache
    ) {
        for first in stride(from: 0, to: count, by: KeyValueCache.pagePositions) {
            let part = min(KeyValueCache.pagePositions, count - first)
            let values = cache.values(
                layer: layer, head: head, page: first / KeyValueCache.pagePositions, element: element)
            kernels.multiply(
                tile.base, Int(LSK_PANEL), probabilityRows.from(), count, first, widened(values, part),
                panelFormat.rawValue, rows, part, first > 0 ? 1 : 0)
        }
    }

    /// A panel of `depth` rows of the cache; of 8 bits, as floats.
    private func widened(_ cached: UnsafeRawPointer, _ depth: Int) -> UnsafeRawPointer {
        if cacheFormat.byteCount > 1 { return cached }
        var counts = lsk_convert_counts()
        kernels.convert(
            panel.base, Format.fp32.rawValue, cached, cacheFormat.rawValue, depth * Int(LSK_PANEL),
            LSK_NEAREST_EVEN, 0, 0, &counts)
        return UnsafeRawPointer(panel.base)
    }

    /// The same by tiles of 64 positions, what was summed before scaled to each; divided by the sum of the terms at last.
    private func sumByTiles(
        _ rows: Int, _ count: Int, element: Int, head: Int, layer: Int, _ cache: KeyValueCache
    ) {
        let panelBytes = Int(LSK_PANEL) * cacheFormat.byteCount
        for first in stride(from: 0, to: count, by: Attention.keyTile) {
            if first > 0 {
                for row in 0..<rows { scale(row, by: corrections.base[correction(row, first)]) }
            }
            let (page, place) = first.quotientAndRemainder(dividingBy: KeyValueCache.pagePositions)
            let part = min(Attention.keyTile, count - first)
            let values = cache.values(layer: layer, head: head, page: page, element: element)
            kernels.multiply(
                tile.base, Int(LSK_PANEL), probabilityRows.from(), count, first,
                widened(values + place * panelBytes, part), panelFormat.rawValue, rows, part,
                first > 0 ? 1 : 0)
        }
        for row in 0..<rows { scale(row, by: inverseSums.base[row]) }
    }

    private func scale(_ row: Int, by factor: Float) {
        let sums = tile.base + row * Int(LSK_PANEL)
        for element in 0..<Int(LSK_PANEL) { sums[element] *= factor }
    }
}
