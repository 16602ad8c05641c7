/// A reinforcement learning run: rollouts, rewards, advantages, corrections, updates, over and over.
///
/// It is a pure function of its options and its environment: the same bits on any number of threads, driven whole or
/// step by step, without a break or from checkpoints (docs/ReinforcementLearning.md). One call at a time.
public final class ReinforcementRun: TrainingRun {
    /// What it is a function of.
    public let options: ReinforcementOptions
    /// Where prompts and rewards come from.
    public let environment: Environment
    /// The early warning.
    public internal(set) var monitor: MismatchMonitor
    let sampler: RolloutSampler
    /// The starting model, if the objective compares the policy with it.
    private let reference: Model?
    let execution: Execution
    /// The step that comes next, once it was asked for.
    var plan: StepPlan?

    /// Begins a run.
    ///
    /// - Throws: `.invalidArgument` naming what is wrong with options or environment; as `Model.init` for the model.
    public init(_ options: ReinforcementOptions, environment: Environment) throws(LockstepError) {
        try options.check()
        try environment.check()
        var options = options
        if options.algorithm.objective.length == 0,
            options.algorithm.objective.aggregation == .seqMeanTokenSumNorm
        {
            options.algorithm.objective.length = Double(environment.maxTokens)
        }
        _ = try Objective(options.algorithm.objective)
        try options.algorithm.correction.validate()
        try options.algorithm.advantages.validate()
        try options.rollout.check()
        let trainer = try options.model.trainer(options.trainer, options.execution)
        let execution = Execution(
            threads: options.execution.threads, instructionSet: options.execution.instructionSet)
        let snapshot = try trainer.snapshot()
        reference = options.algorithm.needsReference ? snapshot : nil
        let learner = try Learner(trainer, options.learner)
        sampler = try RolloutSampler(
            try trainer.snapshot(in: options.rollout), ReinforcementRun.settings(options, environment),
            execution)
        monitor = try MismatchMonitor(options: options.monitor)
        self.options = options
        self.environment = environment
        self.execution = execution
        super.init(learner, options.model)
    }

    static func settings(
        _ options: ReinforcementOptions, _ environment: Environment
    ) -> SamplingSettings {
        SamplingSettings(
            temperature: options.temperature, seed: options.seed, stopIDs: environment.stopIDs,
            maxTokens: environment.maxTokens)
    }

    /// Takes a number of steps, and tells `observe` of each; it says whether to go on.
    ///
    /// - Throws: as `step`.
    public func run(
        steps: Int, _ observe: (ReinforcementMetrics) throws(LockstepError) -> Bool = { _ in true }
    ) throws(LockstepError) {
        for _ in 0..<steps where try !observe(step()) { return }
    }

    /// Takes a step.
    ///
    /// What prompts and rewards throw, and memory that is lacking to draw responses, leaves the run as it was, and the step
    /// can be taken again. A failure after that (a policy that diverged, no memory to learn) ends the run: each further step
    /// throws it again.
    ///
    /// - Throws: what prompts and rewards throw; `.nonFinite` for a reward that is not finite, naming step, problem and
    ///   sample; `.nonFinite` naming layer and operation, or tensor, if values leave their formats.
    public func step() throws(LockstepError) -> ReinforcementMetrics {
        try checkIsWell()
        return try withLockstepFloatMode { () throws(LockstepError) in
            let plan = try planned()
            let number = plan.step
            let samples = try drawn(plan)
            let rewards = try self.rewards(of: samples, step: number)
            return try stopping { () throws(LockstepError) in
                let metrics = try learn(samples, rewards, step: number)
                stepsTaken = number
                self.plan = nil
                return metrics
            }
        }
    }

    override var settings: [(name: String, value: String)] { allSettings }

    override func monitorBytes() -> [UInt8]? { monitor.bytes }

    override func setMonitor(_ bytes: [UInt8]?, _ path: String) throws(LockstepError) {
        guard let bytes else {
            throw LockstepError(.badData, "\(path): is no checkpoint of a reinforcement learning run")
        }
        monitor = try MismatchMonitor(bytes: bytes)
    }

    // MARK: Draws

    /// What rollout ids of a step begin at; those of evaluations have the highest but one bit.
    func firstID(step: Int) -> UInt64 { UInt64(step) << 20 }

    /// The problems of a step: the next ones, or draws without repetition from those there are.
    func drawProblems(step: Int) -> [Int] {
        guard let all = environment.problems else {
            return (0..<options.prompts).map { (step - 1) * options.prompts + $0 }
        }
        let philox = Philox4x32(seed: options.seed)
        var left = all
        return (0..<options.prompts).map { slot in
            if left.isEmpty { left = all }
            let word = philox.block(UInt64(slot), high: 1 << 63 | UInt64(step))[0]
            return left.remove(at: Int((UInt64(word) * UInt64(left.count)) >> 32))
        }
    }

    /// The samples of a step.
    ///
    /// Where memory for drawing is lacking nothing has changed, and the step can be taken again.
    private func drawn(_ plan: StepPlan) throws(LockstepError) -> [RunBatch.Sample] {
        do throws(LockstepError) {
            return try sample(plan)
        } catch {
            if error.kind == .outOfMemory { throw error }
            return try stopping { () throws(LockstepError) in throw error }
        }
    }

    /// What was given of a step, and what it draws itself: prompts with a response that was not given.
    private func sample(_ plan: StepPlan) throws(LockstepError) -> [RunBatch.Sample] {
        let missing = plan.requests.filter { request in request.ids.contains { plan.given[$0] == nil } }
        var drawn: [UInt64: Rollout] = [:]
        if !missing.isEmpty {
            let groups = missing.map {
                RolloutSampler.Group(prompt: $0.prompt, firstID: $0.ids.lowerBound, count: $0.ids.count)
            }
            let model = try learner.trainer.snapshot(in: options.rollout)
            for rollout in try sampler.sample(groups, from: model) { drawn[rollout.id] = rollout }
        }
        return plan.requests.flatMap { request in
            request.ids.compactMap { id in
                (drawn[id] ?? plan.given[id]).map {
                    RunBatch.Sample(problem: request.problem, prompt: request.prompt, rollout: $0)
                }
            }
        }
    }

    private func rewards(of samples: [RunBatch.Sample], step: Int) throws(LockstepError) -> [Double] {
        var rewards: [Double] = []
        for (index, sample) in samples.enumerated() {
            rewards.append(
                try environment.checkedReward(
                    RewardRequest(
                        step: step, problem: sample.problem, sample: index % options.samples,
                        prompt: sample.prompt, response: sample.rollout.tokens)))
        }
        return rewards
    }

    // MARK: Learning

    private func learn(
        _ samples: [RunBatch.Sample], _ rewards: [Double], step: Int
    ) throws(LockstepError) -> ReinforcementMetrics {
        let batch = try RunBatch(samples, drawnFrom: options.temperature != 1)
        let whole = try batch.slice(0..<samples.count)
        try score(whole, into: .trainer, entropy: true, keeping: slice(of: 0).count * options.samples)
        if let reference { try score(whole, with: reference) }
        let mismatch = try measure(whole)
        try advantages(whole, rewards, samples)
        if !options.algorithm.correctsEachUpdate {
            whole.values(.current).update(from: whole.values(.trainer), count: whole.count)
            try correct(whole)
        }

        var metrics = ReinforcementMetrics()
        var sums = (loss: 0.0, clip: 0.0)
        for update in 0..<options.updates {
            let groups = slice(of: update)
            let slice = try batch.slice(
                groups.lowerBound * options.samples..<groups.upperBound * options.samples)
            let report = try self.update(slice, isFirst: update == 0, &metrics)
            sums.loss += report.loss
            let clipped = report.clipLow + report.clipHigh + report.clipDual
            sums.clip += clipped.isNaN ? 0 : clipped
        }
        metrics.step = step
        metrics.loss = sums.loss / Double(options.updates)
        metrics.clipShare = sums.clip / Double(options.updates)
        metrics.shareMasked = Double(batch.leftOutTokens) / Double(batch.responseTokens)
        try describe(samples, rewards, mismatch, whole, &metrics)
        return metrics
    }

    /// The prompts that an update is made from.
    private func slice(of update: Int) -> Range<Int> {
        options.prompts * update / options.updates..<options.prompts * (update + 1) / options.updates
    }

    /// Log-probs, and entropies if they are wanted, of all tokens by the trainer, which may keep its passes of the first sequences.
    private func score(
        _ slice: RunSlice, into column: RunBatch.Column, entropy: Bool, keeping: Int
    ) throws(LockstepError) {
        try learner.trainer.score(
            tokens: slice.tokens, offsets: slice.offsetView, temperature: options.temperature,
            keeping: keeping,
            into: ScoringOutputs(
                logProbs: slice.output(column), entropy: entropy ? slice.output(.entropy) : nil))
    }

    /// Log-probs of all tokens by the reference.
    private func score(_ slice: RunSlice, with reference: Model) throws(LockstepError) {
        try reference.score(
            tokens: slice.tokens, offsets: slice.offsetView,
            options: LogProbOptions(temperature: options.temperature),
            into: ScoringOutputs(logProbs: slice.output(.reference)), execution: execution)
    }

    private func measure(_ whole: RunSlice) throws(LockstepError) -> Mismatch {
        let accumulator = MismatchAccumulator.summary()
        try accumulator.update(
            LogProbPair(
                trainer: whole.matrix(.trainer), rollout: whole.matrix(.rollout), mask: whole.maskView,
                offsets: whole.offsetView),
            execution: execution)
        return accumulator.mismatch()
    }

    private func advantages(
        _ whole: RunSlice, _ rewards: [Double], _ samples: [RunBatch.Sample]
    ) throws(LockstepError) {
        let groups = samples.indices.map { Int32($0 / options.samples) }
        let truncated: [UInt8] = samples.map {
            $0.rollout.finish == .length && !environment.stopIDs.isEmpty ? 1 : 0
        }
        try rewards.withVectorView { (rewards) throws(LockstepError) in
            try groups.withTokenView { (groups) throws(LockstepError) in
                try truncated.withUnsafeBufferPointer { (flags) throws(LockstepError) in
                    var batch = RewardBatch(.perSequence(rewards))
                    batch.layout = try whole.layout()
                    batch.groups = groups
                    batch.truncated = MaskView(flags.baseAddress, rows: flags.count, columns: 1)
                    try batch.advantages(
                        into: .perToken(whole.mutableMatrix(.advantage)),
                        options: options.algorithm.advantages)
                }
            }
        }
    }

    /// Weights and mask of a slice: pi is the current policy where a preset says so.
    private func correct(_ slice: RunSlice) throws(LockstepError) {
        var batch = TokenBatch(layout: try slice.layout())
        batch.trainer = slice.matrix(options.algorithm.policies == .two ? .current : .trainer)
        batch.rollout = slice.matrix(.rollout)
        batch.current = slice.matrix(.current)
        batch.advantages = .perToken(slice.matrix(.advantage))
        _ = try batch.correct(
            weights: slice.mutableMatrix(.weight), kept: slice.mutableKept,
            options: options.algorithm.correction,
            execution: execution)
    }

    /// One update from a slice: log-probs of the policy as it is, loss and its gradient, backward pass, optimiser.
    private func update(
        _ slice: RunSlice, isFirst: Bool, _ metrics: inout ReinforcementMetrics
    ) throws(LockstepError) -> ObjectiveReport {
        let algorithm = options.algorithm
        let wantsEntropy = algorithm.objective.entropyCoefficient != 0
        if isFirst {
            // Nothing was updated yet: the current policy is the trainer.
            slice.values(.current).update(from: slice.values(.trainer), count: slice.count)
        } else {
            try score(slice, into: .current, entropy: wantsEntropy, keeping: slice.sequences.count)
        }
        if algorithm.correctsEachUpdate { try correct(slice) }
        var batch = TokenBatch(layout: try slice.layout())
        batch.current = slice.matrix(.current)
        batch.trainer = slice.matrix(algorithm.policies == .two ? .rollout : .trainer)
        if algorithm.objective.kl != .none {
            batch.reference = slice.matrix(algorithm.referenceIsRollout ? .rollout : .reference)
        }
        if wantsEntropy { batch.entropies = slice.matrix(.entropy) }
        batch.advantages = .perToken(slice.matrix(.advantage))
        batch.weights = slice.matrix(.weight)
        batch.kept = slice.keptView
        if algorithm.objective.term == .klCov {
            try selectByCovariance(into: slice.mutableSelected, of: batch, options: CovarianceOptions(.kl))
            batch.selected = slice.selectedView
        }
        let groups = slice.sequences.map { Int32($0 / options.samples) }
        let report = try groups.withTokenView { (groups) throws(LockstepError) in
            batch.groups = groups
            return try Objective.loss(
                algorithm.objective, of: batch, gradient: slice.mutableMatrix(.gradient),
                entropyGradient: wantsEntropy ? slice.mutableMatrix(.entropyGradient) : nil,
                execution: execution)
        }
        if !report.loss.isFinite || slice.firstNonFinite(.gradient) != nil {
            throw LockstepError(.nonFinite, slice.whyNotFinite(loss: report.loss))
        }
        let passed = try learner.trainer.accumulate(
            tokens: slice.tokens, offsets: slice.offsetView,
            LogProbGradients(
                logProbs: slice.vector(.gradient),
                entropy: wantsEntropy ? slice.vector(.entropyGradient) : nil),
            lossScale: learner.scaler.scale, temperature: options.temperature)
        metrics.learningRate = try options.learner.schedule.rate(step: learner.optimizer.step + 1)
        let taken = try learner.update(after: passed)
        if taken.skipped {
            metrics.skipped += 1
        } else {
            metrics.gradientNorm =
                metrics.gradientNorm.isNaN ? taken.norm : max(metrics.gradientNorm, taken.norm)
        }
        return report
    }

    /// The figures that do not come from updates; tells the monitor of the step.
    private func describe(
        _ samples: [RunBatch.Sample], _ rewards: [Double], _ mismatch: Mismatch, _ whole: RunSlice,
        _ metrics: inout ReinforcementMetrics
    ) throws(LockstepError) {
        // A policy that no longer makes a model has diverged, in the step that did it.
        _ = try learner.trainer.snapshot()
        let alarm = try monitor.update(step: metrics.step, mismatch)
        let count = Double(samples.count)
        metrics.responses = samples.count
        metrics.tokens = mismatch.tokens
        metrics.rewardMean = rewards.reduce(0, +) / count
        metrics.shareRight = Double(rewards.count { $0 >= 1 }) / count
        metrics.equalGroups = stride(from: 0, to: rewards.count, by: options.samples).count { first in
            rewards[first..<first + options.samples].allSatisfy { $0 == rewards[first] }
        }
        metrics.responseLength = Double(mismatch.tokens) / count
        metrics.shareTruncated =
            environment.stopIDs.isEmpty ? 0 : Double(samples.count { $0.rollout.finish == .length }) / count
        metrics.k3 = mismatch.k3.value
        metrics.meanAbsLogRatio = mismatch.meanAbsLogRatio.value
        metrics.maxAbsLogRatio = mismatch.maxAbsLogRatio
        metrics.maxAbsProbDiff = mismatch.maxAbsProbDiff
        metrics.ess = mismatch.ess
        metrics.sequenceESS = mismatch.sequenceESS
        metrics.sequenceLogRatioStd = mismatch.sequenceLogRatioStd
        metrics.updates = learner.optimizer.step
        metrics.skippedTotal = learner.scaler.report.skipped
        metrics.lossScale = learner.scaler.scale
        metrics.isScaleAtFloor = learner.scaler.report.isAtFloor
        metrics.monitor = alarm.level
        metrics.monitorScore = alarm.score
        metrics.monitorStatistic = alarm.statistic
        metrics.entropy = entropy(whole, samples)
    }

    /// The mean over the responses' tokens, each sequence's sum first.
    private func entropy(_ whole: RunSlice, _ samples: [RunBatch.Sample]) -> Double {
        var (sum, tokens, start) = (0.0, 0, 0)
        let values = whole.values(.entropy)
        for sample in samples {
            start += sample.prompt.count
            let count = sample.rollout.tokens.count
            sum += (start..<start + count).reduce(0.0) { $0 + values[$1] }
            tokens += count
            start += count
        }
        return sum / Double(tokens)
    }
}
