import CLockstepKernels
import Testing

@testable import Lockstep

/// Log-probs of two policies: noise of every size, exact equality, both ends of the range, a mask with holes
/// (masked-out places are NaN), and packed sequences, some of them empty.
struct MismatchLog {
    var trainer: [Double]
    var rollout: [Double]
    var mask: [UInt8]
    var offsets: [Int64]

    init(seed: UInt64, lengths: [Int]) {
        var random = Random(seed)
        offsets = lengths.reduce(into: [0]) { $0.append($0.last! + Int64($1)) }
        let count = Int(offsets.last!)
        func scaled(_ range: ClosedRange<Double>, _ scales: [Double]) -> Double {
            Double.random(in: range, using: &random) * scales.randomElement(using: &random)!
        }
        rollout = (0..<count).map { _ in scaled(-1...0, [0.01, 1, 8]) }
        trainer = rollout.map { $0 + scaled(-1...1, [0, 1e-9, 1e-3, 0.1, 2]) }
        mask = (0..<count).map { _ in UInt8.random(in: 0...4, using: &random) }
        for index in 0..<count where mask[index] == 0 { trainer[index] = .nan }
    }

    /// The log in the formats, and what it is there.
    func withPair<Result>(
        _ trainerFormat: Format = .fp64, _ rolloutFormat: Format = .fp64, masked: Bool = true,
        _ body: (LogProbPair) throws -> Result
    ) throws -> Result {
        let (a, b) = (MismatchLog.stored(trainer, trainerFormat), MismatchLog.stored(rollout, rolloutFormat))
        return try a.withUnsafeBytes { a in
            try b.withUnsafeBytes { b in
                try mask.withUnsafeBufferPointer { mask in
                    try offsets.withUnsafeBytes { offsets in
                        let count = trainer.count
                        let pair = try LogProbPair(
                            trainer: MatrixView(a.baseAddress, trainerFormat, rows: 1, columns: count),
                            rollout: MatrixView(b.baseAddress, rolloutFormat, rows: 1, columns: count),
                            mask: masked ? MaskView(mask.baseAddress, rows: 1, columns: count) : nil,
                            offsets: TokenView(
                                offsets.baseAddress, byteCount: 8, count: self.offsets.count))
                        return try body(pair)
                    }
                }
            }
        }
    }

    private static func stored(_ values: [Double], _ format: Format) -> [UInt8] {
        format == .fp64 ? values.withUnsafeBytes(Array.init) : Stored(values.map(Float.init), format).bytes
    }
}

/// The bytes of a value: what "the same bits" means.
func bits<Value>(_ value: Value) -> [UInt8] { withUnsafeBytes(of: value, Array.init) }

func bits(_ mismatch: Mismatch) -> [UInt8] {
    // All fields are plain but the quantiles.
    var plain = mismatch
    plain.logRatioQuantiles = []
    return "\(plain)".utf8 + mismatch.logRatioQuantiles.flatMap { bits($0) }
        + Mirror(reflecting: plain).children.flatMap { child in
            (child.value as? Double).map(bits) ?? (child.value as? Estimate).map(bits) ?? []
        }
}

private let lengths = [1, 7, 0, 8, 9, 300, 0, 4095, 4096, 4097, 12_000, 2, 513]

@Suite struct MismatchTests {
    @Test(arguments: instructionSets)
    func kernelsEqualTheReference(_ set: InstructionSet) throws {
        let kernels = try Execution(instructionSet: set).kernels()
        let log = MismatchLog(seed: 1, lengths: lengths)
        let formats: [(Format, Format)] = [
            (.fp64, .fp64), (.fp32, .fp32), (.fp16, .fp16), (.bf16, .bf16), (.fp32, .bf16), (.fp64, .fp16),
        ]
        for (a, b) in formats {
            for masked in [true, false] {
                try log.withPair(a, b, masked: masked) { pair in
                    let scan = try MismatchScan(pair, Execution(threads: 1, instructionSet: set))
                    for span in scan.spans {
                        var view = scan.view(span)
                        var sums = lsk_mismatch_sums()
                        var profile = lsk_mismatch_profile()
                        profile.before = Int64(span.start)
                        kernels.pointee.mismatch_sums!(&sums, nil, &profile, &view)
                        #expect(bits(sums) == bits(ReferenceMismatch.sums(view)), "\(span) \(a) \(b)")
                        let positions = ReferenceMismatch.positions(view, before: span.start)
                        #expect(bits(profile.position) == positions.joined().flatMap { bits($0) })
                        let probabilities = ReferenceMismatch.probabilities(view)
                        #expect(bits(profile.probability) == probabilities.joined().flatMap { bits($0) })
                        #expect(profile.before == Int64(span.start) + sums.tokens)
                    }
                }
            }
        }
    }

    @Test(arguments: instructionSets)
    func termsEqualTheReference(_ set: InstructionSet) throws {
        let kernels = try Execution(instructionSet: set).kernels()
        let log = MismatchLog(seed: 2, lengths: [1000])
        try log.withPair { pair in
            var view = pair.tokens(of: 0, from: 0, count: 1000)
            var logRatio = [Double](repeating: 0, count: 1000)
            var (k3, probability) = (logRatio, logRatio)
            var counted = [UInt8](repeating: 9, count: 1000)
            let refused = kernels.pointee.mismatch_terms!(&logRatio, &k3, &probability, &counted, &view)
            #expect(refused == 0)
            for (index, token) in ReferenceMismatch.tokens(view).enumerated() {
                #expect((counted[index] == 1) == (token != nil))
                guard let token else { continue }
                #expect(logRatio[index] == token.logRatio && k3[index] == token.k3)
                #expect(probability[index] == ReferenceMismatch.exponential(token.rollout))
            }
        }
    }

    /// Threads, instruction sets and formats that hold the same values: the same bits of everything.
    @Test func resultIsAFunctionOfTheLog() throws {
        let log = MismatchLog(seed: 3, lengths: (0..<400).map { $0 * 7 % 1500 } + [200_000])
        let edges = stride(from: -0.25, through: 1.0, by: 0.125).map { $0 }
        let expected = try log.withPair { pair in
            (
                bits(try pair.mismatch(execution: Execution(threads: 1))), try pair.sequenceMismatches(),
                try MismatchAxis.allCases.map { "\(try pair.mismatchProfile(over: $0, edges: edges))" }
            )
        }
        for set in instructionSets {
            for threads in [1, 2, 3, 8] {
                let execution = Execution(threads: threads, instructionSet: set)
                try log.withPair { pair in
                    #expect(bits(try pair.mismatch(execution: execution)) == expected.0)
                    #expect(try pair.sequenceMismatches(execution: execution) == expected.1)
                    let profiles = try MismatchAxis.allCases.map {
                        "\(try pair.mismatchProfile(over: $0, edges: edges, execution: execution))"
                    }
                    #expect(profiles == expected.2)
                }
            }
        }
        // What a 16-bit format holds, it also holds widened.
        var narrow = log
        narrow.trainer = log.trainer.map { Double(Float16($0)) }
        narrow.rollout = log.rollout.map { Double(Float16($0)) }
        let wide = try narrow.withPair { bits(try $0.mismatch()) }
        #expect(try narrow.withPair(.fp16, .fp16) { bits(try $0.mismatch()) } == wide)
        #expect(try narrow.withPair(.fp32, .fp64) { bits(try $0.mismatch()) } == wide)
    }

    @Test func quantilesAreThoseOfASort() throws {
        var random = Random(4)
        let powers = (-300..<300).map { (exponent: Int) in
            Double(sign: exponent % 3 == 0 ? .minus : .plus, exponent: exponent, significand: 1)
        }
        for kind in 0..<6 {
            for count in [1, 2, 3, 10, 999, 1000, 1001, 30_000] {
                var log = MismatchLog(seed: UInt64(count), lengths: [count])
                log.rollout = log.rollout.map { _ in 0 }
                log.trainer = (0..<count).map { index in
                    switch kind {
                    case 0: 0
                    case 1: Double(Int.random(in: -3...3, using: &random)) / 256
                    case 2: Double.random(in: -1e-12...1e-12, using: &random)
                    case 3: powers[index % powers.count]
                    case 4: Double(index % 2 == 0 ? -index : index)
                    default: Double.random(in: -0.1...0.1, using: &random)
                    }
                }
                let sorted = log.trainer.sorted()
                let found = try log.withPair(masked: false) { try $0.mismatch().logRatioQuantiles }
                for (q, value) in zip([0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999], found) {
                    let place = q * Double(count - 1)
                    let (low, high) = (sorted[Int(place)], sorted[min(Int(place) + 1, count - 1)])
                    let expected = low + (high - low) * (place - place.rounded(.down))
                    let slack = 1e-10 * max(low.magnitude, high.magnitude)
                    #expect((value - expected).magnitude <= slack, "kind \(kind), \(count) tokens, \(q)")
                    #expect(value >= low && value <= high)
                }
            }
        }
    }

    /// k3, exp and the gap of the probabilities against 80-bit arithmetic, where there is any.
    @Test func termsAreAccurate() {
        #if arch(x86_64)
            var random = Random(5)
            for round in 0..<200_000 {
                let exponent = Int.random(in: -40...8, using: &random)
                let d = Double(
                    sign: round % 2 == 0 ? .plus : .minus, exponent: exponent,
                    significand: .random(in: 1..<2, using: &random))
                let rollout = -Double.random(in: 0...30, using: &random)
                let token = ReferenceMismatch.Token(trainer: rollout + d, rollout: rollout)
                let x = Float80(token.trainer) - Float80(token.rollout)
                guard x == Float80(token.logRatio), x.magnitude < 700 else { continue }
                let less = expLessOne(x)
                let k3 = x.magnitude > 0.5 ? less - x : seriesFromSquare(x)
                #expect((Float80(token.k3) - k3).magnitude <= 2e-15 * k3)
                #expect((Float80(token.ratio) - exp(x)).magnitude <= 2.5e-16 * exp(x))
                let gap = exp(Float80(rollout)) * less
                #expect((Float80(token.gap) - gap).magnitude <= 6e-16 * gap.magnitude)
            }
        #endif
    }

    #if arch(x86_64)
        /// exp(x) - 1 - x for |x| <= 0.5.
        private func seriesFromSquare(_ x: Float80) -> Float80 {
            var (sum, term): (Float80, Float80) = (0, x * x / 2)
            for k in 3..<26 {
                sum += term
                term *= x / Float80(k)
            }
            return sum
        }

        /// exp(x) = exp(x/2)^2, so exp(x) - 1 = h (h + 2) with h = exp(x/2) - 1.
        private func expLessOne(_ x: Float80) -> Float80 {
            if x.magnitude <= 0.5 { return x + seriesFromSquare(x) }
            let half = expLessOne(x / 2)
            return half * (half + 2)
        }

        private func exp(_ x: Float80) -> Float80 { x < 0 ? 1 / (expLessOne(-x) + 1) : expLessOne(x) + 1 }
    #endif

    @Test func emptyLogs() throws {
        for lengths in [[], [0], [0, 0, 0]] {
            let log = MismatchLog(seed: 6, lengths: lengths)
            try log.withPair { pair in
                let mismatch = try pair.mismatch()
                #expect(mismatch.tokens == 0 && mismatch.sequences == 0)
                #expect(mismatch.emptySequences == lengths.count && mismatch.maxAbsSequence == -1)
                #expect(mismatch.k3.value.isNaN && mismatch.ess.isNaN && mismatch.logRatioQuantiles[4].isNaN)
                #expect(try pair.sequenceMismatches() == lengths.map { _ in SequenceMismatch() })
                let profile = try pair.mismatchProfile(over: .position, edges: [0, 1])
                #expect(profile.count == 1 && profile[0].tokens == 0 && profile[0].k3.isNaN)
            }
        }
        // Any number of sequences without tokens takes no time and no memory.
        let none = MatrixView(nil, .fp32, rows: 1 << 46, columns: 0)
        #expect(try LogProbPair(trainer: none, rollout: none).mismatch().emptySequences == 1 << 46)
    }

    @Test func oneSequenceHasNoStandardError() throws {
        var log = MismatchLog(seed: 7, lengths: [0, 100, 0])
        log.mask = log.mask.map { _ in 1 }
        log.trainer = log.rollout.map { $0 + 0.01 }
        let mismatch = try log.withPair { try $0.mismatch() }
        #expect(mismatch.k3.value > 0 && mismatch.k3.standardError.isNaN)
        #expect(mismatch.slopePer1000.value.isNaN && mismatch.sequenceLogRatioStd.isNaN)
        #expect(mismatch.sequenceESS == 1 && mismatch.shareDiffering.value == 1)
    }

    @Test func identicalPoliciesAreIdentical() throws {
        var log = MismatchLog(seed: 8, lengths: [50, 60, 5000])
        log.trainer = log.rollout
        let mismatch = try log.withPair { try $0.mismatch() }
        #expect(mismatch.pearson == 1 && mismatch.oneMinusPearson == 0)
        #expect(mismatch.k3 == Estimate(value: 0, standardError: 0))
        #expect(mismatch.rmsLogRatio == Estimate(value: 0, standardError: 0))
        #expect(mismatch.meanRatio == Estimate(value: 1, standardError: 0) && mismatch.ess == 1)
        #expect(mismatch.maxAbsLogRatio == 0 && mismatch.logRatioQuantiles.allSatisfy { $0 == 0 })
    }

    /// A difference far beyond exp's range is infinite where exp is, and a number elsewhere.
    @Test func hugeLogRatios() throws {
        var log = MismatchLog(seed: 9, lengths: [3])
        log.rollout = [-1, -2000, -3]
        log.trainer = [-2000, -1, -3]
        let mismatch = try log.withPair(masked: false) { try $0.mismatch() }
        #expect(mismatch.k3.value == .infinity && mismatch.meanRatio.value == .infinity)
        #expect(mismatch.maxAbsLogRatio == 1999 && mismatch.maxAbsPosition == 0)
        #expect((mismatch.maxAbsProbDiff - 0.36787944117144233).magnitude < 1e-16)
        #expect(mismatch.meanAbsLogRatio.value == 2 * 1999 / 3.0)
        let down = try log.withPair(masked: false) { try $0.sequenceMismatches()[0] }
        #expect(down.k3 == .infinity && down.logRatio == 0)
    }

    @Test func nonFiniteValuesAreNamedOrExcluded() throws {
        var log = MismatchLog(seed: 10, lengths: [5, 0, 9000, 4])
        log.mask = log.mask.map { _ in 1 }
        log.trainer = log.rollout
        log.rollout[5 + 8500] = -.infinity
        log.trainer[5 + 8999] = .nan
        try log.withPair { pair in
            for threads in [1, 4] {
                let execution = Execution(threads: threads)
                let calls: [() throws -> Void] = [
                    { _ = try pair.mismatch(execution: execution) },
                    { _ = try pair.sequenceMismatches(execution: execution) as [SequenceMismatch] },
                    { _ = try pair.mismatchProfile(over: .logRatio, edges: [0, 1], execution: execution) },
                ]
                for call in calls {
                    let error = #expect(throws: LockstepError.self) { try call() }
                    #expect(error?.kind == .nonFinite)
                    #expect(error?.message.hasPrefix("rollout_log_probs: sequence 2, position 8500") == true)
                }
            }
            let mismatch = try pair.mismatch(nonFinite: .exclude)
            #expect(mismatch.excludedTokens == 2 && mismatch.maskedTokens == 0 && mismatch.tokens == 9007)
            let profile = try pair.mismatchProfile(over: .logRatio, edges: [-1, 1], nonFinite: .exclude)
            #expect(profile[0].tokens == 9007)
        }
        // Excluded is as good as masked.
        log.mask[5 + 8500] = 0
        log.mask[5 + 8999] = 0
        let masked = try log.withPair { try $0.sequenceMismatches() as [SequenceMismatch] }
        log.mask = log.mask.map { _ in 1 }
        #expect(try log.withPair { try $0.sequenceMismatches(nonFinite: .exclude) } == masked)
    }

    @Test func badOffsetsAreNamed() {
        let values = [Float](repeating: -1, count: 10)
        let cases: [([Int64], String)] = [
            ([], "empty"), ([1, 10], "offsets[0] is 1"), ([-1, 10], "offsets[0] is -1"),
            ([0, 5, 4, 10], "offsets[2] is 4"), ([0, 5], "offsets[1] is 5"), ([0, 11], "offsets[1] is 11"),
            ([0, .max], "offsets[1] is \(Int64.max)"), ([0, .min], "offsets[1] is \(Int64.min)"),
        ]
        for (offsets, text) in cases {
            values.withUnsafeBytes { bytes in
                offsets.withUnsafeBytes { offsets in
                    let view = MatrixView(bytes.baseAddress, .fp32, rows: 1, columns: 10)
                    let error = #expect(throws: LockstepError.self) {
                        try LogProbPair(
                            trainer: view, rollout: view,
                            offsets: TokenView(offsets.baseAddress, byteCount: 8, count: offsets.count / 8))
                    }
                    #expect(error?.message.contains(text) == true, "\(offsets)")
                }
            }
        }
    }
}
