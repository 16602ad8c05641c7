import Testing

@testable import Lockstep

/// The mismatch of a step with noise of a given mean |d|: what `LogProbPair.mismatch` gives.
private func step(
    _ random: inout Random, tokens: Int = 2000, scale: Double, outlier: Double = 0
) throws -> Mismatch {
    let rollout = [Double](repeating: -1, count: tokens)
    var trainer = random.normal(tokens).map { -1 + scale * Double($0) }
    trainer[tokens / 2] += outlier
    return try trainer.withUnsafeBytes { a in
        try rollout.withUnsafeBytes { b in
            try LogProbPair(
                trainer: MatrixView(a.baseAddress, .fp64, rows: tokens / 50, columns: 50),
                rollout: MatrixView(b.baseAddress, .fp64, rows: tokens / 50, columns: 50)
            ).mismatch(execution: Execution(threads: 1))
        }
    }
}

/// Two alarms bit by bit, as some fields are NaN.
private func bits(_ alarm: MonitorAlarm) -> [UInt64] {
    [UInt64(alarm.level.rawValue), UInt64(alarm.statistic.rawValue), UInt64(alarm.step)]
        + [alarm.since ?? -1, alarm.stepsToLearn].map { UInt64(bitPattern: Int64($0)) }
        + [
            alarm.value, alarm.floor, alarm.score, alarm.threshold, alarm.falseAlarmsPer1000,
            alarm.falseAlarmProbability,
        ].map(\.bitPattern)
}

@Suite struct MonitorTests {
    /// Scales of a run: a floor, from `onset` on with |d| doubling in `doubling` steps.
    private func run(
        seed: UInt64, count: Int, onset: Int = .max, doubling: Double = 40, scale: Double = 0.02
    ) throws -> [MonitorAlarm] {
        var random = Random(seed)
        var monitor = try MismatchMonitor()
        return try (0..<count).map { t in
            let growth = exponential(ln2 * Double(max(t - onset, 0)) / doubling)
            return try monitor.update(step: t, try step(&random, scale: scale * growth))
        }
    }

    @Test func aQuietRunIsQuiet() throws {
        for seed in 1...3 as ClosedRange<UInt64> {
            let alarms = try run(seed: seed, count: 400)
            #expect(alarms.prefix(39).allSatisfy { $0.level == .learning && $0.floor.isNaN })
            #expect(alarms[38].stepsToLearn == 1 && alarms[39].stepsToLearn == 0)
            #expect(alarms.dropFirst(39).allSatisfy { $0.level == .ok || $0.level == .watch })
        }
    }

    @Test func growthIsReportedWithItsBeginning() throws {
        for scale in [1e-6, 0.02] {
            let alarms = try run(seed: 7, count: 200, onset: 100, scale: scale)
            let first = try #require(alarms.first { $0.level == .alarm })
            // |d| has grown by less than half by then, and the KL has not doubled much more than once.
            #expect((101...125).contains(first.step))
            #expect((95...first.step).contains(try #require(first.since)))
            #expect(first.score >= first.threshold && first.value > first.floor)
            #expect(first.falseAlarmsPer1000 <= 1 && first.falseAlarmProbability < 0.64)
            #expect(alarms.last?.level == .alarm && alarms.last?.falseAlarmsPer1000 == 0.1)
        }
    }

    @Test func aFewTokensAreSeenByTheMaximum() throws {
        var random = Random(3)
        var monitor = try MismatchMonitor()
        var alarms: [MonitorAlarm] = []
        for t in 0..<120 {
            let mismatch = try step(&random, scale: 0.02, outlier: t < 80 ? 0 : 0.3)
            alarms.append(try monitor.update(step: t, mismatch))
        }
        let first = try #require(alarms.first { $0.level == .alarm })
        #expect(first.statistic == .maxAbsLogRatio && (80...90).contains(first.step))
    }

    /// One broken step, however bad, is no alarm; its ratios overflow here.
    @Test func aSingleOutlierIsNoAlarm() throws {
        var random = Random(5)
        var monitor = try MismatchMonitor()
        for t in 0..<150 {
            let mismatch = try step(&random, scale: 0.02, outlier: t == 60 ? 900 : 0)
            if t == 60 { #expect(mismatch.k3.value == .infinity && mismatch.ess.isNaN) }
            #expect(try monitor.update(step: t, mismatch).level != .alarm)
        }
    }

    @Test func smallerStepsMayBeNoisier() throws {
        var random = Random(11)
        var monitor = try MismatchMonitor()
        for t in 0..<400 {
            let tokens = t >= 40 && t % 3 == 0 ? 100 : 3000
            #expect(
                try monitor.update(step: t, try step(&random, tokens: tokens, scale: 0.02)).level != .alarm)
        }
    }

    @Test func anExactFloorAlarmsAtAnyDifference() throws {
        var random = Random(1)
        var monitor = try MismatchMonitor()
        for t in 0..<50 {
            let alarm = try monitor.update(step: t, try step(&random, scale: 0))
            #expect(alarm.level == (t < 39 ? .learning : .ok))
        }
        for t in 50..<53 {
            let alarm = try monitor.update(step: t, try step(&random, scale: 0, outlier: 1e-6))
            #expect(
                alarm.level == .alarm && alarm.since == 50 && alarm.floor == 0 && alarm.score == .infinity)
            #expect(alarm.falseAlarmsPer1000 == 0 && alarm.falseAlarmProbability == 0)
        }
        #expect(try monitor.update(step: 53, try step(&random, scale: 0)).level == .ok)
    }

    /// Zeros among steps that differ teach no floor; after it, they are low like any low value.
    @Test func zerosAmongOthersAreNotTheFloor() throws {
        var random = Random(2)
        var monitor = try MismatchMonitor()
        for t in 0..<80 {
            let alarm = try monitor.update(step: t, try step(&random, scale: t % 2 == 0 ? 0 : 0.02))
            #expect(alarm.level == (t < 79 ? .learning : .ok))
        }
        for t in 80..<200 {
            #expect(
                try monitor.update(step: t, try step(&random, scale: t % 2 == 0 ? 0 : 0.02)).level != .alarm)
        }
    }

    @Test func stepsWithoutTokensChangeNothing() throws {
        var random = Random(9)
        var (plain, gappy) = (try MismatchMonitor(), try MismatchMonitor())
        for t in 0..<120 {
            let mismatch = try step(&random, scale: t < 90 ? 0.02 : 0.04)
            let expected = try plain.update(step: 2 * t, mismatch)
            #expect(bits(try gappy.update(step: 2 * t, mismatch)) == bits(expected))
            let empty = try gappy.update(step: 2 * t + 1, Mismatch())
            #expect(empty.value.isNaN && empty.level == expected.level && empty.score == expected.score)
        }
    }

    @Test func resetLearnsAnew() throws {
        var random = Random(4)
        var monitor = try MismatchMonitor()
        for t in 0..<60 { _ = try monitor.update(step: t, try step(&random, scale: 0.02)) }
        monitor.reset()
        for t in 0..<120 {  // steps may start anew, at another level
            let alarm = try monitor.update(step: t, try step(&random, scale: 0.2))
            #expect(alarm.level == .learning || alarm.level == .ok || alarm.level == .watch)
            #expect((alarm.level == .learning) == (t < 39))
        }
    }

    @Test func aSavedMonitorGoesOnWithTheSameBits() throws {
        for cut in [0, 1, 39, 40, 41, 95, 130] {
            var random = Random(6)
            var monitor = try MismatchMonitor(options: MonitorOptions(falseAlarmsPer1000: 0.3))
            for t in 0..<cut {
                _ = try monitor.update(step: t, try step(&random, scale: t < 90 ? 0.02 : 0.03))
            }
            var restored = try MismatchMonitor(bytes: monitor.bytes)
            #expect(restored.options == monitor.options && restored.bytes == monitor.bytes)
            for t in cut..<140 {
                let mismatch = try step(&random, scale: t < 90 ? 0.02 : 0.03)
                #expect(
                    bits(try restored.update(step: t, mismatch))
                        == bits(try monitor.update(step: t, mismatch)))
            }
        }
    }

    /// A checksum that fits does not make bytes right: every word is set to hostile values.
    @Test func hostileBytesAreRefusedOrHarmless() throws {
        var random = Random(8)
        for count in [10, 60] {
            var monitor = try MismatchMonitor()
            for t in 0..<count { _ = try monitor.update(step: t, try step(&random, scale: 0.02)) }
            let words = stride(from: 0, to: monitor.bytes.count, by: 8).map { start in
                (0..<8).reduce(UInt64(0)) { $0 | UInt64(monitor.bytes[start + $1]) << UInt64(8 * $1) }
            }
            for index in 0..<words.count - 1 {
                for hostile in [0, 1, .max, 1 << 63, 1 << 40, UInt64(Int64.max), Double.nan.bitPattern] {
                    var spoiled = words
                    spoiled[index] = hostile
                    spoiled[words.count - 1] = spoiled.dropLast().reduce(0xcbf2_9ce4_8422_2325) {
                        ($0 ^ $1) &* 0x100_0000_01b3
                    }
                    let bytes = spoiled.flatMap { word in
                        (0..<8).map { UInt8(truncatingIfNeeded: word >> (8 * $0)) }
                    }
                    guard var loaded = try? MismatchMonitor(bytes: bytes) else { continue }
                    _ = try? loaded.update(step: .max, try step(&random, scale: 0.02))
                    _ = loaded.reading(.maxAbsLogRatio)
                    _ = loaded.bytes
                }
            }
        }
    }

    @Test func damagedBytesAreRefused() throws {
        let bytes = try MismatchMonitor().bytes
        for index in bytes.indices {
            for bit in 0..<8 {
                var spoiled = bytes
                spoiled[index] ^= 1 << UInt8(bit)
                #expect(throws: LockstepError.self) { try MismatchMonitor(bytes: spoiled) }
            }
        }
        for count in 0..<bytes.count {
            #expect(throws: LockstepError.self) { try MismatchMonitor(bytes: bytes.prefix(count)) }
        }
    }

    @Test func badInputIsNamedAndChangesNothing() throws {
        var random = Random(1)
        var monitor = try MismatchMonitor()
        let good = try step(&random, scale: 0.02)
        _ = try monitor.update(step: 5, good)
        let before = monitor.bytes
        func refused(
            _ step: Int, _ word: String, _ kind: LockstepError.Kind, _ spoil: (inout Mismatch) -> Void
        ) {
            var mismatch = good
            spoil(&mismatch)
            do {
                _ = try monitor.update(step: step, mismatch)
                Issue.record("accepted: \(word)")
            } catch {
                #expect(error.kind == kind && error.message.contains(word), "\(error)")
            }
            #expect(monitor.bytes == before)
        }
        refused(5, "step is 5 but the last was 5", .invalidArgument) { _ in }
        refused(-1, "step is -1", .invalidArgument) { _ in }
        refused(6, "k3", .nonFinite) { $0.k3.value = .nan }
        refused(6, "max_abs_log_ratio", .nonFinite) { $0.maxAbsLogRatio = .nan }
        refused(6, "max_abs_log_ratio", .nonFinite) { $0.maxAbsLogRatio = .infinity }
        refused(6, "k3", .invalidArgument) { $0.k3.value = -1 }
        refused(6, "max_abs_log_ratio", .invalidArgument) { $0.maxAbsLogRatio = -1 }
        refused(6, "tokens", .invalidArgument) { $0.tokens = -1 }
        for options in [
            MonitorOptions(learningSteps: 19), MonitorOptions(learningSteps: 1001),
            MonitorOptions(falseAlarmsPer1000: 0.09), MonitorOptions(falseAlarmsPer1000: 11),
            MonitorOptions(falseAlarmsPer1000: .nan),
        ] {
            #expect(throws: LockstepError.self) { try MismatchMonitor(options: options) }
        }
    }

    /// The calibration's table rises, and the two ways to read it are each other's inverse.
    @Test func thresholdsAreATable() {
        for statistic in MonitorStatistic.allCases {
            let scores = MonitorThresholds.rates.map { MonitorThresholds.score(of: statistic, rate: $0) }
            #expect(scores[0] > 0 && zip(scores, scores.dropFirst()).allSatisfy { $0 < $1 })
            for rate in [30, 12, 3, 1, 0.7, 0.2, 0.1] {
                let score = MonitorThresholds.score(of: statistic, rate: rate)
                #expect(abs(MonitorThresholds.rate(of: statistic, score: score) / rate - 1) < 1e-12)
            }
            #expect(MonitorThresholds.score(of: statistic, rate: 100) == scores[0])
            #expect(MonitorThresholds.rate(of: statistic, score: 0) == 30)
            #expect(MonitorThresholds.rate(of: statistic, score: .infinity) == 0.1)
        }
    }
}
