/// A matrix of values in one format, row after row, that owns its memory.
///
/// What a Swift program hands over where a C program hands over a pointer.
public struct Matrix<Element: StorageFormat>: Sendable {
    /// Number of rows.
    public let rows: Int
    /// Number of columns.
    public let columns: Int
    /// The values, row after row.
    public private(set) var elements: [Element]

    /// Creates a matrix from its values, row after row.
    ///
    /// - Throws: `.invalidArgument` if there are not `rows` x `columns` of them.
    public init(rows: Int, columns: Int, _ elements: [Element]) throws(LockstepError) {
        let (count, overflow) = rows.multipliedReportingOverflow(by: columns)
        guard rows >= 0, columns >= 0, !overflow, elements.count == count else {
            throw LockstepError(
                .invalidArgument,
                "elements: has \(elements.count) values; give \(rows) rows x \(columns) columns of them")
        }
        self.rows = rows
        self.columns = columns
        self.elements = elements
    }

    /// The value at a row and a column.
    public subscript(row: Int, column: Int) -> Element {
        get {
            precondition(column >= 0 && column < columns, "column \(column) of \(columns)")
            return elements[row * columns + column]
        }
        set {
            precondition(column >= 0 && column < columns, "column \(column) of \(columns)")
            elements[row * columns + column] = newValue
        }
    }

    /// Some rows, copied.
    public subscript(rows range: Range<Int>) -> Matrix {
        Matrix(rows: range, of: self)
    }

    private init(rows range: Range<Int>, of whole: Matrix) {
        rows = range.count
        columns = whole.columns
        elements = Array(whole.elements[range.lowerBound * columns..<range.upperBound * columns])
    }

    /// A matrix of zeros.
    init(zeros rows: Int, _ columns: Int, as zero: Element) {
        self.rows = rows
        self.columns = columns
        elements = Array(repeating: zero, count: rows * columns)
    }

    /// Lends the values to `body`, which must not keep the view.
    public func withView<Result>(
        _ body: (MatrixView) throws(LockstepError) -> Result
    ) throws(LockstepError) -> Result {
        try elements.withUnsafeBufferPointer { (buffer) throws(LockstepError) in
            try body(MatrixView(buffer.baseAddress, Element.format, rows: rows, columns: columns))
        }
    }

    /// Lends the values to `body`, which may write them and must not keep the view.
    public mutating func withMutableView<Result>(
        _ body: (MutableMatrixView) throws(LockstepError) -> Result
    ) throws(LockstepError) -> Result {
        let (rows, columns) = (rows, columns)
        return try elements.withUnsafeMutableBufferPointer { (buffer) throws(LockstepError) in
            try body(MutableMatrixView(buffer.baseAddress, Element.format, rows: rows, columns: columns))
        }
    }
}

extension Array where Element: StorageFormat {
    /// Lends the values to `body`, which must not keep the view.
    public func withVectorView<Result>(
        _ body: (VectorView) throws(LockstepError) -> Result
    ) throws(LockstepError) -> Result {
        try withUnsafeBufferPointer { (buffer) throws(LockstepError) in
            try body(VectorView(buffer.baseAddress, Element.format, count: count))
        }
    }

    /// Lends the values to `body`, which may write them and must not keep the view.
    mutating func withMutableVectorView<Result>(
        _ body: (MutableVectorView) throws(LockstepError) -> Result
    ) throws(LockstepError) -> Result {
        try withUnsafeMutableBufferPointer { (buffer) throws(LockstepError) in
            try body(MutableVectorView(buffer.baseAddress, Element.format, count: buffer.count))
        }
    }
}

extension Array where Element == Int32 {
    /// Lends token ids to `body`, which must not keep the view.
    public func withTokenView<Result>(
        _ body: (TokenView) throws(LockstepError) -> Result
    ) throws(LockstepError) -> Result {
        try withUnsafeBufferPointer { (buffer) throws(LockstepError) in
            try body(TokenView(buffer.baseAddress, byteCount: 4, count: count))
        }
    }
}
