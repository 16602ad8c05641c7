import CLockstepKernels

/// The keys and values of one sequence's tokens, layer by layer, in pages of 128 positions.
///
/// A page holds them as the kernels multiply by them: keys as panels of 32 positions, [headSize][32]; values as panels
/// of 32 of a head's elements, [128][32]. 128 is the chain of a matrix product, so a page is one link of the sum
/// over positions.
final class KeyValueCache {
    static let pagePositions = Int(LSK_CHAIN)
    private static let panel = Int(LSK_PANEL)

    /// Positions that every layer holds.
    private(set) var count = 0
    private let heads: Int
    private let headSize: Int
    private let panelsAcross: Int
    private let format: Format
    private var pages: [[Page]]
    /// Where they are: layer after layer, `pagesPerLayer` of each.
    private var places: [UnsafeMutablePointer<UInt8>] = []
    private var pagesPerLayer = 0
    private let keyBytes: Int
    private let valueBytes: Int

    /// 128 positions of one layer: all heads' keys, then all heads' values.
    private final class Page {
        let bytes: Scratch<UInt8>

        init(byteCount: Int) throws(LockstepError) { bytes = try Scratch(count: byteCount) }
    }

    init(_ configuration: ModelConfiguration, _ format: Format, layers: Int) {
        heads = configuration.keyValueHeads
        headSize = configuration.headSize
        self.format = format
        pages = Array(repeating: [], count: layers)
        panelsAcross = (headSize + KeyValueCache.panel - 1) / KeyValueCache.panel
        keyBytes = KeyValueCache.pagePositions * headSize * format.byteCount
        valueBytes = KeyValueCache.pagePositions * panelsAcross * KeyValueCache.panel * format.byteCount
    }

    /// A cache of another sequence that begins the same: whole pages are shared, the last one, if begun, is copied.
    func forked() throws(LockstepError) -> KeyValueCache {
        let copy = KeyValueCache(like: self)
        let whole = count / KeyValueCache.pagePositions
        for layer in pages.indices {
            copy.pages[layer] = Array(pages[layer][..<whole])
            if count % KeyValueCache.pagePositions > 0 {
                let page = try Page(byteCount: heads * (keyBytes + valueBytes))
                page.bytes.base.update(from: pages[layer][whole].bytes.base, count: page.bytes.count)
                copy.pages[layer].append(page)
            }
        }
        copy.count = count
        copy.notePlaces()
        return copy
    }

    private func notePlaces() {
        pagesPerLayer = pages.first?.count ?? 0
        places = pages.flatMap { $0.map { $0.bytes.base } }
    }

    private init(like other: KeyValueCache) {
        heads = other.heads
        headSize = other.headSize
        format = other.format
        (panelsAcross, keyBytes, valueBytes) = (other.panelsAcross, other.keyBytes, other.valueBytes)
        pages = Array(repeating: [], count: other.pages.count)
    }

    /// Makes room for positions up to `limit` in all layers.
    func reserve(_ limit: Int) throws(LockstepError) {
        let wanted = (limit + KeyValueCache.pagePositions - 1) / KeyValueCache.pagePositions
        if wanted <= pagesPerLayer { return }
        for layer in pages.indices {
            while pages[layer].count < wanted {
                pages[layer].append(try Page(byteCount: heads * (keyBytes + valueBytes)))
            }
        }
        notePlaces()
    }

    /// Says that all layers have been given the positions below.
    func advance(to position: Int) { count = position }

    /// Keeps a token's keys and values, one head's after another, rounded to the cache's format.
    ///
    /// - Returns: how many of them are infinite or NaN there.
    func put(
        keys: UnsafeRawPointer, values: UnsafeRawPointer, in source: Format, layer: Int, position: Int,
        _ kernels: lsk_kernels
    ) -> Int {
        let page = page(layer, position / KeyValueCache.pagePositions)
        let place = position % KeyValueCache.pagePositions
        if source == format {
            // They are as the projection and the rotation left them, which were looked at.
            for head in 0..<heads {
                let offset = head * headSize * format.byteCount
                scatterKey(keys + offset, into: page + head * keyBytes, place)
                placeValue(values + offset, into: page + heads * keyBytes + head * valueBytes, place)
            }
            return 0
        }
        var failures: Int64 = 0
        withUnsafeTemporaryAllocation(byteCount: headSize * format.byteCount, alignment: 64) { row in
            for head in 0..<heads {
                let offset = head * headSize * source.byteCount
                failures += convert(keys + offset, source, to: row.baseAddress!, kernels)
                scatterKey(row.baseAddress!, into: page + head * keyBytes, place)
                failures += convert(values + offset, source, to: row.baseAddress!, kernels)
                placeValue(row.baseAddress!, into: page + heads * keyBytes + head * valueBytes, place)
            }
        }
        return Int(failures)
    }

    private func page(_ layer: Int, _ index: Int) -> UnsafeMutablePointer<UInt8> {
        places[layer * pagesPerLayer + index]
    }

    /// Rounds a head's keys or values; returns how many are infinite or NaN then.
    private func convert(
        _ from: UnsafeRawPointer, _ source: Format, to row: UnsafeMutableRawPointer, _ kernels: lsk_kernels
    ) -> Int64 {
        var counts = lsk_convert_counts()
        kernels.convert(
            row, format.rawValue, from, source.rawValue, headSize, LSK_NEAREST_EVEN, 0, 0, &counts)
        if format.byteCount == 1 {
            return counts.overflow + kernels.non_finite_values(from, source.rawValue, headSize)
        }
        return kernels.non_finite_values(row, format.rawValue, headSize)
    }

    private func scatterKey(_ row: UnsafeRawPointer, into keys: UnsafeMutablePointer<UInt8>, _ place: Int) {
        let panel = KeyValueCache.panel
        let first = place / panel * panel * headSize + place % panel
        func scatter<Element: BitwiseCopyable>(_: Element.Type) {
            let from = row.assumingMemoryBound(to: Element.self)
            let to = UnsafeMutableRawPointer(keys).assumingMemoryBound(to: Element.self) + first
            for k in 0..<headSize { to[k * panel] = from[k] }
        }
        switch format.byteCount {
        case 4: scatter(UInt32.self)
        case 2: scatter(UInt16.self)
        default: scatter(UInt8.self)
        }
    }

    private func placeValue(_ row: UnsafeRawPointer, into values: UnsafeMutablePointer<UInt8>, _ place: Int) {
        let bytes = KeyValueCache.panel * format.byteCount
        for panel in 0..<panelsAcross {
            let part = min(KeyValueCache.panel, headSize - panel * KeyValueCache.panel) * format.byteCount
            let to = UnsafeMutableRawPointer(values) + (panel * KeyValueCache.pagePositions + place) * bytes
            to.copyMemory(from: row + panel * bytes, byteCount: part)
            // Columns beyond the head are multiplied too: not by garbage.
            if part < bytes { (to + part).clear(byteCount: bytes - part) }
        }
    }

    /// The panel of a head's keys that holds positions from `position` on, a multiple of 32.
    func keys(layer: Int, head: Int, position: Int) -> UnsafeRawPointer {
        let page = page(layer, position / KeyValueCache.pagePositions)
        let first = position % KeyValueCache.pagePositions * headSize * format.byteCount
        return UnsafeRawPointer(page) + head * keyBytes + first
    }

    /// The panel of a page's values that holds a head's elements from `element` on, a multiple of 32.
    func values(layer: Int, head: Int, page: Int, element: Int) -> UnsafeRawPointer {
        let first = element * KeyValueCache.pagePositions * format.byteCount
        return UnsafeRawPointer(self.page(layer, page)) + heads * keyBytes + head * valueBytes + first
    }
}
