// Estimators that give each token its own advantage: recurrences over the tokens of a sequence that count.

extension RewardMembers {
    func byToken() throws(LockstepError) -> (advantages: AdvantageValues, returns: AdvantageValues) {
        let layout = batch.layout!
        let advantages = try TemporaryValues(count: starts.last!)
        let returns = try TemporaryValues(count: starts.last!)
        let baselines = parts.baseline == .given ? try givenBaselines() : []
        var scores: [Double] = []
        if case .perToken = batch.rewards {} else { scores = try self.scores() }
        for sequence in 0..<sequences where counts[sequence] {
            let positions = layout.positions(of: sequence)
            let (row, own) = (row(sequence, of: returns), row(sequence, of: advantages))
            if case .perToken(let view) = batch.rewards {
                try read(view, "rewards", sequence, positions, into: row.baseAddress!)
            } else {
                row[row.count - 1] = scores[sequence]  // a sequence's reward is that of its last token
            }
            if recurrence == .values {
                try estimate(row, own, sequence, positions)
            } else {
                discount(row, by: options.gamma)
                let baseline = baselines.isEmpty ? 0 : baselines[sequence]
                for k in row.indices { own[k] = row[k] - baseline }
            }
        }
        if recurrence == .groupPositions { try subtractPositionBaselines(advantages, returns) }
        for sequence in 0..<sequences where lengths![sequence] > 0 && !teaches[sequence] {
            let (row, own) = (row(sequence, of: returns), row(sequence, of: advantages))
            if recurrence == .values {
                // A critic that is to learn its own values learns nothing.
                try readValues(sequence, layout.positions(of: sequence), into: row)
            } else {
                row.update(repeating: 0)
            }
            own.update(repeating: 0)
        }
        return (
            AdvantageValues(values: advantages, perToken: true),
            AdvantageValues(values: returns, perToken: true)
        )
    }

    /// Generalised advantage estimation: the sum of discounted errors r_t + gamma v_(t+1) - v_t, there being no
    /// value after the last token.
    ///
    /// `row` has the rewards, and afterwards advantages + values; `own` has the advantages.
    private func estimate(
        _ row: UnsafeMutableBufferPointer<Double>, _ own: UnsafeMutableBufferPointer<Double>, _ sequence: Int,
        _ positions: [Int]
    ) throws(LockstepError) {
        try readValues(sequence, positions, into: own)
        for k in row.indices.dropLast() { row[k] = row[k] + options.gamma * own[k + 1] - own[k] }
        row[row.count - 1] -= own[row.count - 1]
        discount(row, by: options.gamma * options.lambda)
        for k in row.indices { (own[k], row[k]) = (row[k], row[k] + own[k]) }
    }

    private func readValues(
        _ sequence: Int, _ positions: [Int], into row: UnsafeMutableBufferPointer<Double>
    ) throws(LockstepError) {
        guard let view = batch.values else {
            throw LockstepError(
                .invalidArgument, "values: missing, but gae needs a critic's value of each token")
        }
        try read(view, "values", sequence, positions, into: row.baseAddress!)
    }

    /// Makes of x_t the sum of x_t + factor x_(t+1) + factor^2 x_(t+2) and so on, over the tokens that count:
    /// gaps between them discount nothing.
    private func discount(_ row: UnsafeMutableBufferPointer<Double>, by factor: Double) {
        var next = 0.0
        for k in row.indices.reversed() {
            next = row[k] + factor * next
            row[k] = next
        }
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
        for sequences in members where sequences.count > 1 {
            let longest = sequences.map { layout.length(of: $0) }.max()!
            // Positions, in arrays that grow, and the exact sums and baselines of each slot.
            try askForMemory(sequences.reduce(0) { $0 + lengths![$1] }, bytesEach: 24)
            try askForMemory(longest, bytesEach: 224)
            let tokens = sequences.map { layout.positions(of: $0) }
            /// Where a token stands among the baselines.
            func slot(_ member: Int, _ k: Int) -> Int {
                options.estimator == .multiTurnTokenBaseline ? k : tokens[member][k] - tokens[member][0]
            }
            let slots = tokens.indices.map { slot($0, tokens[$0].count - 1) + 1 }.max()!
            var sums = ExactSums(count: 2 * slots)
            for (member, sequence) in sequences.enumerated() {
                let (count, positions) = (tokens[member].count, tokens[member])
                let log = try Scratch<Double>(count: count)
                let mass = try Scratch<Double>(count: count)
                let weights = try Scratch<Double>(count: count, filledWith: 1)
                try read(logProbs, "trainer_log_probs", sequence, positions, into: log.base)
                try read(squaredMass, "squared_mass", sequence, positions, into: mass.base)
                if let view = batch.weights {
                    try read(view, "weights", sequence, positions, into: weights.base)
                }
                let row = row(sequence, of: returns)
                var path = 0.0
                for k in 0..<count {
                    path +=
                        (1 - 2 * exponential(log.base[k]) + mass.base[k]) * weights.base[k] * weights.base[k]
                    sums.addProduct(row[k], path, to: 2 * slot(member, k))
                    sums.add(path, to: 2 * slot(member, k) + 1)
                }
            }
            let tail = options.tailBaseline ? nil : tail(tokens.map(\.count))
            let epsilon = options.epsilon ?? 1e-8
            let baselines = (0..<slots).map { slot in
                let weight = sums.value(2 * slot + 1) + epsilon
                return weight == 0 ? 0 : sums.value(2 * slot) / weight
            }
            for (member, sequence) in sequences.enumerated() where teaches[sequence] {
                let own = row(sequence, of: advantages)
                for k in own.indices {
                    let place = slot(member, k)
                    if let tail, tail.member == member, place >= tail.start { continue }
                    own[k] -= baselines[place]
                }
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
