"""Everything a report says about one log: its survey, and what follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from numpy.typing import NDArray

import lockstep

from ..survey import Place, Survey


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
class WorstToken:
    """A token with a large |d|, and where it is."""

    place: Place | None
    position: int
    """Index in its sequence, prompt included, from 0."""
    token_id: int | None
    trainer: float
    rollout: float
    log_ratio: float

    @property
    def ratio(self) -> float:
        return math.exp(min(self.log_ratio, 709.0))


@dataclass(frozen=True)
class WorstSequence:
    """A sequence with a large |S|, and where it is."""

    place: Place | None
    values: NDArray
    """One row of `MismatchAccumulator.worst_sequences`: tokens, log_ratio (S), mean_log_ratio…"""


class Diagnosis:
    """One log, measured."""

    def __init__(self, survey: Survey):
        self.survey = survey
        self.statistics = survey.statistics

    @property
    def label(self) -> str:
        return self.survey.label

    @cached_property
    def sequence_weight(self) -> SequenceWeight:
        """From the clustered error of mean d: k / (k - 1) sum (S - n mean d)^2 = (error x tokens)^2."""
        sequences, tokens = self.statistics.sequences, self.statistics.tokens
        if sequences < 2:
            return SequenceWeight(math.nan)
        error = self.statistics.mean_log_ratio.standard_error
        return SequenceWeight(error * error * tokens * (sequences - 1) / sequences)

    @cached_property
    def causes(self) -> list[lockstep.Cause]:
        """What may have made the mismatch: every cause, those found first."""
        return self.survey.total.causes()

    @property
    def evidence(self) -> lockstep.CauseEvidence:
        """The figures behind the causes."""
        return self.causes[0].evidence

    @cached_property
    def alarms(self) -> list[lockstep.Alarm]:
        """What the early warning says at each training step."""
        monitor = lockstep.Monitor()
        return [monitor.update(step, values) for step, values in self.steps]

    @property
    def alarm_since(self) -> int | None:
        """The step since which the mismatch has left its floor, if it ever did."""
        return next((alarm.since_step for alarm in self.alarms if alarm), None)

    @cached_property
    def steps(self) -> list[tuple[int, lockstep.Mismatch]]:
        """The statistics of each training step, in order; empty where the log does not say which."""
        return self.survey.by_step()

    def profile(self, axis: str) -> NDArray:
        """Statistics by bucket of "position", "probability" or "log_ratio"."""
        return self.survey.total.profile(axis)

    @cached_property
    def worst_tokens(self) -> list[WorstToken]:
        """The tokens of largest |d|, largest first. None with d = 0."""
        tokens = []
        for row in self.survey.total.worst():
            sequence, position = int(row["id"]), int(row["position"])
            rollout, log_ratio = float(row["rollout_log_prob"]), float(row["log_ratio"])
            tokens.append(WorstToken(
                self.survey.place(sequence), position, self.survey.token_id(sequence, position), rollout + log_ratio,
                rollout, log_ratio))
        return tokens

    @cached_property
    def worst_sequences(self) -> list[WorstSequence]:
        """The sequences of largest |S|, largest first."""
        return [WorstSequence(self.survey.place(int(row["id"])), row) for row in self.survey.total.worst_sequences()]
