/// How a model learns: optimiser, rates, clipping, loss scale.
public struct LearnerOptions: Equatable, Sendable {
    /// AdamW's decays, epsilon and weight decay.
    public var adamW: AdamWOptions
    /// The learning rates, by number of the update.
    public var schedule: LearningRateSchedule
    /// The gradient's global norm is clipped to this; 0: not.
    public var maxNorm: Double
    /// How the loss scale moves.
    public var scaler: LossScalerOptions

    /// Creates options.
    public init(
        adamW: AdamWOptions, schedule: LearningRateSchedule, maxNorm: Double, scaler: LossScalerOptions
    ) {
        self.adamW = adamW
        self.schedule = schedule
        self.maxNorm = maxNorm
        self.scaler = scaler
    }

    /// The loss scaler that a recipe needs: torch's where gradients have fp16's range, else a constant 1.
    public static func scaler(for recipe: Recipe) -> LossScalerOptions {
        var options = LossScalerOptions(recipe.gradients.hasNarrowRange ? .torch : .constant)
        if options.kind == .constant { options.initialScale = 1 }
        return options
    }
}

/// A trainer with what changes its masters: gradients are added, then an update takes them.
final class Learner {
    let trainer: Trainer
    let optimizer: AdamW
    let options: LearnerOptions
    var scaler: LossScaler
    private let gradients: Scratch<Float>
    private let execution: Execution

    init(_ trainer: Trainer, _ options: LearnerOptions) throws(LockstepError) {
        self.trainer = trainer
        self.options = options
        guard options.maxNorm >= 0 else {
            throw LockstepError(.invalidArgument, "options: max_norm is \(options.maxNorm); give 0 or more")
        }
        scaler = try LossScaler(options.scaler)
        _ = try options.schedule.rate(step: 1)
        optimizer = try AdamW(
            trainer.parameters.tensors.map { ParameterRange($0.name, $0.range, decays: $0.decays) },
            options: options.adamW)
        gradients = try Scratch(count: trainer.parameters.count)
        execution = Execution(
            threads: trainer.options.threads, instructionSet: trainer.options.instructionSet)
    }

    /// Takes the gradients added since the last update: clip, AdamW, loss scale; or, if one is not finite, skips.
    ///
    /// - Parameter passed: what the backward pass met.
    /// - Throws: `.nonFinite` naming layer and operation for a gradient that is not finite while the loss scale is at its
    ///   floor: skipping on would change nothing.
    /// - Returns: what was done, or that it was skipped.
    func update(after passed: BackwardReport) throws(LockstepError) -> AdamWReport {
        let buffer = UnsafeMutableBufferPointer(start: gradients.base, count: gradients.count)
        try trainer.gradients(into: buffer)
        let rate = try options.schedule.rate(step: optimizer.step + 1)
        let report = try trainer.withMasters { (masters) throws(LockstepError) in
            try optimizer.update(
                masters, gradients: UnsafeBufferPointer(buffer), learningRate: rate, maxNorm: options.maxNorm,
                execution: execution)
        }
        if report.skipped, scaler.report.isAtFloor { throw overflow(passed) }
        scaler.update(foundNonFinite: report.skipped)
        trainer.clearGradients()
        return report
    }

    private func overflow(_ passed: BackwardReport) -> LockstepError {
        var place = "its sum over sequences"
        if passed.overflows > 0 {
            let layers = trainer.configuration.layers
            let layer =
                passed.overflowLayer < 0
                ? "the embedding"
                : passed.overflowLayer < layers ? "layer \(passed.overflowLayer)" : "the end"
            place =
                "first that of \(passed.overflowOperation) of \(layer), sequence \(passed.overflowSequence)"
        }
        return LockstepError(
            .nonFinite,
            "the gradient is not finite (\(place)), twice or more at a loss scale that can fall no further, "
                + "\(scaler.scale); use gradients of a wider format, a lower learning rate, or a scaler with more room"
        )
    }
}
