// A loss scaler is a state machine: told of each step whether a gradient overflowed, it says whether to skip the step,
// and moves the scale as its original does. Saved in the middle it goes on as if nothing had happened.
import Foundation
import Lockstep

let overflows = [1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0].map { $0 == 1 }

for name in ["torch", "deepspeed", "megatron"] {
    var options = try LossScalerOptions(named: name)
    options.initialScale = 1024
    options.growthInterval = 3
    var scaler = try LossScaler(options)
    print("\(name):", terminator: "")
    for (step, overflow) in overflows.enumerated() {
        // As with a checkpoint.
        if step == overflows.count / 2 { scaler = try LossScaler(bytes: scaler.bytes) }
        let report = scaler.update(foundNonFinite: overflow)
        print(String(format: " %.0f", report.scale) + (report.skip ? " (skip)" : ""), terminator: "")
    }
    let report = scaler.report
    print("; \(report.skipped) of \(report.steps) skipped, \(report.growths) growths")
}

// What a scaler would have done with the largest gradients of a recorded run.
var scaler = try LossScaler()
let scales = [0.2, 0.3, 1.5, 0.1, 0.1, 40.0, 0.2, 0.1].map { largest in
    let scale = scaler.scale
    scaler.update(foundNonFinite: largest * scale >= 65520)
    return String(format: "%.0f", scale)
}
print(
    "replayed: \(scales.joined(separator: " ")); \(scaler.report.skipped) skipped,",
    "the last is step \(scaler.report.lastSkipped ?? -1)")
