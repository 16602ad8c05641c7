"""Handles of the library as bytes, and back: what monitors, loss scalers and accumulators share."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import byref, c_size_t, c_void_p

from ._errors import InvalidArgumentError
from ._library import check


def saved(save: Callable[..., int], handle: c_void_p) -> bytes:
    """What a `lockstep_…_save` writes, which says first how much it is."""
    size = c_size_t()
    check(save(None, byref(size), handle))
    written = ctypes.create_string_buffer(size.value)
    check(save(written, byref(size), handle))
    return written.raw


def loaded(load: Callable[..., int], data: bytes) -> c_void_p:
    """The handle that a `lockstep_…_load` makes of what was saved."""
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise InvalidArgumentError(f"data is {type(data).__name__}; give the bytes of to_bytes()")
    data = bytes(data)
    handle = c_void_p()
    check(load(byref(handle), data, len(data)))
    return handle
