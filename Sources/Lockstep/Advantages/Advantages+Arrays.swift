/// Advantages of sequences from their rewards and groups, for estimators that need nothing else: GRPO, Dr. GRPO,
/// leave-one-out, GPG, pass@k and MaxRL. The others take a `RewardBatch`.
///
/// - Parameters:
///   - rewards: what each sequence earned.
///   - groups: which prompt each sequence answers.
///   - truncated: which sequences were cut off at the length limit; for `options.truncated`.
///   - options: the estimator and its options.
/// - Throws: `.invalidArgument` for what is missing or does not fit, `.nonFinite` naming a reward.
/// - Returns: an advantage for each sequence.
public func advantages<Reward: StorageFormat>(
    rewards: [Reward], groups: [Int], truncated: [Bool]? = nil, options: AdvantageOptions = .init()
) throws(LockstepError) -> [Double] {
    var advantages = [Double](repeating: 0, count: rewards.count)
    let flags: [UInt8]? = truncated.map { $0.map { $0 ? 1 : 0 } }
    try rewards.withVectorView { (rewards) throws(LockstepError) in
        try groups.withUnsafeBufferPointer { (groups) throws(LockstepError) in
            try (flags ?? []).withUnsafeBufferPointer { (bytes) throws(LockstepError) in
                try advantages.withMutableVectorView { (output) throws(LockstepError) in
                    var batch = RewardBatch(.perSequence(rewards))
                    batch.groups = TokenView(groups.baseAddress, byteCount: 8, count: groups.count)
                    if flags != nil {
                        batch.truncated = MaskView(bytes.baseAddress, rows: bytes.count, columns: 1)
                    }
                    try batch.advantages(into: .perSequence(output), options: options)
                }
            }
        }
    }
    return advantages
}
