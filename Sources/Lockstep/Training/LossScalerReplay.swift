/// What a scaler would have done in a recorded run.
public struct LossScalerReplay: Equatable, Sendable {
    /// The report after the last step.
    public var report: LossScalerReport
    /// The scale each step ran with.
    public var scales: [Double]
    /// Whether each step was skipped.
    public var skipped: [Bool]
}

extension LossScaler {
    /// From here on a value rounds to infinity in fp16: halfway between 65,504 and 65,536.
    public static let fp16Overflow = 65520.0

    /// Runs a new scaler over the largest magnitudes of a run's gradients.
    ///
    /// A step overflows if its maximum, in float64 times the scale, is at least `limit`, or is not finite. The
    /// gradients are taken as recorded: a skipped step would in truth have changed those that follow.
    ///
    /// - Parameters:
    ///   - maxima: [steps] the largest |gradient| of each step before scaling; none negative.
    ///   - options: the scaler.
    ///   - limit: what overflows; positive.
    /// - Throws: `.invalidArgument` for a negative maximum, or options out of range.
    /// - Returns: the last report, each step's scale, and whether it was skipped.
    public static func replay(
        maxima: VectorView, options: LossScalerOptions, limit: Double = fp16Overflow
    ) throws(LockstepError) -> LossScalerReplay {
        guard limit > 0 else {
            throw LockstepError(.invalidArgument, "limit is \(limit); give a positive value")
        }
        if let step = (0..<maxima.count).first(where: { maxima.double($0) < 0 }) {
            throw LockstepError(
                .invalidArgument, "maxima: step \(step) is \(maxima.double(step)); give the largest magnitude"
            )
        }
        var scaler = try LossScaler(options)
        var scales: [Double] = []
        var skipped: [Bool] = []
        try askForMemory(maxima.count, bytesEach: MemoryLayout<Double>.stride + 1)
        scales.reserveCapacity(maxima.count)
        skipped.reserveCapacity(maxima.count)
        for maximum in (0..<maxima.count).lazy.map({ maxima.double($0) }) {
            scales.append(scaler.scale)
            // A NaN is not below the limit.
            skipped.append(scaler.update(foundNonFinite: !(maximum * scaler.scale < limit)).skip)
        }
        return LossScalerReplay(report: scaler.report, scales: scales, skipped: skipped)
    }
}
