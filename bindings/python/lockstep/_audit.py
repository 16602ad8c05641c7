"""The FP16 headroom of a checkpoint: its weights, what operations make of tokens, gradients."""

from __future__ import annotations

import math
import os
from ctypes import byref, c_size_t, c_void_p, sizeof
from dataclasses import dataclass

from . import _library as c
from ._batch import Log
from ._library import check, int32, library, real
from ._models import _tokens
from ._tensors import Array


@dataclass(frozen=True)
class Headroom:
    """How the magnitudes of some values lie in the range of fp16: 2^-24, over 2^-14 (normal), to 65,504."""

    #: The tensor's name, or the operation's.
    name: str
    #: "weight": a tensor of the checkpoint; "activation": what an operation of the forward pass gave; "gradient": of what
    #: an operation was given, "weight gradient": of a tensor, both times the loss scale.
    kind: str
    #: Of an operation: -1 the embedding, the number of layers what follows them.
    layer: int
    #: Values looked at.
    count: int
    #: The largest magnitude of a finite value.
    largest: float
    #: Values not 0 with fewer than 11 bits in fp16 (below 2^-14); of these, those that become 0 (at most 2^-25).
    subnormal: int
    vanishing: int
    #: Finite values that become infinite in fp16 (65,520 and more); values that are infinite or NaN.
    overflowing: int
    non_finite: int

    @property
    def is_weight(self) -> bool:
        """Whether it is a tensor of the checkpoint."""
        return self.kind == "weight"

    @property
    def bits(self) -> float:
        """log2(65,504 / largest): factors of 2 that are left; below 0 it overflows; inf if all values are 0."""
        return math.log2(65504 / self.largest) if self.largest else math.inf


def audit_headroom(
    path: str | os.PathLike[str], tokens: Log | None = None, offsets: Array | None = None, *,
    loss_scale: float | None = None, threads: int = 0,
) -> list[Headroom]:
    """The FP16 headroom of a checkpoint: of each tensor, and of what each operation gives for some tokens.

    Args:
        path: a Hugging Face folder, as in `Model`.
        tokens: sequences as in `Model.score`, run in float32; without, the weights alone.
        offsets: as in `Model.score`.
        loss_scale: given, the backward pass is looked at too: what it gives, in float32, for the mean of the negative
            log-probs of all tokens but each sequence's first, times this, in [2^-60, 2^60]. Takes the memory of training.
        threads: 0 is one for each processor this process may use.

    Returns:
        Tensors by name, then operations by layer in the order they are done; then gradients, of operations in the order
        of the backward pass and of tensors by name.

    Raises:
        as `Model` and `Model.score`; InvalidArgumentError for a loss scale without tokens.

    Example:
        >>> rows = audit_headroom(checkpoint, [[1, 5, 9]])
        >>> min(rows, key=lambda row: row.bits).name
        'MLP activation'
    """
    ids, bounds = _tokens(tokens, offsets) if tokens is not None else (None, None)
    options = c.ScoreOptions(sizeof(c.ScoreOptions), int32(threads, "threads"), 0, 0, 1.0)
    handle = c_void_p()
    given = (byref(handle), os.fsencode(path), None if ids is None else ids.tensor(),
             None if bounds is None else bounds.tensor())
    if loss_scale is None:
        check(library.lockstep_audit_create(*given, options))
    else:
        check(library.lockstep_audit_create_backward(*given, real(loss_scale, "loss_scale"), options))
    try:
        count, row, found = c_size_t(), c.Headroom(), []
        check(library.lockstep_audit_read(None, byref(count), handle, 0))
        for index in range(count.value):
            check(library.lockstep_audit_read(row, None, handle, index))
            found.append(Headroom(
                row.name.decode(), c.HEADROOM_KINDS[row.kind], row.layer, row.count, row.largest, row.subnormal,
                row.vanishing, row.overflowing, row.non_finite))
        return found
    finally:
        library.lockstep_audit_destroy(handle)
