// Reinforcement learning, step by step, with prompts and rewards of one's own: chains y' = (a y + b) mod 7, and the share
// of a response that is right before its first error. Trainer and rollout engine are FP16: no mismatch.
// usage: run FOLDER
import Foundation
import Lockstep

guard CommandLine.arguments.count == 2 else { fatalError("usage: run FOLDER") }
let tokens = 32

/// The ids of a digit's two fonts are 7 apart.
func reward(_ request: RewardRequest) -> Double {
    var (y, right) = (request.prompt[2], 0)
    for token in request.response {
        y = (request.prompt[0] * y + request.prompt[1]) % 7
        if token >= 14 || token % 7 != y { break }
        right += 1
    }
    return Double(right) / Double(tokens)
}

let environment = Environment(
    name: "callbacks", maxTokens: tokens,
    prompt: { problem in [1 + problem % 6, problem / 6 % 7, problem / 42 % 7].map { Int32($0) } },
    reward: reward)
var options = ReinforcementOptions(
    model: StartingModel(.folder(CommandLine.arguments[1])), algorithm: try Algorithm(preset: "paper/grpo"))
options.prompts = 8
let run = try ReinforcementRun(options, environment: environment)

func evaluate(_ run: ReinforcementRun) throws -> Double {
    try run.evaluate(problems: Array(1000..<1008), samples: 8, seed: 7).rewardMean
}

print(String(format: "before: %.6f", try evaluate(run)))
for _ in 0..<4 {
    let metrics = try run.step()
    print(
        String(
            format: "step %d: reward %.6f, gradient norm %.9f, entropy %.9f, KL %g", metrics.step,
            metrics.rewardMean, metrics.gradientNorm, metrics.entropy, metrics.k3))
}
print(String(format: "after: %.6f", try evaluate(run)))
