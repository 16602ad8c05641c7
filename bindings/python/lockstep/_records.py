"""The C library's structs of figures as Python's values, all fields at once: a field by ctypes takes a microsecond."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from struct import Struct
from typing import Any

_LETTERS = {ctypes.c_int32: "i", ctypes.c_uint32: "I", ctypes.c_int64: "q", ctypes.c_uint64: "Q", ctypes.c_double: "d"}


def reader(struct: type[ctypes.Structure], made: Mapping[type, Callable]) -> Callable[[ctypes.Structure], dict[str, Any]]:
    """A function that gives a struct's fields by name: numbers as they are, arrays as tuples.

    Args:
        struct: of integers, doubles, arrays of them, and structs of them; without padding, as all of the header are.
        made: for each kind of struct in it, what its fields, in a tuple, become.
    """
    letters, singles, several = "=", [], []
    for name, kind in struct._fields_:  # type: ignore[misc]
        start, inner = len(letters) - 1, _letters(kind)
        letters += inner
        if kind in _LETTERS:
            singles.append((name, start))
        else:
            several.append((name, slice(start, start + len(inner)), made.get(kind)))
    packed, order = Struct(letters), dict.fromkeys(name for name, _ in struct._fields_)  # type: ignore[misc]

    def read(raw: ctypes.Structure) -> dict[str, Any]:
        values = packed.unpack_from(raw)
        found: dict[str, Any] = order.copy()
        for name, at in singles:
            found[name] = values[at]
        for name, span, make in several:
            found[name] = values[span] if make is None else make(values[span])
        return found

    return read


def _letters(kind: Any) -> str:
    if kind in _LETTERS:
        return _LETTERS[kind]
    if issubclass(kind, ctypes.Array):
        return kind._length_ * _letters(kind._type_)
    return "".join(_letters(inner) for _, inner in kind._fields_)
