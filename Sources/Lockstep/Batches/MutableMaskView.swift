/// A borrowed mask that a call writes: one byte for each token, 1 or 0.
public struct MutableMaskView {
    /// The first byte; may be nil when there are no elements.
    public let base: UnsafeMutablePointer<UInt8>?
    /// Number of rows.
    public let rows: Int
    /// Number of columns; the bytes of a row are contiguous.
    public let columns: Int
    /// Bytes from one row to the next.
    public let rowStride: Int

    /// Creates a view of `rows` x `columns` bytes; `rowStride` is `columns` by default.
    public init(_ base: UnsafeMutablePointer<UInt8>?, rows: Int, columns: Int, rowStride: Int? = nil) {
        self.base = base
        self.rows = rows
        self.columns = columns
        self.rowStride = rowStride ?? columns
    }

    /// The byte of a token.
    func address(_ place: TokenPlace) -> UnsafeMutablePointer<UInt8> {
        base! + (place.row &* rowStride &+ place.column)
    }
}
