import CLockstep
import Lockstep

// Section 5 of the header: logs.

@_cdecl("lockstep_log_writer_create") @implementation
public func lockstep_log_writer_create(
    _ writer: UnsafeMutablePointer<OpaquePointer?>!, _ path: UnsafePointer<CChar>!,
    _ header: UnsafePointer<lockstep_log_header>!, _ options: UnsafePointer<lockstep_log_writer_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        guard let writer else {
            throw invalid("writer is NULL; give the address of a lockstep_log_writer pointer")
        }
        let path = try text(path, "path")
        let options = try read(options, defaults: .defaults)
        guard let mode = LogWriter.Mode(rawValue: options.mode) else {
            throw invalid("options: mode is \(options.mode); see the LOCKSTEP_LOG_CREATE constants")
        }
        let core = header == nil ? nil : try read(header, "header", defaults: .unknown).core()
        let made = try LogWriter(path: path, header: core, mode: mode, syncEvery: Int(options.sync_every))
        writer.pointee = retained(made)
    }
}

@_cdecl("lockstep_log_writer_append") @implementation
public func lockstep_log_writer_append(
    _ writer: OpaquePointer!, _ sequence: UnsafePointer<lockstep_log_sequence>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let writer = try logWriter(writer)
        guard sequence != nil else { throw invalid("sequence is NULL") }
        try writer.append(read(sequence, "sequence", defaults: .unknown).core())
    }
}

@_cdecl("lockstep_log_writer_sync") @implementation
public func lockstep_log_writer_sync(_ writer: OpaquePointer!) -> lockstep_status {
    guarded { () throws(LockstepError) in try logWriter(writer).sync() }
}

@_cdecl("lockstep_log_writer_close") @implementation
public func lockstep_log_writer_close(_ writer: OpaquePointer!) -> lockstep_status {
    guarded { () throws(LockstepError) in try logWriter(writer).close() }
}

@_cdecl("lockstep_log_writer_destroy") @implementation
public func lockstep_log_writer_destroy(_ writer: OpaquePointer!) {
    release(writer)
}

@_cdecl("lockstep_log_reader_open") @implementation
public func lockstep_log_reader_open(
    _ reader: UnsafeMutablePointer<OpaquePointer?>!, _ path: UnsafePointer<CChar>!,
    _ options: UnsafePointer<lockstep_log_reader_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        guard let reader else {
            throw invalid("reader is NULL; give the address of a lockstep_log_reader pointer")
        }
        let damage = try damage(options)
        reader.pointee = retained(ReaderHandle(try LogReader(path: text(path, "path"), damage: damage)))
    }
}

@_cdecl("lockstep_log_reader_open_memory") @implementation
public func lockstep_log_reader_open_memory(
    _ reader: UnsafeMutablePointer<OpaquePointer?>!, _ bytes: UnsafeRawPointer!, _ size: Int,
    _ options: UnsafePointer<lockstep_log_reader_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        guard let reader else {
            throw invalid("reader is NULL; give the address of a lockstep_log_reader pointer")
        }
        let damage = try damage(options)
        guard size >= 0, size == 0 || bytes != nil else {
            throw invalid("bytes is NULL, or size, \(UInt(bitPattern: size)), is beyond any memory")
        }
        let memory = UnsafeRawBufferPointer(start: bytes, count: bytes == nil ? 0 : size)
        reader.pointee = retained(ReaderHandle(try LogReader(borrowing: memory, damage: damage)))
    }
}

@_cdecl("lockstep_log_reader_header") @implementation
public func lockstep_log_reader_header(
    _ header: UnsafeMutablePointer<lockstep_log_header>!, _ reader: OpaquePointer!
) -> lockstep_status {
    guarded { () throws(LockstepError) in try write(logReader(reader).header, to: header, "header") }
}

@_cdecl("lockstep_log_reader_next") @implementation
public func lockstep_log_reader_next(
    _ batch: UnsafeMutablePointer<lockstep_log_batch>!, _ reader: OpaquePointer!, _ max_tokens: Int64
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let handle = try logReader(reader)
        try checkGrowable(batch, "batch")
        let found = try handle.reader.next(maxTokens: Int(max_tokens))
        try write(handle.tensors(of: found), to: batch, "batch")
    }
}

@_cdecl("lockstep_log_reader_seek") @implementation
public func lockstep_log_reader_seek(_ reader: OpaquePointer!, _ position: Int64) -> lockstep_status {
    guarded { () throws(LockstepError) in try logReader(reader).reader.seek(to: Int(position)) }
}

@_cdecl("lockstep_log_reader_summary") @implementation
public func lockstep_log_reader_summary(
    _ summary: UnsafeMutablePointer<lockstep_log_summary>!, _ reader: OpaquePointer!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try write(lockstep_log_summary(logReader(reader).reader.summary), to: summary, "summary")
    }
}

@_cdecl("lockstep_log_reader_destroy") @implementation
public func lockstep_log_reader_destroy(_ reader: OpaquePointer!) {
    release(reader)
}

/// A reader with what its C results point to.
private final class ReaderHandle {
    let reader: LogReader
    /// The header as C sees it; its texts are freed with the handle.
    let header: lockstep_log_header
    private let texts: [UnsafeMutablePointer<CChar>]
    private let lists: UnsafeMutablePointer<UnsafePointer<CChar>?>
    /// tokens, sequences, sequences + 1: the shapes of a batch's tensors.
    private let shapes = UnsafeMutablePointer<Int64>.allocate(capacity: 3)

    init(_ reader: LogReader) {
        self.reader = reader
        var texts: [UnsafeMutablePointer<CChar>] = []
        func text(_ text: String?) -> UnsafePointer<CChar> {
            let bytes = Array((text ?? "").utf8CString)
            let copy = UnsafeMutablePointer<CChar>.allocate(capacity: bytes.count)
            copy.initialize(from: bytes, count: bytes.count)
            texts.append(copy)
            return UnsafePointer(copy)
        }
        let found = reader.header
        let pairs = found.extra.count
        lists = .allocate(capacity: max(2 * pairs, 1))
        for (index, pair) in found.extra.enumerated() {
            lists[index] = text(pair.key)
            lists[pairs + index] = text(pair.value)
        }
        header = lockstep_log_header(
            struct_size: 0, log_prob_mode: found.logProbMode.rawValue, temperature: found.temperature ?? -1,
            top_p: found.topP ?? -1, min_p: found.minP ?? -1, top_k: Int32(found.topK ?? -1),
            format_version: LogHeader.formatVersion, created: found.created ?? 0, model: text(found.model),
            trainer_engine: text(found.trainer.name), trainer_version: text(found.trainer.version),
            trainer_weights: text(found.trainer.weights), trainer_body: text(found.trainer.body),
            trainer_head: text(found.trainer.head), trainer_logits: text(found.trainer.logits),
            rollout_engine: text(found.rollout.name), rollout_version: text(found.rollout.version),
            rollout_weights: text(found.rollout.weights), rollout_body: text(found.rollout.body),
            rollout_head: text(found.rollout.head), rollout_logits: text(found.rollout.logits), pairs: pairs,
            keys: UnsafePointer(lists), values: UnsafePointer(lists + pairs))
        self.texts = texts
    }

    deinit {
        for text in texts { text.deallocate() }
        lists.deallocate()
        shapes.deallocate()
    }

    /// A batch as tensors over the reader's memory.
    func tensors(of batch: LogBatch) -> lockstep_log_batch {
        shapes[0] = Int64(batch.tokens)
        shapes[1] = Int64(batch.sequences)
        shapes[2] = Int64(batch.sequences + 1)
        func tensor<Element>(
            _ column: UnsafeBufferPointer<Element>, _ dtype: Int, shape: Int
        ) -> lockstep_tensor {
            lockstep_tensor_of(
                UnsafeMutableRawPointer(mutating: column.baseAddress), Int32(dtype), 1, shapes + shape)
        }
        return lockstep_log_batch(
            struct_size: 0, reserved: 0, sequences: shapes[1], tokens: shapes[0],
            trainer_log_probs: tensor(batch.trainer, LOCKSTEP_FLOAT32, shape: 0),
            rollout_log_probs: tensor(batch.rollout, LOCKSTEP_FLOAT32, shape: 0),
            mask: tensor(batch.mask, LOCKSTEP_BOOL, shape: 0),
            offsets: tensor(batch.offsets, LOCKSTEP_INT64, shape: 2),
            token_ids: tensor(batch.tokenIDs, LOCKSTEP_INT32, shape: 0),
            ids: tensor(batch.ids, LOCKSTEP_UINT64, shape: 1),
            steps: tensor(batch.steps, LOCKSTEP_INT64, shape: 1),
            prompt_tokens: tensor(batch.promptTokens, LOCKSTEP_INT64, shape: 1),
            rewards: tensor(batch.rewards, LOCKSTEP_FLOAT32, shape: 1),
            advantages: tensor(batch.advantages, LOCKSTEP_FLOAT32, shape: 1),
            columns: tensor(batch.columns, LOCKSTEP_UINT8, shape: 1),
            positions: tensor(batch.positions, LOCKSTEP_INT64, shape: 1))
    }
}

private func logWriter(_ writer: OpaquePointer?) throws(LockstepError) -> LogWriter {
    try held(writer, "writer", from: "lockstep_log_writer_create")
}

private func logReader(_ reader: OpaquePointer?) throws(LockstepError) -> ReaderHandle {
    try held(reader, "reader", from: "lockstep_log_reader_open")
}

private func damage(
    _ pointer: UnsafePointer<lockstep_log_reader_options>?
) throws(LockstepError) -> LogReader.Damage {
    let options = try read(pointer, defaults: .defaults)
    guard let damage = LogReader.Damage(rawValue: options.damage) else {
        throw invalid("options: damage is \(options.damage); see the LOCKSTEP_LOG_DAMAGE constants")
    }
    return damage
}

/// A text of the caller that must be there.
func text(_ pointer: UnsafePointer<CChar>?, _ name: StaticString) throws(LockstepError) -> String {
    guard let pointer else { throw invalid("\(name) is NULL") }
    guard let text = String(validatingCString: pointer) else { throw invalid("\(name): is not UTF-8") }
    return text
}

/// A text of the header; NULL and "" are not known.
private func optionalText(
    _ pointer: UnsafePointer<CChar>?, _ name: StaticString
) throws(LockstepError) -> String? {
    guard let pointer else { return nil }
    guard let text = String(validatingCString: pointer) else { throw invalid("header: \(name) is not UTF-8") }
    return text.isEmpty ? nil : text
}

extension lockstep_log_writer_options: GrowableOptions {
    static var firstSize: Int { 16 }

    fileprivate static var defaults: lockstep_log_writer_options {
        lockstep_log_writer_options(
            struct_size: UInt32(MemoryLayout<lockstep_log_writer_options>.size), mode: 0, sync_every: 0)
    }
}

extension lockstep_log_reader_options: GrowableOptions {
    static var firstSize: Int { 8 }

    fileprivate static var defaults: lockstep_log_reader_options {
        lockstep_log_reader_options(
            struct_size: UInt32(MemoryLayout<lockstep_log_reader_options>.size), damage: 0)
    }
}

extension lockstep_log_batch: GrowableOptions {
    static var firstSize: Int { 600 }
}

extension lockstep_log_summary: GrowableOptions {
    static var firstSize: Int { 64 }

    fileprivate init(_ summary: LogReader.Summary) {
        self.init(
            struct_size: 0, is_closed: summary.isClosed ? 1 : 0, sequences: Int64(summary.sequences),
            tokens: Int64(summary.tokens), position: Int64(summary.position), size: Int64(summary.size),
            cut_off_bytes: Int64(summary.cutOffBytes), damaged_places: Int64(summary.damagedPlaces),
            skipped_bytes: Int64(summary.skippedBytes))
    }
}

extension lockstep_log_header: GrowableOptions {
    static var firstSize: Int { 176 }

    fileprivate static var unknown: lockstep_log_header {
        var header = lockstep_log_header()
        header.struct_size = UInt32(MemoryLayout<lockstep_log_header>.size)
        (header.temperature, header.top_p, header.min_p, header.top_k) = (-1, -1, -1, -1)
        return header
    }

    fileprivate func core() throws(LockstepError) -> LogHeader {
        var core = LogHeader()
        guard let mode = LogProbMode(rawValue: log_prob_mode) else {
            throw invalid("header: log_prob_mode is \(log_prob_mode); see the LOCKSTEP_LOG_PROB constants")
        }
        core.logProbMode = mode
        core.temperature = temperature == -1 ? nil : temperature
        core.topP = top_p == -1 ? nil : top_p
        core.minP = min_p == -1 ? nil : min_p
        core.topK = top_k == -1 ? nil : Int(top_k)
        core.created = created == 0 ? nil : created
        core.model = try optionalText(model, "model")
        core.trainer = LogHeader.Engine(
            name: try optionalText(trainer_engine, "trainer_engine"),
            version: try optionalText(trainer_version, "trainer_version"),
            weights: try optionalText(trainer_weights, "trainer_weights"),
            body: try optionalText(trainer_body, "trainer_body"),
            head: try optionalText(trainer_head, "trainer_head"),
            logits: try optionalText(trainer_logits, "trainer_logits"))
        core.rollout = LogHeader.Engine(
            name: try optionalText(rollout_engine, "rollout_engine"),
            version: try optionalText(rollout_version, "rollout_version"),
            weights: try optionalText(rollout_weights, "rollout_weights"),
            body: try optionalText(rollout_body, "rollout_body"),
            head: try optionalText(rollout_head, "rollout_head"),
            logits: try optionalText(rollout_logits, "rollout_logits"))
        guard (0...1 << 17).contains(pairs) else {
            throw invalid("header: pairs is \(UInt(bitPattern: pairs)); give 131,072 at most")
        }
        guard pairs == 0 || keys != nil && values != nil else {
            throw invalid("header: keys or values is NULL but there are \(pairs) pairs")
        }
        for index in 0..<pairs {
            guard let key = try optionalText(keys[index], "a key"), let value = values[index] else {
                throw invalid("header: keys[\(index)] is empty, or it or values[\(index)] is NULL")
            }
            core.extra.append(.init(key, try optionalText(value, "a value") ?? ""))
        }
        return core
    }
}

extension lockstep_log_sequence: GrowableOptions {
    static var firstSize: Int { 80 }

    fileprivate static var unknown: lockstep_log_sequence {
        var sequence = lockstep_log_sequence()
        sequence.struct_size = UInt32(MemoryLayout<lockstep_log_sequence>.size)
        (sequence.step, sequence.prompt_tokens) = (-1, -1)
        return sequence
    }

    fileprivate func core() throws(LockstepError) -> LogSequenceView {
        guard reserved == 0 else { throw invalid("sequence: reserved is \(reserved); it must be 0") }
        var core = LogSequenceView(id: id)
        core.step = step
        core.promptTokens = Int(prompt_tokens)
        core.reward = reward?.pointee
        core.advantage = advantage?.pointee
        if let token_ids { core.tokenIDs = try CheckedTensor(token_ids, "token_ids").tokens("[tokens]") }
        core.rollout = try column(rollout_log_probs, "rollout_log_probs")
        core.trainer = try column(trainer_log_probs, "trainer_log_probs")
        if let mask { core.mask = try CheckedTensor(mask, "mask").maskOfTokens() }
        return core
    }

    private func column(
        _ pointer: UnsafePointer<lockstep_tensor>?, _ name: StaticString
    ) throws(LockstepError) -> VectorView? {
        guard let pointer else { return nil }
        return try CheckedTensor(pointer, name).vector([.fp32, .fp16, .bf16], "[tokens]")
    }
}

extension CheckedTensor {
    /// A mask of one sequence; its bytes are contiguous.
    fileprivate func maskOfTokens() throws(LockstepError) -> MaskView {
        guard [LOCKSTEP_UINT8, LOCKSTEP_BOOL].contains(Int(code)) else {
            throw invalid("\(name): dtype must be uint8 or bool")
        }
        try expect(dimensions: 1, "[tokens]")
        guard shape[0] <= 1 || strides[0] == 1 else {
            throw invalid("\(name): strides[0] is \(strides[0]); tokens must be contiguous, copy it first")
        }
        return MaskView(
            base.map { UnsafePointer($0.assumingMemoryBound(to: UInt8.self)) }, rows: 1, columns: shape[0])
    }
}
