// The log-probs of arrays that Swift owns: the same calls and the same bits as those on borrowed views,
// which write only what is asked for, into memory of the caller.

/// What is known about each token; all in nats.
public struct TokenScores: Sendable {
    /// ln softmax of the target.
    public var logProbs: [Float]
    /// Entropy of the softmax.
    public var entropy: [Float]
    /// ln of the sum of exponentials; the backward can be given it.
    public var logSumExp: [Double]
    /// The probability of the kept set before it was cut: 1 without `topK` and `topP`.
    public var keptMass: [Float]

    /// Room for `tokens` tokens, filled by `body`.
    fileprivate init(
        tokens: Int, _ body: (LogProbOutputs) throws(LockstepError) -> Void
    ) throws(LockstepError) {
        logProbs = .init(repeating: 0, count: tokens)
        entropy = .init(repeating: 0, count: tokens)
        logSumExp = .init(repeating: 0, count: tokens)
        keptMass = .init(repeating: 1, count: tokens)
        try logProbs.withMutableVectorView { (logProbs) throws(LockstepError) in
            try entropy.withMutableVectorView { (entropy) throws(LockstepError) in
                try logSumExp.withMutableVectorView { (logSumExp) throws(LockstepError) in
                    try keptMass.withMutableVectorView { (keptMass) throws(LockstepError) in
                        try body(
                            LogProbOutputs(
                                logProbs: logProbs, entropy: entropy, logSumExp: logSumExp, keptMass: keptMass
                            ))
                    }
                }
            }
        }
    }
}

/// Log-prob of each row's target, with entropy, log-sum-exp and kept mass, from logits [tokens x vocab].
///
/// - Throws: `.invalidArgument` for a format other than fp32, fp16 and bf16, and for shapes, options and
///   targets out of range; `.nonFinite` naming a row with a NaN, +inf, or only -inf.
public func logProbs<Logit: StorageFormat>(
    logits: Matrix<Logit>, targets: [Int32], options: LogProbOptions = .init(), execution: Execution = .init()
) throws(LockstepError) -> TokenScores {
    try TokenScores(tokens: logits.rows) { (outputs) throws(LockstepError) in
        try logits.withView { (logits) throws(LockstepError) in
            try targets.withTokenView { (targets) throws(LockstepError) in
                try logProbs(
                    logits: logits, targets: targets, options: options, into: outputs, execution: execution)
            }
        }
    }
}

/// Log-prob of each row's target, with entropy and log-sum-exp, from hidden states [tokens x H] and a head
/// [vocab x H] (+ bias [vocab]); the logits are never held.
///
/// - Throws: as `logProbs`, and `.unsupported` for top-k and top-p.
public func linearLogProbs<Hidden: StorageFormat, Weight: StorageFormat>(
    hidden: Matrix<Hidden>, weight: Matrix<Weight>, bias: [Weight]? = nil, targets: [Int32],
    options: LogProbOptions = .init(), execution: Execution = .init()
) throws(LockstepError) -> TokenScores {
    try TokenScores(tokens: hidden.rows) { (outputs) throws(LockstepError) in
        try withLinearViews(hidden, weight, bias, targets) {
            (hidden, weight, bias, targets) throws(LockstepError) in
            try linearLogProbs(
                hidden: hidden, weight: weight, bias: bias, targets: targets, options: options,
                into: outputs, execution: execution)
        }
    }
}

extension Head {
    /// A head with a copy of `weight` [vocab x H] and `bias` [vocab].
    ///
    /// - Throws: `.invalidArgument` for formats and shapes, `.outOfMemory`.
    public static func packing<Weight: StorageFormat>(
        _ weight: Matrix<Weight>, bias: [Weight]? = nil
    ) throws(LockstepError) -> Head {
        try weight.withView { (weight) throws(LockstepError) in
            try withOptionalVectorView(bias) { (bias) throws(LockstepError) in
                try Head(weight: weight, bias: bias)
            }
        }
    }

    /// `linearLogProbs` with this head: the same bits, faster for few tokens.
    ///
    /// - Throws: as `linearLogProbs`.
    public func logProbs<Hidden: StorageFormat>(
        hidden: Matrix<Hidden>, targets: [Int32], options: LogProbOptions = .init(),
        execution: Execution = .init()
    ) throws(LockstepError) -> TokenScores {
        try TokenScores(tokens: hidden.rows) { (outputs) throws(LockstepError) in
            try hidden.withView { (hidden) throws(LockstepError) in
                try targets.withTokenView { (targets) throws(LockstepError) in
                    try logProbs(
                        hidden: hidden, targets: targets, options: options, into: outputs,
                        execution: execution)
                }
            }
        }
    }
}

/// Gradient with respect to the logits of `sum_t dLogProbs_t log_prob_t + dEntropy_t entropy_t`.
///
/// - Parameters:
///   - logits: [tokens x vocab]; fp32, fp16 or bf16, and so is the gradient.
///   - targets: [tokens], as in the forward call.
///   - dLogProbs: dL / d log_prob: [tokens].
///   - dEntropy: dL / d entropy: [tokens]; zero without it.
///   - options: those of the forward call.
///   - execution: threads and instruction set; the result does not depend on them.
/// - Throws: as `logProbs`; `.unsupported` for top-k and top-p.
/// - Returns: the gradient: [tokens x vocab].
public func logProbsBackward<Logit: StorageFormat>(
    logits: Matrix<Logit>, targets: [Int32], dLogProbs: [Float], dEntropy: [Float]? = nil,
    options: LogProbOptions = .init(), execution: Execution = .init()
) throws(LockstepError) -> Matrix<Logit> {
    var gradient = logits
    try gradient.withMutableView { (gradient) throws(LockstepError) in
        try withGradients(dLogProbs, dEntropy) { (upstream) throws(LockstepError) in
            try targets.withTokenView { (targets) throws(LockstepError) in
                // In place: the copy of the logits becomes their gradient.
                let logits = MatrixView(
                    gradient.base, gradient.format, rows: gradient.rows, columns: gradient.columns)
                try logProbsBackward(
                    into: gradient, upstream, logits: logits, targets: targets, options: options,
                    execution: execution)
            }
        }
    }
    return gradient
}

/// Gradients with respect to hidden states, head and bias.
///
/// - Parameters:
///   - hidden: [tokens x H].
///   - weight: [vocab x H].
///   - bias: [vocab]; none by default.
///   - targets: [tokens], as in the forward call.
///   - dLogProbs: dL / d log_prob: [tokens].
///   - dEntropy: dL / d entropy: [tokens]; zero without it.
///   - options: those of the forward call.
///   - execution: threads and instruction set; the result does not depend on them.
/// - Throws: as `linearLogProbs`.
/// - Returns: the gradients in fp32: [tokens x H], [vocab x H], [vocab].
public func linearLogProbsBackward<Hidden: StorageFormat, Weight: StorageFormat>(
    hidden: Matrix<Hidden>, weight: Matrix<Weight>, bias: [Weight]? = nil, targets: [Int32],
    dLogProbs: [Float], dEntropy: [Float]? = nil, options: LogProbOptions = .init(),
    execution: Execution = .init()
) throws(LockstepError) -> (dHidden: Matrix<Float>, dWeight: Matrix<Float>, dBias: [Float]) {
    var dHidden = Matrix<Float>(zeros: hidden.rows, hidden.columns, as: 0)
    var dWeight = Matrix<Float>(zeros: weight.rows, weight.columns, as: 0)
    var dBias = [Float](repeating: 0, count: weight.rows)
    try dHidden.withMutableView { (dHidden) throws(LockstepError) in
        try dWeight.withMutableView { (dWeight) throws(LockstepError) in
            try dBias.withMutableVectorView { (dBias) throws(LockstepError) in
                let buffers = LinearGradients(hidden: dHidden, weight: dWeight, bias: dBias)
                try withGradients(dLogProbs, dEntropy) { (upstream) throws(LockstepError) in
                    try withLinearViews(hidden, weight, bias, targets) {
                        (hidden, weight, bias, targets) throws(LockstepError) in
                        try linearLogProbsBackward(
                            into: buffers, upstream, hidden: hidden, weight: weight, bias: bias,
                            targets: targets, options: options, execution: execution)
                    }
                }
            }
        }
    }
    return (dHidden, dWeight, dBias)
}

private func withGradients(
    _ dLogProbs: [Float], _ dEntropy: [Float]?,
    _ body: (LogProbGradients) throws(LockstepError) -> Void
) throws(LockstepError) {
    try dLogProbs.withVectorView { (dLogProbs) throws(LockstepError) in
        try withOptionalVectorView(dEntropy) { (dEntropy) throws(LockstepError) in
            try body(LogProbGradients(logProbs: dLogProbs, entropy: dEntropy))
        }
    }
}

private func withLinearViews<Hidden: StorageFormat, Weight: StorageFormat>(
    _ hidden: Matrix<Hidden>, _ weight: Matrix<Weight>, _ bias: [Weight]?, _ targets: [Int32],
    _ body: (MatrixView, MatrixView, VectorView?, TokenView) throws(LockstepError) -> Void
) throws(LockstepError) {
    try hidden.withView { (hidden) throws(LockstepError) in
        try weight.withView { (weight) throws(LockstepError) in
            try withOptionalVectorView(bias) { (bias) throws(LockstepError) in
                try targets.withTokenView { (targets) throws(LockstepError) in
                    try body(hidden, weight, bias, targets)
                }
            }
        }
    }
}

private func withOptionalVectorView<Element: StorageFormat, Result>(
    _ values: [Element]?, _ body: (VectorView?) throws(LockstepError) -> Result
) throws(LockstepError) -> Result {
    guard let values else { return try body(nil) }
    return try values.withVectorView { (view) throws(LockstepError) in try body(view) }
}
