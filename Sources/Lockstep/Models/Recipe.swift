/// The precision of a model's computation: which format each kind of value is stored in, in which order of arithmetic.
///
/// Products and sums are float32 always (docs/Numerics.md); a recipe says where and to what their results are
/// rounded. Two engines give the same bits if, and only if, their recipes are equal.
public struct Recipe: Equatable, Sendable, CustomStringConvertible {
    /// Weights; norms' too.
    public var parameters: Format
    /// What passes from operation to operation.
    public var activations: Format
    /// Keys and values kept for later tokens.
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

    /// The recipe of a name: `fp32`, `fp16`, `bf16`, an emulated format (`e8m5`), or one of them but the first with
    /// `-fp32head`; then `+` and the name of an order, if it is another than `lockstep`: `bf16+eager`.
    ///
    /// - Throws: `.invalidArgument` saying which there are.
    public init(named name: String) throws(LockstepError) {
        let parts = name.split(separator: "+", maxSplits: 1, omittingEmptySubsequences: false).map(
            String.init)
        let hasWideHead = parts[0].hasSuffix("-fp32head")
        guard let format = Format(String(parts[0].dropLast(hasWideHead ? 9 : 0))), Recipe.isKnown(format),
            !hasWideHead || format != .fp32
        else {
            throw LockstepError(
                .invalidArgument,
                "recipe: '\(parts[0])' is not known; give fp32, fp16, bf16, e8mN (N from 1 to 23) or e5mN (1 to 10), "
                    + "all but fp32 with -fp32head too")
        }
        self.init(format)
        if hasWideHead { logits = .fp32 }
        if parts.count == 1 { return }
        guard let order = Order.allCases.first(where: { $0.name == parts[1] }) else {
            let known = Order.allCases.map(\.name).joined(separator: ", ")
            throw LockstepError(
                .invalidArgument, "recipe: the order '\(parts[1])' is not known; give one of \(known)")
        }
        self.order = order
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
        var known = Recipe(parameters, order)
        if Recipe.isKnown(parameters) {
            if self == known { return parameters.description + suffix }
            known.logits = .fp32
            if self == known { return parameters.description + "-fp32head" + suffix }
        }
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

    /// Throws unless the kernels know all formats.
    func check() throws(LockstepError) {
        for (name, format) in formats where !Recipe.isKnown(format) {
            throw LockstepError(
                .unsupported, "recipe: \(name) is \(format); known are fp32, fp16, bf16, e8mN and e5mN")
        }
    }
}
