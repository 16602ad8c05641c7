"""How the package is found and loaded. How it is built: Tests/Install."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys

import pytest
from packaging.version import Version

import lockstep
from lockstep import _binding
from lockstep import _library as c


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs Python code in a process of its own, with this one's package."""
    package = os.path.dirname(os.path.dirname(lockstep.__file__))
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": package} | environment)


def test_import_brings_neither_torch_nor_ml_dtypes():
    code = "import sys, lockstep; print({'torch', 'ml_dtypes', 'matplotlib'} & set(sys.modules))"
    assert run(code).stdout.strip() == "set()"


def test_the_library_can_be_chosen(tmp_path):
    copy = tmp_path / "other.so"
    copy.write_bytes(open(c.library.path, "rb").read())
    result = run("import lockstep._library as c; print(c.library.path)", LOCKSTEP_LIBRARY=str(copy))
    assert result.stdout.strip() == str(copy)


@pytest.mark.parametrize("content, message", [
    (None, "cannot load"), (b"this is no library", "cannot load"),
])
def test_a_library_that_cannot_be_loaded(tmp_path, content, message):
    path = tmp_path / "liblockstep.so.1"
    if content is not None:
        path.write_bytes(content)
    result = run("import lockstep", LOCKSTEP_LIBRARY=str(path))
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: lockstep: ") and message in last and str(path) in last


@pytest.mark.parametrize("number, fits", [(9999, False), (10000, True), (10903, True), (20000, False)])
def test_versions_of_the_library(number, fits, monkeypatch):
    monkeypatch.setattr(c.Library, "lockstep_version", lambda self: number, raising=False)
    if fits:
        c.Library(c.library.path)
    else:
        with pytest.raises(ImportError, match="but this package needs 1.0.0 or a newer 1.x"):
            c.Library(c.library.path)


def test_a_library_without_a_function(monkeypatch):
    monkeypatch.setitem(c.SIGNATURES, "lockstep_of_tomorrow", (None, []))
    with pytest.raises(ImportError, match="has no function lockstep_of_tomorrow; build it again"):
        c.library.lockstep_of_tomorrow


def test_nothing_is_found(monkeypatch, tmp_path):
    monkeypatch.delenv("LOCKSTEP_LIBRARY", raising=False)
    monkeypatch.setattr(_binding, "__file__", str(tmp_path / "a" / "b" / "c" / "_binding.py"))
    with pytest.raises(ImportError, match="build it with bindings/c/build-library.sh, or set LOCKSTEP_LIBRARY"):
        c._find()


def test_fork_after_use():
    """A worker process made by fork computes too, with threads: what multiprocessing does."""
    code = """
import os, numpy as np, lockstep
logits = np.random.default_rng(0).normal(size=(64, 3000)).astype(np.float32)
targets = np.zeros(64, np.int64)
before = lockstep.log_probs(logits, targets, threads=4)
child = os.fork()
same = (lockstep.log_probs(logits, targets, threads=4) == before).all()
if child == 0:
    os._exit(0 if same else 1)
print(bool(same), os.waitpid(child, 0)[1])
"""
    assert run(code).stdout.strip() == "True 0"


def test_metadata():
    try:
        installed = importlib.metadata.version("lockstep")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is used from its folder, not installed")
    assert Version(installed) == Version(lockstep.__version__)  # 1.0.0-rc1 is 1.0.0rc1 to Python's installers
