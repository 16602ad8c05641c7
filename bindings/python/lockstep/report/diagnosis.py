"""Everything a report says about one log, measured by the core; here it is only gathered."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import lockstep

from ..logs import Log

# Rows handled at once by the checks below, so that they need no copy of a large log.
CHUNK = 1 << 20

# What vLLM writes for a log-prob it did not compute (ChatCompletionLogProb's default).
VLLM_FLOOR = -9999.0

# A float32 log-softmax can end a few units in the last place above 0, a bf16 one at 0.03125 and more.
ABOVE_ZERO = 1e-4


@dataclass(frozen=True)
class Checks:
    """What the stored log-probs themselves give away, over tokens that count."""

    trainer_stored_as: str | None
    """"bf16" or "fp16" where at least 99 % of the values lie on that format's grid, else None."""
    rollout_stored_as: str | None
    trainer_above_zero: int
    """Log-probs above 0 by more than float32 rounds: no distribution has them, a 16-bit log-softmax does."""
    rollout_above_zero: int
    at_vllm_floor: int
    """Rollout log-probs of exactly -9999, vLLM's mark for "not computed"."""


@dataclass(frozen=True)
class SequenceWeight:
    """How the weight exp(S) of a whole sequence fares with its length.

    If the log ratios of tokens are independent, S of T tokens varies with `variance_per_token` x T, and
    the effective sample size of log-normal weights is exp(-variance). An extrapolation.
    """

    variance_per_token: float
    """sum over sequences of (S - n mean d)^2, over tokens; NaN with fewer than two sequences."""

    def ess(self, length: float) -> float:
        """The expected ESS of sequences of `length` tokens."""
        return math.exp(-min(self.variance_per_token * length, 745.0))

    @property
    def half_life(self) -> float:
        """The length in tokens at which half of the effective samples is left; infinite without noise."""
        return math.log(2) / self.variance_per_token if self.variance_per_token else math.inf


@dataclass(frozen=True)
class Diagnosis:
    """One log, measured."""

    log: Log
    statistics: lockstep.Mismatch
    sequences: NDArray
    """``[sequences]`` with the fields of lockstep_mismatch_sequence."""
    checks: Checks
    sequence_weight: SequenceWeight

    @property
    def label(self) -> str:
        return self.log.label


def diagnose(log: Log, *, exclude_non_finite: bool = False, threads: int = 0) -> Diagnosis:
    """Measures one log.

    Args:
        log: what a reader of `lockstep.logs` returned.
        exclude_non_finite: drop and count tokens with a non-finite log-prob, instead of raising.
        threads: 0 for one for each processor; the result does not depend on it.

    Raises:
        lockstep.NonFiniteError: a token that counts has a non-finite log-prob.
    """
    non_finite = "exclude" if exclude_non_finite else "strict"
    columns = (log.trainer, log.rollout, log.mask, log.offsets)
    statistics = lockstep.mismatch(*columns, non_finite=non_finite, threads=threads)
    sequences = lockstep.mismatch_sequences(*columns, non_finite=non_finite, threads=threads)
    return Diagnosis(log, statistics, sequences, _checks(log), _sequence_weight(sequences))


def profile(log: Log, axis: str, edges: Sequence[float] | NDArray, *, threads: int = 0) -> NDArray:
    """Statistics by bucket of "position", "probability" or "log_ratio"; non-finite tokens are left out."""
    return lockstep.mismatch_profile(log.trainer, log.rollout, log.mask, log.offsets, axis=axis,
                                     edges=edges, non_finite="exclude", threads=threads)


@dataclass(frozen=True)
class WorstToken:
    """A token with a large |d|, and where it is."""

    sequence: int
    position: int
    """Index in its sequence, prompt included."""
    token_id: int | None
    trainer: float
    rollout: float

    @property
    def log_ratio(self) -> float:
        return self.trainer - self.rollout

    @property
    def ratio(self) -> float:
        return math.exp(min(self.log_ratio, 709.0))


def worst_tokens(log: Log, count: int) -> list[WorstToken]:
    """The `count` tokens of largest |d|, largest first; the earlier of equals first. None with d = 0."""
    best: list[tuple[float, int]] = []
    for start, trainer, rollout, counted in _chunks(log):
        distance = np.where(counted, np.abs(trainer.astype(np.float64) - rollout), -1.0)
        least = np.partition(distance, -count)[-count] if len(distance) > count else 0.0
        top = np.concatenate([np.flatnonzero(distance > least), np.flatnonzero(distance == least)[:count]])
        best += [(-float(distance[i]), start + int(i)) for i in top if distance[i] > 0]
        best = sorted(best)[:count]
    tokens = []
    for _, index in best:
        sequence = int(np.searchsorted(log.offsets, index, side="right")) - 1
        tokens.append(WorstToken(
            sequence=sequence, position=index - int(log.offsets[sequence]),
            token_id=None if log.token_ids is None else int(log.token_ids[index]),
            trainer=float(log.trainer[index]), rollout=float(log.rollout[index])))
    return tokens


def worst_sequences(diagnosis: Diagnosis, count: int) -> list[int]:
    """The `count` sequences of largest |S|, largest first; the earlier of equals first."""
    order = np.argsort(-np.abs(diagnosis.sequences["log_ratio"]), kind="stable")
    return [int(index) for index in order if diagnosis.sequences["tokens"][index] > 0][:count]


def _chunks(log: Log) -> Iterator[tuple[int, NDArray, NDArray, NDArray]]:
    """(first index, trainer, rollout, counted) over pieces of a log; counted tokens are finite."""
    for start in range(0, len(log.mask), CHUNK):
        piece = slice(start, start + CHUNK)
        trainer, rollout = log.trainer[piece], log.rollout[piece]
        yield start, trainer, rollout, log.mask[piece] & np.isfinite(trainer) & np.isfinite(rollout)


def _on_bf16_grid(values: NDArray) -> NDArray:
    return (values.view(np.uint32) & 0xFFFF) == 0


def _on_fp16_grid(values: NDArray) -> NDArray:
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(np.float16).astype(np.float32) == values


def _checks(log: Log) -> Checks:
    grids = {"bf16": _on_bf16_grid, "fp16": _on_fp16_grid}
    seen = {"trainer": 0, "rollout": 0}
    on_grid = {(side, name): 0 for side in seen for name in grids}
    above = {"trainer": 0, "rollout": 0}
    floor = 0
    for _, trainer, rollout, counted in _chunks(log):
        for side, column in (("trainer", trainer), ("rollout", rollout)):
            values = column[counted & (column != 0)]  # 0 lies on every grid and says nothing
            seen[side] += len(values)
            above[side] += int(np.count_nonzero(values > ABOVE_ZERO))
            for name, test in grids.items():
                on_grid[side, name] += int(np.count_nonzero(test(values)))
        floor += int(np.count_nonzero(counted & (rollout == np.float32(VLLM_FLOOR))))

    def stored_as(side: str) -> str | None:
        # By chance a float32 lies on fp16's grid once in 2^13 and on bf16's once in 2^16, so a hundred
        # values of which 99 % do leave no doubt. bf16 first: most of its values are fp16 values too.
        if seen[side] >= 100:
            for name in grids:
                if on_grid[side, name] >= 0.99 * seen[side]:
                    return name
        return None

    return Checks(stored_as("trainer"), stored_as("rollout"), above["trainer"], above["rollout"], floor)


def _sequence_weight(sequences: NDArray) -> SequenceWeight:
    counted = sequences[sequences["tokens"] > 0]
    if len(counted) < 2:
        return SequenceWeight(math.nan)
    mean = counted["log_ratio"].sum() / counted["tokens"].sum()
    residual = counted["log_ratio"] - mean * counted["tokens"]
    return SequenceWeight(float((residual**2).sum() / counted["tokens"].sum()))
