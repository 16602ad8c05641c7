/// The counter-based random generator Philox4x32-10: a number is a function of key and counter, so it
/// does not depend on what was drawn before, on batching or on threads.
///
/// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
public struct Philox4x32: Sendable {
    /// The key: each seed has a stream of its own.
    public let seed: UInt64

    /// Creates the generator of a seed.
    public init(seed: UInt64) { self.seed = seed }

    /// The four random words of the 128-bit counter `high * 2^64 + low`.
    public func block(_ low: UInt64, high: UInt64 = 0) -> SIMD4<UInt32> {
        var counter = SIMD4(
            UInt32(truncatingIfNeeded: low), UInt32(low >> 32),
            UInt32(truncatingIfNeeded: high), UInt32(high >> 32))
        var key = (UInt32(truncatingIfNeeded: seed), UInt32(seed >> 32))
        for _ in 0..<10 {
            let first = counter[0].multipliedFullWidth(by: 0xd251_1f53)
            let second = counter[2].multipliedFullWidth(by: 0xcd9e_8d57)
            counter = SIMD4(
                second.high ^ counter[1] ^ key.0, second.low,
                first.high ^ counter[3] ^ key.1, first.low)
            key.0 &+= 0x9e37_79b9
            key.1 &+= 0xbb67_ae85
        }
        return counter
    }

    /// Random word `index` of the stream: word `index` mod 4 of the block `index` / 4.
    public func word(_ index: UInt64) -> UInt32 { block(index >> 2)[Int(index & 3)] }
}
