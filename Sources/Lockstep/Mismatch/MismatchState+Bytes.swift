import CLockstepKernels

// The bytes of a state, all little-endian:
//
//     "LOCKMACC"                 8 bytes
//     format version             uint32, 1
//     flags                      uint32, bit 0: exact quantiles, bit 1: a summary, without sketch and details
//     size of the whole          uint64
//     the state                  see `write` of each part below
//     CRC-32C of all before      uint32
//
// They are canonical: a sum is written without the zeros at its ends, counts that are 0 are left out, and what
// is kept in no order is sorted. Reading ends with writing again, and bytes that differ are refused.

extension MismatchState {
    /// The first bytes of every saved state.
    private static let magic: [UInt8] = Array("LOCKMACC".utf8)
    private static let formatVersion: UInt32 = 1
    private static let headerSize = 24
    private static let name: StaticString = "accumulator"

    /// The state as bytes: equal states give equal bytes.
    func bytes() -> [UInt8] {
        var out = ByteWriter()
        out.append(raw: MismatchState.magic)
        out.append(MismatchState.formatVersion)
        out.append(UInt32((extent.exactQuantiles ? 1 : 0) | (extent.sketch ? 0 : 2)))
        out.append(UInt64(0))
        moments.write(to: &out)
        if extent.sketch {
            writeCounts(
                UnsafeBufferPointer(start: sketch.counts, count: MismatchSketch.usedBins), to: &out)
        }
        if extent.details { details.write(to: &out) }
        if extent.exactQuantiles {
            out.append(values.count)
            for value in values.elements.sorted() { out.append(value) }
        }
        out.put(UInt64(out.bytes.count + 4), at: 16)
        out.append(out.bytes.withUnsafeBytes { CRC32C.checksum($0) })
        return out.bytes
    }

    /// Restores a state.
    static func restored(from bytes: [UInt8]) throws(LockstepError) -> MismatchState {
        let name = MismatchState.name
        guard bytes.starts(with: MismatchState.magic) else {
            throw LockstepError(
                .badData, "\(name): these \(bytes.count) bytes are not a saved accumulator")
        }
        var header = ByteReader(bytes, 8..<bytes.count, name)
        let version = try header.read(UInt32.self)
        guard version <= MismatchState.formatVersion else {
            throw LockstepError(
                .unsupported,
                "\(name): written by a newer version (format \(version), this library reads "
                    + "\(MismatchState.formatVersion)); load a newer library")
        }
        let flags = try header.read(UInt32.self)
        let size = try header.read(UInt64.self)
        guard size == UInt64(bytes.count), bytes.count >= MismatchState.headerSize + 4 else {
            throw header.damaged("it has \(bytes.count) bytes and should have \(size)")
        }
        var checksum = ByteReader(bytes, bytes.count - 4..<bytes.count, name)
        let found = bytes.withUnsafeBytes {
            CRC32C.checksum(UnsafeRawBufferPointer(rebasing: $0.dropLast(4)))
        }
        guard try checksum.read() == found else {
            throw header.damaged("its checksum is wrong")
        }
        guard version == 1, flags <= 2 else { throw header.damaged("its header is not one") }

        var body = ByteReader(bytes, MismatchState.headerSize..<bytes.count - 4, name)
        var state = MismatchState(
            MismatchExtent(sketch: flags != 2, details: flags != 2, exactQuantiles: flags == 1))
        try state.moments.read(from: &body)
        if state.extent.sketch {
            for (bin, count) in try readCounts(from: &body) { state.sketch.counts[bin] = count }
        }
        if state.extent.details { try state.details.read(from: &body) }
        if state.extent.exactQuantiles {
            let count = try body.readTotal()
            guard count <= body.remaining / 8 else { throw body.damaged("it ends early") }
            try state.values.reserve(count)
            for _ in 0..<count { state.values.push(try body.readDouble()) }
        }
        guard body.remaining == 0, state.isConsistent, state.bytes() == bytes else {
            throw header.damaged("its parts contradict each other")
        }
        return state
    }

    /// Whether the parts can be of one log.
    private var isConsistent: Bool {
        (!extent.sketch || sketch.total == moments.tokens)
            && (!extent.details
                || details.profile.isOf(moments.tokens) && details.histograms.isOf(moments.sequences)
                    && details.evidence.isOf(tokens: moments.tokens, sequences: moments.sequences))
            && moments.maskedSequences <= moments.sequences
            && moments.outsideSequences <= moments.sequences
            && moments.sequences <= moments.tokens
            && (moments.tokens == 0) == (moments.largest == nil)
            && (!extent.exactQuantiles
                || values.count + sketch.zeros == moments.tokens
                    && values.elements.allSatisfy { $0 != 0 && !$0.isNaN })
    }
}

extension MismatchMoments {
    fileprivate func write(to out: inout ByteWriter) {
        for count in [
            tokens, maskedTokens, excludedTokens, sequences, emptySequences, maskedSequences,
            outsideSequences,
            maxSequenceLength,
        ] { out.append(count) }
        if let largest {
            out.append(largest.magnitude)
            out.append(largest.id)
            out.append(largest.position)
            out.append(maxAbsProbDiff)
        }
        sums.write(to: &out)
        weights.write(to: &out)
    }

    fileprivate mutating func read(from body: inout ByteReader) throws(LockstepError) {
        tokens = try body.readTotal()
        maskedTokens = try body.readTotal()
        excludedTokens = try body.readTotal()
        sequences = try body.readTotal()
        emptySequences = try body.readTotal()
        maskedSequences = try body.readTotal()
        outsideSequences = try body.readTotal()
        maxSequenceLength = try body.readTotal()
        if tokens > 0 {
            largest = LargestToken(
                magnitude: try body.readDouble(), id: try body.read(), position: try body.readTotal())
            maxAbsProbDiff = try body.readDouble()
        }
        // Products of two doubles reach 2^-2148 and 2^2048; weights e^(2^21).
        try sums.read(from: &body, places: -68...68)
        try weights.read(from: &body, places: -100_000...100_000)
    }
}

extension MismatchSketch {
    /// The tokens whose d is 0.
    fileprivate var zeros: Int { Int(counts[Int(LSK_MISMATCH_ZERO_BIN)]) }

    /// The counted tokens.
    fileprivate var total: Int { histogram.reduce(0, &+) }
}

extension MismatchDetails {
    fileprivate func write(to out: inout ByteWriter) {
        profile.write(to: &out)
        histograms.write(to: &out)
        sample.write(to: &out)
        worst.write(to: &out)
        worstSequences.write(to: &out)
        evidence.write(to: &out)
    }

    fileprivate mutating func read(from body: inout ByteReader) throws(LockstepError) {
        try profile.read(from: &body)
        try histograms.read(from: &body)
        try sample.read(from: &body)
        try worst.read(from: &body)
        try worstSequences.read(from: &body)
        try evidence.read(from: &body)
    }
}

/// Writes the counts of bins that are not 0: how many, then bin and count of each.
func writeCounts(_ counts: some Collection<UInt64>, to out: inout ByteWriter) {
    let used = counts.enumerated().filter { $0.element > 0 }
    out.append(UInt32(used.count))
    for (bin, count) in used {
        out.append(UInt16(bin))
        out.append(count)
    }
}

/// Reads what `writeCounts` wrote for the bins of the sketch.
func readCounts(from body: inout ByteReader) throws(LockstepError) -> [(bin: Int, count: UInt64)] {
    var counts: [(Int, UInt64)] = []
    for _ in 0..<(try body.readCount(of: 10)) {
        let bin = Int(try body.read(UInt16.self))
        guard bin < MismatchSketch.usedBins else { throw body.damaged("a bin is \(bin)") }
        counts.append((bin, UInt64(try body.readTotal())))
    }
    return counts
}

extension EvidenceSums {
    /// The counts, the octaves that are not 0 (how many, then bin and count of each), the sums.
    fileprivate func write(to out: inout ByteWriter) {
        for count in counts { out.append(count) }
        writeCounts((0..<EvidenceSums.usedBins).map { tokens(inBin: $0) }, to: &out)
        sums.write(to: &out)
    }

    fileprivate mutating func read(from body: inout ByteReader) throws(LockstepError) {
        for index in 0..<EvidenceCount.count { counts[index] = try body.readTotal() }
        for (bin, count) in try readCounts(from: &body) {
            guard bin < EvidenceSums.usedBins else { throw body.damaged("an octave is \(bin)") }
            octaves[bin] = count
        }
        try sums.read(from: &body, places: -68...68)
    }

    /// Whether this can be evidence of a log with so many tokens and sequences.
    fileprivate func isOf(tokens: Int, sequences: Int) -> Bool {
        let rows = (0..<Int(LSK_EVIDENCE_ROWS)).map { total(ofRow: $0) }
        return counts.allSatisfy { $0 <= tokens }
            && self[.sequences] + self[.ahead] + self[.behind] <= sequences
            && self[.plain] == rows.prefix(Int(LSK_EVIDENCE_FIRST_ROW)).reduce(0, +)
            && self[.first] == rows[Int(LSK_EVIDENCE_FIRST_ROW)]
            && self[.last] == rows[Int(LSK_EVIDENCE_LAST_ROW)]
            && self[.up] + self[.equal] <= self[.plain] && self[.sequences] <= self[.plain]
    }
}

extension ExactSums {
    /// Each sum: flags, sign, number of digits and place of the lowest, the digits.
    func write(to out: inout ByteWriter) {
        for index in 0..<count {
            let number = number(index)
            out.append(specials[index])
            out.append(UInt8(number.isNegative ? 1 : 0))
            out.append(UInt32(number.digits.count))
            out.append(Int32(number.place))
            for digit in number.digits { out.append(digit) }
        }
    }

    /// Reads the sums, all of whose digits have these places.
    mutating func read(from body: inout ByteReader, places: ClosedRange<Int>) throws(LockstepError) {
        for index in 0..<count {
            let flags = try body.read(UInt8.self)
            let sign = try body.read(UInt8.self)
            let size = try body.readCount(of: 4)
            let place = Int(try body.read(Int32.self))
            guard flags < 8, sign < 2, size <= body.remaining / 4, places.contains(place),
                places.contains(place + size)
            else { throw body.damaged("a sum is not one") }
            var digits: [UInt32] = []
            digits.reserveCapacity(size)
            for _ in 0..<size { digits.append(try body.read()) }
            merge(ExactNumber(isNegative: sign == 1, place: place, digits: digits), into: index)
            merge(specials: flags, into: index)
        }
    }
}
