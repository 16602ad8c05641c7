"""The two ways from Python to the library, ctypes and the extension: the choice, and that nobody can tell them apart.

`make test-python` runs these tests, and all others, over the extension where it can be built; `make test-ctypes` runs those
that cross the binding over ctypes.
"""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lockstep
from conftest import ROOT, OnlyDlpack
from lockstep import _binding, _tensors
from lockstep import _library as c
from lockstep._tensors import _view, view

EXTENSION = lockstep.binding == "extension"
needs_extension = pytest.mark.skipif(not EXTENSION, reason="the binding under test is ctypes")


@pytest.fixture(scope="module", autouse=True)
def _collections_are_quick():
    """What other tests have loaded (PyTorch, Ray and more) is not searched at each `gc.collect()`."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


# The choice

def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    package = os.path.dirname(os.path.dirname(lockstep.__file__))
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": package} | environment)


def test_one_can_be_forced():
    for wanted in ("ctypes", "extension") if EXTENSION else ("ctypes",):
        assert run("import lockstep; print(lockstep.binding)", LOCKSTEP_PYTHON_BINDING=wanted).stdout == f"{wanted}\n"


def test_an_unknown_one_is_an_error():
    result = run("import lockstep", LOCKSTEP_PYTHON_BINDING="swig")
    assert result.stderr.splitlines()[-1] == (
        "ImportError: lockstep: LOCKSTEP_PYTHON_BINDING is 'swig'; give 'ctypes' or 'extension', or leave it out")


@pytest.mark.parametrize("content", [None, b"no library"])
def test_without_the_extension(content, tmp_path, monkeypatch):
    """Forced, it is an error that says what to do; else ctypes is used, without a word."""
    if content is not None:
        (tmp_path / _binding.FILE_NAME).write_bytes(content)
    monkeypatch.setattr(_binding, "places", lambda: [str(tmp_path)])
    assert _binding.choose(None) is _binding.choose("") is _binding.choose("ctypes") is None
    with pytest.raises(ImportError, match="is 'extension', but .*_fast.abi3.so.*Python.h and a C compiler"):
        _binding.choose("extension")


def test_an_older_python_uses_ctypes(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 9))
    assert _binding.choose(None) is None
    with pytest.raises(ImportError, match="the extension needs CPython 3.11 or later"):
        _binding.choose("extension")


def test_the_command_says_which():
    code = "from lockstep.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code, "--version"], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(lockstep.__file__))})
    assert result.stdout == f"lockstep, version {lockstep.__version__} ({lockstep.binding})\n"


# How it is built

BUILD = ROOT / "bindings" / "python" / "extension" / "build.py"


def build(folder, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, BUILD, folder, "-Werror"], capture_output=True, text=True, env=os.environ | environment)


def test_it_compiles_without_warnings(tmp_path):
    if _binding.fast is None and build(tmp_path).returncode:
        pytest.skip("there is no Python.h or no C compiler")
    result = build(tmp_path)
    assert result.returncode == 0 and result.stdout == result.stderr == "", result.stdout + result.stderr
    assert (tmp_path / _binding.FILE_NAME).exists()


@pytest.mark.parametrize("compiler", ["false", os.path.join(os.sep, "no", "compiler")])
def test_it_is_left_out_quietly(compiler, tmp_path):
    """One line, no file: not even an older one."""
    (tmp_path / _binding.FILE_NAME).write_bytes(b"of yesterday")
    result = build(tmp_path, CC=compiler)
    assert result.returncode == 1 and result.stderr == ""
    assert result.stdout.splitlines()[0].startswith("lockstep: built without its CPython extension, which ")
    assert not (tmp_path / _binding.FILE_NAME).exists()


@needs_extension
def test_it_needs_nothing_but_the_limited_api():
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    path = next(os.path.join(each, _binding.FILE_NAME) for each in _binding.places()
                if os.path.exists(os.path.join(each, _binding.FILE_NAME)))
    symbols = subprocess.run(["nm", "-D", path], capture_output=True, text=True, check=True).stdout.split("\n")
    wanted = {line.split()[-1].partition("@")[0] for line in symbols if " U " in line}
    exported = {line.split()[-1] for line in symbols if " T " in line}
    assert exported == {"PyInit__fast"}
    # The private names that the limited API's macros stand for.
    assert {each for each in wanted if each.startswith("_Py")} <= {
        "_Py_NoneStruct", "_Py_TrueStruct", "_Py_FalseStruct", "_Py_Dealloc", "_PyArg_ParseTuple_SizeT",
        "_PyArg_ParseTupleAndKeywords_SizeT", "_Py_BuildValue_SizeT"}
    assert {each for each in wanted if not each.startswith(("Py", "_Py"))} <= {"strcmp", "strlen", "__stack_chk_fail"}


@needs_extension
def test_it_calls_every_function_it_can():
    """All but those with text, structs by value or a callback as an argument or a result."""
    left = {name for name in c.SIGNATURES if isinstance(getattr(c.library, name), ctypes._CFuncPtr)}
    assert left == {
        "lockstep_version", "lockstep_version_string", "lockstep_status_name", "lockstep_last_error",
        "lockstep_preset_name", "lockstep_observe_loading",
        *(f"lockstep_{kind}_{way}" for kind in ("fp16", "bf16", "fp8_e4m3fn", "fp8_e5m2")
          for way in ("to_float", "from_float"))}


# Arrays: what the extension describes is what Python does

def outcome(make, x, **options):
    """The fields of a view, or its error: everything a caller can see."""
    try:
        found = make(x, "x", **options)
    except Exception as error:  # noqa: BLE001: any, to be compared
        return type(error), str(error)
    return (found.name, found.data, found.code, found.shape, found.strides, found.is_torch, type(found.shape),
            type(found.strides), bytes(c.Tensor.from_buffer(found.tensor()))[:24], found.owner is x)


def same(x) -> None:
    for written in (False, True):
        assert outcome(view, x, written=written) == outcome(_view, x, written=written)


DTYPES = ["float32", "float64", "float16", "int8", "int16", "int32", "int64", "longlong", "uint8", "uint16", "uint32",
          "uint64", "ulonglong", "bool", "complex64", ">f4", ">i8", "S3", "U2", "datetime64[s]", "O", "f4,f4", "V4"]
CUTS = st.tuples(*[st.tuples(st.integers(-4, 4), st.integers(-4, 4), st.sampled_from([1, 2, -1, -3]))] * 3)


@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3), CUTS, st.booleans(), st.randoms())
def test_numpy_arrays(dtype, shape, cuts, writeable, random):
    x = np.zeros(shape, dtype)[(*(slice(*cut) for cut in cuts[: len(shape)]), ...)]  # ...: of no dimensions too, an array
    x = x.transpose(random.sample(range(x.ndim), x.ndim))
    x.flags.writeable = writeable and x.flags.writeable
    same(x)


def test_rare_numpy_arrays(ml_dtypes):
    class Subclass(np.ndarray):
        pass

    structured = np.zeros(4, [("a", np.float32), ("b", np.uint8)])
    for x in (structured, structured["a"], np.zeros((2,) * 32, np.uint8), np.broadcast_to(np.float32(1), (3, 4)),
              np.zeros(3, np.float32).view(Subclass), np.ma.masked_array([1.0], [True]), np.float32(2), np.array(2.0),
              np.zeros((2, 3), ml_dtypes.bfloat16), np.zeros(3, ml_dtypes.float8_e5m2),
              np.frombuffer(b"\0" * 9, np.float32, 2, 1)):
        same(x)


@pytest.mark.parametrize("x", [
    None, "text", b"bytes", bytearray(4), memoryview(b"1234"), object(), [1, 2], [[1], [1, 2]], 1.5, {}, range(3), int,
    np.ndarray, np.dtype(float),
], ids=repr)
def test_other_objects(x):
    first, second = outcome(view, x), outcome(_view, x)
    assert first == second or (first[0], *first[2:]) == (second[0], *second[2:])  # np.asarray copies: another address


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int16",
                                   "int32", "int64", "uint8", "bool", "complex64"])
def test_torch_tensors(torch, dtype):
    view(torch.zeros(1), "x")  # the first tensor tells the extension of PyTorch
    x = torch.zeros(4, 6, 2, dtype=getattr(torch, dtype))
    for each in (x, x[1:, ::2], x.transpose(0, 2), x[:0], x[:, :1], x[2, 1, 0], x.expand(1, 4, 6, 2), x[:, 3:].detach(),
                 torch.zeros(2, 3, dtype=x.dtype, device="meta"), x.to_sparse() if x.is_floating_point() and x.element_size() > 1 else x):
        same(each)
    if x.is_floating_point() and x.element_size() > 1:
        same(x.requires_grad_())
        same(torch.nn.Parameter(x.detach()[1:]))


def test_torch_subclasses(torch):
    class Ours(torch.Tensor):
        pass

    same(torch.zeros(2, 3).as_subclass(Ours))


def test_the_first_tensor_of_pytorch_is_one(torch):
    """Also of a package that has not met PyTorch, where the tensor's __dlpack__ would do."""
    code = "import torch; from lockstep._tensors import view; print([view(torch.zeros(2), 'x').is_torch for _ in range(2)])"
    assert run(code).stdout.strip() == "[True, True]"


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "bool", "int8", "complex64"])
def test_dlpack(dtype, versioned):
    x = np.zeros((4, 6), dtype)
    for each in (x, x[1:, ::2], x.T, x[:0], x[2, 3]):
        found, expected = (outcome(make, OnlyDlpack(each, versioned=versioned)) for make in (view, _view))
        assert found == expected


def test_dlpack_of_torch(torch):
    for x in (torch.ones(3, 5, dtype=torch.bfloat16)[:, 1:], torch.ones(2, requires_grad=True), torch.zeros(2, device="meta")):
        assert outcome(view, OnlyDlpack(x)) == outcome(_view, OnlyDlpack(x))


class Managed(ctypes.Structure):
    """DLManagedTensor, for capsules no library makes."""

    _fields_ = [("tensor", c.Tensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class ManagedVersioned(ctypes.Structure):
    _fields_ = [("head", _tensors._VersionedHead), ("tensor", c.Tensor)]


DESTRUCTOR = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)


class Capsules:
    """Makes capsules over one array, and counts those that were destroyed."""

    def __init__(self, *, versioned=False, name=None, major=1, flags=0, device=(1, 0), **fields):
        self.memory = np.arange(24, dtype=np.float32)
        self.shape = (ctypes.c_int64 * 3)(2, 3, 4)
        tensor = c.Tensor(self.memory.ctypes.data, c.Device(*device), 3, c.Dtype(2, 32, 1), ctypes.addressof(self.shape), None, 0)
        for key, value in fields.items():
            setattr(tensor, key, value)
        self.managed = ManagedVersioned(_tensors._VersionedHead(major, 0, None, None, flags), tensor) if versioned else (
            Managed(tensor))
        self.name = name or (b"dltensor_versioned" if versioned else b"dltensor")
        self.device, self.made, self.destroyed = device, 0, 0
        self.destructor = DESTRUCTOR(self._destroy)

    def _destroy(self, _):
        self.destroyed += 1

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, max_version=None):
        self.made += 1
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self.managed), self.name, ctypes.cast(self.destructor, ctypes.c_void_p))


STRIDES = (ctypes.c_int64 * 3)(1, 2, 6)
HOSTILE = [
    {}, {"versioned": True}, {"byte_offset": 8}, {"versioned": True, "byte_offset": 4}, {"strides": ctypes.addressof(STRIDES)},
    {"ndim": 0}, {"ndim": 2}, {"ndim": 0, "strides": ctypes.addressof(STRIDES)}, {"dtype": c.Dtype(2, 32, 4)},
    {"dtype": c.Dtype(17, 4, 1)}, {"dtype": c.Dtype(4, 16, 1)}, {"versioned": True, "major": 2},
    {"versioned": True, "flags": 1}, {"versioned": True, "flags": 2}, {"name": b"used_dltensor"}, {"name": b"another"},
    {"device": (2, 1)}, {"device": (0, 0)},
]


@pytest.mark.parametrize("options", HOSTILE, ids=str)
def test_capsules(options):
    """Every field of a capsule: the same view or the same error, and every capsule is destroyed once, by itself."""
    for written in (False, True):
        producer = Capsules(**options)
        first, second = outcome(view, producer, written=written), outcome(_view, producer, written=written)
        assert first == second
        gc.collect()
        assert producer.made == producer.destroyed and (producer.made > 0) == (producer.device[0] == 1)


def test_a_capsule_is_kept_and_not_renamed():
    """It frees itself once, with the last view of it; nobody else could consume it twice."""
    producer = Capsules(versioned=True)
    found = view(producer, "x")
    tensor = found.tensor()
    assert ctypes.pythonapi.PyCapsule_IsValid(ctypes.py_object(found.owner), b"dltensor_versioned")
    part = found.with_layout(found.data, (2,), None)
    del found, tensor
    assert producer.destroyed == 0
    del part
    assert producer.destroyed == 1


def test_a_producer_that_fails():
    class Fails(Capsules):
        def __dlpack__(self, **options):
            raise self.error

    for error in (BufferError("no"), TypeError("neither"), RuntimeError("at all")):
        producer = Fails()
        producer.error = error
        assert outcome(view, producer) == outcome(_view, producer) == (type(error), str(error))
    producer.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        view(producer, "x")


# Arguments of functions

def test_arguments_of_every_kind():
    """What the package hands over: nothing, structs, byref, pointers, arrays, addresses, handles, bytes."""
    x, y = np.float32([1, 2]), np.zeros(2, np.float16)
    counts, options = c.ConvertCounts(), c.ConvertOptions(ctypes.sizeof(c.ConvertOptions))
    read, write = view(x, "x").tensor(), view(y, "y").tensor()
    as_array = (c.Tensor * 1).from_buffer_copy(read)
    for counted in (None, counts, ctypes.byref(counts), ctypes.pointer(counts)):
        for source in (read, c.Tensor.from_buffer(read), as_array):
            y[:] = 0
            assert c.library.lockstep_convert(write, counted, source, options) == c.OK
            assert y.tolist() == [1, 2]
    for size in (ctypes.c_size_t(), ctypes.pointer(ctypes.c_size_t())):
        handle = ctypes.c_void_p()
        assert c.library.lockstep_monitor_create(ctypes.byref(handle), None) == c.OK
        assert c.library.lockstep_monitor_save(None, size, handle) == c.OK
        assert c.library.lockstep_monitor_destroy(handle.value) is None


@pytest.mark.parametrize("arguments", [
    (), (None,) * 3,
    pytest.param((None,) * 5, marks=pytest.mark.skipif(
        lockstep.binding == "ctypes", reason="ctypes gives a C function more than it takes, which does not see it")),
    (3.5, None, None, None), ("text", None, None, None), (c.ConvertOptions(), None, None, None),
    ((c.ConvertCounts * 1)(), None, None, None), (ctypes.pointer(c.ConvertCounts()), None, None, None), (object(),) * 4,
], ids=repr)
def test_wrong_arguments_are_refused(arguments):
    """Before the library sees them: a mistake in this package must not become a crash."""
    with pytest.raises((TypeError, ctypes.ArgumentError)):
        c.library.lockstep_convert(*arguments)


def test_numbers_are_cut_as_by_ctypes():
    reference = ctypes.CDLL(c.library.path).lockstep_has_instruction_set
    reference.argtypes = [ctypes.c_int32]
    for number in (0, 1, 2**32, 2**32 + 1, -(2**32), np.int64(1), True):
        assert c.library.lockstep_has_instruction_set(number) == reference(number)
    with pytest.raises((TypeError, ctypes.ArgumentError)):
        c.library.lockstep_has_instruction_set(1.0)


# Memory, threads

def blocks_after(action, times: int) -> int:
    for _ in range(times):
        action()
    gc.collect()
    return sys.getallocatedblocks()


def calls():
    logits, targets = np.ones((2, 8), np.float32), np.zeros(2, np.int64)
    bad = np.full((2, 8), np.nan, np.float32)
    producer, strided = OnlyDlpack(logits), np.ones((4, 8), np.float32)[::2]
    monitor_source = lockstep.mismatch(logits[0] - 2, logits[0] - 2)

    def failing():
        with pytest.raises(lockstep.NonFiniteError):
            lockstep.log_probs(bad, targets)

    def refused():
        with pytest.raises(lockstep.InvalidArgumentError):
            view(np.zeros(2, np.int16), "x")

    def monitored():
        lockstep.Monitor().update(0, monitor_source)

    return {
        "array": lambda: lockstep.log_probs(logits, targets), "strided": lambda: lockstep.log_probs(strided, targets),
        "dlpack": lambda: lockstep.log_probs(producer, targets), "error": failing, "refused": refused, "handle": monitored,
        "batch": lambda: lockstep.correct(logits - 3, logits - 3), "norm": lambda: lockstep.gradient_norm([logits, bad]),
    }


@pytest.mark.parametrize("name", calls())
def test_nothing_is_left_behind(name):
    action = calls()[name]
    blocks_after(action, 20)
    before = blocks_after(action, 20)
    assert blocks_after(action, 500) - before < 100  # fewer than one in five calls


def test_arrays_live_as_long_as_their_tensors(torch):
    for make in (lambda: np.zeros(4, np.float32), lambda: torch.zeros(4)):
        x = make()
        gone = weakref.ref(x)
        before = sys.getrefcount(x)
        found = view(x, "x")
        tensor = found.tensor()
        del found
        assert sys.getrefcount(x) == before + 1
        del x
        assert gone() is not None
        del tensor
        gc.collect()
        assert gone() is None


def advances(call, times: int) -> bool:
    """Whether another thread gets to run while `call` does, the interpreter itself never switching."""
    gate, ran = threading.Semaphore(0), []

    def other():
        gate.acquire()
        ran.append(True)

    thread = threading.Thread(target=other)
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        gate.release()
        for _ in range(times):
            call()
            if ran:
                break
        return bool(ran)
    finally:
        sys.setswitchinterval(interval)
        thread.join()


def test_the_gil_is_released():
    x, y = np.ones(1 << 20, np.float32), np.empty(1 << 20, np.float16)
    read, write = view(x, "x").tensor(), view(y, "y").tensor()
    convert, options = c.library.lockstep_convert, c.ConvertOptions(ctypes.sizeof(c.ConvertOptions), threads=1)
    assert advances(lambda: convert(write, None, read, options), 10_000)
    held = ctypes.PyDLL(c.library.path).lockstep_convert  # the same call with the GIL: the test can fail
    held.argtypes = [ctypes.c_void_p] * 4
    given = [ctypes.addressof(c.Tensor.from_buffer(each)) for each in (write, read)]
    assert not advances(lambda: held(given[0], None, given[1], ctypes.addressof(options)), 20)


def test_many_threads_at_once():
    """Calls on their own arrays and on shared ones: each has the result it has alone."""
    rng = np.random.default_rng(0)
    inputs = [(rng.normal(size=(rows, 50)).astype(np.float32), rng.integers(0, 50, rows)) for rows in range(1, 17)]
    expected = [lockstep.log_probs(*each, threads=1) for each in inputs]

    def work(index: int) -> bool:
        logits, targets = inputs[index % 16]
        given = OnlyDlpack(logits) if index % 3 else logits
        try:
            lockstep.log_probs(given, targets + 100, threads=1)
            return False
        except lockstep.InvalidArgumentError as error:
            said = str(targets[0] + 100) in str(error)  # the text of this thread's call
        return said and np.array_equal(lockstep.log_probs(given, targets, threads=1), expected[index % 16])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(800)))
