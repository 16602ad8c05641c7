import CLockstepKernels

/// What the kernels found in sequences, added up without rounding: in any order it comes to the same.
struct CorrectionTotals: ~Copyable {
    private var report = CorrectionReport()
    private var sums: ExactSums
    private var ends: [(least: Double, largest: Double)]
    /// What is about to be added to `sums`: whole blocks of 8.
    private let values: UnsafeMutablePointer<Double>

    /// The sums of a weight in `sums`, for ratio, weight and kept weight; those of the rejections follow.
    private enum Place {
        static let square = 1
        static let excess = 2
        static let excessSquare = 3
        static let count = 4
        static let rejections = 3 * count
    }

    /// Totals of nothing.
    init(rejections: Int) {
        sums = ExactSums(count: Place.rejections + rejections)
        values = .allocate(capacity: (sums.count + 7) / 8 * 8)
        values.initialize(repeating: 0, count: (sums.count + 7) / 8 * 8)
        ends = Array(repeating: (.infinity, -.infinity), count: 3 + rejections)
        report.rejections = Array(repeating: RejectionCount(), count: rejections)
    }

    deinit { values.deallocate() }

    /// Adds a sequence of `length` tokens, whether they count or not.
    @_optimize(speed)
    mutating func add(
        _ found: UnsafePointer<lsk_correction_sums>, length: Int, _ kernels: UnsafePointer<lsk_kernels>
    ) {
        let (tokens, kept) = (Int(found.pointee.tokens), Int(found.pointee.kept))
        report.excludedTokens += Int(found.pointee.non_finite)
        report.maskedTokens += length - tokens - Int(found.pointee.non_finite)
        if tokens == 0 {
            report.emptySequences += 1
            return
        }
        report.tokens += tokens
        report.sequences += 1
        report.rejectedTokens += tokens - kept
        report.rejectedSequences += kept == 0 ? 1 : 0
        report.touchedSequences += kept < tokens ? 1 : 0
        report.clamped += Int(found.pointee.clamped)
        report.below += Int(found.pointee.below)
        report.above += Int(found.pointee.above)
        report.secondMomentTokens += Int(found.pointee.second_moment)
        report.maxSequenceLength = max(report.maxSequenceLength, tokens)
        report.ratio.units += note(found.pointee.ratio, 0)
        report.weight.units += note(found.pointee.weight, 1)
        report.keptWeight.units += note(found.pointee.kept_weight, 2)
        let rejections =
            (UnsafeRawPointer(found) + MemoryLayout<lsk_correction_sums>.offset(of: \.rejections)!)
            .assumingMemoryBound(to: lsk_rejection_sums.self)
        for index in report.rejections.indices { note(rejections[index], index, tokens: tokens) }
        sums.add(values, kernels)
    }

    @inline(__always)
    private mutating func note(_ weights: lsk_weight_sums, _ index: Int) -> Int {
        let first = index * Place.count
        values[first] = weights.sum
        values[first + Place.square] = weights.square
        values[first + Place.excess] = weights.excess
        values[first + Place.excessSquare] = weights.excess_square
        widen(index, weights.least, weights.largest)
        return Int(weights.units)
    }

    @inline(__always)
    private mutating func note(_ found: lsk_rejection_sums, _ index: Int, tokens: Int) {
        let rejected = Int(found.tokens)
        report.rejections[index].tokens += rejected
        report.rejections[index].sequences += rejected == tokens ? 1 : 0
        report.rejections[index].touchedSequences += rejected > 0 ? 1 : 0
        report.rejections[index].clamped += Int(found.clamped)
        report.rejections[index].units += Int(found.units)
        values[Place.rejections + index] = found.sum
        widen(3 + index, found.least, found.largest)
    }

    private mutating func widen(_ index: Int, _ least: Double, _ largest: Double) {
        if least < ends[index].least { ends[index].least = least }
        if largest > ends[index].largest { ends[index].largest = largest }
    }

    /// Adds sequences without anything to see.
    mutating func addEmpty(_ count: Int) { report.emptySequences += count }

    /// Adds the totals of other sequences.
    mutating func merge(_ other: borrowing CorrectionTotals) {
        report.excludedTokens += other.report.excludedTokens
        report.maskedTokens += other.report.maskedTokens
        report.emptySequences += other.report.emptySequences
        report.tokens += other.report.tokens
        report.sequences += other.report.sequences
        report.rejectedTokens += other.report.rejectedTokens
        report.rejectedSequences += other.report.rejectedSequences
        report.touchedSequences += other.report.touchedSequences
        report.clamped += other.report.clamped
        report.below += other.report.below
        report.above += other.report.above
        report.secondMomentTokens += other.report.secondMomentTokens
        report.maxSequenceLength = max(report.maxSequenceLength, other.report.maxSequenceLength)
        report.ratio.units += other.report.ratio.units
        report.weight.units += other.report.weight.units
        report.keptWeight.units += other.report.keptWeight.units
        for (index, each) in other.report.rejections.enumerated() {
            report.rejections[index].tokens += each.tokens
            report.rejections[index].sequences += each.sequences
            report.rejections[index].touchedSequences += each.touchedSequences
            report.rejections[index].clamped += each.clamped
            report.rejections[index].units += each.units
        }
        sums.merge(other.sums)
        for (index, end) in other.ends.enumerated() { widen(index, end.least, end.largest) }
    }

    /// The report, but for what the options alone know.
    func finished() -> CorrectionReport {
        var report = report
        if report.sequences > 0 {
            report.meanSequenceLength = Double(report.tokens) / Double(report.sequences)
        }
        finish(&report.ratio, 0)
        finish(&report.weight, 1)
        finish(&report.keptWeight, 2)
        for index in report.rejections.indices where report.rejections[index].units > 0 {
            let units = Double(report.rejections[index].units)
            report.rejections[index].mean = sums.value(Place.rejections + index) / units
            report.rejections[index].min = ends[3 + index].least
            report.rejections[index].max = ends[3 + index].largest
        }
        return report
    }

    private func finish(_ statistics: inout WeightStatistics, _ index: Int) {
        guard statistics.units > 0 else { return }
        let n = Double(statistics.units)
        let first = index * Place.count
        (statistics.min, statistics.max) = ends[index]
        let sum = sums.value(first)
        statistics.mean = sum / n
        if statistics.min == statistics.max {
            // Equal weights, whatever the rounding of their sums.
            statistics.mean = statistics.min
            statistics.std = 0
            statistics.ess = statistics.max > 0 ? 1 : 0
            return
        }
        let square = sums.value(first + Place.square)
        statistics.ess = min(1, (sum / square) * (sum / n))
        if sums.special(first + Place.excessSquare) == nil {
            // Of w - 1, so that weights near 1 lose no digits.
            let excess = sums.number(first + Place.excess).doubleDouble()
            let variance =
                (sums.number(first + Place.excessSquare).doubleDouble() - excess * excess / n) / n
            statistics.std = max(0, variance.high).squareRoot()
        }
    }
}
