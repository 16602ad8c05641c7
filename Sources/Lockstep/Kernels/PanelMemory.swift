/// Memory for weights, which are written once and read again and again: blocks cut from chunks of large pages.
///
/// A pass over small pages reaches two thirds of the bandwidth that one over large pages does, so small matrices share
/// a chunk. A chunk lives as long as any of the blocks in it.
final class PanelMemory {
    /// Bytes of a chunk that is shared.
    private static let chunkBytes = 32 << 20

    private let isShared: Bool
    private var chunk: Chunk?
    private var used = 0

    /// Keeps the memory of blocks.
    final class Chunk: @unchecked Sendable {
        let bytes: Scratch<UInt8>

        init(_ count: Int) throws(LockstepError) { bytes = try Scratch(count: count, hasLargePages: true) }
    }

    /// Memory for one block, or for many.
    init(isShared: Bool) { self.isShared = isShared }

    /// A block, aligned to a cache line, and the chunk to hold as long as it is used.
    func take(_ count: Int) throws(LockstepError) -> (block: UnsafeMutableRawPointer, chunk: Chunk) {
        if let chunk, count <= chunk.bytes.count - used {
            defer { used += (count + 63) / 64 * 64 }
            return (UnsafeMutableRawPointer(chunk.bytes.base + used), chunk)
        }
        let shares = isShared && count < PanelMemory.chunkBytes
        let fresh = try Chunk(shares ? PanelMemory.chunkBytes : count)
        if shares { (chunk, used) = (fresh, (count + 63) / 64 * 64) }
        return (UnsafeMutableRawPointer(fresh.bytes.base), fresh)
    }
}
