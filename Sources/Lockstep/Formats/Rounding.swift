/// How a value between two neighbours of the destination format is rounded.
public enum Rounding: Equatable, Sendable {
    /// To the nearer neighbour; halfway, to the one whose last bit is 0 (IEEE 754's default).
    case nearestEven
    /// To the neighbour nearer to zero.
    case towardZero
    /// To one of the two neighbours, so that the expectation is the value.
    ///
    /// A value a fraction f of the way from its lower neighbour (in magnitude) to the upper one goes up
    /// when `r + floor(f * 2^32) >= 2^32`, where r is the 32-bit random number of `seed` and of
    /// `firstIndex` + the element's index in C order (`Philox4x32.word`). Nothing else enters, so an array
    /// may be cut anywhere.
    case stochastic(seed: UInt64, firstIndex: UInt64 = 0)
}
