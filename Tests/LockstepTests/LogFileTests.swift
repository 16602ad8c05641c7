import Glibc
import Testing

@testable import Lockstep

/// The path of a file that does not exist, in a folder that is removed afterwards.
private func withPath<Result>(_ body: (String) throws -> Result) throws -> Result {
    var template = Array("/tmp/lockstep-log-XXXXXX".utf8CString)
    let folder = String(cString: try #require(mkdtemp(&template)))
    let path = folder + "/a.lockstep"
    defer {
        unlink(path)
        rmdir(folder)
    }
    return try body(path)
}

private func sequences(_ path: String, maxTokens: Int = 1000) throws -> [LogSequence] {
    let reader = try LogReader(path: path)
    var found: [LogSequence] = []
    while true {
        let batch = try reader.next(maxTokens: maxTokens)
        if batch.sequences == 0 { return found }
        for index in 0..<batch.sequences { found.append(batch[index]) }
    }
}

@Suite struct LogFileTests {
    /// RFC 3720, B.4, and the check value of the polynomial.
    @Test(
        arguments: [
            (Array("123456789".utf8), 0xE306_9283), ([UInt8](repeating: 0, count: 32), 0x8A91_36AA),
            ([UInt8](repeating: 0xFF, count: 32), 0x62A8_AB43), (Array(0..<32), 0x46DD_794E), ([], 0),
        ] as [([UInt8], UInt32)])
    func checksumsAreCastagnolis(_ bytes: [UInt8], _ expected: UInt32) {
        #expect(bytes.withUnsafeBytes { CRC32C.checksum($0) } == expected)
        for cut in 0...bytes.count {
            let first = bytes[..<cut].withUnsafeBytes { CRC32C.checksum($0) }
            #expect(bytes[cut...].withUnsafeBytes { CRC32C.checksum($0, after: first) } == expected)
        }
    }

    /// Every width, shift and length of a last block; values anywhere in the range of their block.
    @Test func packedWordsComeBack() {
        var random = Random(1)
        for width in 0...32 {
            for shift in [0, 1, 16, 31] where width + shift <= 32 {
                for count in [0, 1, 2, 31, 127, 128, 129, 300] {
                    // Anywhere, if only the block does not step over the largest signed number.
                    let reach = (UInt64(1) << UInt64(width) - 1) << UInt64(shift)
                    let room = UInt64(UInt32.max) - reach
                    let base = UInt32(truncatingIfNeeded: UInt64(1) << 31 + random.next() % (room + 1))
                    let words = (0..<count).map { _ in
                        base &+ UInt32(truncatingIfNeeded: random.next() & (1 << UInt64(width) - 1))
                            << UInt32(shift)
                    }
                    var bytes = [UInt8](repeating: 0xA5, count: PackedWords.room(count))
                    let used = bytes.withUnsafeMutableBytes {
                        PackedWords.encode(words, count: count, into: $0.baseAddress!)
                    }
                    var found = [UInt32](repeating: 0, count: count)
                    // With nothing after the column, and with something.
                    for end in [used, bytes.count] {
                        let read = bytes[..<end].withUnsafeBytes { bytes in
                            found.withUnsafeMutableBufferPointer {
                                PackedWords.decode(bytes, into: $0.baseAddress!, count: count)
                            }
                        }
                        #expect(read == used && found == words)
                    }
                    let blocks = (count + 127) / 128
                    #expect(used <= 6 * blocks + (count * width + 7) / 8 + blocks)
                    for end in 0..<min(used, 40) {
                        let read = bytes[..<end].withUnsafeBytes { bytes in
                            found.withUnsafeMutableBufferPointer {
                                PackedWords.decode(bytes, into: $0.baseAddress!, count: count)
                            }
                        }
                        #expect(read == nil)
                    }
                }
            }
        }
    }

    /// Every sign and exponent, with the mantissas at the ends and in the middle.
    @Test func everyKindOfFloatComesBack() throws {
        let mantissas: [UInt32] = [0, 1, 2, 0x3F_FFFF, 0x40_0000, 0x40_0001, 0x55_5555, 0x7F_FFFE, 0x7F_FFFF]
        let values = (UInt32(0)..<512).flatMap { exponent in
            mantissas.map { Float(bitPattern: exponent << 23 | $0) }
        }
        let other = Array(values.reversed())
        try withPath { path in
            let writer = try LogWriter(path: path)
            try writer.append(
                LogSequence(id: 1, mask: values.indices.map { $0 % 3 != 0 }, rollout: values, trainer: other))
            try writer.append(LogSequence(id: .max, trainer: values))
            try writer.close()
            let found = try sequences(path)
            #expect(found[0].rollout?.map(\.bitPattern) == values.map(\.bitPattern))
            #expect(found[0].trainer?.map(\.bitPattern) == other.map(\.bitPattern))
            #expect(found[0].mask == values.indices.map { $0 % 3 != 0 })
            #expect(found[1].id == .max && found[1].rollout == nil && found[1].step == -1)
            #expect(found[1].trainer?.map(\.bitPattern) == values.map(\.bitPattern))
        }
    }

    @Test func sequencesComeBackWhole() throws {
        var random = Random(2)
        let log = (0..<40).map { index -> LogSequence in
            let tokens = [0, 1, 5, 128, 700][index % 5]
            let rollout = random.normal(tokens)
            return LogSequence(
                id: random.next(), step: Int64(index) - 3, promptTokens: tokens / 2,
                reward: index % 2 == 0 ? 0.5 : nil, advantage: index % 3 == 0 ? -1 : nil,
                tokenIDs: index % 4 == 0
                    ? nil : (0..<tokens).map { _ in Int32.random(in: 0..<150_000, using: &random) },
                mask: tokens < 2 ? nil : (0..<tokens).map { $0 > 0 }, rollout: rollout,
                trainer: index % 5 == 0 ? nil : rollout.map { $0 + 0.001 })
        }
        try withPath { path in
            var header = LogHeader()
            header.model = "tiny"
            header.rollout.name = "vLLM"
            header.temperature = 1
            let writer = try LogWriter(path: path, header: header, syncEvery: 16)
            for sequence in log { try writer.append(sequence) }
            #expect(writer.sequences == 40 && writer.tokens == 8 * (0 + 1 + 5 + 128 + 700))
            try writer.close()
            for maxTokens in [1, 100, 2000, 1 << 40] {
                #expect(try sequences(path, maxTokens: maxTokens) == log)
            }
            #expect(try LogReader(path: path).header == header)
        }
    }

    /// A batch goes into the mismatch calls as it is.
    @Test func aBatchIsAPair() throws {
        var random = Random(3)
        let rollout = (0..<6).map { random.normal(50 + $0) }
        let trainer = rollout.map { $0.map { $0 * 1.01 } }
        let mask = rollout.map { $0.indices.map { $0 > 9 } }
        try withPath { path in
            let writer = try LogWriter(path: path)
            for index in rollout.indices {
                try writer.append(
                    LogSequence(
                        id: UInt64(index), mask: mask[index], rollout: rollout[index], trainer: trainer[index]
                    ))
            }
            try writer.close()
            let found = try LogReader(path: path).next(maxTokens: 1000).withPair {
                (pair) throws(LockstepError) in try pair.mismatch()
            }
            let direct = try mismatch(trainer: trainer, rollout: rollout, mask: mask)
            #expect(found.k3.value.bitPattern == direct.k3.value.bitPattern && found.tokens == direct.tokens)
        }
    }

    /// What Swift programs are told, in the words of the file.
    @Test func errorsNameTheFile() throws {
        try withPath { path in
            func message(_ body: () throws -> Void) -> String {
                do { try body() } catch { return "\(error)" }
                return ""
            }
            #expect(
                message { _ = try LogReader(path: path) }
                    == "\(path): cannot be opened: No such file or directory")
            let writer = try LogWriter(path: path)
            #expect(message { _ = try LogWriter(path: path, mode: .append) }.contains("another writer"))
            #expect(message { try writer.append(LogSequence(id: 0)) }.contains("give one of them"))
            let short = LogSequence(id: 0, rollout: [1, 2], trainer: [1])
            #expect(
                message { try writer.append(short) }.contains("trainer_log_probs: has 1 tokens but rollout"))
            try writer.append(LogSequence(id: 0, rollout: [1, 2]))
            try writer.close()
            #expect(message { try writer.sync() }.contains("closed"))
            let reader = try LogReader(path: path)
            #expect(message { _ = try reader.next(maxTokens: 0) }.contains("max_tokens is 0"))
            #expect(message { try reader.seek(to: 3) }.contains("position is 3"))
        }
    }

    /// A refused writer must not touch the file: not when it is freed either.
    @Test func aRefusedWriterWritesNothing() throws {
        try withPath { path in
            let writer = try LogWriter(path: path)
            try writer.append(LogSequence(id: 5, rollout: [-1, -2, -3]))
            for mode in [LogWriter.Mode.create, .append, .replace] {
                #expect(throws: LockstepError.self) { _ = try LogWriter(path: path, mode: mode) }
            }
            #expect(try sequences(path).map(\.id) == [5])
            try writer.append(LogSequence(id: 6, rollout: [-1]))
            try writer.close()
            #expect(try sequences(path).map(\.id) == [5, 6])
        }
    }
}
