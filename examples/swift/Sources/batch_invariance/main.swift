// A row's bits do not depend on its batch: token 17 is scored alone and among others.
import Foundation
import Lockstep

let (tokens, hiddenSize, vocab, token) = (64, 576, 4096, 17)

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

/// The log-prob of token 17 in a batch.
func score(_ batch: Range<Int>) throws -> Float {
    let scores = try linearLogProbs(
        hidden: hidden[rows: batch], weight: weight, targets: Array(targets[batch]))
    return scores.logProbs[token - batch.lowerBound]
}

let alone = try score(17..<18)
var same = true
for batch in [17..<18, 16..<18, 15..<18, 10..<18, 0..<64] {
    let found = try score(batch)
    print(
        String(
            format: "in a batch of %2d: log-prob %.6f, bits %08x", batch.count, found, found.bitPattern))
    same = same && found.bitPattern == alone.bitPattern
}
print("the same bits: \(same ? "yes" : "no")")
exit(same ? 0 : 1)
