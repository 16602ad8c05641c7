/// Options of AdamW that stay the same in a run; the defaults are `torch.optim.AdamW`'s.
public struct AdamWOptions: Equatable, Sendable {
    /// Decay of the first moment, in [0, 1).
    public var beta1 = 0.9
    /// Decay of the second moment, in [0, 1).
    public var beta2 = 0.999
    /// Added to the root of the second moment; in (0, 1].
    public var epsilon = 1e-8
    /// Decoupled: a step multiplies the masters by 1 - rate * weightDecay.
    ///
    /// Not negative.
    public var weightDecay = 0.01

    /// Creates options.
    public init(
        beta1: Double = 0.9, beta2: Double = 0.999, epsilon: Double = 1e-8, weightDecay: Double = 0.01
    ) {
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon
        self.weightDecay = weightDecay
    }
}

/// How masters of 16 bits take a step; of fp32 ones nothing is rounded but the arithmetic.
public enum MasterRounding: Equatable, Sendable {
    /// To the nearest, ties to even: updates below half a step of the format are lost.
    case nearestEven
    /// Up or down by chance, so that the expectation is the value: a function of seed, step and element.
    case stochastic(seed: UInt64)
    /// To the nearest, and what was rounded off is kept in a second 16-bit number, and counts from then on.
    case kahan
}

/// The float32 numbers of one step.
struct AdamWConstants {
    var gradientScale: Float
    var firstRest: Float
    var second: Float
    var secondRest: Float
    var inverseRoot: Float
    var epsilon: Float
    var decay: Float
    var stepSize: Float

    /// Computed in float64 and rounded once each.
    ///
    /// - Throws: `.invalidArgument` naming what is out of range.
    init(
        _ options: AdamWOptions, step: Int, learningRate: Double, gradientScale: Double
    ) throws(LockstepError) {
        func need(_ isRight: Bool, _ name: StaticString, _ value: Double, _ range: StaticString)
            throws(LockstepError)
        {
            guard isRight else {
                throw LockstepError(.invalidArgument, "options: \(name) is \(value); give \(range)")
            }
        }
        try need(options.beta1 >= 0 && options.beta1 < 1, "beta1", options.beta1, "a value in [0, 1)")
        try need(options.beta2 >= 0 && options.beta2 < 1, "beta2", options.beta2, "a value in [0, 1)")
        try need(
            Float(options.epsilon) > 0 && options.epsilon <= 1, "epsilon", options.epsilon,
            "a value in (0, 1]")
        try need(step >= 1, "step", Double(step), "1 for the first")
        try need(
            learningRate >= 0 && learningRate <= 1e6, "learning_rate", learningRate, "a rate of 0 or more")
        try need(
            options.weightDecay >= 0 && learningRate * options.weightDecay <= 1, "weight_decay",
            options.weightDecay, "0 or more, and at most 1 / learning_rate")
        try need(
            gradientScale > 0 && Float(gradientScale).isFinite && Float(gradientScale) > 0, "gradient_scale",
            gradientScale, "a positive float32")
        self.gradientScale = Float(gradientScale)
        firstRest = Float(1 - options.beta1)
        second = Float(options.beta2)
        secondRest = Float(1 - options.beta2)
        inverseRoot = Float(1 / (1 - Self.power(options.beta2, step)).squareRoot())
        epsilon = Float(options.epsilon)
        decay = Float(1 - learningRate * options.weightDecay)
        stepSize = Float(learningRate / (1 - Self.power(options.beta1, step)))
    }

    /// x^n by squaring.
    private static func power(_ x: Double, _ n: Int) -> Double {
        var (result, factor, rest) = (1.0, x, n)
        while rest > 0 {
            if rest & 1 == 1 { result *= factor }
            factor *= factor
            rest >>= 1
        }
        return result
    }
}
