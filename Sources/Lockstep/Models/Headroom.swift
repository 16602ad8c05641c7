/// How the magnitudes of some values lie in the range of fp16: from 2^-24, its smallest, over 2^-14, its smallest
/// normal, to 65,504, its largest.
public struct Headroom: Equatable, Sendable {
    /// What the values are.
    public enum Kind: Int32, Sendable {
        /// A tensor of the checkpoint.
        case weight = 0
        /// What an operation of the forward pass gave.
        case activation = 1
    }

    /// What the values are.
    public let kind: Kind
    /// The tensor's name, or the operation's.
    public let name: String
    /// The layer of an operation; -1 for a tensor.
    public let layer: Int
    /// How many values were looked at.
    public internal(set) var count = 0
    /// The largest magnitude of a finite value; 0 without any.
    public internal(set) var largest = 0.0
    /// Values not 0 that are subnormal in fp16: below 2^-14, with fewer than 11 bits.
    public internal(set) var subnormal = 0
    /// Values not 0 that become 0 in fp16: at most 2^-25; they are subnormal too.
    public internal(set) var vanishing = 0
    /// Finite values that become infinite in fp16: 65,520 and more.
    public internal(set) var overflowing = 0
    /// Values that are infinite or NaN.
    public internal(set) var nonFinite = 0

    init(_ kind: Kind, _ name: String, layer: Int = -1) {
        self.kind = kind
        self.name = name
        self.layer = layer
    }

    /// Adds floats.
    mutating func add(_ values: UnsafeBufferPointer<Float>) {
        // Magnitudes as integers: they order as the floats do, infinities and NaN last.
        let (smallestNormal, half): (UInt32, UInt32) = (Float(0x1p-14).bitPattern, Float(0x1p-25).bitPattern)
        let (limit, infinity): (UInt32, UInt32) = (Float(65_520).bitPattern, Float.infinity.bitPattern)
        var top: UInt32 = 0
        var (zeros, tiny, small, large, infinite) = (0, 0, 0, 0, 0)
        for value in values {
            let magnitude = value.bitPattern & 0x7fff_ffff
            top = max(top, magnitude < infinity ? magnitude : 0)
            zeros += magnitude == 0 ? 1 : 0
            tiny += magnitude <= half ? 1 : 0
            small += magnitude < smallestNormal ? 1 : 0
            large += magnitude >= limit ? 1 : 0
            infinite += magnitude >= infinity ? 1 : 0
        }
        count += values.count
        largest = max(largest, Double(Float(bitPattern: top)))
        subnormal += small - zeros
        vanishing += tiny - zeros
        overflowing += large - infinite
        nonFinite += infinite
    }
}

/// Collects the headroom of what the operations of a forward pass give.
final class HeadroomCollector {
    private var places: [String: Int] = [:]
    private(set) var found: [Headroom] = []

    /// Adds what an operation of a layer gave, in float32.
    func add(_ layer: Int, _ operation: StaticString, _ values: UnsafeRawPointer, _ count: Int) {
        let key = "\(layer) \(operation)"
        let place = places[key] ?? found.count
        if place == found.count {
            places[key] = place
            found.append(Headroom(.activation, "\(operation)", layer: layer))
        }
        found[place].add(
            UnsafeBufferPointer(start: values.assumingMemoryBound(to: Float.self), count: count))
    }
}

/// The FP16 headroom of a checkpoint: of each tensor, and, given sequences of tokens, of what each operation of each
/// layer gives for them, computed in float32.
///
/// - Parameters:
///   - path: a Hugging Face folder.
///   - tokens: sequences as in `Model.score`; nil for the weights alone.
///   - offsets: the bounds of the sequences, as there.
///   - execution: threads and instruction set; the result does not depend on them.
/// - Throws: as `Model.init` and `Model.score`.
/// - Returns: tensors by name, then operations by layer in the order they are done.
public func auditHeadroom(
    path: String, tokens: TokenView? = nil, offsets: TokenView? = nil, execution: Execution = .init()
) throws(LockstepError) -> [Headroom] {
    let weights = try Checkpoint(path: path).headroom()
    guard let tokens else { return weights }
    let model = try Model(path: path, recipe: Recipe(.fp32))
    let collector = HeadroomCollector()
    try model.observe(tokens: tokens, offsets: offsets, execution: execution) {
        collector.add($0, $1, $2, $3)
    }
    return weights + collector.found
}
