/// An address for a matrix without elements: its rows have addresses too, though nobody reads them.
private var noMemory: UnsafeMutableRawPointer? { UnsafeMutableRawPointer(bitPattern: 64) }

/// A borrowed matrix of floating-point values in one format: rows of contiguous elements.
///
/// The untyped form every kernel takes; the buffer must outlive the call.
public struct MatrixView {
    /// The first element; nil only when there are no elements.
    public let base: UnsafeRawPointer?
    /// The format of the elements.
    public let format: Format
    /// Number of rows.
    public let rows: Int
    /// Number of columns.
    public let columns: Int
    /// Elements from one row to the next.
    public let rowStride: Int

    /// Creates a view of `rows` x `columns` elements; `rowStride` is in elements, `columns` by default.
    public init(_ base: UnsafeRawPointer?, _ format: Format, rows: Int, columns: Int, rowStride: Int? = nil) {
        self.base = base ?? (rows == 0 || columns == 0 ? noMemory.map { UnsafeRawPointer($0) } : nil)
        self.format = format
        self.rows = rows
        self.columns = columns
        self.rowStride = rowStride ?? columns
    }

    /// The address of row `index`.
    @inline(__always)
    func row(_ index: Int) -> UnsafeRawPointer {
        base! + index &* rowStride &* format.byteCount
    }
}

/// A borrowed matrix that a kernel writes.
public struct MutableMatrixView {
    /// The first element; nil only when there are no elements.
    public let base: UnsafeMutableRawPointer?
    /// The format of the elements.
    public let format: Format
    /// Number of rows.
    public let rows: Int
    /// Number of columns.
    public let columns: Int
    /// Elements from one row to the next.
    public let rowStride: Int

    /// Creates a view of `rows` x `columns` elements; `rowStride` is in elements, `columns` by default.
    public init(
        _ base: UnsafeMutableRawPointer?, _ format: Format, rows: Int, columns: Int, rowStride: Int? = nil
    ) {
        self.base = base ?? (rows == 0 || columns == 0 ? noMemory : nil)
        self.format = format
        self.rows = rows
        self.columns = columns
        self.rowStride = rowStride ?? columns
    }

    /// The address of row `index`.
    @inline(__always)
    func row(_ index: Int) -> UnsafeMutableRawPointer {
        base! + index &* rowStride &* format.byteCount
    }
}

/// A borrowed vector of floating-point values in one format, with any stride.
public struct VectorView {
    /// The first element; nil only when there are no elements.
    public let base: UnsafeRawPointer?
    /// The format of the elements.
    public let format: Format
    /// Number of elements.
    public let count: Int
    /// Elements from one to the next.
    public let stride: Int

    /// Creates a view of `count` elements, `stride` elements apart.
    public init(_ base: UnsafeRawPointer?, _ format: Format, count: Int, stride: Int = 1) {
        self.base = base
        self.format = format
        self.count = count
        self.stride = stride
    }

    /// Element `index` as a double: exact for every format.
    func double(_ index: Int) -> Double {
        let address = base! + index &* stride &* format.byteCount
        return switch format.storage {
        case .fp64: address.loadUnaligned(as: Double.self)
        case .fp32: Double(address.loadUnaligned(as: Float.self))
        case .fp16: Double(Float(Float16(bitPattern: address.loadUnaligned(as: UInt16.self))))
        case .bf16: Double(Float(bitPattern: UInt32(address.loadUnaligned(as: UInt16.self)) << 16))
        default: preconditionFailure("8-bit vectors are not an input")
        }
    }
}

/// A borrowed vector of fp32 or fp64 values that a call writes, with any stride.
public struct MutableVectorView {
    /// The first element; nil only when there are no elements.
    public let base: UnsafeMutableRawPointer?
    /// `fp32` or `fp64`.
    public let format: Format
    /// Number of elements.
    public let count: Int
    /// Elements from one to the next.
    public let stride: Int

    /// Creates a view of `count` elements, `stride` elements apart; `format` is `fp32` or `fp64`.
    public init(_ base: UnsafeMutableRawPointer?, _ format: Format, count: Int, stride: Int = 1) {
        self.base = base
        self.format = format
        self.count = count
        self.stride = stride
    }

    /// Writes element `index`, rounding once if the vector is fp32.
    func store(_ value: Double, at index: Int) {
        let address = base! + index &* stride &* format.byteCount
        if format == .fp64 {
            address.storeBytes(of: value, as: Double.self)
        } else {
            address.storeBytes(of: Float(value), as: Float.self)
        }
    }
}

extension MutableVectorView {
    /// Writes `count` values.
    public func store(_ values: [Double]) {
        for index in 0..<count { store(values[index], at: index) }
    }
}

/// A borrowed vector of token ids, int32 or int64, with any stride.
public struct TokenView {
    /// The first element; nil only when there are no elements.
    public let base: UnsafeRawPointer?
    /// Bytes of one id: 4 or 8.
    public let byteCount: Int
    /// Number of ids.
    public let count: Int
    /// Ids from one to the next.
    public let stride: Int

    /// Creates a view of `count` ids of 4 or 8 bytes, `stride` ids apart.
    public init(_ base: UnsafeRawPointer?, byteCount: Int = 4, count: Int, stride: Int = 1) {
        self.base = base
        self.byteCount = byteCount
        self.count = count
        self.stride = stride
    }

    /// Id `index`, which must be in [0, count).
    public func token(_ index: Int) -> Int { self[index] }

    subscript(index: Int) -> Int {
        let address = base! + index &* stride &* byteCount
        return byteCount == 4
            ? Int(address.loadUnaligned(as: Int32.self)) : Int(address.loadUnaligned(as: Int64.self))
    }
}
