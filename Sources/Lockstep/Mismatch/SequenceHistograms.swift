/// What a histogram over sequences counts by.
public enum SequenceQuantity: Int32, CaseIterable, Sendable {
    /// S, the sum of d.
    case logRatio = 0
    /// The mean of d.
    case meanLogRatio = 1
}

/// Sequences of one class of lengths with a value in one bin.
public struct SequenceBin: Equatable, Sendable {
    /// The fewest counted tokens of the class.
    public var minTokens: Int
    /// The most.
    public var maxTokens: Int
    /// The smallest value in the bin.
    public var lower: Double
    /// The smallest value above the bin.
    public var upper: Double
    /// How many sequences there are.
    public var sequences: Int
}

/// Histograms of S and of mean d over sequences, in the bins of `MismatchSketch`, by class of lengths: powers
/// of two of counted tokens, all from 2^23 on in one.
struct SequenceHistograms {
    private static let classes = 24
    /// For each quantity and class: the counts, or nothing before the first sequence.
    private var counts = [[UInt64]](repeating: [], count: 2 * classes)

    /// Adds a sequence.
    mutating func add(tokens: Int, logRatio: Double) {
        let length = min(
            UInt64(tokens).bitWidth - 1 - tokens.leadingZeroBitCount, SequenceHistograms.classes - 1)
        add(1, length, MismatchSketch.bin(of: logRatio))
        add(1, SequenceHistograms.classes + length, MismatchSketch.bin(of: logRatio / Double(tokens)))
    }

    private mutating func add(_ count: UInt64, _ index: Int, _ bin: Int) {
        if counts[index].isEmpty {
            counts[index] = [UInt64](repeating: 0, count: MismatchSketch.usedBins)
        }
        counts[index][bin] &+= count
    }

    mutating func merge(_ other: SequenceHistograms) {
        for index in counts.indices {
            if counts[index].isEmpty {
                counts[index] = other.counts[index]
            } else {
                for bin in other.counts[index].indices { counts[index][bin] &+= other.counts[index][bin] }
            }
        }
    }

    /// The bins with sequences, by length, then value.
    func bins(of quantity: SequenceQuantity) -> [SequenceBin] {
        var bins: [SequenceBin] = []
        for length in 0..<SequenceHistograms.classes {
            let last = length == SequenceHistograms.classes - 1
            let row = counts[Int(quantity.rawValue) * SequenceHistograms.classes + length]
            for (bin, count) in row.enumerated() where count > 0 {
                let (lower, upper) = MismatchSketch.edges(bin)
                bins.append(
                    SequenceBin(
                        minTokens: 1 << length, maxTokens: last ? .max : 2 << length - 1, lower: lower,
                        upper: upper, sequences: Int(count)))
            }
        }
        return bins
    }

    /// Rows that have counts: which, how many, then bin and count of each.
    func write(to out: inout ByteWriter) {
        for row in counts { writeCounts(row, to: &out) }
    }

    mutating func read(from body: inout ByteReader) throws(LockstepError) {
        for index in counts.indices {
            for (bin, count) in try readCounts(from: &body) { add(count, index, bin) }
        }
    }

    /// Whether the classes of each quantity have so many sequences together.
    func isOf(_ sequences: Int) -> Bool {
        let half = SequenceHistograms.classes
        return [counts[..<half], counts[half...]].allSatisfy {
            $0.reduce(0) { $0 &+ $1.reduce(0, &+) } == UInt64(sequences)
        }
    }
}
