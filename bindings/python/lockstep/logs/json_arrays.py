"""Reading a line of JSON whose arrays of numbers become NumPy arrays without a Python object a token.

simdjson parses a line about twice as fast as orjson makes objects of it, and what is not wanted of it costs
nothing more. It is used where a line is as expected; every other line, and all that is wrong with one, is left
to `json_records.parse`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

try:
    from simdjson import Array, Object, Parser
except ModuleNotFoundError:  # it comes with lockstep[report]
    Parser = None

TYPES = {"d": np.float64, "i": np.int64}
# What simdjson raises for what it does not parse, or where an array has not the type that is asked for.
UNFIT = (ValueError, TypeError, RuntimeError, IndexError)


class ArrayReader:
    """Reads some fields of a line.

    `kinds` has the names of the fields that are wanted, which may grow: "d" for an array of numbers, "i" of
    integers, "b" of booleans or numbers, "" for anything.
    """

    def __init__(self, kinds: Mapping[str, str]):
        self._kinds = kinds
        self._parser = Parser() if Parser is not None else None
        self._names: list[str] = []
        self._wanted: list[tuple[str, str]] = []

    def read(self, line: bytes) -> dict[str, Any] | None:
        """The wanted fields, or None for a line that another reader must look at.

        An array is a NumPy array (float64, int64 or bool), or a list where its kind does not fit it.
        """
        if not self._kinds or self._parser is None or line[:1] != b"{":
            return None
        try:
            found = self._parser.parse(line)
        except UNFIT:
            return None
        names = list(found)
        if names != self._names:
            if len(set(names)) != len(names):  # simdjson finds the first of a name, orjson the last
                return None
            self._names = names
            self._wanted = [(name, self._kinds[name]) for name in names if name in self._kinds]
        flat = _flat(line)
        record = {}
        for name, kind in self._wanted:
            value = found[name]
            if type(value) is Array:
                value = _array(value, kind) if flat and kind else value.as_list()
            elif type(value) is Object:
                value = value.as_dict()
            record[name] = value
        return record


def _array(values: Array, kind: str) -> Any:
    try:
        if kind != "b":
            return np.frombuffer(values.as_buffer(of_type=kind), TYPES[kind])
        if type(values[0]) is not bool:
            return np.frombuffer(values.as_buffer(of_type="d"))
    except UNFIT:  # null or another kind among them, or there are none
        return values.as_list()
    # Of [true,false] this leaves "tf", and of any other value a character of another kind.
    text = values.mini.translate(None, b"[,]rueals")
    return values.as_list() if text.strip(b"tf") else np.frombuffer(text, np.uint8) == ord("t")


def _flat(line: bytes) -> bool:
    """Whether no array stands in another: those simdjson would give as one. Text may look like it."""
    at = line.find(b"[")
    while at > 1:
        before = line[at - 1]
        if before != 58 and (before != 32 or line[at - 2] != 58):  # ": ["
            return False
        at = line.find(b"[", at + 1)
    return True
