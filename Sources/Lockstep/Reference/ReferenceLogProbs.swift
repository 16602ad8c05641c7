import CLockstepKernels

/// The plain form of the log-softmax: scalar loops a reader can check by eye. The kernels equal it bit
/// for bit, on every instruction set.
public enum ReferenceLogProbs {
    /// e^y = p 2^n of y = x / temperature, for |y| <= 2^20.
    static func exponential(_ x: Float, _ rule: lsk_logit_rule) -> (p: Float, n: Int) {
        let (n, r) = reduce(x, rule)
        return (polynomial(r), Int(n))
    }

    /// y = n ln 2 + r with |r| <= ln 2 / 2. The division leaves its error in `low`, not in r.
    private static func reduce(_ x: Float, _ rule: lsk_logit_rule) -> (n: Float, r: Float) {
        var y = x
        var low: Float = 0
        if rule.inverse != 1 || rule.inverse_low != 0 {
            y = x * rule.inverse
            low = fma(x, rule.inverse, -y)
            low = fma(x, rule.inverse_low, low)
        }
        let magic: Float = 12_582_912  // 1.5 * 2^23: adding it rounds to an integer
        let n = fma(y, 0x1.715476p+0, magic) - magic
        var r = fma(n, -0x1.62e430p-1, y)
        r = fma(n, 0x1.05c610p-29, r)
        r += low
        return (n, r)
    }

    /// e^r for |r| <= ln 2 / 2.
    private static func polynomial(_ r: Float) -> Float {
        fma(fma(q(r), r, 1), r, 1)
    }

    private static func q(_ r: Float) -> Float {
        var q = fma(0x1.6a2434p-10, r, 0x1.1239e2p-7)
        q = fma(q, r, 0x1.5558f2p-5)
        q = fma(q, r, 0x1.555492p-3)
        return fma(q, r, 0x1.fffffcp-2)
    }

    /// a * b + c, rounded once.
    private static func fma(_ a: Float, _ b: Float, _ c: Float) -> Float { c.addingProduct(a, b) }
}
