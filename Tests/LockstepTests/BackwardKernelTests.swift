import CLockstepKernels
import Testing

@testable import Lockstep

/// The kernels of the backward pass against the reference, bit for bit, on every instruction set.
@Suite struct BackwardKernelTests {
    private static func expect(_ found: [Float], _ wanted: [Float], _ what: String) {
        let isSame = zip(found, wanted).allSatisfy { $0.bitPattern == $1.bitPattern || $0.isNaN && $1.isNaN }
        #expect(isSame && found.count == wanted.count, "\(what)")
    }

    /// Rows a model makes, and extremes.
    private static func rows(_ count: Int, _ seed: UInt64) -> [[Float]] {
        var random = Random(seed)
        let special: [Float] = [
            0, -0.0, 1, -1, 88, -88, -88.5, 87, -87.3, 1e4, -1e4, 1e-40, 3e38, 65_520, .nan,
        ]
        return [
            random.normal(count), random.normal(count, scale: 1e-4), random.normal(count, scale: 60),
            (0..<count).map { special[($0 + Int(seed)) % special.count] },
        ]
    }

    @Test(arguments: LayersTests.counts) func kernelsEqualTheReference(count: Int) {
        let (a, b, w) = (Self.rows(count, 1), Self.rows(count, 5), Self.rows(count, 9))
        for set in instructionSets {
            let k = lsk_kernels_for(set.rawValue).pointee
            for index in a.indices {
                let (x, d, weight, what) = (a[index], b[index], w[0], "\(set) \(count) \(index)")
                var (out, other) = ([Float](repeating: 0, count: count), b[2])
                let dot = k.dot(x, d, count)
                let wanted = ReferenceBackward.dot(x, d)
                #expect(dot == wanted || dot.isNaN && wanted.isNaN, "dot \(what)")

                k.rms_norm_backward(&out, &other, x, d, weight, count, 1e-5)
                let norm = ReferenceBackward.norm(x, d, weight, epsilon: 1e-5, adding: b[2])
                Self.expect(out, norm.dx, "norm \(what)")
                Self.expect(other, norm.dWeight, "norm weight \(what)")

                k.silu_multiply_backward(&out, &other, x, w[index], d, count)
                let silu = (0..<count).map { ReferenceBackward.siluMultiply(x[$0], w[index][$0], d[$0]) }
                Self.expect(out, silu.map(\.gate), "gate \(what)")
                Self.expect(other, silu.map(\.up), "up \(what)")

                k.softmax_backward(&out, x, d, count)
                Self.expect(out, ReferenceBackward.softmax(x, d), "softmax \(what)")

                for format in layerFormats {
                    let stored = ReferenceLayers.stored(x, format)
                    #expect(
                        k.store_rounded(&out, count, format.rawValue, x, count, 1, count)
                            == Int64(stored.nonFinite))
                    Self.expect(out, stored.values, "store \(format) \(what)")
                }
            }
        }
    }

    @Test(arguments: [1, 5, 127, 128, 129, 300], [1, 16, 33, 70]) func columns(rows: Int, count: Int) {
        var random = Random(2)
        let stride = count + 3
        let values = random.normal(rows * stride)
        let wanted = ReferenceBackward.columnSums(
            (0..<rows).map { Array(values[$0 * stride..<$0 * stride + count]) })
        for set in instructionSets {
            var out = [Float](repeating: -7, count: count + 1)
            lsk_kernels_for(set.rawValue).pointee.column_sums(&out, values, stride, rows, count)
            Self.expect(out, wanted + [-7], "\(set)")
        }
    }

    @Test(arguments: [1, 3, 8, 33]) func fixedPointNumbers(count: Int) {
        var random = Random(4)
        for magnitude in [1, 1e-6, 1e-20, 2e5] as [Float] {
            let x = random.normal(count, scale: magnitude / 6)
            for set in instructionSets {
                let k = lsk_kernels_for(set.rawValue).pointee
                for scale in [1, 0.25, 1 / 3] as [Float] {
                    var (high, low) = (
                        [Int64](repeating: 5, count: count + 1), [Int64](repeating: -9, count: count + 1)
                    )
                    #expect(k.fixed_add(&high, &low, x, scale, count) == 0)
                    for index in 0..<count {
                        let wanted = ReferenceBackward.fixed(x[index] * scale)
                        #expect(high[index] == 5 + wanted.high && low[index] == -9 + wanted.low)
                    }
                    #expect(high[count] == 5 && low[count] == -9)
                }
            }
        }
        for set in instructionSets {
            let k = lsk_kernels_for(set.rawValue).pointee
            for (value, refused) in [
                (262_143, 0), (262_144, 1), (-262_144, 1), (.nan, 1), (.infinity, 1), (-.infinity, 1),
            ] as [(Float, Int64)] {
                var (high, low) = ([Int64](repeating: 0, count: count), [Int64](repeating: 0, count: count))
                var x = [Float](repeating: 1, count: count)
                x[count - 1] = value
                #expect(k.fixed_add(&high, &low, x, 1, count) == refused, "\(set) \(value)")
            }
        }
    }

    /// Totals are rounded once, to nearest even: against integers of 128 bits.
    @Test func totalsAreRoundedOnce() {
        func wanted(_ high: Int64, _ low: Int64) -> Float {
            // high 2^50 + low, scaled; its 24 leading bits, by hand.
            let whole = Int128(high) << 50 + Int128(low)
            var magnitude = whole.magnitude
            var exponent = 0
            var lost = false
            while magnitude >= 1 << 25 {
                lost = lost || magnitude & 1 == 1
                magnitude >>= 1
                exponent += 1
            }
            if magnitude >= 1 << 24 {
                let half = magnitude & 1 == 1
                magnitude >>= 1
                exponent += 1
                if half, lost || magnitude & 1 == 1 { magnitude += 1 }
            }
            let value = Float(sign: .plus, exponent: exponent - 70, significand: Float(UInt32(magnitude)))
            return whole < 0 ? -value : value
        }
        var random = Random(6)
        for _ in 0..<20_000 {
            let high = Int64(bitPattern: random.next()) >> Int64(random.next() % 64)
            let low = Int64(random.next() >> 14) >> Int64(random.next() % 50)
            for (high, low) in [
                (high, low), (high, 0), (high & ~0xff_ffff, 1), (high | 0x80, 1 << 49), (0, low), (-1, low),
            ] {
                #expect(GradientSums.rounded(high, low) == wanted(high, low), "\(high) \(low)")
            }
        }
    }

    /// More additions than the lower part holds, in any order and split: the same total, and the exact one.
    @Test func sumsAreExact() throws {
        let parameters = try Parameters([("a", [3]), ("b", [2, 2])])
        let kernels = lsk_kernels_for(InstructionSet.best.rawValue)!
        let values: [Float] = [0x1p-50, 0x1.8p-51, -0x1p-30, 3]
        func total(_ order: [Int], _ workers: Int) throws -> [Float] {
            let sums = try (0..<workers).map { _ in
                try GradientSums(parameters, kernels, isShared: workers == 1)
            }
            for (number, index) in order.enumerated() {
                #expect(
                    sums[number % workers].add(
                        pinned([values[index]]).baseAddress!, 1, to: 1, at: 2, scale: 0.5) == 0)
            }
            for other in sums.dropFirst() { sums[0].add(other) }
            let out = pinned([Float](repeating: -7, count: 7))
            sums[0].round(into: out.baseAddress!)
            #expect(out.enumerated().allSatisfy { $0.offset == 5 || $0.element == 0 })
            return [out[5]]
        }
        let many = (0..<20_000).map { $0 % 2 } + [2, 3, 2]
        let exact = 10_000 * 0x1p-51 + 10_000 * 0x1.8p-52 - 0x1p-30 + 1.5
        #expect(try total(many, 1) == [Float(exact)])
        #expect(try total(many.reversed(), 3) == [Float(exact)])
        #expect(try total(Array(many.dropLast(3)), 2) == [Float(10_000 * 0x1p-51 + 10_000 * 0x1.8p-52)])
    }

    /// Workers add to the same sums at once, to each tensor more often than its lower part bears uncarried.
    @Test func workersShareSums() throws {
        let tensors = 8
        let parameters = try Parameters((0..<tensors).map { ("t\($0)", [3]) })
        let kernels = lsk_kernels_for(InstructionSet.best.rawValue)!
        let sums = try GradientSums(parameters, kernels, isShared: true)
        // Just below a unit of the higher part.
        let value = pinned([Float(0x1.fffffep-21)]).baseAddress!
        parallelFor(tasks: 20_000 * tensors, threads: 4) { task, _ in
            _ = sums.add(value, 1, to: task % tensors, at: 1, scale: 1)
        }
        let out = pinned([Float](repeating: -7, count: 3 * tensors))
        sums.round(into: out.baseAddress!)
        for (place, sum) in out.enumerated() {
            #expect(sum == (place % 3 == 1 ? Float(20_000 * 0x1.fffffep-21) : 0), "\(place)")
        }
    }
}
