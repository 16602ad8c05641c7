"""Corrections beside verl's, TRL's, slime's and SkyRL's, on golden inputs: weights, masks and figures."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT
from correction_translations import GOLDEN, figures, ours

KNOWN = [
    [part.strip() for part in line.split("|")]
    for line in Path(__file__).with_name("known-corrections.txt").read_text().splitlines()
    if line.strip() and not line.startswith("#")]

# SkyRL computes in float32; verl's fractions are float32 and its sample size has 1e-8 in a mean.
TOLERANCES = {"skyrl": 2e-6}
LOOSE = ("fraction", "eff_sample_size", "_std")


def same(case, figure, theirs, mine):
    if isinstance(mine, np.ndarray) and mine.dtype == bool:
        return (theirs == mine).all()
    loose = figure.startswith("rollout_") and any(part in figure for part in LOOSE)
    tolerance = TOLERANCES.get(case["system"], 1e-6 if loose else 1e-9)
    # A standard deviation is a difference of nearly equal squares in float64 there.
    return np.allclose(theirs, mine, rtol=tolerance, atol=2e-8 if figure.endswith("_std") else 1e-15)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["id"])
def test_golden(case):
    """What is right: their result, or the independent formula where theirs has a bug."""
    right = case["exact"] if "peer_bug" in case.get("flags", []) and "exact" in case else case["expected"]
    if "error" in right or known(case, "weights"):
        return
    for figure, (value, mine) in figures(case, right, ours(case)).items():
        if right is case["expected"] and known(case, figure):
            continue
        assert same(case, figure, value, mine), figure


def known(case, figure):
    """The lines about a figure of a case."""
    return [
        index for index, (system, name, cases, _) in enumerate(KNOWN)
        if system == case["system"] and fnmatch.fnmatch(figure, name) and fnmatch.fnmatch(case["id"], cases)]


def test_known_differences():
    """Every difference has its line, and every line its difference."""
    used, unexplained, compared = set(), [], 0
    for case in GOLDEN["cases"]:
        if "error" in case["expected"]:
            differing = ["raises"]
        else:
            found = figures(case, case["expected"], ours(case))
            compared += len(found)
            differing = [figure for figure, pair in found.items() if not same(case, figure, *pair)]
        for figure in differing:
            lines = known(case, figure)
            used.update(lines)
            if not lines:
                unexplained.append((case["id"], figure))
    assert not unexplained
    assert [line for index, line in enumerate(KNOWN) if index not in used] == []
    assert compared > 1500


def test_the_page_says_how_many():
    [count] = re.findall(r"on (\d+) configurations", (ROOT / "docs" / "Corrections.md").read_text())
    assert int(count) == sum("exact" in case or "error" not in case["expected"] for case in GOLDEN["cases"])
