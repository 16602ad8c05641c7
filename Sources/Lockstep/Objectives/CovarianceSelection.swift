/// A rule that picks the tokens whose covariance (A - mean A) (c - mean c) drives entropy down (Cui and others 2025).
public enum CovarianceRule: Int32, CaseIterable, Sendable {
    /// A random share of the tokens with a covariance in (low, high) that the clip does not hold already.
    case clip = 0
    /// The share with the largest covariance.
    case kl = 1
}

/// Which tokens a covariance rule picks.
public struct CovarianceOptions: Sendable {
    /// The rule.
    public var rule = CovarianceRule.clip
    /// How many of the tokens that count, in [0, 1]; at least one is picked.
    public var share = 2e-4
    /// The covariance that `clip` picks above.
    public var low = 1.0
    /// The covariance that `clip` picks below.
    public var high = 5.0
    /// The lower bound of the ratio, as in the objective.
    public var ratioLow = 0.8
    /// The upper bound of the ratio, as in the objective.
    public var ratioHigh = 1.2
    /// Which random share `clip` picks.
    public var seed: UInt64 = 0

    /// Creates the defaults of a rule.
    public init(_ rule: CovarianceRule = .clip) { self.rule = rule }

    func check() throws(LockstepError) {
        for (value, name, good) in [
            (share, "share", share >= 0 && share <= 1), (low, "low", !low.isNaN),
            (high, "high", high >= low), (ratioLow, "ratio_low", ratioLow >= 0 && ratioLow <= 1),
            (ratioHigh, "ratio_high", ratioHigh >= 1),
        ] as [(Double, StaticString, Bool)] {
            guard good else {
                throw LockstepError(
                    .invalidArgument,
                    "options: \(name) is \(value); give a share in [0, 1], low <= high, ratio_low in [0, 1] and "
                        + "ratio_high of at least 1")
            }
        }
    }
}

/// Picks tokens over a whole batch, for an objective's `selected`.
///
/// The random choice of `clip` is by the hash of seed, id and position, so it does not depend on the order of
/// sequences if the batch has ids; equal covariances go by id and position.
///
/// - Parameters:
///   - selected: written: 1 where a token was picked.
///   - batch: `current` and `advantages`; `trainer` for `clip`; `ids`.
///   - options: the rule.
/// - Throws: `.invalidArgument` for what is missing or out of range; `.nonFinite` naming sequence and position.
/// - Returns: how many were picked.
@discardableResult
public func selectByCovariance(
    into selected: MutableMaskView, of batch: TokenBatch, options: CovarianceOptions
) throws(LockstepError) -> Int {
    try options.check()
    guard selected.rows == batch.layout.rows, selected.columns == batch.layout.columns else {
        throw LockstepError(
            .invalidArgument,
            "selected: shape is [\(selected.rows) x \(selected.columns)] but the batch is "
                + "[\(batch.layout.rows) x \(batch.layout.columns)]; give the same")
    }
    // The scan checks the batch: a term with a ratio is one that needs the trainer.
    let scan = try ObjectiveScan(
        batch, ObjectiveOptions(options.rule == .clip ? .ratio : .reinforce), Execution(threads: 1))
    let tokens = CovarianceTokens(scan.batch)
    let sums = tokens.means(scan)
    guard sums.count > 0 else {
        selected.clear()
        return 0
    }
    let wanted = Swift.max(Int(options.share * Double(sums.count)), 1)
    let random = Philox4x32(seed: options.seed)
    let picked = try CovarianceTokens.largest(wanted, scan) { (sequence, position, id) -> UInt64? in
        guard let token = tokens.token(sequence, position) else { return nil }
        let covariance = (token.advantage - sums.advantage) * (token.current - sums.current)
        if options.rule == .kl { return orderedBits(covariance) }
        let ratio = exponential(token.delta)
        let held =
            (ratio < options.ratioLow && token.advantage < 0)
            || (ratio > options.ratioHigh && token.advantage > 0)
        guard !held, covariance > options.low, covariance < options.high else { return nil }
        let words = random.block(UInt64(position), high: id)
        return UInt64(words[0]) << 32 | UInt64(words[1])
    }
    selected.clear()
    for (sequence, position) in picked {
        selected.address(batch.layout.place(of: sequence, position: position)).pointee = 1
    }
    return picked.count
}

/// An integer in the order of doubles.
private func orderedBits(_ x: Double) -> UInt64 {
    let bits = (x + 0).bitPattern
    return bits >> 63 == 1 ? ~bits : bits | 1 << 63
}

extension MutableMaskView {
    fileprivate func clear() {
        if columns == 0 { return }
        for row in 0..<rows { address(TokenPlace(row: row, column: 0)).update(repeating: 0, count: columns) }
    }
}

/// The tokens of a batch, one by one.
private struct CovarianceTokens {
    let batch: TokenBatch

    init(_ batch: TokenBatch) { self.batch = batch }

    /// A token that counts.
    struct Token {
        let advantage, current, delta: Double
    }

    func token(_ sequence: Int, _ position: Int) -> Token? {
        let place = batch.layout.place(of: sequence, position: position)
        if let mask = batch.layout.mask, mask.address(place).pointee == 0 { return nil }
        func value(_ view: MatrixView) -> Double {
            VectorView(view.address(place), view.format, count: 1).double(0)
        }
        let current = value(batch.current!)
        let advantage =
            switch batch.advantages! {
            case .perToken(let view): value(view)
            case .perSequence(let vector): vector.double(sequence)
            }
        return Token(
            advantage: advantage, current: current, delta: current - (batch.trainer.map(value) ?? current))
    }

    /// The number of tokens that count, and the means of both factors: of exact sums, so in any order.
    func means(_ scan: ObjectiveScan) -> (count: Int, advantage: Double, current: Double) {
        var sums = ExactSums(count: 2)
        var count = 0
        for sequence in 0..<scan.sequences where scan.counts.base[sequence].tokens > 0 {
            for position in 0..<batch.layout.length(of: sequence) {
                guard let token = token(sequence, position) else { continue }
                sums.add(token.advantage, to: 0)
                sums.add(token.current, to: 1)
                count += 1
            }
        }
        let n = Double(Swift.max(count, 1))
        return (count, sums.value(0) / n, sums.value(1) / n)
    }

    /// The tokens with the largest keys, at most `wanted` of them; of equal keys those with the smaller id and
    /// position.
    ///
    /// No key is kept: four passes find the smallest key that is taken, 16 bits at a time.
    static func largest(
        _ wanted: Int, _ scan: ObjectiveScan, key: (Int, Int, UInt64) -> UInt64?
    ) throws(LockstepError) -> [(Int, Int)] {
        func forEach(_ body: (UInt64, Int, Int, UInt64) -> Void) {
            for sequence in 0..<scan.sequences where scan.counts.base[sequence].tokens > 0 {
                let id = scan.batch.ids.map { UInt64(bitPattern: Int64($0[sequence])) } ?? UInt64(sequence)
                for position in 0..<scan.batch.layout.length(of: sequence) {
                    if let key = key(sequence, position, id) { body(key, sequence, position, id) }
                }
            }
        }
        var threshold: UInt64 = 0
        var ties = 0  // keys that are the threshold
        var above = 0  // keys whose taken bits are beyond the threshold's
        for shift in [48, 32, 16, 0] as [UInt64] {
            let counts = try Scratch<Int>(count: 1 << 16, filledWith: 0)
            let bins = counts.base
            forEach { key, _, _, _ in
                if shift == 48 || key >> (shift + 16) == threshold >> (shift + 16) {
                    bins[Int(key >> shift & 0xffff)] += 1
                }
            }
            var bin = counts.count - 1
            while bin > 0, above + bins[bin] < wanted {
                above += bins[bin]
                bin -= 1
            }
            threshold |= UInt64(bin) << shift
            ties = bins[bin]
        }
        // Sorting takes half as much again of the ties.
        try askForMemory(Swift.max(wanted, above) + ties, bytesEach: 16 + 36)
        var taken: [(Int, Int)] = []
        var equal: [(id: UInt64, position: Int, sequence: Int)] = []
        taken.reserveCapacity(Swift.max(wanted, above))
        equal.reserveCapacity(ties)
        forEach { key, sequence, position, id in
            if key > threshold { taken.append((sequence, position)) }
            if key == threshold { equal.append((id, position, sequence)) }
        }
        equal.sort { ($0.id, $0.position) < ($1.id, $1.position) }
        for each in equal.prefix(Swift.max(wanted - taken.count, 0)) {
            taken.append((each.sequence, each.position))
        }
        return taken
    }
}
