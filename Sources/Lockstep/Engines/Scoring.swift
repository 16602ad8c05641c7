/// Log-prob and entropy of every token of some sequences, given the tokens before it.
public struct ScoringOutputs {
    /// [tokens] fp32 or fp64.
    public var logProbs: MutableVectorView
    /// [tokens] fp32 or fp64, nats.
    public var entropy: MutableVectorView?

    /// Creates outputs.
    public init(logProbs: MutableVectorView, entropy: MutableVectorView? = nil) {
        self.logProbs = logProbs
        self.entropy = entropy
    }
}

extension Model {
    /// Scores sequences, teacher-forced: each token's log-prob given those before it.
    ///
    /// `tokens` are packed; sequence i is `offsets[i] ..< offsets[i + 1]` (one sequence without offsets). The first token
    /// of a sequence has nothing before it: its log-prob and entropy are 0. Entropy is that of the distribution the
    /// token was drawn from. Memory: one layer's keys and values and a row of activations for each token, never
    /// tokens x vocab.
    ///
    /// The bits depend on a sequence's tokens alone: not on the batch, on how it is chunked, on threads.
    ///
    /// - Throws: `.invalidArgument` naming a token outside the vocabulary, an empty sequence or one longer than the
    ///   context; `.nonFinite` naming layer and operation of an overflow. Outputs are then untouched.
    public func score(
        tokens: TokenView, offsets: TokenView? = nil, options: LogProbOptions = .init(),
        into outputs: ScoringOutputs, execution: Execution = .init()
    ) throws(LockstepError) {
        try withLockstepFloatMode { () throws(LockstepError) in
            let layout = try SequenceLayout(rows: 1, columns: tokens.count, offsets: offsets, of: "tokens")
            try check(tokens, layout)
            if tokens.count == 0 { return }
            let hidden = try hiddenStates(tokens, layout, execution)
            try logProbs(
                of: MatrixView(
                    hidden.base, recipe.activations.storage, rows: tokens.count,
                    columns: configuration.hiddenSize),
                tokens, layout, options, into: outputs, execution)
        }
    }

    /// The logits that follow each token, as its log-softmax sees them: rounded to the recipe's logits.
    ///
    /// `logits` is [tokens x vocab] fp32, rows contiguous: much memory, which `score` does without. One that the recipe
    /// cannot hold is infinite.
    ///
    /// - Throws: as `score(tokens:offsets:options:into:execution:)`; `logits` is then untouched.
    public func logits(
        tokens: TokenView, offsets: TokenView? = nil, into logits: MutableMatrixView,
        execution: Execution = .init()
    ) throws(LockstepError) {
        try withLockstepFloatMode { () throws(LockstepError) in
            let layout = try SequenceLayout(rows: 1, columns: tokens.count, offsets: offsets, of: "tokens")
            try check(tokens, layout)
            let vocab = configuration.vocab
            guard logits.format == .fp32, logits.rows == tokens.count, logits.columns == vocab,
                logits.rowStride == vocab
            else {
                throw LockstepError(
                    .invalidArgument,
                    "logits: is \(logits.rows) x \(logits.columns); give \(tokens.count) x \(vocab) of fp32, its "
                        + "rows one after another")
            }
            guard tokens.count > 0, let out = logits.base?.assumingMemoryBound(to: Float.self) else { return }
            let hidden = try hiddenStates(tokens, layout, execution)
            let limit = min(Forward.rowLimit, tokens.count)
            let forward = try Forward(self, rows: limit, positions: 0, execution)
            let rule = try LogProbOptions(logitsFormat: recipe.logits).rule()
            let kernels = try execution.kernels().pointee
            let rowBytes = configuration.hiddenSize * recipe.activations.byteCount
            for first in stride(from: 0, to: tokens.count, by: limit) {
                let rows = out + first * vocab
                let count = min(limit, tokens.count - first)
                forward.logits(hidden.base + first * rowBytes, count, into: rows)
                withUnsafePointer(to: rule) {
                    kernels.prepare_row(rows, rows, Format.fp32.rawValue, count * vocab, $0, 0)
                }
            }
        }
    }

    /// Throws for sequences that cannot be passed through.
    func check(_ tokens: TokenView, _ layout: SequenceLayout) throws(LockstepError) {
        for sequence in 0..<layout.sequences {
            let length = layout.length(of: sequence)
            guard length > 0 || layout.offsets == nil else {
                throw LockstepError(
                    .invalidArgument, "tokens: sequence \(sequence) is empty; leave it out of the batch")
            }
            guard length <= configuration.positions else {
                throw LockstepError(
                    .invalidArgument,
                    "tokens: sequence \(sequence) has \(length) tokens but the model's context is "
                        + "\(configuration.positions); cut it")
            }
        }
        try check(tokens, "tokens")
    }

    /// Throws for a token outside the vocabulary.
    func check(_ tokens: TokenView, _ name: StaticString) throws(LockstepError) {
        for index in 0..<tokens.count where !(0..<configuration.vocab).contains(tokens[index]) {
            throw LockstepError(
                .invalidArgument,
                "\(name)[\(index)] is \(tokens[index]), outside the vocabulary of \(configuration.vocab)")
        }
    }

    /// Runs the forward pass over sequences as `score` does, and tells what each operation gave: layer (the number of
    /// layers for what follows them), operation, values in the recipe's activations, how many.
    func observe(
        tokens: TokenView, offsets: TokenView?, execution: Execution,
        _ body: @escaping (Int, StaticString, UnsafeRawPointer, Int) -> Void
    ) throws(LockstepError) {
        try withLockstepFloatMode { () throws(LockstepError) in
            let layout = try SequenceLayout(rows: 1, columns: tokens.count, offsets: offsets, of: "tokens")
            try check(tokens, layout)
            if tokens.count == 0 { return }
            _ = try hiddenStates(tokens, layout, execution, observe: body)
        }
    }

    /// What the output head is applied to, for every token: a layer at a time over all of them.
    private func hiddenStates(
        _ tokens: TokenView, _ layout: SequenceLayout, _ execution: Execution,
        observe: ((Int, StaticString, UnsafeRawPointer, Int) -> Void)? = nil
    ) throws(LockstepError) -> Scratch<UInt8> {
        let pass = try TeacherForcedPass(self, tokens, layout, execution)
        pass.forward.observe = observe
        let rows = try pass.makeRows()
        pass.embed(into: rows.base)
        observe?(-1, "embedding", rows.base, tokens.count * configuration.hiddenSize)
        for index in layers.indices {
            for chunk in pass.chunks { try pass.layer(index, chunk, rows.base) }
        }
        for chunk in pass.chunks { try pass.finalNorm(chunk, rows.base) }
        return rows
    }

    /// What the head makes of hidden states; they may be another model's, of another format.
    ///
    /// `logits` is what logits are rounded to: by default as the recipe says.
    func logProbs(
        of hidden: MatrixView, logits: Format? = nil, _ tokens: TokenView, _ layout: SequenceLayout,
        _ options: LogProbOptions = .init(), into outputs: ScoringOutputs, _ execution: Execution
    ) throws(LockstepError) {
        // A row scores the token after it; a sequence's last row scores none.
        var options = options
        options.ignoreIndex = -1
        options.logitsFormat = logits ?? recipe.logits
        var targets = [Int32](repeating: -1, count: tokens.count)
        for sequence in 0..<layout.sequences {
            let first = layout.place(of: sequence).column
            for row in first..<first + layout.length(of: sequence) - 1 {
                targets[row] = Int32(tokens[row + 1])
            }
        }
        let scores = try Scratch<Double>(count: 2 * tokens.count)
        let (found, entropies) = (scores.base, scores.base + tokens.count)
        try targets.withTokenView { (targets) throws(LockstepError) in
            try scoreRows(
                hidden: hidden, targets: targets, options: options,
                into: LogProbOutputs(
                    logProbs: MutableVectorView(found, .fp64, count: tokens.count),
                    entropy: outputs.entropy == nil
                        ? nil : MutableVectorView(entropies, .fp64, count: tokens.count)),
                execution: execution)
        }
        for sequence in 0..<layout.sequences {
            let first = layout.place(of: sequence).column
            for position in 0..<layout.length(of: sequence) {
                let row = first + position
                outputs.logProbs.store(position == 0 ? 0 : found[row - 1], at: row)
                outputs.entropy?.store(position == 0 ? 0 : entropies[row - 1], at: row)
            }
        }
    }

    /// The head's log-probs, with an error that speaks of the model and not of rows.
    private func scoreRows(
        hidden: MatrixView, targets: TokenView, options: LogProbOptions, into outputs: LogProbOutputs,
        execution: Execution
    ) throws(LockstepError) {
        do {
            try head.logProbs(
                hidden: hidden, targets: targets, options: options, into: outputs, execution: execution)
        } catch {
            guard error.kind == .nonFinite else { throw error }
            throw LockstepError(
                .nonFinite,
                "output head: a logit is infinite or NaN as \(recipe.logits); use a recipe with wider logits, or "
                    + "look at the model's headroom")
        }
    }

    /// The error for a value that left the recipe's range.
    func overflow(_ place: Overflow) -> LockstepError {
        let layer = place.layer < layers.count ? "layer \(place.layer)" : "the end"
        return LockstepError(
            .nonFinite,
            "\(place.operation) of \(layer): a value is infinite or NaN as \(recipe.activations); use a recipe with "
                + "a wider format, or look at the model's headroom")
    }
}
