"""A log that is written and read again is the same, bit for bit."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from log_writers import COLUMNS, EXPECTED, WRITERS, read, same
from rollouts import SHIPPED, write

from lockstep.logs import open_log, write_log

SEQUENCES = st.lists(
    st.lists(
        st.tuples(
            st.floats(-60, 0, width=32), st.floats(-60, 0, width=32), st.booleans(), st.integers(0, 2**31 - 1)
        ),
        min_size=1,
        max_size=12,
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sequences=SEQUENCES, batch_tokens=st.integers(1, 40))
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".arrow", ".lockstep"])
def test_writing_and_reading_keeps_every_bit(tmp_path, suffix, sequences, batch_tokens):
    records = [
        {
            "trainer": [t[0] for t in tokens],
            "rollout": [t[1] for t in tokens],
            "mask": [t[2] for t in tokens],
            "token_ids": [t[3] for t in tokens],
        }
        for tokens in sequences
    ]
    path = write(tmp_path / "in.jsonl", *records)
    before = read(path)
    np.testing.assert_array_equal(
        before["trainer"], np.float32([t[0] for tokens in sequences for t in tokens])
    )
    write_log(open_log(path, batch_tokens=batch_tokens), tmp_path / f"out{suffix}")
    same(before, read(tmp_path / f"out{suffix}"), *COLUMNS, "ids")


@pytest.mark.parametrize("path", SHIPPED.values(), ids=SHIPPED)
def test_the_shipped_logs_by_every_container(tmp_path, path):
    before = read(path)
    for suffix in (".jsonl", ".parquet", ".arrow", ".lockstep"):
        write_log(open_log(path, batch_tokens=1000), tmp_path / f"out{suffix}")
        same(before, read(tmp_path / f"out{suffix}"), *COLUMNS, "ids")


def test_pyarrow_is_asked_for_only_where_it_is_needed(tmp_path):
    """Importing the readers, and reading JSON, does without; a table says what to install."""
    lines, rows = (WRITERS[name](tmp_path / name) for name in ("lockstep.jsonl", "table.parquet"))
    code = f"""
import sys
class Missing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("pyarrow", "orjson", "simdjson"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
import lockstep, lockstep.logs as logs
assert sum(batch.sequences for batch in logs.open_log({str(lines)!r})) == 12
logs.write_log(logs.open_log({str(lines)!r}), {str(tmp_path / "out.jsonl")!r})
try:
    list(logs.open_log({str(rows)!r}))
except logs.LogError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == f"{rows}: reading Parquet and Arrow needs pyarrow: pip install 'lockstep[parquet]'\n"
    same(read(tmp_path / "out.jsonl"), EXPECTED)
