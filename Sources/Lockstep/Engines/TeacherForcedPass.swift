/// A model's forward pass over all tokens of some sequences, a layer at a time.
///
/// Rows of activations are the caller's: one pass can take any number of them through its layers, one after another.
final class TeacherForcedPass {
    let model: Model
    let forward: Forward
    /// Runs of at most 512 rows, and the sequences' parts in them.
    let chunks: [Chunk]
    private let tokens: TokenView
    /// Where a value left the recipe's range, after the error that says so.
    private(set) var overflow: Overflow?

    /// Rows that are worked on together.
    struct Chunk {
        let first: Int
        fileprivate(set) var count = 0
        fileprivate(set) var spans: [TokenSpan] = []
    }

    init(
        _ model: Model, _ tokens: TokenView, _ layout: SequenceLayout, _ execution: Execution
    ) throws(LockstepError) {
        self.model = model
        self.tokens = tokens
        let longest = (0..<layout.sequences).lazy.map { layout.length(of: $0) }.max() ?? 0
        forward = try Forward(
            model, rows: min(Forward.rowLimit, tokens.count), positions: longest, execution)
        chunks = try TeacherForcedPass.chunks(model, layout)
    }

    /// A cache holds one layer of one sequence, and is written anew for each layer.
    private static func chunks(_ model: Model, _ layout: SequenceLayout) throws(LockstepError) -> [Chunk] {
        var chunks: [Chunk] = []
        for sequence in 0..<layout.sequences {
            let length = layout.length(of: sequence)
            let cache = KeyValueCache(model.configuration, model.recipe.cache, layers: 1)
            try cache.reserve(length)
            var position = 0
            while position < length {
                if chunks.isEmpty || chunks[chunks.count - 1].count == Forward.rowLimit {
                    chunks.append(Chunk(first: layout.place(of: sequence, position: position).column))
                }
                let last = chunks.count - 1
                let count = min(Forward.rowLimit - chunks[last].count, length - position)
                chunks[last].spans.append(
                    TokenSpan(
                        cache: cache, positions: position..<position + count, row: chunks[last].count))
                chunks[last].count += count
                position += count
            }
        }
        return chunks
    }

    /// Bytes of a row of activations.
    var rowBytes: Int { model.configuration.hiddenSize * model.recipe.activations.byteCount }

    /// Room for a row of activations for each token.
    func makeRows() throws(LockstepError) -> Scratch<UInt8> { try Scratch(count: tokens.count * rowBytes) }

    /// Writes the embeddings of the tokens.
    func embed(into rows: UnsafeMutableRawPointer) {
        forward.embed((0..<tokens.count).lazy.map { [tokens] in tokens[$0] }, into: rows)
    }

    /// Passes the rows of a chunk through a layer, in place; of a sequence, in the order of its tokens.
    func layer(_ index: Int, _ chunk: Chunk, _ rows: UnsafeMutableRawPointer) throws(LockstepError) {
        do throws(Overflow) {
            try forward.layer(index, cacheLayer: 0, rows + chunk.first * rowBytes, chunk.spans)
        } catch {
            overflow = error
            throw model.overflow(error)
        }
    }

    /// Makes of a chunk's rows what the output head is applied to.
    func finalNorm(_ chunk: Chunk, _ rows: UnsafeMutableRawPointer) throws(LockstepError) {
        let place = rows + chunk.first * rowBytes
        do throws(Overflow) {
            try forward.finalNorm(place, chunk.count, into: place)
        } catch {
            overflow = error
            throw model.overflow(error)
        }
    }
}
