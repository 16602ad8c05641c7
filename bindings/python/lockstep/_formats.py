"""Number formats: conversion with a chosen rounding, and distance in units in the last place."""

from __future__ import annotations

from ctypes import sizeof
from typing import NamedTuple

from . import _library as c
from ._errors import InvalidArgumentError
from ._library import check, choice, int32, integer, library
from ._tensors import Array, empty, format_code, view


class ConvertCounts(NamedTuple):
    """What happened in a conversion."""

    #: Finite values too large for the format: infinity, or NaN in fp8_e4m3fn (toward zero: the
    #: largest finite value).
    overflow: int
    #: Non-zero values that became zero.
    underflow: int
    #: NaN in the source.
    nan: int


class Converted(NamedTuple):
    """The result of `convert` with ``counts=True``."""

    values: Array
    counts: ConvertCounts


def convert(
    source: Array,
    dtype: object,
    rounding: str = "nearest_even",
    seed: int = 0,
    first_index: int = 0,
    counts: bool = False,
    out: Array | None = None,
    *,
    threads: int = 0,
    instruction_set: str = "best",
) -> Array | Converted:
    """Converts every element to a number format, rounding once.

    Widening is exact. Subnormals are kept; a NaN stays a NaN with its sign; an infinity stays one (in
    fp8_e4m3fn, which has none, it becomes NaN). Beyond the largest finite value, nearest_even gives
    infinity (fp8_e4m3fn: NaN), the other two the largest finite value.

    "e8m1" to "e8m23" have the range of fp32 and that many explicit mantissa bits, "e5m1" to "e5m10" the range of
    fp16. Their values are stored in fp32: they are for studying what fewer bits do, not for saving memory.

    Args:
        source: fp16, bf16, fp32, fp64, fp8_e4m3fn or fp8_e5m2; any shape up to 8 dimensions, any strides.
        dtype: the format to convert to: "fp16", "bf16", "fp32", "fp64", "fp8_e4m3fn", "fp8_e5m2", "e8m5" and
            its like, or a dtype of NumPy, ml_dtypes or PyTorch.
        rounding: "nearest_even", "toward_zero", or "stochastic": up with a probability equal to the
            distance from below, so that the expectation is the value.
        seed: of stochastic rounding; element i draws from `seed` and ``first_index + i`` alone.
        first_index: the index of the first element, where an array is converted in pieces.
        counts: also return how many values overflowed, underflowed, or were NaN.
        out: an array of source's shape and the format `dtype` (fp32 for "e8m5" and its like) to write into.
        threads: 0 is one for each processor this process may use. No effect on the bits.
        instruction_set: see `has_instruction_set`. No effect on the bits.

    Returns:
        An array of source's shape and kind (NumPy's bf16 and fp8 need ml_dtypes), or `Converted`.

    Raises:
        InvalidArgumentError: an unknown format or word, or an `out` that does not fit.

    Example:
        >>> values, counts = convert(np.array([1.0, 1.001, 70000.0]), "fp16", counts=True)
        >>> values
        array([1.   , 1.001,   inf], dtype=float16)
        >>> counts
        ConvertCounts(overflow=1, underflow=0, nan=0)
        >>> convert(np.float32([1.0, 1.1, 70000.0]), "e8m3")
        array([1.0000e+00, 1.1250e+00, 7.3728e+04], dtype=float32)
    """
    code = format_code(dtype, "dtype", emulated=True)
    options = c.ConvertOptions(
        sizeof(c.ConvertOptions), choice(c.ROUNDINGS, rounding, "rounding"),
        integer(seed, "seed", 0, 2**64 - 1), integer(first_index, "first_index", 0, 2**64 - 1),
        int32(threads, "threads"), choice(c.INSTRUCTION_SETS, instruction_set, "instruction_set"))
    read = view(source, "source")
    if out is None:
        out = empty(read.shape, code, read)
    write = view(out, "out", written=True).as_format(code)
    if write.code != code:
        raise InvalidArgumentError(f"out: its dtype is not the format asked for, {dtype}")
    happened = c.ConvertCounts() if counts else None
    check(library.lockstep_convert(write.tensor(), happened, read.tensor(), options))
    if happened is None:
        return out
    return Converted(out, ConvertCounts(happened.overflow, happened.underflow, happened.nan))


def ulp_distance(a: Array, b: Array, dtype: str | None = None) -> Array:
    """How many representable steps lie between a and b, element by element.

    +0 and -0 are the same value (0). Two NaN are 0 apart; a NaN and a number 2^64 - 1. Infinity is one
    step beyond the largest finite value.

    Args:
        a: fp16, bf16, fp32, fp64, fp8_e4m3fn or fp8_e5m2; any shape.
        b: of a's format and shape.
        dtype: where a and b are fp32, a format in whose steps to count: "e8m5" and its like. A value that it does
            not have counts as the nearest it has.

    Returns:
        uint64, of a's shape and kind.

    Raises:
        InvalidArgumentError: formats or shapes differ.

    Example:
        >>> ulp_distance(np.float16([1.0, 2.0]), np.float16([1.001, 1.999]))
        array([1, 1], dtype=uint64)
    """
    left, right = view(a, "a"), view(b, "b")
    if dtype is not None:
        code = format_code(dtype, "dtype", emulated=True)
        left, right = left.as_format(code), right.as_format(code)
        if left.code != code:
            raise InvalidArgumentError(f"dtype is {dtype}, but a is not of that format")
    distance = empty(left.shape, c.UINT64, left)
    check(library.lockstep_ulp_distance(
        view(distance, "distance").tensor(), left.tensor(), right.tensor()))
    return distance
