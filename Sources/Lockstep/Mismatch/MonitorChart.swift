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
    /// The floor moves by this share of its distance to x ...
    static let adaptation = 0.01
    /// ... and by at most this much a step: a KL may rise by 5 % in 100 steps and pass for normal.
    static let fastestAdaptation = 0.0005
    /// A scale below this is taken to be chance: log of a KL.
    static let smallestScale = 0.05

    var floor: Double
    var scale: Double
    var score = 0.0
    /// The step at which the score last left 0.
    var since: Int?

    /// Learns floor and scale: the median, and the median absolute deviation from it as a standard deviation,
    /// deviations of smaller steps weighing less.
    init(logarithms: [Double], weights: [Double], perKL: Double) {
        let floor = median(logarithms)
        let deviations = zip(logarithms, weights).map { abs($0 - floor) * $1 }
        self.init(floor: floor, scale: max(1.4826 * median(deviations), Self.smallestScale * perKL))
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

/// The median; of an even number, the mean of the two in the middle. NaN for none.
func median(_ values: [Double]) -> Double {
    guard !values.isEmpty else { return .nan }
    let sorted = values.sorted()
    let middle = sorted.count / 2
    return sorted.count % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}
