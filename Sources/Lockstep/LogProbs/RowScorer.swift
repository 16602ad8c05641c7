import CLockstepKernels

/// What a call reports about one row.
struct RowScore: BitwiseCopyable {
    var logProb = 0.0
    var entropy = 0.0
    var logSumExp = 0.0
    var keptMass = 0.0
    /// 0, or the raw value of a `RowSum.Failure`.
    var failure: UInt8 = 0
}

/// Scores rows of one vocabulary: adds them up, takes care of rows beyond 2^20, cuts them to the kept set.
///
/// Owns scratch memory, so each worker has its own. The rows of the rare cases are touched only by them.
final class RowScorer: @unchecked Sendable {
    private let kernels: lsk_kernels
    private let options: LogProbOptions
    private let rule: lsk_logit_rule
    private let vocab: Int
    private let wantsEntropy: Bool
    private let blocks: Scratch<lsk_lse_block>
    private let row: Scratch<Float>
    private let keptSet: KeptSet?

    init(
        _ kernels: UnsafePointer<lsk_kernels>, _ options: LogProbOptions, vocab: Int, wantsEntropy: Bool
    ) throws(LockstepError) {
        self.kernels = kernels.pointee
        self.options = options
        self.vocab = vocab
        self.wantsEntropy = wantsEntropy
        rule = try options.rule()
        blocks = try Scratch(count: blockCount(vocab))
        row = try Scratch(count: vocab)
        keptSet = options.truncates ? try KeptSet(options, vocab: vocab) : nil
    }

    /// Scores a row of logits in memory.
    func score(_ logits: UnsafeRawPointer, _ format: Format, target: Int) -> RowScore {
        do {
            return score(try total(logits, format), logits, format, target: target)
        } catch {
            return RowScore(failure: error.rawValue)
        }
    }

    /// Draws a token of a row of logits, and scores it.
    ///
    /// `uniform`, in [0, 1), is a share of the sum of the probabilities that are kept, in the order of the vocabulary.
    /// The block of 2,048 logits in whose sum it falls is known from adding up the row; the token is the first of the
    /// block at which the sum of the block's own probabilities passes what is left of it.
    func draw(
        _ logits: UnsafeRawPointer, _ format: Format, uniform: Double
    ) throws(RowSum.Failure) -> (token: Int, score: RowScore) {
        let totals = try total(logits, format)
        var wanted = uniform * totals.kept.sum
        var (chosen, share) = (0, 1.0)
        for (index, block) in blockBuffer.enumerated() where block.sum > 0 {
            let sum = scaled(block.sum, by: Int(block.reference) - Int(totals.kept.reference))
            // Should rounding leave something beyond the last block, that one's last token is meant.
            (chosen, share) = (index, min(1, wanted / sum))
            if wanted < sum { break }
            wanted -= sum
        }
        let first = chosen * Int(LSK_BLOCK)
        let count = min(Int(LSK_BLOCK), vocab - first)
        if !totals.areInRow {
            prepare(logits + first * format.byteCount, format, into: row.base + first, count: count)
        }
        let token = first + draw(row.base + first, count, blocks.base[chosen], share: share)
        return (token, score(totals, logits, format, target: token))
    }

    /// The first of a block's logits at which the sum of their probabilities passes `share` of all of it.
    private func draw(
        _ logits: UnsafePointer<Float>, _ count: Int, _ block: lsk_lse_block, share: Double
    ) -> Int {
        withUnsafeTemporaryAllocation(of: Float.self, capacity: Int(LSK_BLOCK)) { probabilities in
            // The softmax is its own gradient, but for the sign, with respect to a target that is not there.
            var gradient = lsk_gradient_row()
            gradient.d_log_prob = -1
            gradient.inverse_sum = Float(1 / block.sum)
            gradient.reference = block.reference
            withUnsafePointer(to: rule.temperatureOnly) {
                kernels.gradient_row(
                    probabilities.baseAddress!, Format.fp32.rawValue, logits, Format.fp32.rawValue, count, -1,
                    $0, &gradient)
            }
            var total = 0.0
            for v in 0..<count { total += Double(probabilities[v]) }
            let wanted = share * total
            var reached = 0.0
            var last = 0
            for v in 0..<count where probabilities[v] > 0 {
                reached += Double(probabilities[v])
                if reached > wanted { return v }
                last = v
            }
            return last
        }
    }

    /// Scores a row that was added up elsewhere, as fp32 logits; `.wide` is left to the caller, who has them.
    func score(_ blocks: UnsafeBufferPointer<lsk_lse_block>, targetLogit: Float) -> RowScore {
        do {
            let logit = withUnsafePointer(to: targetLogit) { prepare(UnsafeRawPointer($0), .fp32, at: 0) }
            return score(try RowSum(blocks), logit)
        } catch {
            return RowScore(failure: error.rawValue)
        }
    }

    private func score(_ sum: RowSum, _ logit: Float) -> RowScore {
        RowScore(
            logProb: sum.logProb(of: logit, temperature: options.temperature, rule),
            entropy: wantsEntropy ? sum.entropy : 0,
            logSumExp: sum.logSumExp(temperature: options.temperature), keptMass: 1)
    }

    /// The sums of a row, and whether `row` has its logits, prepared, shifted and cut.
    private struct Totals {
        let whole: RowSum
        /// That of the logits that are kept, which `blocks` are parts of.
        let kept: RowSum
        let areInRow: Bool
    }

    private func total(_ logits: UnsafeRawPointer, _ format: Format) throws(RowSum.Failure) -> Totals {
        if let keptSet { return try totalKept(logits, format, keptSet) }
        do {
            let sum = try sum(logits, format, rule)
            return Totals(whole: sum, kept: sum, areInRow: false)
        } catch .wide {
            prepare(logits, format, into: row.base, count: vocab)
            let sum = try sumShifted()
            return Totals(whole: sum, kept: sum, areInRow: true)
        }
    }

    /// The distribution cut to the kept set.
    private func totalKept(
        _ logits: UnsafeRawPointer, _ format: Format, _ keptSet: KeptSet
    ) throws(RowSum.Failure) -> Totals {
        prepare(logits, format, into: row.base, count: vocab)
        let whole: RowSum
        do {
            whole = try sum(UnsafeRawPointer(row.base), .fp32, rule.temperatureOnly)
        } catch .wide {
            whole = try sumShifted()  // leaves the row shifted
        }
        let threshold = keptSet.threshold(UnsafeBufferPointer(start: row.base, count: vocab))
        for v in 0..<vocab where row.base[v] < threshold { row.base[v] = -.infinity }
        kernels.lse_row(
            blocks.base, row.base, Format.fp32.rawValue, vocab, [rule.temperatureOnly], wantsEntropy ? 1 : 0)
        return Totals(whole: whole, kept: try RowSum(blockBuffer, shift: whole.shift), areInRow: true)
    }

    private func score(
        _ totals: Totals, _ logits: UnsafeRawPointer, _ format: Format, target: Int
    ) -> RowScore {
        guard keptSet != nil else { return score(totals.kept, prepare(logits, format, at: target)) }
        var result = score(totals.kept, row.base[target] + totals.whole.shift)
        result.keptMass = totals.kept.share(of: totals.whole)
        return result
    }

    private var blockBuffer: UnsafeBufferPointer<lsk_lse_block> {
        UnsafeBufferPointer(start: blocks.base, count: blocks.count)
    }

    private func sum(
        _ logits: UnsafeRawPointer, _ format: Format, _ rule: lsk_logit_rule
    ) throws(RowSum.Failure) -> RowSum {
        withUnsafePointer(to: rule) {
            kernels.lse_row(blocks.base, logits, format.rawValue, vocab, $0, wantsEntropy ? 1 : 0)
        }
        return try RowSum(blockBuffer)
    }

    /// Subtracts the maximum of the prepared row, in place, and adds it up.
    private func sumShifted() throws(RowSum.Failure) -> RowSum {
        var highest = -Float.infinity
        for v in 0..<vocab {
            let logit = row.base[v]
            guard logit < .infinity else { throw .notFinite }  // also NaN
            highest = max(highest, logit)
        }
        if highest == -.infinity { throw .onlyNegativeInfinity }
        for v in 0..<vocab { row.base[v] -= highest }
        withUnsafePointer(to: rule.temperatureOnly) {
            kernels.lse_row(
                blocks.base, row.base, Format.fp32.rawValue, vocab, $0, wantsEntropy ? 1 : 0)
        }
        return try RowSum(blockBuffer, shift: highest)
    }

    /// Writes logits as the softmax sees them, but for the temperature.
    private func prepare(
        _ logits: UnsafeRawPointer, _ format: Format, into out: UnsafeMutablePointer<Float>, count: Int
    ) {
        withUnsafePointer(to: rule) { kernels.prepare_row(out, logits, format.rawValue, count, $0, 0) }
    }

    /// One logit as the softmax sees it, but for the temperature.
    private func prepare(_ logits: UnsafeRawPointer, _ format: Format, at index: Int) -> Float {
        var logit: Float = 0
        withUnsafePointer(to: rule) {
            kernels.prepare_row(&logit, logits + index * format.byteCount, format.rawValue, 1, $0, 0)
        }
        return logit
    }
}
