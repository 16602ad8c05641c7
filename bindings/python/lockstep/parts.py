"""What is kept of a log, read in parts: the one home of map and merge.

A part is read by one process, and parts are merged: `Survey` for a diagnosis, `StepSums` for the early warning,
`SequenceSums` for a certificate, `CorrectionHistograms` for advice. What they hold does not depend on how the log was
cut between its sequences, nor on the order of merging, so several processes (`lockstep.parallel`) or machines
(`lockstep.ray`) give the bytes that one gives.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ._errors import BadDataError, InvalidArgumentError, UnsupportedError
from ._memory import give_back_memory

if TYPE_CHECKING:  # at run time only where a log is read: the library itself needs no reader
    from .logs import LogBatch, LogFile
    from .logs.join import Batches

P = TypeVar("P", bound="Part")


class Part:
    """What is kept of a part of a log, and of which files it was read.

    Args:
        label: what the log is called in tables and pictures.
        exclude_non_finite: drop and count tokens whose log-prob is NaN or infinite, instead of raising.
    """

    MAGIC: ClassVar[bytes]
    VERSION: ClassVar[int] = 1
    #: Whether token ids are worth reading.
    TOKEN_IDS: ClassVar[bool] = False

    def __init__(self, label: str = "", *, exclude_non_finite: bool = False) -> None:
        self.label, self.exclude_non_finite = label, exclude_non_finite
        self.files: dict[int, LogFile] = {}
        """The files, by their index in the whole log."""
        self.header: dict[str, Any] = {}
        """What the log says of how it was made."""

    # What each kind has

    def add_batch(self, batch: LogBatch, *, threads: int = 0) -> None:
        """Takes in some sequences of the log.

        Raises:
            NonFiniteError: a token that counts has a log-prob that is not finite; nothing was taken in.
        """
        raise NotImplementedError

    def merge(self: P, other: P) -> None:
        """Adds what another part of the same log gave. `other` stays as it is."""
        if type(other) is not type(self):
            raise InvalidArgumentError(f"other: {type(other).__name__}; give a {type(self).__name__}")
        from .logs.columns import MIXED

        for index, file in other.files.items():
            self.files[index] = _joined(self.files[index], file) if index in self.files else file
        for name, value in other.header.items():
            self.header[name] = value if self.header.get(name, value) == value else MIXED

    def _save(self) -> tuple[dict[str, Any], list[bytes]]:
        """The state as JSON's types, without "label", "exclude", "files", "header", "sizes", and as bytes."""
        raise NotImplementedError

    def _load(self, about: dict[str, Any], blobs: list[bytes]) -> None:
        """Takes over what `_save` gave."""
        raise NotImplementedError

    # What they share

    @property
    def non_finite(self) -> str:
        """As `lockstep.mismatch` takes it."""
        return "exclude" if self.exclude_non_finite else "strict"

    @property
    def skipped_lines(self) -> int:
        return sum(file.skipped_lines for file in self.files.values())

    def read(self: P, log: Batches | Iterable[LogBatch], *, threads: int = 0) -> P:
        """Takes in a log, or a part of one. Returns itself.

        Args:
            log: what `lockstep.logs.open_log` returned, or batches from elsewhere.
            threads: 0 for one for each processor; the result does not depend on it.

        Raises:
            LogError: a sequence cannot be read.
            NonFiniteError: a token that counts has a log-prob that is not finite.
        """
        for index, batch in enumerate(log):
            if index % 16 == 15:
                give_back_memory()  # what batches leave between each other adds up over hours
            sides = getattr(log, "sides", ())
            if len(sides) == 1:
                from .logs import LogError

                raise LogError(f"has the log-probs of the {sides[0]} only, and nothing to compare them with: give the"
                               " other engine's log of the same sequences too (lockstep convert --trainer joins them)",
                               log.files[0].path)
            self.add_batch(batch, threads=threads)
        if hasattr(log, "files"):
            self.finish(log)
        return self

    def finish(self, log: Any) -> None:
        """Takes over what a reader knows once it has read everything: files and header."""
        self.label = self.label or log.label
        self.files.update(zip(getattr(log, "places", range(len(log.files))), log.files, strict=True))
        self.header.update(getattr(log, "header", {}))

    def to_bytes(self) -> bytes:
        """All it holds, checksummed, for other processes and machines. Equal parts are equal bytes."""
        state, blobs = self._save()
        about = json.dumps({
            "label": self.label, "exclude": self.exclude_non_finite,
            "files": {str(index): asdict(self.files[index]) for index in sorted(self.files)},
            "header": {name: self.header[name] for name in sorted(self.header)},
            **state, "sizes": [len(blob) for blob in blobs],
        }).encode()
        body = b"".join([struct.pack("<IQ", self.VERSION, len(about)), about, *blobs])
        return self.MAGIC + hashlib.sha256(body).digest() + body

    @classmethod
    def from_bytes(cls: type[P], data: bytes) -> P:
        """What `to_bytes` gave.

        Raises:
            BadDataError: the bytes are damaged or cut off, or of something else.
            UnsupportedError: they are of a newer version.
        """
        from .logs import LogFile

        kind = cls.__name__
        head = len(cls.MAGIC) + 32
        body = memoryview(data)[head:]
        if data[: len(cls.MAGIC)] != cls.MAGIC or len(body) < 12:
            raise BadDataError(f"{kind}: these are not its bytes")
        version, size = struct.unpack_from("<IQ", body)
        if version > cls.VERSION:
            raise UnsupportedError(f"{kind}: written by a newer version (format {version}, this one reads"
                                   f" {cls.VERSION}); update lockstep")
        if hashlib.sha256(body).digest() != data[len(cls.MAGIC) : head]:
            raise BadDataError(f"{kind}: the bytes are damaged or cut off; make it again from the log")
        about = json.loads(bytes(body[12 : 12 + size]))
        blobs, at = [], 12 + size
        for length in about["sizes"]:
            blobs.append(bytes(body[at : at + length]))
            at += length
        out = cls(about["label"], exclude_non_finite=about["exclude"])
        out.files = {int(index): LogFile(**file) for index, file in about["files"].items()}
        out.header = about["header"]
        out._load(about, blobs)
        return out

    def __reduce__(self) -> tuple:
        return type(self).from_bytes, (self.to_bytes(),)


def _joined(a: LogFile, b: LogFile) -> LogFile:
    """One file of which two parts were read: every line by one of them."""
    from .logs.files import natural

    first = min((each for each in (a.first_skipped, b.first_skipped) if each), default="", key=natural)
    return replace(a, sequences=a.sequences + b.sequences, skipped_lines=a.skipped_lines + b.skipped_lines,
                   first_skipped=first)
