/// Options of a task.
public struct TaskOptions: Equatable, Sendable {
    /// How large problems are; 0: the default.
    ///
    /// chain: steps (32). arithmetic: digits of a number (3). sort, reverse:
    /// elements (8). countdown: numbers (4).
    public var size = 0

    /// Creates options.
    public init(size: Int = 0) { self.size = size }
}

/// Problems whose answers can be checked: for reinforcement learning without a reward model, and for the supervised
/// training before it.
///
/// A problem is a function of (seed, index) alone. Names:
///
/// - "chain": `y' = (a y + b) mod 7`, `size` times; prompt a b y, no stop. Each digit has two fonts, 0-6 and a-g, that
///   mean the same. Reward 1 if the response has `size` digits and the last is right.
/// - "arithmetic": `23+456=` or `345*7=`; the response may work it out, and gives the sum or product after the last
///   `#`, in decimal without leading zeros.
/// - "sort": digits, `31415=`, in rising order. "reverse": letters, `abc=`, backwards.
/// - "countdown": `3,7,25,2:45=`; an expression of + - * / and parentheses with each number exactly once whose
///   value is the target. A division must leave no rest.
/// - "file:PATH": a JSON object a line with "prompt" and "answer". The final answer is what follows the last `#`, or,
///   without one, the last line that is not blank; spaces around it do not count. Reward 1 if that of the response
///   equals that of the answer, character by character.
///
/// All but chain end a response with the stop id; without it the reward is 0.
public struct VerifiableTask: Sendable {
    /// As given.
    public let name: String
    /// The characters prompts and responses are made of.
    public let vocabulary: Vocabulary
    /// The id that ends a response; nil: it ends at `longestResponse`.
    public let stopID: Int32?
    /// The most ids of a prompt.
    public let longestPrompt: Int
    /// The most ids of a response, stop id included: the limit for sampling.
    public let longestResponse: Int
    /// Problems of a file; nil: as many as there are indices.
    public let problemCount: Int?

    private let rules: any TaskRules

    /// The built-in names.
    public static let names = ["chain", "arithmetic", "sort", "reverse", "countdown"]

    /// Creates a task.
    ///
    /// - Throws: `.invalidArgument` for an unknown name or a size out of range; of a file also `.file`, and `.badData`
    ///   naming the line.
    public init(_ name: String, options: TaskOptions = TaskOptions()) throws(LockstepError) {
        func size(_ usual: Int, _ range: ClosedRange<Int>) throws(LockstepError) -> Int {
            let size = options.size == 0 ? usual : options.size
            guard range.contains(size) else {
                throw LockstepError(
                    .invalidArgument,
                    "options: size is \(size); \(name) takes \(range.lowerBound) to \(range.upperBound)")
            }
            return size
        }
        self.name = name
        let rules: any TaskRules
        let alphabet: String
        switch name {
        case "chain":
            rules = ChainTask(steps: try size(32, 1...4096))
            alphabet = "0123456abcdefg"
        case "arithmetic":
            rules = ArithmeticTask(digits: try size(3, 1...17))
            alphabet = "0123456789+*=,#\n"
        case "sort":
            rules = ListTask(count: try size(8, 1...4096), isSorting: true)
            alphabet = "0123456789=\n"
        case "reverse":
            rules = ListTask(count: try size(8, 1...4096), isSorting: false)
            alphabet = "abcdefghijklmnopqrstuvwxyz=\n"
        case "countdown":
            rules = CountdownTask(count: try size(4, 2...8))
            alphabet = "0123456789+-*/(),:=\n"
        default:
            guard name.hasPrefix("file:") else {
                throw LockstepError(
                    .invalidArgument,
                    "name: '\(name)' is no task; known are \(Self.names.joined(separator: ", ")) and file:PATH"
                )
            }
            _ = try size(0, 0...0)
            let file = try TaskFile(path: String(name.dropFirst(5)))
            self.rules = file
            vocabulary = file.vocabulary
            stopID = Int32(file.vocabulary.count - 1)
            longestPrompt = file.longestPrompt
            longestResponse = file.longestResponse
            problemCount = file.count
            return
        }
        self.rules = rules
        vocabulary = Vocabulary(Array(alphabet.unicodeScalars))
        stopID = name == "chain" ? nil : Int32(vocabulary.count - 1)
        longestPrompt = rules.longestPrompt
        longestResponse = rules.longestResponse
        problemCount = nil
    }

    /// The ids of a problem's prompt.
    ///
    /// - Parameters:
    ///   - index: which problem, from 0. Of a file: problems in an order that the seed decides, over and over.
    ///   - seed: of the series.
    /// - Throws: `.invalidArgument` for an index that is negative or beyond 2^48.
    /// - Returns: the ids.
    public func prompt(_ index: Int, seed: UInt64) throws(LockstepError) -> [Int32] {
        try problem(index, seed, errorRate: 0).prompt
    }

    /// The ids of a solution, stop id included: for supervised training.
    ///
    /// Each step of it (chain: a number; arithmetic: a digit; sort, reverse: an element; countdown: a number) is wrong
    /// with probability `errorRate`, and what follows goes on from there. With n steps the share of demonstrations
    /// with reward 1 is (1 - errorRate)^n, but for chain 1/7 + 6/7 (1 - 7/6 errorRate)^n, as a second error can undo
    /// the first.
    ///
    /// - Parameters:
    ///   - index: as of `prompt`.
    ///   - seed: as of `prompt`.
    ///   - errorRate: in [0, 1]; 0 for a file, whose answers are what they are.
    /// - Throws: as `prompt`; `.invalidArgument` for the rate.
    /// - Returns: the ids.
    public func demonstration(_ index: Int, seed: UInt64, errorRate: Double = 0) throws(LockstepError)
        -> [Int32]
    {
        try problem(index, seed, errorRate: errorRate).response
    }

    private func problem(_ index: Int, _ seed: UInt64, errorRate: Double) throws(LockstepError)
        -> TaskProblem
    {
        guard (0...1 << 48).contains(index) else {
            throw LockstepError(.invalidArgument, "index is \(index); give 0 to 2^48")
        }
        guard errorRate >= 0, errorRate <= (problemCount == nil ? 1 : 0) else {
            throw LockstepError(
                .invalidArgument, "error_rate is \(errorRate); give 0 to 1, and 0 for a file")
        }
        return rules.problem(seed: seed, index: index, errorRate: errorRate, vocabulary, stopID)
    }

    /// 1 if a response solves the problem of a prompt, else 0.
    ///
    /// Ids that are not in the vocabulary (models pad theirs) make a response wrong.
    ///
    /// - Parameters:
    ///   - prompt: what `prompt` gave, or another of that form.
    ///   - response: the ids after it, stop id included.
    /// - Throws: `.invalidArgument` if the prompt is none of this task.
    /// - Returns: 1 or 0.
    public func reward(prompt: [Int32], response: [Int32]) throws(LockstepError) -> Double {
        var answer = response[...]
        var hasEnded = true
        if let stopID {
            hasEnded = answer.last == stopID
            answer = answer.dropLast()
        }
        guard let isRight = rules.isRight(Array(answer), for: prompt, vocabulary) else {
            throw LockstepError(.invalidArgument, "prompt: is no prompt of the task '\(name)'")
        }
        return isRight && hasEnded ? 1 : 0
    }
}

/// A problem and a solution, in ids.
struct TaskProblem {
    var prompt: [Int32]
    var response: [Int32]
}

/// What makes a task.
protocol TaskRules: Sendable {
    var longestPrompt: Int { get }
    var longestResponse: Int { get }
    func problem(seed: UInt64, index: Int, errorRate: Double, _ vocabulary: Vocabulary, _ stopID: Int32?)
        -> TaskProblem
    /// Whether a response, without its stop id, is right; nil if the prompt is none of this task.
    func isRight(_ response: [Int32], for prompt: [Int32], _ vocabulary: Vocabulary) -> Bool?
}

/// A task in ASCII.
protocol ASCIITaskRules: TaskRules {
    func problem(_ draws: inout TaskDraws, demonstrated: inout TaskDraws, errorRate: Double)
        -> (prompt: [UInt8], response: [UInt8])
    /// As above; an id that is not known makes a response nil.
    func isRight(_ response: [UInt8]?, for prompt: [UInt8]) -> Bool?
}

extension ASCIITaskRules {
    func problem(seed: UInt64, index: Int, errorRate: Double, _ vocabulary: Vocabulary, _ stopID: Int32?)
        -> TaskProblem
    {
        var draws = TaskDraws(seed: seed, index: index, stream: 0)
        var demonstrated = TaskDraws(seed: seed, index: index, stream: 1)
        let (prompt, response) = problem(&draws, demonstrated: &demonstrated, errorRate: errorRate)
        func ids(_ text: [UInt8]) -> [Int32] { text.map { vocabulary.id(Unicode.Scalar($0))! } }
        return TaskProblem(prompt: ids(prompt), response: ids(response) + (stopID.map { [$0] } ?? []))
    }

    func isRight(_ response: [Int32], for prompt: [Int32], _ vocabulary: Vocabulary) -> Bool? {
        guard let text = vocabulary.ascii(prompt) else { return nil }
        return isRight(vocabulary.ascii(response), for: text)
    }
}

/// The decimal digits of a number.
func decimal(_ number: Int) -> [UInt8] { Array(String(number).utf8) }

/// The number of 1 to 18 decimal digits without leading zeros, or nil.
func number(_ digits: some Collection<UInt8>) -> Int? {
    guard (1...18).contains(digits.count), digits.count == 1 || digits.first != 0x30 else { return nil }
    var value = 0
    for digit in digits {
        guard (0x30...0x39).contains(digit) else { return nil }
        value = 10 * value + Int(digit - 0x30)
    }
    return value
}
