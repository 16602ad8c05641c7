import Foundation
import Lockstep

// Weights and mask of a correction: token ratios truncated at 2 (TIS), and a sequence left out if one of its
// tokens is all but impossible for the trainer (a veto).
let trainer: [[Double]] = [[-0.10, -1.20, -0.05], [-2.30, -0.70], [-0.40, -9.90, -0.30, -1.10]]
let rollout: [[Double]] = [[-0.11, -2.20, -0.05], [-2.25, -0.72], [-0.38, -0.20, -0.30, -1.00]]
let veto = Rejection(.ratio, .sequenceEvery, low: 1e-4)
let found = try correct(
    trainer: trainer, rollout: rollout, options: CorrectionOptions(high: 2, rejections: [veto]))

for (weights, kept) in zip(found.weights, found.kept) {
    let row = zip(weights, kept).map { String(format: "%.4f%@", $0, $1 ? "" : " out") }
    print(row.joined(separator: "  "))
}
let report = found.report
print(
    "\(report.above) of \(report.tokens) truncated, \(report.rejectedSequences) of \(report.sequences) "
        + "sequences out")
print(
    String(
        format: "mean ratio %.4f, mean weight %.4f, of those kept %.4f", report.ratio.mean,
        report.weight.mean, report.keptWeight.mean))
