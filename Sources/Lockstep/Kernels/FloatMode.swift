import CLockstepKernels

/// Runs `body` in the library's floating-point mode (round to nearest, subnormals on) and restores the
/// host's mode afterwards: a host that flushes subnormals must not change a result.
@inline(__always)
public func withLockstepFloatMode<Result, Failure: Error>(_ body: () throws(Failure) -> Result)
    throws(Failure)
    -> Result
{
    let found = lsk_float_mode_enter()
    defer { lsk_float_mode_leave(found) }
    return try body()
}
