"""Early warning: a training run's mismatch against its own floor, one step at a time."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from ctypes import byref, c_void_p, sizeof
from dataclasses import dataclass

from . import _library as c
from ._errors import InvalidArgumentError
from ._library import check, int32, integer, library, real
from ._mismatch import Mismatch
from ._saved import loaded, saved

_LEVELS = {value: name for name, value in c.MONITOR_LEVELS.items()}
_STATISTICS = {value: name for name, value in c.MONITOR_STATISTICS.items()}


@dataclass(frozen=True)
class Alarm:
    """What a monitor says at a step. True in a condition only where the level is "alarm"."""

    #: "learning" (the floor is not known yet), "ok", "watch" (as high as noise gets ten times as often as an
    #: alarm) or "alarm" (the mismatch has left its floor).
    level: str
    #: The statistic furthest above its floor, for its threshold: "k3", "chi_square" (as mean((r - 1)^2)),
    #: "ess_loss" (1 - ESS) or "max_abs_log_ratio" (for the number of tokens).
    statistic: str
    step: int
    #: First step of the growth, as far as can be told; None where the score is 0.
    since_step: int | None
    #: How many more steps it takes to learn the floor; 0 after that.
    steps_to_learn: int
    #: The statistic at this step (NaN where no token counts), and what the floor lets expect (NaN while learning).
    value: float
    floor: float
    #: Accumulated distance from the floor in its standard deviations (at most 50; inf where a floor of exactly
    #: zero was left), and the score at which the level becomes "alarm".
    score: float
    threshold: float
    #: How often in 1,000 steps noise gets a score this high: 0.1 to 30, the range that was calibrated.
    false_alarms_per_1000: float
    #: The probability that noise gets a score this high within 1,000 steps.
    false_alarm_probability: float

    def __bool__(self) -> bool:
        return self.level == "alarm"


@dataclass(frozen=True)
class Reading:
    """One statistic of a monitor after its last step; fields as in `Alarm`, scale of its logarithm."""

    value: float
    floor: float
    scale: float
    score: float
    threshold: float
    since_step: int | None


class Monitor:
    """Watches the mismatch of a training run and warns when it leaves its own floor.

    One call a step. The first `learning_steps` steps teach the floor; after that each of four statistics that
    the tail of the log ratios moves has a cumulative-sum chart against it. Thresholds are calibrated, so the
    rate of false alarms is known. How it works, what was measured and where it breaks: docs/EarlyWarning.md.

    Not for concurrent use.

    Args:
        false_alarms_per_1000: false alarms tolerated in 1,000 steps, 0.1 to 10.
        learning_steps: steps that teach the floor, 20 to 1000; the calibration was made with 40.

    Raises:
        InvalidArgumentError: an option out of range.

    Example:
        >>> monitor = Monitor()
        >>> for step in range(100):                       # a KL that doubles every 10 steps from step 60
        ...     noise = np.random.default_rng(step).normal(0, 0.05, 4096) * 2 ** (max(step - 60, 0) / 20)
        ...     alarm = monitor.update(step, mismatch(noise - 1, np.full(4096, -1.0)))
        ...     if alarm:
        ...         break
        >>> alarm.level, 60 < step < 75
        ('alarm', True)
    """

    def __init__(self, *, false_alarms_per_1000: float = 1.0, learning_steps: int = 40) -> None:
        pointer = c_void_p()
        check(library.lockstep_monitor_create(
            byref(pointer), _options(false_alarms_per_1000, learning_steps)))
        self._own(pointer)

    def _own(self, pointer: c_void_p) -> None:
        self._pointer = pointer
        weakref.finalize(self, library.lockstep_monitor_destroy, pointer)

    def update(self, step: int, mismatch: Mismatch) -> Alarm:
        """Takes the mismatch of one step, and judges.

        Args:
            step: not negative, and higher than the last; gaps are fine.
            mismatch: of the step's rollouts, all ranks together. One without tokens changes nothing but the step.
                Infinite statistics (ratios that overflow) count as far above any floor.

        Returns:
            `Alarm`.

        Raises:
            InvalidArgumentError: the step does not increase, or `mismatch` is none.
            NonFiniteError: a NaN k3 or max |d| where tokens count. The monitor is as before.
        """
        number = integer(step, "step", -(2**63), 2**63 - 1)
        alarm = c.MonitorAlarm(sizeof(c.MonitorAlarm))
        check(library.lockstep_monitor_update(alarm, self._pointer, number, _watched(mismatch)))
        return Alarm(
            level=_LEVELS[alarm.level], statistic=_STATISTICS[alarm.statistic], step=alarm.step,
            since_step=_step(alarm.since_step), steps_to_learn=alarm.steps_to_learn, value=alarm.value,
            floor=alarm.floor, score=alarm.score, threshold=alarm.threshold,
            false_alarms_per_1000=alarm.false_alarms_per_1000,
            false_alarm_probability=alarm.false_alarm_probability)

    def run(self, steps: Iterable[tuple[int, Mismatch]]) -> Iterator[Alarm]:
        """`update` for each (step, mismatch) of a finished run, one after the other as they are asked for."""
        for step, mismatch in steps:
            yield self.update(step, mismatch)

    def readings(self) -> dict[str, Reading]:
        """Every statistic after the last step, by name: for tables and plots."""
        out = {}
        for name, statistic in c.MONITOR_STATISTICS.items():
            raw = c.MonitorReading()
            check(library.lockstep_monitor_read(raw, self._pointer, statistic))
            out[name] = Reading(raw.value, raw.floor, raw.scale, raw.score, raw.threshold, _step(raw.since_step))
        return out

    def reset(self) -> None:
        """Forgets the floor and learns again, after a change that shifts the level on purpose: another weight
        format, engine version, batch size. Steps may start anew; the options stay."""
        check(library.lockstep_monitor_reset(self._pointer))

    def to_bytes(self) -> bytes:
        """The monitor, to be kept with a checkpoint: `from_bytes` goes on with the same alarms, bit for bit."""
        return saved(library.lockstep_monitor_save, self._pointer)

    @classmethod
    def from_bytes(cls, data: bytes) -> Monitor:
        """The monitor that `to_bytes` saved, options included.

        Raises:
            BadDataError: the bytes are damaged, cut off, or no monitor. UnsupportedError: of a newer version.
        """
        monitor = cls.__new__(cls)
        monitor._own(loaded(library.lockstep_monitor_load, data))
        return monitor

    def __reduce__(self) -> tuple:
        return Monitor.from_bytes, (self.to_bytes(),)


def _options(false_alarms_per_1000: float, learning_steps: int) -> c.MonitorOptions:
    return c.MonitorOptions(
        sizeof(c.MonitorOptions), int32(learning_steps, "learning_steps"),
        real(false_alarms_per_1000, "false_alarms_per_1000"))


def _watched(mismatch: Mismatch) -> c.Mismatch:
    """The statistics a monitor reads, as the library takes them."""
    if not isinstance(mismatch, Mismatch):
        raise InvalidArgumentError(
            f"mismatch is {type(mismatch).__name__}; give what lockstep.mismatch returned")
    raw = c.Mismatch(sizeof(c.Mismatch))
    raw.tokens = integer(mismatch.tokens, "mismatch.tokens", -(2**63), 2**63 - 1)
    raw.k3.value = mismatch.k3.value
    raw.chi_square.value = mismatch.chi_square.value
    raw.mean_ratio.value = mismatch.mean_ratio.value
    raw.ess = mismatch.ess
    raw.max_abs_log_ratio = mismatch.max_abs_log_ratio
    return raw


def _step(step: int) -> int | None:
    return None if step < 0 else step
