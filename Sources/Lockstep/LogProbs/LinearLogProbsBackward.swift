import CLockstepKernels

/// Where the gradients of a linear log-prob are added; nil for what is not wanted.
public struct LinearGradients {
    /// dL / d hidden: [tokens x H], fp32, fp16 or bf16.
    public var hidden: MutableMatrixView?
    /// dL / d weight: [vocab x H], fp32, fp16 or bf16.
    public var weight: MutableMatrixView?
    /// dL / d bias: [vocab], fp32.
    public var bias: MutableVectorView?

    /// Creates a set of gradient buffers.
    public init(
        hidden: MutableMatrixView? = nil, weight: MutableMatrixView? = nil, bias: MutableVectorView? = nil
    ) {
        self.hidden = hidden
        self.weight = weight
        self.bias = bias
    }

    func check(_ scorer: LinearScorer) throws(LockstepError) {
        let wanted: [(StaticString, MutableMatrixView?, Int, [Format])] = [
            ("d_hidden", hidden, scorer.tokens, [.fp32, .fp16, .bf16]),
            ("d_weight", weight, scorer.vocab, [.fp32, .fp16, .bf16]),
        ]
        for (name, view, rows, formats) in wanted {
            guard let view else { continue }
            guard formats.contains(view.format), view.rows == rows, view.columns == scorer.hidden.columns
            else {
                let list = formats.map(\.description).joined(separator: ", ")
                throw LockstepError(
                    .invalidArgument,
                    "\(name): is \(view.rows) x \(view.columns) of \(view.format); give \(rows) x "
                        + "\(scorer.hidden.columns) of \(list)")
            }
        }
        if let bias, bias.format != .fp32 || bias.count != scorer.vocab {
            throw LockstepError(
                .invalidArgument,
                "d_bias: has \(bias.count) elements of \(bias.format); give \(scorer.vocab) of fp32")
        }
    }
}

/// Gradients of `sum_t dLogProb_t log_prob_t + dEntropy_t entropy_t` with respect to hidden states, head and bias,
/// ADDED to what the buffers hold.
///
/// The logits are formed again a vocabulary block at a time, never stored. Chains follow the product rule: over the
/// vocabulary for `hidden`, over tokens for `weight` and `bias`, restarted every 128; the weight's and the bias's
/// partial sums are added to an fp32 buffer in order of tokens, so micro-batches of a multiple of 128 tokens, in
/// order, leave the bits of one batch. A 16-bit buffer gets the sum of the whole call, rounded once.
///
/// - Throws: as `linearLogProbs`. The buffers are then untouched.
public func linearLogProbsBackward(
    into buffers: LinearGradients, _ gradients: LogProbGradients, hidden: MatrixView, weight: MatrixView,
    bias: VectorView? = nil, targets: TokenView, options: LogProbOptions = .init(),
    execution: Execution = .init()
) throws(LockstepError) {
    try withLockstepFloatMode { () throws(LockstepError) in
        try checkFormat(weight.format, "weight")
        try checkBias(bias, vocab: weight.rows)
        let scorer = try LinearScorer(hidden, .borrowed(weight), bias, targets, options, execution)
        try buffers.check(scorer)
        try gradients.check(tokens: scorer.tokens)
        if scorer.tokens == 0 || scorer.vocab == 0 { return }
        let scores = try Scratch(count: scorer.tokens, filledWith: RowScore())
        if gradients.needsForward {
            try scorer.score(into: scores.base, wantsEntropy: gradients.entropy != nil)
        }
        let rows = try GradientRows(gradients, scores: scores, targets: targets, options: options)
        try LinearBackward(scorer, weight, rows, buffers).run()
    }
}

/// One backward pass: for each chunk of tokens and each block of 2,048 vocabulary entries, the gradient of the
/// logits, then what it gives to hidden states and head.
///
/// Chunks are gone through one by one, all blocks for each; but where the head's gradient has 16 bits, block by
/// block, all chunks for each, so that a block's gradient is rounded when it is whole.
private final class LinearBackward: @unchecked Sendable {
    private let scorer: LinearScorer
    private let kernels: lsk_kernels
    private let weight: MatrixView
    private let rows: GradientRows
    private let buffers: LinearGradients

    private let chunks: [Range<Int>]
    /// Gradient of a block's logits: [tokens of the chunk x 2048], and both ways packed.
    private let dLogits: Scratch<Float>
    private let dLogitsRows: PackedRows
    private let dLogitsColumns: PackedRows
    private let hiddenRows: PackedRows
    /// Gradient of the hidden states, of a chunk or, block by block, of all tokens: [tokens x H padded to 32].
    private let dHidden: Scratch<Float>
    private let dHiddenStride: Int
    /// Whether the head's gradient has 16 bits, and then its gradient of one block: [2048 x H].
    private let isBlockwise: Bool
    private let dWeightBlock: Scratch<Float>
    private let workers: [Worker]

    private static let block = Int(LSK_BLOCK)
    private static let chain = Int(LSK_CHAIN)
    private static let panel = Int(LSK_PANEL)
    /// Vocabulary entries of one task of the head's gradient: a multiple of every strip height.
    private static let entriesPerTask = 264

    /// Scratch of one worker.
    private final class Worker: @unchecked Sendable {
        let multiplier: TileMultiplier
        let panel: Scratch<Float>
        let dWeight: Scratch<Float>
        let sum: Scratch<Float>

        init(_ scorer: LinearScorer, rows: Int) throws(LockstepError) {
            multiplier = try TileMultiplier(scorer.kernels, scorer.columns, rows: rows)
            panel = try Scratch(count: LinearBackward.panel * LinearBackward.chain)
            dWeight = try Scratch(count: LinearBackward.panel * LinearBackward.entriesPerTask)
            sum = try Scratch(count: LinearBackward.block)
        }
    }

    init(
        _ scorer: LinearScorer, _ weight: MatrixView, _ rows: GradientRows, _ buffers: LinearGradients
    ) throws(LockstepError) {
        self.scorer = scorer
        self.weight = weight
        self.rows = rows
        self.buffers = buffers
        kernels = scorer.kernels.pointee
        chunks = scorer.chunks(multipleOf: LinearBackward.chain)
        let tokens = chunks[0].count
        dHiddenStride =
            (scorer.hidden.columns + LinearBackward.panel - 1) / LinearBackward.panel * LinearBackward.panel
        dLogits = try Scratch(count: tokens * LinearBackward.block)
        dLogitsRows = try PackedRows(scorer.kernels, rows: tokens, depth: LinearBackward.block)
        dLogitsColumns = try PackedRows(scorer.kernels, rows: LinearBackward.block, depth: tokens)
        hiddenRows = try PackedRows(scorer.kernels, rows: tokens, depth: scorer.hidden.columns)
        isBlockwise = buffers.weight.map { $0.format != .fp32 } ?? false
        dHidden = try Scratch(count: (isBlockwise ? scorer.tokens : tokens) * dHiddenStride)
        dWeightBlock = try Scratch(
            count: isBlockwise ? min(LinearBackward.block, scorer.vocab) * scorer.hidden.columns : 0)
        workers = try Lockstep.workers(scorer.threads) { () throws(LockstepError) in
            try Worker(scorer, rows: tokens)
        }
    }

    func run() {
        let blocks = stride(from: 0, to: scorer.vocab, by: LinearBackward.block).map {
            $0..<min(scorer.vocab, $0 + LinearBackward.block)
        }
        guard isBlockwise, let weight = buffers.weight else {
            for chunk in chunks {
                hiddenRows.pack(scorer.hidden, chunk)
                for block in blocks { add(chunk, block, dHidden.base, toWeight: buffers.weight, from: 0) }
                if let out = buffers.hidden { add(dHidden.base, stride: dHiddenStride, to: out, chunk) }
            }
            return
        }
        for block in blocks {
            dWeightBlock.base.update(repeating: 0, count: block.count * weight.columns)
            let whole = MutableMatrixView(
                dWeightBlock.base, .fp32, rows: block.count, columns: weight.columns)
            for chunk in chunks {
                hiddenRows.pack(scorer.hidden, chunk)
                add(
                    chunk, block, dHidden.base + chunk.lowerBound * dHiddenStride, toWeight: whole,
                    from: block.lowerBound)
            }
            add(dWeightBlock.base, stride: weight.columns, to: weight, block)
        }
        if let out = buffers.hidden { add(dHidden.base, stride: dHiddenStride, to: out, 0..<scorer.tokens) }
    }

    /// Adds what one block of logits of one packed chunk gives, to `dHidden` and to the rows of `weight`, whose
    /// first row is the vocabulary entry `firstEntry`.
    private func add(
        _ chunk: Range<Int>, _ block: Range<Int>, _ dHidden: UnsafeMutablePointer<Float>,
        toWeight weight: MutableMatrixView?, from firstEntry: Int
    ) {
        formLogitGradients(chunk, block)
        if buffers.hidden != nil { addToHidden(dHidden, chunk, block) }
        if let weight { addToWeight(weight, from: firstEntry, chunk, block) }
        if let bias = buffers.bias { addToBias(bias, chunk, block) }
    }

    /// dL / d logits of a block, in float.
    private func formLogitGradients(_ chunk: Range<Int>, _ block: Range<Int>) {
        let tiles = (block.count + TileMultiplier.width - 1) / TileMultiplier.width
        parallelFor(tasks: tiles, threads: scorer.threads) { task, worker in
            let multiplier = workers[worker].multiplier
            let offset = task * TileMultiplier.width
            let count = min(TileMultiplier.width, block.count - offset)
            multiplier.multiply(
                hiddenRows, first: block.lowerBound + offset, count: count, bias: scorer.bias)
            for row in 0..<chunk.count {
                let token = chunk.lowerBound + row
                let out = dLogits.base + row * LinearBackward.block + offset
                guard let gradient = rows[token] else {
                    out.update(repeating: 0, count: count)
                    continue
                }
                withUnsafePointer(to: (scorer.rule, gradient)) {
                    kernels.gradient_row(
                        out, Format.fp32.rawValue, multiplier.tile.base + row * TileMultiplier.width,
                        Format.fp32.rawValue, count, scorer.targets[token] - block.lowerBound - offset,
                        $0.pointer(to: \.0)!, $0.pointer(to: \.1)!)
                }
            }
        }
    }

    /// dHidden [tokens x H] += dLogits [tokens x block] weight [block x H]: chains over the vocabulary.
    ///
    /// A task has a few panels of columns, so that 128 k of all rows stay in cache while they pass over them.
    private func addToHidden(
        _ dHidden: UnsafeMutablePointer<Float>, _ chunk: Range<Int>, _ block: Range<Int>
    ) {
        dLogitsRows.pack(
            MatrixView(
                dLogits.base, .fp32, rows: chunk.count, columns: block.count, rowStride: LinearBackward.block),
            0..<chunk.count)
        let panels = dHiddenStride / LinearBackward.panel
        let panelsPerTask = max(1, min(9, (panels + scorer.threads - 1) / scorer.threads))
        let tasks = (panels + panelsPerTask - 1) / panelsPerTask
        parallelFor(tasks: tasks, threads: scorer.threads) { task, worker in
            let columns = task * panelsPerTask..<min(panels, (task + 1) * panelsPerTask)
            for k in stride(from: 0, to: block.count, by: LinearBackward.chain) {
                let depth = min(LinearBackward.chain, block.count - k)
                for column in columns {
                    let packed = pack(
                        weight, rows: block.lowerBound + k..<block.lowerBound + k + depth, column, worker)
                    kernels.multiply(
                        dHidden + column * LinearBackward.panel, dHiddenStride, dLogitsRows.from(),
                        dLogitsRows.depth, k, packed, Format.fp32.rawValue, chunk.count, depth,
                        block.lowerBound + k > 0 ? 1 : 0)
                }
            }
        }
    }

    /// dWeight [block x H] += dLogits^T [block x tokens] hidden [tokens x H]: chains over tokens.
    ///
    /// A task has a few vocabulary entries, so that all their tokens stay in cache while all columns pass.
    private func addToWeight(
        _ out: MutableMatrixView, from firstEntry: Int, _ chunk: Range<Int>, _ block: Range<Int>
    ) {
        dLogitsColumns.packTransposed(
            dLogits.base, rowStride: LinearBackward.block, count: block.count, depth: chunk.count)
        let entries = LinearBackward.entriesPerTask
        let tasks = (block.count + entries - 1) / entries
        parallelFor(tasks: tasks, threads: scorer.threads) { task, worker in
            let first = task * entries
            let count = min(entries, block.count - first)
            let tile = workers[worker].dWeight.base
            for column in 0..<dHiddenStride / LinearBackward.panel {
                let offset = column * LinearBackward.panel
                let width = min(LinearBackward.panel, scorer.hidden.columns - offset)
                func target(_ entry: Int) -> UnsafeMutablePointer<Float> {
                    out.row(block.lowerBound - firstEntry + first + entry).assumingMemoryBound(to: Float.self)
                        + offset
                }
                // A full panel is added to in place, a part of one by way of a tile.
                let isFull = width == LinearBackward.panel
                if !isFull {
                    for entry in 0..<count {
                        (tile + entry * LinearBackward.panel).update(from: target(entry), count: width)
                    }
                }
                for k in stride(from: 0, to: chunk.count, by: LinearBackward.chain) {
                    let depth = min(LinearBackward.chain, chunk.count - k)
                    let packed = pack(
                        scorer.hidden, rows: chunk.lowerBound + k..<chunk.lowerBound + k + depth, column,
                        worker)
                    kernels.multiply(
                        isFull ? target(0) : tile, isFull ? out.rowStride : LinearBackward.panel,
                        dLogitsColumns.from(row: first), dLogitsColumns.depth, k, packed,
                        Format.fp32.rawValue, count, depth, 1)
                }
                if !isFull {
                    for entry in 0..<count {
                        target(entry).update(from: tile + entry * LinearBackward.panel, count: width)
                    }
                }
            }
        }
    }

    /// Packs 32 columns of some rows of a matrix as a right operand.
    private func pack(
        _ matrix: MatrixView, rows: Range<Int>, _ column: Int, _ worker: Int
    ) -> UnsafePointer<Float> {
        let offset = column * LinearBackward.panel
        let panel = workers[worker].panel.base
        kernels.pack_panel(
            panel, matrix.row(rows.lowerBound) + offset * matrix.format.byteCount, matrix.format.rawValue,
            matrix.rowStride, min(LinearBackward.panel, matrix.columns - offset), rows.count)
        return UnsafePointer(panel)
    }

    /// dBias [block] += sum over tokens of dLogits: the same chains, with a right operand of ones.
    private func addToBias(_ out: MutableVectorView, _ chunk: Range<Int>, _ block: Range<Int>) {
        for column in 0..<block.count {
            let address = out.base! + (block.lowerBound + column) * out.stride * MemoryLayout<Float>.size
            var total = address.load(as: Float.self)
            for k in stride(from: 0, to: chunk.count, by: LinearBackward.chain) {
                var chain: Float = 0
                for row in k..<min(k + LinearBackward.chain, chunk.count) {
                    chain += dLogits.base[row * LinearBackward.block + column]
                }
                total += chain
            }
            address.storeBytes(of: total, as: Float.self)
        }
    }

    /// Adds a gradient to some rows of the caller's buffer, rounding once to its format.
    private func add(
        _ gradient: UnsafePointer<Float>, stride: Int, to out: MutableMatrixView, _ rows: Range<Int>
    ) {
        let columns = out.columns
        let size = out.format.byteCount
        parallelFor(tasks: rows.count, threads: scorer.threads) { task, worker in
            let sum = workers[worker].sum.base
            let address = out.row(rows.lowerBound + task)
            let values = gradient + task * stride
            var counts = lsk_convert_counts()
            for first in Swift.stride(from: 0, to: columns, by: LinearBackward.block) {
                let count = min(LinearBackward.block, columns - first)
                let place = address + first * size
                kernels.convert(
                    sum, Format.fp32.rawValue, place, out.format.rawValue, count,
                    LSK_NEAREST_EVEN, 0, 0, &counts)
                for column in 0..<count { sum[column] += values[first + column] }
                kernels.convert(
                    place, out.format.rawValue, sum, Format.fp32.rawValue, count,
                    LSK_NEAREST_EVEN, 0, 0, &counts)
            }
        }
    }
}
