"""JSON logs of any format: one object a line, or one document; and the checks of JSON values."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import files
from .files import LineReader
from .json_arrays import FLOATS, ArrayReader, Line, fit, loads
from .log import LogError
from .rows import BadRow, Rows, Wanted

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
        arrays: ArrayReader | None = None,
    ):
        """`parse` keeps `header`; `arrays` reads lines that are as expected."""
        self._reader = LineReader(path, advance)
        self._parse, self._wanted = parse, wanted
        self._arrays, self._said = arrays, header
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
        """Rows of one line, or of several that are as expected, of one kind and header."""
        self._room = self._wanted.batch_tokens
        blocks = iter(self._reader.blocks())
        for numbers, block in blocks:
            if isinstance(block, LogError):
                if self._mine(numbers[0]):
                    yield numbers[0], self._alone(numbers[0], block)
            elif numbers[0] == 1 and is_document(block[: block.find(b"\n") + 1] or block):
                for number, record in self._document(block, blocks):
                    if self._mine(number):
                        yield number, self._alone(number, record)
            else:
                yield from self._block(numbers, block)

    def _mine(self, number: int) -> bool:
        """Whether a line is of this part."""
        return number % self._wanted.parts == self._wanted.part

    def _block(self, numbers: Sequence[int], block: bytes) -> Iterator[tuple[int, Rows | LogError]]:
        """The rows of whole lines."""
        if self._wanted.parts == 1 and self._arrays is not None and self._arrays.ready:
            rows = self._whole(numbers, block)
            if rows is not None:
                yield from self._parts(rows)
                return
        lines = zip(numbers, io.BytesIO(block), strict=True)
        mine = deque((number, text) for number, text in lines if self._mine(number) and not text.isspace())
        while mine and not (self._arrays is not None and self._arrays.ready):
            number, text = mine.popleft()
            yield number, self._alone(number, text)
        if 0 < len(mine) < len(numbers):
            rows = self._whole([number for number, _ in mine], b"".join([text for _, text in mine]))
            if rows is not None:
                yield from self._parts(rows)
                return
        yield from self._lines(mine)

    def _whole(self, numbers: Sequence[int], block: bytes) -> Rows | None:
        """The rows of lines that are all as expected and alike, and their header."""
        found = self._arrays.read(block, numbers)
        if found is None:
            return None
        self._said.update(found[1])
        if self._said != self.header:
            self.header = dict(self._said)
        return found[0]

    def _lines(self, held: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, Rows | LogError]]:
        """The rows of lines that are not all alike."""
        like: list[tuple[int, bytes, Line]] = []
        for number, text in held:
            line = self._arrays.line(text)
            if line is not None:
                self._said.update(line.about.header)
            if like and (line is None or line.kind != like[0][2].kind or self._said != self.header):
                yield from self._together(like)
                like = []
            if line is None:
                yield number, self._alone(number, text)
            else:
                like.append((number, text, line))
                if self._said != self.header:
                    self.header = dict(self._said)
        if like:
            yield from self._together(like)

    def _alone(self, number: int, text: bytes | LogError | Any) -> Rows | LogError:
        """The rows of one line, and its header."""
        rows = self._row(number, text)
        if self._said != self.header and not isinstance(rows, LogError):
            self.header = dict(self._said)
        self._count(rows)
        return rows

    def _together(self, held: list[tuple[int, bytes, Line]]) -> Iterator[tuple[int, Rows | LogError]]:
        """The rows of lines that `ArrayReader` took; where there is something wrong, of each half."""
        numbers, texts, lines = zip(*held, strict=True)
        rows = self._arrays.pack(lines, numbers)
        if rows is not None:
            yield from self._parts(rows)
        elif len(held) > 1:
            yield from self._together(held[: len(held) // 2])
            yield from self._together(held[len(held) // 2 :])
        else:
            said = dict(self._said)  # by the line after it, maybe
            one = self._row(numbers[0], texts[0])
            self._said.update(said)
            self._count(one)
            yield numbers[0], one

    def _parts(self, rows: Rows) -> Iterator[tuple[int, Rows]]:
        """Rows cut where a batch ends."""
        start, ends = 0, np.cumsum([0, *rows.lengths])
        while start < len(rows.lengths):
            end = min(int(np.searchsorted(ends, ends[start] + self._room)), len(rows.lengths))
            part = rows.part(start, end, slice(ends[start], ends[end]))
            self._count(part)
            yield rows.lines[start], part
            start = end

    def _count(self, rows: Rows | LogError) -> None:
        """Takes rows off what is left of a batch, so that the next ones end where it does."""
        self._room -= len(rows.mask) if isinstance(rows, Rows) else 0
        if self._room <= 0:
            self._room = self._wanted.batch_tokens

    def _row(self, number: int, record: bytes | LogError | Any) -> Rows | LogError:
        """The rows of one line, or what is wrong with it."""
        try:
            if isinstance(record, LogError):
                return record
            if isinstance(record, bytes):
                record = parse(record)
            if not isinstance(record, dict):
                raise BadRow(f"holds {kind(record)} where one JSON object, a sequence, is expected")
            return self._parse(record, number)
        except BadRow as bad:
            return LogError(bad.message, self._reader.path, number, bad.field)

    def _document(self, first: bytes, blocks: Iterator) -> Iterator[tuple[int, LogError | Any]]:
        """The objects of a document, numbered from 1."""
        text = bytearray(first)
        for _, block in blocks:
            if isinstance(block, LogError):
                yield 1, block
                return
            text += block
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
        return loads(text)
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


def array(value: Any, name: str) -> list:
    """A required array."""
    if value is None:
        raise BadRow(
            "is null, so it was not recorded; export it from the trainer, as without it there is"
            " nothing to compare",
            name,
        )
    if not isinstance(value, list):
        raise BadRow(f"is {kind(value)} where an array, one value a token, is expected", name)
    return value


def floats(values: list, name: str) -> NDArray[np.float32]:
    """Log-probs; null becomes NaN, and what is beyond float32 infinite."""
    if not set(map(type, values)) <= FLOATS:
        index = next(i for i, value in enumerate(values) if type(value) not in FLOATS)
        raise BadRow(f"token {index} is {kind(values[index])} where a number or null is expected", name)
    with np.errstate(over="ignore"):
        try:
            return np.array(values, np.float32)
        except OverflowError:  # an integer of hundreds of digits
            raise BadRow("holds a number beyond any float", name) from None


def mask(values: list, name: str, numbers: bool = True) -> NDArray[np.bool_]:
    """True or false a token; with `numbers`, 1 and 0 too."""
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


def token_ids(values: Any, length: int, name: str, reference: str) -> NDArray[np.int32] | None:
    """The token ids, or None where they were not recorded."""
    if values is None:
        return None
    if not isinstance(values, list):
        raise BadRow("is not an array of integers", name)
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
    if not fit(ids):
        raise BadRow("holds a token id beyond 32 bits", name)
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


def integers(values: list, name: str, otherwise: int = -1) -> list[int]:
    """`integer` of each."""
    if set(map(type, values)) == {int} and -(2**63) <= min(values) and max(values) < 2**63:
        return values
    return [integer(value, name, otherwise) for value in values]


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


def _small(values: list) -> bool:
    return -1 < min(values) and max(values) < 2


def _first_line(text: str) -> str:
    return text.splitlines()[0][:120] if text else "no reason given"
