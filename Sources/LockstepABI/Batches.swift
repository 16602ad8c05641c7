import CLockstep
import Lockstep

// The layouts that sections 4 and 6 to 8 of the header share: packed or padded tokens, masks, offsets, and
// the batch made of them.

extension lockstep_batch: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_batch>.size }
}

/// A batch of the caller, checked, and the shape that its arrays of tokens have.
struct CheckedBatch {
    let batch: TokenBatch
    /// [tokens] or [sequences x length].
    let shape: [Int]

    init(_ pointer: UnsafePointer<lockstep_batch>?) throws(LockstepError) {
        guard pointer != nil else { throw invalid("batch is NULL") }
        let raw = try read(pointer, "batch", defaults: lockstep_batch())
        guard raw.reserved == 0 else { throw invalid("batch: reserved is \(raw.reserved); it must be 0") }
        let arrays =
            [
                (raw.trainer_log_probs, "trainer_log_probs"), (raw.rollout_log_probs, "rollout_log_probs"),
                (raw.current_log_probs, "current_log_probs"),
                (raw.reference_log_probs, "reference_log_probs"),
                (raw.entropies, "entropies"), (raw.weights, "weights"), (raw.mask, "mask"),
                (raw.kept, "kept"),
                (raw.selected, "selected"),
            ] as [(UnsafePointer<lockstep_tensor>?, StaticString)]
        guard let (pointer, name) = arrays.first(where: { $0.0 != nil }) else {
            throw invalid("batch: has no array of tokens; give at least its log-probs or its mask")
        }
        let first = try CheckedTensor(pointer, name)
        let (rows, columns, _) = try first.rowsOfTokens()
        let shape = first.shape
        let like: (StaticString, [Int]) = (name, shape)
        let layout = try SequenceLayout(
            rows: rows, columns: columns, mask: optionalMask(raw.mask, "mask", like: like),
            offsets: optionalOffsets(raw.offsets, for: first), of: name)
        var batch = TokenBatch(layout: layout)
        batch.trainer = try values(raw.trainer_log_probs, "trainer_log_probs", like: like)
        batch.rollout = try values(raw.rollout_log_probs, "rollout_log_probs", like: like)
        batch.current = try values(raw.current_log_probs, "current_log_probs", like: like)
        batch.reference = try values(raw.reference_log_probs, "reference_log_probs", like: like)
        batch.entropies = try values(raw.entropies, "entropies", like: like)
        batch.weights = try values(raw.weights, "weights", like: like)
        batch.kept = try optionalMask(raw.kept, "kept", like: like)
        batch.selected = try optionalMask(raw.selected, "selected", like: like)
        batch.advantages = try tokenValues(raw.advantages, "advantages", shape, layout.sequences)
        batch.groups = try optionalIntegers(raw.groups, "groups")
        batch.ids = try optionalIntegers(raw.ids, "ids", orUnsigned: true)
        try batch.validate()
        self.batch = batch
        self.shape = shape
    }

    /// An optional output of one value for each token, fp32 or fp64; NULL gives nil.
    func output(
        _ pointer: UnsafePointer<lockstep_tensor>?, _ name: StaticString
    ) throws(LockstepError) -> MutableMatrixView? {
        guard let pointer else { return nil }
        let tensor = try CheckedTensor(pointer, name)
        try tensor.expect(shape, as: "the batch")
        let view = try tensor.packedOrPadded([.fp32, .fp64])
        guard view.rows <= 1 || view.columns == 0 || view.rowStride.magnitude >= UInt(view.columns) else {
            throw invalid("\(name): strides[0] is \(view.rowStride); rows of an output must not overlap")
        }
        return MutableMatrixView(
            tensor.base, view.format, rows: view.rows, columns: view.columns, rowStride: view.rowStride)
    }

    /// An optional output of one byte for each token, uint8 or bool; NULL gives nil.
    func maskOutput(
        _ pointer: UnsafePointer<lockstep_tensor>?, _ name: StaticString
    ) throws(LockstepError) -> MutableMaskView? {
        guard let view = try optionalMask(pointer, name, like: ("the batch", shape)) else { return nil }
        guard view.rows <= 1 || view.columns == 0 || view.rowStride.magnitude >= UInt(view.columns) else {
            throw invalid("\(name): strides[0] is \(view.rowStride); rows of an output must not overlap")
        }
        return MutableMaskView(
            UnsafeMutablePointer(mutating: view.base), rows: view.rows, columns: view.columns,
            rowStride: view.rowStride)
    }
}

private func values(
    _ pointer: UnsafePointer<lockstep_tensor>?, _ name: StaticString, like: (name: StaticString, shape: [Int])
) throws(LockstepError) -> MatrixView? {
    guard let pointer else { return nil }
    let tensor = try CheckedTensor(pointer, name)
    try tensor.expect(like.shape, as: like.name)
    return try tensor.packedOrPadded()
}

/// Values that stand with every token or with every sequence.
func tokenValues(
    _ pointer: UnsafePointer<lockstep_tensor>?, _ name: StaticString, _ shape: [Int], _ sequences: Int
) throws(LockstepError) -> TokenValues? {
    guard let pointer else { return nil }
    let tensor = try CheckedTensor(pointer, name)
    if tensor.shape == shape { return .perToken(try tensor.packedOrPadded([.fp32, .fp64])) }
    guard tensor.shape == [sequences] || tensor.shape == [sequences, 1] else {
        throw invalid(
            "\(name): shape is \(tensor.shape); give one for each token, \(shape), or one for each sequence, "
                + "[\(sequences)]")
    }
    return .perSequence(
        VectorView(
            tensor.base, try tensor.format([.fp32, .fp64]), count: sequences, stride: tensor.strides[0]))
}

/// One integer for each sequence; NULL gives nil.
func optionalIntegers(
    _ pointer: UnsafePointer<lockstep_tensor>?, _ name: StaticString, orUnsigned: Bool = false
) throws(LockstepError) -> TokenView? {
    guard let pointer else { return nil }
    let tensor = try CheckedTensor(pointer, name)
    let isUnsigned = orUnsigned && Int(tensor.code) == LOCKSTEP_UINT64
    guard isUnsigned || [LOCKSTEP_INT32, LOCKSTEP_INT64].contains(Int(tensor.code)) else {
        throw invalid("\(name): dtype must be int32\(orUnsigned ? ", int64 or uint64" : " or int64")")
    }
    try tensor.expect(dimensions: 1, "[sequences]")
    return TokenView(
        tensor.base, byteCount: tensor.byteCount, count: tensor.shape[0], stride: tensor.strides[0])
}

/// A mask of the shape of another array; NULL gives nil.
func optionalMask(
    _ pointer: UnsafePointer<lockstep_tensor>?, _ name: StaticString = "mask",
    like: (name: StaticString, shape: [Int])
) throws(LockstepError) -> MaskView? {
    guard let pointer else { return nil }
    let mask = try CheckedTensor(pointer, name)
    guard [LOCKSTEP_UINT8, LOCKSTEP_BOOL].contains(Int(mask.code)) else {
        throw invalid("\(name): dtype must be uint8 or bool")
    }
    try mask.expect(like.shape, as: like.name)
    let (rows, columns, rowStride) = try mask.rowsOfTokens()
    return MaskView(
        mask.base.map { UnsafePointer($0.assumingMemoryBound(to: UInt8.self)) }, rows: rows, columns: columns,
        rowStride: rowStride)
}

/// The bounds of packed sequences; NULL gives nil.
func optionalOffsets(
    _ pointer: UnsafePointer<lockstep_tensor>?, for tensor: CheckedTensor
) throws(LockstepError) -> TokenView? {
    guard let pointer else { return nil }
    let offsets = try CheckedTensor(pointer, "offsets")
    guard Int(offsets.code) == LOCKSTEP_INT64 else { throw invalid("offsets: dtype must be int64") }
    guard tensor.shape.count == 1 else {
        throw invalid("offsets: given with log-probs \(tensor.shape); give packed ones [tokens], or NULL")
    }
    return try offsets.tokens("[sequences + 1]")
}

extension CheckedTensor {
    func expect(_ wanted: [Int], as name: StaticString) throws(LockstepError) {
        guard shape == wanted else {
            throw invalid("\(self.name): shape is \(shape); give the shape of \(name), \(wanted)")
        }
    }

    /// Packed [tokens] as one row, or padded [sequences x length].
    func packedOrPadded(
        _ formats: [Format] = [.fp32, .fp64, .fp16, .bf16]
    ) throws(LockstepError) -> MatrixView {
        let format = try format(formats)
        let (rows, columns, rowStride) = try rowsOfTokens()
        return MatrixView(base, format, rows: rows, columns: columns, rowStride: rowStride)
    }

    func rowsOfTokens() throws(LockstepError) -> (rows: Int, columns: Int, rowStride: Int) {
        guard shape.count <= 2 else {
            throw invalid("\(name): has \(shape.count) dimensions; give [tokens] or [sequences x length]")
        }
        let last = shape.count - 1
        guard shape[last] <= 1 || strides[last] == 1 else {
            throw invalid(
                "\(name): strides[\(last)] is \(strides[last]); tokens must be contiguous, copy it first")
        }
        return last == 0 ? (1, shape[0], 0) : (shape[0], shape[1], strides[0])
    }
}
