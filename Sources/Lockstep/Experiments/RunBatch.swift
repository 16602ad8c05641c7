/// The rollouts of a step, packed, and what is known of each token: [tokens], prompts included.
final class RunBatch {
    /// Response, and where its prompt came from.
    struct Sample {
        var problem: Int
        var prompt: [Int32]
        var rollout: Rollout
    }

    /// Values of tokens.
    enum Column: Int, CaseIterable {
        case rollout, trainer, current, entropy, reference, advantage, weight, gradient, entropyGradient
    }

    let sequences: Int
    let count: Int
    /// Where sequences begin: [sequences + 1].
    let starts: [Int]
    private let tokens: Scratch<Int32>
    private let mask: Scratch<UInt8>
    private let kept: Scratch<UInt8>
    private let selected: Scratch<UInt8>
    private let columns: Scratch<Double>

    /// Packs rollouts; `drawnFrom` takes the log-probs of what tokens were drawn from, at a temperature of not 1.
    init(_ samples: [Sample], drawnFrom processed: Bool) throws(LockstepError) {
        sequences = samples.count
        var starts = [0]
        for sample in samples {
            starts.append(starts.last! + sample.prompt.count + sample.rollout.tokens.count)
        }
        self.starts = starts
        count = starts.last!
        tokens = try Scratch(count: count)
        mask = try Scratch(count: count, filledWith: 0)
        kept = try Scratch(count: count, filledWith: 1)
        selected = try Scratch(count: count, filledWith: 0)
        columns = try Scratch(count: count * Column.allCases.count, filledWith: 0)
        for (index, sample) in samples.enumerated() {
            let (first, rollout) = (starts[index], sample.rollout)
            for (place, token) in sample.prompt.enumerated() { tokens.base[first + place] = token }
            let start = first + sample.prompt.count
            let logProbs = processed ? rollout.processedLogProbs : rollout.rawLogProbs
            for (place, token) in rollout.tokens.enumerated() {
                tokens.base[start + place] = token
                mask.base[start + place] = 1
                self[.rollout][start + place] = logProbs[place]
            }
        }
    }

    /// The values of a column.
    subscript(_ column: Column) -> UnsafeMutablePointer<Double> { columns.base + column.rawValue * count }

    /// Tokens that count.
    var responseTokens: Int { (0..<count).reduce(0) { $0 + Int(mask.base[$1]) } }

    /// Counted tokens that a correction left out: rejected, or with a weight of 0.
    var leftOutTokens: Int {
        (0..<count).reduce(0) {
            $0 + (mask.base[$1] != 0 && (kept.base[$1] == 0 || self[.weight][$1] == 0) ? 1 : 0)
        }
    }

    /// Some sequences of the batch, as kernels read them.
    func slice(_ range: Range<Int>) throws(LockstepError) -> RunSlice {
        try RunSlice(self, range, tokens.base, mask.base, kept.base, selected.base)
    }
}

/// Consecutive sequences of a batch; they live as long as it does.
final class RunSlice {
    private let batch: RunBatch
    private let first: Int
    private let offsets: Scratch<Int64>
    private let tokenBase: UnsafeMutablePointer<Int32>
    private let maskBase: UnsafeMutablePointer<UInt8>
    private let keptBase: UnsafeMutablePointer<UInt8>
    private let selectedBase: UnsafeMutablePointer<UInt8>
    let count: Int
    let sequences: Range<Int>

    fileprivate init(
        _ batch: RunBatch, _ range: Range<Int>, _ tokens: UnsafeMutablePointer<Int32>,
        _ mask: UnsafeMutablePointer<UInt8>, _ kept: UnsafeMutablePointer<UInt8>,
        _ selected: UnsafeMutablePointer<UInt8>
    ) throws(LockstepError) {
        self.batch = batch
        sequences = range
        first = batch.starts[range.lowerBound]
        count = batch.starts[range.upperBound] - first
        offsets = try Scratch(count: range.count + 1)
        for index in 0...range.count {
            offsets.base[index] = Int64(batch.starts[range.lowerBound + index] - first)
        }
        (tokenBase, maskBase, keptBase) = (tokens + first, mask + first, kept + first)
        selectedBase = selected + first
    }

    var tokens: TokenView { TokenView(tokenBase, byteCount: 4, count: count) }
    var offsetView: TokenView { TokenView(offsets.base, byteCount: 8, count: offsets.count) }

    func layout() throws(LockstepError) -> SequenceLayout {
        try SequenceLayout(rows: 1, columns: count, mask: maskView, offsets: offsetView)
    }

    func values(_ column: RunBatch.Column) -> UnsafeMutablePointer<Double> { batch[column] + first }

    func vector(_ column: RunBatch.Column) -> VectorView { VectorView(values(column), .fp64, count: count) }

    func output(_ column: RunBatch.Column) -> MutableVectorView {
        MutableVectorView(values(column), .fp64, count: count)
    }

    func matrix(_ column: RunBatch.Column) -> MatrixView {
        MatrixView(values(column), .fp64, rows: 1, columns: count)
    }

    func mutableMatrix(_ column: RunBatch.Column) -> MutableMatrixView {
        MutableMatrixView(values(column), .fp64, rows: 1, columns: count)
    }

    var maskView: MaskView { MaskView(maskBase, rows: 1, columns: count) }
    var keptView: MaskView { MaskView(keptBase, rows: 1, columns: count) }
    var selectedView: MaskView { MaskView(selectedBase, rows: 1, columns: count) }
    var mutableSelected: MutableMaskView { MutableMaskView(selectedBase, rows: 1, columns: count) }
    var mutableKept: MutableMaskView { MutableMaskView(keptBase, rows: 1, columns: count) }

    /// The first counted token of whose column the value is NaN or infinite: sequence, and place in it.
    func firstNonFinite(_ column: RunBatch.Column) -> (sequence: Int, position: Int)? {
        let values = values(column)
        guard let place = (0..<count).first(where: { maskBase[$0] != 0 && !values[$0].isFinite }) else {
            return nil
        }
        let index = (0..<sequences.count).first { offsets.base[$0 + 1] > place } ?? 0
        return (sequences.lowerBound + index, place - Int(offsets.base[index]))
    }

    /// What of a loss was first not finite, in the order it comes to be.
    func whyNotFinite(loss: Double) -> String {
        let columns: [(RunBatch.Column, StaticString)] = [
            (.rollout, "log-prob of the rollout engine"), (.trainer, "log-prob of the trainer"),
            (.reference, "log-prob of the reference"), (.advantage, "advantage"), (.weight, "weight"),
            (.current, "log-prob of the policy"), (.gradient, "gradient"),
        ]
        for (column, name) in columns {
            guard let (sequence, position) = firstNonFinite(column) else { continue }
            return
                "the loss is \(loss); first not finite is the \(name), of sequence \(sequence) at position "
                + "\(position), \(values(column)[Int(offsets.base[sequence - sequences.lowerBound]) + position])"
        }
        return "the loss is \(loss), of finite log-probs, advantages and weights: their sum is too large"
    }
}
