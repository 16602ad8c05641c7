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

import hashlib
import json
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._accumulator import MismatchAccumulator
from ._errors import BadDataError, UnsupportedError
from ._mismatch import Mismatch
from .logs import LogBatch, LogError, LogFile, LogStream
from .logs.identity import identity

#: About so many tokens are kept to be shown one by one: those of the sequences with the smallest hashes.
SAMPLE_TOKENS = 50_000
#: Of one sequence, at most so many.
SAMPLE_TOKENS_OF_ONE = 5_000

_MAGIC, _VERSION = b"LSSURVEY", 1
_SAMPLE = 4  # kind of an identity: the order in which sequences are sampled


@dataclass(frozen=True)
class Place:
    """Where a sequence stands in the log."""

    file: int
    """Index of the file in the whole log."""
    line: int
    """Line, or row, counted from 1."""
    environment: str


class Survey:
    """What was seen of a log so far.

    Args:
        label: what the log is called in tables and pictures.
        exclude_non_finite: drop and count tokens whose log-prob is NaN or infinite, instead of raising.
        exact_quantiles: keep every log ratio that is not 0, 8 bytes a token, for exact quantiles; without it
            they are within 2⁻⁸ of their size.
    """

    def __init__(self, label: str = "", *, exclude_non_finite: bool = False, exact_quantiles: bool = False):
        self.label = label
        self._exclude, self._exact = exclude_non_finite, exact_quantiles
        self.total = MismatchAccumulator(exact_quantiles=exact_quantiles)
        """The whole log."""
        self._steps: dict[int, bytes] = {}  # saved summaries: some kilobytes each
        self.files: dict[int, LogFile] = {}
        """The files, by their index in the whole log."""
        self.header: dict[str, Any] = {}
        """What the log says of how it was made."""
        self._sample = _Sample()
        self._places: dict[int, Place] = {}
        self._token_ids: dict[tuple[int, int], int] = {}

    # Taking in

    def add(self, batch: LogBatch, *, threads: int = 0) -> None:
        """Takes in some sequences of the log.

        Raises:
            NonFiniteError: a token that counts has a log-prob that is not finite; nothing was taken in.
        """
        parts = [(-1, batch)]
        known = np.unique(batch.steps)
        if len(known) > 1 or (len(known) == 1 and known[0] >= 0):
            parts = [(int(step), batch.take(batch.steps == step) if len(known) > 1 else batch) for step in known]
        taken = []
        for step, part in parts:
            sums = MismatchAccumulator(exact_quantiles=self._exact)
            sums.update(part.trainer, part.rollout, part.mask, part.offsets, ids=part.ids, threads=threads,
                        non_finite="exclude" if self._exclude else "strict")
            taken.append((step, sums))
        for step, sums in taken:
            self.total.merge(sums)
            if step >= 0:
                self._merge_step(step, sums)
        self._sample.add(batch)
        self._locate(batch)

    def finish(self, log: LogStream) -> None:
        """Takes over what the reader knows once it has read everything: files and header."""
        self.files.update(zip(log.places, log.files, strict=True))
        self.header.update(log.header)

    def merge(self, other: Survey) -> None:
        """Adds what another part of the same log gave. `other` stays as it is."""
        self.total.merge(other.total)
        for step, sums in other._steps.items():
            self._merge_step(step, MismatchAccumulator.from_bytes(sums))
        for index, file in other.files.items():
            self.files[index] = _joined(self.files[index], file) if index in self.files else file
        for name, value in other.header.items():
            self.header[name] = value if self.header.get(name, value) == value else "mixed"
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
        return [(step, MismatchAccumulator.from_bytes(self._steps[step]).report()) for step in sorted(self._steps)]

    def sample(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(rollout, trainer) log-probs of some tokens that count, to be shown one by one."""
        return self._sample.tokens()

    def place(self, sequence: int) -> Place | None:
        """Where one of the worst sequences, or the sequence of one of the worst tokens, stands."""
        return self._places.get(int(sequence))

    def token_id(self, sequence: int, position: int) -> int | None:
        """The id of one of the worst tokens; None where the log has none."""
        return self._token_ids.get((int(sequence), int(position)))

    @property
    def sequences(self) -> int:
        """Sequences read, also those without a token that counts."""
        return sum(file.sequences for file in self.files.values())

    @property
    def skipped_lines(self) -> int:
        return sum(file.skipped_lines for file in self.files.values())

    def _merge_step(self, step: int, sums: MismatchAccumulator) -> None:
        known = self._steps.get(step)
        total = MismatchAccumulator(summary=True) if known is None else MismatchAccumulator.from_bytes(known)
        total.merge(sums)
        self._steps[step] = total.to_bytes()

    # The worst

    def _locate(self, batch: LogBatch) -> None:
        """Notes where the worst tokens and sequences stand, as long as they are among the worst."""
        tokens, sequences = self.total.worst(), self.total.worst_sequences()
        wanted = np.union1d(tokens["id"], sequences["id"])
        for index in np.flatnonzero(np.isin(batch.ids, wanted)).tolist():
            sequence = int(batch.ids[index])
            name = batch.environments[batch.environment_of[index]] if batch.environments else ""
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

    def to_bytes(self) -> bytes:
        """The survey as bytes, for other processes and machines. Equal surveys are equal bytes."""
        blobs = [self.total.to_bytes(), *(self._steps[step] for step in sorted(self._steps)),
                 *self._sample.to_arrays()]
        about = json.dumps({
            "label": self.label, "exclude": self._exclude, "exact": self._exact, "steps": sorted(self._steps),
            "files": {str(index): asdict(self.files[index]) for index in sorted(self.files)},
            "header": {name: self.header[name] for name in sorted(self.header)},
            "places": [[each, *asdict(self._places[each]).values()] for each in sorted(self._places)],
            "token_ids": [[*pair, self._token_ids[pair]] for pair in sorted(self._token_ids)],
            "sizes": [len(blob) for blob in blobs],
        }).encode()
        body = b"".join([struct.pack("<IQ", _VERSION, len(about)), about, *blobs])
        return _MAGIC + hashlib.sha256(body).digest() + body

    @classmethod
    def from_bytes(cls, data: bytes) -> Survey:
        """The survey that `to_bytes` gave.

        Raises:
            BadDataError: the bytes are damaged or cut off. UnsupportedError: they are of a newer version.
        """
        head = len(_MAGIC) + 32
        body = memoryview(data)[head:]
        if data[: len(_MAGIC)] != _MAGIC or len(body) < 12:
            raise BadDataError("survey: these are not the bytes of a survey")
        version, size = struct.unpack_from("<IQ", body)
        if version > _VERSION:
            raise UnsupportedError(
                f"survey: written by a newer version (format {version}, this one reads {_VERSION}); update lockstep")
        if hashlib.sha256(body).digest() != data[len(_MAGIC): head]:
            raise BadDataError("survey: the bytes are damaged or cut off; make it again from the log")
        about = json.loads(bytes(body[12: 12 + size]))
        blobs, at = [], 12 + size
        for length in about["sizes"]:
            blobs.append(bytes(body[at: at + length]))
            at += length
        out = cls(about["label"], exclude_non_finite=about["exclude"], exact_quantiles=about["exact"])
        out.total = MismatchAccumulator.from_bytes(blobs[0])
        out._steps = dict(zip(about["steps"], blobs[1:], strict=False))
        out._sample = _Sample.from_arrays(blobs[1 + len(out._steps):])
        out.files = {int(index): LogFile(**file) for index, file in about["files"].items()}
        out.header = about["header"]
        out._places = {each: Place(*place) for each, *place in about["places"]}
        out._token_ids = {(sequence, position): token for sequence, position, token in about["token_ids"]}
        return out

    def __reduce__(self):
        return Survey.from_bytes, (self.to_bytes(),)


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
    out = Survey(label if label is not None else getattr(log, "label", ""),
                 exclude_non_finite=exclude_non_finite, exact_quantiles=exact_quantiles)
    for batch in log:
        if len(getattr(log, "sides", ())) == 1:
            raise LogError(f"has the log-probs of the {log.sides[0]} only, and nothing to compare them with: give the"
                           " other engine's log of the same sequences too (lockstep convert --trainer joins them)",
                           log.files[0].path)
        out.add(batch, threads=threads)
    if hasattr(log, "places"):
        out.finish(log)
    return out


def _joined(a: LogFile, b: LogFile) -> LogFile:
    """One file of which two parts were read: every line by one of them."""
    first = min((each for each in (a.first_skipped, b.first_skipped) if each), default="")
    return replace(a, sequences=a.sequences + b.sequences, skipped_lines=a.skipped_lines + b.skipped_lines,
                   first_skipped=first)


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
