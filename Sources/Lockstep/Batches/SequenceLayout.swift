/// A borrowed mask: one byte for each token, not 0 where the token counts.
public struct MaskView {
    /// The first byte; may be nil when there are no elements.
    public let base: UnsafePointer<UInt8>?
    /// Number of rows.
    public let rows: Int
    /// Number of columns; the bytes of a row are contiguous.
    public let columns: Int
    /// Bytes from one row to the next.
    public let rowStride: Int

    /// Creates a view of `rows` x `columns` bytes; `rowStride` is `columns` by default.
    public init(_ base: UnsafePointer<UInt8>?, rows: Int, columns: Int, rowStride: Int? = nil) {
        self.base = base
        self.rows = rows
        self.columns = columns
        self.rowStride = rowStride ?? columns
    }

    /// The byte of a token.
    func address(_ place: TokenPlace) -> UnsafePointer<UInt8> {
        base! + (place.row &* rowStride &+ place.column)
    }
}

/// Where a token's values stand, in every array of one layout.
struct TokenPlace {
    let row: Int
    let column: Int
}

extension MatrixView {
    /// The value of a token.
    func address(_ place: TokenPlace) -> UnsafeRawPointer {
        row(place.row) + place.column &* format.byteCount
    }
}

extension MutableMatrixView {
    /// The value of a token.
    func address(_ place: TokenPlace) -> UnsafeMutableRawPointer {
        row(place.row) + place.column &* format.byteCount
    }
}

/// How the tokens of a batch stand in its arrays, and which of them count.
///
/// Two layouts: padded, `[sequences x length]`; or packed, one row of tokens, in which sequence i is
/// `offsets[i] ..< offsets[i + 1]` (without offsets the row is one sequence). A token the mask leaves out
/// is never read into a value. The buffers must outlive the layout.
public struct SequenceLayout {
    /// Number of rows of every array: 1 if packed.
    public let rows: Int
    /// Number of columns of every array.
    public let columns: Int
    /// Which tokens count; all without it.
    public let mask: MaskView?
    /// The bounds of packed sequences.
    public let offsets: TokenView?

    /// Creates a layout, or throws if mask or offsets do not fit the shape, which is that of `name`.
    ///
    /// Offsets begin with 0, never decrease, and end with the number of tokens.
    public init(
        rows: Int, columns: Int, mask: MaskView? = nil, offsets: TokenView? = nil,
        of name: StaticString = "trainer_log_probs"
    ) throws(LockstepError) {
        self.rows = rows
        self.columns = columns
        self.mask = mask
        self.offsets = offsets
        if let mask { try check(mask, "mask", of: name) }
        if let offsets { try check(offsets) }
    }

    /// Throws unless an array of bytes has one for each token.
    func check(_ mask: MaskView, _ maskName: StaticString, of name: StaticString) throws(LockstepError) {
        guard mask.rows == rows, mask.columns == columns else {
            throw LockstepError(
                .invalidArgument,
                "\(maskName): shape is [\(mask.rows) x \(mask.columns)] but \(name) is "
                    + "[\(rows) x \(columns)]; give one byte for each token")
        }
    }

    private func check(_ offsets: TokenView) throws(LockstepError) {
        guard rows == 1 else {
            throw LockstepError(
                .invalidArgument,
                "offsets: given with padded log-probs [\(rows) x \(columns)]; give packed "
                    + "log-probs [tokens], or no offsets")
        }
        guard offsets.count >= 1 else {
            throw LockstepError(.invalidArgument, "offsets: is empty; give sequences + 1 values, the first 0")
        }
        guard offsets[0] == 0 else {
            throw LockstepError(.invalidArgument, "offsets: offsets[0] is \(offsets[0]); it must be 0")
        }
        for index in 1..<max(offsets.count, 1) where offsets[index] < offsets[index - 1] {
            throw LockstepError(
                .invalidArgument,
                "offsets: offsets[\(index)] is \(offsets[index]), less than offsets[\(index - 1)] = "
                    + "\(offsets[index - 1]); offsets must not decrease")
        }
        let last = offsets[offsets.count - 1]
        guard last == columns else {
            throw LockstepError(
                .invalidArgument,
                "offsets: offsets[\(offsets.count - 1)] is \(last) but there are \(columns) tokens; "
                    + "the last offset must be their number")
        }
    }

    /// Number of sequences, empty ones included.
    public var sequences: Int { offsets.map { $0.count - 1 } ?? rows }

    /// Number of tokens, whether they count or not.
    public var tokens: Int { rows * columns }

    /// Number of tokens of a sequence, whether they count or not.
    func length(of sequence: Int) -> Int {
        offsets.map { $0[sequence + 1] - $0[sequence] } ?? columns
    }

    /// Where a token of a sequence stands.
    func place(of sequence: Int, position: Int = 0) -> TokenPlace {
        offsets.map { TokenPlace(row: 0, column: $0[sequence] + position) }
            ?? TokenPlace(row: sequence, column: position)
    }

    /// The positions of a sequence from its first token that counts to its last; empty if none counts.
    ///
    /// What stands outside is padding, which can so not change the order of any sum.
    func extent(of sequence: Int) -> Range<Int> {
        let length = length(of: sequence)
        guard let mask, length > 0 else { return 0..<length }
        let bytes = UnsafeRawPointer(mask.address(place(of: sequence)))
        func isNone<Bytes: FixedWidthInteger & BitwiseCopyable>(_ at: Int, as: Bytes.Type) -> Bool {
            bytes.loadUnaligned(fromByteOffset: at, as: Bytes.self) == 0
        }
        var (first, end) = (0, length)
        while first + 8 <= length, isNone(first, as: UInt64.self) { first += 8 }
        while first < length, isNone(first, as: UInt8.self) { first += 1 }
        if first == length { return 0..<0 }
        while end >= 8, isNone(end - 8, as: UInt64.self) { end -= 8 }
        while isNone(end - 1, as: UInt8.self) { end -= 1 }
        return first..<end
    }
}

extension SequenceLayout {
    /// Runs of whole sequences, each of at least 2^17 tokens but for the last: what a thread takes at a time.
    func sequenceTasks() -> [Range<Int>] {
        var tasks: [Range<Int>] = []
        var first = 0
        var tokens = 0
        for sequence in 0..<sequences {
            tokens += length(of: sequence)
            if tokens >= 1 << 17 {
                tasks.append(first..<sequence + 1)
                first = sequence + 1
                tokens = 0
            }
        }
        if first < sequences { tasks.append(first..<sequences) }
        return tasks
    }
}
