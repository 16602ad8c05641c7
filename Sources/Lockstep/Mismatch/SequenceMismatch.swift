import CLockstepKernels

/// The mismatch of one sequence; everything is 0 for a sequence without counted tokens.
public struct SequenceMismatch: Equatable, Sendable {
    /// Counted tokens.
    public var tokens = 0
    /// S: the sum of d.
    public var logRatio = 0.0
    /// S / tokens.
    public var meanLogRatio = 0.0
    /// Mean |d|.
    public var meanAbsLogRatio = 0.0
    /// Max |d|.
    public var maxAbsLogRatio = 0.0
    /// Mean exp|d|.
    public var meanExpAbs = 0.0
    /// Mean(exp(d) - 1 - d).
    public var k3 = 0.0

    /// A sequence without counted tokens.
    public init() {}

    init(_ sum: lsk_mismatch_sums) {
        guard sum.tokens > 0 else { return }
        let n = Double(sum.tokens)
        tokens = Int(sum.tokens)
        logRatio = sum.log_ratio
        meanLogRatio = sum.log_ratio / n
        meanAbsLogRatio = sum.magnitude / n
        maxAbsLogRatio = sum.largest
        meanExpAbs = sum.exp_magnitude / n
        k3 = sum.k3 / n
    }
}

extension LogProbPair {
    /// Measures each sequence on its own and hands the result to `write`, in order of sequences.
    public func sequenceMismatches(
        nonFinite policy: NonFinitePolicy = .strict, execution: Execution = Execution(),
        write: (_ sequence: Int, _ mismatch: SequenceMismatch) -> Void
    ) throws(LockstepError) {
        try withLockstepFloatMode { () throws(LockstepError) in
            let sequences = try MismatchSequences(MismatchScan(self, execution), policy)
            var record = 0
            for sequence in 0..<self.sequences {
                if record < sequences.owners.count, sequences.owners[record] == sequence {
                    write(sequence, SequenceMismatch(sequences.sums[record]))
                    record += 1
                } else {
                    write(sequence, SequenceMismatch())
                }
            }
        }
    }

    /// The mismatch of each sequence, in order.
    public func sequenceMismatches(
        nonFinite policy: NonFinitePolicy = .strict, execution: Execution = Execution()
    ) throws(LockstepError) -> [SequenceMismatch] {
        var all: [SequenceMismatch] = []
        try sequenceMismatches(nonFinite: policy, execution: execution) { all.append($1) }
        return all
    }
}
