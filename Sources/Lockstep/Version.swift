/// The version of the library: semantic, the same as in `include/lockstep.h`.
public let versionString: StaticString = "0.1.0"
