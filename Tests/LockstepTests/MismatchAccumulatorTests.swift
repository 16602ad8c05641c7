import CLockstepKernels
import Testing

@testable import Lockstep

/// A packed log of some sequences of another.
private func part(_ log: MismatchLog, _ sequences: [Int]) -> MismatchLog {
    var some = log
    (some.trainer, some.rollout, some.mask, some.offsets) = ([], [], [], [0])
    for sequence in sequences {
        let range = Int(log.offsets[sequence])..<Int(log.offsets[sequence + 1])
        some.trainer += log.trainer[range]
        some.rollout += log.rollout[range]
        some.mask += log.mask[range]
        some.offsets.append(Int64(some.trainer.count))
    }
    return some
}

private func add(
    _ log: MismatchLog, _ ids: [Int], to accumulator: MismatchAccumulator,
    _ execution: Execution = Execution()
) throws {
    try ids.map { Int64($0) }.withUnsafeBytes { bytes in
        try log.withPair { pair in
            try accumulator.update(
                pair, ids: TokenView(bytes.baseAddress, byteCount: 8, count: ids.count), execution: execution)
        }
    }
}

private let lengths = (0..<120).map { $0 * 37 % 700 } + [9000, 1, 0]

@Suite struct MismatchAccumulatorTests {
    @Test func equalsTheMeasureOfTheWhole() throws {
        let log = MismatchLog(seed: 1, lengths: lengths)
        let whole = try log.withPair { try $0.mismatch() }
        for exact in [true, false] {
            let accumulator = MismatchAccumulator(exactQuantiles: exact)
            try log.withPair { try accumulator.update($0) }
            var report = accumulator.mismatch()
            if !exact { report.logRatioQuantiles = whole.logRatioQuantiles }
            #expect(bits(report) == bits(whole))
        }
    }

    /// Random cuts between sequences, merged in random trees: the same bytes and the same report.
    @Test func cutsAndMergesDoNotShow() throws {
        var random = Random(2)
        let log = MismatchLog(seed: 2, lengths: lengths)
        let all = MismatchAccumulator(exactQuantiles: true)
        try add(log, Array(lengths.indices), to: all)
        let report = bits(all.mismatch())
        for round in 0..<25 {
            let order = lengths.indices.shuffled(using: &random)
            var parts: [MismatchAccumulator] = []
            var start = 0
            while start < order.count {
                let end = min(start + Int.random(in: 1...60, using: &random), order.count)
                let one = MismatchAccumulator(exactQuantiles: true)
                let ids = Array(order[start..<end])
                let execution = Execution(
                    threads: round % 3 + 1, instructionSet: instructionSets.randomElement(using: &random)!)
                try add(part(log, ids), ids, to: one, execution)
                parts.append(round % 2 == 0 ? one : try MismatchAccumulator(bytes: one.bytes()))
                start = end
            }
            while parts.count > 1 {
                let one = parts.remove(at: Int.random(in: 0..<parts.count, using: &random))
                try parts.randomElement(using: &random)!.merge(one)
            }
            #expect(parts[0].bytes() == all.bytes())
            #expect(bits(parts[0].mismatch()) == report)
        }
    }

    @Test func mergingWithItselfCountsTwice() throws {
        let log = MismatchLog(seed: 3, lengths: [10, 20, 500])
        let (once, twice) = (MismatchAccumulator(), MismatchAccumulator())
        try add(log, [0, 1, 2], to: once)
        for _ in 0..<2 { try add(log, [0, 1, 2], to: twice) }
        try once.merge(once)
        #expect(once.bytes() == twice.bytes())
    }

    /// Counts that would overflow are refused long before they do.
    @Test func countsHaveABound() throws {
        let none = MatrixView(nil, .fp32, rows: 1 << 47, columns: 0)
        let accumulator = MismatchAccumulator()
        try accumulator.update(LogProbPair(trainer: none, rollout: none))
        try accumulator.merge(accumulator)
        #expect(accumulator.mismatch().emptySequences == 1 << 48)
        #expect(try MismatchAccumulator(bytes: accumulator.bytes()).mismatch().emptySequences == 1 << 48)
        let error = #expect(throws: LockstepError.self) { try accumulator.merge(accumulator) }
        #expect(error?.message.contains("2^48 are the most") == true)
        #expect(throws: LockstepError.self) {
            try accumulator.update(LogProbPair(trainer: none, rollout: none))
        }
    }

    @Test func anErrorAddsNothing() throws {
        var log = MismatchLog(seed: 4, lengths: [300, 400, 10])
        let accumulator = MismatchAccumulator()
        try add(log, [5, 6, 7], to: accumulator)
        let bytes = accumulator.bytes()
        log.mask = log.mask.map { _ in 1 }
        log.trainer = log.rollout
        log.trainer[705] = .nan
        let error = #expect(throws: LockstepError.self) { try add(log, [1, 2, 3], to: accumulator) }
        #expect(error?.message.contains("sequence 2, position 5") == true)
        #expect(throws: LockstepError.self) { try add(log, [1, 2], to: accumulator) }
        #expect(throws: LockstepError.self) {
            try accumulator.merge(.summary())
        }
        #expect(throws: LockstepError.self) {
            try MismatchAccumulator(exactQuantiles: true).merge(accumulator)
        }
        #expect(accumulator.bytes() == bytes)
    }

    /// The bound that the header states: within 2^-8 of its |d| for 2^-24 <= |d| < 2^8, within 2^-24 below.
    @Test func sketchedQuantilesKeepTheirBound() throws {
        var random = Random(5)
        for round in 0..<40 {
            let count = Int.random(in: 1...3000, using: &random)
            var log = MismatchLog(seed: 6, lengths: [count])
            log.rollout = log.rollout.map { _ in 0 }
            log.trainer = (0..<count).map { _ in
                let exponent = Int.random(in: -28...(round % 2 == 0 ? -2 : 7), using: &random)
                return Double(
                    sign: Int.random(in: 0...9, using: &random) < round % 10 ? .minus : .plus,
                    exponent: exponent, significand: .random(in: 1..<2, using: &random))
            }
            log.mask = log.mask.map { _ in 1 }
            let sorted = log.trainer.sorted()
            let accumulator = MismatchAccumulator()
            try add(log, [0], to: accumulator)
            for (q, value) in zip(MismatchQuantiles.thousandths, accumulator.mismatch().logRatioQuantiles) {
                let rank = (count - 1) * q / 1000
                let (low, high) = (sorted[rank], sorted[min(rank + 1, count - 1)])
                func slack(_ x: Double) -> Double { max(x.magnitude * 0x1p-8, 0x1p-24) }
                let weight = Double((count - 1) * q % 1000) / 1000
                let expected = low + (high - low) * weight
                let bound = slack(low) * (1 - weight) + slack(high) * weight
                #expect((value - expected).magnitude <= bound * (1 + 1e-12), "\(count) \(q)")
            }
        }
    }

    /// The bins of Swift, and their edges, are those of the kernels.
    @Test(arguments: instructionSets)
    func binsAreTheKernels(_ set: InstructionSet) throws {
        var values: [Double] = [0, 0x1p-24, 0x1p8, -0x1p8, 1e300, -1e-300, 5e-324, 0x1.fffffffffffffp7]
        for bin in stride(from: 0, to: MismatchSketch.usedBins, by: 7) {
            let (lower, upper) = MismatchSketch.edges(bin)
            values += [lower, upper, upper.nextDown].filter { $0.isFinite }
        }
        for value in values {
            let (lower, upper) = MismatchSketch.edges(MismatchSketch.bin(of: value))
            #expect(lower <= value && value < upper)
        }
        var log = MismatchLog(seed: 7, lengths: [values.count])
        (log.trainer, log.rollout) = (values, values.map { _ in 0 })
        try log.withPair(masked: false) { pair in
            var counts = [UInt64](repeating: 0, count: MismatchSketch.bins)
            var sums = lsk_mismatch_sums()
            let kernels = try Execution(instructionSet: set).kernels()
            var view = pair.tokens(of: 0, from: 0, count: values.count)
            kernels.pointee.mismatch_sums!(&sums, &counts, nil, &view)
            for value in values { counts[MismatchSketch.bin(of: value)] -= 1 }
            #expect(counts.dropLast().allSatisfy { $0 == 0 })
        }
    }

    /// The fixed buckets hold what a profile with the same edges holds.
    @Test func profilesAreThoseOfTheLog() throws {
        let log = MismatchLog(seed: 8, lengths: lengths)
        let accumulator = MismatchAccumulator()
        try add(log, Array(lengths.indices), to: accumulator)
        for axis in [MismatchAxis.position, .probability] {
            let buckets = accumulator.profile(over: axis)
            let edges = buckets.map(\.lower) + [.infinity]
            let direct = try log.withPair { try $0.mismatchProfile(over: axis, edges: edges) }
            for (one, other) in zip(buckets, direct) {
                #expect(one.lower == other.lower && one.upper == other.upper && one.tokens == other.tokens)
                if one.tokens == 0 { continue }
                for field in [\MismatchBucket.meanLogRatio, \.meanAbsLogRatio, \.k3] {
                    let slack = 1e-13 * one.meanAbsLogRatio + 1e-12 * one.k3
                    #expect((one[keyPath: field] - other[keyPath: field]).magnitude <= slack)
                }
            }
            #expect(buckets.reduce(0) { $0 + $1.tokens } == accumulator.mismatch().tokens)
        }
        let histogram = accumulator.profile(over: .logRatio)
        #expect(histogram.reduce(0) { $0 + $1.tokens } == accumulator.mismatch().tokens)
    }

    @Test func sampleWorstAndHistogramsAreThoseOfTheLog() throws {
        let lengths = (0..<3000).map { $0 % 13 }
        var log = MismatchLog(seed: 9, lengths: lengths)
        log.mask = log.mask.map { _ in 1 }
        log.trainer = log.rollout.enumerated().map { $1 + Double($0 % 101) / 1024 }
        let accumulator = MismatchAccumulator()
        try add(log, lengths.indices.map { $0 * 3 }, to: accumulator)
        let sequences = try log.withPair { try $0.sequenceMismatches() }

        let sample = accumulator.sampledSequences
        #expect(sample.count == 1024 && Set(sample.map(\.id)).count == 1024)
        for one in sample { #expect(one.mismatch == sequences[Int(one.id) / 3]) }
        // An even sample: of ids in order, about half come from the first half.
        let early = sample.count { $0.id < 4500 }
        #expect((400...624).contains(early))

        var tokens: [WorstToken] = []
        for sequence in lengths.indices {
            for position in 0..<lengths[sequence] {
                let at = Int(log.offsets[sequence]) + position
                tokens.append(
                    WorstToken(
                        id: UInt64(sequence * 3), position: position,
                        logRatio: log.trainer[at] - log.rollout[at], rolloutLogProb: log.rollout[at]))
            }
        }
        tokens.sort {
            ($1.logRatio.magnitude, $0.id, $0.position) < ($0.logRatio.magnitude, $1.id, $1.position)
        }
        #expect(accumulator.worstTokens == Array(tokens.prefix(32)))

        for quantity in SequenceQuantity.allCases {
            var expected = sequences.filter { $0.tokens > 0 }
            for bin in accumulator.histogram(of: quantity) {
                let inside = expected.count { one in
                    let value = quantity == .logRatio ? one.logRatio : one.meanLogRatio
                    return bin.lower <= value && value < bin.upper
                        && bin.minTokens <= one.tokens && one.tokens <= bin.maxTokens
                }
                #expect(inside == bin.sequences)
                expected.removeAll { one in
                    let value = quantity == .logRatio ? one.logRatio : one.meanLogRatio
                    return bin.lower <= value && value < bin.upper
                        && bin.minTokens <= one.tokens && one.tokens <= bin.maxTokens
                }
            }
            #expect(expected.isEmpty)
        }
    }

    /// Sequence weights of any size: the effective sample size is that of the largest ones.
    @Test func weightsOfAnySize() throws {
        var log = MismatchLog(seed: 10, lengths: [1, 1, 1, 1])
        log.mask = [1, 1, 1, 1]
        log.rollout = [-5, -6, -7, -8]
        for (shift, expected) in [(0.0, 1.0), (3000, 1), (-40_000, 1), (900_000, 1)] {
            log.trainer = log.rollout.map { $0 + shift }
            #expect(try log.withPair { try $0.mismatch().sequenceESS } == expected)
        }
        log.trainer = [5000, -6, -20_000, 5000]
        log.rollout = [0, 0, 0, 0]
        #expect(try log.withPair { try $0.mismatch().sequenceESS } == 0.5)
        log.trainer = [1.7e308, -1.7e308, 0, 0]
        log.rollout = [-1.7e308, 1.7e308, 0, 0]
        #expect(try log.withPair { try $0.mismatch().meanLogRatio.value.isNaN })
    }

    /// Any change of any byte, any cut, any addition: an error.
    @Test func damagedBytesAreRefused() throws {
        let log = MismatchLog(seed: 11, lengths: [3, 40])
        let accumulator = MismatchAccumulator(exactQuantiles: true)
        try add(log, [1, 2], to: accumulator)
        let bytes = accumulator.bytes()
        #expect(try MismatchAccumulator(bytes: bytes).bytes() == bytes)
        for index in bytes.indices {
            var damaged = bytes
            damaged[index] ^= 1 << (index % 8)
            #expect(throws: LockstepError.self) { try MismatchAccumulator(bytes: damaged) }
        }
        for count in bytes.indices {
            #expect(throws: LockstepError.self) { try MismatchAccumulator(bytes: Array(bytes[..<count])) }
        }
        #expect(throws: LockstepError.self) { try MismatchAccumulator(bytes: bytes + [0]) }
        var newer = bytes
        newer[8] = 2
        let error = #expect(throws: LockstepError.self) { try MismatchAccumulator(bytes: newer) }
        #expect(
            error?.message.contains("written by a newer version (format 2, this library reads 1)") == true)
    }

    /// Hostile bytes with a correct checksum: refused, or an accumulator whose bytes they are, which can be used.
    @Test func forgedBytesAreRefusedOrMeantSo() throws {
        var random = Random(12)
        let log = MismatchLog(seed: 12, lengths: [3, 40])
        let accumulator = MismatchAccumulator(exactQuantiles: true)
        try add(log, [1, 2], to: accumulator)
        let bytes = accumulator.bytes()
        var loaded = 0
        for round in 0..<4000 {
            var forged = Array(bytes.dropLast(4))
            for _ in 0...(round % 3) {
                let place = Int.random(in: 24..<forged.count, using: &random)
                switch round % 4 {
                case 0: forged[place] = UInt8.random(in: 0...255, using: &random)
                case 1: forged[place] = 0xff
                case 2: for index in place..<min(place + 8, forged.count) { forged[index] = 0xff }
                default:
                    for index in place..<min(place + 8, forged.count) {
                        forged[index] = UInt8(index % 2) << 6
                    }
                }
            }
            let checksum = forged.withUnsafeBytes { CRC32C.checksum($0) }
            withUnsafeBytes(of: checksum.littleEndian) { forged += $0 }
            guard let found = try? MismatchAccumulator(bytes: forged) else { continue }
            loaded += 1
            #expect(found.bytes() == forged)
            _ = found.mismatch()
            // Forged counts may be too large to be added to; nothing else is an error.
            for other in [accumulator, found] {
                do { try found.merge(other) } catch { #expect(error.message.contains("2^48 are the most")) }
            }
            _ = found.mismatch()
            _ = found.bytes()
        }
        #expect(loaded > 0, "some changes, such as of a sum's digit, are of a possible log")
    }

    /// A state's bytes, and so its memory, do not grow with the number of tokens.
    @Test func memoryIsConstant() throws {
        var sizes: [Int] = []
        for count in [40, 400, 4000] {
            let accumulator = MismatchAccumulator()
            let log = MismatchLog(seed: 13, lengths: [Int](repeating: 250, count: 40))
            for round in 0..<count / 40 {
                try add(log, (0..<40).map { $0 + round * 40 }, to: accumulator)
            }
            sizes.append(accumulator.bytes().count)
        }
        #expect(sizes[2] < 500_000 && sizes[2] < sizes[1] + 100_000)

        // The most there can be: weights at both ends of their range, and values of every size and length.
        let accumulator = MismatchAccumulator()
        for exponent in stride(from: -40, through: 20, by: 1) {
            var log = MismatchLog(seed: 14, lengths: (0..<12).map { 1 << $0 })
            log.rollout = log.rollout.map { _ in 0 }
            log.trainer = log.rollout.indices.map {
                Double(sign: $0 % 2 == 0 ? .plus : .minus, exponent: exponent, significand: 1)
            }
            log.mask = log.mask.map { _ in 1 }
            try add(log, Array(0..<12), to: accumulator)
        }
        #expect(accumulator.bytes().count < 2_000_000)
    }
}
