/// How the magnitudes of some values lie in the range of fp16: from 2^-24, its smallest, over 2^-14, its smallest
/// normal, to 65,504, its largest.
public struct Headroom: Equatable, Sendable {
    /// What the values are.
    public enum Kind: Int32, Sendable {
        /// A tensor of the checkpoint.
        case weight = 1
        /// What an operation of the forward pass gave.
        case activation = 0
        /// What the backward pass of an operation gave: the gradient of what it was given, times the loss scale.
        case gradient = 2
        /// The gradient of a tensor, times the loss scale.
        case weightGradient = 3
    }

    /// What the values are.
    public let kind: Kind
    /// The tensor's name, or the operation's.
    public let name: String
    /// The layer of an operation: -1 the embedding, the number of layers what follows them; -1 for a tensor.
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

    /// Adds what others were found to be.
    mutating func merge(_ other: Headroom) {
        count += other.count
        largest = max(largest, other.largest)
        subnormal += other.subnormal
        vanishing += other.vanishing
        overflowing += other.overflowing
        nonFinite += other.nonFinite
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

/// Collects the headroom of what the operations of a pass give.
final class HeadroomCollector {
    private let kind: Headroom.Kind
    private var places: [String: Int] = [:]
    private(set) var found: [Headroom] = []

    init(_ kind: Headroom.Kind) { self.kind = kind }

    /// Adds what an operation of a layer gave, in float32.
    func add(_ layer: Int, _ operation: StaticString, _ values: UnsafeRawPointer, _ count: Int) {
        let key = "\(layer) \(operation)"
        let place = places[key] ?? found.count
        if place == found.count {
            places[key] = place
            found.append(Headroom(kind, "\(operation)", layer: layer))
        }
        found[place].add(
            UnsafeBufferPointer(start: values.assumingMemoryBound(to: Float.self), count: count))
    }
}
