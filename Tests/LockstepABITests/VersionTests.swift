import CLockstep
import LockstepABI
import Testing

@Suite struct VersionTests {
    @Test func headerAndLibraryAgree() {
        let header = "\(LOCKSTEP_VERSION_MAJOR).\(LOCKSTEP_VERSION_MINOR).\(LOCKSTEP_VERSION_PATCH)"
        let text = String(cString: lockstep_version_string())
        #expect(text == header || text.hasPrefix(header + "-rc"))
    }
}
