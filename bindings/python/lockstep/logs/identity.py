"""Who a sequence is: a uint64 that does not depend on how a log is cut over files, machines and processes.

    the format's own id, text       hash(text), and the number of the choice where there are several
    the format's own id, a number   hash(step, number)
    prime-rl                        hash(run, step, rank, micro step, index in the micro batch)
    none                            hash(index of the file in the whole log, line)

A column ``lockstep_id`` holds the uint64 itself, so that a converted log keeps its identities. Two
sequences of a log of n have the same hash by chance with probability below n^2 / 2^65.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
from numpy.typing import NDArray

_WORD = (1 << 64) - 1

# What the parts are hashed from, so that an id of one kind is not that of another.
OWN, PLACE, PRIME_RL = 1, 2, 3


def identity(kind: int, *parts):
    """The identity of `parts`: integers, or uint64 arrays for many sequences at once.

    SplitMix64's finaliser, applied to each part in turn.
    """
    state = _mix(kind)
    for part in parts:
        state = _mix(state ^ _mix((part + 0x9E3779B97F4A7C15) & _WORD))
    return state


def text_identity(text: str) -> int:
    """64 bits of BLAKE2b."""
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
    )


def record_identity(*parts: int) -> int:
    """64 bits of BLAKE2b over integers of 64 bits."""
    packed = struct.pack(f"<{len(parts)}Q", *parts)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")


def _mix(x):
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return x ^ (x >> 31)


class Seen:
    """The ids that went by, 8 bytes each: sorted runs, merged when they have become as long as each other."""

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []

    def add(self, ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of `ids` were there before, or earlier in `ids`."""
        values, first = np.unique(ids, return_index=True)
        again = np.ones(len(ids), np.bool_)
        again[first] = False
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, ids), len(run) - 1)
            again |= run[at] == ids
        fresh = np.sort(ids[~again])
        if len(fresh):
            self._runs.append(fresh)
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            last = self._runs.pop()
            self._runs[-1] = np.sort(np.concatenate([self._runs[-1], last]), kind="stable")
        return again
