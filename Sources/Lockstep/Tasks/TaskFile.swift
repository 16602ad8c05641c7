/// Prompts and answers of a file, a JSON object a line.
struct TaskFile: TaskRules {
    private struct Entry {
        var prompt: [Int32]
        var response: [Int32]
        var answer: [Unicode.Scalar]
    }

    let vocabulary: Vocabulary
    let longestPrompt: Int
    /// Twice the longest answer: responses may be longer than that, but have to end.
    let longestResponse: Int
    private let entries: [Entry]
    private let places: [[Int32]: Int]

    var count: Int { entries.count }

    /// What ends a response: U+0003, end of text.
    private static let stop = Unicode.Scalar(3 as UInt8)
    private static let largestFile = 1 << 30

    /// Reads all of a file.
    ///
    /// - Throws: `.file`; `.badData` naming the line.
    init(path: String) throws(LockstepError) {
        let file = try SystemFile(path, SystemFile.readOnly)
        let size = try file.size()
        guard size <= Self.largestFile else {
            throw LockstepError(.badData, "\(path): has \(size) bytes; give a file of at most 1 GiB")
        }
        let memory = try Scratch<UInt8>(count: size)
        let got = try file.read(into: memory.base, at: 0, count: size)
        let bytes = UnsafeRawBufferPointer(start: memory.base, count: got)
        // Characters of four bytes, twice, in arrays that grow, and as ids.
        try askForMemory(got, bytesEach: 32)

        var texts: [(prompt: [Unicode.Scalar], answer: [Unicode.Scalar], line: Int)] = []
        var line = 0
        var start = 0
        while start < got {
            let end = bytes[start...].firstIndex(of: 0x0a) ?? got
            defer { start = end + 1 }
            line += 1
            if bytes[start..<end].allSatisfy({ [0x20, 0x09, 0x0d].contains($0) }) { continue }
            func bad(_ what: String) -> LockstepError {
                LockstepError(.badData, "\(path): line \(line): \(what)")
            }
            let json = try JSON(parsing: .init(rebasing: bytes[start..<end]), "\(path): line \(line)")
            guard let prompt = json["prompt"]?.string, let answer = json["answer"]?.string else {
                throw bad("give an object with \"prompt\" and \"answer\", both strings")
            }
            guard !prompt.isEmpty else { throw bad("the prompt is empty") }
            guard !prompt.unicodeScalars.contains(Self.stop), !answer.unicodeScalars.contains(Self.stop)
            else {
                throw bad("has U+0003, which stands for the end of a response; leave it out")
            }
            let scalars = Array(answer.unicodeScalars)
            guard !finalAnswer(scalars).isEmpty else { throw bad("the answer is empty") }
            texts.append((Array(prompt.unicodeScalars), scalars, line))
        }
        guard !texts.isEmpty else {
            throw LockstepError(.badData, "\(path): has no problems; give one a line")
        }

        var characters: Set<Unicode.Scalar> = []
        for text in texts { characters.formUnion(text.prompt + text.answer) }
        guard characters.count < 65_536 else {
            throw LockstepError(
                .badData, "\(path): has \(characters.count) different characters; 65,535 are the most")
        }
        let vocabulary = Vocabulary(characters.sorted { $0.value < $1.value } + [Self.stop])
        var entries: [Entry] = []
        var places: [[Int32]: Int] = [:]
        for text in texts {
            let entry = Entry(
                prompt: text.prompt.map { vocabulary.id($0)! },
                response: text.answer.map { vocabulary.id($0)! },
                answer: finalAnswer(text.answer))
            if let place = places[entry.prompt] {
                guard entries[place].answer == entry.answer else {
                    throw LockstepError(
                        .badData,
                        "\(path): line \(text.line): has the prompt of line \(texts[place].line), but another answer"
                    )
                }
            } else {
                places[entry.prompt] = entries.count
            }
            entries.append(entry)
        }
        self.vocabulary = vocabulary
        self.entries = entries
        self.places = places
        longestPrompt = entries.map(\.prompt.count).max()!
        longestResponse = 2 * entries.map(\.response.count).max()! + 1
    }

    func problem(seed: UInt64, index: Int, errorRate: Double, _ vocabulary: Vocabulary, _ stopID: Int32?)
        -> TaskProblem
    {
        let entry = entries[place(seed: seed, index: index)]
        return TaskProblem(prompt: entry.prompt, response: entry.response + [stopID!])
    }

    /// Which entry a problem is: each round over the file in an order of its own.
    ///
    /// The order is a permutation by a Feistel network over the next power of 4, walked until it lands inside.
    private func place(seed: UInt64, index: Int) -> Int {
        let (round, start) = index.quotientAndRemainder(dividingBy: count)
        var bits = 1
        while 1 << (2 * bits) < count { bits += 1 }
        let mask = 1 << bits - 1
        let generator = Philox4x32(seed: seed)
        var place = start
        repeat {
            var (left, right) = (place >> bits, place & mask)
            for step in 0..<4 {
                let word = generator.block(UInt64(right) << 2 | UInt64(step), high: UInt64(round) << 2 | 2)[0]
                (left, right) = (right, left ^ Int(word) & mask)
            }
            place = left << bits | right
        } while place >= count
        return place
    }

    func isRight(_ response: [Int32], for prompt: [Int32], _ vocabulary: Vocabulary) -> Bool? {
        guard let place = places[prompt] else { return nil }
        var text: [Unicode.Scalar] = []
        for id in response {
            guard vocabulary.characters.indices.contains(Int(id)), vocabulary.characters[Int(id)] != Self.stop
            else { return false }
            text.append(vocabulary.characters[Int(id)])
        }
        return finalAnswer(text) == entries[place].answer
    }
}

/// What follows the last `#`, or, without one, the last line that is not blank; without the spaces around it.
private func finalAnswer(_ text: [Unicode.Scalar]) -> [Unicode.Scalar] {
    func isSpace(_ character: Unicode.Scalar) -> Bool { [0x20, 0x09, 0x0a, 0x0d].contains(character.value) }
    var end = text.count
    while end > 0, isSpace(text[end - 1]) { end -= 1 }
    var start = 0
    if let mark = text[..<end].lastIndex(of: "#") {
        start = mark + 1
    } else if let line = text[..<end].lastIndex(of: "\n") {
        start = line + 1
    }
    while start < end, isSpace(text[start]) { start += 1 }
    return Array(text[start..<end])
}
