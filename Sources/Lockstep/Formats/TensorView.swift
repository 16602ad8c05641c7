/// A borrowed array of up to 8 dimensions in one format, with any strides.
public struct TensorView {
    /// The element at index 0 of every dimension; may be nil when there are no elements.
    public let base: UnsafeRawPointer?
    /// The format of the elements.
    public let format: Format
    /// Elements along each dimension.
    public let shape: [Int]
    /// Elements from one index to the next along each dimension.
    public let strides: [Int]

    /// Creates a view; without `strides` the elements are in C order.
    public init(_ base: UnsafeRawPointer?, _ format: Format, shape: [Int], strides: [Int]? = nil) {
        self.base = base
        self.format = format
        self.shape = shape
        self.strides = strides ?? StridedLayout.strides(ofCOrder: shape)
    }
}

/// A borrowed array of up to 8 dimensions that a call writes.
public struct MutableTensorView {
    /// The element at index 0 of every dimension; may be nil when there are no elements.
    public let base: UnsafeMutableRawPointer?
    /// The format of the elements.
    public let format: Format
    /// Elements along each dimension.
    public let shape: [Int]
    /// Elements from one index to the next along each dimension.
    public let strides: [Int]

    /// Creates a view; without `strides` the elements are in C order.
    public init(_ base: UnsafeMutableRawPointer?, _ format: Format, shape: [Int], strides: [Int]? = nil) {
        self.base = base
        self.format = format
        self.shape = shape
        self.strides = strides ?? StridedLayout.strides(ofCOrder: shape)
    }
}

/// Where the elements of a strided array lie, in the fewest dimensions.
///
/// Dimensions of extent 1 are dropped, and neighbours that step through memory as one are joined. Elements
/// are numbered in C order.
struct StridedLayout {
    private(set) var shape: [Int] = []
    private(set) var strides: [Int] = []
    /// Number of elements.
    let count: Int
    /// Bytes of one element.
    let byteCount: Int
    /// The element at index 0 of every dimension.
    let base: UnsafeMutableRawPointer?

    /// Checks and simplifies the layout of the argument `name`.
    init(
        _ name: StaticString, base: UnsafeRawPointer?, byteCount: Int, shape: [Int], strides: [Int]
    ) throws(LockstepError) {
        guard shape.count == strides.count else {
            throw LockstepError(
                .invalidArgument, "\(name): has \(shape.count) dimensions but \(strides.count) strides")
        }
        var count = 1
        for (axis, extent) in shape.enumerated() {
            let (product, overflow) = count.multipliedReportingOverflow(by: extent)
            guard extent >= 0, !overflow else {
                throw LockstepError(.invalidArgument, "\(name): shape[\(axis)] is \(extent), out of range")
            }
            count = product
        }
        guard count == 0 || base != nil else {
            throw LockstepError(.invalidArgument, "\(name): has \(count) elements but no memory")
        }
        self.count = count
        self.byteCount = byteCount
        self.base = base.map { UnsafeMutableRawPointer(mutating: $0) }
        for (extent, stride) in zip(shape, strides) where extent != 1 {
            if let last = self.shape.indices.last, self.strides[last] == extent &* stride {
                self.shape[last] *= extent
                self.strides[last] = stride
            } else {
                self.shape.append(extent)
                self.strides.append(stride)
            }
        }
    }

    /// The strides of an array in C order.
    static func strides(ofCOrder shape: [Int]) -> [Int] {
        var strides = [Int](repeating: 1, count: shape.count)
        for axis in shape.indices.dropLast().reversed() {
            strides[axis] = strides[axis + 1] &* max(shape[axis + 1], 1)
        }
        return strides
    }

    /// Whether the elements lie one after the other.
    var isContiguous: Bool { count <= 1 || (shape.count == 1 && strides[0] == 1) }

    /// Whether two elements may share memory.
    ///
    /// Exact but for interleavings that no slicing or transposition of an array makes.
    var mayOverlapItself: Bool {
        var reach = 0
        for (extent, stride) in zip(shape, strides).sorted(by: { $0.1.magnitude < $1.1.magnitude }) {
            if count > 0 && Int(stride.magnitude) <= reach { return true }
            reach += (extent - 1) * Int(stride.magnitude)
        }
        return false
    }

    /// Whether an element of this array may share memory with one of `other`: their spans touch.
    func mayOverlap(_ other: StridedLayout) -> Bool {
        guard let own = span, let others = other.span else { return false }
        return own.overlaps(others)
    }

    /// Whether every element lies exactly where that of `other` does.
    func coincides(with other: StridedLayout) -> Bool {
        base == other.base && byteCount == other.byteCount && shape == other.shape && strides == other.strides
    }

    /// The addresses from the first byte to the last; nil without elements.
    private var span: Range<Int>? {
        guard count > 0, let base else { return nil }
        var low = 0
        var high = 0
        for (extent, stride) in zip(shape, strides) {
            if stride < 0 { low += (extent - 1) * stride } else { high += (extent - 1) * stride }
        }
        let address = Int(bitPattern: base)
        return address + low * byteCount..<address + (high + 1) * byteCount
    }

    /// Copies the elements of `range` to `buffer`, one after the other.
    func gather(_ range: Range<Int>, into buffer: UnsafeMutableRawPointer) {
        switch byteCount {
        case 8: copy(range, buffer, UInt64.self, isGather: true)
        case 4: copy(range, buffer, UInt32.self, isGather: true)
        case 2: copy(range, buffer, UInt16.self, isGather: true)
        default: copy(range, buffer, UInt8.self, isGather: true)
        }
    }

    /// Copies `buffer` to the elements of `range`.
    func scatter(_ buffer: UnsafeMutableRawPointer, to range: Range<Int>) {
        switch byteCount {
        case 8: copy(range, buffer, UInt64.self, isGather: false)
        case 4: copy(range, buffer, UInt32.self, isGather: false)
        case 2: copy(range, buffer, UInt16.self, isGather: false)
        default: copy(range, buffer, UInt8.self, isGather: false)
        }
    }

    /// Walks `range` in runs along the last dimension.
    @inline(__always)
    private func copy<Element: FixedWidthInteger>(
        _ range: Range<Int>, _ buffer: UnsafeMutableRawPointer, _: Element.Type, isGather: Bool
    ) {
        let size = MemoryLayout<Element>.size
        let length = shape.last ?? 1
        let step = (strides.last ?? 1) * size
        var buffer = buffer
        var index = range.lowerBound
        while index < range.upperBound {
            var outer = index / length
            let column = index % length
            var element = base! + column * step
            for axis in shape.indices.dropLast().reversed() {
                element += (outer % shape[axis]) * strides[axis] * size
                outer /= shape[axis]
            }
            let run = min(length - column, range.upperBound - index)
            for _ in 0..<run {
                if isGather {
                    buffer.storeBytes(of: element.loadUnaligned(as: Element.self), as: Element.self)
                } else {
                    element.storeBytes(of: buffer.loadUnaligned(as: Element.self), as: Element.self)
                }
                element += step
                buffer += size
            }
            index += run
        }
    }
}
