@testable import Lockstep

/// Seeded values of tests: the same on every machine.
struct Random: RandomNumberGenerator {
    private var state: UInt64

    init(_ seed: UInt64) { state = seed &* 0x9E37_79B9_7F4A_7C15 &+ 1 }

    mutating func next() -> UInt64 {
        state ^= state << 13
        state ^= state >> 7
        state ^= state << 17
        return state
    }

    /// Roughly normal values.
    mutating func normal(_ count: Int, scale: Float = 1) -> [Float] {
        (0..<count).map { _ in
            scale * (0..<6).reduce(Float(0)) { sum, _ in sum + Float.random(in: -1...1, using: &self) }
        }
    }
}

/// Values stored in a format, as a buffer the kernels read, and what they are once widened.
struct Stored {
    let bytes: [UInt8]
    let values: [Float]
    let format: Format

    init(_ source: [Float], _ format: Format) {
        self.format = format
        switch format {
        case .fp16:
            let stored = source.map { Float16($0) }
            values = stored.map(Float.init)
            bytes = stored.withUnsafeBytes(Array.init)
        case .bf16:
            let stored = source.map { BFloat16($0).bitPattern }
            values = stored.map { Float(BFloat16(bitPattern: $0)) }
            bytes = stored.withUnsafeBytes(Array.init)
        default:
            values = source.map { ReferenceFormats.rounded($0, format) }
            bytes = values.withUnsafeBytes(Array.init)
        }
    }

    /// The values as rows of `columns`.
    func rows(_ columns: Int) -> [[Float]] {
        stride(from: 0, to: values.count, by: max(columns, 1)).map { Array(values[$0..<$0 + columns]) }
    }

    func withMatrix<Result>(rows: Int, columns: Int, _ body: (MatrixView) throws -> Result) rethrows -> Result
    {
        try bytes.withUnsafeBytes {
            try body(MatrixView($0.baseAddress, format, rows: rows, columns: columns))
        }
    }
}

/// A copy of the values that stays where it is for as long as the tests run: no view of it can dangle.
func pinned<Value: BitwiseCopyable>(_ values: [Value]) -> UnsafeMutableBufferPointer<Value> {
    let copy = UnsafeMutableBufferPointer<Value>.allocate(capacity: values.count)
    _ = copy.initialize(from: values)
    return copy
}

/// The instruction sets this machine can run.
let instructionSets = InstructionSet.allCases.filter(\.isAvailable)

let logitFormats: [Format] = [.fp32, .fp16, .bf16]

/// The formats values of a model are stored in: a few of the emulated ones for all.
let layerFormats: [Format] = logitFormats + ["e8m1", "e8m5", "e8m23", "e5m1", "e5m4"].map { Format($0)! }
