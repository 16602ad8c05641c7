/// Values that stand either with every token or with every sequence.
public enum TokenValues {
    /// One for each token, in the layout of the batch.
    case perToken(MatrixView)
    /// One for each sequence: all its tokens share it.
    case perSequence(VectorView)
}

/// What corrections and objectives are computed from: log-probs of up to four policies on the tokens that
/// the rollout drew, and what goes with them, all in one layout.
///
/// Everything is optional; what needs a part says so. The buffers must outlive the batch.
public struct TokenBatch {
    /// Where the tokens stand and which count.
    public let layout: SequenceLayout
    /// ln pi: the trainer's log-probs before the update.
    public var trainer: MatrixView?
    /// ln mu: the rollout's log-probs.
    public var rollout: MatrixView?
    /// The log-probs of the policy that is being updated.
    public var current: MatrixView?
    /// The log-probs of the reference policy.
    public var reference: MatrixView?
    /// The entropies of the current policy, nats.
    public var entropies: MatrixView?
    /// Advantages.
    public var advantages: TokenValues?
    /// A correction's weights.
    public var weights: MatrixView?
    /// Which tokens a correction kept; all without it.
    public var kept: MaskView?
    /// Which tokens a covariance rule selected.
    public var selected: MaskView?
    /// Which prompt a sequence answers.
    public var groups: TokenView?
    /// The identity of each sequence, which does not depend on its place in the batch.
    public var ids: TokenView?

    /// Creates a batch without values.
    public init(layout: SequenceLayout) { self.layout = layout }

    /// Throws unless all parts fit the layout and have formats that can be read.
    public func validate() throws(LockstepError) {
        for (view, name) in [
            (trainer, "trainer_log_probs"), (rollout, "rollout_log_probs"), (current, "current_log_probs"),
            (reference, "reference_log_probs"), (entropies, "entropies"), (weights, "weights"),
        ] as [(MatrixView?, StaticString)] {
            if let view { try check(view, name) }
        }
        switch advantages {
        case .perToken(let view): try check(view, "advantages", scalars: true)
        case .perSequence(let view): try check(view, "advantages")
        case nil: break
        }
        for (view, name) in [(kept, "kept"), (selected, "selected")] as [(MaskView?, StaticString)] {
            if let view { try layout.check(view, name, of: "the batch") }
        }
        for (view, name) in [(groups, "groups"), (ids, "ids")] as [(TokenView?, StaticString)] {
            if let view { try checkCount(view.count, name) }
        }
    }

    private func check(
        _ view: MatrixView, _ name: StaticString, scalars: Bool = false
    ) throws(LockstepError) {
        let formats: [Format] = scalars ? [.fp32, .fp64] : [.fp32, .fp64, .fp16, .bf16]
        guard formats.contains(view.format) else { throw TokenBatch.unreadable(view.format, name, formats) }
        guard view.rows == layout.rows, view.columns == layout.columns else {
            throw LockstepError(
                .invalidArgument,
                "\(name): shape is [\(view.rows) x \(view.columns)] but the batch is "
                    + "[\(layout.rows) x \(layout.columns)]; give one value for each token")
        }
    }

    private func check(_ view: VectorView, _ name: StaticString) throws(LockstepError) {
        let formats: [Format] = [.fp32, .fp64]
        guard formats.contains(view.format) else { throw TokenBatch.unreadable(view.format, name, formats) }
        try checkCount(view.count, name)
    }

    private func checkCount(_ count: Int, _ name: StaticString) throws(LockstepError) {
        guard count == layout.sequences else {
            throw LockstepError(
                .invalidArgument,
                "\(name): has \(count) values but there are \(layout.sequences) sequences; give one for each")
        }
    }

    private static func unreadable(
        _ format: Format, _ name: StaticString, _ formats: [Format]
    ) -> LockstepError {
        let list = formats.map(\.description).joined(separator: ", ")
        return LockstepError(.invalidArgument, "\(name): format is \(format); give one of \(list)")
    }
}
