"""Sums of float64 that are exact, so that neither the order of the terms nor a cut through them can show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# The unit that integers count: below it a float64 has no bit.
_UNIT = 1126
# Exponents are told apart by windows of so many bits; a window's sum has room for so many rows.
_WINDOW, _ROWS = 16, 1 << 14


class ExactSums:
    """The sums of the columns of matrices, as integers in units of 2^-1126."""

    def __init__(self, columns: int) -> None:
        self._sums = [0] * columns
        self._overflow = np.zeros(columns)  # what is not finite

    def add(self, rows: NDArray[np.float64]) -> None:
        """Adds [rows x columns]."""
        for first in range(0, len(rows), _ROWS):
            self._add(rows[first : first + _ROWS])

    def _add(self, rows: NDArray[np.float64]) -> None:
        finite = np.isfinite(rows)
        if not finite.all():
            with np.errstate(invalid="ignore"):
                self._overflow += np.where(finite, 0.0, rows).sum(0)
            rows = np.where(finite, rows, 0.0)
        fraction, exponent = np.frexp(rows)
        whole = (fraction * 2.0**53).astype(np.int64)
        above = exponent + (_UNIT - 53)
        window, shift = above // _WINDOW, above % _WINDOW
        lowest = int(window.min())
        windows = int(window.max()) - lowest + 1
        cell = (window - lowest + windows * np.arange(rows.shape[1])).ravel()
        for half, bits in ((whole >> 26, 26), (whole & ((1 << 26) - 1), 0)):
            sums = np.zeros(rows.shape[1] * windows, np.int64)
            np.add.at(sums, cell, (half << shift).ravel())
            for at in np.flatnonzero(sums).tolist():
                column, place = divmod(at, windows)
                self._sums[column] += int(sums[at]) << ((place + lowest) * _WINDOW + bits)

    def merge(self, other: ExactSums) -> None:
        self._sums = [a + b for a, b in zip(self._sums, other._sums, strict=True)]
        with np.errstate(invalid="ignore"):
            self._overflow += other._overflow

    def values(self) -> NDArray[np.float64]:
        """Each sum, rounded once; infinite or NaN where a term is, or where it is beyond float64."""
        return np.array([_rounded(each) for each in self._sums]) + self._overflow

    def to_list(self) -> list[str]:
        """The state, as text."""
        return [f"{each:x}" for each in self._sums] + [float(each).hex() for each in self._overflow]

    @classmethod
    def from_list(cls, texts: Sequence[str]) -> ExactSums:
        out = cls(len(texts) // 2)
        out._sums = [int(each, 16) for each in texts[: len(out._sums)]]
        out._overflow = np.array([float.fromhex(each) for each in texts[len(out._sums) :]])
        return out


def _rounded(units: int) -> float:
    try:
        return units / (1 << _UNIT)
    except OverflowError:
        return float("inf") if units > 0 else float("-inf")
