import CLockstepKernels

/// What happened in a conversion.
public struct ConversionCounts: Equatable, Sendable {
    /// Finite values too large for the destination.
    ///
    /// To nearest those that became infinity (NaN in e4m3fn); toward zero and stochastically those beyond
    /// the largest finite value, which became that value.
    public var overflow = 0
    /// Non-zero values that became zero.
    public var underflow = 0
    /// NaNs in the source.
    public var nan = 0

    /// Creates counts of zero.
    public init() {}
}

/// Elements a thread takes at a time, and elements gathered at a time from a strided array.
private let chunk = 65_536
private let gathered = 2_048

/// Converts every element of `source` to the format of `destination`, and counts what was lost.
///
/// Widening is exact. Narrowing rounds once, directly from the source format. Subnormals are kept, and so
/// are the signs of zeros. An infinity stays one (NaN in e4m3fn). Between different formats a NaN keeps its
/// sign and the top bits of its payload and becomes quiet; within one format bits are copied.
///
/// - Parameters:
///   - source: any shape of up to 8 dimensions, any strides.
///   - destination: the same shape; no two elements may share memory. It may be `source` itself when both
///     formats have one size.
///   - rounding: how values between two neighbours are rounded.
///   - execution: threads and instruction set; the result does not depend on them.
/// - Throws: `.invalidArgument` for shapes that differ, overlapping memory, or random indices beyond 2^64;
///   nothing is written then.
/// - Returns: counts of overflow, underflow and NaN.
@discardableResult
public func convert(
    _ source: TensorView, into destination: MutableTensorView, rounding: Rounding = .nearestEven,
    execution: Execution = Execution()
) throws(LockstepError) -> ConversionCounts {
    let kernels = try execution.kernels()
    let threads = try execution.threadCount()
    let (from, to) = try conversionLayouts(source, destination)
    let (rule, seed, firstIndex) = kernelRounding(rounding)
    guard firstIndex.addingReportingOverflow(UInt64(from.count)).overflow == false else {
        throw LockstepError(
            .invalidArgument,
            "first_index is \(firstIndex): with \(from.count) elements the indices pass 2^64; start lower")
    }
    let isDirect = from.isContiguous && to.isContiguous
    var counts = [lsk_convert_counts](repeating: lsk_convert_counts(), count: threads)
    try withLockstepFloatMode { () throws(LockstepError) in
        counts.withUnsafeMutableBufferPointer { slots in
            let slots = slots.baseAddress!
            func run(
                _ range: Range<Int>, _ input: UnsafeRawPointer, _ output: UnsafeMutableRawPointer,
                _ worker: Int
            ) {
                kernels.pointee.convert(
                    output, destination.format.rawValue, input, source.format.rawValue, range.count, rule,
                    seed, firstIndex &+ UInt64(range.lowerBound), slots + worker)
            }
            parallelFor(tasks: (from.count + chunk - 1) / chunk, threads: threads) { task, worker in
                let range = task * chunk..<min((task + 1) * chunk, from.count)
                if isDirect {
                    run(
                        range, from.base! + range.lowerBound * from.byteCount,
                        to.base! + range.lowerBound * to.byteCount, worker)
                    return
                }
                withUnsafeTemporaryAllocation(byteCount: 2 * 8 * gathered, alignment: 64) { scratch in
                    let input = scratch.baseAddress!
                    let output = input + 8 * gathered
                    for start in stride(from: range.lowerBound, to: range.upperBound, by: gathered) {
                        let part = start..<min(start + gathered, range.upperBound)
                        from.gather(part, into: input)
                        run(part, input, output, worker)
                        to.scatter(output, to: part)
                    }
                }
            }
        }
    }
    return counts.reduce(into: ConversionCounts()) { total, part in
        total.overflow += Int(part.overflow)
        total.underflow += Int(part.underflow)
        total.nan += Int(part.nan)
    }
}

/// Converts an array of values to another format, and counts what was lost.
///
/// - Parameters:
///   - values: the values.
///   - destination: the type to convert to.
///   - rounding: how values between two neighbours are rounded.
///   - execution: threads and instruction set; the result does not depend on them.
/// - Throws: `.invalidArgument` for random indices beyond 2^64 or a negative number of threads.
/// - Returns: the converted values, and counts of overflow, underflow and NaN.
public func convert<Source: StorageFormat, Destination: StorageFormat>(
    _ values: [Source], to destination: Destination.Type, rounding: Rounding = .nearestEven,
    execution: Execution = Execution()
) throws(LockstepError) -> (values: [Destination], counts: ConversionCounts) {
    var result = [Destination](repeating: Destination(bitPattern: 0), count: values.count)
    // The standard library's buffer accessors do not carry typed errors through.
    let outcome = values.withUnsafeBytes { source in
        result.withUnsafeMutableBytes { target in
            Result { () throws(LockstepError) in
                try convert(
                    TensorView(source.baseAddress, Source.format, shape: [values.count]),
                    into: MutableTensorView(target.baseAddress, Destination.format, shape: [values.count]),
                    rounding: rounding, execution: execution)
            }
        }
    }
    return (result, try outcome.get())
}

/// The layouts of a conversion, checked: one shape, and memory that allows it.
func conversionLayouts(
    _ source: TensorView, _ destination: MutableTensorView
) throws(LockstepError) -> (from: StridedLayout, to: StridedLayout) {
    guard source.shape == destination.shape else {
        throw LockstepError(
            .invalidArgument,
            "destination: shape is \(destination.shape) but source's is \(source.shape); they must be equal")
    }
    let to = try StridedLayout(
        "destination", base: destination.base, byteCount: destination.format.byteCount,
        shape: destination.shape, strides: destination.strides)
    let from = try StridedLayout(
        "source", base: source.base, byteCount: source.format.byteCount, shape: source.shape,
        strides: source.strides)
    guard !to.mayOverlapItself else {
        throw LockstepError(
            .invalidArgument,
            "destination: strides \(destination.strides) make elements share memory; give each its own")
    }
    guard !to.mayOverlap(from) || to.coincides(with: from) else {
        throw LockstepError(
            .invalidArgument,
            "destination: overlaps source; give it memory of its own, or the very same elements if both "
                + "formats have one size")
    }
    return (from, to)
}

/// The kernels' words for a rounding.
private func kernelRounding(_ rounding: Rounding) -> (rule: Int32, seed: UInt64, firstIndex: UInt64) {
    switch rounding {
    case .nearestEven: (LSK_NEAREST_EVEN, 0, 0)
    case .towardZero: (LSK_TOWARD_ZERO, 0, 0)
    case .stochastic(let seed, let firstIndex): (LSK_STOCHASTIC, seed, firstIndex)
    }
}
