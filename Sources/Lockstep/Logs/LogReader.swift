/// Reads a log, some whole sequences at a time.
///
/// Nothing in a file is believed before its checksum is seen to match, and no memory is taken for what a
/// count says alone. Not to be used from two threads at once.
public final class LogReader {
    /// What to do about a damaged record.
    ///
    /// Raw values are those of `lockstep_log_damage`.
    public enum Damage: Int32, Sendable {
        /// An error that names it, after everything before it has been given.
        case strict = 0
        /// Go on with the next whole record, and count.
        case skip = 1
    }

    /// How a log was found to be, up to what was read.
    public struct Summary: Equatable, Sendable {
        /// Whether the log, as far as it was read, ends with the mark of a writer that closed it.
        public internal(set) var isClosed = false
        /// Sequences read.
        public internal(set) var sequences = 0
        /// Their tokens, whether they count or not.
        public internal(set) var tokens = 0
        /// The byte after the last record read.
        public internal(set) var position = 0
        /// Bytes of the log.
        public internal(set) var size = 0
        /// Bytes at the end of a record that was not written whole; 0 if there are none, or before the end
        /// was reached.
        public internal(set) var cutOffBytes = 0
        /// Places where something was damaged and skipped.
        public internal(set) var damagedPlaces = 0
        /// Bytes skipped there.
        public internal(set) var skippedBytes = 0
    }

    /// What the log says of itself.
    public let header: LogHeader

    private let source: ByteSource
    private let damage: Damage
    private let start: Int
    private var decoder = LogDecoder()
    private var state = Summary()
    /// Whether every record before `state.position` was read: then an end mark must agree with the counts.
    private var isComplete = true

    /// Opens a log in a file.
    ///
    /// - Parameters:
    ///   - path: the file; it may still be written.
    ///   - damage: what to do about damaged records.
    /// - Throws: `.file` if it cannot be read, `.badData` if it is no log or its header is damaged,
    ///   `.unsupported` if it is of a newer format.
    public convenience init(path: String, damage: Damage = .strict) throws(LockstepError) {
        try self.init(ByteSource(file: SystemFile(path, 0)), damage)
    }

    /// Opens a log in memory, which must outlive the reader.
    public convenience init(
        borrowing bytes: UnsafeRawBufferPointer, damage: Damage = .strict
    ) throws(LockstepError) {
        try self.init(ByteSource(memory: bytes, "the log in memory"), damage)
    }

    private init(_ source: ByteSource, _ damage: Damage) throws(LockstepError) {
        self.source = source
        self.damage = damage
        (header, start) = try source.header()
        state.position = start
    }

    /// How the log was found to be so far.
    public var summary: Summary {
        var summary = state
        summary.size = source.size
        return summary
    }

    /// The next sequences: as many as have `maxTokens` tokens or fewer together, but at least one; none at the
    /// end of the log.
    ///
    /// A sequence without tokens weighs as one token. The batch is valid until the next call.
    ///
    /// - Throws: `.badData` for a damaged record: after the sequences before it have been given, and again at
    ///   each call until `seek`. `.file` and `.outOfMemory`: the reader stands where it stood, and can be asked again.
    public func next(maxTokens: Int) throws(LockstepError) -> LogBatch {
        let before = (state, isComplete)
        do throws(LockstepError) {
            return try gather(maxTokens)
        } catch {
            (state, isComplete) = before
            throw error
        }
    }

    private func gather(_ maxTokens: Int) throws(LockstepError) -> LogBatch {
        guard maxTokens > 0 else {
            throw LockstepError(.invalidArgument, "max_tokens is \(maxTokens); give 1 or more")
        }
        try decoder.removeAll()
        var weight = 0
        reading: while true {
            switch try source.frame(at: state.position) {
            case .finished:
                state.cutOffBytes = 0
                break reading
            case .cutOff(let bytes):
                state.cutOffBytes = bytes
                break reading
            case .damaged(let reason, let end):
                guard try pass(reason, to: end) else { break reading }
            case .whole(.end, let payload, let end):
                if let reason = contradiction(of: payload) {
                    guard try pass(reason, to: end) else { break reading }
                } else {
                    state.isClosed = true
                    state.position = end
                }
            case .whole(.sequence, let payload, let end):
                guard let (_, tokens, _) = LogDecoder.beginning(of: payload) else {
                    guard try pass("it does not fit together", to: end) else { break reading }
                    continue reading
                }
                if decoder.sequences > 0, weight + max(tokens, 1) > maxTokens { break reading }
                guard try decoder.add(payload, at: state.position) else {
                    guard try pass("it does not fit together", to: end) else { break reading }
                    continue reading
                }
                weight += max(tokens, 1)
                state.sequences += 1
                state.tokens += tokens
                state.isClosed = false
                state.position = end
            }
        }
        return decoder.batch(of: self)
    }

    /// Goes to a byte of the log: one of a batch's `positions`, or 0 for the first record.
    public func seek(to position: Int) throws(LockstepError) {
        guard position == 0 || position >= start, position <= source.size else {
            throw LockstepError(
                .invalidArgument,
                "position is \(position); give 0, or one of a batch's positions (\(start) to \(source.size))")
        }
        state = Summary()
        state.position = max(position, start)
        isComplete = state.position == start
    }

    /// Steps over damage if that is wanted; false if there are sequences to be given first.
    private func pass(_ reason: String, to end: Int?) throws(LockstepError) -> Bool {
        let place = state.position
        if damage == .strict {
            if decoder.sequences > 0 { return false }
            throw LockstepError(
                .badData,
                "\(source.name): the record at byte \(place), \(isComplete ? "after \(state.sequences) sequences, " : "")"
                    + "is damaged: \(reason); everything before it was read, and what follows can be by skipping "
                    + "damage")
        }
        if let end { state.position = end } else { state.position = try source.nextFrame(from: place + 1) }
        state.damagedPlaces += 1
        state.skippedBytes += state.position - place
        state.isClosed = false
        isComplete = false
        return true
    }

    /// What is wrong with an end mark; nil if nothing is.
    private func contradiction(of payload: UnsafeRawBufferPointer) -> String? {
        var cursor = ByteCursor(payload)
        guard let sequences = cursor.number(UInt64.self), let tokens = cursor.number(UInt64.self),
            cursor.remaining == 0
        else { return "it does not fit together" }
        guard isComplete, sequences != UInt64(state.sequences) || tokens != UInt64(state.tokens) else {
            return nil
        }
        return
            "it closes a log of \(sequences) sequences and \(tokens) tokens, but there are \(state.sequences) "
            + "and \(state.tokens)"
    }
}
