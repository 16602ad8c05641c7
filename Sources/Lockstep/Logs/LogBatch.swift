/// Some whole sequences of a log, packed: sequence i is tokens `offsets[i] ..< offsets[i + 1]`.
///
/// The columns are the reader's memory: valid while the batch is kept, until the reader is asked for the next.
public struct LogBatch {
    /// [tokens] ln pi; NaN in a sequence that has none.
    public let trainer: UnsafeBufferPointer<Float>
    /// [tokens] ln mu; NaN in a sequence that has none.
    public let rollout: UnsafeBufferPointer<Float>
    /// [tokens] 1 where the token counts, else 0.
    public let mask: UnsafeBufferPointer<UInt8>
    /// [tokens]; -1 in a sequence that has none.
    public let tokenIDs: UnsafeBufferPointer<Int32>
    /// [sequences + 1] where each sequence begins.
    public let offsets: UnsafeBufferPointer<Int64>
    /// [sequences] what identifies each.
    public let ids: UnsafeBufferPointer<UInt64>
    /// [sequences] training step; -1 if not known.
    public let steps: UnsafeBufferPointer<Int64>
    /// [sequences] tokens of the prompt; -1 if not known.
    public let promptTokens: UnsafeBufferPointer<Int64>
    /// [sequences] NaN if not known.
    public let rewards: UnsafeBufferPointer<Float>
    /// [sequences] NaN if not known.
    public let advantages: UnsafeBufferPointer<Float>
    /// [sequences] which columns a sequence has: 1 token ids, 2 rollout, 4 trainer, added up.
    public let columns: UnsafeBufferPointer<UInt8>
    /// [sequences] the byte of the log where each begins.
    public let positions: UnsafeBufferPointer<Int64>

    /// Number of sequences.
    public var sequences: Int { ids.count }
    /// Number of tokens, whether they count or not.
    public var tokens: Int { trainer.count }

    /// Whose memory the columns are.
    let owner: LogReader

    /// Lends the two log-prob columns to `body`, for the mismatch calls.
    public func withPair<Result>(
        _ body: (LogProbPair) throws(LockstepError) -> Result
    ) throws(LockstepError) -> Result {
        let pair = try LogProbPair(
            trainer: MatrixView(trainer.baseAddress, .fp32, rows: 1, columns: tokens),
            rollout: MatrixView(rollout.baseAddress, .fp32, rows: 1, columns: tokens),
            mask: MaskView(mask.baseAddress, rows: 1, columns: tokens),
            offsets: TokenView(offsets.baseAddress, byteCount: 8, count: offsets.count))
        defer { withExtendedLifetime(owner) {} }
        return try body(pair)
    }

    /// Sequence `index`, copied.
    public subscript(index: Int) -> LogSequence {
        defer { withExtendedLifetime(owner) {} }
        let range = Int(offsets[index])..<Int(offsets[index + 1])
        let parts = LogParts(rawValue: columns[index])
        return LogSequence(
            id: ids[index], step: steps[index], promptTokens: Int(promptTokens[index]),
            reward: rewards[index].isNaN ? nil : rewards[index],
            advantage: advantages[index].isNaN ? nil : advantages[index],
            tokenIDs: parts.contains(.tokenIDs) ? Array(tokenIDs[range]) : nil,
            mask: mask[range].allSatisfy { $0 != 0 } ? nil : mask[range].map { $0 != 0 },
            rollout: parts.contains(.rollout) ? Array(rollout[range]) : nil,
            trainer: parts.contains(.trainer) ? Array(trainer[range]) : nil)
    }
}

/// Turns the payloads of frames back into columns.
///
/// Keeps its memory from one batch to the next.
struct LogDecoder: ~Copyable {
    private var trainer = Growing<Float>()
    private var rollout = Growing<Float>()
    private var mask = Growing<UInt8>()
    private var tokenIDs = Growing<Int32>()
    private var offsets = Growing<Int64>()
    private var ids = Growing<UInt64>()
    private var steps = Growing<Int64>()
    private var promptTokens = Growing<Int64>()
    private var rewards = Growing<Float>()
    private var advantages = Growing<Float>()
    private var columns = Growing<UInt8>()
    private var positions = Growing<Int64>()
    private var runs = Growing<Int>()
    private var words = Growing<UInt32>()
    private var others = Growing<UInt32>()

    var sequences: Int { ids.count }
    var tokens: Int { trainer.count }

    /// Empties the batch; its memory stays.
    mutating func removeAll() throws(LockstepError) {
        trainer.count = 0
        rollout.count = 0
        mask.count = 0
        tokenIDs.count = 0
        offsets.count = 0
        try offsets.reserve(1)
        offsets.push(0)
        ids.count = 0
        steps.count = 0
        promptTokens.count = 0
        rewards.count = 0
        advantages.count = 0
        columns.count = 0
        positions.count = 0
    }

    /// The batch as it is, in the memory of this decoder of `owner`.
    func batch(of owner: LogReader) -> LogBatch {
        LogBatch(
            trainer: .init(start: trainer.base, count: tokens),
            rollout: .init(start: rollout.base, count: tokens),
            mask: .init(start: mask.base, count: tokens),
            tokenIDs: .init(start: tokenIDs.base, count: tokens),
            offsets: .init(start: offsets.base, count: sequences + 1),
            ids: .init(start: ids.base, count: sequences),
            steps: .init(start: steps.base, count: sequences),
            promptTokens: .init(start: promptTokens.base, count: sequences),
            rewards: .init(start: rewards.base, count: sequences),
            advantages: .init(start: advantages.base, count: sequences),
            columns: .init(start: columns.base, count: sequences),
            positions: .init(start: positions.base, count: sequences), owner: owner)
    }

    /// What the first bytes of a payload say; the checks that bound what will be allocated are here.
    static func beginning(of payload: UnsafeRawBufferPointer) -> (
        parts: LogParts, tokens: Int, rest: ByteCursor
    )? {
        var cursor = ByteCursor(payload)
        guard let parts = cursor.number(UInt8.self).map(LogParts.init), parts.columnCount > 0,
            let tokens = cursor.count(upTo: LogFormat.largestSequence),
            parts.columnCount * PackedWords.smallest(tokens) <= cursor.remaining
        else { return nil }
        return (parts, tokens, cursor)
    }

    /// Adds a sequence.
    ///
    /// False, and nothing added, if the payload is not one.
    mutating func add(_ payload: UnsafeRawBufferPointer, at position: Int) throws(LockstepError) -> Bool {
        guard let (parts, tokens, rest) = LogDecoder.beginning(of: payload) else { return false }
        var cursor = rest
        guard let id = cursor.varint() else { return false }
        var (step, prompt, reward, advantage) = (Int64(-1), Int64(-1), Float.nan, Float.nan)
        if parts.contains(.step) {
            guard let coded = cursor.varint() else { return false }
            step = Int64(bitPattern: coded >> 1 ^ (0 &- (coded & 1)))
        }
        if parts.contains(.prompt) {
            guard let count = cursor.count(upTo: tokens) else { return false }
            prompt = Int64(count)
        }
        if parts.contains(.reward) {
            guard let bits = cursor.number(UInt32.self) else { return false }
            reward = Float(bitPattern: bits)
        }
        if parts.contains(.advantage) {
            guard let bits = cursor.number(UInt32.self) else { return false }
            advantage = Float(bitPattern: bits)
        }
        var counted = tokens
        let masked = parts.contains(.mask)
        if masked {
            guard let found = try readRuns(&cursor, tokens) else { return false }
            counted = found
        }
        try reserve(tokens)
        guard readColumns(&cursor, parts, tokens, counted), cursor.remaining == 0 else { return false }
        if masked {
            var place = mask.count
            for index in 0..<runs.count {
                (mask.base + place).update(repeating: UInt8(index & 1), count: runs.base[index])
                place += runs.base[index]
            }
        } else {
            (mask.base + mask.count).update(repeating: 1, count: tokens)
        }
        trainer.count += tokens
        rollout.count += tokens
        mask.count += tokens
        tokenIDs.count += tokens
        offsets.push(Int64(trainer.count))
        ids.push(id)
        steps.push(step)
        promptTokens.push(prompt)
        rewards.push(reward)
        advantages.push(advantage)
        columns.push(parts.intersection([.tokenIDs, .rollout, .trainer]).rawValue)
        positions.push(Int64(position))
        return true
    }

    private mutating func reserve(_ tokens: Int) throws(LockstepError) {
        try trainer.reserve(tokens)
        try rollout.reserve(tokens)
        try mask.reserve(tokens)
        try tokenIDs.reserve(tokens)
        try words.reserve(tokens)
        try others.reserve(tokens)
        try offsets.reserve(1)
        try ids.reserve(1)
        try steps.reserve(1)
        try promptTokens.reserve(1)
        try rewards.reserve(1)
        try advantages.reserve(1)
        try columns.reserve(1)
        try positions.reserve(1)
    }

    /// Fills `runs` and returns how many tokens count; nil unless the runs cover the tokens exactly.
    private mutating func readRuns(_ cursor: inout ByteCursor, _ tokens: Int) throws(LockstepError) -> Int? {
        runs.count = 0
        var (covered, counted) = (0, 0)
        while covered < tokens {
            guard let length = cursor.count(upTo: tokens - covered), length > 0 || runs.count == 0 else {
                return nil
            }
            if runs.count & 1 == 1 { counted += length }
            covered += length
            try runs.reserve(1)
            runs.push(length)
        }
        return counted
    }

    /// Reads the columns to the places after the last token, which do not count yet.
    private mutating func readColumns(
        _ cursor: inout ByteCursor, _ parts: LogParts, _ tokens: Int, _ counted: Int
    ) -> Bool {
        let masked = parts.contains(.mask)
        if parts.contains(.tokenIDs) {
            guard cursor.packedWords(into: LogDecoder.words(tokenIDs.end), count: tokens) else {
                return false
            }
        } else {
            tokenIDs.end.update(repeating: -1, count: tokens)
        }
        let rolloutEnd = LogDecoder.words(rollout.end)
        let trainerEnd = LogDecoder.words(trainer.end)
        // Without a mask a column is decoded where it stays; with one, counted tokens come first.
        let first = masked ? words.base : rolloutEnd
        let second = masked ? others.base : trainerEnd
        if parts.contains(.rollout) {
            guard cursor.packedWords(into: first, count: tokens) else { return false }
            if masked { scatter(first, into: rolloutEnd, counted) }
        } else {
            rollout.end.update(repeating: .nan, count: tokens)
        }
        if parts.contains(.trainer) {
            guard cursor.packedWords(into: second, count: tokens) else { return false }
            if parts.contains(.rollout) {
                for index in 0..<tokens { second[index] &+= first[index] }
            }
            if masked { scatter(second, into: trainerEnd, counted) }
        } else {
            trainer.end.update(repeating: .nan, count: tokens)
        }
        return true
    }

    private func scatter(
        _ words: UnsafePointer<UInt32>, into target: UnsafeMutablePointer<UInt32>, _ counted: Int
    ) {
        var (masked, kept, place) = (words + counted, words, target)
        for index in 0..<runs.count {
            let length = runs.base[index]
            let source = index & 1 == 0 ? masked : kept
            place.update(from: source, count: length)
            if index & 1 == 0 { masked += length } else { kept += length }
            place += length
        }
    }

    /// A column's memory as words.
    ///
    /// Floats and integers of 4 bytes share layout; the memory is only ever written through this, then read
    /// as what it is.
    private static func words<Element>(_ pointer: UnsafeMutablePointer<Element>) -> UnsafeMutablePointer<
        UInt32
    > {
        UnsafeMutableRawPointer(pointer).assumingMemoryBound(to: UInt32.self)
    }
}
