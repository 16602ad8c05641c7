// Estimators that give each token its own advantage: recurrences over the tokens of a sequence that count.

extension RewardMembers {
    func byToken() throws(LockstepError) -> (advantages: AdvantageValues, returns: AdvantageValues) {
        let layout = batch.layout!
        let advantages = try TemporaryValues(count: layout.tokens)
        let returns = try TemporaryValues(count: layout.tokens)
        let baselines = parts.baseline == .given ? try givenBaselines() : []
        let rewards = try tokenRewards()
        for sequence in 0..<sequences where counts[sequence] {
            let positions = layout.positions(of: sequence)
            let rewards = try rewards(sequence, positions)
            let values = try recurrence == .values ? tokenValues(sequence, positions) : []
            let sums =
                recurrence == .values
                ? discountedSums(errors(rewards, values), options.gamma * options.lambda)
                : discountedSums(rewards, options.gamma)
            for (k, position) in positions.enumerated() {
                let index = layout.index(layout.place(of: sequence, position: position))
                let baseline = baselines.isEmpty ? 0 : baselines[sequence]
                let value = values.isEmpty ? 0 : values[k]
                returns[index] = teaches[sequence] ? sums[k] + value : value
                advantages[index] = teaches[sequence] ? sums[k] - baseline : 0
            }
            if recurrence == .groupPositions {
                // The group's baseline needs what did not teach but counts, too.
                for (k, position) in positions.enumerated() {
                    returns[layout.index(layout.place(of: sequence, position: position))] = sums[k]
                }
            }
        }
        if recurrence == .groupPositions { try subtractPositionBaselines(advantages, returns) }
        return (
            AdvantageValues(values: advantages, perToken: true),
            AdvantageValues(values: returns, perToken: true)
        )
    }

    /// The rewards at a sequence's positions: its own if it has one a token, else its reward at the last.
    private func tokenRewards() throws(LockstepError)
        -> (_ sequence: Int, _ positions: [Int]) throws(LockstepError) -> [Double]
    {
        guard case .perToken(let view) = batch.rewards else {
            let scores = try scores()
            return { sequence, positions in
                var rewards = [Double](repeating: 0, count: positions.count)
                rewards[positions.count - 1] = scores[sequence]
                return rewards
            }
        }
        return { (sequence, positions) throws(LockstepError) in
            try values(view, "rewards", sequence, positions)
        }
    }

    private func tokenValues(_ sequence: Int, _ positions: [Int]) throws(LockstepError) -> [Double] {
        guard let view = batch.values else {
            throw LockstepError(
                .invalidArgument, "values: missing, but gae needs a critic's value of each token")
        }
        return try values(view, "values", sequence, positions)
    }

    private func values(
        _ view: MatrixView, _ name: StaticString, _ sequence: Int, _ positions: [Int]
    ) throws(LockstepError) -> [Double] {
        let row = view.values(of: sequence, in: batch.layout!)
        var values: [Double] = []
        values.reserveCapacity(positions.count)
        for position in positions { values.append(try read(row, position, name, sequence: sequence)) }
        return values
    }

    /// r_t + gamma v_(t+1) - v_t; after the last token there is no value.
    private func errors(_ rewards: [Double], _ values: [Double]) -> [Double] {
        zip(rewards, zip(values, values.dropFirst() + [0])).map { $0 + options.gamma * $1.1 - $1.0 }
    }

    /// The sums x_t + factor x_(t+1) + factor^2 x_(t+2) and so on, over the tokens that count: gaps between
    /// them discount nothing.
    private func discountedSums(_ terms: [Double], _ factor: Double) -> [Double] {
        var sums = terms
        for k in terms.indices.dropLast().reversed() { sums[k] += factor * sums[k + 1] }
        return sums
    }

    /// Subtracts, at each position of a group's sequences, sum G W / (sum W + epsilon), where W is the
    /// path variance so far: the sum of (1 - 2 p + sum p^2), times a correction's weight squared.
    private func subtractPositionBaselines(
        _ advantages: TemporaryValues, _ returns: TemporaryValues
    ) throws(LockstepError) {
        guard let logProbs = batch.logProbs else {
            throw LockstepError(
                .invalidArgument, "trainer_log_probs: missing, but \(options.estimator) needs them")
        }
        guard let squaredMass = batch.squaredMass else {
            throw LockstepError(
                .invalidArgument,
                "squared_mass: missing, but \(options.estimator) needs the sum of squared probabilities over "
                    + "the vocabulary, exp(log_sum_exp(2 y) - 2 log_sum_exp(y)), of each token")
        }
        let layout = batch.layout!
        var members = [[Int]](repeating: [], count: sizes.count)
        for sequence in 0..<sequences where counts[sequence] { members[group[sequence]].append(sequence) }
        let paths = try TemporaryValues(count: layout.tokens)
        for sequences in members where sequences.count > 1 {
            let tokens = sequences.map { layout.positions(of: $0) }
            /// Where a token stands among the baselines.
            func slot(_ member: Int, _ k: Int) -> Int {
                options.estimator == .multiTurnTokenBaseline ? k : tokens[member][k] - tokens[member][0]
            }
            func index(_ member: Int, _ k: Int) -> Int {
                layout.index(layout.place(of: sequences[member], position: tokens[member][k]))
            }
            let slots = tokens.indices.map { slot($0, tokens[$0].count - 1) + 1 }.max()!
            var sums = ExactSums(count: 2 * slots)
            for (member, sequence) in sequences.enumerated() {
                let log = try values(logProbs, "trainer_log_probs", sequence, tokens[member])
                let mass = try values(squaredMass, "squared_mass", sequence, tokens[member])
                let weights = try batch.weights.map { (view) throws(LockstepError) in
                    try values(view, "weights", sequence, tokens[member])
                }
                var path = 0.0
                for k in tokens[member].indices {
                    let weight = weights?[k] ?? 1
                    path += (1 - 2 * exponential(log[k]) + mass[k]) * (weight * weight)
                    paths[index(member, k)] = path
                    sums.addProduct(returns[index(member, k)], path, to: 2 * slot(member, k))
                    sums.add(path, to: 2 * slot(member, k) + 1)
                }
            }
            let tail = options.tailBaseline ? nil : tail(tokens.map(\.count))
            let epsilon = options.epsilon ?? 1e-8
            for (member, sequence) in sequences.enumerated() where teaches[sequence] {
                for k in tokens[member].indices {
                    let place = slot(member, k)
                    if let tail, tail.member == member, place >= tail.start { continue }
                    let weight = sums.value(2 * place + 1) + epsilon
                    advantages[index(member, k)] -= weight == 0 ? 0 : sums.value(2 * place) / weight
                }
            }
        }
        for sequence in 0..<sequences where !teaches[sequence] {
            for position in layout.positions(of: sequence) {
                returns[layout.index(layout.place(of: sequence, position: position))] = 0
            }
        }
    }

    /// The sequence that is longer than all others, and where the second longest ends; nil if there is none.
    private func tail(_ counts: [Int]) -> (member: Int, start: Int)? {
        let longest = counts.indices.max { counts[$0] < counts[$1] }!
        let second = counts.indices.filter { $0 != longest }.map { counts[$0] }.max()!
        return second < counts[longest] ? (longest, second) : nil
    }
}
