"""Conversion and distance in ulps through the Python functions: the caller's kind of array, strides, counts, roundings."""

from __future__ import annotations

import numpy as np
import pytest

import lockstep

RNG = np.random.default_rng(7)
FORMATS = ["fp16", "bf16", "fp32", "fp64", "fp8_e4m3fn", "fp8_e5m2"]


@pytest.mark.parametrize("name", FORMATS)
def test_convert_gives_the_callers_kind(name, torch, ml_dtypes):
    torch_dtype = {
        "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64,
        "fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2,
    }[name]
    x = RNG.normal(0, 1, (3, 4)).astype(np.float32)
    mine = lockstep.convert(torch.from_numpy(x), name)
    exact = torch.from_numpy(x).to(torch_dtype).double()
    assert mine.dtype == torch_dtype and torch.equal(mine.double(), exact)
    array = lockstep.convert(x, name)
    assert array.shape == (3, 4) and np.array_equal(array.astype(np.float64), mine.double().numpy())
    # The same by dtype objects of either library.
    for dtype in (torch_dtype, array.dtype, array.dtype.type):
        assert lockstep.convert(x, dtype).tobytes() == array.tobytes()


def test_convert_reads_strides_and_writes_out():
    x = RNG.normal(0, 1, (4, 6)).astype(np.float32)
    out = np.zeros((3, 4), np.float16)[::-1]
    assert lockstep.convert(x.T[::2], "fp16", out=out) is out
    assert np.array_equal(out, x.T[::2].astype(np.float16))
    assert lockstep.convert(np.float32(1.5), "fp16").shape == ()


def test_convert_counts_and_roundings():
    x = np.array([1e9, -1e9, 1e-30, np.nan, 1 + 2**-11 + 2**-20], np.float32)
    values, counts = lockstep.convert(x, "fp16", counts=True)
    assert counts == (2, 1, 1) and counts.overflow == 2
    assert values[:2].tolist() == [np.inf, -np.inf] and values[4] == np.float16(1 + 2**-10)
    assert lockstep.convert(x, "fp16", "toward_zero")[[0, 4]].tolist() == [65504, 1]


def test_stochastic_rounding_is_a_function_of_seed_and_index():
    x = np.full(4000, 1 + 2**-12, np.float32)  # a quarter of the way to the next fp16
    whole = lockstep.convert(x, "fp16", "stochastic", seed=3)
    assert 0.2 < np.mean(whole > 1) < 0.3
    pieces = [
        lockstep.convert(x[start : start + 1000], "fp16", "stochastic", seed=3, first_index=start)
        for start in range(0, 4000, 1000)]
    assert np.array_equal(np.concatenate(pieces), whole)
    assert not np.array_equal(lockstep.convert(x, "fp16", "stochastic", seed=4), whole)


def test_ulp_distance(torch):
    a = np.array([1, 0, np.nan, np.nan, np.inf], np.float16)
    b = np.array([1 + 3 * 2**-10, -0.0, np.nan, 1, 65504], np.float16)
    assert lockstep.ulp_distance(a, b).tolist() == [3, 0, 0, 2**64 - 1, 1]
    mine = lockstep.ulp_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert mine.dtype == torch.uint64 and mine.tolist() == [3, 0, 0, 2**64 - 1, 1]
