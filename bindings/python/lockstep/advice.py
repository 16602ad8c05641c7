"""What each correction would do to a log, and which thresholds keep its effective sample size.

Everything is a function of two things that stream and merge: moments over sequences for each rule (exact sums,
with standard errors clustered by sequence), and histograms of the log ratios, 256 bins to a power of two, for
the search of thresholds. Both are kept by length class, a power of two, and depend neither on how the log was cut
nor on the order of its parts. Formulas: docs/Advice.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._errors import InvalidArgumentError
from ._exact import ExactSums
from ._mismatch import Log, mismatch_sequences
from .certificate.sums import packed
from .parts import Part

if TYPE_CHECKING:
    from .logs import LogBatch

Column = NDArray[np.float64]

#: Exponents are clamped to this, as corrections do (verl, slime, SkyRL).
CLAMP = 20.0

# A bin is what shares sign, exponent and the first 8 bits of the mantissa.
_BIN_BITS = 8
_SHIFT = 52 - _BIN_BITS

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Rule:
    """A correction, as the weight it gives to a token or to a sequence."""

    name: str
    level: str
    """"token": a mean over tokens, with each token's ratio; "sequence": over sequences, with exp(S)."""
    weight: Callable[[Column, Rows], Column]
    """From d of the tokens and the rows of their sequences, one of each a token; or from the rows alone."""
    source: str
    """Who has it, with that threshold."""
    plain: str = "ratio"
    """What the weight is where the rule does nothing: the "ratio", "one", or its "own"."""


@dataclass(frozen=True)
class Rows:
    """What a rule may know of a sequence."""

    total: Column
    """S"""
    mean: Column
    mean_exp_abs: Column
    k3: Column
    least: Column
    """The smallest d of its tokens."""

    def of(self, owner: NDArray[np.int64]) -> Rows:
        return Rows(*(getattr(self, name)[owner] for name in self.__dataclass_fields__))


def _exp(values: Column) -> Column:
    return np.exp(np.clip(values, -CLAMP, CLAMP))


def _inside(values: Column, low: float, high: float) -> NDArray[np.bool_]:
    """Whether exp(values) is in [low, high]."""
    return (values >= math.log(low)) & (values <= math.log(high))


#: The corrections of the field, with the thresholds in use.
RULES = (
    Rule("none", "token", lambda d, rows: np.ones(len(d)), "weight 1", "one"),
    Rule("token weight", "token", lambda d, rows: _exp(d), "r"),
    Rule("token TIS, C = 2", "token", lambda d, rows: np.minimum(_exp(d), 2.0),
         "min(r, C); verl, SkyRL, slime"),
    Rule("token mask [0.5, 5]", "token", lambda d, rows: np.where(_inside(d, 0.5, 5.0), _exp(d), 0.0),
         "r inside, else 0; IcePop: OpenRLHF, NeMo RL"),
    Rule("geometric mask [0.999, 1.002]", "token",
         lambda d, rows: np.where(_inside(rows.mean, 0.999, 1.002), _exp(d), 0.0),
         "r if exp(mean d) inside, else 0; MLPerf: NeMo RL's seq-mask-tis"),
    Rule("drop mean exp|d| > 2", "token", lambda d, rows: np.where(rows.mean_exp_abs > 2.0, 0.0, 1.0),
         "weight 1 or 0 for a sequence; MLPerf", "one"),
    Rule("drop mean k3 > 0.01", "token", lambda d, rows: np.where(rows.k3 > 0.01, 0.0, 1.0),
         "weight 1 or 0 for a sequence; verl's k3_rs", "one"),
    Rule("veto r < 1e-4", "token", lambda d, rows: np.where(rows.least < math.log(1e-4), 0.0, 1.0),
         "weight 0 for a sequence with such a token; slime", "one"),
    Rule("no sequence weight", "sequence", lambda d, rows: np.ones(len(rows.total)), "weight 1", "one"),
    Rule("sequence weight", "sequence", lambda d, rows: _exp(rows.total), "exp(S)"),
    Rule("sequence TIS, C = 2", "sequence", lambda d, rows: np.minimum(_exp(rows.total), 2.0),
         "min(exp(S), C); verl"),
    Rule("sequence MIS, C = 3", "sequence",
         lambda d, rows: np.where(rows.total <= math.log(3.0), _exp(rows.total), 0.0),
         "exp(S) up to C, else 0; TRL"),
    Rule("geometric weight", "sequence", lambda d, rows: _exp(rows.mean), "exp(mean d); slime, ROLL, AReaL",
         "own"),
)

# The moments of a rule: sums over the units (tokens or sequences) of one sequence.
_UNITS, _RATIO, _RATIO2, _WEIGHT, _WEIGHT2, _GAP, _MODIFIED, _ZEROED, _CLAMPED = range(9)


# The products of two of them that a standard error takes.
_PRODUCTS = (
    *((each, each) for each in (_UNITS, _RATIO, _RATIO2, _WEIGHT, _WEIGHT2, _GAP, _MODIFIED, _ZEROED)),
    *((_UNITS, each) for each in (_RATIO, _RATIO2, _WEIGHT, _WEIGHT2, _GAP, _MODIFIED, _ZEROED)),
    (_RATIO, _RATIO2), (_WEIGHT, _WEIGHT2),
)


class _Moments:
    """The sums of vectors, one a sequence, and of their products."""

    def __init__(self) -> None:
        self.count = 0
        self.sums = ExactSums(9 + len(_PRODUCTS))

    def add(self, vectors: NDArray[np.float64]) -> None:
        self.count += len(vectors)
        one, other = np.transpose(_PRODUCTS)
        self.sums.add(np.concatenate([vectors, vectors[:, one] * vectors[:, other]], 1))

    def merge(self, other: _Moments) -> None:
        self.count += other.count
        self.sums.merge(other.sums)

    @property
    def total(self) -> Column:
        return self.sums.values()[:9]

    @property
    def products(self) -> NDArray[np.float64]:
        """[9 x 9], 0 where no error takes it."""
        out = np.zeros((9, 9))
        for (one, other), value in zip(_PRODUCTS, self.sums.values()[9:], strict=True):
            out[one, other] = out[other, one] = value
        return out

    def estimate(self, value: float, gradient: dict[int, float]) -> tuple[float, float]:
        """A smooth function of the sums, of degree 0, and its error clustered by sequence (delta method)."""
        value = float(value)
        if self.count < 2:
            return value, math.nan
        direction = np.zeros(9)
        for index, slope in gradient.items():
            direction[index] = slope
        square = float(direction @ self.products @ direction) * self.count / (self.count - 1)
        return value, math.sqrt(max(square, 0.0))

    def mean(self, index: int, over: int = _UNITS) -> tuple[float, float]:
        total = self.total
        above, below = total[index], total[over]
        return self.estimate(above / below, {index: 1 / below, over: -above / below**2})

    def ess(self, weight: int, square: int) -> tuple[float, float]:
        w, w2, n = self.total[[weight, square, _UNITS]]
        if w2 == 0:
            return 0.0, 0.0
        value = w * w / (n * w2)
        return self.estimate(value, {weight: 2 * value / w, square: -value / w2, _UNITS: -value / n})


class Histogram:
    """Counts of values in bins of one 256th of a power of two, and of 0: sparse, mergeable."""

    def __init__(self) -> None:
        self.keys, self.counts = np.zeros(0, np.int64), np.zeros(0, np.int64)

    def add(self, values: Column) -> None:
        keys, counts = np.unique((values + 0.0).view(np.int64) >> _SHIFT, return_counts=True)
        self._merge(keys, counts)

    def merge(self, other: Histogram) -> None:
        self._merge(other.keys, other.counts)

    def _merge(self, keys: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        self.keys, inverse = np.unique(np.concatenate([self.keys, keys]), return_inverse=True)
        both = np.concatenate([self.counts, counts])
        self.counts = np.bincount(inverse, both, len(self.keys)).astype(np.int64)

    def bins(self) -> Bins:
        """The bins that hold something, ascending."""
        def of(low_bits: int) -> Column:
            return np.where(self.keys == 0, 0.0, ((self.keys << _SHIFT) | low_bits).view(np.float64))

        middle, inner, outer = of(1 << (_SHIFT - 1)), of(0), of((1 << _SHIFT) - 1)
        order = np.argsort(middle, kind="stable")
        return Bins(*(each[order] for each in (
            middle, np.maximum(inner, outer), np.abs(outer), self.counts.astype(np.float64))))


@dataclass(frozen=True)
class Bins:
    """Bins of a histogram."""

    middle: Column
    last: Column
    """The largest value of the bin, and the largest magnitude: a bound there keeps the bin as a whole."""
    outer: Column
    count: Column

    @classmethod
    def between(cls, lower: Any, upper: Any, count: Any) -> Bins:
        """Bins [lower, upper) of another histogram, such as an accumulator's; ends may be infinite."""
        low, high, n = (np.asarray(each, np.float64) for each in (lower, upper, count))
        low, high = np.clip(low, -CLAMP, CLAMP), np.clip(high, -CLAMP, CLAMP)
        last = np.where(high > low, np.nextafter(high, -math.inf), high)
        order = np.argsort(low, kind="stable")
        columns = (low + (high - low) / 2, last, np.maximum(np.abs(low), np.abs(last)), n)
        return cls(*(each[order] for each in columns))


class _Class:
    """One length class."""

    def __init__(self) -> None:
        self.sequences = self.tokens = 0
        self.rules = {rule.name: _Moments() for rule in RULES}
        self.by_token, self.by_sequence, self.by_mean = Histogram(), Histogram(), Histogram()
        # Of n, S: sums of S, n², S², n S, for the variance of S a token.
        self.spread = ExactSums(4)

    def merge(self, other: _Class) -> None:
        self.sequences += other.sequences
        self.tokens += other.tokens
        self.spread.merge(other.spread)
        for name, moments in self.rules.items():
            moments.merge(other.rules[name])
        for mine, theirs in zip(self._histograms, other._histograms, strict=True):
            mine.merge(theirs)

    def to_blobs(self) -> list[bytes]:
        """The state: one for the sums, two for each histogram."""
        sums = {"sequences": self.sequences, "tokens": self.tokens, "spread": self.spread.to_list(),
                "rules": {name: [of.count, of.sums.to_list()] for name, of in self.rules.items()}}
        return [json.dumps(sums).encode(), *(each.astype("<i8").tobytes() for of in self._histograms
                                             for each in (of.keys, of.counts))]

    @classmethod
    def from_blobs(cls, blobs: list[bytes]) -> _Class:
        out, sums = cls(), json.loads(blobs[0])
        out.sequences, out.tokens = sums["sequences"], sums["tokens"]
        out.spread = ExactSums.from_list(sums["spread"])
        for name, (count, texts) in sums["rules"].items():
            out.rules[name].count, out.rules[name].sums = count, ExactSums.from_list(texts)
        for index, of in enumerate(out._histograms):
            of.keys, of.counts = (np.frombuffer(blob, "<i8") for blob in blobs[2 * index + 1 : 2 * index + 3])
        return out

    @property
    def _histograms(self) -> tuple[Histogram, ...]:
        return self.by_token, self.by_sequence, self.by_mean

    @property
    def variance_per_token(self) -> float:
        """sum (S - n mean d)² / sum n: what S of a sequence varies by, a token of it."""
        if self.sequences < 2:
            return math.nan
        total, n2, s2, ns = self.spread.values()
        mean = total / self.tokens
        return max(float(s2 - 2 * mean * ns + mean * mean * n2), 0.0) / self.tokens


class CorrectionHistograms(Part):
    """What the advice rests on: streamed, mergeable, of a size that does not grow with the log.

    Args:
        label, exclude_non_finite: as in `Part`; the latter for `add_batch`.
    """

    MAGIC = b"LSADVICE"

    def __init__(self, label: str = "", *, exclude_non_finite: bool = False) -> None:
        super().__init__(label, exclude_non_finite=exclude_non_finite)
        self._classes: dict[int, _Class] = {}

    def add_batch(self, batch: LogBatch, *, threads: int = 0) -> None:
        self.add(batch.trainer, batch.rollout, batch.mask, batch.offsets, non_finite=self.non_finite,
                 threads=threads)

    def add(self, trainer: Any, rollout: Any, mask: Any = None, offsets: Any = None, *,
            non_finite: str = "strict", threads: int = 0) -> CorrectionHistograms:
        """Adds whole sequences, laid out as in `lockstep.mismatch`. Returns itself."""
        rows = mismatch_sequences(trainer, rollout, mask, offsets, non_finite=non_finite, threads=threads)
        trainer, rollout, counted, starts = packed(trainer, rollout, mask, offsets)
        first = 0
        while first < len(rows):
            last = max(first + 1, int(np.searchsorted(starts, starts[first] + _CHUNK, "right")) - 1)
            piece = slice(int(starts[first]), int(starts[last]))
            a, b = trainer[piece].astype(np.float64), rollout[piece].astype(np.float64)
            keep = np.isfinite(a) & np.isfinite(b)
            if counted is not None:
                keep &= counted[piece]
            owner = np.repeat(np.arange(last - first), np.diff(starts[first:last + 1]))[keep]
            self._add(a[keep] - b[keep], owner, rows[first:last])
            first = last
        return self

    def _add(self, d: Column, owner: NDArray[np.int64], rows: NDArray) -> None:
        exists = rows["tokens"] > 0
        owner, rows = (np.cumsum(exists) - 1)[owner], rows[exists]
        if not len(rows):
            return
        starts = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
        least = np.minimum.reduceat(d, starts)
        n = rows["tokens"].astype(np.float64)
        known = Rows(rows["log_ratio"], rows["mean_log_ratio"], rows["mean_exp_abs"], rows["k3"], least)
        classes = np.frexp(n)[1] - 1
        vectors = _vectors(d, owner, starts, known)
        for each in np.unique(classes):
            here = classes == each
            into = self._classes.setdefault(int(each), _Class())
            into.sequences += int(here.sum())
            into.tokens += int(n[here].sum())
            for name, values in vectors.items():
                into.rules[name].add(values[here])
            into.by_token.add(d[here[owner]])
            into.by_sequence.add(known.total[here])
            into.by_mean.add(known.mean[here])
            s, m = known.total[here], n[here]
            into.spread.add(np.stack([s, m * m, s * s, m * s], 1))

    def merge(self, other: CorrectionHistograms) -> None:
        super().merge(other)
        for each, theirs in other._classes.items():
            self._classes.setdefault(each, _Class()).merge(theirs)

    def _save(self) -> tuple[dict[str, Any], list[bytes]]:
        classes = [(each, self._classes[each]) for each in sorted(self._classes)]
        return {"classes": [each for each, _ in classes]}, [blob for _, of in classes for blob in of.to_blobs()]

    def _load(self, about: dict[str, Any], blobs: list[bytes]) -> None:
        size = len(blobs) // max(len(about["classes"]), 1)
        for index, each in enumerate(about["classes"]):
            self._classes[each] = _Class.from_blobs(blobs[index * size : (index + 1) * size])

    def whole(self) -> _Class:
        """All length classes as one."""
        total = _Class()
        for each in self._classes.values():
            total.merge(each)
        return total

    def classes(self) -> list[tuple[int, _Class]]:
        """(the shortest length, the class), ascending."""
        return [(1 << each, self._classes[each]) for each in sorted(self._classes)]


def _vectors(d: Column, owner: NDArray[np.int64], starts: NDArray[np.int64],
             rows: Rows) -> dict[str, NDArray[np.float64]]:
    """[sequences x 9] the moments of each rule, by its name; sequence i has the tokens from starts[i] on."""
    def by_sequence(values: Column) -> Column:
        return np.add.reduceat(values, starts, dtype=np.float64)

    of_tokens, vectors = rows.of(owner), {}
    for level, raw, known, total in (("token", d, of_tokens, by_sequence),
                                     ("sequence", rows.total, rows, lambda values: values.astype(np.float64))):
        ratio = _exp(raw)
        common = [total(each) for each in (np.ones(len(raw)), ratio, ratio * ratio, np.abs(raw) > CLAMP)]
        for rule in RULES:
            if rule.level != level:
                continue
            weight = rule.weight(raw, known)
            plain = {"ratio": ratio, "one": 1.0, "own": weight}[rule.plain]
            own = (weight, weight * weight, np.abs(ratio - weight), weight != plain, weight == 0)
            vectors[rule.name] = np.stack([*common[:3], *map(total, own), common[3]], 1)
    return vectors


@dataclass(frozen=True)
class Effect:
    """What one correction does. Pairs are a value and its standard error, clustered by sequence."""

    rule: str
    level: str
    source: str
    modified: tuple[float, float]
    """Share of units that the rule truncates or drops."""
    dropped: tuple[float, float]
    """Share of units of weight 0."""
    ess_before: tuple[float, float]
    """Of the ratios, and of the weights: (sum w)² / (n sum w²)."""
    ess: tuple[float, float]
    bias: tuple[float, float]
    """mean |ratio - weight|: the most by which the mean of anything in [-1, 1] is off, at this level."""
    second_moment: tuple[float, float]
    """mean w²; its root over the root of the number of sequences is the most that chance adds."""
    error: float
    """sqrt(bias² + second_moment / sequences): bias and chance in one, for this many sequences."""
    clamped: int
    """Units whose log ratio was beyond ±20."""


@dataclass(frozen=True)
class Threshold:
    """The threshold of a kind of correction that keeps the wanted effective sample size."""

    kind: str
    value: float
    """The largest C, or the smallest h of [1/h, h]; infinite if none is needed, NaN if none keeps it."""
    ess: float
    modified: float
    bias: float
    """With that threshold, from the histograms."""
    text: str


@dataclass(frozen=True)
class LengthAdvice:
    """One length class: sequences of [shortest, 2 shortest) counted tokens."""

    shortest: int
    sequences: int
    tokens: int
    effects: tuple[Effect, ...]
    thresholds: tuple[Threshold, ...]


@dataclass(frozen=True)
class Advice:
    """What each correction would do to a log."""

    wanted_ess: float
    sequences: int
    tokens: int
    effects: tuple[Effect, ...]
    thresholds: tuple[Threshold, ...]
    by_length: tuple[LengthAdvice, ...]
    variance_per_token: float
    """Of S, a token of its sequence; NaN with fewer than two sequences."""
    half_life: float
    """Tokens after which weights exp(S) have lost half of their effective samples, if their d are independent."""
    longest: float
    """The length up to which they keep the wanted share, on the same assumption."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers; None for NaN and infinity."""
        return _plain(asdict(self))


def advise(
    trainer_log_probs: Log,
    rollout_log_probs: Log,
    mask: Log | None = None,
    offsets: Any | None = None,
    *,
    ess: float = 0.5,
    non_finite: str = "strict",
    threads: int = 0,
) -> Advice:
    """What each correction would do to a log, by length, and which thresholds keep its effective sample size.

    Args:
        trainer_log_probs, rollout_log_probs, mask, offsets: the log, as in `mismatch`.
        ess: the share of effective samples to keep, in (0, 1).
        non_finite: "strict" or "exclude", as in `mismatch`.
        threads: 0 is one for each processor this process may use.

    Returns:
        `Advice`.

    Raises:
        InvalidArgumentError: shapes or options that do not fit, or a log in which no token counts.
        NonFiniteError: a NaN or infinity at a token that counts (strict).

    Example:
        >>> rollout = -np.ones((4, 8), np.float32)
        >>> trainer = rollout.copy()
        >>> trainer[0] += 1.0
        >>> advice = advise(trainer, rollout)
        >>> [effect.modified[0] for effect in advice.effects if effect.rule == "token TIS, C = 2"]
        [0.25]
    """
    return advise_on(CorrectionHistograms().add(
        trainer_log_probs, rollout_log_probs, mask, offsets, non_finite=non_finite, threads=threads), ess=ess)


def advise_on(histograms: CorrectionHistograms, *, ess: float = 0.5) -> Advice:
    """`advise` for a log that was streamed into `CorrectionHistograms`. Arguments and errors as there."""
    if not 0 < ess < 1:
        raise InvalidArgumentError(f"ess: {ess:g} is not between 0 and 1")
    whole = histograms.whole()
    if whole.tokens == 0:
        raise InvalidArgumentError("trainer_log_probs: no token counts, so there is nothing to correct")
    variance = whole.variance_per_token

    def lasts(share: float) -> float:
        if math.isnan(variance):
            return math.nan
        return math.log(1 / share) / variance if variance else math.inf

    return Advice(
        wanted_ess=ess, sequences=whole.sequences, tokens=whole.tokens, effects=_effects(whole),
        thresholds=_thresholds(whole, ess),
        by_length=tuple(
            LengthAdvice(shortest, each.sequences, each.tokens, _effects(each), _thresholds(each, ess))
            for shortest, each in histograms.classes()),
        variance_per_token=variance, half_life=lasts(0.5), longest=lasts(ess))


def _effects(of: _Class) -> tuple[Effect, ...]:
    effects = []
    for rule in RULES:
        moments = of.rules[rule.name]
        bias, second = moments.mean(_GAP), moments.mean(_WEIGHT2)
        effects.append(Effect(
            rule.name, rule.level, rule.source, moments.mean(_MODIFIED), moments.mean(_ZEROED),
            moments.ess(_RATIO, _RATIO2), moments.ess(_WEIGHT, _WEIGHT2), bias, second,
            math.sqrt(bias[0] ** 2 + second[0] / of.sequences), int(moments.total[_CLAMPED])))
    return tuple(effects)


_NONE_NEEDED = "none needed: the ratios themselves keep it"


def _thresholds(of: _Class, wanted: float) -> tuple[Threshold, ...]:
    return thresholds(*(each.bins() for each in (of.by_token, of.by_sequence, of.by_mean)), wanted)


def thresholds(tokens: Bins, sequences: Bins, means: Bins, wanted: float) -> tuple[Threshold, ...]:
    """The thresholds that keep a wanted ESS, from histograms of d, of S, and of the mean d of sequences."""
    return (
        _truncation("token TIS", tokens, wanted), _interval("token mask", tokens, wanted),
        _truncation("sequence TIS", sequences, wanted), _masking("sequence MIS", sequences, wanted),
        _interval("geometric mask", means, wanted, ones=True),
    )


def _truncation(kind: str, bins: Bins, wanted: float) -> Threshold:
    """The largest C of min(r, C). ESS falls with C, so between two bins the largest is found by bisection."""
    ratio, count = _exp(bins.middle), bins.count
    n, total = count.sum(), (count * ratio).sum()

    def at(c: float) -> tuple[float, float, float]:
        weight = np.minimum(ratio, c)
        mean = (count * weight).sum() / n
        return (float(mean**2 / ((count * weight**2).sum() / n)), float(count[ratio > c].sum() / n),
                float(total / n - mean))

    raw = at(math.inf)
    if raw[0] >= wanted:
        return Threshold(kind, math.inf, *raw, _NONE_NEEDED)
    low, high = float(ratio.min()), float(ratio.max())  # at the smallest ratio all weights are equal
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if at(middle)[0] >= wanted else (low, middle)
    return Threshold(kind, low, *at(low), _upper_bound(low))


def _masking(kind: str, bins: Bins, wanted: float) -> Threshold:
    """The largest C of "r up to C, else 0" among the ends of bins."""
    return _largest(kind, _exp(bins.middle), bins.count, _exp(bins.last), wanted)


def _interval(kind: str, bins: Bins, wanted: float, ones: bool = False) -> Threshold:
    """The smallest h of "r (or 1) inside [1/h, h], else 0" among the ends of bins."""
    order = np.argsort(bins.outer, kind="stable")
    weight, count = np.ones(len(order)) if ones else _exp(bins.middle[order]), bins.count[order]
    return _largest(kind, weight, count, _exp(bins.outer[order]), wanted, smallest=True)


def _largest(kind: str, weight: Column, count: Column, bound: Column, wanted: float,
             smallest: bool = False) -> Threshold:
    """The largest, or smallest, bound up to which weights may be kept; bounds ascend with the bins."""
    n = count.sum()
    kept, square, units = (np.cumsum(count * each) for each in (weight, weight**2, np.ones(len(count))))
    with np.errstate(invalid="ignore", divide="ignore"):
        ess = kept**2 / (n * square)
    if not smallest and ess[-1] >= wanted:
        return Threshold(kind, math.inf, float(ess[-1]), 0.0, 0.0, _NONE_NEEDED)
    enough = np.flatnonzero(ess >= wanted)
    if not enough.size:
        return Threshold(kind, math.nan, math.nan, math.nan, math.nan, "no threshold keeps it")
    at = enough[0 if smallest else -1]
    value = float(bound[at])
    at = np.searchsorted(bound, value, "right") - 1  # with what else is within the bound
    text = f"[{1 / value:.5g}, {value:.5g}]" if smallest else _upper_bound(value)
    cut, bias = 1 - units[at] / n, (kept[-1] - kept[at]) / n
    return Threshold(kind, value, float(ess[at]), float(cut), float(bias), text)


def _upper_bound(c: float) -> str:
    return f"C = {c:.4g}" + (": below 1, so it cuts weights that nothing is wrong with" if c < 1 else "")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
