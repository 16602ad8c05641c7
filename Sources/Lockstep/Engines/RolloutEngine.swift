import CLockstepKernels

/// How tokens are drawn, and when to stop.
public struct SamplingSettings: Sendable {
    /// Temperature, top-k, top-p and min-p, in that order of meaning; temperature 0 takes the most probable token.
    public var temperature: Double
    /// Keep only the largest logits; 0 means all.
    public var topK: Int
    /// Keep only the smallest set of the largest whose probability reaches this; 1 means all.
    public var topP: Double
    /// Keep only logits whose probability is at least this share of the largest one's; 0 means all.
    public var minP: Double
    /// With a sequence's id and a position, decides each draw: nothing else does.
    public var seed: UInt64
    /// A sequence ends with one of these, which is part of it.
    public var stopIDs: Set<Int32>
    /// Tokens drawn at most.
    public var maxTokens: Int

    /// Creates settings; the defaults draw from the model's own distribution.
    public init(
        temperature: Double = 1, topK: Int = 0, topP: Double = 1, minP: Double = 0, seed: UInt64 = 0,
        stopIDs: Set<Int32> = [], maxTokens: Int = 256
    ) {
        self.temperature = temperature
        self.topK = topK
        self.topP = topP
        self.minP = minP
        self.seed = seed
        self.stopIDs = stopIDs
        self.maxTokens = maxTokens
    }

    var isGreedy: Bool { temperature == 0 }

    /// Whether tokens are drawn from the model's own distribution.
    var isPlain: Bool { temperature == 1 && topK == 0 && topP == 1 && minP == 0 }

    /// What tokens are drawn from.
    func options(_ logits: Format) -> LogProbOptions {
        isGreedy
            ? LogProbOptions(logitsFormat: logits)
            : LogProbOptions(
                temperature: temperature, topK: topK, topP: topP, minP: minP, logitsFormat: logits)
    }
}

/// A sequence that was drawn, and what the rollout policy said of each of its tokens.
public struct Rollout: Equatable, Sendable {
    /// Why a sequence ended.
    public enum Finish: Int32, Sendable {
        /// It has not.
        case running = 0
        /// With a stop id.
        case stop = 1
        /// At `maxTokens`, or at the end of the context.
        case length = 2
    }

    /// Which sequence.
    public let id: UInt64
    /// The tokens drawn; not the prompt.
    public internal(set) var tokens: [Int32] = []
    /// ln of each token's probability under the model, at temperature 1, nothing cut.
    public internal(set) var rawLogProbs: [Double] = []
    /// ln of each token's probability under what it was drawn from.
    public internal(set) var processedLogProbs: [Double] = []
    /// The probability, at the temperature, of what top-k, top-p and min-p kept.
    public internal(set) var keptMass: [Double] = []
    /// Why it ended.
    public internal(set) var finish = Finish.running
}

/// Samples from a model with a cache of keys and values: sequences join and leave a running batch.
///
/// What is drawn for a sequence is a function of its prompt, its id and the settings: not of the batch it is in, of
/// how prompts are cut into chunks, or of threads. A token's raw log-prob has the bits of `Model.score`.
public final class RolloutEngine {
    private var model: Model
    private let settings: SamplingSettings
    private let forward: Forward
    private let capacity: Int
    private let execution: Execution
    /// Each worker's: of the model's own distribution, and of what is drawn from.
    private let scorers: [(raw: RowScorer, drawn: RowScorer)]
    private let threads: Int
    private let philox: Philox4x32
    private let rows: Scratch<UInt8>
    private let logits: Scratch<Float>
    private var waiting: [Member] = []
    private var active: [Member] = []
    /// What stopped the engine.
    private var failure: LockstepError?

    /// A sequence in the engine.
    private final class Member {
        var rollout: Rollout
        /// Tokens whose keys and values are not yet cached: the prompt at first, then the last token drawn.
        var pending: ArraySlice<Int32>
        var cache: KeyValueCache
        /// Others with the same prompt, the next one last, which fork this one's cache when it has read the prompt.
        var followers: [UInt64] = []
        let promptCount: Int

        /// Where its next token stands.
        var position: Int { promptCount + rollout.tokens.count }

        init(id: UInt64, pending: ArraySlice<Int32>, cache: KeyValueCache, promptCount: Int) {
            rollout = Rollout(id: id)
            self.pending = pending
            self.cache = cache
            self.promptCount = promptCount
        }
    }

    /// Creates an engine that runs at most `capacity` sequences at a time.
    ///
    /// - Throws: `.invalidArgument` for settings out of range; `.outOfMemory`.
    public init(
        _ model: Model, settings: SamplingSettings = .init(), capacity: Int = 32,
        execution: Execution = .init()
    ) throws(LockstepError) {
        guard (1...Forward.rowLimit).contains(capacity) else {
            throw LockstepError(
                .invalidArgument, "capacity is \(capacity); give 1 to \(Forward.rowLimit) sequences at a time"
            )
        }
        guard settings.maxTokens >= 1 else {
            throw LockstepError(.invalidArgument, "max_tokens is \(settings.maxTokens); give at least 1")
        }
        let options = settings.options(model.recipe.logits)
        _ = try options.rule()
        let kernels = try execution.kernels()
        let vocab = model.configuration.vocab
        self.model = model
        self.settings = settings
        self.capacity = capacity
        self.execution = execution
        forward = try Forward(model, rows: Forward.rowLimit, positions: 0, execution)
        threads = try execution.threadCount()
        scorers = try workers(threads) { () throws(LockstepError) in
            (
                try RowScorer(
                    kernels, LogProbOptions(logitsFormat: model.recipe.logits), vocab: vocab,
                    wantsEntropy: false),
                try RowScorer(kernels, options, vocab: vocab, wantsEntropy: false)
            )
        }
        philox = Philox4x32(seed: settings.seed)
        rows = try Scratch(
            count: Forward.rowLimit * model.configuration.hiddenSize * model.recipe.activations.byteCount)
        logits = try Scratch(count: capacity * vocab)
    }

    /// Goes on with other weights of the same shape and recipe; no sequence may wait or run.
    func use(_ model: Model) {
        self.model = model
        forward.model = model
    }

    /// Whether sequences wait or run.
    public var isIdle: Bool { waiting.isEmpty && active.isEmpty }

    /// Adds sequences that answer one prompt; each id makes its own draws.
    ///
    /// - Throws: `.invalidArgument` for an empty prompt, one that fills the context, or a token outside the
    ///   vocabulary.
    public func add(prompt: [Int32], ids: [UInt64]) throws(LockstepError) {
        try prompt.withTokenView { (view) throws(LockstepError) in try add(prompt: view, ids: ids) }
    }

    /// The same from a borrowed vector.
    public func add(prompt: TokenView, ids: [UInt64]) throws(LockstepError) {
        guard prompt.count > 0 else {
            throw LockstepError(.invalidArgument, "prompt: is empty; give at least one token")
        }
        guard prompt.count < model.configuration.positions else {
            throw LockstepError(
                .invalidArgument,
                "prompt: has \(prompt.count) tokens, which leaves no room in the context of "
                    + "\(model.configuration.positions)")
        }
        try model.check(prompt, "prompt")
        try askForMemory(prompt.count + 2 * ids.count, bytesEach: 8)
        let tokens = (0..<prompt.count).map { Int32(prompt[$0]) }
        guard let first = ids.first else { return }
        let cache = KeyValueCache(
            model.configuration, model.recipe.cache, layers: model.configuration.layers)
        let member = Member(id: first, pending: tokens[...], cache: cache, promptCount: prompt.count)
        member.followers = Array(ids.dropFirst())
        waiting.append(member)
    }

    /// Draws one token for every running sequence, after reading what prompts fit; returns those that ended, by id.
    ///
    /// - Throws: `.nonFinite` naming layer and operation of an overflow; so does every call after it, until
    ///   `removeAll` has taken what was drawn before.
    public func step() throws(LockstepError) -> [Rollout] {
        if let failure { throw failure }
        return try withLockstepFloatMode { () throws(LockstepError) -> [Rollout] in
            while active.count < capacity, !waiting.isEmpty { active.append(waiting.removeFirst()) }
            let (members, spans) = try plan()
            if members.isEmpty { return [] }
            do throws(LockstepError) {
                try run(members, spans)
                return try draw(members, spans)
            } catch {
                // Some have drawn their token and others not: no step could go on from here.
                failure = error
                throw error
            }
        }
    }

    /// Number of sequences that wait or run.
    public var count: Int { (active + waiting).reduce(0) { $0 + 1 + $1.followers.count } }

    /// Takes all sequences out of the engine, as far as they have come: after a failure, or to stop early.
    public func removeAll() -> [Rollout] {
        defer { (active, waiting, failure) = ([], [], nil) }
        return (active + waiting).flatMap { [$0.rollout] + $0.followers.map { Rollout(id: $0) } }
    }

    /// Which tokens of which sequences are worked on: at most 512.
    private func plan() throws(LockstepError) -> ([Member], [TokenSpan]) {
        var members: [Member] = []
        var spans: [TokenSpan] = []
        var row = 0
        // Sequences that only wait for their next token go first: a long prompt must not hold them up.
        for member in active.sorted(by: { $0.pending.count < $1.pending.count }) where row < Forward.rowLimit
        {
            let count = min(member.pending.count, Forward.rowLimit - row)
            let first = member.cache.count
            try member.cache.reserve(first + count)
            members.append(member)
            spans.append(TokenSpan(cache: member.cache, positions: first..<first + count, row: row))
            row += count
        }
        try forward.reserve(positions: spans.map(\.positions.upperBound).max() ?? 0)
        return (members, spans)
    }

    private func run(_ members: [Member], _ spans: [TokenSpan]) throws(LockstepError) {
        do throws(Overflow) {
            let tokens = zip(members, spans).flatMap { $0.pending.prefix($1.positions.count).map(Int.init) }
            forward.embed(tokens, into: rows.base)
            for layer in model.layers.indices {
                try forward.layer(layer, cacheLayer: layer, rows.base, spans)
            }
            try forward.finalNorm(rows.base, tokens.count, into: rows.base)
        } catch {
            throw model.overflow(error)
        }
        for (member, span) in zip(members, spans) {
            member.pending = member.pending.dropFirst(span.positions.count)
            member.cache.advance(to: span.positions.upperBound)
        }
    }

    /// Draws for the sequences that have read all they have.
    private func draw(_ members: [Member], _ spans: [TokenSpan]) throws(LockstepError) -> [Rollout] {
        var ready: [(member: Member, row: Int)] = []
        for (member, span) in zip(members, spans) where member.pending.isEmpty {
            ready.append((member, span.row + span.positions.count - 1))
        }
        try formLogits(ready.map(\.row))
        // The group's other members begin where the prompt ends, with draws of their own.
        var drawing: [(member: Member, row: Int)] = []
        var followers: [Member] = []
        for (index, (member, _)) in ready.enumerated() {
            for id in member.followers {
                followers.append(
                    Member(
                        id: id, pending: [], cache: try member.cache.forked(), promptCount: member.promptCount
                    ))
                drawing.append((followers[followers.count - 1], index))
            }
            drawing.append((member, index))
        }
        try draw(drawing)
        for (member, _) in ready { member.followers = [] }
        waiting.insert(contentsOf: followers.filter { $0.rollout.finish == .running }, at: 0)
        let over = (active + followers).filter { $0.rollout.finish != .running }
        active.removeAll { $0.rollout.finish != .running }
        return over.map(\.rollout).sorted { $0.id < $1.id }
    }

    /// The logits of some rows, one row after another.
    private func formLogits(_ chosen: [Int]) throws(LockstepError) {
        let width = model.configuration.hiddenSize * model.recipe.activations.byteCount
        // Rows are chosen in ascending order: moving them together overwrites none that is still wanted.
        for (place, row) in chosen.enumerated() where place != row {
            (rows.base + place * width).update(from: rows.base + row * width, count: width)
        }
        forward.logits(rows.base, chosen.count, into: logits.base)
    }

    /// A token, its score under the model, and under what it was drawn from.
    private struct Draw {
        var token = 0
        var raw = RowScore()
        var drawn = RowScore()
    }

    /// Draws a token for each member from its row of logits: for all of them or, on a failure, for none.
    private func draw(_ drawing: [(member: Member, row: Int)]) throws(LockstepError) {
        var draws = [Draw](repeating: Draw(), count: drawing.count)
        draws.withUnsafeMutableBufferPointer { draws in
            let place = draws.baseAddress  // tasks write to different elements
            parallelFor(tasks: drawing.count, threads: threads) { task, worker in
                let (member, row) = drawing[task]
                place![task] = draw(
                    for: member, UnsafeRawPointer(logits.base + row * model.configuration.vocab), worker)
            }
        }
        for ((member, _), draw) in zip(drawing, draws) where draw.raw.failure | draw.drawn.failure != 0 {
            throw LockstepError(
                .nonFinite,
                "logits of sequence \(member.rollout.id) at position \(member.position): NaN, +inf or only -inf; "
                    + "use a recipe with a wider format")
        }
        for ((member, _), draw) in zip(drawing, draws) { keep(draw, in: member) }
    }

    private func draw(for member: Member, _ logits: UnsafeRawPointer, _ worker: Int) -> Draw {
        let (rawScorer, drawScorer) = scorers[worker]
        var draw = Draw()
        if settings.isGreedy {
            draw.token = mostProbable(logits)
            draw.raw = rawScorer.score(logits, .fp32, target: draw.token)
            draw.drawn = RowScore(keptMass: exponential(draw.raw.logProb))
            return draw
        }
        let words = philox.block(UInt64(member.position), high: member.rollout.id)
        let uniform = Double(UInt64(words[0]) << 21 | UInt64(words[1]) >> 11) * 0x1p-53
        do {
            (draw.token, draw.drawn) = try drawScorer.draw(logits, .fp32, uniform: uniform)
            // Drawn from the model's own distribution, a token has one score.
            draw.raw =
                settings.isPlain ? draw.drawn : rawScorer.score(logits, .fp32, target: draw.token)
        } catch {
            draw.drawn.failure = error.rawValue
        }
        return draw
    }

    private func keep(_ draw: Draw, in member: Member) {
        let position = member.position
        let token = Int32(draw.token)
        member.rollout.tokens.append(token)
        member.rollout.rawLogProbs.append(draw.raw.logProb)
        member.rollout.processedLogProbs.append(draw.drawn.logProb)
        member.rollout.keptMass.append(draw.drawn.keptMass)
        member.pending = [token]
        if settings.stopIDs.contains(token) {
            member.rollout.finish = .stop
        } else if member.rollout.tokens.count == settings.maxTokens
            || position + 1 == model.configuration.positions
        {
            member.rollout.finish = .length
        }
    }

    /// The first of the largest logits.
    private func mostProbable(_ logits: UnsafeRawPointer) -> Int {
        let values = logits.assumingMemoryBound(to: Float.self)
        let vocab = model.configuration.vocab
        // Eight maxima side by side: the compiler makes vectors of them, not of one.
        var highest = SIMD8<Float>(repeating: -.infinity)
        for v in stride(from: 0, to: vocab - vocab % 8, by: 8) {
            let some = UnsafeRawPointer(values + v).loadUnaligned(as: SIMD8<Float>.self)
            highest.replace(with: some, where: some .> highest)
        }
        var top = highest.max()
        for v in vocab - vocab % 8..<vocab where values[v] > top { top = values[v] }
        return (0..<vocab).first { values[$0] == top } ?? 0
    }
}
