import CLockstep
import Lockstep

// Section 10 of the header: models and engines.

extension lockstep_recipe: GrowableOptions {
    static var firstSize: Int { 24 }  // with logits; the order came after it
}

extension lockstep_model_info: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_model_info>.size }
}

extension lockstep_engine_options: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_engine_options>.size }
}

/// What a lockstep_model points to.
final class ModelBox {
    let model: Model
    /// The family's name.
    let family: UnsafePointer<CChar>?
    /// Lent as long as the model lives.
    let texts = LentTexts()

    init(_ model: Model) {
        self.model = model
        family = texts.lend(model.configuration.family.rawValue)
    }
}

/// What a lockstep_engine points to.
private final class EngineBox {
    let engine: RolloutEngine
    var finished: [Rollout] = []
    /// The one that was taken last.
    var taken: LentRollout?
    let keepsAlive: ModelBox

    init(_ engine: RolloutEngine, _ model: ModelBox) {
        self.engine = engine
        keepsAlive = model
    }
}

/// A rollout whose arrays are lent: they stay where they are.
private final class LentRollout {
    private let rollout: Rollout
    private let tokens: UnsafeMutableBufferPointer<Int32>
    /// Raw log-probs, processed ones, kept mass.
    private let values: UnsafeMutableBufferPointer<Double>

    init(_ rollout: Rollout) {
        self.rollout = rollout
        tokens = .allocate(capacity: rollout.tokens.count)
        values = .allocate(capacity: 3 * rollout.tokens.count)
        _ = tokens.initialize(from: rollout.tokens)
        _ = values.initialize(from: rollout.rawLogProbs + rollout.processedLogProbs + rollout.keptMass)
    }

    deinit {
        tokens.deallocate()
        values.deallocate()
    }

    /// As the caller sees it.
    var record: lockstep_rollout {
        let values = values.baseAddress.map { UnsafePointer($0) }
        return lockstep_rollout(
            id: rollout.id, token_count: Int64(tokens.count), tokens: UnsafePointer(tokens.baseAddress),
            raw_log_probs: values, processed_log_probs: values.map { $0 + tokens.count },
            kept_mass: values.map { $0 + 2 * tokens.count }, finish: rollout.finish.rawValue, reserved: 0)
    }
}

@_cdecl("lockstep_recipe_named") @implementation
public func lockstep_recipe_named(
    _ recipe: UnsafeMutablePointer<lockstep_recipe>!, _ name: UnsafePointer<CChar>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let size = try checkGrowable(recipe, "recipe")
        let core = try Recipe(named: text(name, "name"))
        guard core.order == .lockstep || size >= MemoryLayout<lockstep_recipe>.size else {
            throw invalid(
                "recipe: struct_size is \(size), which has no order; set it to sizeof the struct "
                    + "(\(MemoryLayout<lockstep_recipe>.size))")
        }
        try write(
            lockstep_recipe(
                struct_size: recipe.pointee.struct_size, parameters: code(core.parameters),
                activations: code(core.activations), cache: code(core.cache),
                probabilities: code(core.probabilities), logits: code(core.logits),
                order: core.order.rawValue, gradients: 0),
            to: recipe, "recipe")
    }
}

@_cdecl("lockstep_recipe_text") @implementation
public func lockstep_recipe_text(
    _ text: UnsafeMutablePointer<CChar>!, _ capacity: Int, _ length: UnsafeMutablePointer<Int>!,
    _ recipe: UnsafePointer<lockstep_recipe>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let bytes = try coreRecipe(recipe).description.utf8CString
        if UInt(bitPattern: capacity) >= UInt(bytes.count) {
            try checkArray(text, "text", count: bytes.count)
            bytes.withUnsafeBufferPointer { text.update(from: $0.baseAddress!, count: bytes.count) }
        }
        length?.pointee = bytes.count - 1
    }
}

@_cdecl("lockstep_recipe_matches") @implementation
public func lockstep_recipe_matches(
    _ matches: UnsafeMutablePointer<Int32>!, _ trainer: UnsafePointer<lockstep_recipe>!,
    _ rollout: UnsafePointer<lockstep_recipe>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try checkArray(matches, "matches", count: 1)
        let (one, other) = (try coreRecipe(trainer, "trainer"), try coreRecipe(rollout, "rollout"))
        matches.pointee = one.matches(other) ? 1 : 0
    }
}

@_cdecl("lockstep_model_load") @implementation
public func lockstep_model_load(
    _ model: UnsafeMutablePointer<OpaquePointer?>!, _ path: UnsafePointer<CChar>!,
    _ adapter: UnsafePointer<CChar>!, _ recipe: UnsafePointer<lockstep_recipe>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        guard let model else { throw invalid("model is NULL; give the address of a lockstep_model pointer") }
        let core = try coreRecipe(recipe)
        let folder = try text(path, "path")
        let adapterFolder: String? = if adapter == nil { nil } else { try text(adapter, "adapter") }
        model.pointee = handOver(try Model(path: folder, adapter: adapterFolder, recipe: core))
    }
}

@_cdecl("lockstep_observe_loading") @implementation
public func lockstep_observe_loading(
    _ observer: lockstep_loading_observer!, _ context: UnsafeMutableRawPointer!
) {
    guard let observer else {
        LoadingProgress.observer = nil
        return
    }
    LoadingProgress.observer = { observer(context, Int64($0), Int64($1)) }
}

@_cdecl("lockstep_model_load_bytes") @implementation
public func lockstep_model_load_bytes(
    _ model: UnsafeMutablePointer<OpaquePointer?>!, _ bytes: UnsafeRawPointer!, _ size: Int,
    _ recipe: UnsafePointer<lockstep_recipe>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        guard let model else { throw invalid("model is NULL; give the address of a lockstep_model pointer") }
        guard let bytes else { throw invalid("bytes is NULL; give what lockstep_run_policy wrote") }
        guard size >= 0 else { throw invalid("size is \(UInt(bitPattern: size)); give the number of bytes") }
        model.pointee = handOver(
            try Model(bytes: UnsafeRawBufferPointer(start: bytes, count: size), recipe: coreRecipe(recipe)))
    }
}

@_cdecl("lockstep_model_get_info") @implementation
public func lockstep_model_get_info(
    _ info: UnsafeMutablePointer<lockstep_model_info>!, _ model: OpaquePointer!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try checkGrowable(info, "info")
        let box = try modelBox(model)
        let configuration = box.model.configuration
        try write(
            lockstep_model_info(
                struct_size: info.pointee.struct_size, layers: Int32(configuration.layers),
                vocab: Int64(configuration.vocab), hidden_size: Int64(configuration.hiddenSize),
                positions: Int64(configuration.positions), parameters: Int64(box.model.parameterCount),
                family: box.family),
            to: info, "info")
    }
}

@_cdecl("lockstep_model_destroy") @implementation
public func lockstep_model_destroy(_ model: OpaquePointer!) {
    release(model)
}

@_cdecl("lockstep_engine_create") @implementation
public func lockstep_engine_create(
    _ engine: UnsafeMutablePointer<OpaquePointer?>!, _ model: OpaquePointer!,
    _ options: UnsafePointer<lockstep_engine_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        guard let engine else {
            throw invalid("engine is NULL; give the address of a lockstep_engine pointer")
        }
        let box = try modelBox(model)
        var defaults = lockstep_engine_options()
        (defaults.temperature, defaults.top_p, defaults.max_tokens, defaults.capacity) = (1, 1, 256, 32)
        let given = try read(options, defaults: defaults)
        try checkArray(given.stop_ids, "options.stop_ids", count: given.stop_id_count)
        let settings = SamplingSettings(
            temperature: given.temperature, topK: Int(given.top_k), topP: given.top_p, minP: given.min_p,
            seed: given.seed,
            stopIDs: Set(UnsafeBufferPointer(start: given.stop_ids, count: given.stop_id_count)),
            maxTokens: Int(given.max_tokens))
        let core = try RolloutEngine(
            box.model, settings: settings, capacity: Int(given.capacity),
            execution: execution(threads: given.threads, given.instruction_set))
        engine.pointee = retained(EngineBox(core, box))
    }
}

@_cdecl("lockstep_engine_add") @implementation
public func lockstep_engine_add(
    _ engine: OpaquePointer!, _ prompt: UnsafePointer<lockstep_tensor>!, _ ids: UnsafePointer<UInt64>!,
    _ count: Int
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let box = try engineBox(engine)
        let view = try CheckedTensor(prompt, "prompt").tokens("[tokens]")
        guard (0...1 << 24).contains(count) else {
            throw invalid("count is \(UInt(bitPattern: count)); give 16,777,216 at most")
        }
        try checkArray(ids, "ids", count: count)
        try askForMemory(count, bytesEach: MemoryLayout<UInt64>.stride)
        box.taken = nil
        try box.engine.add(prompt: view, ids: Array(UnsafeBufferPointer(start: ids, count: count)))
    }
}

@_cdecl("lockstep_engine_step") @implementation
public func lockstep_engine_step(
    _ engine: OpaquePointer!, _ running: UnsafeMutablePointer<Int>!, _ finished: UnsafeMutablePointer<Int>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let box = try engineBox(engine)
        box.taken = nil
        box.finished += try box.engine.step()
        running?.pointee = box.engine.count
        finished?.pointee = box.finished.count
    }
}

@_cdecl("lockstep_engine_take") @implementation
public func lockstep_engine_take(
    _ rollout: UnsafeMutablePointer<lockstep_rollout>!, _ engine: OpaquePointer!, _ unfinished: Int32
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try checkArray(rollout, "rollout", count: 1)
        let box = try engineBox(engine)
        if box.finished.isEmpty, unfinished != 0 { box.finished = box.engine.removeAll() }
        box.taken = box.finished.isEmpty ? nil : LentRollout(box.finished.removeFirst())
        var none = lockstep_rollout()
        none.token_count = -1
        rollout.pointee = box.taken?.record ?? none
    }
}

@_cdecl("lockstep_engine_destroy") @implementation
public func lockstep_engine_destroy(_ engine: OpaquePointer!) {
    release(engine)
}

/// A lockstep_model of a model.
func handOver(_ model: Model) -> OpaquePointer {
    retained(ModelBox(model))
}

func modelBox(
    _ model: OpaquePointer?, _ name: StaticString = "model"
) throws(LockstepError) -> ModelBox {
    try held(model, name, from: "lockstep_model_load")
}

private func engineBox(_ engine: OpaquePointer?) throws(LockstepError) -> EngineBox {
    try held(engine, "engine", from: "lockstep_engine_create")
}

func coreRecipe(
    _ recipe: UnsafePointer<lockstep_recipe>?, _ name: StaticString = "recipe"
) throws(LockstepError) -> Recipe {
    guard recipe != nil else { return Recipe(.fp32) }
    let given = try read(recipe, name, defaults: lockstep_recipe())
    var core = Recipe(.fp32)
    core.parameters = try format(given.parameters, name, "parameters")
    core.activations = try format(given.activations, name, "activations")
    core.cache = try format(given.cache, name, "cache")
    core.probabilities = try format(given.probabilities, name, "probabilities")
    core.logits = try format(given.logits, name, "logits")
    core.gradients = given.gradients == 0 ? core.activations : try format(given.gradients, name, "gradients")
    guard let order = Order(rawValue: given.order) else {
        throw invalid("\(name): order is \(given.order); give a LOCKSTEP_ORDER_ value")
    }
    core.order = order
    return core
}

private func format(
    _ code: Int32, _ recipe: StaticString, _ name: StaticString
) throws(LockstepError) -> Format {
    switch Int(code) {
    case LOCKSTEP_FLOAT32: return .fp32
    case LOCKSTEP_FLOAT16: return .fp16
    case LOCKSTEP_BFLOAT16: return .bf16
    case LOCKSTEP_FLOAT8_E4M3FN: return .e4m3fn
    case LOCKSTEP_FLOAT8_E5M2: return .e5m2
    default:
        if let format = emulatedFormat(code) { return format }
        throw invalid(
            "\(recipe): \(name) is \(code); give LOCKSTEP_FLOAT32, LOCKSTEP_FLOAT16, LOCKSTEP_BFLOAT16, "
                + "LOCKSTEP_E8M + N or LOCKSTEP_E5M + N; for parameters and cache also LOCKSTEP_FLOAT8_E4M3FN"
        )
    }
}

private func code(_ format: Format) -> Int32 {
    switch format {
    case .fp16: Int32(LOCKSTEP_FLOAT16)
    case .bf16: Int32(LOCKSTEP_BFLOAT16)
    case .e4m3fn: Int32(LOCKSTEP_FLOAT8_E4M3FN)
    case .e5m2: Int32(LOCKSTEP_FLOAT8_E5M2)
    default: format.isEmulated ? emulatedCode(format) : Int32(LOCKSTEP_FLOAT32)
    }
}
