import CLockstep
import Lockstep

// Section 4 of the header: mismatch.

extension lockstep_mismatch_options: GrowableOptions {
    static var firstSize: Int { 16 }
}

@_cdecl("lockstep_mismatch_measure") @implementation
public func lockstep_mismatch_measure(
    _ mismatch: UnsafeMutablePointer<lockstep_mismatch>!,
    _ trainer_log_probs: UnsafePointer<lockstep_tensor>!,
    _ rollout_log_probs: UnsafePointer<lockstep_tensor>!, _ mask: UnsafePointer<lockstep_tensor>!,
    _ offsets: UnsafePointer<lockstep_tensor>!, _ options: UnsafePointer<lockstep_mismatch_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let size = try growableSize(of: mismatch)
        let (policy, execution) = try mismatchOptions(options)
        let pair = try logProbPair(trainer_log_probs, rollout_log_probs, mask, offsets)
        write(try pair.mismatch(nonFinite: policy, execution: execution), to: mismatch, size: size)
    }
}

@_cdecl("lockstep_mismatch_sequences") @implementation
public func lockstep_mismatch_sequences(
    _ sequences: UnsafeMutablePointer<lockstep_mismatch_sequence>!, _ count: Int,
    _ trainer_log_probs: UnsafePointer<lockstep_tensor>!,
    _ rollout_log_probs: UnsafePointer<lockstep_tensor>!,
    _ mask: UnsafePointer<lockstep_tensor>!, _ offsets: UnsafePointer<lockstep_tensor>!,
    _ options: UnsafePointer<lockstep_mismatch_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let (policy, execution) = try mismatchOptions(options)
        let pair = try logProbPair(trainer_log_probs, rollout_log_probs, mask, offsets)
        guard count == pair.sequences else {
            throw invalid("count is \(UInt(bitPattern: count)) but there are \(pair.sequences) sequences")
        }
        try checkArray(sequences, "sequences", count: count)
        try pair.sequenceMismatches(nonFinite: policy, execution: execution) {
            sequences[$0] = lockstep_mismatch_sequence($1)
        }
    }
}

@_cdecl("lockstep_mismatch_profile") @implementation
public func lockstep_mismatch_profile(
    _ buckets: UnsafeMutablePointer<lockstep_mismatch_bucket>!, _ bucket_count: Int,
    _ edges: UnsafePointer<Double>!, _ axis: lockstep_mismatch_axis,
    _ trainer_log_probs: UnsafePointer<lockstep_tensor>!,
    _ rollout_log_probs: UnsafePointer<lockstep_tensor>!,
    _ mask: UnsafePointer<lockstep_tensor>!, _ offsets: UnsafePointer<lockstep_tensor>!,
    _ options: UnsafePointer<lockstep_mismatch_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let (policy, execution) = try mismatchOptions(options)
        let pair = try logProbPair(trainer_log_probs, rollout_log_probs, mask, offsets)
        guard let axis = MismatchAxis(rawValue: axis) else {
            throw invalid("axis is \(axis); see the LOCKSTEP_AXIS constants")
        }
        guard (0...1 << 24).contains(bucket_count) else {
            throw invalid("bucket_count is \(UInt(bitPattern: bucket_count)); give 16,777,216 at most")
        }
        try checkArray(buckets, "buckets", count: bucket_count)
        let edge_count = bucket_count == 0 ? 0 : bucket_count + 1
        try checkArray(edges, "edges", count: edge_count)
        try askForMemory(edge_count, bytesEach: MemoryLayout<Double>.stride)
        let edges = Array(UnsafeBufferPointer(start: edges, count: edge_count))
        let profile = try pair.mismatchProfile(
            over: axis, edges: edges, nonFinite: policy, execution: execution)
        for (index, bucket) in profile.enumerated() { buckets[index] = lockstep_mismatch_bucket(bucket) }
    }
}

@_cdecl("lockstep_mismatch_exact") @implementation
public func lockstep_mismatch_exact(
    _ mean: UnsafeMutablePointer<lockstep_divergence>!, _ rows: UnsafeMutablePointer<lockstep_divergence>!,
    _ row_count: Int, _ trainer_logits: UnsafePointer<lockstep_tensor>!,
    _ rollout_logits: UnsafePointer<lockstep_tensor>!, _ mask: UnsafePointer<lockstep_tensor>!,
    _ options: UnsafePointer<lockstep_log_probs_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let (core, execution) = try read(options, defaults: .defaults).core()
        let p = try CheckedTensor(trainer_logits, "trainer_logits").matrix(
            [.fp32, .fp16, .bf16], "[tokens x vocab]")
        let q = try CheckedTensor(rollout_logits, "rollout_logits").matrix(
            [.fp32, .fp16, .bf16], "[tokens x vocab]")
        let counted = try optionalMask(mask, like: ("a vector of the rows of trainer_logits", [p.rows]))
        guard rows == nil || row_count == p.rows else {
            throw invalid("row_count is \(UInt(bitPattern: row_count)) but there are \(p.rows) rows")
        }
        if mean != nil { try checkArray(mean, "mean", count: 1) }
        if rows != nil { try checkArray(rows, "rows", count: row_count) }
        let result = try exactDivergence(
            trainer: p, rollout: q, mask: counted, options: core, execution: execution
        ) { rows?[$0] = lockstep_divergence($1) }
        mean?.pointee = lockstep_divergence(result)
    }
}

/// Policy and execution of a mismatch call.
func mismatchOptions(
    _ pointer: UnsafePointer<lockstep_mismatch_options>?
) throws(LockstepError) -> (NonFinitePolicy, Execution) {
    var defaults = lockstep_mismatch_options()
    defaults.struct_size = UInt32(MemoryLayout<lockstep_mismatch_options>.size)
    let options = try read(pointer, defaults: defaults)
    return (
        try nonFinitePolicy(options.non_finite),
        try execution(threads: options.threads, options.instruction_set)
    )
}

/// What an option field says about values that are not finite.
func nonFinitePolicy(_ raw: lockstep_non_finite) throws(LockstepError) -> NonFinitePolicy {
    guard let policy = NonFinitePolicy(rawValue: raw) else {
        throw invalid("options: non_finite is \(raw); see the LOCKSTEP_NON_FINITE constants")
    }
    return policy
}

/// The log-probs of both policies, in either layout.
func logProbPair(
    _ trainer: UnsafePointer<lockstep_tensor>?, _ rollout: UnsafePointer<lockstep_tensor>?,
    _ mask: UnsafePointer<lockstep_tensor>?, _ offsets: UnsafePointer<lockstep_tensor>?
) throws(LockstepError) -> LogProbPair {
    let trainer = try CheckedTensor(trainer, "trainer_log_probs")
    let rollout = try CheckedTensor(rollout, "rollout_log_probs")
    guard trainer.shape == rollout.shape else {
        throw invalid(
            "rollout_log_probs: shape is \(rollout.shape) but trainer_log_probs is \(trainer.shape)")
    }
    return try LogProbPair(
        trainer: trainer.packedOrPadded(), rollout: rollout.packedOrPadded(),
        mask: try optionalMask(mask, like: ("trainer_log_probs", trainer.shape)),
        offsets: try optionalOffsets(offsets, for: trainer))
}

/// Checks that an array of the caller is there and aligned.
func checkArray<Element>(
    _ pointer: UnsafePointer<Element>?, _ name: StaticString, count: Int
) throws(LockstepError) {
    guard count == 0 || pointer != nil else { throw invalid("\(name) is NULL") }
    guard Int(bitPattern: pointer) % MemoryLayout<Element>.alignment == 0 else {
        throw invalid("\(name): is not aligned to \(MemoryLayout<Element>.alignment) bytes")
    }
}

/// The number of bytes to write of a result struct that the caller's version may know less or more of.
func growableSize(of pointer: UnsafePointer<lockstep_mismatch>?) throws(LockstepError) -> Int {
    guard let pointer else { throw invalid("mismatch is NULL") }
    let raw = UnsafeRawPointer(pointer)
    guard Int(bitPattern: raw) % MemoryLayout<lockstep_mismatch>.alignment == 0 else {
        throw invalid("mismatch: is not aligned to \(MemoryLayout<lockstep_mismatch>.alignment) bytes")
    }
    // The caller's struct may be shorter than ours: only its first field is read.
    let size = Int(raw.load(as: UInt32.self))
    let first = MemoryLayout<lockstep_mismatch>.offset(of: \.ess_standard_error)!  // what 0.1.0 began with
    guard size >= first, size <= 1 << 16 else {
        throw invalid(
            "mismatch: struct_size is \(size); set it to sizeof(lockstep_mismatch) "
                + "(\(MemoryLayout<lockstep_mismatch>.size))")
    }
    return size
}

/// Writes as many bytes of the statistics as the caller's struct has.
func write(_ statistics: Mismatch, to mismatch: UnsafeMutablePointer<lockstep_mismatch>, size: Int) {
    var result = lockstep_mismatch(statistics)
    result.struct_size = UInt32(size)
    withUnsafeBytes(of: result) {
        let known = UnsafeRawBufferPointer(rebasing: $0.prefix(size))
        UnsafeMutableRawPointer(mismatch).copyMemory(from: known.baseAddress!, byteCount: known.count)
    }
}

extension lockstep_estimate {
    fileprivate init(_ estimate: Estimate) {
        self.init(value: estimate.value, standard_error: estimate.standardError)
    }
}

extension lockstep_mismatch {
    fileprivate init(_ m: Mismatch) {
        self.init()
        tokens = Int64(m.tokens)
        masked_tokens = Int64(m.maskedTokens)
        excluded_tokens = Int64(m.excludedTokens)
        sequences = Int64(m.sequences)
        empty_sequences = Int64(m.emptySequences)
        mean_log_ratio = .init(m.meanLogRatio)
        k1 = .init(m.k1)
        k2 = .init(m.k2)
        k3 = .init(m.k3)
        mean_abs_log_ratio = .init(m.meanAbsLogRatio)
        rms_log_ratio = .init(m.rmsLogRatio)
        max_abs_log_ratio = m.maxAbsLogRatio
        max_abs_sequence = Int64(m.maxAbsSequence)
        max_abs_position = Int64(m.maxAbsPosition)
        mean_abs_prob_diff = .init(m.meanAbsProbDiff)
        max_abs_prob_diff = m.maxAbsProbDiff
        pearson = m.pearson
        one_minus_pearson = m.oneMinusPearson
        share_differing = .init(m.shareDiffering)
        share_outside_mlperf = .init(m.shareOutsideMLPerf)
        share_outside_1pct = .init(m.shareOutside1pct)
        share_outside_5pct = .init(m.shareOutside5pct)
        share_outside_10pct = .init(m.shareOutside10pct)
        chi_square = .init(m.chiSquare)
        mean_ratio = .init(m.meanRatio)
        ess = m.ess
        mean_exp_abs_log_ratio = .init(m.meanExpAbsLogRatio)
        trainer_perplexity = m.trainerPerplexity
        rollout_perplexity = m.rolloutPerplexity
        perplexity_ratio = m.perplexityRatio
        mean_rollout_log_prob = .init(m.meanRolloutLogProb)
        withUnsafeMutableBytes(of: &log_ratio_quantiles) { quantiles in
            m.logRatioQuantiles.withUnsafeBytes { quantiles.copyMemory(from: $0) }
        }
        sequence_log_ratio = .init(m.sequenceLogRatio)
        sequence_log_ratio_std = m.sequenceLogRatioStd
        sequence_mean_log_ratio = .init(m.sequenceMeanLogRatio)
        sequence_mean_exp_abs = .init(m.sequenceMeanExpAbs)
        sequence_ess = m.sequenceESS
        share_sequences_masked = .init(m.shareSequencesMasked)
        slope_per_1000 = .init(m.slopePer1000)
        mean_sequence_length = m.meanSequenceLength
        max_sequence_length = Int64(m.maxSequenceLength)
        ess_standard_error = m.essStandardError
        trainer_perplexity_standard_error = m.trainerPerplexityStandardError
        rollout_perplexity_standard_error = m.rolloutPerplexityStandardError
        perplexity_ratio_standard_error = m.perplexityRatioStandardError
        sequence_log_ratio_std_standard_error = m.sequenceLogRatioStdStandardError
        share_sequences_outside_mlperf = .init(m.shareSequencesOutsideMLPerf)
    }
}

extension lockstep_mismatch_sequence {
    fileprivate init(_ sequence: SequenceMismatch) {
        self.init(
            tokens: Int64(sequence.tokens), log_ratio: sequence.logRatio,
            mean_log_ratio: sequence.meanLogRatio, mean_abs_log_ratio: sequence.meanAbsLogRatio,
            max_abs_log_ratio: sequence.maxAbsLogRatio, mean_exp_abs: sequence.meanExpAbs, k3: sequence.k3)
    }
}

extension lockstep_mismatch_bucket {
    init(_ bucket: MismatchBucket) {
        self.init(
            lower: bucket.lower, upper: bucket.upper, tokens: Int64(bucket.tokens),
            mean_log_ratio: bucket.meanLogRatio, mean_abs_log_ratio: bucket.meanAbsLogRatio, k3: bucket.k3)
    }
}

extension lockstep_divergence {
    fileprivate init(_ divergence: Divergence) {
        self.init(
            kl_rollout_trainer: divergence.klRolloutTrainer, kl_trainer_rollout: divergence.klTrainerRollout,
            total_variation: divergence.totalVariation, jensen_shannon: divergence.jensenShannon,
            same_top1: divergence.sameTop1)
    }
}
