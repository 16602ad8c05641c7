"""The formats there are, and telling which one a file has.

A format is a module with `recognises(head)` and `source(path, wanted, advance)`; it is entered here. The
order matters: the first that recognises a file reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from . import arrow, json_lines, npz, own, prime_rl, responses
from .files import LONGEST_LINE, LineReader, WatchedFile
from .json_records import is_document, parse
from .log import LogError
from .rows import BadRow, Rows, Wanted


class Source(Protocol):
    """One file, opened by a format."""

    unit: str
    """What is counted: "line", "row" or "record"."""
    null: str
    """What a NaN was in the file."""
    fields: Mapping[str, str]
    """The columns' own names, by role, for errors."""
    header: Mapping[str, Any]
    """What the file says of how it was made; may grow while it is read."""
    bytes: int
    sha256: str

    def __iter__(self) -> Iterator[tuple[int, Rows | LogError]]:
        """(line or row, whole sequences), or in place of what cannot be read, the error."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Format:
    """A format."""

    name: str
    title: str
    """In words, for errors."""
    recognises: Callable[[Head], bool]
    source: Callable[[Path, Wanted, Callable[[int], None] | None], Source]


@dataclass(frozen=True)
class Head:
    """What a file begins with."""

    path: Path
    magic: bytes
    record: dict | None
    """The first JSON object, if the file is JSON."""
    error: LogError | None = None
    """What is wrong with the first line, if it looked like JSON and is none."""


FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        Format("prime-rl", "a prime-rl token export", prime_rl.recognises, prime_rl.source),
        Format("responses", "JSON answers of an inference server", responses.recognises, responses.source),
        Format("jsonl", "JSON with named columns", json_lines.recognises, json_lines.source),
        Format("arrow", "a Parquet or Arrow table", arrow.recognises, arrow.source),
        Format("npz", "NumPy arrays (.npz)", npz.recognises, npz.source),
        Format("lockstep", "Lockstep's own log (.lockstep)", own.recognises, own.source),
    )
}

# What else people have, by how it begins, and what to do with it.
_EXPORT = (
    "; write the log-probs as JSON lines, Parquet or .npz instead: docs/Logs.md has the few lines for each"
    " framework"
)
OTHERS = (
    (
        b"\x80",
        "a Python pickle, as verl's DataProto.save_to_disk writes, which is never read, as unpickling runs"
        " code" + _EXPORT,
    ),
    (b"PK\x03\x04", "a zip archive that is no .npz, as torch.save writes (a pickle, never read)" + _EXPORT),
    (b"\x93NUMPY", "a single NumPy array; save those of one log together, with numpy.savez"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it, or use gzip"),
    (b"BZh", "compressed with bzip2; unpack it, or use gzip"),
    (b"\xfd7zXZ", "compressed with xz; unpack it, or use gzip"),
    (b"\x89HDF", "an HDF5 file" + _EXPORT),
)


def recognise(path: Path, wanted: Wanted) -> Format | None:
    """The format of a file, by what it holds; None for one that is empty, or JSON that cannot be read.

    Raises LogError with what was found and what is needed instead.
    """
    head = read_head(path)
    if wanted.columns and head.record is not None:
        return FORMATS["jsonl"]
    for format in FORMATS.values():
        if format.recognises(head):
            return format
    if head.record is not None:
        found = ", ".join(sorted(map(repr, head.record))[:16]) or "none"
        raise LogError(
            f"is JSON with the fields {found[:800]}, which are those of no known log; say which columns"
            " hold the log-probs (--column trainer=NAME --column rollout=NAME). verl's rollout_data_dir and"
            " TRL's completions hold text without log-probs: docs/Logs.md says how to write them",
            str(path),
        )
    if head.error is not None or not head.magic.strip():
        return None
    for magic, what in OTHERS:
        if head.magic.startswith(magic):
            raise LogError(f"is {what}", str(path))
    known = ", ".join(format.title for format in FORMATS.values())
    raise LogError(
        f"is no log of a known format: it begins with the bytes {head.magic[:8]!r}; known are {known}",
        str(path),
    )


def read_head(path: Path) -> Head:
    """How a file begins; of JSON, the first object among its first lines that can be read."""
    with WatchedFile(path, None) as file:
        start = bytearray(16)
        magic = bytes(start[: file.readinto(start)])
    if not magic.startswith(b"\x1f\x8b") and magic.lstrip()[:1] not in (b"{", b"["):
        return Head(path, magic, None)
    error, document = None, bytearray()
    with LineReader(path) as reader:
        for number, line in reader:
            if isinstance(line, LogError):
                error = error or line
                break
            if document or (number == 1 and is_document(line)):
                document += line
                if len(document) > LONGEST_LINE:
                    break
            elif not line.isspace():
                try:
                    record = parse(line)
                except BadRow as bad:
                    error = error or LogError(bad.message, str(path), number, bad.field)
                    if number >= 64:
                        break
                else:
                    return Head(path, magic, record if isinstance(record, dict) else None)
    if document:
        try:
            record = parse(bytes(document))
        except BadRow as bad:
            return Head(path, magic, None, LogError(bad.message, str(path), 1, bad.field))
        record = record[0] if isinstance(record, list) and record else record
        return Head(path, magic, record if isinstance(record, dict) else None)
    return Head(path, magic, None, error)
