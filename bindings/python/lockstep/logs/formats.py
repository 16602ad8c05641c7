"""The formats there are, and telling which one a file has.

A format is a module with `recognises(head)` and `source(path, wanted, advance)`; it is entered here. The order
matters: the first that recognises a file reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from . import prime_rl
from .files import LineReader
from .json_records import is_document, parse
from .log import LogError
from .rows import BadRow, Rows, Wanted


class Source(Protocol):
    """One file, opened by a format."""

    unit: str
    """What is counted: "line" or "row"."""
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


FORMATS: dict[str, Format] = {
    each.name: each for each in (
        Format("prime-rl", "a prime-rl token export", prime_rl.recognises, prime_rl.source),
    )
}

# What else people have, and what to do with it.
OTHERS = ()


def recognise(path: Path) -> Format:
    """The format of a file, by what it holds. Raises LogError with what was found and what is needed."""
    head = read_head(path)
    for format in FORMATS.values():
        if format.recognises(head):
            return format
    if head.record is not None:
        found = ", ".join(sorted(map(repr, head.record))[:16])
        raise LogError(f"is JSON with the fields {found[:800]}, which is no format known by name; say which columns"
                       " hold the log-probs (columns, --column trainer=NAME --column rollout=NAME)", str(path))
    raise LogError(f"is no log of a known format: it begins with the bytes {head.magic[:8]!r}; known are"
                   f" {', '.join(format.title for format in FORMATS.values())}", str(path))


def read_head(path: Path) -> Head:
    with LineReader(path) as reader:
        for number, line in reader:
            if isinstance(line, LogError) or number > 64:
                break
            if line.isspace():
                continue
            try:
                record = parse(line)
            except BadRow:
                continue
            return Head(path, line[:16], record if isinstance(record, dict) else None)
    return Head(path, b"", None)
