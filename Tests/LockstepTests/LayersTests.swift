import CLockstepKernels
import Testing

@testable import Lockstep

/// The kernels between matrix products against the reference, bit for bit, on every instruction set.
@Suite struct LayersTests {
    static let counts = [1, 2, 7, 15, 16, 31, 33, 63, 64, 65, 96, 576, 2047, 2048, 2049, 4100]

    /// Rows a model makes, and extremes.
    private static func rows(_ count: Int, _ seed: UInt64) -> [[Float]] {
        var random = Random(seed)
        var spiked = random.normal(count)
        spiked[count / 2] = 60_000
        let special: [Float] = [
            0, -0.0, 1, -1, 65_504, -65_504, 65_519, 65_520, 3e38, -3e38, 1e-45, -1e-40, 6e-8, -88, 88, -88.5,
            87,
            -1e4, 1e4, .infinity, -.infinity, .nan, 0x1.001p0, 0x1.003p0, 0x1.01p0, 0x1.03p0,
        ]
        return [
            random.normal(count), random.normal(count, scale: 1e-3), random.normal(count, scale: 60),
            spiked, [Float](repeating: 0, count: count), random.normal(count, scale: 3e4),
            random.normal(count, scale: 1e-6), (0..<count).map { special[($0 + Int(seed)) % special.count] },
        ]
    }

    /// Runs `body` with guarded memory of `values` in a format; checks what was written, and nothing beyond.
    private static func expect(
        _ wanted: [Float], _ format: Format, _ what: String, changing initial: [Float]? = nil,
        _ body: (UnsafeMutableRawPointer) -> Void
    ) {
        let bytes = wanted.count * format.byteCount
        let target = UnsafeMutableRawPointer.allocate(byteCount: bytes + 64, alignment: 64)
        defer { target.deallocate() }
        target.initializeMemory(as: UInt8.self, repeating: 0xA5, count: bytes + 64)
        if let initial {
            Stored(initial, format).bytes.withUnsafeBytes {
                target.copyMemory(from: $0.baseAddress!, byteCount: bytes)
            }
        }
        body(target)
        let view = VectorView(target, format, count: wanted.count)
        for (index, value) in wanted.enumerated() {
            let found = Float(view.double(index))
            let isSame = found.bitPattern == value.bitPattern || found.isNaN && value.isNaN
            #expect(isSame, "\(what): [\(index)] is \(found), not \(value)")
            if !isSame { break }
        }
        let rest = UnsafeRawBufferPointer(start: target + bytes, count: 64)
        #expect(rest.allSatisfy { $0 == 0xA5 }, "\(what): wrote beyond the end")
    }

    @Test(arguments: counts, layerFormats) func kernelsEqualTheReference(count: Int, format: Format) throws {
        let rows = Self.rows(count, 1).map { Stored($0, format) }
        let others = Self.rows(count, 5).map { Stored($0, format) }
        let weight = Self.rows(count, 9)[0]
        try withLockstepFloatMode { () throws(LockstepError) in
            for set in instructionSets {
                let k = lsk_kernels_for(set.rawValue).pointee
                let (code, what) = (format.rawValue, "\(set) \(format) \(count)")
                for (index, (a, b)) in zip(rows, others).enumerated() {
                    a.bytes.withUnsafeBytes { x in
                        b.bytes.withUnsafeBytes { y in
                            let epsilon = index == 4 ? 1e-6 : 1e-5
                            for each in [false, true] {
                                Self.expect(
                                    ReferenceLayers.norm(
                                        a.values, weight, epsilon: epsilon, format, each: each), format,
                                    "norm \(index) \(each) \(what)"
                                ) {
                                    k.rms_norm($0, x.baseAddress!, weight, code, count, epsilon, each ? 1 : 0)
                                }
                                Self.expect(
                                    ReferenceLayers.siluMultiply(a.values, b.values, format, each: each),
                                    format,
                                    "silu \(index) \(each) \(what)"
                                ) {
                                    k.silu_multiply(
                                        $0, code, x.baseAddress!, y.baseAddress!, code, count, each ? 1 : 0)
                                }
                            }
                            let (sum, normed) = ReferenceLayers.addNorm(
                                a.values, b.values, weight, epsilon: epsilon, format)
                            Self.expect(sum, format, "sum \(index) \(what)", changing: a.values) { sum in
                                Self.expect(normed, format, "norm of a sum \(index) \(what)") {
                                    k.add_rms_norm(
                                        $0, sum, y.baseAddress!, weight, code, count, epsilon)
                                }
                            }
                            Self.expect(
                                ReferenceLayers.addTimes(a.values, b.values, 0.3, format), format,
                                "add \(index) \(what)"
                            ) { k.add_times($0, x.baseAddress!, y.baseAddress!, 0.3, code, count) }
                            #expect(
                                k.non_finite_values(x.baseAddress!, code, count)
                                    == Int64(a.values.count { !$0.isFinite }))
                        }
                    }
                    // Of floats that were not rounded yet.
                    let (gate, up) = (Self.rows(count, 2)[index], Self.rows(count, 7)[index])
                    Self.expect(
                        ReferenceLayers.siluMultiply(gate, up, format), format,
                        "silu of floats \(index) \(what)"
                    ) { k.silu_multiply($0, code, gate, up, Format.fp32.rawValue, count, 0) }
                    // In place, and out of a wider matrix of floats.
                    Self.expect(
                        ReferenceLayers.norm(a.values, weight, epsilon: 1e-5, format), format,
                        "norm in place",
                        changing: a.values
                    ) { k.rms_norm($0, $0, weight, code, count, 1e-5, 0) }
                    let wide = Self.rows(count, 3)[index]
                    let (values, failures) = ReferenceLayers.stored(wide, format)
                    Self.expect(values, format, "store \(index) \(what)") {
                        #expect(k.store_rows($0, count, code, wide, count, 1, count) == Int64(failures))
                    }
                }
            }
        }
    }

    @Test(arguments: [1, 2, 5, 8, 16, 32, 33, 64, 100], layerFormats)
    func rotationEqualsTheReference(half: Int, format: Format) {
        let angles = (0..<half).map { sineAndCosine(Double($0) * 0.77) }
        let (cosines, sines) = (angles.map { Float($0.cosine) }, angles.map { Float($0.sine) })
        for row in Self.rows(2 * half, 2) {
            let x = Stored(row, format).values
            for each in [false, true] {
                let wanted = ReferenceLayers.rotated(
                    x, cosines: cosines, sines: sines, format, each: each)
                for set in instructionSets {
                    let k = lsk_kernels_for(set.rawValue).pointee
                    Self.expect(wanted, format, "rotate \(set) \(each)", changing: x) {
                        k.rotate($0, cosines, sines, format.rawValue, half, each ? 1 : 0)
                    }
                }
            }
        }
    }

    /// A row's softmax tile by tile, of tiles of every size; and as accurate as one over the whole row.
    @Test(arguments: [0.1, 1, 30, 3e4] as [Float]) func tilesOfASoftmaxEqualTheReference(scale: Float) {
        var random = Random(12)
        let tiles = (1...64).map { random.normal($0, scale: scale) }
        for set in instructionSets {
            let k = lsk_kernels_for(set.rawValue).pointee
            var wanted = ReferenceLayers.OnlineSoftmax()
            var (maximum, sum) = (-Float.infinity, Float(0))
            for tile in tiles {
                var found = tile + [.nan]
                let correction = k.softmax_tile(&found, tile.count, &maximum, &sum)
                let (terms, wantedCorrection) = wanted.add(tile)
                #expect(found.dropLast() == terms[...] && found.last!.isNaN)
                #expect(correction == wantedCorrection && wanted == .init(maximum: maximum, sum: sum))
            }
            let all = tiles.joined().map(Double.init)
            let largest = all.max()!
            let plain = all.reduce(0) { $0 + exponential($1 - largest) }
            #expect(Double(maximum) == largest && abs(Double(sum) / plain - 1) < 1e-5)
        }
    }

    /// Rows of one matrix into another: what lies between them is not touched.
    @Test(arguments: layerFormats) func rowsAreStoredAtStrides(format: Format) {
        let (rows, count, from, to) = (5, 37, 128, 50)
        let source = Self.rows(rows * from, 4)[2]
        for set in instructionSets {
            let k = lsk_kernels_for(set.rawValue).pointee
            var wanted = [Float](repeating: 0.5, count: rows * to)
            for row in 0..<rows {
                let part = ReferenceLayers.stored(Array(source[row * from..<row * from + count]), format)
                    .values
                wanted.replaceSubrange(row * to..<row * to + count, with: part)
            }
            Self.expect(
                wanted, format, "\(set)", changing: [Float](repeating: 0.5, count: rows * to)
            ) { #expect(k.store_rows($0, to, format.rawValue, source, from, rows, count) == 0) }
        }
    }

    /// Accuracy against float64: a few units in the last place of a float.
    @Test func theReferenceIsAccurate() {
        for x in stride(from: Float(-100), through: 100, by: 0.013) {
            let wanted = Double(x) / (1 + exponential(-Double(x)))
            let error = abs(Double(ReferenceLayers.silu(x)) - wanted)
            #expect(error <= 4e-7 * abs(wanted) + 1e-36, "\(x)")
        }
        for x in [-Float.infinity, -3e38, -1e10] { #expect(ReferenceLayers.silu(x) == 0) }
        #expect(ReferenceLayers.silu(.infinity) == .infinity && ReferenceLayers.silu(3e38) == 3e38)
        #expect(ReferenceLayers.silu(.nan).isNaN)
        for row in Self.rows(2049, 6).prefix(4) {
            let weight = [Float](repeating: 1, count: row.count)
            let mean = row.reduce(0.0) { $0 + Double($1) * Double($1) } / Double(row.count)
            for (x, found) in zip(row, ReferenceLayers.norm(row, weight, epsilon: 1e-5, .fp32)) {
                let wanted = Double(x) / (mean + 1e-5).squareRoot()
                #expect(abs(Double(found) - wanted) <= 3e-7 * abs(wanted))
            }
        }
    }

    /// sin and cos against the identities that fix them, up to 2^20.
    @Test func anglesAreAccurate() {
        var random = Random(8)
        for _ in 0..<20_000 {
            let x = Double.random(in: 0..<0x1p20, using: &random)
            let (s, c) = sineAndCosine(x)
            let (s2, c2) = sineAndCosine(x / 2)
            #expect(abs(s * s + c * c - 1) < 1e-15)
            #expect(abs(2 * s2 * c2 - s) < 1e-15 && abs(c2 * c2 - s2 * s2 - c) < 1e-15)
        }
        #expect(sineAndCosine(0) == (0, 1))
        #expect(abs(sineAndCosine(Double.pi / 6).sine - 0.5) < 1e-16)
    }
}
