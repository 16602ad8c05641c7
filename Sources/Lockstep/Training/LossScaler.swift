/// What a loss scaler says after a step.
public struct LossScalerReport: Equatable, Sendable {
    /// The scale of the next step's loss.
    public var scale: Double
    /// Whether the optimiser must skip the step that was judged last: its gradients were not finite.
    public var skip: Bool
    /// Whether the last overflow left the scale at its floor: the next one cannot be backed off from.
    ///
    /// The floor is the minimum scale, but at least 1, below which scaling makes gradients smaller; of a constant
    /// scale it is that scale. Growth ends the alarm, or, with a constant scale, a clean step.
    public var isAtFloor: Bool
    /// Steps judged, how many of them were skipped, and how often the scale grew and backed off.
    public var steps = 0
    /// Skipped steps.
    public var skipped = 0
    /// Times the scale grew.
    public var growths = 0
    /// Times the scale backed off.
    public var backoffs = 0
    /// Overflows that left the scale at its floor.
    public var floorOverflows = 0
    /// Skipped steps up to the last, without a clean one between them.
    public var skippedInARow = 0
    /// The most of them there were.
    public var longestSkip = 0
    /// The last skipped step, counted from 0; nil if there is none.
    public var lastSkipped: Int?
}

/// A dynamic loss scale as PyTorch, DeepSpeed or Megatron-LM move it: a state machine that is told of each step
/// whether its gradients hold an infinity or a NaN, and says whether to skip it.
///
/// Arithmetic is the peers': torch and Megatron keep the scale in float32, DeepSpeed in float64. One difference: no
/// scale grows beyond `maximumScale`, so none becomes infinite (torch's own rule; DeepSpeed and Megatron have none).
public struct LossScaler: Equatable, Sendable {
    /// How it moves.
    public let options: LossScalerOptions
    /// The scale to multiply the next loss by.
    public private(set) var scale: Double
    /// What was counted.
    public private(set) var report: LossScalerReport

    /// Clean steps since the last growth or overflow (torch, Megatron).
    private(set) var growthTracker = 0
    /// Overflows left before a back-off; below 1 once they are used up.
    private(set) var hysteresisLeft: Int

    /// Starts at the initial scale.
    ///
    /// - Throws: `.invalidArgument` naming an option that is out of range.
    public init(_ options: LossScalerOptions = LossScalerOptions()) throws(LockstepError) {
        try options.check()
        self.options = options
        let isSingle = options.kind == .torch || options.kind == .megatron
        scale = isSingle ? Double(Float(options.initialScale)) : options.initialScale
        hysteresisLeft = options.hysteresis
        report = LossScalerReport(scale: scale, skip: false, isAtFloor: false)
    }

    /// The scale below which an overflow is an alarm.
    private var floor: Double {
        options.kind == .constant ? scale : max(options.minimumScale, 1)
    }

    /// Takes a step: `foundNonFinite` says whether its gradients, all ranks together, hold an infinity or a NaN.
    ///
    /// - Returns: the report; `skip` is `foundNonFinite`, and `scale` is that of the next step.
    @discardableResult
    public mutating func update(foundNonFinite: Bool) -> LossScalerReport {
        let before = scale
        switch options.kind {
        case .constant: break
        case .torch: updateTorch(foundNonFinite)
        case .deepSpeed: updateDeepSpeed(foundNonFinite)
        case .megatron: updateMegatron(foundNonFinite)
        }
        report.skip = foundNonFinite
        if scale > before { report.growths += 1 }
        if scale < before { report.backoffs += 1 }
        if foundNonFinite {
            report.skipped += 1
            report.skippedInARow += 1
            report.longestSkip = max(report.longestSkip, report.skippedInARow)
            report.lastSkipped = report.steps
            if scale <= floor {
                report.isAtFloor = true
                report.floorOverflows += 1
            }
        } else {
            report.skippedInARow = 0
            if scale > floor || options.kind == .constant { report.isAtFloor = false }
        }
        report.steps += 1
        report.scale = scale
        return report
    }

    private mutating func updateTorch(_ foundNonFinite: Bool) {
        if foundNonFinite {
            scale = max(Double(Float(scale * options.backoffFactor)), options.minimumScale)
            growthTracker = 0
            return
        }
        growthTracker += 1
        if growthTracker == options.growthInterval {
            grow(to: Double(Float(scale * options.growthFactor)))
            growthTracker = 0
        }
    }

    private mutating func updateDeepSpeed(_ foundNonFinite: Bool) {
        if foundNonFinite {
            if hysteresisLeft == 1 {
                scale = max(scale / options.growthFactor, options.minimumScale)
            } else {
                hysteresisLeft -= 1
            }
            return
        }
        if options.consecutiveHysteresis { hysteresisLeft = options.hysteresis }
        // Clean steps since the last overflow, this one left out.
        let stable = report.steps - (report.lastSkipped ?? -1) - 1
        if stable > 0, stable % options.growthInterval == 0 {
            hysteresisLeft = options.hysteresis
            grow(to: scale * options.growthFactor)
        }
    }

    private mutating func updateMegatron(_ foundNonFinite: Bool) {
        if foundNonFinite {
            growthTracker = 0
            hysteresisLeft = max(hysteresisLeft - 1, 0)
            if hysteresisLeft == 0 {
                scale = Double(max(Float(scale) * Float(options.backoffFactor), Float(options.minimumScale)))
            }
            return
        }
        growthTracker += 1
        if growthTracker == options.growthInterval {
            growthTracker = 0
            hysteresisLeft = options.hysteresis
            grow(to: Double(Float(scale) * Float(options.growthFactor)))
        }
    }

    private mutating func grow(to scale: Double) {
        if scale <= options.maximumScale { self.scale = scale }
    }
}

extension LossScaler {
    /// What a saved scaler begins with: "LKSCALER".
    private static let magic: UInt64 = 0x5245_4c41_4353_4b4c
    private static let version: UInt32 = 1
    /// Bytes of a saved scaler.
    public static let savedSize = 180

    /// Options and state, to be kept with a checkpoint: `init(bytes:)` goes on with the same scales, bit for bit.
    public var bytes: [UInt8] {
        var writer = ByteWriter()
        writer.append(Self.magic)
        writer.append(Self.version)
        writer.append(options.kind.rawValue)
        for value in [
            options.initialScale, options.growthFactor, options.backoffFactor, options.minimumScale,
            options.maximumScale, scale,
        ] { writer.append(value) }
        for value in [
            options.growthInterval, options.hysteresis, options.consecutiveHysteresis ? 1 : 0, growthTracker,
            hysteresisLeft, report.steps, report.skipped, report.growths, report.backoffs,
            report.floorOverflows, report.skippedInARow, report.longestSkip, report.lastSkipped ?? -1,
            (report.skip ? 1 : 0) + (report.isAtFloor ? 2 : 0),
        ] { writer.append(value) }
        writer.append(writer.bytes.withUnsafeBytes { CRC32C.checksum($0) })
        return writer.bytes
    }

    /// Restores a scaler that `bytes` saved.
    ///
    /// - Throws: `.badData` if they are damaged, cut off or no scaler's; `.unsupported` if a newer version wrote
    ///   them.
    public init(bytes: [UInt8]) throws(LockstepError) {
        guard bytes.count == Self.savedSize else {
            throw LockstepError(
                .badData,
                "bytes: \(bytes.count) bytes are no saved scaler, which has \(Self.savedSize); give all of it"
            )
        }
        var reader = ByteReader(bytes, 0..<bytes.count, "bytes: the saved scaler")
        guard try reader.read(UInt64.self) == Self.magic else {
            throw LockstepError(.badData, "bytes: are not those of a saved scaler")
        }
        let version = try reader.read(UInt32.self)
        guard version == Self.version else {
            throw LockstepError(
                .unsupported,
                "bytes: format version \(version), but this library (\(versionString)) knows "
                    + "version \(Self.version); load a newer library")
        }
        let end = bytes.count - 4
        let damaged = reader.damaged("its checksum is wrong")
        var checksum = ByteReader(bytes, end..<bytes.count, "bytes: the saved scaler")
        guard
            try checksum.read(UInt32.self)
                == bytes.withUnsafeBytes({ CRC32C.checksum(UnsafeRawBufferPointer(rebasing: $0[..<end])) }),
            let kind = LossScalerKind(rawValue: try reader.read())
        else { throw damaged }
        var options = LossScalerOptions(kind)
        options.initialScale = try reader.readDouble()
        options.growthFactor = try reader.readDouble()
        options.backoffFactor = try reader.readDouble()
        options.minimumScale = try reader.readDouble()
        options.maximumScale = try reader.readDouble()
        let scale = try reader.readDouble()
        var counts: [Int] = []
        for _ in 0..<14 { counts.append(Int(try reader.read(Int64.self))) }
        options.growthInterval = counts[0]
        options.hysteresis = counts[1]
        options.consecutiveHysteresis = counts[2] == 1
        guard var scaler = try? LossScaler(options), (0...1).contains(counts[2]),
            (0...3).contains(counts[13]),
            // torch's and Megatron's are rounded to float32, and so may stand a little outside.
            scale >= min(options.minimumScale, Double(Float(options.minimumScale))), scale >= 0,
            scale <= max(options.maximumScale, Double(Float(options.maximumScale))),
            (0..<options.growthInterval).contains(counts[3]), (0...options.hysteresis).contains(counts[4]),
            counts[5] >= 0, counts[5] < 1 << 60, counts[6...11].allSatisfy({ (0...counts[5]).contains($0) }),
            (-1..<max(counts[5], 1)).contains(counts[12]), (counts[12] < 0) == (counts[6] == 0)
        else { throw damaged }
        scaler.scale = scale
        scaler.growthTracker = counts[3]
        scaler.hysteresisLeft = counts[4]
        scaler.report = LossScalerReport(
            scale: scale, skip: counts[13] & 1 != 0, isAtFloor: counts[13] & 2 != 0, steps: counts[5],
            skipped: counts[6], growths: counts[7], backoffs: counts[8], floorOverflows: counts[9],
            skippedInARow: counts[10], longestSkip: counts[11], lastSkipped: counts[12] < 0 ? nil : counts[12]
        )
        self = scaler
    }
}
