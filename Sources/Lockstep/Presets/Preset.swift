/// A named algorithm of the field: how advantages are made, how tokens are weighted and left out, what a token
/// contributes, and how that becomes a loss.
///
/// `description` says all of it, a line for each part, made from the options themselves.
public struct Preset: Sendable, CustomStringConvertible {
    /// Which log-probs stand where.
    public enum Policies: Int32, CaseIterable, Sendable {
        /// The correction compares trainer and rollout, the objective's ratio is current over trainer: decoupled.
        case three = 0
        /// The current policy stands as trainer in the correction, the rollout in the objective: bypass.
        case two = 1
    }

    /// Such as `paper/grpo-token-tis`: whose, and which.
    public let name: String
    /// What it is, in a sentence.
    public let summary: String
    /// Where it is from.
    public let source: String
    /// What of it is inferred and not confirmed; empty if nothing is.
    public let doubts: String
    /// Which log-probs stand where.
    public let policies: Policies
    /// Whether the rollout's log-probs are also the reference's.
    public var referenceIsRollout: Bool { policies == .two && objective.kl != .none }
    /// Weights and mask.
    public let correction: CorrectionOptions
    /// How rewards become advantages.
    public let advantages: AdvantageOptions
    /// Term, aggregation, regularisers; `length` is 0 where the aggregation needs one that no preset can know.
    public let objective: ObjectiveOptions

    init(
        _ name: String, _ summary: String, from source: String, doubts: String = "",
        policies: Policies = .three, _ correction: CorrectionOptions, _ advantages: AdvantageOptions,
        _ objective: ObjectiveOptions
    ) {
        self.name = name
        self.summary = summary
        self.source = source
        self.doubts = doubts
        self.policies = policies
        self.correction = correction
        self.advantages = advantages
        self.objective = objective
    }

    /// The preset of a name, or an error that lists the nearest.
    public init(named name: String) throws(LockstepError) {
        guard let found = Preset.all.first(where: { $0.name == name }) else {
            let shown = String(decoding: name.utf8.prefix(Preset.longest), as: UTF8.self)
            throw LockstepError(
                .invalidArgument,
                "name is '\(shown)', which is no preset; the nearest are "
                    + Preset.nearest(to: shown).joined(separator: ", "))
        }
        self = found
    }

    /// How much of an unknown name is looked at.
    private static let longest = 48

    /// The names to offer for one that is unknown, nearest first: those that hold it, then by distance.
    static func nearest(to name: String, count: Int = 5) -> [String] {
        let wanted = name.utf8.map { (65...90).contains($0) ? $0 + 32 : $0 }
        var distances = all.map { preset in
            let name = Array(preset.name.utf8)
            return holds(name, wanted) ? 0 : distance(from: wanted, to: name)
        }
        return (0..<min(count, all.count)).map { _ in
            // Of equal distances the first in the table.
            let best = distances.indices.min { distances[$0] < distances[$1] }!
            distances[best] = .max
            return all[best].name
        }
    }

    private static func holds(_ name: [UInt8], _ part: [UInt8]) -> Bool {
        guard !part.isEmpty, part.count <= name.count else { return false }
        return (0...name.count - part.count).contains { name[$0..<$0 + part.count].elementsEqual(part) }
    }

    /// How far a name is from what was typed: a byte left out costs 1, as who types a part leaves out much; one too
    /// many, or another, costs 4 (Levenshtein).
    private static func distance(from typed: [UInt8], to name: [UInt8]) -> Int {
        var row = (0...typed.count).map { 4 * $0 }
        for byte in name {
            var diagonal = row[0]
            row[0] += 1
            for column in typed.indices {
                let same = diagonal + (byte == typed[column] ? 0 : 4)
                diagonal = row[column + 1]
                row[column + 1] = min(same, diagonal + 1, row[column] + 4)
            }
        }
        return row[typed.count]
    }
}
