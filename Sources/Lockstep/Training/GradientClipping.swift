import CLockstepKernels

/// The size of a model's gradients, and what clipping makes of them.
public struct GradientNorm: Equatable, Sendable {
    /// The 2-norm of all of them together, as they are (scaled, if the loss was); infinite or NaN if one is.
    public var norm: Double
    /// The largest magnitude; infinite or NaN if one is.
    public var largest: Double
    /// How many are infinite or NaN.
    public var nonFinite: Int

    /// Whether all are finite.
    public var isFinite: Bool { nonFinite == 0 }

    /// The norm after a division by `scale`, and what to multiply gradients by so that it is at most `maxNorm` then:
    /// min(1, maxNorm / (norm / scale + 1e-6)) / scale, as `torch.nn.utils.clip_grad_norm_` has it.
    ///
    /// - Parameters:
    ///   - maxNorm: the bound; 0: none.
    ///   - scale: the loss scale times the number of accumulated micro-batches; positive.
    /// - Throws: `.invalidArgument` for one of them.
    /// - Returns: the divided norm, and the factor.
    public func clipped(maxNorm: Double, scale: Double = 1) throws(LockstepError) -> (
        norm: Double, factor: Double
    ) {
        guard scale > 0, scale.isFinite else {
            throw LockstepError(.invalidArgument, "options: scale is \(scale); give a positive number")
        }
        guard maxNorm >= 0 else {
            throw LockstepError(.invalidArgument, "options: max_norm is \(maxNorm); give 0 or more")
        }
        let norm = norm / scale
        return (norm, (maxNorm > 0 ? min(1, maxNorm / (norm + 1e-6)) : 1) / scale)
    }
}

/// Gradients in a chunk: chunks are summed in 32 lanes each and then added up in their order, in float64.
let gradientChunk = 65_536

/// The global norm of gradients that stand in one or more buffers: one pass, in a fixed order of additions.
///
/// Squares are exact in float64. Chunks of 65,536 elements, which begin anew with each buffer, are summed in 32 lanes
/// and added in order: the bits do not depend on threads or instruction set.
///
/// - Parameters:
///   - buffers: fp32 gradients.
///   - execution: threads and instruction set.
/// - Throws: `.outOfMemory`; `.invalidArgument` or `.unsupported` for the execution.
/// - Returns: norm, largest magnitude, and how many are not finite.
public func gradientNorm(
    _ buffers: [UnsafeBufferPointer<Float>], execution: Execution = Execution()
) throws(LockstepError) -> GradientNorm {
    let kernels = try execution.kernels()
    let threads = try execution.threadCount()
    var total = 0.0
    var largest: UInt32 = 0
    var nonFinite = 0
    for buffer in buffers where !buffer.isEmpty {
        let tasks = (buffer.count + gradientChunk - 1) / gradientChunk
        let sums = try Scratch<Double>(count: tasks)
        let tops = try Scratch<Float>(count: tasks)
        let (sumsBase, topsBase, base, count) = (sums.base, tops.base, buffer.baseAddress!, buffer.count)
        let kernel = kernels.pointee
        parallelFor(tasks: tasks, threads: threads) { task, _ in
            let start = task * gradientChunk
            sumsBase[task] = kernel.gradient_squares(
                topsBase + task, base + start, min(gradientChunk, count - start))
        }
        var top: UInt32 = 0
        for task in 0..<tasks {
            total += sumsBase[task]
            top = max(top, topsBase[task].bitPattern)
        }
        if !Float(bitPattern: top).isFinite {
            nonFinite += Int(kernel.non_finite_values(base, LSK_FP32, count))
        }
        largest = max(largest, top)
    }
    return GradientNorm(
        norm: total.squareRoot(), largest: Double(Float(bitPattern: largest)), nonFinite: nonFinite)
}

/// Adds a micro-batch's gradients to an accumulator: accumulator += scale * gradients, one fused multiply-add each.
///
/// Micro-batches are added in the order of the calls, which fixes the bits.
///
/// - Parameters:
///   - accumulator: fp32; as many as `gradients`.
///   - gradients: fp32.
///   - scale: 1, or what weighs the micro-batch.
///   - execution: threads and instruction set.
/// - Throws: `.invalidArgument` if the counts differ.
public func accumulateGradients(
    _ accumulator: UnsafeMutableBufferPointer<Float>, _ gradients: UnsafeBufferPointer<Float>,
    scale: Float = 1, execution: Execution = Execution()
) throws(LockstepError) {
    guard accumulator.count == gradients.count else {
        throw LockstepError(
            .invalidArgument,
            "gradients: has \(gradients.count) elements but accumulator has \(accumulator.count)")
    }
    let kernels = try execution.kernels()
    let threads = try execution.threadCount()
    guard let into = accumulator.baseAddress, let from = gradients.baseAddress else { return }
    let count = gradients.count
    let kernel = kernels.pointee
    parallelFor(tasks: (count + gradientChunk - 1) / gradientChunk, threads: threads) { task, _ in
        let start = task * gradientChunk
        kernel.add_times(
            into + start, into + start, from + start, scale, LSK_FP32, min(gradientChunk, count - start))
    }
}
