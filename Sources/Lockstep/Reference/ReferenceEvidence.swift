import CLockstepKernels

/// The plain form of the evidence kernel: one token at a time.
///
/// The kernel equals it bit for bit, on every instruction set.
enum ReferenceEvidence {
    /// A token of a span.
    private struct Token {
        let trainer, rollout: Double
        let counted: Bool
        /// Counts, and is neither first nor last of a run.
        let inner: Bool
        let isFirst, isLast: Bool
        let ratio: Double
        /// d / s and ln q / s, with s = max(1 - the smaller probability, 2^-20).
        let z, x: Double
        let scale, octave: Int

        var logRatio: Double { trainer - rollout }
        /// Both log-probs are those of a token whose policies can be compared.
        var isProper: Bool { trainer < 0 && rollout < 0 && trainer > -1000 && rollout > -1000 }
        var isPlain: Bool { inner && isProper }
    }

    /// The evidence of a span, and its tokens by row and octave.
    static func evidence(
        _ span: lsk_mismatch_span, startsSequence: Bool, endsSequence: Bool
    ) -> (sums: lsk_evidence, counts: [UInt64]) {
        let tokens = tokens(span, startsSequence, endsSequence)
        let octaves = Int(LSK_EVIDENCE_OCTAVES)
        var sums = lsk_evidence()
        var counts = [UInt64](repeating: 0, count: Int(LSK_EVIDENCE_BINS) - 1)
        for token in tokens where token.counted && token.isProper {
            if token.isPlain {
                counts[(2 * token.scale + (token.logRatio > 0 ? 1 : 0)) * octaves + token.octave] += 1
            }
            if token.isFirst {
                counts[Int(LSK_EVIDENCE_FIRST_ROW) * octaves + token.octave] += 1
                sums.first += 1
                sums.first_square += token.logRatio * token.logRatio
            }
            if token.isLast {
                counts[Int(LSK_EVIDENCE_LAST_ROW) * octaves + token.octave] += 1
                sums.last += 1
                sums.last_square += token.logRatio * token.logRatio
            }
        }
        sums.trainer = side(tokens, \.trainer, \.rollout)
        sums.rollout = side(tokens, \.rollout, \.trainer)
        let plain = tokens.filter(\.isPlain)
        sums.plain = Int64(plain.count)
        sums.up = Int64(plain.count { $0.logRatio > 0 })
        sums.equal = Int64(plain.count { $0.logRatio == 0 })
        func sum(_ add: (Double, Token) -> Double) -> Double {
            sumInLanes(tokens.map { $0.isPlain ? $0 : nil }, add)
        }
        func squared(_ sum: Double, _ x: Double) -> Double { sum.addingProduct(x, x) }
        sums.z = sum { $0 + $1.z }
        sums.zz = sum { squared($0, $1.z) }
        sums.x = sum { $0 + $1.x }
        sums.xx = sum { squared($0, $1.x) }
        sums.xz = sum { $0.addingProduct($1.x, $1.z) }
        sums.log_ratio = sum { $0 + $1.logRatio }
        sums.square = sum { squared($0, $1.logRatio) }
        sums.rise = sum { $0 + max($1.logRatio, 0) }
        sums.rise_square = sum { squared($0, max($1.logRatio, 0)) }
        sums.ratio = sum { $0 + $1.ratio }
        sums.trainer_square = sum { squared($0, $1.trainer) }
        sums.rollout_square = sum { squared($0, $1.rollout) }
        addPairs(tokens, to: &sums)
        return (sums, counts)
    }

    private static func tokens(
        _ span: lsk_mismatch_span, _ startsSequence: Bool, _ endsSequence: Bool
    ) -> [Token] {
        let found = ReferenceMismatch.tokens(span)
        return found.indices.map { index in
            let before = index == 0 ? !startsSequence : counts(span, found, index - 1, across: index)
            let after =
                index + 1 == found.count ? !endsSequence : counts(span, found, index + 1, across: index + 1)
            let token = found[index]
            let (a, b) = (token?.trainer ?? 0, token?.rollout ?? 0)
            let larger = ReferenceMismatch.exponential(max(a, b))
            let s = max(1 - ((token?.sum ?? 2) - larger), 0x1p-20)
            let inverse = Double(1 / Float(s))
            let z = (a - b) * inverse
            return Token(
                trainer: a, rollout: b, counted: token != nil, inner: token != nil && before && after,
                isFirst: token != nil && !before, isLast: token != nil && !after, ratio: token?.ratio ?? 0,
                z: z, x: b * inverse, scale: min(max(-1 - Int(s.exponent), 0), Int(LSK_EVIDENCE_SCALES) - 1),
                octave: octave(of: z))
        }
    }

    /// Whether a neighbour counts.
    ///
    /// Ahead of a multiple of 256 (`boundary`) the kernel sees only the mask of the next token.
    private static func counts(
        _ span: lsk_mismatch_span, _ found: [ReferenceMismatch.Token?], _ neighbour: Int, across boundary: Int
    ) -> Bool {
        if boundary == neighbour, neighbour % 256 == 0 { return span.mask.map { $0[neighbour] != 0 } ?? true }
        return found[neighbour] != nil
    }

    private static func octave(of z: Double) -> Int {
        let exponent = Int(z.exponentBitPattern) - 1023 - Int(LSK_EVIDENCE_LOWEST)
        return min(max(exponent, 0), Int(LSK_EVIDENCE_OCTAVES) - 1)
    }

    private static func side(
        _ tokens: [Token], _ own: KeyPath<Token, Double>, _ other: KeyPath<Token, Double>
    ) -> lsk_evidence_side {
        let counted = tokens.filter(\.counted)
        let sampled = tokens.prefix(256).filter { $0.counted && $0[keyPath: own].magnitude >= 0.25 }
        func count(_ condition: (Double, Double) -> Bool) -> Int64 {
            Int64(counted.count { condition($0[keyPath: own], $0[keyPath: other]) })
        }
        func onGrid(significandBits: Int) -> Int64 {
            let rest = UInt64(1) << UInt64(52 - significandBits) - 1
            return Int64(sampled.count { $0[keyPath: own].significandBitPattern & rest == 0 })
        }
        return lsk_evidence_side(
            tested: Int64(sampled.count), bf16_grid: onGrid(significandBits: 7),
            fp16_grid: onGrid(significandBits: 10), above_zero: count { x, _ in x > 0 },
            marks: count { x, _ in x <= -1000 }, zero: count { x, y in x == 0 && y < -0x1p-10 },
            zero_far: count { x, y in x == 0 && y < -1 })
    }

    private static func addPairs(_ tokens: [Token], to sums: inout lsk_evidence) {
        let pairs = tokens.indices.map { index -> (Token, Token)? in
            guard index + 1 < tokens.count, (index + 1) % 256 != 0, tokens[index].isPlain,
                tokens[index + 1].isPlain
            else { return nil }
            return (tokens[index], tokens[index + 1])
        }
        sums.pairs = Int64(pairs.count { $0 != nil })
        sums.ahead = sumInLanes(pairs) { $0 + ($1.0.trainer - $1.1.rollout).magnitude }
        sums.behind = sumInLanes(pairs) { $0 + ($1.1.trainer - $1.0.rollout).magnitude }
    }

    /// Eight sums, of every eighth place; then halves are added: 8 to 4 to 2 to 1.
    private static func sumInLanes<Term>(_ terms: [Term?], _ add: (Double, Term) -> Double) -> Double {
        var lanes = [Double](repeating: 0, count: 8)
        for (index, term) in terms.enumerated() {
            if let term { lanes[index % 8] = add(lanes[index % 8], term) }
        }
        for half in [4, 2, 1] {
            for lane in 0..<half { lanes[lane] += lanes[lane + half] }
        }
        return lanes[0]
    }
}
