import CLockstepKernels

/// A head copied once into the layout the kernels read: panels of 32 vocabulary entries, [H][32].
///
/// The values keep the weight's own format. For repeated use: decoding, or many batches. Safe to use from many threads.
public final class Head: @unchecked Sendable {
    /// Vocabulary entries: rows of the weight.
    public let vocab: Int
    /// Columns of the weight.
    public let hiddenSize: Int
    /// Format of the weight: fp32, fp16 or bf16; e4m3fn, of a model's matrices alone.
    public let format: Format
    /// What the codes of each row stand for is multiplied by, in e4m3fn: powers of two; zeros follow the last row.
    let scales: [Float]?
    /// Whether a product is formed of each half of the hidden size by itself, then their sum.
    let splitsProducts: Bool
    private let panels: UnsafeMutableRawPointer
    private let memory: PanelMemory.Chunk  // that the panels are in
    private let hasBias: Bool
    private let biasValues: Scratch<Float>

    /// Copies `weight` [vocab x H] and `bias` [vocab]; keeps no pointer to either.
    ///
    /// - Throws: `.invalidArgument` for formats and shapes, `.outOfMemory`.
    public convenience init(weight: MatrixView, bias: VectorView? = nil) throws(LockstepError) {
        try self.init(weight: weight, bias: bias, in: PanelMemory(isShared: false))
    }

    /// `scales`, of weights in e4m3fn: one for each row, and zeros up to a whole panel.
    init(
        weight: MatrixView, bias: VectorView?, in memory: PanelMemory, splitsProducts: Bool = false,
        scales: [Float]? = nil
    ) throws(LockstepError) {
        if scales == nil { try checkFormat(weight.format, "weight") }
        try checkBias(bias, vocab: weight.rows)
        vocab = weight.rows
        hiddenSize = weight.columns
        format = weight.format
        self.splitsProducts = splitsProducts
        self.scales = scales
        let panelCount = (vocab + Int(LSK_PANEL) - 1) / Int(LSK_PANEL)
        let (bytes, overflow) = (panelCount * Int(LSK_PANEL)).multipliedReportingOverflow(
            by: weight.columns * weight.format.byteCount)
        guard !overflow else { throw LockstepError(.outOfMemory, "weight is too large to copy") }
        (panels, self.memory) = try memory.take(bytes)
        hasBias = bias != nil
        biasValues = try Scratch(count: bias?.count ?? 0)
        if let bias {
            for v in 0..<vocab { biasValues.base[v] = Float(bias.double(v)) }
        }
        for panel in 0..<panelCount {
            let first = panel * Int(LSK_PANEL)
            let source = weight.base! + first * weight.rowStride * format.byteCount
            let target = UnsafeMutableRawPointer(mutating: self.panel(panel, k: 0))
            let rows = min(Int(LSK_PANEL), vocab - first)
            switch format.byteCount {
            case 4:
                Head.interleave(UInt32.self, source, weight.rowStride, rows: rows, depth: hiddenSize, target)
            case 2:
                Head.interleave(UInt16.self, source, weight.rowStride, rows: rows, depth: hiddenSize, target)
            default:
                Head.interleave(UInt8.self, source, weight.rowStride, rows: rows, depth: hiddenSize, target)
            }
        }
    }

    var bias: VectorView? {
        hasBias ? VectorView(UnsafeRawPointer(biasValues.base), .fp32, count: vocab) : nil
    }

    func panel(_ index: Int, k: Int = 0) -> UnsafeRawPointer {
        UnsafeRawPointer(panels) + (index * hiddenSize + k) * Int(LSK_PANEL) * format.byteCount
    }

    /// Writes a row of the weight, as it was before it was packed; not of e4m3fn.
    func copyRow(
        _ row: Int, into target: UnsafeMutableRawPointer, as wanted: Format, _ kernels: lsk_kernels
    ) {
        let width = Int(LSK_PANEL)
        let source = panel(row / width) + row % width * format.byteCount
        func gather<Element: BitwiseCopyable>(_: Element.Type) {
            withUnsafeTemporaryAllocation(of: Element.self, capacity: hiddenSize) { values in
                for k in 0..<hiddenSize {
                    values[k] = source.loadUnaligned(
                        fromByteOffset: k * width * MemoryLayout<Element>.size, as: Element.self)
                }
                var counts = lsk_convert_counts()
                kernels.convert(
                    target, wanted.rawValue, values.baseAddress!, format.rawValue, hiddenSize,
                    LSK_NEAREST_EVEN, 0, 0, &counts)
            }
        }
        if format == .fp32 { gather(UInt32.self) } else { gather(UInt16.self) }
    }

    /// Rows of `depth` elements to [depth][32]; columns beyond `rows` are zero.
    private static func interleave<Element: FixedWidthInteger & BitwiseCopyable>(
        _: Element.Type, _ source: UnsafeRawPointer, _ rowStride: Int, rows: Int, depth: Int,
        _ target: UnsafeMutableRawPointer
    ) {
        let size = MemoryLayout<Element>.size
        let out = target.assumingMemoryBound(to: Element.self)
        let part = 64  // of the depth at a time: what is written stays in the nearest cache
        for first in stride(from: 0, to: depth, by: part) {
            for row in 0..<Int(LSK_PANEL) {
                for k in first..<min(first + part, depth) {
                    out[k * Int(LSK_PANEL) + row] =
                        row < rows
                        ? (source + (row * rowStride + k) * size).loadUnaligned(as: Element.self) : 0
                }
            }
        }
    }
}

func checkBias(_ bias: VectorView?, vocab: Int) throws(LockstepError) {
    guard let bias else { return }
    try checkFormat(bias.format, "bias")
    guard bias.count == vocab else {
        throw LockstepError(
            .invalidArgument, "bias: has \(bias.count) elements but the weight has \(vocab) rows")
    }
}
