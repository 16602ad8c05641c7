"""Opening a log: recognising its format, and reading it as batches of whole sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .columns import MIXED
from .files import find_files, step_of
from .formats import FORMATS, Format, recognise
from .identity import PLACE, Seen, identity
from .log import LogBatch, LogError, LogFile
from .rows import SIDES, Rows, Wanted

ROLES = ("trainer", "rollout", "mask", "token_ids", "id", "step", "environment", "position")
Advance = Callable[[int], None]


def open_log(
    paths: str | Path | Iterable[str | Path],
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    side: str = "rollout",
    label: str | None = None,
    skip_bad: bool = False,
    exclude_non_finite: bool = False,
    token_ids: bool = True,
    mixed: bool = False,
    repeated: bool = False,
    batch_tokens: int = 1 << 18,
    shard: tuple[int, int] = (0, 1),
    file_indices: Sequence[int] | None = None,
    advance: Advance | None = None,
) -> LogStream:
    """Opens a rollout log of any format, to be read as batches of whole sequences in constant memory.

    Args:
        paths: a file; a folder, with the files of all ranks of one step, or of all steps; or several of
            either, which together are one log.
        format: the name of a format, where what the files hold is not to be relied on.
        columns: names of the log's own columns, for what Lockstep does not know by name: the keys are
            "trainer", "rollout", "mask", "token_ids", "id", "step", "environment" and, in tables with a token
            a row, "position".
        side: "trainer" or "rollout": whose log-probs they are, where a log has those of one engine and does
            not say whose.
        label: what the log is called in tables and pictures; by default the first path's name.
        skip_bad: leave out sequences that cannot be read and count them, instead of raising.
        exclude_non_finite: accept NaN, infinity or null at tokens that count; consumers drop and count them.
        token_ids: read the token ids where the log has them.
        mixed: accept a log whose sequences were sampled at several temperatures or the like.
        repeated: accept sequences that are there more than once; each time counts.
        batch_tokens: where a batch ends: after the sequence that reaches so many tokens.
        shard: (i, n): the i-th of n parts of the log. All parts together are the log, with the same ids;
        whole
            files where there are enough, else every n-th line. Sequences that are there twice, and mixed
            recipes, are looked for within a part.
        file_indices: the place of each of the files in the whole log, where `paths` is a part of it.
        advance: called with the number of bytes of each read from disk, for a progress bar.

    Raises:
        LogError: nothing is there, the format is not recognised, or, while reading, naming file, line and
            field, for the first sequence that cannot be read. The batches before it have come by then.

    Example:
        >>> from lockstep.logs import open_log
        >>> log = open_log("examples/data/smollm2-135m.bf16.jsonl.gz", batch_tokens=4096)
        >>> [(batch.sequences, batch.tokens) for batch in log][:2]
        [(36, 4128), (28, 4300)]
    """
    files = find_log_files(paths)
    for role in columns or {}:
        if role not in ROLES:
            raise ValueError(f"columns: {role!r} is none of {', '.join(ROLES)}")
    if side not in SIDES:
        raise ValueError(f"side is {side!r}; give 'trainer' or 'rollout'")
    if format is not None and format not in FORMATS:
        raise ValueError(f"format is {format!r}; give one of {', '.join(FORMATS)}")
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens is {batch_tokens}; give a positive number")
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"shard is {shard}; give (i, n) with 0 <= i < n")
    places = range(len(files)) if file_indices is None else file_indices
    if len(places) != len(files):
        raise ValueError(f"file_indices has {len(places)} entries for {len(files)} files")
    parts = list(zip(places, files, strict=True))
    split = count
    if len(files) >= count:
        parts, index, split = parts[index::count], 0, 1
    wanted = Wanted(dict(columns or {}), side, token_ids, batch_tokens, index, split)
    first = paths if isinstance(paths, (str, Path)) else next(iter(paths))
    return LogStream(
        label if label is not None else Path(first).name,
        parts,
        FORMATS[format] if format is not None else None,
        wanted,
        skip_bad=skip_bad,
        exclude_non_finite=exclude_non_finite,
        mixed=mixed,
        repeated=repeated,
        advance=advance,
    )


def find_log_files(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """All files of one log: those of each path, as `find_files` finds them, in the order of the paths."""
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    files = [file for path in given for file in find_files(path)]
    if not files:
        raise LogError("no files were given", str(paths))
    return files


@dataclass
class _Tally:
    """A file while it is read."""

    path: str
    place: int
    unit: str = "line"
    null: str = "null"
    fields: Mapping[str, str] = field(default_factory=dict)
    sequences: int = 0
    skipped: int = 0
    first: tuple[float, str] = (np.inf, "")
    bytes: int = 0
    sha256: str = ""

    def skip(self, line: int | None, error: LogError, lines: int = 1) -> None:
        self.skipped += lines
        self.first = min(self.first, (-1 if line is None else line, str(error)))

    def file(self) -> LogFile:
        return LogFile(self.path, self.bytes, self.sha256, self.sequences, self.skipped, self.first[1])


class LogStream:
    """A log of any format, which `open_log` opened, iterable as `LogBatch`es; each iteration reads it anew."""

    def __init__(
        self,
        label: str,
        files: list[tuple[int, Path]],
        format: Format | None,
        wanted: Wanted,
        *,
        skip_bad: bool,
        exclude_non_finite: bool,
        mixed: bool,
        repeated: bool,
        advance: Advance | None,
    ):
        self.label = label
        self._paths, self._wanted = files, wanted
        self._skip_bad, self._exclude, self._mixed = skip_bad, exclude_non_finite, mixed
        self._repeated = repeated
        self._advance = advance
        self._formats: dict[Path, Format] = {}
        self._forced = format
        self._tallies: list[_Tally] = []
        self.header: dict[str, Any] = {}
        """What the log says of how it was made: model, engine, temperature, top_p, logprobs_mode…"""
        self.sides: tuple[str, ...] = ()
        """Whose log-probs the log has, ("trainer", "rollout") or one of them; known after the first batch."""
        self.has_ids = False
        """Whether the sequences have ids of their own, not only places; known after the first batch."""
        for _, path in files:  # so that what cannot be read at all is told now
            self._format_of(path)
            if self._formats:
                break

    @property
    def format(self) -> str:
        """The name of the format."""
        known = [self._forced] if self._forced is not None else [*self._formats.values(), FORMATS["jsonl"]]
        return known[0].name

    @property
    def files(self) -> tuple[LogFile, ...]:
        """The files read so far; sizes and hashes are those of the whole files once they have been read."""
        return tuple(tally.file() for tally in self._tallies)

    @property
    def places(self) -> tuple[int, ...]:
        """The index of each of `files` in the whole log."""
        return tuple(tally.place for tally in self._tallies)

    @property
    def sequences(self) -> int:
        return sum(tally.sequences for tally in self._tallies)

    @property
    def skipped_lines(self) -> int:
        return sum(tally.skipped for tally in self._tallies)

    def __iter__(self) -> Iterator[LogBatch]:
        self._tallies, self.header, self.sides = [], {}, ()
        packer = _Packer(self)
        for place, path in self._paths:
            tally = _Tally(str(path), place)
            self._tallies.append(tally)
            format = self._format_of(path)
            step = max(step_of(path.name), step_of(path.parent.name))
            source = format.source(path, replace(self._wanted, step=step), self._advance)
            tally.unit, tally.null, tally.fields = source.unit, source.null, source.fields
            try:
                for line, rows in source:
                    if isinstance(rows, LogError):
                        if rows.line is None and line % self._wanted.parts != self._wanted.part:
                            continue  # of the file as a whole: one part tells of it
                        error, lines = rows, 1
                    else:
                        error, lines = packer.agrees(rows, source.header, tally, line), rows.lines
                    if error is not None:
                        if not self._skip_bad:
                            yield from packer.flush()
                            raise error
                        tally.skip(error.line, error, len(np.unique(lines)))
                    elif packer.add(rows, tally):
                        yield from packer.flush()
            finally:
                source.close()
                tally.bytes, tally.sha256 = source.bytes, source.sha256
        yield from packer.flush()

    def _format_of(self, path: Path) -> Format:
        """The format of a file; that of the files before it."""
        if self._forced is not None:
            return self._forced
        if path not in self._formats:
            format = recognise(path, self._wanted)
            if format is None:  # a rank that had no sequences, or that no line can be read of
                return next(iter(self._formats.values()), FORMATS["jsonl"])
            for other, known in self._formats.items():
                if known is not format:
                    raise LogError(
                        f"is {format.title}, but {other} is {known.title}: the files of one log have"
                        " one format; give those of one",
                        str(path),
                    )
            self._formats[path] = format
        return self._formats[path]


class _Packer:
    """Collects rows, checks them, and packs them into batches."""

    def __init__(self, reader: LogStream):
        self._reader = reader
        self._seen = Seen()
        self._environments: dict[str, int] = {}
        self._rows: list[tuple[Rows, _Tally]] = []
        self._tokens = 0

    def agrees(self, rows: Rows, header: Mapping[str, Any], tally: _Tally, line: int) -> LogError | None:
        """What is wrong with rows that do not fit those before, if anything."""
        reader = self._reader
        sides = tuple(side for side in SIDES if getattr(rows, side) is not None)
        if not reader.sides:
            reader.sides, reader.has_ids = sides, rows.ids is not None
        elif sides != reader.sides:
            return LogError(
                f"has the log-probs of {' and '.join(sides)}, but what comes before has those of"
                f" {' and '.join(reader.sides)}",
                tally.path,
                line,
                unit=tally.unit,
            )
        for name, value in header.items():
            known = reader.header.setdefault(name, value)
            if value == MIXED or (known != value and known != MIXED and (known == known or value == value)):
                if not reader._mixed:
                    return LogError(
                        f"is {value!r}, but {known!r} before: the figures would be of several policies"
                        " at once; split the log, or accept that (mixed)",
                        tally.path,
                        line,
                        name,
                        tally.unit,
                    )
                reader.header[name] = MIXED
        return None

    def add(self, rows: Rows, tally: _Tally) -> bool:
        """Takes rows; True when there is enough for a batch."""
        self._rows.append((rows, tally))
        self._tokens += len(rows.mask)
        return self._tokens >= self._reader._wanted.batch_tokens

    def flush(self) -> Iterator[LogBatch]:
        """The batch of what was taken, without bad sequences, which are counted, or raised after it."""
        taken, self._rows, self._tokens = self._rows, [], 0
        if not taken:
            return
        batch = self._pack(taken)
        counts = [len(rows.lengths) for rows, _ in taken]
        bad, tell = self._bad(batch)
        tally_of = np.repeat(np.arange(len(taken)), counts)
        if len(bad) == 0:
            good = batch
        else:
            if not self._reader._skip_bad:
                bad = bad[:1]
            keep = np.ones(batch.sequences, np.bool_)
            keep[bad] = False
            if not self._reader._skip_bad:
                keep[bad[0] :] = False
            good = batch.take(keep)
            tally_of = tally_of[keep]
        for index, count in zip(*np.unique(tally_of, return_counts=True), strict=True):
            taken[index][1].sequences += int(count)
        errors = []
        for sequence in bad:
            tally = taken[int(np.searchsorted(np.cumsum(counts), sequence, side="right"))][1]
            errors.append(tell(int(sequence), tally))
            if self._reader._skip_bad:
                tally.skip(errors[-1].line, errors[-1])
        yield from good.pieces(self._reader._wanted.batch_tokens)
        if errors and not self._reader._skip_bad:
            raise errors[0]

    def _pack(self, taken: list[tuple[Rows, _Tally]]) -> LogBatch:
        all_rows = [rows for rows, _ in taken]
        lengths = _gather((rows.lengths for rows in all_rows), np.int64)
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        columns = {}
        for side in SIDES:
            values = [getattr(rows, side) for rows in all_rows]
            columns[side] = (
                np.full(offsets[-1], np.nan, np.float32) if values[0] is None else _gather(values, np.float32)
            )
        lines = _gather((rows.lines for rows in all_rows), np.int64)
        counts = [len(rows.lengths) for rows in all_rows]
        file_of = np.repeat(np.array([tally.place for _, tally in taken], np.int32), counts)
        token_ids = None
        if all(rows.token_ids is not None for rows in all_rows):
            token_ids = _gather((rows.token_ids for rows in all_rows), np.int32)
        names = [name for rows in all_rows for name in rows.environments or [""] * len(rows.lengths)]
        for name in dict.fromkeys(names):
            self._environments.setdefault(name, len(self._environments))
        environment_of = np.array([self._environments[name] for name in names], np.int32)
        return LogBatch(
            trainer=columns["trainer"],
            rollout=columns["rollout"],
            mask=_gather((rows.mask for rows in all_rows), np.bool_),
            offsets=offsets,
            ids=_ids(all_rows, lines, file_of),
            steps=_gather((rows.steps for rows in all_rows), np.int64),
            token_ids=token_ids,
            lines=lines,
            file_of=file_of,
            environment_of=environment_of,
            environments=tuple(self._environments),
        )

    def _bad(self, batch: LogBatch) -> tuple[NDArray, Callable[[int, _Tally], LogError]]:
        """The sequences of a batch that cannot stand, and how to tell it of one of them."""
        bad = np.zeros(batch.sequences, np.bool_)
        first: dict[int, tuple[str, int]] = {}
        if not self._reader._exclude:
            for side in self._reader.sides:
                at = np.flatnonzero(~np.isfinite(getattr(batch, side)) & batch.mask)
                sequences, where = np.unique(
                    np.searchsorted(batch.offsets, at, side="right") - 1, return_index=True
                )
                bad[sequences] = True
                for sequence, token in zip(sequences.tolist(), at[where].tolist(), strict=True):
                    first.setdefault(sequence, (side, token))
        again = np.zeros(batch.sequences, np.bool_)
        if not self._reader._repeated:
            again[~bad] = self._seen.add(batch.ids[~bad])

        def tell(sequence: int, tally: _Tally) -> LogError:
            line = int(batch.lines[sequence])
            if sequence not in first:
                return LogError(
                    "is the same sequence as one before, by its id: the log holds it twice",
                    tally.path,
                    line,
                    tally.fields.get("id"),
                    tally.unit,
                )
            side, token = first[sequence]
            value = getattr(batch, side)[token]
            what = tally.null if np.isnan(value) else "infinite, or beyond float32"
            return LogError(
                f"token {token - int(batch.offsets[sequence])} counts but is {what}: find out why a"
                " sampled token has no finite log-prob, or exclude such tokens",
                tally.path,
                line,
                tally.fields.get(side, side),
                tally.unit,
            )

        return np.flatnonzero(bad | again), tell


def _gather(parts: Iterable, dtype: type) -> NDArray:
    arrays = [np.asarray(part, dtype) for part in parts]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _ids(all_rows: list[Rows], lines: NDArray, file_of: NDArray) -> NDArray[np.uint64]:
    """The formats' own ids, and places where there are none."""
    own = [rows.ids for rows in all_rows]
    if all(ids is not None for ids in own):
        return _gather(own, np.uint64)
    # Sequences of one line stand together, and are told by their number in it.
    first = np.ones(len(lines), np.bool_)
    first[1:] = (np.diff(lines) != 0) | (np.diff(file_of) != 0)
    starts = np.flatnonzero(first)
    within = np.arange(len(lines)) - np.repeat(starts, np.diff(np.append(starts, len(lines))))
    ids = identity(PLACE, file_of.astype(np.uint64), lines.astype(np.uint64), within.astype(np.uint64))
    start = 0
    for rows in all_rows:
        if rows.ids is not None:
            ids[start : start + len(rows.lengths)] = rows.ids
        start += len(rows.lengths)
    return ids
