"""One-sided confidence bounds for statistics of a log, with sequences as the independent draws.

Every bound is of one side at a level alpha: the probability that the truth lies beyond it is at most about
alpha. docs/Certificate.md gives the formulas and error rates that were measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Below this many sequences no standard error is to be trusted.
FEWEST_SEQUENCES = 20


@dataclass(frozen=True)
class Spread:
    """What a bound needs to know of a statistic: its value, and moments of the sequences' influence on it."""

    value: float
    square: float
    """Sum of the squares of the influence values."""
    cube: float
    """Sum of their cubes."""
    high: float
    """The largest, and minus the smallest, of them."""
    low: float
    sequences: int
    like_one_length: float
    """Kish's (sum n)^2 / sum n^2 for a share of tokens, `sequences` for one of sequences."""
    tokens: int
    share: str = ""

    @property
    def standard_error(self) -> float:
        """Clustered by sequence; NaN with fewer than two."""
        k = self.sequences
        return math.sqrt(self.square * k / (k - 1)) if k > 1 else math.nan

    def scaled(self, sequences: int) -> Spread:
        """The same from another number of like sequences."""
        factor = sequences / self.sequences
        return replace(self, square=self.square / factor, cube=self.cube / factor**2, high=self.high / factor,
                       low=self.low / factor, sequences=sequences,
                       like_one_length=self.like_one_length * factor, tokens=round(self.tokens * factor))

    def mirrored(self) -> Spread:
        """Of minus the statistic, or of one minus a share."""
        return replace(self, value=(1 if self.share else 0) - self.value, cube=-self.cube, high=self.low,
                       low=self.high)


def spread(value: float, influence: NDArray[np.float64], *, tokens: int, like_one_length: float,
           share: str = "") -> Spread:
    """The spread of a statistic from the influence of each sequence; these sum to 0."""
    k = len(influence)
    finite = bool(np.isfinite(influence).all())
    square = math.fsum((influence**2).tolist()) if finite else math.nan
    cube = math.fsum((influence**3).tolist()) if finite else math.nan
    return Spread(value, square, cube, float(influence.max(initial=0)), float(-influence.min(initial=0)), k,
                  like_one_length if share == "tokens" else float(k), tokens, share)


def upper(of: Spread, alpha: float) -> float:
    """The bound that the truth is below. NaN where the log is too small for one."""
    return _share_upper(of, alpha) if of.share else of.value + _margin(of, alpha)


def lower(of: Spread, alpha: float) -> float:
    """The bound that the truth is above. NaN where the log is too small for one."""
    return (1 if of.share else 0) - upper(of.mirrored(), alpha)


def _margin(of: Spread, alpha: float) -> float:
    """Student's margin above a value, with the first Edgeworth term for skewness where it widens, as if one
    more sequence like the highest had been seen."""
    k = of.sequences
    if k < FEWEST_SEQUENCES:
        return math.nan
    t = t_quantile(alpha, k - 1)
    square, cube = of.square + of.high**2, of.cube + of.high**3
    skewness = cube / (k + 1) / (square / (k + 1)) ** 1.5 if square > 0 else 0.0
    wide = t + max(skewness, 0.0) * (1 + 2 * t * t) / (6 * math.sqrt(k))
    return of.high + math.sqrt(square * k / (k - 1)) * wide


def _share_upper(of: Spread, alpha: float) -> float:
    if of.sequences == 0:
        return math.nan
    if of.share == "sequences":
        return clopper_pearson_upper(of.value * of.sequences, of.sequences, alpha)
    # What no log of so many sequences excludes: that others of the same source are outside as a whole.
    unseen = 1 - alpha ** (1 / of.like_one_length)
    if not 0 < of.value < 1:
        return unseen if of.value <= 0 else 1.0
    if of.sequences < 2:
        return math.nan
    # Korn and Graubard: Clopper and Pearson's interval with as many independent tokens as give this error.
    variance = of.standard_error**2
    independent = min(of.tokens, of.value * (1 - of.value) / variance) if variance > 0 else of.tokens
    independent *= (t_quantile(alpha, max(of.tokens - 1, 1)) / t_quantile(alpha, of.sequences - 1)) ** 2
    shares = [unseen, clopper_pearson_upper(of.value * independent, independent, alpha)]
    if of.sequences >= FEWEST_SEQUENCES:  # of unequal length or share: more skewed than any binomial
        shares.append(min(1.0, of.value + _margin(of, alpha)))
    return max(shares)


def clopper_pearson_upper(events: float, trials: float, alpha: float) -> float:
    """The share whose chance to show at most so many events is alpha; counts may be fractions.

    Beyond 1,000 events on either side Wilson's interval, which then differs by less than 2 % of its width.
    """
    if events >= trials:
        return 1.0
    if events <= 0:
        return 1 - alpha ** (1 / trials)
    if min(events, trials - events) > 1000:
        z, p = _normal_quantile(1 - alpha), events / trials
        centre, scale = p + z * z / (2 * trials), 1 + z * z / trials
        return (centre + z * math.sqrt(p * (1 - p) / trials + (z / (2 * trials)) ** 2)) / scale
    a, b = events + 1, trials - events
    return _root(lambda x: incomplete_beta(a, b, x) - (1 - alpha), events / trials, 1.0)


@lru_cache(maxsize=256)
def t_quantile(alpha: float, degrees: int) -> float:
    """The value that Student's t exceeds with probability alpha < 1/2."""
    z = _normal_quantile(1 - alpha)
    if degrees > 100_000:
        return z

    def below(t: float) -> float:
        return alpha - incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t)) / 2

    high = 2 * z + 1
    while below(high) < 0:
        high *= 2
    return _root(below, 0.0, high)


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    complete = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - complete) / a
    # Lentz's evaluation from the front; terms alternate between even and odd.
    tiny, fraction, c, d = 1e-300, 1.0, 1.0, 0.0
    for step in range(100_000):
        m = step // 2
        if step == 0:
            term = 1.0
        elif step % 2 == 0:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / ((1 + term * d) or tiny)
        c = (1 + term / c) or tiny
        change = c * d
        fraction *= change
        if step and abs(change - 1) < 1e-15:
            break
    return front * (fraction - 1)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where an increasing function is 0, by the Illinois form of regula falsi, which keeps its bracket."""
    at_low, at_high, side = function(low), function(high), 0
    for _ in range(200):
        if high - low <= 1e-15 * high:
            break
        middle = (low * at_high - high * at_low) / (at_high - at_low)
        if not low < middle < high:
            middle = (low + high) / 2
        value = function(middle)
        if value == 0:
            return middle
        if value < 0:
            low, at_low = middle, value
            at_high = at_high / 2 if side < 0 else at_high
        else:
            high, at_high = middle, value
            at_low = at_low / 2 if side > 0 else at_low
        side = -1 if value < 0 else 1
    return (low + high) / 2


def _normal_quantile(p: float) -> float:
    from statistics import NormalDist  # here, because what it loads takes a megabyte that a report has no need of

    return NormalDist().inv_cdf(p)
