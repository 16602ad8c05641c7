/// Whose rule moves a loss scale.
public enum LossScalerKind: Int32, CaseIterable, Sendable {
    /// The scale stays.
    case constant = 0
    /// `torch.amp.GradScaler`: every overflow backs off; growth after `growthInterval` clean steps.
    case torch = 1
    /// DeepSpeed's `DynamicLossScaler`: overflows first use up the hysteresis; growth at the clean step number
    /// `growthInterval` + 1 after an overflow, then every `growthInterval`.
    case deepSpeed = 2
    /// Megatron-LM's `DynamicGradScaler`: as torch, but the first `hysteresis` - 1 overflows since the last growth
    /// only skip.
    case megatron = 3
}

/// How a loss scale starts, moves, and where it ends.
///
/// `LossScalerOptions(.torch)` has the peers' defaults; `LossScalerOptions(named: "paper")` is torch's rule with the
/// growth interval of 400 that "Defeating the training-inference mismatch via FP16" trains with.
public struct LossScalerOptions: Equatable, Sendable {
    /// Whose rule.
    public var kind: LossScalerKind
    /// The first scale: positive; torch and Megatron keep it in float32.
    public var initialScale: Double
    /// Growth multiplies by this, above 1.
    ///
    /// DeepSpeed's back-off divides by it.
    public var growthFactor: Double
    /// Back-off multiplies by this, in (0, 1).
    ///
    /// DeepSpeed has none of its own: 1 / `growthFactor`.
    public var backoffFactor: Double
    /// Clean steps before a growth.
    public var growthInterval: Int
    /// The floor of back-off: DeepSpeed's and Megatron's is 1, torch's 0.
    public var minimumScale: Double
    /// Growth beyond this is not made: the largest float32 by default.
    public var maximumScale: Double
    /// Overflows until a back-off, this one included: 2 for DeepSpeed and Megatron, 1 for torch.
    public var hysteresis: Int
    /// DeepSpeed: every clean step refills the hysteresis, and not growth alone.
    public var consecutiveHysteresis: Bool

    /// The defaults of a kind: those of `GradScaler()`, of DeepSpeed's configuration, of Megatron's command line.
    public init(_ kind: LossScalerKind = .torch) {
        self.kind = kind
        initialScale = kind == .megatron ? 0x1p32 : 65536
        growthFactor = 2
        backoffFactor = 0.5
        growthInterval = kind == .torch ? 2000 : 1000
        minimumScale = kind == .deepSpeed || kind == .megatron ? 1 : 0
        maximumScale = Double(Float.greatestFiniteMagnitude)
        hysteresis = kind == .deepSpeed || kind == .megatron ? 2 : 1
        consecutiveHysteresis = false
    }

    /// The names of `init(named:)`.
    public static let names = ["constant", "torch", "deepspeed", "megatron", "paper"]

    /// The defaults of a name: a kind's, or "paper".
    ///
    /// - Throws: `.invalidArgument` for another name.
    public init(named name: String) throws(LockstepError) {
        guard let index = Self.names.firstIndex(of: name) else {
            throw LockstepError(
                .invalidArgument,
                "name: '\(name)' is no loss scaler; known are \(Self.names.joined(separator: ", "))")
        }
        self.init(LossScalerKind(rawValue: Int32(index)) ?? .torch)
        if index == 4 { growthInterval = 400 }
    }

    /// Throws if an option is out of range, naming it.
    func check() throws(LockstepError) {
        func need(_ isRight: Bool, _ name: StaticString, _ value: Double, _ range: StaticString)
            throws(LockstepError)
        {
            guard isRight else {
                throw LockstepError(.invalidArgument, "options: \(name) is \(value); give \(range)")
            }
        }
        let largest = Double(Float.greatestFiniteMagnitude)
        try need(initialScale > 0 && initialScale <= largest, "initial_scale", initialScale, "(0, 3.4e38]")
        try need(
            growthFactor > 1 && growthFactor <= 65536, "growth_factor", growthFactor,
            "more than 1, up to 65536")
        try need(
            backoffFactor > 0 && backoffFactor < 1, "backoff_factor", backoffFactor,
            "a value between 0 and 1")
        try need(
            kind != .deepSpeed || backoffFactor == 0.5, "backoff_factor", backoffFactor,
            "the default: DeepSpeed divides by growth_factor")
        try need(
            (1...1 << 40).contains(growthInterval), "growth_interval", Double(growthInterval), "1 to 2^40")
        try need(
            minimumScale >= 0 && minimumScale <= initialScale, "minimum_scale", minimumScale,
            "0 to initial_scale")
        try need(
            maximumScale >= initialScale && maximumScale <= largest, "maximum_scale", maximumScale,
            "initial_scale to 3.4e38")
        try need((1...1 << 30).contains(hysteresis), "hysteresis", Double(hysteresis), "1 to 2^30")
        try need(
            hysteresis == 1 || kind == .deepSpeed || kind == .megatron, "hysteresis", Double(hysteresis),
            "1: only DeepSpeed's and Megatron's rules have one")
        try need(
            !consecutiveHysteresis || kind == .deepSpeed, "consecutive_hysteresis", 1,
            "0: only DeepSpeed's rule has it")
    }
}
