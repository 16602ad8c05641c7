"""A whole log in memory, for what looks at single tokens of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .join import Batches
from .log import Log, LogError
from .reader import LogStream, open_log


class _Packed:
    """A growing array. A bytearray grows in place where it can, so the peak stays near the size."""

    def __init__(self, dtype: type):
        self._bytes, self._dtype = bytearray(), dtype

    def extend(self, values: NDArray) -> None:
        self._bytes += np.ascontiguousarray(values, self._dtype).view(np.uint8).data

    def array(self) -> NDArray:
        return np.frombuffer(self._bytes, self._dtype)


def gather(reader: Batches, *, token_ids: bool = True) -> Log:
    """Reads a whole log of both engines' log-probs.

    Memory: 9 bytes a token (13 with `token_ids`), 32 a sequence, and a batch.

    Raises:
        LogError: as reading does, and where the log has the log-probs of one engine only.
    """
    trainer, rollout, mask, ids = (_Packed(kind) for kind in (np.float32, np.float32, np.bool_, np.int32))
    lengths, lines, file_of, environment_of = (
        _Packed(kind) for kind in (np.int64, np.int64, np.int32, np.int32)
    )
    environments: tuple[str, ...] = ()
    for batch in reader:
        if len(reader.sides) == 1:
            raise LogError(
                f"has the log-probs of the {reader.sides[0]} only, and nothing to compare them with: join it"
                " with the other engine's log of the same sequences",
                reader.files[0].path,
            )
        trainer.extend(batch.trainer)
        rollout.extend(batch.rollout)
        mask.extend(batch.mask)
        token_ids = token_ids and batch.token_ids is not None
        if token_ids:
            ids.extend(batch.token_ids)
        lengths.extend(np.diff(batch.offsets))
        lines.extend(batch.lines)
        if isinstance(reader, LogStream):  # of a part of a log, to index the files of the part
            file_of.extend([reader.places.index(place) for place in batch.file_of.tolist()])
        else:
            file_of.extend(batch.file_of)
        environment_of.extend(batch.environment_of)
        environments = batch.environments
    counts = lengths.array()
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return Log(
        label=reader.label,
        files=reader.files,
        trainer=trainer.array(),
        rollout=rollout.array(),
        mask=mask.array(),
        offsets=offsets,
        lines=lines.array(),
        file_of=file_of.array(),
        environment_of=environment_of.array(),
        environments=environments,
        token_ids=ids.array() if token_ids else None,
    )


def read_prime_rl(
    paths: Iterable[str | Path],
    *,
    label: str,
    skip_bad: bool = False,
    exclude_non_finite: bool = False,
    token_ids: bool = False,
    advance: Callable[[int], None] | None = None,
) -> Log:
    """Reads a prime-rl token export whole; the arguments are those of `open_log`."""
    return gather(
        open_log(
            paths,
            format="prime-rl",
            label=label,
            skip_bad=skip_bad,
            token_ids=token_ids,
            exclude_non_finite=exclude_non_finite,
            advance=advance,
        ),
        token_ids=token_ids,
    )
