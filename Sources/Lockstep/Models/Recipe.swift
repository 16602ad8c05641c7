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

    /// Everything in one format.
    public init(_ format: Format) {
        (parameters, activations, cache, probabilities, logits) = (format, format, format, format, format)
    }

    /// The recipe of a name: `fp32`, `fp16`, `bf16`, an emulated format (`e8m5`), or one of them but the first with
    /// `-fp32head`.
    ///
    /// - Throws: `.invalidArgument` saying which there are.
    public init(named name: String) throws(LockstepError) {
        let hasWideHead = name.hasSuffix("-fp32head")
        guard let format = Format(String(name.dropLast(hasWideHead ? 9 : 0))), Recipe.isKnown(format),
            !hasWideHead || format != .fp32
        else {
            throw LockstepError(
                .invalidArgument,
                "recipe: '\(name)' is not known; give fp32, fp16, bf16, e8mN (N from 1 to 23) or e5mN (1 to 10), all "
                    + "but fp32 with -fp32head too")
        }
        self.init(format)
        if hasWideHead { logits = .fp32 }
    }

    private static func isKnown(_ format: Format) -> Bool {
        [.fp32, .fp16, .bf16].contains(format) || format.isEmulated
    }

    /// Throws unless the kernels know all formats.
    func check() throws(LockstepError) {
        for (format, name) in [
            (parameters, "parameters"), (activations, "activations"), (cache, "cache"),
            (probabilities, "probabilities"), (logits, "logits"),
        ] where !Recipe.isKnown(format) {
            throw LockstepError(
                .unsupported, "recipe: \(name) is \(format); known are fp32, fp16, bf16, e8mN and e5mN")
        }
    }
}
