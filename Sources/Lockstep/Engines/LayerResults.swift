/// What the operations of a layer gave for some rows: the inputs of its matrix products, and what norms, rotation and
/// activation were applied to, in the recipe's activations.
///
/// A forward pass has one, written anew for each layer; a backward pass one for each layer, kept.
final class LayerResults {
    /// The norm before attention: [rows x hidden].
    let attentionNormed: UnsafeMutableRawPointer
    /// Queries, keys and values, normalised and rotated: [rows x projectionWidth].
    let projected: UnsafeMutableRawPointer
    /// What attention gave: [rows x heads x headSize].
    let attended: UnsafeMutableRawPointer
    /// The norm before the MLP: [rows x hidden].
    let mlpNormed: UnsafeMutableRawPointer
    /// Gate and up, one after the other: [rows x 2 width], of `wideBytes` each.
    let wide: UnsafeMutableRawPointer
    /// silu(gate) up: [rows x width].
    let activated: UnsafeMutableRawPointer
    /// The layer's input, and the residual sum after attention: [rows x hidden]; kept only.
    let input: UnsafeMutableRawPointer?
    let middle: UnsafeMutableRawPointer?
    /// Queries, keys and values before the norms of heads, in a family that has them; kept only.
    let unnormedHeads: UnsafeMutableRawPointer?
    private let memory: Scratch<UInt8>

    init(
        _ c: ModelConfiguration, rows: Int, elementBytes: Int, wideBytes: Int, isKept: Bool
    ) throws(LockstepError) {
        let keptNorms = isKept && c.hasQueryNorm
        let rowBytes = [
            c.hiddenSize * elementBytes, c.projectionWidth * elementBytes,
            c.heads * c.headSize * elementBytes,
            2 * c.widest * wideBytes, c.widest * elementBytes,
            isKept ? c.hiddenSize * elementBytes : 0, isKept ? c.hiddenSize * elementBytes : 0,
            isKept ? c.hiddenSize * elementBytes : 0, keptNorms ? c.projectionWidth * elementBytes : 0,
        ]
        let sizes = rowBytes.map { ($0 * rows + 63) / 64 * 64 }
        memory = try Scratch(count: sizes.reduce(0, +))
        var places: [UnsafeMutableRawPointer] = []
        var place = UnsafeMutableRawPointer(memory.base)
        for size in sizes {
            places.append(place)
            place += size
        }
        (attentionNormed, projected, attended) = (places[0], places[1], places[2])
        (wide, activated) = (places[3], places[4])
        // Who keeps nothing needs one norm at a time.
        mlpNormed = isKept ? places[5] : attentionNormed
        (input, middle) = isKept ? (places[6], places[7]) : (nil, nil)
        unnormedHeads = keptNorms ? places[8] : nil
    }
}

extension ModelConfiguration {
    /// Width of queries, keys and values together.
    var projectionWidth: Int { (heads + 2 * keyValueHeads) * headSize }
    /// Width of the widest MLP.
    var widest: Int { max(intermediateSize, experts?.intermediateSize ?? 0) }
}
