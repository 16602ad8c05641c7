/// How a format lays out its bits, and the conversion of one value between any two formats.
///
/// Integer arithmetic only, so the floating-point mode of the caller cannot enter. A *code* is a bit
/// pattern without its sign; codes of finite values are in the order of the values.
struct FormatLayout {
    /// Bits of the mantissa, without the hidden one.
    let mantissa: Int
    /// Bias of the exponent: the smallest normal value is 2^(1 - bias).
    let bias: Int
    /// Position of the sign bit.
    let sign: Int
    /// The code of the largest finite value.
    let largest: UInt64
    /// The code of infinity; of NaN in e4m3fn, which has no infinity.
    let infinity: UInt64
    /// Whether `infinity` is one.
    let hasInfinity: Bool

    /// The layout of a format; of an emulated one as if its values were stored in as many bits as it has.
    init(_ format: Format) {
        let exponent: Int
        switch format {
        case .fp64: (exponent, mantissa) = (11, 52)
        case .fp32: (exponent, mantissa) = (8, 23)
        case .fp16: (exponent, mantissa) = (5, 10)
        case .bf16: (exponent, mantissa) = (8, 7)
        case .e4m3fn: (exponent, mantissa) = (4, 3)
        case .e5m2: (exponent, mantissa) = (5, 2)
        default: (exponent, mantissa) = (Int(format.rawValue >> 8), Int(format.rawValue & 0xff))
        }
        sign = exponent + mantissa
        bias = 1 << (exponent - 1) - 1
        hasInfinity = format != .e4m3fn
        // e4m3fn gives the codes of infinity and of most NaNs to values: only the last code is not one.
        infinity = hasInfinity ? (1 << exponent - 1) << UInt64(mantissa) : 0x7f
        largest = infinity - 1
    }

    /// Whether a code is NaN.
    func isNaN(_ code: UInt64) -> Bool { hasInfinity ? code > infinity : code == infinity }

    /// Splits a bit pattern into its sign and its code.
    func split(_ bits: UInt64) -> (negative: Bool, code: UInt64) {
        (bits >> UInt64(sign) & 1 == 1, bits & (1 << UInt64(sign) - 1))
    }
}

/// What happened to one value in a conversion.
enum ConversionEvent {
    case none, overflow, underflow, nan
}

/// How one value is rounded: `Rounding` with the random number drawn.
enum ScalarRounding {
    case nearestEven, towardZero
    case stochastic(UInt32)
}

/// Converts one value, given as the bits it is stored in.
///
/// Between different formats a NaN keeps its sign and the top bits
/// of its payload and has the quiet bit set, as conversion instructions have it. What is read from an emulated format
/// is the float it is stored in.
func convert(
    bits: UInt64, from source: Format, to destination: Format, rounding: ScalarRounding = .nearestEven
) -> (bits: UInt64, event: ConversionEvent) {
    let from = FormatLayout(source.storage)
    if source == destination || source.storage == destination {
        return (bits, from.isNaN(from.split(bits).code) ? .nan : .none)
    }
    let to = FormatLayout(destination)
    let result = convert(bits: bits, from: from, to: to, rounding: rounding)
    if !destination.isEmulated { return result }
    return (
        convert(bits: result.bits, from: to, to: FormatLayout(.fp32), rounding: .nearestEven).bits,
        result.event
    )
}

/// Converts one value between two layouts.
func convert(
    bits: UInt64, from: FormatLayout, to: FormatLayout, rounding: ScalarRounding
) -> (bits: UInt64, event: ConversionEvent) {
    let (negative, code) = from.split(bits)
    let sign: UInt64 = negative ? 1 << UInt64(to.sign) : 0

    if from.isNaN(code) {
        // e4m3fn's NaN has no payload.
        let payload = from.hasInfinity ? code & (1 << UInt64(from.mantissa) - 1) : 0
        let moved =
            to.mantissa >= from.mantissa
            ? payload << UInt64(to.mantissa - from.mantissa) : payload >> UInt64(from.mantissa - to.mantissa)
        return (sign | to.infinity | 1 << UInt64(to.mantissa - 1) | moved, .nan)
    }
    if from.hasInfinity && code == from.infinity { return (sign | to.infinity, .none) }
    if code == 0 { return (sign, .none) }

    // The value is significand * 2^exponent.
    let field = Int(code >> UInt64(from.mantissa))
    var significand = code & (1 << UInt64(from.mantissa) - 1)
    if field > 0 { significand |= 1 << UInt64(from.mantissa) }
    let exponent = max(field, 1) - from.bias - from.mantissa

    // The step between neighbours of the destination is 2^step; the value is kept + fraction / 2^dropped
    // steps. Swift's shifts take any distance: beyond the width nothing is left, below 0 they reverse.
    let top = exponent + (UInt64.bitWidth - 1 - significand.leadingZeroBitCount)
    let step = max(top, 1 - to.bias) - to.mantissa
    let dropped = step - exponent
    let kept = significand >> dropped
    let fraction = significand - kept << dropped
    var result = UInt64(step + to.mantissa + to.bias - 1) << UInt64(to.mantissa) + kept

    switch rounding {
    case .nearestEven:
        // A significand has at most 53 bits: with more than 54 dropped it is below half a step.
        if 1...54 ~= dropped {
            let half: UInt64 = 1 << UInt64(dropped - 1)
            if fraction > half || (fraction == half && result & 1 == 1) { result += 1 }
        }
        if result > to.largest { return (sign | to.infinity, .overflow) }
    case .towardZero, .stochastic:
        if result > to.largest || (result == to.largest && fraction > 0) {
            return (sign | to.largest, .overflow)
        }
        if case .stochastic(let random) = rounding {
            // The fraction of a step as a multiple of 2^-32, cut.
            let scaled = fraction << (32 - dropped)
            if UInt64(random) + scaled >= 1 << 32 { result += 1 }
        }
    }
    return (sign | result, result == 0 ? .underflow : .none)
}
