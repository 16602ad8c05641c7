/// Distance of two values of one format in representable steps; see `StorageFormat.ulpDistance(to:)`.
func ulpDistance(_ a: UInt64, _ b: UInt64, _ layout: FormatLayout) -> UInt64 {
    let (aNegative, aCode) = layout.split(a)
    let (bNegative, bCode) = layout.split(b)
    switch (layout.isNaN(aCode), layout.isNaN(bCode)) {
    case (true, true): return 0
    case (false, false): break
    default: return .max
    }
    // Codes count the steps from zero.
    if aNegative != bNegative { return aCode + bCode }
    return aCode > bCode ? aCode - bCode : bCode - aCode
}

/// Elements a thread takes at a time.
private let chunk = 4_096

/// How many representable steps lie between a and b, element by element: the distance in units in the
/// last place.
///
/// *Edge cases:* as for `StorageFormat.ulpDistance(to:)`.
///
/// Steps are those of the format: for an emulated one, a float that is not among its values counts as the nearest that is.
///
/// - Parameters:
///   - a: any shape of up to 8 dimensions, any strides.
///   - b: the same format and shape.
///   - distances: the result, in the shape of `a`; must not share memory with the inputs.
///   - strides: of `distances`, in elements; C order if nil.
///   - execution: how many threads to use.
/// - Throws: `.invalidArgument` for formats or shapes that differ, or overlapping memory; nothing is
///   written then.
public func ulpDistance(
    _ a: TensorView, _ b: TensorView, into distances: UnsafeMutablePointer<UInt64>?, strides: [Int]? = nil,
    execution: Execution = Execution()
) throws(LockstepError) {
    guard a.format == b.format else {
        throw LockstepError(
            .invalidArgument, "b: dtype is \(b.format) but a's is \(a.format); convert one of them first")
    }
    guard a.shape == b.shape else {
        throw LockstepError(
            .invalidArgument, "b: shape is \(b.shape) but a's is \(a.shape); they must be equal")
    }
    let threads = try execution.threadCount()
    let size = a.format.byteCount
    let to = try StridedLayout(
        "distance", base: distances, byteCount: 8, shape: a.shape,
        strides: strides ?? StridedLayout.strides(ofCOrder: a.shape))
    let left = try StridedLayout("a", base: a.base, byteCount: size, shape: a.shape, strides: a.strides)
    let right = try StridedLayout("b", base: b.base, byteCount: size, shape: b.shape, strides: b.strides)
    guard !to.mayOverlapItself, !to.mayOverlap(left), !to.mayOverlap(right) else {
        throw LockstepError(
            .invalidArgument,
            "distance: its elements share memory, with each other or with a or b; give it "
                + "memory of its own")
    }
    parallelFor(tasks: (to.count + chunk - 1) / chunk, threads: threads) { task, _ in
        let range = task * chunk..<min((task + 1) * chunk, to.count)
        withUnsafeTemporaryAllocation(byteCount: 3 * 8 * chunk, alignment: 64) { scratch in
            let leftPart = scratch.baseAddress!
            let rightPart = leftPart + 8 * chunk
            let result = rightPart + 8 * chunk
            left.gather(range, into: leftPart)
            right.gather(range, into: rightPart)
            switch a.format {
            case .fp64: writeDistances(leftPart, rightPart, result, range.count, UInt64.self, a.format)
            case .fp16, .bf16: writeDistances(leftPart, rightPart, result, range.count, UInt16.self, a.format)
            case .e4m3fn, .e5m2:
                writeDistances(leftPart, rightPart, result, range.count, UInt8.self, a.format)
            default: writeDistances(leftPart, rightPart, result, range.count, UInt32.self, a.format)
            }
            to.scatter(result, to: range)
        }
    }
}

/// Distances of contiguous values.
@inline(__always)
private func writeDistances<BitPattern: FixedWidthInteger & UnsignedInteger>(
    _ a: UnsafeMutableRawPointer, _ b: UnsafeMutableRawPointer, _ result: UnsafeMutableRawPointer,
    _ count: Int, _: BitPattern.Type, _ format: Format
) {
    let layout = FormatLayout(format)
    let size = MemoryLayout<BitPattern>.size
    for index in 0..<count {
        var left = UInt64(a.load(fromByteOffset: index * size, as: BitPattern.self))
        var right = UInt64(b.load(fromByteOffset: index * size, as: BitPattern.self))
        if format.isEmulated { (left, right) = (emulatedBits(left, format), emulatedBits(right, format)) }
        result.storeBytes(of: ulpDistance(left, right, layout), toByteOffset: index * 8, as: UInt64.self)
    }
}

/// A float's bits in an emulated format's own layout.
private func emulatedBits(_ bits: UInt64, _ format: Format) -> UInt64 {
    convert(bits: bits, from: FormatLayout(.fp32), to: FormatLayout(format), rounding: .nearestEven).bits
}
