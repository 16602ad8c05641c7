import Testing

@testable import Lockstep

@Suite struct FormatsTypesTests {
    /// The known-answer vectors of the authors' Random123 distribution (kat_vectors, philox4x32 10).
    @Test func philoxGivesItsPublishedNumbers() {
        #expect(
            Philox4x32(seed: 0).block(0) == SIMD4(0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8))
        #expect(
            Philox4x32(seed: .max).block(.max, high: .max)
                == SIMD4(0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd))
        #expect(
            Philox4x32(seed: 0x299f_31d0_a409_3822).block(0x85a3_08d3_243f_6a88, high: 0x0370_7344_1319_8a2e)
                == SIMD4(0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1))
        #expect(Philox4x32(seed: 5).word(4 * 77 + 2) == Philox4x32(seed: 5).block(77)[2])
    }

    /// The scalar conversion against the one the Swift compiler generates.
    @Test func float16EqualsTheCompilers() {
        for pattern in 0...UInt16.max {
            let half = Float16(bitPattern: pattern)
            let wide = Float(nearest: half)
            #expect(wide == Float(half) || (wide.isNaN && half.isNaN))
            let back = Float16(nearest: wide)
            #expect(back.bitPattern == (half.isNaN ? pattern | 0x200 : pattern))
        }
        let random = Philox4x32(seed: 4)
        for index in 0..<200_000 as Range<UInt64> {
            // Exponents in and around those fp16 has.
            let bits = random.word(index) & 0x8fff_ffff | 0x3000_0000
            let value = Float(bitPattern: bits)
            #expect(Float16(nearest: value).bitPattern == Float16(value).bitPattern)
            let wide = Double(value) * (1 + 0x1p-40)
            #expect(Float16(nearest: wide).bitPattern == Float16(wide).bitPattern)
            #expect(Float(nearest: wide).bitPattern == Float(wide).bitPattern)
        }
    }

    @Test func roundingHappensOnce() {
        // Just above halfway between 1 and 1 + 2^-10: through fp32 it would become the tie, and go to 1.
        let value = 1 + 0x1p-11 + 0x1p-40
        #expect(Float16(nearest: value) == 1 + 0x1p-10)
        #expect(Float16(Float(value)) == 1)
        #expect(BFloat16(1 + 0x1p-8 + 0x1p-40).bitPattern == 0x3f81)
        #expect(FP8E4M3FN(1 + 0x1p-4 + 0x1p-40).bitPattern == 0x39)
    }

    @Test func endsOfEachFormat() {
        #expect(Float(BFloat16(bitPattern: 0x7f7f)) == 0x1.fep127)
        #expect(Float(BFloat16(bitPattern: 1)) == 0x1p-133)
        #expect(Float(FP8E4M3FN(bitPattern: 0x7e)) == 448)
        #expect(Float(FP8E4M3FN(bitPattern: 1)) == 0x1p-9)
        #expect(Float(FP8E4M3FN(bitPattern: 0xff)).isNaN)
        #expect(FP8E4M3FN(464 as Float).bitPattern == 0x7e)
        #expect(FP8E4M3FN((464 as Float).nextUp).bitPattern == 0x7f)
        #expect(FP8E4M3FN(-Float.infinity).bitPattern == 0xff)
        #expect(Float(FP8E5M2(bitPattern: 0x7b)) == 57_344)
        #expect(Float(FP8E5M2(bitPattern: 1)) == 0x1p-16)
        #expect(FP8E5M2(61_440 as Float).bitPattern == 0x7c)
        #expect(FP8E5M2((61_440 as Float).nextDown).bitPattern == 0x7b)
        #expect(BFloat16(Float.greatestFiniteMagnitude).bitPattern == 0x7f80)
        #expect(BFloat16(-0.0 as Float).bitPattern == 0x8000)
        #expect(Double(FP8E5M2(bitPattern: 0xfc)) == -.infinity)
    }

    @Test func valuesCompareAsNumbers() {
        #expect(BFloat16(bitPattern: 0) == BFloat16(bitPattern: 0x8000))
        #expect(BFloat16(bitPattern: 0x7fc0) != BFloat16(bitPattern: 0x7fc0))
        #expect(FP8E4M3FN(bitPattern: 0) == FP8E4M3FN(bitPattern: 0x80))
        #expect(FP8E5M2(bitPattern: 0x7f) != FP8E5M2(bitPattern: 0x7f))
        #expect(FP8E4M3FN(1.5 as Float).description == "1.5")
    }

    @Test func ulpDistanceCountsSteps() {
        #expect((1 as Float).ulpDistance(to: (1 as Float).nextUp.nextUp) == 2)
        #expect((0 as Double).ulpDistance(to: -0.0) == 0)
        #expect((-Double.leastNonzeroMagnitude).ulpDistance(to: .leastNonzeroMagnitude) == 2)
        #expect(Float.greatestFiniteMagnitude.ulpDistance(to: .infinity) == 1)
        #expect(Double.infinity.ulpDistance(to: -.infinity) == 0xffe0_0000_0000_0000 as UInt64)
        #expect(Float.nan.ulpDistance(to: Float(bitPattern: 0xff81_2345)) == 0)
        #expect(Float.nan.ulpDistance(to: 1) == .max)
        #expect(FP8E4M3FN(bitPattern: 0x7f).ulpDistance(to: FP8E4M3FN(bitPattern: 0x7e)) == .max)
        #expect(FP8E4M3FN(bitPattern: 0x7e).ulpDistance(to: FP8E4M3FN(bitPattern: 0xfe)) == 2 * 0x7e)
    }

    @Test func ulpDistanceOfArraysEqualsThatOfValues() throws {
        let count = 3 * 3000
        let random = Philox4x32(seed: 8)
        let a = (0..<count).map { UInt16(truncatingIfNeeded: random.word(UInt64($0))) }
        let b = (0..<count).map { UInt16(truncatingIfNeeded: random.word(UInt64($0)) >> 16) }
        for (format, distance) in [
            (Format.fp16, { Float16(bitPattern: $0).ulpDistance(to: Float16(bitPattern: $1)) }),
            (.bf16, { BFloat16(bitPattern: $0).ulpDistance(to: BFloat16(bitPattern: $1)) }),
        ] as [(Format, (UInt16, UInt16) -> UInt64)] {
            var found = [UInt64](repeating: 0, count: count)
            try a.withUnsafeBytes { left in
                try b.withUnsafeBytes { right in
                    try found.withUnsafeMutableBufferPointer { out in
                        // b is read transposed.
                        try ulpDistance(
                            TensorView(left.baseAddress, format, shape: [3000, 3]),
                            TensorView(right.baseAddress, format, shape: [3000, 3], strides: [1, 3000]),
                            into: out.baseAddress)
                    }
                }
            }
            let wanted = (0..<count).map { distance(a[$0], b[$0 % 3 * 3000 + $0 / 3]) }
            #expect(found == wanted)
        }
    }

    @Test func ulpDistanceRefusesWhatDoesNotFit() {
        var memory = [UInt64](repeating: 7, count: 8)
        memory.withUnsafeMutableBufferPointer { out in
            let base = UnsafeRawPointer(out.baseAddress!)
            let a = TensorView(base + 32, .fp32, shape: [2])
            for (b, target) in [
                (TensorView(base + 48, .fp16, shape: [2]), out.baseAddress),
                (TensorView(base + 48, .fp32, shape: [3]), out.baseAddress),
                (TensorView(base + 48, .fp32, shape: [2]), out.baseAddress! + 4),
                (TensorView(base + 48, .fp32, shape: [2]), nil),
            ] {
                let error = #expect(throws: LockstepError.self) { try ulpDistance(a, b, into: target) }
                #expect(error?.kind == .invalidArgument)
            }
        }
        #expect(memory.allSatisfy { $0 == 7 })
    }
}
