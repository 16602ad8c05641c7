// Early warning: a training loop whose two engines begin to drift apart at step 80, and one call a step
// that says so.
import Foundation
import Lockstep

let (tokens, steps, driftsFrom) = (4000, 200, 80)

/// Some value in [-0.5, 0.5), the same in every language.
func value(_ i: Int) -> Float {
    var x = UInt32(i) &* 2_654_435_761
    x = (x ^ x >> 15) &* 2_246_822_519
    return Float((x ^ x >> 13) >> 8) * 0x1p-24 - 0.5
}

/// What your trainer has at a step: both engines' log-probs of the tokens that were sampled.
func sample(_ step: Int) -> (trainer: [Float], rollout: [Float]) {
    let noise = 0.125 * (1 + 0.03125 * Float(max(step - driftsFrom, 0)))
    let halves = (0..<tokens).map { value(step * tokens + $0) + 0.5 }
    let rollout = halves.map { -8 * $0 * $0 }
    let trainer = (0..<tokens).map {
        rollout[$0] + noise * halves[$0] * value(step * tokens + $0 + 1_000_000)
    }
    return (trainer, rollout)
}

var monitor = try MismatchMonitor()
var alarm: MonitorAlarm?
for step in 0..<steps {
    let (trainer, rollout) = sample(step)
    let found = try mismatch(trainer: [trainer], rollout: [rollout])
    let now = try monitor.update(step: step, found)
    if now.level != alarm?.level { print(String(format: "step %3d:", step), now.level) }
    alarm = now
    if now.level == .alarm { break }  // look before the reward falls
}
let found = alarm!
let name = found.statistic == .maxAbsLogRatio ? "max_abs_log_ratio" : "\(found.statistic)"
print(
    name, String(format: "is %.4g, its floor %.4g,", found.value, found.floor),
    "growing since step \(found.since!)")
print(String(format: "score %.1f, an alarm from %.1f on", found.score, found.threshold))
