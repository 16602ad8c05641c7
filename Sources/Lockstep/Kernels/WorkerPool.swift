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
        WorkerPool.shared.run(Job(tasks: tasks, workers: min(threads, tasks), body: body))
    }
}

/// One parallel loop; all fields are guarded by the pool's mutex, but for `body`.
private final class Job: @unchecked Sendable {
    let tasks: Int
    let workers: Int
    let body: (Int, Int) -> Void
    var next = 0
    var joined = 1  // the caller is worker 0
    var done = 0

    init(tasks: Int, workers: Int, body: @escaping (Int, Int) -> Void) {
        self.tasks = tasks
        self.workers = workers
        self.body = body
    }
}

/// Threads that wait for jobs.
///
/// The caller of a job works too, and completion counts tasks, not threads, so a thread that never wakes
/// (after a fork, or out of resources) delays nothing.
private final class WorkerPool: @unchecked Sendable {
    static let shared = WorkerPool()

    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let jobArrived = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    private let taskDone = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    private var jobs: [Job] = []
    private var threads = 0

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
    }

    func run(_ job: Job) {
        pthread_mutex_lock(mutex)
        while threads < job.workers - 1, start() { threads += 1 }
        jobs.append(job)
        pthread_cond_broadcast(jobArrived)
        work(on: job, as: 0)
        while job.done < job.tasks { pthread_cond_wait(taskDone, mutex) }
        pthread_mutex_unlock(mutex)
    }

    /// Takes tasks of `job` until none is left; called and left with the mutex held.
    private func work(on job: Job, as worker: Int) {
        while job.next < job.tasks {
            let task = job.next
            job.next += 1
            if job.next == job.tasks { jobs.removeAll { $0 === job } }
            pthread_mutex_unlock(mutex)
            job.body(task, worker)
            pthread_mutex_lock(mutex)
            job.done += 1
            if job.done == job.tasks { pthread_cond_broadcast(taskDone) }
        }
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
            if let job = jobs.first(where: { $0.joined < $0.workers }) {
                let worker = job.joined
                job.joined += 1
                work(on: job, as: worker)
            } else {
                pthread_cond_wait(jobArrived, mutex)
            }
        }
    }
}
