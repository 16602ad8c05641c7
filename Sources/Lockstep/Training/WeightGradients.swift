import CLockstepKernels

/// Gradients of weights: for each, a chain over the tokens of a sequence, restarted every 128; added to exact sums.
///
/// One worker owns it.
final class WeightGradients {
    private let kernels: lsk_kernels
    private let weights: TrainedWeights
    /// Where gradients are added.
    let sums: GradientSums
    /// What they are multiplied by: the inverse of the loss scale.
    var scale = 1.0
    private let columnsOfGradients: PackedRows
    private let rows: PackedRows
    private let panels: Scratch<Float>
    private let panel: Scratch<Float>
    private let block: Scratch<Float>
    /// Products with the factors of an adapter: [tokens x rank padded].
    private let reduced: Scratch<Float>
    private let tile: Scratch<Float>

    /// Rows of a weight whose gradient is formed at a time: a multiple of every strip height.
    private static let blockRows = 252
    private static let width = Int(LSK_PANEL)

    /// Room for `tokens` tokens and weights of up to `columns` columns and `widest` rows.
    init(
        _ kernels: UnsafePointer<lsk_kernels>, _ weights: TrainedWeights, _ sums: GradientSums, tokens: Int,
        columns: Int, widest: Int
    ) throws(LockstepError) {
        self.kernels = kernels.pointee
        self.weights = weights
        self.sums = sums
        let padded = WeightGradients.padded(columns)
        let rank = WeightGradients.padded(weights.largestRank)
        columnsOfGradients = try PackedRows(
            kernels, rows: max(WeightGradients.blockRows, rank), depth: tokens)
        rows = try PackedRows(
            kernels, rows: rank > 0 ? tokens : 0, depth: rank > 0 ? max(columns, widest) : 0)
        panels = try Scratch(count: padded * tokens)
        panel = try Scratch(count: rank > 0 ? WeightGradients.width * max(columns, widest, tokens) : 0)
        block = try Scratch(count: max(WeightGradients.blockRows, rank) * max(padded, rank))
        reduced = try Scratch(count: tokens * rank)
        tile = try Scratch(count: max(columns, widest))
    }

    private static func padded(_ columns: Int) -> Int { (columns + width - 1) / width * width }

    /// Adds the gradients of weights of which `dy` [count x stride] is the gradient of the result, and `x` the input.
    ///
    /// - Returns: how many values are too large to be added, or NaN.
    func add(
        _ dy: UnsafePointer<Float>, stride: Int, _ x: MatrixView, to target: MatrixTarget
    ) -> Int {
        if target.parts.isEmpty || x.rows == 0 { return 0 }
        packPanels(x)
        var failures = 0
        for part in target.parts {
            let columns = dy + part.rows.lowerBound
            if let weight = part.weight {
                failures += add(columns, stride: stride, part.rows.count, x, to: weight)
            }
            if let bias = part.bias {
                kernels.column_sums(tile.base, columns, stride, x.rows, part.rows.count)
                failures += sums.add(tile.base, part.rows.count, to: bias, at: 0, scale: Float(scale))
            }
            if let factors = part.factors {
                failures += add(columns, stride: stride, part.rows.count, x, to: factors)
            }
        }
        return failures
    }

    /// Adds the gradient of a norm's weight: [count].
    func add(_ values: UnsafePointer<Float>, _ count: Int, to tensor: Int, at offset: Int = 0) -> Int {
        sums.add(values, count, to: tensor, at: offset, scale: Float(scale))
    }

    /// The inputs as right operands: panels of 32 columns, [tokens][32].
    private func packPanels(_ x: MatrixView) {
        for first in Swift.stride(from: 0, to: x.columns, by: WeightGradients.width) {
            kernels.pack_panel(
                panels.base + first * x.rows, x.base! + first * x.format.byteCount, x.format.rawValue,
                x.rowStride, min(WeightGradients.width, x.columns - first), x.rows)
        }
    }

    private func add(
        _ dy: UnsafePointer<Float>, stride: Int, _ count: Int, _ x: MatrixView, to weight: Int
    ) -> Int {
        var failures = 0
        for first in Swift.stride(from: 0, to: count, by: WeightGradients.blockRows) {
            let rows = min(WeightGradients.blockRows, count - first)
            columnsOfGradients.packTransposed(dy + first, rowStride: stride, count: rows, depth: x.rows)
            failures += addProduct(x, to: weight, firstRow: first, scale: scale)
        }
        return failures
    }

    /// Adds (what is packed in `columnsOfGradients`) times the inputs.
    private func addProduct(_ x: MatrixView, to tensor: Int, firstRow: Int, scale: Double) -> Int {
        let stride = WeightGradients.padded(x.columns)
        let rows = columnsOfGradients.rows
        for column in Swift.stride(from: 0, to: x.columns, by: WeightGradients.width) {
            kernels.multiply(
                block.base + column, stride, columnsOfGradients.from(), x.rows, 0,
                panels.base + column * x.rows,
                Format.fp32.rawValue, rows, x.rows, 0)
        }
        return addBlock(rows, x.columns, to: tensor, firstRow: firstRow, scale: scale)
    }

    private func addBlock(
        _ rows: Int, _ columns: Int, to tensor: Int, firstRow: Int, scale: Double
    ) -> Int {
        let stride = WeightGradients.padded(columns)
        if stride == columns {
            return sums.add(
                block.base, rows * columns, to: tensor, at: firstRow * columns, scale: Float(scale))
        }
        for row in 1..<max(rows, 1) {
            (block.base + row * columns).update(from: block.base + row * stride, count: columns)
        }
        return sums.add(block.base, rows * columns, to: tensor, at: firstRow * columns, scale: Float(scale))
    }

    /// Of W + s B A: dB = s dY^T (X A^T), dA = s (dY B)^T X, the products in brackets in float32.
    private func add(
        _ dy: UnsafePointer<Float>, stride: Int, _ count: Int, _ x: MatrixView,
        to factors: TrainedWeights.Factors
    ) -> Int {
        let (parameters, rank) = (weights.parameters, factors.rank)
        let rankStride = WeightGradients.padded(rank)
        let scale = scale * factors.scale
        var failures = 0

        // X A^T
        rows.pack(x, 0..<x.rows)
        let a = parameters.values(of: factors.a)
        for first in Swift.stride(from: 0, to: rank, by: WeightGradients.width) {
            kernels.pack_panel_transposed(
                panel.base, a + first * x.columns, Format.fp32.rawValue, x.columns,
                min(WeightGradients.width, rank - first), x.columns)
            kernels.multiply(
                reduced.base + first, rankStride, rows.from(), x.columns, 0, panel.base, Format.fp32.rawValue,
                x.rows, x.columns, 0)
        }
        for first in Swift.stride(from: 0, to: count, by: WeightGradients.blockRows) {
            let rows = min(WeightGradients.blockRows, count - first)
            columnsOfGradients.packTransposed(dy + first, rowStride: stride, count: rows, depth: x.rows)
            for column in Swift.stride(from: 0, to: rank, by: WeightGradients.width) {
                kernels.pack_panel(
                    panel.base, reduced.base + column, Format.fp32.rawValue, rankStride,
                    min(WeightGradients.width, rank - column), x.rows)
                kernels.multiply(
                    block.base + column, rankStride, columnsOfGradients.from(), x.rows, 0, panel.base,
                    Format.fp32.rawValue, rows, x.rows, 0)
            }
            failures += addBlock(rows, rank, to: factors.b, firstRow: first, scale: scale)
        }

        // dY B
        rows.pack(MatrixView(dy, .fp32, rows: x.rows, columns: count, rowStride: stride), 0..<x.rows)
        let b = parameters.values(of: factors.b)
        for first in Swift.stride(from: 0, to: rank, by: WeightGradients.width) {
            kernels.pack_panel(
                panel.base, b + first, Format.fp32.rawValue, rank, min(WeightGradients.width, rank - first),
                count)
            kernels.multiply(
                reduced.base + first, rankStride, rows.from(), count, 0, panel.base, Format.fp32.rawValue,
                x.rows, count, 0)
        }
        columnsOfGradients.packTransposed(reduced.base, rowStride: rankStride, count: rank, depth: x.rows)
        return failures + addProduct(x, to: factors.a, firstRow: 0, scale: scale)
    }
}
