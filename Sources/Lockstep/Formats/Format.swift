import CLockstepKernels

/// A floating-point format.
///
/// Two kinds. *Stored*: fp32, fp16, bf16, fp64, e4m3fn, e5m2, in memory as wide as they are. *Emulated*: e8mN, with the
/// range of fp32 and N explicit mantissa bits (1 to 23), and e5mN, with the range of fp16 (1 to 10). A value of an emulated
/// format is stored in a 32-bit float: such formats are for studying what fewer bits do, not for saving memory. e8m7 has
/// the values of bf16, e5m10 those of fp16, e8m23 those of fp32, e5m2 those of fp8 e5m2.
///
/// Raw values are those of the kernels (`LSK_FP32`…).
public struct Format: RawRepresentable, Hashable, CaseIterable, Sendable, LosslessStringConvertible {
    /// The kernels' code.
    public let rawValue: Int32

    /// The format of a kernels' code; nil if there is none.
    public init?(rawValue: Int32) {
        self.rawValue = rawValue
        guard Format.allCases.contains(self) else { return nil }
    }

    /// The format of a name, as `description` gives it; nil if there is none.
    public init?(_ description: String) {
        guard let format = Format.allCases.first(where: { $0.description == description }) else { return nil }
        self = format
    }

    private init(code: Int32) { rawValue = code }

    /// IEEE binary32.
    public static var fp32: Format { Format(code: LSK_FP32) }
    /// IEEE binary16: 5 exponent bits, 10 mantissa bits, largest value 65,504.
    public static var fp16: Format { Format(code: LSK_FP16) }
    /// bfloat16: 8 exponent bits, 7 mantissa bits.
    public static var bf16: Format { Format(code: LSK_BF16) }
    /// IEEE binary64.
    public static var fp64: Format { Format(code: LSK_FP64) }
    /// fp8 e4m3fn: 4 exponent bits, 3 mantissa bits, no infinity, largest value 448.
    public static var e4m3fn: Format { Format(code: LSK_E4M3FN) }
    /// fp8 e5m2: 5 exponent bits, 2 mantissa bits, largest value 57,344.
    public static var e5m2: Format { Format(code: LSK_E5M2) }

    /// The formats that are stored as they are.
    public static let stored: [Format] = [.fp32, .fp16, .bf16, .fp64, .e4m3fn, .e5m2]
    /// The formats that are stored in 32-bit floats: e8m1 to e8m23, then e5m1 to e5m10.
    public static let emulated: [Format] =
        (1...23).map { Format(code: 8 << 8 | $0) } + (1...10).map { Format(code: 5 << 8 | $0) }
    /// All formats.
    public static let allCases: [Format] = stored + emulated

    /// Whether values are stored in 32-bit floats.
    public var isEmulated: Bool { rawValue >= LSK_EMULATED }

    /// Whether exponents have 5 bits, as fp16's: gradients in such a format need a loss scale.
    public var hasNarrowRange: Bool { self == .fp16 || self == .e5m2 || rawValue >> 8 == 5 }

    /// What values are stored in: the format itself, or fp32.
    public var storage: Format { isEmulated ? .fp32 : self }

    /// Bytes of one element.
    public var byteCount: Int {
        switch storage {
        case .fp64: 8
        case .fp32: 4
        case .fp16, .bf16: 2
        default: 1
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
        default: "e\(rawValue >> 8)m\(rawValue & 0xff)"
        }
    }
}
