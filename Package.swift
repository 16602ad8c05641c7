// swift-tools-version: 6.0
import PackageDescription

let package = Package(
    name: "lockstep",
    products: [
        // Swift programs use the core directly.
        .library(name: "Lockstep", targets: ["Lockstep"]),
        // The C library: what liblockstep.so is linked from. See bindings/c/build-library.sh.
        .library(name: "lockstep", type: .dynamic, targets: ["LockstepABI"]),
    ],
    targets: [
        .systemLibrary(name: "CLockstep", path: "include"),
        .target(name: "CLockstepKernels"),
        .target(name: "CLockstepRuntime"),
        .target(name: "Lockstep", dependencies: ["CLockstepKernels"]),
        .target(
            name: "LockstepABI",
            dependencies: ["CLockstep", "CLockstepKernels", "CLockstepRuntime", "Lockstep"]),
        .testTarget(
            name: "LockstepTests", dependencies: ["Lockstep", "CLockstepKernels"]),
        .testTarget(
            name: "LockstepABITests", dependencies: ["CLockstep", "LockstepABI"]),
    ],
    swiftLanguageModes: [.v6],
    cLanguageStandard: .c11
)
