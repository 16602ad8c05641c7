/// What the forward pass of a sequence leaves for its backward pass.
final class PassState: @unchecked Sendable {
    /// Room for sequences of up to this many tokens.
    let capacity: Int
    /// One for each layer; one for all where they are computed again.
    let layers: [LayerResults]
    /// Each layer's input, where the rest is computed again: [layers][tokens x hidden].
    let inputs: Scratch<UInt8>
    /// What the output head is applied to, and what the final norm is: [tokens x hidden].
    let rows: Scratch<UInt8>
    let last: Scratch<UInt8>
    let scores: Scratch<RowScore>
    /// What was passed forward, and with which snapshot; nil if it has not come to the end.
    var tokens: [Int32] = []
    weak var trained: TrainedModel?

    init(
        _ c: ModelConfiguration, _ recipe: Recipe, tokens: Int, recomputes: Bool
    ) throws(LockstepError) {
        let bytes = recipe.activations.byteCount
        var layers: [LayerResults] = []
        for _ in 0..<(recomputes ? 1 : c.layers) {
            layers.append(
                try LayerResults(c, rows: tokens, elementBytes: bytes, wideBytes: bytes, isKept: true))
        }
        self.layers = layers
        capacity = tokens
        inputs = try Scratch(count: recomputes ? c.layers * tokens * c.hiddenSize * bytes : 0)
        rows = try Scratch(count: tokens * c.hiddenSize * bytes)
        last = try Scratch(count: tokens * c.hiddenSize * bytes)
        scores = try Scratch(count: tokens)
    }

    /// Bytes that it takes, or would.
    static func byteCount(_ c: ModelConfiguration, _ recipe: Recipe, tokens: Int, recomputes: Bool) -> Int {
        let layers = recomputes ? 1 : c.layers
        let inputs = recomputes ? c.layers * c.hiddenSize : 0
        let ofLayer =
            5 * c.hiddenSize + 2 * c.projectionWidth + c.heads * c.headSize + 3 * c.widest
        return tokens * (layers * ofLayer + inputs + 2 * c.hiddenSize) * recipe.activations.byteCount
    }

    /// Whether it is of these tokens, passed through a snapshot.
    func holds(_ part: UnsafeBufferPointer<Int32>, _ trained: TrainedModel) -> Bool {
        self.trained === trained && tokens.count == part.count && tokens.elementsEqual(part)
    }

    /// What was found of a token.
    func score(_ position: Int) -> (logProb: Double, entropy: Double) {
        position == 0
            ? (0, 0) : (scores.base[position - 1].logProb, scores.base[position - 1].entropy)
    }
}
