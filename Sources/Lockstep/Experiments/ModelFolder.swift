/// What is trained as a folder that others load: a Hugging Face model, or a PEFT adapter.
enum ModelFolder {
    private static func fileName(_ model: StartingModel) -> String {
        model.trainsAdapter ? "adapter_model.safetensors" : "model.safetensors"
    }

    /// Writes configuration and float32 masters into a folder, as new files.
    static func write(to folder: String, _ trainer: Trainer, _ model: StartingModel) throws(LockstepError) {
        let json = model.trainsAdapter ? try trainer.adapterJSON(model) : try model.configurationJSON()
        let configuration = "\(folder)/\(model.trainsAdapter ? "adapter_config.json" : "config.json")"
        try SystemFile.write(Array(json.text().utf8), to: configuration)
        do throws(LockstepError) {
            try SafeTensors.write(
                trainer.parameters.tensors.enumerated().map { index, tensor in
                    SafeTensors.Values(
                        name: tensor.name, shape: tensor.shape, base: trainer.parameters.values(of: index))
                }, to: "\(folder)/\(fileName(model))")
        } catch {
            SystemFile.remove(configuration)  // so that the call can be made again
            throw error
        }
    }

    /// Reads masters back.
    static func read(_ folder: String, into trainer: Trainer, _ model: StartingModel) throws(LockstepError) {
        let file = try SafeTensors(path: "\(folder)/\(fileName(model))")
        try trainer.withMasters { (masters) throws(LockstepError) in
            try file.readFloats(trainer.parameters, into: masters) { $0 }
        }
    }
}

extension SafeTensors {
    /// Reads a float32 value for each parameter, under the names that `name` gives.
    func readFloats(
        _ parameters: Parameters, into values: UnsafeMutableBufferPointer<Float>, _ name: (String) -> String
    ) throws(LockstepError) {
        for tensor in parameters.tensors {
            let key = name(tensor.name)
            guard let found = tensors[key] else {
                throw LockstepError(.badData, "\(self.name): tensor '\(key)' is missing")
            }
            try read(
                found, key, shape: tensor.shape, as: .fp32,
                into: values.baseAddress! + tensor.range.lowerBound)
        }
    }
}

extension StartingModel {
    /// The model's config.json: of a folder its own, with the format of what is written.
    func configurationJSON() throws(LockstepError) -> JSON {
        switch source {
        case .new(let configuration, _, _): return configuration.json
        case .folder(let path):
            guard case .object(var members) = try JSON(contentsOf: "\(path)/config.json") else {
                throw LockstepError(.badData, "\(path)/config.json: is not an object")
            }
            members["torch_dtype"] = nil
            members["dtype"] = .string("float32")
            return .object(members)
        }
    }
}

extension Trainer {
    /// PEFT's adapter_config.json.
    func adapterJSON(_ model: StartingModel) throws(LockstepError) -> JSON {
        if let adapter = model.adapter { return try JSON(contentsOf: "\(adapter)/adapter_config.json") }
        guard let lowRank = model.lowRank, case .folder(let base) = model.source else {
            throw LockstepError(.internalError, "model: no adapter is trained")
        }
        return .object([
            "peft_type": .string("LORA"), "task_type": .string("CAUSAL_LM"), "r": .integer(lowRank.rank),
            "lora_alpha": .number(lowRank.alpha), "lora_dropout": .number(0), "bias": .string("none"),
            "target_modules": .array(lowRank.targets.sorted().map { .string($0) }),
            "base_model_name_or_path": .string(base), "init_lora_weights": .string("gaussian"),
            "inference_mode": .bool(true),
        ])
    }
}
