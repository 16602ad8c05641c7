/// All that a monitor remembers of a run.
struct MonitorState {
    enum Phase { case learning, exact, watching }

    /// Numbers kept of a reference step: the logarithms, and its tokens.
    static let referenceWidth = MonitorStatistic.allCases.count + 1

    /// The last step taken.
    var lastStep: Int?
    /// Tokens and statistics of the last step that had tokens.
    var tokens = 0
    var values = [Double](repeating: .nan, count: MonitorStatistic.allCases.count)
    /// While learning: `referenceWidth` numbers for each step so far that was not exactly zero.
    var reference: [Double] = []
    /// Steps without any difference, while learning.
    var zeroSteps = 0
    /// Where the floor is exactly zero: the first of the last steps that were not.
    var leftZeroAt: Int?
    /// The median tokens of the reference steps.
    var referenceTokens = Double.nan
    /// One for each statistic; none while learning, or where the floor is exactly zero.
    var charts: [MonitorChart] = []
    /// Whether the last judgement was an alarm.
    var isAlarmed = false

    func phase(_ options: MonitorOptions) -> Phase {
        if !charts.isEmpty { return .watching }
        return reference.isEmpty && zeroSteps >= options.learningSteps ? .exact : .learning
    }

    func stepsToLearn(_ options: MonitorOptions) -> Int {
        guard phase(options) == .learning else { return 0 }
        let seen = reference.isEmpty ? zeroSteps : reference.count / Self.referenceWidth
        return options.learningSteps - seen
    }
}

// A saved monitor, little-endian: "LSMONITR", version, number of bytes, then options and state as 64-bit words
// (integers, or the bits of doubles), last a checksum of everything before.
extension MismatchMonitor {
    private static let magic: UInt64 = 0x5254_494e_4f4d_534c
    private static let version: UInt64 = 1

    /// The monitor as bytes, to be kept with a checkpoint.
    public var bytes: [UInt8] {
        var words = Words()
        words.append(Self.magic)
        words.append(Self.version)
        words.append(UInt64(0))  // the size, below
        words.append(options.learningSteps)
        words.append(options.falseAlarmsPer1000)
        words.append(state.lastStep)
        words.append(state.tokens)
        for value in state.values { words.append(value) }
        words.append(state.zeroSteps)
        words.append(state.leftZeroAt)
        words.append(state.referenceTokens)
        words.append(state.isAlarmed ? 1 : 0)
        words.append(state.reference.count)
        for value in state.reference { words.append(value) }
        words.append(state.charts.count)
        for chart in state.charts {
            words.append(chart.floor)
            words.append(chart.scale)
            words.append(chart.score)
            words.append(chart.since)
        }
        words.values[2] = UInt64(8 * (words.values.count + 1))
        words.append(words.checksum)
        return words.values.flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> (8 * $0)) } }
    }

    /// Restores a monitor that `bytes` saved; damaged, cut off or newer bytes are an error.
    public init(bytes: some Collection<UInt8>) throws(LockstepError) {
        func refused(_ what: String) -> LockstepError {
            LockstepError(.badData, "bytes: \(what)")
        }
        let damaged = refused("the saved monitor is damaged; take another copy, or start a new monitor")
        guard bytes.count >= 32, bytes.count % 8 == 0, bytes.count <= 1 << 20 else {
            throw refused("\(bytes.count) bytes are no saved monitor; give all that was saved")
        }
        var words = Words()
        var word: UInt64 = 0
        for (index, byte) in bytes.enumerated() {
            word |= UInt64(byte) << UInt64(8 * (index % 8))
            if index % 8 == 7 {
                words.append(word)
                word = 0
            }
        }
        guard words.values[0] == Self.magic else { throw refused("are not those of a saved monitor") }
        guard words.values[1] == Self.version else {
            throw LockstepError(
                words.values[1] > Self.version ? .unsupported : .badData,
                "bytes: format version \(words.values[1]), but this library (\(versionString)) knows version "
                    + "\(Self.version); load a newer library")
        }
        guard words.values[2] == UInt64(bytes.count) else {
            throw refused(
                "\(bytes.count) bytes, but the saved monitor has \(words.values[2]); give all that was saved")
        }
        guard words.values.removeLast() == words.checksum else { throw damaged }
        words.next = 3

        let options = MonitorOptions(learningSteps: words.integer(), falseAlarmsPer1000: words.double())
        guard (try? MismatchMonitor(options: options)) != nil else { throw damaged }
        var state = MonitorState()
        state.lastStep = words.optional()
        state.tokens = words.integer()
        for index in state.values.indices { state.values[index] = words.double() }
        state.zeroSteps = words.integer()
        state.leftZeroAt = words.optional()
        state.referenceTokens = words.double()
        let isAlarmed = words.integer()
        state.isAlarmed = isAlarmed == 1

        let width = MonitorState.referenceWidth
        let count = words.integer()
        guard count >= 0, count < options.learningSteps * width, count % width == 0, words.has(count) else {
            throw damaged
        }
        state.reference = (0..<count).map { _ in words.double() }
        let charts = words.integer()
        guard charts == 0 || charts == MonitorStatistic.allCases.count, words.has(4 * charts) else {
            throw damaged
        }
        for _ in 0..<charts {
            state.charts.append(
                MonitorChart(
                    floor: words.double(), scale: words.double(), score: words.double(),
                    since: words.optional()))
        }
        guard words.next == words.values.count, (0...1).contains(isAlarmed), state.isPlausible else {
            throw damaged
        }
        self.options = options
        self.state = state
        // What no monitor writes, such as a value where there is none, is damage too.
        guard self.bytes.elementsEqual(bytes) else { throw damaged }
    }
}

extension MonitorState {
    /// Whether it can have come from steps: bytes may carry a right checksum and be wrong all the same.
    fileprivate var isPlausible: Bool {
        tokens >= 0 && zeroSteps >= 0 && zeroSteps < 1 << 40
            && reference.allSatisfy(\.isFinite)
            && (charts.isEmpty || reference.isEmpty && referenceTokens >= 1)
            && charts.allSatisfy {
                $0.floor.isFinite && $0.scale > 0 && $0.scale.isFinite
                    && $0.score >= 0 && $0.score <= MonitorChart.highestScore
                    && ($0.score > 0) == ($0.since != nil)
            }
    }
}

/// A row of 64-bit words, written at the end and read from the front.
private struct Words {
    var values: [UInt64] = []
    var next = 0

    mutating func append(_ value: UInt64) { values.append(value) }
    mutating func append(_ value: Int) { values.append(UInt64(bitPattern: Int64(value))) }
    mutating func append(_ value: Double) { values.append(value.bitPattern) }
    /// Two words: whether there is one, and the value.
    mutating func append(_ value: Int?) {
        append(value == nil ? 0 : 1)
        append(value ?? 0)
    }

    /// Whether that many words are left.
    func has(_ count: Int) -> Bool { values.count - next >= count }

    /// The next word; 0 beyond the end, which the reader notices by the count.
    private mutating func word() -> UInt64 {
        defer { next += 1 }
        return next < values.count ? values[next] : 0
    }

    mutating func integer() -> Int { Int(Int64(bitPattern: word())) }
    mutating func double() -> Double { Double(bitPattern: word()) }
    mutating func optional() -> Int? {
        let isThere = word()
        let value = integer()
        return isThere == 0 ? nil : value
    }

    /// FNV-1a over the words: finds any change of one word, and others but for one in 2^64.
    var checksum: UInt64 {
        values.reduce(0xcbf2_9ce4_8422_2325) { ($0 ^ $1) &* 0x100_0000_01b3 }
    }
}
