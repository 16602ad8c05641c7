/// What stands between the matrix products of a transformer, one value at a time: norms, rotary embedding,
/// activation, residual sum.
///
/// The kernels (Body/layers.h) equal it bit for bit, on every instruction set. Inputs are floats that the format
/// holds; results are rounded to it once.
enum ReferenceLayers {
    /// A float rounded to a format, as a float.
    static func rounded(_ x: Float, _ format: Format) -> Float {
        switch format {
        case .fp16: Float(Float16(x))
        case .bf16: Float(BFloat16(x))
        default: x
        }
    }

    /// x / rms(x) * weight.
    ///
    /// Squares are added in 64 lanes and their tree, by blocks of 2,048, as the log-softmax adds its terms; blocks,
    /// the mean, the root and its inverse are float64. Two products in float, one rounding.
    static func norm(_ x: [Float], _ weight: [Float], epsilon: Double, _ format: Format) -> [Float] {
        var total = 0.0
        for start in stride(from: 0, to: x.count, by: 2048) {
            var lanes = [Float](repeating: 0, count: 64)
            for index in start..<min(start + 2048, x.count) {
                lanes[(index - start) % 64].addProduct(x[index], x[index])
            }
            total += ReferenceLogProbs.tree(lanes)
        }
        let scale = Float(1 / (total / Double(x.count) + epsilon).squareRoot())
        return zip(x, weight).map { rounded($0 * scale * $1, format) }
    }

    /// Elements i and i + count of a head turned by angle i.
    static func rotated(_ x: [Float], cosines: [Float], sines: [Float], _ format: Format) -> [Float] {
        let half = cosines.count
        var out = x
        for i in 0..<half {
            let (a, b) = (x[i], x[i + half])
            out[i] = rounded((-(b * sines[i])).addingProduct(a, cosines[i]), format)
            out[i + half] = rounded((a * sines[i]).addingProduct(b, cosines[i]), format)
        }
        return out
    }

    /// x / (1 + e^-x): 0 below -88.
    static func silu(_ x: Float) -> Float {
        if x < -88 { return 0 }
        return x / (exponentialOfMinus(x) + 1)
    }

    /// e^-x for x from -88 to 87, and what it is there beyond; NaN stays.
    static func exponentialOfMinus(_ x: Float) -> Float {
        if x.isNaN { return x }
        guard let rule = try? LogProbOptions().rule() else { return .nan }
        let (p, n) = ReferenceLogProbs.exponential(min(max(-x, -87), 88), rule)
        return p * Float(sign: .plus, exponent: n, significand: 1)
    }

    /// silu(gate) * up.
    static func siluMultiply(_ gate: [Float], _ up: [Float], _ format: Format) -> [Float] {
        zip(gate, up).map { rounded(silu($0) * $1, format) }
    }

    /// a + scale * b.
    static func addTimes(_ a: [Float], _ b: [Float], _ scale: Float, _ format: Format) -> [Float] {
        zip(a, b).map { rounded($0.addingProduct($1, scale), format) }
    }

    /// Floats as a format has them, -0 as 0, and how many of them are infinite or NaN there.
    static func stored(_ x: [Float], _ format: Format) -> (values: [Float], nonFinite: Int) {
        let values = x.map { rounded($0 + 0, format) }
        return (values, values.count { !$0.isFinite })
    }
}
