"""What the operations of two engines gave, dumped by anyone: read, named alike, compared.

A dump is a safetensors file (ours: `lockstep.dump`) or an .npz with an array [tokens, width] for each operation;
leading dimensions are flattened. Names are ours, "layer.3.attention output", or those of the modules of Hugging Face
and vLLM, "model.layers.3.self_attn.o_proj": docs/Locate.md has the table. Nothing in a file is believed before it
was checked, and pickles are not read.
"""

from __future__ import annotations

import json
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ._errors import BadDataError, FileError
from ._locate import Difference, measure_difference

#: What is done in a layer, in its order.
OPERATIONS = (
    "attention norm", "attention projection", "queries, keys and values", "attention", "attention output",
    "residual sum after attention", "MLP norm", "MLP gate and up", "MLP activation", "MLP down", "mixture of experts",
    "residual sum after the MLP")
#: What is done before the layers, and after them.
BEFORE, AFTER = "embedding", ("final norm", "logits", "log-probs")

# Modules by what their outputs (or, with .input, their inputs) are; several are put side by side in this order.
_OUTSIDE = {"model.embed_tokens": "embedding", "model.norm": "final norm", "lm_head": "logits",
            "logits_processor": "logits"}
_IN_LAYER = {
    "attention norm": (("input_layernorm",),),
    "attention projection": (("self_attn.qkv_proj",), ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    "attention": (("self_attn.o_proj.input",), ("self_attn.attn",)),
    "attention output": (("self_attn.o_proj",),),
    "residual sum after attention": (("post_attention_layernorm.input",),),
    "MLP norm": (("post_attention_layernorm",),),
    "MLP gate and up": (("mlp.gate_up_proj",), ("mlp.gate_proj", "mlp.up_proj")),
    "MLP activation": (("mlp.down_proj.input",),),
    "MLP down": (("mlp.down_proj",),),
    "mixture of experts": (("mlp",), ("block_sparse_moe",)),
    "residual sum after the MLP": (("",),),
}

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
          "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
_LONGEST_HEADER = 100_000_000


class Dump:
    """The tensors of one file, by (layer, operation); each is read when it is asked for."""

    def __init__(self, path: Path, tensors: Mapping[str, Callable[[], NDArray]]):
        self.path = path
        self._raw = dict(tensors)
        #: By (layer, operation), what is to be put side by side.
        self.places: dict[tuple[int, str], tuple[str, ...]] = dict(_places(self._raw))
        used = {name for names in self.places.values() for name in names} | {"tokens", "offsets"}
        #: Names that are no operation's.
        self.unknown = sorted(set(self._raw) - used)

    def read(self, place: tuple[int, str]) -> NDArray:
        """[tokens, width] of an operation."""
        parts = [_matrix(self._raw[name](), self.path, name) for name in self.places[place]]
        if len({len(part) for part in parts}) > 1:
            raise BadDataError(f"{self.path}: {' and '.join(self.places[place])} have different numbers of tokens")
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def integers(self, name: str) -> NDArray | None:
        """The tensor "tokens" or "offsets", flat; None if there is none."""
        return self._raw[name]().reshape(-1) if name in self._raw else None


@dataclass(frozen=True)
class ComparedDumps:
    """What two dumps have in common, and how far it is apart."""

    #: By layer, in the order operations are done.
    differences: list[Difference]
    #: "layer.3.attention: only in A" and the like: what could not be compared, and why.
    skipped: list[str]

    @property
    def first(self) -> Difference | None:
        """The first operation that gave different bits; None if none did."""
        return next((each for each in self.differences if each.differs), None)


def open_dump(path: str | Path) -> Dump:
    """Opens a .npz or a safetensors file, by what it holds.

    Raises:
        FileError: it cannot be read.
        BadDataError: it is neither, or damaged.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
        tensors = _npz(path) if magic == b"PK\x03\x04" else _safetensors(path)
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from None
    return Dump(path, tensors)


def compare_dumps(
    first: Dump, second: Dump, progress: Callable[[int, int], None] | None = None,
) -> ComparedDumps:
    """Compares the operations that both have; those of one alone, or of two shapes, are listed and left out.

    Raises:
        BadDataError: the dumps are of different tokens, or have no operation in common.
    """
    for name in ("tokens", "offsets"):
        one, other = first.integers(name), second.integers(name)
        if one is None or other is None:
            continue
        if len(one) != len(other) or (one != other).any():
            at = next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
            raise BadDataError(f"{first.path} and {second.path} are of different sequences: their {name} differ from "
                               f"index {at} on; dump the same for both")
    skipped = [f"{_name(place)}: only in {mine.path}" for mine, other in ((first, second), (second, first))
               for place in sorted(set(mine.places) - set(other.places), key=_order)]
    skipped += [f"{name}: in {each.path}, is no operation's name" for each in (first, second) for name in each.unknown]
    common = sorted(set(first.places) & set(second.places), key=_order)
    found = []
    for index, place in enumerate(common):
        one, other = first.read(place), second.read(place)
        if one.shape != other.shape:
            skipped.append(f"{_name(place)}: is {list(one.shape)} in {first.path} but {list(other.shape)} in "
                           f"{second.path}")
        else:
            found.append(measure_difference(one, other, operation=place[1], layer=place[0]))
        if progress is not None:
            progress(index + 1, len(common))
    if not found:
        raise BadDataError(f"{first.path} and {second.path} have no operation of one shape in common; the names are in "
                           "docs/Locate.md. " + "; ".join(skipped[:4]))
    return ComparedDumps(found, skipped)


def _name(place: tuple[int, str]) -> str:
    return place[1] if place[1] not in OPERATIONS else f"layer.{place[0]}.{place[1]}"


def _order(place: tuple[int, str]) -> tuple[int, int]:
    layer, operation = place
    return layer, OPERATIONS.index(operation) if operation in OPERATIONS else AFTER.index(operation) if layer >= 0 else 0


def _places(names: Mapping[str, object]) -> Iterator[tuple[tuple[int, str], tuple[str, ...]]]:
    """What the tensors of some names are."""
    layers: dict[int, dict[str, str]] = {}  # by layer: what follows it in a name -> the name
    ends: dict[str, str] = {}
    for name in names:
        ours = re.fullmatch(r"layer\.(\d{1,6})\.(.+)", name)
        theirs = re.fullmatch(r"(?:.*\.)?layers\.(\d{1,6})(?:\.(.+))?", name)
        if ours and ours[2] in OPERATIONS:
            layers.setdefault(int(ours[1]), {})[ours[2]] = name
        elif theirs:
            layers.setdefault(int(theirs[1]), {})[theirs[2] or ""] = name
        elif name in (BEFORE, *AFTER):
            ends[name] = name
        else:
            operation = next((each for module, each in _OUTSIDE.items()
                              if name == module or name.endswith("." + module.rpartition(".")[2])), None)
            if operation is not None:
                ends.setdefault(operation, name)
    last = max(layers, default=-1) + 1
    for operation, name in ends.items():
        yield (-1 if operation == BEFORE else last, operation), (name,)
    for layer, found in layers.items():
        for operation in OPERATIONS:
            if operation in found:
                yield (layer, operation), (found[operation],)
                continue
            for group in _IN_LAYER.get(operation, ()):
                if all(module in found for module in group):
                    yield (layer, operation), tuple(found[module] for module in group)
                    break


def _matrix(values: NDArray, path: Path, name: str) -> NDArray:
    """[tokens, width]: leading dimensions flattened."""
    if values.dtype.kind not in "f":
        raise BadDataError(f"{path}: {name}: dtype {values.dtype}; give floating-point numbers")
    if values.dtype.itemsize > 8 or values.ndim == 0:
        raise BadDataError(f"{path}: {name}: shape {values.shape}, dtype {values.dtype}; give [tokens, width]")
    return np.ascontiguousarray(values.reshape(-1, 1 if values.ndim == 1 else values.shape[-1]))


def _safetensors(path: Path) -> dict[str, Callable[[], NDArray]]:
    """The tensors of a safetensors file: 8 bytes of length, a JSON header, data."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
            raise BadDataError(f"{path}: is neither an .npz nor a safetensors file, or was cut off")
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise BadDataError(f"{path}: its header is no JSON") from None
    if not isinstance(header, dict):
        raise BadDataError(f"{path}: its header is not an object of tensors")
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        try:
            dtype, shape = entry["dtype"], tuple(entry["shape"])
            begin, end = entry["data_offsets"]
            whole = all(type(each) is int and each >= 0 for each in (*shape, begin, end))
        except (TypeError, KeyError, ValueError):
            whole = False
        if not whole or not begin <= end <= size - 8 - length:
            raise BadDataError(f"{path}: tensor '{name}': its dtype, shape and data_offsets do not lie in the file")
        if dtype not in _SIZES or prod(shape) * _SIZES[dtype] != end - begin:
            raise BadDataError(f"{path}: tensor '{name}': shape {list(shape)} of {dtype} is not {end - begin} bytes")
        found[name] = _reader(path, name, dtype, shape, 8 + length + begin)
    return found


def _reader(path: Path, name: str, dtype: str, shape: tuple[int, ...], begin: int) -> Callable[[], NDArray]:
    def read() -> NDArray:
        if dtype not in _DTYPES:
            raise BadDataError(f"{path}: tensor '{name}': dtype {dtype}; known are {', '.join(_DTYPES)}")
        try:
            values = np.fromfile(path, _DTYPES[dtype], prod(shape), offset=begin)
        except OSError as error:
            raise FileError(f"{path}: {error.strerror or error}") from None
        if len(values) != prod(shape):
            raise BadDataError(f"{path}: was cut short while it was read")
        if dtype == "BF16":  # the upper half of a float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values.reshape(shape)

    return read


def _npz(path: Path) -> dict[str, Callable[[], NDArray]]:
    """The arrays of an .npz."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except zipfile.BadZipFile as error:
        raise BadDataError(f"{path}: {error}") from None

    def reader(name: str) -> Callable[[], NDArray]:
        def read() -> NDArray:
            try:
                with np.load(path, allow_pickle=False) as archive:
                    return archive[name]
            except (ValueError, KeyError, EOFError, zipfile.BadZipFile, MemoryError) as error:
                raise BadDataError(f"{path}: {name}: {str(error)[:200]}") from None

        return read

    return {name: reader(name) for name in names}
