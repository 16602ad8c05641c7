"""Parquet files and Arrow IPC files and streams, by pyarrow.

A row is a sequence, with a list a column; or, where the log-prob columns hold plain numbers, a row is a
token, and the rows of one sequence, told by the id column, stand together. The columns are named as in
`columns`. Record batches become NumPy arrays without a copy where their type is the right one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .columns import HEADER, MIXED, resolve
from .files import WatchedFile
from .log import LogError
from .rows import SIDES, BadRow, Rows, Wanted
from .tables import Ragged, check_kind, cut

PARQUET, FILE, STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
PER_TOKEN = ("trainer", "rollout", "mask", "token_ids", "position")
METADATA = b"lockstep"


def recognises(head) -> bool:
    """Whether the file begins as one of the three."""
    return head.magic.startswith((PARQUET, FILE, STREAM))


def source(path: Path, wanted: Wanted, advance: Callable[[int], None] | None) -> ArrowSource:
    """The sequences of one file."""
    return ArrowSource(path, wanted, advance)


class ArrowSource:
    """Reads one file, record batch by record batch."""

    unit = "row"
    null = "null or NaN"

    def __init__(self, path: Path, wanted: Wanted, advance: Callable[[int], None] | None):
        try:
            import pyarrow
            import pyarrow.compute
        except ModuleNotFoundError as missing:
            raise LogError(
                "reading Parquet and Arrow needs pyarrow: pip install 'lockstep[parquet]'", str(path)
            ) from missing
        self._pa = pyarrow
        self.path, self._path, self._wanted, self._advance = str(path), path, wanted, advance
        self.fields: dict[str, str] = {}
        self.header: dict[str, Any] = {}
        self.bytes, self.sha256 = 0, ""
        self._closers: list[Any] = []
        self._sequences_read = 0

    def close(self) -> None:
        for each in self._closers:
            each.close()
        self._closers = []

    def __iter__(self) -> Iterator[tuple[int, Rows | LogError]]:
        row = 1
        try:
            schema, batches = self._open()
            self._resolve(schema)
            names = self.fields
            token_rows = not self._is_list(schema.field(names.get("trainer") or names["rollout"]).type)
            read = self._tokens if token_rows else self._sequences
            for row, item in read(batches):
                yield row, item
        except BadRow as bad:
            yield 1, LogError(bad.message, self.path, None, bad.field, "row")
        except (self._pa.ArrowException, OSError, ValueError) as error:
            # Damage: what comes before it has been read.
            yield (
                row,
                LogError(
                    f"is damaged, or cut off, after row {row} ({_first_line(str(error))}); copy it again",
                    self.path,
                    None,
                    None,
                    "row",
                ),
            )
        except MemoryError:
            yield (
                row,
                LogError(
                    "a record batch does not fit in memory; write it with smaller row groups",
                    self.path,
                    None,
                    None,
                    "row",
                ),
            )
        self._hash()

    def _open(self):
        """(schema, record batches of the columns that are needed)."""
        pa, wanted = self._pa, self._wanted
        with WatchedFile(self._path, None) as file:
            magic = bytearray(6)
            file.readinto(magic)
        if magic.startswith(PARQUET):
            import pyarrow.parquet

            file = pyarrow.parquet.ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 20)
            self._closers.append(file)
            schema = file.schema_arrow
            columns = self._needed(schema)
            rows, meta = max(1, file.metadata.num_rows), file.metadata
            parts = [c for c in range(meta.num_columns) if f"{file.schema.column(c).path}.".startswith(f"{columns[0]}.")]
            values = 0
            for group in range(meta.num_row_groups):
                # Asked of a chunk whose statistics do not fit, pyarrow's metadata end the process (found by fuzzing). Reading
                # a row of it is an error instead: what is before it is read, and it comes again then.
                try:
                    next(file.iter_batches(1, row_groups=[group], columns=columns[:1], use_threads=False), None)
                except (pa.ArrowException, OSError):
                    break
                values += sum(meta.row_group(group).column(c).num_values for c in parts)
            size = max(1, int(wanted.batch_tokens * rows / max(values, 1)))
            return schema, file.iter_batches(
                batch_size=min(size, 1 << 20), columns=columns, use_threads=False
            )
        mapped = pa.memory_map(self.path)
        self._closers.append(mapped)
        if magic.startswith(FILE):
            reader = pa.ipc.open_file(mapped)
            self._needed(reader.schema)
            return reader.schema, self._validated(
                reader.get_batch(i) for i in range(reader.num_record_batches)
            )
        reader = pa.ipc.open_stream(mapped)
        self._needed(reader.schema)
        return reader.schema, self._validated(reader)

    def _validated(self, batches) -> Iterator[Any]:
        """The columns that are needed, once their offsets and buffers were found to fit: IPC does not look."""
        names = [*dict.fromkeys(self.fields.values())]
        for batch in batches:
            chosen = batch.select([name for name in (*names, *HEADER) if name in batch.schema.names])
            chosen.validate(full=True)
            yield chosen

    def _needed(self, schema) -> list[str]:
        columns = resolve(schema.names, self._wanted)
        if columns is None:
            found = ", ".join(map(repr, schema.names[:16]))
            raise BadRow(
                "has no log-probs under a known name; say which columns hold them (columns,"
                f" --column trainer=NAME --column rollout=NAME; columns found: {found[:800]})"
            )
        self.fields.update(columns.names)
        return [*columns.names.values(), *(name for name in HEADER if name in schema.names)]

    def _resolve(self, schema) -> None:
        self._needed(schema)
        text = (schema.metadata or {}).get(METADATA)
        if text is not None:
            values = json.loads(text)
            if isinstance(values, dict):
                self.header.update(
                    {name: value for name, value in values.items() if isinstance(value, (str, int, float))}
                )

    def _sequences(self, batches) -> Iterator[tuple[int, Rows | LogError]]:
        row = 1
        for batch in batches:
            for start in self._slices(batch):
                yield from cut(*self._columns(start), self.fields, row, self._wanted, self.path)
                row += start.num_rows

    def _slices(self, batch) -> Iterator[Any]:
        """A record batch in pieces of about batch_tokens, as an IPC file may have one of any size."""
        name = self.fields.get("trainer") or self.fields["rollout"]
        lengths = self._lengths(batch.column(batch.schema.get_field_index(name)))
        ends = np.cumsum(lengths)
        start = 0
        while start < batch.num_rows:
            base = ends[start - 1] if start else 0
            end = int(np.searchsorted(ends, base + self._wanted.batch_tokens, side="left")) + 1
            yield batch.slice(start, min(end, batch.num_rows) - start)
            start = end

    def _columns(self, batch) -> tuple[dict[str, Ragged], dict[str, Any]]:
        arrays, scalars = {}, {}
        for role, name in self.fields.items():
            column = batch.column(batch.schema.get_field_index(name))
            if role in PER_TOKEN:
                if role != "position":
                    arrays[role] = self._ragged(column, role, name)
            else:
                scalars[role] = self._scalar(column, role, name)
        self._read_header(batch)
        return arrays, {role: value for role, value in scalars.items() if value is not None}

    def _read_header(self, batch) -> None:
        for name in HEADER:
            if name in batch.schema.names:
                column = batch.column(batch.schema.get_field_index(name))
                values = [
                    value
                    for value in self._pa.compute.unique(column).to_pylist()
                    if isinstance(value, (str, int, float))
                ]
                if values:
                    self.header[name] = values[0] if len(values) == 1 else MIXED

    def _is_list(self, kind) -> bool:
        types = self._pa.types
        return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)

    def _lengths(self, column) -> NDArray[np.int64]:
        if self._pa.types.is_fixed_size_list(column.type):
            return np.full(len(column), column.type.list_size, np.int64)
        return np.diff(column.offsets.to_numpy()).astype(np.int64)

    def _ragged(self, column, role: str, name: str) -> Ragged:
        if not self._is_list(column.type):
            raise BadRow(f"holds {column.type} where a list, one value a token, is expected", name)
        null = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
        if self._pa.types.is_fixed_size_list(column.type):
            size = column.type.list_size
            values = column.values.slice(column.offset * size, len(column) * size)
            offsets = np.arange(len(column) + 1, dtype=np.int64) * size
        else:
            offsets = column.offsets.to_numpy().astype(np.int64)
            values = column.values.slice(offsets[0], offsets[-1] - offsets[0])
            offsets = offsets - offsets[0]
        array, holes = self._numbers(values, role, name)
        return Ragged(array, offsets, null, holes)

    def _numbers(self, values, role: str, name: str) -> tuple[NDArray, NDArray | None]:
        """(NumPy array, which are null where NaN cannot say so)."""
        types, kind = self._pa.types, values.type
        if types.is_dictionary(kind):
            values = values.dictionary_decode()
            kind = values.type
        if not (types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind)):
            raise BadRow(f"holds {kind} where numbers are expected", name)
        holes = None
        if values.null_count:
            if types.is_floating(kind):
                return values.to_numpy(zero_copy_only=False), None
            holes = values.is_null().to_numpy(zero_copy_only=False)
            if role in SIDES:
                values = values.cast(self._pa.float64())
            else:
                values = values.fill_null(False if types.is_boolean(kind) else 0)
        array = values.to_numpy(zero_copy_only=False)
        check_kind(role, array.dtype, name)
        return array, None if role in SIDES else holes

    def _scalar(self, column, role: str, name: str):
        types, kind = self._pa.types, column.type
        if types.is_dictionary(kind):
            column = column.dictionary_decode()
            kind = column.type
        text = types.is_string(kind) or types.is_large_string(kind)
        if role == "environment":
            return [value if isinstance(value, str) else "" for value in column.to_pylist()] if text else None
        if types.is_null(kind) or (role == "step" and column.null_count == len(column)):
            return None
        if column.null_count:
            if role == "step":
                column = column.fill_null(-1)
            else:
                raise BadRow("is null in some rows, though other sequences have an id", name)
        if role == "id" and text:
            return column.to_pylist()
        if not types.is_integer(kind):
            raise BadRow(
                f"holds {kind} where {'text or integers' if role == 'id' else 'integers'} are expected", name
            )
        values = column.to_numpy()
        return values.astype(np.uint64 if kind == self._pa.uint64() else np.int64)

    def _tokens(self, batches) -> Iterator[tuple[int, Rows | LogError]]:
        """A token a row: sequences are runs of one id (and step); the last of a batch may go on."""
        if "id" not in self.fields:
            raise BadRow(
                "has a token a row, and no column that tells the sequences apart; say which it is (columns,"
                " --column id=NAME), or write a sequence a row"
            )
        held, row = None, 1
        for batch in batches:
            needed = [batch.column(batch.schema.get_field_index(name)) for name in self.fields.values()]
            self._read_header(batch)
            table = self._pa.RecordBatch.from_arrays(needed, names=list(self.fields.values()))
            if held is not None and held.num_rows:
                table = self._pa.concat_batches([held, table])
            starts = self._runs(table)
            cut_at = int(starts[-1]) if len(starts) else 0
            if cut_at:
                yield from self._token_rows(table.slice(0, cut_at), starts, row)
                row += cut_at
            held = table.slice(cut_at)
        if held is not None and held.num_rows:
            starts = self._runs(held)
            yield from self._token_rows(held, np.append(starts, held.num_rows), row)

    def _runs(self, table) -> NDArray[np.int64]:
        """Where runs begin."""
        if table.num_rows == 0:
            return np.zeros(0, np.int64)
        change = np.zeros(table.num_rows, np.bool_)
        change[0] = True
        for role in ("id", "step"):
            if role in self.fields:
                column = table.column(self.fields[role])
                if self._pa.types.is_dictionary(column.type):
                    column = column.dictionary_decode()
                same = self._pa.compute.equal(column.slice(1), column.slice(0, len(column) - 1))
                change[1:] |= ~same.fill_null(True).to_numpy(zero_copy_only=False)
        return np.flatnonzero(change)

    def _token_rows(self, table, starts: NDArray, first_row: int) -> Iterator[tuple[int, Rows | LogError]]:
        """The sequences of whole runs; numbered by their first token's row."""
        offsets = starts.astype(np.int64)
        arrays, scalars = {}, {}
        heads = self._pa.array(offsets[:-1])
        for role, name in self.fields.items():
            column = table.column(name)
            if role == "position":
                position = column.to_numpy(zero_copy_only=False)
                back = np.flatnonzero(np.diff(position) <= 0) + 1
                back = back[~np.isin(back, offsets)]
                if len(back):
                    raise BadRow(
                        f"row {first_row + int(back[0])} is not after the row before it in the same sequence:"
                        " sort the table by sequence and position",
                        name,
                    )
            elif role in PER_TOKEN:
                values, holes = self._numbers(column, role, name)
                arrays[role] = Ragged(values, offsets, None, holes)
            else:
                scalars[role] = self._scalar(column.take(heads), role, name)
        scalars = {role: value for role, value in scalars.items() if value is not None}
        first, self._sequences_read = self._sequences_read, self._sequences_read + len(offsets) - 1
        for _, item in cut(arrays, scalars, self.fields, first, self._wanted, self.path):
            if isinstance(item, LogError):
                line = first_row + int(offsets[item.line - first])
                yield line, LogError(item.message, self.path, line, item.field, "row")
                continue
            item.lines = first_row + offsets[np.asarray(item.lines) - first]
            yield int(item.lines[0]), item

    def _hash(self) -> None:
        with WatchedFile(self._path, self._advance) as file:
            file.drain()
            self.bytes, self.sha256 = file.count, file.hexdigest()


def _first_line(text: str) -> str:
    return text.splitlines()[0][:160] if text else "no reason given"
