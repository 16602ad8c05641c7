"""prime-rl's token export: one JSON object a line, one line a sequence.

Schema version 1, as written by ``prime_rl/trainer/rl/token_export.py``: scalars that identify the
sequence and arrays of equal length, one value a token. Read here: ``inference_logprobs`` (rollout),
``trainer_logprobs``, ``loss_mask`` and, where wanted, ``token_ids``; ``step``, ``env_name`` and what
identifies the sequence. A non-finite float is written as null; a column that was not recorded is null as a
whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import json_records
from .identity import PRIME_RL, record_identities, text_identity
from .json_arrays import About, ArrayReader
from .json_records import JsonSource, array, field, floats, same_length
from .rows import BadRow, Rows, Wanted

SCHEMA_VERSION = 1
FIELDS = {
    "trainer": "trainer_logprobs",
    "rollout": "inference_logprobs",
    "mask": "loss_mask",
    "token_ids": "token_ids",
}
# Who a sequence is within a run.
IDENTITY = ("step", "rank", "micro_step", "micro_sequence_idx")


def recognises(head) -> bool:
    """Whether the first record has what only prime-rl writes."""
    return head.record is not None and {"schema_version", "inference_logprobs"} <= head.record.keys()


def source(path: Path, wanted: Wanted, advance: Callable[[int], None] | None) -> JsonSource:
    """The sequences of one file."""
    def parse(record: dict, line: int) -> Rows:
        return _sequence(record, line, wanted)

    def about(records: Sequence[dict]) -> About:
        return _about(records, wanted)

    columns = {role: name for role, name in FIELDS.items() if role != "token_ids" or wanted.token_ids}
    arrays = ArrayReader(columns, about, numeric_mask=False)
    return JsonSource(path, wanted, advance, parse, FIELDS, {}, arrays)


def _about(records: Sequence[dict], wanted: Wanted) -> About:
    versions = [record.get("schema_version") for record in records]
    if versions.count(SCHEMA_VERSION) != len(records) or bool in map(type, versions):
        for record in records:
            _check_version(field(record, "schema_version", "prime-rl token export"))
    environments = [record.get("env_name") for record in records]
    if set(map(type, environments)) != {str}:
        environments = [name if isinstance(name, str) else "" for name in environments]
    columns = [[record.get(name) for record in records] for name in IDENTITY]
    kinds = [set(map(type, column)) for column in columns]
    steps, ids = columns[0], None
    if kinds[0] != {int} or not 0 <= min(steps) <= max(steps) < 2**63:
        steps = [step if type(step) is int and 0 <= step < 2**63 else wanted.step for step in steps]
    if all(kind == {int} for kind in kinds) and all(0 <= min(column) <= max(column) < 2**63 for column in columns):
        ids = _identities(records, columns)
    elif len(records) > 1 and all(int in kind for kind in kinds):
        raise BadRow("some of these lines may have an identity, and some not")
    return About(ids, steps, environments)


def _check_version(version: Any) -> None:
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise BadRow(
            f"is {json.dumps(version)[:40]}, but this reader knows version {SCHEMA_VERSION}: look"
            " for a newer Lockstep, or export with the older schema",
            "schema_version",
        )


def _sequence(record: dict, line: int, wanted: Wanted) -> Rows:
    about = _about([record], wanted)
    counted = array(field(record, "loss_mask", "prime-rl token export"), "loss_mask")
    mask = json_records.mask(counted, "loss_mask", numbers=False)
    columns = []
    for side in ("trainer", "rollout"):
        name = FIELDS[side]
        values = array(field(record, name, "prime-rl token export"), name)
        same_length(values, name, mask, "loss_mask")
        columns.append(floats(values, name))
    ids = None
    if wanted.token_ids:
        ids = json_records.token_ids(record.get("token_ids"), len(mask), "token_ids", "loss_mask")
    return Rows(
        trainer=columns[0],
        rollout=columns[1],
        mask=mask,
        lengths=(len(mask),),
        lines=(line,),
        ids=about.ids,
        steps=about.steps,
        token_ids=ids,
        environments=about.environments,
    )


def _identities(records: Sequence[dict], columns: list[list[int]]) -> NDArray[np.uint64]:
    """Of sequences that have all of IDENTITY."""
    runs = [record.get("run_id") for record in records]
    of_run = {run: text_identity(run) for run in {run for run in runs if isinstance(run, str)}}
    parts = np.empty((len(records), 2 + len(columns)), np.uint64)
    parts[:, 0] = PRIME_RL
    parts[:, 1] = [of_run[run] if isinstance(run, str) else 0 for run in runs]
    parts[:, 2:] = np.array(columns, np.uint64).T
    return record_identities(parts)
