// A log of two engines: written one sequence a call, read back in batches, measured as it is read.
import Foundation
import Lockstep

let (sequences, length, prompt) = (20, 500, 100)
let path = "log.lockstep"

/// Some value in [-0.5, 0.5), the same in every language.
func value(_ i: Int) -> Float {
    var x = UInt32(i) &* 2_654_435_761
    x = (x ^ x >> 15) &* 2_246_822_519
    return Float((x ^ x >> 13) >> 8) * 0x1p-24 - 0.5
}

try? FileManager.default.removeItem(atPath: path)
var header = LogHeader()
header.model = "example-0.1B"
header.rollout = .init(name: "vLLM", body: "bf16")
header.temperature = 1
header.logProbMode = .raw
let writer = try LogWriter(path: path, header: header)
for s in 0..<sequences {
    var sequence = LogSequence(id: UInt64(s), step: Int64(s / 10), promptTokens: prompt)
    let half = (0..<length).map { value(s * length + $0) + 0.5 }
    let mask = (0..<length).map { $0 >= prompt }
    let rollout = (0..<length).map { mask[$0] ? -8 * half[$0] * half[$0] : 0 }
    sequence.tokenIDs = half.map { Int32($0 * 50000) }
    sequence.mask = mask
    sequence.rollout = rollout
    sequence.trainer = (0..<length).map {
        rollout[$0] + (mask[$0] ? 0.03125 * half[$0] * value(s * length + $0 + 1_000_000) : 0)
    }
    try writer.append(sequence)
}
try writer.close()

let reader = try LogReader(path: path)
print(
    "\(reader.header.model!), sampled by \(reader.header.rollout.name!) in \(reader.header.rollout.body!) at "
        + "temperature \(String(format: "%g", reader.header.temperature!))")
while true {
    let batch = try reader.next(maxTokens: 6000)
    if batch.sequences == 0 { break }
    let found = try batch.withPair { (pair) throws(LockstepError) in try pair.mismatch() }
    print(
        "\(batch.sequences) sequences from id \(batch.ids[0]), \(found.tokens) tokens that count, k3 "
            + String(format: "%.4g", found.k3.value))
}
print("\(reader.summary.tokens) tokens, closed: \(reader.summary.isClosed ? "yes" : "no")")
// FNV-1a of the file: the same bytes in every language.
let bytes = try Data(contentsOf: URL(fileURLWithPath: path))
let hash = bytes.reduce(UInt32(2_166_136_261)) { ($0 ^ UInt32($1)) &* 16_777_619 }
print(
    String(
        format: "%.2f bytes a token, file hash %08x", Double(bytes.count) / Double(reader.summary.tokens),
        hash))
try FileManager.default.removeItem(atPath: path)
