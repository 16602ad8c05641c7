// A row's bits do not depend on its batch: 64 tokens are scored at once, one by one, and in between.
import Foundation
import Lockstep

let (tokens, hiddenSize, vocab) = (64, 576, 4096)

/// Some value in [-0.5, 0.5), the same in every language.
func value(_ i: Int) -> Float {
    var x = UInt32(i) &* 2_654_435_761
    x = (x ^ x >> 15) &* 2_246_822_519
    return Float((x ^ x >> 13) >> 8) * 0x1p-24 - 0.5
}

let hidden = try Matrix(rows: tokens, columns: hiddenSize, (0..<tokens * hiddenSize).map(value))
let weight = try Matrix(
    rows: vocab, columns: hiddenSize, (0..<vocab * hiddenSize).map { value($0 + 1_000_003) })
let targets = (0..<tokens).map { Int32($0 * 61 % vocab) }

/// The log-probs of all tokens, `batch` tokens in a call.
func score(_ batch: Int) throws -> [Float] {
    try stride(from: 0, to: tokens, by: batch).flatMap { first in
        let cut = first..<min(first + batch, tokens)
        return try linearLogProbs(hidden: hidden[rows: cut], weight: weight, targets: Array(targets[cut]))
            .logProbs
    }
}

let whole = try score(tokens)
var wrong = 0
for batch in [64, 63, 8, 2, 1] {
    let found = try score(batch)
    let same = zip(found, whole).count { $0.bitPattern == $1.bitPattern }
    print(
        String(
            format: "in batches of %2d: %d of 64 tokens have the same bits (token 17: %.6f, %08x)", batch,
            same,
            found[17], found[17].bitPattern))
    wrong += tokens - same
}
exit(wrong == 0 ? 0 : 1)
