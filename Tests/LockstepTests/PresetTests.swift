import Testing

@testable import Lockstep

struct PresetTests {
    @Test func everyPresetIsValidAndFoundByItsName() throws {
        #expect(Preset.all.count > 50)
        #expect(Set(Preset.all.map(\.name)).count == Preset.all.count)
        for preset in Preset.all {
            #expect(try Preset(named: preset.name).description == preset.description)
            try preset.correction.validate()
            try preset.advantages.validate()
            var objective = preset.objective
            if objective.aggregation == .seqMeanTokenSumNorm { objective.length = 1 }
            _ = try objective.rule()
        }
    }

    @Test func aPresetIsItsOptions() throws {
        let preset = try Preset(named: "paper/grpo-token-tis")
        #expect(preset.policies == .three && !preset.referenceIsRollout)
        #expect(preset.correction.weights == .truncate && preset.correction.high == 3)
        #expect(preset.objective.term == .clip && preset.objective.high == 1.28)
        #expect(preset.advantages.estimator == .drGRPO)
        let prime = try Preset(named: "prime-rl")
        #expect(prime.policies == .two && prime.referenceIsRollout)
    }

    @Test func aTypedPartFindsTheNamesThatHoldItsLetters() {
        #expect(Preset.nearest(to: "grpo-tis").contains("paper/grpo-token-tis"))
        #expect(Preset.nearest(to: "MLPref").first == "mlperf")
        #expect(Preset.nearest(to: "").count == 5)
        #expect(Preset.nearest(to: "x", count: 0).isEmpty)
    }

    @Test func anUnknownNameIsAnErrorOfBoundedLength() {
        #expect {
            try Preset(named: String(repeating: "grpo", count: 100_000))
        } throws: { error in
            let error = error as! LockstepError
            return error.kind == .invalidArgument && error.message.utf8.count < 400
        }
    }
}
