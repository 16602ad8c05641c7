/// A column of 32-bit words in fewer bits, lossless: blocks of 128, each with the smallest word in it and as
/// many bits for the rest as the block needs (frame of reference).
///
///     width: u8    bits of a value, 0 to 32
///     shift: u8    zero bits below every value: values that were stored in 16 bits have 16 of them
///     base:  u32
///     values       count * width bits, lowest first, filled up to a whole byte
///
/// A word is `base + (value << shift)` modulo 2^32. One codec serves token ids, log-probs (floats of one sign
/// and near exponents are near as integers) and differences of log-probs.
enum PackedWords {
    static let blockLength = 128
    static let blockHeader = 6

    /// The fewest bytes that `count` words can take.
    static func smallest(_ count: Int) -> Int { (count + blockLength - 1) / blockLength * blockHeader }

    /// The room `encode` needs for `count` words: it stores whole words, so a little beyond what it uses.
    static func room(_ count: Int) -> Int { smallest(count) + 4 * count + 8 }

    /// Writes `count` words and returns how many bytes they took.
    static func encode(_ words: UnsafePointer<UInt32>, count: Int, into target: UnsafeMutableRawPointer)
        -> Int
    {
        var out = target
        var start = 0
        while start < count {
            let length = min(blockLength, count - start)
            let block = words + start
            // The smallest as a signed number: differences lie around 0, floats below it.
            var smallest = Int32(bitPattern: block[0])
            for index in 1..<max(length, 1) { smallest = min(smallest, Int32(bitPattern: block[index])) }
            let base = UInt32(bitPattern: smallest)
            var used: UInt32 = 0
            for index in 0..<length { used |= block[index] &- base }
            let shift = used == 0 ? 0 : used.trailingZeroBitCount
            let width = 32 - (used >> UInt32(shift)).leadingZeroBitCount
            out.storeBytes(of: UInt8(width), as: UInt8.self)
            out.storeBytes(of: UInt8(shift), toByteOffset: 1, as: UInt8.self)
            out.storeBytes(of: base.littleEndian, toByteOffset: 2, as: UInt32.self)
            out += blockHeader
            if width > 0 { store(block, length, base, UInt32(shift), UInt64(width), out) }
            out += (length * width + 7) / 8
            start += length
        }
        return out - target
    }

    @inline(__always)
    private static func store(
        _ block: UnsafePointer<UInt32>, _ length: Int, _ base: UInt32, _ shift: UInt32, _ width: UInt64,
        _ target: UnsafeMutableRawPointer
    ) {
        var (out, waiting, bits) = (target, UInt64(0), UInt64(0))
        for index in 0..<length {
            waiting |= UInt64((block[index] &- base) &>> shift) &<< bits
            bits &+= width
            if bits >= 32 {
                out.storeBytes(of: UInt32(truncatingIfNeeded: waiting).littleEndian, as: UInt32.self)
                out += 4
                waiting &>>= 32
                bits &-= 32
            }
        }
        out.storeBytes(of: UInt32(truncatingIfNeeded: waiting).littleEndian, as: UInt32.self)
    }

    /// Reads `count` words and returns how many bytes they took; nil if the bytes are not such a column.
    static func decode(
        _ bytes: UnsafeRawBufferPointer, into words: UnsafeMutablePointer<UInt32>, count: Int
    ) -> Int? {
        guard count > 0 else { return 0 }
        guard let first = bytes.baseAddress, smallest(count) <= bytes.count else { return nil }
        var position = 0
        var start = 0
        while start < count {
            guard bytes.count - position >= blockHeader else { return nil }
            let width = Int(bytes[position])
            let shift = Int(bytes[position + 1])
            guard width <= 32, shift <= 31, width + shift <= 32 else { return nil }
            let base = UInt32(
                littleEndian: first.loadUnaligned(fromByteOffset: position + 2, as: UInt32.self))
            position += blockHeader
            let length = min(blockLength, count - start)
            let size = (length * width + 7) / 8
            guard bytes.count - position >= size else { return nil }
            if width == 0 {
                (words + start).update(repeating: base, count: length)
            } else if bytes.count - position >= size + 8 {
                load(first + position, length, base, UInt32(shift), width, words + start)
            } else {
                // Words are loaded eight bytes at a time: at the end of the bytes, from a copy with room.
                withUnsafeTemporaryAllocation(byteCount: 4 * blockLength + 8, alignment: 8) { copy in
                    copy.baseAddress!.copyMemory(from: first + position, byteCount: size)
                    load(
                        UnsafeRawPointer(copy.baseAddress!), length, base, UInt32(shift), width, words + start
                    )
                }
            }
            position += size
            start += length
        }
        return position
    }

    @inline(__always)
    private static func load(
        _ source: UnsafeRawPointer, _ length: Int, _ base: UInt32, _ shift: UInt32, _ width: Int,
        _ words: UnsafeMutablePointer<UInt32>
    ) {
        let mask = UInt32(truncatingIfNeeded: UInt64(1) &<< UInt64(width) &- 1)
        var bit = 0
        for index in 0..<length {
            let window = UInt64(
                littleEndian: source.loadUnaligned(fromByteOffset: bit &>> 3, as: UInt64.self))
            let value = UInt32(truncatingIfNeeded: window &>> UInt64(bit & 7)) & mask
            words[index] = base &+ value &<< shift
            bit &+= width
        }
    }
}
