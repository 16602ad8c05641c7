import CLockstep
import CLockstepKernels
import Lockstep

// Section 1 of the header: version, status, errors.

@_cdecl("lockstep_version") @implementation
public func lockstep_version() -> Int32 {
    LOCKSTEP_VERSION_MAJOR * 10000 + LOCKSTEP_VERSION_MINOR * 100 + LOCKSTEP_VERSION_PATCH
}

@_cdecl("lockstep_version_string") @implementation
public func lockstep_version_string() -> UnsafePointer<CChar>! {
    text(Lockstep.versionString)
}

@_cdecl("lockstep_status_name") @implementation
public func lockstep_status_name(_ status: lockstep_status) -> UnsafePointer<CChar>! {
    switch Int(status) {
    case LOCKSTEP_OK: text("LOCKSTEP_OK")
    case LOCKSTEP_ERROR_INVALID_ARGUMENT: text("LOCKSTEP_ERROR_INVALID_ARGUMENT")
    case LOCKSTEP_ERROR_UNSUPPORTED: text("LOCKSTEP_ERROR_UNSUPPORTED")
    case LOCKSTEP_ERROR_NON_FINITE: text("LOCKSTEP_ERROR_NON_FINITE")
    case LOCKSTEP_ERROR_OUT_OF_MEMORY: text("LOCKSTEP_ERROR_OUT_OF_MEMORY")
    case LOCKSTEP_ERROR_INTERNAL: text("LOCKSTEP_ERROR_INTERNAL")
    case LOCKSTEP_ERROR_FILE: text("LOCKSTEP_ERROR_FILE")
    case LOCKSTEP_ERROR_BAD_DATA: text("LOCKSTEP_ERROR_BAD_DATA")
    default: text("unknown status")
    }
}

@_cdecl("lockstep_last_error") @implementation
public func lockstep_last_error() -> UnsafePointer<CChar>! {
    lsk_error_text()
}

@_cdecl("lockstep_has_instruction_set") @implementation
public func lockstep_has_instruction_set(_ set: lockstep_instruction_set) -> Int32 {
    if set == LOCKSTEP_INSTRUCTION_SET_BEST { return 1 }
    return InstructionSet(rawValue: set)?.isAvailable == true ? 1 : 0
}

/// A static string as C sees it.
private func text(_ string: StaticString) -> UnsafePointer<CChar> {
    UnsafeRawPointer(string.utf8Start).assumingMemoryBound(to: CChar.self)
}
