/// A JSON text, read strictly: what RFC 8259 says and nothing more, as the bytes may be hostile.
///
/// Arrays and objects nest to a depth of 64. A name that an object gives twice is an error, not a choice.
enum JSON: Equatable {
    case null
    case bool(Bool)
    /// A number without fraction or exponent that an `Int` can hold.
    case integer(Int)
    case number(Double)
    case string(String)
    case array([JSON])
    case object([String: JSON])

    /// Parses a whole text; `name` is what messages call it.
    ///
    /// - Throws: `.badData` naming the byte.
    init(parsing text: UnsafeRawBufferPointer, _ name: String) throws(LockstepError) {
        // At most: two bytes of a list make a value, in an array that grows.
        try askForMemory(text.count, bytesEach: 40)
        var parser = JSONParser(text: text, name: name)
        self = try parser.document()
    }

    /// Parses a file of at most 100 MB.
    init(contentsOf path: String) throws(LockstepError) {
        let file = try SystemFile(path, SystemFile.readOnly)
        let size = try file.size()
        guard size <= 100_000_000 else {
            throw LockstepError(.badData, "\(path): has \(size) bytes, too many for what it should be")
        }
        let bytes = try Scratch<UInt8>(count: size)
        let got = try file.read(into: bytes.base, at: 0, count: size)
        try self.init(parsing: UnsafeRawBufferPointer(start: bytes.base, count: got), path)
    }

    /// The value of a name; nil if this is no object, or has no such name, or gives null for it.
    subscript(key: String) -> JSON? {
        guard case .object(let members) = self, let value = members[key], value != .null else { return nil }
        return value
    }

    var integer: Int? { if case .integer(let value) = self { value } else { nil } }

    /// Any number, as a double.
    var double: Double? {
        switch self {
        case .integer(let value): Double(value)
        case .number(let value): value
        default: nil
        }
    }

    var bool: Bool? { if case .bool(let value) = self { value } else { nil } }

    var string: String? { if case .string(let value) = self { value } else { nil } }

    var array: [JSON]? { if case .array(let values) = self { values } else { nil } }
}

private struct JSONParser {
    private static let depthLimit = 64

    let text: UnsafeRawBufferPointer
    let name: String
    private var next = 0
    private var depth = 0

    init(text: UnsafeRawBufferPointer, name: String) {
        self.text = text
        self.name = name
    }

    mutating func document() throws(LockstepError) -> JSON {
        let value = try value()
        skipSpace()
        guard next == text.count else { throw bad("more text after the value") }
        return value
    }

    private func bad(_ what: String) -> LockstepError {
        LockstepError(.badData, "\(name): byte \(next): \(what); this is not JSON as it should be")
    }

    private var byte: UInt8? { next < text.count ? text[next] : nil }

    private mutating func skipSpace() {
        while let byte, [0x20, 0x09, 0x0a, 0x0d].contains(byte) { next += 1 }
    }

    private mutating func take(_ wanted: UInt8) -> Bool {
        guard byte == wanted else { return false }
        next += 1
        return true
    }

    private mutating func expect(_ wanted: Character) throws(LockstepError) {
        skipSpace()
        guard take(wanted.asciiValue!) else { throw bad("'\(wanted)' is missing") }
    }

    private mutating func value() throws(LockstepError) -> JSON {
        skipSpace()
        switch byte {
        case UInt8(ascii: "{"): return try nested { (parser) throws(LockstepError) in try parser.object() }
        case UInt8(ascii: "["): return try nested { (parser) throws(LockstepError) in try parser.array() }
        case UInt8(ascii: "\""): return .string(try string())
        case UInt8(ascii: "t"): return try word("true", .bool(true))
        case UInt8(ascii: "f"): return try word("false", .bool(false))
        case UInt8(ascii: "n"): return try word("null", .null)
        case nil: throw bad("the text ends early")
        default: return try number()
        }
    }

    private mutating func nested(
        _ body: (inout JSONParser) throws(LockstepError) -> JSON
    ) throws(LockstepError) -> JSON {
        depth += 1
        guard depth <= JSONParser.depthLimit else { throw bad("nested deeper than \(JSONParser.depthLimit)") }
        next += 1
        let value = try body(&self)
        depth -= 1
        return value
    }

    private mutating func object() throws(LockstepError) -> JSON {
        var members: [String: JSON] = [:]
        skipSpace()
        if take(UInt8(ascii: "}")) { return .object(members) }
        repeat {
            skipSpace()
            guard byte == UInt8(ascii: "\"") else { throw bad("a name in quotes is missing") }
            let key = try string()
            guard members[key] == nil else { throw bad("the name '\(key)' is given twice") }
            try expect(":")
            members[key] = try value()
            skipSpace()
        } while take(UInt8(ascii: ","))
        try expect("}")
        return .object(members)
    }

    private mutating func array() throws(LockstepError) -> JSON {
        var values: [JSON] = []
        skipSpace()
        if take(UInt8(ascii: "]")) { return .array(values) }
        repeat {
            values.append(try value())
            skipSpace()
        } while take(UInt8(ascii: ","))
        try expect("]")
        return .array(values)
    }

    private mutating func word(_ word: StaticString, _ value: JSON) throws(LockstepError) -> JSON {
        let length = word.utf8CodeUnitCount
        guard text.count - next >= length,
            (0..<length).allSatisfy({ text[next + $0] == word.utf8Start[$0] })
        else { throw bad("'\(word)' is misspelt") }
        next += length
        return value
    }

    private mutating func digits() throws(LockstepError) {
        let start = next
        while let byte, (0x30...0x39).contains(byte) { next += 1 }
        guard next > start else { throw bad("a digit is missing") }
    }

    private mutating func number() throws(LockstepError) -> JSON {
        let start = next
        _ = take(UInt8(ascii: "-"))
        if take(UInt8(ascii: "0")) {
            if let byte, (0x30...0x39).contains(byte) { throw bad("a number begins with 0") }
        } else {
            try digits()
        }
        var isInteger = true
        if take(UInt8(ascii: ".")) {
            isInteger = false
            try digits()
        }
        if take(UInt8(ascii: "e")) || take(UInt8(ascii: "E")) {
            isInteger = false
            if !take(UInt8(ascii: "+")) { _ = take(UInt8(ascii: "-")) }
            try digits()
        }
        let digits = String(decoding: UnsafeRawBufferPointer(rebasing: text[start..<next]), as: UTF8.self)
        if isInteger, let value = Int(digits) { return .integer(value) }
        guard let value = Double(digits), value.isFinite else {
            throw bad("the number \(digits) is too large")
        }
        return .number(value)
    }

    private mutating func string() throws(LockstepError) -> String {
        next += 1
        var bytes: [UInt8] = []
        while true {
            guard let byte else { throw bad("a string does not end") }
            next += 1
            switch byte {
            case UInt8(ascii: "\""):
                guard let string = String(validating: bytes, as: UTF8.self) else {
                    throw bad("a string is not UTF-8")
                }
                return string
            case UInt8(ascii: "\\"): bytes.append(contentsOf: String(try escaped()).utf8)
            case 0..<0x20: throw bad("a control character in a string")
            default: bytes.append(byte)
            }
        }
    }

    private mutating func escaped() throws(LockstepError) -> Unicode.Scalar {
        guard let byte else { throw bad("a string does not end") }
        next += 1
        switch byte {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): return Unicode.Scalar(byte)
        case UInt8(ascii: "b"): return "\u{8}"
        case UInt8(ascii: "f"): return "\u{c}"
        case UInt8(ascii: "n"): return "\n"
        case UInt8(ascii: "r"): return "\r"
        case UInt8(ascii: "t"): return "\t"
        case UInt8(ascii: "u"):
            let unit = try hex()
            // A character beyond the first 65,536 is written as two halves.
            if (0xd800..<0xdc00).contains(unit), take(UInt8(ascii: "\\")), take(UInt8(ascii: "u")) {
                let low = try hex()
                guard (0xdc00..<0xe000).contains(low) else { throw bad("half of a character is missing") }
                return Unicode.Scalar(0x1_0000 + (unit - 0xd800) << 10 + (low - 0xdc00))!
            }
            guard let scalar = Unicode.Scalar(unit) else { throw bad("half of a character is missing") }
            return scalar
        default: throw bad("an escape that does not exist")
        }
    }

    private mutating func hex() throws(LockstepError) -> UInt32 {
        var unit: UInt32 = 0
        for _ in 0..<4 {
            guard let byte, let digit = Character(Unicode.Scalar(byte)).hexDigitValue else {
                throw bad("four hexadecimal digits are missing")
            }
            unit = unit << 4 | UInt32(digit)
            next += 1
        }
        return unit
    }
}
