// Steps of FP16 training, by hand: a scaled backward pass, the scaler's verdict, clipping, AdamW. The first loss scale is
// too large on purpose. Gradients are exact sums: how a batch is cut leaves no trace. usage: training FOLDER
import Foundation
import Lockstep

guard CommandLine.arguments.count == 2 else { fatalError("usage: training FOLDER") }
let (sequences, promptLength, length) = (8, 3, 35)

let task = try VerifiableTask("chain")
let tokens = try (0..<sequences).flatMap {
    try task.prompt($0, seed: 1) + task.demonstration($0, seed: 1)
}
// Of the loss, the mean of -ln p over the responses.
let share = 1 / Double(sequences * (length - promptLength))
let dLogProbs = tokens.indices.map { $0 % length < promptLength ? 0 : -share }

let trainer = try Trainer(path: CommandLine.arguments[1], recipe: Recipe(named: "fp16"))
let count = trainer.parameters.count

/// Adds the gradients of some sequences, and returns their part of the loss.
func pass(_ part: Range<Int>, scale: Double) throws -> Double {
    let place = part.lowerBound * length..<part.upperBound * length
    let offsets = (0...part.count).map { Int64($0 * length) }
    let wanted = Array(dLogProbs[place])
    let logProbs = UnsafeMutableBufferPointer<Float>.allocate(capacity: place.count)
    defer { logProbs.deallocate() }
    try Array(tokens[place]).withTokenView { (ids) throws(LockstepError) in
        try offsets.withUnsafeBufferPointer { (offsets) throws(LockstepError) in
            try wanted.withVectorView { (wanted) throws(LockstepError) in
                _ = try trainer.accumulate(
                    tokens: ids,
                    offsets: TokenView(offsets.baseAddress, byteCount: 8, count: offsets.count),
                    LogProbGradients(logProbs: wanted), lossScale: scale,
                    into: BackwardOutputs(
                        logProbs: MutableVectorView(logProbs.baseAddress, .fp32, count: logProbs.count)))
            }
        }
    }
    return zip(wanted, logProbs).reduce(0) { $0 + $1.0 * Double($1.1) }
}

/// What was added, and nothing from then on.
func takeGradients() throws -> [Float] {
    var gradients = [Float](repeating: 0, count: count)
    try gradients.withUnsafeMutableBufferPointer { (buffer) throws(LockstepError) in
        try trainer.gradients(into: buffer)
    }
    trainer.clearGradients()
    return gradients
}

_ = try pass(0..<sequences, scale: 1024)
let whole = try takeGradients()
_ = try pass(5..<sequences, scale: 1024)
_ = try pass(0..<5, scale: 1024)
let isSame = try takeGradients().map(\.bitPattern) == whole.map(\.bitPattern)
print("gradients of one batch and of two parts: \(isSame ? "the same bits" : "different")")

var options = LossScalerOptions(.torch)
options.initialScale = 0x1p25
var scaler = try LossScaler(options)
var firstMoments = [Float](repeating: 0, count: count)
var secondMoments = firstMoments
var settings = AdamWSettings(step: 0, learningRate: 0.001)
settings.options.weightDecay = 0
for step in 1...6 {
    let scale = scaler.scale
    let loss = try pass(0..<sequences, scale: scale)
    let gradients = try takeGradients()  // the scale is out of them already
    let norm = try gradients.withUnsafeBufferPointer { (buffer) throws(LockstepError) in
        try gradientNorm([buffer])
    }
    let start = String(format: "step %d: loss %.6f, scale %.0f,", step, loss, scale)
    if scaler.update(foundNonFinite: !norm.isFinite).skip {
        print(start, "skipped")
        continue
    }
    let clipped = try norm.clipped(maxNorm: 1)
    print(start, String(format: "gradient norm %.6f", clipped.norm))
    settings.step += 1
    settings.gradientScale = clipped.factor
    try trainer.withMasters { (masters) throws(LockstepError) in
        try firstMoments.withUnsafeMutableBufferPointer { (first) throws(LockstepError) in
            try secondMoments.withUnsafeMutableBufferPointer { (second) throws(LockstepError) in
                try gradients.withUnsafeBufferPointer { (gradients) throws(LockstepError) in
                    try adamWStep(
                        masters: masters, firstMoments: first, secondMoments: second, gradients: gradients,
                        settings)
                }
            }
        }
    }
}
let bits = try trainer.withMasters { $0.reduce(UInt64(0)) { $0 + UInt64($1.bitPattern) } }
print("\(count) masters, the sum of their bit patterns is \(bits)")
