extension JSON {
    /// The value as a text that `init(parsing:)` reads back: names sorted, members of the outermost object on lines of
    /// their own.
    func text() -> String {
        guard case .object(let members) = self else { return compact() }
        let lines = members.sorted { $0.key < $1.key }.map {
            "  \(JSON.quoted($0.key)): \($0.value.compact())"
        }
        return "{\n" + lines.joined(separator: ",\n") + "\n}\n"
    }

    /// Without any space; numbers are finite.
    func compact() -> String {
        switch self {
        case .null: "null"
        case .bool(let value): value ? "true" : "false"
        case .integer(let value): "\(value)"
        case .number(let value): "\(value)"
        case .string(let value): JSON.quoted(value)
        case .array(let values): "[" + values.map { $0.compact() }.joined(separator: ",") + "]"
        case .object(let members):
            "{"
                + members.sorted { $0.key < $1.key }.map { "\(JSON.quoted($0.key)):\($0.value.compact())" }
                .joined(separator: ",") + "}"
        }
    }

    private static func quoted(_ text: String) -> String {
        var out = "\""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"": out += "\\\""
            case "\\": out += "\\\\"
            case "\n": out += "\\n"
            case "\u{0}"..<" ":
                let digits = String(scalar.value, radix: 16)
                out += "\\u" + String(repeating: "0", count: 4 - digits.utf8.count) + digits
            default: out.unicodeScalars.append(scalar)
            }
        }
        return out + "\""
    }
}
