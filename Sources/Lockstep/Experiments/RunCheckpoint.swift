/// How a run's checkpoints are taken up again.
public struct ResumeOptions: Equatable, Sendable {
    /// Take the newest checkpoint that is whole, if newer ones are damaged; else a damaged one is an error.
    public var allowsOlder: Bool

    /// Creates options.
    public init(allowsOlder: Bool = false) { self.allowsOlder = allowsOlder }
}

/// A checkpoint of a run: a folder `step-N` in the run's folder (docs/ReinforcementLearning.md).
///
/// It is written under another name, brought to the disk and then named, so that a folder of that name is whole; older
/// ones are removed only then.
struct RunCheckpoint {
    /// What stands in run.json.
    struct State {
        var step: Int
        var updates: Int
        var scaler: [UInt8]
        /// Of a reinforcement learning run.
        var monitor: [UInt8]?
    }

    private static let version = 1
    private static let prefix = "step-"
    private static let checksums = "checksums.txt"

    // MARK: Writing

    /// Writes a checkpoint, and removes those before the last `kept`.
    ///
    /// - Throws: `.file`, with what the system says; the checkpoints that were there are still there.
    /// - Returns: its folder.
    static func write(
        to folder: String, _ learner: Learner, _ model: StartingModel, _ state: State,
        configuration: [(name: String, value: String)], keeping kept: Int
    ) throws(LockstepError) -> String {
        try SystemFolder.make(folder)
        try clean(folder)
        let digits = String(state.step)
        let name = prefix + String(repeating: "0", count: max(0, 8 - digits.utf8.count)) + digits
        let (unfinished, final) = ("\(folder)/.\(name)", "\(folder)/\(name)")
        try SystemFolder.make(unfinished)
        do throws(LockstepError) {
            try fill(unfinished, learner, model, state, configuration)
            // A run that went back to an older checkpoint comes by a step again.
            if SystemFile.exists(final) { try SystemFolder.rename(final, to: "\(folder)/.\(name).old") }
            try SystemFolder.rename(unfinished, to: final)
        } catch {
            SystemFolder.remove(unfinished)
            try? clean(folder)
            throw LockstepError(
                error.kind, "checkpoint of step \(state.step): \(error.message); those before it are kept")
        }
        SystemFolder.sync(folder)
        SystemFolder.remove("\(folder)/.\(name).old")
        // It is there: what cannot be removed now is removed after the next.
        for old in ((try? steps(in: folder)) ?? []).dropLast(max(kept, 1)) {
            SystemFolder.remove("\(folder)/\(old)")
        }
        return final
    }

    private static func fill(
        _ folder: String, _ learner: Learner, _ model: StartingModel, _ state: State,
        _ configuration: [(name: String, value: String)]
    ) throws(LockstepError) {
        try ModelFolder.write(to: folder, learner.trainer, model)
        let parameters = learner.trainer.parameters
        var moments: [SafeTensors.Values] = []
        for (stem, base) in [
            ("exp_avg", learner.optimizer.firstMoments), ("exp_avg_sq", learner.optimizer.secondMoments),
        ] {
            for tensor in parameters.tensors {
                moments.append(
                    SafeTensors.Values(
                        name: "\(stem).\(tensor.name)", shape: tensor.shape,
                        base: UnsafePointer(base.baseAddress!) + tensor.range.lowerBound))
            }
        }
        try SafeTensors.write(moments, to: "\(folder)/optimizer.safetensors")
        var members: [String: JSON] = [
            "version": .integer(version), "step": .integer(state.step), "updates": .integer(state.updates),
            "scaler": .string(hex(state.scaler)), "library": .string("\(versionString)"),
            "configuration": .object(
                Dictionary(configuration.map { ($0.name, JSON.string($0.value)) }, uniquingKeysWith: { $1 })),
        ]
        if let monitor = state.monitor { members["monitor"] = .string(hex(monitor)) }
        try SystemFile.write(Array(JSON.object(members).text().utf8), to: "\(folder)/run.json")
        var text = ""
        for name in try SystemFolder.names(in: folder) {
            let (size, crc) = try checksum("\(folder)/\(name)")
            text += "\(hex(crc)) \(size) \(name)\n"
        }
        text += "\(hex(Array(text.utf8).withUnsafeBytes { CRC32C.checksum($0) }))\n"
        try SystemFile.write(Array(text.utf8), to: "\(folder)/\(checksums)")
        SystemFolder.sync(folder)
    }

    /// Removes what an earlier process left unfinished.
    ///
    /// One that died between the two names of a step that it came by again left the first of them under another: that gets
    /// its name back.
    private static func clean(_ folder: String) throws(LockstepError) {
        let names = try SystemFolder.names(in: folder)
        for name in names where name.hasPrefix(".\(prefix)") {
            if let step = replaced(name), !names.contains(step) {
                try SystemFolder.rename("\(folder)/\(name)", to: "\(folder)/\(step)")
            } else {
                SystemFolder.remove("\(folder)/\(name)")
            }
        }
    }

    /// The name of a checkpoint that is out of the way of another of the same step; nil for other names.
    private static func replaced(_ name: String) -> String? {
        name.hasPrefix(".\(prefix)") && name.hasSuffix(".old") ? String(name.dropFirst().dropLast(4)) : nil
    }

    // MARK: Reading

    /// The checkpoint folders of a run, oldest first.
    private static func steps(in folder: String) throws(LockstepError) -> [String] {
        let names = try SystemFolder.names(in: folder)
        let waiting = names.compactMap { name in
            replaced(name).flatMap { names.contains($0) ? nil : (step: $0, name: name) }
        }
        let whole = names.filter { $0.hasPrefix(prefix) }.map { (step: $0, name: $0) }
        return (whole + waiting).sorted { $0.step < $1.step }.map(\.name)
    }

    /// Finds the newest checkpoint, or the newest that is whole; nil if there is none at all.
    static func newest(in folder: String, _ options: ResumeOptions) throws(LockstepError) -> String? {
        var failure: LockstepError?
        for name in try steps(in: folder).reversed() {
            do throws(LockstepError) {
                try verify("\(folder)/\(name)")
                return "\(folder)/\(name)"
            } catch {
                if error.kind == .outOfMemory { throw error }
                failure = failure ?? error
                if !options.allowsOlder { break }
            }
        }
        if let failure { throw failure }
        return nil
    }

    /// Throws unless all files of a checkpoint are those that were written.
    private static func verify(_ folder: String) throws(LockstepError) {
        func damaged(_ what: String) -> LockstepError {
            LockstepError(
                .badData,
                "\(folder): the checkpoint is damaged (\(what)); remove it, or resume from an older one by option"
            )
        }
        let path = "\(folder)/\(checksums)"
        guard SystemFile.exists(path) else { throw damaged("\(checksums) is missing") }
        let text = try contents(of: path)
        var lines = text.split(separator: UInt8(ascii: "\n")).map { Array($0) }
        guard let last = lines.popLast(), text.count > last.count,
            last == Array(hex(text.dropLast(last.count + 1).withUnsafeBytes { CRC32C.checksum($0) }).utf8)
        else { throw damaged("\(checksums) has another checksum") }
        for line in lines {
            let parts = line.split(separator: UInt8(ascii: " "), maxSplits: 2)
            guard parts.count == 3 else { throw damaged("\(checksums) is no list of files") }
            let name = String(decoding: parts[2], as: UTF8.self)
            guard SystemFile.exists("\(folder)/\(name)") else { throw damaged("\(name) is missing") }
            let (size, crc) = try checksum("\(folder)/\(name)")
            guard Array(parts[0]) == Array(hex(crc).utf8), Array(parts[1]) == Array("\(size)".utf8) else {
                throw damaged("\(name) is not what was written")
            }
        }
    }

    /// Sets a learner to what a checkpoint says.
    ///
    /// - Throws: `.invalidArgument` naming a setting that is another than the checkpoint's; `.badData`.
    static func read(
        _ folder: String, into learner: Learner, _ model: StartingModel,
        configuration: [(name: String, value: String)]
    ) throws(LockstepError) -> State {
        let path = "\(folder)/run.json"
        let json = try JSON(contentsOf: path)
        guard json["version"]?.integer == version, let step = json["step"]?.integer, step >= 0,
            let updates = json["updates"]?.integer, updates >= 0,
            let scaler = json["scaler"]?.string.flatMap(bytes),
            case .object(let saved)? = json["configuration"]
        else {
            throw LockstepError(
                .badData, "\(path): is not that of a run this library (\(versionString)) can go on with")
        }
        for (name, value) in configuration where saved[name]?.string != value {
            throw LockstepError(
                .invalidArgument,
                "\(folder): \(name) is '\(saved[name]?.string ?? "")' in the checkpoint but '\(value)' here; a run goes on "
                    + "as it began, so give the same, or begin another")
        }
        var monitor: [UInt8]?
        if let text = json["monitor"]?.string {
            monitor = bytes(text)
            if monitor == nil { throw LockstepError(.badData, "\(path): monitor is damaged") }
        }
        try ModelFolder.read(folder, into: learner.trainer, model)
        let moments = try SafeTensors(path: "\(folder)/optimizer.safetensors")
        for (stem, base) in [
            ("exp_avg", learner.optimizer.firstMoments), ("exp_avg_sq", learner.optimizer.secondMoments),
        ] {
            try moments.readFloats(learner.trainer.parameters, into: base) { "\(stem).\($0)" }
        }
        learner.optimizer.step = updates
        learner.scaler = try LossScaler(bytes: scaler)
        return State(step: step, updates: updates, scaler: scaler, monitor: monitor)
    }

    // MARK: Bytes

    private static func contents(of path: String) throws(LockstepError) -> [UInt8] {
        let file = try SystemFile(path, SystemFile.readOnly)
        let size = min(try file.size(), 1 << 20)
        let memory = try Scratch<UInt8>(count: size)
        let got = try file.read(into: memory.base, at: 0, count: size)
        return Array(UnsafeBufferPointer(start: memory.base, count: got))
    }

    private static func checksum(_ path: String) throws(LockstepError) -> (size: Int, crc: UInt32) {
        let file = try SystemFile(path, SystemFile.readOnly)
        let part = 1 << 20
        let memory = try Scratch<UInt8>(count: part)
        var (size, crc) = (0, UInt32(0))
        while true {
            let got = try file.read(into: memory.base, at: size, count: part)
            if got == 0 { return (size, crc) }
            crc = CRC32C.checksum(UnsafeRawBufferPointer(start: memory.base, count: got), after: crc)
            size += got
        }
    }

    static func hex(_ crc: UInt32) -> String {
        hex((0..<4).reversed().map { UInt8(truncatingIfNeeded: crc >> (8 * $0)) })
    }

    private static func hex(_ bytes: [UInt8]) -> String {
        let digits = Array("0123456789abcdef".utf8)
        return String(
            decoding: bytes.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] }, as: UTF8.self)
    }

    private static func bytes(_ text: String) -> [UInt8]? {
        func digit(_ character: UInt8) -> UInt8? {
            switch character {
            case 0x30...0x39: character - 0x30
            case 0x61...0x66: character - 0x61 + 10
            default: nil
            }
        }
        let text = Array(text.utf8)
        var bytes: [UInt8] = []
        guard text.count % 2 == 0 else { return nil }
        for place in stride(from: 0, to: text.count, by: 2) {
            guard let high = digit(text[place]), let low = digit(text[place + 1]) else { return nil }
            bytes.append(high << 4 | low)
        }
        return bytes
    }
}
