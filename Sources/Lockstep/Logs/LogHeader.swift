/// What the rollout's log-probs are the log-probs of.
///
/// Raw values are those of `lockstep_log_prob_mode`.
public enum LogProbMode: Int32, Sendable {
    /// Nobody said.
    case unknown = 0
    /// The model's own distribution, before temperature and truncation.
    case raw = 1
    /// The distribution that was sampled from, after temperature and truncation.
    case processed = 2
}

/// What is true of a whole log: who wrote it, with which engines and which sampling.
///
/// Everything is optional.
public struct LogHeader: Equatable, Sendable {
    /// One of the two engines and its recipe; the formats are free text such as "bf16".
    public struct Engine: Equatable, Sendable {
        /// Name of the engine, such as "vLLM" or "FSDP".
        public var name: String?
        /// Its version.
        public var version: String?
        /// The weights it ran with, if the whole log is of one: a checkpoint or a step.
        public var weights: String?
        /// Number format of the body: weights and activations.
        public var body: String?
        /// Number format of the head's product.
        public var head: String?
        /// Number format of the logits that the log-softmax saw.
        public var logits: String?

        /// Creates a description; what is left out is not known.
        public init(
            name: String? = nil, version: String? = nil, weights: String? = nil, body: String? = nil,
            head: String? = nil, logits: String? = nil
        ) {
            self.name = name
            self.version = version
            self.weights = weights
            self.body = body
            self.head = head
            self.logits = logits
        }
    }

    /// A free key with its value.
    public struct Pair: Equatable, Sendable {
        /// The key; not empty, and of one pair only.
        public var key: String
        /// The value.
        public var value: String

        /// Creates a pair.
        public init(_ key: String, _ value: String) {
            self.key = key
            self.value = value
        }
    }

    /// Name of the model.
    public var model: String?
    /// The engine that trains.
    public var trainer = Engine()
    /// The engine that samples.
    public var rollout = Engine()
    /// Sampling temperature; 0 is greedy.
    public var temperature: Double?
    /// Nucleus sampling; 1 is none.
    public var topP: Double?
    /// Sampling from the largest k; 0 is none.
    public var topK: Int?
    /// Least probability, as a share of the largest; 0 is none.
    public var minP: Double?
    /// What the rollout's log-probs are the log-probs of.
    public var logProbMode = LogProbMode.unknown
    /// When the log was begun, in seconds since 1970-01-01 UTC.
    public var created: Int64?
    /// Anything else; written in the order of the keys' bytes.
    public var extra: [Pair] = []

    /// The version of the format that a header is written in and was read from.
    public static let formatVersion = Int32(LogFormat.version)

    /// Creates a header in which nothing is known.
    public init() {}
}

extension LogHeader {
    /// The largest text of a field, and the largest header, in bytes.
    static let largestText = 65_535
    static let largest = 1 << 20

    /// A field as it is stored.
    struct Field: Equatable {
        var tag: UInt16
        var bytes: [UInt8]
    }

    private enum Tag {
        static let model: UInt16 = 1
        static let created: UInt16 = 2
        static let logProbMode: UInt16 = 3
        static let temperature: UInt16 = 4
        static let topP: UInt16 = 5
        static let minP: UInt16 = 6
        static let topK: UInt16 = 7
        static let trainer: UInt16 = 16
        static let rollout: UInt16 = 32
        static let pair: UInt16 = 64
    }

    private static let engineTexts:
        [(name: StaticString, path: WritableKeyPath<Engine, String?> & Sendable)] = [
            ("engine", \.name), ("version", \.version), ("weights", \.weights), ("body", \.body),
            ("head", \.head),
            ("logits", \.logits),
        ]

    /// The fields in the order of their tags, checked.
    func fields() throws(LockstepError) -> [Field] {
        var fields: [Field] = []
        func add(_ tag: UInt16, _ text: String?, _ name: @autoclosure () -> String) throws(LockstepError) {
            guard let text, !text.isEmpty else { return }
            let bytes = Array(text.utf8)
            guard bytes.count <= LogHeader.largestText, !bytes.contains(0) else {
                throw LockstepError(
                    .invalidArgument,
                    "header: \(name()) has \(bytes.count) bytes; give at most 65,535, none of them 0")
            }
            fields.append(Field(tag: tag, bytes: bytes))
        }
        func add<Number: FixedWidthInteger>(_ tag: UInt16, _ number: Number?) {
            guard let number else { return }
            fields.append(Field(tag: tag, bytes: withUnsafeBytes(of: number.littleEndian, Array.init)))
        }
        func check(
            _ value: Double?, _ name: String, _ range: String, _ good: (Double) -> Bool
        ) throws(LockstepError) {
            guard let value, !good(value) else { return }
            throw LockstepError(.invalidArgument, "header: \(name) is \(value); give \(range)")
        }
        try check(temperature, "temperature", "0 or more, finite") { $0 >= 0 && $0.isFinite }
        try check(topP, "top_p", "a number in (0, 1]") { $0 > 0 && $0 <= 1 }
        try check(minP, "min_p", "a number in [0, 1]") { $0 >= 0 && $0 <= 1 }
        if let topK, topK < 0 || topK > Int(Int32.max) {
            throw LockstepError(.invalidArgument, "header: top_k is \(topK); give 0 to 2,147,483,647")
        }
        try add(Tag.model, model, "model")
        add(Tag.created, created)
        if logProbMode != .unknown { add(Tag.logProbMode, UInt32(logProbMode.rawValue)) }
        add(Tag.temperature, temperature?.bitPattern)
        add(Tag.topP, topP?.bitPattern)
        add(Tag.minP, minP?.bitPattern)
        add(Tag.topK, topK.map { UInt32($0) })
        for (side, first, engine) in [("trainer", Tag.trainer, trainer), ("rollout", Tag.rollout, rollout)] {
            for (index, text) in LogHeader.engineTexts.enumerated() {
                try add(first + UInt16(index), engine[keyPath: text.path], "\(side)_\(text.name)")
            }
        }
        let pairs = extra.map { (key: Array($0.key.utf8), value: Array($0.value.utf8)) }
            .sorted { $0.key.lexicographicallyPrecedes($1.key) }
        for (index, (key, value)) in pairs.enumerated() {
            guard !key.isEmpty, key.count + value.count < LogHeader.largestText, !key.contains(0),
                !value.contains(0)
            else {
                throw LockstepError(
                    .invalidArgument,
                    "header: the pair \"\(String(decoding: key.prefix(40), as: UTF8.self))\" has an empty key, "
                        + "a byte 0, or more than 65,534 bytes")
            }
            guard index == 0 || pairs[index - 1].key != key else {
                throw LockstepError(
                    .invalidArgument,
                    "header: the key \"\(String(decoding: key, as: UTF8.self))\" is given twice; give it once"
                )
            }
            fields.append(Field(tag: Tag.pair, bytes: key + [0] + value))
        }
        return fields
    }

    /// The header that `fields` describe; nil if one is not what its tag says.
    ///
    /// Unknown tags are passed over.
    init?(fields: [Field]) {
        self.init()
        var before: (tag: UInt16, key: [UInt8]) = (0, [])
        for field in fields {
            let key = field.tag == Tag.pair ? Array(field.bytes.prefix { $0 != 0 }) : []
            guard
                field.tag > before.tag
                    || field.tag == Tag.pair && before.tag == Tag.pair
                        && before.key.lexicographicallyPrecedes(key)
            else { return nil }
            before = (field.tag, key)
            guard read(field) else { return nil }
        }
    }

    private mutating func read(_ field: Field) -> Bool {
        func number<Number: FixedWidthInteger>(_: Number.Type) -> Number? {
            guard field.bytes.count == MemoryLayout<Number>.size else { return nil }
            return field.bytes.withUnsafeBytes { Number(littleEndian: $0.loadUnaligned(as: Number.self)) }
        }
        func double(_ good: (Double) -> Bool) -> Double? {
            number(UInt64.self).map(Double.init(bitPattern:)).flatMap { good($0) ? $0 : nil }
        }
        switch field.tag {
        case Tag.model: model = LogHeader.text(field.bytes[...])
        case Tag.created: created = number(Int64.self)
        case Tag.logProbMode:
            guard let mode = number(UInt32.self).flatMap({ LogProbMode(rawValue: Int32(bitPattern: $0)) }),
                mode != .unknown
            else { return false }
            logProbMode = mode
        case Tag.temperature: temperature = double { $0 >= 0 && $0.isFinite }
        case Tag.topP: topP = double { $0 > 0 && $0 <= 1 }
        case Tag.minP: minP = double { $0 >= 0 && $0 <= 1 }
        case Tag.topK: topK = number(UInt32.self).flatMap { $0 <= Int32.max ? Int($0) : nil }
        case Tag.trainer..<Tag.trainer + 6, Tag.rollout..<Tag.rollout + 6:
            let path = LogHeader.engineTexts[Int(field.tag & 15)].path
            let text = LogHeader.text(field.bytes[...])
            if field.tag < Tag.rollout {
                trainer[keyPath: path] = text
            } else {
                rollout[keyPath: path] = text
            }
            return text != nil
        case Tag.pair:
            guard let cut = field.bytes.firstIndex(of: 0), let key = LogHeader.text(field.bytes[..<cut]),
                let value = cut + 1 == field.bytes.count ? "" : LogHeader.text(field.bytes[(cut + 1)...])
            else { return false }
            extra.append(Pair(key, value))
            return true
        default: return true
        }
        // A known tag whose value was not understood leaves its field empty.
        return switch field.tag {
        case Tag.model: model != nil
        case Tag.created: created != nil
        case Tag.temperature: temperature != nil
        case Tag.topP: topP != nil
        case Tag.minP: minP != nil
        case Tag.topK: topK != nil
        default: true
        }
    }

    /// Text that is UTF-8, not empty, and without a byte 0.
    private static func text(_ bytes: ArraySlice<UInt8>) -> String? {
        guard !bytes.isEmpty, bytes.count <= largestText, !bytes.contains(0) else { return nil }
        return String(validating: bytes, as: UTF8.self)
    }

    /// The name of the first field in which two headers differ, the time of creation aside.
    func difference(from other: LogHeader) -> String? {
        var (mine, theirs) = (self, other)
        mine.created = nil
        theirs.created = nil
        mine.extra.sort { $0.key.utf8.lexicographicallyPrecedes($1.key.utf8) }
        theirs.extra.sort { $0.key.utf8.lexicographicallyPrecedes($1.key.utf8) }
        let names: [(String, Bool)] = [
            ("model", mine.model == theirs.model), ("temperature", mine.temperature == theirs.temperature),
            ("top_p", mine.topP == theirs.topP), ("top_k", mine.topK == theirs.topK),
            ("min_p", mine.minP == theirs.minP), ("log_prob_mode", mine.logProbMode == theirs.logProbMode),
        ]
        if let different = names.first(where: { !$0.1 }) { return different.0 }
        for (side, a, b) in [
            ("trainer", mine.trainer, theirs.trainer), ("rollout", mine.rollout, theirs.rollout),
        ] {
            for text in LogHeader.engineTexts where a[keyPath: text.path] != b[keyPath: text.path] {
                return "\(side)_\(text.name)"
            }
        }
        return mine.extra == theirs.extra ? nil : "the free pairs"
    }
}
