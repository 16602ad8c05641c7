import Testing

@testable import Lockstep

/// A batch that owns its memory: rewards of tokens, masks, values.
private struct Rollouts {
    var rewards: [Double]
    var mask: [UInt8]
    var values: [Double]
    var logProbs: [Double]
    var mass: [Double]
    var groups: [Int]
    var columns: Int

    /// Random sequences of up to `columns` tokens with gaps, in groups of 1 to 4.
    init(seed: UInt64, sequences: Int, columns: Int) {
        var random = Random(seed: seed)
        let tokens = sequences * columns
        rewards = (0..<tokens).map { _ in Double(Float(random.normal())) }
        values = (0..<tokens).map { _ in random.normal() }
        logProbs = (0..<tokens).map { _ in -random.uniform() * 3 }
        mass = (0..<tokens).map { _ in 0.2 + 0.8 * random.uniform() }
        groups = (0..<sequences).map { $0 * $0 % (sequences / 3 + 1) }
        mask = (0..<sequences).flatMap { sequence in
            let length = sequence % 5 == 4 ? 0 : 1 + Int(random.uniform() * Double(columns))
            return (0..<columns).map { $0 < length && $0 % 7 != 3 ? 1 : 0 }
        }
        self.columns = columns
    }

    var sequences: Int { groups.count }

    /// Some sequences, in an order of their own, each with `before` columns of garbage around it.
    func rearranged(_ order: [Int], before: Int) -> Rollouts {
        var other = self
        other.columns = columns + 2 * before
        other.groups = order.map { groups[$0] }
        func rows<Value>(_ values: [Value], _ garbage: Value) -> [Value] {
            order.flatMap { row in
                let own = (0..<columns).map { column in
                    mask[row * columns + column] == 0 ? garbage : values[row * columns + column]
                }
                let padding = [Value](repeating: garbage, count: before)
                return padding + own + padding
            }
        }
        other.rewards = rows(rewards, .nan)
        other.values = rows(values, .infinity)
        other.logProbs = rows(logProbs, .nan)
        other.mass = rows(mass, -.infinity)
        other.mask = rows(mask, 0)
        return other
    }

    /// Advantages of tokens, row after row.
    func advantages(_ options: AdvantageOptions) throws -> [Double] {
        var output = [Double](repeating: .nan, count: rewards.count)
        let perSequence = (0..<sequences).map { Double(Float(rewards[$0 * columns])) }
        func matrix(_ values: UnsafeBufferPointer<Double>) -> MatrixView {
            MatrixView(values.baseAddress, .fp64, rows: sequences, columns: columns)
        }
        try rewards.withUnsafeBufferPointer { rewards in
            try perSequence.withUnsafeBufferPointer { perSequence in
                try values.withUnsafeBufferPointer { values in
                    try logProbs.withUnsafeBufferPointer { logProbs in
                        try mass.withUnsafeBufferPointer { mass in
                            try mask.withUnsafeBufferPointer { mask in
                                try groups.withUnsafeBufferPointer { groups in
                                    try output.withUnsafeMutableBufferPointer { output in
                                        var batch = RewardBatch(.perToken(matrix(rewards)))
                                        if options.estimator == .gdpo {
                                            batch.rewards = .perKind(
                                                MatrixView(
                                                    values.baseAddress, .fp64, rows: sequences, columns: 2,
                                                    rowStride: columns))
                                        }
                                        batch.layout = try SequenceLayout(
                                            rows: sequences, columns: columns,
                                            mask: MaskView(mask.baseAddress, rows: sequences, columns: columns))
                                        batch.groups = TokenView(
                                            groups.baseAddress, byteCount: 8, count: groups.count)
                                        batch.baselines = VectorView(
                                            perSequence.baseAddress, .fp64, count: sequences)
                                        batch.values = matrix(values)
                                        batch.logProbs = matrix(logProbs)
                                        batch.squaredMass = matrix(mass)
                                        try batch.advantages(
                                            into: .perToken(
                                                MutableMatrixView(
                                                    output.baseAddress, .fp64, rows: sequences,
                                                    columns: columns)),
                                            options: options)
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
        return output
    }
}

private func bits(_ values: [Double]) -> [UInt64] { values.map(\.bitPattern) }

@Suite struct AdvantagesTests {
    /// The order of sequences and groups, padding on either side, NaN where nothing counts: the same bits.
    @Test(arguments: AdvantageEstimator.allCases)
    func orderPaddingAndGarbageDoNotShow(_ estimator: AdvantageEstimator) throws {
        // ReMax and GDPO have values of sequences beside those of tokens, which this test does not move.
        if estimator == .reMax || estimator == .gdpo { return }
        var options = AdvantageOptions(estimator)
        (options.gamma, options.lambda, options.singles) = (0.97, 0.9, .raw)
        if estimator == .passAtK { options.singles = .zero }
        var rollouts = Rollouts(seed: 5, sequences: 60, columns: 23)
        if estimator == .maxRL { rollouts.rewards = rollouts.rewards.map(\.magnitude) }
        if estimator == .passAtK { rollouts.groups = rollouts.groups.indices.map { $0 % 4 } }
        let expected = try rollouts.advantages(options)
        #expect(expected.contains { $0 != 0 } && expected.allSatisfy(\.isFinite))
        let order = (0..<60).map { $0 * 37 % 60 }
        for before in [0, 3] {
            let other = rollouts.rearranged(order, before: before)
            let found = try other.advantages(options)
            for (row, source) in order.enumerated() {
                let own = found[row * other.columns + before..<row * other.columns + before + 23]
                #expect(bits(Array(own)) == bits(Array(expected[source * 23..<source * 23 + 23])))
            }
        }
    }

    /// Rewards that are equal, whatever they are, differ from their mean by exactly 0.
    @Test(arguments: [0.1, -1.0 / 3, 1e-300, 7e99, 0])
    func equalRewardsGiveZero(_ reward: Double) throws {
        let groups = [Int](repeating: 0, count: 7)
        for estimator in [AdvantageEstimator.grpo, .drGRPO, .leaveOneOut, .gpg, .passAtK] {
            let found = try advantages(
                rewards: [Double](repeating: reward, count: 7), groups: groups,
                options: AdvantageOptions(estimator))
            #expect(found == [Double](repeating: 0, count: 7), "\(estimator)")
        }
    }

    /// A = (R - mean) / std does not change when rewards are shifted or scaled, as far as they are the same then.
    @Test func shiftAndScaleOfRewards() throws {
        var random = Random(seed: 9)
        let rewards = (0..<64).map { _ in Double(Int(random.uniform() * 1024)) / 1024 }
        let groups = (0..<64).map { $0 % 8 }
        var options = AdvantageOptions(.grpo)
        options.epsilon = 0
        let plain = try advantages(rewards: rewards, groups: groups, options: options)
        let shifted = try advantages(rewards: rewards.map { $0 + 1000 }, groups: groups, options: options)
        let scaled = try advantages(rewards: rewards.map { $0 * 8 }, groups: groups, options: options)
        #expect(bits(plain) == bits(shifted) && bits(plain) == bits(scaled))
        // A shift of a billion in fp64 costs no digits either, as the sums are exact.
        let far = try advantages(rewards: rewards.map { $0 + 0x1p30 }, groups: groups, options: options)
        #expect(bits(plain) == bits(far))
        options.estimator = .drGRPO
        let mean = try advantages(rewards: rewards, groups: groups, options: options)
        let twice = try advantages(rewards: rewards.map { $0 * 2 }, groups: groups, options: options)
        #expect(twice == mean.map { $0 * 2 })
    }

    /// What a sequence is compared with when it is left out: the sum over a group of leave-one-out advantages
    /// is 0, and they are n / (n - 1) of the others; their std is that of the others, one by one.
    @Test func leavingOneOut() throws {
        let rewards: [Double] = [0.25, 0.75, 0.125, 0.5, 1, 1, 1, 0.5, 0.5]
        let groups = [0, 0, 0, 0, 1, 1, 1, 1, 2]
        var options = AdvantageOptions(.leaveOneOut)
        let plain = try advantages(rewards: rewards, groups: groups, options: options)
        for group in 0...2 {
            let members = groups.indices.filter { groups[$0] == group }
            for member in members {
                let others = members.filter { $0 != member }.map { rewards[$0] }
                let mean = others.reduce(0, +) / Double(others.count)
                let expected = others.isEmpty ? 0 : rewards[member] - mean
                #expect(abs(plain[member] - expected) <= 1e-15)
                options.scale = .othersStd
                let scaled = try advantages(rewards: rewards, groups: groups, options: options)[member]
                let squares = others.map { ($0 - mean) * ($0 - mean) }.reduce(0, +)
                let std = others.count < 2 ? 0 : (squares / Double(others.count - 1)).squareRoot()
                #expect(abs(scaled - (std == 0 ? expected : expected / (std + 1e-6))) <= 1e-12)
                options.scale = nil
            }
        }
        // 0.5 among three 1s: its others are all equal, so that their std is 0, and divides nothing.
        options.scale = .othersStd
        #expect(try advantages(rewards: rewards, groups: groups, options: options)[7] == -0.5)
    }

    /// Groups of one: nothing, or the reward as it is; with truncation dropping what a group had.
    @Test func groupsOfOne() throws {
        let (rewards, groups) = ([3.0, 1, 2], [5, 6, 6])
        var options = AdvantageOptions(.drGRPO)
        #expect(try advantages(rewards: rewards, groups: groups, options: options) == [0, -0.5, 0.5])
        options.singles = .raw
        #expect(try advantages(rewards: rewards, groups: groups, options: options) == [3, -0.5, 0.5])
        options.truncated = .drop
        let cut = [false, true, false]
        #expect(
            try advantages(rewards: rewards, groups: groups, truncated: cut, options: options) == [3, 0, 2])
        options.truncated = .zero
        #expect(
            try advantages(rewards: rewards, groups: groups, truncated: cut, options: options) == [3, 0, 0.5])
        options = AdvantageOptions(.passAtK)
        options.truncated = .drop
        #expect(
            try advantages(
                rewards: [3.0, 1, 1, 2], groups: [5, 5, 6, 6], truncated: [false, true, false, false],
                options: options)[0] == 0)
        #expect(throws: LockstepError.self) {
            try advantages(rewards: rewards, groups: groups, options: AdvantageOptions(.passAtK))
        }
    }

    /// fp32 rewards are read as they are, and 16-bit ones refused: 1, 1, 1, 1.0078 in bf16 became 0, 0, 0, 2 in
    /// one system that kept rewards in 16 bits.
    @Test func rewardsIn16BitsAreRefused() throws {
        let rewards: [Float] = [1, 1, 1, 1.0078125]
        let found = try advantages(rewards: rewards, groups: [0, 0, 0, 0], options: AdvantageOptions(.drGRPO))
        #expect(found == [-0.001953125, -0.001953125, -0.001953125, 0.005859375])
        for refuse in [
            { try advantages(rewards: rewards.map { BF16($0) }, groups: [0, 0, 0, 0]) },
            { try advantages(rewards: rewards.map { FP16($0) }, groups: [0, 0, 0, 0]) },
        ] {
            let error = #expect(throws: LockstepError.self) { _ = try refuse() }
            #expect(error?.message.contains("give fp32 or fp64") == true)
        }
    }

    /// GAE with lambda 1 and no discount is the reward to go minus the value, and with lambda 0 the error of one
    /// step.
    @Test func limitsOfGAE() throws {
        let rollouts = Rollouts(seed: 3, sequences: 12, columns: 9)
        var options = AdvantageOptions(.gae)
        options.whiten = false
        let whole = try rollouts.advantages(options)
        options.lambda = 0
        let step = try rollouts.advantages(options)
        for row in 0..<12 {
            let counted = (0..<9).map { row * 9 + $0 }.filter { rollouts.mask[$0] != 0 }
            var toGo = 0.0
            for (k, index) in counted.enumerated().reversed() {
                toGo += rollouts.rewards[index]
                #expect(abs(whole[index] - (toGo - rollouts.values[index])) <= 1e-12)
                let next = k + 1 < counted.count ? rollouts.values[counted[k + 1]] : 0
                #expect(abs(step[index] - (rollouts.rewards[index] + next - rollouts.values[index])) <= 1e-12)
            }
        }
    }

    /// Whitened advantages have mean 0 and variance 1 over the tokens that count.
    @Test(arguments: [AdvantageEstimator.reinforcePlusPlus, .reinforcePlusPlusBaseline, .gdpo, .gae])
    func whitening(_ estimator: AdvantageEstimator) throws {
        let rollouts = Rollouts(seed: 4, sequences: 40, columns: 30)
        var options = AdvantageOptions(estimator)
        options.singles = .raw
        let found = try rollouts.advantages(options).indices.lazy.filter { rollouts.mask[$0] != 0 }
        let values = try rollouts.advantages(options)
        let mean = found.map { values[$0] }.reduce(0, +) / Double(found.count)
        let variance = found.map { (values[$0] - mean) * (values[$0] - mean) }.reduce(0, +)
        #expect(abs(mean) <= 1e-12)
        #expect(abs(variance / Double(found.count - 1) - 1) <= 1e-7)
    }

    /// Without a batch's tokens there are no lengths, and nothing makes them up.
    @Test func lengthsAreNeverMadeUp() {
        for estimator in [AdvantageEstimator.opo, .reinforcePlusPlusBaseline] {
            let error = #expect(throws: LockstepError.self) {
                try advantages(rewards: [1.0, 2], groups: [0, 0], options: AdvantageOptions(estimator))
            }
            #expect(error?.message.contains("needs the tokens of each sequence") == true)
        }
    }

    @Test func overlongPenaltyFallsEvenly() throws {
        let found = try [0, 60, 61, 80, 100, 101].map {
            try overlongPenalty(length: $0, maxLength: 100, buffer: 40, factor: 0.5)
        }
        #expect(found == [0, 0, -0.0125, -0.25, -0.5, -0.5])
    }
}
