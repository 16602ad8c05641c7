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
from collections.abc import Iterable

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
    return int(text_identities([text])[0])


def text_identities(texts: Iterable[str]) -> NDArray[np.uint64]:
    """`text_identity` of each."""
    return _hashes([text.encode("utf-8", "surrogatepass") for text in texts])


def record_identities(parts: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Of each row 64 bits of BLAKE2b."""
    packed, width = parts.astype("<u8").tobytes(), 8 * parts.shape[1]
    return _hashes([packed[at : at + width] for at in range(0, len(packed), width)])


def _hashes(some: list[bytes]) -> NDArray[np.uint64]:
    blake2b = hashlib.blake2b
    return np.frombuffer(b"".join([blake2b(one, digest_size=8).digest() for one in some]), "<u8").astype(np.uint64)


def _mix(x):
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return x ^ (x >> 31)


class Seen:
    """The ids that went by, 8 bytes each: sorted, in parts by their first bits, so that adding copies a part."""

    PARTS = 64

    def __init__(self) -> None:
        self._parts = [np.zeros(0, np.uint64)] * self.PARTS

    def add(self, ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of `ids` were there before, or earlier in `ids`."""
        again = np.ones(len(ids), np.bool_)
        values, first = np.unique(ids, return_index=True)
        again[first] = False
        bounds = np.searchsorted(values, np.arange(1, self.PARTS, dtype=np.uint64) << np.uint64(58))
        edges = [0, *bounds.tolist(), len(values)]
        for part, (start, end) in enumerate(zip(edges, edges[1:], strict=False)):
            if start == end:
                continue
            known, fresh = self._parts[part], values[start:end]
            at = np.searchsorted(known, fresh)
            if len(known):
                old = known[np.minimum(at, len(known) - 1)] == fresh
                again[first[start:end][old]] = True
                fresh = fresh[~old]
            self._parts[part] = np.sort(np.concatenate((known, fresh)), kind="stable")
        return again
