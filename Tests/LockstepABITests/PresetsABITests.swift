import CLockstep
import Lockstep
import LockstepABI
import Testing

/// What C reads of a preset is what Swift has of it, member by member.
struct PresetsABITests {
    @Test(arguments: Preset.all.indices)
    func cAndSwiftHaveTheSame(index: Int) throws {
        let core = Preset.all[index]
        let name = try #require(lockstep_preset_name(index))
        #expect(String(cString: name) == core.name)
        var preset = lockstep_preset()
        var correction = lockstep_correction_options()
        var advantages = lockstep_advantage_options()
        var objective = lockstep_objective_options()
        preset.struct_size = UInt32(MemoryLayout<lockstep_preset>.size)
        correction.struct_size = UInt32(MemoryLayout<lockstep_correction_options>.size)
        advantages.struct_size = UInt32(MemoryLayout<lockstep_advantage_options>.size)
        objective.struct_size = UInt32(MemoryLayout<lockstep_objective_options>.size)
        #expect(lockstep_preset_read(&preset, &correction, &advantages, &objective, name) == 0)

        #expect(String(cString: preset.text) == core.description)
        #expect(String(cString: preset.summary) == core.summary)
        #expect(String(cString: preset.source) == core.source)
        #expect(String(cString: preset.doubts) == core.doubts)
        #expect(preset.policies == core.policies.rawValue)
        #expect(preset.reference_is_rollout == (core.referenceIsRollout ? 1 : 0))

        let c = core.correction
        #expect(correction.weights == c.weights.rawValue && correction.level == c.level.rawValue)
        #expect(correction.low == c.low && correction.high == c.high)
        #expect(correction.log_ratio_min == c.logRatioMin && correction.log_ratio_max == c.logRatioMax)
        #expect(correction.rejection_count == c.rejections.count)
        for (index, rule) in c.rejections.enumerated() {
            let raw = correction.rejections[index]
            #expect(raw.statistic == rule.statistic.rawValue && raw.level == rule.level.rawValue)
            #expect(raw.policies == rule.policies.rawValue && raw.side == rule.side.rawValue)
            #expect(raw.low == rule.low && raw.high == rule.high)
        }

        let a = core.advantages
        #expect(advantages.estimator == a.estimator.rawValue && advantages.singles == a.singles.rawValue)
        #expect(advantages.epsilon == a.epsilon ?? -1 && advantages.scale == a.scale?.rawValue ?? 0)
        #expect(advantages.gamma == a.gamma && advantages.lambda == a.lambda)

        let o = core.objective
        #expect(objective.term == o.term.rawValue && objective.ratio_level == o.ratioLevel.rawValue)
        #expect(objective.aggregation == o.aggregation.rawValue)
        #expect(objective.denominator == o.denominator.rawValue)
        #expect(objective.low == o.low && objective.high == o.high)
        #expect(objective.dual == (o.dual < .infinity ? o.dual : 0))
        #expect(objective.tau_positive == o.tauPositive && objective.tau_negative == o.tauNegative)
        #expect(objective.shape_positive == o.shapePositive && objective.rate_positive == o.ratePositive)
        #expect(objective.shape_negative == o.shapeNegative && objective.rate_negative == o.rateNegative)
        #expect(objective.log_ratio_min == o.logRatioMin && objective.log_ratio_max == o.logRatioMax)
        #expect(objective.kl == o.kl.rawValue && objective.kl_coefficient == o.klCoefficient)
        #expect(objective.kl_input_max == (o.klInputMax < .infinity ? o.klInputMax : 0))
        #expect(objective.length == o.length && objective.scale == o.scale)
    }
}
