/// Cosines and sines of the rotary embedding, for every position up to a limit.
///
/// Angles are float64, by our own functions: libm's differ between systems. A cosine is rounded to float32 once.
final class RotaryTable {
    /// Half of a head's width: the angles of a position.
    let angles: Int
    private let cosines: Scratch<Float>
    private let sines: Scratch<Float>

    /// Tables for `positions` positions; those that turn back if `isInverse`.
    init(
        _ configuration: ModelConfiguration, positions: Int, isInverse: Bool = false
    ) throws(LockstepError) {
        angles = configuration.headSize / 2
        cosines = try Scratch(count: positions * angles)
        sines = try Scratch(count: positions * angles)
        let frequencies = RotaryTable.frequencies(configuration)
        for position in 0..<positions {
            for (index, frequency) in frequencies.enumerated() {
                let (sine, cosine) = sineAndCosine(Double(position) * frequency)
                cosines.base[position * angles + index] = Float(cosine)
                sines.base[position * angles + index] = isInverse ? -Float(sine) : Float(sine)
            }
        }
    }

    func cosines(at position: Int) -> UnsafePointer<Float> { UnsafePointer(cosines.base + position * angles) }

    func sines(at position: Int) -> UnsafePointer<Float> { UnsafePointer(sines.base + position * angles) }

    /// theta^(-2 i / headSize), stretched as Llama 3 does.
    ///
    /// *Source*: Su et al., RoFormer (2021); for the stretching, transformers' `_compute_llama3_parameters`.
    static func frequencies(_ configuration: ModelConfiguration) -> [Double] {
        let size = Double(configuration.headSize)
        let plain = (0..<configuration.headSize / 2).map {
            exponential(-2 * Double($0) / size * logarithm(configuration.ropeTheta))
        }
        guard let scaling = configuration.ropeScaling else { return plain }
        let original = Double(scaling.originalPositions)
        return plain.map { frequency in
            let turns = original * frequency / (2 * Double.pi)  // in the context of the pretraining
            if turns < scaling.lowFrequency { return frequency / scaling.factor }
            if turns > scaling.highFrequency { return frequency }
            let smooth = (turns - scaling.lowFrequency) / (scaling.highFrequency - scaling.lowFrequency)
            return (1 - smooth) * frequency / scaling.factor + smooth * frequency
        }
    }
}
