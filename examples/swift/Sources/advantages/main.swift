// Advantages: two prompts with four answers each, under three estimators, and the penalty of long answers.
import Foundation
import Lockstep

let rewards: [Float] = [1, 0, 0, 0, 1, 1, 1, 0]
let lengths = [700, 900, 950, 1000, 400, 600, 980, 1000]

func show(_ name: String, _ values: [Double]) {
    print(
        name.padding(toLength: 14, withPad: " ", startingAt: 0)
            + values.map { String(format: " %7.4f", $0) }.joined())
}

for (estimator, name) in [
    (AdvantageEstimator.grpo, "grpo"), (.drGRPO, "dr_grpo"), (.leaveOneOut, "leave_one_out"),
] {
    let found = try advantages(
        rewards: rewards, groups: [0, 0, 0, 0, 1, 1, 1, 1], options: AdvantageOptions(estimator))
    show(name, found)
}
show("overlong", try lengths.map { try overlongPenalty(length: $0, maxLength: 1000, buffer: 200) })
