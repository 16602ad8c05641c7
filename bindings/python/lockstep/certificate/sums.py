"""What a log comes to by sequence, and the statistics that follow, each with its influence values.

Sequences are the independent draws, tokens of one sequence are not. A statistic here is a smooth function
of sums over sequences; `influence` gives what each sequence adds to its first-order error, from which
`bounds` takes standard error and skewness. Sums are exact (`math.fsum`) and sequences are put into the order of
the log, so the order in which they arrive, and how the log was cut, change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _mismatch
from .._errors import InvalidArgumentError
from ..parts import Part

if TYPE_CHECKING:
    from ..logs import LogBatch

Column = NDArray[np.float64]

# The bands of r, decided by d against the logarithms of their bounds, bounds included, as the core does.
_BANDS = {"mlperf": (0.999, 1.002), "1pct": (0.99, 1.01), "5pct": (0.95, 1.05), "10pct": (0.9, 1.1)}
_COLUMNS = ("tokens", "log_ratio", "magnitude", "k3", "exp_magnitude", "square", "ratio", "ratio_square",
            "probability_gap", "differing", *(f"outside_{band}" for band in _BANDS), "largest")
# Where a sequence stands: its file and line; file -1 and its id, or its number, where it is of no file.
_PLACE = {"file": np.dtype("<i8"), "line": np.dtype("<u8")}

# Tokens handled at once: their float64 copies take 8 MB each.
_CHUNK = 1 << 20


class SequenceSums(Part):
    """Sums over the tokens of each sequence that has a token that counts: 136 bytes a sequence.

    Args:
        label, exclude_non_finite: as in `Part`; the latter for `add_batch`.
    """

    MAGIC = b"LSSEQSUM"

    def __init__(self, label: str = "", *, exclude_non_finite: bool = False) -> None:
        super().__init__(label, exclude_non_finite=exclude_non_finite)
        self._parts: list[dict[str, NDArray]] = []
        self.sequences_read = 0
        self.tokens_read = 0
        #: Where the first token is whose two log-probs differ: (file, line) as in `columns`, position from 0.
        self.first_difference: tuple[int, int, int] | None = None

    def add_batch(self, batch: LogBatch, *, threads: int = 0) -> None:
        self.add(batch.trainer, batch.rollout, batch.mask, batch.offsets, non_finite=self.non_finite, threads=threads,
                 places=(batch.file_of, np.where(batch.file_of < 0, batch.ids, batch.lines.astype(np.uint64))))

    def add(self, trainer: Any, rollout: Any, mask: Any = None, offsets: Any = None, *,
            non_finite: str = "strict", threads: int = 0, places: tuple[Any, Any] | None = None) -> SequenceSums:
        """Adds whole sequences, laid out as in `lockstep.mismatch`. Returns itself.

        Args:
            places: (file, line) of each sequence, as in `columns`; by default sequences are numbered as they come,
                which depends on the cut: give them where sums will be merged.
        """
        rows = _mismatch.mismatch_sequences(trainer, rollout, mask, offsets, non_finite=non_finite,
                                            threads=threads)
        trainer, rollout, counted, starts = packed(trainer, rollout, mask, offsets)
        if places is None:
            places = np.full(len(rows), -1), self.sequences_read + np.arange(len(rows))
        where = {name: np.asarray(place, dtype) for (name, dtype), place in zip(_PLACE.items(), places, strict=True)}
        extra = {name: np.zeros(len(rows)) for name in _COLUMNS if name not in rows.dtype.names}
        first = 0
        while first < len(rows):  # as many whole sequences as make up a chunk
            last = max(first + 1, int(np.searchsorted(starts, starts[first] + _CHUNK, "right")) - 1)
            self._measure(extra, first, last, trainer, rollout, counted, starts, where)
            first = last
        exists = rows["tokens"] > 0
        tokens = rows["tokens"].astype(np.float64)
        part = extra | {"tokens": tokens, "log_ratio": rows["log_ratio"],
                        "magnitude": rows["mean_abs_log_ratio"] * tokens, "k3": rows["k3"] * tokens,
                        "exp_magnitude": rows["mean_exp_abs"] * tokens, "largest": rows["max_abs_log_ratio"]} | where
        self._parts.append({name: np.ascontiguousarray(part[name][exists]) for name in (*_COLUMNS, *_PLACE)})
        self.sequences_read += len(rows)
        self.tokens_read += int(starts[-1] - starts[0])
        self.__dict__.pop("columns", None)
        return self

    def merge(self, other: SequenceSums) -> None:
        super().merge(other)
        self._parts += other._parts
        self.sequences_read += other.sequences_read
        self.tokens_read += other.tokens_read
        self._differs(other.first_difference)
        self.__dict__.pop("columns", None)

    def _differs(self, at: tuple[int, int, int] | None) -> None:
        """Takes over a difference before the first one. Of one line, that which comes first."""
        if at is not None and (self.first_difference is None or at[:2] < self.first_difference[:2]):
            self.first_difference = at

    def _save(self) -> tuple[dict[str, Any], list[bytes]]:
        return {
            "sequences_read": self.sequences_read, "tokens_read": self.tokens_read,
            "first_difference": self.first_difference,
        }, [self.columns[name].astype(_PLACE.get(name, "<f8")).tobytes() for name in (*_COLUMNS, *_PLACE)]

    def _load(self, about: dict[str, Any], blobs: list[bytes]) -> None:
        self.sequences_read, self.tokens_read = about["sequences_read"], about["tokens_read"]
        self.first_difference = about["first_difference"] and tuple(about["first_difference"])
        self._parts = [{name: np.frombuffer(blob, _PLACE.get(name, "<f8"))
                        for name, blob in zip((*_COLUMNS, *_PLACE), blobs, strict=True)}]

    def _measure(self, out: dict[str, Column], first: int, last: int, trainer: NDArray, rollout: NDArray,
                 counted: NDArray | None, starts: NDArray, where: dict[str, NDArray]) -> None:
        """The columns of sequences [first, last) that the core does not give."""
        begin, end = int(starts[first]), int(starts[last])
        a, b = (column[begin:end].astype(np.float64) for column in (trainer, rollout))
        keep = np.isfinite(a) & np.isfinite(b)
        if counted is not None:
            keep &= counted[begin:end]
        owner = np.repeat(np.arange(last - first), np.diff(starts[first:last + 1]))[keep]
        a, b = a[keep], b[keep]
        d = a - b

        def total(values: NDArray) -> Column:
            return np.bincount(owner, values, last - first)

        rows = slice(first, last)
        with np.errstate(over="ignore", invalid="ignore"):
            ratio = np.exp(d)
            out["square"][rows] = total(d * d)
            out["ratio"][rows] = total(ratio)
            out["ratio_square"][rows] = total(ratio * ratio)
            out["probability_gap"][rows] = total(np.abs(np.exp(a) - np.exp(b)))
        differing = a != b
        out["differing"][rows] = total(differing)
        for band, (low, high) in _BANDS.items():
            out[f"outside_{band}"][rows] = total((d < math.log(low)) | (d > math.log(high)))
        found = np.flatnonzero(out["differing"][rows]) + first
        if found.size:
            sequence = int(found[np.lexsort([where[name][found] for name in reversed(_PLACE)])[0]])
            own = np.flatnonzero(keep)[(owner == sequence - first) & differing]
            self._differs((int(where["file"][sequence]), int(where["line"][sequence]),
                           int(own[0]) + begin - int(starts[sequence])))

    def take(self, rows: NDArray[np.int64]) -> SequenceSums:
        """The sums of some of the sequences, by their indices among those that count; for resampling."""
        taken = SequenceSums()
        taken._parts = [{name: column[rows] for name, column in self.columns.items()}]
        taken.sequences_read, taken.tokens_read = len(rows), int(taken["tokens"].sum())
        return taken

    @cached_property
    def columns(self) -> dict[str, NDArray]:
        """Each sum, one value a sequence, in the order of the log; and "file" and "line", where it stands: file -1
        and the id, or the number, of a sequence that is of no file."""
        joined = {name: np.concatenate([part[name] for part in self._parts]) if self._parts
                  else np.zeros(0, _PLACE.get(name, np.float64)) for name in (*_COLUMNS, *_PLACE)}
        order = np.lexsort([joined[name] for name in reversed(_PLACE)])
        self._parts = [{name: column[order] for name, column in joined.items()}]
        return self._parts[0]

    @property
    def first_difference_told(self) -> str:
        """Where the first token is whose two log-probs differ, as the end of a sentence."""
        if self.first_difference is None:
            return ""
        file, line, position = self.first_difference
        name = self.files[file].path if file in self.files else f"file {file}"
        where = f"sequence {line}" if file < 0 else f"{name}, line {line},"
        return f", the first in {where} at position {position} (from 0)"

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]

    def total(self, name: str) -> float:
        return fsum(self[name])

    @property
    def sequences(self) -> int:
        """Sequences with a token that counts."""
        return len(self["tokens"])

    @property
    def tokens(self) -> int:
        """Tokens that count."""
        return int(self.total("tokens"))

    @property
    def like_one_length(self) -> float:
        """(sum n)^2 / sum n^2: as many sequences of one length carry as much."""
        return self.tokens**2 / fsum(self["tokens"] ** 2) if self.sequences else 0.0


def fsum(values: Column) -> float:
    """The exact sum, rounded once; NaN where infinities meet."""
    try:
        return math.fsum(values.tolist())
    except (OverflowError, ValueError):
        return math.nan


def packed(trainer: Any, rollout: Any, mask: Any,
            offsets: Any) -> tuple[NDArray, NDArray, NDArray | None, NDArray]:
    """The log as NumPy arrays and offsets, once the core has accepted it."""
    if isinstance(trainer, (list, tuple)) and not any(isinstance(each, (int, float)) for each in trainer):
        lengths = [np.size(each) for each in trainer]
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

        def joined(parts: Any) -> NDArray:
            return np.concatenate([_array(each).reshape(-1) for each in parts]) if parts else np.zeros(0)

        return joined(trainer), joined(rollout), None if mask is None else joined(mask) != 0, starts
    trainer, rollout = _array(trainer), _array(rollout)
    if offsets is not None:
        starts = _array(offsets).astype(np.int64)
    elif trainer.ndim == 2:
        starts = np.arange(trainer.shape[0] + 1, dtype=np.int64) * trainer.shape[1]
    else:
        starts = np.array([0, trainer.size], np.int64)
    return (trainer.reshape(-1), rollout.reshape(-1),
            None if mask is None else _array(mask).reshape(-1) != 0, starts)


def _array(values: Any) -> NDArray:
    """A NumPy array of what `lockstep.mismatch` takes."""
    if hasattr(values, "detach"):  # PyTorch has bf16, which NumPy has not
        values = values.detach()
        values = values.float() if values.is_floating_point() and values.element_size() == 2 else values
    return np.asarray(values)


@dataclass(frozen=True)
class Statistic:
    """How a statistic follows from sums over sequences."""

    meaning: str
    measure: Callable[[SequenceSums], tuple[float, Column]]
    """Its value, and its influence: what each sequence adds to the first-order error of the value."""
    share: str = ""
    """"tokens" or "sequences" where it is a share of them."""
    of_this_log: bool = False
    """A property of the log itself, not of what it was drawn from: it has no error."""


def _token_mean(column: str, scale: float = 1.0, offset: float = 0.0) -> Callable:
    def measure(sums: SequenceSums) -> tuple[float, Column]:
        mean = sums.total(column) / sums.tokens
        return scale * mean + offset, scale * (sums[column] - mean * sums["tokens"]) / sums.tokens

    return measure


def _sequence_mean(values: Callable[[SequenceSums], Column]) -> Callable:
    def measure(sums: SequenceSums) -> tuple[float, Column]:
        column = values(sums)
        mean = fsum(column) / sums.sequences
        return mean, (column - mean) / sums.sequences

    return measure


def _root_mean_square(sums: SequenceSums) -> tuple[float, Column]:
    square, influence = _token_mean("square")(sums)
    root = math.sqrt(square)
    return root, influence / (2 * root) if root else influence


def _perplexity_ratio(sums: SequenceSums) -> tuple[float, Column]:
    mean, influence = _token_mean("log_ratio")(sums)
    ratio = math.exp(-mean)
    return ratio, -ratio * influence


def _effective_size(sums: SequenceSums) -> tuple[float, Column]:
    r, r2, n = (sums.total(name) for name in ("ratio", "ratio_square", "tokens"))
    value = r * r / (n * r2)
    return value, value * (2 * sums["ratio"] / r - sums["ratio_square"] / r2 - sums["tokens"] / n)


def _outside(band: str) -> Callable[[SequenceSums], Column]:
    low, high = (math.log(bound) for bound in _BANDS[band])

    def indicator(sums: SequenceSums) -> Column:
        mean = sums["log_ratio"] / sums["tokens"]
        return ((mean < low) | (mean > high)).astype(np.float64)

    return indicator


#: The statistics that a certificate can require something of, under their names in the glossary.
STATISTICS: dict[str, Statistic] = {
    "mean_log_ratio": Statistic("mean d", _token_mean("log_ratio")),
    "k1": Statistic("mean(-d)", _token_mean("log_ratio", scale=-1.0)),
    "k2": Statistic("mean(d²/2)", _token_mean("square", scale=0.5)),
    "k3": Statistic("mean(exp(d) - 1 - d)", _token_mean("k3")),
    "mean_abs_log_ratio": Statistic("mean |d|", _token_mean("magnitude")),
    "rms_log_ratio": Statistic("root of mean d²", _root_mean_square),
    "max_abs_log_ratio": Statistic(
        "largest |d|", lambda sums: (float(sums["largest"].max(initial=-math.inf)), np.zeros(sums.sequences)),
        of_this_log=True),
    "mean_abs_prob_diff": Statistic("mean |π - μ|", _token_mean("probability_gap")),
    "share_differing": Statistic("tokens that differ in bits", _token_mean("differing"), "tokens"),
    **{f"share_outside_{band}": Statistic(
        f"tokens with r outside [{low:g}, {high:g}]", _token_mean(f"outside_{band}"), "tokens")
       for band, (low, high) in _BANDS.items()},
    "chi_square": Statistic("mean r² - 1", _token_mean("ratio_square", offset=-1.0)),
    "mean_ratio": Statistic("mean r", _token_mean("ratio")),
    "ess": Statistic("effective sample size of r", _effective_size),
    "mean_exp_abs_log_ratio": Statistic("mean exp|d|", _token_mean("exp_magnitude")),
    "perplexity_ratio": Statistic("exp(-mean d)", _perplexity_ratio),
    "sequence_log_ratio": Statistic("mean S", _sequence_mean(lambda sums: sums["log_ratio"])),
    "sequence_mean_log_ratio": Statistic(
        "mean of mean d", _sequence_mean(lambda sums: sums["log_ratio"] / sums["tokens"])),
    "sequence_mean_exp_abs": Statistic(
        "mean of mean exp|d|", _sequence_mean(lambda sums: sums["exp_magnitude"] / sums["tokens"])),
    "share_sequences_masked": Statistic(
        "sequences with mean exp|d| > 2",
        _sequence_mean(lambda sums: (sums["exp_magnitude"] / sums["tokens"] > 2).astype(np.float64)),
        "sequences"),
    **{f"share_sequences_outside_{band}": Statistic(
        f"sequences with exp(mean d) outside [{low:g}, {high:g}]", _sequence_mean(_outside(band)),
        "sequences")
       for band, (low, high) in _BANDS.items()},
}


def same_tokens(first: SequenceSums, second: SequenceSums) -> None:
    """Raises InvalidArgumentError unless two logs have as many counted tokens in every sequence."""
    a, b = first["tokens"], second["tokens"]
    if len(a) != len(b):
        raise InvalidArgumentError(
            f"baseline: {len(b)} sequences with counted tokens, the log has {len(a)}; both must hold the same"
            " tokens, as they are compared sequence by sequence")
    if (different := np.flatnonzero(a != b)).size:
        at = int(different[0])
        raise InvalidArgumentError(
            f"baseline: counted sequence {at} has {int(b[at])} counted tokens, that of the log has"
            f" {int(a[at])}; both must hold the same tokens, as they are compared sequence by sequence")
