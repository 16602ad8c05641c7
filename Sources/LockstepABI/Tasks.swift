import CLockstep
import Lockstep

// Section 12 of the header: tasks.

extension lockstep_task_options: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_task_options>.size }
}

extension lockstep_task_info: GrowableOptions {
    static var firstSize: Int { MemoryLayout<lockstep_task_info>.size }
}

/// What a lockstep_task points to.
private final class TaskBox {
    let task: VerifiableTask
    init(_ task: VerifiableTask) { self.task = task }
}

@_cdecl("lockstep_task_create") @implementation
public func lockstep_task_create(
    _ task: UnsafeMutablePointer<OpaquePointer?>!, _ name: UnsafePointer<CChar>!,
    _ options: UnsafePointer<lockstep_task_options>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        guard let task else { throw invalid("task is NULL; give the address of a lockstep_task pointer") }
        let given = try read(options, defaults: lockstep_task_options())
        let core = try VerifiableTask(text(name, "name"), options: TaskOptions(size: Int(given.size)))
        task.pointee = retained(TaskBox(core))
    }
}

@_cdecl("lockstep_task_destroy") @implementation
public func lockstep_task_destroy(_ task: OpaquePointer!) {
    release(task)
}

@_cdecl("lockstep_task_get_info") @implementation
public func lockstep_task_get_info(
    _ info: UnsafeMutablePointer<lockstep_task_info>!, _ task: OpaquePointer!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try checkGrowable(info, "info")
        let core = try coreTask(task)
        try write(
            lockstep_task_info(
                struct_size: 0, vocab: Int32(core.vocabulary.count), stop_id: core.stopID ?? -1, reserved: 0,
                longest_prompt: Int64(core.longestPrompt), longest_response: Int64(core.longestResponse),
                problems: Int64(core.problemCount ?? 0)),
            to: info, "info")
    }
}

@_cdecl("lockstep_task_prompt") @implementation
public func lockstep_task_prompt(
    _ tokens: UnsafeMutablePointer<Int32>!, _ count: UnsafeMutablePointer<Int>!, _ task: OpaquePointer!,
    _ index: Int64, _ seed: UInt64
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try give(coreTask(task).prompt(Int(index), seed: seed), to: tokens, "tokens", count) { $0 }
    }
}

@_cdecl("lockstep_task_demonstration") @implementation
public func lockstep_task_demonstration(
    _ tokens: UnsafeMutablePointer<Int32>!, _ count: UnsafeMutablePointer<Int>!, _ task: OpaquePointer!,
    _ index: Int64, _ seed: UInt64, _ error_rate: Double
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try give(
            coreTask(task).demonstration(Int(index), seed: seed, errorRate: error_rate), to: tokens, "tokens",
            count
        ) { $0 }
    }
}

@_cdecl("lockstep_task_reward") @implementation
public func lockstep_task_reward(
    _ reward: UnsafeMutablePointer<Double>!, _ task: OpaquePointer!,
    _ prompt: UnsafePointer<lockstep_tensor>!,
    _ response: UnsafePointer<lockstep_tensor>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try checkArray(reward, "reward", count: 1)
        reward.pointee = try coreTask(task).reward(
            prompt: CheckedTensor(prompt, "prompt").ids(), response: CheckedTensor(response, "response").ids()
        )
    }
}

@_cdecl("lockstep_task_encode") @implementation
public func lockstep_task_encode(
    _ tokens: UnsafeMutablePointer<Int32>!, _ count: UnsafeMutablePointer<Int>!, _ task: OpaquePointer!,
    _ text: UnsafePointer<CChar>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let core = try coreTask(task)
        try give(core.vocabulary.encode(LockstepABI.text(text, "text")), to: tokens, "tokens", count) { $0 }
    }
}

@_cdecl("lockstep_task_decode") @implementation
public func lockstep_task_decode(
    _ text: UnsafeMutablePointer<CChar>!, _ size: UnsafeMutablePointer<Int>!, _ task: OpaquePointer!,
    _ tokens: UnsafePointer<lockstep_tensor>!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        let core = try coreTask(task)
        let found = try core.vocabulary.decode(CheckedTensor(tokens, "tokens").ids())
        try give(Array(found.utf8CString), to: text, "text", size, "size") { $0 }
    }
}

func coreTask(_ task: OpaquePointer?) throws(LockstepError) -> VerifiableTask {
    let box: TaskBox = try held(task, "task", from: "lockstep_task_create")
    return box.task
}

extension CheckedTensor {
    /// Token ids as int32; what does not fit becomes -1, which is no id of any vocabulary.
    fileprivate func ids() throws(LockstepError) -> [Int32] {
        let view = try tokens("[tokens]")
        return (0..<view.count).map { Int32(exactly: view.token($0)) ?? -1 }
    }
}
