// The logarithm and exponential of a row's result, in float64. Our own, because libm's differ between
// systems; plain multiplications and additions, because those are the same everywhere.

let ln2 = 0x1.62e42fefa39efp-1

/// The natural logarithm of a positive, normal, finite number: within 1 ulp or so.
///
/// `ln x = e ln 2 + 2 atanh(s)` with `x = 2^e m`, m in [sqrt(1/2), sqrt 2) and `s = (m - 1) / (m + 1)`;
/// the series is summed to s^23, past the last bit of a double.
func logarithm(_ x: Double) -> Double {
    var exponent = Int(x.bitPattern >> 52) - 1023
    var m = Double(bitPattern: x.bitPattern & 0xf_ffff_ffff_ffff | 0x3ff0_0000_0000_0000)
    if m > 1.4142135623730951 {
        m *= 0.5
        exponent += 1
    }
    let f = m - 1
    let s = f / (m + 1)
    let z = s * s
    var series = 1.0 / 23
    for denominator in stride(from: 21.0, through: 3, by: -2) { series = series * z + 1 / denominator }
    // 2 s = f - s f, which keeps the low bits of f.
    let tail = s * (2 * z * series) - s * f
    let high = 0x1.62e42feep-1  // ln 2 to 32 bits: times an exponent, exact
    let low = 0x1.a39ef35793c76p-33
    let e = Double(exponent)
    return e * high + (f + (tail + e * low))
}

/// e^x, within 1 ulp or so; 0 below the smallest normal number, infinity above the largest.
func exponential(_ x: Double) -> Double {
    guard x > -708 else { return x.isNaN ? x : 0 }
    guard x < 709.7 else { return x == x ? .infinity : x }
    let (significand, exponent) = exponentialParts(x)
    return scaled(significand, by: exponent)
}

/// e^x as m 2^n with m in [0.7, 1.5], for any |x| up to 2^20: within 1 ulp or so while |x| is below 1,000, and
/// within a relative 2^-51 at the ends.
func exponentialParts(_ x: Double) -> (significand: Double, exponent: Int) {
    let n = (x * 0x1.71547652b82fep0).rounded(.toNearestOrEven)
    let r = (x - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33
    var series = 1.0
    for k in stride(from: 14.0, through: 1, by: -1) { series = series * (r / k) + 1 }
    return (series, Int(n))
}

/// x 2^n, exact unless the result leaves the normal range (0 below it).
func scaled(_ x: Double, by n: Int) -> Double {
    if n < -1022 { return n < -2100 ? 0 : x * 0x1p-1022 * scaled(1, by: n + 1022) }
    if n > 1023 { return n > 2100 ? x * .infinity : x * 0x1p1023 * scaled(1, by: n - 1023) }
    return x * Double(bitPattern: UInt64(n + 1023) << 52)
}

/// sin x and cos x for |x| up to 2^20: within a few 1e-17 of 1.
///
/// `x = k pi/2 + r` with |r| <= pi/4: pi/2 stands as three numbers of at most 33 bits, so that k times the first two
/// is exact; then the series of both, past the last bit of a double.
func sineAndCosine(_ x: Double) -> (sine: Double, cosine: Double) {
    let k = (x * 0x1.45f306dc9c883p-1).rounded(.toNearestOrEven)
    var r = x - k * 0x1.921fb544p+0
    r -= k * 0x1.0b4611a6p-34
    r -= k * 0x1.3198a2e037073p-69
    let z = r * r
    var sine = 0.0
    var cosine = 0.0
    for n in stride(from: 18.0, through: 2, by: -2) {
        sine = (1 - sine) * z / (n * (n + 1))
        cosine = (1 - cosine) * z / (n * (n - 1))
    }
    let (s, c) = (r - r * sine, 1 - cosine)
    return switch Int(k) & 3 {
    case 0: (s, c)
    case 1: (c, -s)
    case 2: (-s, -c)
    default: (-c, s)
    }
}
