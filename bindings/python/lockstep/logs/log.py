"""What every reader returns: one packed log."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


class LogError(ValueError):
    """A log that cannot be read, with the place: ``file, line, field: what is wrong; what to do``.

    ``line`` counts from 1 and is None where the whole file is at fault; ``field`` is None where a
    whole line is.
    """

    def __init__(self, message: str, file: str, line: int | None = None, field: str | None = None):
        self.message, self.file, self.line, self.field = message, file, line, field
        place = file
        if line is not None:
            place += f", line {line}"
        if field is not None:
            place += f", {field}"
        super().__init__(f"{place}: {message}")


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
