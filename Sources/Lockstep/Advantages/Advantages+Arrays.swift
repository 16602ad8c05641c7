/// Advantages of sequences from their rewards and groups, for estimators that need nothing else.
///
/// These are GRPO, Dr. GRPO, leave-one-out, GPG, pass@k and MaxRL. For the others there is
/// `advantages(tokenRewards:)`, and `RewardBatch`.
///
/// - Parameters:
///   - rewards: what each sequence earned, fp32 or fp64.
///   - groups: which prompt each sequence answers.
///   - truncated: which sequences were cut off at the length limit; for `options.truncated`.
///   - options: the estimator and its options.
/// - Throws: `.invalidArgument` for what is missing or does not fit, `.nonFinite` naming a reward.
/// - Returns: an advantage for each sequence.
public func advantages<Value: StorageFormat>(
    rewards: [Value], groups: [Int], truncated: [Bool]? = nil, options: AdvantageOptions = .init()
) throws(LockstepError) -> [Double] {
    let (earned, groups, flags) = (Packed(rewards), Packed(groups), truncated.map { Packed($0) })
    var advantages = [Double](repeating: 0, count: rewards.count)
    try advantages.withMutableVectorView { (output) throws(LockstepError) in
        var batch = RewardBatch(.perSequence(earned.vector))
        batch.groups = groups.integers
        batch.truncated = flags?.flags
        try batch.advantages(into: .perSequence(output), options: options)
        withExtendedLifetime((earned, groups, flags)) {}
    }
    return advantages
}

/// Advantages of tokens, one array for each sequence; for every estimator but GDPO.
///
/// A sequence's own reward is given as that of its last token, all others being 0.
///
/// - Parameters:
///   - rewards: what each token earned, fp32 or fp64.
///   - mask: which tokens count; all without it.
///   - groups: which prompt each sequence answers.
///   - truncated: which sequences were cut off at the length limit; for `options.truncated`.
///   - baselines: the reward each sequence is compared with (ReMax).
///   - values: a critic's values of the tokens (GAE).
///   - logProbs: the trainer's log-probs (optimal token baselines).
///   - squaredMass: the sum of squared probabilities over the vocabulary (optimal token baselines).
///   - weights: a correction's weights (optimal token baselines).
///   - options: the estimator and its options.
/// - Throws: `.invalidArgument` for what is missing or does not fit, `.nonFinite` naming a value.
/// - Returns: advantages, 0 where a token does not count, and what was compared with the baseline.
public func advantages<Value: StorageFormat>(
    tokenRewards rewards: [[Value]], mask: [[Bool]]? = nil, groups: [Int]? = nil, truncated: [Bool]? = nil,
    baselines: [Value]? = nil, values: [[Value]]? = nil, logProbs: [[Value]]? = nil,
    squaredMass: [[Value]]? = nil, weights: [[Value]]? = nil, options: AdvantageOptions = .init()
) throws(LockstepError) -> (advantages: [[Double]], returns: [[Double]]) {
    func packed<Element>(
        _ sequences: [[Element]]?, _ name: StaticString
    ) throws(LockstepError) -> Packed<Element>? {
        guard let sequences else { return nil }
        try checkLengths(sequences, name, rewards, "rewards")
        return Packed(Array(sequences.joined()))
    }
    var offsets = [0]
    for sequence in rewards { offsets.append(offsets.last! + sequence.count) }
    let count = offsets.last!
    let bounds = Packed(offsets)
    let earned = Packed(Array(rewards.joined()))
    let (mask, values) = (try packed(mask, "mask"), try packed(values, "values"))
    let (log, mass) = (try packed(logProbs, "trainer_log_probs"), try packed(squaredMass, "squared_mass"))
    let (weights, groups) = (try packed(weights, "weights"), groups.map { Packed($0) })
    let (flags, baselines) = (truncated.map { Packed($0) }, baselines.map { Packed($0) })
    let advantages = Packed([Double](repeating: 0, count: count))
    let returns = Packed([Double](repeating: 0, count: count))

    var batch = RewardBatch(.perToken(earned.row))
    batch.layout = try SequenceLayout(
        rows: 1, columns: count, mask: mask?.row, offsets: bounds.integers, of: "rewards")
    batch.groups = groups?.integers
    batch.truncated = flags?.flags
    batch.baselines = baselines?.vector
    batch.values = values?.row
    batch.logProbs = log?.row
    batch.squaredMass = mass?.row
    batch.weights = weights?.row
    try batch.advantages(
        into: .perToken(advantages.mutableRow), returns: .perToken(returns.mutableRow), options: options)
    withExtendedLifetime((bounds, earned, mask, values, log, mass, weights)) {}
    withExtendedLifetime((groups, flags, baselines)) {}
    func cut(_ values: Packed<Double>) -> [[Double]] {
        rewards.indices.map { Array(values.memory[offsets[$0]..<offsets[$0 + 1]]) }
    }
    return (cut(advantages), cut(returns))
}

/// An array that stays where its views point.
private final class Packed<Element> {
    let memory: UnsafeMutableBufferPointer<Element>

    init(_ values: [Element]) {
        memory = .allocate(capacity: values.count)
        _ = memory.initialize(from: values)
    }

    deinit { memory.deallocate() }
}

extension Packed where Element: StorageFormat {
    var vector: VectorView { VectorView(memory.baseAddress, Element.format, count: memory.count) }
    var row: MatrixView { MatrixView(memory.baseAddress, Element.format, rows: 1, columns: memory.count) }
    var mutableRow: MutableMatrixView {
        MutableMatrixView(memory.baseAddress, Element.format, rows: 1, columns: memory.count)
    }
}

extension Packed where Element == Int {
    var integers: TokenView { TokenView(memory.baseAddress, byteCount: 8, count: memory.count) }
}

extension Packed where Element == Bool {
    private var bytes: UnsafePointer<UInt8>? {
        memory.baseAddress.map { UnsafeRawPointer($0).assumingMemoryBound(to: UInt8.self) }
    }
    /// A row of one for each token.
    var row: MaskView { MaskView(bytes, rows: 1, columns: memory.count) }
    /// One for each sequence.
    var flags: MaskView { MaskView(bytes, rows: memory.count, columns: 1) }
}
