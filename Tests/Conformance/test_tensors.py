"""Arrays of every kind reach the library in place, and results come back in the caller's kind."""

from __future__ import annotations

import array
import ctypes

import numpy as np
import pytest

import lockstep
from conftest import OnlyDlpack
from lockstep import _library as c
from lockstep import _tensors
from lockstep._tensors import View, row_blocks, row_matrix, token_vector, view

LOGITS = np.random.default_rng(1).normal(0, 3, (2, 3, 40)).astype(np.float32)
TARGETS = np.random.default_rng(2).integers(0, 40, (2, 3))


class OnlyInterface:
    """An array that has nothing but `__array_interface__`."""

    def __init__(self, owner):
        self.owner = owner
        self.__array_interface__ = owner.__array_interface__


def read(tensor: c.Tensor) -> tuple:
    """What the library sees in a struct: of ctypes, or the extension's."""
    tensor = c.Tensor.from_buffer(tensor)
    numbers = ctypes.c_int64 * tensor.ndim
    shape = tuple(numbers.from_address(tensor.shape))
    strides = tuple(numbers.from_address(tensor.strides)) if tensor.strides else None
    dtype = tensor.dtype
    code = dtype.code | dtype.bits << 8 | dtype.lanes << 16
    device = (tensor.device.device_type, tensor.device.device_id)
    return tensor.data + tensor.byte_offset, code, shape, strides, device


NUMPY_DTYPES = {
    "float32": c.FLOAT32, "float64": c.FLOAT64, "float16": c.FLOAT16, "int32": c.INT32, "int64": c.INT64,
    "uint8": c.UINT8, "uint64": c.UINT64, "bool": c.BOOL,
}
EXTENSION_DTYPES = {
    "bfloat16": c.BFLOAT16, "float8_e4m3fn": c.FLOAT8_E4M3FN, "float8_e5m2": c.FLOAT8_E5M2,
}


@pytest.mark.parametrize("name", NUMPY_DTYPES)
def test_numpy_in_place(name):
    x = np.zeros((4, 6), name)
    assert read(view(x, "x").tensor()) == (x.ctypes.data, NUMPY_DTYPES[name], (4, 6), None, (1, 0))
    cut = x[1::2, ::-1]
    assert read(view(cut, "x").tensor()) == (cut.ctypes.data, NUMPY_DTYPES[name], (2, 6), (12, -1), (1, 0))


@pytest.mark.parametrize("name", EXTENSION_DTYPES)
def test_ml_dtypes_in_place(name, ml_dtypes):
    x = np.zeros((4, 6), getattr(ml_dtypes, name))
    assert read(view(x, "x").tensor()) == (x.ctypes.data, EXTENSION_DTYPES[name], (4, 6), None, (1, 0))


@pytest.mark.parametrize("name, grad", [(name, False) for name in NUMPY_DTYPES | EXTENSION_DTYPES] + [
    (name, True) for name in ("float32", "float64", "float16", "bfloat16")])
def test_torch_in_place(name, grad, torch):
    x = torch.zeros(4, 6, dtype=getattr(torch, name), requires_grad=grad)
    code = (NUMPY_DTYPES | EXTENSION_DTYPES)[name]
    assert read(view(x, "x").tensor()) == (x.data_ptr(), code, (4, 6), None, (1, 0))
    cut = x[1:, 2:4]
    assert read(view(cut, "x").tensor()) == (cut.data_ptr(), code, (3, 2), (6, 1), (1, 0))


@pytest.mark.parametrize("name", NUMPY_DTYPES)
@pytest.mark.parametrize("versioned", [False, True])
def test_dlpack_in_place(name, versioned):
    x = np.zeros((4, 6), name)[1:, ::2]
    found = view(OnlyDlpack(x, versioned=versioned), "x")
    assert read(found.tensor()) == (x.ctypes.data, NUMPY_DTYPES[name], (3, 3), (6, 2), (1, 0))
    assert not found.is_torch


def test_dlpack_of_bf16(torch):
    x = torch.ones(3, 5, dtype=torch.bfloat16)
    found = view(OnlyDlpack(x), "x")
    assert (found.data, found.code, found.shape) == (x.data_ptr(), c.BFLOAT16, (3, 5))


def test_a_capsule_outlives_its_array():
    """The memory stays while a struct over it does, and is given back afterwards."""
    x = np.arange(6.0)
    alive = [x]
    tensor = view(OnlyDlpack(x), "x").tensor()
    import sys
    before = sys.getrefcount(x)
    del tensor
    assert sys.getrefcount(x) == before - 1
    assert alive[0] is x


@pytest.mark.parametrize("versioned", [False, True])
def test_dlpack_read_only_is_no_output(versioned):
    x = np.zeros(3, np.float32)
    x.flags.writeable = False
    with pytest.raises(lockstep.InvalidArgumentError, match="out: the array is read-only"):
        view(x, "out", written=True)
    if versioned and np.lib.NumpyVersion(np.__version__) >= "2.1.0":
        with pytest.raises(lockstep.InvalidArgumentError, match="out: the array is read-only"):
            view(OnlyDlpack(x), "out", written=True)


def test_array_interface_and_buffers_in_place():
    x = np.zeros((2, 3), np.float32)
    assert view(OnlyInterface(x), "x").data == x.ctypes.data
    numbers = array.array("d", [1.0, 2.0])
    assert read(view(numbers, "x").tensor())[:3] == (numbers.buffer_info()[0], c.FLOAT64, (2,))
    assert view([1, 2, 3], "x").code == c.INT64
    assert view(3, "x").shape == ()
    assert read(view(3, "x").tensor())[2] == (1,)


@pytest.mark.parametrize("x, message", [
    (np.zeros(2, np.int16), "x: dtype int16 is not known"),
    (np.zeros(2, ">f4"), "x: dtype >f4 is not known"),
    (np.zeros(2, complex), "x: dtype complex128 is not known"),
    (np.array(["a"]), "x: dtype <U1 is not known"),
    ([object()], "x: dtype object is not known"),
    (None, "x: dtype object is not known"),
    ([[1, 2], [3]], "x: not an array"),
    (np.ma.masked_array([1.0, 2.0], [True, False]), "x: a masked array; give its .data"),
    (np.zeros(4, np.dtype([("a", np.float32), ("b", np.uint8)]))["a"], "no multiple of its 4-byte elements"),
])
def test_not_an_array_we_know(x, message):
    with pytest.raises(lockstep.InvalidArgumentError, match=message):
        view(x, "x")


def test_torch_tensors_we_do_not_take(torch):
    for x, message in (
        (torch.zeros(2, device="meta"), "the tensor is on meta; copy it to the CPU"),
        (torch.zeros(2, 2).to_sparse(), "not dense"),
        (torch.zeros(2, dtype=torch.complex64), "dtype torch.complex64 is not known"),
    ):
        with pytest.raises(lockstep.InvalidArgumentError, match=message):
            view(x, "x")


def test_dlpack_of_another_device_or_version():
    class Elsewhere(OnlyDlpack):
        def __dlpack_device__(self):
            return (2, 0)

    with pytest.raises(lockstep.InvalidArgumentError, match="device type 2 is not the CPU"):
        view(Elsewhere(np.zeros(2)), "x")


# Leading dimensions

def bases(views: list[View]) -> list[int]:
    return [each.data for each in views]


@pytest.mark.parametrize("cut, blocks", [
    (lambda x: x, 1),
    (lambda x: x[:, :, :5], 1),
    (lambda x: x[1:], 1),
    (lambda x: x[:, 0], 1),
    (lambda x: x[:, :1], 1),
    (lambda x: x[0, 0], 1),
    (lambda x: x[:, :-1], 4),
    (lambda x: x[:, :-1][:0], 1),
    (lambda x: x[:, :-1, :0], 1),
    (lambda x: x[:, ::-1], 4),
    (lambda x: np.broadcast_to(x[:1, :1], x.shape), 1),
    (lambda x: x.reshape(2, 2, 3, 7)[:, :, :2], 4),
    (lambda x: x.reshape(2, 2, 3, 7)[:, :1], 2),
    (lambda x: x.transpose(1, 0, 2), 3),
])
def test_rows_are_found_in_place(cut, blocks):
    """Every row of every view, at its address, whatever the leading dimensions are."""
    x = cut(np.arange(4 * 3 * 7, dtype=np.float32).reshape(4, 3, 7))
    found = list(row_blocks(view(x, "x")))
    assert len(found) == blocks
    rows = [block.data + 4 * row * (block.strides[0] if block.strides else block.shape[1])
            for _, (block,) in found for row in range(block.shape[0])]
    starts = [start + row for start, (block,) in found for row in range(block.shape[0])]
    leading = list(np.ndindex(x.shape[:-1]))
    assert starts == list(range(len(leading)))
    assert rows == [x[index].ctypes.data for index in leading] or x.size == 0


def test_two_matrices_are_cut_alike():
    x = np.zeros((4, 3, 7), np.float32)
    y = np.zeros((4, 5, 7), np.float16)[:, 1:4]
    blocks = list(row_blocks(view(x, "x"), view(y, "y")))
    assert [start for start, _ in blocks] == [0, 3, 6, 9]
    assert [bases(each) for _, each in blocks] == [[x[i].ctypes.data, y[i].ctypes.data] for i in range(4)]


def test_one_call_needs_one_stride():
    with pytest.raises(lockstep.InvalidArgumentError, match="hidden: the leading dimensions .* contiguous"):
        row_matrix(view(np.zeros((4, 3, 7), np.float32)[:, :-1], "hidden"))


def test_token_vectors():
    ids = np.arange(12).reshape(3, 4)
    assert read(token_vector(ids, "t", (3, 4), "x").tensor())[:1] == (ids.ctypes.data,)
    assert token_vector(ids[:, 1], "t", (3,), "x").data == ids[:, 1].ctypes.data
    copied = token_vector(ids[:, 1:], "t", (3, 3), "x")
    assert copied.shape == (9,)
    assert np.array_equal(np.ravel(copied.owner), [1, 2, 3, 5, 6, 7, 9, 10, 11])
    assert token_vector(OnlyDlpack(ids[:, 1:]), "t", (3, 3), "x").shape == (9,)
    with pytest.raises(lockstep.InvalidArgumentError, match=r"t: shape \[3, 4\] does not match \[4, 3\]"):
        token_vector(ids, "t", (4, 3), "x")


# Kinds, through a real call

def wrap(kind: str, x: np.ndarray):
    """The same numbers as another kind of array; skips where its library is missing."""
    if kind == "torch":
        return pytest.importorskip("torch").from_numpy(x.copy())
    if kind == "torch, requires_grad":
        tensor = pytest.importorskip("torch").from_numpy(x.copy())
        return tensor.requires_grad_() if tensor.is_floating_point() else tensor
    if kind == "array interface":
        return OnlyInterface(x)
    if kind.startswith("dlpack"):
        return OnlyDlpack(x, versioned=kind.endswith("1"))
    return x


KINDS = ["numpy", "torch", "torch, requires_grad", "dlpack 0", "dlpack 1", "array interface"]


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_of_the_callers_kind(kind):
    expected = lockstep.log_probs(LOGITS, TARGETS, entropy=True, log_sum_exp=True)
    assert isinstance(expected.log_probs, np.ndarray) and expected.log_probs.shape == (2, 3)
    result = lockstep.log_probs(wrap(kind, LOGITS), wrap(kind, TARGETS), entropy=True, log_sum_exp=True)
    for mine, other in zip(result, expected):
        if other is None:
            assert mine is None
            continue
        assert type(mine).__module__.startswith("torch" if kind.startswith("torch") else "numpy")
        assert np.array_equal(np.asarray(mine), other) and str(mine.dtype).endswith(str(other.dtype))


def test_kinds_mix():
    torch = pytest.importorskip("torch")
    expected = lockstep.log_probs(LOGITS, TARGETS)
    assert np.array_equal(lockstep.log_probs(LOGITS, torch.from_numpy(TARGETS)), expected)
    assert np.array_equal(lockstep.log_probs(LOGITS, TARGETS.tolist()), expected)
    assert torch.is_tensor(lockstep.log_probs(torch.from_numpy(LOGITS), TARGETS))


def test_sixteen_bits_are_one_array_to_the_library(torch, ml_dtypes):
    """bf16 through PyTorch and through ml_dtypes: the same bits in, the same bits out."""
    x = torch.from_numpy(LOGITS).to(torch.bfloat16)
    y = x.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    expected = lockstep.log_probs(x, TARGETS)
    assert np.array_equal(lockstep.log_probs(y, TARGETS), expected.numpy())
    assert np.array_equal(lockstep.log_probs(x.float(), TARGETS).numpy(), expected.numpy())


def test_shapes_of_results():
    expected = lockstep.log_probs(LOGITS, TARGETS)
    assert np.array_equal(lockstep.log_probs(LOGITS[:, :-1], TARGETS[:, :-1]), expected[:, :-1])
    assert np.array_equal(lockstep.log_probs(LOGITS.transpose(1, 0, 2), TARGETS.T), expected.T)
    one = lockstep.log_probs(LOGITS[0, 0], TARGETS[0, 0])
    assert one.shape == () and one == expected[0, 0]
    assert lockstep.log_probs(LOGITS[:0], TARGETS[:0]).shape == (0, 3)
    gradient = np.ones((2, 2), np.float32)
    assert np.array_equal(
        lockstep.log_probs_backward(LOGITS[:, :-1], TARGETS[:, :-1], gradient),
        lockstep.log_probs_backward(LOGITS[:, :-1].copy(), TARGETS[:, :-1], gradient))


def test_an_error_in_a_block_says_where():
    logits = LOGITS.copy()
    logits[1, 1, 5] = np.nan
    with pytest.raises(lockstep.NonFiniteError, match="in the block of 2 rows that starts at row 2: .*row 1"):
        lockstep.log_probs(logits[:, :-1], TARGETS[:, :-1])


def test_inputs_are_never_written():
    logits, targets = LOGITS.copy(), TARGETS.copy()
    logits.flags.writeable = targets.flags.writeable = False
    lockstep.log_probs(logits, targets)
    assert np.array_equal(logits, LOGITS)


def test_bf16_out_needs_ml_dtypes(monkeypatch):
    """Without ml_dtypes the error says what to install."""
    import sys
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    monkeypatch.setattr(_tensors, "_numpy_dtypes", {c.FLOAT32: np.dtype(np.float32)})
    with pytest.raises(lockstep.InvalidArgumentError, match="pip install ml_dtypes"):
        lockstep.convert(np.zeros(2, np.float32), "bf16")
