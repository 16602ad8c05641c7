/// The sequences with the largest |S| that is not 0; ties go to the smaller id.
struct WorstSequences {
    /// The most sequences that are kept.
    static let limit = 32

    /// The worst first.
    private(set) var sequences: [SampledSequence] = []

    /// Offers a sequence.
    mutating func add(_ sequence: SampledSequence) {
        let size = sequence.mismatch.logRatio.magnitude
        let isFull = sequences.count == WorstSequences.limit
        if size == 0 || isFull && size < sequences[sequences.count - 1].mismatch.logRatio.magnitude { return }
        let place = sequences.firstIndex { sequence.leads($0) } ?? sequences.count
        if place == WorstSequences.limit { return }
        sequences.insert(sequence, at: place)
        if sequences.count > WorstSequences.limit { sequences.removeLast() }
    }

    mutating func merge(_ other: WorstSequences) {
        for sequence in other.sequences { add(sequence) }
    }

    func write(to out: inout ByteWriter) {
        out.append(UInt32(sequences.count))
        for sequence in sequences { sequence.write(to: &out) }
    }

    mutating func read(from body: inout ByteReader) throws(LockstepError) {
        for _ in 0..<(try body.readCount(of: SampledSequence.byteCount)) {
            add(try SampledSequence(from: &body))
        }
    }
}
