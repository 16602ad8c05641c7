/// Rewards, and what they stand with.
public enum RewardValues {
    /// One for each sequence.
    case perSequence(VectorView)
    /// One for each token; a sequence's is their sum.
    case perToken(MatrixView)
    /// Several for each sequence, [sequences x kinds]: for GDPO.
    case perKind(MatrixView)
}

/// Where advantages and returns are written: one for each token (0 where a token does not count), or one
/// for each sequence.
public enum AdvantageOutput {
    /// In the layout of the batch.
    case perToken(MutableMatrixView)
    /// One for each sequence, if all its tokens have the same.
    case perSequence(MutableVectorView)
}

/// Rewards of a batch of sequences, and what estimators of advantages need beside them.
///
/// Everything but the rewards is optional; an estimator that needs a part says so. Floating-point values are
/// fp32 or fp64, log-probs and weights 16-bit formats too. The buffers must outlive the batch.
public struct RewardBatch {
    /// What the sequences earned.
    public var rewards: RewardValues
    /// Which tokens there are and which count; without it sequences have no lengths.
    public var layout: SequenceLayout?
    /// Which prompt each sequence answers.
    public var groups: TokenView?
    /// [sequences x 1], not 0 where a sequence was cut off at the length limit.
    public var truncated: MaskView?
    /// The reward each sequence is compared with (ReMax).
    public var baselines: VectorView?
    /// A critic's values of the tokens (GAE).
    public var values: MatrixView?
    /// The trainer's log-probs (optimal token baselines).
    public var logProbs: MatrixView?
    /// The sum of squared probabilities over the vocabulary, for each token (optimal token baselines).
    public var squaredMass: MatrixView?
    /// A correction's weights (optimal token baselines).
    public var weights: MatrixView?
    /// What each kind of reward counts (GDPO); 1 without them.
    public var kindWeights: VectorView?

    /// Creates a batch of rewards.
    public init(_ rewards: RewardValues) { self.rewards = rewards }

    /// Number of sequences, empty ones included.
    public var sequences: Int {
        if let layout { return layout.sequences }
        return switch rewards {
        case .perSequence(let vector): vector.count
        case .perToken(let matrix), .perKind(let matrix): matrix.rows
        }
    }

    /// Rewards, baselines and values beyond this would overflow when they are squared.
    static let largest = 1e100

    func validate() throws(LockstepError) {
        switch rewards {
        case .perSequence(let view):
            try check(view.format, "rewards")
            try check(view.count, "rewards")
        case .perToken(let view):
            try check(view, "rewards")
        case .perKind(let view):
            try check(view.format, "rewards")
            try check(view.rows, "rewards")
            if let kindWeights {
                try check(kindWeights.format, "kind_weights")
                guard kindWeights.count == view.columns else {
                    throw LockstepError(
                        .invalidArgument,
                        "kind_weights: has \(kindWeights.count) values but there are \(view.columns) kinds of "
                            + "reward; give one for each")
                }
            }
        }
        for (count, name) in [
            (groups?.count, "groups"), (baselines?.count, "baselines"), (truncated?.rows, "truncated"),
        ] as [(Int?, StaticString)] {
            if let count { try check(count, name) }
        }
        if let baselines { try check(baselines.format, "baselines") }
        for (view, name) in [(values, "values"), (squaredMass, "squared_mass")]
            as [(MatrixView?, StaticString)]
        {
            if let view { try check(view, name) }
        }
    }

    private func check(_ count: Int, _ name: StaticString) throws(LockstepError) {
        guard count == sequences else {
            throw LockstepError(
                .invalidArgument,
                "\(name): has \(count) values but there are \(sequences) sequences; give one for each")
        }
    }

    /// 16 bits cannot hold what advantages are made of, differences of rewards.
    private func check(_ format: Format, _ name: StaticString) throws(LockstepError) {
        guard format == .fp32 || format == .fp64 else {
            throw LockstepError(
                .invalidArgument,
                "\(name): format is \(format), whose rounding is as large as the differences that advantages "
                    + "are made of; give fp32 or fp64 from where it is first computed")
        }
    }

    private func check(_ view: MatrixView, _ name: StaticString) throws(LockstepError) {
        try check(view.format, name)
        guard let layout else {
            throw LockstepError(
                .invalidArgument,
                "\(name): has one value for each token; give the batch that says which tokens count")
        }
        guard view.rows == layout.rows, view.columns == layout.columns else {
            throw LockstepError(
                .invalidArgument,
                "\(name): shape is [\(view.rows) x \(view.columns)] but the batch is "
                    + "[\(layout.rows) x \(layout.columns)]; give one value for each token")
        }
    }
}

extension SequenceLayout {
    /// The positions of a sequence's tokens that count.
    func positions(of sequence: Int) -> [Int] {
        let extent = extent(of: sequence)
        guard let mask, !extent.isEmpty else { return Array(extent) }
        let bytes = mask.address(place(of: sequence))
        return extent.filter { bytes[$0] != 0 }
    }

    /// The number of a sequence's tokens that count.
    func countedTokens(of sequence: Int) -> Int {
        let extent = extent(of: sequence)
        guard let mask, !extent.isEmpty else { return extent.count }
        let bytes = mask.address(place(of: sequence))
        return extent.reduce(0) { $0 + (bytes[$1] != 0 ? 1 : 0) }
    }
}

extension MatrixView {
    /// A sequence's values, from its first position on.
    func values(of sequence: Int, in layout: SequenceLayout) -> VectorView {
        VectorView(address(layout.place(of: sequence)), format, count: layout.length(of: sequence))
    }
}
