import CLockstep
import Lockstep

// Section 7 of the header: advantages.

extension lockstep_rewards: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_rewards>.size }
}

extension lockstep_advantage_options: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_advantage_options>.size }
}

@_cdecl("lockstep_advantages") @implementation
public func lockstep_advantages(
    _ advantages: UnsafePointer<lockstep_tensor>!, _ returns: UnsafePointer<lockstep_tensor>!,
    _ rewards: UnsafePointer<lockstep_rewards>!, _ batch: UnsafePointer<lockstep_batch>!,
    _ options: UnsafePointer<lockstep_advantage_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let options = try advantageOptions(options)
        let (batch, checked) = try rewardBatch(rewards, batch, options.estimator)
        guard let into = try advantageOutput(advantages, "advantages", batch.sequences, checked) else {
            throw invalid("advantages is NULL")
        }
        try batch.advantages(
            into: into, returns: try advantageOutput(returns, "returns", batch.sequences, checked),
            options: options)
    }
}

@_cdecl("lockstep_overlong_penalty") @implementation
public func lockstep_overlong_penalty(
    _ penalties: UnsafePointer<lockstep_tensor>!, _ lengths: UnsafePointer<lockstep_tensor>!,
    _ max_length: Int64, _ buffer: Int64, _ factor: Double
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let lengths = try CheckedTensor(lengths, "lengths").tokens("[sequences]")
        let tensor = try CheckedTensor(penalties, "penalties")
        let output = try tensor.mutableVector("[sequences]")
        try tensor.expect(0, is: lengths.count, "the number of lengths")
        try overlongPenalties(
            lengths, into: output, maxLength: Int(max_length), buffer: Int(buffer), factor: factor)
    }
}

func advantageOptions(
    _ pointer: UnsafePointer<lockstep_advantage_options>?
) throws(LockstepError) -> AdvantageOptions {
    var defaults = lockstep_advantage_options()
    (defaults.epsilon, defaults.gamma, defaults.lambda) = (-1, 1, 1)
    let raw = try read(pointer, defaults: defaults)
    func known<Value: RawRepresentable>(
        _ value: Int32, _ name: StaticString, _ constants: StaticString
    ) throws(LockstepError) -> Value where Value.RawValue == Int32 {
        guard let known = Value(rawValue: value) else {
            throw invalid("options: \(name) is \(value); see the \(constants) constants")
        }
        return known
    }
    func flag(_ value: Int32, _ name: StaticString) throws(LockstepError) -> Bool {
        guard value == 0 || value == 1 else { throw invalid("options: \(name) is \(value); give 0 or 1") }
        return value == 1
    }
    var options = AdvantageOptions(try known(raw.estimator, "estimator", "LOCKSTEP_ADVANTAGE"))
    options.scale = raw.scale == 0 ? nil : try known(raw.scale, "scale", "LOCKSTEP_SCALE")
    options.singles = try known(raw.singles, "singles", "LOCKSTEP_SINGLE")
    options.truncated = try known(raw.truncated, "truncated", "LOCKSTEP_TRUNCATED")
    guard (0...2).contains(raw.whiten) else {
        throw invalid("options: whiten is \(raw.whiten); see the LOCKSTEP_WHITEN constants")
    }
    options.whiten = raw.whiten == 0 ? nil : raw.whiten == 2
    options.populationStd = try flag(raw.population_std, "population_std")
    options.tailBaseline = try flag(raw.tail_baseline, "tail_baseline")
    options.epsilon = raw.epsilon == -1 ? nil : raw.epsilon
    options.gamma = raw.gamma
    options.lambda = raw.lambda
    return options
}

/// Rewards and what stands with them, and the batch of tokens if there is one.
private func rewardBatch(
    _ rewards: UnsafePointer<lockstep_rewards>?, _ batch: UnsafePointer<lockstep_batch>?,
    _ estimator: AdvantageEstimator
) throws(LockstepError) -> (RewardBatch, CheckedBatch?) {
    guard rewards != nil else { throw invalid("rewards is NULL") }
    let raw = try read(rewards, "rewards", defaults: lockstep_rewards())
    guard raw.reserved == 0 else { throw invalid("rewards: reserved is \(raw.reserved); it must be 0") }
    let (checked, groups) = try tokensAndGroups(batch)
    let earned = try CheckedTensor(raw.rewards, "rewards")
    var result = RewardBatch(try rewardValues(earned, checked, estimator))
    result.layout = checked?.batch.layout
    result.groups = groups
    result.logProbs = checked?.batch.trainer
    result.weights = checked?.batch.weights
    if let truncated = raw.truncated {
        let flags = try CheckedTensor(truncated, "truncated")
        guard [LOCKSTEP_UINT8, LOCKSTEP_BOOL].contains(Int(flags.code)) else {
            throw invalid("truncated: dtype must be uint8 or bool")
        }
        try flags.expect(dimensions: 1, "[sequences]")
        result.truncated = MaskView(
            flags.base.map { UnsafePointer($0.assumingMemoryBound(to: UInt8.self)) }, rows: flags.shape[0],
            columns: 1, rowStride: flags.strides[0])
    }
    let formats: [Format] = [.fp32, .fp64, .fp16, .bf16]  // the core says why 16 bits are refused
    if let baselines = raw.baselines {
        result.baselines = try CheckedTensor(baselines, "baselines").vector(formats, "[sequences]")
    }
    if let weights = raw.kind_weights {
        result.kindWeights = try CheckedTensor(weights, "kind_weights").vector(formats, "[kinds]")
    }
    if let values = raw.values { result.values = try tokens(values, "values", checked) }
    if let mass = raw.squared_mass { result.squaredMass = try tokens(mass, "squared_mass", checked) }
    return (result, checked)
}

/// A batch with arrays of tokens; or only its groups, if it has no others.
private func tokensAndGroups(
    _ pointer: UnsafePointer<lockstep_batch>?
) throws(LockstepError) -> (CheckedBatch?, TokenView?) {
    guard pointer != nil else { return (nil, nil) }
    let raw = try read(pointer, "batch", defaults: lockstep_batch())
    let arrays = [
        raw.trainer_log_probs, raw.rollout_log_probs, raw.current_log_probs, raw.reference_log_probs,
        raw.entropies, raw.weights, raw.mask, raw.kept, raw.selected, raw.offsets, raw.advantages,
    ]
    if arrays.allSatisfy({ $0 == nil }) { return (nil, try optionalIntegers(raw.groups, "groups")) }
    let checked = try CheckedBatch(pointer)
    return (checked, checked.batch.groups)
}

private func rewardValues(
    _ rewards: CheckedTensor, _ batch: CheckedBatch?, _ estimator: AdvantageEstimator
) throws(LockstepError) -> RewardValues {
    let formats: [Format] = [.fp32, .fp64, .fp16, .bf16]
    if estimator == .gdpo { return .perKind(try rewards.matrix(formats, "[sequences x kinds]")) }
    if let batch, rewards.shape == batch.shape { return .perToken(try rewards.packedOrPadded()) }
    guard rewards.shape.count == 1 else {
        throw invalid(
            "rewards: shape is \(rewards.shape); give one for each sequence, or one for each token, in the shape "
                + "of the batch" + (batch.map { ", \($0.shape)" } ?? ", and a mask"))
    }
    return .perSequence(try rewards.vector(formats, "[sequences]"))
}

private func tokens(
    _ pointer: UnsafePointer<lockstep_tensor>, _ name: StaticString, _ batch: CheckedBatch?
) throws(LockstepError) -> MatrixView {
    let tensor = try CheckedTensor(pointer, name)
    if let batch { try tensor.expect(batch.shape, as: "the batch") }
    return try tensor.packedOrPadded()
}

/// An output of one value for each token of the batch, if it has its shape, or for each sequence.
private func advantageOutput(
    _ pointer: UnsafePointer<lockstep_tensor>?, _ name: StaticString, _ sequences: Int, _ batch: CheckedBatch?
) throws(LockstepError) -> AdvantageOutput? {
    guard let pointer else { return nil }
    let tensor = try CheckedTensor(pointer, name)
    if let batch, tensor.shape == batch.shape { return .perToken(try batch.output(pointer, name)!) }
    guard tensor.shape == [sequences] else {
        throw invalid(
            "\(name): shape is \(tensor.shape); give one for each sequence, [\(sequences)]"
                + (batch.map { ", or one for each token, \($0.shape)" } ?? ""))
    }
    return .perSequence(try tensor.mutableVector("[sequences]"))
}
