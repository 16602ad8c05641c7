/// What went wrong, in words that name the argument, the index and what to do.
public struct LockstepError: Error, Equatable, CustomStringConvertible, Sendable {
    /// The kind of failure; raw values are those of `lockstep_status`.
    public enum Kind: Int32, Sendable {
        /// An argument is wrong: a bad shape, format, size, or a value out of range.
        case invalidArgument = 1
        /// The arguments are well formed, but this combination is not offered.
        case unsupported = 2
        /// A value that counts is NaN or infinite where the result would be undefined.
        case nonFinite = 3
        /// Memory could not be had.
        case outOfMemory = 4
        /// A defect of this library.
        case internalError = 5
        /// The operating system refused a file: it is not there, locked, or the disk is full.
        case file = 6
        /// Bytes that were read are not what was written: damaged, cut off, or of another kind.
        case badData = 7
    }

    /// The kind of failure.
    public let kind: Kind
    /// Which argument, at which index, and what to do.
    public let message: String

    /// Creates an error.
    public init(_ kind: Kind, _ message: String) {
        self.kind = kind
        self.message = message
    }

    /// The message.
    public var description: String { message }
}
