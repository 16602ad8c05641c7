"""Finding the files of a log, and reading their lines with constant memory."""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from .log import LogError

SUFFIXES = (".jsonl", ".jsonl.gz")

# A sequence of a million tokens with all of prime-rl's columns is below this. A longer "line" is
# a file of another kind, and would be read into memory whole.
LONGEST_LINE = 512 << 20


def find_files(path: str | Path) -> list[Path]:
    """The files of one log: `path` itself, or, for a folder, its .jsonl and .jsonl.gz files by name.

    prime-rl writes one file a rank, ``step_7/rank_0.jsonl``: the folder ``step_7`` is one log.
    Sub-folders are not entered, as they are other steps. Raises LogError where nothing is found.
    """
    path = Path(path)
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES) and file.is_file())
    if not files:
        folders = sorted(child.name for child in path.iterdir() if child.is_dir())
        hint = f"; give one of its folders, such as {folders[0]}" if folders else ""
        raise LogError(f"the folder holds no .jsonl or .jsonl.gz file{hint}", str(path))
    return files


class _Watched(io.RawIOBase):
    """A file that hashes and counts the bytes that are read from it."""

    def __init__(self, path: Path, advance: Callable[[int], None] | None):
        self._file = open(path, "rb", buffering=0)
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
        try:
            with open(path, "rb") as file:
                compressed = file.read(2) == b"\x1f\x8b"
            self._raw = _Watched(path, advance)
        except OSError as error:
            raise LogError(f"cannot be opened: {error.strerror or error}", self.path) from error
        buffered = io.BufferedReader(self._raw, 1 << 20)
        # GzipFile has a buffer of its own, from which the lines before a damage can still be read.
        self._lines = gzip.GzipFile(fileobj=buffered) if compressed else buffered

    def __enter__(self) -> LineReader:
        return self

    def __exit__(self, *_) -> None:
        self._lines.close()
        self._raw.close()

    def __iter__(self) -> Iterator[tuple[int, bytes | LogError]]:
        """Yields (number from 1, line with its newline), or a LogError in place of a bad line."""
        number = 0
        while True:
            number += 1
            try:
                line = self._lines.readline(LONGEST_LINE)
                if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                    while line and not line.endswith(b"\n"):
                        line = self._lines.readline(LONGEST_LINE)
                    yield number, LogError(
                        f"the line is longer than {LONGEST_LINE >> 20} MiB: this is no token export, which"
                        " has one JSON object a line", self.path, number)
                    continue
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                # What lies beyond the damage cannot be read, but the lines before it were.
                yield number, LogError(f"the gzip stream is damaged or cut off here ({error}); copy the file"
                                       " again, or read it with gzip -t", self.path, number)
                break
            except OSError as error:
                raise LogError(f"cannot be read: {error.strerror or error}", self.path, number) from error
            if not line:
                break
            yield number, line
        self._raw.drain()

    @property
    def bytes(self) -> int:
        """Bytes on disk; complete once the lines have been read."""
        return self._raw.count

    @property
    def sha256(self) -> str:
        """Of the bytes on disk; complete once the lines have been read."""
        return self._raw.hexdigest()
