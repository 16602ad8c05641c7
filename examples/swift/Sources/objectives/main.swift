// A policy step in parts: GRPO's clipped objective on two micro-batches, with the loss of the whole.
import Foundation
import Lockstep

let (sequences, length) = (6, 100)
let tokens = sequences * length

/// Some value in [-0.5, 0.5), the same in every language.
func value(_ i: Int) -> Float {
    var x = UInt32(i) &* 2_654_435_761
    x = (x ^ x >> 15) &* 2_246_822_519
    return Float((x ^ x >> 13) >> 8) * 0x1p-24 - 0.5
}

let trainer = (0..<tokens).map { value($0) - 0.5 }
let current = (0..<tokens).map { trainer[$0] + value(tokens + $0) }
let advantages: [Double] = [1, -1, 0.5, -0.5, 2, -2]

let options = ObjectiveOptions(.clip, aggregation: .seqMeanTokenMean, low: 0.8, high: 1.28)
let objective = try Objective(options)

/// Lends some of the sequences to `body` as a batch.
func withBatch(_ rows: Range<Int>, _ body: (TokenBatch) throws(LockstepError) -> Void) throws {
    func matrix(_ values: [Float]) throws -> Matrix<Float> {
        try Matrix(
            rows: rows.count, columns: length,
            Array(values[rows.lowerBound * length..<rows.upperBound * length]))
    }
    let (current, trainer) = (try matrix(current), try matrix(trainer))
    try current.withView { (current) throws(LockstepError) in
        try trainer.withView { (trainer) throws(LockstepError) in
            try Array(advantages[rows]).withVectorView { (advantages) throws(LockstepError) in
                var batch = TokenBatch(layout: try SequenceLayout(rows: rows.count, columns: length))
                (batch.current, batch.trainer) = (current, trainer)
                batch.advantages = .perSequence(advantages)
                try body(batch)
            }
        }
    }
}

for rows in [0..<4, 4..<6] {  // first what the denominators count, ...
    try withBatch(rows) { (batch) throws(LockstepError) in try objective.count(batch) }
}
for rows in [0..<4, 4..<6] {  // ... then loss and gradient
    var gradient = try Matrix(
        rows: rows.count, columns: length, [Float](repeating: 0, count: rows.count * length))
    try withBatch(rows) { (batch) throws(LockstepError) in
        try gradient.withMutableView { (view) throws(LockstepError) in
            try objective.evaluate(batch, gradient: view)
        }
    }
    print(
        String(
            format: "d loss / d log-prob of %d sequences: %.9f, %.9f", rows.count, gradient[0, 0],
            gradient[0, 1]))
}

let report = objective.report()
print(
    String(format: "loss %.9f over %d tokens of %d sequences", report.loss, report.tokens, report.sequences))
print(String(format: "ratio %.4f to %.4f, mean %.4f", report.ratioMin, report.ratioMax, report.ratioMean))
print(String(format: "clipped %.1f %% below, %.1f %% above", 100 * report.clipLow, 100 * report.clipHigh))
// Whole sequences may be given as arrays, too.
let whole = try objectiveLoss(
    (0..<sequences).map { row in
        let tokens = row * length..<(row + 1) * length
        return ObjectiveSequence(
            current: Array(current[tokens]), trainer: Array(trainer[tokens]), advantage: advantages[row])
    }, options: options)
print("the whole at once: \(whole.report.loss == report.loss ? "the same bits" : "another loss")")
