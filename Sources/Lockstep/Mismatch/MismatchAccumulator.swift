/// The mismatch of a log that comes in parts: in constant memory, on any number of machines.
///
/// Parts may be added in any order, in any number of accumulators, and the accumulators merged in any order:
/// while no sequence is cut in two, the result is the same bits. It equals that of `LogProbPair.mismatch` of
/// the whole log but for the quantiles, which come from a sketch unless every difference is kept.
///
/// *Memory*: about 0.3 MB, at most 10 MB, whatever the number of tokens; with exact quantiles also 8 bytes for
/// each token whose d is not 0. An update takes as much again for each thread while it runs.
///
/// *Concurrency*: calls that only read may run at the same time; `update` and `merge` must be alone.
public final class MismatchAccumulator: @unchecked Sendable {
    private var state: MismatchState

    /// Creates an accumulator of nothing.
    ///
    /// - Parameter exactQuantiles: keep every d that is not 0, 8 bytes each, so that quantiles are exact.
    public init(exactQuantiles: Bool = false) {
        state = MismatchState(MismatchExtent(details: true, exactQuantiles: exactQuantiles))
    }

    private init(_ extent: MismatchExtent) { state = MismatchState(extent) }

    /// An accumulator of nothing that keeps what `mismatch()` needs and nothing else, without quantiles: some
    /// kilobytes when saved, for one accumulator a training step.
    public static func summary() -> MismatchAccumulator {
        MismatchAccumulator(MismatchExtent(sketch: false))
    }

    init(_ state: consuming MismatchState) { self.state = state }

    /// Whether every d that is not 0 is kept.
    public var exactQuantiles: Bool { state.extent.exactQuantiles }

    /// Whether only a summary is kept.
    public var isSummary: Bool { !state.extent.sketch }

    /// Adds whole sequences; on an error, none.
    ///
    /// - Parameters:
    ///   - pair: the sequences.
    ///   - ids: one number for each sequence, the same however the log is cut; by default sequences are numbered
    ///     as they come. They decide ties, so an accumulator's bits depend on them.
    ///   - policy: what to do with a NaN or an infinite log-prob at a token that counts.
    ///   - execution: threads and instruction set; the result does not depend on them.
    /// - Throws: `.nonFinite` naming sequence and position; `.invalidArgument` for a wrong number of ids.
    public func update(
        _ pair: LogProbPair, ids: TokenView? = nil, nonFinite policy: NonFinitePolicy = .strict,
        execution: Execution = Execution()
    ) throws(LockstepError) {
        if let ids, ids.count != pair.sequences {
            throw LockstepError(
                .invalidArgument,
                "ids: has \(ids.count) values but there are \(pair.sequences) sequences; give one for each")
        }
        let seen = UInt64(state.moments.sequences + state.moments.emptySequences)
        try withLockstepFloatMode { () throws(LockstepError) in
            let added = try MismatchState(
                of: pair, ids: ids.map { .given($0) } ?? .index(from: seen), state.extent, policy, execution)
            try state.moments.checkRoom(for: added.moments)
            try state.merge(added)
        }
    }

    /// Adds all that another accumulator holds; the other stays as it is.
    ///
    /// - Throws: `.invalidArgument` if the other lacks what this one keeps: values for exact quantiles, or what
    ///   a summary leaves out.
    public func merge(_ other: MismatchAccumulator) throws(LockstepError) {
        guard state.extent.isWithin(other.state.extent) else {
            let lacking = exactQuantiles && !other.exactQuantiles ? "exact_quantiles" : "all but a summary"
            throw LockstepError(
                .invalidArgument,
                "other: lacks \(lacking), which this accumulator keeps; create both with the same options")
        }
        try state.moments.checkRoom(for: other.state.moments)
        if self === other {
            try askForMemory(forBytes: true)
            let copy = try MismatchAccumulator(bytes: bytes())
            try state.merge(copy.state)
        } else {
            try state.merge(other.state)
        }
    }

    /// Throws where there is no memory for the copies of kept values that a report makes, or the bytes of all; without
    /// exact quantiles those are small.
    ///
    /// - Parameter forBytes: whether bytes are to be made, and not a report.
    /// - Throws: `.outOfMemory`.
    package func askForMemory(forBytes: Bool = false) throws(LockstepError) {
        try Lockstep.askForMemory(state.values.count, bytesEach: forBytes ? 32 : 8)
    }

    /// Every statistic of what was added.
    public func mismatch() -> Mismatch {
        withLockstepFloatMode { state.mismatch() }
    }

    /// Statistics by bucket.
    ///
    /// The buckets of position (0, 1, 2, 3, 4, 6, 8, 12 and so on, two an octave, the last from 1.5 2^20 on)
    /// and of probability (two an octave of -ln mu between 2^-20 and 64; edges are exp of that, rounded) are
    /// fixed, and all are returned (empty in a summary). By log ratio, the bins of the sketch that have tokens are returned: tokens
    /// alone, the means are NaN.
    public func profile(over axis: MismatchAxis) -> [MismatchBucket] {
        withLockstepFloatMode {
            switch axis {
            case .position: state.details.profile.byPosition()
            case .probability: state.details.profile.byProbability()
            case .logRatio: state.sketch.buckets()
            }
        }
    }

    /// How many sequences have which value, by class of lengths (powers of two of counted tokens): the bins
    /// with sequences, by length, then value.
    public func histogram(of quantity: SequenceQuantity) -> [SequenceBin] {
        state.details.histograms.bins(of: quantity)
    }

    /// A sample of at most 1,024 sequences that count, the same however the log was cut: those whose ids have
    /// the smallest hashes, in that order.
    public var sampledSequences: [SampledSequence] { state.details.sample.sorted() }

    /// The at most 32 tokens with the largest |d| above 0, the worst first; ties by id, then position.
    public var worstTokens: [WorstToken] { state.details.worst.tokens }

    /// What may have caused the mismatch of what was added, ranked, with the figures that speak for it.
    ///
    /// A cause is found if its confidence is 1/2 or more. Several may be. None is where all log-probs are equal;
    /// with fewer than 500 plain tokens or 10 sequences only the faults that single tokens show can be told, and
    /// a summary keeps no evidence at all.
    public func causes() -> MismatchCauses {
        withLockstepFloatMode {
            let moments = state.moments.mismatch()
            return MismatchCauses(
                CauseEvidence(
                    state.details.evidence,
                    square: state.moments.sums.value(Moment.total + Average.square.rawValue),
                    pearson: moments.pearson))
        }
    }

    /// The at most 32 sequences with the largest |S| above 0, the worst first; ties by id.
    public var worstSequences: [SampledSequence] { state.details.worstSequences.sequences }

    /// The state as bytes: equal states give equal bytes.
    public func bytes() -> [UInt8] { state.bytes() }

    /// Restores an accumulator from its bytes.
    ///
    /// - Throws: `.badData` for bytes that are damaged, cut off or too long; `.unsupported` for a newer format.
    public convenience init(bytes: [UInt8]) throws(LockstepError) {
        self.init(try MismatchState.restored(from: bytes))
    }
}
