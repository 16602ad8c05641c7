import CLockstepKernels

/// Sums of doubles, and of products of two doubles, without any rounding.
///
/// A sum is the sum of a fixed-point number and of the three doubles of each of its slots. A kernel adds a term to
/// each of many slots at a time, as long as nothing of it is rounded off the third double; all others go into the
/// fixed-point number.
///
/// Of that, limb i holds a multiple of 2^(32 (base + i)), as a signed 64-bit integer,
/// so that 2^28 additions fit before a carry must move on. As nothing is ever rounded, the terms may come in
/// any order, and sums of parts may be merged in any order: the result is the same number. It is rounded
/// once, when it is read.
///
/// All sums of a bank share the window of powers that their limbs cover. It grows with what is added: to at
/// most 140 limbs for doubles and their products.
///
/// *Infinities and NaN*: kept as flags. A sum in which one occurred is that infinity; NaN if both did.
///
/// *Source*: Neal, Fast exact summation using small and large superaccumulators (2015).
struct ExactSums: ~Copyable {
    /// Number of sums.
    let count: Int
    private var limbs: UnsafeMutablePointer<Int64>
    private var width: Int
    private var base: Int
    /// Which slot is of which sum.
    private let slots: [Int]
    /// The three doubles of each slot: all first, all second, all third ones, in whole blocks of 8.
    private let heads: UnsafeMutablePointer<Double>
    /// From one of a slot's doubles to the next.
    private let stride: Int
    /// Which slots refused a term: a bit each, all 0 between additions.
    private let refused: UnsafeMutablePointer<UInt64>
    /// At least as many additions as any limb has taken since carries last moved on.
    private var pending = 0
    /// For each sum, what was added that is not a number: `Special`'s bits.
    private(set) var specials: [UInt8]

    /// What a flag stands for.
    enum Special {
        static let plusInfinity: UInt8 = 1
        static let minusInfinity: UInt8 = 2
        static let nan: UInt8 = 4
    }

    /// Carries move on at the latest after so many additions.
    private static let pendingLimit = 1 << 28
    /// A term reaches so many limbs from its lowest, and leaves one for carries.
    private static let reach = 6

    /// Creates sums of 0, with a window that suits values from 2^-160 to 2^96 without growing.
    ///
    /// - Parameters:
    ///   - count: how many.
    ///   - slots: the sum of each slot; by default each sum has one.
    init(count: Int, slots: [Int]? = nil) {
        self.init(count: count, slots: slots ?? Array(0..<count), width: 8, base: -5)
    }

    private init(count: Int, slots: [Int], width: Int, base: Int) {
        self.count = count
        self.slots = slots
        self.width = width
        self.base = base
        limbs = .allocate(capacity: count * width)
        limbs.initialize(repeating: 0, count: count * width)
        stride = (slots.count + 7) / 8 * 8
        heads = .allocate(capacity: 3 * stride)
        heads.initialize(repeating: 0, count: 3 * stride)
        refused = .allocate(capacity: stride / 64 + 1)
        refused.initialize(repeating: 0, count: stride / 64 + 1)
        specials = [UInt8](repeating: 0, count: count)
    }

    deinit {
        limbs.deallocate()
        heads.deallocate()
        refused.deallocate()
    }

    /// Adds a value to each slot; of `values` there are whole blocks of 8, with 0 behind the last slot's.
    mutating func add(_ values: UnsafePointer<Double>, _ kernels: UnsafePointer<lsk_kernels>) {
        guard kernels.pointee.exact_add!(heads, Int64(stride), values, nil, Int64(slots.count), refused) != 0
        else { return }
        forEachRefused { sums, slot in sums.add(values[slot], to: sums.slots[slot]) }
    }

    /// Adds a product to each slot of a range that begins at a multiple of 8.
    mutating func addProducts(
        _ factors: borrowing FactorPairs, _ range: Range<Int>, _ kernels: UnsafePointer<lsk_kernels>
    ) {
        let (a, b, first) = (factors.a, factors.b, range.lowerBound)
        guard
            kernels.pointee.exact_add!(
                heads + first, Int64(stride), a + first, b + first, Int64(range.count), refused) != 0
        else { return }
        forEachRefused { sums, place in
            sums.addProduct(a[first + place], b[first + place], to: sums.slots[first + place])
        }
    }

    /// Visits what was refused, and forgets it.
    private mutating func forEachRefused(_ body: (inout ExactSums, Int) -> Void) {
        for word in 0...stride / 64 {
            while refused[word] != 0 {
                body(&self, 64 * word + refused[word].trailingZeroBitCount)
                // Not `&=`, which does not compile with ThreadSanitizer: swiftlang/swift#86265.
                refused[word] = refused[word] & (refused[word] - 1)
            }
        }
    }

    /// Adds x.
    @inline(__always)
    mutating func add(_ x: Double, to index: Int) {
        add(x, times2ToThe: 0, to: index)
    }

    /// Adds x 2^power.
    @inline(__always)
    mutating func add(_ x: Double, times2ToThe power: Int, to index: Int) {
        makeRoom()
        addTerm(x, power, to: index)
    }

    /// Adds x 2^power after room was made.
    @inline(__always)
    private mutating func addTerm(_ x: Double, _ power: Int, to index: Int) {
        let (significand, exponent) = ExactSums.parts(x)
        if significand == 0 { return }
        guard exponent < 0x7ff - 1075 else { return note(x, at: index) }
        add(
            significand, 0, exponent: exponent + power, sign: Int64(bitPattern: x.bitPattern) >> 63, to: index
        )
    }

    /// Counts one more addition to every sum, and moves carries on when there were too many.
    @inline(__always)
    private mutating func makeRoom() {
        if pending == ExactSums.pendingLimit { carry() }
        pending += 1
    }

    /// Adds a b.
    @inline(__always)
    mutating func addProduct(_ a: Double, _ b: Double, to index: Int) {
        addProduct(a, b, times2ToThe: 0, to: index)
    }

    /// Adds a b 2^power.
    @inline(__always)
    mutating func addProduct(_ a: Double, _ b: Double, times2ToThe power: Int, to index: Int) {
        let (m, e) = ExactSums.parts(a)
        let (n, f) = ExactSums.parts(b)
        guard e < 0x7ff - 1075, f < 0x7ff - 1075 else { return note(a * b, at: index) }
        if m == 0 || n == 0 { return }
        makeRoom()
        let (high, low) = m.multipliedFullWidth(by: n)
        add(
            low, high, exponent: e + f + power, sign: Int64(bitPattern: a.bitPattern ^ b.bitPattern) >> 63,
            to: index)
    }

    /// x as significand times 2^exponent; an exponent of 0x7ff - 1075 is an infinity or a NaN.
    @inline(__always)
    private static func parts(_ x: Double) -> (significand: UInt64, exponent: Int) {
        let exponent = Int(x.bitPattern >> 52) & 0x7ff
        let fraction = x.bitPattern & 0xf_ffff_ffff_ffff
        return exponent == 0 ? (fraction, -1074) : (fraction | 1 << 52, exponent - 1075)
    }

    private mutating func note(_ x: Double, at index: Int) {
        specials[index] |= x.isNaN ? Special.nan : x > 0 ? Special.plusInfinity : Special.minusInfinity
    }

    /// Adds +-(low + 2^64 high) 2^exponent; `sign` is 0 or -1.
    @inline(__always)
    private mutating func add(_ low: UInt64, _ high: UInt64, exponent: Int, sign: Int64, to index: Int) {
        var at = exponent >> 5 - base
        if at < 0 || at > width - ExactSums.reach {
            grow(toHold: exponent >> 5)
            at = exponent >> 5 - base
        }
        let limb = limbs + (index * width + at)
        let shift = UInt64(truncatingIfNeeded: exponent & 31)
        let a = (low & 0xffff_ffff) << shift
        let b = (low >> 32) << shift
        limb[0] &+= signed(a & 0xffff_ffff, sign)
        limb[1] &+= signed(a >> 32 &+ b & 0xffff_ffff, sign)
        if high == 0 {
            limb[2] &+= signed(b >> 32, sign)
            return
        }
        let c = (high & 0xffff_ffff) << shift
        let d = (high >> 32) << shift
        limb[2] &+= signed(b >> 32 &+ c & 0xffff_ffff, sign)
        limb[3] &+= signed(c >> 32 &+ d & 0xffff_ffff, sign)
        limb[4] &+= signed(d >> 32, sign)
    }

    @inline(__always)
    private func signed(_ magnitude: UInt64, _ sign: Int64) -> Int64 {
        (Int64(bitPattern: magnitude) ^ sign) &- sign
    }

    /// Widens the window so that a term whose lowest limb has this place fits, and by half of itself, so
    /// that it does not grow often.
    private mutating func grow(toHold place: Int) {
        let end = place + ExactSums.reach
        let slack = width / 2
        grow(toCover: place < base ? place - slack : base, end > base + width ? end + slack : end)
    }

    /// Widens the window to these limbs.
    private mutating func grow(toCover low: Int, _ end: Int) {
        let (low, end) = (min(low, base), max(end, base + width))
        if end - low == width { return }
        let wider = UnsafeMutablePointer<Int64>.allocate(capacity: count * (end - low))
        wider.initialize(repeating: 0, count: count * (end - low))
        for index in 0..<count {
            (wider + (index * (end - low) + base - low)).update(from: limbs + index * width, count: width)
        }
        limbs.deallocate()
        (limbs, width, base) = (wider, end - low, low)
    }

    /// Moves carries on: afterwards all limbs but a sum's last are in [0, 2^32).
    private mutating func carry() {
        pending = 1
        var overflowing = false
        for index in 0..<count {
            let limb = limbs + index * width
            for i in 0..<width - 1 {
                limb[i + 1] &+= limb[i] >> 32
                limb[i] &= 0xffff_ffff
            }
            // The last limb keeps its sign; it must stay as small as a term's.
            overflowing = overflowing || limb[width - 1].magnitude >= 1 << 32
        }
        if overflowing { grow(toHold: base + width - ExactSums.reach + 1) }
    }

    /// Adds the sums of another bank, one by one.
    mutating func merge(_ other: borrowing ExactSums) {
        precondition(count == other.count, "banks of one kind")
        grow(toCover: other.base, other.base + other.width)
        if pending + other.pending > ExactSums.pendingLimit { carry() }
        if pending + other.pending > ExactSums.pendingLimit {
            for index in 0..<count { merge(other.fixed(index), into: index) }
        } else {
            for index in 0..<count {
                let limb = limbs + (index * width + other.base - base)
                let source = other.limbs + index * other.width
                for i in 0..<other.width { limb[i] &+= source[i] }
            }
            pending += other.pending
        }
        for index in 0..<count { specials[index] |= other.specials[index] }
        for (slot, index) in other.slots.enumerated() { add(other.heads(slot), to: index) }
    }

    /// Adds the doubles of a slot.
    private mutating func add(_ heads: (Double, Double, Double), to index: Int) {
        add(heads.0, to: index)
        add(heads.1, to: index)
        add(heads.2, to: index)
    }

    private func heads(_ slot: Int) -> (Double, Double, Double) {
        (heads[slot], heads[stride + slot], heads[2 * stride + slot])
    }

    /// Adds an exact number.
    mutating func merge(_ number: ExactNumber, into index: Int) {
        for (place, digit) in number.digits.enumerated() where digit != 0 {
            makeRoom()
            add(
                UInt64(digit), 0, exponent: 32 * (number.place + place), sign: number.isNegative ? -1 : 0,
                to: index)
        }
    }

    /// Marks a sum with flags of another.
    mutating func merge(specials flags: UInt8, into index: Int) { specials[index] |= flags }

    /// A sum as an exact number; its flags apart.
    func number(_ index: Int) -> ExactNumber {
        var sum = ExactSums(count: 1, slots: [], width: width, base: base)
        sum.limbs.update(from: limbs + index * width, count: width)
        sum.pending = pending
        for (slot, owner) in slots.enumerated() where owner == index { sum.add(heads(slot), to: 0) }
        return sum.fixed(0)
    }

    /// The fixed-point part of a sum.
    private func fixed(_ index: Int) -> ExactNumber {
        let limb = limbs + index * width
        var digits: [UInt32] = []
        digits.reserveCapacity(width + 2)
        var carry: Int64 = 0
        for i in 0..<width {
            let (sum, low) = (limb[i] >> 32 &+ carry >> 32, limb[i] & 0xffff_ffff &+ carry & 0xffff_ffff)
            digits.append(UInt32(truncatingIfNeeded: low))
            carry = sum &+ low >> 32
        }
        while carry != 0, carry != -1 {
            digits.append(UInt32(truncatingIfNeeded: carry))
            carry >>= 32
        }
        if carry == -1 {
            // The two's complement of a negative number: its magnitude is the complement plus 1.
            var one = true
            for i in digits.indices {
                let (sum, overflow) = (~digits[i]).addingReportingOverflow(one ? 1 : 0)
                digits[i] = sum
                one = overflow
            }
            if one { digits.append(1) }
        }
        return ExactNumber(isNegative: carry == -1, place: base, digits: digits)
    }

    /// A sum, rounded once to the nearest double (ties to even); an infinity or NaN if one was added.
    func value(_ index: Int) -> Double { special(index) ?? number(index).double() }

    /// What a flagged sum is; nil if it is a number.
    func special(_ index: Int) -> Double? {
        switch specials[index] {
        case 0: nil
        case Special.plusInfinity: .infinity
        case Special.minusInfinity: -.infinity
        default: .nan
        }
    }
}

/// Pairs of factors, one for each slot of a bank of sums, with room for whole blocks of 8.
struct FactorPairs: ~Copyable {
    fileprivate let a, b: UnsafeMutablePointer<Double>

    /// Creates pairs of 0 and 0.
    init(count: Int) {
        (a, b) = (.allocate(capacity: count + 7), .allocate(capacity: count + 7))
        a.initialize(repeating: 0, count: count + 7)
        b.initialize(repeating: 0, count: count + 7)
    }

    deinit {
        a.deallocate()
        b.deallocate()
    }

    /// Sets a pair.
    @inline(__always)
    func set(_ slot: Int, _ x: Double, _ y: Double) {
        a[slot] = x
        b[slot] = y
    }
}

/// A number of any size: digits of 32 bits, the lowest worth 2^(32 place), without zeros at either end.
struct ExactNumber: Equatable {
    let isNegative: Bool
    let place: Int
    let digits: [UInt32]

    /// Drops the zeros at both ends; 0 is positive and has place 0.
    init(isNegative: Bool, place: Int, digits: [UInt32]) {
        guard let first = digits.firstIndex(where: { $0 != 0 }) else {
            self.isNegative = false
            self.place = 0
            self.digits = []
            return
        }
        let last = digits.lastIndex { $0 != 0 }!
        self.isNegative = isNegative
        self.place = place + first
        self.digits = Array(digits[first...last])
    }

    /// The highest power of two that is not above the magnitude; nil for 0.
    var exponent: Int? {
        digits.last.map { 32 * (place + digits.count) - 1 - $0.leadingZeroBitCount }
    }

    /// The nearest double to the number times 2^power: ties to even, subnormal or infinite where it must be.
    func double(times2ToThe power: Int = 0) -> Double {
        guard let exponent else { return 0 }
        let top = exponent + power
        if top > 1023 { return isNegative ? -.infinity : .infinity }
        if top < -1075 { return 0 }
        let lowest = Swift.max(top - 52, -1074)
        var significand = bits(from: lowest - power, count: top - lowest + 1)
        let half = bits(from: lowest - 1 - power, count: 1) == 1
        if half, significand & 1 == 1 || !isMultiple(of2ToThe: lowest - 1 - power) { significand += 1 }
        let magnitude = Double(sign: .plus, exponent: lowest, significand: Double(significand))
        return isNegative ? -magnitude : magnitude
    }

    /// The number times 2^power as the sum of two doubles, its first 106 bits or more.
    func doubleDouble(times2ToThe power: Int = 0) -> DoubleDouble {
        guard let exponent else { return DoubleDouble(0) }
        func part(_ lowest: Int) -> Double {
            Double(sign: .plus, exponent: lowest + power, significand: Double(bits(from: lowest, count: 53)))
        }
        let value = DoubleDouble(part(exponent - 52), adding: part(exponent - 105))
        return isNegative ? -value : value
    }

    /// The bits from 2^position on, at most 64.
    private func bits(from position: Int, count: Int) -> UInt64 {
        var value: UInt64 = 0
        let first = position >> 5
        for i in 0..<3 {
            let digit = first + i - place
            guard digits.indices.contains(digit) else { continue }
            let shift = 32 * i - (position & 31)
            let wide = UInt64(digits[digit])
            value |= shift < 0 ? wide >> UInt64(-shift) : shift < 64 ? wide << UInt64(shift) : 0
        }
        return count >= 64 ? value : value & (1 << UInt64(Swift.max(count, 0)) - 1)
    }

    /// Whether no bit below 2^position is set.
    private func isMultiple(of2ToThe position: Int) -> Bool {
        guard let first = digits.first else { return true }
        return 32 * place + first.trailingZeroBitCount >= position
    }
}
