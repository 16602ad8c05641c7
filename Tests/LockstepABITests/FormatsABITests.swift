import CLockstep
import LockstepABI
import Testing

/// Calls `body` with a tensor over `values`.
private func withTensor<Element, Result>(
    _ values: inout [Element], _ dtype: Int, shape: [Int64]? = nil, strides: [Int64]? = nil,
    _ body: (UnsafePointer<lockstep_tensor>) throws -> Result
) rethrows -> Result {
    let shape = shape ?? [Int64(values.count)]
    return try values.withUnsafeMutableBytes { bytes in
        try shape.withUnsafeBufferPointer { extents in
            var tensor = lockstep_tensor_of(
                bytes.baseAddress, Int32(dtype), Int32(extents.count), extents.baseAddress)
            guard let strides else { return try body(&tensor) }
            return try strides.withUnsafeBufferPointer { steps in
                tensor.strides = steps.baseAddress
                return try body(&tensor)
            }
        }
    }
}

private func lastError() -> String { String(cString: lockstep_last_error()) }

@Suite struct FormatsABITests {
    private var options = lockstep_convert_options(
        struct_size: UInt32(MemoryLayout<lockstep_convert_options>.size), rounding: 0, seed: 0,
        first_index: 0, threads: 0, instruction_set: 0)

    /// Every call that must fail: its message has `word`, and outputs and counts are as before.
    private func expectRefused(
        _ word: String, from: [Float] = [1, 2, 3, 4], dtype: Int = LOCKSTEP_FLOAT16,
        shape: [Int64]? = nil, strides: [Int64]? = nil, options: lockstep_convert_options? = nil,
        at location: SourceLocation = #_sourceLocation
    ) {
        var input = from
        var output = [UInt16](repeating: 0xa5a5, count: 4)
        var counts = lockstep_convert_counts(overflow: -1, underflow: -1, nan: -1)
        var options = options ?? self.options
        let status = withTensor(&input, LOCKSTEP_FLOAT32) { source in
            withTensor(&output, dtype, shape: shape, strides: strides) { destination in
                lockstep_convert(destination, &counts, source, &options)
            }
        }
        #expect(Int(status) == LOCKSTEP_ERROR_INVALID_ARGUMENT, sourceLocation: location)
        #expect(lastError().contains(word), "\(lastError())", sourceLocation: location)
        #expect(output.allSatisfy { $0 == 0xa5a5 } && counts.nan == -1, sourceLocation: location)
    }

    @Test func badInputIsRefused() {
        expectRefused("shape", shape: [3])
        expectRefused("shape", shape: [2, 2])
        expectRefused("destination", dtype: LOCKSTEP_INT32, shape: [2])
        expectRefused("share memory", strides: [0])
        for rounding in [-1, 3, Int32.max] as [lockstep_rounding] {
            var changed = options
            changed.rounding = rounding
            expectRefused("rounding", options: changed)
        }
        var changed = options
        changed.rounding = lockstep_rounding(LOCKSTEP_ROUND_STOCHASTIC)
        changed.first_index = .max - 2
        expectRefused("first_index", options: changed)
        changed = options
        changed.threads = -1
        expectRefused("threads", options: changed)
        changed = options
        changed.struct_size = 8
        expectRefused("struct_size", options: changed)
    }

    @Test func overlapIsRefused() {
        var values = [Float](repeating: 1, count: 4)
        let shape: [Int64] = [3]
        let status = values.withUnsafeMutableBytes { bytes in
            var source = lockstep_tensor_of(bytes.baseAddress, Int32(LOCKSTEP_FLOAT32), 1, shape)
            var destination = lockstep_tensor_of(bytes.baseAddress! + 4, Int32(LOCKSTEP_FLOAT32), 1, shape)
            return lockstep_convert(&destination, nil, &source, nil)
        }
        #expect(Int(status) == LOCKSTEP_ERROR_INVALID_ARGUMENT && lastError().contains("overlaps source"))
        #expect(values == [1, 1, 1, 1])
    }

    @Test func countsAndValues() {
        var input: [Float] = [1e6, -1e-30, .nan, 1.5]
        var output = [UInt16](repeating: 0, count: 4)
        var counts = lockstep_convert_counts()
        let status = withTensor(&input, LOCKSTEP_FLOAT32) { source in
            withTensor(&output, LOCKSTEP_FLOAT16) { lockstep_convert($0, &counts, source, nil) }
        }
        #expect(Int(status) == LOCKSTEP_OK)
        #expect(output == [0x7c00, 0x8000, 0x7e00, 0x3e00])
        #expect((counts.overflow, counts.underflow, counts.nan) == (1, 1, 1))
    }

    @Test func ulpDistanceRefusesBadInput() {
        var a: [Float] = [1, 2]
        var b: [Float] = [1, 3]
        var distance = [UInt64](repeating: 9, count: 2)
        func status(_ dtype: Int, _ shape: [Int64]) -> Int {
            withTensor(&a, LOCKSTEP_FLOAT32) { left in
                withTensor(&b, LOCKSTEP_FLOAT32) { right in
                    withTensor(&distance, dtype, shape: shape) {
                        Int(lockstep_ulp_distance($0, left, right))
                    }
                }
            }
        }
        #expect(status(LOCKSTEP_FLOAT64, [2]) == LOCKSTEP_ERROR_INVALID_ARGUMENT)
        #expect(lastError().contains("uint64"))
        #expect(status(LOCKSTEP_UINT64, [1]) == LOCKSTEP_ERROR_INVALID_ARGUMENT)
        #expect(lastError().contains("shape"))
        #expect(distance == [9, 9])
        #expect(status(LOCKSTEP_UINT64, [2]) == LOCKSTEP_OK)
        #expect(distance == [0, 1 << 22])
    }
}
