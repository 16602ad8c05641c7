import CLockstepKernels

/// Some tokens of one sequence that are worked on together.
struct TokenSpan {
    let cache: KeyValueCache
    /// Their positions in the sequence.
    let positions: Range<Int>
    /// The row of the first among all rows of the call.
    let row: Int

    /// The span cut into parts of at most `limit` tokens.
    func parts(of limit: Int) -> [TokenSpan] {
        stride(from: positions.lowerBound, to: positions.upperBound, by: limit).map { first in
            TokenSpan(
                cache: cache, positions: first..<min(first + limit, positions.upperBound),
                row: row + first - positions.lowerBound)
        }
    }
}

/// Where a forward pass met a value that is infinite or NaN.
struct Overflow: Error {
    /// -1 is the embedding; the number of layers is the final norm.
    let layer: Int
    let operation: StaticString
}

/// The forward pass of a transformer, a layer at a time over a few hundred rows, in the recipe's order.
///
/// In the lockstep order every value between operations is rounded once to the recipe's activations: norm, projection,
/// head norm, rotation, attention, residual sum, activation. The eager order rounds after each step of these, the
/// fused one leaves the residual sum before a layer's second norm, and gate and up, in float32. In each a row's bits
/// depend on the tokens before it in its sequence alone.
///
/// One call owns it; its workers share the work of a layer.
final class Forward {
    /// Rows worked on at a time, at most.
    static let rowLimit = 512

    /// The weights; another snapshot of them may take their place.
    var model: Model
    /// Told what each operation gave: layer, operation, values in the recipe's activations, how many.
    ///
    /// In the fused order it is told nothing of what stays in float32.
    var observe: ((Int, StaticString, UnsafeRawPointer, Int) -> Void)?
    private let kernels: lsk_kernels
    private let threads: Int
    /// 1 where each step of an operation is rounded.
    private let each: Int32
    /// Of the model and its recipe, which stay: to copy a configuration takes longer than a small operation.
    private let configuration: ModelConfiguration
    private let format: Format
    private let hidden: Int
    private let hiddenBytes: Int
    private let projectionWidth: Int
    private let order: Order
    /// What went wrong in an operation, a cache line for each worker.
    private let counts: Scratch<Int>
    private var rotary: RotaryTable
    private var positions: Int
    private let packed: PackedRows
    private let multipliers: [TileMultiplier]
    private let attentions: [Attention]
    /// Where a layer's operations leave their results: one for all layers, but where a backward pass needs them.
    var results: LayerResults
    private let added: Scratch<UInt8>
    let experts: ExpertScratch?

    /// Room for `rows` rows of sequences of up to `positions` tokens: `reserve` makes more.
    init(_ model: Model, rows: Int, positions: Int, _ execution: Execution) throws(LockstepError) {
        let kernels = try execution.kernels()
        let threads = try execution.threadCount()
        let c = model.configuration
        let size = model.recipe.activations.byteCount
        self.model = model
        configuration = c
        format = model.recipe.activations
        hidden = c.hiddenSize
        hiddenBytes = c.hiddenSize * size
        projectionWidth = c.projectionWidth
        order = model.recipe.order
        counts = try Scratch(count: 8 * threads)
        self.kernels = kernels.pointee
        self.threads = threads
        each = model.recipe.order.roundsEachStep ? 1 : 0
        self.positions = positions
        rotary = try RotaryTable(c, positions: positions)
        packed = try PackedRows(kernels, rows: rows, depth: max(c.hiddenSize, c.widest, c.heads * c.headSize))
        multipliers = try workers(threads) { () throws(LockstepError) in
            try TileMultiplier(kernels, .packed(model.head), rows: rows)
        }
        attentions = try workers(threads) { () throws(LockstepError) in
            try Attention(kernels, model, positions: positions)
        }
        results = try LayerResults(
            c, rows: rows, elementBytes: size, wideBytes: Forward.gateAndUp(model.recipe).byteCount,
            isKept: false)
        added = try Scratch(count: rows * c.hiddenSize * size)
        experts =
            if let count = c.experts?.count {
                try ExpertScratch(
                    rows: rows, hiddenSize: c.hiddenSize, experts: count, rowBytes: c.hiddenSize * size)
            } else { nil }
    }

    /// Makes room for sequences of up to `wanted` tokens.
    ///
    /// It grows by doubling: a context of which little is used costs little.
    func reserve(positions wanted: Int) throws(LockstepError) {
        if wanted <= positions { return }
        let limit = max(wanted, min(max(2 * positions, Forward.rowLimit), configuration.positions))
        rotary = try RotaryTable(configuration, positions: limit)
        for attention in attentions { try attention.reserve(positions: limit) }
        positions = limit
    }

    /// The format of gate and up.
    private static func gateAndUp(_ recipe: Recipe) -> Format {
        recipe.order.fusesOperations ? .fp32 : recipe.activations
    }

    /// Writes the embeddings of token ids into rows.
    func embed(_ tokens: some Sequence<Int>, into rows: UnsafeMutableRawPointer) {
        for (row, token) in tokens.enumerated() {
            model.embedding.copyRow(token, into: rows + row * hiddenBytes, as: format, kernels)
        }
    }

    /// Passes rows through a layer, in place; the spans, in order, are all of the rows.
    ///
    /// `cacheLayer` is the layer of the caches that takes keys and values.
    func layer(
        _ index: Int, cacheLayer: Int, _ rows: UnsafeMutableRawPointer, _ spans: [TokenSpan]
    ) throws(Overflow) {
        let layer = model.layers[index]
        let count = spans.reduce(0) { $0 + $1.positions.count }
        let results = results
        results.input?.copyMemory(from: rows, byteCount: count * hiddenBytes)
        norm(rows, layer.attentionNorm, count, into: results.attentionNormed)
        observe?(index, "attention norm", results.attentionNormed, count * hidden)
        try multiply(
            results.attentionNormed, count, by: layer.projection, into: results.projected, index,
            "attention projection")
        results.unnormedHeads?.copyMemory(
            from: results.projected, byteCount: count * projectionWidth * format.byteCount)
        try place(layer, spans, index, cacheLayer)
        observe?(index, "queries, keys and values", results.projected, count * projectionWidth)
        try attend(spans, index, cacheLayer)
        observe?(index, "attention", results.attended, count * configuration.heads * configuration.headSize)
        try multiply(results.attended, count, by: layer.output, into: added.base, index, "attention output")
        if order.fusesOperations {
            try addResidual(rows, normalizedBy: layer.mlpNorm, count, index, "residual sum after attention")
        } else {
            try addResidual(rows, count, index, "residual sum after attention")
            results.middle?.copyMemory(from: rows, byteCount: count * hiddenBytes)
            norm(rows, layer.mlpNorm, count, into: results.mlpNormed)
        }
        observe?(index, "MLP norm", results.mlpNormed, count * hidden)
        switch layer.feedForward {
        case .dense(let mlp):
            try feedForward(mlp, results.mlpNormed, count, into: added.base, index)
        case .experts(let router, let experts):
            try mix(router, experts, count, index)
        }
        try addResidual(rows, count, index, "residual sum after the MLP")
    }

    /// Writes what the output head is applied to.
    func finalNorm(_ rows: UnsafeRawPointer, _ count: Int, into out: UnsafeMutableRawPointer) throws(Overflow)
    {
        norm(rows, model.finalNorm, count, into: out)
        if kernels.non_finite_values(out, format.rawValue, count * hidden) > 0 {
            throw Overflow(layer: configuration.layers, operation: "final norm")
        }
        observe?(configuration.layers, "final norm", out, count * hidden)
    }

    /// The logits of rows that passed the final norm, in float32, before they are rounded: [count x vocab].
    func logits(_ rows: UnsafeRawPointer, _ count: Int, into out: UnsafeMutablePointer<Float>) {
        let (head, vocab) = (model.head, configuration.vocab)
        packed.pack(MatrixView(rows, format, rows: count, columns: head.hiddenSize), 0..<count)
        let tiles = (vocab + TileMultiplier.width - 1) / TileMultiplier.width
        parallelFor(tasks: tiles, threads: threads) { task, worker in
            let first = task * TileMultiplier.width
            let columns = min(TileMultiplier.width, vocab - first)
            let multiplier = multipliers[worker]
            multiplier.columns = .packed(head)
            multiplier.multiply(packed, first: first, count: columns, bias: head.bias)
            for row in 0..<count {
                (out + row * vocab + first).update(
                    from: multiplier.tile.base + row * TileMultiplier.width, count: columns)
            }
        }
    }

    // MARK: Operations

    private func norm(
        _ rows: UnsafeRawPointer, _ weight: [Float], _ count: Int, into out: UnsafeMutableRawPointer
    ) {
        let (kernel, format, bytes) = (kernels.rms_norm!, format.rawValue, hiddenBytes)
        let (hidden, epsilon, each) = (hidden, configuration.normEpsilon, each)
        weight.withUnsafeBufferPointer {
            let weight = $0.baseAddress
            forEachPart(count) { part, _ in
                for row in part {
                    kernel(out + row * bytes, rows + row * bytes, weight, format, hidden, epsilon, each)
                }
                return 0
            }
        }
    }

    /// out = rows weight^T + bias, rounded to the activations or to another format.
    private func multiply(
        _ rows: UnsafeRawPointer, _ count: Int, by weight: Head, into out: UnsafeMutableRawPointer,
        as wanted: Format? = nil, _ layer: Int, _ operation: StaticString
    ) throws(Overflow) {
        packed.pack(
            MatrixView(rows, format, rows: count, columns: weight.hiddenSize), 0..<count, threads: threads)
        let (width, format) = (weight.vocab, wanted ?? format)
        let tiles = (width + TileMultiplier.width - 1) / TileMultiplier.width
        let failures = sum(tiles) { tile, worker in
            let first = tile * TileMultiplier.width
            let columns = min(TileMultiplier.width, width - first)
            let multiplier = multipliers[worker]
            multiplier.columns = .packed(weight)
            multiplier.multiply(packed, first: first, count: columns, bias: weight.bias)
            return Int(
                kernels.store_rows(
                    out + first * format.byteCount, width, format.rawValue, multiplier.tile.base,
                    TileMultiplier.width, count, columns))
        }
        if failures > 0 { throw Overflow(layer: layer, operation: operation) }
        if format == self.format { observe?(layer, operation, out, count * width) }
    }

    /// Normalises and rotates queries and keys in place, and gives keys and values to the caches.
    private func place(
        _ layer: Model.Layer, _ spans: [TokenSpan], _ index: Int, _ cacheLayer: Int
    ) throws(Overflow) {
        // Workers share the rows, sixteen or so at a time.
        let parts = threads == 1 ? spans : spans.flatMap { $0.parts(of: 16) }
        let rows = spans.reduce(0) { $0 + $1.positions.count }
        let together = threads == 1 ? parts.count : max(1, 16 * parts.count / rows)
        let failures = sum((parts.count + together - 1) / together) { task, _ in
            var found = 0
            for part in task * together..<min(parts.count, (task + 1) * together) {
                found += place(layer, parts[part], cacheLayer)
            }
            return found
        }
        if failures >> 32 > 0 { throw Overflow(layer: index, operation: "head norm or rotation") }
        if failures > 0 { throw Overflow(layer: index, operation: "cached keys and values") }
    }

    /// The same for one span; returns 2^32 times how many values are infinite or NaN after the rotation, plus how many
    /// are in the cache.
    private func place(_ layer: Model.Layer, _ span: TokenSpan, _ cacheLayer: Int) -> Int {
        let (heads, keyValueHeads, headSize) = (
            configuration.heads, configuration.keyValueHeads, configuration.headSize
        )
        let (size, turned) = (format.byteCount, heads + keyValueHeads)
        let (cache, rotary) = (span.cache, rotary)
        let (rotate, nonFinite, format) = (kernels.rotate!, kernels.non_finite_values!, format.rawValue)
        var (rotated, kept) = (0, 0)
        var row = results.projected + span.row * projectionWidth * size
        for position in span.positions {
            if let norms = layer.headNorms {
                for head in 0..<turned {
                    let at = row + head * headSize * size
                    kernels.rms_norm(
                        at, at, head < heads ? norms.query : norms.key, format, headSize,
                        configuration.normEpsilon, each)
                }
            }
            let (cosines, sines) = (rotary.cosines(at: position), rotary.sines(at: position))
            for head in 0..<turned {
                rotate(row + head * headSize * size, cosines, sines, format, headSize / 2, each)
            }
            // An infinite key makes scores of -inf too, which would hide its token.
            rotated += Int(nonFinite(row, format, turned * headSize))
            let keys = row + heads * headSize * size
            kept += cache.put(
                keys: keys, values: keys + keyValueHeads * headSize * size, in: self.format,
                layer: cacheLayer,
                position: position, kernels)
            row += projectionWidth * size
        }
        return rotated << 32 + kept
    }

    private func attend(_ spans: [TokenSpan], _ layer: Int, _ cacheLayer: Int) throws(Overflow) {
        let (width, outputWidth, size) = (
            projectionWidth, configuration.heads * configuration.headSize, format.byteCount
        )
        let block = attentions[0].block
        let blocks =
            spans.contains { $0.positions.count > block } ? spans.flatMap { $0.parts(of: block) } : spans
        let (heads, results) = (configuration.keyValueHeads, results)
        let failures = sum(blocks.count * heads) { task, worker in
            let (block, head) = task.quotientAndRemainder(dividingBy: heads)
            let span = blocks[block]
            return attentions[worker].attend(
                UnsafeRawPointer(results.projected) + span.row * width * size, queryStride: width,
                positions: span.positions, head: head, layer: cacheLayer, cache: span.cache,
                into: results.attended + span.row * outputWidth * size, outputStride: outputWidth)
        }
        if failures > 0 { throw Overflow(layer: layer, operation: "attention") }
    }

    /// down(silu(gate x) * up x) of some rows.
    func feedForward(
        _ mlp: Model.MLP, _ rows: UnsafeRawPointer, _ count: Int, into out: UnsafeMutableRawPointer,
        _ layer: Int
    ) throws(Overflow) {
        let width = mlp.down.hiddenSize
        let wideFormat: Format = order.fusesOperations ? .fp32 : format
        try multiply(
            rows, count, by: mlp.gateAndUp, into: results.wide, as: wideFormat, layer, "MLP gate and up")
        let (kernel, results) = (kernels.silu_multiply!, results)
        let (wideBytes, bytes) = (width * wideFormat.byteCount, width * format.byteCount)
        let failures = forEachPart(count) { part, _ in
            for row in part {
                let gate = UnsafeRawPointer(results.wide) + row * 2 * wideBytes
                kernel(
                    results.activated + row * bytes, format.rawValue, gate, gate + wideBytes,
                    wideFormat.rawValue,
                    width, each)
            }
            return Int(
                kernels.non_finite_values(
                    results.activated + part.lowerBound * bytes, format.rawValue, part.count * width))
        }
        if failures > 0 { throw Overflow(layer: layer, operation: "MLP activation") }
        observe?(layer, "MLP activation", results.activated, count * width)
        try multiply(results.activated, count, by: mlp.down, into: out, layer, "MLP down")
    }

    /// The weighted sum of what a token's experts give: a chain in float32 over experts ascending, rounded once; where
    /// each step is rounded, so are an expert's weighted result and the sum with it.
    private func mix(
        _ router: Head, _ experts: [Model.MLP], _ count: Int, _ layer: Int
    ) throws(Overflow) {
        guard let scratch = self.experts, let settings = configuration.experts else { return }
        let hidden = configuration.hiddenSize
        let routings = route(router, settings, count)
        if each == 0 {
            scratch.sums.base.update(repeating: 0, count: count * hidden)
        } else {
            added.base.update(repeating: 0, count: count * hiddenBytes)
        }
        for (index, expert) in experts.enumerated() {
            let chosen = try apply(expert, index, to: routings, layer)
            for (place, (row, weight)) in chosen.enumerated() {
                if each != 0 {
                    add(scratch.results.base + place * hiddenBytes, times: weight, toRow: row, scratch)
                    continue
                }
                let sum = scratch.sums.base + row * hidden
                var counts = lsk_convert_counts()
                kernels.convert(
                    scratch.row.base, Format.fp32.rawValue, scratch.results.base + place * hiddenBytes,
                    format.rawValue, hidden, LSK_NEAREST_EVEN, 0, 0, &counts)
                kernels.add_times(sum, sum, scratch.row.base, weight, Format.fp32.rawValue, hidden)
            }
        }
        let failures =
            each != 0
            ? kernels.non_finite_values(added.base, format.rawValue, count * hidden)
            : kernels.store_rows(
                added.base, hidden, format.rawValue, scratch.sums.base, hidden, count, hidden)
        if failures > 0 { throw Overflow(layer: layer, operation: "mixture of experts") }
        observe?(layer, "mixture of experts", added.base, count * hidden)
    }

    /// Adds an expert's result to what a row has, each step rounded.
    private func add(
        _ result: UnsafeMutablePointer<UInt8>, times weight: Float, toRow row: Int, _ scratch: ExpertScratch
    ) {
        let (hidden, sum) = (configuration.hiddenSize, added.base + row * hiddenBytes)
        scratch.row.base.update(repeating: 0, count: hidden)
        kernels.add_times(result, scratch.row.base, result, weight, format.rawValue, hidden)
        kernels.add_times(sum, sum, result, 1, format.rawValue, hidden)
    }

    /// Gathers the rows that go to an expert, in `experts`, and what it gives for them; tells which, and their weights.
    func apply(
        _ expert: Model.MLP, _ index: Int, to routings: [Routing], _ layer: Int
    ) throws(Overflow) -> [(row: Int, weight: Float)] {
        guard let scratch = experts else { return [] }
        var chosen: [(row: Int, weight: Float)] = []
        for (row, routing) in routings.enumerated() {
            guard let choice = routing.choices.first(where: { $0.expert == index }) else { continue }
            UnsafeMutableRawPointer(scratch.rows.base + chosen.count * hiddenBytes).copyMemory(
                from: results.mlpNormed + row * hiddenBytes, byteCount: hiddenBytes)
            chosen.append((row, choice.weight))
        }
        if !chosen.isEmpty {
            try feedForward(expert, scratch.rows.base, chosen.count, into: scratch.results.base, layer)
        }
        return chosen
    }

    /// The router's choices: its logits stay in float32 whatever the recipe.
    func route(_ router: Head, _ settings: ModelConfiguration.Experts, _ count: Int) -> [Routing] {
        guard let scratch = experts else { return [] }
        packed.pack(MatrixView(results.mlpNormed, format, rows: count, columns: router.hiddenSize), 0..<count)
        let multiplier = multipliers[0]
        multiplier.columns = .packed(router)
        for first in stride(from: 0, to: settings.count, by: TileMultiplier.width) {
            let columns = min(TileMultiplier.width, settings.count - first)
            multiplier.multiply(packed, first: first, count: columns, bias: nil)
            for row in 0..<count {
                (scratch.logits.base + row * settings.count + first).update(
                    from: multiplier.tile.base + row * TileMultiplier.width, count: columns)
            }
        }
        return (0..<count).map {
            let logits = UnsafeBufferPointer(
                start: scratch.logits.base + $0 * settings.count, count: settings.count)
            return Routing(logits: logits, settings)
        }
    }

    private func addResidual(
        _ rows: UnsafeMutableRawPointer, _ count: Int, _ layer: Int, _ operation: StaticString
    ) throws(Overflow) {
        let failures = forEachPart(count) { part, _ in
            let (at, values) = (rows + part.lowerBound * hiddenBytes, part.count * hidden)
            kernels.add_times(at, at, added.base + part.lowerBound * hiddenBytes, 1, format.rawValue, values)
            return Int(kernels.non_finite_values(at, format.rawValue, values))
        }
        if failures > 0 { throw Overflow(layer: layer, operation: operation) }
        observe?(layer, operation, rows, count * hidden)
    }

    /// Adds the residual, and normalises the sums before they were rounded.
    private func addResidual(
        _ rows: UnsafeMutableRawPointer, normalizedBy weight: [Float], _ count: Int, _ layer: Int,
        _ operation: StaticString
    ) throws(Overflow) {
        let failures = forEachPart(count) { part, _ in
            for row in part {
                kernels.add_rms_norm(
                    results.mlpNormed + row * hiddenBytes, rows + row * hiddenBytes,
                    added.base + row * hiddenBytes, weight, format.rawValue, hidden, configuration.normEpsilon
                )
            }
            return Int(
                kernels.non_finite_values(
                    rows + part.lowerBound * hiddenBytes, format.rawValue, part.count * hidden))
        }
        if failures > 0 { throw Overflow(layer: layer, operation: operation) }
        observe?(layer, operation, rows, count * hidden)
    }

    /// Calls `body` for all rows, some of them at a time if workers share them, and adds up what it returns.
    @discardableResult
    private func forEachPart(_ count: Int, _ body: (_ rows: Range<Int>, _ worker: Int) -> Int) -> Int {
        if threads == 1 { return body(0..<count, 0) }
        let part = 16
        return sum((count + part - 1) / part) { task, worker in
            body(task * part..<min(count, (task + 1) * part), worker)
        }
    }

    /// Calls `body` once for each task, and adds up what it returns.
    private func sum(_ tasks: Int, _ body: (_ task: Int, _ worker: Int) -> Int) -> Int {
        var total = 0
        if threads == 1 || tasks <= 1 {
            for task in 0..<tasks { total += body(task, 0) }
            return total
        }
        let counts = counts.base
        for worker in 0..<threads { counts[8 * worker] = 0 }
        parallelFor(tasks: tasks, threads: threads) { task, worker in counts[8 * worker] += body(task, worker)
        }
        for worker in 0..<threads { total += counts[8 * worker] }
        return total
    }
}
