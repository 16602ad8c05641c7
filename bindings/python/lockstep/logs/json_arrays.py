"""Reading lines of JSON whose arrays of numbers become NumPy arrays without a Python object a token.

simdjson parses a line about twice as fast as orjson makes objects of it, and what is not wanted of it costs
nothing more. What it finds is kept as bytes, of which the lines of a block are made arrays together. It is used
where lines are as expected; every other line, and all that is wrong with one, is left to `json_records.parse`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .columns import WITH_PROMPT
from .rows import SIDES, BadRow, Rows

if TYPE_CHECKING:
    from simdjson import Array, Parser

FLOATS = {float, int, type(None)}
# What the bytes of a column are. A mask of booleans is a "t" or "f" a token.
TYPES = {
    "trainer": np.float64,
    "rollout": np.float64,
    "mask": np.uint8,
    "numeric mask": np.float64,
    "token_ids": np.int64,
}
# simdjson counts the values of an array so far.
MOST = 0xFFFFFF
# What is raised for what simdjson does not parse, and for a value that is not as expected.
UNFIT = (ValueError, TypeError, RuntimeError, IndexError, AttributeError, KeyError, OverflowError, BadRow)


class About(NamedTuple):
    """Whose the tokens of a line are."""

    id: int | None
    step: int
    environment: str


class Line(NamedTuple):
    """A line that is as expected. Those of one kind can be packed together."""

    kind: tuple
    """Which columns it has, and whether it has no id."""
    tokens: int
    columns: dict[str, Any]
    """The bytes of each."""
    about: About


class ArrayReader:
    """Reads lines of one format."""

    def __init__(
        self,
        roles: Mapping[str, str],
        about: Callable[[dict], About],
        others: Collection[str] = (),
        *,
        numeric_mask: bool = True,
    ):
        """Of a line it reads the fields of `roles`, which may be settled later, and `others`.

        `about` is given those that are no columns of tokens. `numeric_mask`: a mask may be of 0 and 1.
        """
        self._roles, self._about, self._also, self._numeric_mask = roles, about, others, numeric_mask
        self._parser = new_parser()
        self._names: list[str] = []
        self._columns: list[tuple[str, str]] = []
        self._others: list[str] = []

    def read(self, line: bytes) -> Line | None:
        """What a line holds, or None for one that another reader must look at."""
        if not self._roles or self._parser is None or line[:1] != b"{" or not _flat(line):
            return None
        try:
            found = self._parser.parse(line)
            names = list(found)
            if names != self._names:
                self._settle(names)
            about = self._about({name: found[name] for name in self._others})
            columns: dict[str, Any] = {}
            tokens = -1
            for role, name in self._columns:
                values = found[name]
                if values is None and role == "token_ids":
                    continue
                column, count = None, len(values)
                if role == "token_ids":
                    column = values.as_buffer(of_type="i")
                    if count > tokens and name in WITH_PROMPT:
                        column, count = memoryview(column)[8 * (count - tokens) :], tokens
                elif role != "mask":
                    column = _numbers(values)
                elif type(values[0]) is bool:
                    # Of [true,false] this leaves "tf", and of any other value a character of another kind.
                    column = values.mini.translate(None, b"[,]rueals")
                elif self._numeric_mask:
                    role, column = "numeric mask", values.as_buffer(of_type="d")
                if column is None or count != tokens >= 0:
                    return None
                columns[role], tokens = column, count
        except UNFIT:
            return None
        return Line((*columns, about.id is None), tokens, columns, about) if tokens < MOST else None

    def pack(self, lines: Sequence[Line], numbers: Sequence[int]) -> Rows | None:
        """The rows of lines of one kind, with their numbers; None if there is something wrong with one of them."""
        columns: dict[str, NDArray] = {
            role: np.frombuffer(b"".join([line.columns[role] for line in lines]), TYPES[role])
            for role in lines[0].columns
        }
        lengths = [line.tokens for line in lines]
        counted = np.ones(sum(lengths), np.bool_)
        for role, no, yes in (("mask", ord("f"), ord("t")), ("numeric mask", 0, 1)):
            if role in columns:
                counted = columns[role] == yes
                if len(counted) != sum(lengths) or not (counted | (columns[role] == no)).all():
                    return None
        ids = columns.get("token_ids")
        if ids is not None and not fit(ids):
            return None
        with np.errstate(over="ignore"):  # beyond float32 is infinite, which is told of where it counts
            sides = {side: columns[side].astype(np.float32) for side in SIDES if side in columns}
        own, steps, environments = zip(*(line.about for line in lines), strict=True)
        return Rows(
            trainer=sides.get("trainer"),
            rollout=sides.get("rollout"),
            mask=counted,
            lengths=lengths,
            lines=numbers,
            ids=None if own[0] is None else own,
            steps=steps,
            token_ids=None if ids is None else ids.astype(np.int32),
            environments=environments,
        )

    def _settle(self, names: list[str]) -> None:
        """Finds which fields of a line are to be read."""
        if len(set(names)) != len(names):  # simdjson finds the first of a name, orjson the last
            raise ValueError
        roles = self._roles
        self._columns = [
            (role, roles[role])
            for role in (*SIDES, "mask", "token_ids")
            if role in roles and (role != "token_ids" or roles[role] in names)
        ]
        wanted = {*roles.values(), *self._also}.difference(name for _, name in self._columns)
        self._others = [name for name in names if name in wanted]
        self._names = names


def new_parser() -> Parser | None:
    """A parser, for which nobody pays a megabyte who reads no JSON; None without its package."""
    try:
        from simdjson import Parser
    except ModuleNotFoundError:  # it comes with lockstep[report]
        return None
    return Parser()


def fit(ids: NDArray) -> bool:
    """Whether token ids have 32 bits."""
    return len(ids) == 0 or (-(2**31) <= ids.min() and ids.max() < 2**31)


def _numbers(values: Array) -> Any:
    """The bytes of the numbers of an array; null is NaN."""
    try:
        return values.as_buffer(of_type="d")
    except TypeError:
        some = values.as_list()
        if not FLOATS.issuperset(map(type, some)):
            raise
        return np.array(some, np.float64)


def _flat(line: bytes) -> bool:
    """Whether no array stands in another: those simdjson would give as one. Text may look like it."""
    at = line.find(b"[")
    while at > 1:
        before = line[at - 1]
        if before != 58 and (before != 32 or line[at - 2] != 58):  # ": ["
            return False
        at = line.find(b"[", at + 1)
    return True
