import CLockstepKernels
import Testing

@testable import Lockstep

/// Inputs on which narrowing is hard, as bit patterns of a source format.
enum Patterns {
    /// Every value of each narrower format, every midpoint between neighbours, and both again one step of
    /// the source to each side: fp32 with all combinations of its upper 19 bits (sign, exponent, ten bits
    /// of mantissa; a fp16 has no more), and lower bits at and around zero and one half.
    static let fp32: [UInt32] = (0..<1 << 19).flatMap { (upper: UInt32) in
        [0, 1, 0xfff, 0x1000, 0x1001, 0x1fff].map { upper << 13 | $0 }
    }

    /// The same for fp64.
    ///
    /// The exponents fp32 has, eleven bits of mantissa, so that midpoints of fp16 are there, and lower bits
    /// at and around zero. Then around values and midpoints of fp32, and the ends.
    static let fp64: [UInt64] = {
        var patterns: [UInt64] = []
        for sign in [0, 1 as UInt64] {
            for exponent in UInt64(1023 - 155)...(1023 + 129) {
                for upper in 0..<2048 as Range<UInt64> {
                    let base = sign << 63 | exponent << 52 | upper << 41
                    patterns += [base, base + 1, base + (1 << 41 - 1)]
                }
            }
        }
        let random = Philox4x32(seed: 1)
        for index in 0..<200_000 as Range<UInt64> {
            let value = Double(Float(bitPattern: random.word(index)))
            if value.isFinite {
                let exact = value.bitPattern
                patterns += [exact, exact + 1, exact ^ 1 << 28, (exact ^ 1 << 28) + 1, (exact ^ 1 << 28) - 1]
            }
            // Any double at all: most are far outside the narrower formats.
            patterns.append(UInt64(random.word(index)) << 32 | UInt64(random.word(index + 1 << 40)))
        }
        // Signed: zero, the subnormals' ends, infinity, NaNs quiet and signalling, the largest.
        for bits in [0, 1, 0xf_ffff_ffff_ffff, 0x10_0000_0000_0000] as [UInt64] {
            for upper in [0, 0x7fe, 0x7ff] as [UInt64] {
                patterns += [bits | upper << 52, bits | upper << 52 | 1 << 63]
            }
        }
        patterns += [0x7ff8_0000_0000_0000, 0xfff4_5678_9abc_def0, 0x7fef_ffff_ffff_ffff]
        return patterns
    }()

    /// The patterns for `format` as bytes; for 8 and 16 bits, every one.
    static func bytes(_ format: Format) -> [UInt8] {
        switch format {
        case .fp64: fp64.withUnsafeBytes { Array($0) }
        case .fp32: fp32.withUnsafeBytes { Array($0) }
        case .fp16, .bf16: Array(0...UInt16.max).withUnsafeBytes { Array($0) }
        default: Array(0...UInt8.max)
        }
    }
}

let roundings: [Rounding] = [
    .nearestEven, .towardZero, .stochastic(seed: 0x1234_5678_9abc_def0, firstIndex: 1 << 33 + 5),
]

/// The conversion of contiguous bytes by `body`, with its counts.
func converted(
    _ input: [UInt8], _ source: Format, _ destination: Format,
    _ body: (TensorView, MutableTensorView) throws -> ConversionCounts
) rethrows -> (bytes: [UInt8], counts: ConversionCounts) {
    let count = input.count / source.byteCount
    var output = [UInt8](repeating: 0xa5, count: count * destination.byteCount)
    let counts = try input.withUnsafeBytes { from in
        try output.withUnsafeMutableBytes { to in
            try body(
                TensorView(from.baseAddress, source, shape: [count]),
                MutableTensorView(to.baseAddress, destination, shape: [count]))
        }
    }
    return (output, counts)
}

@Suite struct FormatsConvertTests {
    @Test(arguments: Format.stored, Format.stored)
    func kernelsEqualReference(_ source: Format, _ destination: Format) throws {
        let input = Patterns.bytes(source)
        for rounding in roundings {
            let wanted = converted(input, source, destination) {
                ReferenceFormats.convert($0, into: $1, rounding: rounding)
            }
            for set in InstructionSet.allCases where set.isAvailable {
                let found = try converted(input, source, destination) {
                    try convert(
                        $0, into: $1, rounding: rounding,
                        execution: Execution(threads: 2, instructionSet: set))
                }
                #expect(found.bytes == wanted.bytes, "\(source) to \(destination), \(rounding), \(set)")
                #expect(found.counts == wanted.counts, "\(source) to \(destination), \(rounding), \(set)")
            }
        }
    }

    @Test(arguments: InstructionSet.allCases.filter(\.isAvailable))
    func everyLengthAndStartGivesTheBitsOfTheWhole(_ set: InstructionSet) throws {
        let values = (0..<300).map { Float($0) * 0.37 - 41 }
        let execution = Execution(threads: 1, instructionSet: set)
        let whole: [BFloat16] = try convert(
            values, to: BFloat16.self, rounding: .stochastic(seed: 3), execution: execution
        ).values
        for start in 0..<20 {
            for end in [start, start + 1, start + 3, start + 17, start + 63, start + 64, 300] {
                let part: [BFloat16] = try convert(
                    Array(values[start..<end]), to: BFloat16.self,
                    rounding: .stochastic(seed: 3, firstIndex: UInt64(start)), execution: execution
                ).values
                #expect(part.map(\.bitPattern) == whole[start..<end].map(\.bitPattern))
            }
        }
    }

    @Test func threadsDoNotChangeBits() throws {
        let values = (0..<400_000).map { Float(bitPattern: Philox4x32(seed: 9).word(UInt64($0))) }
        for rounding in roundings {
            let one = try convert(
                values, to: Float16.self, rounding: rounding, execution: Execution(threads: 1))
            for threads in [2, 3, 7] {
                let many = try convert(
                    values, to: Float16.self, rounding: rounding, execution: Execution(threads: threads))
                #expect(many.values.map(\.bitPattern) == one.values.map(\.bitPattern))
                #expect(many.counts == one.counts)
            }
        }
    }

    @Test func anyStridesEqualReference() throws {
        // Shape, strides of the source, strides of the destination, and where index 0 lies in each.
        let cases: [(shape: [Int], from: [Int], to: [Int], fromStart: Int, toStart: Int)] = [
            ([40, 50], [1, 40], [50, 1], 0, 0),  // a transpose
            ([40, 50], [50, 1], [1, 40], 0, 0),
            ([40, 50], [70, 1], [64, 1], 3, 5),  // rows of a wider matrix
            ([2000], [-1], [1], 1999, 0),  // reversed
            ([2000], [0], [2], 7, 1),  // one value for all
            ([3, 1, 5, 7, 11], [1, 99, 3, 15, 105], [385, -4, 77, 11, 1], 0, 0),
            (
                [2, 2, 2, 2, 2, 2, 2, 3], [1, 2, 4, 8, 16, 32, 64, 128], [192, 96, 48, 24, 12, 6, 3, 1], 0, 0
            ),
            ([5000], [2], [3], 0, 0),
            ([1, 1], [9, 9], [0, 0], 4, 4),
        ]
        let random = Philox4x32(seed: 2)
        let source = (0..<100_000).map { UInt8(truncatingIfNeeded: random.word(UInt64($0))) }
        for (shape, from, to, fromStart, toStart) in cases {
            for (sourceFormat, destinationFormat) in [
                (Format.fp64, Format.e4m3fn), (.fp16, .fp32), (.bf16, .fp16),
            ] {
                for rounding in roundings {
                    var outputs = [[UInt8]](repeating: [UInt8](repeating: 0xa5, count: 100_000), count: 2)
                    var counts: [ConversionCounts] = []
                    try source.withUnsafeBytes { input in
                        let view = TensorView(
                            input.baseAddress! + fromStart * sourceFormat.byteCount, sourceFormat,
                            shape: shape, strides: from)
                        for index in 0..<2 {
                            try outputs[index].withUnsafeMutableBytes { output in
                                let target = MutableTensorView(
                                    output.baseAddress! + toStart * destinationFormat.byteCount,
                                    destinationFormat, shape: shape, strides: to)
                                counts.append(
                                    index == 0
                                        ? ReferenceFormats.convert(view, into: target, rounding: rounding)
                                        : try convert(view, into: target, rounding: rounding))
                            }
                        }
                    }
                    #expect(outputs[0] == outputs[1], "\(shape) \(from) \(to) \(rounding)")
                    #expect(counts[0] == counts[1])
                }
            }
        }
    }

    /// A host that flushes subnormals and rounds toward zero gets the same bits, and its mode back.
    @Test(arguments: InstructionSet.allCases.filter(\.isAvailable))
    func modeOfTheHostChangesNothing(_ set: InstructionSet) throws {
        #if arch(x86_64)
            let hostile: UInt64 = 0x1f80 | 0x8040 | 0x6000  // FTZ, DAZ, toward zero
        #else
            let hostile: UInt64 = 1 << 24 | 3 << 22  // FZ, toward zero
        #endif
        let values = Patterns.fp32.map { Float(bitPattern: $0) }
        let execution = Execution(threads: 2, instructionSet: set)
        let halves = (0...UInt16.max).map { Float16(bitPattern: $0) }
        let narrow = try convert(values, to: Float16.self, execution: execution).values
        let wide = try convert(halves, to: Float.self, execution: execution).values
        let found = lsk_float_mode_enter()
        lsk_float_mode_leave(hostile)
        let narrowAgain = try convert(values, to: Float16.self, execution: execution).values
        let wideAgain = try convert(halves, to: Float.self, execution: execution).values
        let scalar = FP8E5M2(0x1p-16 as Float).bitPattern
        let after = lsk_float_mode_enter()
        lsk_float_mode_leave(found)
        #expect(after & ~0x3f == hostile)  // but for the sticky exception flags
        #expect(scalar == 1)
        #expect(narrowAgain.map(\.bitPattern) == narrow.map(\.bitPattern))
        #expect(wideAgain.map(\.bitPattern) == wide.map(\.bitPattern))
    }

    @Test func inPlaceWhenSizesAreEqual() throws {
        var values = Array(0...UInt16.max)
        let wanted = try convert(values.map { Float16(bitPattern: $0) }, to: BFloat16.self).values
        try values.withUnsafeMutableBytes { bytes in
            _ = try convert(
                TensorView(bytes.baseAddress, .fp16, shape: [65_536]),
                into: MutableTensorView(bytes.baseAddress, .bf16, shape: [65_536]))
        }
        #expect(values == wanted.map(\.bitPattern))
    }

    @Test func sharedMemoryIsRefused() throws {
        var values = [Float](repeating: 1.5, count: 64)
        values.withUnsafeMutableBytes { bytes in
            let base = bytes.baseAddress!
            func refused(
                _ source: TensorView, _ destination: MutableTensorView, _ word: String,
                at location: SourceLocation = #_sourceLocation
            ) {
                let error = #expect(throws: LockstepError.self, sourceLocation: location) {
                    try convert(source, into: destination)
                }
                #expect(error?.kind == .invalidArgument, sourceLocation: location)
                #expect(error?.message.contains(word) == true, sourceLocation: location)
            }
            let whole = TensorView(base, .fp32, shape: [8])
            refused(whole, MutableTensorView(base, .fp16, shape: [8]), "overlaps source")
            refused(whole, MutableTensorView(base + 4, .fp32, shape: [8]), "overlaps source")
            refused(whole, MutableTensorView(base + 28, .fp32, shape: [8], strides: [-1]), "overlaps source")
            refused(whole, MutableTensorView(base + 128, .fp32, shape: [8], strides: [0]), "share memory")
            refused(
                TensorView(base, .fp32, shape: [3, 3]),
                MutableTensorView(base + 128, .fp32, shape: [3, 3], strides: [2, 1]), "share memory")
            refused(whole, MutableTensorView(base + 128, .fp32, shape: [2, 4]), "shape")
            refused(whole, MutableTensorView(nil, .fp32, shape: [8]), "no memory")
            refused(
                TensorView(base, .fp32, shape: [-1]), MutableTensorView(base + 128, .fp32, shape: [-1]),
                "shape[0]")
            refused(
                TensorView(base, .fp32, shape: [8], strides: [1, 1]),
                MutableTensorView(base + 128, .fp32, shape: [8]), "strides")
        }
        #expect(values.allSatisfy { $0 == 1.5 })
        #expect(throws: LockstepError.self) {
            try convert(
                [1, 2] as [Float], to: Float16.self, rounding: .stochastic(seed: 0, firstIndex: .max))
        }
        #expect(throws: LockstepError.self) {
            try convert([1] as [Float], to: Float16.self, execution: Execution(threads: -1))
        }
    }

    @Test func nothingIsNotAnError() throws {
        let result = try convert([] as [Double], to: FP8E5M2.self)
        #expect(result.values.isEmpty && result.counts == ConversionCounts())
        try convert(
            TensorView(nil, .fp16, shape: [3, 0, 2]), into: MutableTensorView(nil, .fp32, shape: [3, 0, 2]))
    }

    @Test func stochasticRoundingIsUnbiased() throws {
        // Between 1 and 1 + 2^-7, a quarter of the way: up in one case of four. The standard deviation of
        // the share is sqrt(3/16/n) = 0.00068.
        let count = 400_000
        let values = [Float](repeating: 1 + 0.25 / 128, count: count)
        let result = try convert(values, to: BFloat16.self, rounding: .stochastic(seed: 11)).values
        let up = result.count { $0.bitPattern == 0x3f81 }
        #expect(result.allSatisfy { $0.bitPattern == 0x3f80 || $0.bitPattern == 0x3f81 })
        #expect(abs(Double(up) / Double(count) - 0.25) < 5 * 0.00068)
    }
}
