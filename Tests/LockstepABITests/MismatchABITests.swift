import CLockstep
import Lockstep
import LockstepABI
import Testing

/// Log-probs as C hands them over: their fields can be spoilt one by one.
private final class Argument {
    var values: [Float]
    var shape: [Int64]
    var strides: [Int64]?
    var dtype = LOCKSTEP_FLOAT32
    var shift = 0

    init(_ values: [Float], _ shape: [Int64]) {
        self.values = values
        self.shape = shape
    }

    func with<Result>(_ body: (UnsafePointer<lockstep_tensor>) -> Result) -> Result {
        values.withUnsafeMutableBytes { bytes in
            shape.withUnsafeBufferPointer { extents in
                let data = bytes.baseAddress.map { $0 + shift }
                var tensor = lockstep_tensor_of(data, Int32(dtype), Int32(extents.count), extents.baseAddress)
                guard let strides else { return body(&tensor) }
                return strides.withUnsafeBufferPointer { steps in
                    tensor.strides = steps.baseAddress
                    return body(&tensor)
                }
            }
        }
    }
}

private let size = UInt32(MemoryLayout<lockstep_mismatch>.size)

private func measure(
    _ trainer: Argument, _ rollout: Argument, size: UInt32 = size,
    options: UnsafePointer<lockstep_mismatch_options>? = nil
) -> (status: Int, result: lockstep_mismatch) {
    var result = lockstep_mismatch()
    result.struct_size = size
    let status = trainer.with { trainer in
        rollout.with { lockstep_mismatch_measure(&result, trainer, $0, nil, nil, options) }
    }
    return (Int(status), result)
}

private func lastError() -> String { String(cString: lockstep_last_error()) }

@Suite struct MismatchABITests {
    private let rollout: [Float] = [-0.5, -1, -0.25, -2, -0.125, -3]
    private let trainer: [Float] = [-0.5, -1.25, -0.375, -1, -0.0625, -3.5]

    /// Every field of the header's struct is the core's field of that place.
    @Test func everyFieldIsTheCores() throws {
        let (status, result) = measure(Argument(trainer, [3, 2]), Argument(rollout, [3, 2]))
        #expect(status == LOCKSTEP_OK)
        let core = try trainer.withUnsafeBytes { a in
            try rollout.withUnsafeBytes { b in
                try LogProbPair(
                    trainer: MatrixView(a.baseAddress, .fp32, rows: 3, columns: 2),
                    rollout: MatrixView(b.baseAddress, .fp32, rows: 3, columns: 2)
                ).mismatch()
            }
        }
        let expected: [UInt64] = Mirror(reflecting: core).children.flatMap { child -> [UInt64] in
            switch child.value {
            case let value as Int: [UInt64(bitPattern: Int64(value))]
            case let value as Double: [value.bitPattern]
            case let value as Estimate: [value.value.bitPattern, value.standardError.bitPattern]
            case let values as [Double]: values.map(\.bitPattern)
            default: []
            }
        }
        let found = withUnsafeBytes(of: result) { Array($0.bindMemory(to: UInt64.self)) }
        // The first eight bytes are struct_size and a reserved zero.
        #expect(found.dropFirst() == expected[...] && found[0] == UInt64(size))
    }

    @Test func layoutsAreCheckedByName() {
        let cases: [(String, (Argument) -> Void)] = [
            ("[tokens] or [sequences x length]", { $0.shape = [1, 3, 2] }),
            ("rollout_log_probs: shape is [2, 3]", { $0.shape = [2, 3] }),
            ("rollout_log_probs: shape is [6]", { $0.shape = [6] }),
            ("rollout_log_probs: shape[0] is -3", { $0.shape = [-3, 2] }),
            ("too large", { $0.shape = [.max, 2] }),
            ("rollout_log_probs: strides[1] is 2", { $0.strides = [1, 2] }),
            ("rollout_log_probs: data is not aligned", { $0.shift = 1 }),
            ("rollout_log_probs: dtype must be one of", { $0.dtype = LOCKSTEP_INT32 }),
            ("rollout_log_probs: dtype must be one of", { $0.dtype = LOCKSTEP_FLOAT8_E5M2 }),
            ("dtype code", { $0.dtype = 77 }),
        ]
        for (text, spoil) in cases {
            let other = Argument(rollout, [3, 2])
            spoil(other)
            let log = Argument(trainer, text.hasPrefix("[tokens]") ? [1, 3, 2] : [3, 2])
            let (status, result) = measure(log, other)
            #expect(status == LOCKSTEP_ERROR_INVALID_ARGUMENT && lastError().contains(text), "\(lastError())")
            #expect(result.tokens == 0 && result.k3.value == 0, "outputs are untouched")
        }
    }

    /// Rows of a wider array are read in place.
    @Test func rowStridesAreAccepted() {
        let plain = measure(Argument(trainer, [3, 2]), Argument(rollout, [3, 2])).result
        let wide = Argument([-0.5, -1.25, 9, -0.375, -1, 9, -0.0625, -3.5], [3, 2])
        wide.strides = [3, 1]
        let strided = measure(wide, Argument(rollout, [3, 2])).result
        #expect(strided.k3.value == plain.k3.value && strided.max_abs_sequence == plain.max_abs_sequence)
    }

    /// A program built with a newer header, whose struct is longer: the bytes this library does not know
    /// are left alone.
    @Test func newerCallersAreServed() {
        let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: Int(size) + 64, alignment: 8)
        defer { bytes.deallocate() }
        bytes.initializeMemory(as: UInt8.self, repeating: 0xa5)
        bytes.storeBytes(of: size + 64, as: UInt32.self)
        let result = bytes.baseAddress!.assumingMemoryBound(to: lockstep_mismatch.self)
        let status = Argument(trainer, [6]).with { trainer in
            Argument(rollout, [6]).with { lockstep_mismatch_measure(result, trainer, $0, nil, nil, nil) }
        }
        #expect(Int(status) == LOCKSTEP_OK && result.pointee.tokens == 6)
        #expect(result.pointee.struct_size == size + 64 && bytes[Int(size)...].allSatisfy { $0 == 0xa5 })
    }

    /// A program built with the first header, whose struct ends before the fields that were appended.
    @Test func olderCallersAreServed() {
        let first = UInt32(MemoryLayout<lockstep_mismatch>.offset(of: \.ess_standard_error)!)
        var (status, result) = measure(Argument(trainer, [3, 2]), Argument(rollout, [3, 2]), size: first)
        #expect(status == LOCKSTEP_OK && result.tokens == 6 && result.max_sequence_length == 2)
        #expect(result.ess_standard_error == 0, "beyond the struct nothing is written")
        (status, result) = measure(Argument(trainer, [6]), Argument(rollout, [6]), size: first - 8)
        #expect(status != LOCKSTEP_OK && lastError().contains("struct_size is \(first - 8)"))
    }

    @Test func misalignedOutputsAreRefused() {
        let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 8)
        defer { bytes.deallocate() }
        let odd = OpaquePointer(bytes.baseAddress! + 4)
        Argument(trainer, [3, 2]).with { trainer in
            Argument(rollout, [3, 2]).with { rollout in
                #expect(lockstep_mismatch_measure(.init(odd), trainer, rollout, nil, nil, nil) != LOCKSTEP_OK)
                #expect(lastError().contains("mismatch: is not aligned"))
                #expect(
                    lockstep_mismatch_sequences(.init(odd), 3, trainer, rollout, nil, nil, nil) != LOCKSTEP_OK
                )
                #expect(lastError().contains("sequences: is not aligned"))
                #expect(
                    lockstep_mismatch_exact(.init(odd), nil, 0, trainer, rollout, nil, nil) != LOCKSTEP_OK)
                #expect(lastError().contains("mean: is not aligned"))
                #expect(
                    lockstep_mismatch_exact(nil, .init(odd), 3, trainer, rollout, nil, nil) != LOCKSTEP_OK)
                #expect(lastError().contains("rows: is not aligned"))
                #expect(
                    lockstep_mismatch_profile(.init(odd), 1, [0, 1], 0, trainer, rollout, nil, nil, nil)
                        != LOCKSTEP_OK)
                #expect(lastError().contains("buckets: is not aligned"))
            }
        }
    }

    /// Both outputs of the exact divergences are optional.
    @Test func exactWithoutRowsOrMean() {
        Argument(trainer, [3, 2]).with { trainer in
            Argument(rollout, [3, 2]).with { rollout in
                var mean = lockstep_divergence()
                #expect(lockstep_mismatch_exact(&mean, nil, 0, trainer, rollout, nil, nil) == LOCKSTEP_OK)
                var rows = [lockstep_divergence](repeating: lockstep_divergence(), count: 3)
                #expect(lockstep_mismatch_exact(nil, &rows, 3, trainer, rollout, nil, nil) == LOCKSTEP_OK)
                let sum = rows.reduce(0) { $0 + $1.kl_rollout_trainer }
                #expect(mean.kl_rollout_trainer == sum / 3 && sum > 0)
                #expect(lockstep_mismatch_exact(&mean, &rows, 2, trainer, rollout, nil, nil) != LOCKSTEP_OK)
                #expect(lastError().contains("row_count is 2"))
            }
        }
    }
}
