import CLockstepKernels
import Testing

@testable import Lockstep

/// Two columns of log-probs with a mask, one sequence: noise, fills, marks, values above 0, 16-bit values.
private struct Columns {
    var trainer: [Float]
    var rollout: [Float]
    var mask: [UInt8]

    init(seed: UInt64, count: Int) {
        var random = Random(seed)
        rollout = (0..<count).map { _ in
            switch Int.random(in: 0..<12, using: &random) {
            case 0: 0
            case 1: -9999
            case 2: -Float(Float16.random(in: 0...20, using: &random))
            case 3: 0.001
            default:
                -Float.random(in: 0...1, using: &random) * [1e-6, 0.1, 1, 12].randomElement(using: &random)!
            }
        }
        trainer = rollout.map { b in
            b + Float.random(in: -1...1, using: &random) * [0, 1e-4, 0.05, 3].randomElement(using: &random)!
        }
        mask = (0..<count).map { $0 / 37 % 5 == 3 || $0 % 53 == 0 ? 0 : 1 }
        for index in 0..<count where mask[index] == 0 { trainer[index] = .nan }
    }

    func withPair<Result>(_ offsets: [Int64]? = nil, _ body: (LogProbPair) throws -> Result) throws -> Result
    {
        try trainer.withUnsafeBytes { a in
            try rollout.withUnsafeBytes { b in
                try mask.withUnsafeBufferPointer { mask in
                    let count = trainer.count
                    func pair(_ offsets: TokenView?) throws -> LogProbPair {
                        try LogProbPair(
                            trainer: MatrixView(a.baseAddress, .fp32, rows: 1, columns: count),
                            rollout: MatrixView(b.baseAddress, .fp32, rows: 1, columns: count),
                            mask: MaskView(mask.baseAddress, rows: 1, columns: count), offsets: offsets)
                    }
                    guard let offsets else { return try body(pair(nil)) }
                    return try offsets.withUnsafeBytes {
                        try body(pair(TokenView($0.baseAddress, byteCount: 8, count: offsets.count)))
                    }
                }
            }
        }
    }
}

@Suite struct CausesTests {
    @Test(arguments: instructionSets)
    func kernelEqualsTheReference(_ set: InstructionSet) throws {
        let kernels = try Execution(instructionSet: set).kernels()
        for count in [1, 2, 3, 8, 9, 255, 256, 257, 511, 600, 4096] {
            for ends in 0..<4 as Range<Int32> {
                try Columns(seed: UInt64(count), count: count).withPair { pair in
                    var view = pair.tokens(of: 0, from: 0, count: count)
                    var sums = lsk_mismatch_sums()
                    var plain = sums
                    var evidence = lsk_evidence()
                    var counts = [UInt64](repeating: 0, count: EvidenceSums.room)
                    kernels.pointee.mismatch_evidence!(&sums, nil, nil, &evidence, &counts, ends, &view)
                    let expected = ReferenceEvidence.evidence(
                        view, startsSequence: ends & 1 != 0, endsSequence: ends & 2 != 0)
                    #expect(bits(evidence) == bits(expected.sums), "\(count) tokens, ends \(ends)")
                    let octaves = (0..<EvidenceSums.usedBins).map {
                        counts[$0] + counts[EvidenceSums.bins + $0]
                    }
                    #expect(octaves == expected.counts, "\(count) tokens, ends \(ends)")
                    kernels.pointee.mismatch_sums!(&plain, nil, nil, &view)
                    #expect(bits(sums) == bits(plain))
                }
            }
        }
    }

    /// Cut and merged in any way, on any number of threads: the same causes and the same bytes.
    @Test func causesAreAFunctionOfTheLog() throws {
        let offsets: [Int64] = [0, 3, 500, 500, 1700, 9000, 9001, 12_000]
        let columns = Columns(seed: 5, count: 12_000)
        func accumulated(_ order: [Int], threads: Int) throws -> MismatchAccumulator {
            let total = MismatchAccumulator()
            for index in order {
                let (start, end) = (Int(offsets[index]), Int(offsets[index + 1]))
                var part = columns
                part.trainer = Array(columns.trainer[start..<end])
                part.rollout = Array(columns.rollout[start..<end])
                part.mask = Array(columns.mask[start..<end])
                let one = MismatchAccumulator()
                let id = [Int64(index)]
                try part.withPair([0, Int64(end - start)]) { pair in
                    try id.withUnsafeBytes {
                        try one.update(
                            pair, ids: TokenView($0.baseAddress, byteCount: 8, count: 1),
                            execution: Execution(threads: threads))
                    }
                }
                try total.merge(one)
            }
            return total
        }
        let whole = MismatchAccumulator()
        try columns.withPair(offsets) { try whole.update($0, execution: Execution(threads: 3)) }
        for order in [[0, 1, 2, 3, 4, 5, 6], [6, 2, 4, 0, 5, 3, 1]] {
            let merged = try accumulated(order, threads: 1)
            #expect(merged.bytes() == whole.bytes())
            #expect(merged.causes() == whole.causes())
        }
        #expect(try MismatchAccumulator(bytes: whole.bytes()).causes() == whole.causes())
    }

    @Test func everyCauseIsNamedOnceAndRanked() throws {
        let empty = MismatchAccumulator().causes()
        #expect(Set(empty.findings.map(\.cause)) == Set(MismatchCause.allCases))
        #expect(empty.findings.allSatisfy { !$0.isFound && $0.confidence == 0 })
        let accumulator = MismatchAccumulator()
        try Columns(seed: 6, count: 3000).withPair { try accumulator.update($0) }
        let findings = accumulator.causes().findings
        let found = findings.prefix { $0.isFound }
        #expect(found.contains { $0.cause == .ends } && found.contains { $0.cause == .storedIn16Bits })
        #expect(findings.dropFirst(found.count).allSatisfy { !$0.isFound })
        #expect(
            zip(found, found.dropFirst()).allSatisfy { $0.score * $0.confidence >= $1.score * $1.confidence })
        #expect(findings.allSatisfy { (0...1).contains($0.score) && (0...1).contains($0.confidence) })
    }
}
