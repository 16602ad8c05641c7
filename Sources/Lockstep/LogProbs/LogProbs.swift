import CLockstepKernels

/// Where a call leaves what it found about each row; nil for what is not wanted.
public struct LogProbOutputs {
    /// ln softmax of the target: [tokens].
    public var logProbs: MutableVectorView?
    /// Entropy of the softmax, in nats: [tokens].
    public var entropy: MutableVectorView?
    /// ln sum of exponentials: [tokens]; as fp64 it can be given to the backward.
    public var logSumExp: MutableVectorView?
    /// The probability of the kept set before the cut: [tokens].
    public var keptMass: MutableVectorView?

    /// Creates a set of outputs.
    public init(
        logProbs: MutableVectorView? = nil, entropy: MutableVectorView? = nil,
        logSumExp: MutableVectorView? = nil, keptMass: MutableVectorView? = nil
    ) {
        self.logProbs = logProbs
        self.entropy = entropy
        self.logSumExp = logSumExp
        self.keptMass = keptMass
    }

    func check(tokens: Int) throws(LockstepError) {
        let named: [(StaticString, MutableVectorView?)] = [
            ("log_probs", logProbs), ("entropy", entropy), ("log_sum_exp", logSumExp),
            ("kept_mass", keptMass),
        ]
        for (name, view) in named {
            guard let view else { continue }
            guard view.count == tokens, [.fp32, .fp64].contains(view.format) else {
                throw LockstepError(
                    .invalidArgument,
                    "\(name): has \(view.count) elements of \(view.format); give \(tokens) of fp32 or fp64")
            }
        }
    }

    func write(_ scores: UnsafePointer<RowScore>, tokens: Int) {
        for row in 0..<tokens {
            logProbs?.store(scores[row].logProb, at: row)
            entropy?.store(scores[row].entropy, at: row)
            logSumExp?.store(scores[row].logSumExp, at: row)
            keptMass?.store(scores[row].keptMass, at: row)
        }
    }
}

/// Log-prob of each row's target, from logits [tokens x vocab] in fp32, fp16 or bf16.
///
/// `log_prob = y_target - ln sum_v e^(y_v)`, with `y = softCap(round(x)) / temperature`. With `topK` or
/// `topP`, everything is of the kept set renormalised. Rows whose target is `ignoreIndex` are never read;
/// their outputs are 0. A result's bits depend on its row and the options alone: see docs/Numerics.md.
///
/// - Throws: `.invalidArgument` for shapes, formats, options and targets out of range; `.nonFinite` for a
///   row with a NaN, +inf, or only -inf (the message names it); outputs are then untouched.
public func logProbs(
    logits: MatrixView, targets: TokenView, options: LogProbOptions = .init(), into outputs: LogProbOutputs,
    execution: Execution = .init()
) throws(LockstepError) {
    try withLockstepFloatMode { () throws(LockstepError) in
        try checkFormat(logits.format, "logits")
        try checkTargets(
            targets, tokens: logits.rows, vocab: logits.columns, ignoreIndex: options.ignoreIndex)
        try outputs.check(tokens: logits.rows)
        let kernels = try execution.kernels()
        let threads = try execution.threadCount()
        _ = try options.rule()
        if logits.rows == 0 { return }
        let scores = try Scratch(count: logits.rows, filledWith: RowScore())
        try scoreRows(
            logits, targets, options, kernels, threads: threads, wantsEntropy: outputs.entropy != nil,
            into: scores.base)
        outputs.write(scores.base, tokens: logits.rows)
    }
}

/// Scores every row that counts; throws the failure of the first that cannot be scored.
func scoreRows(
    _ logits: MatrixView, _ targets: TokenView, _ options: LogProbOptions,
    _ kernels: UnsafePointer<lsk_kernels>, threads: Int, wantsEntropy: Bool,
    into scores: UnsafeMutablePointer<RowScore>
) throws(LockstepError) {
    let rowsPerTask = max(1, 65_536 / max(logits.columns, 1))
    let tasks = (logits.rows + rowsPerTask - 1) / rowsPerTask
    let scorers = try workers(min(threads, tasks)) { () throws(LockstepError) in
        try RowScorer(kernels, options, vocab: logits.columns, wantsEntropy: wantsEntropy)
    }
    parallelFor(tasks: tasks, threads: threads) { task, worker in
        for row in task * rowsPerTask..<min(logits.rows, (task + 1) * rowsPerTask)
        where targets[row] != options.ignoreIndex {
            scores[row] = scorers[worker].score(logits.row(row), logits.format, target: targets[row])
        }
    }
    try checkScores(scores, tokens: logits.rows)
}

/// Throws the failure of the first row that has one.
func checkScores(_ scores: UnsafePointer<RowScore>, tokens: Int) throws(LockstepError) {
    for row in 0..<tokens where scores[row].failure != 0 {
        if scores[row].failure == RowSum.Failure.onlyNegativeInfinity.rawValue {
            throw LockstepError(
                .nonFinite, "logits: row \(row) has only -inf; at least one logit must be finite")
        }
        throw LockstepError(
            .nonFinite,
            "logits: row \(row) has a NaN or +inf; mask the row with ignore_index, or find out why (an overflow "
                + "of fp16 ends in +inf)")
    }
}

/// One of something for each worker.
func workers<Worker>(
    _ count: Int, _ make: () throws(LockstepError) -> Worker
) throws(LockstepError) -> [Worker] {
    var all: [Worker] = []
    for _ in 0..<count { all.append(try make()) }
    return all
}
