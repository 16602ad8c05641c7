/// What scoring met where overflows are counted.
public struct ScoringReport: Equatable, Sendable {
    /// Sequences that were scored.
    public var sequences = 0
    /// Sequences in whose forward pass a value left the recipe's range: their log-probs and entropies are NaN.
    public var overflows = 0
    /// Tokens of those sequences.
    public var overflowTokens = 0
    /// The first of them, in the order of the batch; -1 without.
    public var overflowSequence = -1
    /// Its layer: -1 is the embedding, the number of layers what follows them.
    public var overflowLayer = -1
    /// The operation; empty without.
    public var overflowOperation = ""

    /// Creates a report of nothing.
    public init() {}
}

extension Model {
    /// Scores as `score(tokens:offsets:options:into:execution:)` does, but a value that leaves the recipe's range is no
    /// error: the sequence where it happens gets NaN for all its log-probs and entropies, and is counted.
    ///
    /// The others have the bits that they have without it. A batch in which nothing overflows takes no longer; otherwise
    /// its sequences are scored again, one by one.
    ///
    /// - Throws: as `score` for what is no overflow. Outputs are then untouched.
    public func scoreCountingOverflows(
        tokens: TokenView, offsets: TokenView? = nil, options: LogProbOptions = .init(),
        into outputs: ScoringOutputs, execution: Execution = .init()
    ) throws(LockstepError) -> ScoringReport {
        try withLockstepFloatMode { () throws(LockstepError) in
            let layout = try SequenceLayout(rows: 1, columns: tokens.count, offsets: offsets, of: "tokens")
            try check(tokens, layout)
            var report = ScoringReport()
            report.sequences = tokens.count == 0 ? 0 : layout.sequences
            var place: Overflow?
            do throws(LockstepError) {
                try score(tokens, layout, options, into: outputs, execution, &place)
                return report
            } catch {
                if place == nil { throw error }
            }
            let found = try Scratch<Double>(count: 2 * tokens.count, filledWith: .nan)
            for sequence in 0..<layout.sequences {
                let first = layout.place(of: sequence).column
                let count = layout.length(of: sequence)
                let part = TokenView(
                    tokens.base.map { $0 + first * tokens.stride * tokens.byteCount },
                    byteCount: tokens.byteCount, count: count, stride: tokens.stride)
                let own = ScoringOutputs(
                    logProbs: MutableVectorView(found.base + first, .fp64, count: count),
                    entropy: outputs.entropy == nil
                        ? nil : MutableVectorView(found.base + tokens.count + first, .fp64, count: count))
                place = nil
                do throws(LockstepError) {
                    try score(
                        part, SequenceLayout(rows: 1, columns: count, offsets: nil, of: "tokens"), options,
                        into: own, execution, &place)
                } catch {
                    guard let place else { throw error }
                    report.add(place, sequence, tokens: count)
                }
            }
            for token in 0..<tokens.count {
                outputs.logProbs.store(found.base[token], at: token)
                outputs.entropy?.store(found.base[tokens.count + token], at: token)
            }
            return report
        }
    }
}

extension ScoringReport {
    fileprivate mutating func add(_ place: Overflow, _ sequence: Int, tokens: Int) {
        overflows += 1
        overflowTokens += tokens
        if overflows > 1 { return }
        (overflowSequence, overflowLayer) = (sequence, place.layer)
        overflowOperation = "\(place.operation)"
    }
}
