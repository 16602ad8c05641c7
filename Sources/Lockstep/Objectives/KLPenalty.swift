import CLockstepKernels

/// The divergence of the current policy from the reference, token by token: for use in rewards.
///
/// - Parameters:
///   - values: where klCoefficient times the estimate goes, times `weights` if the batch has any; fp32 or
///     fp64, in the batch's layout; 0 where no token counts.
///   - gradients: where the derivative with respect to the current log-prob goes.
///   - batch: `current` and `reference`; `weights`, if a correction is meant.
///   - options: of these `kl`, `klGradient` (but not `ratio`: give the ratio as weights), the clamps,
///     `klCoefficient` and `nonFinite` are read.
///   - execution: threads and instruction set; the result does not depend on them.
/// - Throws: `.invalidArgument` for what is missing or does not fit; `.nonFinite`.
public func klPenalty(
    into values: MutableMatrixView, gradients: MutableMatrixView? = nil, of batch: TokenBatch,
    options: ObjectiveOptions, execution: Execution = .init()
) throws(LockstepError) {
    guard options.kl != .none else {
        throw LockstepError(.invalidArgument, "options: kl is none; give an estimator")
    }
    guard options.klGradient != .ratio else {
        throw LockstepError(
            .unsupported, "options: kl_gradient is ratio, which a penalty has none of; give it as weights")
    }
    for (view, name) in [(values, "values"), (gradients, "gradients")] as [(MutableMatrixView?, StaticString)]
    {
        guard let view else { continue }
        guard [.fp32, .fp64].contains(view.format), view.rows == batch.layout.rows,
            view.columns == batch.layout.columns
        else {
            throw LockstepError(
                .invalidArgument,
                "\(name): is [\(view.rows) x \(view.columns)] \(view.format); give fp32 or fp64 "
                    + "[\(batch.layout.rows) x \(batch.layout.columns)]")
        }
    }
    let scan = try ObjectiveScan(batch, options, divergenceOnly: true, execution)
    scan.forEachTask { sequences, _ in
        for sequence in sequences {
            let length = scan.batch.layout.length(of: sequence)
            if length == 0 { continue }
            let place = scan.batch.layout.place(of: sequence)
            var span = scan.span(of: sequence, 0..<length)
            scan.kernels.pointee.objective_kl!(
                values.address(place), values.format.rawValue, gradients?.address(place),
                gradients?.format.rawValue ?? 0, &span, scan.rules.base)
        }
    }
}

/// The next coefficient of an adaptive divergence penalty: a proportional controller (Ziegler and others 2019).
///
/// coefficient (1 + clamp(kl / target - 1, -0.2, 0.2) steps / horizon)
///
/// - Parameters:
///   - coefficient: the present one, at least 0.
///   - kl: the divergence that was measured.
///   - target: the divergence to steer to, above 0.
///   - horizon: steps in which the coefficient changes by at most a fifth, or so; above 0.
///   - steps: how many steps, or samples, since the last update.
/// - Throws: `.invalidArgument` naming what is out of range.
/// - Returns: the next coefficient.
public func adaptedKLCoefficient(
    _ coefficient: Double, kl: Double, target: Double, horizon: Double, steps: Double
) throws(LockstepError) -> Double {
    for (value, name, good) in [
        (coefficient, "coefficient", coefficient >= 0), (kl, "kl", true), (target, "target", target > 0),
        (horizon, "horizon", horizon > 0), (steps, "steps", steps >= 0),
    ] as [(Double, StaticString, Bool)] {
        guard good, value.isFinite else {
            throw LockstepError(.invalidArgument, "\(name) is \(value); give a finite number in its range")
        }
    }
    let error = Swift.min(Swift.max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * steps / horizon)
}
