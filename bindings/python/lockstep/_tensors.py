"""Arrays of other libraries as `lockstep_tensor`s, without copying them.

NumPy arrays and PyTorch CPU tensors are read directly, which is quickest; anything else is asked for
`__dlpack__` and then for what `numpy.asarray` takes (the array interface, buffers, lists, numbers).
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import c_char_p, c_int64, c_uint32, c_uint64, c_void_p
from math import prod
from typing import Any, Iterator, TypeAlias

import numpy as np

from . import _library as c
from ._binding import fast
from ._errors import InvalidArgumentError

#: A NumPy array, a PyTorch CPU tensor, or anything with `__dlpack__` or `__array_interface__`.
Array: TypeAlias = Any

#: The formats and their names in Python.
FORMATS = {
    "fp16": c.FLOAT16, "bf16": c.BFLOAT16, "fp32": c.FLOAT32, "fp64": c.FLOAT64,
    "fp8_e4m3fn": c.FLOAT8_E4M3FN, "fp8_e5m2": c.FLOAT8_E5M2,
}
#: Formats whose values are stored in fp32.
EMULATED = {f"e8m{n}": c.E8M + n for n in range(1, 24)} | {f"e5m{n}": c.E5M + n for n in range(1, 11)}

# The dtypes NumPy has only with ml_dtypes, by the name NumPy and PyTorch give them.
_EXTENSION_DTYPES = {
    "bfloat16": c.BFLOAT16, "float8_e4m3fn": c.FLOAT8_E4M3FN, "float8_e5m2": c.FLOAT8_E5M2,
}
_DTYPES = {
    "float32": c.FLOAT32, "float64": c.FLOAT64, "float16": c.FLOAT16, "int32": c.INT32,
    "int64": c.INT64, "uint8": c.UINT8, "uint64": c.UINT64, "bool": c.BOOL,
}
_KNOWN = ", ".join([*_DTYPES, *_EXTENSION_DTYPES])

_numpy_codes: dict[np.dtype, int] = {np.dtype(name): code for name, code in _DTYPES.items()}
_numpy_dtypes: dict[int, np.dtype] = {code: dtype for dtype, code in _numpy_codes.items()}
# PyTorch's dtypes, filled in when its first tensor is seen: this package never imports it.
_torch_codes: dict[Any, int] = {}
_torch_dtypes: dict[int, Any] = {}

_STRUCTS = {
    code: c.Dtype(code & 0xFF, code >> 8 & 0xFF, code >> 16)
    for code in [*_DTYPES.values(), *_EXTENSION_DTYPES.values(), *EMULATED.values()]
}
_CPU = c.Device(1, 0)


class _Fields:
    """The fields of a View, and its tensor; the extension has its own."""

    __slots__ = ("name", "data", "code", "shape", "strides", "owner", "is_torch")

    def __init__(self, name, data, code, shape, strides, owner, is_torch=False) -> None:
        self.name: str = name
        self.data: int = data
        self.code: int = code
        self.shape: tuple[int, ...] = shape
        # In elements; None is C order.
        self.strides: tuple[int, ...] | None = strides
        self.owner = owner
        self.is_torch: bool = is_torch

    def tensor(self) -> c.Tensor:
        """The C struct; it keeps the memory alive."""
        shape = self.shape or (1,)
        count = len(shape)
        if self.strides:
            dimensions = (c_int64 * (2 * count))(*shape, *self.strides)
            address = ctypes.addressof(dimensions)
            strides = address + 8 * count
        else:
            dimensions = (c_int64 * count)(*shape)
            address = ctypes.addressof(dimensions)
            strides = None
        tensor = c.Tensor(self.data, _CPU, count, _STRUCTS[self.code], address, strides, 0)
        tensor.alive = (dimensions, self.owner)
        return tensor


class View(_Fields if fast is None else fast.View):  # type: ignore[misc]
    """A borrowed array: where its first element is, what it holds, and what keeps it alive."""

    __slots__ = ()

    def with_layout(self, data: int, shape: tuple[int, ...], strides: tuple[int, ...] | None) -> View:
        """The same memory seen differently."""
        return View(self.name, data, self.code, shape, strides, self.owner, self.is_torch)

    def as_format(self, code: int) -> View:
        """Values stored in fp32 as those of an emulated format; other arrays as they are."""
        emulated = self.code == c.FLOAT32 and code in EMULATED.values()
        return View(
            self.name, self.data, code if emulated else self.code, self.shape, self.strides, self.owner, self.is_torch)

    def __getitem__(self, index: int) -> View:
        """Element `index` of the first dimension."""
        step = prod(self.shape[1:]) if self.strides is None else self.strides[0]
        return self.with_layout(
            self.data + index * step * (self.code >> 8 & 0xFF) // 8, self.shape[1:],
            None if self.strides is None else self.strides[1:])

    def part(self, start: int, count: int) -> View:
        """Elements [start, start + count) of a vector."""
        if count == self.shape[0]:
            return self
        step = 1 if self.strides is None else self.strides[0]
        return self.with_layout(
            self.data + start * step * (self.code >> 8 & 0xFF) // 8, (count,), self.strides)

    def flattened(self, keep: int) -> View | None:
        """All dimensions but the last `keep` merged into one; None if one stride cannot do that."""
        cut = len(self.shape) - keep
        if cut == 1:
            return self
        shape = (prod(self.shape[:cut]), *self.shape[cut:])
        if self.strides is None:
            return self.with_layout(self.data, shape, None)
        stride = reach = 0
        merging = False
        for extent, step in zip(reversed(self.shape[:cut]), reversed(self.strides[:cut])):
            if extent == 1:
                continue
            if not merging:
                stride, merging = step, True
            elif step != reach and shape[0] > 0:
                return None
            reach = step * extent
        return self.with_layout(self.data, shape, (stride, *self.strides[cut:]))

def _view(x: Array, name: str, written: bool = False) -> View:
    """`view`, in Python: what the extension asks where an array is not a plain one."""
    if isinstance(x, np.ndarray):
        return _numpy_view(x, name, written)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return _torch_view(torch, x, name)
    if hasattr(x, "__dlpack__"):
        return _dlpack_view(x, name, written)
    try:
        array = np.asarray(x)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{name}: not an array ({error})") from None
    return _numpy_view(array, name, written)


def view(x: Array, name: str, *, written: bool = False) -> View:
    """Borrows any array. `name` is the argument's, for errors; `written` refuses read-only memory."""
    return _view(x, name, written)


def address(tensor: c.Tensor) -> int:
    """Where the struct is that `View.tensor` made, for a field of another struct. It keeps nothing alive."""
    return ctypes.addressof(tensor)


def _unknown_dtype(name: str, dtype: object) -> InvalidArgumentError:
    return InvalidArgumentError(f"{name}: dtype {dtype} is not known; known are {_KNOWN}")


def _numpy_code(dtype: np.dtype) -> int | None:
    code = _numpy_codes.get(dtype)
    if code is None:
        code = _EXTENSION_DTYPES.get(dtype.name)
        if code is not None:
            _numpy_codes[dtype] = code
            _numpy_dtypes[code] = dtype
    return code


def _numpy_view(x: np.ndarray, name: str, written: bool) -> View:
    code = _numpy_code(x.dtype)
    if code is None:
        raise _unknown_dtype(name, x.dtype)
    if type(x) is not np.ndarray and isinstance(x, np.ma.MaskedArray):
        raise InvalidArgumentError(f"{name}: a masked array; give its .data, and what counts as a mask")
    flags = x.flags
    if written and not flags.writeable:
        raise InvalidArgumentError(f"{name}: the array is read-only")
    strides = None
    if not flags.c_contiguous:
        size = x.itemsize
        strides = tuple(step // size for step in x.strides)
        if any(step % size for step in x.strides):
            raise InvalidArgumentError(
                f"{name}: strides {x.strides} are no multiple of its {size}-byte elements; copy it first")
    return View(name, x.__array_interface__["data"][0], code, x.shape, strides, x)


def _torch_view(torch: Any, x: Any, name: str) -> View:
    if not _torch_codes:
        for known, code in [*_DTYPES.items(), *_EXTENSION_DTYPES.items()]:
            dtype = getattr(torch, known, None)
            if dtype is not None:
                _torch_codes[dtype] = code
                _torch_dtypes[code] = dtype
        if fast is not None:
            fast.use_torch(torch.Tensor, torch.nn.Parameter, getattr(torch.Tensor, "__dlpack_c_exchange_api__", None))
    found = _torch_codes.get(x.dtype)
    if found is None:
        raise _unknown_dtype(name, x.dtype)
    if not x.is_cpu:
        raise InvalidArgumentError(f"{name}: the tensor is on {x.device}; copy it to the CPU first")
    if x.layout is not torch.strided:
        raise InvalidArgumentError(f"{name}: layout {x.layout} is not dense; use .to_dense() first")
    strides = None if x.is_contiguous() else x.stride()
    return View(name, x.data_ptr(), found, tuple(x.shape), strides, x, is_torch=True)


class _VersionedHead(ctypes.Structure):
    """What stands before the DLTensor in a DLManagedTensorVersioned."""

    _fields_ = [
        ("major", c_uint32), ("minor", c_uint32), ("manager", c_void_p), ("deleter", c_void_p),
        ("flags", c_uint64),
    ]


_capsule_name = ctypes.pythonapi.PyCapsule_GetName
_capsule_name.restype, _capsule_name.argtypes = c_char_p, [ctypes.py_object]
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = c_void_p, [ctypes.py_object, c_char_p]


def _dlpack_view(x: Any, name: str, written: bool) -> View:
    """Reads the DLTensor in x's capsule. The capsule is kept, not consumed: it frees itself."""
    device_type, _ = x.__dlpack_device__()
    if device_type != 1:
        raise InvalidArgumentError(
            f"{name}: DLPack device type {device_type} is not the CPU (1); copy it there first")
    try:
        capsule = x.__dlpack__(max_version=(1, 0))
    except TypeError:  # a producer from before DLPack 1.0
        capsule = x.__dlpack__()
    kind = _capsule_name(capsule)
    if kind not in (b"dltensor", b"dltensor_versioned"):
        raise InvalidArgumentError(f"{name}: __dlpack__ gave a capsule named {kind!r}")
    address = _capsule_pointer(capsule, kind)
    if kind == b"dltensor_versioned":
        head = _VersionedHead.from_address(address)
        if head.major != 1:
            raise InvalidArgumentError(f"{name}: DLPack {head.major}.{head.minor} is not known")
        if written and head.flags & 1:
            raise InvalidArgumentError(f"{name}: the array is read-only")
        address += ctypes.sizeof(_VersionedHead)
    tensor = c.Tensor.from_address(address)
    dtype = tensor.dtype
    code = dtype.code | dtype.bits << 8 | dtype.lanes << 16
    if code not in _STRUCTS:
        raise _unknown_dtype(name, f"code {dtype.code}, {dtype.bits} bits, {dtype.lanes} lanes")
    numbers = c_int64 * tensor.ndim
    shape = tuple(numbers.from_address(tensor.shape)) if tensor.ndim else ()
    strides = tuple(numbers.from_address(tensor.strides)) if tensor.ndim and tensor.strides else None
    return View(name, (tensor.data or 0) + tensor.byte_offset, code, shape, strides, capsule)


def format_code(dtype: object, name: str, *, emulated: bool = False) -> int:
    """The code of a format given as "fp16", "bf16"…, or as a dtype of NumPy, ml_dtypes or PyTorch.

    `emulated` says whether "e8m5" and its like are taken too.
    """
    if isinstance(dtype, str) and dtype in FORMATS:
        return FORMATS[dtype]
    if emulated and isinstance(dtype, str) and dtype in EMULATED:
        return EMULATED[dtype]
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(dtype, torch.dtype):
        view(torch.empty(0), name)  # fills in the table
        code = _torch_codes.get(dtype)
    else:
        try:
            code = _numpy_code(np.dtype(dtype))  # type: ignore[call-overload]
        except TypeError:
            code = None
    if code is None or code not in FORMATS.values() or dtype is None:
        known = [*FORMATS, *(["e8m1 to e8m23", "e5m1 to e5m10"] if emulated else [])]
        raise InvalidArgumentError(f"{name} is {dtype!r}; give one of {', '.join(known)}")
    return code


def empty(shape: tuple[int, ...], code: int, like: View) -> Array:
    """A new array of the caller's kind: a PyTorch tensor if `like` is one, else a NumPy array."""
    code = c.FLOAT32 if code in EMULATED.values() else code
    if like.is_torch:
        return sys.modules["torch"].empty(shape, dtype=_torch_dtypes[code])
    dtype = _numpy_dtypes.get(code)
    if dtype is None:
        try:
            import ml_dtypes
        except ImportError:
            raise InvalidArgumentError(
                "NumPy itself has no bf16 or fp8: `pip install ml_dtypes`, or give a PyTorch tensor"
            ) from None
        for known in _EXTENSION_DTYPES:
            _numpy_code(np.dtype(getattr(ml_dtypes, known)))
        dtype = _numpy_dtypes[code]
    return np.empty(shape, dtype)


def zeros(shape: tuple[int, ...], code: int, like: View) -> Array:
    """As `empty`, cleared. All-zero bits are zero in every format.

    NumPy's zeros come cleared from the system, in large pages where it has them; clearing what `empty`
    gives would touch a head's gradient twice.
    """
    if like.is_torch:
        torch = sys.modules["torch"]
        dtype = _torch_dtypes[code]
        size = torch.empty(0, dtype=dtype).element_size()
        return torch.from_numpy(np.zeros(prod(shape) * size, np.uint8)).view(dtype).reshape(shape)
    return np.zeros_like(empty(shape, code, like))


def token_vector(x: Array, name: str, shape: tuple[int, ...], of: str) -> View:
    """A value for each token, `shape` being the leading dimensions of `of`, as one vector.

    Such vectors are small beside what they belong to: one whose dimensions cannot be merged in place
    (a slice of a padded batch) is copied.
    """
    found = view(x, name)
    if found.shape != shape:
        raise InvalidArgumentError(
            f"{name}: shape {list(found.shape)} does not match {list(shape)}, the leading dimensions of {of}")
    flat = found.flattened(0)
    if flat is None:
        flat = view(compact(x, name), name).flattened(0)
    assert flat is not None  # C order always merges
    return flat


def compact(x: Array, name: str) -> Array:
    """A C-ordered copy."""
    if isinstance(x, np.ndarray):
        return np.ascontiguousarray(x)
    if hasattr(x, "contiguous"):
        return x.contiguous()
    try:
        return np.ascontiguousarray(np.from_dlpack(x) if hasattr(x, "__dlpack__") else x)
    except (RuntimeError, BufferError) as error:
        raise InvalidArgumentError(f"{name}: not contiguous, and NumPy cannot copy it ({error})") from None


def row_matrix(found: View) -> View:
    """[..., n] as [rows x n], in place."""
    if not found.shape:
        raise InvalidArgumentError(f"{found.name}: has no dimensions; give [..., n]")
    flat = found.flattened(1)
    if flat is None:
        raise InvalidArgumentError(
            f"{found.name}: the leading dimensions of shape {list(found.shape)}, strides "
            f"{list(found.strides or ())}, cannot be seen as one without a copy; make it contiguous, or keep "
            "the whole array and leave tokens out by ignore_index or mask")
    return flat


def row_blocks(*views: View) -> Iterator[tuple[int, list[View]]]:
    """Cuts matrices [..., n] of one leading shape into blocks [rows x n] with one row stride each.

    Yields the first row of a block and the block of each matrix: one block, unless the leading
    dimensions cannot be merged, as in `logits[:, :-1]` of a padded batch.
    """
    flat = [each.flattened(1) for each in views]
    if None not in flat:
        yield 0, flat  # type: ignore[misc]
        return
    rows = prod(views[0].shape[1:-1])
    for index in range(views[0].shape[0]):
        for start, blocks in row_blocks(*(each[index] for each in views)):
            yield index * rows + start, blocks


if fast is not None:
    fast.use(View, frozenset(_STRUCTS), _view, c.argument_address, c_void_p, np.ndarray)
    view = fast.view

    def address(tensor: Any) -> int:
        return tensor.address
