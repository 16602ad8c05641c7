#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#elseif canImport(Darwin)
    import Darwin
#endif

extension Model {
    /// Writes what every operation of every layer gives for some sequences to a new safetensors file.
    ///
    /// Tensors are `[tokens x width]`, in the recipe's activations: "embedding", "layer.3.attention output" and so on by
    /// the operations' names, "final norm"; "logits" as the recipe rounds them. "tokens" and, where they were given,
    /// "offsets" are int64. The operations inside of experts are left out.
    ///
    /// - Throws: as `score`; `.file` for a file that exists or cannot be written: none is left behind then.
    public func dump(
        tokens: TokenView, offsets: TokenView? = nil, to path: String, execution: Execution = .init()
    ) throws(LockstepError) {
        try withLockstepFloatMode { () throws(LockstepError) in
            let layout = try SequenceLayout(rows: 1, columns: tokens.count, offsets: offsets, of: "tokens")
            try check(tokens, layout)
            guard tokens.count > 0 else {
                throw LockstepError(.invalidArgument, "tokens: is empty; give at least one sequence")
            }
            let file = try SystemFile(path, O_WRONLY | O_CREAT | O_EXCL)
            do throws(LockstepError) {
                let writer = try TensorWriter(file, try dumpedTensors(tokens, offsets, execution))
                try dump(tokens, offsets, layout, execution, writer)
            } catch {
                unlink(path)
                throw error
            }
        }
    }

    /// What a dump holds: the operations are those that one token passes.
    private func dumpedTensors(
        _ tokens: TokenView, _ offsets: TokenView?, _ execution: Execution
    ) throws(LockstepError) -> [TensorWriter.Tensor] {
        var found = [TensorWriter.Tensor(name: "tokens", dtype: "I64", shape: [tokens.count], byteCount: 8)]
        if let offsets {
            found.append(.init(name: "offsets", dtype: "I64", shape: [offsets.count], byteCount: 8))
        }
        func add(_ name: String, _ format: Format, _ width: Int) {
            let dtype =
                switch format {
                case .fp16: "F16"
                case .bf16: "BF16"
                default: "F32"
                }
            found.append(
                .init(name: name, dtype: dtype, shape: [tokens.count, width], byteCount: format.byteCount))
        }
        let one = TokenView(tokens.base, byteCount: tokens.byteCount, count: 1)
        try observe(tokens: one, offsets: nil, execution: execution) { [self] layer, operation, _, count in
            if OperationRecorder.isWhole(operation, layer: layer, of: self) {
                add(name(operation, layer), recipe.activations, count)
            }
        }
        add("logits", recipe.logits, configuration.vocab)
        return found
    }

    private func name(_ operation: StaticString, _ layer: Int) -> String {
        layers.indices.contains(layer) ? "layer.\(layer).\(operation)" : "\(operation)"
    }

    private func dump(
        _ tokens: TokenView, _ offsets: TokenView?, _ layout: SequenceLayout, _ execution: Execution,
        _ writer: TensorWriter
    ) throws(LockstepError) {
        for (name, view) in [("tokens", tokens), ("offsets", offsets)] {
            guard let view else { continue }
            let values = (0..<view.count).map { Int64(view[$0]) }
            values.withUnsafeBytes { writer.write(name, row: 0, $0) }
        }
        let pass = try TeacherForcedPass(self, tokens, layout, execution)
        let rows = try pass.makeRows()
        let size = recipe.activations.byteCount
        var first = 0
        pass.forward.observe = { [self] layer, operation, values, count in
            guard OperationRecorder.isWhole(operation, layer: layer, of: self) else { return }
            writer.write(
                name(operation, layer), row: first,
                UnsafeRawBufferPointer(start: values, count: count * size))
        }
        pass.embed(into: rows.base)
        writer.write("embedding", row: 0, UnsafeRawBufferPointer(start: rows.base, count: rows.count))
        for index in layers.indices {
            for chunk in pass.chunks {
                first = chunk.first
                try pass.layer(index, chunk, rows.base)
            }
            if let failure = writer.failure { throw failure }
        }
        for chunk in pass.chunks {
            first = chunk.first
            try pass.finalNorm(chunk, rows.base)
        }
        try dumpLogits(pass, rows.base, tokens.count, writer)
        if let failure = writer.failure { throw failure }
    }

    private func dumpLogits(
        _ pass: TeacherForcedPass, _ rows: UnsafeRawPointer, _ count: Int, _ writer: TensorWriter
    ) throws(LockstepError) {
        let part = min(64, count)
        let logits = try Scratch<Float>(count: part * configuration.vocab)
        let rounded = try Scratch<UInt8>(count: logits.count * recipe.logits.byteCount)
        for first in stride(from: 0, to: count, by: part) {
            let values = min(part, count - first) * configuration.vocab
            pass.forward.logits(rows + first * pass.rowBytes, min(part, count - first), into: logits.base)
            try convert(
                TensorView(logits.base, .fp32, shape: [values]),
                into: MutableTensorView(rounded.base, recipe.logits, shape: [values]),
                execution: Execution(threads: 1))
            writer.write(
                "logits", row: first,
                UnsafeRawBufferPointer(start: rounded.base, count: values * recipe.logits.byteCount))
        }
    }
}

/// Writes a safetensors file whose tensors come in parts, in any order.
final class TensorWriter {
    /// A tensor to come.
    struct Tensor {
        let name: String
        let dtype: String
        let shape: [Int]
        let byteCount: Int
    }

    /// The first thing that went wrong.
    private(set) var failure: LockstepError?
    private let file: SystemFile
    /// By name: where it begins, and the bytes of a row.
    private var places: [String: (first: Int, rowBytes: Int)] = [:]

    /// Writes the header; the names hold nothing that JSON would have to escape.
    init(_ file: SystemFile, _ tensors: [Tensor]) throws(LockstepError) {
        self.file = file
        var text = "{\"__metadata__\":{\"format\":\"lockstep\"}"
        var at = 0
        for tensor in tensors {
            let bytes = tensor.shape.reduce(tensor.byteCount, *)
            let shape = tensor.shape.map { "\($0)" }.joined(separator: ",")
            text +=
                ",\"\(tensor.name)\":{\"dtype\":\"\(tensor.dtype)\",\"shape\":[\(shape)],"
                + "\"data_offsets\":[\(at),\(at + bytes)]}"
            places[tensor.name] = (at, bytes / tensor.shape[0])
            at += bytes
        }
        text += "}"
        while text.utf8.count % 8 != 0 { text += " " }
        let start = 8 + text.utf8.count
        places = places.mapValues { (start + $0.first, $0.rowBytes) }
        var header = withUnsafeBytes(of: UInt64(text.utf8.count).littleEndian) { Array($0) }
        header += Array(text.utf8)
        header.withUnsafeBytes { put($0, at: 0) }
        if let failure { throw failure }
    }

    /// Writes rows of a tensor, from `row` on.
    func write(_ name: String, row: Int, _ bytes: UnsafeRawBufferPointer) {
        guard let place = places[name] else {
            failure = failure ?? LockstepError(.internalError, "tensor '\(name)' was not announced")
            return
        }
        put(bytes, at: place.first + row * place.rowBytes)
    }

    private func put(_ bytes: UnsafeRawBufferPointer, at position: Int) {
        guard failure == nil, let why = file.write(bytes, at: position) else { return }
        failure = LockstepError(.file, "\(file.name): cannot be written: \(why)")
    }
}
