"""Bad input from Python: a clear error that names the argument, outputs untouched, the process alive."""

from __future__ import annotations

import ctypes
from ctypes import sizeof

import numpy as np
import pytest

import lockstep
from lockstep import _library as c
from lockstep._tensors import view

INF, NAN = np.inf, np.nan
LOGITS = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
TARGETS = np.array([0, 4, 2])
HIDDEN = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
WEIGHT = np.random.default_rng(2).normal(size=(5, 4)).astype(np.float32)
ONES = np.ones(3, np.float32)


def with_row(row: int, values: object, dtype=np.float32) -> np.ndarray:
    logits = LOGITS.astype(dtype)
    logits[row] = values
    return logits


def misaligned(x: np.ndarray) -> np.ndarray:
    """The same array one byte off."""
    raw = np.zeros(x.nbytes + 1, np.uint8)[1:]
    return raw.view(x.dtype).reshape(x.shape)


INVALID, UNSUPPORTED, NON_FINITE = (
    lockstep.InvalidArgumentError, lockstep.UnsupportedError, lockstep.NonFiniteError)

LOG_PROBS = [
    # shapes
    ((LOGITS, TARGETS[:2]), {}, INVALID, r"targets: shape \[2\] does not match \[3\]"),
    ((LOGITS, TARGETS[:, None]), {}, INVALID, r"targets: shape \[3, 1\] does not match \[3\]"),
    ((np.float32(1), 0), {}, INVALID, "logits"),
    # layout and dtype
    ((LOGITS[:, ::2], TARGETS), {}, INVALID, r"logits: strides\[1\] is 2; rows must be contiguous"),
    ((LOGITS.T.copy().T, TARGETS), {}, INVALID, r"logits: strides\[1\] is 3; rows must be contiguous"),
    ((misaligned(LOGITS), TARGETS), {}, INVALID, "logits: data is not aligned to its 4-byte elements"),
    ((LOGITS, misaligned(TARGETS)), {}, INVALID, "targets: data is not aligned"),
    ((LOGITS.astype(np.float64), TARGETS), {}, INVALID, "logits: dtype must be one of"),
    ((LOGITS.astype(np.int32), TARGETS), {}, INVALID, "logits: dtype must be one of"),
    ((LOGITS, TARGETS.astype(np.float32)), {}, INVALID, "targets: dtype must be int32 or int64"),
    ((LOGITS, None), {}, INVALID, "targets: dtype object is not known"),
    # targets
    ((LOGITS, [0, 5, 2]), {}, INVALID, r"targets\[1\] is 5, outside the vocabulary of 5"),
    ((LOGITS, [0, 4, -1]), {}, INVALID, r"targets\[2\] is -1, outside the vocabulary of 5"),
    ((LOGITS, [0, 2**40, 2]), {}, INVALID, r"targets\[1\] is 1099511627776"),
    ((LOGITS, [-100, 0, 0]), {"ignore_index": -1}, INVALID, r"targets\[0\] is -100"),
    ((np.zeros((3, 0), np.float32), TARGETS), {}, INVALID, "outside the vocabulary of 0"),
    # values
    ((with_row(1, NAN), TARGETS), {}, NON_FINITE, "logits: row 1 has a NaN or .inf"),
    ((with_row(2, [0, 0, INF, 0, 0]), TARGETS), {}, NON_FINITE, "logits: row 2 has a NaN or .inf"),
    ((with_row(0, -INF), TARGETS), {}, NON_FINITE, "logits: row 0 has only -inf"),
    ((with_row(1, NAN, np.float16), TARGETS), {}, NON_FINITE, "row 1"),
    ((with_row(1, [1e6, 0, 0, 0, 0]), TARGETS), {"logits_dtype": "fp16"}, NON_FINITE, "row 1"),
    # options
    ((LOGITS, TARGETS), {"temperature": 0}, INVALID, "temperature is 0"),
    ((LOGITS, TARGETS), {"temperature": -1}, INVALID, "temperature is -1"),
    ((LOGITS, TARGETS), {"temperature": NAN}, INVALID, "temperature is nan"),
    ((LOGITS, TARGETS), {"temperature": INF}, INVALID, "temperature is inf"),
    ((LOGITS, TARGETS), {"temperature": "hot"}, INVALID, "temperature is 'hot'; give a number"),
    ((LOGITS, TARGETS), {"temperature": None}, INVALID, "temperature is None; give a number"),
    ((LOGITS, TARGETS), {"soft_cap": -3}, INVALID, "soft_cap is -3"),
    ((LOGITS, TARGETS), {"soft_cap": NAN}, INVALID, "soft_cap is nan"),
    ((LOGITS, TARGETS), {"top_k": -1}, INVALID, "top_k is -1"),
    ((LOGITS, TARGETS), {"top_k": 2**32}, INVALID, "top_k is 4294967296"),
    ((LOGITS, TARGETS), {"top_k": 1.5}, INVALID, "top_k is 1.5; give an integer"),
    ((LOGITS, TARGETS), {"top_p": 0}, INVALID, "top_p is 0"),
    ((LOGITS, TARGETS), {"top_p": 1.1}, INVALID, "top_p is 1.1"),
    ((LOGITS, TARGETS), {"top_p": NAN}, INVALID, "top_p is nan"),
    ((LOGITS, TARGETS), {"min_p": -0.1}, INVALID, "min_p is -0.1"),
    ((LOGITS, TARGETS), {"min_p": 1.1}, INVALID, "min_p is 1.1"),
    ((LOGITS, TARGETS), {"min_p": NAN}, INVALID, "min_p is nan"),
    ((LOGITS, TARGETS), {"ignore_index": 2**31}, INVALID, "ignore_index is 2147483648"),
    ((LOGITS, TARGETS), {"logits_dtype": "fp12"}, INVALID, "logits_dtype is 'fp12'; give one of fp16"),
    ((LOGITS, TARGETS), {"logits_dtype": "fp64"}, INVALID, "logits_dtype"),
    ((LOGITS, TARGETS), {"dtype": "fp16"}, INVALID, "log_probs"),
    ((LOGITS, TARGETS), {"dtype": "int64"}, INVALID, "dtype is 'int64'"),
    ((LOGITS, TARGETS), {"threads": -1}, INVALID, "threads is -1"),
    ((LOGITS, TARGETS), {"threads": 2**31}, INVALID, "threads is 2147483648"),
    ((LOGITS, TARGETS), {"instruction_set": "mmx"}, INVALID, "instruction_set is 'mmx'; give one of 'best'"),
    ((LOGITS, TARGETS), {"instruction_set": []}, INVALID, r"instruction_set is \[\]"),
]


@pytest.mark.parametrize("arguments, options, kind, message", LOG_PROBS)
def test_log_probs(arguments, options, kind, message):
    with pytest.raises(kind, match=message) as caught:
        lockstep.log_probs(*arguments, **options)
    assert isinstance(caught.value, lockstep.LockstepError) and caught.value.status == kind.status


def test_an_instruction_set_this_machine_lacks():
    missing = [name for name in ("avx2", "avx512", "neon") if not lockstep.has_instruction_set(name)]
    for name in missing:
        with pytest.raises(UNSUPPORTED, match="this machine does not have"):
            lockstep.log_probs(LOGITS, TARGETS, instruction_set=name)
    assert missing, "x86 has no NEON, Arm no AVX"


BACKWARD = [
    ((LOGITS, TARGETS, ONES[:2]), {}, INVALID, r"d_log_probs: shape \[2\] does not match \[3\]"),
    ((LOGITS, TARGETS, ONES.astype(np.float16)), {}, INVALID, "d_log_probs: dtype"),
    ((LOGITS, TARGETS, ONES, ONES[:1]), {}, INVALID, "d_entropy: shape"),
    ((LOGITS, TARGETS, ONES), {"log_sum_exp": ONES}, INVALID, "log_sum_exp: dtype must be one of fp64"),
    ((LOGITS, TARGETS, ONES), {"log_sum_exp": [NAN, 0.0, 0.0]}, NON_FINITE, r"log_sum_exp\[0\] is nan"),
    ((LOGITS, TARGETS, ONES), {"out": np.zeros((3, 4), np.float32)}, INVALID, "out: shape"),
    ((LOGITS, TARGETS, ONES), {"out": np.zeros((3, 5), np.int32)}, INVALID, "d_logits: dtype"),
    ((LOGITS, [0, 9, 0], ONES), {}, INVALID, r"targets\[1\] is 9"),
    ((with_row(1, NAN), TARGETS, ONES), {}, NON_FINITE, "row 1"),
]


@pytest.mark.parametrize("arguments, options, kind, message", BACKWARD)
def test_log_probs_backward(arguments, options, kind, message):
    out = np.full((3, 5), 7, np.float32)
    with pytest.raises(kind, match=message):
        lockstep.log_probs_backward(*arguments, **({"out": out} | options))
    assert (out == 7).all()


LINEAR = [
    ((HIDDEN[:, :3], WEIGHT, TARGETS), {}, INVALID, "hidden: rows have 3 elements but the head's have 4"),
    ((HIDDEN[:, ::2], WEIGHT, TARGETS), {}, INVALID, r"hidden: strides\[1\]"),
    ((HIDDEN, WEIGHT.T, TARGETS), {}, INVALID, r"weight: strides\[1\]"),
    ((HIDDEN, WEIGHT[0], TARGETS), {}, INVALID, "weight: has 1 dimensions"),
    ((HIDDEN.astype(np.float64), WEIGHT, TARGETS), {}, INVALID, "hidden: dtype"),
    ((HIDDEN, WEIGHT.astype(np.int64), TARGETS), {}, INVALID, "weight: dtype"),
    ((HIDDEN, WEIGHT, TARGETS, ONES), {}, INVALID, r"bias: shape\[0\] is 3"),
    ((HIDDEN, WEIGHT, [0, 5, 0]), {}, INVALID, r"targets\[1\] is 5"),
    ((HIDDEN, WEIGHT, TARGETS[:1]), {}, INVALID, "targets: shape"),
    ((HIDDEN * NAN, WEIGHT, TARGETS), {}, NON_FINITE, "row 0"),
    ((HIDDEN, WEIGHT, TARGETS), {"temperature": NAN}, INVALID, "temperature is nan"),
]


@pytest.mark.parametrize("arguments, options, kind, message", LINEAR)
def test_linear_log_probs(arguments, options, kind, message):
    with pytest.raises(kind, match=message):
        lockstep.linear_log_probs(*arguments, **options)
    into = np.full(HIDDEN.shape, 7, np.float32)
    # The backward may say it in other words, but it refuses the same, and leaves what it would add to.
    with pytest.raises(kind):
        lockstep.linear_log_probs_backward(
            *arguments, **options, d_log_probs=ONES, d_hidden=into[:, : np.shape(arguments[0])[1]])
    assert (into == 7).all()


def test_linear_gradients_that_do_not_fit():
    for name, array in (
        ("d_hidden", np.zeros((3, 5), np.float32)), ("d_weight", np.zeros((5, 3), np.float32)),
        ("d_weight", np.zeros((5, 4), np.float64)), ("d_bias", np.zeros(4, np.float32)),
    ):
        with pytest.raises(INVALID, match=name):
            lockstep.linear_log_probs_backward(HIDDEN, WEIGHT, TARGETS, d_log_probs=ONES, **{name: array})
        assert not array.any()


def test_a_head_that_cannot_be():
    for weight, bias, message in (
        (WEIGHT[0], None, "weight: has 1 dimensions"), (WEIGHT.astype(np.float64), None, "weight: dtype"),
        (WEIGHT, ONES, "bias"),
    ):
        with pytest.raises(INVALID, match=message):
            lockstep.Head(weight, bias)
    with lockstep.Head(WEIGHT) as head, pytest.raises(INVALID, match="hidden: rows have 3"):
        head.log_probs(HIDDEN[:, :3], TARGETS)


CONVERT = [
    ((ONES, "fp12"), {}, "dtype is 'fp12'; give one of fp16, bf16"),
    ((ONES, None), {}, "dtype is None"),
    ((ONES, np.int64), {}, "dtype is <class 'numpy.int64'>"),
    ((TARGETS, "fp16"), {}, "source"),
    ((ONES, "fp16", "up"), {}, "rounding is 'up'; give one of 'nearest_even'"),
    ((ONES, "fp16", "stochastic", -1), {}, "seed is -1"),
    ((ONES, "fp16", "stochastic", 2**64), {}, "seed is 18446744073709551616"),
    ((ONES, "fp16", "stochastic", 0, 2**64 - 1), {}, "first_index"),
    ((ONES, "fp16"), {"out": np.zeros(3, np.float32)}, "out: its dtype is not the format"),
    ((ONES, "fp16"), {"out": np.zeros(2, np.float16)}, "destination: shape"),
    ((ONES, "fp64"), {"out": np.broadcast_to(np.zeros(1), 3)}, "read-only"),
    ((np.zeros((1,) * 9, np.float32), "fp16"), {}, "ndim is 9"),
]


@pytest.mark.parametrize("arguments, options, message", CONVERT)
def test_convert(arguments, options, message):
    with pytest.raises(INVALID, match=message):
        lockstep.convert(*arguments, **options)


def test_ulp_distance():
    for a, b in ((ONES, ONES.astype(np.float16)), (ONES, ONES[:2]), (TARGETS, TARGETS)):
        with pytest.raises(INVALID, match="b:|a:"):
            lockstep.ulp_distance(a, b)


LOG = np.array([-1.0, -2.0, -3.0])
BAD_LOG = np.array([-1.0, NAN, -3.0])

MISMATCH = [
    ((LOG, LOG[:2]), {}, INVALID, "rollout_log_probs"),
    ((LOG, LOG, [True, False]), {}, INVALID, "mask"),
    ((LOG, LOG, None, [0, 2]), {}, INVALID, r"offsets"),
    ((LOG, LOG, None, [1, 3]), {}, INVALID, r"offsets"),
    ((LOG, LOG, None, [0, 2, 1, 3]), {}, INVALID, r"offsets\[2\] is 1"),
    ((LOG, LOG, None, [0.0, 3.0]), {}, INVALID, "offsets: dtype float64; give int64"),
    ((LOG, LOG, None, np.zeros(0, np.int64)), {}, INVALID, "offsets"),
    ((LOG[None], LOG[None], None, [0, 3]), {}, INVALID, "offsets"),
    (([LOG, LOG], [LOG, LOG], None, [0, 3, 6]), {}, INVALID, "offsets: not with a list"),
    (([LOG, LOG], [LOG]), {}, INVALID, "rollout_log_probs: give a list of 2 sequences"),
    (([LOG, LOG], [LOG, LOG[:2]]), {}, INVALID, r"rollout_log_probs\[1\]: shape \[2\]; the sequence has 3"),
    (([LOG, LOG], LOG), {}, INVALID, "rollout_log_probs: give a list"),
    (([LOG], [LOG], [[True]]), {}, INVALID, r"mask\[0\]: shape \[1\]"),
    ((TARGETS, TARGETS), {}, INVALID, "trainer_log_probs"),
    ((LOG.reshape(1, 1, 3), LOG.reshape(1, 1, 3)), {}, INVALID, "trainer_log_probs"),
    ((BAD_LOG, LOG), {}, NON_FINITE, "trainer_log_probs: sequence 0, position 1"),
    ((LOG, np.full(3, INF)), {}, NON_FINITE, "rollout_log_probs: sequence 0, position 0"),
    ((LOG, LOG), {"non_finite": "ignore"}, INVALID, "non_finite is 'ignore'; give one of 'strict'"),
    ((LOG, LOG), {"threads": -5}, INVALID, "threads is -5"),
]


@pytest.mark.parametrize("arguments, options, kind, message", MISMATCH)
@pytest.mark.parametrize("call", [
    lockstep.mismatch, lockstep.mismatch_sequences,
    lambda *arguments, **options: lockstep.mismatch_profile(*arguments, **options, edges=[0, 10]),
], ids=["measure", "sequences", "profile"])
def test_mismatch(call, arguments, options, kind, message):
    with pytest.raises(kind, match=message):
        call(*arguments, **options)


def test_profile_edges():
    for edges in ([1.0], [], [0, 0], [0, 2, 1], [0, NAN], [[0, 1]]):
        with pytest.raises(INVALID, match="edges"):
            lockstep.mismatch_profile(LOG, LOG, edges=edges)
    with pytest.raises(INVALID, match="axis is 'length'; give one of 'position'"):
        lockstep.mismatch_profile(LOG, LOG, edges=[0, 1], axis="length")


def test_exact_mismatch():
    for arguments, options, kind, message in (
        ((LOGITS, LOGITS[:2]), {}, INVALID, "rollout_logits: shape"),
        ((LOGITS, LOGITS.repeat(2, 1)[:, ::2]), {}, INVALID, r"rollout_logits: strides\[1\]"),
        ((LOGITS, LOGITS.astype(np.float64)), {}, INVALID, "rollout_logits: dtype"),
        ((LOGITS, LOGITS, [True]), {}, INVALID, "mask: shape"),
        ((LOGITS, with_row(1, NAN)), {}, NON_FINITE, "row 1"),
        ((with_row(2, -INF), LOGITS), {}, NON_FINITE, "row 2"),
        ((LOGITS, LOGITS), {"temperature": 0}, INVALID, "temperature is 0"),
    ):
        with pytest.raises(kind, match=message):
            lockstep.exact_mismatch(*arguments, **options)


# What the Python functions never pass, by the C functions themselves

def raw_log_probs(logits, targets, options=None, out=None):
    return c.library.lockstep_log_probs(out, None, None, None, logits, targets, options)


def tensor(x: np.ndarray) -> c.Tensor:
    """The struct of an array, of either binding, as ctypes: to be spoilt."""
    return c.Tensor.from_buffer(view(x, "x").tensor())


def last_error() -> str:
    return c.library.lockstep_last_error().decode()


def test_null():
    for name, arguments in (("logits", (None, tensor(TARGETS))), ("targets", (tensor(LOGITS), None))):
        assert raw_log_probs(*arguments) == c.ERROR_INVALID_ARGUMENT
        assert last_error() == f"{name} is NULL"
    c.library.lockstep_head_destroy(None)


@pytest.mark.parametrize("field, value, message", [
    ("data", None, "data is NULL"),
    ("ndim", 0, "ndim is 0"), ("ndim", -1, "ndim is -1"), ("ndim", 9, "ndim is 9"), ("ndim", 3, ""),
    ("shape", None, "shape may be NULL"),
    ("dtype", c.Dtype(2, 32, 2), "lanes 2"), ("dtype", c.Dtype(99, 32, 1), "code 99"),
    ("dtype", c.Dtype(2, 33, 1), "bits 33"), ("dtype", c.Dtype(0, 0, 0), "bits 0"),
    ("device", c.Device(2, 0), "device_type is 2"),
    ("byte_offset", 2**63, "byte_offset"), ("byte_offset", 1, "not aligned"),
])
def test_tensor_fields(field, value, message):
    """Each field of a tensor, wrong by itself."""
    shape = (ctypes.c_int64 * 9)(3, 5, 1, 1, 1, 1, 1, 1, 1)
    broken = tensor(LOGITS)
    broken.shape = ctypes.addressof(shape)
    setattr(broken, field, value)
    out = np.full(3, 7, np.float32)
    assert raw_log_probs(broken, tensor(TARGETS), out=tensor(out)) == c.ERROR_INVALID_ARGUMENT
    assert "logits" in last_error() and message in last_error() and (out == 7).all()


@pytest.mark.parametrize("extents, steps", [
    ((-1, 5), None), ((3, -5), None), ((2**62, 2**62), None), ((2**40, 2**40), None), ((2**63 - 1, 5), None),
    ((3, 5), (2**62, 1)), ((3, 5), (-(2**63), 1)), ((3, 5), (5, -1)), ((3, 5), (5, 0)),
])
def test_counts_and_strides(extents, steps):
    """Negative, huge, overflowing: refused before any memory is touched."""
    broken = tensor(LOGITS)
    shape = (ctypes.c_int64 * 2)(*extents)
    broken.shape = ctypes.addressof(shape)
    if steps:
        strides = (ctypes.c_int64 * 2)(*steps)
        broken.strides = ctypes.addressof(strides)
    out = np.full(3, 7, np.float32)
    assert raw_log_probs(broken, tensor(TARGETS), out=tensor(out)) == c.ERROR_INVALID_ARGUMENT
    assert last_error().startswith("logits") and (out == 7).all()


@pytest.mark.parametrize("make", [
    lambda: c.LogProbsOptions(0), lambda: c.LogProbsOptions(47),
    lambda: c.LogProbsOptions(2**32 - 1),
], ids=["zero", "short", "huge"])
def test_struct_size(make):
    options = make()
    options.temperature, options.top_p = 1, 1
    out = np.full(3, 7, np.float32)
    assert raw_log_probs(tensor(LOGITS), tensor(TARGETS), options, tensor(out)) == c.ERROR_INVALID_ARGUMENT
    assert "struct_size" in last_error() and (out == 7).all()


def test_a_newer_options_struct():
    """Longer is fine while the unknown bytes are zero; a set one is an error that says where."""
    class Newer(ctypes.Structure):
        _fields_ = [("known", c.LogProbsOptions), ("unknown", ctypes.c_uint64)]

    known = lockstep._log_probs._options(1.0, None, -100, None, 0, "best")
    known.struct_size = sizeof(Newer)
    for unknown, status in ((0, c.OK), (1 << 24, c.ERROR_INVALID_ARGUMENT)):
        newer = Newer(known, unknown)
        options = ctypes.cast(ctypes.pointer(newer), ctypes.POINTER(c.LogProbsOptions))
        assert raw_log_probs(tensor(LOGITS), tensor(TARGETS), options) == status
    assert f"offset {sizeof(c.LogProbsOptions) + 3}" in last_error()


@pytest.mark.parametrize("field, value", [
    ("instruction_set", 99), ("instruction_set", -1), ("logits_dtype", 1), ("logits_dtype", c.INT32),
    ("logits_dtype", -1), ("threads", -(2**31)),
])
def test_unknown_enums(field, value):
    options = lockstep._log_probs._options(1.0, None, -100, None, 0, "best")
    setattr(options, field, value)
    out = np.full(3, 7, np.float32)
    assert raw_log_probs(tensor(LOGITS), tensor(TARGETS), options, tensor(out)) == c.ERROR_INVALID_ARGUMENT
    assert field in last_error() and (out == 7).all()


def test_unknown_values_elsewhere():
    options = c.ConvertOptions(sizeof(c.ConvertOptions), 77)
    out = np.full(3, 7, np.float16)
    assert c.library.lockstep_convert(tensor(out), None, tensor(ONES), options) == c.ERROR_INVALID_ARGUMENT
    assert "rounding is 77" in last_error() and (out == 7).all()
    mismatch = c.Mismatch(sizeof(c.Mismatch))
    wrong = c.MismatchOptions(sizeof(c.MismatchOptions), 9)
    inputs = (tensor(LOG), tensor(LOG), None, None)
    assert c.library.lockstep_mismatch_measure(mismatch, *inputs, wrong) == c.ERROR_INVALID_ARGUMENT
    assert "non_finite is 9" in last_error() and mismatch.tokens == 0
    for size in (0, 7, 2**32 - 1):
        mismatch.struct_size = size
        assert c.library.lockstep_mismatch_measure(mismatch, *inputs, None) == c.ERROR_INVALID_ARGUMENT
        assert "struct_size" in last_error()
    assert c.library.lockstep_mismatch_measure(None, *inputs, None) == c.ERROR_INVALID_ARGUMENT
    bucket, edges = c.MismatchBucket(), (ctypes.c_double * 2)(0, 1)
    assert c.library.lockstep_mismatch_profile(
        ctypes.addressof(bucket), 1, ctypes.addressof(edges), 9, *inputs, None) == c.ERROR_INVALID_ARGUMENT
    assert "axis is 9" in last_error()
    assert c.library.lockstep_mismatch_profile(
        ctypes.addressof(bucket), 1, None, 0, *inputs, None) == c.ERROR_INVALID_ARGUMENT
    # A size_t beyond what a signed count holds, and one that is not the number of sequences.
    for count in (2**64 - 1, 2**63, 2):
        assert c.library.lockstep_mismatch_sequences(
            ctypes.addressof(bucket), count, *inputs, None) == c.ERROR_INVALID_ARGUMENT
    assert c.library.lockstep_mismatch_sequences(None, 1, *inputs, None) == c.ERROR_INVALID_ARGUMENT


def test_every_status_has_its_exception():
    from lockstep._errors import error_of
    for status, kind in enumerate((
        lockstep.InvalidArgumentError, lockstep.UnsupportedError, lockstep.NonFiniteError,
        lockstep.OutOfMemoryError, lockstep.InternalError), start=1):
        error = error_of(status, "text")
        assert type(error) is kind and error.status == status == kind.status and str(error) == "text"
    assert error_of(99, "text").status == 99
    assert issubclass(INVALID, ValueError) and issubclass(lockstep.OutOfMemoryError, MemoryError)
    assert c.library.lockstep_status_name(3) == b"LOCKSTEP_ERROR_NON_FINITE"
    assert c.library.lockstep_status_name(99) == b"unknown status"
