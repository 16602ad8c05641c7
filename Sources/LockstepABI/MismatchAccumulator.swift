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
        accumulator.pointee = handle(MismatchAccumulator(exactQuantiles: options.exact_quantiles == 1))
    }
}

@_cdecl("lockstep_mismatch_accumulator_destroy") @implementation
public func lockstep_mismatch_accumulator_destroy(_ accumulator: OpaquePointer!) {
    guard let accumulator else { return }
    Unmanaged<MismatchAccumulator>.fromOpaque(UnsafeRawPointer(accumulator)).release()
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
        write(try mismatchAccumulator(accumulator, "accumulator").mismatch(), to: mismatch, size: size)
    }
}

@_cdecl("lockstep_mismatch_accumulator_save") @implementation
public func lockstep_mismatch_accumulator_save(
    _ bytes: UnsafeMutableRawPointer!, _ size: UnsafeMutablePointer<Int>!, _ accumulator: OpaquePointer!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try checkArray(size, "size", count: 1)
        let saved = try mismatchAccumulator(accumulator, "accumulator").bytes()
        if let bytes {
            guard UInt(bitPattern: size.pointee) >= UInt(saved.count) else {
                throw invalid(
                    "size is \(UInt(bitPattern: size.pointee)) but the accumulator takes \(saved.count) bytes; "
                        + "ask with bytes NULL")
            }
            saved.withUnsafeBytes { bytes.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
        }
        size.pointee = saved.count
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
        let loaded = try MismatchAccumulator(
            bytes: Array(UnsafeRawBufferPointer(start: bytes, count: size)))
        accumulator.pointee = handle(loaded)
    }
}

private var noPlaceForAccumulator: LockstepError {
    invalid("accumulator is NULL; give the address of a lockstep_mismatch_accumulator pointer")
}

private func handle(_ accumulator: MismatchAccumulator) -> OpaquePointer {
    OpaquePointer(Unmanaged.passRetained(accumulator).toOpaque())
}

private func mismatchAccumulator(
    _ pointer: OpaquePointer?, _ name: StaticString
) throws(LockstepError) -> MismatchAccumulator {
    guard let pointer else {
        throw invalid("\(name) is NULL; make one with lockstep_mismatch_accumulator_create")
    }
    return Unmanaged<MismatchAccumulator>.fromOpaque(UnsafeRawPointer(pointer)).takeUnretainedValue()
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
