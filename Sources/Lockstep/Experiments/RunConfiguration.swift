// What a run is a function of, as names and texts: checkpoints keep them, and a run that goes on compares them. Numbers are
// written so that they read back to the same bits.

extension ReinforcementRun {
    var allSettings: [(name: String, value: String)] {
        var all: [(name: String, value: String)] = [
            ("environment", environment.name), ("max_tokens", "\(environment.maxTokens)"),
            ("stop_ids", list(environment.stopIDs.sorted())),
            ("problems", environment.problems.map { list($0) } ?? "all"),
            ("trainer", options.trainer.summary), ("rollout", options.rollout.summary),
            ("prompts", "\(options.prompts)"), ("samples", "\(options.samples)"),
            ("updates", "\(options.updates)"),
            ("temperature", "\(options.temperature)"), ("seed", "\(options.seed)"),
            ("learning_steps", "\(options.monitor.learningSteps)"),
            ("false_alarms_per_1000", "\(options.monitor.falseAlarmsPer1000)"),
        ]
        all += options.model.configuration + options.learner.configuration + options.algorithm.configuration
        return all
    }
}

extension SupervisedRun {
    var allSettings: [(name: String, value: String)] {
        [
            ("task", task.name), ("longest_response", "\(task.longestResponse)"),
            ("trainer", options.recipe.summary),
            ("batch", "\(options.batch)"), ("seed", "\(options.seed)"),
            ("error_rate", "\(options.errorRate)"),
        ] + options.model.configuration + options.learner.configuration
    }
}

private func list(_ numbers: [some FixedWidthInteger]) -> String {
    numbers.map { "\($0)" }.joined(separator: " ")
}

extension Recipe {
    /// The format of each kind of value, and the order.
    var summary: String {
        ([parameters, activations, cache, probabilities, logits, gradients].map(\.description) + [order.name])
            .joined(separator: " ")
    }
}

extension StartingModel {
    fileprivate var configuration: [(name: String, value: String)] {
        var all: [(name: String, value: String)]
        switch source {
        case .folder: all = [("model", "a folder")]
        case .new(let configuration, let seed, let deviation):
            all = [
                ("model", configuration.json.compact()), ("model_seed", "\(seed)"),
                ("deviation", "\(deviation)"),
            ]
        }
        all.append(("adapter", adapter == nil ? "" : "a folder"))
        all.append(
            (
                "low_rank",
                lowRank.map { "\($0.rank) \($0.alpha) \($0.targets.joined(separator: " ")) \($0.seed)" } ?? ""
            ))
        return all
    }
}

extension LearnerOptions {
    fileprivate var configuration: [(name: String, value: String)] {
        [
            ("beta1", "\(adamW.beta1)"), ("beta2", "\(adamW.beta2)"), ("epsilon", "\(adamW.epsilon)"),
            ("weight_decay", "\(adamW.weightDecay)"), ("schedule", "\(schedule.shape.rawValue)"),
            ("learning_rate", "\(schedule.peak)"), ("warmup_steps", "\(schedule.warmupSteps)"),
            ("total_steps", "\(schedule.totalSteps)"), ("final_share", "\(schedule.finalShare)"),
            ("max_norm", "\(maxNorm)"), ("scaler", "\(scaler.kind.rawValue)"),
            (
                "scaler_numbers",
                [
                    scaler.initialScale, scaler.growthFactor, scaler.backoffFactor, scaler.minimumScale,
                    scaler.maximumScale, Double(scaler.growthInterval), Double(scaler.hysteresis),
                    scaler.consecutiveHysteresis ? 1 : 0,
                ].map { "\($0)" }.joined(separator: " ")
            ),
        ]
    }
}

extension Algorithm {
    fileprivate var configuration: [(name: String, value: String)] {
        let (c, a, o) = (correction, advantages, objective)
        var rules = ""
        for each in c.rejections {
            rules += " \(each.statistic.rawValue) \(each.level.rawValue) \(each.policies.rawValue) "
            rules += "\(each.side.rawValue) \(each.low) \(each.high)"
        }
        let corrections: [Double] = [
            Double(c.weights.rawValue), Double(c.level.rawValue), c.low, c.high, c.logRatioMin, c.logRatioMax,
            c.normalize ? 1 : 0, c.secondMoment,
        ]
        let whitens: Double = a.whiten.map { $0 ? 1 : 0 } ?? -1
        let advantages: [Double] = [
            Double(a.estimator.rawValue), Double(a.scale?.rawValue ?? 0), whitens, Double(a.singles.rawValue),
            Double(a.truncated.rawValue), a.populationStd ? 1 : 0, a.tailBaseline ? 1 : 0, a.epsilon ?? -1,
            a.gamma, a.lambda,
        ]
        let kinds: [Int32] = [
            o.term.rawValue, o.ratioLevel.rawValue, o.aggregation.rawValue, o.denominator.rawValue,
            o.kl.rawValue,
            o.klGradient.rawValue,
        ]
        let numbers: [Double] = [
            o.low, o.high, o.dual, o.ratioMax, o.coefficient, o.tauPositive, o.tauNegative, o.shapePositive,
            o.ratePositive, o.shapeNegative, o.rateNegative, o.logRatioMin, o.logRatioMax, o.klCoefficient,
            o.klInputMax, o.klOutputMax, o.entropyCoefficient, o.length, o.scale,
        ]
        func text(_ numbers: [Double]) -> String { numbers.map { "\($0)" }.joined(separator: " ") }
        return [
            ("algorithm", name), ("policies", "\(policies.rawValue)"),
            ("correction", text(corrections) + rules),
            ("advantages", text(advantages)),
            ("objective", kinds.map { "\($0)" }.joined(separator: " ") + " " + text(numbers)),
        ]
    }
}
