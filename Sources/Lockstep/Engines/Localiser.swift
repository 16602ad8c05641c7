/// Finds where two engines of one model part: how far the results of every operation are apart, and what their log-probs
/// would be if one part were another's.
///
/// Both engines do the same tokens side by side, a layer at a time, so a row of activations of each is all that is
/// held, and one layer's results of 512 rows. The result does not depend on threads.
///
/// One thread at a time.
public final class Localiser {
    /// Which part of the engines is changed, to see what it makes of the mismatch.
    public enum Swap: Equatable, Sendable {
        /// Nothing: the engines as they are.
        case none
        /// Both heads on the trainer's hidden states: what the heads make alone.
        case headAlone
        /// The trainer's head, its logits in fp32, on both hidden states: what the bodies make alone.
        case bodyAlone
        /// Logits of both in fp32.
        case fp32Heads
        /// Logits of the trainer in fp32.
        case fp32HeadOfTrainer
        /// Logits of the rollout engine in fp32.
        case fp32HeadOfRollout
        /// The reference does these layers, those of `ranges[index]`, of both; if they are the last, the head too.
        case layers(index: Int)
    }

    /// Steps done, and steps in all: one each for the embedding, a layer, the final norm, a pass over a head.
    public private(set) var stepsDone = 0
    /// How many there are.
    public let stepCount: Int
    /// The layers the reference does, one experiment each.
    public let ranges: [Range<Int>]

    private let trainer: Side
    private let rollout: Side
    private let reference: TeacherForcedPass?
    private let branches: [Branch]
    private let recorder: OperationRecorder
    private let execution: Execution
    private let tokens: Scratch<Int32>
    private let offsets: Scratch<Int64>
    private let layout: SequenceLayout
    private let heads: [HeadPass]
    private var logProbs: [[Double]] = []
    private var logProbDifference: Difference?

    /// An engine and its rows.
    private struct Side {
        let name: StaticString
        let pass: TeacherForcedPass
        let rows: Rows
    }

    /// Rows of activations, and their format.
    private final class Rows {
        let bytes: Scratch<UInt8>
        let format: Format

        init(_ pass: TeacherForcedPass) throws(LockstepError) {
            bytes = try pass.makeRows()
            format = pass.model.recipe.activations
        }

        var base: UnsafeMutableRawPointer { UnsafeMutableRawPointer(bytes.base) }
    }

    /// An engine of which the reference does some layers: no rows of its own before the first of them.
    private final class Branch {
        let side: Side
        let range: Range<Int>
        var rows: Rows?

        init(_ side: Side, _ range: Range<Int>) { (self.side, self.range) = (side, range) }
    }

    /// A pass of an engine's head, over hidden states that may be the other's.
    private enum HeadPass {
        case side(head: Side, hidden: Side, logits: Format?)
        case branch(Int)
    }

    /// Begins with the same tokens for both.
    ///
    /// - Parameters:
    ///   - trainer: what the other is compared with.
    ///   - rollout: the same model, under another recipe.
    ///   - reference: the same model in fp32, or what `ranges` are to be done by.
    ///   - tokens: sequences as in `Model.score`; copied.
    ///   - offsets: their bounds, as there.
    ///   - ranges: layers that the reference does for both, one experiment each.
    ///   - execution: threads and instruction set.
    /// - Throws: `.invalidArgument` for models of different shapes, ranges that are empty or beyond the layers, and as
    ///   `Model.score`; `.outOfMemory`.
    public init(
        trainer: Model, rollout: Model, reference: Model? = nil, tokens: TokenView, offsets: TokenView? = nil,
        ranges: [Range<Int>] = [], execution: Execution = .init()
    ) throws(LockstepError) {
        try Localiser.check(rollout, "rollout", as: trainer)
        if let reference { try Localiser.check(reference, "reference", as: trainer) }
        guard ranges.isEmpty || reference != nil else {
            throw LockstepError(
                .invalidArgument,
                "reference: is missing, but ranges say that it does layers; give a model in fp32"
            )
        }
        for (index, range) in ranges.enumerated()
        where range.isEmpty || range.lowerBound < 0 || range.upperBound > trainer.configuration.layers {
            throw LockstepError(
                .invalidArgument,
                "ranges[\(index)] is \(range.lowerBound) ..< \(range.upperBound); give layers from 0 to below "
                    + "\(trainer.configuration.layers), at least one")
        }
        let given = try SequenceLayout(rows: 1, columns: tokens.count, offsets: offsets, of: "tokens")
        try trainer.check(tokens, given)
        guard tokens.count > 0 else {
            throw LockstepError(.invalidArgument, "tokens: is empty; give at least one sequence")
        }
        let ids = try Scratch<Int32>(count: tokens.count)
        for index in 0..<tokens.count { ids.base[index] = Int32(tokens[index]) }
        let bounds = try Scratch<Int64>(count: offsets?.count ?? 0)
        if let offsets { for index in 0..<offsets.count { bounds.base[index] = Int64(offsets[index]) } }
        let view = TokenView(UnsafeRawPointer(ids.base), count: ids.count)
        layout = try SequenceLayout(
            rows: 1, columns: ids.count,
            offsets: offsets == nil
                ? nil : TokenView(UnsafeRawPointer(bounds.base), byteCount: 8, count: bounds.count),
            of: "tokens")
        let first = try TeacherForcedPass(trainer, view, layout, execution)
        let second = try TeacherForcedPass(rollout, view, layout, execution)
        self.trainer = Side(name: "trainer", pass: first, rows: try Rows(first))
        self.rollout = Side(name: "rollout", pass: second, rows: try Rows(second))
        self.reference =
            if let reference, !ranges.isEmpty {
                try TeacherForcedPass(reference, view, layout, execution)
            } else { nil }
        self.tokens = ids
        self.offsets = bounds
        self.ranges = ranges
        self.execution = execution
        recorder = try OperationRecorder(trainer)
        var branches: [Branch] = []
        for range in ranges { branches += [Branch(self.trainer, range), Branch(self.rollout, range)] }
        self.branches = branches
        heads =
            [
                .side(head: self.trainer, hidden: self.trainer, logits: nil),
                .side(head: self.rollout, hidden: self.rollout, logits: nil),
                .side(head: self.rollout, hidden: self.trainer, logits: nil),
                .side(head: self.trainer, hidden: self.trainer, logits: .fp32),
                .side(head: self.trainer, hidden: self.rollout, logits: .fp32),
                .side(head: self.rollout, hidden: self.rollout, logits: .fp32),
            ] + branches.indices.map { .branch($0) }
        stepCount = 2 + trainer.configuration.layers + heads.count
    }

    private static func check(
        _ model: Model, _ name: StaticString, as trainer: Model
    ) throws(LockstepError) {
        guard model.configuration == trainer.configuration else {
            throw LockstepError(
                .invalidArgument,
                "\(name): is a model of another shape than the trainer; load the same checkpoint"
            )
        }
    }

    /// Whether all steps are done.
    public var isDone: Bool { stepsDone == stepCount }

    /// The operations of the steps that are done, by layer; at the end the log-probs.
    public var differences: [Difference] { recorder.found + (logProbDifference.map { [$0] } ?? []) }

    /// Does a step.
    ///
    /// - Throws: `.nonFinite` naming engine, layer and operation of a value that left its recipe's range;
    ///   `.outOfMemory`. The step can not be made up for.
    public func step() throws(LockstepError) {
        if isDone { return }
        try withLockstepFloatMode { () throws(LockstepError) in
            let layers = trainer.pass.model.configuration.layers
            switch stepsDone {
            case 0: try embed()
            case 1...layers: try layer(stepsDone - 1)
            case layers + 1: try finalNorm()
            default: try score(heads[stepsDone - layers - 2])
            }
        }
        stepsDone += 1
    }

    /// Log-probs of all tokens, packed, of both engines with a part swapped; the first of a sequence is 0.
    ///
    /// - Throws: `.invalidArgument` before all steps are done, or for a range that there is not.
    public func logProbs(_ swap: Swap) throws(LockstepError) -> (trainer: [Double], rollout: [Double]) {
        guard isDone else {
            throw LockstepError(
                .invalidArgument, "localiser: \(stepCount - stepsDone) steps are left; do them first")
        }
        let (a, b): (Int, Int) =
            switch swap {
            case .none: (0, 1)
            case .headAlone: (0, 2)
            case .bodyAlone: (3, 4)
            case .fp32Heads: (3, 5)
            case .fp32HeadOfTrainer: (3, 1)
            case .fp32HeadOfRollout: (0, 5)
            case .layers(let index): (6 + 2 * index, 7 + 2 * index)
            }
        guard logProbs.indices.contains(a), logProbs.indices.contains(b) else {
            throw LockstepError(.invalidArgument, "swap: there are \(ranges.count) ranges of layers")
        }
        return (logProbs[a], logProbs[b])
    }

    // MARK: Steps

    private func embed() throws(LockstepError) {
        for side in [trainer, rollout] { side.pass.embed(into: side.rows.base) }
        let width = trainer.pass.model.configuration.hiddenSize
        for chunk in trainer.pass.chunks {
            recorder.begin()
            recorder.keep(
                -1, "embedding", trainer.rows.base + chunk.first * trainer.pass.rowBytes, trainer.rows.format,
                chunk.count * width)
            recorder.compare(
                -1, "embedding", rollout.rows.base + chunk.first * rollout.pass.rowBytes, rollout.rows.format,
                chunk.count * width, rows: chunk.count)
        }
        if let failure = recorder.failure { throw failure }
        if let reference {
            for branch in branches where branch.range.lowerBound == 0 {
                branch.rows = try Rows(reference)
                reference.embed(into: branch.rows!.base)
            }
        }
    }

    private func layer(_ index: Int) throws(LockstepError) {
        // Those that part here take the rows as they are before the layer.
        for branch in branches where branch.range.lowerBound == index && index > 0 {
            branch.rows = try converted(branch.side.rows, for: reference!, branch.side.name)
        }
        try observed { (pass, chunk, rows) throws(LockstepError) in try pass.layer(index, chunk, rows) }
        for branch in branches {
            guard let rows = branch.rows else { continue }
            if branch.range.upperBound == index {
                branch.rows = try converted(rows, for: branch.side.pass, branch.side.name)
            }
            let pass = branch.range.contains(index) ? reference! : branch.side.pass
            for chunk in pass.chunks {
                try named(branch.side.name) { () throws(LockstepError) in
                    try pass.layer(index, chunk, branch.rows!.base)
                }
            }
        }
    }

    private func finalNorm() throws(LockstepError) {
        try observed { (pass, chunk, rows) throws(LockstepError) in try pass.finalNorm(chunk, rows) }
        for branch in branches {
            let pass = finalPass(of: branch)
            for chunk in pass.chunks {
                try named(branch.side.name) { () throws(LockstepError) in
                    try pass.finalNorm(chunk, branch.rows!.base)
                }
            }
        }
    }

    /// What does the end of a branch.
    private func finalPass(of branch: Branch) -> TeacherForcedPass {
        branch.range.upperBound == trainer.pass.model.configuration.layers ? reference! : branch.side.pass
    }

    private func score(_ head: HeadPass) throws(LockstepError) {
        let (model, hidden, logits, name): (Model, Rows, Format?, StaticString) =
            switch head {
            case .side(let head, let hidden, let logits):
                (head.pass.model, hidden.rows, logits, head.name)
            case .branch(let index):
                (finalPass(of: branches[index]).model, branches[index].rows!, nil, branches[index].side.name)
            }
        let out = try Scratch<Double>(count: tokens.count)
        try named(name) { () throws(LockstepError) in
            try model.logProbs(
                of: MatrixView(
                    hidden.base, hidden.format.storage, rows: tokens.count,
                    columns: model.configuration.hiddenSize),
                logits: logits, TokenView(UnsafeRawPointer(tokens.base), count: tokens.count), layout,
                into: ScoringOutputs(logProbs: MutableVectorView(out.base, .fp64, count: tokens.count)),
                execution)
        }
        logProbs.append(Array(UnsafeBufferPointer(start: out.base, count: out.count)))
        if logProbs.count == 2 {
            var difference = Difference(
                "log-probs", layer: trainer.pass.model.configuration.layers, columns: 1)
            difference.add(logProbs[0].map { Float($0) }, logProbs[1].map { Float($0) }, rows: out.count)
            logProbDifference = difference
        }
    }

    /// Does work of both engines, a chunk at a time, while their operations are compared.
    private func observed(
        _ body: (TeacherForcedPass, TeacherForcedPass.Chunk, UnsafeMutableRawPointer) throws(LockstepError) ->
            Void
    ) throws(LockstepError) {
        defer { for side in [trainer, rollout] { side.pass.forward.observe = nil } }
        for (one, other) in zip(trainer.pass.chunks, rollout.pass.chunks) {
            recorder.begin()
            trainer.pass.forward.observe = { [recorder, trainer] in
                recorder.keep($0, $1, $2, trainer.rows.format, $3)
            }
            rollout.pass.forward.observe = { [recorder, rollout] in
                recorder.compare($0, $1, $2, rollout.rows.format, $3, rows: other.count)
            }
            try named(trainer.name) { () throws(LockstepError) in
                try body(trainer.pass, one, trainer.rows.base)
            }
            try named(rollout.name) { () throws(LockstepError) in
                try body(rollout.pass, other, rollout.rows.base)
            }
            if let failure = recorder.failure { throw failure }
        }
    }

    /// Rows in the format of another pass.
    private func converted(
        _ rows: Rows, for pass: TeacherForcedPass, _ name: StaticString
    ) throws(LockstepError) -> Rows {
        let out = try Rows(pass)
        let count = tokens.count * pass.model.configuration.hiddenSize
        try convert(
            TensorView(rows.base, rows.format, shape: [count]),
            into: MutableTensorView(out.base, out.format, shape: [count]), execution: execution)
        guard try execution.kernels().pointee.non_finite_values(out.base, out.format.rawValue, count) == 0
        else {
            throw LockstepError(
                .nonFinite,
                "\(name): a value that the reference gave is infinite as \(out.format); let it do the layers to the "
                    + "end")
        }
        return out
    }

    /// Says of which engine an error is.
    private func named(
        _ name: StaticString, _ body: () throws(LockstepError) -> Void
    ) throws(LockstepError) {
        do throws(LockstepError) { try body() } catch {
            throw LockstepError(error.kind, "\(name): \(error.message)")
        }
    }
}
