import CLockstepKernels

/// The softmax of attention's scores over the positions that a query may see.
///
/// It has the lanes and tiles of the log-softmax, at absolute positions, and one rounding to the recipe's
/// probabilities. One worker owns it.
final class ScoreSoftmax {
    private let kernels: lsk_kernels
    private let format: Format
    private let rule: lsk_logit_rule
    private let sums: Scratch<lsk_lse_block>

    /// Room for rows of up to `positions` scores.
    init(
        _ kernels: UnsafePointer<lsk_kernels>, _ format: Format, positions: Int
    ) throws(LockstepError) {
        self.kernels = kernels.pointee
        self.format = format
        rule = try LogProbOptions().rule()
        sums = try Scratch(count: blockCount(positions) + 1)
    }

    /// Turns the scores of a row, of which `count` may be seen, into `total` probabilities: 0 beyond.
    ///
    /// - Returns: 1 if a score is infinite or NaN, else 0.
    func normalize(
        _ scores: UnsafeMutablePointer<Float>, count: Int, of total: Int, into out: UnsafeMutableRawPointer
    ) -> Int {
        let size = format.byteCount
        if total > count { (out + count * size).clear(byteCount: (total - count) * size) }
        if count <= Int(LSK_LANE_COUNT), kernels.softmax_row(out, format.rawValue, scores, count) != 0 {
            return 0
        }
        return withUnsafePointer(to: rule) { rule in
            guard let sum = try? sum(scores, count, rule) else { return 1 }
            // p = 0 - p * -1: the softmax's gradient with respect to a target that is not there.
            var gradient = lsk_gradient_row()
            gradient.d_log_prob = -1
            gradient.inverse_sum = Float(1 / sum.sum)
            gradient.reference = sum.reference
            kernels.gradient_row(
                out, format.rawValue, scores, Format.fp32.rawValue, count, -1, rule, &gradient)
            return 0
        }
    }

    /// The sum of the exponentials of `count` scores; where some are beyond 2^20, of all less the largest.
    private func sum(
        _ scores: UnsafeMutablePointer<Float>, _ count: Int, _ rule: UnsafePointer<lsk_logit_rule>
    ) throws(RowSum.Failure) -> RowSum {
        let blocks = UnsafeBufferPointer(start: sums.base, count: blockCount(count))
        kernels.lse_row(sums.base, scores, Format.fp32.rawValue, count, rule, 0)
        do {
            return try RowSum(blocks)
        } catch {
            guard error == .wide else { throw error }
            var largest = -Float.infinity
            for index in 0..<count { largest = max(largest, scores[index]) }
            for index in 0..<count { scores[index] -= largest }
            kernels.lse_row(sums.base, scores, Format.fp32.rawValue, count, rule, 0)
            return try RowSum(blocks)
        }
    }
}
