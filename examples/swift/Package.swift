// swift-tools-version: 6.0
import PackageDescription

// Your own package names Lockstep by its address and version; this one stands in the same repository.
let package = Package(
    name: "examples",
    dependencies: [.package(name: "lockstep", path: "../..")],
    targets: [
        "first", "batch_invariance", "mismatch", "linear_log_probs", "log", "accumulator", "monitor",
        "corrections", "advantages", "objectives", "presets", "models",
        "training", "scaler", "tasks", "run", "rollouts",
    ]
    .map {
        .executableTarget(name: $0, dependencies: [.product(name: "Lockstep", package: "lockstep")])
    }
)
