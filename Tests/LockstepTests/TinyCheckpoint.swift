import Glibc

@testable import Lockstep

/// A checkpoint of the vectors in memory: to be changed, and written to a folder of its own.
struct TinyCheckpoint {
    struct Tensor {
        var dtype: String
        var shape: [Int]
        var bytes: [UInt8]
    }

    var config: [String: JSON]
    var tensors: [String: Tensor]

    init(_ name: String, file: String = "model.safetensors", config: String = "config.json") throws {
        let folder = "\(ModelTests.folder)/\(name)"
        guard case .object(let members) = try JSON(contentsOf: "\(folder)/\(config)") else { fatalError() }
        self.config = members
        tensors = try SafeTensors(path: "\(folder)/\(file)").all()
    }

    /// A tensor of fp32.
    mutating func set(_ name: String, _ shape: [Int], _ values: [Float]) {
        tensors[name] = Tensor(dtype: "F32", shape: shape, bytes: values.withUnsafeBytes(Array.init))
    }

    /// A tensor's values.
    func values(_ name: String) -> [Double] {
        guard let tensor = tensors[name] else { return [] }
        let format: Format =
            switch tensor.dtype {
            case "F64": .fp64
            case "F32": .fp32
            case "F16": .fp16
            default: .bf16
            }
        let bytes = pinned(tensor.bytes)
        let view = VectorView(bytes.baseAddress, format, count: tensor.shape.reduce(1, *))
        return (0..<view.count).map { view.double($0) }
    }

    /// Writes the folder, in some shards, and removes it when the body has ended.
    func withFolder<Result>(shards: Int = 1, _ body: (String) throws -> Result) throws -> Result {
        try withTemporaryFolder { folder in
            try write(Array(JSON.object(config).text.utf8), to: "\(folder)/config.json")
            let names = tensors.keys.sorted()
            var map: [String: JSON] = [:]
            for shard in 0..<shards {
                let file = shards == 1 ? "model.safetensors" : "model-\(shard).safetensors"
                let part = names.indices.filter { $0 % shards == shard }.map { names[$0] }
                for name in part { map[name] = .string(file) }
                try write(
                    SafeTensors.bytes(tensors.filter { part.contains($0.key) }), to: "\(folder)/\(file)")
            }
            if shards > 1 {
                let index = JSON.object(["metadata": .object([:]), "weight_map": .object(map)])
                try write(Array(index.text.utf8), to: "\(folder)/model.safetensors.index.json")
            }
            return try body(folder)
        }
    }

    /// Loads the model.
    func model(_ recipe: Recipe = Recipe(.fp32), adapter: String? = nil, shards: Int = 1) throws -> Model {
        try withFolder(shards: shards) { try Model(path: $0, adapter: adapter, recipe: recipe) }
    }
}

/// A folder that is removed, with the files in it, afterwards.
func withTemporaryFolder<Result>(_ body: (String) throws -> Result) throws -> Result {
    var template = Array("/tmp/lockstep-model-XXXXXX".utf8CString)
    guard let made = mkdtemp(&template) else { throw LockstepError(.file, "no folder") }
    let folder = String(cString: made)
    defer {
        if let list = opendir(folder) {
            while let entry = readdir(list) {
                let name = withUnsafePointer(to: &entry.pointee.d_name) {
                    $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
                }
                if name != ".", name != ".." { unlink("\(folder)/\(name)") }
            }
            closedir(list)
        }
        rmdir(folder)
    }
    return try body(folder)
}

/// Writes a new file.
func write(_ bytes: [UInt8], to path: String) throws {
    let file = try SystemFile(path, O_WRONLY | O_CREAT | O_TRUNC)
    if let failure = bytes.withUnsafeBytes({ file.write($0, at: 0) }) { throw LockstepError(.file, failure) }
}

extension SafeTensors {
    /// Every tensor, as it stands in the file.
    func all() throws -> [String: TinyCheckpoint.Tensor] {
        let file = try SystemFile(name, SystemFile.readOnly)
        return try tensors.mapValues { tensor in
            var bytes = [UInt8](repeating: 0, count: tensor.bytes.count)
            _ = try bytes.withUnsafeMutableBytes { bytes in
                try bytes.baseAddress.map {
                    try file.read(into: $0, at: tensor.bytes.lowerBound, count: tensor.bytes.count)
                }
            }
            return .init(dtype: tensor.dtype, shape: tensor.shape, bytes: bytes)
        }
    }

    /// A file of a header and data.
    static func bytes(header: [UInt8], data: [UInt8] = []) -> [UInt8] {
        withUnsafeBytes(of: UInt64(header.count).littleEndian, Array.init) + header + data
    }

    /// A file of tensors.
    static func bytes(_ tensors: [String: TinyCheckpoint.Tensor]) -> [UInt8] {
        var members: [String: JSON] = [:]
        var data: [UInt8] = []
        for (name, tensor) in tensors.sorted(by: { $0.key < $1.key }) {
            let places = [data.count, data.count + tensor.bytes.count].map { JSON.integer($0) }
            members[name] = .object([
                "dtype": .string(tensor.dtype), "shape": .array(tensor.shape.map { .integer($0) }),
                "data_offsets": .array(places),
            ])
            data += tensor.bytes
        }
        return bytes(header: Array(JSON.object(members).text.utf8), data: data)
    }
}

extension JSON {
    /// The value as JSON; texts hold nothing that had to be escaped.
    var text: String {
        switch self {
        case .null: "null"
        case .bool(let value): "\(value)"
        case .integer(let value): "\(value)"
        case .number(let value): "\(value)"
        case .string(let value): "\"\(value)\""
        case .array(let values): "[" + values.map(\.text).joined(separator: ", ") + "]"
        case .object(let members):
            "{"
                + members.sorted { $0.key < $1.key }.map { "\"\($0.key)\": \($0.value.text)" }
                .joined(separator: ", ") + "}"
        }
    }
}
