// One model as trainer and as rollout engine: what the engine says of the tokens it draws is what scoring says of
// them, bit for bit, in fp16 too. Then a trainer in another precision. usage: models FOLDER
import Foundation
import Lockstep

guard CommandLine.arguments.count == 2 else { fatalError("usage: models FOLDER") }
let folder = CommandLine.arguments[1]
let prompt: [Int32] = [11, 3, 58, 90, 7]
let (drawn, group) = (8, 3)

let fp16 = try Model(path: folder, recipe: Recipe(named: "fp16"))
let bf16 = try Model(path: folder, recipe: Recipe(named: "bf16"))
let engine = try RolloutEngine(fp16, settings: SamplingSettings(seed: 1, maxTokens: drawn))
try engine.add(prompt: prompt, ids: (0..<group).map { UInt64($0) })
var rollouts: [Rollout] = []
while !engine.isIdle { rollouts += try engine.step() }

var equal = [0, 0]
for rollout in rollouts {
    // As a trainer has them.
    let trainer = try [fp16, bf16].map {
        try $0.score([prompt + rollout.tokens]).logProbs[0].suffix(drawn)
    }
    for (side, logProbs) in trainer.enumerated() {
        equal[side] += zip(logProbs, rollout.rawLogProbs).count { $0 == $1 }
    }
    print(
        "sequence \(rollout.id): " + rollout.tokens.map { "\($0)" }.joined(separator: " ")
            + String(
                format: "; the last has log-prob %.6f, in bf16 %.6f", rollout.rawLogProbs.last!,
                trainer[1].last!))
}
print(
    "tokens with the bits of the rollout: fp16 trainer \(equal[0]) of \(group * drawn), bf16 trainer \(equal[1])"
)
