/// A file of named tensors in the safetensors format.
///
/// Nothing in it is believed before it was checked against the file's size, and it is read, not mapped: a mapped
/// file that somebody cuts short kills the reader.
///
/// *Source*: the format's description in huggingface/safetensors: 8 bytes of length, a JSON header, data without
/// gaps.
final class SafeTensors {
    /// Where a tensor stands and what it holds.
    struct Tensor: Equatable {
        let dtype: String
        let shape: [Int]
        /// Bytes from the beginning of the file.
        let bytes: Range<Int>
        /// The format, if it is one of floating-point numbers that we know.
        var format: Format? { SafeTensors.formats[dtype] }
    }

    /// The file's path, or what messages call the bytes.
    let name: String
    /// By their names.
    let tensors: [String: Tensor]
    /// What the file says of itself.
    let metadata: [String: String]
    private let source: ByteSource

    /// The reference implementation refuses longer headers too.
    private static let headerLimit = 100_000_000
    static let formats: [String: Format] = [
        "F64": .fp64, "F32": .fp32, "F16": .fp16, "BF16": .bf16, "F8_E4M3": .e4m3fn, "F8_E5M2": .e5m2,
    ]
    private static let byteCounts: [String: Int] = [
        "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2,
        "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
    ]

    /// Opens a file and reads its header.
    ///
    /// - Throws: `.file` if the system refuses it; `.badData` for bytes that are not a safetensors file, naming
    ///   the tensor.
    convenience init(path: String) throws(LockstepError) {
        try self.init(ByteSource(file: SystemFile(path, SystemFile.readOnly)))
    }

    /// The same of bytes in memory, which must stay there as long as tensors are read.
    convenience init(bytes: UnsafeRawBufferPointer, _ name: String) throws(LockstepError) {
        try self.init(ByteSource(memory: bytes, name))
    }

    private init(_ source: ByteSource) throws(LockstepError) {
        let path = source.name
        let header = try SafeTensors.header(of: source)
        guard case .object(let members) = header.value else {
            throw LockstepError(.badData, "\(path): the header is not an object of tensors")
        }
        var tensors: [String: Tensor] = [:]
        var metadata: [String: String] = [:]
        for (key, value) in members {
            if key == "__metadata__" {
                guard case .object(let texts) = value else {
                    throw LockstepError(.badData, "\(path): __metadata__ is not an object of texts")
                }
                metadata = texts.compactMapValues(\.string)
            } else {
                tensors[key] = try SafeTensors.tensor(value, "\(path): tensor '\(key)'", dataAt: header.end)
            }
        }
        try SafeTensors.checkPlaces(tensors, header.end..<source.size, path)
        self.source = source
        self.tensors = tensors
        self.metadata = metadata
        name = path
    }

    private static func header(of source: ByteSource) throws(LockstepError) -> (value: JSON, end: Int) {
        let length = try source.bytes(at: 0, count: 8)?.loadUnaligned(as: UInt64.self)
        guard let length = length.map(UInt64.init(littleEndian:)), length >= 2,
            length <= UInt64(headerLimit), Int(length) <= source.size - 8
        else {
            throw LockstepError(
                .badData,
                "\(source.name): is not a safetensors file, or was cut off: its \(source.size) bytes do not hold the "
                    + "header they announce")
        }
        guard let text = try source.bytes(at: 8, count: Int(length)) else {
            throw LockstepError(.badData, "\(source.name): was cut short while it was read")
        }
        return (try JSON(parsing: text, "\(source.name): header"), 8 + text.count)
    }

    private static func tensor(
        _ value: JSON, _ what: String, dataAt start: Int
    ) throws(LockstepError) -> Tensor {
        guard let dtype = value["dtype"]?.string, let size = byteCounts[dtype] else {
            throw LockstepError(
                .badData, "\(what): dtype is \(value["dtype"]?.string ?? "missing"), which is not known")
        }
        guard let shape = value["shape"]?.array?.map(\.integer), !shape.contains(where: { ($0 ?? -1) < 0 })
        else { throw LockstepError(.badData, "\(what): shape is not a list of counts") }
        guard let offsets = value["data_offsets"]?.array?.map(\.integer), offsets.count == 2,
            let first = offsets[0], let last = offsets[1], first >= 0, first <= last, last <= 1 << 48
        else {
            throw LockstepError(.badData, "\(what): data_offsets is not a pair of places, the first lower")
        }
        var total = size
        for extent in shape {
            let (product, overflow) = total.multipliedReportingOverflow(by: extent!)
            guard !overflow else { throw LockstepError(.badData, "\(what): its shape is too large") }
            total = product
        }
        guard total == last - first else {
            throw LockstepError(
                .badData, "\(what): its shape makes \(total) bytes, but data_offsets has \(last - first)")
        }
        return Tensor(dtype: dtype, shape: shape.map { $0! }, bytes: start + first..<start + last)
    }

    /// The data of the tensors fills the rest of the file, without gaps and without sharing.
    private static func checkPlaces(
        _ tensors: [String: Tensor], _ data: Range<Int>, _ path: String
    ) throws(LockstepError) {
        let ordered = tensors.sorted {
            ($0.value.bytes.lowerBound, $0.value.bytes.upperBound, $0.key)
                < ($1.value.bytes.lowerBound, $1.value.bytes.upperBound, $1.key)
        }
        var end = data.lowerBound
        for (key, tensor) in ordered {
            guard tensor.bytes.lowerBound == end else {
                throw LockstepError(
                    .badData,
                    "\(path): tensor '\(key)': begins at byte \(tensor.bytes.lowerBound), but the one before ends at \(end)"
                )
            }
            end = tensor.bytes.upperBound
        }
        guard end == data.upperBound else {
            throw LockstepError(
                .badData,
                "\(path): its tensors end at byte \(end) but the file at \(data.upperBound); it was cut off or "
                    + "belongs to another header")
        }
    }

    /// Reads a tensor of a known shape in one of the kernels' formats, converted if it must be.
    ///
    /// - Throws: `.badData` if it has another shape, or a value that is NaN or infinite afterwards; `.unsupported`
    ///   for a format of other numbers.
    func read(
        _ tensor: Tensor, _ key: String, shape: [Int], as format: Format, into target: UnsafeMutableRawPointer
    ) throws(LockstepError) {
        try check(tensor, key, shape: shape)
        let what = "\(name): tensor '\(key)'"
        guard let stored = tensor.format, [.fp64, .fp32, .fp16, .bf16].contains(stored) else {
            throw LockstepError(
                .unsupported, "\(what): dtype is \(tensor.dtype); known are F64, F32, F16 and BF16")
        }
        try forEachPart(of: tensor, stored, as: format, into: { target + $0 * format.byteCount }) {
            (values, first, count) throws(LockstepError) in
            try SafeTensors.checkFinite(values, format, count, what, from: first)
        }
    }

    /// Lends a tensor's values as floats to `body`, a part at a time; they may be infinite or NaN.
    func readFloats(
        _ tensor: Tensor, _ body: (UnsafeBufferPointer<Float>) -> Void
    ) throws(LockstepError) {
        guard let stored = tensor.format else { return }
        let values = try Scratch<Float>(count: SafeTensors.part)
        let base = UnsafeMutableRawPointer(values.base)
        try forEachPart(of: tensor, stored, as: .fp32, into: { _ in base }) {
            (part, _, count) throws(LockstepError) in
            body(UnsafeBufferPointer(start: part.assumingMemoryBound(to: Float.self), count: count))
        }
    }

    /// Values read and converted at a time.
    private static let part = 1 << 18

    /// Reads a tensor a part at a time, converts each to where `place` of its first value's number says, and calls
    /// `body` with it, that number, and how many there are.
    private func forEachPart(
        of tensor: Tensor, _ stored: Format, as format: Format, into place: (Int) -> UnsafeMutableRawPointer,
        _ body: (UnsafeMutableRawPointer, Int, Int) throws(LockstepError) -> Void
    ) throws(LockstepError) {
        let total = tensor.shape.reduce(1, *)
        for first in stride(from: 0, to: total, by: SafeTensors.part) {
            let count = min(SafeTensors.part, total - first)
            let bytes = count * stored.byteCount
            let start = tensor.bytes.lowerBound + first * stored.byteCount
            guard let part = try source.bytes(at: start, count: bytes) else {
                throw LockstepError(.badData, "\(name): was cut short while it was read")
            }
            let values = place(first)
            func convert(_ from: UnsafeRawPointer?) throws(LockstepError) {
                try Lockstep.convert(
                    TensorView(from, stored, shape: [count]),
                    into: MutableTensorView(values, format, shape: [count]), execution: Execution(threads: 1))
            }
            // A header has any length, so values may stand at an odd address, from which none is read.
            if Int(bitPattern: part.baseAddress) % stored.byteCount == 0 {
                try convert(part.baseAddress)
            } else {
                let aligned = try Scratch<UInt8>(count: bytes)
                UnsafeMutableRawBufferPointer(start: aligned.base, count: bytes).copyMemory(from: part)
                try convert(aligned.base)
            }
            try body(values, first, count)
        }
    }

    /// Throws unless a tensor has a shape.
    func check(_ tensor: Tensor, _ key: String, shape: [Int]) throws(LockstepError) {
        guard tensor.shape == shape else {
            throw LockstepError(
                .badData,
                "\(name): tensor '\(key)': shape is \(tensor.shape); the configuration wants \(shape)")
        }
    }

    /// Throws if one of `count` values, the first of which is number `first` of a tensor, is NaN or infinite.
    static func checkFinite(
        _ values: UnsafeRawPointer, _ format: Format, _ count: Int, _ what: String, from first: Int = 0
    ) throws(LockstepError) {
        let view = VectorView(values, format, count: count)
        if format != .fp64,
            try Execution().kernels().pointee.non_finite_values(values, format.rawValue, count) == 0
        {
            return
        }
        guard let index = (0..<count).first(where: { !view.double($0).isFinite }) else { return }
        throw LockstepError(
            .nonFinite,
            "\(what): value \(first + index) is NaN or infinite as \(format); use a recipe with other "
                + "parameters, or mend the checkpoint")
    }

    /// A tensor's values as floats.
    func floats(_ tensor: Tensor, _ key: String, shape: [Int]) throws(LockstepError) -> [Float] {
        let values = try Scratch<Float>(count: shape.reduce(1, *))
        try read(tensor, key, shape: shape, as: .fp32, into: values.base)
        return Array(UnsafeBufferPointer(start: values.base, count: values.count))
    }
}
