"""What a format hands to the reader: sequences as it found them, to be checked and packed into batches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIDES = ("trainer", "rollout")


class BadRow(Exception):
    """What is wrong with a line or row; the reader adds where."""

    def __init__(self, message: str, field: str | None = None):
        super().__init__(message)
        self.message, self.field = message, field


@dataclass(slots=True)
class Rows:
    """One or more whole sequences, packed. A side that the log does not have is None."""

    trainer: NDArray[np.float32] | None
    rollout: NDArray[np.float32] | None
    mask: NDArray[np.bool_]
    lengths: Sequence[int] | NDArray[np.int64]
    lines: Sequence[int] | NDArray[np.int64]
    ids: Sequence[int] | NDArray[np.uint64] | None
    """None where the format has no ids of its own."""
    steps: Sequence[int] | NDArray[np.int64]
    token_ids: NDArray[np.int32] | None = None
    environments: Sequence[str] | None = None
    """One name a sequence, or None: no sequence has one."""

    def part(self, start: int, end: int, tokens: slice) -> Rows:
        """The sequences from `start` to `end`, which are `tokens`, without copying those."""
        if (start, end) == (0, len(self.lengths)):
            return self
        of = slice(start, end)
        return Rows(
            trainer=None if self.trainer is None else self.trainer[tokens],
            rollout=None if self.rollout is None else self.rollout[tokens],
            mask=self.mask[tokens],
            lengths=self.lengths[of],
            lines=self.lines[of],
            ids=None if self.ids is None else self.ids[of],
            steps=self.steps[of],
            token_ids=None if self.token_ids is None else self.token_ids[tokens],
            environments=None if self.environments is None else self.environments[of],
        )


def concatenate(rows: Sequence[Rows]) -> Rows:
    """One Rows of several of the same kind."""

    def join(name: str):
        parts = [getattr(row, name) for row in rows]
        return None if parts[0] is None else np.concatenate(parts)

    def chain(name: str):
        parts = [getattr(row, name) for row in rows]
        return None if parts[0] is None else list(itertools.chain.from_iterable(parts))

    return Rows(
        trainer=join("trainer"),
        rollout=join("rollout"),
        mask=join("mask"),
        lengths=chain("lengths"),
        lines=chain("lines"),
        ids=chain("ids"),
        steps=chain("steps"),
        token_ids=join("token_ids"),
        environments=chain("environments"),
    )


@dataclass(frozen=True)
class Wanted:
    """What of a log is wanted: the part of `open_log`'s options that a format sees."""

    columns: dict[str, str]
    """Roles mapped to columns by the user."""
    side: str = "rollout"
    """Whose log-probs they are where the log does not say."""
    token_ids: bool = True
    batch_tokens: int = 1 << 20
    part: int = 0
    parts: int = 1
    """Of each file, the lines whose number is ``part`` modulo ``parts``."""
    step: int = -1
    """The step that the name of the file or its folder gives, for sequences that do not say."""
