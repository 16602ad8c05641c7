import CLockstepKernels

/// A token whose log ratio is among the largest of a log.
public struct WorstToken: Equatable, Sendable {
    /// The identity of its sequence.
    public var id: UInt64
    /// Its index in the sequence.
    public var position: Int
    /// d.
    public var logRatio: Double
    /// ln mu.
    public var rolloutLogProb: Double

    fileprivate func leads(_ other: WorstToken) -> Bool {
        let (size, otherSize) = (logRatio.magnitude, other.logRatio.magnitude)
        if size != otherSize { return size > otherSize }
        return words.lexicographicallyPrecedes(other.words)
    }

    private var words: [UInt64] {
        [id, UInt64(position), logRatio.bitPattern, rolloutLogProb.bitPattern]
    }
}

/// The tokens with the largest |d| that is not 0; ties go to the smaller id, then position.
struct WorstTokens {
    /// The most tokens that are kept.
    static let limit = 32

    /// The worst first.
    private(set) var tokens: [WorstToken] = []

    /// A span whose largest |d| is below this has nothing to offer.
    private var bound: Double {
        tokens.count < WorstTokens.limit
            ? .leastNonzeroMagnitude : tokens[tokens.count - 1].logRatio.magnitude
    }

    /// Offers the tokens of a span whose largest |d| is known.
    @inline(never)
    mutating func add(_ span: lsk_mismatch_span, largest: Double, id: UInt64, start: Int) {
        if largest < bound { return }
        let count = Int(span.count)
        let trainer = VectorView(span.trainer, Format(rawValue: span.trainer_format)!, count: count)
        let rollout = VectorView(span.rollout, Format(rawValue: span.rollout_format)!, count: count)
        for index in 0..<count {
            if let mask = span.mask, mask[index] == 0 { continue }
            let (a, b) = (trainer.double(index), rollout.double(index))
            guard a.isFinite, b.isFinite, (a - b).magnitude >= bound else { continue }
            add(WorstToken(id: id, position: start + index, logRatio: a - b, rolloutLogProb: b))
        }
    }

    private mutating func add(_ token: WorstToken) {
        let place = tokens.firstIndex { token.leads($0) } ?? tokens.count
        if place == WorstTokens.limit { return }
        tokens.insert(token, at: place)
        if tokens.count > WorstTokens.limit { tokens.removeLast() }
    }

    mutating func merge(_ other: WorstTokens) {
        for token in other.tokens { add(token) }
    }

    func write(to out: inout ByteWriter) {
        out.append(UInt32(tokens.count))
        for token in tokens {
            out.append(token.id)
            out.append(token.position)
            out.append(token.logRatio)
            out.append(token.rolloutLogProb)
        }
    }

    mutating func read(from body: inout ByteReader) throws(LockstepError) {
        for _ in 0..<(try body.readCount(of: 32)) {
            let id = try body.read(UInt64.self)
            let position = try body.readTotal()
            add(
                WorstToken(
                    id: id, position: position, logRatio: try body.readDouble(),
                    rolloutLogProb: try body.readDouble()))
        }
    }
}
