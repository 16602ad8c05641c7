import Lockstep

// Handles of the C API: each holds an object of ours, from the function that makes it to its destroy.

/// A handle that holds the object.
func retained(_ object: AnyObject) -> OpaquePointer {
    OpaquePointer(Unmanaged.passRetained(object).toOpaque())
}

/// What a handle holds. `name` is the argument's; `maker` is the function that makes such handles.
@inline(__always)
func held<Object: AnyObject>(
    _ handle: OpaquePointer?, _ name: StaticString, from maker: StaticString
) throws(LockstepError) -> Object {
    Unmanaged<Object>.fromOpaque(try present(handle, name, maker)).takeUnretainedValue()
}

/// The same for any object, so that its code is there once.
private func present(
    _ handle: OpaquePointer?, _ name: StaticString, _ maker: StaticString
) throws(LockstepError) -> UnsafeRawPointer {
    guard let handle else { throw invalid("\(name) is NULL; make one with \(maker)") }
    return UnsafeRawPointer(handle)
}

/// Lets go of what a handle holds. NULL holds nothing.
func release(_ handle: OpaquePointer?) {
    if let handle { Unmanaged<AnyObject>.fromOpaque(UnsafeRawPointer(handle)).release() }
}
