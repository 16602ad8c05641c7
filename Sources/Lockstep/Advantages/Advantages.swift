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
        guard members.recurrence == nil || options.scale == nil else {
            throw LockstepError(
                .unsupported,
                "options: scale is set, but \(options.estimator) gives each token its own advantage and divides by "
                    + "nothing; leave it")
        }
        let result = try members.recurrence == nil ? members.bySequence() : members.byToken()
        if options.parts.whitens { members.whiten(result.advantages) }
        for (output, values, name) in [
            (advantages, result.advantages, "advantages"), (returns, result.returns, "returns"),
        ] as [(AdvantageOutput?, AdvantageValues, StaticString)] {
            if let output { try members.check(values, fit: output, name) }
        }
        members.write(result.advantages, to: advantages)
        if let returns { members.write(result.returns, to: returns) }
    }
}

/// Values while they are computed: one for each sequence, or the counted tokens of each, sequence after
/// sequence.
struct AdvantageValues {
    let values: TemporaryValues
    let perToken: Bool
}

/// Memory of one call that several values may share.
final class TemporaryValues {
    private let scratch: Scratch<Double>
    var count: Int { scratch.count }
    var base: UnsafeMutablePointer<Double> { scratch.base }

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
    /// How many counted tokens stand before each sequence, and in all.
    let starts: [Int]
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
        // What this type and its estimators hold, if each sequence is a group of its own.
        try askForMemory(sequences, bytesEach: 400)
        let layout = batch.layout
        lengths = layout.map { layout in (0..<layout.sequences).map { layout.countedTokens(of: $0) } }
        starts = (lengths ?? []).reduce(into: [0]) { $0.append($0.last! + $1) }
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

    /// A sequence's part of values of tokens.
    func row(_ sequence: Int, of values: TemporaryValues) -> UnsafeMutableBufferPointer<Double> {
        UnsafeMutableBufferPointer(start: values.base + starts[sequence], count: lengths![sequence])
    }

    /// Subtracts the mean over the tokens of all sequences that teach, and divides by the square root of
    /// their variance + 1e-8.
    func whiten(_ all: AdvantageValues) {
        let teaching = (0..<sequences).filter { teaches[$0] }
        if all.perToken {
            let moments = RewardMoments.of { add in
                for sequence in teaching { add(UnsafeBufferPointer(row(sequence, of: all.values))) }
            }
            let scale = (moments.variance() + 1e-8).squareRoot()
            for sequence in teaching {
                let row = row(sequence, of: all.values)
                for k in row.indices { row[k] = moments.deviation(of: row[k]) / scale }
            }
        } else {
            let moments = RewardMoments.of(groups: 1) { add in
                for sequence in teaching { add(0, all.values[sequence], lengths![sequence]) }
            }[0]
            let scale = (moments.variance() + 1e-8).squareRoot()
            for sequence in teaching {
                all.values[sequence] = moments.deviation(of: all.values[sequence]) / scale
            }
        }
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
        // Above this fp32 would be infinite: the largest finite value and half a unit in its last place.
        let largest = format == .fp32 ? 0x1.ffff_ffp127.nextDown : Double.greatestFiniteMagnitude
        for index in 0..<values.values.count where !(values.values[index].magnitude <= largest) {
            throw LockstepError(
                .nonFinite,
                "\(name): value \(index) would be \(values.values[index]), too large for \(format); scale the "
                    + "rewards")
        }
    }

    func write(_ values: AdvantageValues, to output: AdvantageOutput) {
        switch output {
        case .perSequence(let view):
            for sequence in 0..<sequences { view.store(values.values[sequence], at: sequence) }
        case .perToken(let view):
            if view.format == .fp64 {
                write(values, to: view) { $0 }
            } else {
                write(values, to: view) { Float($0) }
            }
        }
    }

    /// Writes 0 everywhere, then every sequence's tokens that count.
    @inline(__always)
    private func write<Value: BinaryFloatingPoint>(
        _ values: AdvantageValues, to view: MutableMatrixView, _ convert: (Double) -> Value
    ) {
        for row in 0..<view.rows {
            view.row(row).assumingMemoryBound(to: Value.self).update(repeating: 0, count: view.columns)
        }
        let layout = batch.layout!
        for sequence in 0..<sequences where lengths![sequence] > 0 {
            let line = view.address(layout.place(of: sequence)).assumingMemoryBound(to: Value.self)
            let positions = layout.positions(of: sequence)
            if values.perToken {
                let row = row(sequence, of: values.values)
                for k in row.indices { line[positions[k]] = convert(row[k]) }
            } else {
                let value = convert(values.values[sequence])
                for position in positions { line[position] = value }
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

    /// The values of a sequence's tokens that count.
    func read(
        _ view: MatrixView, _ name: StaticString, _ sequence: Int, _ positions: [Int],
        into row: UnsafeMutablePointer<Double>
    ) throws(LockstepError) {
        let values = view.values(of: sequence, in: batch.layout!)
        let fits =
            switch view.format {
            case .fp64: gather(values, positions, into: row) { (value: Double) in value }
            case .fp32: gather(values, positions, into: row) { (value: Float) in Double(value) }
            default: false
            }
        if fits { return }
        for (k, position) in positions.enumerated() {
            row[k] = try read(values, position, name, sequence: sequence)
        }
    }

    /// Widens values; false if one is not finite or too large.
    @inline(__always)
    private func gather<Value: BitwiseCopyable>(
        _ values: VectorView, _ positions: [Int], into row: UnsafeMutablePointer<Double>,
        _ widen: (Value) -> Double
    ) -> Bool {
        var fits = true
        let stride = MemoryLayout<Value>.stride
        for k in positions.indices {
            let value = widen(
                values.base!.loadUnaligned(fromByteOffset: positions[k] * stride, as: Value.self))
            fits = fits && value.magnitude <= RewardBatch.largest
            row[k] = value
        }
        return fits
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
