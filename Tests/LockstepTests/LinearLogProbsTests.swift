import CLockstepKernels
import Testing

@testable import Lockstep

/// The fused form against the unfused one, which LogProbsTests holds against the reference.
@Suite struct LinearLogProbsTests {
    struct Problem {
        let tokens: Int, hiddenSize: Int, vocab: Int
        let hidden: Stored, weight: Stored, bias: Stored?
        let targets: [Int32]

        init(
            _ tokens: Int, _ hiddenSize: Int, _ vocab: Int, _ format: Format, weight: Format, bias: Bool,
            seed: UInt64 = 1
        ) {
            var random = Random(seed)
            self.tokens = tokens
            self.hiddenSize = hiddenSize
            self.vocab = vocab
            hidden = Stored(random.normal(tokens * hiddenSize), format)
            self.weight = Stored(random.normal(vocab * hiddenSize, scale: 0.3), weight)
            self.bias = bias ? Stored(random.normal(vocab), weight) : nil
            targets = (0..<tokens).map {
                $0 % 9 == 4 ? -100 : Int32.random(in: 0..<Int32(vocab), using: &random)
            }
        }

        var biasView: VectorView? {
            bias.map { bias in
                VectorView(pinned(bias.bytes).baseAddress, bias.format, count: vocab)
            }
        }

        var targetView: TokenView { TokenView(pinned(targets).baseAddress, count: tokens) }

        func fused(_ options: LogProbOptions, _ execution: Execution, packed: Bool) throws -> [[Double]] {
            let results = (0..<3).map { _ in pinned([Double](repeating: -1, count: tokens)) }
            let views = results.map { MutableVectorView($0.baseAddress, .fp64, count: tokens) }
            let outputs = LogProbOutputs(logProbs: views[0], entropy: views[1], logSumExp: views[2])
            try hidden.withMatrix(rows: tokens, columns: hiddenSize) { hidden in
                try weight.withMatrix(rows: vocab, columns: hiddenSize) { weight in
                    if packed {
                        try Head(weight: weight, bias: biasView).logProbs(
                            hidden: hidden, targets: targetView, options: options, into: outputs,
                            execution: execution)
                    } else {
                        try linearLogProbs(
                            hidden: hidden, weight: weight, bias: biasView, targets: targetView,
                            options: options, into: outputs, execution: execution)
                    }
                }
            }
            return results.map(Array.init)
        }
    }

    @Test(arguments: [(1, 1, 1), (3, 17, 33), (7, 128, 200), (13, 130, 2050), (40, 300, 500)])
    func fusedEqualsUnfused(tokens: Int, hiddenSize: Int, vocab: Int) throws {
        for (format, weight) in [(Format.fp32, Format.fp32), (.fp16, .fp16), (.bf16, .bf16), (.fp16, .fp32)] {
            let problem = Problem(
                tokens, hiddenSize, vocab, format, weight: weight, bias: tokens % 2 == 1)
            for options in [
                LogProbOptions(), .init(temperature: 0.7, softCap: 8), .init(logitsFormat: .bf16),
                .init(logitsFormat: .fp16),
            ] {
                let logits = ReferenceMatrixProduct.logits(
                    problem.hidden.rows(hiddenSize), problem.weight.rows(hiddenSize),
                    bias: problem.bias?.values)
                let wanted = try LogProbsTests.score(
                    Stored(Array(logits.joined()), .fp32), rows: tokens, columns: vocab, problem.targets,
                    options)
                for set in instructionSets {
                    for (threads, packed) in [(1, false), (3, false), (2, true)] {
                        let found = try problem.fused(
                            options, Execution(threads: threads, instructionSet: set), packed: packed)
                        #expect(found == Array(wanted[..<3]), "\(set) \(threads) \(packed) \(options)")
                    }
                }
            }
        }
    }

    @Test func aRowDoesNotDependOnItsBatch() throws {
        let problem = Problem(600, 96, 300, .bf16, weight: .bf16, bias: false)  // more than one chunk
        let batch = try problem.fused(.init(), .init(threads: 2), packed: false)
        for row in [0, 3, 511, 512, 599] {
            var out = 0.0
            try withUnsafeMutableBytes(of: &out) { out in
                try problem.hidden.withMatrix(rows: problem.tokens, columns: 96) { hidden in
                    try problem.weight.withMatrix(rows: 300, columns: 96) { weight in
                        try linearLogProbs(
                            hidden: MatrixView(hidden.row(row), .bf16, rows: 1, columns: 96), weight: weight,
                            targets: TokenView(
                                pinned(Array(problem.targets[row...row])).baseAddress, count: 1),
                            into: LogProbOutputs(
                                logProbs: MutableVectorView(out.baseAddress, .fp64, count: 1)))
                    }
                }
            }
            #expect(out == batch[0][row])
        }
    }

    @Test func wideRowsAreAddedUpAgain() throws {
        // Logits around 2^22: the block flags them, the row is formed again and its maximum subtracted.
        let hidden = Stored([0x1p11, 0x1p11], .fp32)
        let weight = Stored((0..<300).flatMap { [Float(2048 + $0 / 100), 0] }, .fp32)
        var out = [0.0]
        let targets: [Int32] = [250]
        try out.withUnsafeMutableBytes { out in
            try hidden.withMatrix(rows: 1, columns: 2) { hidden in
                try weight.withMatrix(rows: 300, columns: 2) { weight in
                    try linearLogProbs(
                        hidden: hidden, weight: weight,
                        targets: TokenView(pinned(targets).baseAddress, count: 1),
                        into: LogProbOutputs(logProbs: MutableVectorView(out.baseAddress, .fp64, count: 1)))
                }
            }
        }
        #expect(abs(out[0] + logarithm(100)) < 1e-6)
    }

    /// d_hidden, d_weight, d_bias, added to buffers of ones.
    static func backward(
        _ problem: Problem, tokens: Range<Int>, _ options: LogProbOptions, _ execution: Execution,
        dWeight: inout [Float], dBias: inout [Float], entropy: Bool = true
    ) throws -> [Float] {
        let upstream = tokens.map { Double($0 % 5) - 1.5 }
        let dEntropy = tokens.map { Double($0 % 3) * 0.25 }
        var dHidden = [Float](repeating: 1, count: tokens.count * problem.hiddenSize)
        try dHidden.withUnsafeMutableBytes { dHidden in
            try dWeight.withUnsafeMutableBytes { dWeight in
                try dBias.withUnsafeMutableBytes { dBias in
                    try problem.hidden.withMatrix(rows: problem.tokens, columns: problem.hiddenSize) {
                        hidden in
                        try problem.weight.withMatrix(rows: problem.vocab, columns: problem.hiddenSize) {
                            weight in
                            try linearLogProbsBackward(
                                into: LinearGradients(
                                    hidden: MutableMatrixView(
                                        dHidden.baseAddress, .fp32, rows: tokens.count,
                                        columns: problem.hiddenSize),
                                    weight: MutableMatrixView(
                                        dWeight.baseAddress, .fp32, rows: problem.vocab,
                                        columns: problem.hiddenSize),
                                    bias: MutableVectorView(dBias.baseAddress, .fp32, count: problem.vocab)),
                                LogProbGradients(
                                    logProbs: VectorView(
                                        pinned(upstream).baseAddress, .fp64, count: tokens.count),
                                    entropy: entropy
                                        ? VectorView(pinned(dEntropy).baseAddress, .fp64, count: tokens.count)
                                        : nil),
                                hidden: MatrixView(
                                    hidden.row(tokens.lowerBound), hidden.format, rows: tokens.count,
                                    columns: problem.hiddenSize),
                                weight: weight, bias: problem.biasView,
                                targets: TokenView(
                                    pinned(Array(problem.targets[tokens])).baseAddress, count: tokens.count),
                                options: options, execution: execution)
                        }
                    }
                }
            }
        }
        return dHidden
    }

    @Test func backwardFollowsTheProductRule() throws {
        let problem = Problem(140, 70, 2200, .fp16, weight: .fp16, bias: true)
        let options = LogProbOptions(temperature: 0.8)
        // The gradient of the logits from the unfused call, then chains by the reference.
        let logits = ReferenceMatrixProduct.logits(
            problem.hidden.rows(70), problem.weight.rows(70), bias: problem.bias!.values)
        let stored = Stored(Array(logits.joined()), .fp32)
        var dLogits = [Float](repeating: 0, count: 140 * 2200)
        let upstream = (0..<140).map { Double($0 % 5) - 1.5 }
        let dEntropy = (0..<140).map { Double($0 % 3) * 0.25 }
        try dLogits.withUnsafeMutableBytes { out in
            try stored.withMatrix(rows: 140, columns: 2200) { matrix in
                try logProbsBackward(
                    into: MutableMatrixView(out.baseAddress, .fp32, rows: 140, columns: 2200),
                    LogProbGradients(
                        logProbs: VectorView(pinned(upstream).baseAddress, .fp64, count: 140),
                        entropy: VectorView(pinned(dEntropy).baseAddress, .fp64, count: 140)),
                    logits: matrix, targets: problem.targetView, options: options)
            }
        }
        let weight = problem.weight.rows(70)
        let hidden = problem.hidden.rows(70)
        func column(_ rows: [[Float]], _ index: Int) -> [Float] { rows.map { $0[index] } }
        func chained(_ x: [Float], _ w: [Float], from start: Float) -> Float {
            stride(from: 0, to: x.count, by: 128).reduce(start) { sum, k in
                let part = k..<min(k + 128, x.count)
                return sum + ReferenceMatrixProduct.product(Array(x[part]), Array(w[part]))
            }
        }
        for set in instructionSets {
            for threads in [1, 2] {
                var dWeight = [Float](repeating: 1, count: 2200 * 70)
                var dBias = [Float](repeating: 1, count: 2200)
                let dHidden = try Self.backward(
                    problem, tokens: 0..<140, options, Execution(threads: threads, instructionSet: set),
                    dWeight: &dWeight, dBias: &dBias)
                for (t, h) in [(0, 0), (77, 69), (139, 33)] {
                    let wanted =
                        1
                        + ReferenceMatrixProduct.product(
                            Array(dLogits[t * 2200..<(t + 1) * 2200]), column(weight, h))
                    #expect(dHidden[t * 70 + h].bitPattern == wanted.bitPattern, "\(set)")
                }
                for (v, h) in [(0, 0), (517, 69), (2047, 3), (2048, 40), (2199, 31)] {
                    let gradient = (0..<140).map { dLogits[$0 * 2200 + v] }
                    let wanted = chained(gradient, column(hidden, h), from: 1)
                    #expect(dWeight[v * 70 + h].bitPattern == wanted.bitPattern, "\(set)")
                    let ones = [Float](repeating: 1, count: 140)
                    #expect(dBias[v].bitPattern == chained(gradient, ones, from: 1).bitPattern)
                }
            }
        }
    }

    @Test func microBatchesOf128LeaveTheBitsOfOneBatch() throws {
        let problem = Problem(700, 40, 300, .bf16, weight: .bf16, bias: true)
        func run(_ cuts: [Int]) throws -> ([Float], [Float], [Float]) {
            var dWeight = [Float](repeating: 0.5, count: 300 * 40)
            var dBias = [Float](repeating: 0.5, count: 300)
            var dHidden: [Float] = []
            for (first, end) in zip(cuts, cuts.dropFirst()) {
                dHidden += try Self.backward(
                    problem, tokens: first..<end, .init(), .init(threads: 2), dWeight: &dWeight, dBias: &dBias
                )
            }
            return (dHidden, dWeight, dBias)
        }
        let whole = try run([0, 700])
        let parts = try run([0, 128, 512, 640, 700])
        #expect(whole.0 == parts.0 && whole.1 == parts.1 && whole.2 == parts.2)
    }
}
