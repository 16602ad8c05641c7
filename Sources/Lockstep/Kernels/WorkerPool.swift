import CLockstepKernels

#if canImport(Glibc)
    import Glibc
#elseif canImport(Darwin)
    import Darwin
#endif

/// The number of processors this process may use (its affinity mask, not the machine's count).
func availableProcessors() -> Int { Int(lsk_available_processors()) }

/// Calls `body(task, worker)` once for every task in `0 ..< tasks`, on up to `threads` threads, and returns
/// when all have run.
///
/// `worker` is in `0 ..< threads`; a worker runs one task at a time, so it can own scratch memory.
///
/// Which worker runs a task is not fixed: a task must be a pure function of its index, and the caller
/// combines results in the order of tasks. `body` must not throw or call back into this function.
func parallelFor(tasks: Int, threads: Int, _ body: (_ task: Int, _ worker: Int) -> Void) {
    if threads <= 1 || tasks <= 1 {
        for task in 0..<tasks { body(task, 0) }
        return
    }
    withoutActuallyEscaping(body) { body in
        withUnsafePointer(to: body) { body in
            WorkerPool.shared.run(Job(tasks: tasks, workers: min(threads, tasks), body))
        }
    }
}

/// One parallel loop.
private final class Job: @unchecked Sendable {
    let tasks: Int
    let workers: Int
    /// Guarded by the pool's mutex; the caller is worker 0.
    var joined = 1
    /// The caller's, gone when all tasks are done: who has no task must not touch it.
    private let body: UnsafePointer<(Int, Int) -> Void>
    /// Tasks that were taken and tasks that are done, each in a cache line of its own.
    private let counts = UnsafeMutablePointer<Int64>.allocate(capacity: 16)

    init(tasks: Int, workers: Int, _ body: UnsafePointer<(Int, Int) -> Void>) {
        self.tasks = tasks
        self.workers = workers
        self.body = body
        counts.initialize(repeating: 0, count: 16)
    }

    deinit { counts.deallocate() }

    var hasTasks: Bool { lsk_shared_load(counts) < tasks }
    var isDone: Bool { lsk_shared_load(counts + 8) == tasks }

    /// Takes tasks until none is left; says whether the last one that was done is among them.
    func work(as worker: Int) -> Bool {
        let finished = Int64(takeTasks(as: worker))
        return finished > 0 && lsk_shared_add(counts + 8, finished) + finished == tasks
    }

    /// By itself, so that nothing holds on to the caller's closure when its tasks are told to be done.
    @inline(never)
    private func takeTasks(as worker: Int) -> Int {
        var finished = 0
        while true {
            let task = Int(lsk_shared_add(counts, 1))
            if task >= tasks { return finished }
            body.pointee(task, worker)
            finished += 1
        }
    }
}

/// Threads that wait for jobs.
///
/// The caller of a job works too, and completion counts tasks, not threads, so a thread that never wakes
/// (after a fork, or out of resources) delays nothing. Who waits looks again and again for some microseconds before it
/// sleeps: the jobs of a small model are as short as it takes to wake a thread.
private final class WorkerPool: @unchecked Sendable {
    static let shared = WorkerPool()

    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let jobArrived = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    private let taskDone = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    private var jobs: [Job] = []
    private var threads = 0
    private var sleepers = 0
    /// Jobs that ever arrived, and callers that sleep until theirs is done.
    private let arrivals = UnsafeMutablePointer<Int64>.allocate(capacity: 16)
    private var callers: UnsafeMutablePointer<Int64> { arrivals + 8 }

    /// How often who waits looks before it sleeps: some 50 microseconds.
    private static let looks = 1500

    private init() {
        reset()
        // A child of fork() has none of the threads and perhaps a locked mutex: start afresh there.
        // Holding the mutex across the fork keeps the job list whole.
        pthread_atfork(
            { pthread_mutex_lock(WorkerPool.shared.mutex) },
            { pthread_mutex_unlock(WorkerPool.shared.mutex) },
            { WorkerPool.shared.reset() })
    }

    private func reset() {
        pthread_mutex_init(mutex, nil)
        pthread_cond_init(jobArrived, nil)
        pthread_cond_init(taskDone, nil)
        jobs = []
        threads = 0
        sleepers = 0
        arrivals.initialize(repeating: 0, count: 16)
    }

    func run(_ job: Job) {
        pthread_mutex_lock(mutex)
        while threads < job.workers - 1, start() { threads += 1 }
        jobs.append(job)
        _ = lsk_shared_add(arrivals, 1)
        if sleepers > 0 { pthread_cond_broadcast(jobArrived) }
        pthread_mutex_unlock(mutex)
        _ = job.work(as: 0)
        _ = WorkerPool.look { job.isDone }
        pthread_mutex_lock(mutex)
        if !job.isDone {
            _ = lsk_shared_add(callers, 1)
            while !job.isDone { pthread_cond_wait(taskDone, mutex) }
            _ = lsk_shared_add(callers, -1)
        }
        jobs.removeAll { $0 === job }
        pthread_mutex_unlock(mutex)
    }

    /// Looks for a while whether something has come true.
    private static func look(_ isTrue: () -> Bool) -> Bool {
        for _ in 0..<looks {
            if isTrue() { return true }
            lsk_pause()
        }
        return false
    }

    private func start() -> Bool {
        var thread = pthread_t()
        var attributes = pthread_attr_t()
        pthread_attr_init(&attributes)
        pthread_attr_setdetachstate(&attributes, Int32(PTHREAD_CREATE_DETACHED))
        defer { pthread_attr_destroy(&attributes) }
        // Workers take no signals: those belong to the host's threads.
        var all = sigset_t()
        var previous = sigset_t()
        sigfillset(&all)
        pthread_sigmask(SIG_SETMASK, &all, &previous)
        defer { pthread_sigmask(SIG_SETMASK, &previous, nil) }
        return pthread_create(
            &thread, &attributes,
            { _ in
                try? withLockstepFloatMode { () throws(LockstepError) in WorkerPool.shared.serve() }
                return nil
            }, nil) == 0
    }

    private func serve() {
        pthread_mutex_lock(mutex)
        while true {
            if let job = jobs.first(where: { $0.joined < $0.workers && $0.hasTasks }) {
                let worker = job.joined
                job.joined += 1
                pthread_mutex_unlock(mutex)
                let isLast = job.work(as: worker)
                if isLast, lsk_shared_load(callers) > 0 {
                    pthread_mutex_lock(mutex)
                    pthread_cond_broadcast(taskDone)
                    pthread_mutex_unlock(mutex)
                }
            } else {
                let seen = lsk_shared_load(arrivals)
                pthread_mutex_unlock(mutex)
                if !WorkerPool.look({ lsk_shared_load(arrivals) != seen }) {
                    pthread_mutex_lock(mutex)
                    sleepers += 1
                    while lsk_shared_load(arrivals) == seen { pthread_cond_wait(jobArrived, mutex) }
                    sleepers -= 1
                    pthread_mutex_unlock(mutex)
                }
            }
            pthread_mutex_lock(mutex)
        }
    }
}
