import Glibc
import Testing

@testable import Lockstep

/// Formats of any number of mantissa bits, whose values are stored in floats.
@Suite struct EmulatedFormatsTests {
    /// e8m7 and bf16, e5m10 and fp16, e5m2 and fp8 e5m2, e8m23 and fp32: the same values under two names.
    static let twins: [(emulated: String, stored: Format)] = [
        ("e8m7", .bf16), ("e5m10", .fp16), ("e5m2", .e5m2), ("e8m23", .fp32),
    ]

    @Test func namesAndCodes() {
        #expect(Format.allCases.count == 39 && Set(Format.allCases).count == 39)
        for format in Format.allCases {
            #expect(Format(format.description) == format && Format(rawValue: format.rawValue) == format)
            #expect(format.isEmulated == Format.emulated.contains(format))
            #expect(format.storage == (format.isEmulated ? .fp32 : format))
        }
        #expect(
            Format.emulated.map(\.description) == (1...23).map { "e8m\($0)" } + (1...10).map { "e5m\($0)" })
        for name in ["e8m0", "e8m24", "e5m0", "e5m11", "e4m3", "e8m05", "E8M5", "e8m", ""] {
            #expect(Format(name) == nil, "\(name)")
        }
        for code in [-1, 6, 255, 8 << 8, 8 << 8 | 24, 5 << 8 | 11, 4 << 8 | 3, Int32.max] as [Int32] {
            #expect(Format(rawValue: code) == nil, "\(code)")
        }
    }

    /// Every pattern and midpoint of the hard cases, from fp32 and fp64: the bits of the stored twin, widened.
    @Test(arguments: twins.indices, [Format.fp32, .fp64])
    func twinsAreEqual(_ twin: Int, _ source: Format) throws {
        let (name, stored) = Self.twins[twin]
        let emulated = Format(name)!
        let input = Patterns.bytes(source)
        for rounding in roundings {
            for set in instructionSets {
                let execution = Execution(threads: 2, instructionSet: set)
                func through(_ format: Format) throws -> (bytes: [UInt8], counts: ConversionCounts) {
                    try converted(input, source, format) {
                        try convert($0, into: $1, rounding: rounding, execution: execution)
                    }
                }
                let (codes, wanted) = try through(stored)
                let wide = try converted(codes, stored, .fp32) { try convert($0, into: $1) }.bytes
                let found = try through(emulated)
                // fp32 to fp32 copies: a signalling NaN stays one. To e8m23 it becomes quiet, as between any two formats.
                let isCopy = source == stored
                #expect(found.bytes == (isCopy ? Self.quiet(wide) : wide), "\(name) \(rounding) \(set)")
                #expect(found.counts == wanted, "\(name) \(rounding) \(set)")
            }
        }
    }

    private static func quiet(_ bytes: [UInt8]) -> [UInt8] {
        bytes.withUnsafeBytes { $0.bindMemory(to: Float.self).map { $0.isNaN ? $0 + 1 : $0 } }
            .withUnsafeBytes { Array($0) }
    }

    /// All 65,536 patterns of bf16 are values of e8m7, all of fp16 of e5m10: nothing is rounded, and back.
    @Test(arguments: [("e8m7", Format.bf16), ("e5m10", .fp16)])
    func patternsOfTheTwinStay(name: String, stored: Format) throws {
        let patterns = Patterns.bytes(stored)
        let emulated = Format(name)!
        let wide = try converted(patterns, stored, .fp32) { try convert($0, into: $1) }.bytes
        for rounding in roundings {
            let there = try converted(patterns, stored, emulated) {
                try convert($0, into: $1, rounding: rounding)
            }
            #expect(there.bytes == wide && there.counts.overflow == 0 && there.counts.underflow == 0)
            let back = try converted(there.bytes, emulated, stored) {
                try convert($0, into: $1, rounding: rounding)
            }
            #expect(try converted(back.bytes, stored, .fp32) { try convert($0, into: $1) }.bytes == wide)
        }
    }

    /// Floats that are hard for a format: values, midpoints, a step of fp32 beside both, in every octave; every multiple
    /// of half a step of fp16's range below its normals; the ends; and any bits at all.
    private static func hardFloats(_ format: Format) -> [UInt32] {
        let mantissa = Int(format.rawValue & 0xff)
        let dropped: UInt32 = 1 << UInt32(23 - mantissa) - 1
        let half = (dropped + 1) / 2
        let random = Philox4x32(seed: UInt64(mantissa))
        var bits: [UInt32] = []
        for exponent in 0...255 as ClosedRange<UInt32> {
            for draw in 0..<6 as Range<UInt32> {
                // All bits set carries into the exponent.
                let kept =
                    draw == 0
                    ? 0x7f_ffff : draw == 1 ? 0 : random.word(UInt64(exponent * 8 + draw)) & 0x7f_ffff
                let base = exponent << 23 | kept & ~dropped
                bits += [0, 1, half &- 1, half, half + 1, dropped].map { base | $0 & dropped }
            }
        }
        for step in 0..<4 * (1 << mantissa) where format.rawValue >> 8 == 5 {
            let value = Float(step) / 2 * Float(sign: .plus, exponent: -14 - mantissa, significand: 1)
            bits += [value.bitPattern, value.nextUp.bitPattern, value.nextDown.magnitude.bitPattern]
        }
        bits += [0x7f80_0000, 0x7f80_0001, 0x7fc0_0000, 0x7fff_ffff, 1, 0x7f_ffff]
        for index in 0..<4000 as Range<UInt64> { bits.append(random.word(index + 1 << 32)) }
        return bits + bits.map { $0 | 1 << 31 }
    }

    @Test(arguments: Format.emulated) func kernelsEqualTheReference(_ format: Format) throws {
        let floats = Self.hardFloats(format)
        // As doubles, and a step of fp64 beside: just above and below what was a tie.
        let doubles =
            floats.flatMap { (bits: UInt32) -> [UInt64] in
                let exact = Double(Float(bitPattern: bits)).bitPattern
                return [exact, exact + 1, exact == 0 ? exact : exact - 1]
            } + [0x7fef_ffff_ffff_ffff, 0x0010_0000_0000_0000, 1, 0x8000_0000_0000_0001]
        let sources: [(Format, [UInt8])] = [
            (.fp32, floats.withUnsafeBytes { Array($0) }), (.fp64, doubles.withUnsafeBytes { Array($0) }),
            (.fp16, Patterns.bytes(.fp16)), (.e4m3fn, Patterns.bytes(.e4m3fn)),
            (Format("e8m9")!, floats.withUnsafeBytes { Array($0) }),
        ]
        for (source, input) in sources {
            for rounding in roundings {
                let wanted = converted(input, source, format) {
                    ReferenceFormats.convert($0, into: $1, rounding: rounding)
                }
                for set in instructionSets {
                    let found = try converted(input, source, format) {
                        try convert(
                            $0, into: $1, rounding: rounding,
                            execution: Execution(threads: 1, instructionSet: set))
                    }
                    #expect(found.bytes == wanted.bytes, "\(source) to \(format), \(rounding), \(set)")
                    #expect(found.counts == wanted.counts, "\(source) to \(format), \(rounding), \(set)")
                }
            }
        }
        // Out of an emulated format, the floats that are there are read.
        for destination in [Format.fp32, .fp64, .fp16, .e5m2, format] {
            for rounding in roundings {
                let input = sources[0].1
                let wanted = converted(input, destination == format ? format : .fp32, destination) {
                    ReferenceFormats.convert($0, into: $1, rounding: rounding)
                }
                let found = try converted(input, format, destination) {
                    try convert($0, into: $1, rounding: rounding)
                }
                #expect(
                    found.bytes == wanted.bytes && found.counts == wanted.counts,
                    "\(format) to \(destination)")
            }
        }
    }

    /// The reference by what rounding means: no value of the format is nearer, and of two as near it is the even one.
    @Test(arguments: Format.emulated) func theReferenceIsTheNearest(_ format: Format) {
        let (exponentBits, mantissa) = (Int(format.rawValue >> 8), Int(format.rawValue & 0xff))
        let bias = 1 << (exponentBits - 1) - 1
        for bits in Self.hardFloats(format) {
            let x = Float(bitPattern: bits)
            let found = ReferenceFormats.rounded(x, format)
            if x.isNaN { #expect(found.isNaN && found.sign == x.sign); continue }
            // The neighbours are multiples of the step of x's octave: exact in float64, a tie is equality.
            let exponent = x.isZero || x.isInfinite ? -bias : max(Int(x.exponent), 1 - bias)
            let steps = x.isInfinite ? Double(x) : scalbn(Double(x), Int32(mantissa - exponent))
            let nearest = scalbn(steps.rounded(.toNearestOrEven), Int32(exponent - mantissa))
            let beyond = nearest.magnitude >= scalbn(1, Int32(bias + 1))
            let wanted =
                beyond
                ? Float(signOf: x, magnitudeOf: .infinity) : Float(signOf: x, magnitudeOf: Float(nearest))
            #expect(found.bitPattern == wanted.bitPattern, "\(format): \(x) gives \(found), not \(wanted)")
            if found.bitPattern != wanted.bitPattern { return }
        }
    }

    @Test func distancesAreInTheFormatsSteps() throws {
        func distance(_ a: Float, _ b: Float, _ name: String) throws -> UInt64 {
            var (left, right, found) = (a, b, UInt64.max)
            try ulpDistance(
                TensorView(&left, Format(name)!, shape: [1]), TensorView(&right, Format(name)!, shape: [1]),
                into: &found)
            return found
        }
        #expect(try distance(1, 1.5, "e8m4") == 8)
        #expect(try distance(-1, 1.5, "e8m1") == distance(0, 1, "e8m1") * 2 + 1)
        #expect(try distance(-0.0, 0x1p-24, "e5m10") == 1)
        #expect(try distance(65_504, .infinity, "e5m10") == 1)
        #expect(try distance(1, 1.01, "e8m3") == 0)  // no value of e8m3: the nearest is 1
        #expect(try distance(.nan, 1, "e8m3") == .max)
    }

    /// Values of emulated formats are floats: functions of log-probs take them as fp32, and say so.
    @Test func otherFunctionsRefuseWithAHint() {
        let values: [Float] = [1, 2]
        values.withUnsafeBytes { bytes in
            let error = #expect(throws: LockstepError.self) {
                try Head(weight: MatrixView(bytes.baseAddress, Format("e8m5")!, rows: 1, columns: 2))
            }
            #expect(error?.kind == .invalidArgument && error?.message.contains("give them as fp32") == true)
        }
    }
}

/// Whole models in emulated formats.
@Suite struct EmulatedModelTests {
    private static func model(_ family: String, _ recipe: Recipe) throws -> Model {
        try Model(path: "\(ModelTests.folder)/\(family)", recipe: recipe)
    }

    /// The whole of a model, scored and drawn from: e8m7 is bf16, e5m10 is fp16, e8m23 is fp32, to the bit.
    @Test(
        arguments: ModelTests.families,
        [
            ("e8m7", "bf16"), ("e5m10", "fp16"), ("e8m23", "fp32"), ("e8m7-fp32head", "bf16-fp32head"),
            ("e8m7+eager", "bf16+eager"), ("e5m10+eager", "fp16+eager"), ("e8m23+eager", "fp32+eager"),
            ("e8m7+fused", "bf16+fused"), ("e8m7+flash", "bf16+flash"),
        ])
    func modelsAreTheirTwins(family: String, names: (emulated: String, stored: String)) throws {
        let emulated = try Self.model(family, Recipe(named: names.emulated))
        let stored = try Self.model(family, Recipe(named: names.stored))
        let (tokens, _) = try ModelTests.expected(family)
        for entropy in [false, true] {
            let wanted = try ModelTests.score(stored, tokens, entropy: entropy)
            for set in instructionSets {
                let execution = Execution(threads: 2, instructionSet: set)
                #expect(
                    try ModelTests.score(emulated, tokens, execution, entropy: entropy) == wanted, "\(set)")
            }
        }
        #expect(try Self.draw(emulated, tokens) == Self.draw(stored, tokens))
    }

    /// A part at a time: every store is rounded, and none but those.
    @Test func partsAreTheirTwins() throws {
        let (tokens, _) = try ModelTests.expected("qwen3_moe")
        let plain = try ModelTests.score(Self.model("qwen3_moe", Recipe(.fp32)), tokens)
        for path in [\Recipe.activations, \.cache, \.probabilities, \.logits] {
            for (name, format) in [("e8m7", Format.bf16), ("e5m10", .fp16)] {
                var (emulated, stored) = (Recipe(.fp32), Recipe(.fp32))
                emulated[keyPath: path] = Format(name)!
                stored[keyPath: path] = format
                let found = try ModelTests.score(Self.model("qwen3_moe", emulated), tokens)
                #expect(try found == ModelTests.score(Self.model("qwen3_moe", stored), tokens), "\(emulated)")
                #expect(found != plain, "\(emulated)")
            }
        }
        // The weights of the vectors are bf16's: fewer bits change them.
        var recipe = Recipe(.fp32)
        recipe.parameters = Format("e8m7")!
        #expect(try ModelTests.score(Self.model("qwen3_moe", recipe), tokens) == plain)
        recipe.parameters = Format("e8m6")!
        #expect(try ModelTests.score(Self.model("qwen3_moe", recipe), tokens) != plain)
    }

    @Test func overflowIsAnError() throws {
        var checkpoint = try TinyCheckpoint("llama_untied")
        checkpoint.set(
            "model.layers.0.input_layernorm.weight",
            checkpoint.tensors["model.layers.0.input_layernorm.weight"]!.shape,
            checkpoint.values("model.layers.0.input_layernorm.weight").map { Float($0) * 1e5 })
        _ = try ModelTests.score(checkpoint.model(Recipe(named: "e8m3")), [[1, 2, 3]])
        let error = #expect(throws: LockstepError.self) {
            try ModelTests.score(checkpoint.model(Recipe(named: "e5m3")), [[1, 2, 3]])
        }
        #expect(error?.kind == .nonFinite && error?.message.contains("e5m3") == true)
    }

    /// Tokens drawn after some prompts, with their log-probs.
    private static func draw(_ model: Model, _ prompts: [[Int32]], samples: UInt64 = 2) throws -> [Rollout] {
        let engine = try RolloutEngine(
            model, settings: SamplingSettings(seed: 3, maxTokens: 24), capacity: 32,
            execution: .init(threads: 2))
        for (index, prompt) in prompts.enumerated() {
            let first = UInt64(index) * samples
            try engine.add(prompt: Array(prompt.prefix(4)), ids: Array(first..<first + samples))
        }
        var rollouts: [Rollout] = []
        while !engine.isIdle { rollouts += try engine.step() }
        return rollouts.sorted { $0.id < $1.id }
    }

    /// The law: noise goes with 2^-N, so the divergence of two engines with 4^-N.
    ///
    /// A rollout engine in e8mN beside a trainer in fp32 with the same weights. KL(mu || pi) is estimated over the tokens
    /// that were drawn, each term exp(d) - 1 - d; the slope of its logarithm in N is fitted over N = 3 to 10.
    @Test(arguments: ["llama_untied", "qwen3_qknorm"]) func divergenceGoesWithTheBits(family: String) throws {
        var points: [(bits: Double, log: Double)] = []
        for bits in 3...10 {
            var recipe = try Recipe(named: "e8m\(bits)")
            let rollout = try Self.model(family, recipe)
            let weights = recipe.parameters
            recipe = Recipe(.fp32)
            recipe.parameters = weights
            let trainer = try Self.model(family, recipe)
            let prompts = (0..<24).map { ModelTests.tokens(4, vocab: 90, seed: $0) }
            let drawn = try Self.draw(rollout, prompts, samples: 4)
            let whole = drawn.map { prompts[Int($0.id / 4)] + $0.tokens }
            var (sum, count) = (0.0, 0.0)
            for (rollout, scores) in zip(drawn, try ModelTests.score(trainer, whole, .init(threads: 2))) {
                for (p, q) in zip(scores.suffix(rollout.tokens.count), rollout.rawLogProbs) {
                    sum += expm1(p - q) - (p - q)
                    count += 1
                }
            }
            #expect(count > 2000)
            points.append((Double(bits), log(sum / count)))
        }
        let n = Double(points.count)
        let (x, y) = (points.reduce(0) { $0 + $1.bits } / n, points.reduce(0) { $0 + $1.log } / n)
        let slope =
            points.reduce(0) { $0 + ($1.bits - x) * ($1.log - y) }
            / points.reduce(0) { $0 + ($1.bits - x) * ($1.bits - x) }
        #expect(abs(-slope / log(4) - 1) < 0.25, "a factor of \(exp(-slope)) a bit: \(points)")
    }
}
