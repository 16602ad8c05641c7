import CLockstepKernels
import Testing

@testable import Lockstep

/// AdamW over flat buffers, and its kernels against the reference.
@Suite struct OptimizerTests {
    private static let specials: [Float] = [
        0, -0.0, 1, -1, 1e-45, -1e-40, 1e-20, 3e18, -1e18, 6e-8, 65504, 0x1.fffffep127, .infinity, .nan,
    ]

    @Test(arguments: [1, 2, 7, 15, 16, 17, 31, 32, 33, 63, 65, 1000, 4099])
    func kernelsEqualTheReference(count: Int) throws {
        var random = Random(UInt64(count))
        let constants = try AdamWConstants(
            AdamWOptions(beta2: 0.95), step: 3, learningRate: 0.01, gradientScale: 0.3)
        var rule = lsk_adamw_rule(
            gradient_scale: constants.gradientScale, first_rest: constants.firstRest,
            second: constants.second,
            second_rest: constants.secondRest, inverse_root: constants.inverseRoot,
            epsilon: constants.epsilon,
            decay: constants.decay, step_size: constants.stepSize)
        for scale in [1, 1e-20, 1e10] as [Float] {
            var gradients = random.normal(count, scale: scale)
            if scale == 1 { for i in 0..<count where i % 3 == 0 { gradients[i] = Self.specials[i % 14] } }
            let start = [
                random.normal(count), random.normal(count, scale: scale), random.normal(count).map(abs),
            ]
            var (masters, first, second) = (start[0], start[1], start[2])
            for i in 0..<count {
                ReferenceOptimizer.adamW(&masters[i], &first[i], &second[i], gradients[i], constants)
            }
            let squares = ReferenceOptimizer.squares(gradients)
            for set in instructionSets {
                let kernels = lsk_kernels_for(set.rawValue).pointee
                // One more, which must stay.
                var (p, m, v) = (start[0] + [7], start[1] + [7], start[2] + [7])
                kernels.adamw(&p, &m, &v, gradients, count, &rule)
                for (found, right) in zip([p, m, v], [masters, first, second]) {
                    #expect(found.last == 7)
                    for (a, b) in zip(found, right) {
                        #expect(a.bitPattern == b.bitPattern || a.isNaN && b.isNaN, "\(set): \(a), not \(b)")
                    }
                }
                var largest: Float = -1
                let sum = kernels.gradient_squares(&largest, gradients, count)
                #expect(sum.bitPattern == squares.sum.bitPattern || sum.isNaN && squares.sum.isNaN)
                #expect(largest.bitPattern == squares.largest.bitPattern)
            }
        }
    }

    private func update(
        _ optimizer: AdamW, _ masters: inout [Float], _ gradients: [Float], maxNorm: Double = 0
    ) throws -> AdamWReport {
        try masters.withUnsafeMutableBufferPointer { masters in
            try gradients.withUnsafeBufferPointer {
                try optimizer.update(
                    masters, gradients: $0, learningRate: 0.1, scale: 4, maxNorm: maxNorm)
            }
        }
    }

    @Test func rangesDecayOrNotAndABadGradientSkipsAll() throws {
        let ranges = [
            ParameterRange("weight", 0..<3), ParameterRange("norm", 3..<5, decays: false),
            ParameterRange("head", 6..<8),
        ]
        let optimizer = try AdamW(ranges, options: AdamWOptions(weightDecay: 0.5))
        var masters: [Float] = [1, 1, 1, 1, 1, 9, 1, 1]
        var report = try update(optimizer, &masters, [0, 0, 0, 0, 0, 7, 0, 0])
        #expect(!report.skipped && report.step == 1 && report.norm == 0)
        #expect(masters == [0.95, 0.95, 0.95, 1, 1, 9, 0.95, 0.95])

        let before = (masters, Array(optimizer.firstMoments), Array(optimizer.secondMoments))
        report = try update(optimizer, &masters, [1, 1, 1, 1, .infinity, 0, .nan, 1])
        #expect(report.skipped && report.step == 1 && report.nonFinite == 2 && report.nonFiniteName == "norm")
        #expect(
            masters == before.0 && Array(optimizer.firstMoments) == before.1
                && Array(optimizer.secondMoments) == before.2)

        // (3, 4) scaled by 4, and a hole that is not read.
        report = try update(optimizer, &masters, [12, 0, 0, 0, 16, .nan, 0, 0], maxNorm: 1)
        #expect(!report.skipped && report.step == 2 && report.norm == 5 && report.largest == 4)
        #expect(abs(report.clipping - 0.2) < 1e-7 && masters[5] == 9 && masters[0] < 0.95)
    }

    @Test func accumulationIsInOrder() throws {
        var sum = [Float](repeating: 0, count: 70_000)
        for part in [1, 2, 3] as [Float] {
            try sum.withUnsafeMutableBufferPointer { into in
                try [Float](repeating: part, count: into.count).withUnsafeBufferPointer {
                    try accumulateGradients(into, $0, scale: 0.5)
                }
            }
        }
        #expect(sum.allSatisfy { $0 == 3 })
    }

    @Test func wrongRangesAreRefused() {
        #expect(throws: LockstepError.self) {
            try AdamW([ParameterRange("a", 0..<3), ParameterRange("b", 2..<4)])
        }
        #expect(throws: LockstepError.self) { try AdamW([], options: AdamWOptions(epsilon: 0)) }
    }

    @Test func theChainModelIsTheSanityTests() {
        let model = ModelConfiguration.chain
        #expect(model.layers == 4 && model.hiddenSize == 32 && model.headSize == 16 && model.vocab == 16)
        let layer = 4 * 32 * 32 + 3 * 32 * model.intermediateSize + 2 * 32
        #expect(2 * 16 * 32 + 4 * layer + 32 == 51_488)
    }
}
