import CLockstepKernels

/// A borrowed mask: one byte for each token, not 0 where the token counts.
public struct MaskView {
    /// The first byte; may be nil when there are no elements.
    public let base: UnsafePointer<UInt8>?
    /// Number of rows.
    public let rows: Int
    /// Number of columns; the bytes of a row are contiguous.
    public let columns: Int
    /// Bytes from one row to the next.
    public let rowStride: Int

    /// Creates a view of `rows` x `columns` bytes; `rowStride` is `columns` by default.
    public init(_ base: UnsafePointer<UInt8>?, rows: Int, columns: Int, rowStride: Int? = nil) {
        self.base = base
        self.rows = rows
        self.columns = columns
        self.rowStride = rowStride ?? columns
    }
}

/// What to do with a NaN or an infinite log-prob at a token that counts.
public enum NonFinitePolicy: Int32, Sendable {
    /// An error naming sequence and position.
    case strict = 0
    /// The token leaves value and denominator, and is counted.
    case exclude = 1
}

/// The log-probs that trainer and rollout policy gave the same tokens, sequence by sequence.
///
/// Two layouts: padded, `[sequences x length]`; or packed, one row of tokens, in which sequence i is
/// `offsets[i] ..< offsets[i + 1]` (without offsets the row is one sequence). A token the mask leaves out
/// is never read into a value. The buffers must outlive the pair.
public struct LogProbPair {
    /// ln pi: the trainer's log-probs.
    public let trainer: MatrixView
    /// ln mu: the rollout's log-probs.
    public let rollout: MatrixView
    /// Which tokens count; all without it.
    public let mask: MaskView?
    /// The bounds of packed sequences.
    public let offsets: TokenView?

    /// Creates a pair, or throws if shapes, formats or offsets do not fit together.
    ///
    /// Formats are fp32, fp64, fp16 or bf16, not necessarily the same. Offsets begin with 0, never
    /// decrease, and end with the number of tokens.
    public init(
        trainer: MatrixView, rollout: MatrixView, mask: MaskView? = nil, offsets: TokenView? = nil
    ) throws(LockstepError) {
        self.trainer = trainer
        self.rollout = rollout
        self.mask = mask
        self.offsets = offsets
        for (view, name) in [(trainer, "trainer_log_probs"), (rollout, "rollout_log_probs")] {
            guard [.fp32, .fp64, .fp16, .bf16].contains(view.format) else {
                throw LockstepError(
                    .invalidArgument, "\(name): format is \(view.format); give fp32, fp64, fp16 or bf16")
            }
        }
        guard trainer.rows == rollout.rows, trainer.columns == rollout.columns else {
            throw LockstepError(
                .invalidArgument,
                "rollout_log_probs: shape is [\(rollout.rows) x \(rollout.columns)] but trainer_log_probs is "
                    + "[\(trainer.rows) x \(trainer.columns)]; give the same tokens to both")
        }
        if let mask, mask.rows != trainer.rows || mask.columns != trainer.columns {
            throw LockstepError(
                .invalidArgument,
                "mask: shape is [\(mask.rows) x \(mask.columns)] but trainer_log_probs is "
                    + "[\(trainer.rows) x \(trainer.columns)]; give one byte for each token")
        }
        if let offsets { try check(offsets) }
    }

    private func check(_ offsets: TokenView) throws(LockstepError) {
        guard trainer.rows == 1 else {
            throw LockstepError(
                .invalidArgument,
                "offsets: given with padded log-probs [\(trainer.rows) x \(trainer.columns)]; give packed "
                    + "log-probs [tokens], or no offsets")
        }
        guard offsets.count >= 1 else {
            throw LockstepError(.invalidArgument, "offsets: is empty; give sequences + 1 values, the first 0")
        }
        guard offsets[0] == 0 else {
            throw LockstepError(.invalidArgument, "offsets: offsets[0] is \(offsets[0]); it must be 0")
        }
        for index in 1..<max(offsets.count, 1) where offsets[index] < offsets[index - 1] {
            throw LockstepError(
                .invalidArgument,
                "offsets: offsets[\(index)] is \(offsets[index]), less than offsets[\(index - 1)] = "
                    + "\(offsets[index - 1]); offsets must not decrease")
        }
        let last = offsets[offsets.count - 1]
        guard last == trainer.columns else {
            throw LockstepError(
                .invalidArgument,
                "offsets: offsets[\(offsets.count - 1)] is \(last) but there are \(trainer.columns) tokens; "
                    + "the last offset must be their number")
        }
    }

    /// Number of sequences, empty ones included.
    public var sequences: Int { offsets.map { $0.count - 1 } ?? trainer.rows }

    /// Number of tokens of a sequence, whether they count or not.
    func length(of sequence: Int) -> Int {
        offsets.map { $0[sequence + 1] - $0[sequence] } ?? trainer.columns
    }

    /// The kernel's view of `count` tokens of a sequence, from the token `start` of that sequence.
    func tokens(of sequence: Int, from start: Int, count: Int) -> lsk_mismatch_span {
        let row = offsets == nil ? sequence : 0
        let column = (offsets?[sequence] ?? 0) + start
        return lsk_mismatch_span(
            trainer: trainer.row(row) + column &* trainer.format.byteCount,
            rollout: rollout.row(row) + column &* rollout.format.byteCount,
            mask: mask.map { $0.base! + row &* $0.rowStride + column },
            trainer_format: trainer.format.rawValue, rollout_format: rollout.format.rawValue,
            count: Int64(count))
    }
}
