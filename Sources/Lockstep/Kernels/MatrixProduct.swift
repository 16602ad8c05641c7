import CLockstepKernels

// The one matrix product: `Y[t, n] = sum_k X[t, k] W[n, k]`, each output its own chain of fused
// multiply-adds over k ascending, restarted every 128 k, the partial sums added in order of k
// (docs/Numerics.md). Here is what is split (rows, columns) and how operands are packed; never k, but where a head
// says that each half of it is a product by itself.

/// The left operand, packed in strips: every k of a few rows side by side.
final class PackedRows: @unchecked Sendable {
    private(set) var rows = 0
    private(set) var depth: Int
    private let kernels: lsk_kernels
    private let strips: Scratch<Float>

    /// Room for up to `rows` rows of `depth` floats.
    init(_ kernels: UnsafePointer<lsk_kernels>, rows: Int, depth: Int) throws(LockstepError) {
        self.kernels = kernels.pointee
        self.depth = depth
        let stripRows = kernels.pointee.strip_rows
        strips = try Scratch(count: (rows + stripRows - 1) / stripRows * stripRows * depth)
    }

    /// Packs rows of a matrix in any of the three formats.
    func pack(_ matrix: MatrixView, _ range: Range<Int>, threads: Int = 1) {
        rows = range.count
        depth = matrix.columns
        if rows == 0 || depth == 0 { return }
        let part = threads == 1 ? rows : 4 * kernels.strip_rows
        let (base, depth, kernels) = (strips.base, depth, kernels)
        parallelFor(tasks: (rows + part - 1) / part, threads: threads) { task, _ in
            let first = task * part
            kernels.pack_strips(
                base + first * depth, matrix.row(range.lowerBound + first), matrix.format.rawValue,
                matrix.rowStride, min(part, range.count - first), depth)
        }
    }

    /// Multiplies every element, rounded once.
    func multiply(by factor: Float) {
        for index in 0..<rows * depth { strips.base[index] *= factor }
    }

    /// Packs the transpose of `depth` rows of `count` floats.
    func packTransposed(_ rowsOfDepth: UnsafePointer<Float>, rowStride: Int, count: Int, depth: Int) {
        rows = count
        self.depth = depth
        kernels.pack_strips_transposed(strips.base, rowsOfDepth, rowStride, count, depth)
    }

    /// The strips from the one that holds `row`, which must be the first of its strip.
    func from(row: Int = 0) -> UnsafePointer<Float> {
        UnsafePointer(strips.base + row * depth)
    }
}

/// The right operand's columns: rows of a head [vocab x H] in memory, or packed beforehand.
enum HeadColumns {
    case borrowed(MatrixView)
    case packed(Head)

    var count: Int {
        switch self {
        case .borrowed(let weight): weight.rows
        case .packed(let head): head.vocab
        }
    }

    var depth: Int {
        switch self {
        case .borrowed(let weight): weight.columns
        case .packed(let head): head.hiddenSize
        }
    }

    var splitsProducts: Bool {
        if case .packed(let head) = self { head.splitsProducts } else { false }
    }
}

/// Multiplies packed rows by tiles of 128 head columns.
///
/// One worker owns it.
final class TileMultiplier: @unchecked Sendable {
    private let kernels: lsk_kernels
    /// What rows are multiplied by.
    var columns: HeadColumns
    private let panel: Scratch<Float>
    private let biasTile: Scratch<Float>
    /// The product: [rows x 128] floats.
    let tile: Scratch<Float>
    /// That of the second half of k, where it is formed by itself.
    private let secondHalf: Scratch<Float>

    static let width = Int(LSK_TILE)
    private static let panelWidth = Int(LSK_PANEL)
    private static let chain = Int(LSK_CHAIN)

    init(
        _ kernels: UnsafePointer<lsk_kernels>, _ columns: HeadColumns, rows: Int
    ) throws(LockstepError) {
        self.kernels = kernels.pointee
        self.columns = columns
        panel = try Scratch(count: TileMultiplier.panelWidth * TileMultiplier.chain)
        biasTile = try Scratch(count: TileMultiplier.width)
        tile = try Scratch(count: rows * TileMultiplier.width)
        secondHalf = try Scratch(count: columns.splitsProducts ? rows * TileMultiplier.width : 0)
    }

    /// Fills `tile` with the logits of columns `first ..< first + count` (count <= 128) for all of `rows`.
    func multiply(_ rows: PackedRows, first: Int, count: Int, bias: VectorView?) {
        if columns.splitsProducts, rows.depth > 1 {
            let half = rows.depth / 2
            multiply(rows, 0..<half, first: first, count: count, into: tile.base)
            multiply(rows, half..<rows.depth, first: first, count: count, into: secondHalf.base)
            kernels.add_times(
                tile.base, tile.base, secondHalf.base, 1, Format.fp32.rawValue,
                rows.rows * TileMultiplier.width)
        } else {
            multiply(rows, 0..<rows.depth, first: first, count: count, into: tile.base)
        }
        if rows.depth == 0 { tile.base.update(repeating: 0, count: rows.rows * TileMultiplier.width) }
        if let bias {
            for column in 0..<count { biasTile.base[column] = Float(bias.double(first + column)) }
            kernels.add_bias(tile.base, TileMultiplier.width, biasTile.base, rows.rows, count)
        }
    }

    /// The product over some of k.
    private func multiply(
        _ rows: PackedRows, _ k: Range<Int>, first: Int, count: Int, into tile: UnsafeMutablePointer<Float>
    ) {
        // So few rows that converting the packed head first would cost more than it saves.
        // Codes of 8 bits are widened first, however few there are.
        if case .packed(let head) = columns, rows.rows <= 3 * kernels.strip_rows, head.scales == nil {
            multiplyDirectly(rows, k, head, first: first, count: count, into: tile)
        } else {
            multiplyPanels(rows, k, first: first, count: count, into: tile)
        }
    }

    /// Few rows: a panel is read from the packed head once, front to back, as memory likes it.
    private func multiplyDirectly(
        _ rows: PackedRows, _ k: Range<Int>, _ head: Head, first: Int, count: Int,
        into tile: UnsafeMutablePointer<Float>
    ) {
        if rows.rows == 1, count == TileMultiplier.width {
            kernels.multiply_row(
                tile, rows.from() + k.lowerBound,
                head.panel(first / TileMultiplier.panelWidth, k: k.lowerBound),
                TileMultiplier.panelWidth * rows.depth * head.format.byteCount, head.format.rawValue,
                k.count)
            return
        }
        for offset in stride(from: 0, to: count, by: TileMultiplier.panelWidth) {
            kernels.multiply(
                tile + offset, TileMultiplier.width, rows.from(), rows.depth, k.lowerBound,
                head.panel((first + offset) / TileMultiplier.panelWidth, k: k.lowerBound),
                head.format.rawValue, rows.rows, k.count, 0)
        }
    }

    /// Many rows: 128 k of 128 columns are packed in float, and all rows pass over them while they are in cache.
    private func multiplyPanels(
        _ rows: PackedRows, _ all: Range<Int>, first: Int, count: Int, into tile: UnsafeMutablePointer<Float>
    ) {
        for k in stride(from: all.lowerBound, to: all.upperBound, by: TileMultiplier.chain) {
            let depth = min(TileMultiplier.chain, all.upperBound - k)
            for offset in stride(from: 0, to: count, by: TileMultiplier.panelWidth) {
                let width = min(TileMultiplier.panelWidth, count - offset)
                pack(first + offset, width: width, k: k, depth: depth)
                kernels.multiply(
                    tile + offset, TileMultiplier.width, rows.from(), rows.depth, k, panel.base,
                    Format.fp32.rawValue, rows.rows, depth, k > all.lowerBound ? 1 : 0)
            }
        }
    }

    /// Packs 32 columns of `depth` k in float.
    private func pack(_ column: Int, width: Int, k: Int, depth: Int) {
        switch columns {
        case .borrowed(let weight):
            kernels.pack_panel_transposed(
                panel.base, weight.row(column) + k * weight.format.byteCount, weight.format.rawValue,
                weight.rowStride, width, depth)
        case .packed(let head):
            let codes = head.panel(column / TileMultiplier.panelWidth, k: k)
            if let scales = head.scales {
                scales.withUnsafeBufferPointer {
                    kernels.widen_panel(
                        panel.base, codes.assumingMemoryBound(to: UInt8.self), $0.baseAddress! + column, depth
                    )
                }
                return
            }
            kernels.pack_panel(
                panel.base, codes, head.format.rawValue, TileMultiplier.panelWidth, TileMultiplier.panelWidth,
                depth)
        }
    }
}
