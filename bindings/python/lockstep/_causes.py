"""What may have caused a mismatch, judged from the log alone."""

from __future__ import annotations

from ctypes import c_void_p, sizeof
from dataclasses import dataclass, fields

from . import _library as c
from ._library import check, library

_NAMES = {value: name for name, value in c.CAUSES.items()}


@dataclass(frozen=True)
class CauseEvidence:
    """The figures from which causes are judged: `lockstep_mismatch_evidence` of the header, which says what
    each is; docs/Causes.md has the formulas."""

    tokens: int
    sequences: int
    trainer_bf16_share: float
    trainer_fp16_share: float
    rollout_bf16_share: float
    rollout_fp16_share: float
    stored_share: float
    trainer_above_zero: int
    rollout_above_zero: int
    trainer_marks: int
    rollout_marks: int
    trainer_zeros: int
    trainer_zeros_far: int
    rollout_zeros: int
    rollout_zeros_far: int
    sequences_ahead: int
    sequences_behind: int
    pearson: float
    first_tokens: int
    first_far: int
    last_tokens: int
    last_far: int
    noise_scale: float
    noise_rms: float
    noise_bits: float
    noise_growth: float
    far_share: float
    far_down: int
    far_up: int
    far_square_share: float
    slope: float
    slope_r2: float
    slope_t: float
    entropy_scale: float
    slope_square_share: float
    mean_ratio_excess: float
    mean_ratio_t: float
    share_up: float
    one_sidedness: float
    square_one_sidedness: float
    clustering: float
    plain_square_share: float
    ends_square_share: float
    misaligned_square_share: float


@dataclass(frozen=True)
class Cause:
    """How much speaks for one cause.

    `name` is one of temperature, raw_log_probs, truncation, stored_in_16_bits, misalignment, ends, outliers,
    other_weights, rounding, unknown. `lockstep.report.explain` puts it in words.
    """

    name: str
    #: About which share of the sum of d^2 it explains if it is there, in [0, 1].
    score: float
    #: How strongly the log shows it, in [0, 1].
    confidence: float
    #: The figures behind it, the same for all causes of a log.
    evidence: CauseEvidence

    @property
    def found(self) -> bool:
        """Whether it counts as found: a confidence of 1/2 or more."""
        return self.confidence >= 0.5


def causes(accumulator: c_void_p) -> list[Cause]:
    """The causes of what an accumulator holds."""
    findings = (c.CauseFinding * c.CAUSE_COUNT)()
    raw = c.MismatchEvidence(sizeof(c.MismatchEvidence))
    check(library.lockstep_mismatch_accumulator_causes(findings, raw, accumulator))
    evidence = CauseEvidence(**{each.name: getattr(raw, each.name) for each in fields(CauseEvidence)})
    return [Cause(_NAMES[each.cause], each.score, each.confidence, evidence) for each in findings]
