import CLockstepKernels

/// A parameter in flat buffers.
public struct ParameterRange: Equatable, Sendable {
    /// Its name, for messages.
    public var name: String
    /// Where its elements stand.
    public var elements: Range<Int>
    /// Whether weight decay applies: usually to matrices, and not to norms and biases.
    public var decays: Bool

    /// Creates a range.
    public init(_ name: String, _ elements: Range<Int>, decays: Bool = true) {
        self.name = name
        self.elements = elements
        self.decays = decays
    }
}

/// What a step of the optimiser did.
public struct AdamWReport: Equatable, Sendable {
    /// Whether nothing was changed, because a gradient was not finite.
    public var skipped: Bool
    /// Steps taken so far, this one included if it was not skipped.
    public var step: Int
    /// The gradients' norm after division by the scale; infinite or NaN where one is.
    public var norm: Double
    /// What clipping multiplied the gradients by: 1 if the norm was within the bound.
    public var clipping: Double
    /// The largest magnitude after division by the scale.
    public var largest: Double
    /// How many gradients were not finite.
    public var nonFinite: Int
    /// The first parameter with one; nil if all are finite.
    public var nonFiniteName: String?
}

/// AdamW over flat fp32 buffers: masters and gradients are the caller's, moments its own.
///
/// A step is element by element, so its bits depend neither on threads nor on the instruction set; the norm has a
/// fixed order (`gradientNorm`). A step with a gradient that is not finite changes nothing, and says so.
public final class AdamW {
    /// What stays the same.
    public let options: AdamWOptions
    /// The parameters, in order and without overlap.
    public let ranges: [ParameterRange]
    /// Steps taken; set it when restoring.
    public var step = 0
    /// Elements of each buffer.
    public let count: Int
    /// The first moments, [count]: to be saved and restored with `step`.
    public var firstMoments: UnsafeMutableBufferPointer<Float> { .init(start: first.base, count: count) }
    /// The second moments, [count].
    public var secondMoments: UnsafeMutableBufferPointer<Float> { .init(start: second.base, count: count) }

    private let first: Scratch<Float>
    private let second: Scratch<Float>

    /// Creates an optimiser with moments of zero.
    ///
    /// - Throws: `.invalidArgument` for options or ranges that are wrong; `.outOfMemory`.
    public init(_ ranges: [ParameterRange], options: AdamWOptions = AdamWOptions()) throws(LockstepError) {
        _ = try AdamWConstants(options, step: 1, learningRate: 0, gradientScale: 1)
        var end = 0
        for range in ranges {
            guard range.elements.lowerBound >= end else {
                throw LockstepError(
                    .invalidArgument,
                    "ranges: '\(range.name)' begins at \(range.elements.lowerBound), before \(end), where the one "
                        + "before ends; give them in order")
            }
            end = range.elements.upperBound
        }
        self.options = options
        self.ranges = ranges
        count = end
        first = try Scratch(count: end, filledWith: 0)
        second = try Scratch(count: end, filledWith: 0)
    }

    /// Takes a step, or skips it if a gradient is not finite.
    ///
    /// - Parameters:
    ///   - masters: [count] fp32 weights, written.
    ///   - gradients: [count] of the scaled loss; only read.
    ///   - learningRate: of this step.
    ///   - scale: what the gradients are to be divided by: loss scale times accumulated micro-batches.
    ///   - maxNorm: the global norm is clipped to this; 0: not.
    ///   - execution: threads and instruction set.
    /// - Throws: `.invalidArgument` for a count or number that is wrong; `.outOfMemory`.
    /// - Returns: what happened.
    public func update(
        _ masters: UnsafeMutableBufferPointer<Float>, gradients: UnsafeBufferPointer<Float>,
        learningRate: Double, scale: Double = 1, maxNorm: Double = 0, execution: Execution = Execution()
    ) throws(LockstepError) -> AdamWReport {
        guard masters.count == count, gradients.count == count else {
            throw LockstepError(
                .invalidArgument,
                "masters and gradients: have \(masters.count) and \(gradients.count) elements; give \(count)")
        }
        let norm = try gradientNorm(
            ranges.map { .init(rebasing: gradients[$0.elements]) }, execution: execution)
        let (unscaled, factor) = try norm.clipped(maxNorm: maxNorm, scale: scale)
        var report = AdamWReport(
            skipped: !norm.isFinite, step: step, norm: unscaled, clipping: 1,
            largest: norm.largest / scale, nonFinite: norm.nonFinite)
        if report.skipped {
            report.nonFiniteName = ranges.first { gradients[$0.elements].contains { !$0.isFinite } }?.name
            return report
        }
        report.clipping = factor * scale
        let settings = AdamWSettings(
            options: options, step: step + 1, learningRate: learningRate, gradientScale: factor)
        var undecayed = settings
        undecayed.options.weightDecay = 0
        // All is checked by the first, so that no range is left behind the others.
        for range in ranges {
            try adamWStep(
                masters: .init(rebasing: masters[range.elements]),
                firstMoments: .init(rebasing: firstMoments[range.elements]),
                secondMoments: .init(rebasing: secondMoments[range.elements]),
                gradients: .init(rebasing: gradients[range.elements]), range.decays ? settings : undecayed,
                largest: norm.largest, execution: execution)
        }
        step += 1
        report.step = step
        return report
    }
}

/// The numbers of one step.
public struct AdamWSettings: Equatable, Sendable {
    /// Decays, epsilon, weight decay.
    public var options: AdamWOptions
    /// Which step it is, from 1: for the bias correction.
    public var step: Int
    /// The rate of this step.
    public var learningRate: Double
    /// What gradients are multiplied by first: the factor of `GradientNorm.clipped`.
    public var gradientScale: Double

    /// Creates settings.
    public init(
        options: AdamWOptions = AdamWOptions(), step: Int, learningRate: Double, gradientScale: Double = 1
    ) {
        self.options = options
        self.step = step
        self.learningRate = learningRate
        self.gradientScale = gradientScale
    }
}

/// The largest gradient, after scaling, that a step takes: its square is far from the end of float32.
private let largestGradient = 1e18

/// Throws if the gradients' magnitude, times the scale, is beyond what a step can take.
private func checkLargest(
    _ gradients: UnsafeBufferPointer<Float>, _ largest: Double?, _ scale: Double, _ execution: Execution
) throws(LockstepError) {
    let top = if let largest { largest } else { try gradientNorm([gradients], execution: execution).largest }
    guard !(top * scale <= largestGradient) else { return }
    let index = gradients.firstIndex { !(Double($0.magnitude) * scale <= largestGradient) }
    throw LockstepError(
        .nonFinite,
        "gradients: element \(index ?? 0) is \(index.map { gradients[$0] } ?? .nan), which is not finite or too large; "
            + "skip this step and lower the loss scale")
}

/// One step of AdamW on fp32 masters, in place.
///
///     g = gradient * gradientScale
///     m += (1 - beta1) (g - m)
///     v = beta2 v + (1 - beta2) g g
///     master = master (1 - rate weightDecay) - rate / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
///
/// All in float32, with fused multiply-adds; constants are computed in float64 and rounded once.
///
/// - Parameters:
///   - masters: [count], written.
///   - firstMoments: [count], written.
///   - secondMoments: [count], written.
///   - gradients: [count]; memory of its own.
///   - settings: the step's numbers.
///   - largest: the largest magnitude among `gradients` if it is known, which saves a pass; nil: it is looked for.
///   - execution: threads and instruction set; the result does not depend on them.
/// - Throws: `.invalidArgument` for counts or settings; `.nonFinite` naming a gradient that is NaN, infinite or beyond
///   1e18 after scaling. Nothing is written then.
public func adamWStep(
    masters: UnsafeMutableBufferPointer<Float>, firstMoments: UnsafeMutableBufferPointer<Float>,
    secondMoments: UnsafeMutableBufferPointer<Float>, gradients: UnsafeBufferPointer<Float>,
    _ settings: AdamWSettings, largest: Double? = nil, execution: Execution = Execution()
) throws(LockstepError) {
    try adamWStep(
        masters: UnsafeMutableRawPointer(masters.baseAddress), .fp32, compensation: nil,
        rounding: .nearestEven,
        count: masters.count, firstMoments: firstMoments, secondMoments: secondMoments, gradients: gradients,
        settings, largest: largest, execution: execution)
}

/// One step of AdamW on masters of any of fp32, fp16 and bf16; 16 bits are for study.
///
/// A 16-bit master is widened, takes the step in float32 as above, and is rounded back as `rounding` says. With
/// `.kahan` the widened value is master + compensation, and what rounding leaves becomes the compensation. An fp16
/// master that outgrows 65,504 becomes infinite.
///
/// - Parameters:
///   - masters: `count` contiguous values of `format`, written.
///   - format: `fp32`, `fp16` or `bf16`.
///   - compensation: with `.kahan` `count` values of `format`, zeros at the first step; else nil.
///   - rounding: how 16-bit masters are rounded; `.nearestEven` for fp32.
///   - count: number of elements.
///   - firstMoments: [count], written.
///   - secondMoments: [count], written.
///   - gradients: [count].
///   - settings: the step's numbers.
///   - largest: as above.
///   - execution: threads and instruction set; the result does not depend on them.
/// - Throws: as above.
public func adamWStep(
    masters: UnsafeMutableRawPointer?, _ format: Format, compensation: UnsafeMutableRawPointer?,
    rounding: MasterRounding, count: Int, firstMoments: UnsafeMutableBufferPointer<Float>,
    secondMoments: UnsafeMutableBufferPointer<Float>, gradients: UnsafeBufferPointer<Float>,
    _ settings: AdamWSettings, largest: Double? = nil, execution: Execution = Execution()
) throws(LockstepError) {
    for (name, found) in [
        ("first_moments", firstMoments.count), ("second_moments", secondMoments.count),
        ("gradients", gradients.count),
    ] where found != count {
        throw LockstepError(
            .invalidArgument, "\(name): has \(found) elements but masters has \(count); they must be equal")
    }
    guard format != .fp32 || rounding == .nearestEven else {
        throw LockstepError(
            .invalidArgument, "options: rounding is for 16-bit masters; fp32 has nothing to round")
    }
    guard (compensation != nil || count == 0) == (rounding == .kahan) || count == 0 else {
        throw LockstepError(
            .invalidArgument, "compensation: is for Kahan's rounding, which needs it; leave it out otherwise")
    }
    let constants = try AdamWConstants(
        settings.options, step: settings.step, learningRate: settings.learningRate,
        gradientScale: settings.gradientScale)
    let kernels = try execution.kernels()
    let threads = try execution.threadCount()
    guard count > 0 else { return }
    try checkLargest(gradients, largest, settings.gradientScale, execution)

    var rule = lsk_adamw_rule(
        gradient_scale: constants.gradientScale, first_rest: constants.firstRest, second: constants.second,
        second_rest: constants.secondRest, inverse_root: constants.inverseRoot, epsilon: constants.epsilon,
        decay: constants.decay, step_size: constants.stepSize)
    let (p, m, v, g) = (
        masters!, firstMoments.baseAddress!, secondMoments.baseAddress!, gradients.baseAddress!
    )
    let kernel = kernels.pointee
    let chunk = format == .fp32 ? gradientChunk : narrowChunk
    let tasks = (count + chunk - 1) / chunk
    let isNarrow = format != .fp32
    let memory = try Scratch<Float>(count: isNarrow ? 2 * chunk * min(threads, tasks) : 0)
    let scratch = memory.base
    withUnsafePointer(to: &rule) { rule in
        nonisolated(unsafe) let rule = rule
        parallelFor(tasks: tasks, threads: threads) { task, worker in
            let start = task * chunk
            let size = min(chunk, count - start)
            if isNarrow {
                let narrow = NarrowMasters(
                    p, compensation, format, rounding, step: settings.step, kernel,
                    scratch + 2 * chunk * worker)
                narrow.update(start, size) { wide in
                    kernel.adamw(wide, m + start, v + start, g + start, size, rule)
                }
            } else {
                kernel.adamw(
                    p.assumingMemoryBound(to: Float.self) + start, m + start, v + start, g + start, size, rule
                )
            }
        }
    }
}

/// Elements of 16-bit masters that are widened together.
private let narrowChunk = 8192

/// Masters of 16 bits: widened, changed, rounded.
private struct NarrowMasters {
    let masters: UnsafeMutableRawPointer
    let compensation: UnsafeMutableRawPointer?
    let format: Int32
    let seed: UInt64
    let rule: Int32
    let kernel: lsk_kernels
    let wide: UnsafeMutablePointer<Float>
    let other: UnsafeMutablePointer<Float>

    init(
        _ masters: UnsafeMutableRawPointer, _ compensation: UnsafeMutableRawPointer?, _ format: Format,
        _ rounding: MasterRounding, step: Int, _ kernel: lsk_kernels, _ scratch: UnsafeMutablePointer<Float>
    ) {
        self.masters = masters
        self.compensation = compensation
        self.format = format.rawValue
        self.kernel = kernel
        wide = scratch
        other = scratch + narrowChunk
        if case .stochastic(let seed) = rounding {
            // A stream for each step.
            self.seed = seed ^ UInt64(truncatingIfNeeded: step) &* 0x9e37_79b9_7f4a_7c15
            rule = LSK_STOCHASTIC
        } else {
            seed = 0
            rule = LSK_NEAREST_EVEN
        }
    }

    func update(_ start: Int, _ count: Int, _ step: (UnsafeMutablePointer<Float>) -> Void) {
        let place = masters + 2 * start
        read(place, into: wide, count)
        let rest = compensation.map { $0 + 2 * start }
        if let rest {
            read(rest, into: other, count)
            for index in 0..<count { wide[index] += other[index] }
        }
        step(wide)
        write(wide, to: place, count, from: start)
        if let rest {
            read(place, into: other, count)
            for index in 0..<count { wide[index] -= other[index] }
            write(wide, to: rest, count, from: start)
        }
    }

    private func read(_ source: UnsafeRawPointer, into target: UnsafeMutablePointer<Float>, _ count: Int) {
        var counts = lsk_convert_counts()
        kernel.convert(target, LSK_FP32, source, format, count, LSK_NEAREST_EVEN, 0, 0, &counts)
    }

    private func write(
        _ source: UnsafePointer<Float>, to target: UnsafeMutableRawPointer, _ count: Int, from start: Int
    ) {
        var counts = lsk_convert_counts()
        kernel.convert(target, format, source, LSK_FP32, count, rule, seed, UInt64(start), &counts)
    }
}
