import CLockstepKernels

/// The instruction sets the kernels are built for; the choice never changes a bit of a result.
public enum InstructionSet: Int32, CaseIterable, Sendable {
    /// What every processor of the architecture has.
    case baseline = 1
    /// AVX2 with FMA and F16C.
    case avx2 = 2
    /// AVX-512 F, BW, DQ and VL.
    case avx512 = 3
    /// NEON on aarch64.
    case neon = 4

    /// Whether this machine can run it.
    public var isAvailable: Bool { lsk_kernels_for(rawValue) != nil }

    /// The best one this machine has.
    public static var best: InstructionSet { InstructionSet(rawValue: lsk_best_instruction_set())! }
}

/// How a call runs: choices that change its speed and never its result.
public struct Execution: Sendable {
    /// Threads to use; 0 means one for each processor this process may use.
    public var threads: Int
    /// The instruction set; `nil` means the best this machine has.
    public var instructionSet: InstructionSet?

    /// Creates an execution; the default is all processors and the best instruction set.
    public init(threads: Int = 0, instructionSet: InstructionSet? = nil) {
        self.threads = threads
        self.instructionSet = instructionSet
    }

    /// The kernels to run, or an error if this machine has no such instruction set.
    func kernels() throws(LockstepError) -> UnsafePointer<lsk_kernels> {
        let set = instructionSet ?? .best
        guard let table = lsk_kernels_for(set.rawValue) else {
            throw LockstepError(
                .unsupported, "instruction_set: this machine does not have \(set); use the default")
        }
        return table
    }

    /// The number of threads to use, at least 1, or an error if negative.
    func threadCount() throws(LockstepError) -> Int {
        guard threads >= 0 else {
            throw LockstepError(
                .invalidArgument, "threads is \(threads); give 0 (all processors) or a positive count")
        }
        return threads == 0 ? availableProcessors() : Swift.min(threads, 256)
    }
}
