/// Weights for the tokens of a batch, which of them to keep, and what was done.
public struct Correction: Equatable, Sendable {
    /// The weight of each token of each sequence; 0 where a token does not count.
    public var weights: [[Float]]
    /// Whether a token counts and no rule rejects it.
    public var kept: [[Bool]]
    /// What the correction did.
    public var report: CorrectionReport
}

/// Weighs the tokens of a batch, one array for each sequence, and says which of them to keep.
///
/// - Parameters:
///   - trainer: ln pi of each sequence's tokens, nats. For two policies, give the current one here.
///   - rollout: ln mu of the same tokens.
///   - mask: which tokens count; all without it.
///   - current: log-probs of the policy that is updated, if a rejection compares it.
///   - advantages: one for each sequence, if a rejection has a side.
///   - options: weights, bounds, and who is left out.
///   - policy: what to do with a NaN or infinity at a token that counts.
///   - execution: threads and instruction set; the result does not depend on them.
/// - Throws: `.invalidArgument` for lengths and bounds that do not fit, and for what is missing; `.nonFinite`
///   naming sequence and position.
/// - Returns: weights, who is kept, and the report. `TokenBatch.correct` does the same in place.
public func correct<Trainer: StorageFormat, Rollout: StorageFormat>(
    trainer: [[Trainer]], rollout: [[Rollout]], mask: [[Bool]]? = nil, current: [[Trainer]]? = nil,
    advantages: [Float]? = nil, options: CorrectionOptions = .init(),
    nonFinite policy: NonFinitePolicy = .strict, execution: Execution = .init()
) throws(LockstepError) -> Correction {
    if let current { try checkLengths(current, "current_log_probs", trainer) }
    let packed = Array((current ?? []).joined())
    return try withLogProbPair(trainer: trainer, rollout: rollout, mask: mask) {
        (pair) throws(LockstepError) in
        try packed.withVectorView { (packed) throws(LockstepError) in
            try (advantages ?? []).withVectorView { (values) throws(LockstepError) in
                var batch = TokenBatch(layout: pair.layout)
                batch.trainer = pair.trainer
                batch.rollout = pair.rollout
                batch.current = current == nil ? nil : row(packed)
                batch.advantages = advantages == nil ? nil : .perSequence(values)
                var weights = [Float](repeating: 0, count: pair.layout.tokens)
                var kept = [UInt8](repeating: 0, count: pair.layout.tokens)
                let report = try weights.withUnsafeMutableBufferPointer { (weights) throws(LockstepError) in
                    try kept.withUnsafeMutableBufferPointer { (kept) throws(LockstepError) in
                        try batch.correct(
                            weights: MutableMatrixView(
                                weights.baseAddress, .fp32, rows: 1, columns: kept.count),
                            kept: MutableMaskView(kept.baseAddress, rows: 1, columns: kept.count),
                            options: options, nonFinite: policy, execution: execution)
                    }
                }
                var start = 0
                var result = Correction(weights: [], kept: [], report: report)
                for sequence in trainer {
                    let range = start..<start + sequence.count
                    result.weights.append(Array(weights[range]))
                    result.kept.append(kept[range].map { $0 != 0 })
                    start = range.upperBound
                }
                return result
            }
        }
    }
}
