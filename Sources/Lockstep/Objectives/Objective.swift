import CLockstepKernels

/// What the denominators of a loss count.
public struct ObjectiveCounts: Equatable, Sendable {
    /// Tokens that count.
    public var tokens: Int
    /// Sequences with a token that counts.
    public var sequences: Int
    /// Prompts with a token that counts, if the loss is by prompt.
    public var prompts: Int

    /// Creates counts.
    public init(tokens: Int = 0, sequences: Int = 0, prompts: Int = 0) {
        self.tokens = tokens
        self.sequences = sequences
        self.prompts = prompts
    }
}

/// The loss of a batch that comes in parts, its gradient, and what happened.
///
/// First `count` every part, then `evaluate` every part: the gradients, the loss and the report have the bits
/// of the whole batch at once, however it was cut into whole sequences and in whatever order, because every
/// sum over sequences is exact and rounded once. An objective is used by one thread at a time.
public final class Objective {
    /// What the loss is.
    public let options: ObjectiveOptions
    private var counted = ObjectiveCounts()
    private var elsewhere = ObjectiveCounts()
    /// Counted tokens of each prompt.
    private var prompts: [Int: Int] = [:]
    private var sums = ObjectiveSums()

    /// The most tokens: far beyond any memory, far below overflow.
    private static let largestCount = 1 << 48

    /// Creates an objective, or throws for options that make no sense.
    public init(_ options: ObjectiveOptions = .init()) throws(LockstepError) {
        _ = try options.rule()
        self.options = options
    }

    /// Adds a part to the denominators: the first pass.
    ///
    /// - Parameters:
    ///   - batch: whole sequences; `evaluate` says what is needed.
    ///   - execution: threads and instruction set; the result does not depend on them.
    /// - Throws: `.invalidArgument` for what is missing or does not fit; `.nonFinite` naming sequence and position.
    public func count(_ batch: TokenBatch, execution: Execution = .init()) throws(LockstepError) {
        try add(ObjectiveScan(batch, options, countsOnly: true, execution))
    }

    /// The denominators so far: of this objective's parts, and of what was added.
    public var counts: ObjectiveCounts {
        ObjectiveCounts(
            tokens: counted.tokens + elsewhere.tokens, sequences: counted.sequences + elsewhere.sequences,
            prompts: counted.prompts + elsewhere.prompts)
    }

    /// Adds what was counted elsewhere, as on another rank, which then has other sequences (and prompts).
    public func add(_ counts: ObjectiveCounts) throws(LockstepError) {
        for (value, name) in [
            (counts.tokens, "tokens"), (counts.sequences, "sequences"), (counts.prompts, "prompts"),
        ] as [(Int, StaticString)] {
            guard (0...Objective.largestCount).contains(value) else {
                throw LockstepError(.invalidArgument, "counts: \(name) is \(value); give 0 to 2^48")
            }
        }
        elsewhere.tokens += counts.tokens
        elsewhere.sequences += counts.sequences
        elsewhere.prompts += counts.prompts
        guard self.counts.tokens <= 2 * Objective.largestCount else {
            elsewhere.tokens -= counts.tokens
            elsewhere.sequences -= counts.sequences
            elsewhere.prompts -= counts.prompts
            throw LockstepError(.invalidArgument, "counts: there are more than 2^48 tokens")
        }
    }

    private func add(_ scan: ObjectiveScan) throws(LockstepError) {
        var found = ObjectiveCounts()
        for sequence in 0..<scan.sequences where scan.counts.base[sequence].tokens > 0 {
            found.tokens += Int(scan.counts.base[sequence].tokens)
            found.sequences += 1
        }
        guard counts.tokens + found.tokens <= Objective.largestCount else {
            throw LockstepError(.invalidArgument, "batch: there are more than 2^48 tokens")
        }
        if options.aggregation == .promptMean, let groups = scan.batch.groups {
            // A dictionary as it grows.
            try askForMemory(prompts.count + scan.sequences, bytesEach: 64)
            for sequence in 0..<scan.sequences where scan.counts.base[sequence].tokens > 0 {
                prompts[groups[sequence], default: 0] += Int(scan.counts.base[sequence].tokens)
            }
            counted.prompts = prompts.count
        }
        counted.tokens += found.tokens
        counted.sequences += found.sequences
    }

    /// Adds a part to the loss and writes its gradient: the second pass, when everything has been counted.
    ///
    /// - Parameters:
    ///   - batch: whole sequences: `current` and `advantages`, `trainer` for every term but `reinforce`,
    ///     `reference` for `kl`, `entropies` for `entropyCoefficient`, `selected` for `klCov`, `groups` for
    ///     `promptMean`; `weights` and `kept` of a correction, if there is one.
    ///   - gradient: where d loss / d current log-prob goes, fp32 or fp64, in the batch's layout; 0 where no
    ///     token counts.
    ///   - entropyGradient: where d loss / d entropy goes.
    ///   - execution: threads and instruction set; the result does not depend on them.
    /// - Throws: `.invalidArgument` for what is missing, does not fit or was not counted; `.nonFinite`.
    public func evaluate(
        _ batch: TokenBatch, gradient: MutableMatrixView? = nil, entropyGradient: MutableMatrixView? = nil,
        execution: Execution = .init()
    ) throws(LockstepError) {
        try evaluate(ObjectiveScan(batch, options, execution), gradient, entropyGradient)
    }

    private func evaluate(
        _ scan: ObjectiveScan, _ gradient: MutableMatrixView?, _ entropyGradient: MutableMatrixView?
    ) throws(LockstepError) {
        for (view, name) in [(gradient, "d_log_probs"), (entropyGradient, "d_entropies")]
            as [(MutableMatrixView?, StaticString)]
        {
            if let view { try check(view, name, scan.batch.layout) }
        }
        try checkCounted(scan)
        let denominator = denominator
        let weight = denominator > 0 ? options.scale / denominator : 0
        let workers = (0..<scan.workers).map { _ in ObjectiveSums() }
        let parts = prompts
        let mean = options.aggregation
        func share(of sequence: Int) -> Double {
            switch mean {
            case .seqMeanTokenMean: Double(scan.counts.base[sequence].tokens)
            case .promptMean: Double(parts[scan.batch.groups![sequence]] ?? 1)
            default: 1
            }
        }
        scan.forEachTask { sequences, worker in
            scan.evaluate(
                sequences, share: share, weight: weight, gradient, entropyGradient, into: workers[worker])
        }
        for each in workers { sums.merge(each) }
    }

    private func check(
        _ view: MutableMatrixView, _ name: StaticString, _ layout: SequenceLayout
    ) throws(LockstepError) {
        guard [.fp32, .fp64].contains(view.format) else {
            throw LockstepError(.invalidArgument, "\(name): format is \(view.format); give fp32 or fp64")
        }
        guard view.rows == layout.rows, view.columns == layout.columns else {
            throw LockstepError(
                .invalidArgument,
                "\(name): shape is [\(view.rows) x \(view.columns)] but the batch is "
                    + "[\(layout.rows) x \(layout.columns)]; give the same")
        }
    }

    private func checkCounted(_ scan: ObjectiveScan) throws(LockstepError) {
        var tokens = sums.tokens
        for sequence in 0..<scan.sequences where scan.counts.base[sequence].tokens > 0 {
            tokens += Int(scan.counts.base[sequence].tokens)
            if options.aggregation == .promptMean, prompts[scan.batch.groups![sequence]] == nil {
                throw LockstepError(
                    .invalidArgument,
                    "groups: prompt \(scan.batch.groups![sequence]) of sequence \(sequence) was not counted; "
                        + "count every part before the first is evaluated")
            }
        }
        guard tokens <= counted.tokens else {
            throw LockstepError(
                .invalidArgument,
                "batch: \(tokens) tokens were evaluated but \(counted.tokens) counted; count every part before "
                    + "the first is evaluated")
        }
    }

    /// What the sum over sequences is divided by.
    private var denominator: Double {
        let counts = counts
        return switch options.aggregation {
        case .tokenMean: Double(counts.tokens)
        case .tokenSum: 1
        case .seqMeanTokenSum, .seqMeanTokenMean: Double(counts.sequences)
        case .seqMeanTokenSumNorm: Double(counts.sequences) * options.length
        case .promptMean: Double(counts.prompts)
        }
    }

    /// The loss of what was evaluated so far, and what happened.
    public func report() -> ObjectiveReport { sums.report(options, denominator: denominator) }

    /// Forgets everything that was counted and evaluated.
    public func reset() {
        (counted, elsewhere, prompts, sums) = (.init(), .init(), [:], ObjectiveSums())
    }

    /// The loss of a whole batch: both passes.
    ///
    /// - Parameters:
    ///   - options: what the loss is.
    ///   - batch: as in `evaluate`.
    ///   - gradient: as in `evaluate`.
    ///   - entropyGradient: as in `evaluate`.
    ///   - execution: threads and instruction set; the result does not depend on them.
    /// - Throws: as `count` and `evaluate`.
    /// - Returns: the loss, and what happened.
    public static func loss(
        _ options: ObjectiveOptions, of batch: TokenBatch, gradient: MutableMatrixView? = nil,
        entropyGradient: MutableMatrixView? = nil, execution: Execution = .init()
    ) throws(LockstepError) -> ObjectiveReport {
        let objective = try Objective(options)
        let scan = try ObjectiveScan(batch, options, execution)
        try objective.add(scan)
        try objective.evaluate(scan, gradient, entropyGradient)
        return objective.report()
    }
}

extension ObjectiveScan {
    /// Adds sequences to sums and writes their gradients.
    ///
    /// `share`: what a sequence's own sum is divided by; `weight`: what every sequence is multiplied by.
    @_optimize(speed)
    func evaluate(
        _ sequences: Range<Int>, share: (_ sequence: Int) -> Double, weight: Double,
        _ gradient: MutableMatrixView?,
        _ entropyGradient: MutableMatrixView?, into sums: ObjectiveSums
    ) {
        let (layout, parts) = (batch.layout, ObjectiveSums.Parts(batch))
        let (kernels, terms) = (kernels, kernels.pointee.objective_terms!)
        let (format, entropyFormat) = (gradient?.format.rawValue ?? 0, entropyGradient?.format.rawValue ?? 0)
        let hasLevels = levels.count > 0
        var one = lsk_objective_sums()
        withUnsafeMutablePointer(to: &one) { found in
            for sequence in sequences {
                let (length, place) = (layout.length(of: sequence), layout.place(of: sequence))
                let counts = counts.base + sequence
                let counting = counts.pointee.tokens > 0
                let extent = counting ? extent(of: sequence) : 0..<0
                let d = gradient?.clear(place, length, around: extent)
                let dEntropies = entropyGradient?.clear(place, length, around: extent)
                let share = counting ? share(sequence) : 1
                if counting {
                    terms(
                        found, d, format, dEntropies, entropyFormat, spans.base + sequence, rules.base,
                        hasLevels ? levels.base + sequence : nil, weight / share)
                }
                sums.add(found, counts, length: length, share: share, parts, kernels)
            }
        }
    }
}

extension MutableMatrixView {
    /// Writes 0 around the tokens of a sequence that count; returns where the first of them goes.
    fileprivate func clear(
        _ place: TokenPlace, _ length: Int, around extent: Range<Int>
    ) -> UnsafeMutableRawPointer? {
        if length == 0 { return nil }
        let (row, size) = (address(place), format.byteCount)
        let behind = length - extent.upperBound
        if extent.lowerBound > 0 { row.clear(byteCount: extent.lowerBound * size) }
        if behind > 0 { (row + extent.upperBound * size).clear(byteCount: behind * size) }
        return row + extent.lowerBound * size
    }
}
