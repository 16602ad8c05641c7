/// What an evaluation found.
public struct Evaluation: Equatable, Sendable {
    /// Mean reward of each problem, in their order.
    public var rewards: [Double]
    /// The mean over problems.
    public var rewardMean: Double { rewards.reduce(0, +) / Double(rewards.count) }
}

/// Which problems are worth training on: those that the starting model solves now and then.
///
/// *Source*: Qi et al. 2025, arXiv 2510.26788: 20 to 80 % of the answers right.
public struct PerfectibleOptions: Equatable, Sendable {
    /// Problems that are wanted.
    public var count = 64
    /// Problems that are tried, from 0 on, before it is given up.
    public var candidates = 4096
    /// Responses to each.
    public var samples = 32
    /// The least share of right ones.
    public var low = 0.2
    /// The largest.
    public var high = 0.8
    /// Seed of the draws.
    public var seed: UInt64 = 0

    /// Creates options: 64 problems with 20 to 80 % of 32 answers right.
    public init() {}
}

extension Environment {
    /// Samples responses to problems from a model, and takes their rewards.
    ///
    /// - Parameters:
    ///   - model: what is sampled from.
    ///   - problems: their numbers; the environment's own if they are not given, which must then be limited.
    ///   - samples: responses to each.
    ///   - seed: of the draws, which are not those of a run with the same seed.
    ///   - temperature: of the draws; 0 takes the most probable tokens.
    ///   - execution: threads and instruction set.
    /// - Returns: the rewards and how many responses are right.
    /// - Throws: what prompts and rewards throw; as `RolloutEngine`.
    /// - Returns: each problem's mean reward.
    public func evaluate(
        _ model: Model, problems: [Int]? = nil, samples: Int = 1, seed: UInt64, temperature: Double = 1,
        execution: Execution = .init()
    ) throws(LockstepError) -> Evaluation {
        try check()
        guard let problems = problems ?? self.problems, !problems.isEmpty else {
            throw LockstepError(
                .invalidArgument, "problems: there is none, or no end of them; give the numbers of some")
        }
        guard (1...1 << 16).contains(samples), problems.count <= (1 << 24) / samples else {
            throw LockstepError(
                .invalidArgument,
                "samples is \(samples), of \(problems.count) problems; give 1 to 65,536, and 16,777,216 responses at most"
            )
        }
        let settings = SamplingSettings(
            temperature: temperature, seed: seed, stopIDs: stopIDs, maxTokens: maxTokens)
        return try withLockstepFloatMode { () throws(LockstepError) in
            let sampler = try RolloutSampler(model, settings, execution)
            var groups: [RolloutSampler.Group] = []
            for problem in problems {
                // Draws depend on the problem's number, not on its place among the others.
                groups.append(
                    RolloutSampler.Group(
                        prompt: try checkedPrompt(problem, for: model.configuration),
                        firstID: 1 << 62 | UInt64(truncatingIfNeeded: problem) << 16 & (1 << 62 - 1),
                        count: samples))
            }
            let rollouts = try sampler.sample(groups, from: model)
            var rewards: [Double] = []
            for (index, problem) in problems.enumerated() {
                var sum = 0.0
                for sample in 0..<samples {
                    sum += try checkedReward(
                        RewardRequest(
                            step: -1, problem: problem, sample: sample, prompt: groups[index].prompt,
                            response: rollouts[index * samples + sample].tokens))
                }
                rewards.append(sum / Double(samples))
            }
            return Evaluation(rewards: rewards)
        }
    }

    /// The first problems that a model's answers to have a mean reward between two bounds: the paper's perfectible set.
    ///
    /// - Throws: `.invalidArgument` if there are too few among the candidates, saying how many; as `evaluate`.
    public func perfectible(
        _ model: Model, _ options: PerfectibleOptions = .init(), execution: Execution = .init()
    ) throws(LockstepError) -> [Int] {
        guard (1...1 << 24).contains(options.candidates), (1...1 << 24).contains(options.count) else {
            throw LockstepError(
                .invalidArgument,
                "perfectible: count is \(options.count) and candidates \(options.candidates); give 1 to 16,777,216"
            )
        }
        var found: [Int] = []
        let candidates = problems ?? Array(0..<options.candidates)
        for first in stride(from: 0, to: candidates.count, by: 64) where found.count < options.count {
            let part = Array(candidates[first..<min(first + 64, candidates.count)])
            let evaluation = try evaluate(
                model, problems: part, samples: options.samples, seed: options.seed,
                execution: execution)
            for (problem, reward) in zip(part, evaluation.rewards)
            where reward >= options.low && reward <= options.high && found.count < options.count {
                found.append(problem)
            }
        }
        guard found.count == options.count else {
            throw LockstepError(
                .invalidArgument,
                "perfectible: \(found.count) of \(candidates.count) problems have a mean reward of \(options.low) to "
                    + "\(options.high), fewer than \(options.count); give more candidates, or another model")
        }
        return found
    }
}

extension ReinforcementRun {
    /// Evaluates the policy as it is, in the rollout engine's recipe.
    public func evaluate(
        problems: [Int]? = nil, samples: Int = 1, seed: UInt64, temperature: Double = 1
    ) throws(LockstepError) -> Evaluation {
        try environment.evaluate(
            learner.trainer.snapshot(in: options.rollout), problems: problems, samples: samples, seed: seed,
            temperature: temperature, execution: execution)
    }
}
