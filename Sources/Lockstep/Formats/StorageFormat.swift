/// A type whose values are stored in one of the formats.
///
/// `Float`, `Double`, `Float16`, `BFloat16`, `FP8E4M3FN`, `FP8E5M2`: distinct types, so that bit patterns
/// cannot be mixed up.
public protocol StorageFormat: BitwiseCopyable, Sendable {
    /// An unsigned integer of the same size.
    associatedtype BitPattern: FixedWidthInteger & UnsignedInteger & Sendable
    /// The format of the values.
    static var format: Format { get }
    /// The value as an integer.
    var bitPattern: BitPattern { get }
    /// Creates the value with a bit pattern.
    init(bitPattern: BitPattern)
}

extension StorageFormat {
    /// Creates the value nearest to `value`, ties to even, rounding once.
    ///
    /// Beyond the largest finite value: infinity (`FP8E4M3FN`: NaN). A NaN keeps its sign and the top bits
    /// of its payload, and is quiet.
    public init(nearest value: some StorageFormat) {
        let from = type(of: value).format
        let bits = convert(bits: UInt64(value.bitPattern), from: from, to: Self.format).bits
        self.init(bitPattern: BitPattern(truncatingIfNeeded: bits))
    }

    /// How many representable steps lie between two values.
    ///
    /// +0 and -0 are 0 apart, and so are two NaNs; a NaN and a number are `UInt64.max` apart. Infinity is
    /// one step beyond the largest finite value.
    public func ulpDistance(to other: Self) -> UInt64 {
        Lockstep.ulpDistance(UInt64(bitPattern), UInt64(other.bitPattern), FormatLayout(Self.format))
    }
}

extension Float: StorageFormat {
    /// fp32.
    public static var format: Format { .fp32 }

    /// Creates the exact value.
    public init(_ value: BFloat16) { self.init(nearest: value) }
    /// Creates the exact value.
    public init(_ value: FP8E4M3FN) { self.init(nearest: value) }
    /// Creates the exact value.
    public init(_ value: FP8E5M2) { self.init(nearest: value) }
}

extension Double: StorageFormat {
    /// fp64.
    public static var format: Format { .fp64 }

    /// Creates the exact value.
    public init(_ value: BFloat16) { self.init(nearest: value) }
    /// Creates the exact value.
    public init(_ value: FP8E4M3FN) { self.init(nearest: value) }
    /// Creates the exact value.
    public init(_ value: FP8E5M2) { self.init(nearest: value) }
}

extension Float16: StorageFormat {
    /// fp16.
    public static var format: Format { .fp16 }
}

/// A bfloat16 value: 1 sign, 8 exponent, 7 mantissa bits.
public struct BFloat16: StorageFormat, Equatable, CustomStringConvertible {
    /// bf16.
    public static var format: Format { .bf16 }
    /// The value as an integer.
    public let bitPattern: UInt16

    /// Creates the value with a bit pattern.
    public init(bitPattern: UInt16) { self.bitPattern = bitPattern }
    /// Creates the value nearest to `value`, ties to even.
    public init(_ value: Float) { self.init(nearest: value) }
    /// Creates the value nearest to `value`, ties to even, rounding once.
    public init(_ value: Double) { self.init(nearest: value) }

    /// Whether two values are equal as numbers: +0 equals -0, NaN equals nothing.
    public static func == (left: BFloat16, right: BFloat16) -> Bool { Float(left) == Float(right) }
    /// The value in decimal.
    public var description: String { Float(self).description }
}

/// An fp8 e4m3fn value: 1 sign, 4 exponent, 3 mantissa bits; no infinity, one NaN for each sign, largest
/// value 448.
public struct FP8E4M3FN: StorageFormat, Equatable, CustomStringConvertible {
    /// fp8 e4m3fn.
    public static var format: Format { .e4m3fn }
    /// The value as an integer.
    public let bitPattern: UInt8

    /// Creates the value with a bit pattern.
    public init(bitPattern: UInt8) { self.bitPattern = bitPattern }
    /// Creates the value nearest to `value`, ties to even; NaN from 464 (exclusive) on.
    public init(_ value: Float) { self.init(nearest: value) }
    /// Creates the value nearest to `value`, ties to even, rounding once; NaN from 464 (exclusive) on.
    public init(_ value: Double) { self.init(nearest: value) }

    /// Whether two values are equal as numbers: +0 equals -0, NaN equals nothing.
    public static func == (left: FP8E4M3FN, right: FP8E4M3FN) -> Bool { Float(left) == Float(right) }
    /// The value in decimal.
    public var description: String { Float(self).description }
}

/// An fp8 e5m2 value: 1 sign, 5 exponent, 2 mantissa bits, IEEE-like; largest value 57,344.
public struct FP8E5M2: StorageFormat, Equatable, CustomStringConvertible {
    /// fp8 e5m2.
    public static var format: Format { .e5m2 }
    /// The value as an integer.
    public let bitPattern: UInt8

    /// Creates the value with a bit pattern.
    public init(bitPattern: UInt8) { self.bitPattern = bitPattern }
    /// Creates the value nearest to `value`, ties to even.
    public init(_ value: Float) { self.init(nearest: value) }
    /// Creates the value nearest to `value`, ties to even, rounding once.
    public init(_ value: Double) { self.init(nearest: value) }

    /// Whether two values are equal as numbers: +0 equals -0, NaN equals nothing.
    public static func == (left: FP8E5M2, right: FP8E5M2) -> Bool { Float(left) == Float(right) }
    /// The value in decimal.
    public var description: String { Float(self).description }
}
