/// A LoRA adapter in PEFT's layout: for some weights W [m x n], matrices A [r x n] and B [m x r] that stand for
/// `W + alpha / r B A`.
///
/// *Source*: Hu et al., LoRA (2021); PEFT's adapter_config.json and adapter_model.safetensors.
final class Adapter {
    private let path: String
    private let file: SafeTensors
    /// alpha / r, or alpha / sqrt r.
    let scale: Double
    let rank: Int
    private var unread: Set<String>

    /// Opens an adapter's folder.
    init(path: String) throws(LockstepError) {
        self.path = path
        let config = "\(path)/adapter_config.json"
        let json = try JSON(contentsOf: config)
        guard json["peft_type"]?.string == "LORA" else {
            throw LockstepError(
                .unsupported, "\(config): peft_type is '\(json["peft_type"]?.string ?? "")'; known is LORA")
        }
        guard let rank = json["r"]?.integer, rank >= 1, rank <= 1 << 16,
            let alpha = json["lora_alpha"]?.double
        else { throw LockstepError(.badData, "\(config): r or lora_alpha is missing or no count") }
        for (key, unchanged) in [
            ("use_dora", JSON.bool(false)), ("bias", .string("none")), ("rank_pattern", .object([:])),
            ("alpha_pattern", .object([:])), ("fan_in_fan_out", .bool(false)), ("use_qalora", .bool(false)),
            ("layer_replication", .null), ("alora_invocation_tokens", .null),
        ] {
            if let value = json[key], value != unchanged {
                throw LockstepError(.unsupported, "\(config): \(key) is set; known is only its default")
            }
        }
        // Some ways to begin change the base's weights, which are then not those of the checkpoint.
        let beginning = json["init_lora_weights"]?.string ?? "gaussian"
        guard ["gaussian", "orthogonal", "eva"].contains(beginning) else {
            throw LockstepError(
                .unsupported,
                "\(config): init_lora_weights is '\(beginning)', which changes the model's own weights; convert "
                    + "the adapter to a plain LoRA first, as PEFT explains")
        }
        guard let isScaledByRoot = json["use_rslora"] == nil ? false : json["use_rslora"]?.bool else {
            throw LockstepError(.badData, "\(config): use_rslora is not true or false")
        }
        self.rank = rank
        scale = alpha / (isScaledByRoot ? Double(rank).squareRoot() : Double(rank))
        file = try SafeTensors(path: "\(path)/adapter_model.safetensors")
        unread = Set(file.tensors.keys)
    }

    /// The weight's A and B, if the adapter has any.
    func factors(
        of name: String, rows: Int, columns: Int
    ) throws(LockstepError) -> (a: [Float], b: [Float])? {
        let names = Adapter.names(of: name)
        guard let a = try matrix(names.a, rows: rank, columns: columns) else {
            if file.tensors[names.b] == nil { return nil }
            throw LockstepError(.badData, "\(path): tensor '\(names.a)' is missing, but lora_B is there")
        }
        guard let b = try matrix(names.b, rows: rows, columns: rank) else {
            throw LockstepError(.badData, "\(path): tensor '\(names.b)' is missing, but lora_A is there")
        }
        return (a, b)
    }

    /// What PEFT calls A and B of a weight.
    static func names(of weight: String) -> (a: String, b: String) {
        let stem = "base_model.model.\(weight.dropLast(".weight".count))"
        return ("\(stem).lora_A.weight", "\(stem).lora_B.weight")
    }

    /// Adds what the adapter has for a weight, to its values in fp32: one rounding.
    func add(to name: String, rows: Int, columns: Int, _ values: UnsafeMutablePointer<Float>)
        throws(LockstepError)
    {
        guard let (a, b) = try factors(of: name, rows: rows, columns: columns) else { return }
        try Adapter.merge(a, b, rank: rank, scale: scale, rows: rows, columns: columns, into: values)
    }

    /// values += scale B A, in float64, rounded once to float32.
    static func merge(
        _ a: UnsafePointer<Float>, _ b: UnsafePointer<Float>, rank: Int, scale: Double, rows: Int,
        columns: Int,
        into values: UnsafeMutablePointer<Float>
    ) throws(LockstepError) {
        let sums = try Scratch<Double>(count: columns)
        for row in 0..<rows {
            sums.base.update(repeating: 0, count: columns)
            for k in 0..<rank {
                let factor = Double(b[row * rank + k])
                for column in 0..<columns { sums.base[column] += factor * Double(a[k * columns + column]) }
            }
            let target = values + row * columns
            for column in 0..<columns {
                target[column] = Float(Double(target[column]) + scale * sums.base[column])
            }
        }
    }

    private func matrix(_ name: String, rows: Int, columns: Int) throws(LockstepError) -> [Float]? {
        guard let tensor = file.tensors[name] else { return nil }
        unread.remove(name)
        return try file.floats(tensor, name, shape: [rows, columns])
    }

    /// Throws if a tensor was left that belongs to no weight.
    func checkAllRead() throws(LockstepError) {
        guard let first = unread.min() else { return }
        throw LockstepError(
            .badData, "\(path): tensor '\(first)' belongs to no weight of the model that can be adapted")
    }
}
