import CLockstepKernels

/// What a backward pass over some sequences met.
public struct BackwardReport: Equatable, Sendable {
    /// Sequences that were passed through.
    public var sequences = 0
    /// Sequences in whose backward pass a value left its format: the gradients mean nothing until they are cleared.
    public var overflows = 0
    /// The first of them, in the order of the batch; -1 without.
    public var overflowSequence = -1
    /// Its layer: -1 is the embedding, the number of layers what follows them.
    public var overflowLayer = -1
    /// The operation whose gradient it was; empty without.
    public var overflowOperation = ""

    /// Creates a report of nothing.
    public init() {}
}

/// What a pass says of each token on the way, as `Model.score` does; nil for what is not wanted.
public struct BackwardOutputs {
    /// [tokens] fp32 or fp64.
    public var logProbs: MutableVectorView?
    /// [tokens] fp32 or fp64, nats.
    public var entropy: MutableVectorView?

    /// Creates outputs.
    public init(logProbs: MutableVectorView? = nil, entropy: MutableVectorView? = nil) {
        self.logProbs = logProbs
        self.entropy = entropy
    }
}

/// How a trainer works: choices that change its memory and its speed, never its results.
public struct TrainerOptions: Equatable, Sendable {
    /// Keep only the layers' inputs for the backward pass, and compute the rest of a layer again.
    public var recomputes: Bool
    /// Threads and instruction set.
    public var threads: Int
    /// The instruction set; `nil` means the best this machine has.
    public var instructionSet: InstructionSet?

    /// Creates options; by default everything is kept, on all processors.
    public init(recomputes: Bool = false, threads: Int = 0, instructionSet: InstructionSet? = nil) {
        self.recomputes = recomputes
        self.threads = threads
        self.instructionSet = instructionSet
    }
}

/// A model that is trained: float32 masters, forward and backward passes in a recipe's formats, gradients that do not
/// depend on how a batch is cut, ordered or spread over threads.
///
/// Each sequence is passed forward and backward alone, with the bits that `Model.score` has. Its float32 gradients are
/// added to exact sums, which `gradients` rounds once. An optimiser changes the masters, and `snapshot` is the model
/// that the next batch is sampled from and trained on. One call at a time.
public final class Trainer: @unchecked Sendable {
    /// The formats it computes in.
    public let recipe: Recipe
    /// How it works.
    public let options: TrainerOptions
    /// Whether the gradients added since `clearGradients` are all finite.
    public private(set) var gradientsAreFinite = true
    let weights: TrainedWeights
    private let kernels: UnsafePointer<lsk_kernels>
    private let threads: Int
    private var trained: TrainedModel
    private var isStale = false
    private var sums: [GradientSums] = []
    private(set) var passes: [SequencePass] = []
    /// Of the first sequences of the last `score`: a backward pass over them needs no other forward pass.
    private var kept: [PassState] = []
    private var keptTemperature: Double?
    private var capacity = 0
    private var addedTokens = 0

    /// Bytes of exact sums up to which every worker has its own.
    private static let ownSumsLimit = 64 << 20
    /// Bytes of what forward passes are kept in, at most.
    private static let keptLimit = 64 << 20

    /// Trains a checkpoint; with an adapter, one in PEFT's layout or a new one, trains the adapter alone.
    ///
    /// - Throws: as `Model.init`; `.invalidArgument` for both adapters, or a target that the model does not have.
    public convenience init(
        path: String, adapter: String? = nil, lowRank: LowRank? = nil, recipe: Recipe,
        options: TrainerOptions = .init()
    ) throws(LockstepError) {
        guard adapter == nil || lowRank == nil else {
            throw LockstepError(
                .invalidArgument,
                "low_rank: an adapter is given too; give the one that exists, or what a new one is")
        }
        let adapter: Adapter? = if let adapter { try Adapter(path: adapter) } else { nil }
        try self.init(
            TrainedWeights(Checkpoint(path: path), adapter: adapter, lowRank: lowRank), recipe, options)
    }

    /// Trains a model from its beginning: norms 1, biases 0, matrices normal with a deviation, of a seed.
    ///
    /// - Throws: `.invalidArgument` for the recipe or the deviation; `.outOfMemory`.
    public convenience init(
        configuration: ModelConfiguration, seed: UInt64, deviation: Double = 0.02, recipe: Recipe,
        options: TrainerOptions = .init()
    ) throws(LockstepError) {
        guard deviation > 0, deviation <= 1e3 else {
            throw LockstepError(
                .invalidArgument, "deviation is \(deviation); give a positive number, such as 0.02")
        }
        try self.init(
            TrainedWeights(configuration, seed: seed, deviation: deviation), recipe, options)
    }

    private init(
        _ weights: TrainedWeights, _ recipe: Recipe, _ options: TrainerOptions
    ) throws(LockstepError) {
        try recipe.checkTrained()
        guard recipe.order == .lockstep else {
            throw LockstepError(
                .unsupported,
                "recipe: order is \(recipe.order.name); a trainer computes in the lockstep order alone: give the other "
                    + "order to the rollout engine")
        }
        let execution = Execution(threads: options.threads, instructionSet: options.instructionSet)
        self.weights = weights
        self.recipe = recipe
        self.options = options
        kernels = try execution.kernels()
        threads = try execution.threadCount()
        trained = try withLockstepFloatMode { () throws(LockstepError) in
            try TrainedModel(weights, recipe)
        }
    }

    /// What is trained, and where it is in the flat buffers.
    public var parameters: Parameters { weights.parameters }
    /// The model's shape.
    public var configuration: ModelConfiguration { weights.configuration }

    /// Lends the float32 masters to `body`, which may change them and must not keep the buffer.
    ///
    /// The next snapshot, and the next pass, have what was changed.
    public func withMasters<Result>(
        _ body: (UnsafeMutableBufferPointer<Float>) throws(LockstepError) -> Result
    ) throws(LockstepError) -> Result {
        isStale = true
        return try body(
            UnsafeMutableBufferPointer(start: parameters.values.base, count: parameters.count))
    }

    /// The model of the masters as they are, rounded to the recipe's parameters: what passes compute with.
    ///
    /// - Throws: `.nonFinite` naming a tensor with a value that is NaN or infinite there; `.outOfMemory`.
    public func snapshot() throws(LockstepError) -> Model {
        if isStale {
            trained = try withLockstepFloatMode { () throws(LockstepError) in
                try TrainedModel(weights, recipe, after: trained)
            }
            for pass in passes { pass.use(trained) }
            isStale = false
        }
        return trained.model
    }

    /// The model of the masters rounded to another recipe's parameters: what a rollout engine of other formats has.
    ///
    /// - Throws: as `snapshot`; `.invalidArgument` for the recipe.
    public func snapshot(in recipe: Recipe) throws(LockstepError) -> Model {
        if recipe == self.recipe { return try snapshot() }
        return try withLockstepFloatMode { () throws(LockstepError) in
            try Model(weights, weights.configuration, recipe, parameterCount: weights.modelCount)
        }
    }

    /// Sets the gradients to zero.
    public func clearGradients() {
        for sums in sums { sums.setToZero() }
        gradientsAreFinite = true
        addedTokens = 0
    }

    /// Writes the gradients added since `clearGradients`, unscaled, each rounded once: NaN, all of them, after an
    /// overflow.
    ///
    /// - Throws: `.invalidArgument` unless there are as many as parameters.
    public func gradients(into out: UnsafeMutableBufferPointer<Float>) throws(LockstepError) {
        guard out.count == parameters.count, let base = out.baseAddress else {
            throw LockstepError(
                .invalidArgument,
                "gradients: has \(out.count) elements; give \(parameters.count), as many as parameters")
        }
        guard gradientsAreFinite, let first = sums.first else {
            return base.update(repeating: gradientsAreFinite ? 0 : .nan, count: out.count)
        }
        for other in sums.dropFirst() {
            first.add(other)
            other.setToZero()
        }
        first.round(into: base)
    }

    /// Passes sequences forward and backward, and adds the gradients of
    /// `sum_t dLogProb_t log_prob_t + dEntropy_t entropy_t`.
    ///
    /// `tokens` are packed; sequence i is `offsets[i] ..< offsets[i + 1]` (one sequence without offsets). Gradients
    /// with respect to log-probs are [tokens], those of a sequence's first token are not read. The loss scale
    /// multiplies them on the way and is taken out again where gradients are added: powers of two leave no trace. Outputs,
    /// if wanted, are those of `Model.score`.
    ///
    /// - Returns: what overflowed in the backward pass, if anything: `gradientsAreFinite` is then false.
    /// - Throws: `.invalidArgument` as `Model.score`, for a gradient that is NaN or infinite, or a loss scale that is
    ///   no positive number; nothing is added then. `.nonFinite` for an overflow of the forward pass, as
    ///   `Model.score`; `gradientsAreFinite` is then false.
    @discardableResult
    public func accumulate(
        tokens: TokenView, offsets: TokenView? = nil, _ gradients: LogProbGradients, lossScale: Double = 1,
        temperature: Double = 1, into outputs: BackwardOutputs = .init()
    ) throws(LockstepError) -> BackwardReport {
        try withLockstepFloatMode { () throws(LockstepError) in
            let model = try snapshot()
            let layout = try SequenceLayout(rows: 1, columns: tokens.count, offsets: offsets, of: "tokens")
            try model.check(tokens, layout)
            try check(gradients, tokens: tokens.count, lossScale: lossScale)
            let scoring = LogProbOptions(temperature: temperature)
            _ = try scoring.rule()
            if tokens.count == 0 { return BackwardReport() }
            try prepare(for: layout)
            let wantsEntropy = outputs.entropy != nil || gradients.entropy != nil
            for pass in passes {
                try pass.head.prepare(scoring, wantsEntropy: wantsEntropy)
                pass.gradients.scale = 1 / lossScale
            }
            addedTokens += tokens.count
            let isKept = temperature == keptTemperature
            let entropy = gradients.entropy
            return try run(
                tokens, layout, outputs,
                { (sequence, part, pass) throws(PassFailure) in
                    if isKept, sequence < kept.count, kept[sequence].holds(part, trained) {
                        return kept[sequence]
                    }
                    try pass.run(part, in: pass.own)
                    return pass.own
                },
                backward: { (part, first, state, pass) throws(PassFailure) in
                    try pass.runBackward(
                        part, from: state,
                        dLogProb: { (gradients.logProbs?.double(first + $0) ?? 0) * lossScale },
                        dEntropy: entropy == nil ? nil : { (entropy?.double(first + $0) ?? 0) * lossScale })
                })
        }
    }

    /// Scores sequences as `Model.score` does, with entropies, and keeps what a backward pass over the first `keeping` of
    /// them needs, if it is small: `accumulate` over those, before masters change, does not pass forward again.
    ///
    /// - Throws: as `Model.score`.
    func score(
        tokens: TokenView, offsets: TokenView?, temperature: Double, keeping: Int,
        into outputs: ScoringOutputs
    ) throws(LockstepError) {
        try withLockstepFloatMode { () throws(LockstepError) in
            let model = try snapshot()
            let layout = try SequenceLayout(rows: 1, columns: tokens.count, offsets: offsets, of: "tokens")
            let scoring = LogProbOptions(temperature: temperature)
            let longest = (0..<layout.sequences).lazy.map { layout.length(of: $0) }.max() ?? 0
            let bytes = PassState.byteCount(
                configuration, recipe, tokens: max(longest, capacity), recomputes: options.recomputes)
            guard tokens.count > 0, bytes <= Trainer.keptLimit / max(keeping, 1) else {
                let execution = Execution(threads: options.threads, instructionSet: options.instructionSet)
                return try model.score(
                    tokens: tokens, offsets: offsets, options: scoring, into: outputs, execution: execution)
            }
            try model.check(tokens, layout)
            try prepare(for: layout)
            for pass in passes { try pass.head.prepare(scoring, wantsEntropy: true) }
            while kept.count < min(keeping, layout.sequences) {
                kept.append(
                    try PassState(
                        configuration, recipe, tokens: capacity, recomputes: options.recomputes))
            }
            keptTemperature = temperature
            let wanted = BackwardOutputs(logProbs: outputs.logProbs, entropy: outputs.entropy)
            try run(tokens, layout, wanted) { (sequence, part, pass) throws(PassFailure) in
                let state = sequence < min(keeping, kept.count) ? kept[sequence] : pass.own
                try pass.run(part, in: state)
                return state
            }
        }
    }

    private func check(
        _ gradients: LogProbGradients, tokens: Int, lossScale: Double
    ) throws(LockstepError) {
        try gradients.check(tokens: tokens)
        guard gradients.logSumExp == nil else {
            throw LockstepError(.invalidArgument, "log_sum_exp: the trainer finds it itself; leave it out")
        }
        guard lossScale >= 0x1p-60, lossScale <= 0x1p60 else {
            throw LockstepError(
                .invalidArgument, "loss_scale is \(lossScale); give a positive number from 2^-60 to 2^60")
        }
        for (view, name) in [(gradients.logProbs, "d_log_probs"), (gradients.entropy, "d_entropy")] {
            guard let view else { continue }
            for token in 0..<tokens where !view.double(token).isFinite {
                throw LockstepError(
                    .invalidArgument, "\(name)[\(token)] is \(view.double(token)); give finite gradients")
            }
        }
        guard addedTokens + tokens <= GradientSums.tokenLimit else {
            throw LockstepError(
                .invalidArgument,
                "tokens: with these, \(addedTokens + tokens) since the gradients were cleared; take a step after "
                    + "\(GradientSums.tokenLimit) at most")
        }
    }

    /// Makes room for the workers, and for the longest sequence.
    func prepare(for layout: SequenceLayout) throws(LockstepError) {
        let longest = (0..<layout.sequences).lazy.map { layout.length(of: $0) }.max() ?? 0
        if sums.isEmpty {
            let isShared = threads > 1 && parameters.count > Trainer.ownSumsLimit / 16
            var made: [GradientSums] = []
            for _ in 0..<(isShared ? 1 : threads) {
                made.append(try GradientSums(parameters, kernels, isShared: isShared))
            }
            sums = made
        }
        if longest > capacity {
            // By doubling, as sequences may grow bit by bit.
            passes = []
            kept = []
            capacity = max(longest, min(2 * capacity, configuration.positions))
        }
        while passes.count < min(threads, layout.sequences) {
            passes.append(
                try SequencePass(
                    kernels, trained, sums[passes.count % sums.count], tokens: capacity,
                    recomputes: options.recomputes, options.instructionSet))
        }
    }

    /// Calls `forward` for each sequence (its number, tokens, and a worker's pass) and writes what it found, whatever
    /// `backward` (tokens, where they begin, what `forward` gave, the pass) meets then.
    @discardableResult
    private func run(
        _ tokens: TokenView, _ layout: SequenceLayout, _ outputs: BackwardOutputs,
        _ forward: (Int, UnsafeBufferPointer<Int32>, SequencePass) throws(PassFailure) -> PassState,
        backward: (UnsafeBufferPointer<Int32>, Int, PassState, SequencePass) throws(PassFailure) -> Void = {
            _, _, _, _ in
        }
    ) throws(LockstepError) -> BackwardReport {
        let ids = try Scratch<Int32>(count: tokens.count)
        for index in 0..<tokens.count { ids.base[index] = Int32(tokens[index]) }
        let isWritten = outputs.logProbs != nil || outputs.entropy != nil
        // A log-prob and an entropy for each token: outputs are untouched by a failure.
        let found = try Scratch<Double>(count: isWritten ? 2 * tokens.count : 0, filledWith: 0)
        let failures = FailureList(layout.sequences)
        let (idBase, foundBase) = (ids.base, found.base)
        parallelFor(tasks: layout.sequences, threads: min(threads, passes.count)) { sequence, worker in
            let first = layout.place(of: sequence).column
            let part = UnsafeBufferPointer(start: idBase + first, count: layout.length(of: sequence))
            if part.isEmpty { return }
            do throws(PassFailure) {
                let state = try forward(sequence, part, passes[worker])
                for position in isWritten ? part.indices : 0..<0 {
                    (foundBase[2 * (first + position)], foundBase[2 * (first + position) + 1]) =
                        state.score(position)
                }
                try backward(part, first, state, passes[worker])
            } catch {
                failures[sequence] = error
            }
        }
        let report = try self.report(failures, layout.sequences)
        for token in 0..<(isWritten ? tokens.count : 0) {
            outputs.logProbs?.store(found.base[2 * token], at: token)
            outputs.entropy?.store(found.base[2 * token + 1], at: token)
        }
        return report
    }

    private func report(_ failures: FailureList, _ sequences: Int) throws(LockstepError) -> BackwardReport {
        var report = BackwardReport()
        report.sequences = sequences
        for sequence in 0..<sequences {
            guard let failure = failures[sequence] else { continue }
            gradientsAreFinite = false
            guard failure.isBackward else { throw trained.model.overflow(failure.place) }
            report.overflows += 1
            if report.overflows == 1 {
                report.overflowSequence = sequence
                report.overflowLayer = failure.place.layer
                report.overflowOperation = "\(failure.place.operation)"
            }
        }
        return report
    }
}

/// What went wrong in each sequence.
private final class FailureList: @unchecked Sendable {
    private let failures: UnsafeMutableBufferPointer<PassFailure?>

    init(_ count: Int) {
        failures = .allocate(capacity: count)
        failures.initialize(repeating: nil)
    }

    deinit {
        failures.deinitialize()
        failures.deallocate()
    }

    subscript(sequence: Int) -> PassFailure? {
        get { failures[sequence] }
        set { failures[sequence] = newValue }
    }
}
