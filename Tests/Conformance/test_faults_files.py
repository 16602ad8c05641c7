"""A disk that fills up or breaks, and kill -9, at each call that changes a file: what was acknowledged is there afterwards.

The calls are failed by a shim before the C library (file_faults.c), in children of one process (file_faults.py).
`LOCKSTEP_FAULTS=all` tries every call; else the middle of rows of writes, which are alike, is left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
HOW_MANY = os.environ.get("LOCKSTEP_FAULTS", "some")


@pytest.fixture(scope="module")
def shim(tmp_path_factory) -> Path:
    if sys.platform != "linux":
        pytest.skip("calls are intercepted as Linux does it")
    library = tmp_path_factory.mktemp("shim") / "file_faults.so"
    subprocess.run(
        [os.environ.get("CC", "gcc"), "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library,
         HERE / "file_faults.c", "-ldl"], check=True)
    return library


@pytest.mark.parametrize("scenario", ["log", "run", "model", "report", "json", "convert", "convert_json"])
def test_every_call_fails_and_dies(shim, tmp_path, scenario):
    done = subprocess.run(
        [sys.executable, HERE / "file_faults.py", scenario, tmp_path, HOW_MANY], capture_output=True, text=True,
        env=os.environ | {"LD_PRELOAD": str(shim)}, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    calls = int(done.stdout.split()[1])
    assert calls >= 3, "no call was met: the shim is not in place"
