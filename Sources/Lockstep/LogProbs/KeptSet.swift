/// Which logits top-k, min-p and top-p keep: all at or above one threshold, so that the set depends on values
/// alone, never on the order of equal ones.
///
/// top-k: the threshold is the k-th largest logit. min-p: it is the largest logit plus `temperature ln minP`, in
/// float64. top-p, after both: logits in descending order, their terms `e^((x - max) / temperature)` added in
/// float64; the threshold is the first logit at which the sum reaches `topP` times the sum of all that they kept.
final class KeptSet: @unchecked Sendable {
    private let options: LogProbOptions
    private let keys: Scratch<UInt32>
    private let spare: Scratch<UInt32>

    init(_ options: LogProbOptions, vocab: Int) throws(LockstepError) {
        self.options = options
        keys = try Scratch(count: vocab)
        spare = try Scratch(count: vocab)
    }

    /// The smallest logit kept.
    ///
    /// `logits` are finite or -inf, and not all -inf.
    func threshold(_ logits: UnsafeBufferPointer<Float>) -> Float {
        var count = logits.count
        for v in 0..<count { keys.base[v] = KeptSet.key(logits[v]) }
        sortDescending(count)
        if options.topK > 0, options.topK < count {
            // Those equal to the k-th are kept too.
            let last = keys.base[options.topK - 1]
            var kept = options.topK
            while kept < count, keys.base[kept] == last { kept += 1 }
            count = kept
        }
        // What is -inf has no probability and is never kept.
        while count > 1, KeptSet.logit(keys.base[count - 1]) == -.infinity { count -= 1 }
        let highest = Double(KeptSet.logit(keys.base[0]))
        let temperature = options.temperature
        if options.minP > 0 {
            let lowest = highest + temperature * logarithm(options.minP)
            while count > 1, Double(KeptSet.logit(keys.base[count - 1])) < lowest { count -= 1 }
        }
        guard options.topP < 1 else { return KeptSet.logit(keys.base[count - 1]) }

        func term(_ index: Int) -> Double {
            exponential((Double(KeptSet.logit(keys.base[index])) - highest) / temperature)
        }
        var all = 0.0
        for index in 0..<count { all += term(index) }
        let wanted = options.topP * all
        var reached = 0.0
        for index in 0..<count {
            reached += term(index)
            if reached >= wanted { return KeptSet.logit(keys.base[index]) }
        }
        return KeptSet.logit(keys.base[count - 1])
    }

    /// A key that orders as the logits do, largest first; both zeros have one key.
    private static func key(_ logit: Float) -> UInt32 {
        let bits = (logit + 0).bitPattern
        let ascending = bits >> 31 == 0 ? bits | 0x8000_0000 : ~bits
        return ~ascending
    }

    private static func logit(_ key: UInt32) -> Float {
        let ascending = ~key
        return Float(bitPattern: ascending >> 31 == 1 ? ascending & 0x7fff_ffff : ~ascending)
    }

    /// Radix sort of the first `count` keys, by 8 bits at a time.
    private func sortDescending(_ count: Int) {
        var from = keys.base
        var to = spare.base
        for shift in stride(from: UInt32(0), to: 32, by: 8) {
            withUnsafeTemporaryAllocation(of: Int.self, capacity: 257) { starts in
                starts.initialize(repeating: 0)
                for i in 0..<count { starts[Int(from[i] >> shift & 255) + 1] += 1 }
                for digit in 0..<256 { starts[digit + 1] += starts[digit] }
                for i in 0..<count {
                    let digit = Int(from[i] >> shift & 255)
                    to[starts[digit]] = from[i]
                    starts[digit] += 1
                }
            }
            swap(&from, &to)
        }
    }
}
