"""prime-rl's token export: one JSON object a line, one line a sequence.

Schema version 1, as written by ``prime_rl/trainer/rl/token_export.py``: scalars that identify the
sequence and arrays of equal length, one value a token. Read here: ``inference_logprobs`` (rollout),
``trainer_logprobs``, ``loss_mask`` and, where wanted, ``token_ids``; ``step``, ``env_name`` and what
identifies the sequence. A non-finite float is written as null; a column that was not recorded is null as a
whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from . import json_records
from .identity import PRIME_RL, record_identity, text_identity
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

    def about(record: dict) -> About:
        return _about(record, wanted)

    columns = {role: name for role, name in FIELDS.items() if role != "token_ids" or wanted.token_ids}
    arrays = ArrayReader(columns, about, numeric_mask=False)
    return JsonSource(path, wanted, advance, parse, FIELDS, {}, arrays)


def _about(record: dict, wanted: Wanted) -> About:
    version = field(record, "schema_version", "prime-rl token export")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise BadRow(
            f"is {json.dumps(version)[:40]}, but this reader knows version {SCHEMA_VERSION}: look"
            " for a newer Lockstep, or export with the older schema",
            "schema_version",
        )
    step, environment = record.get("step"), record.get("env_name")
    return About(
        _identity(record),
        step if type(step) is int and 0 <= step < 2**63 else wanted.step,
        environment if isinstance(environment, str) else "",
    )


def _sequence(record: dict, line: int, wanted: Wanted) -> Rows:
    about = _about(record, wanted)
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
        ids=None if about.id is None else (about.id,),
        steps=(about.step,),
        token_ids=ids,
        environments=(about.environment,),
    )


def _identity(record: dict) -> int | None:
    step, rank, micro_step, index = parts = tuple(map(record.get, IDENTITY))
    if not type(step) is type(rank) is type(micro_step) is type(index) is int:
        return None
    if min(parts) < 0 or max(parts) >= 2**63:
        return None
    run = record.get("run_id")
    return record_identity(PRIME_RL, _of_run(run) if isinstance(run, str) else 0, *parts)


_of_run = lru_cache(16)(text_identity)
