import Foundation
import Testing

@testable import Lockstep

/// The same bits everywhere, from Swift: every subject of Tests/Vectors/agreement.txt, on every instruction set this
/// machine has and on 1, 2 and 4 threads.
///
/// Tests/C/agreement_test.c and test_agreement.py compute the same from the other languages. Where
/// `LOCKSTEP_AGREEMENT` names a file, the digests are written to it: SET THREADS SUBJECT DIGEST.
@Suite struct AgreementTests {
    static let root = ModelTests.folder.split(separator: "/").dropLast(3).reduce("") { "\($0)/\($1)" }
    static let model = root + "/examples/data/chain-sft"
    static let (sequences, prompt, response) = (12, 3, 32)
    static let length = prompt + response
    static let (rollouts, tokensEach) = (40, 500)
    static let log = rollouts * tokensEach

    /// 32 random bits, the same in every language.
    static func bits(_ i: Int) -> UInt32 {
        var x = UInt32(i) &* 2_654_435_761
        x = (x ^ x >> 15) &* 2_246_822_519
        return x ^ x >> 13
    }

    /// Some values in [-0.5, 0.5).
    static func values(_ count: Int, from first: Int = 0) -> [Float] {
        (0..<count).map { Float(bits(first + $0) >> 8) * 0x1p-24 - 0.5 }
    }

    /// CRC-32 of arrays, one after another.
    struct Digest {
        static let table = (0..<256).map {
            (0..<8).reduce(UInt32($0)) { sum, _ in sum >> 1 ^ (sum & 1) * 0xedb8_8320 }
        }
        var value: UInt32 = 0

        mutating func add<Element: BitwiseCopyable>(_ array: [Element]) {
            Self.table.withUnsafeBufferPointer { table in
                array.withUnsafeBytes { bytes in
                    var sum = ~value
                    for byte in bytes { sum = sum >> 8 ^ table[Int((sum ^ UInt32(byte)) & 255)] }
                    value = ~sum
                }
            }
        }
    }

    static func digest<each Array: Sequence>(_ arrays: repeat each Array) -> UInt32
    where repeat (each Array).Element: BitwiseCopyable {
        var digest = Digest()
        repeat digest.add(Swift.Array(each arrays))
        return digest.value
    }

    /// What is computed on some threads of an instruction set.
    struct Subjects {
        let execution: Execution
        var found: [(subject: String, digest: UInt32)] = []

        mutating func note(_ subject: String, _ digest: UInt32) { found.append((subject, digest)) }

        mutating func convert<To: StorageFormat>(_ name: String, _: To.Type) throws {
            let patterns = (0..<70_000).map { Float(bitPattern: bits($0)) }
            var digest = Digest()
            for rounding in [Rounding.nearestEven, .towardZero, .stochastic(seed: 7)] {
                let narrow = try Lockstep.convert(
                    patterns, to: To.self, rounding: rounding, execution: execution
                )
                .values
                digest.add(narrow)
                digest.add(try Lockstep.convert(narrow, to: Float.self, execution: execution).values)
            }
            note("convert-\(name)", digest.value)
        }

        mutating func logProbs<Logit: StorageFormat>(_ name: String, _: Logit.Type) throws {
            let (tokens, vocab) = (37, 5003)
            let wide = values(tokens * vocab).map { $0 * 16 }
            let logits = Matrix(
                rows: tokens,
                unchecked: try Lockstep.convert(wide, to: Logit.self, execution: execution).values)
            let targets = (0..<tokens).map { Int32($0 * 137 % vocab) }
            let options = LogProbOptions(temperature: 0.75)
            let found = try Lockstep.logProbs(
                logits: logits, targets: targets, options: options, execution: execution)
            note("log-probs-\(name)", digest(found.logProbs, found.entropy))
            let upstream = values(tokens, from: 900_000)
            let gradient = try logProbsBackward(
                logits: logits, targets: targets, dLogProbs: upstream, dEntropy: upstream, options: options,
                execution: execution)
            note("log-probs-backward-\(name)", digest(gradient.elements))
        }

        mutating func linearLogProbs<Number: StorageFormat>(_ name: String, _: Number.Type) throws {
            let (tokens, size, vocab) = (48, 256, 1501)
            func matrix(_ rows: Int, from first: Int) throws -> Matrix<Number> {
                Matrix(
                    rows: rows,
                    unchecked: try Lockstep.convert(values(rows * size, from: first), to: Number.self).values)
            }
            let (hidden, weight) = (try matrix(tokens, from: 0), try matrix(vocab, from: 1_000_003))
            let targets = (0..<tokens).map { Int32($0 * 61 % vocab) }
            let found = try Lockstep.linearLogProbs(
                hidden: hidden, weight: weight, targets: targets, execution: execution)
            let gradients = try linearLogProbsBackward(
                hidden: hidden, weight: weight, targets: targets, dLogProbs: values(tokens, from: 900_000),
                execution: execution)
            note(
                "linear-log-probs-\(name)",
                digest(found.logProbs, found.entropy, gradients.dHidden.elements, gradients.dWeight.elements))
        }

        /// Demonstrations of the chain task.
        func demonstrations() throws -> [[Int32]] {
            let task = try VerifiableTask("chain")
            return try (0..<sequences).map { try task.prompt($0, seed: 1) + task.demonstration($0, seed: 1) }
        }

        mutating func scoringAndDecoding(_ name: String) throws {
            let tokens = try demonstrations()
            let model = try Model(path: AgreementTests.model, recipe: Recipe(named: name))
            let ragged = tokens.enumerated().map { Array($1.prefix(length - 2 * $0)) }
            let scores = try model.score(ragged, execution: execution)
            note(
                "score-\(name)",
                digest(scores.logProbs.joined().map { Float($0) }, scores.entropy.joined().map { Float($0) }))

            // A capacity below the number of sequences: they join as others leave.
            let engine = try RolloutEngine(
                model, settings: SamplingSettings(topP: 0.9375, seed: 5, maxTokens: response), capacity: 5,
                execution: execution)
            try engine.add(prompt: Array(tokens[0].prefix(prompt)), ids: (0..<sequences).map { UInt64($0) })
            var digest = Digest()
            while !engine.isIdle {
                for rollout in try engine.step() {
                    digest.add([rollout.id])
                    digest.add(rollout.tokens)
                    digest.add(rollout.rawLogProbs)
                    digest.add(rollout.processedLogProbs)
                }
            }
            note("decode-\(name)", digest.value)
        }

        mutating func trainingStep(_ name: String) throws {
            let batch = TrainerTests.Batch(
                sequences: try demonstrations(),
                dLogProbs: (0..<sequences).map { row in
                    values(length, from: row * length).enumerated().map { $0 < prompt ? 0 : Double($1) / 256 }
                })
            let trainer = try Trainer(
                path: AgreementTests.model, recipe: Recipe(named: name),
                options: TrainerOptions(threads: execution.threads, instructionSet: execution.instructionSet))
            let logProbs = try TrainerTests.add(batch, to: trainer, lossScale: 1024).logProbs
            let count = trainer.parameters.count
            var gradients = [Float](repeating: 0, count: count)
            try gradients.withUnsafeMutableBufferPointer { try trainer.gradients(into: $0) }
            var (first, second) = (
                [Float](repeating: 0, count: count), [Float](repeating: 0, count: count)
            )
            let masters = try gradients.withUnsafeBufferPointer { gradients in
                let norm = try gradientNorm([gradients], execution: execution)
                let settings = AdamWSettings(
                    step: 1, learningRate: 0.001, gradientScale: try norm.clipped(maxNorm: 1).factor)
                return try trainer.withMasters { (masters) throws(LockstepError) in
                    try first.withUnsafeMutableBufferPointer { (first) throws(LockstepError) in
                        try second.withUnsafeMutableBufferPointer { (second) throws(LockstepError) in
                            try adamWStep(
                                masters: masters, firstMoments: first, secondMoments: second,
                                gradients: gradients, settings, execution: execution)
                        }
                    }
                    return Array(masters)
                }
            }
            note("training-step-\(name)", digest(logProbs.map { Float($0) }, gradients, masters))
        }

        mutating func logs() throws {
            let rollout = values(log).map { half in -8 * (half + 0.5) * (half + 0.5) }
            let trainer = zip(rollout, values(log, from: log)).map { min($0 + $1 / 64, 0) }
            func rows(_ values: [Float]) -> [[Float]] {
                (0..<rollouts).map { Array(values[$0 * tokensEach..<($0 + 1) * tokensEach]) }
            }
            let (pi, mu) = (rows(trainer), rows(rollout))

            let total = MismatchAccumulator()
            var (start, count) = (0, 1)
            while start < rollouts {  // some cuts
                let part = start..<min(start + count, rollouts)
                let ids = part.map { UInt64($0) }
                try withLogProbPair(trainer: Array(pi[part]), rollout: Array(mu[part])) {
                    (pair) throws(LockstepError) in
                    try ids.withUnsafeBufferPointer { (ids) throws(LockstepError) in
                        try total.update(
                            pair, ids: TokenView(ids.baseAddress, byteCount: 8, count: ids.count),
                            execution: execution)
                    }
                }
                (start, count) = (part.upperBound, part.count * 2 % 11)
            }
            note("accumulator", digest(total.bytes()))

            let corrected = try correct(
                trainer: pi, rollout: mu, options: CorrectionOptions(high: 1.001), execution: execution)
            note("correction", digest(Array(corrected.weights.joined())))

            let current = rows(zip(trainer, values(log, from: 2 * log)).map { $0 + $1 })
            let advantages = values(rollouts, from: 3 * log)
            var options = ObjectiveOptions(.clip, aggregation: .seqMeanTokenMean, high: 1.28)
            (options.kl, options.klCoefficient) = (.k3, 0.0625)
            let loss = try objectiveLoss(
                (0..<rollouts).map {
                    ObjectiveSequence(
                        current: current[$0], trainer: pi[$0], advantage: Double(advantages[$0]),
                        reference: mu[$0])
                }, options: options, execution: execution)
            note("objective", digest([loss.report.loss], Array(loss.gradient.joined())))
        }

        init(_ execution: Execution) throws {
            self.execution = execution
            try convert("fp16", Float16.self)
            try convert("bf16", BFloat16.self)
            try convert("e4m3fn", FP8E4M3FN.self)
            try convert("e5m2", FP8E5M2.self)
            try logProbs("fp32", Float.self)
            try logProbs("fp16", Float16.self)
            try logProbs("bf16", BFloat16.self)
            try linearLogProbs("fp32", Float.self)
            try linearLogProbs("fp16", Float16.self)
            try linearLogProbs("bf16", BFloat16.self)
            for name in ["fp32", "fp16", "bf16"] {
                try scoringAndDecoding(name)
                try trainingStep(name)
            }
            try logs()
        }
    }

    @Test func everySubjectHasTheRecordedBits() throws {
        let lines = try String(contentsOfFile: Self.root + "/Tests/Vectors/agreement.txt", encoding: .utf8)
        let recorded = Dictionary(
            uniqueKeysWithValues: lines.split(separator: "\n").map { line in
                let words = line.split(separator: " ")
                return (String(words[0]), UInt32(words[1], radix: 16))
            })
        #expect(recorded.count >= 25)
        var printed = ""
        for set in InstructionSet.allCases where set.isAvailable {
            for threads in [1, 2, 4] {
                let found = try Subjects(Execution(threads: threads, instructionSet: set)).found
                for (subject, digest) in found {
                    #expect(digest == recorded[subject], "\(subject), \(set), \(threads) threads")
                    printed += "\(set) \(threads) \(subject) " + String(format: "%08x\n", digest)
                }
                #expect(found.count == recorded.count)
            }
        }
        if let path = ProcessInfo.processInfo.environment["LOCKSTEP_AGREEMENT"] {
            try printed.write(toFile: path, atomically: true, encoding: .utf8)
        }
    }
}

extension Matrix {
    /// A matrix of `rows` rows, of elements that are known to fill them.
    fileprivate init(rows: Int, unchecked elements: [Element]) {
        try! self.init(rows: rows, columns: elements.count / rows, elements)
    }
}
