import CLockstepKernels
import Testing

@testable import Lockstep

@Suite struct EnvironmentTests {
    @Test func everyTaskRunsOnce() {
        for threads in [1, 2, 5] {
            let counts = UnsafeMutableBufferPointer<Int>.allocate(capacity: 1000)
            counts.initialize(repeating: 0)
            defer { counts.deallocate() }
            nonisolated(unsafe) let shared = counts
            parallelFor(tasks: 1000, threads: threads) { task, worker in
                precondition(worker < threads)
                shared[task] += 1
            }
            #expect(counts.allSatisfy { $0 == 1 })
        }
    }

    @Test func bestInstructionSetIsAvailable() {
        #expect(InstructionSet.best.isAvailable)
        #expect(InstructionSet.baseline.isAvailable)
    }
}
