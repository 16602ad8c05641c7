/// A tokenizer of single characters (Unicode scalars): the id of one is its place.
public struct Vocabulary: Equatable, Sendable {
    /// The characters, in the order of their ids.
    public let characters: [Unicode.Scalar]
    private let ids: [Unicode.Scalar: Int32]

    /// Number of ids.
    public var count: Int { characters.count }

    /// Creates a vocabulary of characters that differ.
    init(_ characters: [Unicode.Scalar]) {
        self.characters = characters
        ids = Dictionary(
            characters.enumerated().map { ($1, Int32($0)) }, uniquingKeysWith: { first, _ in first })
    }

    /// The id of a character, or nil.
    func id(_ character: Unicode.Scalar) -> Int32? { ids[character] }

    /// The ids of a text's characters.
    ///
    /// - Throws: `.invalidArgument` naming the first character that has none, and its place.
    public func encode(_ text: String) throws(LockstepError) -> [Int32] {
        var found: [Int32] = []
        for (place, character) in text.unicodeScalars.enumerated() {
            guard let id = ids[character] else {
                throw LockstepError(
                    .invalidArgument,
                    "text: character \(place), U+\(String(character.value, radix: 16)), is not in the vocabulary of "
                        + "\(count) characters")
            }
            found.append(id)
        }
        return found
    }

    /// The text of ids.
    ///
    /// - Throws: `.invalidArgument` naming the first id that is not in [0, count), and its place.
    public func decode(_ tokens: [Int32]) throws(LockstepError) -> String {
        var text = String.UnicodeScalarView()
        for (place, id) in tokens.enumerated() {
            guard characters.indices.contains(Int(id)) else {
                throw LockstepError(
                    .invalidArgument, "tokens: element \(place) is \(id); ids are 0 to \(count - 1)")
            }
            text.append(characters[Int(id)])
        }
        return String(text)
    }

    /// The characters' bytes if all ids are known and ASCII, or nil.
    func ascii(_ tokens: some Sequence<Int32>) -> [UInt8]? {
        var bytes: [UInt8] = []
        for id in tokens {
            guard characters.indices.contains(Int(id)), characters[Int(id)].isASCII else { return nil }
            bytes.append(UInt8(characters[Int(id)].value))
        }
        return bytes
    }
}
