import CLockstepKernels

/// The plain form of the log-softmax: scalar loops a reader can check by eye.
///
/// The kernels equal it bit for bit, on every instruction set (docs/Numerics.md).
public enum ReferenceLogProbs {
    // MARK: One logit

    /// A logit as the softmax sees it, but for the temperature: rounded to the head's format, soft-capped.
    static func prepare(_ x: Float, _ rule: lsk_logit_rule) -> Float { prepareWithSlope(x, rule).value }

    /// e^y = p 2^n of y = x / temperature, for |y| <= 2^20.
    static func exponential(_ x: Float, _ rule: lsk_logit_rule) -> (p: Float, n: Int) {
        let (n, r) = reduce(x, rule)
        return (polynomial(r), Int(n))
    }

    /// y = n L + r with |r| <= ln 2 / 2.
    ///
    /// The division leaves its error in `low`, and r takes it up.
    private static func reduce(_ x: Float, _ rule: lsk_logit_rule) -> (n: Float, r: Float) {
        let y = x * rule.inverse
        var low = fma(x, rule.inverse, -y)
        low = fma(x, rule.inverse_low, low)
        let (n, r) = reduce(y)
        return (n, r + low)
    }

    private static func reduce(_ y: Float) -> (n: Float, r: Float) {
        let magic: Float = 12_582_912  // 1.5 * 2^23: adding it rounds to an integer
        let n = fma(y, 0x1.715476p+0, magic) - magic
        return (n, fma(n, -ln2, y))
    }

    /// e^r for |r| <= ln 2 / 2.
    private static func polynomial(_ r: Float) -> Float { fma(fma(q(r), r, 1), r, 1) }

    /// (e^r - 1 - r) / r^2.
    private static func q(_ r: Float) -> Float {
        var q = fma(0x1.6a2434p-10, r, 0x1.1239e2p-7)
        q = fma(q, r, 0x1.5558f2p-5)
        q = fma(q, r, 0x1.555492p-3)
        return fma(q, r, 0x1.fffffcp-2)
    }

    /// ln 2 rounded to float: the unit of the reference (Body/exp.h).
    static let ln2: Float = 0x1.62e430p-1

    /// a * b + c, rounded once.
    private static func fma(_ a: Float, _ b: Float, _ c: Float) -> Float { c.addingProduct(a, b) }

    private static func prepareWithSlope(_ x: Float, _ rule: lsk_logit_rule) -> (value: Float, slope: Float) {
        var x = x
        x = ReferenceFormats.rounded(x, Format(rawValue: rule.rounding) ?? .fp32)
        return rule.soft_cap == 0 ? (x, 1) : softCap(x, rule.soft_cap)
    }

    /// cap tanh(x / cap) and its derivative; infinities stay.
    ///
    /// With v = e^(-2a) - 1 and a = |x| / cap, tanh a = -v / (2 + v), which loses nothing near 0.
    private static func softCap(_ x: Float, _ cap: Float) -> (value: Float, slope: Float) {
        if x.isInfinite { return (x, 0) }
        let a = x.magnitude / cap
        let y = (a > 12 ? 12 : a) * -2
        let (n, r) = reduce(y)
        let power = Float(sign: .plus, exponent: Int(n), significand: 1)
        let lessOne = fma(q(r) * r, r, r)  // e^r - 1
        let v = fma(lessOne, power, power - 1)
        let denominator = v + 2
        let ratio = 2 / denominator
        let capped = -v / denominator * cap
        return (x.sign == .minus ? -capped : capped, (v + 1) * ratio * ratio)
    }

    // MARK: A block

    /// The sum of one block of at most 2,048 prepared logits.
    static func block(_ logits: ArraySlice<Float>, _ rule: lsk_logit_rule) -> lsk_lse_block {
        var sum = [Float](repeating: 0, count: 64)
        var weighted = sum
        var reference: Int32?
        var limit = -Float.infinity
        var flags: Int32 = 0

        for start in stride(from: logits.startIndex, to: logits.endIndex, by: 128) {
            let tile = logits[start..<min(start + 128, logits.endIndex)]
            let highest = tile.reduce(-Float.infinity) { $1 > $0 ? $1 : $0 }
            var skip = reference == nil
            if highest > limit {
                let y = highest * rule.inverse
                if y >= LSK_WIDE {
                    flags |= highest == .infinity ? LSK_LSE_NOT_FINITE : LSK_LSE_WIDE
                    break
                }
                skip = y < -LSK_WIDE
                if skip {
                    flags |= LSK_LSE_LOW
                } else {
                    let next = Int32((y * 0x1.715476p+0).rounded(.toNearestOrEven))
                    if let old = reference {
                        let rise = next - old
                        let power: Float =
                            rise > 126 ? 0 : Float(sign: .plus, exponent: -Int(rise), significand: 1)
                        for lane in 0..<64 {
                            weighted[lane] = fma(sum[lane], -Float(rise) * ln2, weighted[lane]) * power
                            sum[lane] *= power
                        }
                    }
                    reference = next
                    limit = Float(next + 8) * ln2 * rule.temperature
                }
            }
            if skip {
                if tile.contains(where: \.isNaN) { flags |= LSK_LSE_NOT_FINITE }
                continue
            }
            for (offset, logit) in tile.enumerated() {
                let (term, u) = term(logit, reference!, rule)
                sum[offset % 64] += term
                weighted[offset % 64] = fma(term, u, weighted[offset % 64])
            }
        }
        let (total, totalWeighted) = (tree(sum), tree(weighted))
        if total.isNaN { flags |= LSK_LSE_NOT_FINITE }
        return lsk_lse_block(
            sum: total, weighted: totalWeighted, reference: reference ?? Int32.min, flags: flags)
    }

    /// e^y 2^-reference, exactly 0 from 2^-127 down, and y - reference ln 2.
    private static func term(
        _ logit: Float, _ reference: Int32, _ rule: lsk_logit_rule
    ) -> (term: Float, u: Float) {
        let floor = Float(reference - 127) * ln2 * rule.temperature
        let (n, r) = reduce(floor > logit ? floor : logit, rule)
        let above = n - Float(reference)
        let power: Float = above > -127 ? Float(sign: .plus, exponent: Int(above), significand: 1) : 0
        return (above.isNaN ? .nan : polynomial(r) * power, fma(above, ln2, r))
    }

    /// The fixed tree: lane i takes lane i + 32, then + 16, and so on to + 1, in float64.
    static func tree(_ lanes: [Float]) -> Double {
        var sums = lanes.map(Double.init)
        for half in [32, 16, 8, 4, 2, 1] {
            for lane in 0..<half { sums[lane] += sums[lane + half] }
        }
        return sums[0]
    }

    // MARK: A row

    /// A row's blocks of 2,048 prepared logits.
    static func blocks(_ logits: [Float], _ rule: lsk_logit_rule) -> [lsk_lse_block] {
        stride(from: 0, to: logits.count, by: 2048).map {
            block(logits[$0..<min($0 + 2048, logits.count)], rule)
        }
    }

    /// The gradient of one row of logits.
    static func gradient(
        _ logits: [Float], target: Int, _ rule: lsk_logit_rule, _ row: lsk_gradient_row
    ) -> [Float] {
        logits.enumerated().map { v, logit in
            let (value, slope) = prepareWithSlope(logit, rule)
            let (exponential, u) = term(value - row.shift, row.reference, rule)
            let p = exponential * row.inverse_sum
            let w = fma(u + row.entropy_offset, row.d_entropy, row.d_log_prob)
            let dy = fma(-p, w, v == target ? row.d_log_prob : 0)
            return dy * rule.inverse * slope
        }
    }
}
