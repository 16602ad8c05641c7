/// The plain form of the conversion between formats: one value at a time, integer arithmetic only.
///
/// `convert` equals it bit for bit, on every instruction set.
public enum ReferenceFormats {
    /// Converts one element after the other; see `convert`.
    ///
    /// The arguments are not checked.
    public static func convert(
        _ source: TensorView, into destination: MutableTensorView, rounding: Rounding
    ) -> ConversionCounts {
        var counts = ConversionCounts()
        for index in 0..<source.shape.reduce(1, *) {
            var rest = index
            var (from, to) = (0, 0)
            for axis in source.shape.indices.reversed() {
                from += rest % source.shape[axis] * source.strides[axis]
                to += rest % source.shape[axis] * destination.strides[axis]
                rest /= source.shape[axis]
            }
            let scalar: ScalarRounding =
                switch rounding {
                case .nearestEven: .nearestEven
                case .towardZero: .towardZero
                case .stochastic(let seed, let firstIndex):
                    .stochastic(Philox4x32(seed: seed).word(firstIndex + UInt64(index)))
                }
            let result = Lockstep.convert(
                bits: load(source.base! + from * source.format.byteCount, source.format),
                from: source.format, to: destination.format, rounding: scalar)
            store(result.bits, destination.base! + to * destination.format.byteCount, destination.format)
            switch result.event {
            case .none: break
            case .overflow: counts.overflow += 1
            case .underflow: counts.underflow += 1
            case .nan: counts.nan += 1
            }
        }
        return counts
    }

    /// A float rounded to a format, to nearest even, as a float.
    static func rounded(_ x: Float, _ format: Format) -> Float {
        if format == .fp32 { return x }
        let bits = Lockstep.convert(bits: UInt64(x.bitPattern), from: .fp32, to: format).bits
        return Float(bitPattern: UInt32(Lockstep.convert(bits: bits, from: format, to: .fp32).bits))
    }

    /// A row of weights as a recipe with parameters in e4m3fn has them: each value over the row's scale rounded, times the
    /// scale, which is the smallest power of two from 2^-100 on with which the largest magnitude is at most 448.
    static func scaledRow(_ row: [Float]) -> [Float] {
        var scale: Float = 0x1p-100
        let largest = row.map(\.magnitude).max() ?? 0
        while largest / scale > 448 { scale *= 2 }
        return row.map { rounded($0 / scale, .e4m3fn) * scale }
    }

    /// The bits of one element.
    private static func load(_ address: UnsafeRawPointer, _ format: Format) -> UInt64 {
        switch format.byteCount {
        case 8: address.loadUnaligned(as: UInt64.self)
        case 4: UInt64(address.loadUnaligned(as: UInt32.self))
        case 2: UInt64(address.loadUnaligned(as: UInt16.self))
        default: UInt64(address.loadUnaligned(as: UInt8.self))
        }
    }

    private static func store(_ bits: UInt64, _ address: UnsafeMutableRawPointer, _ format: Format) {
        switch format.byteCount {
        case 8: address.storeBytes(of: bits, as: UInt64.self)
        case 4: address.storeBytes(of: UInt32(bits), as: UInt32.self)
        case 2: address.storeBytes(of: UInt16(bits), as: UInt16.self)
        default: address.storeBytes(of: UInt8(bits), as: UInt8.self)
        }
    }
}
