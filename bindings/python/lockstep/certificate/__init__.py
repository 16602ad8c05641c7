"""Whether a log meets a band of mismatch: pass, fail, or not enough tokens to say.

`bands` says what is required, `sums` keeps what a log comes to by sequence, `bounds` is the statistics,
`certificate` decides and holds the document. Methods and their measured error rates: docs/Certificate.md.
"""

from .bands import BANDS, Band, Requirement, requirement
from .certificate import BETWEEN, Certificate, Finding, certify, check, decide
from .sums import STATISTICS, SequenceSums

__all__ = [
    "BANDS", "BETWEEN", "STATISTICS", "Band", "Certificate", "Finding", "Requirement", "SequenceSums",
    "certify", "check", "decide", "requirement",
]
