"""Memory that is free, given back."""

from __future__ import annotations

import ctypes


def give_back_memory() -> None:
    """Returns to the system what is free between what is in use, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
