/// A response that is to be rewarded.
public struct RewardRequest: Equatable, Sendable {
    /// The step of the run; -1 outside of one, as in an evaluation.
    public var step: Int
    /// Which problem it answers.
    public var problem: Int
    /// Which of the problem's samples it is, from 0.
    public var sample: Int
    /// The prompt.
    public var prompt: [Int32]
    /// What was drawn, its stop id included.
    public var response: [Int32]
}

/// Where a run's prompts come from, and what responses are worth.
///
/// Problems have numbers. A prompt is a function of its problem's number, and a reward one of prompt and response: a run
/// that goes on from a checkpoint asks for them again.
public struct Environment {
    /// The token ids of a problem's prompt.
    public var prompt: (_ problem: Int) throws(LockstepError) -> [Int32]
    /// What a response is worth: a finite number, 1 for a right one where rewards are 1 and 0.
    public var reward: (RewardRequest) throws(LockstepError) -> Double
    /// The problems to draw prompts from; nil: each step takes the next ones, from 0 on, without an end.
    public var problems: [Int]?
    /// A response ends with one of these.
    public var stopIDs: Set<Int32>
    /// The most tokens of a response.
    public var maxTokens: Int
    /// What checkpoints say of it, so that a run does not go on with another one.
    public var name: String

    /// Creates an environment of a program's own.
    public init(
        name: String, maxTokens: Int, stopIDs: Set<Int32> = [], problems: [Int]? = nil,
        prompt: @escaping (_ problem: Int) throws(LockstepError) -> [Int32],
        reward: @escaping (RewardRequest) throws(LockstepError) -> Double
    ) {
        self.name = name
        self.maxTokens = maxTokens
        self.stopIDs = stopIDs
        self.problems = problems
        self.prompt = prompt
        self.reward = reward
    }

    /// Problems of a task: number i is the i-th of the seed.
    public init(_ task: VerifiableTask, seed: UInt64, problems: [Int]? = nil) {
        self.init(
            name: "\(task.name), seed \(seed), responses of up to \(task.longestResponse) tokens",
            maxTokens: task.longestResponse, stopIDs: task.stopID.map { [$0] } ?? [],
            problems: problems ?? task.problemCount.map { Array(0..<$0) },
            prompt: { (problem) throws(LockstepError) in try task.prompt(problem, seed: seed) },
            reward: { (request) throws(LockstepError) in
                try task.reward(prompt: request.prompt, response: request.response)
            })
    }

    func check() throws(LockstepError) {
        if let problems, problems.isEmpty {
            throw LockstepError(
                .invalidArgument, "problems: is empty; give the numbers of some, or none for all there are")
        }
        guard (1...1 << 20).contains(maxTokens) else {
            throw LockstepError(.invalidArgument, "max_tokens is \(maxTokens); give 1 to 1,048,576")
        }
    }

    /// The reward of a response, or an error that says whose it is.
    func checkedReward(_ request: RewardRequest) throws(LockstepError) -> Double {
        func what() -> String {
            (request.step < 0 ? "reward" : "step \(request.step): reward")
                + " of problem \(request.problem), sample \(request.sample)"
        }
        let reward: Double
        do throws(LockstepError) {
            reward = try self.reward(request)
        } catch {
            throw LockstepError(error.kind, "\(what()): \(error.message)")
        }
        guard reward.isFinite else {
            throw LockstepError(.nonFinite, "\(what()) is \(reward); give a finite number")
        }
        guard abs(reward) <= RewardBatch.largest else {
            throw LockstepError(.invalidArgument, "\(what()) is \(reward); scale it below 1e100")
        }
        return reward
    }

    /// The prompt of a problem, or an error that says whose it is.
    func checkedPrompt(_ problem: Int, for model: ModelConfiguration) throws(LockstepError) -> [Int32] {
        do throws(LockstepError) {
            let prompt = try self.prompt(problem)
            guard !prompt.isEmpty, prompt.count < model.positions else {
                throw LockstepError(
                    .invalidArgument,
                    prompt.isEmpty
                        ? "is empty; give at least one token"
                        : "has \(prompt.count) tokens, which leaves no room in the context of \(model.positions)"
                )
            }
            if let place = prompt.firstIndex(where: { !(0..<model.vocab).contains(Int($0)) }) {
                throw LockstepError(
                    .invalidArgument,
                    "token \(place) is \(prompt[place]), outside the vocabulary of \(model.vocab)")
            }
            return prompt
        } catch {
            throw LockstepError(error.kind, "prompt of problem \(problem): \(error.message)")
        }
    }
}
