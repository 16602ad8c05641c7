import CLockstep
import Lockstep

// Section 11 of the header, its first half: loss scalers.

extension lockstep_scaler_options: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_scaler_options>.size }
}

extension lockstep_scaler_report: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_scaler_report>.size }
}

/// What a lockstep_scaler points to.
private final class ScalerBox {
    var scaler: LossScaler
    init(_ scaler: LossScaler) { self.scaler = scaler }
}

@_cdecl("lockstep_scaler_options_named") @implementation
public func lockstep_scaler_options_named(
    _ options: UnsafeMutablePointer<lockstep_scaler_options>!, _ name: UnsafePointer<CChar>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try checkGrowable(options, "options")
        let core = try LossScalerOptions(named: try text(name, "name"))
        try write(lockstep_scaler_options(core), to: options, "options")
    }
}

@_cdecl("lockstep_scaler_create") @implementation
public func lockstep_scaler_create(
    _ scaler: UnsafeMutablePointer<OpaquePointer?>!, _ options: UnsafePointer<lockstep_scaler_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        guard let scaler else {
            throw invalid("scaler is NULL; give the address of a lockstep_scaler pointer")
        }
        scaler.pointee = handle(try LossScaler(coreOptions(options)))
    }
}

@_cdecl("lockstep_scaler_destroy") @implementation
public func lockstep_scaler_destroy(_ scaler: OpaquePointer!) {
    release(scaler)
}

@_cdecl("lockstep_scaler_update") @implementation
public func lockstep_scaler_update(
    _ report: UnsafeMutablePointer<lockstep_scaler_report>!, _ scaler: OpaquePointer!,
    _ found_non_finite: Int32
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try checkGrowable(report, "report")
        let found = try box(scaler).scaler.update(foundNonFinite: found_non_finite != 0)
        try write(lockstep_scaler_report(found), to: report, "report")
    }
}

@_cdecl("lockstep_scaler_read") @implementation
public func lockstep_scaler_read(
    _ report: UnsafeMutablePointer<lockstep_scaler_report>!, _ scaler: OpaquePointer!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try checkGrowable(report, "report")
        try write(lockstep_scaler_report(try box(scaler).scaler.report), to: report, "report")
    }
}

@_cdecl("lockstep_scaler_get_options") @implementation
public func lockstep_scaler_get_options(
    _ options: UnsafeMutablePointer<lockstep_scaler_options>!, _ scaler: OpaquePointer!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try checkGrowable(options, "options")
        try write(lockstep_scaler_options(try box(scaler).scaler.options), to: options, "options")
    }
}

@_cdecl("lockstep_scaler_save") @implementation
public func lockstep_scaler_save(
    _ bytes: UnsafeMutableRawPointer!, _ size: UnsafeMutablePointer<Int>!, _ scaler: OpaquePointer!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let saved = try box(scaler).scaler.bytes
        try give(saved, to: bytes?.assumingMemoryBound(to: UInt8.self), "bytes", size, "size") { $0 }
    }
}

@_cdecl("lockstep_scaler_load") @implementation
public func lockstep_scaler_load(
    _ scaler: UnsafeMutablePointer<OpaquePointer?>!, _ bytes: UnsafeRawPointer!, _ size: Int
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        guard let scaler else {
            throw invalid("scaler is NULL; give the address of a lockstep_scaler pointer")
        }
        guard let bytes else { throw invalid("bytes is NULL; give what lockstep_scaler_save wrote") }
        guard (0...1 << 20).contains(size) else {
            throw invalid(
                "size is \(UInt(bitPattern: size)); a saved scaler has \(LossScaler.savedSize) bytes")
        }
        let saved = [UInt8](UnsafeRawBufferPointer(start: bytes, count: size))
        scaler.pointee = handle(try LossScaler(bytes: saved))
    }
}

@_cdecl("lockstep_scaler_replay") @implementation
public func lockstep_scaler_replay(
    _ report: UnsafeMutablePointer<lockstep_scaler_report>!, _ scales: UnsafePointer<lockstep_tensor>!,
    _ skipped: UnsafePointer<lockstep_tensor>!, _ maxima: UnsafePointer<lockstep_tensor>!, _ limit: Double,
    _ options: UnsafePointer<lockstep_scaler_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try checkGrowable(report, "report")
        let view = try CheckedTensor(maxima, "maxima").vector([.fp32, .fp64], "[steps]")
        let scalesOut = try optionalVector(scales, "scales", count: view.count)
        if let scalesOut, scalesOut.format != .fp64 { throw invalid("scales: dtype must be fp64") }
        var flags: CheckedTensor?
        if skipped != nil {
            let tensor = try CheckedTensor(skipped, "skipped")
            guard [LOCKSTEP_UINT8, LOCKSTEP_BOOL].contains(Int(tensor.code)) else {
                throw invalid("skipped: dtype must be uint8 or bool")
            }
            try tensor.expect(dimensions: 1, "[steps]")
            try tensor.expect(0, is: view.count, "the number of steps")
            guard view.count <= 1 || tensor.strides[0] != 0 else {
                throw invalid("skipped: strides[0] is 0; elements of an output must not overlap")
            }
            flags = tensor
        }
        let found = try LossScaler.replay(maxima: view, options: coreOptions(options), limit: limit)
        for step in 0..<view.count {
            scalesOut?.base?.storeBytes(
                of: found.scales[step], toByteOffset: 8 * step * scalesOut!.stride, as: Double.self)
            flags?.base?.storeBytes(
                of: found.skipped[step] ? 1 : 0, toByteOffset: step * flags!.strides[0], as: UInt8.self)
        }
        try write(lockstep_scaler_report(found.report), to: report, "report")
    }
}

private func handle(_ scaler: LossScaler) -> OpaquePointer {
    retained(ScalerBox(scaler))
}

private func box(_ scaler: OpaquePointer?) throws(LockstepError) -> ScalerBox {
    try held(scaler, "scaler", from: "lockstep_scaler_create")
}

func coreOptions(
    _ options: UnsafePointer<lockstep_scaler_options>?
) throws(LockstepError) -> LossScalerOptions {
    let raw = try read(options, defaults: lockstep_scaler_options(LossScalerOptions()))
    guard let kind = LossScalerKind(rawValue: raw.kind) else {
        throw invalid("options: kind is \(raw.kind); see the LOCKSTEP_SCALER constants")
    }
    guard (0...1).contains(raw.consecutive_hysteresis) else {
        throw invalid("options: consecutive_hysteresis is \(raw.consecutive_hysteresis); give 0 or 1")
    }
    var core = LossScalerOptions(kind)
    core.initialScale = raw.initial_scale
    core.growthFactor = raw.growth_factor
    core.backoffFactor = raw.backoff_factor
    core.minimumScale = raw.minimum_scale
    core.maximumScale = raw.maximum_scale
    core.growthInterval = Int(raw.growth_interval)
    core.hysteresis = Int(raw.hysteresis)
    core.consecutiveHysteresis = raw.consecutive_hysteresis == 1
    return core
}

extension lockstep_scaler_options {
    fileprivate init(_ core: LossScalerOptions) {
        self.init(
            struct_size: UInt32(MemoryLayout<Self>.size), kind: core.kind.rawValue,
            initial_scale: core.initialScale, growth_factor: core.growthFactor,
            backoff_factor: core.backoffFactor, minimum_scale: core.minimumScale,
            maximum_scale: core.maximumScale, growth_interval: Int64(core.growthInterval),
            hysteresis: Int32(core.hysteresis), consecutive_hysteresis: core.consecutiveHysteresis ? 1 : 0)
    }
}

extension lockstep_scaler_report {
    fileprivate init(_ core: LossScalerReport) {
        self.init(
            struct_size: 0, skip: core.skip ? 1 : 0, scale: core.scale, at_floor: core.isAtFloor ? 1 : 0,
            reserved: 0, steps: Int64(core.steps), skipped: Int64(core.skipped), growths: Int64(core.growths),
            backoffs: Int64(core.backoffs), floor_overflows: Int64(core.floorOverflows),
            skipped_in_a_row: Int64(core.skippedInARow), longest_skip: Int64(core.longestSkip),
            last_skipped: Int64(core.lastSkipped ?? -1))
    }
}
