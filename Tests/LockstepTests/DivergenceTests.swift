import CLockstepKernels
import Testing

@testable import Lockstep

@Suite struct DivergenceTests {
    /// Rows of logits from nearly equal to unrelated, some with -inf.
    private func logits(vocab: Int, seed: UInt64) -> (trainer: [Float], rollout: [Float]) {
        var random = Random(seed)
        var rollout = random.normal(vocab, scale: 4)
        var trainer = rollout
        for index in 0..<vocab {
            let scale: Float = [0, 1e-6, 1e-2, 1, 30].randomElement(using: &random)!
            trainer[index] += scale * Float.random(in: -1...1, using: &random)
            if vocab > 3, index % 11 == 3 { trainer[index] = -.infinity }
            if vocab > 3, index % 13 == 2 { rollout[index] = -.infinity }
        }
        return (trainer, rollout)
    }

    private func bits<Value>(_ value: Value) -> [UInt8] { withUnsafeBytes(of: value, Array.init) }

    @Test(arguments: instructionSets)
    func kernelsEqualTheReference(_ set: InstructionSet) throws {
        let kernels = try Execution(instructionSet: set).kernels()
        for vocab in [1, 2, 7, 8, 15, 16, 17, 33, 1000] {
            for (index, format) in logitFormats.enumerated() {
                for (temperature, cap, rounding) in [
                    (1.0, 0.0, Format.fp32), (0.7, 0, .fp16), (1.3, 5, .bf16), (1, 30, .fp32),
                    (1, 0, Format("e8m4")!),
                ] {
                    let (a, b) = logits(vocab: vocab, seed: UInt64(vocab + 7 * index))
                    var rule = lsk_divergence_rule(
                        temperature: temperature, soft_cap: cap, rounding: rounding.rawValue)
                    var rows: [(below: [Double], row: lsk_divergence_row)] = []
                    for source in [a, b] {
                        let stored = Stored(source, format)
                        var below = [Double](repeating: 0, count: (vocab + 15) / 16 * 16)
                        var row = lsk_divergence_row()
                        kernels.pointee.divergence_row!(
                            &row, &below, stored.bytes, format.rawValue, Int64(vocab), &rule)
                        let (expected, expectedRow) = ReferenceDivergence.row(stored.values, rule)
                        #expect(row.maximum == expectedRow.maximum && row.top == expectedRow.top)
                        #expect(row.total == expectedRow.total && row.failed == expectedRow.failed)
                        #expect(Array(below[..<vocab]) == expected)
                        rows.append((below, row))
                    }
                    let difference = logarithm(rows[0].row.total) - logarithm(rows[1].row.total)
                    var sums = lsk_divergence_sums()
                    kernels.pointee.divergence_sums!(
                        &sums, rows[0].below, rows[0].row.total, rows[1].below, rows[1].row.total, difference,
                        Int64(vocab))
                    let expected = ReferenceDivergence.sums(
                        p: Array(rows[0].below[..<vocab]), rows[0].row.total,
                        q: Array(rows[1].below[..<vocab]), rows[1].row.total, logRatioOfTotals: difference)
                    #expect(bits(sums) == bits(expected), "\(set) \(vocab) \(format)")
                }
            }
        }
    }

    @Test func rowsThatCannotBeComparedAreNamed() throws {
        let good: [Float] = [1, 2, 3, 4, 5, 6]
        let cases: [(Int, Float, String)] = [
            (4, .nan, "row 1 has a NaN or +inf"), (1, .infinity, "row 0 has a NaN or +inf"),
            (3, -.infinity, "row 1 has only -inf"),
        ]
        for (place, value, text) in cases {
            var bad = good
            bad[place] = value
            if value == -.infinity { bad.replaceSubrange(3..., with: [value, value, value]) }
            for (trainer, rollout, name) in [(bad, good, "trainer_logits"), (good, bad, "rollout_logits")] {
                try Stored(trainer, .fp32).withMatrix(rows: 2, columns: 3) { trainer in
                    try Stored(rollout, .fp32).withMatrix(rows: 2, columns: 3) { rollout in
                        for options in [LogProbOptions(), LogProbOptions(softCap: 30)] {
                            var written = 0
                            let error = #expect(throws: LockstepError.self) {
                                try exactDivergence(trainer: trainer, rollout: rollout, options: options) {
                                    _, _ in written += 1
                                }
                            }
                            #expect(error?.kind == .nonFinite && written == 0)
                            #expect(error?.message.hasPrefix("\(name): \(text)") == true)
                        }
                        // Masked, the row does not matter.
                        var mask: [UInt8] = [1, 1]
                        mask[place / 3] = 0
                        try mask.withUnsafeBufferPointer {
                            let mean = try exactDivergence(
                                trainer: trainer, rollout: rollout,
                                mask: MaskView($0.baseAddress, rows: 1, columns: 2))
                            #expect(mean.klRolloutTrainer == 0 && mean.sameTop1 == 1)
                        }
                    }
                }
            }
        }
    }

    @Test func optionsWithoutMeaningAreRefused() throws {
        try Stored([1, 2], .fp32).withMatrix(rows: 1, columns: 2) { (logits) throws in
            for options in [
                LogProbOptions(ignoreIndex: 0), LogProbOptions(topK: 1), LogProbOptions(topP: 0.5),
                LogProbOptions(temperature: 0), LogProbOptions(softCap: -1),
            ] {
                #expect(throws: LockstepError.self) {
                    try exactDivergence(trainer: logits, rollout: logits, options: options)
                }
            }
            let none = MatrixView(nil, .fp32, rows: 3, columns: 0)
            #expect(throws: LockstepError.self) { try exactDivergence(trainer: none, rollout: none) }
            let empty = MatrixView(nil, .fp32, rows: 0, columns: 5)
            let nothing = try exactDivergence(trainer: empty, rollout: empty)
            #expect(nothing.totalVariation.isNaN)
        }
    }
}
