/// How far the results of one operation in two engines are apart, element by element, as float32.
///
/// Sums are float64, in the order of rows and of a row's elements.
public struct Difference: Equatable, Sendable {
    /// The operation, "attention output".
    public let operation: String
    /// Its layer; -1 is the embedding, the number of layers what follows them.
    public let layer: Int
    /// Rows (tokens) that were compared.
    public private(set) var rows = 0
    /// Elements of a row.
    public let columns: Int
    /// Elements whose bits differ.
    public private(set) var differing = 0
    /// Elements that are infinite or NaN on a side; they are in no sum.
    public private(set) var nonFinite = 0
    /// The row and the element of the first whose bits differ.
    public private(set) var first: (row: Int, column: Int)?
    /// The largest difference.
    public private(set) var maxAbs = 0.0
    private var sumAbs = 0.0
    private var sumSquares = 0.0
    private var sumReference = 0.0

    /// Nothing compared yet.
    init(_ operation: String, layer: Int, columns: Int) {
        self.operation = operation
        self.layer = layer
        self.columns = columns
    }

    /// Mean difference, without its sign; 0 without elements.
    public var meanAbs: Double { sumAbs / Double(max(rows * columns - nonFinite, 1)) }

    /// Root of the mean square of the differences.
    public var rms: Double { (sumSquares / Double(max(rows * columns - nonFinite, 1))).squareRoot() }

    /// `sqrt(sum (a - b)^2 / sum a^2)`: 0 without a difference, infinite where the first side is 0 everywhere.
    public var relativeRMS: Double { sumSquares == 0 ? 0 : (sumSquares / sumReference).squareRoot() }

    /// Adds rows of `columns` floats of both engines.
    mutating func add(_ a: UnsafePointer<Float>, _ b: UnsafePointer<Float>, rows count: Int) {
        for row in 0..<count {
            for index in row * columns..<(row + 1) * columns {
                let (x, y) = (Double(a[index]), Double(b[index]))
                let difference = (x - y).magnitude
                if a[index].bitPattern != b[index].bitPattern {
                    differing += 1
                    if first == nil { first = (rows + row, index - row * columns) }
                }
                // Infinite or NaN where a side is.
                guard difference.isFinite else {
                    nonFinite += 1
                    continue
                }
                maxAbs = max(maxAbs, difference)
                sumAbs += difference
                sumSquares += difference * difference
                sumReference += x * x
            }
        }
        rows += count
    }

    /// Whether both hold the same.
    public static func == (a: Difference, b: Difference) -> Bool {
        a.operation == b.operation && a.layer == b.layer && a.rows == b.rows && a.columns == b.columns
            && a.differing == b.differing && a.nonFinite == b.nonFinite && a.first?.row == b.first?.row
            && a.first?.column == b.first?.column && a.maxAbs == b.maxAbs && a.sumAbs == b.sumAbs
            && a.sumSquares == b.sumSquares && a.sumReference == b.sumReference
    }
}

/// How far two matrices of one shape are apart: rows are tokens, columns what an operation gave for them.
///
/// - Parameters:
///   - first: fp32, fp16, bf16 or fp64, which is rounded to fp32; `relativeRMS` is relative to it.
///   - second: the same shape; any of those formats.
///   - operation: what the result is called.
///   - layer: its layer.
/// - Throws: `.invalidArgument` for shapes that differ; `.outOfMemory`.
/// - Returns: the difference, relative to `first`.
public func measureDifference(
    _ first: MatrixView, _ second: MatrixView, operation: String = "", layer: Int = -1
) throws(LockstepError) -> Difference {
    guard first.rows == second.rows, first.columns == second.columns else {
        throw LockstepError(
            .invalidArgument,
            "second: shape is [\(second.rows) x \(second.columns)] but first is [\(first.rows) x "
                + "\(first.columns)]")
    }
    var found = Difference(operation, layer: layer, columns: first.columns)
    let part = max(1, min(first.rows, (1 << 16) / max(first.columns, 1)))
    let floats = try Scratch<Float>(count: 2 * part * first.columns)
    for row in stride(from: 0, to: first.rows, by: part) {
        let count = min(part, first.rows - row)
        let places = [floats.base, floats.base + part * first.columns]
        for (matrix, place) in zip([first, second], places) {
            try convert(
                TensorView(
                    matrix.row(row), matrix.format, shape: [count, matrix.columns],
                    strides: [matrix.rowStride, 1]),
                into: MutableTensorView(place, .fp32, shape: [count, matrix.columns]),
                execution: Execution(threads: 1))
        }
        found.add(places[0], places[1], rows: count)
    }
    return found
}
