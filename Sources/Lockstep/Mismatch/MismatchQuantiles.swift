import CLockstepKernels

/// Exact quantiles without sorting: a histogram says which few bins hold the order statistics, a second
/// pass collects the tokens of those bins, and a selection finds them there.
enum MismatchQuantiles {
    /// The quantiles that are reported, in thousandths.
    static let thousandths = [1, 10, 50, 250, 500, 750, 950, 990, 999]

    /// The quantiles of the log ratio over all `tokens` counted tokens; NaN where no token counts.
    ///
    /// Linear between order statistics: x[h] with h = q (tokens - 1).
    static func measure(
        _ scan: MismatchScan, histogram: [Int], tokens: Int
    ) throws(LockstepError) -> [Double] {
        guard tokens > 0 else { return thousandths.map { _ in .nan } }
        return interpolate(try orderStatistics(ranks(tokens), scan, histogram), tokens)
    }

    /// The ranks, in ascending order, of the order statistics that the quantiles lie between.
    static func ranks(_ tokens: Int) -> [Int] {
        var ranks: Set<Int> = []
        for q in thousandths {
            let rank = thousandth(q, of: tokens - 1).rank
            ranks.formUnion([rank, min(rank + 1, tokens - 1)])
        }
        return ranks.sorted()
    }

    /// The quantiles between order statistics, given by rank; NaN where one is missing.
    static func interpolate(_ values: [Int: Double], _ tokens: Int) -> [Double] {
        thousandths.map { q in
            let (rank, rest) = thousandth(q, of: tokens - 1)
            guard let low = values[rank], let high = values[min(rank + 1, tokens - 1)] else { return .nan }
            return low == high ? low : low + (high - low) * (Double(rest) / 1000)
        }
    }

    /// q n / 1000, as a whole number and thousandths, for any n.
    private static func thousandth(_ q: Int, of n: Int) -> (rank: Int, rest: Int) {
        let (whole, part) = n.quotientAndRemainder(dividingBy: 1000)
        return (whole * q + part * q / 1000, part * q % 1000)
    }

    /// The values at `ranks` (ascending) of the sorted log ratios.
    private static func orderStatistics(
        _ ranks: [Int], _ scan: MismatchScan, _ histogram: [Int]
    ) throws(LockstepError) -> [Int: Double] {
        var values: [Int: Double] = [:]
        var wanted: [lsk_bin_range] = []
        var collected: [(rank: Int, index: Int)] = []  // index among the tokens that will be collected
        var below = 0  // tokens in lower bins ...
        var belowWanted = 0  // ... of them, collected
        var next = 0
        for (bin, count) in histogram.enumerated() {
            let first = next
            while next < ranks.count, ranks[next] < below + count { next += 1 }
            let isZero = bin == Int(LSK_MISMATCH_ZERO_BIN)
            for rank in ranks[first..<next] {
                if isZero { values[rank] = 0 } else { collected.append((rank, rank - below + belowWanted)) }
            }
            if first < next, !isZero {
                if let last = wanted.last, Int(last.first) + Int(last.count) == bin {
                    wanted[wanted.count - 1].count += 1
                } else {
                    wanted.append(lsk_bin_range(first: Int32(bin), count: 1))
                }
                belowWanted += count
            }
            below += count
        }
        if collected.isEmpty { return values }
        let tokens = try collect(wanted, count: belowWanted, scan)
        select(collected.map(\.index)[...], in: tokens.base, 0..<belowWanted)
        for (rank, index) in collected { values[rank] = tokens.base[index] }
        return values
    }

    /// The same quantiles of kept values and so many zeros; the order of the values does not matter.
    static func exact(of values: UnsafeBufferPointer<Double>, zeros: Int) -> [Double] {
        let tokens = values.count + zeros
        guard tokens > 0 else { return thousandths.map { _ in .nan } }
        let negative = values.count { $0 < 0 }
        var statistics: [Int: Double] = [:]
        var places: [Int: Int] = [:]
        for rank in ranks(tokens) {
            if rank >= negative, rank < negative + zeros {
                statistics[rank] = 0
            } else {
                places[rank] = rank < negative ? rank : rank - zeros
            }
        }
        var copy = Array(values)
        copy.withUnsafeMutableBufferPointer { copy in
            guard let base = copy.baseAddress else { return }
            select(places.values.sorted()[...], in: base, 0..<copy.count)
            for (rank, place) in places { statistics[rank] = base[place] }
        }
        return interpolate(statistics, tokens)
    }

    /// The log ratios of all tokens in the wanted bins, in no particular order.
    private static func collect(
        _ wanted: [lsk_bin_range], count: Int, _ scan: MismatchScan
    ) throws(LockstepError) -> Scratch<Double> {
        let room = MismatchSpan.tokens + 1
        let found = try Scratch<Double>(count: scan.workers * room)
        let base = found.base
        let tokens = try Scratch<Double>(count: count)
        let target = tokens.base
        let taken = try Scratch<Int64>(count: 1, filledWith: 0)
        let end = taken.base
        scan.forEachTask { range, worker in
            let values = base + worker * room
            for index in range {
                var view = scan.view(scan.spans[index])
                let count = scan.kernels.pointee.mismatch_select!(
                    values, wanted, Int64(wanted.count), &view)
                // Behind what all workers have found so far.
                let start = Int(lsk_shared_add(end, count))
                (target + start).update(from: values, count: Int(count))
            }
        }
        return tokens
    }

    /// Permutes `values[range]` so that each of `indices` (ascending, in range) holds what it would if the
    /// range were sorted.
    ///
    /// Quickselect for many indices: splits three ways around a pivot and goes on only where an index is.
    /// A part that does not shrink well is sorted, so the time is never worse than that of a sort.
    static func select(
        _ indices: ArraySlice<Int>, in values: UnsafeMutablePointer<Double>, _ range: Range<Int>
    ) {
        var work = [(indices, range, depth: 0)]
        while let (indices, range, depth) = work.popLast() {
            if indices.isEmpty { continue }
            if range.count <= 32 || depth > 40 {
                var part = UnsafeMutableBufferPointer(start: values + range.lowerBound, count: range.count)
                part.sort()
                continue
            }
            let (a, c) = (values[range.lowerBound], values[range.upperBound - 1])
            let b = values[range.lowerBound + range.count / 2]
            let pivot = max(min(a, b), min(max(a, b), c))
            var low = range.lowerBound  // below it: less than the pivot
            var high = range.upperBound  // from it on: greater
            var at = low
            while at < high {
                let value = values[at]
                if value < pivot {
                    values[at] = values[low]
                    values[low] = value
                    low += 1
                    at += 1
                } else if value > pivot {
                    high -= 1
                    values[at] = values[high]
                    values[high] = value
                } else {
                    at += 1
                }
            }
            work.append((indices.prefix { $0 < low }, range.lowerBound..<low, depth + 1))
            work.append((indices.drop { $0 < high }, high..<range.upperBound, depth + 1))
        }
    }
}
