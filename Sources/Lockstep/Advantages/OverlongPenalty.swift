/// DAPO's soft penalty of long responses: 0 up to `maxLength - buffer` tokens, then falling evenly to `-factor`
/// at `maxLength`, and staying there.
///
/// - Parameters:
///   - length: counted tokens of the response.
///   - maxLength: the length limit, in tokens.
///   - buffer: in how many tokens before the limit the penalty grows; 1 to `maxLength`.
///   - factor: the penalty at the limit, 0 or more.
/// - Throws: `.invalidArgument` for a number out of range.
/// - Returns: what is added to the reward.
public func overlongPenalty(
    length: Int, maxLength: Int, buffer: Int, factor: Double = 1
) throws(LockstepError) -> Double {
    guard maxLength > 0 else {
        throw LockstepError(.invalidArgument, "max_length is \(maxLength); give the length limit, 1 or more")
    }
    guard (1...maxLength).contains(buffer) else {
        throw LockstepError(.invalidArgument, "buffer is \(buffer); give 1 to max_length, \(maxLength)")
    }
    guard factor >= 0, factor.isFinite else {
        throw LockstepError(.invalidArgument, "factor is \(factor); give a finite number, 0 or more")
    }
    guard length >= 0 else {
        throw LockstepError(.invalidArgument, "lengths: \(length); a length cannot be negative")
    }
    let excess = min(max(length - (maxLength - buffer), 0), buffer)
    return excess == 0 ? 0 : -(Double(excess) / Double(buffer) * factor)
}

/// Writes the penalty of each length, as `overlongPenalty(length:maxLength:buffer:factor:)`.
///
/// - Throws: `.invalidArgument` for a number out of range; nothing is written then.
public func overlongPenalties(
    _ lengths: TokenView, into penalties: MutableVectorView, maxLength: Int, buffer: Int, factor: Double
) throws(LockstepError) {
    func penalty(_ length: Int) throws(LockstepError) -> Double {
        try overlongPenalty(length: length, maxLength: maxLength, buffer: buffer, factor: factor)
    }
    _ = try penalty(0)
    for index in 0..<lengths.count { _ = try penalty(lengths[index]) }
    for index in 0..<lengths.count { penalties.store(try penalty(lengths[index]), at: index) }
}
