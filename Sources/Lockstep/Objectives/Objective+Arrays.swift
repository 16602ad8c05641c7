/// A sequence of a batch, as arrays: what a Swift program hands over where a C program hands over tensors.
public struct ObjectiveSequence<Element: StorageFormat & BinaryFloatingPoint>: Sendable {
    /// The current policy's log-probs.
    public var current: [Element]
    /// The trainer's log-probs of the same tokens; empty if the term has no ratio.
    public var trainer: [Element]
    /// The advantage of all its tokens.
    public var advantage: Double
    /// The weights of a correction; 1 if empty.
    public var weights: [Element]
    /// The reference policy's log-probs; empty if there is no regulariser.
    public var reference: [Element]
    /// Which tokens count; all if empty.
    public var mask: [Bool]
    /// Which tokens a correction kept; all if empty.
    public var kept: [Bool]

    /// Creates a sequence.
    public init(
        current: [Element], trainer: [Element], advantage: Double, weights: [Element] = [],
        reference: [Element] = [], mask: [Bool] = [], kept: [Bool] = []
    ) {
        self.current = current
        self.trainer = trainer
        self.advantage = advantage
        self.weights = weights
        self.reference = reference
        self.mask = mask
        self.kept = kept
    }
}

/// The loss of a batch of sequences, and its gradient with respect to the current log-probs.
///
/// - Parameters:
///   - sequences: the batch, in fp32 or fp64; what one sequence has all must have.
///   - options: what the loss is.
///   - execution: threads and instruction set; the result does not depend on them.
/// - Throws: `.invalidArgument` naming the sequence whose lengths differ; as `Objective.loss`.
/// - Returns: what happened, and the gradient of each sequence.
public func objectiveLoss<Element: StorageFormat & BinaryFloatingPoint>(
    _ sequences: [ObjectiveSequence<Element>], options: ObjectiveOptions = .init(),
    execution: Execution = .init()
) throws(LockstepError) -> (report: ObjectiveReport, gradient: [[Element]]) {
    let columns = try ObjectiveColumns(sequences)
    let count = columns.current.count
    var gradient = [Element](repeating: 0, count: count)
    let report = try columns.withBatch { (batch) throws(LockstepError) in
        try gradient.withUnsafeMutableBufferPointer { (buffer) throws(LockstepError) in
            try Objective.loss(
                options, of: batch,
                gradient: MutableMatrixView(buffer.baseAddress, Element.format, rows: 1, columns: count),
                execution: execution)
        }
    }
    let bounds = columns.offsets.map(Int.init)
    return (report, zip(bounds, bounds.dropFirst()).map { Array(gradient[$0..<$1]) })
}

/// Sequences joined, column by column; a column that no sequence has is empty.
private struct ObjectiveColumns<Element: StorageFormat & BinaryFloatingPoint> {
    var current: [Element] = []
    var trainer: [Element] = []
    var weights: [Element] = []
    var reference: [Element] = []
    var mask: [UInt8] = []
    var kept: [UInt8] = []
    var advantages: [Double] = []
    var offsets: [Int64] = [0]

    init(_ sequences: [ObjectiveSequence<Element>]) throws(LockstepError) {
        for (index, sequence) in sequences.enumerated() {
            let length = sequence.current.count
            for (count, name) in [
                (sequence.trainer.count, "trainer"), (sequence.weights.count, "weights"),
                (sequence.reference.count, "reference"), (sequence.mask.count, "mask"),
                (sequence.kept.count, "kept"),
            ] where count != length && count != 0 {
                throw LockstepError(
                    .invalidArgument,
                    "sequences[\(index)].\(name): has \(count) values but there are \(length) tokens")
            }
            current += sequence.current
            trainer += sequence.trainer
            weights += sequence.weights
            reference += sequence.reference
            mask += sequence.mask.map { $0 ? 1 : 0 }
            kept += sequence.kept.map { $0 ? 1 : 0 }
            advantages.append(sequence.advantage)
            offsets.append(Int64(current.count))
        }
        for (count, name) in [
            (trainer.count, "trainer"), (weights.count, "weights"), (reference.count, "reference"),
            (mask.count, "mask"), (kept.count, "kept"),
        ] where count != current.count && count != 0 {
            throw LockstepError(
                .invalidArgument, "sequences: only some have \(name); give it to all, or to none")
        }
    }

    /// Lends the columns as a batch.
    func withBatch<Result>(
        _ body: (TokenBatch) throws(LockstepError) -> Result
    ) throws(LockstepError) -> Result {
        let count = current.count
        return try current.withVectorView { (current) throws(LockstepError) in
            try trainer.withVectorView { (trainer) throws(LockstepError) in
                try weights.withVectorView { (weights) throws(LockstepError) in
                    try reference.withVectorView { (reference) throws(LockstepError) in
                        try advantages.withVectorView { (advantages) throws(LockstepError) in
                            try mask.withUnsafeBufferPointer { (mask) throws(LockstepError) in
                                try kept.withUnsafeBufferPointer { (kept) throws(LockstepError) in
                                    try offsets.withUnsafeBufferPointer { (offsets) throws(LockstepError) in
                                        func row(_ vector: VectorView) -> MatrixView? {
                                            vector.count == 0 && count > 0
                                                ? nil
                                                : MatrixView(
                                                    vector.base, vector.format, rows: 1, columns: count)
                                        }
                                        func flags(_ bytes: UnsafeBufferPointer<UInt8>) -> MaskView? {
                                            bytes.isEmpty
                                                ? nil : MaskView(bytes.baseAddress, rows: 1, columns: count)
                                        }
                                        var batch = TokenBatch(
                                            layout: try SequenceLayout(
                                                rows: 1, columns: count, mask: flags(mask),
                                                offsets: TokenView(
                                                    offsets.baseAddress, byteCount: 8, count: offsets.count)))
                                        (batch.current, batch.trainer) = (row(current), row(trainer))
                                        (batch.weights, batch.reference) = (row(weights), row(reference))
                                        (batch.kept, batch.advantages) = (
                                            flags(kept), .perSequence(advantages)
                                        )
                                        return try body(batch)
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
