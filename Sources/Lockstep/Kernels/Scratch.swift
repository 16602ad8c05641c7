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

    init(count: Int) throws(LockstepError) {
        let (bytes, overflow) = count.multipliedReportingOverflow(by: MemoryLayout<Element>.stride)
        var raw: UnsafeMutableRawPointer?
        guard !overflow, bytes >= 0, posix_memalign(&raw, 64, max(bytes, 64)) == 0, let raw else {
            throw LockstepError(
                .outOfMemory, "\(count) x \(MemoryLayout<Element>.stride) bytes cannot be had")
        }
        base = raw.bindMemory(to: Element.self, capacity: max(count, 1))
        self.count = count
    }

    init(count: Int, filledWith value: Element) throws(LockstepError) {
        try self.init(count: count)
        base.initialize(repeating: value, count: count)
    }

    deinit { free(base) }
}
