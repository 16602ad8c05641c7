"""NumPy's .npz: padded arrays [B, T] with a mask, or packed arrays with where the sequences begin.

The columns are named as in `columns`; packed ones come with ``offsets`` [B + 1] (or ``cu_seqlens``) or
``lengths`` [B]. Members are read piece by piece out of the archive, so that neither a large file nor one that
unpacks to a huge one is held in memory. Objects, which are pickles, are refused.
"""

from __future__ import annotations

import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .columns import HEADER, resolve
from .files import LONGEST_LINE, WatchedFile
from .log import LogError
from .rows import BadRow, Rows, Wanted
from .tables import Ragged, check_kind, cut

ZIP = b"PK\x03\x04"
PER_TOKEN = ("trainer", "rollout", "mask", "token_ids")
OFFSETS, LENGTHS = ("offsets", "cu_seqlens"), ("lengths", "response_lengths", "input_lengths")


def recognises(head) -> bool:
    """Whether the file is a zip archive of .npy members."""
    if not head.magic.startswith(ZIP):
        return False
    try:
        with zipfile.ZipFile(head.path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, NotImplementedError):
        return True  # it begins as one: the reading tells what is wrong
    return bool(names) and all(name.endswith(".npy") for name in names)


def source(path: Path, wanted: Wanted, advance: Callable[[int], None] | None) -> NpzSource:
    """The sequences of one file."""
    return NpzSource(path, wanted, advance)


class _Member:
    """One array of the archive, read from its start to its end."""

    def __init__(self, archive: zipfile.ZipFile, name: str):
        self.name = name
        self._file = archive.open(name + ".npy")
        try:
            version = np.lib.format.read_magic(self._file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.shape, fortran, self.dtype = read(self._file)
        except (
            ValueError, EOFError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError,
        ) as error:
            raise BadRow(
                f"is no NumPy array ({str(error).splitlines()[0][:120] if str(error) else error!r})", name
            ) from None
        if self.dtype.hasobject:
            raise BadRow(
                "holds Python objects, which is a pickle, and pickles are never read, as they run"
                " code; save a"
                " padded array [B, T] with its mask, or one packed array with offsets",
                name,
            )
        if fortran and len(self.shape) > 1:
            raise BadRow(
                "is in Fortran order, which cannot be streamed; save np.ascontiguousarray of it", name
            )
        if any(extent < 0 for extent in self.shape):
            raise BadRow(f"has shape {self.shape}", name)

    def read(self, count: int) -> NDArray:
        """The next `count` values."""
        size = count * self.dtype.itemsize
        parts, missing = [], size
        while missing:
            part = self._file.read(missing)
            if not part:
                raise BadRow("ends before its shape says it does: the file is damaged", self.name)
            parts.append(part)
            missing -= len(part)
        return np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), self.dtype, count)

    def all(self) -> NDArray:
        count = int(np.prod(self.shape, dtype=object))
        if count * self.dtype.itemsize > LONGEST_LINE:
            raise BadRow(
                f"is larger than {LONGEST_LINE >> 20} MiB, which a value a sequence is not", self.name
            )
        return self.read(count).reshape(self.shape)

    def close(self) -> None:
        self._file.close()


class NpzSource:
    """Reads one archive, some sequences at a time."""

    unit = "row"
    null = "NaN"

    def __init__(self, path: Path, wanted: Wanted, advance: Callable[[int], None] | None):
        self.path, self._path, self._wanted, self._advance = str(path), path, wanted, advance
        self.fields: dict[str, str] = {}
        self.header: dict[str, Any] = {}
        self.bytes, self.sha256 = 0, ""
        self._members: dict[str, _Member] = {}

    def close(self) -> None:
        for member in self._members.values():
            member.close()
        self._members = {}

    def __iter__(self) -> Iterator[tuple[int, Rows | LogError]]:
        row = 1
        try:
            with zipfile.ZipFile(self._path) as archive:
                for first, columns, scalars in self._pieces(archive):
                    row = first
                    yield from cut(columns, scalars, self.fields, first, self._wanted, self.path)
        except BadRow as bad:
            yield row, LogError(bad.message, self.path, None, bad.field, "row")
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            OSError,
            NotImplementedError,
            RuntimeError,
        ) as error:
            yield (
                row,
                LogError(
                    f"the archive is damaged, or cut off, at or after row {row} ({str(error)[:160]}); copy"
                    " it again",
                    self.path,
                    None,
                    None,
                    "row",
                ),
            )
        self._hash()

    def _pieces(self, archive: zipfile.ZipFile) -> Iterator[tuple[int, dict[str, Ragged], dict[str, Any]]]:
        """(number of the first row, columns, values a sequence) of as many sequences as make a batch."""
        there = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
        columns = resolve(there, self._wanted)
        if columns is None:
            raise BadRow(
                "has no log-probs under a known name; say which arrays hold them (columns, --column"
                f" trainer=NAME --column rollout=NAME; arrays found: {', '.join(sorted(there))[:800]})"
            )
        self.fields.update(columns.names)
        names = self.fields
        for name in HEADER:
            if name in there:
                value = self._open(archive, name).all()
                if value.ndim == 0 and value.dtype.kind in "fiuU":
                    self.header[name] = value.item()
        tokens = {role: self._open(archive, names[role]) for role in PER_TOKEN if role in names}
        reference = tokens.get("trainer") or tokens["rollout"]
        for role, member in tokens.items():
            check_kind(role, member.dtype, member.name)
            if member.shape != reference.shape and not (role == "token_ids" and names[role] == "tokens"):
                raise BadRow(
                    f"has shape {list(member.shape)} but {reference.name} has {list(reference.shape)}",
                    member.name,
                )
        if len(reference.shape) == 2:
            count, width = reference.shape
            lengths = np.broadcast_to(np.int64(width), count)
        elif len(reference.shape) == 1:
            lengths = self._lengths(archive, there, reference)
            count = len(lengths)
        else:
            raise BadRow(
                f"has shape {list(reference.shape)} where [B, T], or [tokens] with offsets, is expected",
                reference.name,
            )
        scalars = {
            role: value
            for role in ("step", "id", "environment")
            if role in names
            for value in [self._scalar(archive, role, names[role], count)]
            if value is not None
        }
        start = 0
        while start < count:
            end, total = start, 0
            while end < count and (end == start or total < self._wanted.batch_tokens):
                total += int(lengths[end])
                end += 1
            if total * reference.dtype.itemsize > LONGEST_LINE:
                raise BadRow(f"row {start + 1} has {total} tokens, which is no sequence", reference.name)
            offsets = np.zeros(end - start + 1, np.int64)
            np.cumsum(lengths[start:end], out=offsets[1:])
            piece = {role: Ragged(member.read(total), offsets) for role, member in tokens.items()}
            yield start + 1, piece, {role: value[start:end] for role, value in scalars.items()}
            start = end

    def _open(self, archive: zipfile.ZipFile, name: str) -> _Member:
        if name not in self._members:
            self._members[name] = _Member(archive, name)
        return self._members[name]

    def _lengths(self, archive: zipfile.ZipFile, there: set[str], reference: _Member) -> NDArray[np.int64]:
        total = reference.shape[0]
        for name in (*OFFSETS, *LENGTHS):
            if name not in there:
                continue
            values = self._open(archive, name).all()
            if values.ndim != 1 or values.dtype.kind not in "iu":
                raise BadRow("is no array of integers with one dimension", name)
            values = values.astype(np.int64)
            lengths = np.diff(values) if name in OFFSETS else values
            if (
                (lengths < 0).any()
                or int(lengths.astype(object).sum()) != total
                or (name in OFFSETS and (len(values) == 0 or values[0] != 0))
            ):
                raise BadRow(f"does not cut {reference.name}, of {total} values, into sequences", name)
            return lengths
        raise BadRow(
            "has one dimension, and neither offsets, cu_seqlens nor lengths are there to cut it into"
            " sequences",
            reference.name,
        )

    def _scalar(self, archive: zipfile.ZipFile, role: str, name: str, count: int):
        values = self._open(archive, name).all()
        if values.ndim == 0 and role != "id":
            values = np.broadcast_to(values, count)
        if values.shape != (count,):
            raise BadRow(
                f"has shape {list(values.shape)} where [{count}], one value a sequence, is expected", name
            )
        if role == "step" or (role == "id" and values.dtype.kind in "iu"):
            if values.dtype.kind not in "iu":
                raise BadRow("holds no integers", name)
            return values.astype(np.uint64 if values.dtype == np.uint64 else np.int64)
        if values.dtype.kind != "U":
            if role == "environment":
                return None
            raise BadRow("holds neither text nor integers", name)
        return values.tolist()

    def _hash(self) -> None:
        with WatchedFile(self._path, self._advance) as file:
            file.drain()
            self.bytes, self.sha256 = file.count, file.hexdigest()
