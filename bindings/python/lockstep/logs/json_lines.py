"""JSON lines with named columns: one object a line with arrays of equal length, or a whole batch a line.

``{"id": 7, "step": 3, "token_ids": [...], "mask": [...], "trainer": [...], "rollout": [...]}`` by Lockstep's
names, by those of the frameworks in `columns`, or by any that the user gives. Where each array holds arrays,
a line is a batch, as `tensor.tolist()` writes it: ``{"old_log_probs": [[...], [...]], ...}``. Without a mask
all tokens count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import json_records
from .columns import HEADER, LOCKSTEP_ID, WITH_PROMPT, resolve
from .identity import OWN, identity, text_identities
from .json_arrays import About, ArrayReader
from .json_records import JsonSource, array, field, floats, integers, kind, same_length
from .rows import SIDES, BadRow, Rows, Wanted, concatenate


def recognises(head) -> bool:
    """Whether the first record has log-probs under a known name, as an array."""
    if head.record is None:
        return False
    columns = resolve(head.record, Wanted({}))
    return columns is not None and any(
        isinstance(head.record[columns.names[side]], list) for side in SIDES if side in columns.names
    )


def source(path: Path, wanted: Wanted, advance: Callable[[int], None] | None) -> JsonSource:
    """The sequences of one file."""
    records = _Records(wanted)
    arrays = ArrayReader(records.fields, records.about)
    return JsonSource(path, wanted, advance, records, records.fields, records.header, arrays)


class _Records:
    """Makes rows of objects, whose columns are settled by the first that has any."""

    def __init__(self, wanted: Wanted):
        self.wanted = wanted
        self.fields: dict[str, str] = {}
        self.header: dict[str, Any] = {}

    def __call__(self, record: dict, line: int) -> Rows:
        if not self.fields:
            columns = resolve(record, self.wanted)
            if columns is None:
                found = ", ".join(sorted(map(repr, record))[:16]) or "none"
                raise BadRow(
                    "has no log-probs under a known name; say which columns hold them (columns,"
                    f" --column trainer=NAME --column rollout=NAME; fields found: {found[:800]})"
                )
            self.fields.update(columns.names)
        read_header(record, self.header)
        names = self.fields
        first = names.get("rollout") or names["trainer"]
        values = array(field(record, first), first)
        if isinstance(values, list) and values and all(type(each) is list for each in values):
            return self._batch(record, line, len(values), first)
        return self._sequence(record, line)

    def about(self, records: Sequence[dict]) -> About:
        """Whose lines are, and what each of them says of how the log was made."""
        return self._about(records)._replace(header=common_header(records))

    def _about(self, records: Sequence[dict]) -> About:
        names, steps = self.fields, [self.wanted.step] * len(records)
        if "step" in names:
            steps = integers([record.get(names["step"]) for record in records], names["step"], self.wanted.step)
        environments = [record.get(names.get("environment", "")) for record in records]
        if set(map(type, environments)) != {str}:
            environments = [name if isinstance(name, str) else "" for name in environments]
        ids = None
        if "id" in names:
            ids = own_ids([record.get(names["id"]) for record in records], names["id"], steps)
        return About(ids, steps, environments)

    def _sequence(self, record: dict, line: int) -> Rows:
        names = self.fields
        sides: dict[str, Any] = {"trainer": None, "rollout": None}
        reference = None
        for side in SIDES:
            if side in names:
                name = names[side]
                sides[side] = floats(array(field(record, name), name), name)
                if reference is None:
                    reference, reference_name = sides[side], name
                same_length(sides[side], name, reference, reference_name)
        if "mask" in names:
            name = names["mask"]
            mask = json_records.mask(array(field(record, name), name), name)
            same_length(mask, name, reference, reference_name)
        else:
            mask = np.ones(len(reference), np.bool_)
        ids = None
        if "token_ids" in names:
            name = names["token_ids"]
            values = record.get(name)
            if name in WITH_PROMPT and isinstance(values, list) and len(values) > len(mask):
                values = values[len(values) - len(mask) :]
            ids = json_records.token_ids(values, len(mask), name, reference_name)
        about = self._about([record])
        return Rows(
            trainer=sides["trainer"],
            rollout=sides["rollout"],
            mask=mask,
            lengths=(len(mask),),
            lines=(line,),
            ids=about.ids,
            steps=about.steps,
            token_ids=ids,
            environments=about.environments,
        )

    def _batch(self, record: dict, line: int, count: int, first: str) -> Rows:
        """A line that holds [B][T]: the sequences one after the other."""
        names = list(dict.fromkeys(self.fields.values()))
        for name in names:
            value = record.get(name)
            if isinstance(value, list) and len(value) != count:
                raise BadRow(f"has {len(value)} sequences but {first} has {count}", name)
        rows = []
        for index in range(count):
            one = {
                name: value[index] if isinstance(value, list) else value
                for name in names
                if (value := record.get(name)) is not None
            }
            try:
                rows.append(self._sequence(one, line))
            except BadRow as bad:
                raise BadRow(f"sequence {index}: {bad.message}", bad.field) from None
        if len({row.ids is None for row in rows}) > 1 or len({row.token_ids is None for row in rows}) > 1:
            raise BadRow("some of its sequences have ids or token ids and some have none")
        scalar = "id" in self.fields and not isinstance(record.get(self.fields["id"]), list)
        if scalar:
            for row in rows:
                row.ids = None
        return concatenate(rows)


def read_header(record: dict, header: dict[str, Any]) -> None:
    """Keeps what a record says of how the log was made."""
    for name in HEADER:
        if name in record and isinstance(record[name], (str, int, float)):
            header[name] = record[name]


def common_header(records: Sequence[dict]) -> dict[str, Any]:
    """What `read_header` keeps of records that say the same; raises ValueError for others."""
    header: dict[str, Any] = {}
    there: set[str] = set().union(*records)
    for name in HEADER:
        if name in there:
            values = [record.get(name) for record in records]
            if values.count(values[0]) != len(values):
                raise ValueError
            if isinstance(values[0], (str, int, float)):
                header[name] = values[0]
    return header


def own_ids(values: list, name: str, steps: Sequence[int]) -> NDArray[np.uint64]:
    """The identities by the records' own ids."""
    kinds = set(map(type, values))
    if kinds == {str}:
        return text_identities(values)
    if kinds == {int} and -(2**63) <= min(values) and max(values) < 2**64:
        numbers = np.array([value % 2**64 for value in values], np.uint64)
        return numbers if name == LOCKSTEP_ID else identity(OWN, np.array(steps, np.int64).astype(np.uint64), numbers)
    if len(values) > 1:
        each = [own_ids([value], name, [step]) for value, step in zip(values, steps, strict=True)]
        return np.concatenate(each)
    if values == [None]:
        raise BadRow("the id is missing, though other sequences have one", name)
    raise BadRow(f"is {kind(values[0])} where an id, text or an integer of 64 bits, is expected", name)
