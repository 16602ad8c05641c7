/// The cumulative-sum chart (CUSUM, Page 1954) of one statistic against its own floor.
///
/// On the logarithm x of the statistic, with the floor's own scale s:
///
///     z     = ((x - floor) - band) / s, clipped to +-3
///     score = max(0, score + z - 1/2), at most 50
///
/// The band is a growth too small to be worth an alarm; clipping keeps any single step from raising one.
/// The floor then moves toward x, so slowly that it cannot follow growth worth an alarm.
struct MonitorChart {
    /// Growth of the logarithm of a KL that counts as none.
    static let band = 0.2
    /// Most that one step can move the score, in scales.
    static let clip = 3.0
    /// What the score loses at each step.
    static let allowance = 0.5
    /// A higher score says nothing more, and would keep an alarm up long after its cause is gone.
    static let highestScore = 50.0
    /// The share of its distance to x by which the floor moves in a step.
    static let adaptation = 0.01
    /// The most by which it moves in one step: a KL may rise by 5 % in 100 steps and pass for normal.
    static let fastestAdaptation = 0.0005
    /// A scale below this is taken to be chance: log of a KL.
    static let smallestScale = 0.05

    var floor: Double
    var scale: Double
    var score = 0.0
    /// The step at which the score last left 0.
    var since: Int?

    /// Learns the floor, which is the median, and the scale.
    ///
    /// The scale is the median absolute deviation or, where the noise is skewed upwards, the larger distance of
    /// the upper decile, both in terms of a normal distribution's standard deviation. Deviations of smaller
    /// steps weigh less.
    init(logarithms: [Double], weights: [Double], perKL: Double) {
        let floor = quantile(logarithms, 0.5)
        let deviations = zip(logarithms, weights).map { ($0 - floor) * $1 }
        let spread = 1.4826 * quantile(deviations.map(abs), 0.5)
        let upper = quantile(deviations, 0.9) / 1.2816
        self.init(floor: floor, scale: max(spread, upper, Self.smallestScale * perKL))
    }

    init(floor: Double, scale: Double, score: Double = 0, since: Int? = nil) {
        self.floor = floor
        self.scale = scale
        self.score = score
        self.since = since
    }

    /// Takes the logarithm of one step's statistic, whose noise is `inflation` times that of the floor's steps.
    mutating func update(_ x: Double, inflation: Double, perKL: Double, step: Int) {
        let distance = x - floor
        let z = (distance - Self.band * perKL) / (scale * inflation)
        if score == 0 { since = step }
        score = score + min(max(z, -Self.clip), Self.clip) - Self.allowance
        score = min(max(score, 0), Self.highestScore)
        if score == 0 { since = nil }
        let fastest = Self.fastestAdaptation * perKL
        floor += min(max(Self.adaptation * distance, -fastest), fastest)
    }
}

/// A quantile, linear between order statistics; NaN for no values.
func quantile(_ values: [Double], _ share: Double) -> Double {
    guard !values.isEmpty else { return .nan }
    let sorted = values.sorted()
    let position = share * Double(sorted.count - 1)
    let below = Int(position)
    let above = min(below + 1, sorted.count - 1)
    return sorted[below] + (position - Double(below)) * (sorted[above] - sorted[below])
}
