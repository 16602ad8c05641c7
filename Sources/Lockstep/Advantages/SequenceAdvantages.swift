// Estimators that give all tokens of a sequence one advantage: (R - baseline) / scale.

extension RewardMembers {
    func bySequence() throws(LockstepError) -> (advantages: AdvantageValues, returns: AdvantageValues) {
        let advantages = try TemporaryValues(count: sequences)
        let returns = try TemporaryValues(count: sequences)
        for (rewards, weight) in try kinds() {
            let kind = try self.advantages(of: rewards)
            for sequence in 0..<sequences where teaches[sequence] {
                advantages[sequence] += weight * kind[sequence]
                returns[sequence] += weight * rewards[sequence]
            }
        }
        return (
            AdvantageValues(values: advantages, perToken: false),
            AdvantageValues(values: returns, perToken: false)
        )
    }

    /// The rewards of every sequence, for each kind of reward, and what it counts.
    private func kinds() throws(LockstepError) -> [(rewards: [Double], weight: Double)] {
        guard options.estimator == .gdpo else { return [(try scores(), 1)] }
        guard case .perKind(let view) = batch.rewards else {
            throw LockstepError(
                .invalidArgument, "rewards: gdpo takes several kinds of them; give [sequences x kinds]")
        }
        var kinds: [(rewards: [Double], weight: Double)] = []
        for kind in 0..<view.columns {
            var rewards = [Double](repeating: 0, count: sequences)
            for sequence in 0..<sequences where counts[sequence] {
                let row = VectorView(view.row(sequence), view.format, count: view.columns)
                rewards[sequence] = try read(row, kind, "rewards", sequence: sequence)
            }
            let weight = try batch.kindWeights.map { (view) throws(LockstepError) in
                try read(view, kind, "kind_weights")
            }
            kinds.append((rewards, weight ?? 1))
        }
        return kinds
    }

    /// (R - baseline) / scale; where the scale is 0, R - baseline.
    private func advantages(of rewards: [Double]) throws(LockstepError) -> [Double] {
        let baseline = try differences(of: rewards)
        let scale = try scales(of: rewards)
        return (0..<sequences).map { sequence in
            guard teaches[sequence] else { return 0 }
            let (difference, divisor) = (baseline(sequence), scale(sequence))
            return divisor == 0 ? difference : difference / divisor
        }
    }

    /// R - baseline, as a function of the sequence.
    private func differences(of rewards: [Double]) throws(LockstepError) -> (Int) -> Double {
        func compared(_ difference: @escaping (Int) -> Double) -> (Int) -> Double {
            { isAlone($0) ? rewards[$0] : difference($0) }
        }
        switch parts.baseline {
        case .none: return { rewards[$0] }
        case .given:
            let given = try givenBaselines()
            return { rewards[$0] - given[$0] }
        case .groupMean:
            let moments = moments(of: rewards)
            return compared { moments[group[$0]].deviation(of: rewards[$0]) }
        case .othersMean:
            let moments = moments(of: rewards)
            return compared { moments[group[$0]].deviationFromOthers(of: rewards[$0]) }
        case .meanByLength:
            let moments = moments(of: rewards, times: { lengths![$0] })
            return compared { moments[group[$0]].deviation(of: rewards[$0]) }
        case .secondBest:
            let extremes = extremes(of: rewards)
            return compared { sequence in
                let group = extremes[group[sequence]]
                return rewards[sequence] == group.best && group.bestCount == 1 ? group.best - group.second : 0
            }
        }
    }

    /// What a difference is divided by, as a function of the sequence.
    private func scales(of rewards: [Double]) throws(LockstepError) -> (Int) -> Double {
        let (epsilon, population) = (options.epsilon ?? 1e-6, options.populationStd)
        func compared(_ scale: @escaping (Int) -> Double) -> (Int) -> Double {
            { sequence in
                let scale = isAlone(sequence) ? 1 : scale(sequence)
                return scale == 0 ? 0 : scale + epsilon
            }
        }
        switch parts.scale {
        case .none: return { _ in 0 }
        case .groupStd:
            let stds = moments(of: rewards).map { $0.variance(population: population).squareRoot() }
            return compared { stds[group[$0]] }
        case .othersStd:
            let (moments, extremes) = (moments(of: rewards), extremes(of: rewards))
            return compared { sequence in
                guard extremes[group[sequence]].othersDiffer(from: rewards[sequence]) else { return 0 }
                let variance = moments[group[sequence]].varianceOfOthers(
                    than: rewards[sequence], population: population)
                return variance.squareRoot()
            }
        case .batchStd:
            let moments = RewardMoments.of(groups: 1) { add in
                for sequence in 0..<sequences where counts[sequence] { add(0, rewards[sequence], 1) }
            }
            let std = moments[0].variance(population: population).squareRoot()
            return { _ in std == 0 ? 0 : std + epsilon }
        case .groupMean:
            for sequence in 0..<sequences where rewards[sequence] < 0 {
                throw LockstepError(
                    .invalidArgument,
                    "rewards: \(rewards[sequence]) for sequence \(sequence); dividing by a group's mean needs "
                        + "rewards that are not negative, such as 0 and 1")
            }
            let means = moments(of: rewards).map(\.mean)
            return compared { means[group[$0]] }
        case .nonZeroShare:
            let counted = (0..<sequences).filter { counts[$0] }
            let share = Double(counted.filter { rewards[$0] != 0 }.count) / Double(max(counted.count, 1))
            return { _ in share }
        }
    }

    func givenBaselines() throws(LockstepError) -> [Double] {
        guard let view = batch.baselines else {
            throw LockstepError(
                .invalidArgument,
                "baselines: missing, but \(options.estimator) needs them; give the reward of each prompt's "
                    + "greedy answer, one for each sequence")
        }
        var baselines = [Double](repeating: 0, count: sequences)
        for sequence in 0..<sequences where counts[sequence] {
            baselines[sequence] = try read(view, sequence, "baselines")
        }
        return baselines
    }

    /// The moments of each group's rewards.
    private func moments(of rewards: [Double], times: (Int) -> Int = { _ in 1 }) -> [RewardMoments] {
        RewardMoments.of(groups: sizes.count) { add in
            for sequence in 0..<sequences where counts[sequence] {
                add(group[sequence], rewards[sequence], times(sequence))
            }
        }
    }

    /// The largest and smallest rewards of a group.
    private struct Extremes {
        var (best, bestCount, second) = (-Double.infinity, 0, -Double.infinity)
        var (worst, worstCount) = (Double.infinity, 0)
        var count = 0

        mutating func add(_ reward: Double) {
            count += 1
            if reward > best {
                (second, best, bestCount) = (best, reward, 1)
            } else if reward == best {
                (second, bestCount) = (best, bestCount + 1)
            } else {
                second = max(second, reward)
            }
            (worst, worstCount) =
                reward < worst ? (reward, 1) : (worst, worstCount + (reward == worst ? 1 : 0))
        }

        /// Whether the rewards without one of them are not all equal.
        func othersDiffer(from reward: Double) -> Bool {
            let isOdd =
                (reward == best && bestCount == 1 && worstCount == count - 1)
                || (reward == worst && worstCount == 1 && bestCount == count - 1)
            return best != worst && !isOdd
        }
    }

    private func extremes(of rewards: [Double]) -> [Extremes] {
        var extremes = [Extremes](repeating: Extremes(), count: sizes.count)
        for sequence in 0..<sequences where counts[sequence] {
            extremes[group[sequence]].add(rewards[sequence])
        }
        return extremes
    }
}
