import Testing

@testable import Lockstep

/// Random sequences of up to `longest` tokens with gaps; some are empty.
private struct Rollouts {
    var rewards: [[Double]]
    var mask: [[Bool]]
    var values: [[Double]]
    var logProbs: [[Double]]
    var mass: [[Double]]
    var baselines: [Double]
    var groups: [Int]

    init(seed: UInt64, sequences: Int, longest: Int) {
        var random = Random(seed)
        let lengths = (0..<sequences).map { $0 % 5 == 4 ? 0 : Int.random(in: 1...longest, using: &random) }
        func tokens(_ range: ClosedRange<Double>) -> [[Double]] {
            lengths.map { (0..<$0).map { _ in Double.random(in: range, using: &random) } }
        }
        rewards = tokens(-2...2)
        values = tokens(-2...2)
        logProbs = tokens(-3...0)
        mass = tokens(0.2...1)
        baselines = lengths.map { _ in Double.random(in: -1...1, using: &random) }
        groups = (0..<sequences).map { $0 * $0 % (sequences / 3 + 1) }
        mask = lengths.map { (0..<$0).map { $0 % 7 != 3 } }
    }

    /// The sequences in an order of their own, each with so many tokens that do not count around it, and
    /// garbage wherever none counts.
    func rearranged(_ order: [Int], padding: Int) -> Rollouts {
        var other = self
        func moved<Value>(_ values: [[Value]], _ garbage: Value) -> [[Value]] {
            order.map { sequence in
                let around = [Value](repeating: garbage, count: padding)
                return around + zip(values[sequence], mask[sequence]).map { $1 ? $0 : garbage } + around
            }
        }
        other.groups = order.map { groups[$0] }
        other.baselines = order.map { baselines[$0] }
        other.rewards = moved(rewards, .nan)
        other.values = moved(values, .infinity)
        other.logProbs = moved(logProbs, .nan)
        other.mass = moved(mass, -.infinity)
        other.mask = moved(mask, false)
        return other
    }

    func advantages(_ options: AdvantageOptions) throws -> [[Double]] {
        try Lockstep.advantages(
            tokenRewards: rewards, mask: mask, groups: groups, baselines: baselines, values: values,
            logProbs: logProbs, squaredMass: mass, options: options
        ).advantages
    }
}

private func bits(_ values: some Sequence<Double>) -> [UInt64] { values.map(\.bitPattern) }

@Suite struct AdvantagesTests {
    /// The order of sequences and groups, padding on either side, NaN where nothing counts: the same bits.
    @Test(arguments: AdvantageEstimator.allCases.filter { $0 != .gdpo })
    func orderPaddingAndGarbageDoNotShow(_ estimator: AdvantageEstimator) throws {
        var options = AdvantageOptions(estimator)
        (options.gamma, options.lambda, options.singles) = (0.97, 0.9, .raw)
        if estimator == .passAtK { options.singles = .zero }
        var rollouts = Rollouts(seed: 5, sequences: 60, longest: 23)
        if estimator == .maxRL { rollouts.rewards = rollouts.rewards.map { $0.map(\.magnitude) } }
        if estimator == .passAtK { rollouts.groups = rollouts.groups.indices.map { $0 % 4 } }
        let expected = try rollouts.advantages(options)
        #expect(expected.joined().contains { $0 != 0 } && expected.joined().allSatisfy(\.isFinite))
        let order = (0..<60).map { $0 * 37 % 60 }
        for padding in [0, 3] {
            let found = try rollouts.rearranged(order, padding: padding).advantages(options)
            for (own, source) in zip(found, order) {
                #expect(bits(own.dropFirst(padding).dropLast(padding)) == bits(expected[source]))
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
        var random = Random(9)
        let rewards = (0..<64).map { _ in Double(Int(Double.random(in: 0...1, using: &random) * 1024)) / 1024
        }
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
        let found = try advantages(
            rewards: rewards, groups: [0, 0, 0, 0], options: AdvantageOptions(.drGRPO))
        #expect(found == [-0.001953125, -0.001953125, -0.001953125, 0.005859375])
        for refuse in [
            { try advantages(rewards: rewards.map { BFloat16($0) }, groups: [0, 0, 0, 0]) },
            { try advantages(rewards: rewards.map { Float16($0) }, groups: [0, 0, 0, 0]) },
        ] {
            let error = #expect(throws: LockstepError.self) { _ = try refuse() }
            #expect(error?.message.contains("give fp32 or fp64") == true)
        }
    }

    /// GAE with lambda 1 and no discount is the reward to go minus the value, and with lambda 0 the error of one
    /// step.
    @Test func limitsOfGAE() throws {
        let rollouts = Rollouts(seed: 3, sequences: 12, longest: 9)
        var options = AdvantageOptions(.gae)
        options.whiten = false
        let whole = try rollouts.advantages(options)
        options.lambda = 0
        let step = try rollouts.advantages(options)
        for sequence in rollouts.mask.indices {
            let (rewards, values) = (rollouts.rewards[sequence], rollouts.values[sequence])
            var (toGo, next) = (0.0, 0.0)
            for position in rewards.indices.reversed() where rollouts.mask[sequence][position] {
                toGo += rewards[position]
                #expect(abs(whole[sequence][position] - (toGo - values[position])) <= 1e-12)
                #expect(
                    abs(step[sequence][position] - (rewards[position] + next - values[position])) <= 1e-12)
                next = values[position]
            }
        }
    }

    /// Whitened advantages have mean 0 and variance 1 over the tokens that count.
    @Test(arguments: [AdvantageEstimator.reinforcePlusPlus, .reinforcePlusPlusBaseline, .gae])
    func whitening(_ estimator: AdvantageEstimator) throws {
        let rollouts = Rollouts(seed: 4, sequences: 40, longest: 30)
        var options = AdvantageOptions(estimator)
        options.singles = .raw
        let found = zip(try rollouts.advantages(options).joined(), rollouts.mask.joined())
        let values = found.filter { $1 }.map { $0.0 }
        #expect(found.allSatisfy { $1 || $0 == 0 })
        let mean = values.reduce(0, +) / Double(values.count)
        let squares = values.map { ($0 - mean) * ($0 - mean) }.reduce(0, +)
        #expect(abs(mean) <= 1e-12)
        #expect(abs(squares / Double(values.count - 1) - 1) <= 1e-7)
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
