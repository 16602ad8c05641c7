/// The version of the library: semantic, its numbers the same as in `include/lockstep.h`.
public let versionString: StaticString = "1.0.0-rc1"
