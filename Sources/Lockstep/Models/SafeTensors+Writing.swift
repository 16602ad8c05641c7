extension SafeTensors {
    /// A float32 tensor to be written.
    struct Values {
        let name: String
        let shape: [Int]
        let base: UnsafePointer<Float>

        var count: Int { shape.reduce(1, *) }
    }

    /// Writes tensors to a new file, in the order they are given, and waits until they are on the disk.
    ///
    /// The header is padded so that data begins at a multiple of 8 bytes, as the reference implementation has it.
    ///
    /// - Throws: `.file`, with what the system says.
    static func write(_ tensors: [Values], to path: String) throws(LockstepError) {
        var header: [String: JSON] = ["__metadata__": .object(["format": .string("pt")])]
        var end = 0
        for tensor in tensors {
            header[tensor.name] = .object([
                "dtype": .string("F32"), "shape": .array(tensor.shape.map { .integer($0) }),
                "data_offsets": .array([.integer(end), .integer(end + 4 * tensor.count)]),
            ])
            end += 4 * tensor.count
        }
        var text = Array(JSON.object(header).compact().utf8)
        text += [UInt8](repeating: UInt8(ascii: " "), count: (8 - text.count % 8) % 8)
        var start = ByteWriter()
        start.append(text.count)
        start.append(raw: text)
        let file = try SystemFile(path, SystemFile.new)
        var problem = start.bytes.withUnsafeBytes { file.write($0, at: 0) }
        var position = start.bytes.count
        for tensor in tensors where problem == nil {
            let bytes = UnsafeRawBufferPointer(start: tensor.base, count: 4 * tensor.count)
            problem = file.write(bytes, at: position)
            position += bytes.count
        }
        try file.finish(problem)
    }
}
