"""prime-rl's token export: one JSON object a line, one line a sequence.

Schema version 1, as written by ``prime_rl/trainer/rl/token_export.py``: scalars that identify the
sequence and arrays of equal length, one value a token. Read here: ``inference_logprobs`` (rollout),
``trainer_logprobs``, ``loss_mask`` and, where wanted, ``token_ids`` and ``env_name``. A non-finite float
is written as null; a column that was not recorded is null as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .files import LineReader
from .log import Log, LogError, LogFile

_loads: Callable[[bytes], Any]
try:
    from orjson import loads as _loads
except ModuleNotFoundError:  # it comes with lockstep[report]; without it reading is about 5 times slower
    _loads = json.loads

SCHEMA_VERSION = 1
FLOATS = {float, int, type(None)}


class _BadLine(Exception):
    """What is wrong with a line; the reader adds where."""

    def __init__(self, message: str, field: str | None = None):
        super().__init__(message)
        self.message, self.field = message, field


class _Packed:
    """A growing array. A bytearray grows in place where it can, so the peak stays near the size."""

    def __init__(self, dtype: type):
        self._bytes, self._dtype = bytearray(), dtype

    def extend(self, values: NDArray) -> None:
        self._bytes += np.ascontiguousarray(values, self._dtype).view(np.uint8).data

    def array(self) -> NDArray:
        return np.frombuffer(self._bytes, self._dtype)


def read_prime_rl(paths: Iterable[str | Path], *, label: str, skip_bad: bool = False,
                  exclude_non_finite: bool = False, token_ids: bool = False,
                  advance: Callable[[int], None] | None = None) -> Log:
    """Reads one log from the files of a prime-rl token export.

    Memory: 9 bytes a token (13 with `token_ids`), 32 a sequence, and the longest line.

    Args:
        paths: the files, plain or gzip, in the order in which they are packed.
        label: what the log is called in tables and pictures.
        skip_bad: leave out lines that cannot be read and count them, instead of raising.
        exclude_non_finite: accept null log-probs at tokens that count (they become NaN).
        token_ids: keep the token ids too.
        advance: called with the number of bytes of each read from disk, for a progress bar.

    Raises:
        LogError: naming file, line and field, for the first line that cannot be read.
    """
    trainer, rollout, mask = _Packed(np.float32), _Packed(np.float32), _Packed(np.bool_)
    ids: _Packed | None = _Packed(np.int32) if token_ids else None
    lengths: list[int] = []
    lines: list[int] = []
    file_of: list[int] = []
    environment_of: list[int] = []
    environments: dict[str, int] = {}
    files: list[LogFile] = []
    for path in paths:
        skipped, first_skipped, before = 0, "", len(lengths)
        with LineReader(Path(path), advance) as reader:
            for number, line in reader:
                try:
                    if isinstance(line, LogError):
                        raise line
                    if line.isspace():
                        continue
                    record = _parse(line)
                    sequence = _sequence(record, exclude_non_finite)
                    sequence_ids = _token_ids(record, len(sequence[0])) if ids is not None else None
                    environment = _environment(record)
                except _BadLine as bad:
                    error = LogError(bad.message, reader.path, number, bad.field)
                except LogError as damaged:
                    error = damaged
                else:
                    trainer.extend(sequence[0])
                    rollout.extend(sequence[1])
                    mask.extend(sequence[2])
                    if ids is not None and sequence_ids is not None:
                        ids.extend(sequence_ids)
                    else:
                        ids = None
                    lengths.append(len(sequence[0]))
                    lines.append(number)
                    file_of.append(len(files))
                    environment_of.append(environments.setdefault(environment, len(environments)))
                    continue
                if not skip_bad:
                    raise error
                skipped, first_skipped = skipped + 1, first_skipped or str(error)
            files.append(LogFile(str(path), reader.bytes, reader.sha256, len(lengths) - before, skipped,
                                 first_skipped))
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Log(label=label, files=tuple(files), trainer=trainer.array(), rollout=rollout.array(),
               mask=mask.array(), offsets=offsets, lines=np.array(lines, np.int64),
               file_of=np.array(file_of, np.int32), environment_of=np.array(environment_of, np.int32),
               environments=tuple(environments), token_ids=None if ids is None else ids.array())


def _parse(line: bytes) -> dict:
    """The JSON object of a line."""
    try:
        record = _loads(line)
    except (ValueError, RecursionError) as error:
        if not line.endswith(b"\n"):
            raise _BadLine("the last line is cut off: the export was still being written, or the disk was"
                           " full; read it when the step's STABLE marker is there, or leave the line out"
                           ) from error
        if b"NaN" in line or b"Infinity" in line:
            raise _BadLine("is not JSON: it holds NaN or Infinity, which JSON does not have; the export"
                           " writes null for them") from error
        raise _BadLine(f"is not JSON ({_first_line(str(error))})") from error
    if not isinstance(record, dict):
        raise _BadLine(f"holds {_kind(record)} where one JSON object, a sequence, is expected")
    return record


def _field(record: dict, name: str):
    """A required field."""
    if name not in record:
        found = ", ".join(sorted(map(repr, record))[:12]) or "none"
        raise _BadLine(f"the field is missing: this is no prime-rl token export (fields found: {found})",
                       name)
    return record[name]


def _column(record: dict, name: str) -> list:
    """A required array."""
    values = _field(record, name)
    if values is None:
        raise _BadLine("is null, so it was not recorded; export it from the trainer, as without it there is"
                       " nothing to compare", name)
    if not isinstance(values, list):
        raise _BadLine(f"is {_kind(values)} where an array, one value a token, is expected", name)
    return values


def _sequence(record: dict, exclude_non_finite: bool) -> tuple[NDArray, NDArray, NDArray]:
    """(trainer, rollout, mask) of one sequence, checked."""
    version = _field(record, "schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise _BadLine(f"is {json.dumps(version)[:40]}, but this reader knows version {SCHEMA_VERSION}: look"
                       " for a newer Lockstep, or export with the older schema", "schema_version")
    counted = _column(record, "loss_mask")
    if not set(map(type, counted)) <= {bool}:
        index = next(i for i, value in enumerate(counted) if type(value) is not bool)
        raise _BadLine(f"token {index} is {_kind(counted[index])} where true or false is expected",
                       "loss_mask")
    mask = np.array(counted, np.bool_)
    columns = []
    for name in ("trainer_logprobs", "inference_logprobs"):
        values = _column(record, name)
        if len(values) != len(mask):
            raise _BadLine(f"has {len(values)} values but loss_mask has {len(mask)}: all arrays of a line"
                           " have one value a token", name)
        if not set(map(type, values)) <= FLOATS:
            index = next(i for i, value in enumerate(values) if type(value) not in FLOATS)
            raise _BadLine(f"token {index} is {_kind(values[index])} where a number or null is expected",
                           name)
        with np.errstate(over="ignore"):  # beyond float32: infinite, and judged so below
            try:
                column = np.array(values, np.float32)
            except OverflowError:  # an integer of hundreds of digits
                raise _BadLine("holds a number beyond any float", name) from None
        if not exclude_non_finite:
            bad = np.flatnonzero(~np.isfinite(column) & mask)
            if len(bad):
                index = int(bad[0])
                what = "null (non-finite when it was written)" if values[index] is None else "beyond float32"
                raise _BadLine(f"token {index} counts but is {what}: find out why a sampled token has no"
                               " finite log-prob, or exclude such tokens", name)
        columns.append(column)
    return columns[0], columns[1], mask


def _token_ids(record: dict, length: int) -> NDArray | None:
    """The token ids, or None where they were not recorded."""
    values = record.get("token_ids")
    if values is None:
        return None
    if not isinstance(values, list) or not set(map(type, values)) <= {int}:
        raise _BadLine("is not an array of integers", "token_ids")
    if len(values) != length:
        raise _BadLine(f"has {len(values)} values but loss_mask has {length}: all arrays of a line have one"
                       " value a token", "token_ids")
    if values and not (-2**31 <= min(values) and max(values) < 2**31):
        raise _BadLine("holds a token id beyond 32 bits", "token_ids")
    return np.array(values, np.int32)


def _environment(record: dict) -> str:
    name = record.get("env_name")
    return name if isinstance(name, str) else ""


def _kind(value) -> str:
    """What a JSON value is, in words."""
    for kind, name in ((bool, "a boolean"), ((int, float), "a number"), (str, "a string"),
                       (list, "an array"), (dict, "an object")):
        if isinstance(value, kind):
            return name
    return "null"


def _first_line(text: str) -> str:
    return text.splitlines()[0][:120] if text else "no reason given"
