"""JSON logs of any format: one object a line, or one document; and the checks of JSON values."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import files
from .files import LineReader
from .json_arrays import ArrayReader
from .log import LogError
from .rows import BadRow, Rows, Wanted, concatenate

_loads: Callable[[bytes], Any]
try:
    from orjson import loads as _loads
except ModuleNotFoundError:  # it comes with lockstep[report]; without it reading is about 5 times slower
    _loads = json.loads

FLOATS = {float, int, type(None)}
ARRAYS = (list, np.ndarray)
# What `ArrayReader` makes of the columns.
KINDS = {"trainer": "d", "rollout": "d", "mask": "b", "token_ids": "i"}
# Tokens of so many lines are handed on together.
TOGETHER = 1 << 15
WIDE = "holds a token id beyond 32 bits"
# The first line of a document that json.dump(indent=...) or jq wrote, over many lines.
OPENINGS = (b"{", b"[", b"[{")


class JsonSource:
    """Reads a JSON file with `parse`, which makes Rows of one object or raises BadRow."""

    unit = "line"
    null = "null (non-finite when it was written)"

    def __init__(
        self,
        path: Path,
        wanted: Wanted,
        advance: Callable[[int], None] | None,
        parse: Callable[[dict, int], Rows],
        fields: dict[str, str],
        header: dict[str, Any],
        kinds: Mapping[str, str] | None = None,
    ):
        """`parse` keeps `header`, and with `kinds` may be given NumPy arrays and no other fields than these."""
        self._reader = LineReader(path, advance)
        self._parse, self._wanted = parse, wanted
        self._arrays, self._said = ArrayReader({} if kinds is None else kinds), header
        self.fields = fields
        self.header: dict[str, Any] = {}

    def close(self) -> None:
        self._reader.__exit__()

    @property
    def bytes(self) -> int:
        return self._reader.bytes

    @property
    def sha256(self) -> str:
        return self._reader.sha256

    def __iter__(self) -> Iterator[tuple[int, Rows | LogError]]:
        """Rows of some lines together, as far as they are of one kind and header."""
        held: list[Rows] = []
        there: tuple[bool, ...] = ()
        tokens, most = 0, min(TOGETHER, self._wanted.batch_tokens)
        batch = 0
        for number, rows in self._lines():
            error = isinstance(rows, LogError)
            if held and (error or self._said != self.header or _there(rows) != there):
                yield from self._together(held)
                held, tokens = [], 0
            if error:
                yield number, rows
                continue
            if self._said != self.header:
                self.header = dict(self._said)
            if not held:
                there = _there(rows)
            held.append(rows)
            count = len(rows.mask)
            tokens, batch = tokens + count, batch + count
            if tokens >= most or batch >= self._wanted.batch_tokens:
                yield from self._together(held)
                held, tokens = [], 0
                batch = 0 if batch >= self._wanted.batch_tokens else batch
        if held:
            yield from self._together(held)

    def _together(self, held: list[Rows]) -> Iterator[tuple[int, Rows | LogError]]:
        rows = concatenate(held)
        if rows.token_ids is None or _fit(rows.token_ids):
            if rows.token_ids is not None:
                rows.token_ids = rows.token_ids.astype(np.int32, copy=False)
            yield rows.lines[0], rows
        elif len(held) == 1:
            yield rows.lines[0], LogError(WIDE, self._reader.path, rows.lines[0], self.fields["token_ids"])
        else:
            for one in held:
                yield from self._together([one])

    def _lines(self) -> Iterator[tuple[int, Rows | LogError]]:
        path, part, parts = self._reader.path, self._wanted.part, self._wanted.parts
        for number, record in self._records():
            if parts > 1 and number % parts != part:
                continue
            try:
                if isinstance(record, LogError):
                    raise record
                rows = self._fast(record, number) if isinstance(record, bytes) else None
                if rows is not None:
                    yield number, rows
                    continue
                if isinstance(record, bytes):
                    record = parse(record)
                if not isinstance(record, dict):
                    raise BadRow(f"holds {kind(record)} where one JSON object, a sequence, is expected")
                rows = self._parse(record, number)
            except BadRow as bad:
                yield number, LogError(bad.message, path, number, bad.field)
            except LogError as damaged:
                yield number, damaged
            else:
                yield number, rows

    def _fast(self, line: bytes, number: int) -> Rows | None:
        """The rows of a line that is as expected, else None."""
        record = self._arrays.read(line)
        if record is not None:
            try:
                return self._parse(record, number)
            except BadRow:
                pass
        return None

    def _records(self) -> Iterator[tuple[int, bytes | LogError | Any]]:
        """Lines that are not blank, or the objects of a document, numbered from 1."""
        lines = iter(self._reader)
        for number, line in lines:
            if isinstance(line, bytes):
                if line.isspace():
                    continue
                if number == 1 and is_document(line):
                    yield from self._document(line, lines)
                    return
            yield number, line

    def _document(self, first: bytes, lines: Iterator) -> Iterator[tuple[int, LogError | Any]]:
        text = bytearray(first)
        for number, line in lines:
            if isinstance(line, LogError):
                yield 1, line
                return
            text += line
            if len(text) > files.LONGEST_LINE:
                yield (
                    1,
                    LogError(
                        f"is one JSON document of more than {files.LONGEST_LINE >> 20} MiB, which cannot"
                        " be streamed: write one object a line",
                        self._reader.path,
                    ),
                )
                return
        try:
            document = parse(bytes(text))
        except BadRow as bad:
            yield 1, LogError(bad.message, self._reader.path, 1)
            return
        yield from enumerate(document if isinstance(document, list) else [document], 1)


def is_document(line: bytes) -> bool:
    """Whether the first line of a file begins a document, an array of sequences or an indented object."""
    stripped = line.strip()
    return stripped in OPENINGS or (stripped.startswith(b"[{") and stripped.endswith(b"]"))


def parse(text: bytes) -> Any:
    """The JSON value of a line."""
    try:
        return _loads(text)
    except (ValueError, RecursionError) as error:
        if not text.endswith(b"\n"):
            raise BadRow(
                "the last line is cut off: the log was still being written, or the disk was"
                " full; read it when it is complete (prime-rl: when the step's STABLE marker is there),"
                " or leave the line out"
            ) from error
        if b"NaN" in text or b"Infinity" in text:
            raise BadRow(
                "is not JSON: it holds NaN or Infinity, which JSON does not have; write null for them"
            ) from error
        raise BadRow(f"is not JSON ({_first_line(str(error))})") from error


def field(record: dict, name: str, what: str = "log") -> Any:
    """A required field."""
    if name not in record:
        found = ", ".join(sorted(map(repr, record))[:12]) or "none"
        raise BadRow(f"the field is missing: this is no {what} (fields found: {found[:600]})", name)
    return record[name]


def array(value: Any, name: str) -> list | NDArray:
    """A required array."""
    if value is None:
        raise BadRow(
            "is null, so it was not recorded; export it from the trainer, as without it there is"
            " nothing to compare",
            name,
        )
    if not isinstance(value, ARRAYS):
        raise BadRow(f"is {kind(value)} where an array, one value a token, is expected", name)
    return value


def floats(values: list | NDArray, name: str) -> NDArray:
    """Log-probs; null becomes NaN, and what is beyond float32 infinite."""
    if isinstance(values, np.ndarray):
        return values
    if not set(map(type, values)) <= FLOATS:
        index = next(i for i, value in enumerate(values) if type(value) not in FLOATS)
        raise BadRow(f"token {index} is {kind(values[index])} where a number or null is expected", name)
    with np.errstate(over="ignore"):
        try:
            return np.array(values, np.float32)
        except OverflowError:  # an integer of hundreds of digits
            raise BadRow("holds a number beyond any float", name) from None


def mask(values: list | NDArray, name: str, numbers: bool = True) -> NDArray[np.bool_]:
    """True or false a token; with `numbers`, 1 and 0 too."""
    if isinstance(values, np.ndarray):
        if values.dtype == np.bool_:
            return values
        if not numbers or not ((values == 0) | (values == 1)).all():
            raise BadRow("holds a number other than 0 and 1", name)
        return values != 0
    kinds = set(map(type, values))
    if kinds <= {bool}:
        return np.frombuffer(bytes(values), np.bool_)
    if numbers and kinds <= {bool, int, float}:
        column = np.array(values, np.float64) if _small(values) else np.array([2.0])
        if ((column == 0) | (column == 1)).all():
            return column != 0
        raise BadRow("holds a number other than 0 and 1", name)
    good = {bool, int, float} if numbers else {bool}
    index = next(i for i, value in enumerate(values) if type(value) not in good)
    expected = "true or false, or 1 or 0," if numbers else "true or false"
    raise BadRow(f"token {index} is {kind(values[index])} where {expected} is expected", name)


def token_ids(values: Any, length: int, name: str, reference: str) -> NDArray | None:
    """The token ids, or None where they were not recorded. If they came as an array, its range is checked later."""
    if values is None:
        return None
    if not isinstance(values, ARRAYS):
        raise BadRow("is not an array of integers", name)
    if isinstance(values, np.ndarray):
        same_length(values, name, range(length), reference)
        return values
    try:
        ids = np.array(values) if values else np.zeros(0, np.int64)
    except ValueError:  # ragged
        ids = np.zeros((0, 0))
    if (
        ids.ndim != 1
        or ids.dtype.kind not in "iuO"
        or (ids.dtype.kind == "O" and set(map(type, values)) != {int})
    ):
        raise BadRow("is not an array of integers", name)
    same_length(ids, name, range(length), reference)
    if not _fit(ids):
        raise BadRow(WIDE, name)
    return ids.astype(np.int32)


def same_length(values: Sized, name: str, reference: Sized, reference_name: str) -> None:
    if len(values) != len(reference):
        raise BadRow(
            f"has {len(values)} values but {reference_name} has {len(reference)}: all arrays of a line"
            " have one value a token",
            name,
        )


def integer(value: Any, name: str, otherwise: int = -1) -> int:
    """A small integer, such as a step; `otherwise` where it is null or missing."""
    if value is None:
        return otherwise
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise BadRow(f"is {kind(value)} where an integer is expected", name)
    return value


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    for kinds, name in (
        (bool, "a boolean"),
        ((int, float), "a number"),
        (str, "a string"),
        (list, "an array"),
        (dict, "an object"),
    ):
        if isinstance(value, kinds):
            return name
    return "null"


def _there(rows: Rows) -> tuple[bool, ...]:
    """Which columns it has, of those that all rows together have, or none."""
    return rows.trainer is None, rows.rollout is None, rows.ids is None, rows.token_ids is None


def _fit(ids: NDArray) -> bool:
    return len(ids) == 0 or (-(2**31) <= ids.min() and ids.max() < 2**31)


def _small(values: list) -> bool:
    return -1 < min(values) and max(values) < 2


def _first_line(text: str) -> str:
    return text.splitlines()[0][:120] if text else "no reason given"
