// How far apart are two engines? Here the trainer's log-probs are the rollout's, stored in 16 bits:
// what BF16 costs against FP16, before any arithmetic differs.
import Foundation
import Lockstep

let (sequences, length) = (8, 500)

/// Some value in [-0.5, 0.5), the same in every language.
func value(_ i: Int) -> Float {
    var x = UInt32(i) &* 2_654_435_761
    x = (x ^ x >> 15) &* 2_246_822_519
    return Float((x ^ x >> 13) >> 8) * 0x1p-24 - 0.5
}

let rollout = (0..<sequences).map { sequence in
    (0..<length).map { position -> Float in
        let half = value(sequence * length + position) + 0.5
        return -8 * half * half
    }
}

func measure<Stored: StorageFormat>(_ format: Stored.Type) throws -> Mismatch {
    try Lockstep.mismatch(
        trainer: rollout.map { try convert($0, to: format).values }, rollout: rollout)
}

let b = try measure(BFloat16.self)
let f = try measure(Float16.self)

func line(_ name: String, _ bf16: Double, _ fp16: Double) {
    print(
        name.padding(toLength: 32, withPad: " ", startingAt: 0), String(format: "%12.4g %12.4g", bf16, fp16))
}
print("\(b.tokens) tokens in \(b.sequences) sequences            bf16         fp16")
line("mean |log ratio|", b.meanAbsLogRatio.value, f.meanAbsLogRatio.value)
line("max |log ratio|", b.maxAbsLogRatio, f.maxAbsLogRatio)
line("KL(rollout || trainer), k3", b.k3.value, f.k3.value)
line("tokens that differ", b.shareDiffering.value, f.shareDiffering.value)
line("effective sample size, sequences", b.sequenceESS, f.sequenceESS)
print(
    String(
        format: "FP16 is %.1f times nearer a token, %.0f times in KL",
        b.meanAbsLogRatio.value / f.meanAbsLogRatio.value, b.k3.value / f.k3.value))
