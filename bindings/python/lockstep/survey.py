"""A survey: all that a diagnosis keeps of a log, in constant memory, merged exactly.

    >>> from lockstep.logs import open_log
    >>> from lockstep.survey import survey
    >>> whole = survey(open_log("examples/data/smollm2-135m.bf16.jsonl.gz"))
    >>> halves = [survey(open_log("examples/data/smollm2-135m.bf16.jsonl.gz", shard=(i, 2))) for i in (1, 0)]
    >>> halves[0].merge(halves[1])
    >>> halves[0].to_bytes() == whole.to_bytes()
    True

However a log is cut into parts between its sequences, and in whatever order the parts are merged, the result
is the same bytes. So it can be read by several processes (`lockstep.parallel`) or machines
(`lockstep.ray`) as well as by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._accumulator import MismatchAccumulator
from ._mismatch import Mismatch
from .logs import LogBatch, LogStream
from .logs.identity import identity
from .parts import Part

#: About so many tokens are kept to be shown one by one: those of the sequences with the smallest hashes.
SAMPLE_TOKENS = 50_000
#: Of one sequence, at most so many.
SAMPLE_TOKENS_OF_ONE = 5_000

_SAMPLE = 4  # kind of an identity: the order in which sequences are sampled


@dataclass(frozen=True)
class Place:
    """Where a sequence stands in the log."""

    file: int
    """Index of the file in the whole log."""
    line: int
    """Line, or row, counted from 1."""
    environment: str


class StepSums(Part):
    """The statistics of each training step, in some kilobytes each: what the early warning needs of a log.

    Args:
        label, exclude_non_finite: as in `Part`.
        step: the step of sequences whose log does not say; -1: they are left out.
        always: it is the step of all, whatever the log says.
    """

    MAGIC = b"LSSTEPS1"

    def __init__(self, label: str = "", *, exclude_non_finite: bool = False, step: int = -1,
                 always: bool = False) -> None:
        super().__init__(label, exclude_non_finite=exclude_non_finite)
        self._step, self._always = step, always
        self._sums: dict[int, bytes] = {}  # saved summaries: a handle takes more

    def add_batch(self, batch: LogBatch, *, threads: int = 0) -> None:
        default = np.full_like(batch.steps, self._step)
        for step, part in _by_step(batch, default if self._always else np.where(batch.steps < 0, default, batch.steps)):
            if step >= 0:
                sums = MismatchAccumulator(summary=True)
                sums.update(part.trainer, part.rollout, part.mask, part.offsets, ids=part.ids,
                            non_finite=self.non_finite, threads=threads)
                self.add_step(step, sums)

    def add_step(self, step: int, sums: MismatchAccumulator) -> None:
        """Adds what some sequences of a step came to."""
        known = self._sums.get(step)
        total = MismatchAccumulator(summary=True) if known is None else MismatchAccumulator.from_bytes(known)
        total.merge(sums)
        self._sums[step] = total.to_bytes()

    def merge(self, other: StepSums) -> None:
        super().merge(other)
        self.merge_steps(other)

    def merge_steps(self, other: StepSums) -> None:
        """Adds the steps of another log."""
        for step, sums in other._sums.items():
            self.add_step(step, MismatchAccumulator.from_bytes(sums))

    def reports(self) -> list[tuple[int, Mismatch]]:
        """(step, its statistics), ascending."""
        return [(step, MismatchAccumulator.from_bytes(self._sums[step]).report()) for step in sorted(self._sums)]

    def _save(self) -> tuple[dict[str, Any], list[bytes]]:
        steps = sorted(self._sums)
        return {"step": self._step, "always": self._always, "steps": steps}, [self._sums[step] for step in steps]

    def _load(self, about: dict[str, Any], blobs: list[bytes]) -> None:
        self._step, self._always = about["step"], about["always"]
        self._sums = dict(zip(about["steps"], blobs, strict=True))


def _by_step(batch: LogBatch, steps: NDArray[np.int64]) -> Iterator[tuple[int, LogBatch]]:
    """The sequences of each step, ascending."""
    known = np.unique(steps)
    for step in known.tolist():
        yield step, batch.take(steps == step) if len(known) > 1 else batch


class Survey(Part):
    """What was seen of a log so far.

    Args:
        label, exclude_non_finite: as in `Part`.
        exact_quantiles: keep every log ratio that is not 0, 8 bytes a token, for exact quantiles; without it
            they are within 2⁻⁸ of their size.
    """

    MAGIC = b"LSSURVEY"
    TOKEN_IDS = True

    def __init__(self, label: str = "", *, exclude_non_finite: bool = False, exact_quantiles: bool = False):
        super().__init__(label, exclude_non_finite=exclude_non_finite)
        self._exact = exact_quantiles
        self.total = MismatchAccumulator(exact_quantiles=exact_quantiles)
        """The whole log."""
        self._steps = StepSums()
        self._sample = _Sample()
        self._places: dict[int, Place] = {}
        self._token_ids: dict[tuple[int, int], int] = {}

    # Taking in

    def add_batch(self, batch: LogBatch, *, threads: int = 0) -> None:
        taken = []
        for step, part in _by_step(batch, batch.steps):
            sums = MismatchAccumulator(exact_quantiles=self._exact)
            sums.update(part.trainer, part.rollout, part.mask, part.offsets, ids=part.ids, threads=threads,
                        non_finite=self.non_finite)
            taken.append((step, sums))
        for step, sums in taken:
            self.total.merge(sums)
            if step >= 0:
                self._steps.add_step(step, sums)
        self._sample.add(batch)
        self._locate(batch)

    def merge(self, other: Survey) -> None:
        super().merge(other)
        self.total.merge(other.total)
        self._steps.merge_steps(other._steps)
        self._sample.merge(other._sample)
        self._places.update(other._places)
        self._token_ids.update(other._token_ids)
        self._forget()

    # What it says

    @property
    def statistics(self) -> Mismatch:
        """All statistics of the log."""
        return self.total.report()

    def by_step(self) -> list[tuple[int, Mismatch]]:
        """The statistics of each training step, in order; empty where the log does not say which."""
        return self._steps.reports()

    def sample(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(rollout, trainer) log-probs of some tokens that count, to be shown one by one."""
        return self._sample.tokens()

    def place(self, sequence: int) -> Place | None:
        """Where one of the worst sequences, or the sequence of one of the worst tokens, stands."""
        return self._places.get(int(sequence))

    def token_id(self, sequence: int, position: int) -> int | None:
        """The id of one of the worst tokens; None where the log has none."""
        return self._token_ids.get((int(sequence), int(position)))

    # The worst

    def _locate(self, batch: LogBatch) -> None:
        """Notes where the worst tokens and sequences stand, as long as they are among the worst."""
        tokens, sequences = self.total.worst(), self.total.worst_sequences()
        wanted = np.union1d(tokens["id"], sequences["id"])
        for index in np.flatnonzero(np.isin(batch.ids, wanted)).tolist():
            sequence = int(batch.ids[index])
            name = batch.environments[batch.environment_of[index]] if batch.environments else ""
            if batch.file_of[index] >= 0:
                self._places[sequence] = Place(int(batch.file_of[index]), int(batch.lines[index]), name)
            if batch.token_ids is None:
                continue
            for position in tokens["position"][tokens["id"] == batch.ids[index]].tolist():
                self._token_ids[sequence, position] = int(batch.token_ids[batch.offsets[index] + position])
        self._forget()

    def _forget(self) -> None:
        tokens, sequences = self.total.worst(), self.total.worst_sequences()
        wanted = {int(each) for each in tokens["id"]} | {int(each) for each in sequences["id"]}
        self._places = {each: place for each, place in self._places.items() if each in wanted}
        pairs = set(zip(tokens["id"].tolist(), tokens["position"].tolist(), strict=True))
        self._token_ids = {pair: token for pair, token in self._token_ids.items() if pair in pairs}

    # Bytes

    def _save(self) -> tuple[dict[str, Any], list[bytes]]:
        steps, blobs = self._steps._save()
        return {
            "exact": self._exact, **steps,
            "places": [[each, *asdict(self._places[each]).values()] for each in sorted(self._places)],
            "token_ids": [[*pair, self._token_ids[pair]] for pair in sorted(self._token_ids)],
        }, [self.total.to_bytes(), *blobs, *self._sample.to_arrays()]

    def _load(self, about: dict[str, Any], blobs: list[bytes]) -> None:
        self._exact = about["exact"]
        steps = len(about["steps"])
        self.total = MismatchAccumulator.from_bytes(blobs[0])
        self._steps._load(about, blobs[1 : 1 + steps])
        self._sample = _Sample.from_arrays(blobs[1 + steps :])
        self._places = {each: Place(*place) for each, *place in about["places"]}
        self._token_ids = {(sequence, position): token for sequence, position, token in about["token_ids"]}


def survey(log: LogStream | Iterable[LogBatch], *, label: str | None = None, exclude_non_finite: bool = False,
           exact_quantiles: bool = False, threads: int = 0) -> Survey:
    """Reads a log once and surveys it.

    Args:
        log: what `lockstep.logs.open_log` returned, or batches from elsewhere.
        label: what it is called; by default the reader's label.
        exclude_non_finite, exact_quantiles: as in `Survey`.
        threads: 0 for one for each processor; the result does not depend on it.

    Raises:
        LogError: a sequence cannot be read.
        NonFiniteError: a token that counts has a log-prob that is not finite.
    """
    return Survey(label or "", exclude_non_finite=exclude_non_finite, exact_quantiles=exact_quantiles).read(
        log, threads=threads)


class _Sample:
    """The tokens of the sequences with the smallest hashes: whole sequences in that order, until there are
    SAMPLE_TOKENS. Which ones does not depend on how the log is cut, as each is judged by those before it."""

    def __init__(self) -> None:
        self._hashes = np.zeros(0, np.uint64)
        self._lengths = np.zeros(0, np.int64)
        self._rollout = np.zeros(0, np.float32)
        self._trainer = np.zeros(0, np.float32)

    def tokens(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self._rollout, self._trainer

    def add(self, batch: LogBatch) -> None:
        hashes = identity(_SAMPLE, batch.ids)
        candidates = np.arange(len(hashes))
        if self._lengths.sum() >= SAMPLE_TOKENS:
            candidates = np.flatnonzero(hashes < self._hashes[-1])
        candidates = candidates[np.argsort(hashes[candidates], kind="stable")]
        kept, lengths, rollout, trainer = [], [], [], []
        for index in candidates.tolist():
            if sum(lengths) >= SAMPLE_TOKENS:
                break
            tokens = slice(batch.offsets[index], batch.offsets[index + 1])
            a, b = batch.trainer[tokens], batch.rollout[tokens]
            counted = np.flatnonzero(batch.mask[tokens] & np.isfinite(a) & np.isfinite(b))[:SAMPLE_TOKENS_OF_ONE]
            kept.append(hashes[index])
            lengths.append(len(counted))
            rollout.append(b[counted])
            trainer.append(a[counted])
        if kept:
            self._join(np.array(kept, np.uint64), np.array(lengths, np.int64), np.concatenate(rollout),
                       np.concatenate(trainer))

    def merge(self, other: _Sample) -> None:
        self._join(other._hashes, other._lengths, other._rollout, other._trainer)

    def _join(self, hashes, lengths, rollout, trainer) -> None:
        hashes = np.concatenate([self._hashes, hashes])
        lengths = np.concatenate([self._lengths, lengths])
        rollout, trainer = np.concatenate([self._rollout, rollout]), np.concatenate([self._trainer, trainer])
        order = np.argsort(hashes, kind="stable")
        before = np.cumsum(lengths[order]) - lengths[order]
        order = order[before < SAMPLE_TOKENS]
        starts = (np.cumsum(lengths) - lengths)[order]
        kept = lengths[order]
        at = np.repeat(starts - (np.cumsum(kept) - kept), kept) + np.arange(kept.sum())
        self._hashes, self._lengths, self._rollout, self._trainer = hashes[order], kept, rollout[at], trainer[at]

    def to_arrays(self) -> list[bytes]:
        return [self._hashes.astype("<u8").tobytes(), self._lengths.astype("<i8").tobytes(),
                self._rollout.astype("<f4").tobytes(), self._trainer.astype("<f4").tobytes()]

    @classmethod
    def from_arrays(cls, parts: list[bytes]) -> _Sample:
        out = cls()
        for name, part, dtype in zip(("_hashes", "_lengths", "_rollout", "_trainer"), parts,
                                     ("<u8", "<i8", "<f4", "<f4"), strict=True):
            setattr(out, name, np.frombuffer(part, dtype))
        return out
