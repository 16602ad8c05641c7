"""Memory that is free, given back."""

from __future__ import annotations

import ctypes
import gc


def give_back_memory() -> None:
    """Returns to the system what is free between what is in use, where the C library can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
