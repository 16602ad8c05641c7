/// Bytes in a file or in memory, a window of them at a time.
///
/// Files are read, not mapped: a mapped file that somebody cuts short kills the reader.
final class ByteSource {
    /// Bytes read from a file at once, at least.
    static let chunk = 1 << 20

    /// What messages call them.
    let name: String
    /// How many there are; of a file, when it was last looked at.
    private(set) var size: Int
    private let file: SystemFile?
    private let memory: UnsafeRawBufferPointer
    private var window = Growing<UInt8>()
    private var windowStart = 0

    init(file: SystemFile) throws(LockstepError) {
        self.file = file
        name = file.name
        memory = UnsafeRawBufferPointer(start: nil, count: 0)
        size = try file.size()
    }

    init(memory: UnsafeRawBufferPointer, _ name: String) {
        file = nil
        self.name = name
        self.memory = memory
        size = memory.count
    }

    /// Looks again how long a file is: it may still be written.
    func refresh() throws(LockstepError) {
        if let file { size = try file.size() }
    }

    /// `count` bytes from `position` on, valid until the next call; nil if they end before.
    func bytes(at position: Int, count: Int) throws(LockstepError) -> UnsafeRawBufferPointer? {
        guard position >= 0, count >= 0, position <= size, count <= size - position else { return nil }
        guard let file else { return UnsafeRawBufferPointer(rebasing: memory[position..<position + count]) }
        if position < windowStart || position + count > windowStart + window.count {
            let wanted = max(count, min(ByteSource.chunk, size - position))
            window.count = 0
            try window.reserve(wanted)
            windowStart = position
            window.count = try file.read(into: window.base, at: position, count: wanted)
            if window.count < wanted { size = position + window.count }  // somebody cut the file
            guard count <= window.count else { return nil }
        }
        return UnsafeRawBufferPointer(start: window.base + (position - windowStart), count: count)
    }
}
