#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#elseif canImport(Darwin)
    import Darwin
#endif

/// The message of the operating system's last error, "No space left on device".
func systemError(_ code: Int32 = errno) -> String { String(cString: strerror(code)) }

/// An open file; closed with its owner.
///
/// Interrupted calls are made again.
final class SystemFile {
    /// Opens for reading.
    static let readOnly = O_RDONLY

    let descriptor: Int32
    let name: String

    /// Opens a regular file.
    ///
    /// Child processes that run another program do not inherit it.
    init(_ path: String, _ flags: Int32) throws(LockstepError) {
        guard !path.isEmpty, !path.utf8.contains(0) else {
            throw LockstepError(.invalidArgument, "path: is empty or holds a byte 0; give the path of a file")
        }
        var found: Int32 = -1
        repeat {
            found = open(path, flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0o666)
        } while found < 0 && errno == EINTR
        guard found >= 0 else {
            let hint =
                errno == EEXIST ? "; append to it or replace it by saying so, or choose another name" : ""
            throw LockstepError(.file, "\(path): cannot be opened: \(systemError())\(hint)")
        }
        descriptor = found
        name = path
        guard try status().st_mode & S_IFMT == S_IFREG else {
            throw LockstepError(
                .file, "\(path): is not a regular file; read a stream into memory and give that")
        }
    }

    deinit { _ = close(descriptor) }

    /// Removes a file, if it can be.
    static func remove(_ path: String) { _ = unlink(path) }

    /// Whether a path leads to something.
    static func exists(_ path: String) -> Bool { access(path, F_OK) == 0 }

    private func status() throws(LockstepError) -> stat {
        var status = stat()
        guard fstat(descriptor, &status) == 0 else {
            throw LockstepError(.file, "\(name): cannot be looked at: \(systemError())")
        }
        return status
    }

    func size() throws(LockstepError) -> Int { Int(try status().st_size) }

    /// Reads up to `count` bytes; fewer only at the end of the file.
    func read(into target: UnsafeMutableRawPointer, at position: Int, count: Int) throws(LockstepError) -> Int
    {
        var done = 0
        while done < count {
            let got = pread(descriptor, target + done, count - done, off_t(position + done))
            if got < 0 && errno == EINTR { continue }
            guard got >= 0 else {
                throw LockstepError(
                    .file, "\(name): cannot be read at byte \(position + done): \(systemError())")
            }
            if got == 0 { break }
            done += got
        }
        return done
    }

    /// Writes all bytes, or says why not; then some of them may be there.
    func write(_ bytes: UnsafeRawBufferPointer, at position: Int) -> String? {
        var done = 0
        while done < bytes.count {
            let put = pwrite(
                descriptor, bytes.baseAddress! + done, bytes.count - done, off_t(position + done))
            if put < 0 && errno == EINTR { continue }
            guard put > 0 else { return put < 0 ? systemError() : "nothing was written" }
            done += put
        }
        return nil
    }

    /// Makes the file `size` bytes long, or says why not.
    func cut(to size: Int) -> String? {
        while ftruncate(descriptor, off_t(size)) != 0 {
            if errno != EINTR { return systemError() }
        }
        return nil
    }

    /// Waits until all bytes are on the disk, or says why they may not be.
    func sync() -> String? {
        while fsync(descriptor) != 0 {
            if errno != EINTR { return systemError() }
        }
        return nil
    }

    /// Takes the advisory lock; false if another writer has it.
    ///
    /// A file system without locks gives it too.
    func lock() -> Bool {
        while flock(descriptor, LOCK_EX | LOCK_NB) != 0 {
            if errno == EWOULDBLOCK { return false }
            if errno != EINTR { return true }
        }
        return true
    }

    /// Gives the lock back.
    func unlock() { _ = flock(descriptor, LOCK_UN) }

    /// Makes a new file's name durable too: it stands in the folder.
    func syncFolder() {
        let folder = name.lastIndex(of: "/").map { $0 == name.startIndex ? "/" : String(name[..<$0]) } ?? "."
        let found = open(folder, O_RDONLY | O_CLOEXEC)
        guard found >= 0 else { return }
        _ = fsync(found)
        _ = close(found)
    }
}
