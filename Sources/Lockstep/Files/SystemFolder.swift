#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#elseif canImport(Darwin)
    import Darwin
#endif

/// Folders of files: made, listed, renamed, removed.
enum SystemFolder {
    /// Makes a folder, if there is none yet.
    static func make(_ path: String) throws(LockstepError) {
        guard !path.isEmpty, !path.utf8.contains(0) else {
            throw LockstepError(
                .invalidArgument, "path: is empty or holds a byte 0; give the path of a folder")
        }
        guard mkdir(path, 0o777) == 0 || errno == EEXIST else {
            throw LockstepError(.file, "\(path): cannot be made: \(systemError())")
        }
    }

    /// The names in a folder, sorted; none if there is no such folder.
    ///
    /// Throws if it cannot be read: that is not the same as nothing in it.
    static func names(in path: String) throws(LockstepError) -> [String] {
        guard let folder = opendir(path) else {
            if errno == ENOENT { return [] }
            throw LockstepError(.file, "\(path): cannot be read: \(systemError())")
        }
        defer { closedir(folder) }
        var names: [String] = []
        while true {
            errno = 0
            guard let entry = readdir(folder) else {
                if errno == 0 { break }
                throw LockstepError(.file, "\(path): cannot be read: \(systemError())")
            }
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != "." && name != ".." { names.append(name) }
        }
        return names.sorted()
    }

    /// Removes a folder and the files in it, as far as that is possible.
    static func remove(_ path: String) {
        for name in (try? names(in: path)) ?? [] { _ = unlink("\(path)/\(name)") }
        _ = rmdir(path)
    }

    /// Waits until a folder's names are on the disk, where the system can say so.
    static func sync(_ path: String) {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return }
        _ = fsync(descriptor)
        _ = close(descriptor)
    }

    /// Gives a folder its name, at once.
    static func rename(_ path: String, to name: String) throws(LockstepError) {
        #if canImport(Darwin)
            let done = Darwin.rename(path, name)
        #elseif canImport(Musl)
            let done = Musl.rename(path, name)
        #else
            let done = Glibc.rename(path, name)
        #endif
        guard done == 0 else {
            throw LockstepError(.file, "\(path): cannot be named \(name): \(systemError())")
        }
    }
}

extension SystemFile {
    /// Opens a file that is not there yet for writing.
    static let new = O_WRONLY | O_CREAT | O_EXCL

    /// Writes a new file and waits until it is on the disk.
    static func write(_ bytes: [UInt8], to path: String) throws(LockstepError) {
        let file = try SystemFile(path, new)
        try file.finish(bytes.withUnsafeBytes { file.write($0, at: 0) })
    }

    /// Waits until all that was written to a new file is on the disk; `problem` is what a write said.
    ///
    /// With one no file is left.
    func finish(_ problem: String?) throws(LockstepError) {
        if let problem = problem ?? sync() {
            unlink(name)
            throw LockstepError(.file, "\(name): cannot be written: \(problem)")
        }
    }
}
