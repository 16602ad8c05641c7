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
            if let keptSet { return try scoreKept(logits, format, target: target, keptSet) }
            let logit = prepare(logits, format, at: target)
            do {
                return score(try sum(logits, format, rule), logit)
            } catch .wide {
                prepare(logits, format, shift: 0)
                return score(try sumShifted(), logit)
            }
        } catch {
            return RowScore(failure: error.rawValue)
        }
    }

    /// Draws a token of a row of logits: the first at which the sum of probabilities, in the order of the vocabulary,
    /// passes the share `uniform`, in [0, 1), of all that are kept.
    func draw(_ logits: UnsafeRawPointer, _ format: Format, uniform: Double) throws(RowSum.Failure) -> Int {
        prepare(logits, format, shift: 0)
        var highest = -Float.infinity
        for v in 0..<vocab { highest = max(highest, row.base[v]) }
        guard highest > -.infinity else { throw .onlyNegativeInfinity }
        let threshold = keptSet?.threshold(UnsafeBufferPointer(start: row.base, count: vocab)) ?? -.infinity
        for v in 0..<vocab { row.base[v] = row.base[v] >= threshold ? row.base[v] - highest : -.infinity }
        let whole = try sum(UnsafeRawPointer(row.base), .fp32, rule.temperatureOnly)
        // The softmax, but for a factor: its gradient with respect to a target that is not there.
        var gradient = lsk_gradient_row()
        gradient.d_log_prob = -1
        gradient.inverse_sum = Float(1 / whole.sum)
        gradient.reference = whole.reference
        withUnsafePointer(to: rule.temperatureOnly) {
            kernels.gradient_row(
                row.base, Format.fp32.rawValue, row.base, Format.fp32.rawValue, vocab, -1, $0, &gradient)
        }
        var total = 0.0
        for v in 0..<vocab { total += Double(row.base[v]) }
        let wanted = uniform * total
        var reached = 0.0
        var last = 0
        for v in 0..<vocab where row.base[v] > 0 {
            reached += Double(row.base[v])
            if reached > wanted { return v }
            last = v
        }
        return last
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

    /// The distribution cut to the kept set and renormalised.
    private func scoreKept(
        _ logits: UnsafeRawPointer, _ format: Format, target: Int, _ keptSet: KeptSet
    ) throws(RowSum.Failure) -> RowScore {
        prepare(logits, format, shift: 0)
        let whole: RowSum
        do {
            whole = try sum(UnsafeRawPointer(row.base), .fp32, rule.temperatureOnly)
        } catch .wide {
            whole = try sumShifted()  // leaves the row shifted
        }
        let logit = row.base[target] + whole.shift
        let threshold = keptSet.threshold(UnsafeBufferPointer(start: row.base, count: vocab))
        let isKept = row.base[target] >= threshold
        for v in 0..<vocab where row.base[v] < threshold { row.base[v] = -.infinity }
        kernels.lse_row(
            blocks.base, row.base, Format.fp32.rawValue, vocab, [rule.temperatureOnly], wantsEntropy ? 1 : 0)
        let kept = try RowSum(blockBuffer, shift: whole.shift)
        var result = score(kept, isKept ? logit : -.infinity)
        result.keptMass = kept.share(of: whole)
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

    /// Writes the row as the softmax sees it, but for the temperature.
    private func prepare(_ logits: UnsafeRawPointer, _ format: Format, shift: Float) {
        withUnsafePointer(to: rule) {
            kernels.prepare_row(row.base, logits, format.rawValue, vocab, $0, shift)
        }
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
