import CLockstep
import CLockstepKernels
import Lockstep

#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#elseif canImport(Darwin)
    import Darwin
#endif

/// Runs the body of an export: in the library's floating-point mode, with an error turned into a status
/// and this thread's error text.
func guarded(_ body: () throws(LockstepError) -> Void) -> lockstep_status {
    do throws(LockstepError) {
        try withLockstepFloatMode(body)
        return lockstep_status(LOCKSTEP_OK)
    } catch {
        lsk_set_error_text(error.message)
        return error.kind.rawValue
    }
}

/// An argument error. `message` starts with the argument's name.
func invalid(_ message: String) -> LockstepError { LockstepError(.invalidArgument, message) }

/// A struct that starts with `struct_size` and may grow at its end.
protocol GrowableOptions {
    var struct_size: UInt32 { get }
    /// The size the struct had when it was first published.
    static var firstSize: Int { get }
}

/// Reads an options struct of the caller, whatever its version: NULL gives `defaults`, fields the caller
/// does not know keep theirs, fields this library does not know must be zero.
func read<Options: GrowableOptions>(
    _ pointer: UnsafePointer<Options>?, _ name: StaticString = "options", defaults: Options
) throws(LockstepError) -> Options {
    guard let pointer else { return defaults }
    var options = defaults
    try withUnsafeMutableBytes(of: &options) { (target) throws(LockstepError) in
        try read(UnsafeRawPointer(pointer), name, firstSize: Options.firstSize, into: target)
    }
    return options
}

/// The same for any struct, so that its code is there once.
private func read(
    _ raw: UnsafeRawPointer, _ name: StaticString, firstSize: Int, into target: UnsafeMutableRawBufferPointer
) throws(LockstepError) {
    let size = Int(raw.loadUnaligned(as: UInt32.self))
    let known = target.count
    guard size >= firstSize, size <= 4096 else {
        throw invalid(
            "\(name): struct_size is \(size); set it to sizeof the \(name) struct (\(known)), as its "
                + "_INIT macro does")
    }
    for offset in stride(from: known, to: size, by: 1)
    where raw.load(fromByteOffset: offset, as: UInt8.self) != 0 {
        throw invalid(
            "\(name): the byte at offset \(offset) is set, but this library (\(versionString)) knows only "
                + "\(known) bytes of the struct; load a newer library or leave it zero")
    }
    target.copyMemory(from: UnsafeRawBufferPointer(start: raw, count: min(size, known)))
}

/// Writes a result struct of the caller, whatever its version: as many bytes as its struct_size says.
func write<Value: GrowableOptions>(
    _ value: Value, to pointer: UnsafeMutablePointer<Value>?, _ name: StaticString
) throws(LockstepError) {
    let size = try checkGrowable(pointer, name)
    withUnsafeBytes(of: value) { source in
        let raw = UnsafeMutableRawPointer(pointer!)
        let first = MemoryLayout<UInt32>.size
        raw.advanced(by: first).copyMemory(
            from: source.baseAddress! + first, byteCount: min(size, source.count) - first)
    }
}

/// Checks a result struct of the caller before anything is done for it; returns its struct_size.
@discardableResult
func checkGrowable<Value: GrowableOptions>(
    _ pointer: UnsafeMutablePointer<Value>?, _ name: StaticString
) throws(LockstepError) -> Int {
    try checkSize(
        UnsafeRawPointer(pointer), name, firstSize: Value.firstSize, known: MemoryLayout<Value>.size)
}

/// The same for any struct.
private func checkSize(
    _ pointer: UnsafeRawPointer?, _ name: StaticString, firstSize: Int, known: Int
) throws(LockstepError) -> Int {
    guard let pointer else { throw invalid("\(name) is NULL") }
    let size = Int(pointer.loadUnaligned(as: UInt32.self))
    guard size >= firstSize, size <= 1 << 16 else {
        throw invalid(
            "\(name): struct_size is \(size); set it to sizeof the \(name) struct (\(known))")
    }
    return size
}

/// The execution two option fields describe.
func execution(threads: Int32, _ set: lockstep_instruction_set) throws(LockstepError) -> Execution {
    if set == LOCKSTEP_INSTRUCTION_SET_BEST { return Execution(threads: Int(threads)) }
    guard let known = InstructionSet(rawValue: set) else {
        throw invalid("options: instruction_set is \(set); see the LOCKSTEP_INSTRUCTION_SET constants")
    }
    return Execution(threads: Int(threads), instructionSet: known)
}

/// Writes values to an array of the caller, which has room for `count`, and sets `count` to how many there are;
/// without an array, only that.
func give<Value, Element>(
    _ values: [Value], to array: UnsafeMutablePointer<Element>?, _ name: StaticString,
    _ count: UnsafeMutablePointer<Int>?, _ countName: StaticString = "count", _ convert: (Value) -> Element
) throws(LockstepError) {
    try checkArray(count, countName, count: 1)
    if let array {
        try checkArray(array, name, count: 1)
        let room = UInt(bitPattern: count!.pointee)
        guard room >= UInt(values.count) else {
            throw invalid("\(countName) is \(room) but there are \(values.count); ask with \(name) NULL")
        }
        for (index, value) in values.enumerated() { array[index] = convert(value) }
    }
    count!.pointee = values.count
}

/// Guards the texts of all handles. Nobody else holds it while the process forks, so that a child finds it free and the
/// texts whole.
private struct TextLock: @unchecked Sendable {
    static let shared = TextLock()
    let mutex: UnsafeMutablePointer<pthread_mutex_t>

    private init() {
        mutex = .allocate(capacity: 1)
        pthread_mutex_init(mutex, nil)
        pthread_atfork(
            { pthread_mutex_lock(TextLock.shared.mutex) }, { pthread_mutex_unlock(TextLock.shared.mutex) },
            { pthread_mutex_init(TextLock.shared.mutex, nil) })
    }
}

/// Texts that are lent to the caller: each ends with a 0 and stays where it is as long as this lives.
final class LentTexts {
    private var texts: [String: UnsafeMutableBufferPointer<CChar>] = [:]

    /// A text as the caller sees it.
    func lend(_ text: String) -> UnsafePointer<CChar>? {
        let lock = TextLock.shared.mutex
        pthread_mutex_lock(lock)
        defer { pthread_mutex_unlock(lock) }
        if let known = texts[text] { return UnsafePointer(known.baseAddress) }
        let characters = text.utf8CString
        let copy = UnsafeMutableBufferPointer<CChar>.allocate(capacity: characters.count)
        _ = copy.initialize(from: characters)
        texts[text] = copy
        return UnsafePointer(copy.baseAddress)
    }

    deinit {
        for text in texts.values { text.deallocate() }
    }
}
