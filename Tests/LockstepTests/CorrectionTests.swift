import CLockstepKernels
import Testing

@testable import Lockstep

/// Log-probs of three policies and advantages, on noise of every size, with holes whose values are NaN.
struct CorrectionLog {
    var policies: [[Double]]
    var advantages: [Double]
    var mask: [UInt8]
    var lengths: [Int]

    init(seed: UInt64, lengths: [Int]) {
        let log = MismatchLog(seed: seed, lengths: lengths)
        var random = Random(seed + 1)
        self.lengths = lengths
        mask = log.mask
        let current = log.rollout.map { min(0, $0 + Double.random(in: -0.5...0.5, using: &random)) }
        policies = [log.trainer, log.rollout, current]
        advantages = current.map { _ in [-1.5, -0.25, 0, 0.5].randomElement(using: &random)! }
        for index in mask.indices where mask[index] == 0 { advantages[index] = .nan }
        // Both ends of the range: a certain token, and some that are all but impossible.
        for (index, values) in [
            (3, [0, 0, 0]), (5, [-1e-9, 0, -2e-9]), (6, [-60, -1, -30]), (9, [-0.5, -700, -1.0]),
        ]
        where index < mask.count && mask[index] != 0 {
            for policy in 0..<3 { policies[policy][index] = values[policy] }
        }
    }

    /// Offsets of the sequences.
    var offsets: [Int] { lengths.reduce(into: [0]) { $0.append($0.last! + $1) } }

    /// The log with its sequences in another order.
    func reordered(_ order: [Int]) -> CorrectionLog {
        var log = self
        func pick<Element>(_ values: [Element]) -> [Element] {
            order.flatMap { values[offsets[$0]..<offsets[$0 + 1]] }
        }
        log.policies = policies.map(pick)
        log.advantages = pick(advantages)
        log.mask = pick(mask)
        log.lengths = order.map { lengths[$0] }
        return log
    }

    /// The batch, packed or padded: with `before` and `after` masked-out NaN around each sequence.
    func withBatch<Result>(
        _ format: Format = .fp64, padding: (before: Int, after: Int)? = nil,
        _ body: (TokenBatch) throws -> Result
    ) throws -> Result {
        let width = padding.map { $0.before + $0.after + (lengths.max() ?? 0) } ?? 0
        func laidOut<Element>(_ values: [Element], _ fill: Element) -> [Element] {
            guard let padding else { return values }
            return lengths.indices.flatMap { index -> [Element] in
                let here = values[offsets[index]..<offsets[index + 1]]
                let rest = width - padding.before - here.count
                return Array(repeating: fill, count: padding.before) + here
                    + Array(repeating: fill, count: rest)
            }
        }
        let (rows, columns) = padding == nil ? (1, mask.count) : (lengths.count, width)
        let stored = policies.map { Self.stored(laidOut($0, .nan), format) }
        let advantages = Self.stored(laidOut(advantages, .nan), .fp64)
        let bytes = laidOut(mask, 0)
        let starts = offsets.map(Int64.init)
        return try bytes.withUnsafeBufferPointer { bytes in
            try starts.withUnsafeBytes { starts in
                let layout = try SequenceLayout(
                    rows: rows, columns: columns,
                    mask: MaskView(bytes.baseAddress, rows: rows, columns: columns),
                    offsets: padding == nil
                        ? TokenView(starts.baseAddress, byteCount: 8, count: lengths.count + 1) : nil)
                var batch = TokenBatch(layout: layout)
                return try stored[0].withUnsafeBytes { a in
                    try stored[1].withUnsafeBytes { b in
                        try stored[2].withUnsafeBytes { c in
                            try advantages.withUnsafeBytes { d in
                                func view(_ bytes: UnsafeRawBufferPointer, _ format: Format) -> MatrixView {
                                    MatrixView(bytes.baseAddress, format, rows: rows, columns: columns)
                                }
                                batch.trainer = view(a, format)
                                batch.rollout = view(b, format)
                                batch.current = view(c, format)
                                batch.advantages = .perToken(view(d, .fp64))
                                return try body(batch)
                            }
                        }
                    }
                }
            }
        }
    }

    private static func stored(_ values: [Double], _ format: Format) -> [UInt8] {
        format == .fp64 ? values.withUnsafeBytes(Array.init) : Stored(values.map(Float.init), format).bytes
    }
}

/// What a correction gave.
struct Corrected: Equatable {
    var weights: [UInt64]
    var kept: [UInt8]
    var report: [UInt8]
}

func corrected(
    _ batch: TokenBatch, _ options: CorrectionOptions, _ execution: Execution = .init(),
    nonFinite: NonFinitePolicy = .strict
) throws -> (Corrected, CorrectionReport) {
    let count = batch.layout.tokens
    var weights = [Double](repeating: .nan, count: count)
    var kept = [UInt8](repeating: 9, count: count)
    let report = try weights.withUnsafeMutableBytes { weights in
        try kept.withUnsafeMutableBufferPointer { kept in
            try batch.correct(
                weights: MutableMatrixView(
                    weights.baseAddress, .fp64, rows: batch.layout.rows, columns: batch.layout.columns),
                kept: MutableMaskView(
                    kept.baseAddress, rows: batch.layout.rows, columns: batch.layout.columns),
                options: options, nonFinite: nonFinite, execution: execution)
        }
    }
    // NaN statistics print alike, and -0 as such.
    return (
        Corrected(weights: weights.map(\.bitPattern), kept: kept, report: Array("\(report)".utf8)), report
    )
}

private let lengths = [1, 7, 0, 8, 9, 300, 0, 255, 256, 257, 4097, 2, 513]

/// Every statistic at every level, in turn with other policies and sides.
private let everyRejection: [Rejection] = {
    var rules: [Rejection] = []
    for (i, statistic) in Rejection.Statistic.allCases.enumerated() {
        for (j, level) in CorrectionLevel.allCases.enumerated() {
            let high = [1.5, 0.1, 0.1, 1.4, 0.05, 0.05][i] * (level == .sequenceSum ? 20 : 1)
            rules.append(
                Rejection(
                    statistic, level, low: statistic.isNonNegative ? 0.6 * Double(j % 2) : -high,
                    high: max(high, 1),
                    policies: Rejection.Policies.allCases[(i + j) % 3],
                    side: Rejection.Side.allCases[(i + 2 * j) % 3]))
        }
    }
    return rules
}()

/// Options that between them use everything.
private let everyOption: [CorrectionOptions] = {
    var all: [CorrectionOptions] = []
    var rules = everyRejection[...]
    for weights in CorrectionWeights.allCases {
        for level in CorrectionLevel.allCases where level != .sequenceEvery {
            var options = CorrectionOptions(weights: weights, level: level, low: 0.7, high: 1.4)
            options.rejections = Array(rules.prefix(3))
            rules = rules.dropFirst(3)
            if rules.isEmpty { rules = everyRejection[...] }
            options.normalize = all.count % 3 == 1
            options.secondMoment = all.count % 4 == 2 ? 0.3 : 0
            if all.count % 5 == 3 { (options.logRatioMin, options.logRatioMax) = (-.infinity, 0.5) }
            all.append(options)
        }
    }
    return all
}()

extension CorrectionOptions {
    /// The same options where rejections compare the trainer with the rollout, and there is at most one.
    fileprivate var plain: CorrectionOptions {
        var plain = self
        plain.rejections = rejections.dropLast(level == .token ? 3 : 2).map { rejection in
            var rejection = rejection
            (rejection.policies, rejection.side) = (.trainerRollout, .both)
            return rejection
        }
        return plain
    }
}

@Suite struct CorrectionTests {
    @Test(arguments: instructionSets)
    func kernelsEqualTheReference(_ set: InstructionSet) throws {
        let execution = Execution(threads: 1, instructionSet: set)
        let kernels = try execution.kernels()
        let log = CorrectionLog(seed: 1, lengths: lengths)
        // Then again with two policies and no advantages.
        for (index, options) in (everyOption + everyOption.map(\.plain)).enumerated() {
            let format: Format = [.fp64, .fp32, .fp16, .bf16][(index + index / everyOption.count) % 4]
            try log.withBatch(format) { batch in
                let pass = try CorrectionPass(batch, options, execution)
                for sequence in 0..<batch.layout.sequences {
                    // Spans as they are, so that masked tokens stand at their ends too.
                    var span = pass.span(of: sequence, 0..<batch.layout.length(of: sequence))
                    var rule = options.rule()
                    rule.divisor = index % 3 == 1 ? 0.875 : 1
                    rule.second_moment_cut = options.secondMoment > 0 ? 0.01 : .infinity
                    let reference = ReferenceCorrection(
                        span, options, divisor: rule.divisor, secondMomentCut: rule.second_moment_cut)
                    var sums = lsk_correction_sums()
                    var weights = [Double](repeating: .nan, count: Int(span.count))
                    var kept = [UInt8](repeating: 9, count: Int(span.count))
                    kernels.pointee.correct_sequence!(&sums, &weights, LSK_FP64, &kept, &span, &rule)
                    #expect(kept == reference.kept, "\(options), sequence \(sequence)")
                    #expect(weights.map(\.bitPattern) == reference.weights.map(\.bitPattern), "\(options)")
                    #expect(bits(sums) == bits(reference.sums), "\(options), sequence \(sequence)")
                    var floats = [Float](repeating: .nan, count: Int(span.count))
                    kernels.pointee.correct_sequence!(&sums, &floats, LSK_FP32, nil, &span, &rule)
                    #expect(floats == reference.weights.map { Float($0) })
                }
            }
        }
    }

    /// Threads, instruction sets, padding, and the order of sequences.
    @Test func resultIsAFunctionOfTheSequences() throws {
        let lengths = (0..<300).map { $0 * 7 % 900 } + [150_000]
        let log = CorrectionLog(seed: 3, lengths: lengths)
        var order = Array(lengths.indices)
        var random = Random(5)
        order.shuffle(using: &random)
        let reordered = log.reordered(order)
        for options in everyOption[..<13] {
            let (expected, _) = try log.withBatch { try corrected($0, options, Execution(threads: 1)) }
            for set in instructionSets {
                let execution = Execution(threads: 3, instructionSet: set)
                #expect(try log.withBatch { try corrected($0, options, execution).0 } == expected)
            }
            let other = try reordered.withBatch { try corrected($0, options).0 }
            #expect(other.report == expected.report, "\(options)")
            let starts = reordered.offsets
            for (place, index) in order.enumerated() where place % 17 == 0 {
                let here = log.offsets[index]..<log.offsets[index + 1]
                #expect(expected.weights[here] == other.weights[starts[place]..<starts[place + 1]])
                #expect(expected.kept[here] == other.kept[starts[place]..<starts[place + 1]])
            }
        }
    }

    @Test func paddingDoesNotShow() throws {
        let log = CorrectionLog(seed: 4, lengths: lengths)
        for options in everyOption {
            let (expected, report) = try log.withBatch { try corrected($0, options) }
            for padding in [(0, 0), (1, 0), (5, 13)] {
                let (padded, other) = try log.withBatch(padding: padding) { try corrected($0, options) }
                var (plain, masked) = (report, other)
                (plain.maskedTokens, masked.maskedTokens) = (0, 0)
                #expect("\(plain)" == "\(masked)", "\(options), \(padding)")
                let width = padding.0 + padding.1 + lengths.max()!
                for index in lengths.indices {
                    let row = index * width..<(index + 1) * width
                    let inner = row.lowerBound + padding.0..<row.lowerBound + padding.0 + lengths[index]
                    let here = log.offsets[index]..<log.offsets[index + 1]
                    #expect(padded.weights[inner] == expected.weights[here])
                    #expect(padded.kept[inner] == expected.kept[here])
                    // Padding has weight 0 and is not kept.
                    for place in row where !inner.contains(place) {
                        #expect(padded.weights[place] == 0 && padded.kept[place] == 0)
                    }
                }
            }
        }
    }

    /// A value that is not finite, excluded, leaves what masking the token out leaves.
    @Test func excludedIsMasked() throws {
        var log = CorrectionLog(seed: 6, lengths: [40, 3, 500])
        log.mask = log.mask.map { _ in 1 }
        log = CorrectionLog(seed: 6, lengths: [40, 3, 500], clean: log)
        var masked = log
        for (index, policy) in [(2, 0), (39, 1), (41, 2), (300, 0), (301, 1)] {
            log.policies[policy][index] = [.nan, -.infinity, .infinity][index % 3]
            masked.mask[index] = 0
        }
        log.advantages[77] = .infinity
        masked.mask[77] = 0
        var options = everyOption[2]
        options.rejections = [
            Rejection(.k3, .segmentMean, high: 0.2, policies: .currentTrainer, side: .byAdvantage),
            Rejection(.ratio, .segmentSum, low: 0.5, high: 2),
        ]
        let (found, report) = try log.withBatch { try corrected($0, options, nonFinite: .exclude) }
        let (expected, other) = try masked.withBatch { try corrected($0, options) }
        #expect(found.weights == expected.weights && found.kept == expected.kept)
        #expect(report.excludedTokens == 6 && other.maskedTokens == 6)
        #expect(report.keptWeight == other.keptWeight && report.rejections == other.rejections)
        do {
            _ = try log.withBatch { try corrected($0, options) }
            Issue.record("a NaN was let pass")
        } catch let error as LockstepError {
            #expect(error.kind == .nonFinite)
            #expect(error.message.contains("sequence 0, position 2"), "\(error)")
        }
    }

    /// What is missing or does not fit is named, and nothing is written.
    @Test func badInputIsNamed() throws {
        let log = CorrectionLog(seed: 9, lengths: [4, 3])
        func refusal(_ options: CorrectionOptions, _ change: (inout TokenBatch) -> Void = { _ in }) throws
            -> String
        {
            try log.withBatch { batch in
                var batch = batch
                change(&batch)
                var weights = [Float](repeating: 7, count: 7)
                var message = ""
                do {
                    _ = try weights.withUnsafeMutableBytes {
                        try batch.correct(
                            weights: MutableMatrixView($0.baseAddress, .fp32, rows: 1, columns: 7),
                            options: options)
                    }
                } catch let error as LockstepError {
                    #expect(error.kind == .invalidArgument)
                    message = error.message
                }
                #expect(weights == Array(repeating: 7, count: 7))
                return message
            }
        }
        let sided = CorrectionOptions(rejections: [
            Rejection(), Rejection(.ratio, low: 0.5, policies: .currentTrainer, side: .byAdvantage),
        ])
        #expect(try refusal(.init()) { $0.trainer = nil }.hasPrefix("trainer_log_probs: is missing"))
        #expect(try refusal(.init()) { $0.rollout = nil }.hasPrefix("rollout_log_probs: is missing"))
        #expect(
            try refusal(sided) { $0.current = nil }.contains("current_log_probs: is missing; rejections[1]"))
        #expect(try refusal(sided) { $0.advantages = nil }.contains("advantages: is missing"))
        #expect(try refusal(.init(low: 3)).contains("low is 3.0 and high is 2.0"))
        #expect(try refusal(.init(weights: .raw, level: .sequenceEvery)).contains("sequenceEvery"))
        #expect(
            try refusal(.init(rejections: [Rejection(.k3, low: 2, high: 1)])).contains(
                "rejections[0]: low = 2.0"))
        let small = MatrixView(UnsafeRawPointer(bitPattern: 64), .fp32, rows: 1, columns: 6)
        #expect(try refusal(.init()) { $0.rollout = small }.contains("rollout_log_probs: shape is [1 x 6]"))
        #expect(throws: LockstepError.self) {
            try Lockstep.correct(trainer: [[Float(-1)]], rollout: [[Float(-1), -2]])
        }
    }

    /// The most of the smallest d^2 whose mean is below the bound, by brute force; ties go together.
    @Test func secondMomentIsTheLargestMean() throws {
        var random = Random(7)
        for round in 0..<200 {
            let count = Int.random(in: 1...40, using: &random)
            let steps = [1, 3, 8, 1000][round % 4]  // few steps: many ties
            let d = (0..<count).map { _ in
                Double(Int.random(in: -steps...steps, using: &random)) / Double(steps)
            }
            let bound = [0.01, 0.09, 0.3, 2][round / 4 % 4]
            var options = CorrectionOptions(weights: .one)
            options.secondMoment = bound
            let found = try Lockstep.correct(
                trainer: [d], rollout: [d.map { _ in 0 }], options: options)
            let squares = d.map { $0 * $0 }.sorted()
            let best = (0...count).last { kept in
                let ties = kept > 0 && kept < count && squares[kept - 1] == squares[kept]
                return !ties && (kept == 0 || squares[..<kept].reduce(0, +) / Double(kept) < bound)
            }!
            #expect(found.kept[0].count { $0 } == best, "\(squares) below \(bound)")
            #expect(found.report.secondMomentTokens == count - best)
            for (d, kept) in zip(d, found.kept[0]) {
                #expect(kept == (d * d <= found.report.secondMomentCut))
            }
            #expect(found.report.isEmpty == (best == 0))
        }
    }

    /// Against the textbook form, in 80 bits where there are any; both are relative to the value.
    @Test func binaryKLIsAccurate() {
        #if arch(x86_64)
            var random = Random(8)
            for round in 0..<100_000 {
                let b = -Double.random(in: 0...1, using: &random) * [1e-6, 0.01, 1, 30][round % 4]
                let a = min(
                    -0x1p-60, b + Double.random(in: -1...1, using: &random) * [1e-4, 0.1, 3][round % 3])
                guard b < -0x1p-60 else { continue }
                let (p, q) = (-lessOne(Float80(a)), -lessOne(Float80(b)))  // of all other tokens
                let parts = (expOf(Float80(b)) * (Float80(b) - Float80(a)), q * (logOf(q) - logOf(p)))
                let exact = parts.0 + parts.1
                let found = Float80(ReferenceCorrection.binaryKL(a, b).magnitude)
                // The textbook form cancels: it has the errors of its logarithms, each to 64 bits.
                let logs = 2 + logOf(q).magnitude + logOf(p).magnitude
                let slack = 1e-13 * exact + 0x1p-62 * (parts.0.magnitude + q * logs)
                #expect((found - exact).magnitude <= slack, "\(a) \(b): \(found) \(exact)")
            }
        #endif
        // The ends: q = 1, p = 1, equal.
        #expect(ReferenceCorrection.binaryKL(-0.5, 0) == -0.5)
        #expect(ReferenceCorrection.binaryKL(0, -0.5) == .infinity)
        #expect(ReferenceCorrection.binaryKL(-0.3, -0.3) == 0)
        #expect(ReferenceCorrection.binaryKL(0, 0) == 0)
    }
}

extension CorrectionLog {
    /// The log of a seed without NaN, whatever its mask was.
    init(seed: UInt64, lengths: [Int], clean log: CorrectionLog) {
        self = log
        var random = Random(seed + 2)
        for index in mask.indices where !policies[0][index].isFinite {
            policies[0][index] = policies[1][index] + Double.random(in: -0.1...0.1, using: &random)
            advantages[index] = 0.5
        }
    }
}

#if arch(x86_64)
    import Glibc

    private func expOf(_ x: Float80) -> Float80 { expl(x) }
    private func lessOne(_ x: Float80) -> Float80 { expm1l(x) }
    private func logOf(_ x: Float80) -> Float80 { logl(x) }
#endif
