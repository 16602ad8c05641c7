"""What reading gives: batches of whole sequences, or one packed log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


class LogError(ValueError):
    """A log that cannot be read, with the place: ``file, line, field: what is wrong; what to do``.

    ``line`` counts from 1 and is None where the whole file is at fault; ``field`` is None where a
    whole line is. In a table (``unit`` "row") it is the row, of sequences or of tokens; in
    Lockstep's own log ("record") the record.
    """

    def __init__(
        self, message: str, file: str, line: int | None = None, field: str | None = None, unit: str = "line"
    ):
        self.message, self.file, self.line, self.field, self.unit = message, file, line, field, unit
        place = file
        if line is not None:
            place += f", {unit} {line}"
        if field is not None:
            place += f", {field}"
        super().__init__(f"{place}: {message}")

    def __reduce__(self):  # it crosses processes
        return LogError, (self.message, self.file, self.line, self.field, self.unit)


@dataclass(frozen=True)
class LogFile:
    """One file of a log, as it was when it was read."""

    path: str
    bytes: int
    """Size on disk (of the compressed file, if it is one)."""
    sha256: str
    """Of the bytes on disk, so that `sha256sum` can confirm it."""
    sequences: int
    skipped_lines: int
    """Lines left out because they could not be read (only with ``skip_bad``)."""
    first_skipped: str
    """What was wrong with the first of them, and where; "" without any."""


@dataclass(frozen=True)
class LogBatch:
    """Some sequences of a log, whole and packed: sequence i is ``[offsets[i], offsets[i + 1])``."""

    trainer: NDArray[np.float32]
    """``[tokens]`` log-probs of the trainer policy; NaN where the log has none."""
    rollout: NDArray[np.float32]
    """``[tokens]`` log-probs of the rollout policy; NaN where the log has none."""
    mask: NDArray[np.bool_]
    """``[tokens]`` True on the tokens that count."""
    offsets: NDArray[np.int64]
    """``[sequences + 1]``"""
    ids: NDArray[np.uint64]
    """``[sequences]`` who a sequence is, however the log was cut: see `lockstep.logs.identity`."""
    steps: NDArray[np.int64]
    """``[sequences]`` the training step, -1 where the log does not say."""
    token_ids: NDArray[np.int32] | None
    """``[tokens]``, or None where they were not wanted or not every sequence of the batch has them."""
    lines: NDArray[np.int64]
    """``[sequences]`` the line, or row, of its file, counted from 1."""
    file_of: NDArray[np.int32]
    """``[sequences]`` index of the file in the whole log; -1 where it is of no file."""
    environment_of: NDArray[np.int32]
    """``[sequences]`` index into ``environments``."""
    environments: tuple[str, ...] = field(default=())
    """Names seen so far; a later batch of the same reading only adds to them."""

    @property
    def sequences(self) -> int:
        return len(self.offsets) - 1

    @property
    def tokens(self) -> int:
        return len(self.mask)

    def pieces(self, tokens: int) -> Iterator[LogBatch]:
        """The batch cut after each sequence that reaches `tokens` tokens, without copying."""
        start = 0
        while start < self.sequences:
            base = int(self.offsets[start])
            end = min(int(np.searchsorted(self.offsets, base + tokens, side="left")), self.sequences)
            if start == 0 and end == self.sequences:
                yield self
                return
            one, of = slice(base, int(self.offsets[end])), slice(start, end)
            yield LogBatch(
                trainer=self.trainer[one],
                rollout=self.rollout[one],
                mask=self.mask[one],
                offsets=self.offsets[start : end + 1] - base,
                ids=self.ids[of],
                steps=self.steps[of],
                token_ids=None if self.token_ids is None else self.token_ids[one],
                lines=self.lines[of],
                file_of=self.file_of[of],
                environment_of=self.environment_of[of],
                environments=self.environments,
            )
            start = end

    def take(self, which: NDArray) -> LogBatch:
        """The sequences that `which` selects, a boolean array or indices, as a batch of their own."""
        index = np.flatnonzero(which) if which.dtype == np.bool_ else which
        lengths = np.diff(self.offsets)[index]
        offsets = np.zeros(len(index) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        at = np.repeat(self.offsets[:-1][index] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return LogBatch(
            trainer=self.trainer[at],
            rollout=self.rollout[at],
            mask=self.mask[at],
            offsets=offsets,
            ids=self.ids[index],
            steps=self.steps[index],
            token_ids=None if self.token_ids is None else self.token_ids[at],
            lines=self.lines[index],
            file_of=self.file_of[index],
            environment_of=self.environment_of[index],
            environments=self.environments,
        )


@dataclass(frozen=True)
class Log:
    """The log-probs of one rollout log, packed: sequence i is ``[offsets[i], offsets[i + 1])``."""

    label: str
    files: tuple[LogFile, ...]
    trainer: NDArray[np.float32]
    """``[tokens]`` log-probs of the trainer policy; NaN where the log holds null."""
    rollout: NDArray[np.float32]
    """``[tokens]`` log-probs of the rollout policy; NaN where the log holds null."""
    mask: NDArray[np.bool_]
    """``[tokens]`` True on the tokens that count."""
    offsets: NDArray[np.int64]
    """``[sequences + 1]``"""
    lines: NDArray[np.int64]
    """``[sequences]`` the line of its file, counted from 1."""
    file_of: NDArray[np.int32]
    """``[sequences]`` index into ``files``."""
    environment_of: NDArray[np.int32]
    """``[sequences]`` index into ``environments``."""
    environments: tuple[str, ...]
    token_ids: NDArray[np.int32] | None
    """``[tokens]``, or None where they were not wanted or not every line has them."""

    @property
    def sequences(self) -> int:
        return len(self.offsets) - 1

    @property
    def skipped_lines(self) -> int:
        return sum(file.skipped_lines for file in self.files)
