import CLockstepKernels

/// The plain form of the mismatch sums: one token at a time, in loops a reader can check by eye.
///
/// The kernels equal it bit for bit, on every instruction set.
enum ReferenceMismatch {
    /// One counted token.
    struct Token {
        let trainer, rollout: Double
        /// d = ln p - ln q.
        var logRatio: Double { trainer - rollout + 0 }
        /// exp(d) - 1 - d.
        let k3: Double
        /// exp(d).
        let ratio: Double
        /// exp|d|.
        let expMagnitude: Double
        /// p + q.
        let sum: Double
        /// p - q.
        let gap: Double

        init(trainer: Double, rollout: Double) {
            self.trainer = trainer
            self.rollout = rollout
            let d = trainer - rollout + 0
            let e = ExpParts(d < -limit ? -limit : d > limit ? limit : d)
            ratio = d > limit ? .infinity : e.ofX
            expMagnitude = d.magnitude > limit ? .infinity : greater(e.ofX, e.ofMinusX)
            k3 = d > limit ? .infinity : fma(e.scale, e.qPlus, (e.scale - 1) + fma(e.scale, e.r, -d))
            // From the larger probability: the smaller one is that times exp(-|d|).
            let larger = exponential(greater(trainer, rollout))
            let shrink = e.ofX < e.ofMinusX ? e.ofX : e.ofMinusX
            let (up, down) = (e.ofXLessOne, e.ofMinusXLessOne)
            let difference = larger * -(up < down ? up : down)
            sum = fma(larger, shrink, larger)
            gap = d < 0 ? -difference : difference
        }
    }

    /// exp(x) and exp(-x), for |x| <= 709: x = n ln 2 + r, the even and the odd half of the series in r.
    struct ExpParts {
        let scale, inverse, r, qPlus, qMinus: Double

        init(_ x: Double) {
            let magic = 0x1.8p52  // adding it rounds to an integer
            let n = fma(x, 0x1.71547652b82fep0, magic) - magic
            r = fma(n, -0x1.abc9e3b39803fp-56, fma(n, -0x1.62e42fefa39efp-1, x))
            let z = r * r
            var (even, odd) = (1.0 / 479_001_600, 1.0 / 6_227_020_800)  // 1/12! and 1/13!
            for (a, b) in [(3_628_800.0, 39_916_800.0), (40320, 362_880), (720, 5040), (24, 120), (2, 6)] {
                even = fma(even, z, 1 / a)
                odd = fma(odd, z, 1 / b)
            }
            let cube = r * z
            let square = even * z
            qPlus = fma(cube, odd, square)
            qMinus = fma(-cube, odd, square)
            scale = Double(bitPattern: UInt64(1023 + Int(n)) << 52)
            inverse = Double(bitPattern: UInt64(1023 - Int(n)) << 52)
        }

        var ofX: Double { fma(scale, r + qPlus, scale) }
        var ofMinusX: Double { fma(inverse, qMinus - r, inverse) }
        var ofXLessOne: Double { fma(scale, r + qPlus, scale - 1) }
        var ofMinusXLessOne: Double { fma(inverse, qMinus - r, inverse - 1) }
    }

    /// exp(x) for any x but NaN.
    static func exponential(_ x: Double) -> Double {
        x > limit ? .infinity : ExpParts(x < -limit ? -limit : x).ofX
    }

    /// The tokens of a span: nil where one does not count.
    static func tokens(_ span: lsk_mismatch_span) -> [Token?] {
        let count = Int(span.count)
        let trainer = VectorView(span.trainer, Format(rawValue: span.trainer_format)!, count: count)
        let rollout = VectorView(span.rollout, Format(rawValue: span.rollout_format)!, count: count)
        return (0..<count).map { index in
            if let mask = span.mask, mask[index] == 0 { return nil }
            let (a, b) = (trainer.double(index), rollout.double(index))
            return a.isFinite && b.isFinite ? Token(trainer: a, rollout: b) : nil
        }
    }

    /// The sums of a span.
    static func sums(_ span: lsk_mismatch_span) -> lsk_mismatch_sums {
        let tokens = tokens(span)
        var sums = lsk_mismatch_sums()
        let maskedIn = span.mask.map { mask in (0..<tokens.count).count { mask[$0] != 0 } } ?? tokens.count
        let counted = tokens.compactMap { $0 }
        sums.tokens = Int64(counted.count)
        sums.non_finite = Int64(maskedIn - counted.count)
        sums.differing = Int64(counted.count { $0.trainer.bitPattern != $0.rollout.bitPattern })
        sums.outside.0 = outside(counted, -0x1.06466ffffffffp-10, 0x1.05e1dffffffffp-9)
        sums.outside.1 = outside(counted, -0x1.49544ffffffffp-7, 0x1.460d6ffffffffp-7)
        sums.outside.2 = outside(counted, -0x1.a431cffffffffp-5, 0x1.8fb05ffffffffp-5)
        sums.outside.3 = outside(counted, -0x1.af8e7ffffffffp-4, 0x1.8663effffffffp-4)

        sums.log_ratio = sumInLanes(tokens) { $0 + $1.logRatio }
        sums.square = sumInLanes(tokens) { fma($1.logRatio, $1.logRatio, $0) }
        sums.magnitude = sumInLanes(tokens) { $0 + $1.logRatio.magnitude }
        sums.k3 = sumInLanes(tokens) { $0 + $1.k3 }
        sums.ratio = sumInLanes(tokens) { $0 + $1.ratio }
        sums.ratio_square = sumInLanes(tokens) { fma($1.ratio, $1.ratio, $0) }
        sums.exp_magnitude = sumInLanes(tokens) { $0 + $1.expMagnitude }
        sums.probability_gap = sumInLanes(tokens) { $0 + $1.gap.magnitude }
        sums.rollout = sumInLanes(tokens) { $0 + $1.rollout }

        let sumShift = counted.first?.sum ?? 0
        let gapShift = counted.first?.gap ?? 0
        sums.sum_shift = sumShift
        sums.gap_shift = gapShift
        sums.sum = sumInLanes(tokens) { $0 + ($1.sum - sumShift) }
        sums.sum_square = sumInLanes(tokens) { fma($1.sum - sumShift, $1.sum - sumShift, $0) }
        sums.gap = sumInLanes(tokens) { $0 + ($1.gap - gapShift) }
        sums.gap_square = sumInLanes(tokens) { fma($1.gap - gapShift, $1.gap - gapShift, $0) }
        sums.sum_gap = sumInLanes(tokens) { fma($1.sum - sumShift, $1.gap - gapShift, $0) }

        sums.largest = -1
        for (index, token) in tokens.enumerated() {
            guard let token else { continue }
            if token.logRatio.magnitude > sums.largest {
                sums.largest = token.logRatio.magnitude
                sums.largest_at = Int64(index)
            }
            sums.largest_gap = greater(token.gap.magnitude, sums.largest_gap)
        }
        return sums
    }

    /// A bucket of a profile: tokens, and sums of d, k3 and |d|.
    typealias Bucket = [Double]

    /// The buckets by position of a span, when `before` counted tokens of its sequence came earlier.
    ///
    /// Tokens that are in one bucket and in one chunk of 256 are a run, which begins behind the last counted token of
    /// the run before: four sums, of every fourth of its tokens, added as (0 + 2) + (1 + 3).
    static func positions(_ span: lsk_mismatch_span, before: Int) -> [Bucket] {
        let tokens = tokens(span)
        var buckets = [Bucket](repeating: [0, 0, 0, 0], count: Int(LSK_POSITION_BUCKETS))
        var position = before
        for start in stride(from: 0, to: tokens.count, by: 256) {
            var runs: [(bucket: Int, start: Int, end: Int)] = []
            let end = min(start + 256, tokens.count)
            for index in start..<end where tokens[index] != nil {
                let bucket = positionBucket(position)
                if runs.last?.bucket != bucket { runs.append((bucket, runs.last?.end ?? start, index)) }
                runs[runs.count - 1].end = index + 1
                position += 1
            }
            for run in runs {
                var lanes = [Bucket](repeating: [0, 0, 0, 0], count: 4)
                for (index, token) in tokens[run.start..<run.end].enumerated() {
                    if let token { add(token, to: &lanes[index % 4]) }
                }
                for (term, value) in added(lanes).enumerated() { buckets[run.bucket][term] += value }
            }
        }
        return buckets
    }

    /// Adds a token to a bucket.
    private static func add(_ token: Token, to bucket: inout Bucket) {
        let terms = [1, token.logRatio, token.k3, token.logRatio.magnitude]
        for (term, value) in terms.enumerated() { bucket[term] += value }
    }

    /// Four buckets as one.
    private static func added(_ lanes: [Bucket]) -> Bucket {
        (0..<4).map { (lanes[0][$0] + lanes[2][$0]) + (lanes[1][$0] + lanes[3][$0]) }
    }

    /// The last bucket that begins at or before a position.
    private static func positionBucket(_ position: Int) -> Int {
        var edges = [0, 1]
        for octave in 1...20 { edges += [1 << octave, 3 << (octave - 1)] }
        return edges.lastIndex { $0 <= position }!
    }

    /// The buckets by probability of a span: four sums, of every fourth token, added as (0 + 2) + (1 + 3).
    static func probabilities(_ span: lsk_mismatch_span) -> [Bucket] {
        let count = Int(LSK_PROBABILITY_BUCKETS)
        var lanes = [[Bucket]](
            repeating: [Bucket](repeating: [0, 0, 0, 0], count: count), count: 4)
        var edges: [Double] = []  // of -ln q
        for octave in -20...5 {
            edges += [1, 1.5].map { Double(sign: .plus, exponent: octave, significand: $0) }
        }
        edges.append(64)
        for (index, token) in tokens(span).enumerated() {
            guard let token else { continue }
            let bucket = count - 1 - edges.count { $0 <= -token.rollout }
            add(token, to: &lanes[index % 4][bucket])
        }
        return (0..<count).map { bucket in added(lanes.map { $0[bucket] }) }
    }

    /// Eight sums, of every eighth token; then halves are added: 8 to 4 to 2 to 1.
    private static func sumInLanes(_ tokens: [Token?], _ add: (Double, Token) -> Double) -> Double {
        var lanes = [Double](repeating: 0, count: 8)
        for (index, token) in tokens.enumerated() {
            if let token { lanes[index % 8] = add(lanes[index % 8], token) }
        }
        for half in [4, 2, 1] {
            for lane in 0..<half { lanes[lane] += lanes[lane + half] }
        }
        return lanes[0]
    }

    /// Tokens with d outside [low, high], the logarithms of a band of the ratio to 21 bits.
    private static func outside(_ tokens: [Token], _ low: Double, _ high: Double) -> Int64 {
        Int64(tokens.count { $0.logRatio < low || $0.logRatio > high })
    }

    /// Where exp begins to be infinite.
    private static let limit = 709.0

    private static func greater(_ a: Double, _ b: Double) -> Double { a > b ? a : b }

    /// a * b + c, rounded once.
    private static func fma(_ a: Double, _ b: Double, _ c: Double) -> Double { c.addingProduct(a, b) }
}
