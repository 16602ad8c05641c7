"""What inference servers answer, as JSON: the log-probs of one engine.

- OpenAI chat completions, ``choices[].logprobs.content[] = {"token", "logprob", ...}``, as OpenAI, vLLM and
SGLang write
  them, and inspect-ai in its samples; with vLLM's ``token_ids`` or tokens that read ``token_id:5``.
- Legacy completions, ``choices[].logprobs = {"tokens", "token_logprobs", ...}``.
- vLLM's ``prompt_logprobs``, a list that begins with null and then has ``{token_id: {"logprob", "rank",
...}}``:
  scores of given tokens, as one asks for to score another engine's samples.
- TRL's vLLM server: ``/generate/`` (``completion_ids``, ``logprobs`` [B][T][k]) and
``/get_sequence_logprobs/``, also in
  base64.

One line, or one document, is one answer; each choice is a sequence. A request that was saved around or beside
the answer (``{"id": 7, "step": 3, "response": {...}}``) gives id, step and metadata.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import json_records
from .columns import ENVIRONMENTS, HEADER, LOCKSTEP_ID, STEPS
from .files import LONGEST_LINE
from .identity import OWN, identity, text_identity
from .json_records import JsonSource, array, field, floats, integer, kind
from .rows import BadRow, Rows, Wanted, concatenate

WRAPPERS = ("response", "output", "body")
TRL = {"completion_ids", "logprobs"}
FIELDS = {"token_ids": "token_ids"}


def recognises(head) -> bool:
    """Whether the first record is an answer of one of these kinds."""
    return head.record is not None and _answer(head.record) is not None


def source(path: Path, wanted: Wanted, advance: Callable[[int], None] | None) -> JsonSource:
    """The sequences of one file."""
    fields = FIELDS | {wanted.side: "logprobs"}
    header: dict[str, Any] = {}

    def parse(record: dict, line: int) -> Rows:
        return _rows(record, line, wanted, header)

    return JsonSource(path, wanted, advance, parse, fields, header)


def _answer(record: dict) -> dict | None:
    """The answer itself, out of what was saved around it."""
    for _ in range(3):
        if isinstance(record.get("choices"), list) or isinstance(record.get("prompt_logprobs"), list):
            return record
        logprobs = record.get("logprobs")
        nested = isinstance(logprobs, list) and len(logprobs) > 0 and isinstance(logprobs[0], list)
        if "actual_logprobs_b64" in record or "logprobs_b64" in record or (TRL <= record.keys() and nested):
            return record
        if "logprob_token_ids" in record and nested:
            return record
        record = next((record[name] for name in WRAPPERS if isinstance(record.get(name), dict)), {})
    return None


def _rows(record: dict, line: int, wanted: Wanted, header: dict[str, Any]) -> Rows:
    answer = _answer(record)
    if answer is None:
        found = ", ".join(sorted(map(repr, record))[:12]) or "none"
        raise BadRow(
            "is no answer with log-probs: neither choices, prompt_logprobs nor TRL's fields are there (fields"
            f" found: {found[:600]})"
        )
    places = [record, answer] + [
        record[name] for name in ("request", "sampling_params") if isinstance(record.get(name), dict)
    ]
    for place in places:
        for name in HEADER:
            if isinstance(place.get(name), (str, int, float)):
                header[name] = place[name]
    step = next(
        (integer(place[name], name) for place in places for name in STEPS if name in place), wanted.step
    )
    environment = next((record[name] for name in ENVIRONMENTS if isinstance(record.get(name), str)), "")
    if "choices" in answer and not (answer["choices"] == [] and "prompt_logprobs" in answer):
        sequences = [
            _choice(choice, index, answer) for index, choice in enumerate(array(answer["choices"], "choices"))
        ]
    elif "prompt_logprobs" in answer:
        sequences = [(_prompt(answer, answer.get("prompt_token_ids")), 0)]
    else:
        sequences = [(sequence, index) for index, sequence in enumerate(_trl(answer))]
    if not sequences:
        raise BadRow("holds no sequence")
    # An id that the user saved beside the answer comes before the server's own, which no other engine knows.
    own = next(
        (record[name] for name in (LOCKSTEP_ID, "sequence_id", "id") if name in record), answer.get("id")
    )
    rows = []
    for (values, token_ids), index in sequences:
        count = len(values)
        sides = {"trainer": None, "rollout": None} | {wanted.side: values}
        rows.append(
            Rows(
                **sides,
                mask=np.ones(count, np.bool_),
                lengths=(count,),
                lines=(line,),
                ids=_identity(own, index, step),
                steps=(step,),
                token_ids=token_ids if wanted.token_ids else None,
                environments=(environment,),
            )
        )
    if any(row.token_ids is None for row in rows):
        for row in rows:
            row.token_ids = None
    return concatenate(rows)


def _identity(own: Any, index: int, step: int) -> tuple[int] | None:
    if isinstance(own, str):
        return (identity(OWN, text_identity(own), index) if index else text_identity(own),)
    if type(own) is int and 0 <= own < 2**64:
        return (identity(OWN, step, own, index) if index else identity(OWN, step, own),)
    return None


def _choice(choice: Any, index: int, answer: dict) -> tuple[tuple[NDArray, NDArray | None], int]:
    """((log-probs, token ids), number of the choice)."""
    name = f"choices[{index}]"
    if not isinstance(choice, dict):
        raise BadRow(f"is {kind(choice)} where an object is expected", name)
    number = integer(choice.get("index"), f"{name}.index", index)
    if not 0 <= number < 2**31:
        raise BadRow(f"is {number}", f"{name}.index")
    logprobs = choice.get("logprobs")
    if logprobs is None and isinstance(choice.get("prompt_logprobs"), list):
        return _prompt(choice, choice.get("prompt_token_ids")), number
    if logprobs is None:
        raise BadRow("is null: ask the server for log-probs (logprobs: true)", f"{name}.logprobs")
    if not isinstance(logprobs, dict):
        raise BadRow(f"is {kind(logprobs)} where an object is expected", f"{name}.logprobs")
    if "content" in logprobs:
        where = f"{name}.logprobs.content"
        content = array(logprobs["content"], where)
        for at, entry in enumerate(content):
            if not isinstance(entry, dict) or "logprob" not in entry:
                raise BadRow(f"token {at} has no logprob", where)
        values, tokens = [entry["logprob"] for entry in content], [entry.get("token") for entry in content]
    else:
        where = f"{name}.logprobs.token_logprobs"
        values = array(field(logprobs, "token_logprobs", "answer of a known kind"), where)
        tokens = logprobs.get("tokens") or []
    column = floats(values, where)
    given = choice.get("token_ids")
    if given is None:
        given = _numbered(tokens)
    elif len(column) < len(given) and isinstance(answer.get("prompt_token_ids"), list):
        given = given[len(given) - len(column) :]
    return (column, json_records.token_ids(given, len(column), f"{name}.token_ids", where)), number


def _numbered(tokens: Any) -> list[int] | None:
    """Token ids of tokens that are written ``token_id:5``."""
    if not isinstance(tokens, list):
        return None
    ids = []
    for token in tokens:
        if not isinstance(token, str) or not token.startswith("token_id:") or not token[9:].isdecimal():
            return None
        ids.append(min(int(token[9:30]), 2**40))
    return ids or None


def _prompt(answer: dict, given: Any) -> tuple[NDArray, NDArray | None]:
    """The scores of given tokens; the first, which nothing precedes, has none and is left out."""
    entries = array(answer["prompt_logprobs"], "prompt_logprobs")
    values: list[Any] = []
    ids: list[int] = []
    for at, entry in enumerate(entries):
        if entry is None:
            if at:
                raise BadRow(f"token {at} is null; only the first has no log-prob", "prompt_logprobs")
            continue
        if not isinstance(entry, dict) or not entry:
            raise BadRow(
                f"token {at} is {kind(entry)} where an object of token ids is expected", "prompt_logprobs"
            )
        token = str(given[at]) if isinstance(given, list) and at < len(given) else next(iter(entry))
        one = entry.get(token)
        if not isinstance(one, dict) or "logprob" not in one or not token.lstrip("-").isdecimal():
            raise BadRow(f"token {at} has no log-prob of token {token[:20]}", "prompt_logprobs")
        values.append(one["logprob"])
        ids.append(min(int(token[:24]), 2**40))
    column = floats(values, "prompt_logprobs")
    return column, json_records.token_ids(ids, len(column), "prompt_logprobs", "prompt_logprobs")


def _trl(answer: dict) -> list[tuple[NDArray, NDArray | None]]:
    """The sequences of TRL's server."""
    if answer.get("actual_logprobs_b64") is not None or answer.get("logprobs_b64") is not None:
        return _trl_binary(answer)
    logprobs = array(field(answer, "logprobs", "answer of TRL's server"), "logprobs")
    ids_of = answer.get("completion_ids")
    chosen = answer.get("logprob_token_ids")
    for name, other in (("completion_ids", ids_of), ("logprob_token_ids", chosen)):
        if other is not None and (not isinstance(other, list) or len(other) != len(logprobs)):
            raise BadRow(f"does not have the {len(logprobs)} sequences of logprobs", name)
    sequences = []
    for index, tokens in enumerate(logprobs):
        where = f"logprobs[{index}]"
        ids = ids_of[index] if ids_of is not None else None
        values = []
        for at, top in enumerate(array(tokens, where)):
            if not isinstance(top, list) or not top:
                raise BadRow(
                    f"token {at} is {kind(top)} where the log-probs of the first k tokens are expected", where
                )
            values.append(top[_which(ids, chosen, index, at, where) if len(top) > 1 else 0])
        if ids is None and chosen is not None:
            ids = [each[0] if isinstance(each, list) and each else None for each in chosen[index]]
        column = floats(values, where)
        sequences.append(
            (column, json_records.token_ids(ids, len(column), f"completion_ids[{index}]", where))
        )
    return sequences


def _which(ids: Any, chosen: Any, index: int, at: int, where: str) -> int:
    """The place of the sampled token among the first k."""
    try:
        return chosen[index][at].index(ids[at])
    except (TypeError, IndexError, ValueError, AttributeError):
        raise BadRow(
            f"token {at}: the sampled token is not among the {where} and logprob_token_ids", where
        ) from None


def _trl_binary(answer: dict) -> list[tuple[NDArray, NDArray | None]]:
    actual = answer.get("actual_logprobs_b64") is not None
    shape, lengths = answer.get("shape"), answer.get("completion_lengths")
    if not (
        isinstance(shape, list) and len(shape) == 3 and all(type(each) is int and each >= 0 for each in shape)
    ):
        raise BadRow("is not [sequences, tokens, k]", "shape")
    if not (
        isinstance(lengths, list)
        and len(lengths) == shape[0]
        and all(type(each) is int and 0 <= each <= shape[1] for each in lengths)
    ):
        raise BadRow(f"does not have {shape[0]} lengths of at most {shape[1]}", "completion_lengths")
    width = 1 if actual else shape[2]
    if width == 0 or shape[0] * shape[1] * width * 4 > LONGEST_LINE:
        raise BadRow(f"{shape} is empty or beyond {LONGEST_LINE >> 20} MiB", "shape")
    prefix = "actual_" if actual else ""
    values = _decode(answer, f"{prefix}logprobs_b64", "<f4", shape[0] * shape[1] * width)
    ids = None
    name = f"{prefix}token_ids_b64"
    if answer.get(name) is not None:
        ids = _decode(answer, name, "<i4", shape[0] * shape[1] * width).reshape(shape[0], shape[1], width)
    if not actual and width > 1:
        raise BadRow(
            "has several log-probs a token and does not say which was sampled: ask for actual_logprobs_b64",
            "logprobs_b64",
        )
    values = values.reshape(shape[0], shape[1], width)
    return [
        (
            values[row, :length, 0].astype(np.float32),
            None if ids is None else ids[row, :length, 0].astype(np.int32),
        )
        for row, length in enumerate(lengths)
    ]


def _decode(answer: dict, name: str, dtype: str, count: int) -> NDArray:
    text = answer[name]
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise BadRow("is not base64", name) from None
    if len(data) != 4 * count:
        raise BadRow(f"has {len(data)} bytes where {4 * count} are expected by shape", name)
    return np.frombuffer(data, dtype)
