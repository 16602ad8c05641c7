"""Writing a log that was read: as Lockstep's own log, or as Parquet, Arrow or JSON lines with its columns."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._library import LOG_HAS_TOKEN_IDS
from .._log_file import LogReader, LogRecords, LogWriter
from .join import Batches
from .log import LogBatch
from .own import header_fields
from .rows import SIDES

try:
    from orjson import OPT_SERIALIZE_NUMPY, dumps

    def _dumps(value: dict) -> bytes:
        return dumps(value, option=OPT_SERIALIZE_NUMPY)
except ModuleNotFoundError:

    def _dumps(value: dict) -> bytes:
        def plain(array: np.ndarray) -> list:
            # The shortest decimal of the float32, as orjson writes it.
            return (
                [None if v != v or v in (np.inf, -np.inf) else float(str(v)) for v in array]
                if array.dtype == np.float32
                else array.tolist()
            )

        return json.dumps(value, default=plain, separators=(",", ":")).encode()


SUFFIXES = (".lockstep", ".jsonl", ".jsonl.gz", ".parquet", ".arrow", ".feather")


def write_log(log: Batches, path: str | Path) -> int:
    """Writes a log, batch by batch; a name of SUFFIXES says the format. Returns the number of sequences.

    Columns: ``lockstep_id``, ``step``, ``env_name`` (not in ``.lockstep``), ``token_ids``, ``mask``, ``trainer``,
    ``rollout``; what the log says of how it was made goes into the header or the table's metadata, or, in
    JSON, beside each sequence. Reading it gives the same log, bit for bit; an infinite or NaN log-prob becomes
    null in JSON. The file takes its name when it is complete.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{path.name} is none of {', '.join(SUFFIXES)}")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    write = _own if path.suffix == ".lockstep" else _json if ".jsonl" in path.suffixes else _table
    try:
        count = write(log, part, path)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return count


def _own(log: Batches, part: Path, path: Path) -> int:
    first = part.with_name(part.name + ".first")
    count, written = 0, None
    try:
        with contextlib.ExitStack() as opened:
            for batch in log:
                if written is None:
                    written = dict(log.header)
                    writer = opened.enter_context(LogWriter(first, **header_fields(written)))
                ids = np.full(batch.sequences, batch.token_ids is not None)
                _append(writer, batch, log.sides, ids)
                count += batch.sequences
        if written == log.header:
            os.replace(first, part)
        else:  # what it says of itself stands at the beginning of the file, and is known at its end
            with LogWriter(part, **header_fields(log.header)) as writer:
                for records in LogReader(first) if count else ():
                    _append(writer, records, log.sides, records.columns & LOG_HAS_TOKEN_IDS != 0)
    finally:
        first.unlink(missing_ok=True)
    return count


def _append(writer: LogWriter, batch: LogBatch | LogRecords, sides: tuple[str, ...], has_ids: NDArray) -> None:
    for index, (id_, step) in enumerate(zip(batch.ids.tolist(), batch.steps.tolist(), strict=True)):
        span = slice(int(batch.offsets[index]), int(batch.offsets[index + 1]))
        columns = {side: getattr(batch, side)[span] for side in sides}
        token_ids = batch.token_ids[span] if has_ids[index] else None
        writer.append(id=id_, step=step, mask=batch.mask[span], token_ids=token_ids, **columns)


def _json(log: Batches, part: Path, path: Path) -> int:
    count = 0
    opened: Callable[..., Any] = gzip.open if path.name.endswith(".gz") else open
    with opened(part, "wb") as file:
        for batch in log:
            header = dict(log.header)
            for index in range(batch.sequences):
                span = slice(int(batch.offsets[index]), int(batch.offsets[index + 1]))
                record = {
                    "lockstep_id": int(batch.ids[index]),
                    "step": int(batch.steps[index]),
                    "env_name": batch.environments[batch.environment_of[index]],
                    **header,
                    "mask": batch.mask[span],
                }
                if batch.token_ids is not None:
                    record["token_ids"] = batch.token_ids[span]
                record |= {side: getattr(batch, side)[span] for side in log.sides}
                file.write(_dumps(record) + b"\n")
                count += 1
    return count


def _table(log: Batches, part: Path, path: Path) -> int:
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ModuleNotFoundError as missing:
        raise ValueError(
            "writing Parquet and Arrow needs pyarrow: pip install 'lockstep[parquet]'"
        ) from missing
    count, writer, schema = 0, None, None
    try:
        for batch in log:
            if writer is None:
                schema = _schema(pa, log, batch)
                writer = (
                    parquet.ParquetWriter(part, schema, compression="zstd")
                    if path.suffix == ".parquet"
                    else pa.ipc.new_file(part, schema)
                )
            writer.write_batch(_record_batch(pa, batch, schema))
            count += batch.sequences
        if writer is None:
            raise ValueError("the log holds no sequence, so there is nothing to write")
    finally:
        if writer is not None:
            writer.close()
    return count


def _schema(pa: Any, log: Batches, batch: LogBatch) -> Any:
    fields = [("lockstep_id", pa.uint64()), ("step", pa.int64()), ("env_name", pa.string())]
    if batch.token_ids is not None:
        fields.append(("token_ids", pa.list_(pa.int32())))
    fields.append(("mask", pa.list_(pa.bool_())))
    fields += [(side, pa.list_(pa.float32())) for side in SIDES if side in log.sides]
    return pa.schema(fields, metadata={b"lockstep": json.dumps(log.header)})


def _record_batch(pa: Any, batch: LogBatch, schema: Any) -> Any:
    offsets = pa.array(batch.offsets.astype(np.int32))
    environments = np.array(batch.environments, object)[batch.environment_of]
    columns: dict[str, Any] = {
        "lockstep_id": pa.array(batch.ids),
        "step": pa.array(batch.steps),
        "env_name": pa.array(environments, pa.string()),
    }
    for name in ("token_ids", "mask", "trainer", "rollout"):
        if name in schema.names:
            values = getattr(batch, name)
            if values is None:  # a later batch has none: the column of those before it stays
                columns[name] = pa.nulls(batch.sequences, pa.list_(pa.int32()))
            else:
                columns[name] = pa.ListArray.from_arrays(offsets, pa.array(values))
    return pa.record_batch([columns[name] for name in schema.names], schema=schema)
