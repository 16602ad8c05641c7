import CLockstepKernels

/// The loss of a batch and what happened on the way.
///
/// Means and shares are over the tokens that count, rejected ones included unless denominators leave them out,
/// and NaN where there is nothing to take them of.
public struct ObjectiveReport: Equatable, Sendable {
    /// The loss: the sum of the three below.
    public var loss: Double
    /// What the terms contribute.
    public var policyLoss: Double
    /// What the divergence from the reference contributes, its coefficient included.
    public var klLoss: Double
    /// What the entropy contributes: the coefficient times it, negated.
    public var entropyLoss: Double
    /// Tokens that count.
    public var tokens: Int
    /// Tokens the masks leave out.
    public var maskedTokens: Int
    /// Tokens dropped because a value of theirs is not finite.
    public var excludedTokens: Int
    /// Tokens that count and have no policy term: a correction rejected them, or a rule took them out.
    public var rejectedTokens: Int
    /// Sequences with a token that counts.
    public var sequences: Int
    /// Sequences without.
    public var emptySequences: Int
    /// Of the sequences that count, those without any policy term.
    public var rejectedSequences: Int
    /// Tokens whose log ratio, or their sequence's, was clamped.
    public var clampedTokens: Int
    /// Tokens whose divergence was clamped.
    public var klClampedTokens: Int
    /// No token has a policy term.
    public var empty: Bool
    /// The mean ratio.
    public var ratioMean: Double
    /// The smallest ratio.
    public var ratioMin: Double
    /// The largest ratio.
    public var ratioMax: Double
    /// The share of tokens that the lower bound holds.
    public var clipLow: Double
    /// The share of tokens that the upper bound holds.
    public var clipHigh: Double
    /// The share of tokens that the dual bound holds.
    public var clipDual: Double
    /// KL(trainer || current) as mean(trainer - current).
    public var approxKLK1: Double
    /// KL(trainer || current) as mean(exp(delta) - 1 - delta).
    public var approxKLK3: Double
    /// The mean of the estimator of the divergence from the reference.
    public var kl: Double
    /// The mean entropy.
    public var entropy: Double
}

/// What is summed up over sequences: exactly, so that their order and grouping do not show.
final class ObjectiveSums {
    private var exact = ExactSums(count: Sum.allCases.count)
    private(set) var tokens = 0
    private var masked = 0
    private var excluded = 0
    private var rejected = 0
    private var sequences = 0
    private var emptySequences = 0
    private var rejectedSequences = 0
    private var clamped = 0
    private var klClamped = 0
    private var low = 0
    private var high = 0
    private var dual = 0
    private var least = Double.infinity
    private var most = -Double.infinity
    private var has = Parts()

    private enum Sum: Int, CaseIterable {
        case policyLoss, klLoss, entropyLoss, kl, entropy, delta, k3, ratio
    }

    /// What there was to take means of.
    struct Parts: OptionSet {
        let rawValue: Int
        static let trainer = Parts(rawValue: 1)
        static let reference = Parts(rawValue: 2)
        static let entropies = Parts(rawValue: 4)

        init(rawValue: Int) { self.rawValue = rawValue }

        /// What a batch has.
        init(_ batch: TokenBatch) {
            self = []
            if batch.trainer != nil { insert(.trainer) }
            if batch.reference != nil { insert(.reference) }
            if batch.entropies != nil { insert(.entropies) }
        }
    }

    /// Adds a sequence, whose terms are divided by `share` in the loss.
    ///
    /// `parts`: what its batch has.
    @_optimize(speed)
    func add(
        _ sequence: UnsafePointer<lsk_objective_sums>, _ counted: UnsafePointer<lsk_objective_counts>,
        length: Int,
        share: Double, _ parts: Parts, _ kernels: UnsafePointer<lsk_kernels>
    ) {
        let (found, counts) = (sequence.pointee, counted.pointee)
        masked += length - Int(counts.tokens + counts.non_finite)
        excluded += Int(counts.non_finite)
        guard counts.tokens > 0 else {
            emptySequences += 1
            return
        }
        has.formUnion(parts)
        tokens += Int(counts.tokens)
        rejected += Int(counts.tokens - counts.acting)
        sequences += 1
        if counts.acting == 0 { rejectedSequences += 1 }
        clamped += Int(found.clamped)
        klClamped += Int(found.kl_clamped)
        low += Int(found.low)
        high += Int(found.high)
        dual += Int(found.dual)
        least = Swift.min(least, found.ratio_min)
        most = Swift.max(most, found.ratio_max)
        let values: (Double, Double, Double, Double, Double, Double, Double, Double) = (
            found.policy / share, found.kl_term / share, found.entropy / share, found.kl, found.entropy,
            found.delta, found.k3, found.ratio
        )
        withUnsafeBytes(of: values) {
            exact.add($0.assumingMemoryBound(to: Double.self).baseAddress!, kernels)
        }
    }

    /// Adds all that other sums hold.
    func merge(_ other: ObjectiveSums) {
        exact.merge(other.exact)
        tokens += other.tokens
        masked += other.masked
        excluded += other.excluded
        rejected += other.rejected
        sequences += other.sequences
        emptySequences += other.emptySequences
        rejectedSequences += other.rejectedSequences
        clamped += other.clamped
        klClamped += other.klClamped
        low += other.low
        high += other.high
        dual += other.dual
        least = Swift.min(least, other.least)
        most = Swift.max(most, other.most)
        has.formUnion(other.has)
    }

    /// The report, in which sums over sequences are divided by `denominator`.
    func report(_ options: ObjectiveOptions, denominator: Double) -> ObjectiveReport {
        func part(_ sum: Sum) -> Double {
            denominator > 0 ? options.scale * (exact.value(sum.rawValue) / denominator) : 0
        }
        func mean(_ value: Double, if part: Parts = []) -> Double {
            tokens > 0 && has.isSuperset(of: part) ? value / Double(tokens) : .nan
        }
        let ratios = tokens > 0 && has.contains(.trainer)
        let policyLoss = part(.policyLoss)
        let klLoss = options.klCoefficient * part(.klLoss)
        let entropyLoss = -options.entropyCoefficient * part(.entropyLoss)
        return ObjectiveReport(
            loss: policyLoss + klLoss + entropyLoss, policyLoss: policyLoss, klLoss: klLoss,
            entropyLoss: entropyLoss, tokens: tokens, maskedTokens: masked, excludedTokens: excluded,
            rejectedTokens: rejected, sequences: sequences, emptySequences: emptySequences,
            rejectedSequences: rejectedSequences, clampedTokens: clamped, klClampedTokens: klClamped,
            empty: tokens == rejected,
            ratioMean: mean(exact.value(Sum.ratio.rawValue), if: .trainer),
            ratioMin: ratios ? least : .nan, ratioMax: ratios ? most : .nan,
            clipLow: mean(Double(low), if: .trainer), clipHigh: mean(Double(high), if: .trainer),
            clipDual: mean(Double(dual), if: .trainer),
            approxKLK1: mean(0 - exact.value(Sum.delta.rawValue), if: .trainer),
            approxKLK3: mean(exact.value(Sum.k3.rawValue), if: .trainer),
            kl: mean(exact.value(Sum.kl.rawValue), if: .reference),
            entropy: mean(exact.value(Sum.entropy.rawValue), if: .entropies))
    }
}
