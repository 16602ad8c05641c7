import CLockstepKernels

/// Log-prob of each row's target, from hidden states [tokens x H] and a head [vocab x H] (+ bias): the logits
/// `hidden weight^T + bias` are formed a tile at a time and never held.
///
/// Equals, bit for bit, `logProbs` of the logits formed by the product rule (docs/Numerics.md).
///
/// - Throws: `.invalidArgument` for shapes, formats, options and targets; `.unsupported` for top-k and top-p;
///   `.nonFinite` naming a row of logits with a NaN, +inf or only -inf. Outputs are then untouched.
public func linearLogProbs(
    hidden: MatrixView, weight: MatrixView, bias: VectorView? = nil, targets: TokenView,
    options: LogProbOptions = .init(), into outputs: LogProbOutputs, execution: Execution = .init()
) throws(LockstepError) {
    try withLockstepFloatMode { () throws(LockstepError) in
        try checkFormat(weight.format, "weight")
        try checkBias(bias, vocab: weight.rows)
        try LinearScorer(hidden, .borrowed(weight), bias, targets, options, execution).score(into: outputs)
    }
}

extension Head {
    /// `linearLogProbs` with this head: the same bits, faster for few tokens.
    ///
    /// - Throws: as `linearLogProbs`.
    public func logProbs(
        hidden: MatrixView, targets: TokenView, options: LogProbOptions = .init(),
        into outputs: LogProbOutputs, execution: Execution = .init()
    ) throws(LockstepError) {
        try withLockstepFloatMode { () throws(LockstepError) in
            try LinearScorer(hidden, .packed(self), bias, targets, options, execution).score(into: outputs)
        }
    }
}

/// What the forward and the backward of a linear log-prob share: checked inputs and the plan of tiles.
struct LinearScorer {
    let hidden: MatrixView
    let columns: HeadColumns
    let bias: VectorView?
    let targets: TokenView
    let options: LogProbOptions
    let rule: lsk_logit_rule
    let kernels: UnsafePointer<lsk_kernels>
    let threads: Int

    init(
        _ hidden: MatrixView, _ columns: HeadColumns, _ bias: VectorView?, _ targets: TokenView,
        _ options: LogProbOptions, _ execution: Execution
    ) throws(LockstepError) {
        try checkFormat(hidden.format, "hidden")
        guard hidden.columns == columns.depth else {
            throw LockstepError(
                .invalidArgument,
                "hidden: rows have \(hidden.columns) elements but the head's have \(columns.depth)")
        }
        rule = try options.rule()
        guard !options.truncates else {
            throw LockstepError(
                .unsupported,
                "top_k, top_p and min_p need whole rows of logits; form the logits and use "
                    + "lockstep_log_probs")
        }
        try checkTargets(
            targets, tokens: hidden.rows, vocab: columns.count, ignoreIndex: options.ignoreIndex)
        kernels = try execution.kernels()
        threads = try execution.threadCount()
        self.hidden = hidden
        self.columns = columns
        self.bias = bias
        self.targets = targets
        self.options = options
    }

    var tokens: Int { hidden.rows }
    var vocab: Int { columns.count }

    /// Rows that are packed and multiplied together: at most 4 MB of them.
    ///
    /// More rows pack the head less often.
    func chunks(multipleOf unit: Int) -> [Range<Int>] {
        let most = max(unit, min(512, (1 << 20) / max(hidden.columns, 1)) / unit * unit)
        return stride(from: 0, to: tokens, by: most).map { $0..<min(tokens, $0 + most) }
    }

    func score(into outputs: LogProbOutputs) throws(LockstepError) {
        try outputs.check(tokens: tokens)
        if tokens == 0 { return }
        let scores = try Scratch(count: tokens, filledWith: RowScore())
        try score(into: scores.base, wantsEntropy: outputs.entropy != nil)
        outputs.write(scores.base, tokens: tokens)
    }

    /// Scores every row that counts; throws the failure of the first that cannot be scored.
    func score(into scores: UnsafeMutablePointer<RowScore>, wantsEntropy: Bool) throws(LockstepError) {
        let chunks = chunks(multipleOf: 1)
        let rowsPerChunk = chunks[0].count
        let blocksPerRow = blockCount(vocab)
        let rows = try PackedRows(kernels, rows: rowsPerChunk, depth: hidden.columns)
        let blocks = try Scratch<lsk_lse_block>(count: rowsPerChunk * blocksPerRow)
        let targetLogits = try Scratch<Float>(count: rowsPerChunk, filledWith: 0)
        let adders = try workers(min(threads, max(blocksPerRow, 1))) { () throws(LockstepError) in
            try BlockAdder(self, rows: rowsPerChunk, wantsEntropy: wantsEntropy)
        }
        let scorer = try RowScorer(kernels, options, vocab: vocab, wantsEntropy: wantsEntropy)
        for chunk in chunks {
            rows.pack(hidden, chunk)
            let (blockBase, targetBase) = (blocks.base, targetLogits.base)
            parallelFor(tasks: blocksPerRow, threads: threads) { block, worker in
                adders[worker].add(
                    block, of: rows, firstToken: chunk.lowerBound, into: blockBase + block,
                    stride: blocksPerRow, targetBase)
            }
            for (row, token) in chunk.enumerated() where targets[token] != options.ignoreIndex {
                let mine = UnsafeBufferPointer(start: blocks.base + row * blocksPerRow, count: blocksPerRow)
                scores[token] = scorer.score(mine, targetLogit: targetLogits.base[row])
                if scores[token].failure == RowSum.Failure.wide.rawValue {
                    let logits = try logits(ofToken: token)
                    scores[token] = scorer.score(
                        UnsafeRawPointer(logits.base), .fp32, target: targets[token])
                }
            }
        }
        try checkScores(scores, tokens: tokens)
    }

    /// All logits of one row, before they are rounded and capped: [vocab] floats.
    func logits(ofToken token: Int) throws(LockstepError) -> Scratch<Float> {
        let row = try PackedRows(kernels, rows: 1, depth: hidden.columns)
        row.pack(hidden, token..<token + 1)
        let multiplier = try TileMultiplier(kernels, columns, rows: 1)
        let logits = try Scratch<Float>(count: vocab)
        for first in stride(from: 0, to: vocab, by: TileMultiplier.width) {
            let count = min(TileMultiplier.width, vocab - first)
            multiplier.multiply(row, first: first, count: count, bias: bias)
            (logits.base + first).update(from: multiplier.tile.base, count: count)
        }
        return logits
    }
}

/// Forms the logits of a vocabulary block tile by tile and adds up their exponentials.
///
/// One worker owns it.
private final class BlockAdder: @unchecked Sendable {
    private let scorer: LinearScorer
    private let kernels: lsk_kernels
    private let wantsEntropy: Int32
    private let multiplier: TileMultiplier
    private let states: Scratch<lsk_lse_state>

    init(_ scorer: LinearScorer, rows: Int, wantsEntropy: Bool) throws(LockstepError) {
        self.scorer = scorer
        kernels = scorer.kernels.pointee
        self.wantsEntropy = wantsEntropy ? 1 : 0
        multiplier = try TileMultiplier(scorer.kernels, scorer.columns, rows: rows)
        states = try Scratch(count: rows)
    }

    /// Adds block `block` of all rows, into `blocks[row * stride]`, and keeps the logits of its targets.
    func add(
        _ block: Int, of rows: PackedRows, firstToken: Int, into blocks: UnsafeMutablePointer<lsk_lse_block>,
        stride: Int, _ targetLogits: UnsafeMutablePointer<Float>
    ) {
        for row in 0..<rows.rows { kernels.lse_reset(states.base + row) }
        let first = block * Int(LSK_BLOCK)
        let end = min(scorer.vocab, first + Int(LSK_BLOCK))
        for column in Swift.stride(from: first, to: end, by: TileMultiplier.width) {
            let count = min(TileMultiplier.width, end - column)
            multiplier.multiply(rows, first: column, count: count, bias: scorer.bias)
            for row in 0..<rows.rows {
                let target = scorer.targets[firstToken + row] - column
                if target >= 0, target < count {
                    targetLogits[row] = multiplier.tile.base[row * TileMultiplier.width + target]
                }
            }
            withUnsafePointer(to: scorer.rule) {
                kernels.lse_tile(
                    states.base, multiplier.tile.base, TileMultiplier.width, rows.rows, count, $0,
                    wantsEntropy)
            }
        }
        for row in 0..<rows.rows { kernels.lse_finish(blocks + row * stride, states.base + row) }
    }
}
