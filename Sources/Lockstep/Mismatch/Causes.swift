import CLockstepKernels

/// What can make trainer and rollout log-probs differ.
public enum MismatchCause: Int32, CaseIterable, Sendable {
    /// One side divides the logits by another temperature; the rollout's log-probs are of what it sampled from.
    case temperature = 1
    /// The rollout logged log-probs from before its temperature, not those of what it sampled from.
    case rawLogProbs = 2
    /// One side renormalises over what top-p, top-k or min-p kept, the other does not.
    case truncation = 3
    /// A column was computed or stored in 16 bits.
    case storedIn16Bits = 4
    /// Tokens or sequences of the two columns do not belong together.
    case misalignment = 5
    /// First or last tokens, fill values, or tokens that should be masked.
    case ends = 6
    /// A few tokens far beyond all others, most of them on one side.
    case outliers = 7
    /// The two engines hold other weights, or were given other prompts.
    case otherWeights = 8
    /// Rounding: what is left of two engines that do the same.
    case rounding = 9
    /// A mismatch that behaves like none of these.
    case unknown = 10
}

/// How much speaks for a cause.
public struct CauseFinding: Equatable, Sendable {
    /// The cause.
    public var cause: MismatchCause
    /// About which share of the sum of d^2 it explains if it is there, in [0, 1].
    public var score: Double
    /// How strongly the log shows it, in [0, 1]; from 1/2 on it counts as found.
    public var confidence: Double
}

/// The figures from which causes are judged; `docs/Causes.md` has the formulas.
///
/// Plain tokens are no first or last token of a run, and both their log-probs are in (-1000, 0). z is d / (1 - p),
/// p being the smaller of the two probabilities.
public struct CauseEvidence: Equatable, Sendable {
    /// Plain tokens of aligned sequences, and those sequences.
    public var tokens = 0, sequences = 0
    /// Share of the log-probs of a side that a format holds; 1/4 or larger in magnitude.
    public var trainerBF16Share = 0.0, trainerFP16Share = 0.0, rolloutBF16Share = 0.0, rolloutFP16Share = 0.0
    /// Share of the sum of d^2 that storing so would make.
    public var storedShare = 0.0
    /// Log-probs above 0.
    public var trainerAboveZero = 0, rolloutAboveZero = 0
    /// Log-probs of -1000 or less.
    public var trainerMarks = 0, rolloutMarks = 0
    /// Log-probs of 0 where the other side's is below -2^-10, and below -1.
    public var trainerZeros = 0, trainerZerosFar = 0, rolloutZeros = 0, rolloutZerosFar = 0
    /// Sequences whose trainer log-probs fit the rollout's next, and previous, token better.
    public var sequencesAhead = 0, sequencesBehind = 0
    /// Correlation of the two probabilities over all tokens.
    public var pearson = Double.nan
    /// First and last tokens of runs, and how many of them have an |z| of 16 times the median or more.
    public var firstTokens = 0, firstFar = 0, lastTokens = 0, lastFar = 0
    /// Median |z|, and root mean square of z.
    public var noiseScale = 0.0, noiseRMS = 0.0
    /// Mantissa bits of a format whose rounding makes that median: log2(5.5 / noise scale).
    public var noiseBits = Double.nan
    /// log2 of the median |z| of tokens with 1 - p in (2^-6, 2^-2], over that of tokens with 1 - p > 1/2.
    public var noiseGrowth = 0.0
    /// Share of tokens with an |z| of 16 times the median or more.
    public var farShare = 0.0
    /// Tokens with an |z| of 32 times the median or more, by the sign of d, and their share of the sum of z^2.
    public var farDown = 0, farUp = 0
    /// See `farDown`.
    public var farSquareShare = 0.0
    /// Least squares of z on ln q / (1 - p): the slope, its share of the variance, its t.
    public var slope = 0.0, slopeR2 = 0.0, slopeT = 0.0
    /// Intercept over slope: the entropy of an unlikely token's distribution, where a temperature is the cause.
    public var entropyScale = 0.0
    /// Share of the sum of z^2 that slope and intercept explain.
    public var slopeSquareShare = 0.0
    /// Mean r - 1 of plain tokens and over its standard error.
    public var meanRatioExcess = 0.0, meanRatioT = 0.0
    /// Share of the tokens with d != 0 that have d > 0.
    public var shareUp = 0.0
    /// sum d / sum |d|, and sum d |d| / sum d^2.
    public var oneSidedness = 0.0, squareOneSidedness = 0.0
    /// Mean square of a sequence's sum of z, over that of independent tokens.
    public var clustering = 0.0
    /// Share of the sum of d^2 in plain tokens, in first and last tokens, in misaligned sequences; the rest is in
    /// tokens with a log-prob that is none.
    public var plainSquareShare = 0.0, endsSquareShare = 0.0, misalignedSquareShare = 0.0

    /// Evidence of an empty log.
    public init() {}
}

/// Causes, and what speaks for them.
public struct MismatchCauses: Equatable, Sendable {
    /// All causes, ranked: those found first, by score times confidence.
    public var findings: [CauseFinding]
    /// The figures behind them.
    public var evidence: CauseEvidence
}

/// Rounding to m mantissa bits makes a median |z| of about this times 2^-m.
///
/// Two engines that round every operation to BF16: 0.041 to 0.046; to FP16: 0.0052 to 0.0056.
let noiseConstant = 5.5

extension CauseEvidence {
    /// Fewer plain tokens and aligned sequences than these only tell what single tokens tell.
    static let fewestTokens = 500
    static let fewestSequences = 10

    init(_ sums: borrowing EvidenceSums, square: Double, pearson: Double) {
        self.pearson = pearson
        (trainerBF16Share, trainerFP16Share) = CauseEvidence.grid(sums, .trainerTested)
        (rolloutBF16Share, rolloutFP16Share) = CauseEvidence.grid(sums, .rolloutTested)
        (trainerAboveZero, rolloutAboveZero) = (sums[.trainerAboveZero], sums[.rolloutAboveZero])
        (trainerMarks, rolloutMarks) = (sums[.trainerMarks], sums[.rolloutMarks])
        (trainerZeros, trainerZerosFar) = (sums[.trainerZero], sums[.trainerZeroFar])
        (rolloutZeros, rolloutZerosFar) = (sums[.rolloutZero], sums[.rolloutZeroFar])
        (sequencesAhead, sequencesBehind) = (sums[.ahead], sums[.behind])
        (tokens, sequences) = (sums[.plain], sums[.sequences])
        (firstTokens, lastTokens) = (sums[.first], sums[.last])
        if square > 0 {
            plainSquareShare = sums[.square] / square
            endsSquareShare = min((sums[.firstSquare] + sums[.lastSquare]) / square, 1)
            misalignedSquareShare = sums[.misaligned] / square
        }
        let spacing =
            CauseEvidence.storage(trainerBF16Share, trainerFP16Share) * sums[.trainerSquare]
            + CauseEvidence.storage(rolloutBF16Share, rolloutFP16Share) * sums[.rolloutSquare]
        if sums[.square] > 0 { storedShare = min(spacing / sums[.square], 1) }
        readOctaves(sums)
        guard tokens > 0, sums[.zz] > 0 else { return }
        readSlope(sums)
        readRatios(sums)
    }

    /// The shares of the tested log-probs that lie on the grids of bf16 and of fp16.
    private static func grid(
        _ sums: borrowing EvidenceSums, _ tested: EvidenceCount
    ) -> (Double, Double) {
        let first = tested.rawValue
        guard sums.counts[first] >= CauseEvidence.fewestTested else { return (0, 0) }
        let count = Double(sums.counts[first])
        return (Double(sums.counts[first + 1]) / count, Double(sums.counts[first + 2]) / count)
    }

    /// Fewer do not tell a grid: single log-probs are on one by chance.
    private static let fewestTested = 20

    /// Variance that storing adds, over the square of a value x.
    ///
    /// It is spacing^2 / 12, and the spacing 2^(e - m) where 2^e <= |x| < 2^(e + 1). On the average over
    /// magnitudes 4^e is 3 / (8 ln 2) of x^2.
    private static func storage(_ bf16: Double, _ fp16: Double) -> Double {
        3 / (8 * ln2) / 12 * (bf16 > 0.5 ? 0x1p-14 : fp16 > 0.5 ? 0x1p-20 : 0)
    }

    /// What the histogram of |z| tells.
    private mutating func readOctaves(_ sums: borrowing EvidenceSums) {
        let (scales, first, last) = (
            Int(LSK_EVIDENCE_SCALES), Int(LSK_EVIDENCE_FIRST_ROW), Int(LSK_EVIDENCE_LAST_ROW)
        )
        let all = Octaves(sums, rows: Array(0..<2 * scales))
        guard tokens > 0, let median = all.median else { return }
        noiseScale = exponential(median * ln2)
        noiseBits = logarithm(noiseConstant / noiseScale) / ln2
        let far = all.medianOctave + 4
        farShare = Double(all.count(from: far)) / Double(tokens)
        firstFar = Octaves(sums, rows: [first]).count(from: far)
        lastFar = Octaves(sums, rows: [last]).count(from: far)
        farDown = Octaves(sums, rows: (0..<scales).map { 2 * $0 }).count(from: far + 1)
        farUp = Octaves(sums, rows: (0..<scales).map { 2 * $0 + 1 }).count(from: far + 1)
        farSquareShare = all.squareShare(from: far + 1)
        let likely = Octaves(sums, rows: Array(4..<12)), unlikely = Octaves(sums, rows: [0, 1])
        if let grown = likely.median, let base = unlikely.median,
            min(likely.total, unlikely.total) >= CauseEvidence.fewestOfMedian
        {
            noiseGrowth = grown - base
        }
    }

    private static let fewestOfMedian = 50

    /// Least squares of z on x = ln q / (1 - p), with intercept.
    private mutating func readSlope(_ sums: borrowing EvidenceSums) {
        let n = Double(tokens)
        let (meanX, meanZ) = (sums[.x] / n, sums[.z] / n)
        let varX = sums[.xx] / n - meanX * meanX
        let varZ = sums[.zz] / n - meanZ * meanZ
        guard varX > 0, varZ > 0 else { return }
        slope = (sums[.xz] / n - meanX * meanZ) / varX
        let explained = min(slope * slope * varX, varZ)
        slopeR2 = explained / varZ
        slopeT = slope / ((varZ - explained) / (n * varX)).squareRoot()
        entropyScale = meanZ / slope - meanX
        slopeSquareShare = 1 - (varZ - explained) / (sums[.zz] / n)
        noiseRMS = (sums[.zz] / n).squareRoot()
        clustering = sums[.sequenceZ2] / sums[.zz]
    }

    /// Mean ratio and the balance of signs.
    private mutating func readRatios(_ sums: borrowing EvidenceSums) {
        let (n, k) = (Double(tokens), Double(sequences))
        meanRatioExcess = sums[.excess] / n
        let m = meanRatioExcess
        let spread = sums[.excess2] - 2 * m * sums[.excessLength] + m * m * sums[.length2]
        if k > 1, spread > 0 {
            meanRatioT = m / ((k / (k - 1) * spread).squareRoot() / n)
        }
        let different = sums[.plain] - sums[.equal]
        if different > 0 { shareUp = Double(sums[.up]) / Double(different) }
        let (rise, fall) = (sums[.rise], sums[.rise] - sums[.logRatio])
        if rise + fall > 0 { oneSidedness = (rise - fall) / (rise + fall) }
        squareOneSidedness = 2 * sums[.riseSquare] / sums[.square] - 1
    }
}

/// Some rows of the histogram of |z|, added up.
private struct Octaves {
    let counts: [Int]
    let total: Int

    init(_ sums: borrowing EvidenceSums, rows: [Int]) {
        let octaves = Int(LSK_EVIDENCE_OCTAVES)
        var counts = [Int](repeating: 0, count: octaves)
        for row in rows {
            for octave in 0..<octaves { counts[octave] += Int(sums.tokens(inBin: row * octaves + octave)) }
        }
        self.counts = counts
        total = counts.reduce(0, +)
    }

    /// The octave that holds the median, from 0.
    var medianOctave: Int {
        var below = 0
        for (octave, count) in counts.enumerated() {
            below += count
            if 2 * below >= total { return octave }
        }
        return counts.count - 1
    }

    /// log2 of the median, as if an octave's tokens were spread evenly over its logarithms; nil without tokens, or
    /// if the median is in the octave of 0.
    var median: Double? {
        let octave = medianOctave
        guard total > 0, octave > 0 else { return nil }
        let below = counts.prefix(octave).reduce(0, +)
        return Double(Int(LSK_EVIDENCE_LOWEST) + octave)
            + (Double(total) / 2 - Double(below)) / Double(counts[octave])
    }

    /// Tokens from an octave on.
    func count(from octave: Int) -> Int { counts.dropFirst(octave).reduce(0, +) }

    /// Their share of the sum of squares, each square taken as that of the octave's lower end.
    func squareShare(from octave: Int) -> Double {
        var (part, whole, square) = (0.0, 0.0, 1.0)
        for (index, count) in counts.enumerated() {
            whole += Double(count) * square
            if index >= octave { part += Double(count) * square }
            square *= 4
        }
        return whole > 0 ? part / whole : 0
    }
}

extension MismatchCauses {
    /// Judges evidence.
    init(_ evidence: CauseEvidence) {
        self.evidence = evidence
        var judge = CauseRules(evidence)
        judge.judge()
        findings = judge.findings.sorted { one, other in
            let (a, b) = (one.rank, other.rank)
            return a != b ? a > b : one.cause.rawValue < other.cause.rawValue
        }
    }
}

extension CauseFinding {
    /// From 1/2 on a cause counts as found.
    static let found = 0.5

    /// Whether the cause counts as found.
    public var isFound: Bool { confidence >= CauseFinding.found }

    fileprivate var rank: Double { (isFound ? 2 : 0) + score * confidence }
}

/// The rules: each a product of conditions, which rise from 0 to 1 between two bounds.
private struct CauseRules {
    let e: CauseEvidence
    var findings: [CauseFinding] = []
    private let enough: Bool

    init(_ evidence: CauseEvidence) {
        e = evidence
        enough =
            e.tokens >= CauseEvidence.fewestTokens && e.sequences >= CauseEvidence.fewestSequences
            && e.noiseScale > 0
    }

    mutating func judge() {
        let stored = storedIn16Bits()
        let unrelated = enough && e.noiseScale > 0.05 ? ramp(0.7 - e.pearson, 0, 0.2) : 0
        let misaligned = max(ramp(Double(e.sequencesAhead + e.sequencesBehind), 0, 2), unrelated)
        let comparable = unrelated < CauseFinding.found
        let ends = endsOfRuns(comparable)
        let smooth = enough && comparable
        let (temperature, sampled) = smooth ? slope() : (0, 0)
        let truncation = smooth ? oneSided(temperature, ends) : 0
        let outliers = smooth ? tail(temperature, truncation) : 0
        let explained = max(temperature, truncation, unrelated) >= CauseFinding.found
        let odd = smooth && !explained && outliers < CauseFinding.found && e.noiseBits < 16 ? oddness() : 0
        let coarse = smooth && !explained ? ramp(6 - e.noiseBits, 0.25, 1.25) * (1 - odd) : 0

        add(.temperature, temperature * (1 - sampled), e.slopeSquareShare * e.plainSquareShare)
        add(.rawLogProbs, temperature * sampled, e.slopeSquareShare * e.plainSquareShare)
        add(.truncation, truncation, e.squareOneSidedness.magnitude * e.plainSquareShare)
        add(.storedIn16Bits, stored, e.storedShare * e.plainSquareShare)
        add(.misalignment, misaligned, unrelated >= CauseFinding.found ? 1 : e.misalignedSquareShare)
        add(.ends, ends, 1 - e.plainSquareShare - e.misalignedSquareShare)
        add(.outliers, outliers, e.farSquareShare * e.plainSquareShare)
        let known = findings.reduce(0) { $0 + ($1.isFound ? $1.score : 0) }
        let rest = max(1 - known, 0)
        add(.otherWeights, coarse, rest)
        add(.unknown, odd, rest)
        add(.rounding, smooth ? (1 - odd) * (1 - coarse) : 0, rest)
    }

    private mutating func add(_ cause: MismatchCause, _ confidence: Double, _ score: Double) {
        findings.append(
            CauseFinding(cause: cause, score: min(max(score, 0), 1), confidence: confidence))
    }

    /// Values on the grid of a format, or above 0.
    private func storedIn16Bits() -> Double {
        let share = max(e.trainerBF16Share, e.trainerFP16Share, e.rolloutBF16Share, e.rolloutFP16Share)
        return e.trainerAboveZero + e.rolloutAboveZero > 0 ? 1 : ramp(share, 0.02, 0.1)
    }

    /// Fill values and marks; first or last tokens out of the ordinary.
    private func endsOfRuns(_ comparable: Bool) -> Double {
        // Where truncated sampling leaves one token, it has a log-prob of 0 too, but never far from the other's.
        let zeros =
            ramp(Double(e.rolloutZerosFar), 1, 4)
            * ramp(Double(e.rolloutZerosFar) / Double(max(e.rolloutZeros, 1)), 0.005, 0.02)
        let marks = ramp(Double(e.trainerMarks + e.rolloutMarks), 0, 1)
        var confidence = max(zeros, ramp(Double(e.trainerZerosFar), 1, 4), marks)
        guard comparable, enough else { return confidence }
        for (far, count) in [(e.firstFar, e.firstTokens), (e.lastFar, e.lastTokens)] where count > 0 {
            let expected = Double(count) * e.farShare
            let excess = (Double(far) - expected) / (expected + 1).squareRoot()
            confidence = max(confidence, ramp(excess, 2, 4) * ramp(Double(far) / Double(count), 0.01, 0.05))
        }
        return confidence
    }

    /// A temperature: z is linear in ln q / (1 - p), with 0 at the entropy.
    ///
    /// Also, whether mean r is above 1, as it is if the rollout's log-probs are not those of what it sampled from.
    private func slope() -> (temperature: Double, sampledOtherwise: Double) {
        let oneSided = e.meanRatioT.magnitude > 3 && e.oneSidedness.magnitude > 0.2
        let share = oneSided ? ramp(e.slopeR2, 0.25, 0.4) : ramp(e.slopeR2, 0.02, 0.06)
        let entropy = ramp(e.entropyScale, 0.5, 1.5) * (1 - ramp(e.entropyScale, 6, 7))
        return (share * entropy * ramp(e.slopeT.magnitude, 5, 10), ramp(e.meanRatioT, 2, 4))
    }

    /// Truncation: d has one sign, and mean r is the kept mass (or its reciprocal).
    private func oneSided(_ temperature: Double, _ ends: Double) -> Double {
        let falls = e.meanRatioT < 0
        let imbalance = (e.shareUp - 0.5).magnitude * 2 * Double(e.tokens).squareRoot()
        guard (e.shareUp < 0.5) == falls else { return zeros(ends) }
        var confidence =
            ramp(e.meanRatioT.magnitude, 2.5, 3.5) * ramp(e.meanRatioExcess.magnitude, 0.0005, 0.0015)
            * ramp(imbalance, 4, 8) * ramp(e.oneSidedness.magnitude, 0.1, 0.2)
        // Raw log-probs make mean r larger too.
        if !falls { confidence *= 1 - temperature }
        return max(confidence, zeros(ends))
    }

    /// Rollout log-probs of 0, where truncation leaves one token, with a mean r below 1.
    private func zeros(_ ends: Double) -> Double {
        ends < CauseFinding.found
            ? ramp(Double(e.rolloutZeros - e.rolloutZerosFar), 2, 6) * ramp(-e.meanRatioT, 3, 5) : 0
    }

    /// Few tokens, far from the others and on one side of them, that make much of the sum of squares.
    private func tail(_ temperature: Double, _ truncation: Double) -> Double {
        let far = e.farDown + e.farUp
        guard far > 0 else { return 0 }
        let share = Double(far) / Double(e.tokens)
        let imbalance = Double((e.farDown - e.farUp).magnitude) / Double(far).squareRoot()
        let rare =
            max(temperature, truncation) >= CauseFinding.found
            ? 1 - ramp(share, 0.002, 0.004) : 1 - ramp(share, 0.01, 0.03)
        return ramp(imbalance, 1.5, 2.5) * ramp(e.farSquareShare, 0.1, 0.3) * rare
    }

    /// Noise that does not vanish towards p = 1, or that whole sequences share.
    private func oddness() -> Double { max(ramp(e.noiseGrowth, 1.5, 2.5), ramp(e.clustering, 6, 12)) }
}

/// 0 up to `low`, 1 from `high` on, linear between; 0 for a NaN.
private func ramp(_ x: Double, _ low: Double, _ high: Double) -> Double {
    x > low ? min((x - low) / (high - low), 1) : 0
}
