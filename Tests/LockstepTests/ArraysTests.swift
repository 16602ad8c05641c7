import Testing

@testable import Lockstep

/// The calls on arrays that Swift owns give what the calls on borrowed views give.
@Suite struct ArraysTests {
    static let (tokens, width, vocab) = (5, 33, 700)
    let hidden: Matrix<BFloat16>
    let weight: Matrix<Float16>
    let bias: [Float16]
    let targets: [Int32] = [3, 699, -100, 0, 350]
    let options = LogProbOptions(temperature: 0.8)

    init() throws {
        var random = Random(11)
        let (tokens, width, vocab) = (Self.tokens, Self.width, Self.vocab)
        hidden = try Matrix(rows: tokens, columns: width, random.normal(tokens * width).map { BFloat16($0) })
        weight = try Matrix(rows: vocab, columns: width, random.normal(vocab * width).map { Float16($0) })
        bias = random.normal(vocab).map { Float16($0) }
    }

    /// The fp32 logits, by the reference product.
    func logits() throws -> Matrix<Float> {
        let rows = { (elements: [Float], columns: Int) in
            stride(from: 0, to: elements.count, by: columns).map { Array(elements[$0..<$0 + columns]) }
        }
        let product = ReferenceMatrixProduct.logits(
            rows(hidden.elements.map { Float($0) }, Self.width),
            rows(weight.elements.map { Float($0) }, Self.width),
            bias: bias.map { Float($0) })
        return try Matrix(rows: Self.tokens, columns: Self.vocab, Array(product.joined()))
    }

    @Test func headAndPlainCallAgree() throws {
        let plain = try linearLogProbs(
            hidden: hidden, weight: weight, bias: bias, targets: targets, options: options)
        let head = try Head.packing(weight, bias: bias)
        let packed = try head.logProbs(hidden: hidden, targets: targets, options: options)
        #expect(plain.logProbs.map(\.bitPattern) == packed.logProbs.map(\.bitPattern))
        #expect(plain.entropy.map(\.bitPattern) == packed.entropy.map(\.bitPattern))
        #expect(plain.logProbs[2] == 0 && plain.logProbs[0] < 0)
        for row in 0..<Self.tokens {
            let alone = try head.logProbs(
                hidden: hidden[rows: row..<row + 1], targets: [targets[row]], options: options)
            #expect(alone.logProbs[0].bitPattern == plain.logProbs[row].bitPattern)
        }
    }

    @Test func fusedEqualsUnfused() throws {
        let fused = try linearLogProbs(
            hidden: hidden, weight: weight, bias: bias, targets: targets, options: options)
        let unfused = try logProbs(logits: logits(), targets: targets, options: options)
        #expect(fused.logProbs.map(\.bitPattern) == unfused.logProbs.map(\.bitPattern))
        #expect(fused.logSumExp.map(\.bitPattern) == unfused.logSumExp.map(\.bitPattern))
        // The kept mass is 1 where nothing is cut, and at an ignored row 0 like every output.
        #expect(unfused.keptMass == [1, 1, 0, 1, 1])
    }

    /// hidden W^T + b = logits, so the gradients are those of the logits carried through the product.
    @Test func gradientsFollowFromThoseOfTheLogits() throws {
        let upstream: [Float] = [1, -0.5, 7, 0.25, 2]
        let entropy: [Float] = [0.5, 0, 7, -1, 0.125]
        let dLogits = try logProbsBackward(
            logits: logits(), targets: targets, dLogProbs: upstream, dEntropy: entropy, options: options)
        let found = try linearLogProbsBackward(
            hidden: hidden, weight: weight, bias: bias, targets: targets, dLogProbs: upstream,
            dEntropy: entropy, options: options)
        for v in stride(from: 0, to: Self.vocab, by: 37) {
            let sum = (0..<Self.tokens).reduce(0.0) { $0 + Double(dLogits[$1, v]) }
            #expect(abs(Double(found.dBias[v]) - sum) < 1e-6)
            let first = (0..<Self.tokens).reduce(0.0) { $0 + Double(dLogits[$1, v]) * Double(hidden[$1, 0]) }
            #expect(abs(Double(found.dWeight[v, 0]) - first) < 1e-5)
        }
        for token in 0..<Self.tokens {
            let sum = (0..<Self.vocab).reduce(0.0) { $0 + Double(dLogits[token, $1]) * Double(weight[$1, 2]) }
            #expect(abs(Double(found.dHidden[token, 2]) - sum) < 1e-5)
        }
        #expect((0..<Self.vocab).allSatisfy { dLogits[2, $0] == 0 })
    }

    /// A list of sequences is the padded matrix of the same tokens; what the mask leaves out is not read.
    @Test func mismatchOfSequences() throws {
        let trainer: [[Float]] = [[-1, -2, -0.5], [-0.25], [], [-3, .nan]]
        let rollout: [[Double]] = [[-1.25, -2, -1], [-0.5], [], [-2.5, -1]]
        let mask = [[true, true, true], [true], [], [true, false]]
        let found = try mismatch(trainer: trainer, rollout: rollout, mask: mask)
        #expect(found.tokens == 5 && found.sequences == 3)
        #expect(found.maskedTokens == 1 && found.emptySequences == 1)
        #expect(found.meanLogRatio.value == (0.25 + 0 + 0.5 + 0.25 - 0.5) / 5)
        #expect(found.maxAbsLogRatio == 0.5 && found.maxAbsSequence == 0 && found.maxAbsPosition == 2)
        let each = try withLogProbPair(trainer: trainer, rollout: rollout, mask: mask) {
            (pair) throws(LockstepError) in
            try pair.sequenceMismatches()
        }
        #expect(each.map(\.tokens) == [3, 1, 0, 1])
        #expect(each.map(\.logRatio) == [0.75, 0.25, 0, -0.5])
        #expect(throws: LockstepError.self) { try mismatch(trainer: trainer, rollout: rollout) }
        #expect(throws: LockstepError.self) { try mismatch(trainer: [[Float(-1)]], rollout: rollout) }
        #expect(throws: LockstepError.self) { try mismatch(trainer: [[Float(-1)]], rollout: [[Float]()]) }
        #expect(throws: LockstepError.self) {
            try mismatch(trainer: trainer, rollout: rollout, mask: [[true], [true], [], [true, false]])
        }
    }

    /// The arrays of one row are the views of that row; a masked row is not read.
    @Test func exactDivergenceOfMatrices() throws {
        let trainer = try Matrix<Float>(rows: 3, columns: 3, [1, 2, 3, .nan, 0, 0, 0, 0, 0])
        let rollout = try Matrix<Float16>(rows: 3, columns: 3, [1, 2, 3, 0, 0, 0, 2, 0, -2])
        let found = try exactDivergence(trainer: trainer, rollout: rollout, mask: [true, false, true])
        #expect(found.rows[0].klRolloutTrainer == 0 && found.rows[0].sameTop1 == 1)
        #expect(found.rows[1] == Divergence())
        let alone = try exactDivergence(trainer: trainer[rows: 2..<3], rollout: rollout[rows: 2..<3])
        #expect(found.rows[2] == alone.mean && alone.mean.klTrainerRollout > 0.1)
        #expect(found.mean.totalVariation == alone.mean.totalVariation / 2)
        #expect(throws: LockstepError.self) { try exactDivergence(trainer: trainer, rollout: rollout) }
        #expect(throws: LockstepError.self) {
            try exactDivergence(trainer: trainer, rollout: rollout, mask: [true])
        }
    }

    @Test func wrongShapesAreErrors() throws {
        #expect(throws: LockstepError.self) { try Matrix<Float>(rows: 2, columns: 3, [1, 2, 3, 4, 5]) }
        #expect(throws: LockstepError.self) { try Matrix<Float>(rows: -1, columns: -5, [1, 2, 3, 4, 5]) }
        #expect(throws: LockstepError.self) { try Matrix<Float>(rows: .max, columns: 2, []) }
        #expect(throws: LockstepError.self) {
            try linearLogProbs(hidden: hidden, weight: weight, targets: Array(targets.dropLast()))
        }
        #expect(throws: LockstepError.self) {
            try linearLogProbs(hidden: hidden, weight: weight, bias: [Float16(1)], targets: targets)
        }
        #expect(throws: LockstepError.self) {
            try logProbsBackward(logits: logits(), targets: targets, dLogProbs: [1])
        }
        #expect(throws: LockstepError.self) {
            try logProbs(logits: Matrix<FP8E5M2>(rows: 0, columns: 3, []), targets: [])
        }
    }
}
