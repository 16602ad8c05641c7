import CLockstepKernels

/// What to do with a NaN or an infinite log-prob at a token that counts.
public enum NonFinitePolicy: Int32, Sendable {
    /// An error naming sequence and position.
    case strict = 0
    /// The token leaves value and denominator, and is counted.
    case exclude = 1
}

/// The log-probs that trainer and rollout policy gave the same tokens, sequence by sequence.
///
/// The buffers must outlive the pair.
public struct LogProbPair {
    /// ln pi: the trainer's log-probs.
    public let trainer: MatrixView
    /// ln mu: the rollout's log-probs.
    public let rollout: MatrixView
    /// Where the tokens stand and which count.
    public let layout: SequenceLayout

    /// Creates a pair, or throws if shapes, formats or offsets do not fit together.
    ///
    /// Formats are fp32, fp64, fp16 or bf16, not necessarily the same. Offsets begin with 0, never
    /// decrease, and end with the number of tokens.
    public init(
        trainer: MatrixView, rollout: MatrixView, mask: MaskView? = nil, offsets: TokenView? = nil
    ) throws(LockstepError) {
        self.trainer = trainer
        self.rollout = rollout
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
        layout = try SequenceLayout(
            rows: trainer.rows, columns: trainer.columns, mask: mask, offsets: offsets)
    }

    /// Number of sequences, empty ones included.
    public var sequences: Int { layout.sequences }

    /// The kernel's view of `count` tokens of a sequence, from the token `start` of that sequence.
    func tokens(of sequence: Int, from start: Int, count: Int) -> lsk_mismatch_span {
        let place = layout.place(of: sequence, position: start)
        return lsk_mismatch_span(
            trainer: trainer.address(place), rollout: rollout.address(place),
            mask: layout.mask?.address(place),
            trainer_format: trainer.format.rawValue, rollout_format: rollout.format.rawValue,
            count: Int64(count))
    }
}
