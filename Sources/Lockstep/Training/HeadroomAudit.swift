/// The FP16 headroom of a checkpoint: of each tensor, and, given sequences of tokens, of what each operation of each
/// layer gives for them, computed in float32.
///
/// - Parameters:
///   - path: a Hugging Face folder.
///   - tokens: sequences as in `Model.score`; nil for the weights alone.
///   - offsets: the bounds of the sequences, as there.
///   - lossScale: given, the backward pass is looked at too: what it gives for the mean of the tokens' negative log-probs
///     times this, in float32.
///   - execution: threads and instruction set; the result does not depend on them.
/// - Throws: as `Model.init` and `Model.score`; `.invalidArgument` for the loss scale, or without tokens for it.
/// - Returns: tensors by name, then operations by layer in the order they are done; then gradients, of operations in the
///   order of the backward pass and of tensors by name.
public func auditHeadroom(
    path: String, tokens: TokenView? = nil, offsets: TokenView? = nil, lossScale: Double? = nil,
    execution: Execution = .init()
) throws(LockstepError) -> [Headroom] {
    if lossScale != nil, (tokens?.count ?? 0) == 0 {
        throw LockstepError(.invalidArgument, "tokens: a backward pass needs some")
    }
    let weights = try Checkpoint(path: path).headroom()
    guard let tokens else { return weights }
    let collector = HeadroomCollector(.activation)
    let observe = { collector.add($0, $1, $2, $3) }
    guard let lossScale else {
        let model = try Model(path: path, recipe: Recipe(.fp32))
        try model.observe(tokens: tokens, offsets: offsets, execution: execution, observe)
        return weights + collector.found
    }
    let trainer = try Trainer(
        path: path, recipe: Recipe(.fp32),
        options: TrainerOptions(
            recomputes: true, threads: execution.threads, instructionSet: execution.instructionSet))
    try trainer.snapshot().observe(tokens: tokens, offsets: offsets, execution: execution, observe)
    return try weights + collector.found + trainer.headroom(tokens: tokens, offsets: offsets, lossScale)
}

extension Trainer {
    /// The headroom of the gradients of the mean negative log-prob of the tokens, times a loss scale: of operations in the
    /// order of the backward pass, then of tensors.
    fileprivate func headroom(
        tokens: TokenView, offsets: TokenView?, _ lossScale: Double
    ) throws(LockstepError) -> [Headroom] {
        let layout = try SequenceLayout(rows: 1, columns: tokens.count, offsets: offsets, of: "tokens")
        try prepare(for: layout)
        let collectors = passes.map { pass in
            let collector = HeadroomCollector(.gradient)
            pass.observe = { collector.add($0, $1, $2, $3) }
            return collector
        }
        let scored = max(tokens.count - layout.sequences, 1)
        let given = [Double](repeating: -1 / Double(scored), count: tokens.count)
        try given.withUnsafeBufferPointer { (given) throws(LockstepError) in
            _ = try accumulate(
                tokens: tokens, offsets: offsets,
                LogProbGradients(logProbs: VectorView(given.baseAddress, .fp64, count: given.count)),
                lossScale: lossScale)
        }
        for pass in passes { pass.observe = nil }
        var found = collectors.first?.found ?? []
        for other in collectors.dropFirst().flatMap(\.found) {
            if let place = found.firstIndex(where: { $0.layer == other.layer && $0.name == other.name }) {
                found[place].merge(other)
            } else {
                found.append(other)
            }
        }
        let values = try Scratch<Float>(count: parameters.count)
        let buffer = UnsafeMutableBufferPointer(start: values.base, count: parameters.count)
        try gradients(into: buffer)
        for value in buffer.indices { buffer[value] *= Float(lossScale) }
        for tensor in parameters.tensors {
            var row = Headroom(.weightGradient, tensor.name)
            row.add(UnsafeBufferPointer(rebasing: buffer[tensor.range]))
            found.append(row)
        }
        return found
    }
}
