import CLockstepKernels

#if canImport(Glibc)
    import Glibc
#elseif canImport(Darwin)
    import Darwin
#endif

/// Sums of sequences' gradients that are exact: the order of sequences, micro-batches and threads cannot show.
///
/// A value is a fixed-point number of two 64-bit parts, in units of 2^-20 and of 2^-70 (Body/training.h). A sequence's
/// value is rounded to 2^-70 alone, all sums are exact, and a total is rounded to float32 once.
final class GradientSums: @unchecked Sendable {
    private let parameters: Parameters
    private let kernels: lsk_kernels
    private let high: Scratch<Int64>
    private let low: Scratch<Int64>
    /// Additions to each tensor since its parts were brought in order: 2^13 of them fit the lower part.
    ///
    /// Not an array, which is one value: two workers may not change it at once, whichever locks they hold.
    private let additions: Scratch<Int>
    private let locks: UnsafeMutableBufferPointer<pthread_mutex_t>

    /// Tokens whose gradients fit the higher part: each adds less than 2^18 to a value.
    static let tokenLimit = 1 << 24
    private static let additionLimit = 1 << 13

    /// Sums of 0; with `isShared` many workers may add at a time.
    init(
        _ parameters: Parameters, _ kernels: UnsafePointer<lsk_kernels>, isShared: Bool
    ) throws(LockstepError) {
        self.parameters = parameters
        self.kernels = kernels.pointee
        high = try Scratch(count: parameters.count, filledWith: 0)
        low = try Scratch(count: parameters.count, filledWith: 0)
        additions = try Scratch(count: parameters.tensors.count, filledWith: 0)
        locks = .allocate(capacity: isShared ? parameters.tensors.count : 0)
        for lock in locks.indices { pthread_mutex_init(locks.baseAddress! + lock, nil) }
    }

    deinit {
        for lock in locks.indices { pthread_mutex_destroy(locks.baseAddress! + lock) }
        locks.deallocate()
    }

    func setToZero() {
        high.base.update(repeating: 0, count: high.count)
        low.base.update(repeating: 0, count: low.count)
        additions.base.update(repeating: 0, count: additions.count)
    }

    /// Adds `values` times `scale` to values of a tensor from `offset` of it on.
    ///
    /// - Returns: how many are too large or NaN: the sums mean nothing then.
    func add(
        _ values: UnsafePointer<Float>, _ count: Int, to tensor: Int, at offset: Int, scale: Float
    ) -> Int {
        if !locks.isEmpty { pthread_mutex_lock(locks.baseAddress! + tensor) }
        defer { if !locks.isEmpty { pthread_mutex_unlock(locks.baseAddress! + tensor) } }
        let additions = additions.base
        if additions[tensor] == GradientSums.additionLimit { carry(tensor) }
        additions[tensor] += 1
        let place = parameters.tensors[tensor].range.lowerBound + offset
        return Int(kernels.fixed_add(high.base + place, low.base + place, values, scale, count))
    }

    /// Leaves less than one unit of the higher part in the lower one.
    private func carry(_ tensor: Int) {
        let (high, low) = (high.base, low.base)
        for place in parameters.tensors[tensor].range {
            let units = low[place] >> 50
            high[place] &+= units
            low[place] &-= units << 50
        }
        additions.base[tensor] = 0
    }

    /// Adds other sums, of the same parameters.
    func add(_ other: GradientSums) {
        for tensor in parameters.tensors.indices {
            carry(tensor)
            other.carry(tensor)
            for place in parameters.tensors[tensor].range {
                high.base[place] &+= other.high.base[place]
                low.base[place] &+= other.low.base[place]
            }
            additions.base[tensor] = 1
        }
    }

    /// The sums, each rounded once, to nearest even.
    func round(into out: UnsafeMutablePointer<Float>) {
        for tensor in parameters.tensors.indices {
            carry(tensor)
            for place in parameters.tensors[tensor].range {
                out[place] = GradientSums.rounded(high.base[place], low.base[place])
            }
        }
    }

    /// high 2^-20 + low 2^-70, for low in 0 ..< 2^50.
    ///
    /// Rounded to odd to a double first, which a second rounding cannot tell from the number itself.
    static func rounded(_ high: Int64, _ low: Int64) -> Float {
        if high == 0 { return Float(Double(low) * 0x1p-70) }  // exact as a double
        if high.magnitude >= 1 << 52 {  // the lower part is far below the last bit
            let odd = high & ~0x3ff | (high & 0x3ff != 0 || low != 0 ? 0x400 : 0)
            return Float(Double(odd) * 0x1p-20)
        }
        let (a, b) = (Double(high) * 0x1p-20, Double(low) * 0x1p-70)
        var sum = a + b
        let rest = b - (sum - a)  // exact: |a| is the larger
        if rest != 0, sum.bitPattern & 1 == 0 {
            // Toward the number itself: up in magnitude if the rest has the sum's sign.
            let isUp = (rest > 0) == (sum > 0)
            sum = Double(bitPattern: isUp ? sum.bitPattern + 1 : sum.bitPattern - 1)
        }
        return Float(sum)
    }
}
