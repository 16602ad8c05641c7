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
        try hidden.withView { (hidden) throws(LockstepError) in
            try weight.withView { (weight) throws(LockstepError) in
                try withOptionalVectorView(bias) { (bias) throws(LockstepError) in
                    try targets.withTokenView { (targets) throws(LockstepError) in
                        try linearLogProbs(
                            hidden: hidden, weight: weight, bias: bias, targets: targets, options: options,
                            into: outputs, execution: execution)
                    }
                }
            }
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

private func withOptionalVectorView<Element: StorageFormat, Result>(
    _ values: [Element]?, _ body: (VectorView?) throws(LockstepError) -> Result
) throws(LockstepError) -> Result {
    guard let values else { return try body(nil) }
    return try values.withVectorView { (view) throws(LockstepError) in try body(view) }
}
