/// What stands between the matrix products of a transformer, one value at a time: norms, rotary embedding,
/// activation, residual sum.
///
/// The kernels (Body/layers.h) equal it bit for bit, on every instruction set. Inputs are floats that the format
/// holds; results are rounded to it once: with `each`, after every elementary operation too.
enum ReferenceLayers {
    /// x / rms(x) * weight.
    ///
    /// Squares are added in 64 lanes and their tree, by blocks of 2,048, as the log-softmax adds its terms; blocks,
    /// the mean, the root and its inverse are float64. Two products in float, one rounding.
    static func norm(
        _ x: [Float], _ weight: [Float], epsilon: Double, _ format: Format, each: Bool = false
    ) -> [Float] {
        var total = 0.0
        for start in stride(from: 0, to: x.count, by: 2048) {
            var lanes = [Float](repeating: 0, count: 64)
            for index in start..<min(start + 2048, x.count) {
                lanes[(index - start) % 64].addProduct(x[index], x[index])
            }
            total += ReferenceLogProbs.tree(lanes)
        }
        let scale = Float(1 / (total / Double(x.count) + epsilon).squareRoot())
        return zip(x, weight).map { x, weight in
            let normed = each ? ReferenceFormats.rounded(x * scale, format) : x * scale
            return ReferenceFormats.rounded(normed * weight, format)
        }
    }

    /// x + y, rounded, and the norm of it before it was.
    static func addNorm(
        _ x: [Float], _ y: [Float], _ weight: [Float], epsilon: Double, _ format: Format
    ) -> (sum: [Float], normed: [Float]) {
        let sum = zip(x, y).map { $0 + $1 }
        return (sum.map { ReferenceFormats.rounded($0, format) }, norm(sum, weight, epsilon: epsilon, format))
    }

    /// Elements i and i + count of a head turned by angle i.
    static func rotated(
        _ x: [Float], cosines: [Float], sines: [Float], _ format: Format, each: Bool = false
    ) -> [Float] {
        let half = cosines.count
        var out = x
        for i in 0..<half {
            let (a, b) = (x[i], x[i + half])
            if each {
                func product(_ x: Float, _ y: Float) -> Float { ReferenceFormats.rounded(x * y, format) }
                out[i] = ReferenceFormats.rounded(product(a, cosines[i]) - product(b, sines[i]), format)
                out[i + half] = ReferenceFormats.rounded(
                    product(b, cosines[i]) + product(a, sines[i]), format)
                continue
            }
            out[i] = ReferenceFormats.rounded((-(b * sines[i])).addingProduct(a, cosines[i]), format)
            out[i + half] = ReferenceFormats.rounded((a * sines[i]).addingProduct(b, cosines[i]), format)
        }
        return out
    }

    /// e^y for y in [-87, 88].
    private static func exponential(_ y: Float) -> Float {
        guard let rule = try? LogProbOptions().rule() else { return .nan }
        let (p, n) = ReferenceLogProbs.exponential(y, rule)
        return p * Float(sign: .plus, exponent: n, significand: 1)
    }

    /// x / (1 + e^-x): 0 below -88.
    static func silu(_ x: Float) -> Float {
        if x < -88 { return 0 }
        return x / (exponentialOfMinus(x) + 1)
    }

    /// e^-x for x from -88 to 87, and what it is there beyond; NaN stays.
    static func exponentialOfMinus(_ x: Float) -> Float {
        if x.isNaN { return x }
        return exponential(min(max(-x, -87), 88))
    }

    /// silu(gate) * up.
    static func siluMultiply(
        _ gate: [Float], _ up: [Float], _ format: Format, each: Bool = false
    ) -> [Float] {
        zip(gate, up).map { gate, up in
            let activated = each ? ReferenceFormats.rounded(silu(gate), format) : silu(gate)
            return ReferenceFormats.rounded(activated * up, format)
        }
    }

    /// A row's softmax as it is met tile by tile: what its terms and their sum are relative to, and the sum.
    struct OnlineSoftmax: Equatable {
        var maximum = -Float.infinity
        var sum: Float = 0

        /// The terms of a tile of at most 64 scores, and what everything before must be multiplied by.
        mutating func add(_ scores: [Float]) -> (terms: [Float], correction: Float) {
            func power(_ y: Float) -> Float { y < -87 ? 0 : exponential(y) }
            let largest = max(maximum, scores.max() ?? maximum)
            let terms = scores.map { power($0 - largest) }
            let correction = power(maximum - largest)
            let tile = Float(ReferenceLogProbs.tree(terms + Array(repeating: 0, count: 64 - terms.count)))
            sum = tile.addingProduct(sum, correction)
            maximum = largest
            return (terms, correction)
        }
    }

    /// a + scale * b.
    static func addTimes(_ a: [Float], _ b: [Float], _ scale: Float, _ format: Format) -> [Float] {
        zip(a, b).map { ReferenceFormats.rounded($0.addingProduct($1, scale), format) }
    }

    /// Floats as a format has them, -0 as 0, and how many of them are infinite or NaN there.
    static func stored(_ x: [Float], _ format: Format) -> (values: [Float], nonFinite: Int) {
        let values = x.map { ReferenceFormats.rounded($0 + 0, format) }
        return (values, values.count { !$0.isFinite })
    }
}
