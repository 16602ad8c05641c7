import CLockstepKernels

/// What turns logits into log-probs.
///
/// `y = softCap(round(x)) / temperature`, then the log-softmax of y, over the kept set if there is one.
public struct LogProbOptions: Sendable {
    /// Divides the logits: in [1e-6, 1e6], 1 by default.
    ///
    /// 0 is an error: it is a limit, not a policy.
    public var temperature: Double
    /// `cap * tanh(x / cap)` before the temperature; 0 means none.
    public var softCap: Double
    /// Rows with this target are skipped: never read, outputs 0.
    public var ignoreIndex: Int
    /// Keep only the largest `topK` logits (and those equal to the last kept); 0 means all.
    public var topK: Int
    /// Keep only logits whose probability is at least this share of the largest one's; 0 means all.
    public var minP: Double
    /// Then keep only the smallest set of the largest whose probability reaches `topP`; 1 means all.
    public var topP: Double
    /// The format the logits are rounded to before the log-softmax: `fp16`, `bf16`, an emulated one, or `fp32` for none.
    public var logitsFormat: Format

    /// Creates options; the defaults are those of an untruncated policy at temperature 1.
    public init(
        temperature: Double = 1, softCap: Double = 0, ignoreIndex: Int = -100, topK: Int = 0,
        topP: Double = 1, minP: Double = 0, logitsFormat: Format = .fp32
    ) {
        self.temperature = temperature
        self.softCap = softCap
        self.ignoreIndex = ignoreIndex
        self.topK = topK
        self.topP = topP
        self.minP = minP
        self.logitsFormat = logitsFormat
    }

    /// Whether `topK`, `topP` or `minP` cut the vocabulary.
    var truncates: Bool { topK > 0 || topP < 1 || minP > 0 }

    /// The options as the kernels take them, or an error that names the one out of range.
    func rule() throws(LockstepError) -> lsk_logit_rule {
        guard temperature >= 1e-6, temperature <= 1e6 else {
            throw LockstepError(
                .invalidArgument, "temperature is \(temperature); give a value from 1e-6 to 1e6 (1 for none)")
        }
        guard softCap == 0 || (1e-6...1e30).contains(softCap) else {
            throw LockstepError(
                .invalidArgument, "soft_cap is \(softCap); give 0 for none, or a value from 1e-6 to 1e30")
        }
        guard topK >= 0 else {
            throw LockstepError(.invalidArgument, "top_k is \(topK); give 0 for all, or a positive count")
        }
        guard topP > 0, topP <= 1 else {
            throw LockstepError(.invalidArgument, "top_p is \(topP); give a value in (0, 1], 1 for all")
        }
        guard minP >= 0, minP <= 1 else {
            throw LockstepError(.invalidArgument, "min_p is \(minP); give a value in [0, 1], 0 for all")
        }
        guard [.fp32, .fp16, .bf16].contains(logitsFormat) || logitsFormat.isEmulated else {
            throw LockstepError(
                .invalidArgument,
                "logits_dtype is \(logitsFormat); give fp32 (no rounding), fp16, bf16, e8mN or e5mN")
        }
        let inverse = Float(1 / temperature)
        return lsk_logit_rule(
            temperature: Float(temperature), inverse: inverse,
            inverse_low: Float(1 / temperature - Double(inverse)), soft_cap: Float(softCap),
            rounding: logitsFormat.rawValue)
    }
}

extension lsk_logit_rule {
    /// The rule for logits already rounded and capped: only the temperature is left to apply.
    var temperatureOnly: lsk_logit_rule {
        var rule = self
        rule.soft_cap = 0
        rule.rounding = Format.fp32.rawValue
        return rule
    }
}

/// Targets that count, checked against the vocabulary.
func checkTargets(
    _ targets: TokenView, tokens: Int, vocab: Int, ignoreIndex: Int
) throws(LockstepError) {
    guard targets.count == tokens else {
        throw LockstepError(
            .invalidArgument, "targets: has \(targets.count) elements but there are \(tokens) rows of logits")
    }
    for row in 0..<tokens {
        let target = targets[row]
        guard target == ignoreIndex || (target >= 0 && target < vocab) else {
            throw LockstepError(
                .invalidArgument,
                "targets[\(row)] is \(target), outside the vocabulary of \(vocab); mark tokens that do not "
                    + "count with ignore_index (\(ignoreIndex))")
        }
    }
}

/// An input vector or matrix in one of the formats the log-prob kernels read.
func checkFormat(_ format: Format, _ name: StaticString) throws(LockstepError) {
    guard [.fp32, .fp16, .bf16].contains(format) else {
        let hint = format.isEmulated ? "; its values are floats: give them as fp32" : ""
        throw LockstepError(
            .invalidArgument, "\(name): format \(format) is not one of fp32, fp16, bf16\(hint)")
    }
}
