"""Where two engines of one model part: operation by operation, and what swapping a part would change."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from ctypes import byref, c_int32, c_size_t, c_void_p, cast, sizeof
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import _library as c
from ._batch import Log
from ._errors import InvalidArgumentError
from ._library import check, int32, library
from ._models import Model, _tokens
from ._tensors import Array, view


@dataclass(frozen=True)
class Difference:
    """How far the results of one operation in two engines are apart, element by element, as float32."""

    #: The operation, "attention output"; its layer: -1 the embedding, the number of layers what follows them.
    operation: str
    layer: int
    #: Rows (tokens) and elements of each that were compared.
    rows: int
    columns: int
    #: Elements whose bits differ; elements that are infinite or NaN on a side, which are in no mean.
    differing: int
    non_finite: int
    #: Row and column of the first element whose bits differ; None if none does.
    first: tuple[int, int] | None
    #: The largest difference, the mean without its sign, the root of the mean square.
    max_abs: float
    mean_abs: float
    rms: float
    #: sqrt(sum (a - b)^2 / sum a^2): 0 without a difference, inf where all of the first side are 0.
    relative_rms: float

    @property
    def count(self) -> int:
        """Elements that were compared."""
        return self.rows * self.columns

    @property
    def differs(self) -> bool:
        """Whether any element's bits do."""
        return self.differing > 0


@dataclass(frozen=True)
class Location:
    """What `locate` found."""

    #: Every operation, by layer, in the order they are done; last the log-probs.
    differences: list[Difference]
    #: Log-probs (trainer, rollout) of all tokens, fp64, packed, by what was swapped: "none", "head_alone",
    #: "body_alone", "fp32_heads", "fp32_head_of_trainer", "fp32_head_of_rollout".
    log_probs: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
    #: The same where the reference did a range of layers of both engines.
    layers: dict[tuple[int, int], tuple[NDArray[np.float64], NDArray[np.float64]]]
    #: 1 for each token that has one before it, which gives it a log-prob.
    mask: NDArray[np.bool_]
    #: [sequences + 1] the bounds of the sequences.
    offsets: NDArray[np.int64]

    @property
    def first(self) -> Difference | None:
        """The first operation that gave different bits; None if none did."""
        return next((each for each in self.differences if each.differs), None)


def measure_difference(first: Array, second: Array, *, operation: str = "", layer: int = -1) -> Difference:
    """How far two matrices are apart: [tokens x width] or [tokens], in fp32, fp16, bf16 or fp64.

    Args:
        first, second: of one shape, rows contiguous; fp64 is rounded to fp32 before it is compared.
        operation, layer: what the result is called.

    Returns:
        The difference, relative to the first.

    Raises:
        InvalidArgumentError: shapes that differ, or another dtype.

    Example:
        >>> found = measure_difference(np.float32([[1, 2], [3, 4]]), np.float32([[1, 2], [3, 5]]))
        >>> found.differing, found.first, found.max_abs
        (1, (1, 1), 1.0)
    """
    raw = c.Difference(sizeof(c.Difference))
    check(library.lockstep_difference_measure(
        raw, view(first, "first").tensor(), view(second, "second").tensor()))
    return _difference(raw, operation, layer)


def locate(
    trainer: Model, rollout: Model, tokens: Log, offsets: Array | None = None, *,
    reference: Model | None = None, layers: Sequence[tuple[int, int]] = (), threads: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Location:
    """Finds where two engines of one checkpoint part, and what an fp32 head or fp32 layers would change.

    Args:
        trainer, rollout: the checkpoint under two recipes.
        tokens, offsets: sequences, as in `Model.score`.
        reference: the checkpoint in fp32, for `layers`.
        layers: ranges (first, after the last): `reference` does those layers of both engines; one experiment each.
        threads: 0 is one for each processor this process may use.
        progress: called with the steps done and the steps in all.

    Returns:
        The difference of every operation, and log-probs with parts swapped.

    Raises:
        InvalidArgumentError: models of different shapes, a range beyond the layers; as `Model.score`.
        NonFiniteError: a value left a recipe's range; engine, layer and operation are named.

    Example:
        >>> bf16, fp16 = Model(checkpoint, "bf16"), Model(checkpoint, "fp16")
        >>> locate(bf16, fp16, [[1, 5, 9]]).first.operation
        'embedding'
    """
    ids, bounds = _tokens(tokens, offsets)
    flat = [int32(each, "layers") for pair in layers for each in pair]
    if any(len(pair) != 2 for pair in layers):
        raise InvalidArgumentError("layers: give pairs, the first layer and the one after the last")
    ranges = (c_int32 * max(len(flat), 1))(*flat)
    options = c.LocaliserOptions(
        sizeof(c.LocaliserOptions), int32(threads, "threads"), 0, 0,
        None if reference is None else reference._handle,
        cast(ranges, c_void_p) if flat else None, len(layers))
    handle = c_void_p()
    check(library.lockstep_localiser_create(
        byref(handle), trainer._handle, rollout._handle, ids.tensor(),
        None if bounds is None else bounds.tensor(), options))
    try:
        done, total = c_size_t(), c_size_t(1)
        while done.value < total.value:
            check(library.lockstep_localiser_step(handle, byref(done), byref(total)))
            if progress is not None:
                progress(done.value, total.value)
        return _location(handle, ids.shape[0], bounds, layers)
    finally:
        library.lockstep_localiser_destroy(handle)


def dump(
    model: Model, path: str | os.PathLike[str], tokens: Log, offsets: Array | None = None, *, threads: int = 0,
) -> None:
    """Writes what every operation of every layer gives for some sequences to a new safetensors file.

    Args:
        model: whose recipe decides the formats.
        path: of the file, which must not exist.
        tokens, offsets: sequences, as in `Model.score`.
        threads: as there.

    Returns:
        None.

    Raises:
        FileError: the file exists or cannot be written; none is left behind.
        as `Model.score`.

    Example:
        >>> dump(Model(checkpoint, "bf16"), "ours.safetensors", [[1, 5, 9]])
    """
    ids, bounds = _tokens(tokens, offsets)
    options = c.ScoreOptions(sizeof(c.ScoreOptions), int32(threads, "threads"), 0, 0, 1.0)
    check(library.lockstep_model_dump(
        os.fsencode(path), model._handle, ids.tensor(), None if bounds is None else bounds.tensor(), options))


def _location(handle: c_void_p, tokens: int, bounds, layers: Sequence[tuple[int, int]]) -> Location:
    count, raw, found = c_size_t(), c.Difference(sizeof(c.Difference)), []
    check(library.lockstep_localiser_read(None, byref(count), handle, 0))
    for index in range(count.value):
        check(library.lockstep_localiser_read(raw, None, handle, index))
        found.append(_difference(raw, raw.operation.decode(), raw.layer))

    def log_probs(swap: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        pair = np.empty(tokens), np.empty(tokens)
        check(library.lockstep_localiser_log_probs(
            view(pair[0], "trainer").tensor(), view(pair[1], "rollout").tensor(), handle, swap))
        return pair

    edges = np.array([0, tokens] if bounds is None else bounds.owner, np.int64)
    mask = np.ones(tokens, bool)
    mask[edges[:-1]] = False
    return Location(
        found, {name: log_probs(swap) for name, swap in c.SWAPS.items()},
        {tuple(pair): log_probs(c.SWAP_LAYERS + index) for index, pair in enumerate(layers)}, mask, edges)


def _difference(raw: c.Difference, operation: str, layer: int) -> Difference:
    return Difference(
        operation, layer, raw.rows, raw.columns, raw.differing, raw.non_finite,
        (raw.first_row, raw.first_column) if raw.first_row >= 0 else None, raw.max_abs, raw.mean_abs, raw.rms,
        raw.relative_rms)
