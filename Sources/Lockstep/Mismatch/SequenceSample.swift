/// A sequence of a log by its identity, with what a report says of one.
public struct SampledSequence: Equatable, Sendable {
    /// The identity of the sequence.
    public var id: UInt64
    /// Its values.
    public var mismatch: SequenceMismatch

    /// What decides whether a sequence is in the sample: an even mixture of its identity's bits (splitmix64).
    fileprivate var hash: UInt64 {
        var z = id &+ 0x9e37_79b9_7f4a_7c15
        z = (z ^ z >> 30) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ z >> 27) &* 0x94d0_49bb_1331_11eb
        return z ^ z >> 31
    }

    /// All that distinguishes it from others, in the order that decides.
    fileprivate var words: [UInt64] {
        [hash, id, UInt64(mismatch.tokens)]
            + [
                mismatch.logRatio, mismatch.meanAbsLogRatio, mismatch.maxAbsLogRatio, mismatch.meanExpAbs,
                mismatch.k3,
            ].map(\.bitPattern)
    }

    fileprivate func comes(before other: SampledSequence) -> Bool {
        let (one, another) = (hash, other.hash)
        return one != another ? one < another : words.lexicographicallyPrecedes(other.words)
    }
}

/// The sequences whose identities have the smallest hashes: an even sample, the same however the log was cut.
struct SequenceSample {
    /// The most sequences in the sample.
    static let limit = 1024

    /// Up to twice as many, so that it is sorted seldom; those beyond the smallest do not matter.
    private var sequences: [SampledSequence] = []
    /// Sequences with a larger hash cannot be in the sample.
    private var bound = UInt64.max

    /// Offers a sequence to the sample.
    mutating func add(_ sequence: SampledSequence) {
        if sequence.hash > bound { return }
        sequences.append(sequence)
        if sequences.count < 2 * SequenceSample.limit { return }
        sequences = sorted()
        bound = sequences[sequences.count - 1].hash
    }

    mutating func merge(_ other: SequenceSample) {
        for sequence in other.sequences { add(sequence) }
    }

    /// The sample, by hash: its first part is a sample too.
    func sorted() -> [SampledSequence] {
        Array(sequences.sorted { $0.comes(before: $1) }.prefix(SequenceSample.limit))
    }

    func write(to out: inout ByteWriter) {
        let sample = sorted()
        out.append(UInt32(sample.count))
        for sequence in sample {
            out.append(sequence.id)
            out.append(sequence.mismatch.tokens)
            out.append(sequence.mismatch.logRatio)
            out.append(sequence.mismatch.meanAbsLogRatio)
            out.append(sequence.mismatch.maxAbsLogRatio)
            out.append(sequence.mismatch.meanExpAbs)
            out.append(sequence.mismatch.k3)
        }
    }

    mutating func read(from body: inout ByteReader) throws(LockstepError) {
        for _ in 0..<(try body.readCount(of: 56)) {
            let id = try body.read(UInt64.self)
            var mismatch = SequenceMismatch()
            mismatch.tokens = try body.readTotal()
            mismatch.logRatio = try body.readDouble()
            mismatch.meanLogRatio = mismatch.logRatio / Double(max(mismatch.tokens, 1))
            mismatch.meanAbsLogRatio = try body.readDouble()
            mismatch.maxAbsLogRatio = try body.readDouble()
            mismatch.meanExpAbs = try body.readDouble()
            mismatch.k3 = try body.readDouble()
            add(SampledSequence(id: id, mismatch: mismatch))
        }
    }
}
