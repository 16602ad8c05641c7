"""The mismatch functions through ctypes alone, for tests and benchmarks that must not lean on the package.

Structs are read from include/lockstep.h, so nothing is said twice. The library is LOCKSTEP_LIBRARY, or
build/liblockstep.so.1.
"""

import ctypes
import os
import pathlib
import re

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEADER = re.sub(r"/\*.*?\*/", "", (ROOT / "include" / "lockstep.h").read_text(), flags=re.S)

TYPES = {
    "uint32_t": ctypes.c_uint32, "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64, "float": ctypes.c_float, "double": ctypes.c_double,
    "lockstep_non_finite": ctypes.c_int32, "lockstep_instruction_set": ctypes.c_int32,
}


def struct(name):
    """The ctypes struct of a typedef in the header."""
    body = re.search(r"typedef struct \{([^{}]*)\} " + name + ";", HEADER).group(1)
    fields = []
    for type_name, names in re.findall(r"(\w+)\s+([^;]+);", body):
        for declared in names.split(","):
            field, length = re.fullmatch(r"\s*(\w+)(?:\[(\d+)\])?\s*", declared).groups()
            kind = TYPES[type_name]
            fields.append((field, kind * int(length) if length else kind))
    return type(name, (ctypes.Structure,), {"_fields_": fields})


TYPES["lockstep_estimate"] = Estimate = struct("lockstep_estimate")
Mismatch = struct("lockstep_mismatch")
MismatchOptions = struct("lockstep_mismatch_options")
Sequence = struct("lockstep_mismatch_sequence")
Bucket = struct("lockstep_mismatch_bucket")
Divergence = struct("lockstep_divergence")
LogProbsOptions = struct("lockstep_log_probs_options")


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64),
    ]


library = ctypes.CDLL(os.environ.get("LOCKSTEP_LIBRARY", str(ROOT / "build" / "liblockstep.so.1")))
library.lockstep_last_error.restype = ctypes.c_char_p

CODES = {"f": 2, "i": 0, "u": 1, "b": 6}
AXES = {"position": 0, "probability": 1, "log_ratio": 2}


def tensor(array):
    """A pointer to a tensor that borrows a NumPy array (a bf16 one as ml_dtypes has it); None is NULL."""
    if array is None:
        return None
    code = 4 if array.dtype.name == "bfloat16" else CODES[array.dtype.kind]
    shape = (ctypes.c_int64 * array.ndim)(*array.shape)
    strides = (ctypes.c_int64 * array.ndim)(*(step // array.itemsize for step in array.strides))
    described = Tensor(
        array.ctypes.data, 1, 0, array.ndim, code, array.itemsize * 8, 1, shape, strides, 0)
    described.owner = array
    return ctypes.byref(described)


def check(status):
    if status:
        raise ValueError(library.lockstep_last_error().decode())


def options_of(kind, **values):
    options = kind(**values)
    options.struct_size = ctypes.sizeof(kind)
    return ctypes.byref(options)


def measure(trainer, rollout, mask=None, offsets=None, **options):
    """All statistics, as the header's struct."""
    result = Mismatch(struct_size=ctypes.sizeof(Mismatch))
    check(library.lockstep_mismatch_measure(
        ctypes.byref(result), tensor(trainer), tensor(rollout), tensor(mask), tensor(offsets),
        options_of(MismatchOptions, **options)))
    return result


def sequences(trainer, rollout, mask=None, offsets=None, **options):
    """One struct for each sequence."""
    count = len(offsets) - 1 if offsets is not None else trainer.shape[0] if trainer.ndim == 2 else 1
    result = (Sequence * count)()
    check(library.lockstep_mismatch_sequences(
        result, ctypes.c_size_t(count), tensor(trainer), tensor(rollout), tensor(mask), tensor(offsets),
        options_of(MismatchOptions, **options)))
    return result


def profile(edges, axis, trainer, rollout, mask=None, offsets=None, **options):
    """One struct for each bucket."""
    edges = np.asarray(edges, dtype=np.float64)
    result = (Bucket * (len(edges) - 1))()
    check(library.lockstep_mismatch_profile(
        result, ctypes.c_size_t(len(result)), ctypes.c_void_p(edges.ctypes.data), AXES[axis],
        tensor(trainer), tensor(rollout), tensor(mask), tensor(offsets),
        options_of(MismatchOptions, **options)))
    return result


def exact(trainer, rollout, mask=None, threads=0, instruction_set=0, temperature=1.0, soft_cap=0.0,
          logits_dtype=0):
    """The means, and one struct for each row."""
    mean, rows = Divergence(), (Divergence * len(trainer))()
    options = options_of(
        LogProbsOptions, temperature=temperature, soft_cap=soft_cap, ignore_index=-100, top_p=1.0,
        logits_dtype=logits_dtype, threads=threads, instruction_set=instruction_set)
    check(library.lockstep_mismatch_exact(
        ctypes.byref(mean), rows, ctypes.c_size_t(len(rows)), tensor(trainer), tensor(rollout), tensor(mask),
        options))
    return mean, rows
