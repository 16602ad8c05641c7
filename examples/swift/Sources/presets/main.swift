// A named algorithm: what it means, and a loss by it with one option changed.
import Foundation
import Lockstep

let trainer = [0.5, 0.25, 0.5].map(log)
let rollout = [0.125, 0.25, 0.5].map(log)
let current = [0.5, 0.25, 0.25].map(log)

let preset = try Preset(named: "paper/grpo-token-tis")
print(preset)

var correction = preset.correction
correction.high = 2  // C = 2, as its released script has it
var objective = preset.objective
objective.length = 4

let corrected = try correct(trainer: [trainer], rollout: [rollout], options: correction)
let sequence = ObjectiveSequence(
    current: current, trainer: trainer, advantage: 1, weights: corrected.weights[0].map(Double.init))
let (report, _) = try objectiveLoss([sequence], options: objective)
print(String(format: "weights up to %.2f, loss %.4f", corrected.report.weight.max, report.loss))
