import CLockstep
import LockstepABI
import Testing

@Suite struct VersionTests {
    @Test func headerAndLibraryAgree() {
        let header = "\(LOCKSTEP_VERSION_MAJOR).\(LOCKSTEP_VERSION_MINOR).\(LOCKSTEP_VERSION_PATCH)"
        #expect(String(cString: lockstep_version_string()) == header)
    }
}
