/// The parameters that a trainer changes: float32 masters in one flat buffer, and which tensor is where.
///
/// Gradients have the same layout. Tensors are in the order of their names, those of a Hugging Face checkpoint, or of
/// PEFT for an adapter.
public final class Parameters: @unchecked Sendable {
    /// One named tensor.
    public struct Tensor: Equatable, Sendable {
        /// Its name in a checkpoint.
        public let name: String
        /// Its shape.
        public let shape: [Int]
        /// Where its values are in the flat buffer.
        public let range: Range<Int>
        /// Whether weight decay is meant for it: matrices yes, norms and biases no.
        public var decays: Bool { shape.count > 1 }
    }

    /// The tensors, one after another.
    public let tensors: [Tensor]
    /// Number of values.
    public let count: Int
    /// The masters: [count].
    let values: Scratch<Float>
    private let indices: [String: Int]

    /// Zeros for tensors of these names and shapes.
    init(_ shapes: [(name: String, shape: [Int])]) throws(LockstepError) {
        var tensors: [Tensor] = []
        var indices: [String: Int] = [:]
        var end = 0
        for (name, shape) in shapes.sorted(by: { $0.name < $1.name }) {
            let count = shape.reduce(1, *)
            indices[name] = tensors.count
            tensors.append(Tensor(name: name, shape: shape, range: end..<end + count))
            end += count
        }
        self.tensors = tensors
        self.indices = indices
        count = end
        values = try Scratch(count: end, filledWith: 0)
    }

    /// The number of a tensor of a name.
    func index(of name: String) -> Int? { indices[name] }

    /// Where a tensor's values are.
    func values(of tensor: Int) -> UnsafeMutablePointer<Float> {
        values.base + tensors[tensor].range.lowerBound
    }

    /// Reads all tensors from a checkpoint.
    func fill(from checkpoint: Checkpoint) throws(LockstepError) {
        for (index, tensor) in tensors.enumerated() {
            try checkpoint.read(tensor.name, shape: tensor.shape, as: .fp32, into: values(of: index))
        }
    }

    /// Begins a model anew: norms 1, biases 0, matrices normal with a standard deviation.
    ///
    /// Value i of the flat buffer is the i-th normal number of the seed, so it does not depend on what else there is.
    func initialize(seed: UInt64, deviation: Double) {
        for (index, tensor) in tensors.enumerated() {
            let values = values(of: index)
            for place in 0..<tensor.range.count {
                values[place] =
                    tensor.decays
                    ? Float(deviation * normal(seed, UInt64(tensor.range.lowerBound + place)))
                    : tensor.name.hasSuffix(".bias") ? 0 : 1
            }
        }
    }
}

/// Number `index` of a seed's stream of normal numbers: mean 0, deviation 1.
///
/// Words 2 k and 2 k + 1 of the Philox block `index` / 2 give a pair, the even index the cosine's.
/// *Source*: Box and Muller, A note on the generation of random normal deviates (1958).
func normal(_ seed: UInt64, _ index: UInt64) -> Double {
    let words = Philox4x32(seed: seed).block(index >> 1)
    let share = (Double(words[0]) + 0.5) * 0x1p-32
    let (sine, cosine) = sineAndCosine(2 * Double.pi * (Double(words[1]) * 0x1p-32))
    return (-2 * logarithm(share)).squareRoot() * (index & 1 == 0 ? cosine : sine)
}
