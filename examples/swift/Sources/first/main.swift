import Foundation
import Lockstep

let logits = try Matrix<Float>(rows: 2, columns: 4, [1, 2, 3, 4, 0, 0, 8, 0])
let trainer = try logProbs(logits: logits, targets: [3, 2]).logProbs
let found = try mismatch(trainer: [trainer], rollout: [[Float(-0.45), -0.001]])
print(String(format: "log-probs %.6f %.6f", trainer[0], trainer[1]))
print(
    String(
        format: "mean |log ratio| %.6f, k3 %.3e", found.meanAbsLogRatio.value, found.k3.value))
