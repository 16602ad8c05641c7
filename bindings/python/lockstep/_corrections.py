"""Corrections: what a token that the rollout policy mu drew is worth to the trainer policy pi.

A correction gives weights (how a token or sequence is weighted) and a mask (who counts).
"""

from __future__ import annotations

import ctypes
from ctypes import sizeof
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple, Sequence

from . import _library as c
from ._batch import Batch, Log, is_ragged
from ._errors import InvalidArgumentError
from ._library import check, choice, int32, library, real
from ._records import reader
from ._tensors import Array


@dataclass(frozen=True)
class Rejection:
    """A rule that keeps a token if ``low <= x <= high``; infinities are no bounds.

    p and q are the probabilities of a token under the two policies, d = ln p - ln q. At the level of a
    sequence or segment x is the sum or mean of its tokens' statistics (of a ratio: exp of the sum or mean of
    d), and all its tokens are judged by it.
    """

    #: "ratio" (p / q), "k2" (d^2 / 2), "k3" (exp(d) - 1 - d), "exp_abs" (exp|d|), "probability_difference"
    #: (p - q), "binary_kl" (KL of the token against all others, with the sign of p - q).
    statistic: str = "ratio"
    #: "token", "sequence_sum", "sequence_mean", "segment_sum", "segment_mean", or "sequence_every": every token
    #: is judged, and one that fails takes its sequence along.
    level: str = "token"
    low: float = -inf
    high: float = inf
    #: "trainer_rollout" (p = pi, q = mu), "current_rollout", "current_trainer".
    policies: str = "trainer_rollout"
    #: "both"; "by_advantage": `high` where A > 0 and `low` where A <= 0; "negative_advantage": where A < 0.
    side: str = "both"


class WeightStatistics(NamedTuple):
    """Of a ratio or weight over units: tokens, sequences or segments. NaN without units."""

    units: int
    mean: float
    #: Of the population: ess = 1 / (1 + (std / mean)^2).
    std: float
    min: float
    max: float
    #: Effective sample size (sum w)^2 / (units sum w^2), in (0, 1]; 0 if all weights are 0.
    ess: float


class RejectionCount(NamedTuple):
    """What one rejection did, whatever the others did."""

    #: Tokens rejected; sequences with all, and with any, of their tokens rejected.
    tokens: int
    sequences: int
    touched_sequences: int
    #: Log ratios that were clamped.
    clamped: int
    #: Values of the statistic (tokens, sequences or segments), their mean, smallest and largest.
    units: int
    mean: float
    min: float
    max: float


@dataclass(frozen=True)
class Correction:
    """Weights, mask, and what was done. A unit is a token, sequence or segment, by the level of the weights."""

    #: The weight of each token, laid out as the log-probs were; 0 where a token does not count. A token that is
    #: rejected keeps its weight.
    weights: Log
    #: Which tokens count and are not rejected.
    kept: Log
    #: What each of `reject` did.
    counts: tuple[RejectionCount, ...]
    #: Whether no token is left: all were rejected, or none counts.
    empty: bool
    #: Tokens that count; that the mask leaves out; that were dropped as non-finite ("exclude").
    tokens: int
    masked_tokens: int
    excluded_tokens: int
    #: Sequences with a token that counts; without.
    sequences: int
    empty_sequences: int
    #: Tokens rejected; sequences with all, and with any, of their tokens rejected.
    rejected_tokens: int
    rejected_sequences: int
    touched_sequences: int
    #: Units whose log ratio was clamped; with a ratio below `low`; above `high`.
    clamped: int
    below: int
    above: int
    #: Tokens that `second_moment` rejected.
    second_moment_tokens: int
    #: Counted tokens of a sequence, the most and in the mean: weights of sequence sums die with length.
    max_sequence_length: int
    mean_sequence_length: float
    #: `second_moment` rejected the tokens with a larger d^2; inf if none.
    second_moment_cut: float
    #: What the weights were divided by: 1 without `normalize`.
    normalizer: float
    #: Before: the ratio, its exponent clamped. After: the weight, before `normalize`, of all units and of those
    #: of which a token is kept.
    ratio: WeightStatistics
    weight: WeightStatistics
    kept_weight: WeightStatistics

    def to_dict(self) -> dict[str, Any]:
        """Everything but the arrays, as plain dicts, lists and numbers."""
        plain = {
            name: value._asdict() if isinstance(value, WeightStatistics) else value
            for name, value in vars(self).items() if name not in ("weights", "kept", "counts")}
        return plain | {"counts": [each._asdict() for each in self.counts]}


def correct(
    trainer_log_probs: Log,
    rollout_log_probs: Log,
    mask: Log | None = None,
    offsets: Array | None = None,
    *,
    weights: str = "truncate",
    level: str = "token",
    low: float = 0.0,
    high: float = 2.0,
    reject: Rejection | Sequence[Rejection] = (),
    second_moment: float = 0.0,
    normalize: bool = False,
    current_log_probs: Log | None = None,
    advantages: Log | None = None,
    log_ratio_min: float = -20.0,
    log_ratio_max: float = 20.0,
    non_finite: str = "strict",
    threads: int = 0,
    instruction_set: str = "best",
) -> Correction:
    """Weights for the tokens of a batch, and which of them to keep.

    Per token d = ln pi - ln mu; at the level of a sequence or segment (a run of counted tokens) their sum or
    mean; r = exp(d). The weight is a function of r; a rejection keeps a token or leaves it out. All rejections
    must keep a token.

    Args:
        trainer_log_probs: ln pi, nats, laid out as in `mismatch`. For two policies, give the current one here.
        rollout_log_probs: ln mu, laid out the same.
        mask: which tokens count, laid out the same.
        offsets: [sequences + 1], for packed logs.
        weights: "truncate" min(r, high), TIS; "clip" r into [low, high]; "mask" r inside [low, high] and 0
            outside, MIS and IcePop; "raw" r; "one" no weights.
        level: of r: "token", "sequence_sum", "sequence_mean", "segment_sum", "segment_mean".
        low, high: bounds of r, 0 <= low <= high. What the weights do not use is still counted.
        reject: rules all of which must keep a token.
        second_moment: not 0: also reject the tokens with the largest d^2, equal ones together, until the mean
            d^2 of the rest is below this (M2PO).
        normalize: divide the weights by their mean over units of `level`, after everything else.
        current_log_probs: of the policy that is updated, if a rejection compares it.
        advantages: [sequences], or laid out as the log-probs, if a rejection has a side.
        log_ratio_min, log_ratio_max: what a log ratio is clamped to before it is exponentiated or squared;
            clamped ones are counted. Infinite: no clamp.
        non_finite: what to do with a NaN or infinity at a token that counts: "strict" is an error naming
            sequence and position, "exclude" drops the token and counts it.
        threads: 0 is one for each processor this process may use.
        instruction_set: see `has_instruction_set`.

    Returns:
        `Correction`. Weights are fp64 where trainer_log_probs are, else fp32. If every token was rejected
        `empty` is true; that is no error.

    Raises:
        InvalidArgumentError: shapes, dtypes, words or bounds that do not fit; a part that a rejection needs
            and that is missing.
        NonFiniteError: a NaN or infinity at a token that counts (strict).

    Example:
        >>> trainer, rollout = np.log([[0.9, 0.3, 0.2]]), np.log([[0.3, 0.3, 0.25]])
        >>> veto = Rejection("ratio", "sequence_every", low=1e-4)
        >>> result = correct(trainer, rollout, high=2.0, reject=[veto])
        >>> result.weights.round(3)
        array([[2. , 1. , 0.8]])
        >>> result.above, result.rejected_tokens
        (1, 0)
    """
    batch = Batch(
        trainer_log_probs=trainer_log_probs, rollout_log_probs=rollout_log_probs, mask=mask, offsets=offsets,
        current_log_probs=current_log_probs, advantages=advantages)
    rules = _rejections(reject)
    options = _options(
        weights, level, low, high, rules, second_moment, normalize, log_ratio_min, log_ratio_max, non_finite,
        threads, instruction_set)
    weight, weight_view = batch.output(c.FLOAT64 if batch.like.code == c.FLOAT64 else c.FLOAT32, "weights")
    kept, kept_view = batch.output(c.BOOL, "kept")
    raw = c.Correction(sizeof(c.Correction))
    counts = (c.RejectionCount * len(rules))()
    check(library.lockstep_correct(
        weight_view.tensor(), kept_view.tensor(), raw, counts, batch.raw, options))
    report = _fields(raw)
    del report["struct_size"]
    empty = bool(report.pop("empty"))
    if is_ragged(trainer_log_probs):
        lengths = [len(each) for each in trainer_log_probs]
        weight, kept = _split(weight, lengths), _split(kept, lengths)
    return Correction(
        weight, kept, tuple(RejectionCount(**_count(each)) for each in counts), empty, **report)


_fields = reader(c.Correction, {c.WeightStatistics: WeightStatistics._make})
_count = reader(c.RejectionCount, {})


def _rejections(reject: Rejection | Sequence[Rejection]) -> ctypes.Array:
    rules = [reject] if isinstance(reject, Rejection) else list(reject)
    raw = (c.Rejection * len(rules))()
    for index, rule in enumerate(rules):
        name = f"reject[{index}]"
        if not isinstance(rule, Rejection):
            raise InvalidArgumentError(f"{name} is {rule!r}; give a lockstep.Rejection")
        raw[index] = c.Rejection(
            choice(c.STATISTICS, rule.statistic, f"{name}: statistic"),
            choice(c.LEVELS, rule.level, f"{name}: level"),
            choice(c.POLICIES, rule.policies, f"{name}: policies"), choice(c.SIDES, rule.side, f"{name}: side"),
            real(rule.low, f"{name}: low"), real(rule.high, f"{name}: high"))
    return raw


def _options(
    weights: str = "truncate", level: str = "token", low: float = 0.0, high: float = 2.0,
    rules: ctypes.Array | tuple = (), second_moment: float = 0.0, normalize: bool = False,
    log_ratio_min: float = -20.0, log_ratio_max: float = 20.0, non_finite: str = "strict", threads: int = 0,
    instruction_set: str = "best",
) -> c.CorrectionOptions:
    return c.CorrectionOptions(
        sizeof(c.CorrectionOptions), choice(c.WEIGHTS, weights, "weights"), choice(c.LEVELS, level, "level"),
        choice(c.NON_FINITE, non_finite, "non_finite"), real(low, "low"), real(high, "high"),
        real(log_ratio_min, "log_ratio_min"), real(log_ratio_max, "log_ratio_max"), bool(normalize),
        int32(threads, "threads"), choice(c.INSTRUCTION_SETS, instruction_set, "instruction_set"), 0,
        real(second_moment, "second_moment"), rules if len(rules) else None, len(rules))


def _split(packed: Array, lengths: list[int]) -> list[Array]:
    """The sequences of a packed array, as views of it."""
    parts, start = [], 0
    for length in lengths:
        parts.append(packed[start:start + length])
        start += length
    return parts
