/// Responses that a step of a run needs: draws from the policy as it is, that any rollout engine of the run's rollout
/// recipe gives with the same bits.
public struct RolloutRequest: Equatable, Sendable {
    /// The step, from 1.
    public var step: Int
    /// Which problem the prompt is of.
    public var problem: Int
    /// The prompt.
    public var prompt: [Int32]
    /// The ids of the sequences, one for each response.
    public var ids: Range<UInt64>
}

/// The step of a run that comes next: what it asks for, and what was given of it.
struct StepPlan {
    let step: Int
    let requests: [RolloutRequest]
    var given: [UInt64: Rollout] = [:]
}

extension Rollout {
    /// A rollout of another engine, or another process.
    public init(
        id: UInt64, tokens: [Int32], rawLogProbs: [Double], processedLogProbs: [Double], finish: Finish
    ) {
        self.init(id: id)
        self.tokens = tokens
        self.rawLogProbs = rawLogProbs
        self.processedLogProbs = processedLogProbs
        keptMass = [Double](repeating: .nan, count: tokens.count)
        self.finish = finish
    }
}

extension ReinforcementRun {
    /// How responses are drawn.
    public var samplingSettings: SamplingSettings { ReinforcementRun.settings(options, environment) }

    /// What the next step needs, in the order of ids; the same until that step was taken.
    ///
    /// - Throws: what prompts throw; the failure that stopped the run.
    public func requests() throws(LockstepError) -> [RolloutRequest] {
        try checkIsWell()
        return try planned().requests
    }

    /// The policy as it is, rounded to the rollout engine's parameters, for engines elsewhere: `Model.init(bytes:recipe:)`
    /// has the weights of this process's rollout engine.
    ///
    /// - Throws: `.nonFinite` naming a tensor that the format cannot hold; the failure that stopped the run.
    public func policy() throws(LockstepError) -> ModelBytes {
        try checkIsWell()
        return try ModelBytes(learner.trainer, options.rollout, model.configurationJSON())
    }

    /// Takes responses of the next step that were drawn elsewhere.
    ///
    /// The step draws the prompts of which not all were given.
    ///
    /// - Throws: `.invalidArgument` for those of another step, saying which, or that are no draws of this run's; nothing
    ///   is taken then.
    public func give(_ rollouts: [Rollout], step: Int) throws(LockstepError) {
        try checkIsWell()
        var plan = try planned()
        guard step == plan.step else {
            throw LockstepError(
                .invalidArgument,
                "step is \(step), but the run's next is \(plan.step): the policy has changed; draw from what it is now"
            )
        }
        for (index, rollout) in rollouts.enumerated() {
            try check(rollout, plan, index)
            if let known = plan.given[rollout.id], !known.isSameDraw(as: rollout) {
                throw LockstepError(
                    .invalidArgument,
                    "rollouts[\(index)]: sequence \(rollout.id) was given before, with other tokens or log-probs; one of "
                        + "the two is not of this policy")
            }
            plan.given[rollout.id] = rollout
        }
        self.plan = plan
    }

    /// The next step's plan.
    func planned() throws(LockstepError) -> StepPlan {
        let step = stepsTaken + 1
        if let plan, plan.step == step { return plan }
        var requests: [RolloutRequest] = []
        for (slot, problem) in drawProblems(step: step).enumerated() {
            let first = firstID(step: step) + UInt64(slot * options.samples)
            requests.append(
                RolloutRequest(
                    step: step, problem: problem,
                    prompt: try environment.checkedPrompt(problem, for: trainer.configuration),
                    ids: first..<first + UInt64(options.samples)))
        }
        let made = StepPlan(step: step, requests: requests)
        plan = made
        return made
    }

    private func check(_ rollout: Rollout, _ plan: StepPlan, _ index: Int) throws(LockstepError) {
        func wrong(_ what: String) -> LockstepError {
            LockstepError(.invalidArgument, "rollouts[\(index)]: \(what)")
        }
        guard let request = plan.requests.first(where: { $0.ids.contains(rollout.id) }) else {
            throw wrong("id \(rollout.id) is none that step \(plan.step) asked for")
        }
        let (tokens, vocab) = (rollout.tokens, trainer.configuration.vocab)
        let room = min(environment.maxTokens, trainer.configuration.positions - request.prompt.count)
        guard (1...room).contains(tokens.count), rollout.rawLogProbs.count == tokens.count,
            rollout.processedLogProbs.count == tokens.count
        else {
            throw wrong(
                "has \(tokens.count) tokens and \(rollout.rawLogProbs.count) log-probs; give as many of both, 1 to "
                    + "\(room)")
        }
        for (place, token) in tokens.enumerated() {
            guard (0..<vocab).contains(Int(token)) else {
                throw wrong("token \(place) is \(token), outside the vocabulary of \(vocab)")
            }
            guard rollout.rawLogProbs[place].isFinite, rollout.processedLogProbs[place].isFinite else {
                throw wrong("log-prob \(place) is not finite")
            }
        }
        let stop = tokens.firstIndex { environment.stopIDs.contains($0) }
        let ends: Bool =
            switch rollout.finish {
            case .stop: stop == tokens.count - 1
            case .length: stop == nil && tokens.count == room
            case .running: false
            }
        guard ends else {
            throw wrong(
                "has not ended as it says: with a stop id, or at \(room) tokens; give whole responses")
        }
    }
}

extension Rollout {
    fileprivate func isSameDraw(as other: Rollout) -> Bool {
        tokens == other.tokens && rawLogProbs == other.rawLogProbs
            && processedLogProbs == other.processedLogProbs && finish == other.finish
    }
}
