/// The precision of a model's computation: which format each kind of value is stored in, in which order of arithmetic.
///
/// Products and sums are float32 always (docs/Numerics.md); a recipe says where and to what their results are
/// rounded. Two engines give the same bits if, and only if, their recipes are equal.
public struct Recipe: Equatable, Sendable, CustomStringConvertible {
    /// Weights; norms' too.
    ///
    /// e4m3fn, of a rollout engine alone, is of the layers' matrices: 8 bits a weight and a power of two for each row.
    /// What is left (embedding, head, norms, biases, the router of experts) is then as `activations`.
    public var parameters: Format
    /// What passes from operation to operation.
    public var activations: Format
    /// Keys and values kept for later tokens; of a rollout engine also e4m3fn or e5m2, with a scale of 1.
    public var cache: Format
    /// Attention probabilities.
    public var probabilities: Format
    /// What logits are rounded to before the log-softmax; fp32 is no rounding (an "fp32 head").
    public var logits: Format
    /// How it is computed.
    public var order: Order

    /// What gradients of activations are rounded to after each operation of a backward pass.
    ///
    /// Those of logits are not rounded where logits are fp32, those of weights are fp32 always.
    public var gradients: Format

    /// Everything in one format.
    public init(_ format: Format, _ order: Order = .lockstep) {
        (parameters, activations, cache, probabilities, logits) = (format, format, format, format, format)
        (gradients, self.order) = (format, order)
    }

    /// The recipe of a name: `fp32`, `fp16`, `bf16`, an emulated format (`e8m5`); then `-fp8weights`, `-fp8cache` (both
    /// e4m3fn) and, of all but fp32, `-fp32head`; then `+` and the name of an order, if it is another than `lockstep`:
    /// `bf16+eager`, `bf16-fp8weights-fp8cache`.
    ///
    /// - Throws: `.invalidArgument` saying which there are.
    public init(named name: String) throws(LockstepError) {
        let parts = name.split(separator: "+", maxSplits: 1, omittingEmptySubsequences: false).map(
            String.init)
        var suffixes = parts[0].split(separator: "-", omittingEmptySubsequences: false)[...]
        guard let format = suffixes.popFirst().flatMap({ Format(String($0)) }), Recipe.isKnown(format) else {
            throw Recipe.unknown(parts[0])
        }
        self.init(format)
        func take(_ suffix: String) -> Bool {
            let isNext = suffixes.first.map { $0 == suffix } ?? false
            if isNext { suffixes.removeFirst() }
            return isNext
        }
        if take("fp8weights") { parameters = .e4m3fn }
        if take("fp8cache") { cache = .e4m3fn }
        if format != .fp32, take("fp32head") { logits = .fp32 }
        guard suffixes.isEmpty else { throw Recipe.unknown(parts[0]) }
        if parts.count == 1 { return }
        guard let order = Order.allCases.first(where: { $0.name == parts[1] }) else {
            let known = Order.allCases.map(\.name).joined(separator: ", ")
            throw LockstepError(
                .invalidArgument, "recipe: the order '\(parts[1])' is not known; give one of \(known)")
        }
        self.order = order
    }

    private static func unknown(_ name: String) -> LockstepError {
        LockstepError(
            .invalidArgument,
            "recipe: '\(name)' is not known; give fp32, fp16, bf16, e8mN (N from 1 to 23) or e5mN (1 to 10), then "
                + "-fp8weights, -fp8cache and, of all but fp32, -fp32head, as you want")
    }

    /// Whether engines of the two give the same bits: gradients do not enter.
    public func matches(_ other: Recipe) -> Bool {
        var other = other
        other.gradients = gradients
        return self == other
    }

    /// Its name, or where it has none the format of each part and the order.
    public var description: String {
        let suffix = order == .lockstep ? "" : "+" + order.name
        var (known, name) = (Recipe(activations, order), activations.description)
        if parameters == .e4m3fn { (known.parameters, name) = (.e4m3fn, name + "-fp8weights") }
        if cache == .e4m3fn { (known.cache, name) = (.e4m3fn, name + "-fp8cache") }
        if self == known { return name + suffix }
        known.logits = .fp32
        if self == known { return name + "-fp32head" + suffix }
        let said = gradients == activations ? formats.dropLast() : formats[...]
        let parts = said.map { $0.name.description + " " + $0.format.description }
        return parts.joined(separator: ", ") + suffix
    }

    /// All of them, gradients last.
    private var formats: [(name: StaticString, format: Format)] {
        [
            ("parameters", parameters), ("activations", activations), ("cache", cache),
            ("probabilities", probabilities), ("logits", logits), ("gradients", gradients),
        ]
    }

    private static func isKnown(_ format: Format) -> Bool {
        [.fp32, .fp16, .bf16].contains(format) || format.isEmulated
    }

    /// The format of parameters that 8 bits are not for.
    var wideParameters: Format { parameters == .e4m3fn ? activations : parameters }

    /// Throws unless the kernels know all formats.
    func check() throws(LockstepError) {
        for (name, format) in formats where !Recipe.isKnown(format) {
            let narrow: [Format] =
                switch "\(name)" {
                case "parameters": [.e4m3fn]
                case "cache": [.e4m3fn, .e5m2]
                default: []
                }
            if narrow.contains(format) { continue }
            let more = narrow.map { ", \($0)" }.joined()
            throw LockstepError(
                .unsupported, "recipe: \(name) is \(format); known are fp32, fp16, bf16, e8mN and e5mN\(more)"
            )
        }
    }

    /// Throws for what only a rollout engine can have.
    func checkTrained() throws(LockstepError) {
        try check()
        for (name, format) in formats where format.byteCount == 1 {
            throw LockstepError(
                .unsupported,
                "recipe: \(name) is \(format); a trainer has no fp8: give it to the rollout engine alone")
        }
    }
}
