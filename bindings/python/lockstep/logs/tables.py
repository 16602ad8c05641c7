"""Columns of many sequences at once, checked and cut into rows: common to Parquet, Arrow and NPZ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .columns import LOCKSTEP_ID, WITH_PROMPT
from .identity import OWN, identity, text_identities
from .log import LogError
from .rows import SIDES, BadRow, Rows, Wanted


@dataclass(frozen=True)
class Ragged:
    """A column of arrays: row i is ``values[offsets[i] : offsets[i + 1]]``."""

    values: NDArray
    offsets: NDArray[np.int64]
    null: NDArray[np.bool_] | None = None
    """Rows that are null as a whole."""
    holes: NDArray[np.bool_] | None = None
    """Values that are null, in a column without NaN (mask, ids)."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def take(self, rows: NDArray[np.int64]) -> Ragged:
        lengths = self.lengths[rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        at = np.repeat(self.offsets[:-1][rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Ragged(self.values[at], offsets, None, None if self.holes is None else self.holes[at])

    def last(self, lengths: NDArray[np.int64]) -> Ragged:
        """The last values of each row: of token ids that begin with the prompt."""
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        at = np.repeat(self.offsets[1:] - lengths - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Ragged(self.values[at], offsets, self.null, None if self.holes is None else self.holes[at])


def cut(
    arrays: Mapping[str, Ragged],
    scalars: Mapping[str, Any],
    names: Mapping[str, str],
    first_row: int,
    wanted: Wanted,
    path: str,
) -> Iterator[tuple[int, Rows | LogError]]:
    """Rows of the sequences that are right, and an error in the place of each of the others.

    `arrays` has the roles with a value a token, `scalars` those with a value a sequence; `first_row` is the
    number of the first.
    """
    reference = "trainer" if "trainer" in arrays else "rollout"
    lengths = arrays[reference].lengths
    arrays = dict(arrays)
    if "token_ids" in arrays and names["token_ids"] in WITH_PROMPT:
        column = arrays["token_ids"]
        arrays["token_ids"] = column.last(np.minimum(lengths, column.lengths))
    wrong: dict[int, tuple[str, str]] = {}
    for role, column in arrays.items():
        if column.null is not None:
            for row in np.flatnonzero(column.null):
                if role != "token_ids":
                    wrong.setdefault(
                        int(row),
                        (
                            names[role],
                            "is null, so it was not recorded; export it, as without"
                            " it there is nothing to compare",
                        ),
                    )
        for row in np.flatnonzero(column.lengths != lengths):
            if role != "token_ids" or column.null is None or not column.null[row]:
                wrong.setdefault(
                    int(row),
                    (
                        names[role],
                        f"has {column.lengths[row]} values but {names[reference]} has"
                        f" {lengths[row]}: all arrays of a row have one value a"
                        " token",
                    ),
                )
        bad = _bad_values(role, column)
        if bad is not None:
            at = np.flatnonzero(bad[0])
            rows, first = np.unique(np.searchsorted(column.offsets, at, side="right") - 1, return_index=True)
            for row, token in zip(rows.tolist(), at[first].tolist(), strict=True):
                wrong.setdefault(row, (names[role], f"token {token - int(column.offsets[row])} {bad[1]}"))
    rows = np.arange(len(lengths))
    if wanted.parts > 1:
        rows = rows[(rows + first_row) % wanted.parts == wanted.part]
    errors = [
        row for row in sorted(wrong) if wanted.parts == 1 or (row + first_row) % wanted.parts == wanted.part
    ]
    if errors:
        keep = np.ones(len(lengths), np.bool_)
        keep[errors] = False
        good = rows[keep[rows]]
    else:
        good = rows
    before = good[good < errors[0]] if errors else good
    if len(before):
        yield first_row, _rows(arrays, scalars, names, before, first_row, wanted)
    for row in errors:
        field, message = wrong[row]
        yield first_row + row, LogError(message, path, first_row + row, field, "row")
    after = good[len(before) :]
    if len(after):
        yield first_row, _rows(arrays, scalars, names, after, first_row, wanted)


def _bad_values(role: str, column: Ragged) -> tuple[NDArray[np.bool_], str] | None:
    """Values that cannot be, and what they are."""
    values = column.values
    if column.holes is not None and role == "mask":
        return column.holes, "is null where true or false, or 1 or 0, is expected"
    if column.holes is not None and role == "token_ids":
        return column.holes, "is null where a token id is expected"
    if role == "mask" and values.dtype != np.bool_:
        bad = (values != 0) & (values != 1)
        return (bad, "is a number other than 0 and 1") if bad.any() else None
    if role == "token_ids" and values.dtype not in (np.int32, np.int16, np.uint16, np.int8, np.uint8):
        bad = (values < -(2**31)) | (values >= 2**31)
        return (bad, "holds a token id beyond 32 bits") if bad.any() else None
    return None


def _rows(
    arrays: dict[str, Ragged],
    scalars: Mapping[str, Any],
    names: Mapping[str, str],
    which: NDArray,
    first_row: int,
    wanted: Wanted,
) -> Rows:
    whole = len(which) == len(next(iter(arrays.values())).offsets) - 1

    def flat(role: str, dtype: type) -> NDArray | None:
        if role not in arrays:
            return None
        column = arrays[role] if whole else arrays[role].take(which)
        with np.errstate(over="ignore", invalid="ignore"):
            values = column.values[column.offsets[0] : column.offsets[-1]]
            return (
                values != 0
                if dtype is np.bool_ and values.dtype != np.bool_
                else values.astype(dtype, copy=False)
            )

    sides = {side: flat(side, np.float32) for side in SIDES}
    lengths = arrays["trainer" if "trainer" in arrays else "rollout"].lengths[which]
    mask = flat("mask", np.bool_)
    token_ids = arrays.get("token_ids")
    if token_ids is not None and (token_ids.null is not None and token_ids.null.any()):
        token_ids = None
    steps = np.full(len(which), wanted.step, np.int64)
    if "step" in scalars:
        steps = scalars["step"][which]
    environments = scalars.get("environment")
    return Rows(
        trainer=sides["trainer"],
        rollout=sides["rollout"],
        mask=np.ones(int(lengths.sum()), np.bool_) if mask is None else mask,
        lengths=lengths,
        lines=which + first_row,
        ids=_ids(scalars, names, which, steps),
        steps=steps,
        token_ids=None if token_ids is None else flat("token_ids", np.int32),
        environments=None if environments is None else [environments[row] for row in which],
    )


def _ids(scalars: Mapping[str, Any], names: Mapping[str, str], which: NDArray, steps: NDArray):
    if "id" not in scalars:
        return None
    values = scalars["id"]
    if isinstance(values, np.ndarray):
        chosen = values[which].astype(np.uint64)
        return chosen if names["id"] == LOCKSTEP_ID else identity(OWN, steps.astype(np.uint64), chosen)
    return text_identities([values[row] for row in which])


def kind_of(dtype: np.dtype) -> str:
    """What a NumPy array holds, in words."""
    return {
        "f": "numbers",
        "i": "integers",
        "u": "integers",
        "b": "booleans",
        "U": "text",
        "S": "bytes",
        "O": "Python objects",
        "V": "raw bytes",
    }.get(dtype.kind, f"{dtype} values")


def check_kind(role: str, dtype: np.dtype, name: str) -> None:
    """That a column of a value a token holds what its role needs."""
    allowed, expected = {
        "trainer": ("fiu", "numbers"),
        "rollout": ("fiu", "numbers"),
        "mask": ("biuf", "booleans, or 1 and 0,"),
        "token_ids": ("iu", "integers"),
    }[role]
    if dtype.kind not in allowed:
        more = (
            " (a 16-bit float that NumPy does not know? convert it to float32)" if dtype.kind == "V" else ""
        )
        raise BadRow(f"holds {kind_of(dtype)} where {expected} are expected{more}", name)
