import CLockstep
import Lockstep

// From a borrowed `lockstep_tensor` to the core's views: everything is checked here, before any memory
// of the caller is touched.

/// A tensor whose fields have been checked: 1 to 8 dimensions on the CPU, sizes that fit, data present.
struct CheckedTensor {
    let name: StaticString
    let base: UnsafeMutableRawPointer?
    let code: Int32
    let byteCount: Int
    let shape: [Int]
    /// In elements, filled in for C order.
    let strides: [Int]
    let count: Int

    /// The most elements a tensor may have: far beyond any memory, far below overflow.
    static let largestCount = 1 << 48

    init(_ pointer: UnsafePointer<lockstep_tensor>?, _ name: StaticString) throws(LockstepError) {
        guard let pointer else { throw invalid("\(name) is NULL") }
        let tensor = pointer.pointee
        guard tensor.device.device_type == 1 else {
            throw invalid(
                "\(name): device_type is \(tensor.device.device_type); copy the data to the CPU (1) first")
        }
        guard (1...8).contains(tensor.ndim), tensor.shape != nil else {
            throw invalid("\(name): ndim is \(tensor.ndim) and shape may be NULL; give 1 to 8 dimensions")
        }
        self.name = name
        code =
            Int32(tensor.dtype.code) | Int32(tensor.dtype.bits) << 8
            | Int32(truncatingIfNeeded: UInt32(tensor.dtype.lanes) << 16)
        guard let size = CheckedTensor.byteCounts[code] ?? emulatedFormat(code)?.byteCount else {
            throw invalid(
                "\(name): dtype code \(tensor.dtype.code), bits \(tensor.dtype.bits), lanes "
                    + "\(tensor.dtype.lanes) is not known; see the LOCKSTEP_FLOAT32 constants")
        }
        byteCount = size
        let dimensions = Int(tensor.ndim)
        var shape: [Int] = []
        var total = 1
        for axis in 0..<dimensions {
            let extent = Int(tensor.shape[axis])
            guard extent >= 0 else {
                throw invalid("\(name): shape[\(axis)] is \(extent); counts cannot be negative")
            }
            let (product, overflow) = total.multipliedReportingOverflow(by: Swift.max(extent, 1))
            guard !overflow, product <= CheckedTensor.largestCount else {
                throw invalid("\(name): shape[\(axis)] is \(extent), which makes the tensor too large")
            }
            total = product
            shape.append(extent)
        }
        var strides = [Int](repeating: 1, count: dimensions)
        if let given = tensor.strides {
            for axis in 0..<dimensions {
                strides[axis] = Int(given[axis])
                // A stride that no step uses may hold anything.
                if shape[axis] <= 1 { strides[axis] = 0; continue }
                let (reach, overflow) = strides[axis].multipliedReportingOverflow(by: shape[axis])
                guard !overflow, reach.magnitude <= UInt(CheckedTensor.largestCount) else {
                    throw invalid("\(name): strides[\(axis)] is \(strides[axis]), which is out of range")
                }
            }
        } else {
            for axis in stride(from: dimensions - 2, through: 0, by: -1) {
                strides[axis] = strides[axis + 1] * Swift.max(shape[axis + 1], 1)
            }
        }
        self.shape = shape
        self.strides = strides
        count = shape.contains(0) ? 0 : total
        guard tensor.byte_offset <= UInt64(CheckedTensor.largestCount) else {
            throw invalid("\(name): byte_offset is \(tensor.byte_offset), which is out of range")
        }
        guard count == 0 || tensor.data != nil else {
            throw invalid("\(name): data is NULL but the tensor has \(count) elements")
        }
        base = tensor.data.map { $0 + Int(tensor.byte_offset) }
        if count > 0, let base, Int(bitPattern: base) % byteCount != 0 {
            throw invalid("\(name): data is not aligned to its \(byteCount)-byte elements; copy it first")
        }
    }

    private static let byteCounts: [Int32: Int] = [
        Int32(LOCKSTEP_FLOAT32): 4, Int32(LOCKSTEP_FLOAT64): 8, Int32(LOCKSTEP_FLOAT16): 2,
        Int32(LOCKSTEP_BFLOAT16): 2, Int32(LOCKSTEP_FLOAT8_E4M3FN): 1, Int32(LOCKSTEP_FLOAT8_E5M2): 1,
        Int32(LOCKSTEP_INT32): 4, Int32(LOCKSTEP_INT64): 8, Int32(LOCKSTEP_UINT8): 1,
        Int32(LOCKSTEP_UINT64): 8, Int32(LOCKSTEP_BOOL): 1,
    ]

    /// The floating-point format, if `allowed` has it; else an error that lists what is.
    func format(_ allowed: [Format]) throws(LockstepError) -> Format {
        let found: Format? =
            switch Int(code) {
            case LOCKSTEP_FLOAT32: .fp32
            case LOCKSTEP_FLOAT64: .fp64
            case LOCKSTEP_FLOAT16: .fp16
            case LOCKSTEP_BFLOAT16: .bf16
            case LOCKSTEP_FLOAT8_E4M3FN: .e4m3fn
            case LOCKSTEP_FLOAT8_E5M2: .e5m2
            default: emulatedFormat(code)
            }
        guard let found, allowed.contains(found) else {
            let list =
                (allowed.filter { !$0.isEmulated }.map(\.description)
                + (allowed.contains(where: \.isEmulated) ? ["e8mN", "e5mN"] : [])).joined(separator: ", ")
            throw invalid("\(name): dtype must be one of \(list)")
        }
        return found
    }

    func expect(dimensions: Int, _ letters: StaticString) throws(LockstepError) {
        guard shape.count == dimensions else {
            throw invalid("\(name): has \(shape.count) dimensions; give \(letters)")
        }
    }

    func expect(_ axis: Int, is extent: Int, _ of: StaticString) throws(LockstepError) {
        guard shape[axis] == extent else {
            throw invalid("\(name): shape[\(axis)] is \(shape[axis]) but \(of) is \(extent)")
        }
    }

    /// A matrix whose rows are contiguous.
    func matrix(_ allowed: [Format], _ letters: StaticString) throws(LockstepError) -> MatrixView {
        let format = try format(allowed)
        try expect(dimensions: 2, letters)
        guard shape[1] <= 1 || strides[1] == 1 else {
            throw invalid("\(name): strides[1] is \(strides[1]); rows must be contiguous, copy it first")
        }
        return MatrixView(base, format, rows: shape[0], columns: shape[1], rowStride: strides[0])
    }

    /// A matrix to write: rows contiguous, and no two rows sharing memory.
    func mutableMatrix(
        _ allowed: [Format], _ letters: StaticString
    ) throws(LockstepError) -> MutableMatrixView {
        let view = try matrix(allowed, letters)
        guard count == 0 || view.rows <= 1 || view.rowStride.magnitude >= UInt(view.columns) else {
            throw invalid("\(name): strides[0] is \(view.rowStride); rows of an output must not overlap")
        }
        return MutableMatrixView(
            base, view.format, rows: view.rows, columns: view.columns, rowStride: view.rowStride)
    }

    func vector(_ allowed: [Format], _ letters: StaticString) throws(LockstepError) -> VectorView {
        let format = try format(allowed)
        try expect(dimensions: 1, letters)
        return VectorView(base, format, count: shape[0], stride: strides[0])
    }

    func mutableVector(_ letters: StaticString) throws(LockstepError) -> MutableVectorView {
        let format = try format([.fp32, .fp64])
        try expect(dimensions: 1, letters)
        guard shape[0] <= 1 || strides[0] != 0 else {
            throw invalid("\(name): strides[0] is 0; elements of an output must not overlap")
        }
        return MutableVectorView(base, format, count: shape[0], stride: strides[0])
    }

    func tokens(_ letters: StaticString) throws(LockstepError) -> TokenView {
        guard [LOCKSTEP_INT32, LOCKSTEP_INT64].contains(Int(code)) else {
            throw invalid("\(name): dtype must be int32 or int64")
        }
        try expect(dimensions: 1, letters)
        return TokenView(base, byteCount: byteCount, count: shape[0], stride: strides[0])
    }
}

/// The format of LOCKSTEP_E8M + N or LOCKSTEP_E5M + N; nil for other codes.
func emulatedFormat(_ code: Int32) -> Format? {
    let (e8, e5) = (code &- Int32(LOCKSTEP_E8M), code &- Int32(LOCKSTEP_E5M))
    if (1...23).contains(e8) { return Format(rawValue: 8 << 8 | e8) }
    return (1...10).contains(e5) ? Format(rawValue: 5 << 8 | e5) : nil
}

/// The code of an emulated format.
func emulatedCode(_ format: Format) -> Int32 {
    let mantissa = format.rawValue & 0xff
    return mantissa + Int32(format.rawValue >> 8 == 8 ? LOCKSTEP_E8M : LOCKSTEP_E5M)
}

/// An optional output vector of `count` elements; NULL gives nil.
func optionalVector(
    _ pointer: UnsafePointer<lockstep_tensor>?, _ name: StaticString, count: Int
) throws(LockstepError) -> MutableVectorView? {
    guard let pointer else { return nil }
    let tensor = try CheckedTensor(pointer, name)
    let view = try tensor.mutableVector("[tokens]")
    try tensor.expect(0, is: count, "the number of tokens")
    return view
}
