import CLockstepKernels
import Testing

@testable import Lockstep

/// Kernels against the reference, bit for bit; rows against batches; truncation and rare rows.
@Suite struct LogProbsTests {
    /// Rows a model makes, and rows it should not.
    static func rows(_ count: Int, _ random: inout Random) -> [[Float]] {
        var plain = random.normal(count, scale: 4)
        var rows = [plain, random.normal(count, scale: 0.01), random.normal(count, scale: 3000)]
        plain[count / 2] += 40
        rows.append(plain)  // one large, late: the reference moves
        rows.append((0..<count).map { Float($0) * 0.25 })  // it moves in many tiles
        rows.append((0..<count).map { $0 % 3 == 0 ? $0 % 2 == 0 ? 1.5 : -.infinity : -7 })
        // Masked by a huge negative.
        rows.append((0..<count).map { $0 < count / 2 ? -3.4e38 : Float($0 % 7) })
        rows.append([Float](repeating: 3.25, count: count))
        rows.append((0..<count).map { $0 == count - 1 ? 500 : -500 })
        return rows
    }

    static let rules: [LogProbOptions] = [
        .init(), .init(temperature: 0.7), .init(softCap: 30), .init(temperature: 1.3, softCap: 5),
        .init(logitsFormat: .fp16), .init(temperature: 0.9, logitsFormat: .bf16),
        .init(logitsFormat: Format("e8m4")!),
        .init(temperature: 0.9, softCap: 30, logitsFormat: Format("e5m6")!),
    ]

    @Test(arguments: [1, 63, 64, 127, 128, 129, 2047, 2048, 2049, 5000])
    func kernelsEqualTheReference(count: Int) throws {
        var random = Random(UInt64(count))
        for options in Self.rules {
            let rule = try options.rule()
            for (row, format) in zip(
                Self.rows(count, &random), [logitFormats, logitFormats, logitFormats].joined())
            {
                let stored = Stored(row, format)
                let expected = ReferenceLogProbs.blocks(
                    stored.values.map { ReferenceLogProbs.prepare($0, rule) }, rule)
                for set in instructionSets {
                    for entropy: Int32 in [0, 1] {
                        var blocks = [lsk_lse_block](repeating: lsk_lse_block(), count: expected.count)
                        stored.bytes.withUnsafeBytes {
                            lsk_kernels_for(set.rawValue).pointee.lse_row(
                                &blocks, $0.baseAddress!, format.rawValue, count, [rule], entropy)
                        }
                        for (found, wanted) in zip(blocks, expected) {
                            #expect(found.flags == wanted.flags)
                            if wanted.flags & (LSK_LSE_WIDE | LSK_LSE_NOT_FINITE) != 0 { continue }
                            #expect(found.sum.bitPattern == wanted.sum.bitPattern, "\(set) \(options)")
                            #expect(found.reference == wanted.reference)
                            if entropy == 1 {
                                #expect(
                                    found.weighted.bitPattern == wanted.weighted.bitPattern,
                                    "\(set) \(options)")
                            }
                        }
                    }
                }
            }
        }
    }

    @Test(arguments: [1, 130, 2100], [-0.3, 0] as [Float])
    func gradientKernelEqualsTheReference(count: Int, dEntropy: Float) throws {
        var random = Random(7)
        for options in Self.rules {
            let rule = try options.rule()
            let stored = Stored(random.normal(count, scale: 5), .bf16)
            var row = lsk_gradient_row()
            row.d_log_prob = 0.75
            row.d_entropy = dEntropy
            row.inverse_sum = 1.1
            row.entropy_offset = 2.5
            row.reference = 9
            let target = count / 3
            let expected = ReferenceLogProbs.gradient(stored.values, target: target, rule, row)
            for set in instructionSets {
                var found = [Float](repeating: 0, count: count)
                stored.bytes.withUnsafeBytes {
                    lsk_kernels_for(set.rawValue).pointee.gradient_row(
                        &found, Format.fp32.rawValue, $0.baseAddress!, stored.format.rawValue, count, target,
                        [rule], [row])
                }
                #expect(found.map(\.bitPattern) == expected.map(\.bitPattern), "\(set) \(options)")
            }
        }
    }

    /// log_probs, entropy, log_sum_exp, kept_mass of a call.
    static func score(
        _ stored: Stored, rows: Int, columns: Int, _ targets: [Int32], _ options: LogProbOptions = .init(),
        _ execution: Execution = .init(threads: 1)
    ) throws -> [[Double]] {
        let results = (0..<4).map { _ in pinned([Double](repeating: -1, count: rows)) }
        let views = results.map { MutableVectorView($0.baseAddress, .fp64, count: rows) }
        try stored.withMatrix(rows: rows, columns: columns) { matrix in
            try targets.withUnsafeBytes {
                try logProbs(
                    logits: matrix, targets: TokenView($0.baseAddress, count: targets.count),
                    options: options,
                    into: LogProbOutputs(
                        logProbs: views[0], entropy: views[1], logSumExp: views[2],
                        keptMass: views[3]),
                    execution: execution)
            }
        }
        return results.map(Array.init)
    }

    @Test func aRowDoesNotDependOnItsBatch() throws {
        var random = Random(3)
        let (rows, columns) = (37, 3001)
        let targets = (0..<rows).map { _ in Int32.random(in: 0..<Int32(columns), using: &random) }
        let values = random.normal(rows * columns, scale: 4)
        for format in logitFormats {
            for options in [LogProbOptions(), .init(temperature: 0.6, topK: 50, topP: 0.9)] {
                let batch = try Self.score(
                    Stored(values, format), rows: rows, columns: columns, targets, options)
                for set in instructionSets {
                    for threads in [1, 2, 5] {
                        let again = try Self.score(
                            Stored(values, format), rows: rows, columns: columns, targets, options,
                            Execution(threads: threads, instructionSet: set))
                        #expect(again == batch, "\(set) \(threads) threads")
                    }
                }
                for row in [0, 20, rows - 1] {
                    let alone = try Self.score(
                        Stored(Array(values[row * columns..<(row + 1) * columns]), format), rows: 1,
                        columns: columns, [targets[row]], options)
                    #expect(alone.map { $0[0] } == batch.map { $0[row] })
                }
            }
        }
    }

    @Test func closeToFloat64() throws {
        var random = Random(11)
        let columns = 4099
        for (options, bound) in [
            (LogProbOptions(), 4e-7), (.init(temperature: 0.7), 4e-7), (.init(softCap: 20), 6e-6),
        ] {
            for row in Self.rows(columns, &random) {
                let target = Int32(columns - 1)
                let found = try Self.score(Stored(row, .fp32), rows: 1, columns: columns, [target], options)
                let y = row.map { x -> Double in
                    let capped =
                        options.softCap == 0 || x.isInfinite
                        ? Double(x) : options.softCap * tanh(Double(x) / options.softCap)
                    return capped / options.temperature
                }
                let highest = y.max()!
                let sum = y.reduce(0) { $0 + exponential($1 - highest) }
                let logSumExp = highest + logarithm(sum)
                #expect(abs(found[2][0] - logSumExp) <= bound * max(1, abs(logSumExp) * 1e-9), "\(options)")
                #expect(abs(found[0][0] - (y[Int(target)] - logSumExp)) <= bound, "\(options)")
                let entropy = y.reduce(0) { total, y in
                    let p = exponential(y - logSumExp)
                    return p > 0 ? total - p * (y - logSumExp) : total
                }
                #expect(abs(found[1][0] - entropy) <= 4 * bound, "\(options)")
                #expect(found[0][0] <= 0 && found[1][0] >= 0)
            }
        }
    }

    /// tanh through our own exponential, which ElementaryFunctionsTests holds against the system's.
    private func tanh(_ x: Double) -> Double {
        abs(x) < 1e-3 ? x - x * x * x / 3 : 1 - 2 / (exponential(2 * x) + 1)
    }

    @Test func rowsBeyondTheOrdinaryRange() throws {
        var random = Random(5)
        let base = random.normal(3000, scale: 2).map { ($0 * 8).rounded() / 8 }
        let reference = try Self.score(Stored(base, .fp32), rows: 1, columns: 3000, [17])
        // Shifted by a power of two that keeps every value exact: the same distribution.
        for shift: Float in [0x1p20, -0x1p20] {
            let shifted = try Self.score(Stored(base.map { $0 + shift }, .fp32), rows: 1, columns: 3000, [17])
            #expect(abs(shifted[0][0] - reference[0][0]) < 3e-7)
            #expect(abs(shifted[1][0] - reference[1][0]) < 1e-6)
        }
        let equal = try Self.score(
            Stored([Float](repeating: -3.4e38, count: 4), .fp32), rows: 1, columns: 4, [1])
        #expect(abs(equal[0][0] + logarithm(4)) < 1e-7)
    }

    @Test func keptSetsAreThresholds() throws {
        let logits: [Float] = [1, 3, 2, 3, 0, -.infinity]
        func kept(_ options: LogProbOptions, _ target: Int32) throws -> (logProb: Double, mass: Double) {
            let result = try Self.score(Stored(logits, .fp32), rows: 1, columns: 6, [target], options)
            return (result[0][0], result[3][0])
        }
        // Both logits of 3 are kept by top-1: equal logits stand or fall together.
        #expect(abs(try kept(.init(topK: 1), 1).logProb + logarithm(2)) < 1e-7)
        #expect(try kept(.init(topK: 1), 2).logProb == -.infinity)
        let all = [1.0, 3, 2, 3, 0].map(exponential)
        let mass = (all[1] + all[2] + all[3]) / all.reduce(0, +)
        let result = try kept(.init(topP: mass - 1e-3), 2)
        #expect(abs(result.mass - mass) < 1e-7)
        #expect(abs(result.logProb - (2 - logarithm(all[1] + all[2] + all[3]))) < 1e-7)
        // A hair beyond, and the next logit is kept too.
        #expect(try kept(.init(topP: mass + 1e-3), 0).logProb > -.infinity)
        #expect(try kept(.init(topK: 100), 5).logProb == -.infinity)
        #expect(try kept(.init(topK: 100), 0).mass == 1)
    }

    /// The kept set of min-p, with the others and at a temperature, against a plain computation in float64.
    @Test(arguments: [0.6, 1, 2], [(0, 1.0), (9, 1), (0, 0.7), (20, 0.5)])
    func minPKeepsAShareOfTheLargest(temperature: Double, others: (topK: Int, topP: Double)) throws {
        for minP in [0.05, 0.3, 1] { try checkMinP(minP, temperature, others) }
    }

    private func checkMinP(_ minP: Double, _ temperature: Double, _ others: (topK: Int, topP: Double)) throws
    {
        var random = Random(21)
        let logits = Stored(random.normal(60, scale: 3), .bf16)
        let terms = logits.values.map { exponential(Double($0) / temperature) }
        var kept = terms.sorted(by: >)
        if others.topK > 0 { kept.removeLast(60 - others.topK) }
        kept.removeAll { $0 < minP * terms.max()! * (1 - 1e-12) }
        if others.topP < 1 {
            var sum = 0.0
            let wanted = others.topP * kept.reduce(0, +)
            kept = Array(
                kept.prefix { term in
                    defer { sum += term }
                    return sum < wanted
                })
        }
        let options = LogProbOptions(
            temperature: temperature, topK: others.topK, topP: others.topP, minP: minP)
        let least = kept.last!
        let all = terms.filter { $0 >= least }.reduce(0, +)
        for target in 0..<60 {
            let found = try Self.score(logits, rows: 1, columns: 60, [Int32(target)], options)
            let isKept = terms[target] >= least
            #expect((found[0][0] > -.infinity) == isKept)
            if isKept { #expect(abs(found[0][0] - logarithm(terms[target] / all)) < 1e-6) }
            #expect(abs(found[3][0] - all / terms.reduce(0, +)) < 1e-6)
        }
    }

    @Test func ignoredRowsAreNeverRead() throws {
        let values: [Float] = [1, 2, .nan, .nan, 3, 1]
        let result = try Self.score(Stored(values, .fp32), rows: 3, columns: 2, [1, -100, 0])
        #expect(result[0][1] == 0 && result[1][1] == 0 && result[2][1] == 0)
        #expect(result[0][0] < 0)
    }

    @Test func gradientsNeedNoStoredSum() throws {
        var random = Random(2)
        let (rows, columns) = (5, 700)
        let values = Stored(random.normal(rows * columns, scale: 3), .fp16)
        let targets: [Int32] = [3, 699, -100, 0, 41]
        let upstream: [Double] = [1, -2, .nan, 0.5, 3]
        let sums = try Self.score(values, rows: rows, columns: columns, targets)[2]
        func gradient(_ stored: Bool, _ format: Format, _ set: InstructionSet) throws -> [UInt8] {
            var out = [UInt8](repeating: 7, count: rows * columns * format.byteCount)
            try out.withUnsafeMutableBytes { out in
                try values.withMatrix(rows: rows, columns: columns) { matrix in
                    try logProbsBackward(
                        into: MutableMatrixView(out.baseAddress, format, rows: rows, columns: columns),
                        LogProbGradients(
                            logProbs: VectorView(pinned(upstream).baseAddress, .fp64, count: rows),
                            logSumExp: stored
                                ? VectorView(pinned(sums).baseAddress, .fp64, count: rows)
                                : nil),
                        logits: matrix,
                        targets: TokenView(pinned(targets).baseAddress, count: rows),
                        execution: Execution(threads: 2, instructionSet: set))
                }
            }
            return out
        }
        for format in logitFormats {
            let wanted = try gradient(true, format, .baseline)
            for set in instructionSets { #expect(try gradient(false, format, set) == wanted) }
        }
        // Gradients of a softmax sum to zero; the ignored row's are zero.
        let gradients = try gradient(false, .fp32, .best).withUnsafeBytes {
            Array($0.bindMemory(to: Float.self))
        }
        for row in 0..<rows {
            let sum = gradients[row * columns..<(row + 1) * columns].reduce(0) { $0 + Double($1) }
            #expect(abs(sum) < 1e-6)
        }
        #expect(gradients[2 * columns..<3 * columns].allSatisfy { $0 == 0 })
        #expect(gradients[3] > 0)
    }
}
