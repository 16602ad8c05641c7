/// A Hugging Face folder: config.json, and weights in one safetensors file or several.
///
/// Weights are read into the layout the kernels want, a tensor at a time; the files are not needed afterwards.
final class Checkpoint {
    /// The folder.
    let path: String
    /// What config.json says.
    let configuration: ModelConfiguration
    private var tensors: [String: (file: SafeTensors, tensor: SafeTensors.Tensor)] = [:]
    private var unread: Set<String> = []
    /// Values read so far, and the thread's observer of that.
    private var done = 0
    private let observer = LoadingProgress.observer

    /// Opens a folder and reads config and headers.
    ///
    /// - Throws: `.file`, `.badData` or `.unsupported`, naming the file.
    init(path: String) throws(LockstepError) {
        self.path = path
        configuration = try ModelConfiguration(path: path)
        let index = "\(path)/model.safetensors.index.json"
        let names: Set<String> =
            SystemFile.exists(index) ? try Checkpoint.shards(index) : ["model.safetensors"]
        for name in names.sorted() { try add(try SafeTensors(path: "\(path)/\(name)")) }
        unread = Set(tensors.keys)
    }

    /// The same in memory: a safetensors file whose metadata has config.json as `config`.
    init(bytes: UnsafeRawBufferPointer) throws(LockstepError) {
        path = "bytes"
        let file = try SafeTensors(bytes: bytes, path)
        guard let text = file.metadata["config"] else {
            throw LockstepError(.badData, "\(path): are no model's: their metadata has no config")
        }
        let json = try Array(text.utf8).withUnsafeBufferPointer { (text) throws(LockstepError) in
            try JSON(parsing: UnsafeRawBufferPointer(text), "bytes: config")
        }
        configuration = try ModelConfiguration(json, "\(path): config")
        try add(file)
        unread = Set(tensors.keys)
    }

    private func add(_ file: SafeTensors) throws(LockstepError) {
        for (key, tensor) in file.tensors {
            if let other = tensors[key] {
                throw LockstepError(
                    .badData, "\(file.name): tensor '\(key)' is in \(other.file.name) too")
            }
            tensors[key] = (file, tensor)
        }
    }

    /// The files of an index; they stand in its folder.
    private static func shards(_ index: String) throws(LockstepError) -> Set<String> {
        guard case .object(let map)? = try JSON(contentsOf: index)["weight_map"] else {
            throw LockstepError(.badData, "\(index): weight_map is missing")
        }
        var names: Set<String> = []
        for (tensor, file) in map {
            guard let name = file.string, !name.isEmpty,
                !name.utf8.contains(where: { $0 == 0 || $0 == 0x2f }),
                name != ".."
            else {
                throw LockstepError(
                    .badData, "\(index): tensor '\(tensor)': is not said to be in a file here")
            }
            names.insert(name)
        }
        return names
    }

    /// Number of values of all tensors but a tied head's.
    var parameterCount: Int {
        tensors.reduce(0) { sum, each in
            let isCopy = configuration.isTied && each.key == "lm_head.weight"
            return sum + (isCopy ? 0 : each.value.tensor.shape.reduce(1, *))
        }
    }

    /// Reads a tensor of a known shape in one of the kernels' formats, converted if it must be.
    ///
    /// - Throws: `.badData` if it is missing, has another shape, or a value that is NaN or infinite afterwards.
    func read(
        _ name: String, shape: [Int], as format: Format, into target: UnsafeMutableRawPointer
    ) throws(LockstepError) {
        try check(name, shape: shape)
        guard let (file, tensor) = tensors[name] else { return }
        unread.remove(name)
        try file.read(tensor, name, shape: shape, as: format, into: target)
        tell(shape)
    }

    private func tell(_ shape: [Int]) {
        guard let observer else { return }
        let total = parameterCount
        done = min(done + shape.reduce(1, *), total)
        observer(done, total)
    }

    /// Throws unless a tensor is there and has a shape: before memory is asked for that it would not fill.
    func check(_ name: String, shape: [Int]) throws(LockstepError) {
        guard let (file, tensor) = tensors[name] else {
            throw LockstepError(.badData, "\(path): tensor '\(name)' is missing")
        }
        try file.check(tensor, name, shape: shape)
    }

    /// The headroom of each tensor, by name.
    func headroom() throws(LockstepError) -> [Headroom] {
        var found: [Headroom] = []
        for (key, place) in tensors.sorted(by: { $0.key < $1.key }) where place.tensor.format != nil {
            var headroom = Headroom(.weight, key)
            try place.file.readFloats(place.tensor) { headroom.add($0) }
            found.append(headroom)
            tell(place.tensor.shape)
        }
        return found
    }

    /// Throws if tensors were left that nobody read, but for those that are known to be copies.
    func checkAllRead() throws(LockstepError) {
        let left = unread.filter { name in
            !name.hasSuffix("rotary_emb.inv_freq") && !(configuration.isTied && name == "lm_head.weight")
        }.sorted()
        guard let first = left.first else { return }
        throw LockstepError(
            .badData,
            "\(path): tensor '\(first)' belongs to no part of a \(configuration.family.rawValue) model"
                + (left.count > 1 ? ", and \(left.count - 1) more" : ""))
    }
}
