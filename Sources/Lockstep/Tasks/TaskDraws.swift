/// The random numbers of one problem: a function of seed, problem and stream, so that a problem does not depend on
/// which others were made.
struct TaskDraws {
    private let generator: Philox4x32
    private let high: UInt64
    private var next: UInt64 = 0

    /// Stream 0 makes the problem, 1 its demonstration, 2 the order of a file.
    init(seed: UInt64, index: Int, stream: UInt64) {
        generator = Philox4x32(seed: seed)
        high = UInt64(index) << 2 | stream
    }

    private mutating func word() -> UInt32 {
        defer { next += 1 }
        return generator.block(next >> 2, high: high)[Int(next & 3)]
    }

    /// A number in [0, bound), each as likely as the others to 1 in 2^32.
    mutating func below(_ bound: Int) -> Int { Int((UInt64(word()) &* UInt64(bound)) >> 32) }

    /// True with a probability, resolved to 2^-32.
    ///
    /// It draws a number whatever the probability.
    mutating func chance(_ probability: Double) -> Bool { Double(word()) < probability * 0x1p32 }

    /// A number in [0, bound) other than `value`.
    mutating func other(than value: Int, below bound: Int) -> Int { (value + 1 + below(bound - 1)) % bound }
}
