import Testing

@testable import Lockstep

@Suite struct ExactSumsTests {
    /// Against integers: values of 53 bits at places from 2^-40 to 2^20 make sums that 128 bits hold.
    @Test func sumsAreThoseOfIntegers() {
        var random = Random(1)
        for round in 0..<300 {
            var sums = ExactSums(count: 3)
            var exact: Int128 = 0
            for _ in 0..<(round % 40 + 1) {
                let shift = Int.random(in: 0...60, using: &random)
                let significand = Int64.random(in: -(1 << 53)...(1 << 53), using: &random) >> (shift / 3)
                exact += Int128(significand) << shift
                sums.add(Double(sign: .plus, exponent: shift - 40, significand: Double(significand)), to: 1)
            }
            let expected = Double(sign: .plus, exponent: -40, significand: Double(exact))
            #expect(sums.value(1) == expected)
            let pair = sums.number(1).doubleDouble(times2ToThe: 40)
            #expect(Int128(pair.high) + Int128(pair.low) == exact && pair.high == Double(exact))
            #expect(sums.value(0) == 0 && sums.value(2) == 0)
        }
    }

    @Test func productsAreExact() {
        var random = Random(2)
        for _ in 0..<2000 {
            let a = Int64.random(in: -(1 << 53)...(1 << 53), using: &random)
            let b = Int64.random(in: -(1 << 53)...(1 << 53), using: &random)
            let power = Int.random(in: -1000...900, using: &random)
            var sums = ExactSums(count: 1)
            sums.addProduct(Double(sign: .plus, exponent: power, significand: Double(a)), Double(b), to: 0)
            let number = sums.number(0)
            let expected = Double(Int128(a) * Int128(b))
            #expect(number.double(times2ToThe: -power) == expected)
            // Nothing is left when the product comes off again in two parts.
            let pair = number.doubleDouble(times2ToThe: -power)
            sums.add(-pair.high, times2ToThe: power, to: 0)
            sums.add(-pair.low, times2ToThe: power, to: 0)
            #expect(sums.number(0).digits.isEmpty)
        }
    }

    /// Every double comes back, subnormals and the largest included; so does what is 2^1500 or 2^-1500 of one.
    @Test func everyDoubleComesBack() {
        var random = Random(3)
        let special = [
            0, Double.leastNonzeroMagnitude, .leastNormalMagnitude, Double.leastNormalMagnitude.nextDown,
            .greatestFiniteMagnitude, 1, 1.0.nextUp, 0x1p32, 0x1p-32, 0x1.fffffffffffffp31,
        ]
        let others = (0..<5000).map { _ in
            Double(bitPattern: UInt64.random(in: 0..<0x7ff0_0000_0000_0000, using: &random))
        }
        for x in special + others {
            for sign in [1.0, -1] {
                for power in [0, 1500, -1500] {
                    var sums = ExactSums(count: 1)
                    sums.add(sign * x, times2ToThe: power, to: 0)
                    #expect(sums.number(0).double(times2ToThe: -power) == sign * x)
                }
            }
        }
    }

    /// Halfway cases go to the even neighbour, and one bit far below decides.
    @Test func roundingIsToNearestEven() {
        for tiny in [0, 0x1p-1074, -0x1p-1074] {
            for (base, up) in [(1.0, 1.0.nextUp), (1.0.nextUp, 1.0.nextUp.nextUp)] {
                var sums = ExactSums(count: 1)
                for x in [base, (up - base) / 2, tiny] { sums.add(x, to: 0) }
                let even = base == 1 ? base : up
                #expect(sums.value(0) == (tiny == 0 ? even : tiny > 0 ? up : base))
            }
        }
        var sums = ExactSums(count: 2)
        for _ in 0..<2 { sums.add(.greatestFiniteMagnitude, to: 0) }
        #expect(sums.value(0) == .infinity)
        sums.add(-.greatestFiniteMagnitude, to: 0)
        #expect(sums.value(0) == .greatestFiniteMagnitude)
    }

    /// Terms of every size in any order, in any grouping: the same number; and what comes off again leaves the
    /// rest exactly.
    @Test func orderAndGroupingDoNotShow() throws {
        var random = Random(4)
        for _ in 0..<40 {
            let terms = (0..<300).map { _ in
                Double(
                    sign: Bool.random(using: &random) ? .plus : .minus,
                    exponent: Int.random(in: -1070...1000, using: &random),
                    significand: .random(in: 1..<2, using: &random))
            }
            var whole = ExactSums(count: 1)
            for term in terms { whole.add(term, to: 0) }
            var merged = ExactSums(count: 1)
            for part in stride(from: 0, to: 300, by: 37) {
                var one = ExactSums(count: 1)
                for term in terms.shuffled(using: &random)[..<0] { one.add(term, to: 0) }
                for term in terms[part..<min(part + 37, 300)].shuffled(using: &random) {
                    one.add(term, to: 0)
                }
                merged.merge(one)
            }
            #expect(merged.number(0) == whole.number(0))
            for term in terms.shuffled(using: &random) { whole.add(-term, to: 0) }
            whole.add(0x1p-1074, to: 0)
            #expect(whole.value(0) == 0x1p-1074)
        }
    }

    /// Many terms at a time, of every size, into sums with one slot and with two: what one at a time gives, on
    /// every instruction set, and after a merge.
    @Test func manyAtATimeAreTheSame() throws {
        let owners = Array(0..<11) + [0, 3, 3, 5, 5] + [7, 7, 7]
        for set in instructionSets {
            let kernels = try Execution(instructionSet: set).kernels()
            var random = Random(5)
            for round in 0..<30 {
                // Alike, alike but for a few, and of all sizes.
                let spread = [3, 70, 1040][round % 3]
                func term() -> Double {
                    switch Int.random(in: 0..<400, using: &random) {
                    case 0 where round > 20:
                        return [.infinity, -.infinity, .nan].randomElement(using: &random)!
                    case 1..<40: return 0
                    default:
                        let power = Int.random(in: -spread...min(spread, 1000), using: &random)
                        return Double(
                            sign: .plus, exponent: power, significand: .random(in: -2..<2, using: &random))
                    }
                }
                var many = ExactSums(count: 11, slots: owners)
                var one = ExactSums(count: 11)
                let factors = FactorPairs(count: owners.count)
                var values = [Double](repeating: 0, count: 24)
                for _ in 0..<40 {
                    let first = Bool.random(using: &random) ? 0 : 8
                    for slot in owners.indices {
                        let (x, y) = (term(), term())
                        factors.set(slot, x, y)
                        if slot >= first { one.addProduct(x, y, to: owners[slot]) }
                        values[slot] = term()
                        one.add(values[slot], to: owners[slot])
                    }
                    many.addProducts(factors, first..<owners.count, kernels)
                    many.add(values, kernels)
                }
                var merged = ExactSums(count: 11, slots: owners)
                merged.merge(many)
                for index in 0..<11 {
                    #expect(many.number(index) == one.number(index), "\(set), sum \(index)")
                    #expect(merged.number(index) == one.number(index), "\(set), sum \(index)")
                    #expect(many.special(index)?.bitPattern == one.special(index)?.bitPattern)
                    #expect(merged.special(index)?.bitPattern == one.special(index)?.bitPattern)
                }
            }
        }
    }

    @Test func infinitiesAreRemembered() {
        var sums = ExactSums(count: 4)
        sums.add(.infinity, to: 0)
        sums.add(-1e300, to: 0)
        sums.add(-.infinity, to: 1)
        sums.add(.nan, to: 2)
        sums.addProduct(.infinity, 0, to: 3)
        var other = ExactSums(count: 4)
        other.add(.infinity, to: 1)
        #expect(sums.value(0) == .infinity && sums.value(1) == -.infinity)
        #expect(sums.value(2).isNaN && sums.value(3).isNaN)
        other.merge(sums)
        #expect(other.value(0) == .infinity && other.value(1).isNaN)
    }

    /// Twice the precision of a double, in every operation.
    @Test func doubleDoublesHaveTheirDigits() {
        let third = DoubleDouble(1) / DoubleDouble(3)
        let rest = DoubleDouble(1) - DoubleDouble(3) * third
        #expect(rest.high.magnitude < 0x1p-100)
        let small = DoubleDouble(1, adding: 0x1p-80)
        #expect((small * small - DoubleDouble(1)).high == 0x1p-79)
        #expect((small - DoubleDouble(1)).high == 0x1p-80)
        #expect(((small + small) / 2.0 - small).high == 0)
    }
}
