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
from pathlib import Path

from . import json_records
from .identity import PRIME_RL, record_identity, text_identity
from .json_records import KINDS, JsonSource, array, field, floats, same_length
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
READ = {FIELDS[role]: kind for role, kind in KINDS.items()} | dict.fromkeys(
    ("schema_version", "run_id", "env_name", *IDENTITY), ""
)
READ_WITHOUT_IDS = {name: kind for name, kind in READ.items() if name != FIELDS["token_ids"]}


def recognises(head) -> bool:
    """Whether the first record has what only prime-rl writes."""
    return head.record is not None and {"schema_version", "inference_logprobs"} <= head.record.keys()


def source(path: Path, wanted: Wanted, advance: Callable[[int], None] | None) -> JsonSource:
    """The sequences of one file."""
    def parse(record: dict, line: int) -> Rows:
        return _sequence(record, line, wanted)

    return JsonSource(path, wanted, advance, parse, FIELDS, {}, READ if wanted.token_ids else READ_WITHOUT_IDS)


def _sequence(record: dict, line: int, wanted: Wanted) -> Rows:
    version = field(record, "schema_version", "prime-rl token export")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise BadRow(
            f"is {json.dumps(version)[:40]}, but this reader knows version {SCHEMA_VERSION}: look"
            " for a newer Lockstep, or export with the older schema",
            "schema_version",
        )
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
    environment = record.get("env_name")
    step = record.get("step")
    return Rows(
        trainer=columns[0],
        rollout=columns[1],
        mask=mask,
        lengths=(len(mask),),
        lines=(line,),
        ids=_identity(record),
        steps=(step if _is_index(step) else wanted.step,),
        token_ids=ids,
        environments=(environment if isinstance(environment, str) else "",),
    )


def _identity(record: dict) -> tuple[int] | None:
    parts = [record.get(name) for name in IDENTITY]
    if not all(map(_is_index, parts)):
        return None
    run = record.get("run_id")
    return (record_identity(PRIME_RL, text_identity(run) if isinstance(run, str) else 0, *parts),)


def _is_index(value) -> bool:
    return type(value) is int and 0 <= value < 2**63
