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

    /// The recipe of a name: `fp32`, `fp16`, `bf16`, or one of the latter with `-fp32head`; then `+` and the name of an
    /// order, if it is another than `lockstep`: `bf16+eager`.
    ///
    /// - Throws: `.invalidArgument` listing the names.
    public init(named name: String) throws(LockstepError) {
        let parts = name.split(separator: "+", maxSplits: 1, omittingEmptySubsequences: false).map(
            String.init)
        guard let recipe = Recipe.named[parts[0]] else {
            let known = Recipe.named.keys.sorted().joined(separator: ", ")
            throw LockstepError(.invalidArgument, "recipe: '\(parts[0])' is not known; give one of \(known)")
        }
        self = recipe
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
        var plain = self
        plain.order = .lockstep
        if let known = Recipe.named.first(where: { $0.value == plain }) { return known.key + suffix }
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

    /// The recipes that have names.
    public static let named: [String: Recipe] = {
        var all: [String: Recipe] = ["fp32": Recipe(.fp32)]
        for (name, format) in [("fp16", Format.fp16), ("bf16", .bf16)] {
            all[name] = Recipe(format)
            all["\(name)-fp32head"] = Recipe(format)
            all["\(name)-fp32head"]?.logits = .fp32
        }
        return all
    }()

    /// Throws unless the kernels know all formats.
    func check() throws(LockstepError) {
        for (name, format) in formats where ![.fp32, .fp16, .bf16].contains(format) {
            throw LockstepError(
                .unsupported, "recipe: \(name) is \(format); known are fp32, fp16 and bf16")
        }
    }
}
