"""Tables in memory, read as a log on disk is: for Ray Data, Arrow batches, data frames."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .columns import LOCKSTEP_ID, resolve
from .log import LogBatch
from .reader import open_log
from .rows import Wanted


def batches_of_table(table: Any, **options: Any) -> Iterator[LogBatch]:
    """The sequences of a pyarrow Table or RecordBatch, one row each.

    Without an id column a sequence is called by a hash of its log-probs, token ids and step, so that it has the
    same id in whatever table of the log it is; equal rows then have equal ids, and each counts. A table is no file:
    ``file_of`` is -1.

    Args:
        table: columns as in an Arrow file (docs/Logs.md).
        options: of `open_log`: columns, side, skip_bad, exclude_non_finite…

    Raises:
        LogError: as `open_log`; its file is "table", its rows are counted from 1.
    """
    import pyarrow

    if isinstance(table, pyarrow.RecordBatch):
        table = pyarrow.Table.from_batches([table])
    if table.num_rows == 0:
        return
    found = resolve(table.column_names, Wanted(dict(options.get("columns") or {}), options.get("side", "rollout")))
    if found is not None and "id" not in found.names:
        content = [found.names[role] for role in ("trainer", "rollout", "token_ids", "step") if role in found.names]
        options = {"repeated": True, **options}
        table = table.append_column(LOCKSTEP_ID, pyarrow.array(_hashes(table, content), pyarrow.uint64()))
    with tempfile.TemporaryDirectory(prefix="lockstep-") as folder:
        path = Path(folder) / "table.arrow"
        with pyarrow.OSFile(str(path), "wb") as out, pyarrow.ipc.new_stream(out, table.schema) as stream:
            stream.write_table(table)
        for batch in open_log(path, **options):
            yield replace(batch, file_of=np.full_like(batch.file_of, -1))


def _hashes(table: Any, names: list[str]) -> list[int]:
    """A hash of each row's values in some columns."""
    rows = [hashlib.blake2b(digest_size=8) for _ in range(table.num_rows)]
    for name in names:
        for row, value in zip(rows, table.column(name), strict=True):
            values = getattr(value, "values", None)
            row.update(repr(value.as_py()).encode() if values is None
                       else values.to_numpy(zero_copy_only=False).tobytes())
    return [int.from_bytes(row.digest(), "little") for row in rows]
