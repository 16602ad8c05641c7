import CLockstep
import Lockstep

// Section 2 of the header: number formats.

extension lockstep_convert_options: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_convert_options>.size }
}

@_cdecl("lockstep_convert") @implementation
public func lockstep_convert(
    _ destination: UnsafePointer<lockstep_tensor>!, _ counts: UnsafeMutablePointer<lockstep_convert_counts>!,
    _ source: UnsafePointer<lockstep_tensor>!, _ options: UnsafePointer<lockstep_convert_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let target = try CheckedTensor(destination, "destination")
        let from = try CheckedTensor(source, "source")
        let options = try read(options, defaults: lockstep_convert_options())
        let result = try convert(
            TensorView(from.base, from.format(Format.allCases), shape: from.shape, strides: from.strides),
            into: MutableTensorView(
                target.base, target.format(Format.allCases), shape: target.shape, strides: target.strides),
            rounding: rounding(options),
            execution: execution(threads: options.threads, options.instruction_set))
        counts?.pointee = lockstep_convert_counts(
            overflow: Int64(result.overflow), underflow: Int64(result.underflow), nan: Int64(result.nan))
    }
}

@_cdecl("lockstep_ulp_distance") @implementation
public func lockstep_ulp_distance(
    _ distance: UnsafePointer<lockstep_tensor>!, _ a: UnsafePointer<lockstep_tensor>!,
    _ b: UnsafePointer<lockstep_tensor>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let target = try CheckedTensor(distance, "distance")
        let left = try CheckedTensor(a, "a")
        let right = try CheckedTensor(b, "b")
        guard Int(target.code) == LOCKSTEP_UINT64 else { throw invalid("distance: dtype must be uint64") }
        guard target.shape == left.shape else {
            throw invalid("distance: shape is \(target.shape) but a's is \(left.shape); they must be equal")
        }
        try ulpDistance(
            TensorView(left.base, left.format(Format.allCases), shape: left.shape, strides: left.strides),
            TensorView(right.base, right.format(Format.allCases), shape: right.shape, strides: right.strides),
            into: target.base?.assumingMemoryBound(to: UInt64.self), strides: target.strides)
    }
}

@_cdecl("lockstep_fp16_to_float") @implementation
public func lockstep_fp16_to_float(_ value: lockstep_fp16) -> Float {
    Float(nearest: Float16(bitPattern: value.bits))
}

@_cdecl("lockstep_bf16_to_float") @implementation
public func lockstep_bf16_to_float(_ value: lockstep_bf16) -> Float {
    Float(nearest: BFloat16(bitPattern: value.bits))
}

@_cdecl("lockstep_fp8_e4m3fn_to_float") @implementation
public func lockstep_fp8_e4m3fn_to_float(_ value: lockstep_fp8_e4m3fn) -> Float {
    Float(nearest: FP8E4M3FN(bitPattern: value.bits))
}

@_cdecl("lockstep_fp8_e5m2_to_float") @implementation
public func lockstep_fp8_e5m2_to_float(_ value: lockstep_fp8_e5m2) -> Float {
    Float(nearest: FP8E5M2(bitPattern: value.bits))
}

@_cdecl("lockstep_fp16_from_float") @implementation
public func lockstep_fp16_from_float(_ value: Float) -> lockstep_fp16 {
    lockstep_fp16(bits: Float16(nearest: value).bitPattern)
}

@_cdecl("lockstep_bf16_from_float") @implementation
public func lockstep_bf16_from_float(_ value: Float) -> lockstep_bf16 {
    lockstep_bf16(bits: BFloat16(nearest: value).bitPattern)
}

@_cdecl("lockstep_fp8_e4m3fn_from_float") @implementation
public func lockstep_fp8_e4m3fn_from_float(_ value: Float) -> lockstep_fp8_e4m3fn {
    lockstep_fp8_e4m3fn(bits: FP8E4M3FN(nearest: value).bitPattern)
}

@_cdecl("lockstep_fp8_e5m2_from_float") @implementation
public func lockstep_fp8_e5m2_from_float(_ value: Float) -> lockstep_fp8_e5m2 {
    lockstep_fp8_e5m2(bits: FP8E5M2(nearest: value).bitPattern)
}

/// The rounding the options describe.
private func rounding(_ options: lockstep_convert_options) throws(LockstepError) -> Rounding {
    switch Int(options.rounding) {
    case LOCKSTEP_ROUND_NEAREST_EVEN: return .nearestEven
    case LOCKSTEP_ROUND_TOWARD_ZERO: return .towardZero
    case LOCKSTEP_ROUND_STOCHASTIC: return .stochastic(seed: options.seed, firstIndex: options.first_index)
    default:
        throw invalid("options: rounding is \(options.rounding); see the LOCKSTEP_ROUND constants")
    }
}
