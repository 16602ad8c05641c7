import CLockstep
import Lockstep

// Section 4 of the header, causes.

@_cdecl("lockstep_mismatch_accumulator_causes") @implementation
public func lockstep_mismatch_accumulator_causes(
    _ causes: UnsafeMutablePointer<lockstep_cause_finding>!,
    _ evidence: UnsafeMutablePointer<lockstep_mismatch_evidence>!, _ accumulator: OpaquePointer!
) -> lockstep_status {
    guarded { () throws(LockstepError) in
        try checkArray(UnsafePointer(causes), "causes", count: 1)
        let size = try evidence.map { pointer throws(LockstepError) in try evidenceSize(of: pointer) }
        let judged = try mismatchAccumulator(accumulator, "accumulator").causes()
        for (index, finding) in judged.findings.enumerated() {
            causes[index] = lockstep_cause_finding(finding)
        }
        guard let evidence, let size else { return }
        var figures = lockstep_mismatch_evidence(judged.evidence)
        figures.struct_size = UInt32(size)
        withUnsafeBytes(of: figures) {
            let known = UnsafeRawBufferPointer(rebasing: $0.prefix(size))
            UnsafeMutableRawPointer(evidence).copyMemory(from: known.baseAddress!, byteCount: known.count)
        }
    }
}

/// The size of a caller's evidence struct, which may be newer than this library.
private func evidenceSize(
    of pointer: UnsafeMutablePointer<lockstep_mismatch_evidence>
) throws(LockstepError) -> Int {
    try checkArray(UnsafePointer(pointer), "evidence", count: 1)
    let size = Int(pointer.pointee.struct_size)
    let first = MemoryLayout<lockstep_mismatch_evidence>.size
    guard size >= first, size <= 1 << 16 else {
        throw invalid(
            "evidence: struct_size is \(size); set it to sizeof(lockstep_mismatch_evidence) (\(first))")
    }
    return size
}

extension lockstep_cause_finding {
    fileprivate init(_ finding: CauseFinding) {
        self.init(
            cause: finding.cause.rawValue, reserved: 0, score: finding.score, confidence: finding.confidence)
    }
}

extension lockstep_mismatch_evidence {
    fileprivate init(_ e: CauseEvidence) {
        self.init()
        tokens = Int64(e.tokens)
        sequences = Int64(e.sequences)
        trainer_bf16_share = e.trainerBF16Share
        trainer_fp16_share = e.trainerFP16Share
        rollout_bf16_share = e.rolloutBF16Share
        rollout_fp16_share = e.rolloutFP16Share
        stored_share = e.storedShare
        trainer_above_zero = Int64(e.trainerAboveZero)
        rollout_above_zero = Int64(e.rolloutAboveZero)
        trainer_marks = Int64(e.trainerMarks)
        rollout_marks = Int64(e.rolloutMarks)
        trainer_zeros = Int64(e.trainerZeros)
        trainer_zeros_far = Int64(e.trainerZerosFar)
        rollout_zeros = Int64(e.rolloutZeros)
        rollout_zeros_far = Int64(e.rolloutZerosFar)
        sequences_ahead = Int64(e.sequencesAhead)
        sequences_behind = Int64(e.sequencesBehind)
        pearson = e.pearson
        first_tokens = Int64(e.firstTokens)
        first_far = Int64(e.firstFar)
        last_tokens = Int64(e.lastTokens)
        last_far = Int64(e.lastFar)
        noise_scale = e.noiseScale
        noise_rms = e.noiseRMS
        noise_bits = e.noiseBits
        noise_growth = e.noiseGrowth
        far_share = e.farShare
        far_down = Int64(e.farDown)
        far_up = Int64(e.farUp)
        far_square_share = e.farSquareShare
        slope = e.slope
        slope_r2 = e.slopeR2
        slope_t = e.slopeT
        entropy_scale = e.entropyScale
        slope_square_share = e.slopeSquareShare
        mean_ratio_excess = e.meanRatioExcess
        mean_ratio_t = e.meanRatioT
        share_up = e.shareUp
        one_sidedness = e.oneSidedness
        square_one_sidedness = e.squareOneSidedness
        clustering = e.clustering
        plain_square_share = e.plainSquareShare
        ends_square_share = e.endsSquareShare
        misaligned_square_share = e.misalignedSquareShare
    }
}
