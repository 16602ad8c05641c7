// A log on many machines: each worker adds up its sequences and sends some bytes; merged, they say what one
// pass over the whole log says, bit for bit, and what made the mismatch. Here the trainer's log-probs were
// stored in BF16.
import Foundation
import Lockstep

let (sequences, length) = (40, 500)

/// Some value in [-0.5, 0.5), the same in every language.
func value(_ i: Int) -> Float {
    var x = UInt32(i) &* 2_654_435_761
    x = (x ^ x >> 15) &* 2_246_822_519
    return Float((x ^ x >> 13) >> 8) * 0x1p-24 - 0.5
}

/// A worker's share of the log, every so-many-th sequence, added as it is read.
func work(_ worker: Int, of workers: Int) throws -> [UInt8] {
    let accumulator = MismatchAccumulator()
    for sequence in stride(from: worker, to: sequences, by: workers) {
        let rollout = (0..<length).map { position -> Float in
            let half = value(sequence * length + position) + 0.5
            return -8 * half * half
        }
        let trainer = try convert(rollout, to: BFloat16.self).values
        try withLogProbPair(trainer: [trainer], rollout: [rollout]) { (pair) throws(LockstepError) in
            try withUnsafePointer(to: Int64(sequence)) { (id) throws(LockstepError) in
                try accumulator.update(pair, ids: TokenView(id, byteCount: 8, count: 1))
            }
        }
    }
    return accumulator.bytes()
}

var total = MismatchAccumulator()
for workers in [1, 2, 7] {
    total = MismatchAccumulator()
    for worker in (0..<workers).reversed() {  // in any order
        try total.merge(MismatchAccumulator(bytes: work(worker, of: workers)))
    }
    let found = total.mismatch()
    // FNV-1a of all that the accumulator holds.
    let hash = total.bytes().reduce(UInt32(2_166_136_261)) { ($0 ^ UInt32($1)) &* 16_777_619 }
    print(
        "\(workers) worker\(workers == 1 ? ": " : "s:") \(found.tokens) tokens,",
        String(
            format: "k3 (%.4f +- %.4f)e-5, hash %08x", 1e5 * found.k3.value, 1e5 * found.k3.standardError,
            hash))
}
let cause = total.causes().findings[0]
print(
    "cause: \(cause.cause == .storedIn16Bits ? "stored in 16 bits" : "another"),",
    String(format: "%.0f %% sure, explains %.0f %%", 100 * cause.confidence, 100 * cause.score))
