import CLockstepKernels

/// The sum of exponentials of one row, `sum_v e^(y_v)`, as `sum * 2^reference`, with what entropy needs.
///
/// Blocks are added in order, in float64, after scaling by exact powers of two.
struct RowSum: BitwiseCopyable {
    /// sum_v e^(y_v) 2^-reference.
    private(set) var sum = 0.0
    /// sum_v e^(y_v) 2^-reference (y_v - reference ln 2).
    private(set) var weighted = 0.0
    private(set) var reference = RowSum.none
    /// `LSK_LSE_NONE`: no logit above -inf yet.
    private static let none = Int32.min
    /// Subtracted from every logit before the temperature; 0 but for rows beyond 2^20.
    private(set) var shift: Float = 0

    /// Why a row has no sum.
    enum Failure: UInt8, Error {
        case notFinite = 1
        case onlyNegativeInfinity = 2
        /// The row reaches beyond 2^20: subtract its maximum and add it up again.
        case wide = 3
    }

    /// Adds up the blocks of a row.
    init(_ blocks: UnsafeBufferPointer<lsk_lse_block>, shift: Float = 0) throws(Failure) {
        var flags: Int32 = 0
        for block in blocks {
            flags |= block.flags
            reference = max(reference, block.reference)
        }
        if flags & LSK_LSE_NOT_FINITE != 0 { throw .notFinite }
        if flags & LSK_LSE_WIDE != 0 { throw .wide }
        // Tiles below -2^20 were left out, which is right if the row has anything above -2^19.
        if flags & LSK_LSE_LOW != 0, reference < -756_388 { throw .wide }
        if reference == RowSum.none { throw .onlyNegativeInfinity }
        self.shift = shift
        for block in blocks where block.reference != RowSum.none {
            let below = Int(block.reference) - Int(reference)
            let power = scaled(1, by: below)
            sum += block.sum * power
            weighted += (block.weighted + block.sum * (Double(below) * octave)) * power
        }
    }

    /// ln sum_v e^(y_v).
    func logSumExp(temperature: Double) -> Double {
        Double(shift) / temperature + (Double(reference) * octave + logarithm(sum))
    }

    /// Entropy of the softmax.
    ///
    /// A negative rounding residue (below 1e-6) is 0.
    var entropy: Double { max(0, logarithm(sum) - weighted / sum) }

    /// ln softmax of a logit of this row, in [-inf, 0]; the logit is rounded and capped, not yet shifted.
    ///
    /// It is the logit's own term, as the kernels formed it, over the sum. A sum of non-negative numbers is
    /// never rounded below one of them, so the quotient is at most 1 and its logarithm at most 0.
    func logProb(of logit: Float, temperature: Double, _ rule: lsk_logit_rule) -> Double {
        if logit == -.infinity { return -.infinity }
        let x = logit - shift
        let above = Double(x) / temperature - Double(reference) * octave
        // Far below every float term there is nothing to cancel.
        if above < -80 { return above - logarithm(sum) }
        let (p, n) = ReferenceLogProbs.exponential(x, rule)
        return logarithm(scaled(Double(p), by: n - Int(reference)) / sum)
    }

    /// This sum over a larger one of the same row (same shift): the probability of a part of it.
    func share(of whole: RowSum) -> Double {
        min(1, scaled(sum, by: Int(reference) - Int(whole.reference)) / whole.sum)
    }
}

/// What one step of a reference is worth: ln 2 as the kernels have it, rounded to float (Body/exp.h).
let octave = Double(ReferenceLogProbs.ln2)

/// Blocks of 2,048 logits in a row.
func blockCount(_ vocab: Int) -> Int { (vocab + Int(LSK_BLOCK) - 1) / Int(LSK_BLOCK) }
