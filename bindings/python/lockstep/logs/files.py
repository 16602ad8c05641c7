"""Finding the files of a log, and reading their lines with constant memory."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .log import LogError

LINES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
TABLES = (".parquet", ".arrow", ".arrows", ".feather", ".ipc")
ARRAYS = (".npz",)
OWN = (".lockstep",)
DOCUMENTS = (".json", ".json.gz")
SUFFIXES = LINES + TABLES + ARRAYS + OWN + DOCUMENTS

# A sequence of a million tokens with all of prime-rl's columns is below this. A longer "line" is
# a file of another kind, and would be read into memory whole.
LONGEST_LINE = 512 << 20
# Lines are read, and made arrays, about so many bytes together.
BLOCK = 1 << 20
# What reading a damaged gzip file raises.
DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile)


def find_files(path: str | Path) -> list[Path]:
    """The files of one log: `path` itself, or, for a folder, the logs in it, rank_2 before rank_10.

    prime-rl writes one file a rank, ``step_7/rank_0.jsonl``: the folder ``step_7`` is one log, and so is the
    folder of all steps, ``token_exports``. Other sub-folders are not entered. Raises LogError where nothing
    is found, or files of several kinds.
    """
    path = Path(path)
    if not path.is_dir():
        return [path]
    files = _logs_in(path)
    if not files:
        children = sorted(
            (child for child in path.iterdir() if child.is_dir()), key=lambda child: natural(child.name)
        )
        for child in children:
            if step_of(child.name) >= 0:
                files += _logs_in(child)
        if not files:
            hint = f"; give one of its folders, such as {children[0].name}" if children else ""
            raise LogError(
                f"the folder holds no log ({', '.join(SUFFIXES)}) and no folders of steps, step_N,"
                f" with logs{hint}",
                str(path),
            )
    return files


def step_of(name: str) -> int:
    """N of a folder or file named step_N or the like, else -1."""
    found = re.fullmatch(r"(?:.*[_.-])?(?:global_)?step[_-]?(\d{1,18})(?:\..*)?", name)
    return int(found[1]) if found else -1


def _logs_in(folder: Path) -> list[Path]:
    """The logs directly in a folder. A .json beside logs of another kind is taken for a configuration."""
    files = [file for file in folder.iterdir() if file.name.endswith(SUFFIXES) and file.is_file()]
    data = [file for file in files if not file.name.endswith(DOCUMENTS)] or files
    kinds = {kind: file.name for kind in (LINES, TABLES, ARRAYS, OWN) for file in data if file.name.endswith(kind)}
    if len(kinds) > 1:
        raise LogError(
            f"the folder holds logs of several kinds, {' and '.join(kinds.values())}: give the files of one",
            str(folder),
        )
    return sorted(data, key=lambda file: natural(file.name))


def natural(text: str) -> list:
    """A key that orders numbers in texts as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


class WatchedFile(io.RawIOBase):
    """A file that hashes and counts the bytes that are read from it, from start to end."""

    def __init__(self, path: Path, advance: Callable[[int], None] | None):
        try:
            self._file = open(path, "rb", buffering=0)
        except OSError as error:
            raise LogError(f"cannot be opened: {error.strerror or error}", str(path)) from error
        self._advance = advance
        self._sha256 = hashlib.sha256()
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = self._file.readinto(buffer) or 0
        self._sha256.update(memoryview(buffer)[:count])
        self.count += count
        if self._advance is not None:
            self._advance(count)
        return count

    def drain(self) -> None:
        """Reads what is left, so that size and hash are of the whole file."""
        chunk = bytearray(1 << 20)
        while self.readinto(chunk):
            pass

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()

    def close(self) -> None:
        self._file.close()
        super().close()


class LineReader:
    """The lines of a plain or gzip file, each with its number, in constant memory.

    `advance`, if given, is called with the number of bytes of each read from disk. Compression is
    recognised by the file's first bytes, not by its name.
    """

    def __init__(self, path: Path, advance: Callable[[int], None] | None = None):
        self.path = str(path)
        self._raw = WatchedFile(path, advance)
        buffered = io.BufferedReader(self._raw, BLOCK)
        self._compressed = buffered.peek(2)[:2] == b"\x1f\x8b"
        # GzipFile has a buffer of its own, from which the lines before a damage can still be read.
        self._lines = gzip.GzipFile(fileobj=buffered) if self._compressed else buffered

    def __enter__(self) -> LineReader:
        return self

    def __exit__(self, *_) -> None:
        self._lines.close()
        self._raw.close()

    def __iter__(self) -> Iterator[tuple[int, bytes | LogError]]:
        """Yields (number from 1, line with its newline), or a LogError in place of a bad line."""
        for numbers, block in self.blocks(1):
            if isinstance(block, LogError):
                yield numbers[0], block
            else:
                yield from zip(numbers, io.BytesIO(block))

    def blocks(self, size: int = BLOCK) -> Iterator[tuple[range, bytes | LogError]]:
        """Yields (numbers, whole lines of about `size` bytes), or a LogError in place of a bad line."""
        number, held, searched, skipping, more = 1, bytearray(), 0, False, True
        while more:
            chunk, damage = self._read()
            more = chunk != b""
            if skipping:  # the rest of a line that is too long
                _, newline, chunk = chunk.partition(b"\n")
                skipping = newline == b""
            held += chunk
            if more and len(held) < size:
                continue
            end = len(held) if not more and damage is None else held.rfind(b"\n", searched) + 1
            with memoryview(held) as view, view[:end] as whole:
                block = bytes(whole)
            del held[:end]
            if len(block) > LONGEST_LINE:
                for line in io.BytesIO(block):
                    yield range(number, number + 1), line if len(line) <= LONGEST_LINE else self._too_long(number)
                    number += 1
            elif block:
                numbers = range(number, number + _count_lines(block))
                yield numbers, block
                number = numbers.stop
            if len(held) >= LONGEST_LINE:
                yield range(number, number + 1), self._too_long(number)
                number += 1
                held.clear()
                skipping = True
            searched = len(held)
        if isinstance(damage, DAMAGE):
            # What lies beyond the damage cannot be read, but the lines before it were.
            yield (
                range(number, number + 1),
                LogError(
                    f"the gzip stream is damaged or cut off here ({damage}); copy the file"
                    " again, or read it with gzip -t",
                    self.path,
                    number,
                ),
            )
        elif damage is not None:
            raise LogError(f"cannot be read: {damage.strerror or damage}", self.path, number) from damage
        self._raw.drain()

    def _read(self) -> tuple[bytes, Any]:
        """Some bytes, none at the end; and why there are no more, where that is not the end."""
        try:
            # Of a gzip file what its buffer holds, so that all that stands before a damage is read.
            return self._lines.read1(-1 if self._compressed else BLOCK), None
        except (*DAMAGE, OSError) as error:
            return b"", error

    def _too_long(self, number: int) -> LogError:
        return LogError(
            f"the line is longer than {LONGEST_LINE >> 20} MiB: this is no log, which has one JSON object a line",
            self.path,
            number,
        )

    @property
    def bytes(self) -> int:
        """Bytes on disk; complete once the lines have been read."""
        return self._raw.count

    @property
    def sha256(self) -> str:
        """Of the bytes on disk; complete once the lines have been read."""
        return self._raw.hexdigest()


def _count_lines(block: bytes) -> int:
    """How many lines there are, the last of which may have no newline."""
    newlines = np.count_nonzero(np.frombuffer(block, np.uint8) == ord("\n"))  # bytes.count takes ten times as long
    return int(newlines) + (not block.endswith(b"\n"))
