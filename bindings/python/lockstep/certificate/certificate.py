"""Deciding whether a log meets a band, and the document that says so."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from .._errors import InvalidArgumentError
from .._library import library
from .._mismatch import Log
from . import bounds
from .bands import BANDS, Band, Requirement, requirement
from .sums import STATISTICS, SequenceSums, same_tokens

Outcome = Literal["pass", "fail", "not enough"]

SCHEMA = "lockstep-certificate/1"

# More sequences than these times the log's are not proposed: the value is at the limit.
_MOST_TIMES = 1 << 20

#: The reason of a plain "not enough".
BETWEEN = "the limit lies between the bounds"

#: What "not worse than the baseline" is said of.
COMPARED = ("k3", "mean_abs_log_ratio")


@dataclass(frozen=True)
class Finding:
    """One requirement, and what the log says of it."""

    requirement: Requirement
    value: float
    standard_error: float
    """Clustered by sequence; 0 for a requirement on this log itself, NaN with fewer than two sequences."""
    lower: float
    upper: float
    """One-sided bounds: that on the far side of the limit decides "pass", that on the near side "fail"."""
    outcome: Outcome
    reason: str
    """In words, why."""
    sequences_needed: int | None = None
    """With "not enough": about how many sequences like these would settle it; None if no size would."""


@dataclass(frozen=True)
class Certificate:
    """Whether a log meets a band, with every figure that the decision rests on."""

    outcome: Outcome
    band: Band
    confidence: float
    findings: tuple[Finding, ...]
    comparison: tuple[Finding, ...]
    """Against the baseline, for k3 and mean |d|; empty without one. Values are log over baseline."""
    margin: float
    """By which share k3 and mean |d| may exceed the baseline's."""
    baseline: tuple[Finding, ...]
    """The band's requirements of the baseline, for comparison: they decide nothing."""
    tokens: int
    sequences: int
    left_out_tokens: int
    """Tokens that the mask leaves out, or that were dropped as non-finite."""
    empty_sequences: int
    inputs: tuple[Mapping[str, Any], ...] = ()
    options: Mapping[str, Any] | None = None
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether all requirements were shown to hold."""
        return self.outcome == "pass"

    @property
    def sequences_needed(self) -> int | None:
        """With "not enough", about how many sequences like these would settle all of it; else None."""
        open_ = [each for each in (*self.findings, *self.comparison) if each.outcome == "not enough"]
        needed = [each.sequences_needed for each in open_]
        return max(needed) if self.outcome == "not enough" and None not in needed else None

    def to_dict(self) -> dict[str, Any]:
        """The document with its sha256: plain values, None for what is not finite."""
        body = _plain({
            "schema": SCHEMA,
            "outcome": self.outcome,
            "band": {"name": self.band.name, "meaning": self.band.meaning, "sources": self.band.sources,
                     "requirements": [asdict(each) for each in self.band.requirements]},
            "confidence": self.confidence,
            "sample": {"tokens": self.tokens, "sequences": self.sequences,
                       "left_out_tokens": self.left_out_tokens, "empty_sequences": self.empty_sequences,
                       "sequences_needed": self.sequences_needed},
            "findings": [_finding(each) for each in self.findings],
            "comparison": {
                "margin": self.margin, "findings": [_finding(each) for each in self.comparison],
                "baseline": [_finding(each) for each in self.baseline]} if self.comparison else None,
            "inputs": self.inputs,
            "options": self.options or {},
            "versions": _versions(),
            "note": self.note,
        })
        return body | {"sha256": digest(body)}

    def to_json(self) -> str:
        """The document as JSON, in the same bytes for the same inputs."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def certify(
    trainer_log_probs: Log,
    rollout_log_probs: Log,
    mask: Log | None = None,
    offsets: Any | None = None,
    *,
    band: str = "mlperf",
    require: Sequence[str] = (),
    confidence: float = 0.95,
    baseline: tuple[Log, Log] | None = None,
    margin: float = 0.1,
    non_finite: str = "strict",
    inputs: Sequence[Mapping[str, Any]] = (),
    note: str = "",
    threads: int = 0,
) -> Certificate:
    """Decides whether a log meets a band: "pass", "fail", or "not enough" tokens to say.

    Sequences are taken as independent draws of one source; the decision is about that source. A source that
    violates a requirement passes with probability 1 - confidence at most, however many requirements there
    are; one that meets all of them fails with the same probability at most (docs/Certificate.md).

    Args:
        trainer_log_probs, rollout_log_probs, mask, offsets: the log, as in `mismatch`.
        band: "mlperf", "1%", "5%", "bitwise" or "custom".
        require: requirements in words, such as "k3 < 1e-3" or "share_outside_1pct <= 0.1%", added to those
            of the band; "custom" has these alone.
        confidence: of each decision, in (0.5, 1).
        baseline: (trainer_log_probs, rollout_log_probs) of the same tokens, as before a change: k3 and mean
            |d| must then not be worse than there.
        margin: the share by which they may be above the baseline's and still count as not worse.
        non_finite: "strict" or "exclude", as in `mismatch`.
        inputs: where the log came from, kept in the document: mappings of plain values.
        note: a line of text for the document.
        threads: 0 is one for each processor this process may use.

    Returns:
        `Certificate`; `to_json` is the document.

    Raises:
        InvalidArgumentError: shapes, options or requirements that do not fit; a baseline of other tokens.
        NonFiniteError: a NaN or infinity at a token that counts (strict).

    Example:
        >>> log_probs = -np.ones((400, 5), np.float32)
        >>> result = certify(log_probs, log_probs, band="bitwise")
        >>> result.outcome, result.tokens
        ('pass', 2000)
    """
    sums = SequenceSums().add(trainer_log_probs, rollout_log_probs, mask, offsets, non_finite=non_finite,
                              threads=threads)
    other = None
    if baseline is not None:
        if not isinstance(baseline, tuple) or len(baseline) != 2:
            raise InvalidArgumentError("baseline: give a tuple (trainer_log_probs, rollout_log_probs)")
        other = SequenceSums().add(*baseline, mask, offsets, non_finite=non_finite, threads=threads)
    return decide(sums, band=band, require=require, confidence=confidence, baseline=other, margin=margin,
                  inputs=inputs, note=note, options={"non_finite": non_finite})


def decide(sums: SequenceSums, *, band: str = "mlperf", require: Sequence[str] = (), confidence: float = 0.95,
           baseline: SequenceSums | None = None, margin: float = 0.1,
           inputs: Sequence[Mapping[str, Any]] = (), note: str = "",
           options: Mapping[str, Any] | None = None) -> Certificate:
    """`certify` for a log that was streamed into `SequenceSums`. Arguments and errors as there; `inputs` are the
    files that were read, unless others are given."""
    if not 0.5 < confidence < 1:
        raise InvalidArgumentError(f"confidence: {confidence:g} is not between 0.5 and 1")
    if not 0 <= margin < math.inf:
        raise InvalidArgumentError(f"margin: {margin:g} is not a share of 0 or more")
    wanted = _band(band, require)
    if baseline is not None:
        same_tokens(sums, baseline)
    logs = {"log": sums} | ({} if baseline is None else {"baseline": baseline})
    # To pass, all requirements must: each is tested at alpha (an intersection-union test). To fail takes one:
    # alpha is shared out among all.
    alpha = 1 - confidence
    count = len(wanted.requirements) + (len(COMPARED) if baseline is not None else 0)
    levels = alpha, alpha / count
    findings = tuple(_find(each, sums, *levels) for each in wanted.requirements)
    comparison: tuple[Finding, ...] = ()
    of_baseline: tuple[Finding, ...] = ()
    if baseline is not None:
        comparison = tuple(_compare(each, sums, baseline, margin, *levels) for each in COMPARED)
        of_baseline = tuple(_find(each, baseline, *levels) for each in wanted.requirements)
    return Certificate(
        outcome=_overall([each.outcome for each in (*findings, *comparison)]), band=wanted,
        confidence=confidence, findings=findings, comparison=comparison, margin=margin, baseline=of_baseline,
        tokens=sums.tokens, sequences=sums.sequences, left_out_tokens=sums.tokens_read - sums.tokens,
        empty_sequences=sums.sequences_read - sums.sequences, options=options, note=note,
        inputs=tuple(inputs) or tuple(_input(role, of) for role, of in logs.items() if of.files))


def _input(role: str, sums: SequenceSums) -> dict[str, Any]:
    """Where a log came from, and what it says of how it was made."""
    return {"role": role, "label": sums.label, "files": [asdict(sums.files[index]) for index in sorted(sums.files)],
            "recipe": sums.header or None}


def _band(name: str, require: Sequence[str]) -> Band:
    if isinstance(require, str):
        raise InvalidArgumentError("require: give a list of requirements, not one text")
    added = tuple(requirement(text) for text in require)
    if name == "custom":
        if not added:
            raise InvalidArgumentError("band: custom has no requirement of its own; give require, such as"
                                       " 'k3 < 1e-3'")
        return Band("custom", "requirements that were given", added)
    if name not in BANDS:
        raise InvalidArgumentError(f"band: {name!r} is not one of {', '.join(BANDS)}, custom")
    named = BANDS[name]
    return Band(named.name, named.meaning, named.requirements + added, named.sources)


def _overall(outcomes: Sequence[Outcome]) -> Outcome:
    for outcome in ("fail", "not enough"):
        if outcome in outcomes:
            return outcome
    return "pass"


def _find(wanted: Requirement, sums: SequenceSums, to_pass: float, to_fail: float) -> Finding:
    """One requirement of one log."""
    statistic = STATISTICS[wanted.statistic]
    if sums.tokens == 0:
        return Finding(wanted, math.nan, math.nan, math.nan, math.nan, "not enough", "no token counts")
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        value, influence = statistic.measure(sums)
        if statistic.of_this_log or wanted.relation == "==":
            return _of_this_log(wanted, value, sums)
        spread = bounds.spread(value, influence, tokens=sums.tokens, like_one_length=sums.like_one_length,
                               share=statistic.share)
        return _judge(wanted, spread, to_pass, to_fail)


def _of_this_log(wanted: Requirement, value: float, sums: SequenceSums) -> Finding:
    """What is said of the log itself, not of where it came from: no bounds, nothing to wait for."""
    holds = wanted.holds(value)
    reason = "of the tokens of this log"
    if wanted.statistic == "share_differing":
        reason = f"all {sums.tokens:,} tokens of this log are equal"
        if value:
            reason = f"{round(value * sums.tokens):,} of {sums.tokens:,} tokens differ{sums.first_difference_told}"
    return Finding(wanted, value, 0.0, value, value, "pass" if holds else "fail", reason)


def _compare(name: str, sums: SequenceSums, baseline: SequenceSums, margin: float, to_pass: float,
             to_fail: float) -> Finding:
    """Whether log - (1 + margin) baseline is at most 0, paired by sequence; told as the quotient."""
    wanted = Requirement(name, "<=", 1 + margin, "not worse than the baseline")
    if sums.tokens == 0:
        return Finding(wanted, math.nan, math.nan, math.nan, math.nan, "not enough", "no token counts")
    ours, influence = STATISTICS[name].measure(sums)
    theirs, their_influence = STATISTICS[name].measure(baseline)
    if theirs == 0:
        equal = ours == 0
        quotient = 1.0 if equal else math.inf
        return Finding(wanted, quotient, 0.0, quotient, quotient, "pass" if equal else "fail",
                       "both are exact on this log" if equal else "the baseline is exact on this log")
    # The quotient's error by the delta method, from the difference of what each sequence adds to both.
    quotient = ours / theirs
    spread = bounds.spread(quotient, (influence - quotient * their_influence) / theirs, tokens=sums.tokens,
                           like_one_length=sums.like_one_length)
    return _judge(wanted, spread, to_pass, to_fail)


def _judge(wanted: Requirement, spread: bounds.Spread, to_pass: float, to_fail: float) -> Finding:
    outcome, lower, upper = _settle(wanted, spread, to_pass, to_fail)
    needed, reason = None, ""
    if outcome == "not enough":
        if not math.isfinite(spread.value):
            reason = "overflows: look at the largest |d|"
        else:
            needed = _needed(wanted, spread, to_pass, to_fail)
            reason = BETWEEN
            if needed is None:
                reason = "the value is at the limit: no log of a size in use settles it"
            elif math.isnan(lower + upper):
                reason = f"below {bounds.FEWEST_SEQUENCES} sequences no error is to be trusted"
    return Finding(wanted, spread.value, spread.standard_error, lower, upper, outcome, reason, needed)


def _settle(wanted: Requirement, spread: bounds.Spread, to_pass: float,
            to_fail: float) -> tuple[Outcome, float, float]:
    """(outcome, lower, upper). Comparisons with NaN are false, so what cannot be bounded is "not enough"."""
    if wanted.below:
        lower, upper = bounds.lower(spread, to_fail), bounds.upper(spread, to_pass)
        passed, failed = wanted.holds(upper), lower > wanted.limit
    else:
        lower, upper = bounds.lower(spread, to_pass), bounds.upper(spread, to_fail)
        passed, failed = wanted.holds(lower), upper < wanted.limit
    return "pass" if passed else "fail" if failed else "not enough", lower, upper


def _needed(wanted: Requirement, spread: bounds.Spread, to_pass: float, to_fail: float) -> int | None:
    """The fewest sequences with this log's value and spread that settle the requirement; None if too many."""
    def settled(sequences: int) -> bool:
        return _settle(wanted, spread.scaled(sequences), to_pass, to_fail)[0] != "not enough"

    low, high = spread.sequences, 2 * spread.sequences
    while not settled(high):
        low, high = high, 2 * high
        if high > spread.sequences * _MOST_TIMES:
            return None
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if settled(middle) else (middle, high)
    return high


def digest(document: Mapping[str, Any]) -> str:
    """The sha256 of a document's content without its own "sha256": of its JSON in UTF-8 with sorted keys, no
    spaces, and floats as the shortest decimal that reads back the same (Python's json)."""
    body = {key: value for key, value in document.items() if key != "sha256"}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def check(document: Any) -> dict[str, Any]:
    """The document, if it is a certificate as it was written.

    Args:
        document: what a certificate's JSON holds.

    Raises:
        InvalidArgumentError: it is none, of a newer kind, or its content is not what its sha256 is of.
    """
    schema = str(document.get("schema", "")) if isinstance(document, dict) else ""
    if not schema.startswith("lockstep-certificate/"):
        raise InvalidArgumentError("no certificate: it lacks the schema lockstep-certificate")
    if document["schema"] != SCHEMA:
        raise InvalidArgumentError(f"its schema is {document['schema']!r}, but this Lockstep knows {SCHEMA}")
    try:
        found = digest(document)
    except (ValueError, TypeError) as error:
        raise InvalidArgumentError("was changed after it was made: it holds NaN or infinity") from error
    if document.get("sha256") != found:
        raise InvalidArgumentError(f"was changed after it was made: its content has sha256 {found}, but it"
                                   f" says {document.get('sha256')}")
    return document


def _finding(of: Finding) -> dict[str, Any]:
    return asdict(of) | {"requirement": str(of.requirement)}


def _versions() -> dict[str, str]:
    version = library.lockstep_version_string().decode()
    return {"lockstep": version, "python": platform.python_version(), "numpy": np.__version__,
            "machine": platform.machine(), "system": platform.system()}


def _plain(value: Any) -> Any:
    """JSON's own types; NaN and infinities, which it has not, are None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.integer, np.floating)):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
