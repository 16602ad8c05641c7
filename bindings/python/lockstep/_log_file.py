"""Lockstep's own log: what each engine said of each token, lossless, in about 8 bytes a token.

A file is a header, then one record a sequence; its name ends in ``.lockstep`` by custom.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from ctypes import byref, c_void_p, sizeof
from dataclasses import dataclass, field, fields
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _library as c
from ._batch import as_mask
from ._errors import InvalidArgumentError
from ._library import check, choice, integer, library, real
from ._tensors import Array, address, view

_TEXTS = ("model", *(f"{side}_{name}" for side in ("trainer", "rollout") for name in (
    "engine", "version", "weights", "body", "head", "logits")))
_PROB_MODES = {word: value for value, word in enumerate(("unknown", "raw", "processed"))}


@dataclass(frozen=True)
class LogHeader:
    """What is true of a whole log; None is not known."""

    model: str | None = None
    #: The engine that trains: name, version, the weights if the whole log is of one, and its number
    #: formats as free text: of the body, of the head's product, of the logits that the log-softmax saw.
    trainer_engine: str | None = None
    trainer_version: str | None = None
    trainer_weights: str | None = None
    trainer_body: str | None = None
    trainer_head: str | None = None
    trainer_logits: str | None = None
    #: The same of the engine that samples.
    rollout_engine: str | None = None
    rollout_version: str | None = None
    rollout_weights: str | None = None
    rollout_body: str | None = None
    rollout_head: str | None = None
    rollout_logits: str | None = None
    #: Sampling: temperature (0 is greedy), top_p (1 is none), top_k (0 is none), min_p (0 is none).
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    #: What the rollout's log-probs are the log-probs of: "raw" (the model's distribution), "processed"
    #: (after temperature and truncation), "unknown".
    log_prob_mode: str = "unknown"
    #: Seconds since 1970-01-01 UTC.
    created: int | None = None
    #: Anything else.
    extra: Mapping[str, str] = field(default_factory=dict)
    #: Of the file; not read by `LogWriter`.
    format_version: int = 1


class LogSummary(NamedTuple):
    """How a log was found to be, up to what was read; as text, in a sentence."""

    #: Whether what was read last is the mark of a writer that closed the log.
    is_closed: bool
    #: Read so far: sequences, their tokens, and the byte after the last record.
    sequences: int
    tokens: int
    position: int
    #: Bytes of the log.
    size: int
    #: Bytes at the end of a record that was not written whole; 0 if there are none.
    cut_off_bytes: int
    #: Places that were damaged and skipped, and the bytes there.
    damaged_places: int
    skipped_bytes: int

    def __str__(self) -> str:
        text = f"{self.sequences} sequences, {self.tokens} tokens"
        if self.damaged_places:
            text += f"; {self.damaged_places} damaged places skipped, {self.skipped_bytes} bytes"
        if self.cut_off_bytes:
            return text + (f"; cut off after that, at byte {self.position}: {self.cut_off_bytes} bytes of an "
                           "unfinished record follow")
        return text + ("" if self.is_closed else "; not closed by its writer")


@dataclass(frozen=True)
class LogRecords:
    """Some whole sequences of a log, packed: sequence i is ``[offsets[i], offsets[i + 1])``."""

    #: [tokens] log-probs; NaN in a sequence that has none.
    trainer: NDArray[np.float32]
    rollout: NDArray[np.float32]
    #: [tokens] True where the token counts.
    mask: NDArray[np.bool_]
    #: [sequences + 1]
    offsets: NDArray[np.int64]
    #: [sequences] what identifies each, however a log is cut over processes.
    ids: NDArray[np.uint64]
    #: [sequences] training step; -1 not known.
    steps: NDArray[np.int64]
    #: [tokens], -1 in a sequence that has none; None if no sequence has any.
    token_ids: NDArray[np.int32] | None
    #: [sequences] tokens of the prompt; -1 not known.
    prompt_tokens: NDArray[np.int64]
    #: [sequences] NaN not known.
    rewards: NDArray[np.float32]
    advantages: NDArray[np.float32]
    #: [sequences] which columns each has: 1 token ids, 2 rollout, 4 trainer, added up.
    columns: NDArray[np.uint8]
    #: [sequences] the byte of the log where each begins, for `LogReader.seek`.
    positions: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)


class _Handle:
    """A writer or reader of the library: one call at a time, destroyed with this object."""

    def __init__(self, pointer: c_void_p, destroy: str) -> None:
        self._pointer = pointer
        self._destroy = weakref.finalize(self, getattr(library, destroy), pointer)
        self.lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        return self._destroy.alive

    def pointer(self) -> c_void_p:
        """To be used while the lock is held."""
        if not self.is_open:
            raise InvalidArgumentError("the log is closed; open it again")
        return self._pointer

    def call(self, function: str, *before: Any, after: tuple = ()) -> None:
        with self.lock:
            check(getattr(library, function)(*before, self.pointer(), *after))

    def destroy(self) -> None:
        with self.lock:
            self._destroy()


class LogWriter:
    """Writes a log, one `append` a sequence.

    A sequence is in the file when `append` returns, so the death of the process loses none; after
    `sync` a power cut loses none either. A log has one writer; the file is locked for others until it is
    closed.

    Args:
        path: the file; its name ends in ``.lockstep`` by custom.
        mode: "create" (an error if there is such a file), "append" (go on with a log after its last whole
            record, or make a new file), or "replace" (only ever another log).
        sync_every: wait for the disk after so many sequences; 0 is when `sync` or `close` is called.
        header: a `LogHeader` to begin from, such as a reader's.
        fields: fields of `LogHeader`, over those of `header`. With mode "append" and none of both, the log's
            own header is kept; what is given must be the same, `created` aside.

    Raises:
        InvalidArgumentError: a header that cannot be stored, or differs from that of the log.
        FileError: the system refuses, there is such a file, or another writer has it.
        BadDataError: the file is no log, or is damaged before its end.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/run.lockstep"
        >>> with LogWriter(path, model="tiny", temperature=1.0) as log:
        ...     log.append(id=7, rollout=[-1.0, -0.5], trainer=[-1.25, -0.5], mask=[False, True])
        >>> with LogReader(path) as log:
        ...     [batch.trainer.tolist() for batch in log]
        [[-1.25, -0.5]]
    """

    def __init__(self, path: str | os.PathLike[str], *, mode: str = "create", sync_every: int = 0,
                 header: LogHeader | None = None, **fields: Any) -> None:
        options = c.LogWriterOptions(
            sizeof(c.LogWriterOptions), choice(c.LOG_MODES, mode, "mode"),
            integer(sync_every, "sync_every", 0, 2**63 - 1))
        struct = None if header is None and not fields else _header_struct(header, fields)
        handle = c_void_p()
        check(library.lockstep_log_writer_create(
            byref(handle), _path(path), None if struct is None else byref(struct), byref(options)))
        self._handle = _Handle(handle, "lockstep_log_writer_destroy")

    def append(self, *, id: int, token_ids: Array | None = None, rollout: Array | None = None,
               trainer: Array | None = None, mask: Array | None = None, step: int = -1,
               prompt_tokens: int = -1, reward: float | None = None, advantage: float | None = None) -> None:
        """Appends one sequence; at least one of `token_ids`, `rollout` and `trainer` must be given.

        Args:
            id: what identifies the sequence, however a log is cut over processes: 0 to 2^64 - 1.
            token_ids: [tokens] int32, or int64 within its range.
            rollout: [tokens] log-probs, fp32, fp16 or bf16; every bit comes back. Lists of numbers are
                rounded to fp32.
            trainer: likewise.
            mask: [tokens] which tokens count; None is all.
            step: the training step; -1 is not known.
            prompt_tokens: tokens at the beginning that are the prompt; -1 is not known.
            reward, advantage: of the sequence; None is not known.

        Raises:
            InvalidArgumentError: columns that do not fit together; fp64.
            FileError: it cannot be written: the log then holds what it held before.
        """
        tensors = [None if column is None else view(column, name).tensor() for column, name in (
            (_numbers(token_ids, np.int64), "token_ids"), (_numbers(rollout, np.float32), "rollout_log_probs"),
            (_numbers(trainer, np.float32), "trainer_log_probs"), (None if mask is None else as_mask(mask), "mask"))]
        scalars = [None if each is None else ctypes.c_float(real(each, name)) for each, name in (
            (reward, "reward"), (advantage, "advantage"))]
        sequence = c.LogSequence(
            sizeof(c.LogSequence), 0, integer(id, "id", 0, 2**64 - 1), integer(step, "step", -(2**63), 2**63 - 1),
            integer(prompt_tokens, "prompt_tokens", -1, 2**63 - 1),
            *(None if each is None else ctypes.pointer(each) for each in scalars),
            *(None if each is None else address(each) for each in tensors))
        self._handle.call("lockstep_log_writer_append", after=(sequence,))

    def sync(self) -> None:
        """Waits until all that was appended is on the disk."""
        self._handle.call("lockstep_log_writer_sync")

    def close(self) -> None:
        """Marks the end of the log, syncs, unlocks. Closing again does nothing."""
        if self._handle.is_open:
            self._handle.call("lockstep_log_writer_close")
            self._handle.destroy()

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LogReader:
    """Reads a log of Lockstep's own format: iterate over it for `LogRecords` from its beginning.

    `lockstep.logs.open_log` reads logs of every format, this one too, all in the same way.

    Args:
        source: the path of a file, which may still be written; or the bytes of a log, or a binary stream
            (gzip, a remote file), which is read into memory whole.
        max_tokens: tokens of a batch, at most; a longer sequence is a batch of its own.
        damage: "strict" raises at a damaged record, after what is before it was given; "skip" goes on with
            the next whole record and counts in `summary`.

    Raises:
        FileError: the file cannot be read.
        BadDataError: it is no log, or its header is damaged.
        UnsupportedError: it is of a newer format.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/run.lockstep"
        >>> with LogWriter(path, rollout_engine="vLLM") as log:
        ...     log.append(id=7, rollout=[-1.0, -0.5], step=3)
        >>> log = LogReader(path)
        >>> log.header.rollout_engine, [batch.steps.tolist() for batch in log], str(log.summary)
        ('vLLM', [[3]], '1 sequences, 2 tokens')
    """

    def __init__(self, source: str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO, *,
                 max_tokens: int = 1 << 20, damage: str = "strict") -> None:
        options = c.LogReaderOptions(sizeof(c.LogReaderOptions), choice(c.LOG_DAMAGE, damage, "damage"))
        self._max_tokens = integer(max_tokens, "max_tokens", 1, 2**63 - 1)
        handle = c_void_p()
        if isinstance(source, (str, os.PathLike)):
            check(library.lockstep_log_reader_open(byref(handle), _path(source), byref(options)))
        else:
            bytes_ = source.read() if hasattr(source, "read") else source
            # The array keeps the bytes alive, which the reader only borrows.
            self._bytes = np.frombuffer(bytes_, np.uint8)
            check(library.lockstep_log_reader_open_memory(
                byref(handle), self._bytes.ctypes.data, self._bytes.size, byref(options)))
        self._handle = _Handle(handle, "lockstep_log_reader_destroy")
        struct = c.LogHeader(sizeof(c.LogHeader))
        self._handle.call("lockstep_log_reader_header", byref(struct))
        #: What the log says of itself.
        self.header: LogHeader = _header_of(struct)

    def next(self, max_tokens: int | None = None) -> LogRecords | None:
        """The next sequences, or None at the end; a log that is still written may have more later.

        Raises:
            BadDataError: a damaged record, named.
        """
        limit = self._max_tokens if max_tokens is None else integer(max_tokens, "max_tokens", 1, 2**63 - 1)
        batch = c.LogBatch(sizeof(c.LogBatch))
        handle = self._handle
        with handle.lock:  # the columns are the reader's memory: copied before anybody asks for more
            check(library.lockstep_log_reader_next(byref(batch), handle.pointer(), limit))
            if batch.sequences == 0:
                return None
            tokens, sequences = batch.tokens, batch.sequences
            columns = _column(batch.columns, sequences, np.uint8)
            return LogRecords(
                trainer=_column(batch.trainer_log_probs, tokens, np.float32),
                rollout=_column(batch.rollout_log_probs, tokens, np.float32),
                mask=_column(batch.mask, tokens, np.bool_),
                offsets=_column(batch.offsets, sequences + 1, np.int64),
                ids=_column(batch.ids, sequences, np.uint64),
                steps=_column(batch.steps, sequences, np.int64),
                token_ids=(_column(batch.token_ids, tokens, np.int32)
                           if (columns & c.LOG_HAS_TOKEN_IDS).any() else None),
                prompt_tokens=_column(batch.prompt_tokens, sequences, np.int64),
                rewards=_column(batch.rewards, sequences, np.float32),
                advantages=_column(batch.advantages, sequences, np.float32),
                columns=columns,
                positions=_column(batch.positions, sequences, np.int64))

    def seek(self, position: int = 0) -> None:
        """Goes to a record, one of a batch's `positions`, or to the first; counts begin anew."""
        self._handle.call("lockstep_log_reader_seek", after=(integer(position, "position", 0, 2**63 - 1),))

    @property
    def summary(self) -> LogSummary:
        """How the log was found to be so far: cut off, closed, damaged."""
        struct = c.LogSummary(sizeof(c.LogSummary))
        self._handle.call("lockstep_log_reader_summary", byref(struct))
        closed, *numbers = (getattr(struct, name) for name in LogSummary._fields)
        return LogSummary(bool(closed), *numbers)

    def close(self) -> None:
        """Closes the log. Closing again does nothing."""
        self._handle.destroy()

    def __iter__(self) -> Iterator[LogRecords]:
        self.seek(0)
        while (batch := self.next()) is not None:
            yield batch

    def __enter__(self) -> LogReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _path(path: str | os.PathLike[str]) -> bytes:
    text = os.fsencode(path)
    if b"\0" in text:
        raise InvalidArgumentError("path: holds a byte 0; give the path of a file")
    return text


def _numbers(column: Array | None, dtype: type) -> Array | None:
    """A list as an array; arrays as they are, so that nothing is rounded unseen."""
    return np.array(column, dtype) if isinstance(column, (list, tuple)) else column


def _column(tensor: c.Tensor, count: int, dtype: type) -> NDArray:
    size = count * np.dtype(dtype).itemsize
    column = np.empty(count, dtype)
    ctypes.memmove(column.ctypes.data, tensor.data, size)
    return column


def _header_struct(header: LogHeader | None, given: Mapping[str, Any]) -> c.LogHeader:
    known = {each.name: getattr(header or LogHeader(), each.name) for each in fields(LogHeader)}
    unknown = [name for name in given if name not in known]
    if unknown:
        raise InvalidArgumentError(f"header: has no field {unknown[0]!r}; put it into extra, or use one of "
                                   f"{', '.join(known)}")
    known.update(given)
    struct = c.LogHeader(sizeof(c.LogHeader))
    struct.log_prob_mode = choice(_PROB_MODES, known["log_prob_mode"], "log_prob_mode")
    for name in ("temperature", "top_p", "min_p"):
        setattr(struct, name, -1.0 if known[name] is None else real(known[name], name))
    struct.top_k = -1 if known["top_k"] is None else integer(known["top_k"], "top_k", 0, 2**31 - 1)
    struct.created = 0 if known["created"] is None else integer(known["created"], "created", -(2**63), 2**63 - 1)
    for name in _TEXTS:
        setattr(struct, name, None if known[name] is None else _text(known[name], name))
    extra = known["extra"]
    if extra:
        array = ctypes.c_char_p * len(extra)
        struct.pairs = len(extra)
        struct.keys = array(*(_text(key, "a key of extra") for key in extra))
        struct.values = array(*(_text(value, f"extra[{key!r}]") for key, value in extra.items()))
    return struct


def _text(value: Any, name: str) -> bytes:
    if not isinstance(value, str) or "\0" in value:
        raise InvalidArgumentError(f"{name} is {value!r}; give a text without a character 0")
    return value.encode()


def _header_of(struct: c.LogHeader) -> LogHeader:
    return LogHeader(
        **{name: getattr(struct, name).decode() or None for name in _TEXTS},
        **{name: None if getattr(struct, name) == -1 else getattr(struct, name)
           for name in ("temperature", "top_p", "top_k", "min_p")},
        log_prob_mode=list(_PROB_MODES)[struct.log_prob_mode], created=struct.created or None,
        extra={struct.keys[index].decode(): struct.values[index].decode() for index in range(struct.pairs)},
        format_version=struct.format_version)
