/// The backward pass between its matrix products, one value at a time, in float32.
///
/// The kernels (Body/training.h) equal it bit for bit, on every instruction set.
enum ReferenceBackward {
    /// sum_i a_i b_i, times w_i if there is a w: 64 lanes, blocks of 2,048, the tree of the log-softmax.
    static func dot(_ a: [Float], _ b: [Float], times w: [Float]? = nil) -> Double {
        var total = 0.0
        for start in stride(from: 0, to: a.count, by: 2048) {
            var lanes = [Float](repeating: 0, count: 64)
            for index in start..<min(start + 2048, a.count) {
                let left = w.map { a[index] * $0[index] } ?? a[index]
                lanes[(index - start) % 64].addProduct(left, b[index])
            }
            total += ReferenceLogProbs.tree(lanes)
        }
        return total
    }

    /// Of y = x scale weight, scale = 1 / rms(x): dx, and the weight's gradient with this row added.
    static func norm(
        _ x: [Float], _ dy: [Float], _ weight: [Float], epsilon: Double, adding dWeight: [Float]
    ) -> (dx: [Float], dWeight: [Float]) {
        let count = Double(x.count)
        let inverse = 1 / (dot(x, x) / count + epsilon).squareRoot()
        let scale = Float(inverse)
        let along = Float(inverse * inverse * inverse * (dot(dy, x, times: weight) / count))
        return (
            x.indices.map { (dy[$0] * weight[$0] * scale).addingProduct(x[$0], -along) },
            x.indices.map { dWeight[$0].addingProduct(dy[$0], x[$0] * scale) }
        )
    }

    /// Of y = silu(gate) up: the gradients of both.
    static func siluMultiply(_ gate: Float, _ up: Float, _ d: Float) -> (gate: Float, up: Float) {
        let e = ReferenceLayers.exponentialOfMinus(gate)
        let s = 1 / (e + 1)
        let slope = gate < -88 ? 0 : s * Float(1).addingProduct(gate, e * s)
        return (d * up * slope, d * ReferenceLayers.silu(gate))
    }

    /// Of a softmax p: ds = p (dp - sum p dp).
    static func softmax(_ p: [Float], _ dp: [Float]) -> [Float] {
        let sum = Float(dot(p, dp))
        return zip(p, dp).map { $0 * ($1 - sum) }
    }

    /// Sums of columns: chains over rows, restarted every 128, the parts added in order.
    static func columnSums(_ rows: [[Float]]) -> [Float] {
        rows[0].indices.map { column in
            var total: Float = 0
            for first in stride(from: 0, to: rows.count, by: 128) {
                var chain: Float = 0
                for row in first..<min(first + 128, rows.count) { chain += rows[row][column] }
                total = first > 0 ? total + chain : chain
            }
            return total
        }
    }

    /// x as a fixed-point number: counts of 2^-20 and of 2^-70, each to nearest even, the second of what the first left.
    static func fixed(_ x: Float) -> (high: Int64, low: Int64) {
        let units = Double(x) * 0x1p20
        let high = units.rounded(.toNearestOrEven)
        return (Int64(high), Int64(((units - high) * 0x1p50).rounded(.toNearestOrEven)))
    }
}
