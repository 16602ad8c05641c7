/// The precision of a model's computation: which format each kind of value is stored in.
///
/// Products and sums are float32 always (docs/Numerics.md); a recipe says where and to what their results are
/// rounded. Two engines with one recipe give the same bits.
public struct Recipe: Equatable, Sendable {
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

    /// What gradients of activations are rounded to after each operation of a backward pass.
    ///
    /// Those of logits are not rounded where logits are fp32, those of weights are fp32 always.
    public var gradients: Format

    /// Everything in one format.
    public init(_ format: Format) {
        (parameters, activations, cache, probabilities, logits) = (format, format, format, format, format)
        gradients = format
    }

    /// The recipe of a name: `fp32`, `fp16`, `bf16`, or one of the latter with `-fp32head`.
    ///
    /// - Throws: `.invalidArgument` listing the names.
    public init(named name: String) throws(LockstepError) {
        guard let recipe = Recipe.named[name] else {
            let known = Recipe.named.keys.sorted().joined(separator: ", ")
            throw LockstepError(.invalidArgument, "recipe: '\(name)' is not known; give one of \(known)")
        }
        self = recipe
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
        for (format, name) in [
            (parameters, "parameters"), (activations, "activations"), (cache, "cache"),
            (probabilities, "probabilities"), (logits, "logits"), (gradients, "gradients"),
        ] where ![.fp32, .fp16, .bf16].contains(format) {
            throw LockstepError(
                .unsupported, "recipe: \(name) is \(format); known are fp32, fp16 and bf16")
        }
    }
}
