#if canImport(Glibc)
    import Glibc
#elseif canImport(Darwin)
    import Darwin
#endif

/// Memory of one call, aligned to a cache line and freed with its owner.
///
/// Asking for too much is an error, not a trap: that is what an `Array` cannot offer.
struct Scratch<Element: BitwiseCopyable>: ~Copyable {
    let base: UnsafeMutablePointer<Element>
    let count: Int

    /// With `hasLargePages` memory of some megabytes is in pages of 2 MB, where the system has them.
    init(count: Int, hasLargePages: Bool = false) throws(LockstepError) {
        let (bytes, overflow) = count.multipliedReportingOverflow(by: MemoryLayout<Element>.stride)
        let largePage = 2 << 20
        let isLarge = hasLargePages && bytes >= largePage
        var raw: UnsafeMutableRawPointer?
        guard !overflow, bytes >= 0, posix_memalign(&raw, isLarge ? largePage : 64, max(bytes, 64)) == 0,
            let raw
        else {
            throw LockstepError(
                .outOfMemory, "\(count) x \(MemoryLayout<Element>.stride) bytes cannot be had")
        }
        #if os(Linux)
            // A wish: where it is not granted nothing but time is lost.
            if isLarge { _ = madvise(raw, bytes, MADV_HUGEPAGE) }
        #endif
        base = raw.bindMemory(to: Element.self, capacity: max(count, 1))
        self.count = count
    }

    init(count: Int, filledWith value: Element) throws(LockstepError) {
        try self.init(count: count)
        base.initialize(repeating: value, count: count)
    }

    deinit { free(base) }
}

/// Throws where so much memory cannot be had.
///
/// Arrays and dictionaries of Swift's end the process where they get none. Where one grows with what a caller gives,
/// its bytes are asked for here first, in one piece.
///
/// - Parameters:
///   - count: how many.
///   - bytesEach: bytes for each of them.
/// - Throws: `.outOfMemory`.
package func askForMemory(_ count: Int, bytesEach: Int) throws(LockstepError) {
    let (bytes, overflow) = count.multipliedReportingOverflow(by: bytesEach)
    // Each array has a header.
    _ = try Scratch<UInt8>(count: overflow || bytes > Int.max - 256 ? .max : bytes + 256)
}

extension UnsafeMutableRawPointer {
    /// Makes bytes 0: as fast as the system can, which a loop of Swift's is not.
    func clear(byteCount: Int) { memset(self, 0, byteCount) }
}
