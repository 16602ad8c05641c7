#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#elseif canImport(Darwin)
    import Darwin
#endif

/// An array that grows, whose memory can fail to be had without a trap, and keeps its room when it is
/// emptied.
struct Growing<Element: BitwiseCopyable>: ~Copyable {
    /// The first element; an address that nobody reads while there is no room.
    private(set) var base = UnsafeMutablePointer<Element>(bitPattern: 64)!
    private(set) var capacity = 0
    var count = 0

    /// Makes room for `more` elements after the ones that are there.
    mutating func reserve(_ more: Int) throws(LockstepError) {
        let (wanted, overflow) = count.addingReportingOverflow(more)
        if !overflow, wanted <= capacity { return }
        let grown = Swift.max(wanted, capacity &* 2, 64)
        let (bytes, tooMany) = grown.multipliedReportingOverflow(by: MemoryLayout<Element>.stride)
        guard !overflow, !tooMany, let raw = realloc(capacity > 0 ? base : nil, bytes) else {
            throw LockstepError(.outOfMemory, "\(bytes) bytes cannot be had")
        }
        base = raw.bindMemory(to: Element.self, capacity: grown)
        capacity = grown
    }

    /// Adds an element; room must have been reserved.
    mutating func push(_ element: Element) {
        base[count] = element
        count += 1
    }

    /// Adds `more` elements equal to `element`; room must have been reserved.
    mutating func push(_ element: Element, repeated more: Int) {
        (base + count).update(repeating: element, count: more)
        count += more
    }

    /// Adds the elements of a buffer.
    mutating func append(contentsOf more: UnsafeBufferPointer<Element>) throws(LockstepError) {
        guard let first = more.baseAddress else { return }
        try reserve(more.count)
        end.update(from: first, count: more.count)
        count += more.count
    }

    /// The elements, valid until the next change.
    var elements: UnsafeBufferPointer<Element> { UnsafeBufferPointer(start: base, count: count) }

    /// The address after the last element.
    var end: UnsafeMutablePointer<Element> { base + count }

    deinit { if capacity > 0 { free(base) } }
}

extension Growing<UInt8> {
    /// Adds a number in little-endian bytes; room must have been reserved.
    mutating func push<Number: FixedWidthInteger>(littleEndian number: Number) {
        UnsafeMutableRawPointer(end).storeBytes(of: number.littleEndian, as: Number.self)
        count += MemoryLayout<Number>.size
    }

    /// Adds a number in 7-bit groups, lowest first, the top bit set on all but the last: at most 10 bytes,
    /// for which room must have been reserved.
    mutating func push(varint number: UInt64) {
        var rest = number
        while rest >= 0x80 {
            push(UInt8(truncatingIfNeeded: rest) | 0x80)
            rest >>= 7
        }
        push(UInt8(rest))
    }
}

/// Reads bytes one after another; nil where they end or are not what they should be.
struct ByteCursor {
    private var rest: UnsafeRawBufferPointer

    init(_ bytes: UnsafeRawBufferPointer) { rest = bytes }

    var remaining: Int { rest.count }

    mutating func take(_ count: Int) -> UnsafeRawBufferPointer? {
        guard count >= 0, count <= rest.count else { return nil }
        let taken = UnsafeRawBufferPointer(rebasing: rest.prefix(count))
        rest = UnsafeRawBufferPointer(rebasing: rest.dropFirst(count))
        return taken
    }

    mutating func number<Number: FixedWidthInteger>(_: Number.Type) -> Number? {
        take(MemoryLayout<Number>.size).map { Number(littleEndian: $0.loadUnaligned(as: Number.self)) }
    }

    mutating func varint() -> UInt64? {
        var value: UInt64 = 0
        for (index, byte) in rest.prefix(10).enumerated() {
            // The tenth byte has room for one bit.
            guard index < 9 || byte <= 1 else { return nil }
            value |= UInt64(byte & 0x7F) << UInt64(7 * index)
            if byte < 0x80 {
                rest = UnsafeRawBufferPointer(rebasing: rest.dropFirst(index + 1))
                return value
            }
        }
        return nil
    }

    /// A varint that counts something, at most `limit`.
    mutating func count(upTo limit: Int) -> Int? {
        guard let value = varint(), value <= UInt64(limit) else { return nil }
        return Int(value)
    }

    /// A packed column of `count` words, written to `words`.
    mutating func packedWords(into words: UnsafeMutablePointer<UInt32>, count: Int) -> Bool {
        guard let used = PackedWords.decode(rest, into: words, count: count) else { return false }
        rest = UnsafeRawBufferPointer(rebasing: rest.dropFirst(used))
        return true
    }
}
