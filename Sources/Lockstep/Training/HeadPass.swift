import CLockstepKernels

/// The output head of one sequence: log-probs of its tokens, and their gradients.
///
/// Logits are in memory for some rows at a time, a number that the vocabulary gives. One worker owns it.
final class HeadPass {
    private let kernels: lsk_kernels
    private let table: UnsafePointer<lsk_kernels>
    private var trained: TrainedModel
    private let gradients: WeightGradients
    private var head: Head
    private let recipe: Recipe
    private let chunk: Int
    /// [chunk x vocab]: logits, then their gradients.
    private let logits: Scratch<Float>
    private let multiplier: TileMultiplier
    private let packed: PackedRows
    private var scorer: RowScorer
    private var rule: lsk_logit_rule
    private var options: LogProbOptions
    /// The rows whose logits are in memory, if they are all of a sequence's.
    private var formed: UnsafeRawPointer?

    /// Rows and columns of logits that are in memory: 64 MB of them, but 128 rows at least.
    private static let logitLimit = 1 << 24

    init(
        _ kernels: UnsafePointer<lsk_kernels>, _ trained: TrainedModel, _ gradients: WeightGradients,
        tokens: Int
    ) throws(LockstepError) {
        self.kernels = kernels.pointee
        table = kernels
        self.trained = trained
        self.gradients = gradients
        head = trained.model.head
        recipe = trained.model.recipe
        let chain = Int(LSK_CHAIN)
        chunk = min(tokens, max(chain, HeadPass.logitLimit / head.vocab / chain * chain))
        logits = try Scratch(count: chunk * head.vocab)
        multiplier = try TileMultiplier(kernels, .packed(head), rows: chunk)
        packed = try PackedRows(kernels, rows: chunk, depth: max(head.vocab, head.hiddenSize))
        options = LogProbOptions()
        rule = try options.rule()
        scorer = try RowScorer(kernels, options, vocab: head.vocab, wantsEntropy: false)
    }

    /// Goes on with another snapshot of the same weights.
    func use(_ trained: TrainedModel) {
        self.trained = trained
        head = trained.model.head
    }

    /// Says how rows are scored from here on.
    ///
    /// Logits of a call before are forgotten: another worker may have scored the same rows since, of other weights.
    func prepare(_ options: LogProbOptions, wantsEntropy: Bool) throws(LockstepError) {
        formed = nil
        self.options = options
        self.options.logitsFormat = recipe.logits
        rule = try self.options.rule()
        scorer = try RowScorer(table, self.options, vocab: head.vocab, wantsEntropy: wantsEntropy)
    }

    private func chunks(_ count: Int) -> StrideTo<Int> { stride(from: 0, to: count, by: chunk) }

    /// Scores the token after each row but the last.
    func run(
        _ rows: UnsafeRawPointer, _ tokens: UnsafeBufferPointer<Int32>,
        into scores: UnsafeMutablePointer<RowScore>
    ) throws(Overflow) {
        formed = nil
        for first in chunks(tokens.count) {
            let count = min(chunk, tokens.count - first)
            form(rows, first, count)
            for row in 0..<min(count, tokens.count - 1 - first) {
                let score = scorer.score(
                    UnsafeRawPointer(logits.base + row * head.vocab), .fp32,
                    target: Int(tokens[first + row + 1]))
                if score.failure != 0 {
                    throw Overflow(layer: trained.layers.count, operation: "output head")
                }
                scores[first + row] = score
            }
        }
        if tokens.count <= chunk { formed = rows }
    }

    /// Logits of some rows, before they are rounded.
    private func form(_ rows: UnsafeRawPointer, _ first: Int, _ count: Int) {
        let format = recipe.activations
        packed.pack(
            MatrixView(
                rows + first * head.hiddenSize * format.byteCount, format, rows: count,
                columns: head.hiddenSize),
            0..<count)
        multiplier.columns = .packed(head)
        for column in stride(from: 0, to: head.vocab, by: TileMultiplier.width) {
            let width = min(TileMultiplier.width, head.vocab - column)
            multiplier.multiply(packed, first: column, count: width, bias: head.bias)
            for row in 0..<count {
                (logits.base + row * head.vocab + column).update(
                    from: multiplier.tile.base + row * TileMultiplier.width, count: width)
            }
        }
    }

    /// Adds the head's gradient, and writes that of the rows, rounded.
    ///
    /// The gradient of logits is rounded as they are: not at all in a recipe of float32 logits.
    func runBackward(
        _ rows: UnsafeRawPointer, _ tokens: UnsafeBufferPointer<Int32>, _ scores: UnsafePointer<RowScore>,
        dLogProb: (Int) -> Double, dEntropy: ((Int) -> Double)?, into out: UnsafeMutablePointer<Float>
    ) throws(Overflow) {
        let layer = trained.layers.count
        let (vocab, hidden) = (head.vocab, head.hiddenSize)
        let format = recipe.logits == .fp32 ? Format.fp32 : recipe.gradients
        let isFormed = formed == rows
        formed = nil
        for first in chunks(tokens.count) {
            let count = min(chunk, tokens.count - first)
            if !isFormed { form(rows, first, count) }
            for row in 0..<count {
                let position = first + row + 1
                let place = logits.base + row * vocab
                guard position < tokens.count,
                    let gradient = lsk_gradient_row(
                        logSumExp: scores[position - 1].logSumExp,
                        entropy: scores[position - 1].entropy, dLogProb: dLogProb(position),
                        dEntropy: dEntropy?(position) ?? 0, temperature: options.temperature)
                else {
                    place.update(repeating: 0, count: vocab)
                    continue
                }
                withUnsafePointer(to: (rule, gradient)) {
                    kernels.gradient_row(
                        place, Format.fp32.rawValue, place, Format.fp32.rawValue, vocab,
                        Int(tokens[position]),
                        $0.pointer(to: \.0)!, $0.pointer(to: \.1)!)
                }
            }
            var failures = Int(
                kernels.store_rounded(
                    logits.base, vocab, format.rawValue, logits.base, vocab, count, vocab))
            let x = MatrixView(
                rows + first * hidden * recipe.activations.byteCount, recipe.activations, rows: count,
                columns: hidden)
            if failures == 0 {
                failures = gradients.add(logits.base, stride: vocab, x, to: trained.head.target)
            }
            packed.pack(MatrixView(logits.base, .fp32, rows: count, columns: vocab), 0..<count)
            multiplier.columns = .packed(trained.head.transposed)
            for column in stride(from: 0, to: hidden, by: TileMultiplier.width) {
                let width = min(TileMultiplier.width, hidden - column)
                multiplier.multiply(packed, first: column, count: width, bias: nil)
                failures += Int(
                    kernels.store_rounded(
                        out + first * hidden + column, hidden, recipe.gradients.rawValue,
                        multiplier.tile.base,
                        TileMultiplier.width, count, width))
            }
            if failures > 0 { throw Overflow(layer: layer, operation: "output head") }
        }
    }
}
