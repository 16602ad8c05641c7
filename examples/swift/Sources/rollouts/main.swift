// Rollouts from elsewhere: a run's policy as bytes, its requests, and an engine that could be on another machine. What
// it draws is given back, and the step has the bits of a run that draws by itself. usage: rollouts FOLDER
import Foundation
import Lockstep

guard CommandLine.arguments.count == 2 else { fatalError("usage: rollouts FOLDER") }

/// The engine is not the trainer's: there is a mismatch.
func start() throws -> ReinforcementRun {
    var options = ReinforcementOptions(
        model: StartingModel(.folder(CommandLine.arguments[1])), rollout: try Recipe(named: "bf16+fused"),
        algorithm: try Algorithm(preset: "paper/grpo-token-tis"))
    options.prompts = 4
    return try ReinforcementRun(options, environment: Environment(VerifiableTask("chain"), seed: 0))
}

/// The policy, as another process would have it: the bytes are all that it needs.
func policy(_ run: ReinforcementRun) throws -> (model: Model, size: Int) {
    let bytes = try run.policy()
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: bytes.count, alignment: 64)
    defer { memory.deallocate() }
    try bytes.write(to: memory.baseAddress!)
    return (
        try Model(bytes: UnsafeRawBufferPointer(memory), recipe: run.options.rollout), bytes.count
    )
}

let (run, alone) = (try start(), try start())
for step in 1...3 {
    let (model, size) = try policy(run)
    let engine = try RolloutEngine(model, settings: run.samplingSettings)
    for request in try run.requests() { try engine.add(prompt: request.prompt, ids: Array(request.ids)) }
    while !engine.isIdle { try run.give(engine.step(), step: step) }
    let (given, drawn) = (try run.step(), try alone.step())
    let isSame = zip(given.named, drawn.named).allSatisfy { $0.value.bitPattern == $1.value.bitPattern }
    print(
        String(
            format: "step %d: policy %d bytes, reward %.6f, KL %.6e, loss %.9f; drawn here: %@", step, size,
            given.rewardMean, given.k3, given.loss, isSame ? "the same bits" : "different"))
}
