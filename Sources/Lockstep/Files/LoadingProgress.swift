#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#elseif canImport(Darwin)
    import Darwin
#endif

/// How far the loading of checkpoints is, told on the thread that loads: models, trainers, audits, runs.
public enum LoadingProgress {
    /// Told how many values of a checkpoint have been read, and how many it has; at the end they are equal.
    public typealias Observer = (_ done: Int, _ total: Int) -> Void

    private final class Box {
        let observer: Observer

        init(_ observer: @escaping Observer) { self.observer = observer }
    }

    private static let key: pthread_key_t = {
        var key = pthread_key_t()
        pthread_key_create(&key) { (box: UnsafeMutableRawPointer?) in
            if let box { Unmanaged<Box>.fromOpaque(box).release() }
        }
        return key
    }()

    /// Who is told on this thread; nil is nobody.
    ///
    /// It is called after each tensor.
    public static var observer: Observer? {
        get { pthread_getspecific(key).map { Unmanaged<Box>.fromOpaque($0).takeUnretainedValue().observer } }
        set {
            let old = pthread_getspecific(key)
            pthread_setspecific(
                key, newValue.map { UnsafeRawPointer(Unmanaged.passRetained(Box($0)).toOpaque()) })
            if let old { Unmanaged<Box>.fromOpaque(old).release() }
        }
    }
}
