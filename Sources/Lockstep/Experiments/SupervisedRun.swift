/// Supervised training on demonstrations of a task: the cross-entropy of the responses' tokens.
///
/// A pure function of its options and task, as a reinforcement learning run is.
public final class SupervisedRun: TrainingRun {
    /// What it is a function of.
    public struct Options: Sendable {
        /// The model it starts from.
        public var model: StartingModel
        /// Formats of the trainer.
        public var recipe: Recipe
        /// Demonstrations of a step.
        public var batch = 64
        /// Steps that the run's schedule is made for.
        public var steps: Int
        /// Seed of the demonstrations.
        public var seed: UInt64 = 0
        /// How often a step of a demonstration is wrong.
        public var errorRate = 0.0
        /// Optimiser, rates, clipping, loss scale.
        public var learner: LearnerOptions
        /// Threads, instruction set, recomputation: they do not change the result.
        public var execution = TrainerOptions()

        /// Creates options: batches of 64, AdamW with decays of 0.9 and 0.95, a cosine from 3e-3 to 0 after 50 steps of
        /// warm-up, norm clipped to 1.
        public init(model: StartingModel, recipe: Recipe = Recipe(.fp32), steps: Int) {
            self.model = model
            self.recipe = recipe
            self.steps = steps
            learner = LearnerOptions(
                adamW: AdamWOptions(beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0),
                schedule: LearningRateSchedule(
                    .cosine, peak: 3e-3, warmupSteps: min(50, steps / 4), totalSteps: max(steps, 1)),
                maxNorm: 1, scaler: LearnerOptions.scaler(for: recipe))
        }
    }

    /// What happened in a step.
    public struct Metrics: Equatable, Sendable {
        /// The step, from 1.
        public var step = 0
        /// Tokens of the responses.
        public var tokens = 0
        /// Mean -ln p of them, nats.
        public var loss = Double.nan
        /// The gradient's norm before clipping.
        public var gradientNorm = Double.nan
        /// The learning rate.
        public var learningRate = Double.nan
        /// Whether the update was skipped, as a gradient was not finite.
        public var isSkipped = false
        /// The loss scale after the step.
        public var lossScale = Double.nan
    }

    /// What it is a function of.
    public let options: Options
    /// The task.
    public let task: VerifiableTask

    /// Begins a run.
    ///
    /// - Throws: `.invalidArgument` for the options; as `Model.init` for the model.
    public init(_ options: Options, task: VerifiableTask) throws(LockstepError) {
        guard (1...1 << 16).contains(options.batch), (1...1 << 40).contains(options.steps) else {
            throw LockstepError(
                .invalidArgument,
                "options: batch is \(options.batch) and steps \(options.steps); give positive numbers, and a batch of "
                    + "65,536 at most")
        }
        _ = try task.demonstration(0, seed: options.seed, errorRate: options.errorRate)
        let learner = try Learner(
            options.model.trainer(options.recipe, options.execution), options.learner)
        self.options = options
        self.task = task
        super.init(learner, options.model)
    }

    override var settings: [(name: String, value: String)] { allSettings }

    /// Takes a step on the next demonstrations.
    ///
    /// A failure ends the run: each further step throws it again.
    ///
    /// - Throws: `.nonFinite` naming layer and operation, or tensor, if values leave their formats.
    public func step() throws(LockstepError) -> Metrics {
        try checkIsWell()
        return try withLockstepFloatMode { () throws(LockstepError) in
            var (tokens, offsets, gradients): ([Int32], [Int64], [Double]) = ([], [0], [])
            for index in 0..<options.batch {
                let problem = stepsTaken * options.batch + index
                let prompt = try task.prompt(problem, seed: options.seed)
                let response = try task.demonstration(
                    problem, seed: options.seed, errorRate: options.errorRate)
                tokens += prompt + response
                gradients += [Double](repeating: 0, count: prompt.count)
                gradients += [Double](repeating: 1, count: response.count)
                offsets.append(Int64(tokens.count))
            }
            let counted = gradients.count { $0 != 0 }
            let metrics = try stopping { () throws(LockstepError) in
                try learn(tokens, offsets, gradients.map { -$0 / Double(counted) }, counted)
            }
            stepsTaken += 1
            return metrics
        }
    }

    private func learn(
        _ tokens: [Int32], _ offsets: [Int64], _ weights: [Double], _ counted: Int
    ) throws(LockstepError) -> Metrics {
        var metrics = Metrics()
        let passed: BackwardReport
        (metrics.loss, passed) = try accumulate(tokens, offsets, weights)
        metrics.learningRate = try options.learner.schedule.rate(step: learner.optimizer.step + 1)
        let report = try learner.update(after: passed)
        _ = try learner.trainer.snapshot()
        metrics.step = stepsTaken + 1
        metrics.tokens = counted
        metrics.gradientNorm = report.norm
        metrics.isSkipped = report.skipped
        metrics.lossScale = learner.scaler.scale
        return metrics
    }

    /// Adds the gradient of the sum of weights times log-probs, and returns that sum.
    private func accumulate(
        _ tokens: [Int32], _ offsets: [Int64], _ weights: [Double]
    ) throws(LockstepError) -> (Double, BackwardReport) {
        var logProbs = [Double](repeating: 0, count: tokens.count)
        let report = try tokens.withTokenView { (tokens) throws(LockstepError) in
            try offsets.withUnsafeBufferPointer { (offsets) throws(LockstepError) in
                try weights.withVectorView { (weights) throws(LockstepError) in
                    try logProbs.withMutableVectorView { (logProbs) throws(LockstepError) in
                        try learner.trainer.accumulate(
                            tokens: tokens,
                            offsets: TokenView(offsets.baseAddress, byteCount: 8, count: offsets.count),
                            LogProbGradients(logProbs: weights), lossScale: learner.scaler.scale,
                            into: BackwardOutputs(logProbs: logProbs))
                    }
                }
            }
        }
        return (zip(logProbs, weights).reduce(0) { $0 + $1.0 * $1.1 }, report)
    }
}
