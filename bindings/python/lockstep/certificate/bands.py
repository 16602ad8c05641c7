"""What a certificate can require: named bands, and single requirements in one line of text."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from .._errors import InvalidArgumentError
from .sums import STATISTICS


@dataclass(frozen=True)
class Requirement:
    """A limit for one statistic of the glossary."""

    statistic: str
    relation: str
    """"<=", "<", ">=" or ">"; "==" with `share_differing` and 0 alone."""
    limit: float
    reason: str = ""
    """Where the limit comes from."""

    @property
    def below(self) -> bool:
        """Whether it bounds from above."""
        return self.relation in ("<", "<=", "==")

    def holds(self, value: float) -> bool:
        """Whether a value meets it."""
        return {"<": value < self.limit, "<=": value <= self.limit, "==": value == self.limit,
                ">": value > self.limit, ">=": value >= self.limit}[self.relation]

    def __str__(self) -> str:
        return f"{self.statistic} {self.relation} {self.limit:.12g}"


@dataclass(frozen=True)
class Band:
    """A named set of requirements; all must hold."""

    name: str
    meaning: str
    requirements: tuple[Requirement, ...]
    sources: tuple[str, ...] = ()


_GRAMMAR = re.compile(r"\s*([A-Za-z_]\w*)\s*(<=|>=|==|=|<|>|≤|≥)\s*(\S+?)\s*(%?)\s*")
_RELATIONS = {"≤": "<=", "≥": ">="}


def requirement(text: str) -> Requirement:
    """Reads ``NAME RELATION NUMBER``, such as ``k3 < 1e-3`` or ``share_outside_1pct <= 0.1%``.

    NAME is a statistic of docs/Glossary.md, RELATION one of < <= > >= (== for ``share_differing == 0``),
    NUMBER a decimal number, with % for hundredths.

    Raises:
        InvalidArgumentError: what is wrong with the text, and what would be right.
    """
    match = _GRAMMAR.fullmatch(text)
    if match is None:
        raise InvalidArgumentError(
            f"requirement {text!r}: write NAME RELATION NUMBER, such as 'k3 < 1e-3' or"
            " 'share_outside_1pct <= 0.1%'")
    name, relation, number, percent = match.groups()
    relation = _RELATIONS.get(relation, relation)
    if name not in STATISTICS:
        raise InvalidArgumentError(f"requirement {text!r}: {name} is no statistic of a certificate; there are"
                                   f" {', '.join(STATISTICS)}")
    try:
        limit = float(number) / (100 if percent else 1)
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise InvalidArgumentError(f"requirement {text!r}: {number!r} is not a finite number")
    return _checked(Requirement(name, relation, limit, "custom"), text)


def _checked(made: Requirement, text: str) -> Requirement:
    """Refuses what no log could ever show."""
    statistic = STATISTICS[made.statistic]
    problem = None
    if made.relation in ("=", "=="):
        if made.statistic != "share_differing" or made.limit != 0:
            problem = ("only 'share_differing == 0' is an equality; a measured value meets bounds: use <="
                       " or >=")
        made = Requirement(made.statistic, "==", made.limit, made.reason)
    elif statistic.share:
        if not 0 < made.limit < 1:
            problem = ("a share is in [0, 1], and no log shows that what it was drawn from has a share of"
                       " exactly 0 or 1: give a limit between")
            if made.statistic == "share_differing" and made.limit == 0:
                problem += ", or 'share_differing == 0' for the bits of this log"
    if problem:
        raise InvalidArgumentError(f"requirement {text!r}: {problem}")
    return made


_MLPERF = "MLPerf Training, llm_post_training/README.md, Loss function"
_MAXTEXT = "MaxText PR 5231"
_OURS = "Lockstep's choice"


def _percent_band(percent: int) -> Band:
    low, high = 1 - percent / 100, 1 + percent / 100
    return Band(
        f"{percent}%", f"r of a token, and the geometric mean of r over a sequence, within ±{percent} %", (
            Requirement(f"share_outside_{percent}pct", "<=", 0.01, f"band: {_MAXTEXT}; share: {_OURS}"),
            Requirement(f"share_sequences_outside_{percent}pct", "<=", 0.01,
                        f"band: {_MAXTEXT}; share: {_OURS}"),
            Requirement("mean_ratio", ">=", low, _OURS),
            Requirement("mean_ratio", "<=", high, _OURS),
        ), ("https://github.com/AI-Hypercomputer/maxtext/pull/5231",))


#: The named bands. "custom" is none of them: its requirements are given.
BANDS = {band.name: band for band in (
    Band("mlperf", "MLPerf's post-training rules would leave the log as it is", (
        Requirement("share_sequences_outside_mlperf", "<=", 0.05, f"band: {_MLPERF}; share: {_OURS}"),
        Requirement("share_sequences_masked", "<=", 0.01, f"threshold: {_MLPERF}; share: {_OURS}"),
        Requirement("mean_ratio", ">=", 0.999, _OURS),
        Requirement("mean_ratio", "<=", 1.002, _OURS),
    ), ("https://github.com/mlcommons/training/blob/master/llm_post_training/README.md",
        "https://github.com/NVIDIA-NeMo/RL/pull/1899")),
    _percent_band(1),
    _percent_band(5),
    Band("bitwise", "trainer and rollout log-probs are the same bits on every token of this log",
         (Requirement("share_differing", "==", 0.0, "equality of bits"),)),
)}
