"""What the runs gave: curves over seeds, a summary of each pair and algorithm, and what it comes to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .._mismatch import Estimate
from .experiment import ALGORITHMS, Job, Pair, Settings
from .runs import read_lines

#: Steps that a reward is smoothed over.
SMOOTHED = 25
#: The mean reward that shows a task to be learned.
LEARNED = 0.95


@dataclass(frozen=True)
class Outcome:
    """What a run gave."""

    job: Job
    steps: dict[str, NDArray[np.float64]]
    """Of each step's metric, all steps."""
    probes: dict[str, NDArray[np.float64]]
    """Of each of a probe's figures, and "step", all probes."""
    failed: str | None
    """How it diverged, if it did."""

    def at_end(self, name: str) -> float:
        """The mean of a metric over the last fifth of the steps."""
        return _mean(self.steps.get(name, np.empty(0))[-window(self.job.settings):])

    def over_run(self, name: str) -> float:
        """The mean of a metric over all steps."""
        return _mean(self.steps.get(name, np.empty(0)))

    def probed(self, name: str) -> float:
        """The median of a probe's figure."""
        known = self.probes.get(name, np.empty(0))
        known = known[np.isfinite(known)]
        return float(np.median(known)) if len(known) else math.nan


def read(job: Job, out: Path) -> Outcome:
    """What is in a run's file."""
    steps, probes, failed = read_lines(out / "runs" / f"{job.name}.jsonl")
    return Outcome(job, _columns(steps), _columns(probes), failed)


def _columns(lines: Sequence[dict]) -> dict[str, NDArray[np.float64]]:
    names = [name for name, value in lines[0].items() if not isinstance(value, str)] if lines else []
    return {name: np.array([math.nan if line[name] is None else line[name] for line in lines], float) for name in names}


@dataclass(frozen=True)
class Band:
    """A figure over steps: the mean over seeds, and the least and the most of any."""

    at: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """The runs of one pair and one algorithm."""

    pair: Pair
    algorithm: str
    outcomes: tuple[Outcome, ...]

    @property
    def title(self) -> str:
        """The algorithm as the paper writes it."""
        return ALGORITHMS[self.algorithm]

    @property
    def settings(self) -> Settings:
        """What the runs share."""
        return self.outcomes[0].job.settings

    def over_seeds(self, figure: Callable[[Outcome], float]) -> Estimate:
        """Mean and standard error over the seeds' values; those that are NaN are left out."""
        values = [value for value in map(figure, self.outcomes) if not math.isnan(value)]
        if not values:
            return Estimate(math.nan, math.nan)
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return Estimate(float(np.mean(values)), error)

    def spread(self, figure: Callable[[Outcome], float]) -> tuple[float, float, float]:
        """Mean, least and most over the seeds' values."""
        values = [value for value in map(figure, self.outcomes) if not math.isnan(value)] or [math.nan]
        return float(np.mean(values)), min(values), max(values)

    def at_end(self, name: str) -> Estimate:
        """The mean of a metric over the last fifth of the steps."""
        return self.over_seeds(lambda outcome: outcome.at_end(name))

    def over_run(self, name: str) -> Estimate:
        """The mean of a metric over all steps."""
        return self.over_seeds(lambda outcome: outcome.over_run(name))

    def largest(self, name: str) -> Estimate:
        """The largest value of a metric in a run."""
        return self.over_seeds(lambda outcome: float(np.nanmax(outcome.steps[name])) if outcome.steps else math.nan)

    def probed(self, name: str) -> Estimate:
        """The median of a probe's figure over a run."""
        return self.over_seeds(lambda outcome: outcome.probed(name))

    def best(self) -> Estimate:
        """The best mean reward of consecutive steps."""
        return self.over_seeds(lambda outcome: float(smoothed(outcome.steps["reward_mean"]).max())
                               if outcome.steps else math.nan)

    def learned_at(self) -> Estimate:
        """The step at which the smoothed reward first is `LEARNED`; NaN where none got there."""
        def first(outcome: Outcome) -> float:
            reached = np.flatnonzero(smoothed(outcome.steps["reward_mean"]) >= LEARNED) if outcome.steps else []
            return float(reached[0] + width(outcome)) if len(reached) else math.nan
        return self.over_seeds(first)

    def total(self, name: str) -> int:
        """A count, over all steps of all runs."""
        return int(sum(outcome.steps[name].sum() for outcome in self.outcomes if outcome.steps))

    @property
    def failures(self) -> list[str]:
        """How runs diverged."""
        return [f"seed {outcome.job.seed}: {outcome.failed}" for outcome in self.outcomes if outcome.failed]

    @property
    def differs(self) -> bool:
        """Whether any log-prob of any step differed."""
        return any((outcome.steps["max_abs_log_ratio"] != 0).any() or (outcome.steps["k3"] != 0).any()
                   for outcome in self.outcomes if outcome.steps)

    def band(self, name: str, *, smooth: bool = False) -> Band:
        """A metric over the steps that every seed has."""
        rows = [smoothed(outcome.steps[name]) if smooth else outcome.steps[name]
                for outcome in self.outcomes if outcome.steps]
        first = width(self.outcomes[0]) if smooth else 1
        return _band(rows, lambda count: np.arange(first, first + count, dtype=float))

    def probe_band(self, name: str) -> Band:
        """A probe's figure over the steps that every seed has."""
        rows = [outcome.probes[name] for outcome in self.outcomes if outcome.probes]
        return _band(rows, lambda count: self.outcomes[0].probes["step"][:count])


def _band(rows: list[NDArray[np.float64]], at: Callable[[int], NDArray[np.float64]]) -> Band:
    count = min(map(len, rows), default=0)
    values = np.array([row[:count] for row in rows]).reshape(len(rows), count)
    if not count:
        return Band(*(np.empty(0) for _ in range(4)))
    return Band(at(count), values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def _mean(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def window(settings: Settings) -> int:
    """How many steps are the end of a run: a fifth."""
    return max(1, settings.steps // 5)


def width(outcome: Outcome) -> int:
    """How many steps a reward is smoothed over."""
    return min(SMOOTHED, max(1, outcome.job.settings.steps // 4))


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of `SMOOTHED` consecutive values; of fewer, where there are not four times as many."""
    size = min(SMOOTHED, max(1, len(values) // 4))
    return np.convolve(values, np.full(size, 1 / size), "valid")


def cells(outcomes: Iterable[Outcome]) -> list[Cell]:
    """The outcomes by pair and algorithm, in their order."""
    found: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault((outcome.job.algorithm, outcome.job.pair.name), []).append(outcome)
    return [Cell(group[0].job.pair, group[0].job.algorithm, tuple(group)) for group in found.values()]
