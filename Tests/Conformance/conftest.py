"""What the conformance tests share. They run against the installed package: `pytest` at the root."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / "Tests" / "Vectors"


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file: a length, a JSON header, then raw little-endian data."""
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "U16": "<u2", "I64": "<i8", "I32": "<i4"}
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(data[start:end], kinds[entry["dtype"]]).reshape(entry["shape"])
    return tensors


@pytest.fixture(scope="session")
def torch():
    """PyTorch; tests that need it are skipped where it is not installed."""
    return pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.fixture(scope="session")
def ml_dtypes():
    """ml_dtypes: NumPy's bf16 and fp8."""
    return pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")


@pytest.fixture(scope="module")
def ray():
    """Ray; tests that need it are skipped where it is not installed."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: make test RAY=1")
    pytest.importorskip("ray.data", reason="Ray Data is not installed: make test RAY=1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    yield ray
    ray.shutdown()


class OnlyDlpack:
    """An array of a library this package has never heard of."""

    def __init__(self, owner, *, versioned=True):
        self.owner, self.versioned = owner, versioned

    def __dlpack_device__(self):
        return self.owner.__dlpack_device__()

    def __dlpack__(self, **options):
        if options and not self.versioned:
            raise TypeError("__dlpack__() got an unexpected keyword argument")
        return self.owner.__dlpack__(**options)
