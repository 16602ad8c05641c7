#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#elseif canImport(Darwin)
    import Darwin
#endif

/// Writes a log, one sequence a call.
///
/// A sequence is in the file when `append` returns, so the death of the process loses none; after `sync` a
/// power cut loses none either. What was being written when the process died is left out by readers and
/// replaced by the next writer. One writer a file, in one process: others are refused while the file is
/// locked. Not to be used from two threads at once.
public final class LogWriter {
    /// What to do about a file of that name.
    ///
    /// Raw values are those of `lockstep_log_mode`.
    public enum Mode: Int32, Sendable {
        /// Make a new file; it is an error if there is one.
        case create = 0
        /// Go on with a log after its last whole sequence, or make a new file.
        case append = 1
        /// Make a new log in place of another one; a file of another kind is left alone.
        case replace = 2
    }

    /// Sequences in the log, those of earlier writers included.
    public private(set) var sequences = 0
    /// Tokens in the log.
    public private(set) var tokens = 0
    /// Bytes of an unfinished record that were removed from the end of a log to go on with it.
    public private(set) var removedBytes = 0

    private let file: SystemFile
    private let process = getpid()
    private let syncEvery: Int
    private var encoder = LogEncoder()
    private var position = 0
    private var unsynced = 0
    private var isNew = false
    /// Whether the last frame is an end mark.
    private var isEnded = false
    /// Until the file is open and its end is found, nothing must be written to it: not by `deinit` either.
    private var isClosed = true
    private var broken: String?

    /// Opens a log for writing.
    ///
    /// - Parameters:
    ///   - path: the file; its name ends in ".lockstep" by custom.
    ///   - header: what is true of the whole log. Going on with a log, nil takes the one it has; one that is
    ///     given must be the same, the time of creation aside.
    ///   - mode: what to do about a file of that name.
    ///   - syncEvery: sequences after which the disk is waited for; 0 is only when `sync` or `close` asks.
    /// - Throws: `.file` if the system refuses or another writer has the file, `.badData` if it is no log or
    ///   damaged in the middle, `.invalidArgument` for a header that cannot be stored or differs.
    public init(
        path: String, header: LogHeader? = nil, mode: Mode = .create, syncEvery: Int = 0
    ) throws(LockstepError) {
        guard syncEvery >= 0 else {
            throw LockstepError(.invalidArgument, "sync_every is \(syncEvery); give 0 or more sequences")
        }
        let bytes = try LogFormat.bytes(of: header ?? LogHeader())
        self.syncEvery = syncEvery
        file = try SystemFile(path, O_RDWR | O_CREAT | (mode == .create ? O_EXCL : 0))
        guard file.lock() else {
            throw LockstepError(
                .file, "\(path): another writer has this log open; give each process a file of its own")
        }
        let source = try ByteSource(file: file)
        // A header without its end is the work of a writer that died at once: nothing can be lost.
        if try source.isCutOffInHeader() {
            do throws(LockstepError) {
                try begin(bytes, clearing: source.size)
            } catch {
                if mode == .create { unlink(path) }  // made here, and of no use
                throw error
            }
        } else if mode == .replace {
            guard try source.beginsLikeALog() else {
                throw LockstepError(
                    .badData, "\(path): is no Lockstep log, so it is not replaced; choose another name")
            }
            try begin(bytes, clearing: source.size)
        } else {
            try goOn(source, header)
        }
        isClosed = false
    }

    /// Writes the header of a new log in place of `size` bytes.
    private func begin(_ bytes: [UInt8], clearing size: Int) throws(LockstepError) {
        isNew = true
        if size > 0, let reason = file.cut(to: 0) {
            throw LockstepError(.file, "\(file.name): cannot be emptied: \(reason)")
        }
        try put(bytes)
    }

    /// Finds the end of a log that is there, removing what was not written whole.
    private func goOn(_ source: ByteSource, _ header: LogHeader?) throws(LockstepError) {
        let (found, start) = try source.header()
        if let field = header?.difference(from: found) {
            throw LockstepError(
                .invalidArgument,
                "header: \(field) differs from that of \(file.name); one log has one header, so begin a new log"
            )
        }
        position = start
        scan: while true {
            switch try source.frame(at: position) {
            case .whole(.sequence, let payload, let end):
                guard let (_, count, _) = LogDecoder.beginning(of: payload) else {
                    throw damaged("it does not fit")
                }
                sequences += 1
                tokens += count
                isEnded = false
                position = end
            case .whole(.end, _, let end):
                isEnded = true
                position = end
            case .finished: break scan
            case .cutOff: break scan
            case .damaged(let reason, let end):
                // At the very end it is what a power cut leaves; before whole records it is not.
                var place = end ?? position + 1
                while place < source.size {
                    place = try source.nextFrame(from: place)
                    switch try source.frame(at: place) {
                    case .whole: throw damaged(reason)
                    case .damaged(_, let end?): place = end
                    default: place += 1
                    }
                }
                break scan
            }
        }
        removedBytes = source.size - position
        if removedBytes > 0, let reason = file.cut(to: position) {
            throw LockstepError(.file, "\(file.name): cannot be cut to its whole records: \(reason)")
        }
    }

    private func damaged(_ reason: String) -> LockstepError {
        LockstepError(
            .badData,
            "\(file.name): the record after \(sequences) sequences, at byte \(position), is damaged (\(reason)); "
                + "read what is whole and write a new log")
    }

    /// Appends one sequence.
    ///
    /// When this returns it survives the end of the process.
    ///
    /// - Throws: `.invalidArgument` for columns that do not fit together; `.file` if it cannot be written:
    ///   then the log holds what it held before, and the call may be made again.
    public func append(_ sequence: LogSequenceView) throws(LockstepError) {
        try checkUsable()
        let count = try encoder.encode(sequence)
        try put(UnsafeRawBufferPointer(start: encoder.frame.base, count: encoder.frame.count))
        sequences += 1
        tokens += count
        isEnded = false
        unsynced += 1
        if syncEvery > 0, unsynced >= syncEvery { try sync() }
    }

    /// Appends one sequence that Swift owns.
    public func append(_ sequence: LogSequence) throws(LockstepError) {
        var view = LogSequenceView(id: sequence.id)
        view.step = sequence.step
        view.promptTokens = sequence.promptTokens
        view.reward = sequence.reward
        view.advantage = sequence.advantage
        let mask = sequence.mask.map { $0.map { UInt8($0 ? 1 : 0) } }
        try withBuffer(sequence.tokenIDs) { (ids) throws(LockstepError) in
            try withBuffer(mask) { (mask) throws(LockstepError) in
                try withBuffer(sequence.rollout) { (rollout) throws(LockstepError) in
                    try withBuffer(sequence.trainer) { (trainer) throws(LockstepError) in
                        view.tokenIDs = ids.map { TokenView($0.baseAddress, count: $0.count) }
                        view.mask = mask.map { MaskView($0.baseAddress, rows: 1, columns: $0.count) }
                        view.rollout = rollout.map { VectorView($0.baseAddress, .fp32, count: $0.count) }
                        view.trainer = trainer.map { VectorView($0.baseAddress, .fp32, count: $0.count) }
                        try append(view)
                    }
                }
            }
        }
    }

    /// Waits until all that was appended is on the disk: then it survives a power cut.
    public func sync() throws(LockstepError) {
        try checkUsable()
        if let reason = file.sync() {
            // The system may have dropped what it could not write, and a second try would not say so.
            broken = "\(file.name): could not be brought to the disk: \(reason); write a new log"
            throw LockstepError(.file, broken!)
        }
        if isNew { file.syncFolder() }
        isNew = false
        unsynced = 0
    }

    /// Marks the end of the log, waits for the disk and closes the file.
    ///
    /// Closing again does nothing.
    public func close() throws(LockstepError) {
        if isClosed { return }
        try checkUsable()
        if !isEnded { try put(LogFormat.endMark(sequences: sequences, tokens: tokens)) }
        isEnded = true
        try sync()
        isClosed = true
        file.unlock()
    }

    deinit {
        // A child made by fork() has a copy of this writer, which must not write to its parent's log.
        if process == getpid(), broken == nil { try? close() }
    }

    private func checkUsable() throws(LockstepError) {
        if let broken { throw LockstepError(.file, broken) }
        guard !isClosed else {
            throw LockstepError(.invalidArgument, "writer: the log is closed; open it again to append to it")
        }
        guard process == getpid() else {
            throw LockstepError(
                .invalidArgument,
                "writer: belongs to process \(process), not to this one, a child of it; open a log for each")
        }
    }

    private func put(_ bytes: [UInt8]) throws(LockstepError) {
        let failure = bytes.withUnsafeBytes { bytes -> LockstepError? in
            do throws(LockstepError) {
                try put(bytes)
                return nil
            } catch { return error }
        }
        if let failure { throw failure }
    }

    /// Writes a frame at the end of the log, or leaves the log as it was.
    private func put(_ bytes: UnsafeRawBufferPointer) throws(LockstepError) {
        guard let reason = file.write(bytes, at: position) else {
            position += bytes.count
            return
        }
        let message =
            "\(file.name): cannot be written at byte \(position): \(reason); the \(sequences) sequences before "
            + "it are whole"
        if let second = file.cut(to: position) { broken = message + ", what follows is not (\(second))" }
        throw LockstepError(.file, broken ?? message)
    }
}

private func withBuffer<Element>(
    _ array: [Element]?, _ body: (UnsafeBufferPointer<Element>?) throws(LockstepError) -> Void
) throws(LockstepError) {
    guard let array else { return try body(nil) }
    try array.withUnsafeBufferPointer { (buffer) throws(LockstepError) in try body(buffer) }
}
