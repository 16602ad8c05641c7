import CLockstepKernels

/// What comes from the loss: gradients with respect to each token's log-prob and entropy.
public struct LogProbGradients {
    /// dL / d log_prob: [tokens]; nil means zero.
    public var logProbs: VectorView?
    /// dL / d entropy: [tokens]; nil means zero.
    public var entropy: VectorView?
    /// ln sum of exponentials, [tokens] in fp64, as the forward call with the same options left it.
    ///
    /// nil computes it again; the gradient has the same bits either way.
    public var logSumExp: VectorView?

    /// Creates a set of upstream gradients.
    public init(logProbs: VectorView? = nil, entropy: VectorView? = nil, logSumExp: VectorView? = nil) {
        self.logProbs = logProbs
        self.entropy = entropy
        self.logSumExp = logSumExp
    }

    func check(tokens: Int) throws(LockstepError) {
        let named: [(StaticString, VectorView?, [Format])] = [
            ("d_log_probs", logProbs, [.fp32, .fp64]), ("d_entropy", entropy, [.fp32, .fp64]),
            ("log_sum_exp", logSumExp, [.fp64]),
        ]
        for (name, view, formats) in named {
            guard let view else { continue }
            guard view.count == tokens, formats.contains(view.format) else {
                let list = formats.map(\.description).joined(separator: " or ")
                throw LockstepError(
                    .invalidArgument,
                    "\(name): has \(view.count) elements of \(view.format); give \(tokens) of \(list)")
            }
        }
    }

    /// Whether a forward pass is needed: for the sum, or for an entropy.
    var needsForward: Bool { logSumExp == nil || entropy != nil }
}

/// The softmax gradient of every counted row, ready for the kernels.
final class GradientRows: @unchecked Sendable {
    private let rows: Scratch<lsk_gradient_row>
    private let counted: Scratch<Bool>

    /// `scores` are those of a forward pass; not read where `gradients` bring all that is needed.
    init(
        _ gradients: LogProbGradients, scores: borrowing Scratch<RowScore>, targets: TokenView,
        options: LogProbOptions
    ) throws(LockstepError) {
        rows = try Scratch(count: targets.count)
        counted = try Scratch(count: targets.count, filledWith: false)
        for token in 0..<targets.count where targets[token] != options.ignoreIndex {
            let logSumExp = gradients.logSumExp?.double(token) ?? scores.base[token].logSumExp
            guard logSumExp.isFinite else {
                throw LockstepError(
                    .nonFinite,
                    "log_sum_exp[\(token)] is \(logSumExp); give what the forward call wrote, or NULL")
            }
            guard
                let row = lsk_gradient_row(
                    logSumExp: logSumExp, entropy: gradients.needsForward ? scores.base[token].entropy : 0,
                    dLogProb: gradients.logProbs?.double(token) ?? 0,
                    dEntropy: gradients.entropy?.double(token) ?? 0, temperature: options.temperature)
            else {
                throw LockstepError(
                    .invalidArgument,
                    "log_sum_exp[\(token)] is \(logSumExp), which no logits have; give what the forward call "
                        + "wrote, or NULL")
            }
            counted.base[token] = true
            rows.base[token] = row
        }
    }

    /// The row of a token that counts; nil for an ignored one.
    subscript(token: Int) -> lsk_gradient_row? { counted.base[token] ? rows.base[token] : nil }
}

extension lsk_gradient_row {
    /// p = e^(y - logSumExp), as e^y 2^-reference times the inverse of what is left of the sum; nil for a
    /// sum that no row of floats has.
    init?(
        logSumExp: Double, entropy: Double, dLogProb: Double, dEntropy: Double, temperature: Double
    ) {
        // Rows far from zero: subtract in the logits first, as the forward does.
        let shift = abs(logSumExp) > 524_288 ? Float(logSumExp * temperature) : 0
        let sum = logSumExp - Double(shift) / temperature
        let reference = (sum / octave).rounded(.toNearestOrEven)
        guard abs(reference) <= 1_048_576 else { return nil }  // false for a NaN too
        let logSum = sum - reference * octave
        self.init(
            d_log_prob: Float(dLogProb), d_entropy: Float(dEntropy), inverse_sum: Float(exponential(-logSum)),
            entropy_offset: Float(entropy - logSum), shift: shift, reference: Int32(reference))
    }
}

/// Gradient with respect to the logits [tokens x vocab] of `sum_t dLogProb_t log_prob_t + dEntropy_t entropy_t`.
///
/// `dL/dy_v = dLogProb (1[v = target] - p_v) - dEntropy p_v (ln p_v + entropy)`, then through temperature and
/// soft-cap; rounding to `logitsFormat` passes gradients straight through. `dLogits` (fp32, fp16 or bf16) is
/// written, not accumulated, and may be the logits themselves. Rows at `ignoreIndex` get zeros.
///
/// - Throws: as `logProbs`; `.unsupported` for top-k and top-p. `dLogits` is then untouched.
public func logProbsBackward(
    into dLogits: MutableMatrixView, _ gradients: LogProbGradients, logits: MatrixView, targets: TokenView,
    options: LogProbOptions = .init(), execution: Execution = .init()
) throws(LockstepError) {
    try withLockstepFloatMode { () throws(LockstepError) in
        try checkFormat(logits.format, "logits")
        try checkFormat(dLogits.format, "d_logits")
        guard dLogits.rows == logits.rows, dLogits.columns == logits.columns else {
            throw LockstepError(
                .invalidArgument,
                "d_logits: is \(dLogits.rows) x \(dLogits.columns) but logits is \(logits.rows) x \(logits.columns)"
            )
        }
        try checkInPlace(dLogits, logits)
        try checkTargets(
            targets, tokens: logits.rows, vocab: logits.columns, ignoreIndex: options.ignoreIndex)
        try gradients.check(tokens: logits.rows)
        let rule = try options.rule()
        guard !options.truncates else {
            throw LockstepError(
                .unsupported, "top_k, top_p and min_p have no backward; use the untruncated log-prob")
        }
        let kernels = try execution.kernels()
        let threads = try execution.threadCount()
        if logits.rows == 0 { return }

        let scores = try Scratch(count: logits.rows, filledWith: RowScore())
        if gradients.needsForward {
            try scoreRows(
                logits, targets, options, kernels, threads: threads, wantsEntropy: gradients.entropy != nil,
                into: scores.base)
        }
        let rows = try GradientRows(gradients, scores: scores, targets: targets, options: options)
        let rowBytes = logits.columns * dLogits.format.byteCount
        parallelFor(tasks: logits.rows, threads: threads) { token, _ in
            let out = dLogits.row(token)
            guard let row = rows[token] else {
                out.initializeMemory(as: UInt8.self, repeating: 0, count: rowBytes)
                return
            }
            withUnsafePointer(to: (rule, row)) {
                kernels.pointee.gradient_row(
                    out, dLogits.format.rawValue, logits.row(token), logits.format.rawValue, logits.columns,
                    targets[token], $0.pointer(to: \.0)!, $0.pointer(to: \.1)!)
            }
        }
    }
}

/// An output may be the input itself, never a part of it.
private func checkInPlace(_ output: MutableMatrixView, _ input: MatrixView) throws(LockstepError) {
    guard let out = output.base, let x = input.base, output.rows > 0, output.columns > 0 else { return }
    if UnsafeRawPointer(out) == x, output.format == input.format, output.rowStride == input.rowStride {
        return
    }
    func end(_ base: UnsafeRawPointer, _ stride: Int, _ format: Format) -> UnsafeRawPointer {
        base + ((output.rows - 1) * stride + output.columns) * format.byteCount
    }
    guard
        output.rowStride < 0 || input.rowStride < 0
            || UnsafeRawPointer(out) >= end(x, input.rowStride, input.format)
            || x >= end(UnsafeRawPointer(out), output.rowStride, output.format)
    else {
        throw LockstepError(
            .invalidArgument,
            "d_logits overlaps logits without being the same matrix; give other memory, or the logits themselves"
        )
    }
}
