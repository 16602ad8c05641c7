import CLockstep
import Lockstep

// Section 11 of the header, its second half: gradients, AdamW, schedules.

extension lockstep_gradient_options: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_gradient_options>.size }
}

extension lockstep_adamw_options: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_adamw_options>.size }
}

extension lockstep_schedule_options: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_schedule_options>.size }
}

@_cdecl("lockstep_gradients_measure") @implementation
public func lockstep_gradients_measure(
    _ norm: UnsafeMutablePointer<lockstep_gradient_norm>!, _ gradients: UnsafePointer<lockstep_tensor>!,
    _ count: Int, _ options: UnsafePointer<lockstep_gradient_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try checkArray(norm, "norm", count: 1)
        guard (0...1 << 32).contains(count) else {
            throw invalid("count is \(UInt(bitPattern: count)); give the number of tensors")
        }
        try checkArray(gradients, "gradients", count: count)
        var defaults = lockstep_gradient_options()
        defaults.scale = 1
        let given = try read(options, defaults: defaults)
        try checkReserved(given.reserved)
        var buffers: [UnsafeBufferPointer<Float>] = []
        for index in 0..<count {
            buffers.append(.init(try CheckedTensor(gradients + index, "gradients").floats()))
        }
        let found = try gradientNorm(
            buffers, execution: execution(threads: given.threads, given.instruction_set))
        let clipped = try found.clipped(maxNorm: given.max_norm, scale: given.scale)
        norm.pointee = lockstep_gradient_norm(
            norm: clipped.norm, largest: found.largest, factor: clipped.factor,
            non_finite: Int64(found.nonFinite))
    }
}

@_cdecl("lockstep_adamw_step") @implementation
public func lockstep_adamw_step(
    _ masters: UnsafePointer<lockstep_tensor>!, _ first_moments: UnsafePointer<lockstep_tensor>!,
    _ second_moments: UnsafePointer<lockstep_tensor>!, _ compensation: UnsafePointer<lockstep_tensor>!,
    _ gradients: UnsafePointer<lockstep_tensor>!, _ options: UnsafePointer<lockstep_adamw_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let defaults = AdamWOptions()
        var values = lockstep_adamw_options()
        (values.step, values.learning_rate, values.gradient_scale) = (1, defaultRate, 1)
        (values.beta1, values.beta2) = (defaults.beta1, defaults.beta2)
        (values.epsilon, values.weight_decay) = (defaults.epsilon, defaults.weightDecay)
        let given = try read(options, defaults: values)
        let rounding: MasterRounding =
            switch Int(given.rounding) {
            case LOCKSTEP_MASTER_NEAREST: .nearestEven
            case LOCKSTEP_MASTER_STOCHASTIC: .stochastic(seed: given.seed)
            case LOCKSTEP_MASTER_KAHAN: .kahan
            default:
                throw invalid("options: rounding is \(given.rounding); see the LOCKSTEP_MASTER constants")
            }
        let weights = try CheckedTensor(masters, "masters")
        let format = try weights.format([.fp32, .fp16, .bf16])
        try weights.expectContiguous()
        func moments(_ pointer: UnsafePointer<lockstep_tensor>?, _ name: StaticString)
            throws(LockstepError) -> UnsafeMutableBufferPointer<Float>
        {
            let tensor = try CheckedTensor(pointer, name)
            try tensor.expect(weights.shape, as: "masters")
            return try tensor.floats()
        }
        var rest: CheckedTensor?
        if compensation != nil {
            let tensor = try CheckedTensor(compensation, "compensation")
            try tensor.expect(weights.shape, as: "masters")
            guard try tensor.format([.fp16, .bf16]) == format else {
                throw invalid("compensation: dtype must be that of masters")
            }
            try tensor.expectContiguous()
            rest = tensor
        }
        try adamWStep(
            masters: weights.base, format, compensation: rest?.base, rounding: rounding, count: weights.count,
            firstMoments: moments(first_moments, "first_moments"),
            secondMoments: moments(second_moments, "second_moments"),
            gradients: .init(moments(gradients, "gradients")),
            AdamWSettings(
                options: AdamWOptions(
                    beta1: given.beta1, beta2: given.beta2, epsilon: given.epsilon,
                    weightDecay: given.weight_decay),
                step: Int(given.step), learningRate: given.learning_rate,
                gradientScale: given.gradient_scale),
            largest: given.largest == 0 ? nil : given.largest,
            execution: execution(threads: given.threads, given.instruction_set))
    }
}

@_cdecl("lockstep_learning_rate") @implementation
public func lockstep_learning_rate(
    _ rate: UnsafeMutablePointer<Double>!, _ step: Int64, _ options: UnsafePointer<lockstep_schedule_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try checkArray(rate, "rate", count: 1)
        rate.pointee = try coreSchedule(options).rate(step: Int(step))
    }
}

func coreSchedule(
    _ options: UnsafePointer<lockstep_schedule_options>?
) throws(LockstepError) -> LearningRateSchedule {
    var defaults = lockstep_schedule_options()
    defaults.peak = defaultRate
    let given = try read(options, defaults: defaults)
    guard let shape = LearningRateSchedule.Shape(rawValue: given.shape) else {
        throw invalid("options: shape is \(given.shape); see the LOCKSTEP_SCHEDULE constants")
    }
    return LearningRateSchedule(
        shape, peak: given.peak, warmupSteps: Int(given.warmup_steps), totalSteps: Int(given.total_steps),
        finalShare: given.final_share)
}

private let defaultRate = 0.001

private func checkReserved(_ reserved: UInt32) throws(LockstepError) {
    guard reserved == 0 else { throw invalid("options: reserved is \(reserved); leave it 0") }
}

extension CheckedTensor {
    /// Throws unless the elements stand one after the other in C order.
    fileprivate func expectContiguous() throws(LockstepError) {
        var step = 1
        for axis in shape.indices.reversed() {
            guard count == 0 || shape[axis] <= 1 || strides[axis] == step else {
                throw invalid(
                    "\(name): strides[\(axis)] is \(strides[axis]); elements must be contiguous, copy it first"
                )
            }
            step *= Swift.max(shape[axis], 1)
        }
    }

    /// All elements of a contiguous fp32 tensor.
    fileprivate func floats() throws(LockstepError) -> UnsafeMutableBufferPointer<Float> {
        _ = try format([.fp32])
        try expectContiguous()
        return .init(start: base?.assumingMemoryBound(to: Float.self), count: base == nil ? 0 : count)
    }
}
