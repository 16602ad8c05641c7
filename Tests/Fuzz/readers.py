"""The log readers of the Python package, given any bytes: whole sequences that fit together, or a LogError that names the file.

`read` is one input: its first byte says the format and whether the rest is the file, or is packed into one (so that its
checksums are right), its second the options. run.py runs it under atheris, which counts the edges of lockstep.logs;
Tests/Conformance/test_fuzz_readers.py gives it the corpus and seeded changes of it.
"""

import gzip
import io
import json
import os
import sys
import tempfile
import zipfile
from pathlib import Path

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".parquet", ".arrow", ".npz", ".npz", ".parquet", ".arrow", ".lockstep")
#: Kinds whose bytes are packed.
GZIP, ARRAYS, TABLE, RECORDS = 2, 5, 7, 8
MEMBERS = ("trainer", "rollout", "mask", "offsets", "ids", "token_ids")
FOLDER = Path(tempfile.mkdtemp(prefix="lockstep-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))


def packed(kind, data):
    """The bytes of the file; None if nothing can be made of them."""
    if kind == GZIP:
        return gzip.compress(data, 1, mtime=0)
    if kind == ARRAYS:
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w") as archive:
            for name, part in zip(MEMBERS, data.split(b"\x93NUMPY")[1:]):
                archive.writestr(name + ".npy", b"\x93NUMPY" + part)
        return target.getvalue()
    if kind in (TABLE, RECORDS):
        import pyarrow as pa
        from pyarrow import parquet
        try:
            table = pa.Table.from_pylist([json.loads(line) for line in data.splitlines()])
            target = io.BytesIO()
            if kind == TABLE:
                parquet.write_table(table, target)
            else:
                with pa.ipc.new_file(target, table.schema) as writer:
                    writer.write_table(table)
            return target.getvalue()
        except (pa.ArrowException, ValueError, TypeError, AttributeError, RecursionError, OverflowError, NotImplementedError):
            return None
    return data


def sequences(path, **options):
    """What a log holds, or its LogError; with the error a file."""
    from lockstep.logs import LogError, open_log
    got = []
    try:
        for batch in open_log(path, **options):
            assert batch.offsets[0] == 0 and batch.offsets[-1] == len(batch.trainer) == len(batch.rollout)
            assert (batch.offsets[1:] >= batch.offsets[:-1]).all() and len(batch.ids) == len(batch.offsets) - 1
            for start, end in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist()):
                got.append((batch.trainer[start:end].tobytes(), batch.rollout[start:end].tobytes()))
    except LogError as error:
        assert str(error) and path.name in str(error.file), repr(error)
        return got, error
    return got, None


def read(data):
    if len(data) < 2:
        return
    kind, flags = data[0] % len(SUFFIXES), data[1]
    content = packed(kind, data[2:])
    if content is None:
        return
    path = FOLDER / f"log{SUFFIXES[kind]}"
    path.write_bytes(content)
    options = {"side": "trainer" if flags & 1 else "rollout", "exclude_non_finite": bool(flags & 2),
               "token_ids": not flags & 4, "repeated": bool(flags & 8), "mixed": bool(flags & 16),
               "batch_tokens": 1 if flags & 32 else 1 << 18}
    strict, error = sequences(path, **options)
    lenient, fatal = sequences(path, skip_bad=True, **options)
    # What is bad is left out, and nothing else is.
    assert error is not None or (fatal is None and lenient == strict)
    assert lenient[: len(strict)] == strict or fatal is not None


def main():
    import atheris
    with atheris.instrument_imports(include=["lockstep.logs"]):
        import lockstep.logs  # noqa: F401
        import lockstep.logs.formats  # noqa: F401

    atheris.Setup(sys.argv, read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
