// The bytes of a log, as docs/LogFormat.md specifies them: a header, then frames one after another.

/// What is fixed about the bytes.
enum LogFormat {
    /// The first eight bytes of every log.
    ///
    /// The first is not ASCII and the last two are a line end, so that a transfer as text shows.
    static let magic: [UInt8] = [0x89, 0x4C, 0x53, 0x4C, 0x4F, 0x47, 0x0D, 0x0A]  // \x89 L S L O G \r \n
    /// The version of the format that this library writes, and the newest it reads.
    static let version: UInt32 = 1
    /// Bytes before the header's fields: magic, version, length, two checksums.
    static let headerPrefix = 24
    /// Bytes before a frame's payload: marker, length, two checksums.
    static let framePrefix = 16
    /// The bytes every frame begins with, as a little-endian word; the top byte is the kind.
    static let marker: UInt32 = 0x0053_4CD1  // \xD1 L S
    /// The most tokens a sequence may have.
    static let largestSequence = 1 << 28

    /// What a frame holds; the fourth byte of its marker.
    enum Kind: UInt8 {
        /// One sequence: "R".
        case sequence = 0x52
        /// The end of a log that was closed: "E".
        case end = 0x45
    }

    /// The header's bytes.
    static func bytes(of header: LogHeader) throws(LockstepError) -> [UInt8] {
        var fields: [UInt8] = []
        for field in try header.fields() {
            append(field.tag, to: &fields)
            append(UInt32(field.bytes.count), to: &fields)
            fields += field.bytes
        }
        guard fields.count <= LogHeader.largest else {
            throw LockstepError(
                .invalidArgument, "header: has \(fields.count) bytes; give at most \(LogHeader.largest)")
        }
        var bytes = magic
        append(version, to: &bytes)
        append(UInt32(fields.count), to: &bytes)
        append(fields.withUnsafeBytes { CRC32C.checksum($0) }, to: &bytes)
        append(bytes.withUnsafeBytes { CRC32C.checksum($0) }, to: &bytes)
        return bytes + fields
    }

    private static func append<Number: FixedWidthInteger>(_ number: Number, to bytes: inout [UInt8]) {
        withUnsafeBytes(of: number.littleEndian) { bytes += $0 }
    }

    /// Fills in the prefix of a frame whose payload follows it in `frame`.
    static func seal(_ kind: Kind, _ frame: UnsafeMutableRawBufferPointer) {
        let payload = UnsafeRawBufferPointer(rebasing: frame.dropFirst(framePrefix))
        let base = frame.baseAddress!
        func store(_ word: UInt32, at offset: Int) {
            base.storeBytes(of: word.littleEndian, toByteOffset: offset, as: UInt32.self)
        }
        store(marker | UInt32(kind.rawValue) << 24, at: 0)
        store(UInt32(payload.count), at: 4)
        store(CRC32C.checksum(payload), at: 8)
        store(CRC32C.checksum(UnsafeRawBufferPointer(rebasing: frame.prefix(12))), at: 12)
    }

    /// The payload of an end mark: how many sequences and tokens the log has up to there.
    static func endMark(sequences: Int, tokens: Int) -> [UInt8] {
        var frame = [UInt8](repeating: 0, count: framePrefix)
        append(UInt64(sequences), to: &frame)
        append(UInt64(tokens), to: &frame)
        frame.withUnsafeMutableBytes { seal(.end, $0) }
        return frame
    }
}

/// What stands at a place of a log.
enum LogFrame {
    /// A whole frame with a good checksum; `end` is the place after it.
    case whole(LogFormat.Kind, payload: UnsafeRawBufferPointer, end: Int)
    /// Nothing: the log ends here.
    case finished
    /// The beginning of a frame that was not written to its end.
    case cutOff(bytes: Int)
    /// Something else. `end`, if known, is where the next frame must be.
    case damaged(String, end: Int?)
}

extension ByteSource {
    /// Reads the header: where frames begin, and what it says.
    func header() throws(LockstepError) -> (header: LogHeader, end: Int) {
        guard let prefix = try bytes(at: 0, count: min(LogFormat.headerPrefix, size)), prefix.count > 0 else {
            throw LockstepError(.badData, "\(name): is empty: no log was written")
        }
        guard prefix.starts(with: LogFormat.magic.prefix(prefix.count)) else {
            throw LockstepError(
                .badData, "\(name): is no Lockstep log: it does not begin with the bytes of one")
        }
        func word(_ offset: Int) -> UInt32 {
            UInt32(littleEndian: prefix.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
        }
        guard prefix.count == LogFormat.headerPrefix else { throw cutOffInHeader() }
        guard word(20) == CRC32C.checksum(UnsafeRawBufferPointer(rebasing: prefix.prefix(20))) else {
            throw LockstepError(.badData, "\(name): the header is damaged: its checksum does not match")
        }
        let (version, length, checksum) = (word(8), Int(word(12)), word(16))
        guard version <= LogFormat.version else {
            throw LockstepError(
                .unsupported,
                "\(name): is of format version \(version), but this library (\(versionString)) reads up to "
                    + "version \(LogFormat.version); load a newer library")
        }
        guard version > 0, length <= LogHeader.largest else {
            throw LockstepError(
                .badData, "\(name): the header is damaged: version \(version), \(length) bytes")
        }
        guard let payload = try bytes(at: LogFormat.headerPrefix, count: length) else {
            throw cutOffInHeader()
        }
        guard CRC32C.checksum(payload) == checksum else {
            throw LockstepError(.badData, "\(name): the header is damaged: its checksum does not match")
        }
        var cursor = ByteCursor(payload)
        var fields: [LogHeader.Field] = []
        while cursor.remaining > 0 {
            guard let tag = cursor.number(UInt16.self), let count = cursor.number(UInt32.self),
                let bytes = cursor.take(Int(count))
            else { throw LockstepError(.badData, "\(name): the header's fields do not fit together") }
            fields.append(LogHeader.Field(tag: tag, bytes: Array(bytes)))
        }
        guard let header = LogHeader(fields: fields) else {
            throw LockstepError(.badData, "\(name): a field of the header is not what it should be")
        }
        return (header, LogFormat.headerPrefix + length)
    }

    private func cutOffInHeader() -> LockstepError {
        LockstepError(
            .badData, "\(name): is cut off in its header, after \(size) bytes; it holds no sequence")
    }

    /// Whether the first bytes are those of a log.
    func beginsLikeALog() throws(LockstepError) -> Bool {
        try bytes(at: 0, count: min(LogFormat.magic.count, size))?.elementsEqual(LogFormat.magic) ?? false
    }

    /// Whether what is there, if anything, can only be the beginning of a header whose rest was never written.
    func isCutOffInHeader() throws(LockstepError) -> Bool {
        guard size > 0, let prefix = try bytes(at: 0, count: min(LogFormat.headerPrefix, size)) else {
            return true
        }
        guard prefix.starts(with: LogFormat.magic.prefix(prefix.count)) else { return false }
        guard prefix.count == LogFormat.headerPrefix else { return true }
        func word(_ offset: Int) -> UInt32 {
            UInt32(littleEndian: prefix.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
        }
        return word(20) == CRC32C.checksum(UnsafeRawBufferPointer(rebasing: prefix.prefix(20)))
            && word(8) == LogFormat.version && LogFormat.headerPrefix + Int(word(12)) > size
    }

    /// What stands at `position`.
    func frame(at position: Int) throws(LockstepError) -> LogFrame {
        if size - position < LogFormat.framePrefix { try refresh() }
        guard position < size else { return .finished }
        guard let prefix = try bytes(at: position, count: LogFormat.framePrefix) else {
            let remaining = size - position
            guard let rest = try bytes(at: position, count: remaining) else { return .finished }
            return isBeginning(rest) ? .cutOff(bytes: remaining) : .damaged("no record begins here", end: nil)
        }
        func word(_ offset: Int) -> UInt32 {
            UInt32(littleEndian: prefix.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
        }
        guard let kind = ByteSource.kind(ofPrefix: prefix) else {
            // A file system may have made the file longer before it wrote the bytes: they read as zeros.
            if try isZero(from: position) { return .cutOff(bytes: size - position) }
            return .damaged("no record begins here", end: nil)
        }
        let (length, checksum) = (Int(word(4)), word(8))
        let end = position + LogFormat.framePrefix + length
        if end > size { try refresh() }
        guard let payload = try bytes(at: position + LogFormat.framePrefix, count: length) else {
            return .cutOff(bytes: size - position)
        }
        guard CRC32C.checksum(payload) == checksum else {
            return .damaged("its checksum does not match", end: end)
        }
        return .whole(kind, payload: payload, end: end)
    }

    /// The kind of the frame that begins with these bytes; nil if none does.
    private static func kind(ofPrefix prefix: UnsafeRawBufferPointer) -> LogFormat.Kind? {
        func word(_ offset: Int) -> UInt32 {
            UInt32(littleEndian: prefix.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
        }
        guard word(0) & 0x00FF_FFFF == LogFormat.marker,
            word(12) == CRC32C.checksum(UnsafeRawBufferPointer(rebasing: prefix.prefix(12)))
        else { return nil }
        return LogFormat.Kind(rawValue: UInt8(word(0) >> 24))
    }

    /// Whether fewer bytes than a frame's prefix may be the beginning of one, or of nothing.
    private func isBeginning(_ rest: UnsafeRawBufferPointer) -> Bool {
        if rest.allSatisfy({ $0 == 0 }) { return true }
        let marker = withUnsafeBytes(of: LogFormat.marker.littleEndian) { Array($0.prefix(3)) }
        return rest.starts(with: marker.prefix(rest.count))
            && (rest.count < 4 || LogFormat.Kind(rawValue: rest[3]) != nil)
    }

    private func isZero(from position: Int) throws(LockstepError) -> Bool {
        var place = position
        while place < size {
            guard let chunk = try bytes(at: place, count: min(ByteSource.chunk, size - place)) else {
                return false
            }
            guard chunk.allSatisfy({ $0 == 0 }) else { return false }
            place += chunk.count
        }
        return true
    }

    /// The first place from `position` on where a frame's prefix stands, or the end of the log.
    ///
    /// A prefix has a checksum of its own, so ordinary bytes are not taken for one.
    func nextFrame(from position: Int) throws(LockstepError) -> Int {
        var place = position
        while size - place >= LogFormat.framePrefix {
            let count = min(ByteSource.chunk, size - place)
            guard let chunk = try bytes(at: place, count: count) else { break }
            let last = count - LogFormat.framePrefix
            let first = UInt8(truncatingIfNeeded: LogFormat.marker)
            for offset in 0...last where chunk[offset] == first {
                let prefix = UnsafeRawBufferPointer(rebasing: chunk[offset..<offset + LogFormat.framePrefix])
                if ByteSource.kind(ofPrefix: prefix) != nil { return place + offset }
            }
            place += last + 1
        }
        return size
    }
}
