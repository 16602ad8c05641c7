/// A model as bytes, for another process: a safetensors file whose metadata has config.json under `config`.
///
/// Weights are in fp16 or bf16 where that is what a recipe rounds parameters to, else in fp32, so that a model of the recipe
/// made of them has the bits of one made of the trainer.
public struct ModelBytes {
    private let trainer: Trainer
    private let tensors: [(name: String, shape: [Int])]
    private let format: Format
    private let start: [UInt8]
    /// How many there are.
    public let count: Int

    init(_ trainer: Trainer, _ recipe: Recipe, _ config: JSON) throws(LockstepError) {
        try recipe.check()
        self.trainer = trainer
        tensors = WeightNames(trainer.configuration).tensors
        format = [.fp16, .bf16].contains(recipe.parameters) ? recipe.parameters : .fp32
        start = SafeTensors.start(of: tensors, format, ["config": .string(config.compact())])
        let values = tensors.reduce(0) { $0 + $1.shape.reduce(1, *) }
        count = start.count + values * format.byteCount
    }

    /// Writes all bytes, of the masters as they are now.
    ///
    /// - Throws: `.nonFinite` naming a tensor with a value that is NaN, or infinite in the format.
    public func write(to target: UnsafeMutableRawPointer) throws(LockstepError) {
        try withLockstepFloatMode { () throws(LockstepError) in
            start.withUnsafeBytes { target.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
            var place = target + start.count
            for (name, shape) in tensors {
                try trainer.weights.read(name, shape: shape, as: format, into: place)
                place += shape.reduce(format.byteCount, *)
            }
        }
    }
}

extension Model {
    /// Makes a model of bytes that `ModelBytes` wrote; none of them is needed afterwards.
    ///
    /// - Throws: `.badData` for others; as `init(path:adapter:recipe:)`.
    public convenience init(bytes: UnsafeRawBufferPointer, recipe: Recipe) throws(LockstepError) {
        let checkpoint = try Checkpoint(bytes: bytes)
        try self.init(
            MergedCheckpoint(checkpoint, nil), checkpoint.configuration, recipe,
            parameterCount: checkpoint.parameterCount)
        try checkpoint.checkAllRead()
    }
}
