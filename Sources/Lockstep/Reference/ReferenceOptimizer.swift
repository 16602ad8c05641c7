/// AdamW and the sum of squares of gradients, one value at a time.
///
/// The kernels (Body/optimizer.h) equal it bit for bit, on every instruction set.
enum ReferenceOptimizer {
    /// One step of AdamW on one element, in float32.
    static func adamW(
        _ master: inout Float, _ first: inout Float, _ second: inout Float, _ gradient: Float,
        _ constants: AdamWConstants
    ) {
        let g = gradient * constants.gradientScale
        first = first.addingProduct(constants.firstRest, g - first)
        second = (constants.secondRest * g * g).addingProduct(constants.second, second)
        let divisor = constants.epsilon.addingProduct(second.squareRoot(), constants.inverseRoot)
        master = (master * constants.decay).addingProduct(-constants.stepSize, first / divisor)
    }

    /// The sum of squares of one chunk: 32 lanes, halved into each other.
    static func squares(_ values: [Float]) -> (sum: Double, largest: Float) {
        var lanes = [Double](repeating: 0, count: 32)
        var largest: UInt32 = 0
        for (index, value) in values.enumerated() {
            lanes[index % 32] += Double(value) * Double(value)
            largest = max(largest, value.magnitude.bitPattern)
        }
        var half = 16
        while half > 0 {
            for index in 0..<half { lanes[index] += lanes[index + half] }
            half /= 2
        }
        return (lanes[0], Float(bitPattern: largest))
    }
}
