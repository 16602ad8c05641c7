import CLockstepKernels

/// The counts and sums over a log from which its causes are judged.
///
/// What the kernels sum up for a sequence enters exact sums, so evidence does not depend on the order of
/// sequences, nor on how the log was cut between them and merged again.
///
/// A sequence whose log-probs fit better one token apart than where they stand is misaligned: it is counted as
/// that, and of the rest only which values are on the grid of a 16-bit format.
struct EvidenceSums: ~Copyable {
    /// See `EvidenceCount`.
    var counts = [Int](repeating: 0, count: EvidenceCount.count)
    /// See `EvidenceSum`.
    var sums = ExactSums(count: EvidenceSum.count)
    /// What is about to be added to `sums`: nothing to that of misaligned sequences.
    private let factors = FactorPairs(count: EvidenceSum.count)
    /// Tokens by scaled log ratio: see lsk_evidence.h.
    let octaves: UnsafeMutablePointer<UInt64>

    /// Number of places in `octaves`; the last is of tokens that are in no row.
    static let bins = Int(LSK_EVIDENCE_BINS)
    static let usedBins = bins - 1
    /// Number of counters: the places, more than once.
    static let room = bins * Int(LSK_EVIDENCE_COPIES)

    init() {
        octaves = .allocate(capacity: EvidenceSums.room)
        octaves.initialize(repeating: 0, count: EvidenceSums.room)
    }

    deinit { octaves.deallocate() }

    /// A count.
    subscript(count: EvidenceCount) -> Int { counts[count.rawValue] }

    /// A sum, rounded once.
    subscript(sum: EvidenceSum) -> Double { sums.value(sum.rawValue) }

    /// Adds a sequence, whose octaves have been counted already.
    ///
    /// - Returns: False if it is misaligned: then its octaves must be taken back.
    @_optimize(speed)
    mutating func add(_ found: UnsafePointer<lsk_evidence>, _ kernels: UnsafePointer<lsk_kernels>) -> Bool {
        let sequence = found.pointee
        add(sequence.trainer, from: .trainerTested)
        add(sequence.rollout, from: .rolloutTested)
        let here = 2 * sequence.rise - sequence.log_ratio  // sum |d|
        if sequence.pairs >= EvidenceSums.fewestPairs,
            min(sequence.ahead, sequence.behind) * Double(sequence.plain) < here / 2 * Double(sequence.pairs)
        {
            add(1, to: sequence.ahead < sequence.behind ? .ahead : .behind)
            sums.add(sequence.square, to: EvidenceSum.misaligned.rawValue)
            return false
        }
        addFaults(sequence.trainer, from: .trainerMarks)
        addFaults(sequence.rollout, from: .rolloutMarks)
        add(Int(sequence.first), to: .first)
        add(Int(sequence.last), to: .last)
        add(Int(sequence.plain), to: .plain)
        add(Int(sequence.up), to: .up)
        add(Int(sequence.equal), to: .equal)
        if sequence.plain > 0 { add(1, to: .sequences) }
        let (n, excess) = (Double(sequence.plain), sequence.ratio - Double(sequence.plain))
        set(.z, sequence.z)
        set(.zz, sequence.zz)
        set(.x, sequence.x)
        set(.xx, sequence.xx)
        set(.xz, sequence.xz)
        set(.logRatio, sequence.log_ratio)
        set(.square, sequence.square)
        set(.rise, sequence.rise)
        set(.riseSquare, sequence.rise_square)
        set(.trainerSquare, sequence.trainer_square)
        set(.rolloutSquare, sequence.rollout_square)
        set(.firstSquare, sequence.first_square)
        set(.lastSquare, sequence.last_square)
        set(.excess, excess)
        set(.excess2, excess, excess)
        set(.excessLength, excess, n)
        set(.length2, n, n)
        set(.sequenceZ2, sequence.z, sequence.z)
        sums.addProducts(factors, 0..<EvidenceSum.count, kernels)
        return true
    }

    private func set(_ sum: EvidenceSum, _ x: Double, _ y: Double = 1) { factors.set(sum.rawValue, x, y) }

    /// Fewer pairs of neighbours than this do not tell whether a sequence is misaligned.
    private static let fewestPairs = 6

    private mutating func add(_ value: Int, to count: EvidenceCount) { counts[count.rawValue] += value }

    private mutating func add(_ side: lsk_evidence_side, from first: EvidenceCount) {
        counts[first.rawValue] += Int(side.tested)
        counts[first.rawValue + 1] += Int(side.bf16_grid)
        counts[first.rawValue + 2] += Int(side.fp16_grid)
        counts[first.rawValue + 3] += Int(side.above_zero)
    }

    private mutating func addFaults(_ side: lsk_evidence_side, from first: EvidenceCount) {
        counts[first.rawValue] += Int(side.marks)
        counts[first.rawValue + 1] += Int(side.zero)
        counts[first.rawValue + 2] += Int(side.zero_far)
    }

    /// Adds the evidence of another part of the log.
    mutating func merge(_ other: borrowing EvidenceSums) {
        for index in 0..<EvidenceCount.count { counts[index] += other.counts[index] }
        for bin in 0..<EvidenceSums.room { octaves[bin] += other.octaves[bin] }
        sums.merge(other.sums)
    }

    /// The tokens of a bin.
    func tokens(inBin bin: Int) -> UInt64 { octaves[bin] + octaves[EvidenceSums.bins + bin] }

    /// The tokens of a row of octaves.
    func total(ofRow row: Int) -> Int {
        let start = row * Int(LSK_EVIDENCE_OCTAVES)
        return (start..<start + Int(LSK_EVIDENCE_OCTAVES)).reduce(0) { $0 + Int(tokens(inBin: $1)) }
    }

    /// Takes octaves back.
    func subtract(_ taken: UnsafePointer<UInt64>) {
        for bin in 0..<EvidenceSums.room { octaves[bin] -= taken[bin] }
    }
}

/// The counts of `EvidenceSums`: those of lsk_evidence.h, and sequences.
enum EvidenceCount: Int, CaseIterable {
    case trainerTested, trainerBF16, trainerFP16, trainerAboveZero
    case rolloutTested, rolloutBF16, rolloutFP16, rolloutAboveZero
    case trainerMarks, trainerZero, trainerZeroFar
    case rolloutMarks, rolloutZero, rolloutZeroFar
    case plain, up, equal, first, last
    /// Aligned sequences with a plain token; those that fit better with the rollout's next and previous token.
    case sequences, ahead, behind

    static let count = EvidenceCount.allCases.count
}

/// The sums of `EvidenceSums`: over plain tokens of aligned sequences those of lsk_evidence.h, in that order.
enum EvidenceSum: Int, CaseIterable {
    case z, zz, x, xx, xz, logRatio, square, rise, riseSquare, trainerSquare, rolloutSquare
    case firstSquare, lastSquare
    /// d^2 of misaligned sequences.
    case misaligned
    /// With e = sum (r - 1) of a sequence and n its plain tokens: e, e^2, e n, n^2.
    case excess, excess2, excessLength, length2
    /// The square of a sequence's sum of z.
    case sequenceZ2

    static let count = EvidenceSum.allCases.count
}

extension lsk_evidence {
    /// Adds the evidence of a later span of the same sequence.
    mutating func add(_ part: lsk_evidence) {
        trainer.add(part.trainer)
        rollout.add(part.rollout)
        plain += part.plain
        up += part.up
        equal += part.equal
        first += part.first
        last += part.last
        pairs += part.pairs
        z += part.z
        zz += part.zz
        x += part.x
        xx += part.xx
        xz += part.xz
        log_ratio += part.log_ratio
        square += part.square
        rise += part.rise
        rise_square += part.rise_square
        ratio += part.ratio
        trainer_square += part.trainer_square
        rollout_square += part.rollout_square
        first_square += part.first_square
        last_square += part.last_square
        ahead += part.ahead
        behind += part.behind
    }
}

extension lsk_evidence_side {
    fileprivate mutating func add(_ part: lsk_evidence_side) {
        tested += part.tested
        bf16_grid += part.bf16_grid
        fp16_grid += part.fp16_grid
        above_zero += part.above_zero
        marks += part.marks
        zero += part.zero
        zero_far += part.zero_far
    }
}
