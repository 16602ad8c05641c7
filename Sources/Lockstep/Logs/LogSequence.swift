#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#elseif canImport(Darwin)
    import Darwin
#endif

/// One sequence of a log, with arrays of its own: what Swift programs append and read.
public struct LogSequence: Equatable, Sendable {
    /// What identifies the sequence, however the log is cut over processes.
    public var id: UInt64
    /// The training step; -1 if not known.
    public var step: Int64
    /// Tokens at the beginning that belong to the prompt; -1 if not known.
    public var promptTokens: Int
    /// The reward of the sequence.
    public var reward: Float?
    /// The advantage of the sequence.
    public var advantage: Float?
    /// Token ids.
    public var tokenIDs: [Int32]?
    /// Which tokens count; all without it.
    public var mask: [Bool]?
    /// ln mu of each token, nats.
    public var rollout: [Float]?
    /// ln pi of each token, nats.
    public var trainer: [Float]?

    /// Creates a sequence; the arrays that are given have one value a token.
    public init(
        id: UInt64, step: Int64 = -1, promptTokens: Int = -1, reward: Float? = nil, advantage: Float? = nil,
        tokenIDs: [Int32]? = nil, mask: [Bool]? = nil, rollout: [Float]? = nil, trainer: [Float]? = nil
    ) {
        self.id = id
        self.step = step
        self.promptTokens = promptTokens
        self.reward = reward
        self.advantage = advantage
        self.tokenIDs = tokenIDs
        self.mask = mask
        self.rollout = rollout
        self.trainer = trainer
    }
}

/// One sequence of a log in borrowed columns, which must outlive the call that is given it.
public struct LogSequenceView {
    /// What identifies the sequence, however the log is cut over processes.
    public var id: UInt64
    /// The training step; -1 if not known.
    public var step: Int64 = -1
    /// Tokens at the beginning that belong to the prompt; -1 if not known.
    public var promptTokens: Int = -1
    /// The reward of the sequence.
    public var reward: Float?
    /// The advantage of the sequence.
    public var advantage: Float?
    /// Token ids, each within int32.
    public var tokenIDs: TokenView?
    /// Which tokens count: one row; all without it.
    public var mask: MaskView?
    /// ln mu of each token in fp32, or in fp16 or bf16, which are widened exactly.
    public var rollout: VectorView?
    /// ln pi of each token, likewise.
    public var trainer: VectorView?

    /// Creates a view of a sequence without any column.
    public init(id: UInt64) { self.id = id }
}

/// Which parts a stored sequence has: the first byte of its payload.
struct LogParts: OptionSet {
    let rawValue: UInt8
    static let tokenIDs = LogParts(rawValue: 1)
    static let rollout = LogParts(rawValue: 2)
    static let trainer = LogParts(rawValue: 4)
    static let mask = LogParts(rawValue: 8)
    static let step = LogParts(rawValue: 16)
    static let prompt = LogParts(rawValue: 32)
    static let reward = LogParts(rawValue: 64)
    static let advantage = LogParts(rawValue: 128)

    static let columns: [LogParts] = [.tokenIDs, .rollout, .trainer]
    /// How many columns of packed words there are.
    var columnCount: Int { LogParts.columns.count { contains($0) } }
}

/// Turns sequences into frames.
///
/// Keeps its memory from one to the next.
struct LogEncoder: ~Copyable {
    private(set) var frame = Growing<UInt8>()
    private var runs = Growing<Int>()
    private var words = Growing<UInt32>()
    private var others = Growing<UInt32>()

    /// Fills `frame` with the sequence and returns its number of tokens.
    mutating func encode(_ sequence: LogSequenceView) throws(LockstepError) -> Int {
        let tokens = try LogEncoder.check(sequence)
        var parts = LogParts()
        if sequence.tokenIDs != nil { parts.insert(.tokenIDs) }
        if sequence.rollout != nil { parts.insert(.rollout) }
        if sequence.trainer != nil { parts.insert(.trainer) }
        if sequence.step != -1 { parts.insert(.step) }
        if sequence.promptTokens != -1 { parts.insert(.prompt) }
        if sequence.reward != nil { parts.insert(.reward) }
        if sequence.advantage != nil { parts.insert(.advantage) }
        let counted = try findRuns(sequence.mask, tokens)
        // A mask under which everything counts is no mask: the same log has the same bytes.
        if counted < tokens { parts.insert(.mask) }
        frame.count = 0
        try frame.reserve(LogFormat.framePrefix + 64 + 10 * runs.count)
        frame.push(0, repeated: LogFormat.framePrefix)
        frame.push(parts.rawValue)
        frame.push(varint: UInt64(tokens))
        frame.push(varint: sequence.id)
        if parts.contains(.step) {
            frame.push(varint: UInt64(bitPattern: sequence.step << 1 ^ sequence.step >> 63))
        }
        if parts.contains(.prompt) { frame.push(varint: UInt64(sequence.promptTokens)) }
        if let reward = sequence.reward { frame.push(littleEndian: reward.bitPattern) }
        if let advantage = sequence.advantage { frame.push(littleEndian: advantage.bitPattern) }
        if parts.contains(.mask) {
            for index in 0..<runs.count { frame.push(varint: UInt64(runs.base[index])) }
        }
        try words.reserve(tokens)
        try others.reserve(tokens)
        if let ids = sequence.tokenIDs {
            if ids.byteCount == 4, ids.stride == 1, let base = ids.base {
                UnsafeMutableRawPointer(words.base).copyMemory(from: base, byteCount: 4 * tokens)
            } else {
                for index in 0..<tokens { words.base[index] = UInt32(truncatingIfNeeded: ids[index]) }
            }
            try pack(words.base, tokens)
        }
        if let rollout = sequence.rollout {
            gather(rollout, into: words.base, counted, masked: parts.contains(.mask))
            try pack(words.base, tokens)
        }
        if let trainer = sequence.trainer {
            gather(trainer, into: others.base, counted, masked: parts.contains(.mask))
            if sequence.rollout != nil {
                for index in 0..<tokens { others.base[index] &-= words.base[index] }
            }
            try pack(others.base, tokens)
        }
        LogFormat.seal(.sequence, UnsafeMutableRawBufferPointer(start: frame.base, count: frame.count))
        return tokens
    }

    private static func check(_ sequence: LogSequenceView) throws(LockstepError) -> Int {
        let lengths: [(name: StaticString, count: Int?)] = [
            ("token_ids", sequence.tokenIDs?.count), ("rollout_log_probs", sequence.rollout?.count),
            ("trainer_log_probs", sequence.trainer?.count),
        ]
        guard let first = lengths.first(where: { $0.count != nil }), let tokens = first.count else {
            throw LockstepError(
                .invalidArgument,
                "sequence: has neither token_ids nor rollout_log_probs nor trainer_log_probs; give one of them"
            )
        }
        func sameLength(_ name: StaticString, _ count: Int) throws(LockstepError) {
            guard count != tokens else { return }
            throw LockstepError(
                .invalidArgument,
                "\(name): has \(count) tokens but \(first.name) has \(tokens); give the same")
        }
        for case let (name, count?) in lengths { try sameLength(name, count) }
        if let mask = sequence.mask { try sameLength("mask", mask.rows == 1 ? mask.columns : -1) }
        guard tokens <= LogFormat.largestSequence else {
            throw LockstepError(
                .invalidArgument, "\(first.name): has \(tokens) tokens; a sequence has 268,435,456 at most")
        }
        let columns: [(name: StaticString, view: VectorView?)] = [
            ("rollout_log_probs", sequence.rollout), ("trainer_log_probs", sequence.trainer),
        ]
        for case let (name, view?) in columns where ![.fp32, .fp16, .bf16].contains(view.format) {
            throw LockstepError(
                .invalidArgument,
                "\(name): format is \(view.format); a log holds fp32 (or fp16 and bf16, widened): convert it first"
            )
        }
        guard sequence.promptTokens >= -1, sequence.promptTokens <= tokens else {
            throw LockstepError(
                .invalidArgument,
                "prompt_tokens is \(sequence.promptTokens) but the sequence has \(tokens) tokens; give 0 to "
                    + "that, or -1 if it is not known")
        }
        if let ids = sequence.tokenIDs, ids.byteCount == 8 {
            for index in 0..<tokens where Int32(exactly: ids[index]) == nil {
                throw LockstepError(
                    .invalidArgument, "token_ids: token_ids[\(index)] is \(ids[index]), beyond 32 bits")
            }
        }
        return tokens
    }

    /// Fills `runs` with the lengths of masked and counted runs in turn, masked first; returns how many tokens
    /// count.
    private mutating func findRuns(_ mask: MaskView?, _ tokens: Int) throws(LockstepError) -> Int {
        runs.count = 0
        guard let mask, let bytes = mask.base, tokens > 0 else { return tokens }
        var (counted, start) = (0, 0)
        while start < tokens {
            let masked = LogEncoder.zeros(bytes + start, tokens - start)
            let end = start + masked
            let found = memchr(bytes + end, 0, tokens - end)
            let length = found.map { UnsafeRawPointer($0) - UnsafeRawPointer(bytes + end) } ?? tokens - end
            try runs.reserve(2)
            runs.push(masked)
            if length > 0 { runs.push(length) }
            counted += length
            start = end + length
        }
        return counted
    }

    /// How many of `count` bytes, from the first on, are 0.
    private static func zeros(_ bytes: UnsafePointer<UInt8>, _ count: Int) -> Int {
        var index = 0
        while index + 8 <= count, UnsafeRawPointer(bytes + index).loadUnaligned(as: UInt64.self) == 0 {
            index += 8
        }
        while index < count, bytes[index] == 0 { index += 1 }
        return index
    }

    /// The bits of a column, those of counted tokens first, so that what masked ones hold costs nothing when
    /// it is all the same.
    private func gather(
        _ column: VectorView, into target: UnsafeMutablePointer<UInt32>, _ counted: Int, masked: Bool
    ) {
        guard masked else {
            LogEncoder.copy(column, from: 0, column.count, into: target)
            return
        }
        var (next, start) = ([counted, 0], 0)
        for index in 0..<runs.count {
            let length = runs.base[index]
            LogEncoder.copy(column, from: start, length, into: target + next[index & 1])
            next[index & 1] += length
            start += length
        }
    }

    private static func copy(
        _ column: VectorView, from start: Int, _ count: Int, into target: UnsafeMutablePointer<UInt32>
    ) {
        guard count > 0, let base = column.base else { return }
        switch column.format {
        case .fp32:
            if column.stride == 1 {
                UnsafeMutableRawPointer(target).copyMemory(from: base + 4 * start, byteCount: 4 * count)
                return
            }
            for index in 0..<count {
                target[index] = (base + 4 * column.stride * (start + index)).loadUnaligned(as: UInt32.self)
            }
        case .bf16:
            for index in 0..<count {
                let bits = (base + 2 * column.stride * (start + index)).loadUnaligned(as: UInt16.self)
                target[index] = UInt32(bits) << 16
            }
        default:
            for index in 0..<count {
                let bits = (base + 2 * column.stride * (start + index)).loadUnaligned(as: UInt16.self)
                target[index] = Float(Float16(bitPattern: bits)).bitPattern
            }
        }
    }

    private mutating func pack(_ words: UnsafePointer<UInt32>, _ count: Int) throws(LockstepError) {
        try frame.reserve(PackedWords.room(count))
        frame.count += PackedWords.encode(words, count: count, into: frame.end)
    }
}
