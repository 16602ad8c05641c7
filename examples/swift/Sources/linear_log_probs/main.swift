// Log-probs straight from hidden states: the logits never exist in memory. A trainer scores the whole
// sequence in one pass; a sampler meets its tokens one by one with a prepared head. Same bits.
import Foundation
import Lockstep

let (tokens, hiddenSize, vocab) = (24, 256, 8000)

/// Some value in [-0.5, 0.5), the same in every language, rounded to BF16.
func value(_ i: Int) -> BFloat16 {
    var x = UInt32(i) &* 2_654_435_761
    x = (x ^ x >> 15) &* 2_246_822_519
    return BFloat16(Float((x ^ x >> 13) >> 8) * 0x1p-24 - 0.5)
}

let hidden = try Matrix(rows: tokens, columns: hiddenSize, (0..<tokens * hiddenSize).map(value))
let weight = try Matrix(
    rows: vocab, columns: hiddenSize, (0..<vocab * hiddenSize).map { value($0 + 1_000_003) })
let targets = (0..<tokens).map { Int32($0 * 331 % vocab) }
// The head's logits are rounded to BF16, as a 16-bit head does.
let options = LogProbOptions(temperature: 0.8, logitsFormat: .bf16)

// The trainer: all tokens at once.
let whole = try linearLogProbs(hidden: hidden, weight: weight, targets: targets, options: options)

// The sampler: one token after another.
let head = try Head.packing(weight)
let single = try (0..<tokens).map { i in
    try head.logProbs(hidden: hidden[rows: i..<i + 1], targets: [targets[i]], options: options).logProbs[0]
}

for i in 0..<4 {
    let logProb = whole.logProbs[i]
    print(
        String(
            format: "token %d: log-prob %.6f, bits %08x, entropy %.6f", i, logProb, logProb.bitPattern,
            whole.entropy[i]))
}
let sum = whole.logProbs.reduce(0.0) { $0 + Double($1) }
let same = zip(whole.logProbs, single).count { $0.bitPattern == $1.bitPattern }
print(String(format: "perplexity %.4f", exp(-sum / Double(tokens))))
print("one pass and one by one: \(same) of \(tokens) tokens have the same bits")
exit(same == tokens ? 0 : 1)
