// What a preset means, made from its options: nothing is said that they do not do.

extension Preset {
    /// A line for each part: weights, mask, advantage, term, aggregation; and what is not confirmed.
    public var description: String {
        var lines = [name, "  " + summary]
        func add(_ label: String, _ text: String) {
            lines.append("  " + label + String(repeating: " ", count: 15 - label.utf8.count) + text)
        }
        add("from", source)
        add(
            "policies",
            (policies == .three
                ? "current against trainer"
                    + (corrects ? ", with a correction for the rollout" : "; the rollout is ignored")
                : "current against rollout; no trainer")
                + (referenceIsRollout ? "; the rollout is the reference too" : ""))
        add("weights", weightsText)
        add(
            "mask",
            correction.rejections.isEmpty
                ? "every token that counts" : correction.rejections.map(maskText).joined(separator: "; "))
        add("advantage", advantageText)
        add("term", termText)
        add("aggregation", aggregationText)
        if objective.kl != .none {
            add("divergence", "\(short(objective.klCoefficient)) \(klText)")
        }
        if !doubts.isEmpty { add("not confirmed", doubts) }
        return lines.joined(separator: "\n")
    }

    private var corrects: Bool { correction.weights != .one || !correction.rejections.isEmpty }

    private var weightsText: String {
        let top = policies == .three ? "trainer" : "current"
        let (low, high) = (short(correction.low), short(correction.high))
        let weight =
            switch correction.weights {
            case .one: "w = 1"
            case .raw: "w = r"
            case .truncate: "w = min(r, \(high))"
            case .clip: "w = clamp(r, \(low), \(high))"
            case .mask: "w = r where \(range("r", correction.low, correction.high)), else 0"
            }
        if correction.weights == .one { return weight }
        return weight + "; r = " + ratioText(correction.level) + ", d = ln \(top) - ln rollout"
            + clampText(correction.logRatioMin, correction.logRatioMax)
    }

    private func maskText(_ rule: Rejection) -> String {
        let trainer = policies == .three ? "trainer" : "current"
        let (top, bottom) =
            switch rule.policies {
            case .trainerRollout: (trainer, "rollout")
            case .currentRollout: ("current", "rollout")
            case .currentTrainer: ("current", trainer)
            }
        let level =
            switch rule.level {
            case .token: "tokens with"
            case .segmentSum, .segmentMean: "segments with"
            case .sequenceSum, .sequenceMean: "sequences with"
            case .sequenceEvery: "sequences with every"
            }
        var statistic =
            switch rule.statistic {
            case .ratio: ratioText(rule.level)
            case .k2: "d^2 / 2"
            case .k3: "exp(d) - 1 - d"
            case .expAbs: "exp|d|"
            case .probabilityDifference: "\(top) - \(bottom)"
            case .binaryKL: "binary KL(\(bottom), \(top)), signed,"
            }
        if rule.statistic != .ratio {
            switch rule.level {
            case .sequenceSum, .segmentSum: statistic = "sum of " + statistic
            case .sequenceMean, .segmentMean: statistic = "mean of " + statistic
            default: break
            }
        }
        let side =
            switch rule.side {
            case .both: ""
            case .byAdvantage: " (upper where A > 0, lower elsewhere)"
            case .negativeAdvantage: " (asked where A < 0)"
            }
        let difference =
            rule.statistic.rawValue >= Rejection.Statistic.probabilityDifference.rawValue
            ? ", of probabilities" : ", d = ln \(top) - ln \(bottom)"
        return "keep \(level) \(range(statistic, rule.low, rule.high))" + side + difference
    }

    private var advantageText: String {
        let epsilon = short(advantages.epsilon ?? 1e-6)
        let text =
            switch advantages.estimator {
            case .grpo: "A = (R - mean of the group) / (std of the group + \(epsilon))"
            case .drGRPO: "A = R - mean of the group"
            case .gae:
                "GAE, gamma \(short(advantages.gamma)), lambda \(short(advantages.lambda)), whitened; needs values"
            default: "\(advantages.estimator)"
            }
        return advantages.singles == .raw ? text + "; alone in a group: A = R" : text
    }

    private var termText: String {
        let o = objective
        let (low, high) = (short(o.low), short(o.high))
        let bottom = policies == .three ? "trainer" : "rollout"
        let term =
            switch o.term {
            case .clip:
                "max(-A \(o.ratioMax < .infinity ? "min(r, \(short(o.ratioMax)))" : "r"), "
                    + "-A clamp(r, \(low), \(high)))"
                    + (o.dual < .infinity ? ", at most -\(short(o.dual)) A where A < 0" : "")
            case .reinforce: "-A ln current"
            case .ratio: "-A r"
            case .cispo: "-[clamp(r, \(low), \(high))] A ln current"
            case .sapo:
                "-A 4 / tau sigmoid(tau (r - 1)), tau = \(short(o.tauPositive)) where A > 0, else "
                    + short(o.tauNegative)
            case .topr: "-A ln current where A > 0, else -[min(r, 1)] A ln current"
            case .squared: "-A ln current + \(short(o.coefficient)) / 2 x^2"
            case .klCov: "-A r + \(short(o.coefficient)) |x| where selected"
            case .gmpo:
                "-A r w, w of the sequence too, x held at ln \(low) and ln \(high) where A pulls beyond"
            case .vespo:
                "-[phi] A ln current, ln phi = rate + shape ln u - rate u, u = w r; shape, rate = "
                    + "\(short(o.shapePositive)), \(short(o.ratePositive)) where A >= 0, else "
                    + "\(short(o.shapeNegative)), \(short(o.rateNegative))"
            }
        if o.term == .reinforce && o.ratioLevel == .token { return term }
        let level: RatioLevel = o.term == .vespo ? .sequenceSum : o.term == .gmpo ? .sequence : o.ratioLevel
        let ratio =
            switch level {
            case .token: "exp(x)"
            case .sequence: "exp(mean over the sequence of x)"
            case .sequenceToken: "exp(mean over the sequence of x) with a token's gradient"
            case .sequenceSum: "exp(sum over the sequence of x)"
            }
        return term + "; r = " + ratio + ", x = ln current - ln \(bottom)"
            + clampText(o.logRatioMin, o.logRatioMax)
    }

    private var aggregationText: String {
        let each = objective.term == .vespo || objective.term == .gmpo ? "term" : "w term"
        let text =
            switch objective.aggregation {
            case .tokenMean: "mean over tokens of \(each)"
            case .tokenSum: "sum over tokens of \(each)"
            case .seqMeanTokenSum: "mean over sequences of the sum over tokens of \(each)"
            case .seqMeanTokenMean: "mean over sequences of the mean over tokens of \(each)"
            case .seqMeanTokenSumNorm:
                "mean over sequences of the sum over tokens of \(each) / length"
                    + (objective.length == 0
                        ? " (give length: a constant)" : ", length = \(short(objective.length))")
            case .promptMean: "mean over prompts of the mean over tokens of \(each)"
            }
        return text
            + (objective.denominator == .original
                ? "; rejected tokens stay in the number" : "; rejected tokens are as if masked")
    }

    private var klText: String {
        let gradient =
            switch objective.klGradient {
            case .direct: ""
            case .ratio: " times r"
            case .scoreFunction: " with its score function"
            case .k2: " with the gradient of k2"
            }
        return "\(objective.kl)" + gradient + " of current and "
            + (referenceIsRollout ? "rollout" : "reference")
    }

    private func ratioText(_ level: CorrectionLevel) -> String {
        switch level {
        case .token, .sequenceEvery: "exp(d)"
        case .sequenceSum: "exp(sum over the sequence of d)"
        case .sequenceMean: "exp(mean over the sequence of d)"
        case .segmentSum: "exp(sum over the segment of d)"
        case .segmentMean: "exp(mean over the segment of d)"
        }
    }

    private func range(_ what: String, _ low: Double, _ high: Double) -> String {
        let lower = low > -.infinity && !(low == 0 && what == "r") ? "\(short(low)) <= " : ""
        return lower + what + (high < .infinity ? " <= \(short(high))" : "")
    }

    private func clampText(_ low: Double, _ high: Double) -> String {
        low > -.infinity || high < .infinity ? ", log ratio held in [\(short(low)), \(short(high))]" : ""
    }

    private func short(_ value: Double) -> String {
        value == value.rounded() && abs(value) < 1e15 ? "\(Int(value))" : "\(value)"
    }
}
