import CLockstep
import Lockstep

// Section 4 of the header: early warning.

extension lockstep_monitor_options: GrowableOptions {
    static var firstSize: Int { 16 }
}

extension lockstep_monitor_alarm: GrowableOptions {
    static var firstSize: Int { 80 }
}

/// What a lockstep_monitor points to.
private final class MonitorBox {
    var monitor: MismatchMonitor
    init(_ monitor: MismatchMonitor) { self.monitor = monitor }
}

@_cdecl("lockstep_monitor_create") @implementation
public func lockstep_monitor_create(
    _ monitor: UnsafeMutablePointer<OpaquePointer?>!, _ options: UnsafePointer<lockstep_monitor_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        guard let monitor else {
            throw invalid("monitor is NULL; give the address of a lockstep_monitor pointer")
        }
        let defaults = MonitorOptions()
        let given = try read(
            options,
            defaults: lockstep_monitor_options(
                struct_size: UInt32(MemoryLayout<lockstep_monitor_options>.size),
                learning_steps: Int32(defaults.learningSteps),
                false_alarms_per_1000: defaults.falseAlarmsPer1000))
        let core = MonitorOptions(
            learningSteps: Int(given.learning_steps), falseAlarmsPer1000: given.false_alarms_per_1000)
        monitor.pointee = handle(try MismatchMonitor(options: core))
    }
}

@_cdecl("lockstep_monitor_destroy") @implementation
public func lockstep_monitor_destroy(_ monitor: OpaquePointer!) {
    release(monitor)
}

@_cdecl("lockstep_monitor_update") @implementation
public func lockstep_monitor_update(
    _ alarm: UnsafeMutablePointer<lockstep_monitor_alarm>!, _ monitor: OpaquePointer!, _ step: Int64,
    _ mismatch: UnsafePointer<lockstep_mismatch>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try checkGrowable(alarm, "alarm")
        let box = try box(monitor)
        _ = try growableSize(of: mismatch)
        let judged = try box.monitor.update(step: Int(step), Mismatch(watched: mismatch.pointee))
        try write(lockstep_monitor_alarm(judged), to: alarm, "alarm")
    }
}

@_cdecl("lockstep_monitor_read") @implementation
public func lockstep_monitor_read(
    _ reading: UnsafeMutablePointer<lockstep_monitor_reading>!, _ monitor: OpaquePointer!,
    _ statistic: lockstep_monitor_statistic
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try checkArray(reading, "reading", count: 1)
        let box = try box(monitor)
        guard let known = MonitorStatistic(rawValue: statistic) else {
            throw invalid("statistic is \(statistic); see the LOCKSTEP_MONITOR constants")
        }
        let found = box.monitor.reading(known)
        reading.pointee = lockstep_monitor_reading(
            value: found.value, floor: found.floor, scale: found.scale, score: found.score,
            threshold: found.threshold, since_step: Int64(found.since ?? -1))
    }
}

@_cdecl("lockstep_monitor_reset") @implementation
public func lockstep_monitor_reset(_ monitor: OpaquePointer!) -> lockstep_status {
    guarded { () throws(LockstepError) in try box(monitor).monitor.reset() }
}

@_cdecl("lockstep_monitor_save") @implementation
public func lockstep_monitor_save(
    _ bytes: UnsafeMutableRawPointer!, _ size: UnsafeMutablePointer<Int>!, _ monitor: OpaquePointer!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let saved = try box(monitor).monitor.bytes
        try give(saved, to: bytes?.assumingMemoryBound(to: UInt8.self), "bytes", size, "size") { $0 }
    }
}

@_cdecl("lockstep_monitor_load") @implementation
public func lockstep_monitor_load(
    _ monitor: UnsafeMutablePointer<OpaquePointer?>!, _ bytes: UnsafeRawPointer!, _ size: Int
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        guard let monitor else {
            throw invalid("monitor is NULL; give the address of a lockstep_monitor pointer")
        }
        guard let bytes else { throw invalid("bytes is NULL; give what lockstep_monitor_save wrote") }
        guard size >= 0 else { throw invalid("size is \(UInt(bitPattern: size)); give the number of bytes") }
        monitor.pointee = handle(
            try MismatchMonitor(bytes: UnsafeRawBufferPointer(start: bytes, count: size)))
    }
}

private func handle(_ monitor: MismatchMonitor) -> OpaquePointer {
    retained(MonitorBox(monitor))
}

private func box(_ monitor: OpaquePointer?) throws(LockstepError) -> MonitorBox {
    try held(monitor, "monitor", from: "lockstep_monitor_create")
}

extension Mismatch {
    /// The statistics that a monitor reads.
    fileprivate init(watched m: lockstep_mismatch) {
        self.init()
        tokens = Int(m.tokens)
        k3.value = m.k3.value
        chiSquare.value = m.chi_square.value
        meanRatio.value = m.mean_ratio.value
        ess = m.ess
        maxAbsLogRatio = m.max_abs_log_ratio
    }
}

extension lockstep_monitor_alarm {
    fileprivate init(_ alarm: MonitorAlarm) {
        self.init(
            struct_size: 0, level: alarm.level.rawValue, statistic: alarm.statistic.rawValue,
            steps_to_learn: Int32(alarm.stepsToLearn), step: Int64(alarm.step),
            since_step: Int64(alarm.since ?? -1), value: alarm.value, floor: alarm.floor, score: alarm.score,
            threshold: alarm.threshold, false_alarms_per_1000: alarm.falseAlarmsPer1000,
            false_alarm_probability: alarm.falseAlarmProbability)
    }
}
