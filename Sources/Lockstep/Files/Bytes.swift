/// Writes values as little-endian bytes.
struct ByteWriter {
    private(set) var bytes: [UInt8] = []

    mutating func append<Value: FixedWidthInteger>(_ value: Value) {
        withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
    }

    mutating func append(_ value: Int) { append(Int64(value)) }

    mutating func append(_ value: Double) { append(value.bitPattern) }

    mutating func append(raw: [UInt8]) { bytes.append(contentsOf: raw) }

    /// Replaces 8 bytes from `place` on.
    mutating func put(_ value: UInt64, at place: Int) {
        withUnsafeBytes(of: value.littleEndian) {
            for (index, byte) in $0.enumerated() { bytes[place + index] = byte }
        }
    }
}

/// Reads little-endian values from bytes that may be anything: it never reads beyond them, and a count is
/// believed only if what it counts can be there.
struct ByteReader {
    private let bytes: [UInt8]
    private var next: Int
    private let end: Int
    /// What is being read, for messages.
    let name: StaticString

    init(_ bytes: [UInt8], _ range: Range<Int>, _ name: StaticString) {
        self.bytes = bytes
        next = range.lowerBound
        end = range.upperBound
        self.name = name
    }

    /// Bytes not yet read.
    var remaining: Int { end - next }

    mutating func read<Value: FixedWidthInteger>(_ type: Value.Type = Value.self) throws(LockstepError)
        -> Value
    {
        let size = MemoryLayout<Value>.size
        guard remaining >= size else { throw damaged("it ends early") }
        let value = bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: next, as: Value.self) }
        next += size
        return Value(littleEndian: value)
    }

    mutating func readDouble() throws(LockstepError) -> Double { Double(bitPattern: try read()) }

    /// A count of things of at least `size` bytes each, which must still be there.
    mutating func readCount(of size: Int) throws(LockstepError) -> Int {
        let count = Int(try read(UInt32.self))
        guard count <= remaining / size else { throw damaged("it ends early") }
        return count
    }

    /// A number of tokens or sequences: not negative, and small enough that sums of many cannot overflow.
    mutating func readTotal() throws(LockstepError) -> Int {
        let value = try read(Int64.self)
        guard (0...Int64(MismatchMoments.largestTotal)).contains(value) else {
            throw damaged("a count is \(value)")
        }
        return Int(value)
    }

    /// The error for bytes that are not what was written.
    func damaged(_ how: String) -> LockstepError {
        LockstepError(.badData, "\(name): damaged (\(how)); read it again from where it was saved")
    }
}
