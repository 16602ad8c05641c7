/// Everything that a reinforcement learning run is a function of, but for its environment.
public struct ReinforcementOptions: Sendable {
    /// The model it starts from.
    public var model: StartingModel
    /// Formats of the trainer.
    public var trainer: Recipe
    /// Formats of the rollout engine.
    public var rollout: Recipe
    /// Advantages, correction, objective.
    public var algorithm: Algorithm
    /// Prompts of a step.
    public var prompts = 16
    /// Responses to each prompt: the group.
    public var samples = 8
    /// Updates from one batch of rollouts: each takes the next prompts' share of it.
    public var updates = 2
    /// Temperature that tokens are drawn at, and scored at.
    public var temperature = 1.0
    /// Seed of draws: prompts and tokens.
    public var seed: UInt64 = 0
    /// Optimiser, rates, clipping, loss scale.
    public var learner: LearnerOptions
    /// The early warning.
    public var monitor = MonitorOptions()
    /// Threads, instruction set, recomputation: they do not change the result.
    public var execution = TrainerOptions()

    /// Creates options with the settings of the built-in experiment: 16 prompts of 8 samples, 2 updates, AdamW with
    /// decays of 0.9 and 0.95 and no weight decay at a constant rate of 2e-4, norm clipped to 1.
    public init(
        model: StartingModel, trainer: Recipe = Recipe(.fp16), rollout: Recipe? = nil, algorithm: Algorithm
    ) {
        self.model = model
        self.trainer = trainer
        self.rollout = rollout ?? trainer
        self.algorithm = algorithm
        learner = LearnerOptions(
            adamW: AdamWOptions(beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0),
            schedule: LearningRateSchedule(.constant, peak: 2e-4), maxNorm: 1,
            scaler: LearnerOptions.scaler(for: trainer))
    }

    func check() throws(LockstepError) {
        for (value, name, range) in [
            (prompts, "prompts", 1...1 << 16), (samples, "samples", 1...1 << 16),
            (updates, "updates", 1...max(prompts, 1)),
        ] as [(Int, StaticString, ClosedRange<Int>)] {
            guard range.contains(value) else {
                throw LockstepError(
                    .invalidArgument,
                    "options: \(name) is \(value); give \(range.lowerBound) to \(range.upperBound)")
            }
        }
        guard prompts * samples <= 1 << 20 else {
            throw LockstepError(
                .invalidArgument, "options: prompts x samples is \(prompts * samples); give 1,048,576 at most"
            )
        }
        guard temperature >= 0.01, temperature <= 100 else {
            throw LockstepError(
                .invalidArgument, "options: temperature is \(temperature); give a number from 0.01 to 100")
        }
    }
}
