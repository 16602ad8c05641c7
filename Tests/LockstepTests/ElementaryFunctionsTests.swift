import Testing

#if canImport(Glibc)
    import Glibc
#elseif canImport(Darwin)
    import Darwin
#endif

@testable import Lockstep

@Suite struct ElementaryFunctionsTests {
    static func ulps(_ a: Double, _ b: Double) -> Double { abs(a - b) / max(b.ulp, .leastNormalMagnitude) }

    @Test func logarithmIsWithinTwoUlps() {
        var random = Random(1)
        for _ in 0..<200_000 {
            let power = Int.random(in: -1000...1000, using: &random)
            let x = scaled(Double.random(in: 1...2, using: &random), by: power)
            #expect(Self.ulps(logarithm(x), log(x)) <= 2)
            let near = 1 + Double.random(in: -0.01...0.01, using: &random)
            #expect(Self.ulps(logarithm(near), log(near)) <= 2)
        }
        #expect(logarithm(1) == 0)
    }

    @Test func exponentialIsWithinTwoUlps() {
        var random = Random(2)
        for _ in 0..<200_000 {
            let x = Double.random(in: -700...700, using: &random)
            #expect(Self.ulps(exponential(x), exp(x)) <= 2)
        }
        #expect(exponential(0) == 1)
        #expect(exponential(-800) == 0 && exponential(800) == .infinity && exponential(.nan).isNaN)
    }

    @Test func scalingIsExact() {
        #expect(scaled(1.5, by: -1022) == 0x1.8p-1022)
        #expect(scaled(1.5, by: 1023) == 0x1.8p1023)
        #expect(scaled(1, by: -1074) == .leastNonzeroMagnitude)
        #expect(scaled(1, by: -3000) == 0 && scaled(1, by: 3000) == .infinity)
    }
}
