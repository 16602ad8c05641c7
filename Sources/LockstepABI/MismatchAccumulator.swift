import CLockstep
import Lockstep

// Section 4 of the header, the accumulator.

extension lockstep_mismatch_accumulator_options: GrowableOptions {
    static var firstSize: Int { 8 }
}

@_cdecl("lockstep_mismatch_accumulator_create") @implementation
public func lockstep_mismatch_accumulator_create(
    _ accumulator: UnsafeMutablePointer<OpaquePointer?>!,
    _ options: UnsafePointer<lockstep_mismatch_accumulator_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        guard let accumulator else { throw noPlaceForAccumulator }
        var defaults = lockstep_mismatch_accumulator_options()
        defaults.struct_size = UInt32(MemoryLayout<lockstep_mismatch_accumulator_options>.size)
        let options = try read(options, defaults: defaults)
        guard (0...1).contains(options.exact_quantiles) else {
            throw invalid("options: exact_quantiles is \(options.exact_quantiles); give 0 or 1")
        }
        guard (0...1).contains(options.summary) else {
            throw invalid("options: summary is \(options.summary); give 0 or 1")
        }
        guard options.exact_quantiles + options.summary < 2 else {
            throw invalid("options: a summary has no quantiles; give 1 for summary or for exact_quantiles")
        }
        accumulator.pointee = retained(
            options.summary == 1
                ? .summary() : MismatchAccumulator(exactQuantiles: options.exact_quantiles == 1))
    }
}

@_cdecl("lockstep_mismatch_accumulator_destroy") @implementation
public func lockstep_mismatch_accumulator_destroy(_ accumulator: OpaquePointer!) {
    release(accumulator)
}

@_cdecl("lockstep_mismatch_accumulator_update") @implementation
public func lockstep_mismatch_accumulator_update(
    _ accumulator: OpaquePointer!, _ trainer_log_probs: UnsafePointer<lockstep_tensor>!,
    _ rollout_log_probs: UnsafePointer<lockstep_tensor>!, _ mask: UnsafePointer<lockstep_tensor>!,
    _ offsets: UnsafePointer<lockstep_tensor>!, _ ids: UnsafePointer<lockstep_tensor>!,
    _ options: UnsafePointer<lockstep_mismatch_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let accumulator = try mismatchAccumulator(accumulator, "accumulator")
        let (policy, execution) = try mismatchOptions(options)
        let pair = try logProbPair(trainer_log_probs, rollout_log_probs, mask, offsets)
        try accumulator.update(pair, ids: sequenceIDs(ids), nonFinite: policy, execution: execution)
    }
}

@_cdecl("lockstep_mismatch_accumulator_merge") @implementation
public func lockstep_mismatch_accumulator_merge(
    _ accumulator: OpaquePointer!, _ other: OpaquePointer!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try mismatchAccumulator(accumulator, "accumulator").merge(mismatchAccumulator(other, "other"))
    }
}

@_cdecl("lockstep_mismatch_accumulator_report") @implementation
public func lockstep_mismatch_accumulator_report(
    _ mismatch: UnsafeMutablePointer<lockstep_mismatch>!, _ accumulator: OpaquePointer!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let size = try growableSize(of: mismatch)
        let accumulator = try mismatchAccumulator(accumulator, "accumulator")
        try accumulator.askForMemory()
        write(accumulator.mismatch(), to: mismatch, size: size)
    }
}

@_cdecl("lockstep_mismatch_accumulator_profile") @implementation
public func lockstep_mismatch_accumulator_profile(
    _ buckets: UnsafeMutablePointer<lockstep_mismatch_bucket>!, _ count: UnsafeMutablePointer<Int>!,
    _ accumulator: OpaquePointer!, _ axis: lockstep_mismatch_axis
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let accumulator = try mismatchAccumulator(accumulator, "accumulator")
        guard let axis = MismatchAxis(rawValue: axis) else {
            throw invalid("axis is \(axis); see the LOCKSTEP_AXIS constants")
        }
        try give(accumulator.profile(over: axis), to: buckets, "buckets", count) {
            lockstep_mismatch_bucket($0)
        }
    }
}

@_cdecl("lockstep_mismatch_accumulator_histogram") @implementation
public func lockstep_mismatch_accumulator_histogram(
    _ bins: UnsafeMutablePointer<lockstep_mismatch_sequence_bin>!, _ count: UnsafeMutablePointer<Int>!,
    _ accumulator: OpaquePointer!, _ quantity: lockstep_sequence_quantity
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let accumulator = try mismatchAccumulator(accumulator, "accumulator")
        guard let quantity = SequenceQuantity(rawValue: quantity) else {
            throw invalid("quantity is \(quantity); see the LOCKSTEP_SEQUENCE constants")
        }
        try give(accumulator.histogram(of: quantity), to: bins, "bins", count) {
            lockstep_mismatch_sequence_bin(
                min_tokens: Int64($0.minTokens), max_tokens: Int64($0.maxTokens), lower: $0.lower,
                upper: $0.upper, sequences: Int64($0.sequences))
        }
    }
}

@_cdecl("lockstep_mismatch_accumulator_sample") @implementation
public func lockstep_mismatch_accumulator_sample(
    _ sample: UnsafeMutablePointer<lockstep_mismatch_sample>!, _ count: UnsafeMutablePointer<Int>!,
    _ accumulator: OpaquePointer!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let accumulator = try mismatchAccumulator(accumulator, "accumulator")
        try give(accumulator.sampledSequences, to: sample, "sample", count) { lockstep_mismatch_sample($0) }
    }
}

@_cdecl("lockstep_mismatch_accumulator_worst_sequences") @implementation
public func lockstep_mismatch_accumulator_worst_sequences(
    _ sequences: UnsafeMutablePointer<lockstep_mismatch_sample>!, _ count: UnsafeMutablePointer<Int>!,
    _ accumulator: OpaquePointer!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let accumulator = try mismatchAccumulator(accumulator, "accumulator")
        try give(accumulator.worstSequences, to: sequences, "sequences", count) {
            lockstep_mismatch_sample($0)
        }
    }
}

extension lockstep_mismatch_sample {
    fileprivate init(_ sequence: SampledSequence) {
        let mismatch = sequence.mismatch
        self.init(
            id: sequence.id, tokens: Int64(mismatch.tokens), log_ratio: mismatch.logRatio,
            mean_log_ratio: mismatch.meanLogRatio, mean_abs_log_ratio: mismatch.meanAbsLogRatio,
            max_abs_log_ratio: mismatch.maxAbsLogRatio, mean_exp_abs: mismatch.meanExpAbs, k3: mismatch.k3)
    }
}

@_cdecl("lockstep_mismatch_accumulator_worst") @implementation
public func lockstep_mismatch_accumulator_worst(
    _ tokens: UnsafeMutablePointer<lockstep_mismatch_token>!, _ count: UnsafeMutablePointer<Int>!,
    _ accumulator: OpaquePointer!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let accumulator = try mismatchAccumulator(accumulator, "accumulator")
        try give(accumulator.worstTokens, to: tokens, "tokens", count) {
            lockstep_mismatch_token(
                id: $0.id, position: Int64($0.position), log_ratio: $0.logRatio,
                rollout_log_prob: $0.rolloutLogProb)
        }
    }
}

@_cdecl("lockstep_mismatch_accumulator_save") @implementation
public func lockstep_mismatch_accumulator_save(
    _ bytes: UnsafeMutableRawPointer!, _ size: UnsafeMutablePointer<Int>!, _ accumulator: OpaquePointer!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let accumulator = try mismatchAccumulator(accumulator, "accumulator")
        try accumulator.askForMemory(forBytes: true)
        let saved = accumulator.bytes()
        try give(saved, to: bytes?.assumingMemoryBound(to: UInt8.self), "bytes", size, "size") { $0 }
    }
}

@_cdecl("lockstep_mismatch_accumulator_load") @implementation
public func lockstep_mismatch_accumulator_load(
    _ accumulator: UnsafeMutablePointer<OpaquePointer?>!, _ bytes: UnsafeRawPointer!, _ size: Int
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        guard let accumulator else { throw noPlaceForAccumulator }
        guard let bytes else { throw invalid("bytes is NULL") }
        guard size >= 0 else { throw invalid("size is \(UInt(bitPattern: size)), which is out of range") }
        // The bytes, and those of what they make, to compare them with.
        try askForMemory(size, bytesEach: 6)
        let loaded = try MismatchAccumulator(
            bytes: Array(UnsafeRawBufferPointer(start: bytes, count: size)))
        accumulator.pointee = retained(loaded)
    }
}

private var noPlaceForAccumulator: LockstepError {
    invalid("accumulator is NULL; give the address of a lockstep_mismatch_accumulator pointer")
}

/// The accumulator behind a handle; `name` is the argument's.
func mismatchAccumulator(
    _ pointer: OpaquePointer?, _ name: StaticString
) throws(LockstepError) -> MismatchAccumulator {
    try held(pointer, name, from: "lockstep_mismatch_accumulator_create")
}

private func sequenceIDs(_ pointer: UnsafePointer<lockstep_tensor>?) throws(LockstepError) -> TokenView? {
    guard let pointer else { return nil }
    let ids = try CheckedTensor(pointer, "ids")
    guard [LOCKSTEP_UINT64, LOCKSTEP_INT64].contains(Int(ids.code)) else {
        throw invalid("ids: dtype must be uint64 or int64")
    }
    try ids.expect(dimensions: 1, "[sequences]")
    return TokenView(ids.base, byteCount: 8, count: ids.shape[0], stride: ids.strides[0])
}
