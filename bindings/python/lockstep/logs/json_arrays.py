"""Reading lines of JSON whose arrays of numbers become NumPy arrays without a Python object a token.

A line is cut into its arrays and the rest, an object of few bytes; simdjson parses the arrays of a block of lines
together, a column at a time, twice as fast as orjson makes objects of them. It is used where lines are as expected;
every other line, and all that is wrong with one, is left to `json_records.parse`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .columns import WITH_PROMPT
from .rows import SIDES, BadRow, Rows

if TYPE_CHECKING:
    from simdjson import Array, Parser

loads: Callable[[bytes], Any]
try:
    from orjson import loads
except ModuleNotFoundError:  # it comes with lockstep[report]; without it reading is about 5 times slower
    loads = json.loads

FLOATS = {float, int, type(None)}
# simdjson counts the values of an array so far.
MOST = 0xFFFFFF
# What stands for an array in the rest of a line.
MARKS = [b"[%d]" % index for index in range(64)]
# What is raised for what simdjson does not parse, and for a value that is not as expected.
UNFIT = (ValueError, TypeError, RuntimeError, IndexError, AttributeError, KeyError, OverflowError, BadRow)


class About(NamedTuple):
    """Whose the tokens of some lines are."""

    ids: NDArray[np.uint64] | None
    """None where none of them has an id."""
    steps: Sequence[int] | NDArray[np.int64]
    environments: Sequence[str]
    header: Mapping[str, Any] = {}
    """What each of them says of how the log was made."""


class Line(NamedTuple):
    """A line that is as expected but, maybe, for its arrays. Those of one kind can be packed together."""

    kind: tuple
    """The roles of its arrays, and whether it has no id."""
    arrays: list[bytes]
    """What is between their brackets."""
    about: About


class ArrayReader:
    """Reads lines of one format."""

    def __init__(
        self, roles: Mapping[str, str], about: Callable[[Sequence[dict]], About], *, numeric_mask: bool = True
    ):
        """Of a line it reads the fields of `roles`, which may be settled later.

        `about` is given lines with a list of one number in place of each array, and raises one of UNFIT where they do not
        say the same of how the log was made, or some have ids and some have none. `numeric_mask`: a mask may be of 0 and 1.
        """
        self._roles, self._about, self._numeric_mask = roles, about, numeric_mask
        self._parser = new_parser()
        self._places: dict[str, int] | None = None
        self._layout: tuple = ()

    @property
    def ready(self) -> bool:
        """Whether it knows which columns there are, and has a parser."""
        return bool(self._roles) and self._parser is not None

    def read(self, block: bytes, numbers: Sequence[int]) -> tuple[Rows, Mapping[str, Any]] | None:
        """The rows of whole lines with these numbers, and their header; None where not all are as expected and alike."""
        try:
            layout, arrays, about = self._cut(block, len(numbers))
            return self._pack(layout, arrays, about, numbers), about.header
        except UNFIT:
            return None

    def line(self, text: bytes) -> Line | None:
        """One line in parts, or None where another reader must look at it."""
        try:
            layout, arrays, about = self._cut(text, 1)
        except UNFIT:
            return None
        return Line((layout, about.ids is None), [one for (one,) in arrays], about)

    def pack(self, lines: Sequence[Line], numbers: Sequence[int]) -> Rows | None:
        """The rows of lines of one kind, with their numbers; None if there is something wrong with one of them."""
        layout, no_ids = lines[0].kind
        arrays = [list(place) for place in zip(*[line.arrays for line in lines], strict=True)]
        steps, environments = ([getattr(line.about, name)[0] for line in lines] for name in ("steps", "environments"))
        ids = None if no_ids else np.concatenate([line.about.ids for line in lines])
        try:
            return self._pack(layout, arrays, About(ids, steps, environments), numbers)
        except UNFIT:
            return None

    def _cut(self, block: bytes, count: int) -> tuple[tuple, list[list[bytes]], About]:
        """Roles, arrays by their place, and the rest, of lines that have the same arrays; raises one of UNFIT for others.

        Each "[" is taken to begin an array, for which a mark is put. In what is left only marks can be lists; where
        each is the value of its field in every line, none was cut out of a text, an object or another array.
        """
        found, pieces, find = [], [], block.find
        end, at = -1, find(b"[")
        while at >= 0:
            pieces.append(block[end + 1 : at])
            end = block.index(b"]", at)
            found.append(block[at + 1 : end])
            pieces.append(b"")
            at = find(b"[", end)
        pieces.append(block[end + 1 :])
        width, more = divmod(len(found), count)
        if more or width > len(MARKS):
            raise ValueError
        arrays = [found[place::width] for place in range(width)]
        for place, mark in enumerate(MARKS[:width]):
            pieces[2 * place + 1 :: 2 * width] = [mark] * count
        rest = b"".join(pieces).strip(b" \t\r\n")
        # Lines are objects by themselves, not only together, if they have braces but at their ends no others.
        if count > 1 and not (
            rest.count(b"{") == rest.count(b"}") == rest.count(b"}\n{") + 1 == count
            and (rest[0], rest[-1]) == (ord("{"), ord("}"))
        ):
            raise ValueError
        records = loads(b"[" + rest.replace(b"\n", b",") + b"]")
        places = {name: value[0] for name, value in records[0].items() if type(value) is list}
        if len(records) != count or len(places) != width:
            raise ValueError
        for name, place in places.items():
            if [record[name] for record in records].count([place]) != count:
                raise ValueError
        ids = self._roles.get("token_ids", "")
        if ids not in places and not {type(record.get(ids)) for record in records} <= {type(None)}:
            raise TypeError
        if places != self._places:
            self._settle(places)
        return self._layout, arrays, self._about(records)

    def _pack(self, layout: tuple, arrays: list[list[bytes]], about: About, numbers: Sequence[int]) -> Rows:
        columns: dict[str, NDArray] = {}
        lengths: list[int] = []
        for role, place in layout:
            texts = arrays[place]
            if role is None:
                self._check(texts)
                continue
            column, counts = self._column(role, texts)
            if not columns:
                lengths = counts
                if max(counts) >= MOST:
                    raise OverflowError
            elif counts != lengths:
                if role != "token_ids" or self._roles[role] not in WITH_PROMPT:
                    raise ValueError
                column = _last(column, np.array(counts), np.array(lengths))
            columns[role] = column
        return Rows(
            trainer=columns.get("trainer"),
            rollout=columns.get("rollout"),
            mask=columns["mask"] if "mask" in columns else np.ones(sum(lengths), np.bool_),
            lengths=lengths,
            lines=numbers,
            ids=about.ids,
            steps=about.steps,
            token_ids=columns.get("token_ids"),
            environments=about.environments,
        )

    def _column(self, role: str, texts: list[bytes]) -> tuple[NDArray, list[int]]:
        """The values of the arrays of one column, one after the other, and how many each has.

        Together they are JSON where each is an array, or where a text goes from one into another; but texts are no
        values of a column.
        """
        if role == "mask":
            runs = _runs(texts)
            if runs is not None:
                return runs
        together = b"[[" + b"],[".join(texts) + b"]]"
        values = self._parser.parse(together)
        counts = list(map(len, values))
        if role == "token_ids":
            ids = np.frombuffer(values.as_buffer(of_type="i"), np.int64)
            if not fit(ids):
                raise OverflowError
            return ids.astype(np.int32), counts
        if role == "mask":
            return self._mask(values, together, sum(counts)), counts
        with np.errstate(over="ignore"):  # beyond float32 is infinite, which is told of where it counts
            return _numbers(values).astype(np.float32), counts

    def _mask(self, values: Array, text: bytes, count: int) -> NDArray[np.bool_]:
        # Of [true,false] this leaves "tf", and of any other value a character of another kind.
        letters = np.frombuffer(text.translate(None, b"[,] \t\r\nrueals"), np.uint8)
        mask = letters == ord("t")
        if len(letters) == count and (mask | (letters == ord("f"))).all():
            return mask
        if not self._numeric_mask:
            raise TypeError
        numbers = np.frombuffer(values.as_buffer(of_type="d"))
        if not ((numbers == 0) | (numbers == 1)).all():
            raise ValueError
        return numbers == 1

    def _check(self, texts: list[bytes]) -> None:
        """Whether arrays that are not read are JSON."""
        for text in texts:
            self._parser.parse(b"[" + text + b"]")

    def _settle(self, places: dict[str, int]) -> None:
        """Finds the roles of a line's arrays."""
        roles = self._roles
        layout = [
            (role, places[roles[role]])
            for role in (*SIDES, "mask", "token_ids")
            if role in roles and (role != "token_ids" or roles[role] in places)
        ]
        read = {place for _, place in layout}
        layout += [(None, place) for place in places.values() if place not in read]
        self._layout, self._places = tuple(layout), places


def new_parser() -> Parser | None:
    """A parser, for which nobody pays a megabyte who reads no JSON; None without its package."""
    try:
        from simdjson import Parser
    except ModuleNotFoundError:  # it comes with lockstep[report]
        return None
    return Parser()


def _runs(texts: list[bytes]) -> tuple[NDArray[np.bool_], list[int]] | None:
    """The mask and its lengths where each array is false up to a token and true from there, as a prompt makes it; else None.

    Such arrays are compared with one that is known, and not parsed.
    """
    comma = b", " if b", " in texts[0] else b","
    no, yes = b"false" + comma, b"true" + comma
    longest = max(map(len, texts))
    every_no, every_yes = (word * (longest // len(word) + 1) for word in (no, yes))
    counts = []
    for text in texts:
        size = len(text) + len(comma)
        first = text.find(b"t") if b"t" in text else size
        (skipped, more), (counted, also) = divmod(first, len(no)), divmod(size - first, len(yes))
        if more or also or not (every_no.startswith(text[:first]) and every_yes.startswith(text[first:])):
            return None
        counts += (skipped, counted)
    return np.repeat(np.tile([False, True], len(texts)), counts), [sum(two) for two in zip(counts[::2], counts[1::2])]


def fit(ids: NDArray) -> bool:
    """Whether token ids have 32 bits."""
    return len(ids) == 0 or (-(2**31) <= ids.min() and ids.max() < 2**31)


def _numbers(values: Array) -> NDArray[np.float64]:
    """The numbers of arrays; null is NaN."""
    try:
        return np.frombuffer(values.as_buffer(of_type="d"))
    except TypeError:
        some = list(itertools.chain.from_iterable(values.as_list()))
        if not FLOATS.issuperset(map(type, some)):
            raise
        return np.array(some, np.float64)


def _last(values: NDArray, counts: NDArray, lengths: NDArray) -> NDArray:
    """Of each `counts` values the last `lengths`."""
    if (counts < lengths).any():
        raise ValueError
    ends = np.cumsum(lengths)
    return values[np.repeat(np.cumsum(counts) - ends, lengths) + np.arange(ends[-1])]
