extension SafeTensors {
    /// A float32 tensor to be written.
    struct Values {
        let name: String
        let shape: [Int]
        let base: UnsafePointer<Float>

        var count: Int { shape.reduce(1, *) }
    }

    /// What a file of tensors of one format begins with: length and header.
    ///
    /// The header is padded so that data begins at a multiple of 8 bytes, as the reference implementation has it.
    static func start(
        of tensors: [(name: String, shape: [Int])], _ format: Format, _ metadata: [String: JSON]
    ) -> [UInt8] {
        let dtype = formats.first { $0.value == format }?.key ?? ""
        var header: [String: JSON] = [
            "__metadata__": .object(metadata.merging(["format": .string("pt")]) { $1 })
        ]
        var end = 0
        for (name, shape) in tensors {
            let bytes = shape.reduce(format.byteCount, *)
            header[name] = .object([
                "dtype": .string(dtype), "shape": .array(shape.map { .integer($0) }),
                "data_offsets": .array([.integer(end), .integer(end + bytes)]),
            ])
            end += bytes
        }
        var text = Array(JSON.object(header).compact().utf8)
        text += [UInt8](repeating: UInt8(ascii: " "), count: (8 - text.count % 8) % 8)
        var start = ByteWriter()
        start.append(text.count)
        start.append(raw: text)
        return start.bytes
    }

    /// Writes tensors to a new file, in the order they are given, and waits until they are on the disk.
    ///
    /// - Throws: `.file`, with what the system says.
    static func write(_ tensors: [Values], to path: String) throws(LockstepError) {
        let start = start(of: tensors.map { ($0.name, $0.shape) }, .fp32, [:])
        let file = try SystemFile(path, SystemFile.new)
        var problem = start.withUnsafeBytes { file.write($0, at: 0) }
        var position = start.count
        for tensor in tensors where problem == nil {
            let bytes = UnsafeRawBufferPointer(start: tensor.base, count: 4 * tensor.count)
            problem = file.write(bytes, at: position)
            position += bytes.count
        }
        try file.finish(problem)
    }
}
