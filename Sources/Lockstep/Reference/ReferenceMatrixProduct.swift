/// The plain form of the matrix product: what every output element is, whatever is tiled or threaded.
public enum ReferenceMatrixProduct {
    /// `sum_k x[k] w[k]`: a chain of fused multiply-adds over k ascending from +0, restarted every 128 k, the
    /// partial sums added in order of k.
    public static func product(_ x: [Float], _ w: [Float]) -> Float {
        var total: Float = 0
        for start in stride(from: 0, to: x.count, by: 128) {
            var chain: Float = 0
            for k in start..<min(start + 128, x.count) { chain.addProduct(x[k], w[k]) }
            total = start == 0 ? chain : total + chain
        }
        return total
    }

    /// The same of each half of k by itself, then their sum: the order `split-k`.
    static func splitProduct(_ x: [Float], _ w: [Float]) -> Float {
        let half = x.count / 2
        if half == 0 { return product(x, w) }
        return product(Array(x[..<half]), Array(w[..<half])) + product(Array(x[half...]), Array(w[half...]))
    }

    /// `x w^T + bias`: [tokens x H] times [vocab x H], each element a chain of its own.
    public static func logits(_ x: [[Float]], _ w: [[Float]], bias: [Float]? = nil) -> [[Float]] {
        x.map { row in
            w.enumerated().map { v, column in product(row, column) + (bias?[v] ?? 0) }
        }
    }
}
