import CLockstepKernels

extension CorrectionPass {
    /// The largest d^2 that is kept if those above it are rejected until the mean of the rest is below a bound;
    /// infinity if none need be rejected.
    ///
    /// Tokens with d^2 below the bound are always kept: no mean of theirs can reach it. So only the others are
    /// collected and sorted, and as equal values are kept or rejected together, no order of tokens can show.
    ///
    /// *Source*: M2PO, "Prosperity before Collapse" (2025), which removes the largest one by one.
    func secondMomentCut(below bound: Double) throws(LockstepError) -> Double {
        let tasks = tasks
        let workers = max(1, min(threads, tasks.count))
        let parts = UnsafeMutablePointer<Part>.allocate(capacity: workers)
        for worker in 0..<workers { (parts + worker).initialize(to: Part()) }
        defer {
            parts.deinitialize(count: workers)
            parts.deallocate()
        }
        parallelFor(tasks: tasks.count, threads: workers) { task, worker in
            for sequence in tasks[task] {
                let extent = layout.extent(of: sequence)
                for start in stride(from: extent.lowerBound, to: extent.upperBound, by: Part.room) {
                    var span = span(of: sequence, start..<min(start + Part.room, extent.upperBound))
                    parts[worker].add(&span, bound, kernels)
                }
            }
        }
        let count = (0..<workers).reduce(0) { $0 + parts[$1].large.count }
        for worker in 0..<workers where parts[worker].lacksMemory {
            throw LockstepError(.outOfMemory, "8 bytes for each d^2 above second_moment cannot be had")
        }
        // Sorting takes half as much again.
        try askForMemory(count, bytesEach: 12)
        var large: [Double] = []
        large.reserveCapacity(count)
        var small = 0
        var sum = ExactSums(count: 1)
        for worker in 0..<workers {
            large.append(contentsOf: parts[worker].large.elements)
            small += parts[worker].small
            sum.merge(parts[worker].sum)
        }
        if large.isEmpty { return .infinity }
        large.sort()

        // The largest number of them that can be kept: their mean grows with it.
        var (some, all) = (0, large.count)
        while some < all {
            let middle = some + (all - some + 1) / 2
            var more = ExactSums(count: 1)
            for index in some..<middle { more.add(large[index], to: 0) }
            more.merge(sum)
            if more.value(0) / Double(small + middle) < bound {
                some = middle
                sum = more
            } else {
                all = middle - 1
            }
        }
        if some == large.count { return .infinity }
        while some > 0, large[some - 1] == large[some] { some -= 1 }
        return some > 0 ? large[some - 1] : bound.nextDown
    }

    /// What one thread found.
    private struct Part: ~Copyable {
        /// Tokens given to the kernel at a time.
        static let room = 4096

        var large = Growing<Double>()
        /// Whether there was none for `large`.
        var lacksMemory = false
        var small = 0
        var sum = ExactSums(count: 1)

        mutating func add(
            _ span: inout lsk_correction_span, _ bound: Double, _ kernels: UnsafePointer<lsk_kernels>
        ) {
            withUnsafeTemporaryAllocation(of: Double.self, capacity: Part.room) { values in
                var count: Int64 = 0
                var total = 0.0
                let found = kernels.pointee.correction_select!(
                    values.baseAddress!, &count, &total, bound, &span)
                do throws(LockstepError) {
                    try large.append(contentsOf: UnsafeBufferPointer(rebasing: values.prefix(Int(found))))
                } catch { lacksMemory = true }
                small += Int(count)
                sum.add(total, to: 0)
            }
        }
    }
}
