import CLockstep
import Lockstep

// Section 9 of the header: presets.

extension lockstep_preset: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_preset>.size }
}

@_cdecl("lockstep_preset_name") @implementation
public func lockstep_preset_name(_ index: Int) -> UnsafePointer<CChar>! {
    StaticPreset.all.indices.contains(index) ? StaticPreset.all[index].about.name : nil
}

@_cdecl("lockstep_preset_read") @implementation
public func lockstep_preset_read(
    _ preset: UnsafeMutablePointer<lockstep_preset>!,
    _ correction: UnsafeMutablePointer<lockstep_correction_options>!,
    _ advantages: UnsafeMutablePointer<lockstep_advantage_options>!,
    _ objective: UnsafeMutablePointer<lockstep_objective_options>!, _ name: UnsafePointer<CChar>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let core = try Preset(named: try text(name, "name"))
        let found = StaticPreset.all[Preset.all.firstIndex { $0.name == core.name }!]
        if preset != nil { try checkGrowable(preset, "preset") }
        if correction != nil { try checkGrowable(correction, "correction") }
        if advantages != nil { try checkGrowable(advantages, "advantages") }
        if objective != nil { try checkGrowable(objective, "objective") }
        if preset != nil { try write(found.about, to: preset, "preset") }
        if correction != nil {
            try write(
                lockstep_correction_options(core.correction, found.rejections), to: correction, "correction")
        }
        if advantages != nil {
            try write(lockstep_advantage_options(core.advantages), to: advantages, "advantages")
        }
        if objective != nil {
            try write(lockstep_objective_options(core.objective), to: objective, "objective")
        }
    }
}

/// A preset as C sees it; its memory is never freed.
private struct StaticPreset: @unchecked Sendable {
    let about: lockstep_preset
    let rejections: UnsafePointer<lockstep_rejection>?

    static let all = Preset.all.map(StaticPreset.init)

    init(_ core: Preset) {
        func copy(_ text: String) -> UnsafePointer<CChar> {
            let bytes = text.utf8CString
            let copy = UnsafeMutablePointer<CChar>.allocate(capacity: bytes.count)
            for (index, byte) in bytes.enumerated() { copy[index] = byte }
            return UnsafePointer(copy)
        }
        about = lockstep_preset(
            struct_size: 0, policies: core.policies.rawValue, name: copy(core.name),
            summary: copy(core.summary), source: copy(core.source), doubts: copy(core.doubts),
            text: copy(core.description), reference_is_rollout: core.referenceIsRollout ? 1 : 0, reserved: 0)
        let rules = core.correction.rejections
        guard !rules.isEmpty else {
            rejections = nil
            return
        }
        let memory = UnsafeMutablePointer<lockstep_rejection>.allocate(capacity: rules.count)
        for (index, rule) in rules.enumerated() {
            memory[index] = lockstep_rejection(
                statistic: rule.statistic.rawValue, level: rule.level.rawValue,
                policies: rule.policies.rawValue, side: rule.side.rawValue, low: rule.low, high: rule.high)
        }
        rejections = UnsafePointer(memory)
    }
}

extension lockstep_correction_options {
    fileprivate init(_ core: CorrectionOptions, _ rejections: UnsafePointer<lockstep_rejection>?) {
        self.init()
        weights = core.weights.rawValue
        level = core.level.rawValue
        (low, high) = (core.low, core.high)
        (log_ratio_min, log_ratio_max) = (core.logRatioMin, core.logRatioMax)
        normalize = core.normalize ? 1 : 0
        second_moment = core.secondMoment
        self.rejections = rejections
        rejection_count = core.rejections.count
    }
}

extension lockstep_advantage_options {
    fileprivate init(_ core: AdvantageOptions) {
        self.init()
        estimator = core.estimator.rawValue
        scale = core.scale?.rawValue ?? 0
        whiten = core.whiten.map { $0 ? 2 : 1 } ?? 0
        singles = core.singles.rawValue
        truncated = core.truncated.rawValue
        population_std = core.populationStd ? 1 : 0
        tail_baseline = core.tailBaseline ? 1 : 0
        epsilon = core.epsilon ?? -1
        (gamma, lambda) = (core.gamma, core.lambda)
    }
}

extension lockstep_objective_options {
    /// In it 0 is no bound.
    fileprivate init(_ core: ObjectiveOptions) {
        func bound(_ value: Double) -> Double { value < .infinity ? value : 0 }
        self.init()
        term = core.term.rawValue
        ratio_level = core.ratioLevel.rawValue
        aggregation = core.aggregation.rawValue
        denominator = core.denominator.rawValue
        kl = core.kl.rawValue
        kl_gradient = core.klGradient.rawValue
        (low, high) = (core.low, core.high)
        (dual, ratio_max) = (bound(core.dual), bound(core.ratioMax))
        coefficient = core.coefficient
        (tau_positive, tau_negative) = (core.tauPositive, core.tauNegative)
        (shape_positive, rate_positive) = (core.shapePositive, core.ratePositive)
        (shape_negative, rate_negative) = (core.shapeNegative, core.rateNegative)
        (log_ratio_min, log_ratio_max) = (core.logRatioMin, core.logRatioMax)
        kl_coefficient = core.klCoefficient
        (kl_input_max, kl_output_max) = (bound(core.klInputMax), bound(core.klOutputMax))
        entropy_coefficient = core.entropyCoefficient
        (length, scale) = (core.length, core.scale)
    }
}
