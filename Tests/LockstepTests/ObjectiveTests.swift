import CLockstepKernels
import Testing

@testable import Lockstep

/// Sequences of awkward lengths with everything an objective may read; what a mask leaves out is NaN.
private struct ObjectiveData {
    var arrays: [[Double]] = []  // current, trainer, reference, entropies, advantages, weights
    var mask: [UInt8] = []
    var kept: [UInt8] = []
    var selected: [UInt8] = []
    var offsets: [Int64] = [0]

    init(seed: UInt64, lengths: [Int]) {
        var random = Random(seed)
        for length in lengths { offsets.append(offsets.last! + Int64(length)) }
        let count = Int(offsets.last!)
        func values(_ range: ClosedRange<Double>, _ scales: [Double]) -> [Double] {
            (0..<count).map { _ in
                Double.random(in: range, using: &random) * scales.randomElement(using: &random)!
            }
        }
        let trainer = values(-1...0, [0.01, 1, 8])
        let noise = values(-1...1, [0, 1e-6, 0.1, 0.5, 3, 40])
        let apart = values(-1...1, [0, 1e-4, 0.3, 2, 30])
        arrays = [
            zip(trainer, noise).map(+), trainer, zip(trainer, apart).map(+), values(0...1, [3]),
            values(-1...1, [0, 1, 2]), values(0...1, [0, 1, 1.5]),
        ]
        func flags(_ limit: UInt8) -> [UInt8] {
            (0..<count).map { _ in UInt8.random(in: 0...9, using: &random) < limit ? 1 : 0 }
        }
        (mask, kept, selected) = (flags(8), flags(7), flags(3))
        for index in 0..<count where mask[index] == 0 {
            for array in arrays.indices { arrays[array][index] = .nan }
        }
    }

    /// Sequences as they mostly are.
    ///
    /// One advantage each, tokens that all count but for padding, log ratios near 0 with some far from it. One has a
    /// hole, in one a token was rejected.
    static func plain(seed: UInt64, lengths: [Int]) -> ObjectiveData {
        var data = ObjectiveData(seed: seed, lengths: lengths)
        var random = Random(seed + 1)
        for sequence in lengths.indices {
            let (start, length) = (Int(data.offsets[sequence]), lengths[sequence])
            for position in 0..<length {
                let index = start + position
                let isPadding = length > 8 && (position < sequence % 3 || position >= length - sequence % 4)
                let isHole = length > 500 && (130..<140).contains(position)
                data.mask[index] = isPadding || isHole ? 0 : 1
                data.kept[index] = length == 256 && position == 100 ? 0 : 1
                data.selected[index] = 0
                let trainer = Double.random(in: -3...0, using: &random)
                let far = position / 8 % 5 == 3 ? 0.6 : 0.02
                let values = [
                    trainer + far * Double.random(in: -1...1, using: &random), trainer, trainer - 0.1, 1,
                    Double(sequence % 5) - 2, 1,
                ]
                for (array, value) in values.enumerated() {
                    data.arrays[array][index] = data.mask[index] == 0 ? .nan : value
                }
            }
        }
        return data
    }

    /// The batch, all arrays in one format but for the scalars.
    ///
    /// `bare`: without weights and entropies; `whole`: without entropies and what leaves tokens out beside the mask.
    func withBatch<Result>(
        _ format: Format = .fp64, sequenceAdvantages: Bool = false, bare: Bool = false, whole: Bool = false,
        _ body: (TokenBatch) throws -> Result
    ) throws -> Result {
        let stored = arrays.enumerated().map { index, array -> [UInt8] in
            let kind = index == 4 && format != .fp64 ? Format.fp32 : format
            return kind == .fp64
                ? array.withUnsafeBytes(Array.init) : Stored(array.map(Float.init), kind).bytes
        }
        let perSequence = (0..<offsets.count - 1).map { Double($0 % 5) - 2 }
        var held = stored
        let (count, bounds) = (arrays[0].count, offsets)
        // Every array must stay where its view points while the body runs.
        func views(_ index: Int, _ found: [UnsafeRawBufferPointer]) throws -> Result {
            if index < held.count {
                return try held[index].withUnsafeBytes { try views(index + 1, found + [$0]) }
            }
            return try mask.withUnsafeBufferPointer { mask in
                try kept.withUnsafeBufferPointer { kept in
                    try selected.withUnsafeBufferPointer { selected in
                        try bounds.withUnsafeBytes { bounds in
                            try perSequence.withUnsafeBytes { perSequence in
                                let layout = try SequenceLayout(
                                    rows: 1, columns: count,
                                    mask: MaskView(mask.baseAddress, rows: 1, columns: count),
                                    offsets: TokenView(
                                        bounds.baseAddress, byteCount: 8, count: self.offsets.count))
                                var batch = TokenBatch(layout: layout)
                                func view(_ index: Int) -> MatrixView {
                                    let kind = index == 4 && format != .fp64 ? Format.fp32 : format
                                    return MatrixView(found[index].baseAddress, kind, rows: 1, columns: count)
                                }
                                (batch.current, batch.trainer, batch.reference) = (view(0), view(1), view(2))
                                (batch.entropies, batch.weights) = (view(3), view(5))
                                batch.advantages =
                                    sequenceAdvantages
                                    ? .perSequence(
                                        VectorView(
                                            perSequence.baseAddress, .fp64, count: self.offsets.count - 1))
                                    : .perToken(view(4))
                                batch.kept = MaskView(kept.baseAddress, rows: 1, columns: count)
                                batch.selected = MaskView(selected.baseAddress, rows: 1, columns: count)
                                if bare { (batch.weights, batch.entropies) = (nil, nil) }
                                if whole { (batch.entropies, batch.kept, batch.selected) = (nil, nil, nil) }
                                return try body(batch)
                            }
                        }
                    }
                }
            }
        }
        held = stored
        return try views(0, [])
    }
}

/// Every term and level, every estimator and gradient, in some combination.
private let objectives: [ObjectiveOptions] = {
    var all: [ObjectiveOptions] = []
    for (index, term) in ObjectiveTerm.allCases.enumerated() {
        for level in RatioLevel.allCases {
            if (term == .gmpo || term == .vespo) && level != .token { continue }
            var options = ObjectiveOptions(term, low: 0.8, high: 1.25)
            options.ratioLevel = level
            (options.coefficient, options.entropyCoefficient, options.klCoefficient) = (0.3, 0.01, 0.05)
            let turn = all.count
            options.kl = KLEstimator.allCases[turn % 5]
            options.klGradient = KLGradient.allCases[turn / 5 % 4]
            if term == .gmpo || term == .vespo, options.klGradient == .ratio { options.klGradient = .k2 }
            options.denominator = Denominator.allCases[index % 2]
            if turn % 3 == 1 { (options.dual, options.ratioMax, options.klOutputMax) = (3, 1.6, 2) }
            if turn % 4 == 2 { (options.logRatioMin, options.logRatioMax) = (-.infinity, .infinity) }
            all.append(options)
        }
    }
    return all
}()

private let lengths = [1, 7, 0, 8, 9, 255, 256, 257, 0, 520, 33]

@Suite struct ObjectiveTests {
    @Test(arguments: instructionSets)
    func kernelsEqualTheReference(_ set: InstructionSet) throws {
        let kernels = try Execution(instructionSet: set).kernels()
        let data = ObjectiveData(seed: 1, lengths: lengths)
        for format in [Format.fp64, .fp32, .bf16] {
            try data.withBatch(format) { batch in
                for options in objectives {
                    let scan = try ObjectiveScan(batch, options, Execution(threads: 1, instructionSet: set))
                    for sequence in 0..<scan.sequences where scan.counts.base[sequence].tokens > 0 {
                        try expectReference(kernels, scan, sequence)
                    }
                }
            }
        }
    }

    @Test(arguments: instructionSets)
    func kernelsEqualTheReferenceWhereAllTokensDoTheSame(_ set: InstructionSet) throws {
        let kernels = try Execution(instructionSet: set).kernels()
        let data = ObjectiveData.plain(seed: 7, lengths: lengths)
        for format in [Format.fp64, .fp32, .bf16] {
            for bare in [false, true] {
                try data.withBatch(format, sequenceAdvantages: true, bare: bare) { batch in
                    for var options in objectives {
                        for kl in [KLEstimator.none, options.kl] {
                            options.kl = kl
                            if bare { options.entropyCoefficient = 0 }
                            let scan = try ObjectiveScan(
                                batch, options, Execution(threads: 1, instructionSet: set))
                            for sequence in 0..<scan.sequences where scan.counts.base[sequence].tokens > 0 {
                                try expectReference(kernels, scan, sequence)
                            }
                        }
                    }
                }
            }
        }
    }

    /// Without what leaves tokens out, in fp32: with bounds that act and bounds that do not.
    @Test(arguments: instructionSets)
    func kernelsEqualTheReferenceWhereNothingIsLeftOut(_ set: InstructionSet) throws {
        let kernels = try Execution(instructionSet: set).kernels()
        let data = ObjectiveData.plain(seed: 9, lengths: lengths)
        let terms = objectives.filter {
            $0.ratioLevel == .token && $0.term != .klCov && $0.term != .gmpo && $0.term != .vespo
        }
        for bare in [false, true] {
            try data.withBatch(.fp32, sequenceAdvantages: true, bare: bare, whole: true) { batch in
                for var options in terms {
                    options.entropyCoefficient = 0
                    options.klGradient = .direct
                    for (turn, kl) in [KLEstimator.none, .k3, .none, .k3, .k3, .k1].enumerated() {
                        options.kl = kl
                        options.dual = turn < 2 ? .infinity : 1.1
                        options.ratioMax = turn == 5 ? 1.2 : .infinity
                        options.klOutputMax = turn == 3 ? 0.01 : 10
                        (options.logRatioMin, options.logRatioMax) = turn == 4 ? (-0.4, 0.5) : (-20, 20)
                        let scan = try ObjectiveScan(
                            batch, options, Execution(threads: 1, instructionSet: set))
                        for sequence in 0..<scan.sequences where scan.counts.base[sequence].tokens > 0 {
                            try expectReference(kernels, scan, sequence)
                        }
                    }
                }
            }
        }
    }

    /// One advantage a sequence, or the same for each of its tokens.
    @Test func howAdvantagesAreGivenDoesNotShow() throws {
        let data = ObjectiveData.plain(seed: 8, lengths: lengths)
        for var options in objectives {
            (options.kl, options.entropyCoefficient) = (.none, 0)
            let found = try [true, false].map { sequenceAdvantages in
                try data.withBatch(.fp32, sequenceAdvantages: sequenceAdvantages, bare: true) {
                    try outcome(options, $0, Execution(threads: 1))
                }
            }
            #expect(found[0] == found[1], "\(options.term) \(options.ratioLevel)")
        }
    }

    private func expectReference(
        _ kernels: UnsafePointer<lsk_kernels>, _ scan: ObjectiveScan, _ sequence: Int
    ) throws {
        var (span, rule) = (scan.span(of: sequence, scan.extent(of: sequence)), scan.rule)
        let what = "\(scan.options.term) \(scan.options.ratioLevel) \(scan.options.kl) sequence \(sequence)"
        let tokens = ReferenceObjective.tokens(span, rule)
        let counts = scan.counts.base[sequence]
        #expect(counts.tokens == tokens.count { $0.counts } && counts.acting == tokens.count { $0.acts })
        var level: lsk_objective_level?
        if rule.level != LSK_RATIO_TOKEN {
            var (found, again) = (lsk_objective_level(), lsk_objective_counts())
            kernels.pointee.objective_level!(&found, &again, &span, &rule)
            #expect(bits(found) == bits(ReferenceObjective.level(span, rule)), "\(what)")
            #expect(bits(again) == bits(counts), "\(what)")
            level = found
        }
        var sums = lsk_objective_sums()
        var gradient = [Double](repeating: .nan, count: Int(span.count))
        var entropyGradient = gradient
        let fp64 = Format.fp64.rawValue
        if var found = level {
            kernels.pointee.objective_terms!(
                &sums, &gradient, fp64, &entropyGradient, fp64, &span, &rule, &found, 0.37)
        } else {
            kernels.pointee.objective_terms!(
                &sums, &gradient, fp64, &entropyGradient, fp64, &span, &rule, nil, 0.37)
        }
        let wanted = ReferenceObjective.terms(span, rule, level, factor: 0.37)
        #expect(bits(sums) == bits(wanted.sums), "\(what): \(sums) is not \(wanted.sums)")
        // A zero of either sign is the same gradient.
        #expect(
            gradient.map { $0 + 0 }.map(\.bitPattern) == wanted.gradient.map { ($0 + 0).bitPattern },
            "\(what)")
        #expect(entropyGradient == wanted.entropyGradient, "\(what)")
        // And in fp32, without that of entropies.
        var again = lsk_objective_sums()
        var narrow = [Float](repeating: .nan, count: Int(span.count))
        let fp32 = Format.fp32.rawValue
        if var found = level {
            kernels.pointee.objective_terms!(&again, &narrow, fp32, nil, fp32, &span, &rule, &found, 0.37)
        } else {
            kernels.pointee.objective_terms!(&again, &narrow, fp32, nil, fp32, &span, &rule, nil, 0.37)
        }
        #expect(bits(again) == bits(wanted.sums), "\(what): \(again) is not \(wanted.sums)")
        #expect(
            narrow.map { ($0 + 0).bitPattern } == wanted.gradient.map { (Float($0) + 0).bitPattern },
            "\(what)")
    }

    @Test(arguments: instructionSets)
    func divergencesEqualTheReference(_ set: InstructionSet) throws {
        let data = ObjectiveData(seed: 5, lengths: [300, 3])
        try data.withBatch { batch in
            for estimator in KLEstimator.allCases where estimator != .none {
                for gradient in KLGradient.allCases where gradient != .ratio {
                    var options = ObjectiveOptions()
                    (options.kl, options.klGradient, options.klOutputMax) = (estimator, gradient, 2)
                    options.klCoefficient = 0.5
                    var values = [Double](repeating: .nan, count: 303)
                    var slopes = values
                    try values.withUnsafeMutableBytes { values in
                        try slopes.withUnsafeMutableBytes { slopes in
                            try klPenalty(
                                into: MutableMatrixView(values.baseAddress, .fp64, rows: 1, columns: 303),
                                gradients: MutableMatrixView(
                                    slopes.baseAddress, .fp64, rows: 1, columns: 303),
                                of: batch, options: options, execution: Execution(instructionSet: set))
                        }
                    }
                    let scan = try ObjectiveScan(batch, options, divergenceOnly: true, Execution(threads: 1))
                    var wanted: [(Double, Double)] = []
                    for sequence in 0..<2 {
                        let span = scan.span(of: sequence, 0..<[300, 3][sequence])
                        wanted += ReferenceObjective.tokens(span, scan.rule).map { token in
                            let kl = ReferenceObjective.divergence(token, scan.rule)
                            let weight = 0.5 * token.weight
                            return token.counts ? (weight * kl.value, weight * kl.slope) : (0, 0)
                        }
                    }
                    #expect(
                        values == wanted.map(\.0) && slopes == wanted.map(\.1), "\(estimator) \(gradient)")
                }
            }
        }
    }

    /// All that a loss gives, as bits.
    private func outcome(
        _ options: ObjectiveOptions, _ batch: TokenBatch, _ execution: Execution
    ) throws -> (report: String, gradient: [UInt64]) {
        var gradient = [Double](repeating: .nan, count: batch.layout.tokens)
        let report = try gradient.withUnsafeMutableBytes { bytes in
            try Objective.loss(
                options, of: batch,
                gradient: MutableMatrixView(
                    bytes.baseAddress, .fp64, rows: batch.layout.rows, columns: batch.layout.columns),
                execution: execution)
        }
        return ("\(report) \(report.loss.bitPattern)", gradient.map(\.bitPattern))
    }

    @Test func threadsAndInstructionSetsDoNotShow() throws {
        let data = ObjectiveData(seed: 2, lengths: [70_000, 3, 0, 70_001, 5000, 140_000])
        try data.withBatch { batch in
            for options in objectives.prefix(8) {
                let wanted = try outcome(options, batch, Execution(threads: 1, instructionSet: .baseline))
                for set in instructionSets {
                    for threads in [1, 2, 5] {
                        let found = try outcome(
                            options, batch, Execution(threads: threads, instructionSet: set))
                        #expect(found == wanted)
                    }
                }
            }
        }
    }

    @Test func aTokenWithoutAFiniteValueIsNamedOrDropped() throws {
        var data = ObjectiveData(seed: 3, lengths: [4, 300])
        data.mask = data.mask.map { _ in 1 }
        for array in data.arrays.indices {
            for index in 0..<304 where data.arrays[array][index].isNaN { data.arrays[array][index] = 0.5 }
        }
        let names = [
            "current_log_probs", "trainer_log_probs", "reference_log_probs", "entropies", "advantages",
            "weights",
        ]
        var options = ObjectiveOptions()
        (options.kl, options.entropyCoefficient) = (.k3, 0.1)
        for (array, name) in names.enumerated() {
            for value in [Double.nan, .infinity, -.infinity] {
                var broken = data
                broken.arrays[array][4 + 280] = value
                try broken.withBatch { batch in
                    #expect {
                        try Objective.loss(options, of: batch)
                    } throws: { error in
                        let error = error as! LockstepError
                        return error.kind == .nonFinite
                            && error.message.hasPrefix("\(name): sequence 1, position 280")
                    }
                    options.nonFinite = .exclude
                    let report = try Objective.loss(options, of: batch)
                    #expect(report.tokens == 303 && report.excludedTokens == 1 && report.loss.isFinite)
                    options.nonFinite = .strict
                }
            }
        }
    }
}
