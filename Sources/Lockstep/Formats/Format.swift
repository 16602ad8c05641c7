import CLockstepKernels

/// A floating-point storage format.
///
/// Raw values are those of the kernels (`LSK_FP32`…).
public enum Format: Int32, CaseIterable, Sendable, CustomStringConvertible {
    /// IEEE binary32.
    case fp32 = 0
    /// IEEE binary16: 5 exponent bits, 10 mantissa bits, largest value 65,504.
    case fp16 = 1
    /// bfloat16: 8 exponent bits, 7 mantissa bits.
    case bf16 = 2
    /// IEEE binary64.
    case fp64 = 3
    /// fp8 e4m3fn: 4 exponent bits, 3 mantissa bits, no infinity, largest value 448.
    case e4m3fn = 4
    /// fp8 e5m2: 5 exponent bits, 2 mantissa bits, largest value 57,344.
    case e5m2 = 5

    /// Bytes of one element.
    public var byteCount: Int {
        switch self {
        case .fp64: 8
        case .fp32: 4
        case .fp16, .bf16: 2
        case .e4m3fn, .e5m2: 1
        }
    }

    /// The field's name for the format.
    public var description: String {
        switch self {
        case .fp32: "fp32"
        case .fp16: "fp16"
        case .bf16: "bf16"
        case .fp64: "fp64"
        case .e4m3fn: "fp8_e4m3fn"
        case .e5m2: "fp8_e5m2"
        }
    }
}
