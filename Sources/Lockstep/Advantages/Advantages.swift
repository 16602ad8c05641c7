extension RewardBatch {
    /// Computes advantages, and what they were before a baseline was subtracted.
    ///
    /// - Parameters:
    ///   - advantages: where they go; untouched on error.
    ///   - returns: where rewards to go (or a sequence's reward) go; nil if they are not wanted.
    ///   - options: the estimator and its options.
    /// - Throws: `.invalidArgument` for parts that are missing or do not fit; `.nonFinite` naming the reward or
    ///   value that is NaN or infinite.
    public func advantages(
        into advantages: AdvantageOutput, returns: AdvantageOutput? = nil, options: AdvantageOptions = .init()
    ) throws(LockstepError) {
        try validate()
        try options.validate()
        let members = try RewardMembers(self, options)
        var result = try members.recurrence == nil ? members.bySequence() : members.byToken()
        if options.parts.whitens { try members.whiten(&result.advantages) }
        for (output, values, name) in [
            (advantages, result.advantages, "advantages"), (returns, result.returns, "returns"),
        ] as [(AdvantageOutput?, AdvantageValues, StaticString)] {
            if let output { try members.check(values, fit: output, name) }
        }
        members.write(result.advantages, to: advantages)
        if let returns { members.write(result.returns, to: returns) }
    }
}

/// Values while they are computed: one for each sequence, or one for each token of the layout, row after row.
struct AdvantageValues {
    let values: TemporaryValues
    let perToken: Bool
}

/// Memory of one call that several values may share.
final class TemporaryValues {
    let scratch: Scratch<Double>

    init(count: Int) throws(LockstepError) { scratch = try Scratch(count: count, filledWith: 0) }

    subscript(index: Int) -> Double {
        get { scratch.base[index] }
        set { scratch.base[index] = newValue }
    }
}

/// The sequences of a batch: which take part, with whom, and what they earned.
struct RewardMembers {
    let batch: RewardBatch
    let options: AdvantageOptions
    let parts: AdvantageEstimator.Parts
    let sequences: Int
    /// Counted tokens; nil without a layout.
    let lengths: [Int]?
    /// Whether a sequence's reward counts in baselines and scales.
    private(set) var counts: [Bool]
    /// Whether it may have an advantage that is not 0.
    private(set) var teaches: [Bool]
    /// The group of each sequence, from 0; empty if the estimator compares none.
    let group: [Int]
    /// Number of sequences that count, for each group.
    private(set) var sizes: [Int]

    /// How tokens are told apart; nil if all of a sequence have one advantage.
    var recurrence: AdvantageEstimator.Recurrence? {
        if options.estimator == .reMax, case .perToken = batch.rewards { return .rewardsToGo }
        return parts.recurrence
    }

    init(_ batch: RewardBatch, _ options: AdvantageOptions) throws(LockstepError) {
        self.batch = batch
        self.options = options
        parts = options.parts
        sequences = batch.sequences
        // An array that cannot be had traps: ask first for what this type and its estimators hold.
        _ = try Scratch<Double>(count: 16 * sequences)
        let layout = batch.layout
        lengths = layout.map { layout in (0..<layout.sequences).map { layout.countedTokens(of: $0) } }
        let estimator = options.estimator
        if layout == nil, parts.whitens || parts.recurrence != nil || parts.baseline == .meanByLength {
            throw LockstepError(
                .invalidArgument,
                "batch: \(estimator) needs the tokens of each sequence; give a mask, or offsets with one")
        }
        let needsGroups =
            estimator.needsGroups
            || [.groupStd, .othersStd, .groupMean].contains(parts.scale)
        guard !needsGroups || batch.groups != nil else {
            throw LockstepError(
                .invalidArgument,
                "groups: missing, but \(estimator) compares the answers to one prompt; give the prompt of each "
                    + "sequence, as integers")
        }
        let (lengths, truncated) = (lengths, options.truncated == .keep ? nil : batch.truncated)
        if options.truncated != .keep, batch.truncated == nil {
            throw LockstepError(
                .invalidArgument,
                "truncated: missing, but options say \(options.truncated); say which sequences were cut off")
        }
        let isTruncated = (0..<sequences).map { truncated?.base![$0 * truncated!.rowStride] ?? 0 != 0 }
        let there = (0..<sequences).map { lengths?[$0] != 0 }
        counts = (0..<sequences).map { there[$0] && !(isTruncated[$0] && options.truncated == .drop) }
        teaches = (0..<sequences).map { there[$0] && !isTruncated[$0] }
        var (group, sizes, given): ([Int], [Int], [Int]) = ([], [], [])
        if needsGroups, let groups = batch.groups {
            var known: [Int: Int] = [:]
            group.reserveCapacity(sequences)
            for sequence in 0..<sequences {
                let next = known.count
                group.append(known[groups[sequence], default: next])
                if group[sequence] == next {
                    known[groups[sequence]] = next
                    sizes.append(0)
                    given.append(0)
                }
                if counts[sequence] { sizes[group[sequence]] += 1 }
                if there[sequence] { given[group[sequence]] += 1 }
            }
            for sequence in 0..<sequences where there[sequence] {
                if estimator == .passAtK, given[group[sequence]] == 1 {
                    throw LockstepError(
                        .invalidArgument,
                        "groups: sequence \(sequence) is alone in group \(groups[sequence]); passAtK compares "
                            + "the best with the second best: give two or more answers to a prompt")
                }
                if options.singles == .zero, sizes[group[sequence]] == 1 { teaches[sequence] = false }
            }
        }
        self.group = group
        self.sizes = sizes
    }

    /// Whether a sequence's group has another to compare it with.
    func isAlone(_ sequence: Int) -> Bool { !group.isEmpty && sizes[group[sequence]] == 1 }

    // MARK: Results

    /// Subtracts the mean over the tokens of all sequences that teach, and divides by the square root of
    /// their variance + 1e-8.
    func whiten(_ values: inout AdvantageValues) throws(LockstepError) {
        let (old, layout) = (values, batch.layout!)
        let whitened = try TemporaryValues(count: old.perToken ? layout.tokens : sequences)
        func each(_ body: (_ index: Int, _ times: Int) -> Void) {
            for sequence in 0..<sequences where teaches[sequence] {
                if old.perToken {
                    for position in layout.positions(of: sequence) {
                        body(layout.index(layout.place(of: sequence, position: position)), 1)
                    }
                } else {
                    body(sequence, lengths![sequence])
                }
            }
        }
        let moments = RewardMoments.of(groups: 1) { add in each { add(0, old.values[$0], $1) } }[0]
        let scale = (moments.variance() + 1e-8).squareRoot()
        each { index, _ in whitened[index] = moments.deviation(of: old.values[index]).high / scale }
        values = AdvantageValues(values: whitened, perToken: old.perToken)
    }

    /// Throws unless values can be written to an output.
    func check(
        _ values: AdvantageValues, fit output: AdvantageOutput, _ name: StaticString
    ) throws(LockstepError) {
        let format: Format
        switch output {
        case .perToken(let view):
            format = view.format
            guard let layout = batch.layout, view.rows == layout.rows, view.columns == layout.columns else {
                throw LockstepError(
                    .invalidArgument,
                    "\(name): shape is [\(view.rows) x \(view.columns)]; give that of the batch"
                )
            }
        case .perSequence(let view):
            format = view.format
            guard view.count == sequences else {
                throw LockstepError(
                    .invalidArgument, "\(name): has \(view.count) values; give \(sequences), one a sequence")
            }
            guard !values.perToken else {
                throw LockstepError(
                    .invalidArgument,
                    "\(name): has one value for each sequence, but \(options.estimator) gives one for each "
                        + "token; give the shape of the batch")
            }
        }
        let count = values.values.scratch.count
        for index in 0..<count {
            let value = values.values[index]
            guard value.isFinite, format == .fp64 || Float(value).isFinite else {
                throw LockstepError(
                    .nonFinite,
                    "\(name): value \(index) would be \(value), too large for \(format); scale the rewards")
            }
        }
    }

    func write(_ values: AdvantageValues, to output: AdvantageOutput) {
        switch output {
        case .perSequence(let view):
            for sequence in 0..<sequences { view.store(values.values[sequence], at: sequence) }
        case .perToken(let view):
            let layout = batch.layout!
            for row in 0..<view.rows {
                let line = MutableVectorView(view.row(row), view.format, count: view.columns)
                for column in 0..<view.columns {
                    line.store(values.perToken ? values.values[row * view.columns + column] : 0, at: column)
                }
            }
            guard !values.perToken else { return }
            for sequence in 0..<sequences where values.values[sequence] != 0 {
                let place = layout.place(of: sequence)
                let line = MutableVectorView(
                    view.address(place), view.format, count: layout.length(of: sequence))
                for position in layout.positions(of: sequence) {
                    line.store(values.values[sequence], at: position)
                }
            }
        }
    }

    // MARK: Reading

    /// A value that must be finite and not so large that its square overflows.
    func read(
        _ view: VectorView, _ index: Int, _ name: StaticString, sequence: Int? = nil
    ) throws(LockstepError) -> Double {
        let value = view.double(index)
        guard value.magnitude <= RewardBatch.largest else {
            let place = sequence.map { "sequence \($0), position \(index)" } ?? "index \(index)"
            throw LockstepError(
                value.isFinite ? .invalidArgument : .nonFinite,
                "\(name): \(value) at \(place); "
                    + (value.isFinite ? "scale it below 1e100" : "give a finite number, or mask it out"))
        }
        return value
    }

    /// Sums of rewards of each sequence that counts, exact and rounded once; 0 for the others.
    func scores() throws(LockstepError) -> [Double] {
        var scores = [Double](repeating: 0, count: sequences)
        switch batch.rewards {
        case .perSequence(let view):
            for sequence in 0..<sequences where counts[sequence] {
                scores[sequence] = try read(view, sequence, "rewards")
            }
        case .perToken(let view):
            for sequence in 0..<sequences where counts[sequence] {
                let rewards = view.values(of: sequence, in: batch.layout!)
                var sum = ExactSums(count: 1)
                for position in batch.layout!.positions(of: sequence) {
                    sum.add(try read(rewards, position, "rewards", sequence: sequence), to: 0)
                }
                scores[sequence] = sum.value(0)
            }
        case .perKind:
            throw LockstepError(
                .invalidArgument, "rewards: has several kinds, which only GDPO takes; give one a sequence")
        }
        return scores
    }
}
