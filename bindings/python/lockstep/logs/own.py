"""Lockstep's own log, ``.lockstep`` (docs/LogFormat.md), as a format among the others.

What stands in its header is told by the names of `columns.HEADER`: an engine with its version, a recipe of the
number formats of body, head and logits. `header_fields` is the way back, for writing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import _library as c
from .._errors import BadDataError, FileError, UnsupportedError
from .._log_file import LogHeader, LogReader, LogRecords
from .columns import HEADER, LOCKSTEP_ID
from .files import WatchedFile
from .log import LogError
from .rows import SIDES, Rows, Wanted

# Without the line end: a file that was changed by a transfer as text is recognised too, and told what it is.
MAGIC = b"\x89LSLOG"
FIELDS = {"trainer": "trainer", "rollout": "rollout", "mask": "mask", "token_ids": "token_ids", "id": LOCKSTEP_ID}
RECIPE = ("body", "head", "logits")
# Numbers of the header: what they are, and which of them it can hold.
NUMBERS: dict[str, tuple[type, Callable[[Any], bool]]] = {
    "temperature": (float, lambda value: 0 <= value < math.inf),
    "top_p": (float, lambda value: 0 < value <= 1),
    "top_k": (int, lambda value: type(value) is int and 0 <= value < 2**31),
    "min_p": (float, lambda value: 0 <= value <= 1),
}
# vLLM's names, which logs of other formats have.
MODES = {"raw": "raw_logprobs", "processed": "processed_logprobs"}
# How often, and how long each time, a record that a writer is in the middle of is waited for.
WAITS, WAIT = 20, 0.01


def recognises(head) -> bool:
    """Whether the file begins as Lockstep's log."""
    return head.magic.startswith(MAGIC)


def source(path: Path, wanted: Wanted, advance: Callable[[int], None] | None) -> OwnSource:
    """The sequences of one file."""
    return OwnSource(path, wanted, advance)


def header_of(header: LogHeader) -> dict[str, Any]:
    """What a log's header says, by the names of `columns.HEADER`."""
    said: dict[str, Any] = {"model": header.model, **{name: getattr(header, name) for name in NUMBERS}}
    for side in SIDES:
        engine = (getattr(header, f"{side}_engine"), getattr(header, f"{side}_version"))
        said[f"{side}_engine"] = " ".join(filter(None, engine)) or None
        parts = ((part, getattr(header, f"{side}_{part}")) for part in RECIPE)
        said[f"{side}_recipe"] = ", ".join(f"{part} {value}" for part, value in parts if value) or None
    said["logprobs_mode"] = MODES.get(header.log_prob_mode)
    for name in HEADER:
        if name in header.extra:
            said[name] = _number(name, header.extra[name])
    return {name: said[name] for name in HEADER if said.get(name) is not None}


def header_fields(said: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `LogHeader` that says `said`; what has no field of its own goes into ``extra``."""
    fields: dict[str, Any] = {
        name: said[name]
        for name in ("model", "trainer_engine", "rollout_engine")
        if isinstance(said.get(name), str) and said[name]
    }
    for name, (kind, holds) in NUMBERS.items():
        if type(said.get(name)) in (int, float) and holds(said[name]):
            fields[name] = kind(said[name])
    mode = next((mode for mode, name in MODES.items() if name == said.get("logprobs_mode")), None)
    if mode is not None:
        fields["log_prob_mode"] = mode
    known = header_of(LogHeader(**fields))
    fields["extra"] = {name: str(value) for name, value in said.items() if known.get(name) != value}
    return fields


def _number(name: str, text: str) -> Any:
    try:
        return NUMBERS[name][0](text)
    except (KeyError, ValueError):
        return text


class OwnSource:
    """Reads one log, which may still be written: all of it that is whole."""

    unit = "record"
    null = "NaN"
    fields = FIELDS

    def __init__(self, path: Path, wanted: Wanted, advance: Callable[[int], None] | None):
        self._path, self._wanted, self._advance = path, wanted, advance
        self._log: LogReader | None = None
        self._told = 0
        self.header: dict[str, Any] = {}
        self.bytes, self.sha256 = 0, ""

    def close(self) -> None:
        if self._log is not None:
            self._log.close()

    def __iter__(self) -> Iterator[tuple[int, Rows | LogError]]:
        record, wanted = 0, self._wanted.batch_tokens
        try:
            self._log = LogReader(self._path)
            self.header = header_of(self._log.header)
            while True:
                try:
                    records = self._next(wanted)
                except BadDataError as damage:
                    record += 1
                    if self._mine(record):
                        yield record, self._error(damage, record)
                    self._skip_damage()
                    continue
                if records is None:
                    break
                yield from self._rows(records, record)
                record += len(records)
                wanted -= int(records.offsets[-1])
                if wanted <= 0:
                    wanted = self._wanted.batch_tokens
                self._progress(self._log.summary.position)
            if self._log.summary.cut_off_bytes and self._mine(record + 1):
                yield record + 1, self._cut_off(record + 1)
        except (BadDataError, FileError, UnsupportedError) as error:
            yield record + 1, self._error(error, None)
        with WatchedFile(self._path, None) as file:
            file.drain()
            self.bytes, self.sha256 = file.count, file.hexdigest()
        self._progress(self.bytes)

    def _mine(self, record: int) -> bool:
        """Whether a record is of this part."""
        return record % self._wanted.parts == self._wanted.part

    def _next(self, tokens: int) -> LogRecords | None:
        """The next records. What a running writer has begun is whole in a moment."""
        for _ in range(WAITS):
            records = self._log.next(tokens)
            if records is not None or not self._log.summary.cut_off_bytes:
                return records
            time.sleep(WAIT)
        return None

    def _skip_damage(self) -> None:
        """Goes to the first whole record after a damage, or to the end."""
        with LogReader(self._path, damage="skip") as skipping:
            skipping.seek(self._log.summary.position)
            records = skipping.next(1)
            position = skipping.summary.position if records is None else int(records.positions[0])
        self._log.seek(position)

    def _rows(self, records: LogRecords, before: int) -> Iterator[tuple[int, Rows | LogError]]:
        """Those of this part, cut where other columns are there than before."""
        part, parts = self._wanted.part, self._wanted.parts
        numbers = np.arange(before + 1, before + 1 + len(records))
        changes = np.flatnonzero(np.diff(records.columns)) + 1
        for start, end in zip([0, *changes.tolist()], [*changes.tolist(), len(records)], strict=True):
            has = int(records.columns[start])
            if not has & (c.LOG_HAS_TRAINER | c.LOG_HAS_ROLLOUT):
                for number in numbers[start:end].tolist():
                    if number % parts == part:
                        yield number, LogError("has no log-probs", str(self._path), number, None, self.unit)
                continue
            which = start + np.flatnonzero(numbers[start:end] % parts == part)
            if len(which) == 0:
                continue
            lengths = np.diff(records.offsets)[which]
            if parts == 1:
                tokens: Any = slice(int(records.offsets[start]), int(records.offsets[end]))
            else:
                first = np.repeat(records.offsets[which] - np.cumsum(lengths) + lengths, lengths)
                tokens = first + np.arange(lengths.sum())
            steps = records.steps[which]
            yield (
                int(numbers[which[0]]),
                Rows(
                    trainer=records.trainer[tokens] if has & c.LOG_HAS_TRAINER else None,
                    rollout=records.rollout[tokens] if has & c.LOG_HAS_ROLLOUT else None,
                    mask=records.mask[tokens],
                    lengths=lengths,
                    lines=numbers[which],
                    ids=records.ids[which],
                    steps=np.where(steps == -1, self._wanted.step, steps),
                    token_ids=(
                        records.token_ids[tokens]
                        if self._wanted.token_ids and has & c.LOG_HAS_TOKEN_IDS
                        else None
                    ),
                ),
            )

    def _cut_off(self, record: int) -> LogError:
        summary = self._log.summary
        return LogError(
            f"was not written whole: {summary.cut_off_bytes} bytes of it are there, at byte {summary.position}: its"
            " writer died, or the file was cut off when it was copied. All records before it were read; leave"
            " this one out (skip_bad), or copy the file again",
            str(self._path),
            record,
            None,
            self.unit,
        )

    def _error(self, error: Exception, record: int | None) -> LogError:
        text = str(error).removeprefix(f"{self._path}: ")
        return LogError(text, str(self._path), record, None, self.unit)

    def _progress(self, position: int) -> None:
        if self._advance is not None and position > self._told:
            self._advance(position - self._told)
            self._told = position
