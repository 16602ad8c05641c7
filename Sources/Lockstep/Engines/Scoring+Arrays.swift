extension Model {
    /// Log-probs and entropies of every token of some sequences, one array a sequence.
    ///
    /// As `score(tokens:offsets:options:into:execution:)`, which it calls.
    public func score(
        _ sequences: [[Int32]], options: LogProbOptions = .init(), execution: Execution = .init()
    ) throws(LockstepError) -> (logProbs: [[Double]], entropy: [[Double]]) {
        let (logProbs, entropy, _) = try rows(sequences) {
            (tokens, offsets, outputs) throws(LockstepError) in
            try score(tokens: tokens, offsets: offsets, options: options, into: outputs, execution: execution)
        }
        return (logProbs, entropy)
    }

    /// The same with overflows counted, as `scoreCountingOverflows(tokens:offsets:options:into:execution:)` does.
    public func scoreCountingOverflows(
        _ sequences: [[Int32]], options: LogProbOptions = .init(), execution: Execution = .init()
    ) throws(LockstepError) -> (logProbs: [[Double]], entropy: [[Double]], report: ScoringReport) {
        try rows(sequences) { (tokens, offsets, outputs) throws(LockstepError) in
            try scoreCountingOverflows(
                tokens: tokens, offsets: offsets, options: options, into: outputs, execution: execution)
        }
    }

    private func rows<Report>(
        _ sequences: [[Int32]],
        _ body: (TokenView, TokenView, ScoringOutputs) throws(LockstepError) -> Report
    ) throws(LockstepError) -> (logProbs: [[Double]], entropy: [[Double]], report: Report) {
        var offsets: [Int64] = [0]
        for sequence in sequences { offsets.append(offsets[offsets.count - 1] + Int64(sequence.count)) }
        let tokens = Array(sequences.joined())
        let out = try Scratch<Double>(count: 2 * tokens.count)
        let outputs = ScoringOutputs(
            logProbs: MutableVectorView(out.base, .fp64, count: tokens.count),
            entropy: MutableVectorView(out.base + tokens.count, .fp64, count: tokens.count))
        let report = try tokens.withTokenView { (tokens) throws(LockstepError) in
            try offsets.withUnsafeBufferPointer { (offsets) throws(LockstepError) in
                try body(
                    tokens, TokenView(offsets.baseAddress, byteCount: 8, count: offsets.count), outputs)
            }
        }
        func rows(_ values: UnsafePointer<Double>) -> [[Double]] {
            sequences.indices.map {
                Array(UnsafeBufferPointer(start: values + Int(offsets[$0]), count: sequences[$0].count))
            }
        }
        return (rows(out.base), rows(out.base + tokens.count), report)
    }
}
