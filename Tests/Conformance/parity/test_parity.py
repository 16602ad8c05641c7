"""What we measure beside what other systems compute: their own functions where installed, else golden vectors.

A figure of theirs is either one of ours, by the conventions in translations.py, or has a reason there for having
no counterpart, or its difference is a line of known-differences.txt. A line that no longer describes a
difference fails, as does a difference without a line.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from logs import CONDITIONS, LOGS, log, number
from peers import GOLDEN, PEERS, Absent
from translations import TRANSLATED, UNTRANSLATED, Ours


@dataclass(frozen=True)
class Known:
    """A line of known-differences.txt."""

    peer: str
    figure: str
    condition: str
    witness: str
    theirs: str
    ours: str
    reason: str


KNOWN = [
    Known(*(part.strip() for part in line.split("|")))
    for line in Path(__file__).with_name("known-differences.txt").read_text().splitlines()
    if line.strip() and not line.startswith("#")]

# Relative deviations of the golden results that Tests/Vectors/README.md names.
GOLDEN_TOLERANCES = {"nemo-rl": 3e-8}


@functools.cache
def ours(name: str) -> Ours:
    each = log(name)
    return Ours(each.trainer, each.rollout, each.mask)


@functools.cache
def theirs(peer: str, name: str) -> dict:
    """What an installed system gives on a log."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # theirs, of one token's standard deviation
            return PEERS[peer].statistics(log(name))
    except Absent as reason:
        pytest.skip(f"{peer}: {reason} (make test PEERS=1)")


def same(one, other, tolerance) -> bool:
    """Within a relative tolerance; standard deviations of equal weights round to about 1e-8 and not to 0."""
    return np.shape(one) == np.shape(other) and np.allclose(
        one, other, rtol=tolerance, atol=1e-13 if tolerance < 1e-7 else 1e-7, equal_nan=True)


def differences(peer: str, figures: dict, name: str, tolerance=None) -> dict:
    """{figure: (theirs, ours)} where the two are not the same."""
    found = {}
    for figure, value in figures.items():
        if (peer, figure) not in UNTRANSLATED:
            mine = TRANSLATED[peer][figure](ours(name))
            if not same(mine, value, tolerance or PEERS[peer].accuracy(figure, log(name))):
                found[figure] = (value, mine)
    return found


def explained(peer: str, figure: str, name: str) -> bool:
    return any(line.peer == peer and line.figure == figure and CONDITIONS[line.condition](log(name))
               for line in KNOWN)


def matches(text: str, value: float) -> bool:
    """A number of the list, written to six digits; "noise" is rounding that no two machines share."""
    return text == "noise" or bool(np.isclose(float(text), value, rtol=5e-6, atol=0, equal_nan=True))


# Golden vectors

def without_empty_rows(value, name):
    """A peer's list of rows without its empty rows, which do not exist for us."""
    mask = log(name).mask
    return [number(v) for v, row in zip(value, mask) if row.any()] if len(value) == len(mask) else value


def plain(figures: dict, name: str) -> dict:
    """Figures of a golden case as numbers and lists of numbers."""
    found = {}
    for figure, value in figures.items():
        if isinstance(value, dict):
            value = [*without_empty_rows(value["per_row"], name), value["per_token_mean"]]
        elif isinstance(value, list):
            value = without_empty_rows(value, name)
        found[figure] = [number(v) for v in value] if isinstance(value, list) else number(value)
    return found


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["id"])
def test_golden(case):
    """`expected` is the peer's own result; `exact` an independent formula, which has no known differences."""
    peer, name = case["system"], f"vectors/{case['input']}"
    tolerance = GOLDEN_TOLERANCES.get(peer, 1e-9)
    found = differences(peer, plain(case["expected"], name), name, tolerance)
    assert {each: found[each] for each in found if not explained(peer, each, name)} == {}
    assert differences(peer, plain(case.get("exact") or {}, name), name, 1e-9) == {}


IN_VECTORS = {
    (case["system"], figure, f"vectors/{case['input']}"): number(value)
    for case in GOLDEN["cases"] for figure, value in case["expected"].items()
    if not isinstance(value, (dict, list))}


@pytest.mark.parametrize(
    "line", [line for line in KNOWN if (line.peer, line.figure, line.witness) in IN_VECTORS],
    ids=lambda line: f"{line.peer}-{line.figure}")
def test_golden_known_difference(line):
    """Where the witness is a vector, the system's result that is kept there has the value of the line."""
    assert matches(line.theirs, IN_VECTORS[line.peer, line.figure, line.witness])


# Their own functions

@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("peer", PEERS)
def test_beside(peer, name):
    found = differences(peer, theirs(peer, name), name)
    assert {each: found[each] for each in found if not explained(peer, each, name)} == {}


@pytest.mark.parametrize("line", KNOWN, ids=lambda line: f"{line.peer}-{line.figure}-{line.condition}")
def test_known_difference_is_current(line):
    """Its system still gives that value on its witness, and it is still not ours."""
    value = theirs(line.peer, line.witness)[line.figure]
    assert matches(line.theirs, value), f"now gives {value}"
    assert line.figure in differences(line.peer, {line.figure: value}, line.witness)


@pytest.mark.parametrize("peer", PEERS)
def test_every_figure_of_a_peer_is_accounted_for(peer):
    seen = set(theirs(peer, "ragged"))
    known = set(TRANSLATED[peer]) | {figure for system, figure in UNTRANSLATED if system == peer}
    assert seen == known


# What holds without them

def test_every_figure_of_the_vectors_is_accounted_for():
    seen = {(case["system"], figure) for case in GOLDEN["cases"]
            for part in ("expected", "exact") for figure in case.get(part) or {}}
    translated = {(system, figure) for system, figures in TRANSLATED.items() for figure in figures}
    assert not translated & UNTRANSLATED.keys()
    assert seen <= translated | UNTRANSLATED.keys()
    # The rest is of systems that run only where they are installed.
    assert {system for system, _ in (translated | UNTRANSLATED.keys()) - seen} <= PEERS.keys()


@pytest.mark.parametrize("line", KNOWN, ids=lambda line: f"{line.peer}-{line.figure}-{line.condition}")
def test_known_difference_is_well_formed(line):
    """Names that exist, a witness its condition holds on, our value as we give it, and a reason."""
    assert line.peer in PEERS and CONDITIONS[line.condition](log(line.witness))
    assert matches(line.ours, TRANSLATED[line.peer][line.figure](ours(line.witness)))
    assert line.theirs == "noise" or not matches(line.ours, float(line.theirs))
    assert len(line.reason) > 20
    assert [(each.peer, each.figure, each.condition) for each in KNOWN].count(
        (line.peer, line.figure, line.condition)) == 1


def test_the_logs_are_what_they_are_called():
    """Each condition holds on some log and fails on another, so a line can be wrong about it."""
    for condition, holds in CONDITIONS.items():
        assert {bool(holds(log(name))) for name in LOGS} == {True, False}, condition
