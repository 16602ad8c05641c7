/// A number as the sum of two doubles, the second at most half a unit in the last place of the first: about
/// 106 bits, for the differences of nearly equal sums.
///
/// *Accuracy*: each operation is within 2^-102 of the result, relatively; cancellation loses no more than
/// its operands had lost. *Source*: Dekker (1971); Joldes, Muller and Popescu (2017).
struct DoubleDouble {
    /// The nearest double.
    let high: Double
    /// What is left.
    let low: Double

    init(_ value: Double) {
        high = value
        low = 0
    }

    /// a + b, exactly, for |a| >= |b| or a = 0.
    init(_ a: Double, adding b: Double) {
        high = a + b
        low = b - (high - a)
    }

    /// a + b, exactly.
    private static func sum(_ a: Double, _ b: Double) -> (Double, Double) {
        let high = a + b
        let share = high - a
        return (high, (a - (high - share)) + (b - share))
    }

    static prefix func - (x: DoubleDouble) -> DoubleDouble { DoubleDouble(-x.high, adding: -x.low) }

    static func + (a: DoubleDouble, b: DoubleDouble) -> DoubleDouble {
        let (high, error) = sum(a.high, b.high)
        let (low, lowError) = sum(a.low, b.low)
        let first = DoubleDouble(high, adding: error + low)
        return DoubleDouble(first.high, adding: first.low + lowError)
    }

    static func - (a: DoubleDouble, b: DoubleDouble) -> DoubleDouble { a + -b }

    static func * (a: DoubleDouble, b: DoubleDouble) -> DoubleDouble {
        let high = a.high * b.high
        let error = (-high).addingProduct(a.high, b.high)
        return DoubleDouble(high, adding: error.addingProduct(a.high, b.low).addingProduct(a.low, b.high))
    }

    static func * (a: Double, b: DoubleDouble) -> DoubleDouble { DoubleDouble(a) * b }

    static func / (a: DoubleDouble, b: DoubleDouble) -> DoubleDouble {
        let first = a.high / b.high
        let rest = a - first * b
        let second = rest.high / b.high
        let third = (rest - second * b).high / b.high
        return DoubleDouble(first, adding: second) + DoubleDouble(third)
    }

    static func / (a: DoubleDouble, b: Double) -> DoubleDouble { a / DoubleDouble(b) }
}
