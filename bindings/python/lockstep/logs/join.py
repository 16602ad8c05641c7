"""Two logs of the same sequences: joining each engine's log-probs, and checking that the tokens are the same.

Sequences are matched by their ids where both logs have ids of their own, else by their order. Logs in the
same order are joined in constant memory; out of order, the sequences that wait for their other half are held.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .log import LogBatch, LogError, LogFile
from .rows import SIDES

# Tokens that may wait for their other half: 13 bytes each.
MOST_WAITING = 64 << 20


class Batches(Protocol):
    """What can be read like a log: a `LogStream`, or two joined."""

    label: str
    sides: tuple[str, ...]
    has_ids: bool
    header: dict[str, Any]

    @property
    def files(self) -> tuple[LogFile, ...]: ...

    def __iter__(self) -> Iterator[LogBatch]: ...


@dataclass(frozen=True)
class Agreement:
    """How two logs of the same sequences agree."""

    sequences: int
    """Sequences that are in both, with the same tokens."""
    tokens: int
    missing: tuple[int, int]
    """Sequences of the first log that the second does not have, and the other way round."""
    differing: int
    """Sequences that are in both and differ in their tokens."""
    checked: bool
    """Whether token ids were compared; without them only lengths were."""


@dataclass
class _Side:
    """One of the two logs, while it is read."""

    log: Batches
    name: str
    batches: Iterator[LogBatch]
    waiting: dict[int, tuple[LogBatch, int]] = field(default_factory=dict)
    tokens: int = 0
    ended: bool = False

    def place(self, batch: LogBatch, sequence: int) -> str:
        """Where a sequence is, for an error."""
        files = self.log.files
        file = files[int(batch.file_of[sequence])].path if int(batch.file_of[sequence]) < len(files) else ""
        return f"{file}, line {int(batch.lines[sequence])}"


class JoinedLog:
    """Two logs as one, iterable as `LogBatch`es of both engines' log-probs; each iteration reads anew."""

    def __init__(
        self, trainer: Batches, rollout: Batches, *, label: str | None, missing: str, batch_tokens: int
    ):
        if missing not in ("error", "count"):
            raise ValueError(f"missing is {missing!r}; give 'error' or 'count'")
        self.label = label if label is not None else rollout.label
        self.sides = SIDES
        self.has_ids = False
        self.agreement: Agreement | None = None
        """What was joined and what was left out; known after reading."""
        self._trainer, self._rollout = trainer, rollout
        self._missing, self._batch_tokens = missing, batch_tokens

    @property
    def files(self) -> tuple[LogFile, ...]:
        """The rollout log's files and then the trainer log's."""
        return self._rollout.files + self._trainer.files

    @property
    def format(self) -> str:
        return "joined"

    @property
    def header(self) -> dict[str, Any]:
        """What both say, and as ``trainer_…`` and ``rollout_…`` what one says alone or otherwise."""
        both: dict[str, Any] = {}
        headers = (self._trainer.header, self._rollout.header)
        for name in dict.fromkeys([*headers[0], *headers[1]]):
            values = [header.get(name) for header in headers]
            if values[0] == values[1]:
                both[name] = values[0]
                continue
            for side, value in zip(SIDES, values, strict=True):
                if value is not None:
                    both[name if name.startswith(f"{side}_") else f"{side}_{name}"] = value
        return both

    @property
    def sequences(self) -> int:
        return self.agreement.sequences if self.agreement else 0

    @property
    def skipped_lines(self) -> int:
        return sum(file.skipped_lines for file in self.files)

    def __iter__(self) -> Iterator[LogBatch]:
        matching = _Matching(
            self._trainer, self._rollout, ("the trainer log", "the rollout log"), self._missing
        )
        held: list[tuple[LogBatch, int, LogBatch, int]] = []
        tokens = 0
        for pair in matching:
            held.append(pair)
            tokens += _length(pair[0], pair[1])
            if tokens >= self._batch_tokens:
                yield self._pack(held)
                held, tokens = [], 0
        self.has_ids = matching.by_id
        self.agreement = matching.agreement()
        if held:
            yield self._pack(held)

    def _pack(self, pairs: list[tuple[LogBatch, int, LogBatch, int]]) -> LogBatch:
        for side, log in zip(SIDES, (self._trainer, self._rollout), strict=True):
            if len(log.sides) == 2:
                raise LogError(
                    f"has the log-probs of both engines; as the {side} log give one that has one",
                    log.files[0].path,
                )
        columns = {}
        for side, log, at in ((SIDES[0], self._trainer, 0), (SIDES[1], self._rollout, 2)):
            columns[side] = np.concatenate(
                [_slice(getattr(pair[at], log.sides[0]), pair[at], pair[at + 1]) for pair in pairs]
            )
        # A token counts where both logs say so: of one, which has no mask, all do.
        mask = np.concatenate([_slice(a.mask, a, i) & _slice(b.mask, b, j) for a, i, b, j in pairs])
        lengths = [_length(batch, index) for batch, index, _, _ in pairs]
        offsets = np.zeros(len(pairs) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        ids_of = [a.token_ids if a.token_ids is not None else b.token_ids for a, _, b, _ in pairs]
        token_ids = None
        if all(ids is not None for ids in ids_of):
            token_ids = np.concatenate(
                [
                    _slice(a.token_ids, a, i) if a.token_ids is not None else _slice(b.token_ids, b, j)
                    for a, i, b, j in pairs
                ]
            )
        names = max((batch.environments for _, _, batch, _ in pairs), key=len)
        return LogBatch(
            trainer=columns["trainer"],
            rollout=columns["rollout"],
            mask=mask,
            offsets=offsets,
            ids=np.array([b.ids[j] for _, _, b, j in pairs], np.uint64),
            steps=np.array([max(a.steps[i], b.steps[j]) for a, i, b, j in pairs], np.int64),
            token_ids=token_ids,
            lines=np.array([b.lines[j] for _, _, b, j in pairs], np.int64),
            file_of=np.array([b.file_of[j] for _, _, b, j in pairs], np.int32),
            environment_of=np.array([b.environment_of[j] for _, _, b, j in pairs], np.int32),
            environments=names,
        )


def join_logs(
    trainer: Batches,
    rollout: Batches,
    *,
    label: str | None = None,
    missing: str = "error",
    batch_tokens: int = 1 << 20,
) -> JoinedLog:
    """One log of two, each with the log-probs of one engine for the same sequences.

    Args:
        trainer: the trainer's log-probs; whichever side it was read as.
        rollout: the rollout engine's. Lines, files and environments of the joined log are its.
        label: what the joined log is called; by default as the rollout log.
        missing: "error", or "count": leave out sequences that one log does not have.
        batch_tokens: where a batch ends.

    Raises:
        LogError: while reading: a sequence's tokens differ, naming the first position; a sequence is in one
        log
            only; or one log has both engines' log-probs.

    Example:
        >>> joined = join_logs(open_log("scores.jsonl"), open_log("samples.jsonl"))   # doctest: +SKIP
    """
    return JoinedLog(trainer, rollout, label=label, missing=missing, batch_tokens=batch_tokens)


def check_same_tokens(
    first: Batches, second: Batches, *, missing: str = "error", differing: str = "error"
) -> Agreement:
    """Checks that two logs have the same sequences with the same tokens.

    Two logs of different samples, such as BF16 and FP16 runs, differ rightly; two measurements of the same
    samples must not. `missing` and `differing`: "error", or "count".

    Raises:
        LogError: naming the first sequence, and the first position, where they differ.
    """
    matching = _Matching(first, second, ("the first log", "the second log"), missing, differing)
    for _ in matching:
        pass
    return matching.agreement()


class _Matching:
    """Pairs of sequences of two logs."""

    def __init__(
        self, first: Batches, second: Batches, names: tuple[str, str], missing: str, differing: str = "error"
    ):
        self._sides = [_Side(log, name, iter(log)) for log, name in zip((first, second), names, strict=True)]
        self._tolerant, self._count_differing = missing == "count", differing == "count"
        self.by_id = False
        self._sequences = self._tokens = self._differing = 0
        self._checked = True
        self._counts = [0, 0]

    def agreement(self) -> Agreement:
        return Agreement(
            self._sequences,
            self._tokens,
            (self._counts[0], self._counts[1]),
            self._differing,
            self._checked and self._sequences > 0,
        )

    def __iter__(self) -> Iterator[tuple[LogBatch, int, LogBatch, int]]:
        first, second = self._sides
        heads = [next(side.batches, None) for side in self._sides]
        self.by_id = first.log.has_ids and second.log.has_ids
        numbers = [0, 0]
        turn = [0, 1]
        while True:
            # The log that is behind is read on, so that what waits is as little as the order allows.
            index = min(turn, key=lambda each: (self._sides[each].ended and not heads[each], numbers[each]))
            batch = heads[index]
            if batch is None:
                if self._sides[1 - index].ended or heads[1 - index] is None:
                    break
                index, batch = 1 - index, heads[1 - index]
            heads[index] = None
            mine, other = self._sides[index], self._sides[1 - index]
            for sequence in range(batch.sequences):
                key = int(batch.ids[sequence]) if self.by_id else numbers[index]
                numbers[index] += 1
                found = other.waiting.pop(key, None)
                if found is None:
                    mine.waiting[key] = (batch.take(np.array([sequence])), 0)
                    mine.tokens += _length(batch, sequence)
                    continue
                other.tokens -= _length(*found)
                pair = (batch, sequence, *found) if index == 0 else (*found, batch, sequence)
                if self._same(*pair, number=numbers[index] - 1):
                    yield pair
            if mine.tokens > MOST_WAITING:
                raise LogError(
                    f"{mine.tokens:,} tokens wait for their other half in {other.name}: the order of the two"
                    " is too different to join them in memory; sort one by sequence id",
                    mine.log.files[0].path,
                )
            heads[index] = next(mine.batches, None)
            mine.ended = heads[index] is None
        for index, side in enumerate(self._sides):
            self._counts[index] = len(side.waiting)
            if side.waiting and not self._tolerant:
                batch, sequence = min(
                    side.waiting.values(),
                    key=lambda one: (int(one[0].file_of[one[1]]), int(one[0].lines[one[1]])),
                )
                other = self._sides[1 - index]
                how = (
                    "by id"
                    if self.by_id
                    else "by order, as not both logs have ids: the first that is too many"
                )
                raise LogError(
                    f"{len(side.waiting):,} sequences of {side.name} are not in {other.name}; the first"
                    f" ({how}) is {side.place(batch, sequence)}, id {int(batch.ids[sequence])}. Give the same"
                    " sequences to both, or count and leave out what is missing",
                    other.log.files[0].path if other.log.files else other.name,
                )

    def _same(self, a: LogBatch, i: int, b: LogBatch, j: int, number: int) -> bool:
        """Whether the tokens are the same; raises where they must be."""
        names = f"{self._sides[0].place(a, i)} and {self._sides[1].place(b, j)} (sequence {number})"
        error = None
        if a.token_ids is None or b.token_ids is None:
            self._checked = False
        elif (at := _first_difference(_slice(a.token_ids, a, i), _slice(b.token_ids, b, j))) is not None:
            ids = [_slice(batch.token_ids, batch, index) for batch, index in ((a, i), (b, j))]
            told = [str(int(each[at])) if at < len(each) else "no token" for each in ids]
            error = f"differ in their tokens, first at position {at}: {told[0]} and {told[1]}"
        if error is None and _length(a, i) != _length(b, j):
            error = f"have {_length(a, i)} and {_length(b, j)} tokens"
        if error is None:
            self._sequences += 1
            self._tokens += _length(a, i)
            return True
        self._differing += 1
        if not self._count_differing:
            raise LogError(f"{error}; both logs must have the same sequences, tokenised once", names)
        return False


def _length(batch: LogBatch, sequence: int) -> int:
    return int(batch.offsets[sequence + 1] - batch.offsets[sequence])


def _slice(column: NDArray, batch: LogBatch, sequence: int) -> NDArray:
    return column[batch.offsets[sequence] : batch.offsets[sequence + 1]]


def _first_difference(a: NDArray, b: NDArray) -> int | None:
    shared = min(len(a), len(b))
    at = np.flatnonzero(a[:shared] != b[:shared])
    if len(at):
        return int(at[0])
    return None if len(a) == len(b) else shared
