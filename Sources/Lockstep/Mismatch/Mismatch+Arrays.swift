/// Lends two logs, one array for each sequence, to `body` as a packed pair that it must not keep.
///
/// - Parameters:
///   - trainer: ln pi of each sequence's tokens, nats.
///   - rollout: ln mu of the same tokens.
///   - mask: which tokens count; all without it.
///   - body: what to do with the pair.
/// - Throws: `.invalidArgument` naming the sequence whose lengths differ, and what `body` throws.
/// - Returns: what `body` returns.
public func withLogProbPair<Trainer: StorageFormat, Rollout: StorageFormat, Result>(
    trainer: [[Trainer]], rollout: [[Rollout]], mask: [[Bool]]? = nil,
    _ body: (LogProbPair) throws(LockstepError) -> Result
) throws(LockstepError) -> Result {
    try checkLengths(rollout, "rollout_log_probs", trainer)
    if let mask { try checkLengths(mask, "mask", trainer) }
    var offsets: [Int64] = [0]
    for sequence in trainer { offsets.append(offsets.last! + Int64(sequence.count)) }
    let (trainer, rollout) = (Array(trainer.joined()), Array(rollout.joined()))
    let counted: [UInt8]? = mask.map { $0.joined().map { $0 ? 1 : 0 } }
    return try trainer.withVectorView { (trainer) throws(LockstepError) in
        try rollout.withVectorView { (rollout) throws(LockstepError) in
            try offsets.withUnsafeBufferPointer { (offsets) throws(LockstepError) in
                try (counted ?? []).withUnsafeBufferPointer { (bytes) throws(LockstepError) in
                    try body(
                        LogProbPair(
                            trainer: row(trainer), rollout: row(rollout),
                            mask: mask == nil
                                ? nil : MaskView(bytes.baseAddress, rows: 1, columns: bytes.count),
                            offsets: TokenView(offsets.baseAddress, byteCount: 8, count: offsets.count)))
                }
            }
        }
    }
}

/// Measures the mismatch of two logs, one array for each sequence: all statistics in one call.
///
/// - Parameters:
///   - trainer: ln pi of each sequence's tokens, nats.
///   - rollout: ln mu of the same tokens.
///   - mask: which tokens count; all without it.
///   - policy: what to do with a NaN or an infinite log-prob at a token that counts.
///   - execution: threads and instruction set; the result does not depend on them.
/// - Throws: `.invalidArgument` for logs of different lengths; `.nonFinite` naming sequence and position.
/// - Returns: the statistics.
public func mismatch<Trainer: StorageFormat, Rollout: StorageFormat>(
    trainer: [[Trainer]], rollout: [[Rollout]], mask: [[Bool]]? = nil,
    nonFinite policy: NonFinitePolicy = .strict, execution: Execution = .init()
) throws(LockstepError) -> Mismatch {
    try withLogProbPair(trainer: trainer, rollout: rollout, mask: mask) { (pair) throws(LockstepError) in
        try pair.mismatch(nonFinite: policy, execution: execution)
    }
}

/// The exact divergences of two logits matrices [tokens x vocab], row by row and in the mean.
///
/// - Parameters:
///   - trainer: the trainer's logits, in fp32, fp16 or bf16.
///   - rollout: the rollout engine's logits of the same tokens.
///   - mask: which rows count; all without it. A masked row is never read and has a `Divergence()`.
///   - options: temperature, soft cap and logits format, for both sides.
///   - execution: threads and instruction set; the result does not depend on them.
/// - Throws: `.invalidArgument` for shapes, formats and options; `.nonFinite` naming a row.
/// - Returns: the means over counted rows (NaN if there are none), and each row's.
public func exactDivergence<Trainer: StorageFormat, Rollout: StorageFormat>(
    trainer: Matrix<Trainer>, rollout: Matrix<Rollout>, mask: [Bool]? = nil,
    options: LogProbOptions = .init(), execution: Execution = .init()
) throws(LockstepError) -> (mean: Divergence, rows: [Divergence]) {
    let bytes: [UInt8]? = mask.map { $0.map { $0 ? 1 : 0 } }
    var rows = [Divergence](repeating: Divergence(), count: trainer.rows)
    let mean = try trainer.withView { (trainer) throws(LockstepError) in
        try rollout.withView { (rollout) throws(LockstepError) in
            try (bytes ?? []).withUnsafeBufferPointer { (counted) throws(LockstepError) in
                try exactDivergence(
                    trainer: trainer, rollout: rollout,
                    mask: bytes == nil ? nil : MaskView(counted.baseAddress, rows: 1, columns: counted.count),
                    options: options, execution: execution
                ) { rows[$0] = $1 }
            }
        }
    }
    return (mean, rows)
}

/// Throws unless `log` has as many sequences and tokens as `trainer`.
func checkLengths(
    _ log: [[some Any]], _ name: StaticString, _ trainer: [[some Any]],
    _ trainerName: StaticString = "trainer_log_probs"
) throws(LockstepError) {
    guard log.count == trainer.count else {
        throw LockstepError(
            .invalidArgument, "\(name): has \(log.count) sequences but \(trainerName) has \(trainer.count)"
        )
    }
    for (index, (one, other)) in zip(log, trainer).enumerated() where one.count != other.count {
        throw LockstepError(
            .invalidArgument,
            "\(name)[\(index)]: has \(one.count) tokens but \(trainerName)[\(index)] has \(other.count)")
    }
}

/// A vector as a matrix of one row: packed tokens.
func row(_ vector: VectorView) -> MatrixView {
    MatrixView(vector.base, vector.format, rows: 1, columns: vector.count)
}
