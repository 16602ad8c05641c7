/// CRC-32C (Castagnoli), the checksum of Lockstep's byte formats: polynomial 0x1EDC6F41 reflected, initial
/// value and final XOR 0xFFFFFFFF, as in iSCSI, ext4 and RFC 3720.
///
/// Of "123456789" it is 0xE3069283.
///
/// Sixteen bytes a step from sixteen tables of 1 KB: no instruction that a machine might lack.
enum CRC32C {
    /// Table k, at k * 256: what a byte contributes that k more bytes follow.
    private nonisolated(unsafe) static let tables: UnsafePointer<UInt32> = {
        let tables = UnsafeMutablePointer<UInt32>.allocate(capacity: 16 * 256)
        for byte in 0..<256 {
            var remainder = UInt32(byte)
            for _ in 0..<8 { remainder = remainder >> 1 ^ (remainder & 1) &* 0x82F6_3B78 }
            tables[byte] = remainder
        }
        for index in 256..<16 * 256 {
            let before = tables[index - 256]
            tables[index] = before >> 8 ^ tables[Int(before & 0xFF)]
        }
        return UnsafePointer(tables)
    }()

    /// The checksum of `bytes`, or, with the checksum of what came before, of the two together.
    static func checksum(_ bytes: UnsafeRawBufferPointer, after before: UInt32 = 0) -> UInt32 {
        guard var pointer = bytes.baseAddress else { return before }
        let tables = tables
        var remaining = bytes.count
        var crc = ~before
        while remaining >= 16 {
            let low = UInt64(littleEndian: pointer.loadUnaligned(as: UInt64.self)) ^ UInt64(crc)
            let high = UInt64(littleEndian: pointer.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
            crc = fold(low, tables + 8 * 256) ^ fold(high, tables)
            pointer += 16
            remaining -= 16
        }
        for index in 0..<remaining {
            let byte = pointer.load(fromByteOffset: index, as: UInt8.self)
            crc = crc >> 8 ^ tables[Int(UInt8(truncatingIfNeeded: crc) ^ byte)]
        }
        return ~crc
    }

    /// What eight bytes contribute; `tables` begins with the table of the last of them.
    @inline(__always)
    private static func fold(_ word: UInt64, _ tables: UnsafePointer<UInt32>) -> UInt32 {
        @inline(__always)
        func entry(_ index: Int) -> UInt32 {
            tables[(7 &- index) &* 256 &+ Int(word >> UInt64(8 &* index) & 0xFF)]
        }
        return (entry(0) ^ entry(1)) ^ (entry(2) ^ entry(3)) ^ (entry(4) ^ entry(5)) ^ (entry(6) ^ entry(7))
    }
}
