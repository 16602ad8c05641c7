"""The mismatch of a log that comes in parts: in constant memory, on any number of machines."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_size_t, c_void_p, sizeof
from typing import Callable

import numpy as np

from . import _library as c
from ._causes import Cause, causes
from ._errors import InvalidArgumentError
from ._library import check, choice, library
from ._log_probs import _tensor
from ._mismatch import _BUCKET, Log, Mismatch, _Log, _options, _record, _statistics
from ._saved import saved
from ._tensors import Array, compact, view

_BIN = _record(c.MismatchSequenceBin)
_SAMPLE = _record(c.MismatchSample)
_TOKEN = _record(c.MismatchToken)


class MismatchAccumulator:
    """Everything `mismatch` says of a log, from parts of it.

    A sequence is the atom: as long as none is cut in two, parts may be added in any order and grouping, in
    any number of accumulators, and the accumulators merged in any order. The result has the same bits, and
    `to_bytes` gives the same bytes, as if one accumulator had seen the whole log at once.

    Accumulators can be pickled, so they cross process boundaries as results of `multiprocessing` or Ray do.
    `report` and `to_bytes` may be called from many threads at once; `update` and `merge` must be alone.

    Args:
        exact_quantiles: keep every d that is not 0, 8 bytes each, and report exact quantiles. Without, they
            come from a sketch, in constant memory: each order statistic is within 2^-8 of its |d| where
            2^-24 <= |d| < 2^8.
        summary: keep what `report` needs and nothing else, and no quantiles (they are NaN): some kilobytes
            in `to_bytes`, for one accumulator a training step. Not together with `exact_quantiles`.

    Example:
        >>> one, other = MismatchAccumulator(), MismatchAccumulator()
        >>> one.update([np.array([-1.0, -2.0])], [np.array([-1.1, -2.0])], ids=[7])
        >>> other.update([np.array([-0.5])], [np.array([-0.7])], ids=[8])
        >>> one.merge(other)
        >>> result = one.report()
        >>> result.tokens, round(result.mean_log_ratio.value, 6)
        (3, 0.1)
        >>> MismatchAccumulator.from_bytes(one.to_bytes()) == one
        True
    """

    __slots__ = ("_handle",)
    __hash__ = None  # type: ignore[assignment]  # it changes

    def __init__(self, *, exact_quantiles: bool = False, summary: bool = False) -> None:
        self._handle = c_void_p()
        options = c.MismatchAccumulatorOptions(
            sizeof(c.MismatchAccumulatorOptions), 1 if exact_quantiles else 0, 1 if summary else 0)
        check(library.lockstep_mismatch_accumulator_create(byref(self._handle), options))

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle:
            library.lockstep_mismatch_accumulator_destroy(handle)

    def update(
        self,
        trainer_log_probs: Log,
        rollout_log_probs: Log,
        mask: Log | None = None,
        offsets: Array | None = None,
        *,
        ids: Array | None = None,
        non_finite: str = "strict",
        threads: int = 0,
        instruction_set: str = "best",
    ) -> None:
        """Adds whole sequences: all of them or, on an error, none. One added twice counts twice.

        Args:
            trainer_log_probs, rollout_log_probs, mask, offsets: as in `lockstep.mismatch`.
            ids: [sequences] uint64 or int64: what each sequence is called, the same however the log is cut.
                By default sequences are numbered as they come, which depends on the cut: give ids where
                accumulators will be merged.
            non_finite, threads, instruction_set: as in `lockstep.mismatch`.

        Raises:
            InvalidArgumentError, NonFiniteError: as `lockstep.mismatch`; also a wrong number of ids.

        Example:
            >>> accumulator = MismatchAccumulator()
            >>> accumulator.update(np.array([-1.0, -2.0]), np.array([-1.5, -2.0]))
            >>> accumulator.report().max_abs_log_ratio
            0.5
        """
        log = _Log(trainer_log_probs, rollout_log_probs, mask, offsets)
        named = None if ids is None else view(_ids(ids), "ids")
        check(library.lockstep_mismatch_accumulator_update(
            self._handle, *log.tensors(), _tensor(named), _options(non_finite, threads, instruction_set)))

    def merge(self, other: MismatchAccumulator) -> None:
        """Adds all that `other` holds, which stays as it is.

        Args:
            other: an accumulator that keeps all that this one keeps.

        Raises:
            InvalidArgumentError: it lacks exact quantiles, or what a summary leaves out.

        Example:
            >>> total = MismatchAccumulator()
            >>> for part in [MismatchAccumulator(), MismatchAccumulator()]:
            ...     total.merge(part)
        """
        if not isinstance(other, MismatchAccumulator):
            raise InvalidArgumentError(f"other: {type(other).__name__}; give a MismatchAccumulator")
        check(library.lockstep_mismatch_accumulator_merge(self._handle, other._handle))

    def report(self) -> Mismatch:
        """Every statistic of what was added.

        Returns:
            `Mismatch`: that of `lockstep.mismatch` of the whole log, bit for bit, but for the quantiles
            (unless `exact_quantiles`); `max_abs_sequence` is an id.

        Example:
            >>> MismatchAccumulator().report().tokens
            0
        """
        raw = c.Mismatch(sizeof(c.Mismatch))
        check(library.lockstep_mismatch_accumulator_report(raw, self._handle))
        return _statistics(raw)

    def profile(self, axis: str = "position") -> np.ndarray:
        """Statistics by bucket of position, of probability, or of the log ratio.

        Args:
            axis: "position" (0, 1, 2, 3, 4, 6, 8, 12 and so on, two buckets an octave), "probability" (two
                an octave of -ln mu between 2^-20 and 64), or "log_ratio" (the bins of the sketch that have
                tokens, 128 an octave; the means are NaN).

        Returns:
            [buckets] structured array: lower, upper, tokens, mean_log_ratio, mean_abs_log_ratio, k3. Means
            are NaN in an empty bucket.

        Example:
            >>> accumulator = MismatchAccumulator()
            >>> accumulator.update(np.array([-1.0, -2.0, -0.1]), np.array([-1.0, -2.5, -0.1]))
            >>> accumulator.profile()["tokens"][:4]
            array([1, 1, 1, 0])
        """
        return self._array(
            library.lockstep_mismatch_accumulator_profile, _BUCKET, choice(c.AXES, axis, "axis"))

    def histogram(self, quantity: str = "log_ratio") -> np.ndarray:
        """How many sequences have which value, by length in powers of two.

        Args:
            quantity: "log_ratio" (S, the sum of d over a sequence) or "mean_log_ratio".

        Returns:
            [bins] structured array of the bins with sequences, by length, then value: min_tokens,
            max_tokens, lower, upper, sequences. A bin holds values in [lower, upper), 128 to an octave.

        Example:
            >>> accumulator = MismatchAccumulator()
            >>> accumulator.update([np.array([-1.0, -2.0])], [np.array([-1.5, -2.5])])
            >>> accumulator.histogram()[["min_tokens", "max_tokens", "lower", "sequences"]].tolist()
            [(2, 3, 1.0, 1)]
        """
        return self._array(
            library.lockstep_mismatch_accumulator_histogram, _BIN,
            choice(c.SEQUENCE_QUANTITIES, quantity, "quantity"))

    def sample(self) -> np.ndarray:
        """A sample of at most 1,024 sequences: those whose ids have the smallest hashes, in that order.

        The same however the log was cut, and its first part is a sample too.

        Returns:
            [sequences] structured array: id, and the fields of `lockstep.mismatch_sequences`.

        Example:
            >>> accumulator = MismatchAccumulator()
            >>> accumulator.update([np.array([-1.0, -2.0])], [np.array([-1.5, -2.5])], ids=[7])
            >>> accumulator.sample()[["id", "log_ratio"]].tolist()
            [(7, 1.0)]
        """
        return self._array(library.lockstep_mismatch_accumulator_sample, _SAMPLE)

    def worst(self) -> np.ndarray:
        """The at most 32 tokens with the largest |d| above 0, the worst first; ties by id, then position.

        Returns:
            [tokens] structured array: id (of the sequence), position (in it), log_ratio (d),
            rollout_log_prob (ln mu).

        Example:
            >>> accumulator = MismatchAccumulator()
            >>> accumulator.update([np.array([-1.0, -2.0])], [np.array([-1.5, -2.0])], ids=[7])
            >>> accumulator.worst().tolist()
            [(7, 0, 0.5, -1.5)]
        """
        return self._array(library.lockstep_mismatch_accumulator_worst, _TOKEN)

    def worst_sequences(self) -> np.ndarray:
        """The at most 32 sequences with the largest |S| above 0, the worst first; ties by id.

        Returns:
            [sequences] structured array: id, and the fields of `lockstep.mismatch_sequences`.

        Example:
            >>> accumulator = MismatchAccumulator()
            >>> accumulator.update([np.array([-1.0, -2.0])], [np.array([-1.5, -2.5])], ids=[7])
            >>> accumulator.worst_sequences()[["id", "log_ratio"]].tolist()
            [(7, 1.0)]
        """
        return self._array(library.lockstep_mismatch_accumulator_worst_sequences, _SAMPLE)

    def _array(self, function: Callable, dtype: np.dtype, *choices: int) -> np.ndarray:
        """What a function gives that is asked for its count first."""
        count = c_size_t()
        check(function(None, byref(count), self._handle, *choices))
        rows = np.empty(count.value, dtype)
        check(function(rows.ctypes.data, byref(count), self._handle, *choices))
        return rows

    def causes(self) -> list[Cause]:
        """What may have caused the mismatch, from the log alone.

        Returns:
            every cause once, those that were found first. Several may be; none is where all log-probs are
            equal; with fewer than 500 tokens or 10 sequences only faults that single tokens show are.

        Example:
            >>> accumulator = MismatchAccumulator()
            >>> accumulator.update(np.array([-1.0, -2.0]), np.array([-9999.0, -2.0]))
            >>> [cause.name for cause in accumulator.causes() if cause.found]
            ['ends']
        """
        return causes(self._handle)

    def to_bytes(self) -> bytes:
        """All it holds, checksummed, for a file or another machine. Equal content gives equal bytes.

        Example:
            >>> MismatchAccumulator().to_bytes()[:8]
            b'LOCKMACC'
        """
        return saved(library.lockstep_mismatch_accumulator_save, self._handle)

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> MismatchAccumulator:
        """The accumulator that `to_bytes` wrote.

        Args:
            data: its bytes. Any bytes are safe to give.

        Raises:
            BadDataError: they are damaged, cut off, or too long.
            UnsupportedError: they are of a newer format.

        Example:
            >>> MismatchAccumulator.from_bytes(b"nonsense")
            Traceback (most recent call last):
            lockstep._errors.BadDataError: accumulator: these 8 bytes are not a saved accumulator
        """
        raw = np.frombuffer(data, np.uint8)
        loaded = cls.__new__(cls)
        loaded._handle = c_void_p()
        place = raw.ctypes.data if raw.size else ctypes.addressof(loaded._handle)
        check(library.lockstep_mismatch_accumulator_load(byref(loaded._handle), place, raw.size))
        return loaded

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same: their bytes are equal."""
        if not isinstance(other, MismatchAccumulator):
            return NotImplemented
        return self.to_bytes() == other.to_bytes()

    def __reduce__(self) -> tuple:
        return MismatchAccumulator.from_bytes, (self.to_bytes(),)

    def __repr__(self) -> str:
        report = self.report()
        return f"<MismatchAccumulator: {report.tokens} tokens in {report.sequences} sequences>"


def _ids(ids: Array) -> Array:
    """Ids as uint64 or int64: others that are integers are widened."""
    found = ids if hasattr(ids, "__dlpack__") else np.asarray(ids)
    kind = str(found.dtype).removeprefix("torch.")
    if kind in ("int64", "uint64"):
        return found
    found = np.asarray(compact(found, "ids"))
    if found.size and found.dtype.kind not in "iu":
        raise InvalidArgumentError(f"ids: dtype {kind}; give uint64 or int64")
    return found.astype(np.int64)
