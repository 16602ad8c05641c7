import CLockstepKernels

/// The exact divergences of two distributions over the vocabulary, in nats.
public struct Divergence: Equatable, Sendable, BitwiseCopyable {
    /// KL(mu || pi) >= 0; +inf where the trainer gives 0 to what the rollout can draw.
    public var klRolloutTrainer = 0.0
    /// KL(pi || mu) >= 0; +inf where the rollout gives 0 to what the trainer can draw.
    public var klTrainerRollout = 0.0
    /// sum |pi - mu| / 2, in [0, 1].
    public var totalVariation = 0.0
    /// (KL(pi || m) + KL(mu || m)) / 2 with m = (pi + mu) / 2, in [0, ln 2].
    public var jensenShannon = 0.0
    /// 1 if both have their first maximum at one id, else 0.
    public var sameTop1 = 0.0

    /// No divergence, and no agreement: what a masked row has.
    public init() {}
}

/// Exact divergences of two logits matrices [tokens x vocab], each in fp32, fp16 or bf16.
///
/// Both sides go through `y = softCap(round(x)) / temperature` and the softmax, in float64; the other
/// options must have their defaults. A row's result depends on its two rows of logits and the options alone.
/// Sums over the vocabulary are of terms that are never negative and never the difference of nearly equal
/// values, so the divergences of nearly equal policies keep their digits. Extra memory: 16 bytes x vocab a
/// thread, and 48 bytes a row.
///
/// `mask` [1 x tokens] says which rows count, all without it; a masked row is never read. `write` is called
/// for each row in order, for a masked one with a `Divergence()`; on error it is not called.
///
/// - Returns: The means over counted rows; NaN if there are none.
/// - Throws: `.invalidArgument` for shapes, formats and options; `.nonFinite` for a counted row with a NaN,
///   +inf (rounding to fp16 makes one of a logit beyond 65,504), or only -inf.
@discardableResult
public func exactDivergence(
    trainer: MatrixView, rollout: MatrixView, mask: MaskView? = nil, options: LogProbOptions = .init(),
    execution: Execution = .init(), write: (_ row: Int, _ divergence: Divergence) -> Void = { _, _ in }
) throws(LockstepError) -> Divergence {
    try withLockstepFloatMode { () throws(LockstepError) in
        let rule = try divergenceRule(options)
        try checkShapes(trainer, rollout, mask)
        let kernels = try execution.kernels()
        let vocab = trainer.columns
        let tasks = (trainer.rows + rowsPerTask - 1) / rowsPerTask
        let workers = min(try execution.threadCount(), max(tasks, 1))
        let room = (vocab + 15) / 16 * 16
        let scratch = try Scratch<Double>(count: workers * 2 * room)
        let rows = try Scratch(count: trainer.rows, filledWith: DivergenceRow())
        let (scratchBase, rowsBase) = (scratch.base, rows.base)
        parallelFor(tasks: tasks, threads: workers) { task, worker in
            let p = scratchBase + worker * 2 * room
            for row in task * rowsPerTask..<min(trainer.rows, (task + 1) * rowsPerTask) where mask.counts(row)
            {
                rowsBase[row] = DivergenceRow(
                    kernels, rule, trainer, rollout, row: row, scratch: (p, p + room))
            }
        }

        var total = Divergence()
        var counted = 0.0
        for row in 0..<trainer.rows {
            if let failure = rowsBase[row].failure { throw failure.error(row: row) }
        }
        for row in 0..<trainer.rows {
            let divergence = rowsBase[row].divergence
            write(row, divergence)
            guard mask.counts(row) else { continue }
            counted += 1
            total.combine(divergence) { $0 + $1 }
        }
        total.combine(total) { sum, _ in sum / counted }
        return total
    }
}

/// Rows a worker takes at a time: each is at least some thousand exponentials.
private let rowsPerTask = 4

/// What the kernels need of the options, or an error for those that have no meaning here.
private func divergenceRule(_ options: LogProbOptions) throws(LockstepError) -> lsk_divergence_rule {
    _ = try options.rule()
    guard !options.truncates else {
        throw LockstepError(
            .invalidArgument,
            "top_k is \(options.topK), top_p \(options.topP) and min_p \(options.minP), but exact divergences are "
                + "over the whole vocabulary; leave them at 0, 1 and 0")
    }
    guard options.ignoreIndex == LogProbOptions().ignoreIndex else {
        throw LockstepError(
            .invalidArgument,
            "ignore_index is \(options.ignoreIndex), but there are no targets here; leave it at "
                + "\(LogProbOptions().ignoreIndex) and give a mask")
    }
    return lsk_divergence_rule(
        temperature: options.temperature, soft_cap: options.softCap,
        rounding: options.logitsFormat.rawValue)
}

private func checkShapes(
    _ trainer: MatrixView, _ rollout: MatrixView, _ mask: MaskView?
) throws(LockstepError) {
    try checkFormat(trainer.format, "trainer_logits")
    try checkFormat(rollout.format, "rollout_logits")
    guard trainer.rows == rollout.rows, trainer.columns == rollout.columns else {
        throw LockstepError(
            .invalidArgument,
            "rollout_logits: shape is [\(rollout.rows) x \(rollout.columns)] but trainer_logits is "
                + "[\(trainer.rows) x \(trainer.columns)]; give the same tokens and vocabulary to both")
    }
    guard trainer.columns > 0 || trainer.rows == 0 else {
        throw LockstepError(.invalidArgument, "trainer_logits: vocab is 0; a row needs at least one logit")
    }
    if let mask, mask.rows != 1 || mask.columns != trainer.rows {
        throw LockstepError(
            .invalidArgument,
            "mask: shape is [\(mask.rows) x \(mask.columns)] but there are \(trainer.rows) rows of logits; give "
                + "[tokens]")
    }
}

extension MaskView? {
    /// Whether row `index` counts, the mask being a vector.
    fileprivate func counts(_ index: Int) -> Bool { self.map { $0.base![index] != 0 } ?? true }
}

extension Divergence {
    /// Each field from those of two.
    fileprivate mutating func combine(_ other: Divergence, _ operation: (Double, Double) -> Double) {
        klRolloutTrainer = operation(klRolloutTrainer, other.klRolloutTrainer)
        klTrainerRollout = operation(klTrainerRollout, other.klTrainerRollout)
        totalVariation = operation(totalVariation, other.totalVariation)
        jensenShannon = operation(jensenShannon, other.jensenShannon)
        sameTop1 = operation(sameTop1, other.sameTop1)
    }

    /// From the sums over the vocabulary.
    ///
    /// Rounding could take a sum of probabilities a hair beyond what it can be.
    init(_ sums: lsk_divergence_sums, sameTop1: Bool) {
        klRolloutTrainer = sums.kl_rollout_trainer
        klTrainerRollout = sums.kl_trainer_rollout
        totalVariation = min(sums.difference / 2, 1)
        jensenShannon = min(sums.jensen_shannon / 2, ln2)
        self.sameTop1 = sameTop1 ? 1 : 0
    }
}

/// A row's result, or why there is none.
private struct DivergenceRow: BitwiseCopyable {
    var divergence = Divergence()
    var failure: Failure?

    enum Failure: BitwiseCopyable {
        case trainerNotFinite, trainerOnlyNegativeInfinity, rolloutNotFinite, rolloutOnlyNegativeInfinity

        func error(row: Int) -> LockstepError {
            let name =
                switch self {
                case .trainerNotFinite, .trainerOnlyNegativeInfinity: "trainer_logits"
                case .rolloutNotFinite, .rolloutOnlyNegativeInfinity: "rollout_logits"
                }
            let found =
                switch self {
                case .trainerNotFinite, .rolloutNotFinite:
                    "a NaN or +inf; mask the row, or find out why (an overflow of fp16 ends in +inf)"
                case .trainerOnlyNegativeInfinity, .rolloutOnlyNegativeInfinity:
                    "only -inf; at least one logit must be finite"
                }
            return LockstepError(.nonFinite, "\(name): row \(row) has \(found)")
        }
    }

    init() {}

    init(
        _ kernels: UnsafePointer<lsk_kernels>, _ rule: lsk_divergence_rule, _ trainer: MatrixView,
        _ rollout: MatrixView, row: Int,
        scratch: (p: UnsafeMutablePointer<Double>, q: UnsafeMutablePointer<Double>)
    ) {
        var rule = rule
        let vocab = Int64(trainer.columns)
        var (p, q) = (lsk_divergence_row(), lsk_divergence_row())
        kernels.pointee.divergence_row!(
            &p, scratch.p, trainer.row(row), trainer.format.rawValue, vocab, &rule)
        kernels.pointee.divergence_row!(
            &q, scratch.q, rollout.row(row), rollout.format.rawValue, vocab, &rule)
        if p.failed != 0 {
            failure = .trainerNotFinite
        } else if p.total == 0 {
            failure = .trainerOnlyNegativeInfinity
        } else if q.failed != 0 {
            failure = .rolloutNotFinite
        } else if q.total == 0 {
            failure = .rolloutOnlyNegativeInfinity
        }
        guard failure == nil else { return }
        var sums = lsk_divergence_sums()
        kernels.pointee.divergence_sums!(
            &sums, scratch.p, p.total, scratch.q, q.total, logarithm(p.total) - logarithm(q.total), vocab)
        divergence = Divergence(sums, sameTop1: p.top == q.top)
    }
}
