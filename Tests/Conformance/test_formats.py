"""Number formats against NumPy, ml_dtypes and an independent rule, on every pattern and every midpoint.

Calls the built library through ctypes alone: LOCKSTEP_LIBRARY, or build/liblockstep.so.1. Bits are
compared; a NaN compares as a NaN of the same sign.
"""

import ctypes
import os
import pathlib

import ml_dtypes
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIBRARY = ctypes.CDLL(os.environ.get("LOCKSTEP_LIBRARY", str(ROOT / "build" / "liblockstep.so.1")))
LIBRARY.lockstep_last_error.restype = ctypes.c_char_p

NEAREST, TOWARD_ZERO, STOCHASTIC = 0, 1, 2

# NumPy warns of every overflow and NaN it casts; here they are the point.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in cast:RuntimeWarning")


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64),
    ]


class Options(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_uint32), ("rounding", ctypes.c_int32), ("seed", ctypes.c_uint64),
        ("first_index", ctypes.c_uint64), ("threads", ctypes.c_int32), ("instruction_set", ctypes.c_int32),
    ]


class Counts(ctypes.Structure):
    _fields_ = [("overflow", ctypes.c_int64), ("underflow", ctypes.c_int64), ("nan", ctypes.c_int64)]

    def __eq__(self, other):
        return tuple(self) == tuple(other)

    def __iter__(self):
        return iter((self.overflow, self.underflow, self.nan))


CODES = {
    np.dtype(np.float64): 2, np.dtype(np.float32): 2, np.dtype(np.float16): 2, np.dtype(np.uint64): 1,
    np.dtype(ml_dtypes.bfloat16): 4, np.dtype(ml_dtypes.float8_e4m3fn): 10,
    np.dtype(ml_dtypes.float8_e5m2): 12,
}
FP64, FP32, FP16 = np.dtype(np.float64), np.dtype(np.float32), np.dtype(np.float16)
BF16 = np.dtype(ml_dtypes.bfloat16)
E4M3FN, E5M2 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2)
NARROW = [FP16, BF16, E4M3FN, E5M2]
INSTRUCTION_SETS = [number for number in range(1, 5) if LIBRARY.lockstep_has_instruction_set(number)]


def tensor(array):
    shape = (ctypes.c_int64 * max(array.ndim, 1))(*array.shape)
    strides = (ctypes.c_int64 * max(array.ndim, 1))(*(step // array.itemsize for step in array.strides))
    return Tensor(
        array.ctypes.data, 1, 0, array.ndim, CODES[array.dtype], 8 * array.itemsize, 1, shape, strides, 0)


def check(status):
    if status:
        raise RuntimeError(LIBRARY.lockstep_last_error().decode())


def convert(source, dtype, rounding=NEAREST, *, out=None, **options):
    """The converted array, and (overflow, underflow, nan)."""
    result = np.empty(source.shape, dtype) if out is None else out
    counts = Counts()
    filled = Options(struct_size=ctypes.sizeof(Options), rounding=rounding, **options)
    check(LIBRARY.lockstep_convert(
        ctypes.byref(tensor(result)), ctypes.byref(counts), ctypes.byref(tensor(source)), ctypes.byref(filled)))
    return result, tuple(counts)


def ulp_distance(a, b):
    result = np.empty(a.shape, np.uint64)
    check(LIBRARY.lockstep_ulp_distance(
        ctypes.byref(tensor(result)), ctypes.byref(tensor(a)), ctypes.byref(tensor(b))))
    return result


def bits(array):
    return array.view(f"u{array.dtype.itemsize}")


def every_pattern(dtype):
    return np.arange(1 << 8 * dtype.itemsize, dtype=f"u{dtype.itemsize}").view(dtype)


def sign_bit(array):
    return bits(array) >> (8 * array.dtype.itemsize - 1)


def is_nan(array):
    if array.dtype in (FP64, FP32, FP16):
        return np.isnan(array)
    return np.isnan(array.astype(np.float32))


def same(found, wanted):
    """Equal bits, but any NaN equals any NaN of its sign."""
    assert found.dtype == wanted.dtype
    nan = is_nan(wanted)
    np.testing.assert_array_equal(is_nan(found), nan)
    np.testing.assert_array_equal(sign_bit(found), sign_bit(wanted))
    np.testing.assert_array_equal(bits(found)[~nan], bits(wanted)[~nan])


def finite_magnitudes(dtype):
    """All non-negative finite values as float64, in order: index i has the code i."""
    positive = every_pattern(dtype)[: 1 << (8 * dtype.itemsize - 1)].astype(np.float64)
    return positive[np.isfinite(positive)]


def hard_values(dtype, source):
    """All values of `dtype`, all midpoints, the thresholds of overflow, both signs, each one step of
    `source` up and down, infinities, NaNs, and the ends of `source`."""
    values = finite_magnitudes(dtype)
    last = values[-1] - values[-2]
    middle = np.concatenate([
        (values[:-1] + values[1:]) / 2, [values[-1] + last / 2, values[-1] + last, values[-1] * 2]])
    ends = np.finfo(source)
    middle = np.concatenate([
        middle, [ends.max, ends.tiny, ends.smallest_subnormal, ends.tiny - ends.smallest_subnormal]])
    exact = np.concatenate([values, middle]).astype(source)
    with np.errstate(over="ignore", under="ignore"):
        near = [exact, np.nextafter(exact, source.type(np.inf)), np.nextafter(exact, source.type(-np.inf))]
    special = np.array([np.inf, np.nan, 0], source)
    positive = np.concatenate([*near, special])
    return np.concatenate([positive, np.copysign(positive, source.type(-1))])


def round_by_rule(values, dtype, rounding, random=None):
    """Rounding by looking up the two neighbours in the table of all values: no bit arithmetic. Returns the
    result and (overflow, underflow, nan)."""
    table = finite_magnitudes(dtype)
    wide = values.astype(np.float64)
    magnitude = np.abs(wide)
    finite = np.isfinite(magnitude)
    nan = np.isnan(magnitude)
    magnitude = np.where(finite, magnitude, 0)
    below = np.searchsorted(table, magnitude, side="right") - 1
    # One more value beyond the largest, as if the format had it.
    beyond = np.append(table, table[-1] + (table[-1] - table[-2]))
    if rounding == NEAREST:
        middle = beyond[below] + (beyond[below + 1] - beyond[below]) / 2
        up = (magnitude > middle) | ((magnitude == middle) & (below % 2 == 1))
        overflow = below + up >= len(table)
    else:
        overflow = magnitude > table[-1]
        up = np.zeros(len(magnitude), bool)
        if rounding == STOCHASTIC:
            inside = np.where(overflow, beyond[below], magnitude)
            fraction = (inside - beyond[below]) / (beyond[below + 1] - beyond[below])
            up = ~overflow & (np.floor(fraction * 2.0**32).astype(np.uint64) + random >= 1 << 32)
    code = (below + up).astype(np.uint64)
    all_ones = (1 << 8 * dtype.itemsize - 1) - 1
    infinity = all_ones if dtype == E4M3FN else len(table)
    if rounding == NEAREST:
        code[overflow] = infinity
    code[~finite] = infinity
    code[nan] = all_ones
    code |= np.signbit(wide).astype(np.uint64) << np.uint64(8 * dtype.itemsize - 1)
    underflow = (below + up == 0) & (magnitude > 0)
    counts = int(np.sum(overflow & finite)), int(np.sum(underflow & finite)), int(np.sum(nan))
    return code.astype(f"u{dtype.itemsize}").view(dtype), counts


def philox_words(seed, first, count):
    """Philox4x32-10 with NumPy integers: word i mod 4 of counter i / 4, for i from `first` on."""
    index = np.uint64(first) + np.arange(count, dtype=np.uint64)
    block = index >> np.uint64(2)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    c = [block & low, block >> half, np.zeros_like(block), np.zeros_like(block)]
    k = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        first_product = c[0] * np.uint64(0xD2511F53)
        second_product = c[2] * np.uint64(0xCD9E8D57)
        c = [
            (second_product >> half) ^ c[1] ^ np.uint64(k[0]), second_product & low,
            (first_product >> half) ^ c[3] ^ np.uint64(k[1]), first_product & low,
        ]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.choose((index & np.uint64(3)).astype(int), c)


every_set = pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
narrow_formats = pytest.mark.parametrize("dtype", NARROW, ids=str)
wide_formats = pytest.mark.parametrize("source", [FP32, FP64], ids=str)


@every_set
@narrow_formats
@pytest.mark.parametrize("wide", [FP32, FP64], ids=str)
def test_widening_is_exact_on_every_pattern(dtype, wide, instruction_set):
    patterns = every_pattern(dtype)
    found, counts = convert(patterns, wide, instruction_set=instruction_set)
    same(found, patterns.astype(wide))
    assert counts == (0, 0, int(is_nan(patterns).sum()))
    # A NaN keeps the top bits of its payload and is quiet. (e4m3fn's NaN has none.)
    nan = is_nan(patterns)
    if dtype != E4M3FN:
        mantissa = {FP16: 10, BF16: 7, E5M2: 2}[dtype]
        quiet = np.uint64(1 << mantissa - 1)
        payload = (bits(patterns)[nan].astype(np.uint64) & np.uint64((1 << mantissa) - 1)) | quiet
        width = 52 if wide == FP64 else 23
        found_payload = bits(found)[nan].astype(np.uint64) & np.uint64((1 << width) - 1)
        np.testing.assert_array_equal(found_payload, payload << np.uint64(width - mantissa))


@every_set
@wide_formats
@narrow_formats
@pytest.mark.parametrize("rounding", [NEAREST, TOWARD_ZERO])
def test_narrowing_on_every_value_and_midpoint(dtype, source, rounding, instruction_set):
    values = hard_values(dtype, source)
    wanted, wanted_counts = round_by_rule(values, dtype, rounding)
    found, counts = convert(values, dtype, rounding, instruction_set=instruction_set)
    same(found, wanted)
    assert counts == wanted_counts
    assert min(counts) > 0  # the inputs have all three


@every_set
@narrow_formats
def test_nearest_equals_numpy_and_ml_dtypes(dtype, instruction_set):
    values = hard_values(dtype, FP32)
    same(convert(values, dtype, instruction_set=instruction_set)[0], values.astype(dtype))


@every_set
def test_fp64_to_fp16_and_fp32_equal_numpy(instruction_set):
    rng = np.random.default_rng(1)
    single = rng.integers(0, 1 << 32, 300_000, dtype=np.uint32).view(np.float32).astype(np.float64)
    single = single[np.isfinite(single)]
    upper = np.nextafter(single.astype(np.float32), np.float32(np.inf)).astype(np.float64)
    middle = np.where(np.isfinite(upper), single + (upper - single) / 2, single)
    values = np.concatenate([
        single, middle, np.nextafter(middle, np.inf), np.nextafter(middle, -np.inf),
        rng.integers(0, 1 << 64, 100_000, dtype=np.uint64).view(np.float64), hard_values(FP16, FP64)])
    for dtype in (FP16, FP32):
        wanted = values.astype(dtype)
        found, counts = convert(values, dtype, instruction_set=instruction_set)
        same(found, wanted)
        finite = np.isfinite(values)
        assert counts == (
            int((np.isinf(wanted) & finite).sum()), int(((wanted == 0) & (values != 0)).sum()),
            int(np.isnan(values).sum()))
    cut, _ = convert(values, FP32, TOWARD_ZERO, instruction_set=instruction_set)
    finite = np.isfinite(values)
    nearest = values[finite].astype(np.float32)
    too_far = np.abs(nearest.astype(np.float64)) > np.abs(values[finite])
    same(cut[finite], np.where(too_far, np.nextafter(nearest, np.float32(0)), nearest))
    same(cut[~finite], values[~finite].astype(np.float32))


@every_set
@pytest.mark.parametrize("source", NARROW, ids=str)
@narrow_formats
@pytest.mark.parametrize("rounding", [NEAREST, TOWARD_ZERO])
def test_narrow_to_narrow_on_every_pattern(source, dtype, rounding, instruction_set):
    patterns = every_pattern(source)
    found, counts = convert(patterns, dtype, rounding, instruction_set=instruction_set)
    if source == dtype:
        np.testing.assert_array_equal(bits(found), bits(patterns))
        assert counts == (0, 0, int(is_nan(patterns).sum()))
        return
    wanted, wanted_counts = round_by_rule(patterns.astype(np.float64), dtype, rounding)
    same(found, wanted)
    assert counts == wanted_counts


@every_set
@wide_formats
@narrow_formats
def test_stochastic_rounding_follows_its_rule(dtype, source, instruction_set):
    values = hard_values(dtype, source)
    rng = np.random.default_rng(2)
    table = finite_magnitudes(dtype)
    index = rng.integers(0, len(table) - 1, 20_000)
    between = table[index] + (table[index + 1] - table[index]) * rng.random(20_000)
    values = np.concatenate([values, between.astype(source)])
    seed, first = 0xFEDCBA9876543210, (1 << 40) + 3
    random = philox_words(seed, first, len(values))
    wanted, wanted_counts = round_by_rule(values, dtype, STOCHASTIC, random)
    found, counts = convert(
        values, dtype, STOCHASTIC, seed=seed, first_index=first, instruction_set=instruction_set)
    same(found, wanted)
    assert counts == wanted_counts


@wide_formats
@narrow_formats
def test_stochastic_rounding_is_unbiased(dtype, source):
    rng = np.random.default_rng(3)
    table = finite_magnitudes(dtype)
    index = rng.integers(0, len(table) - 1, 400_000)
    low, high = table[index], table[index + 1]
    values = (low + (high - low) * rng.random(len(index))).astype(source)
    found = convert(values, dtype, STOCHASTIC, seed=5)[0].astype(np.float64)
    # In units of the step: 0 or 1, with the fraction as its expectation.
    up = (found - low) / (high - low)
    fraction = (values.astype(np.float64) - low) / (high - low)
    assert set(np.unique(up)) <= {0.0, 1.0}
    deviation = np.sqrt(np.sum(fraction * (1 - fraction)))
    assert abs(np.sum(up - fraction)) < 4 * deviation
    # Within each tenth of the step as well: a wrong probability may cancel in the mean.
    for tenth in range(10):
        part = (fraction >= tenth / 10) & (fraction < (tenth + 1) / 10)
        deviation = np.sqrt(np.sum((fraction * (1 - fraction))[part]))
        assert abs(np.sum((up - fraction)[part])) < 5 * deviation


def test_stochastic_rounding_uses_seed_and_index_alone():
    values = np.random.default_rng(4).standard_normal(300_000).astype(np.float32)
    whole = bits(convert(values, BF16, STOCHASTIC, seed=9, first_index=100, threads=1)[0])
    for threads in (2, 5):
        np.testing.assert_array_equal(
            bits(convert(values, BF16, STOCHASTIC, seed=9, first_index=100, threads=threads)[0]), whole)
    cuts = [0, 1, 2, 5, 2047, 2049, 70_001, 299_999, 300_000]
    parts = [
        bits(convert(values[start:end], BF16, STOCHASTIC, seed=9, first_index=100 + start)[0])
        for start, end in zip(cuts, cuts[1:])]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert (bits(convert(values, BF16, STOCHASTIC, seed=10, first_index=100)[0]) != whole).any()
    assert (bits(convert(values, BF16, STOCHASTIC, seed=9, first_index=101)[0]) != whole).any()


def test_any_strides():
    values = np.random.default_rng(5).standard_normal((30, 40, 50)).astype(np.float32)
    for view in (
        values.transpose(2, 0, 1), values[::3, ::-2, 7:], values[5], values[:, :, 11], values[::-1],
        np.broadcast_to(values[0, 0], (6, 50)), values.reshape(1, 30, 1, 2, 20, 5, 1, 10)):
        same(convert(view, FP16)[0], view.astype(np.float16))
        buffer = np.zeros([2 * extent for extent in view.shape], np.float16)
        target = buffer[tuple(slice(None, None, 2) for _ in view.shape)]
        convert(view, FP16, out=target)
        np.testing.assert_array_equal(bits(np.ascontiguousarray(target)), bits(view.astype(np.float16)))
        assert np.count_nonzero(buffer) == np.count_nonzero(target)  # nothing else was written


@pytest.mark.parametrize("dtype", [FP64, FP32, *NARROW], ids=str)
def test_ulp_distance(dtype):
    if dtype.itemsize <= 2:
        a = every_pattern(dtype)
        b = np.random.default_rng(6).permutation(a)
    else:
        unsigned = f"u{dtype.itemsize}"
        a, b = np.random.default_rng(6).integers(
            0, np.iinfo(unsigned).max, (2, 50_000), dtype=unsigned, endpoint=True).view(dtype)
        b[:1000] = a[:1000]
    # Python integers: a position on the line of all values, with both zeros at 0.
    top = 1 << (8 * dtype.itemsize - 1)
    position = lambda value: int(value) if value < top else top - int(value)
    a_nan, b_nan = is_nan(a), is_nan(b)
    wanted = [
        (0 if x_nan and y_nan else 2**64 - 1) if x_nan or y_nan else abs(position(x) - position(y))
        for x, y, x_nan, y_nan in zip(bits(a), bits(b), a_nan, b_nan)]
    np.testing.assert_array_equal(ulp_distance(a, b), np.array(wanted, np.uint64))


@pytest.mark.parametrize(
    "name,dtype", [("fp16", FP16), ("bf16", BF16), ("fp8_e4m3fn", E4M3FN), ("fp8_e5m2", E5M2)])
def test_scalar_functions_equal_the_arrays(name, dtype):
    class Value(ctypes.Structure):
        _fields_ = [("bits", ctypes.c_uint16 if dtype.itemsize == 2 else ctypes.c_uint8)]

    to_float = LIBRARY[f"lockstep_{name}_to_float"]
    to_float.argtypes, to_float.restype = [Value], ctypes.c_float
    from_float = LIBRARY[f"lockstep_{name}_from_float"]
    from_float.argtypes, from_float.restype = [ctypes.c_float], Value
    patterns = every_pattern(dtype)
    wide = np.array([to_float(Value(int(pattern))) for pattern in bits(patterns)], np.float32)
    same(wide, convert(patterns, FP32)[0])
    values = hard_values(dtype, FP32)[:: 7 if dtype.itemsize == 2 else 1]
    values = values[~np.isnan(values)]  # ctypes passes a float as a double and back
    found = np.array([from_float(value).bits for value in values], f"u{dtype.itemsize}").view(dtype)
    same(found, convert(values, dtype)[0])
