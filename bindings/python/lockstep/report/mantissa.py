"""The mantissa study: what fewer bits do, independent engines beside lockstep ones of the same format."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..sanity.results import Band, Cell, Outcome
from .rows import cell, number, percent
from .sanity import Study

if TYPE_CHECKING:
    from .curves import Figure

#: The share of effective samples below which weights of whole sequences are said to suffer.
ENOUGH = 0.9
_NAME = re.compile(r"e8m(\d+)(:lockstep)?")


def bits(each: Cell) -> int | None:
    """The mantissa bits of a pair of one format; None of another pair."""
    found = _NAME.fullmatch(each.pair.name)
    return int(found[1]) if found else None


def _rows(cells: Sequence[Cell], algorithm: str, lockstep: bool) -> list[tuple[int, Cell]]:
    found = [(bits(each), each) for each in cells if each.algorithm == algorithm and each.pair.must_be_zero == lockstep]
    return sorted(((count, each) for count, each in found if count is not None), key=lambda row: row[0])


def slope(rows: Sequence[tuple[int, Cell]]) -> float:
    """The factor by which KL falls with each bit: of the least-squares line of its logarithm."""
    if len(rows) < 2:
        return math.nan
    heights = [each.over_run("k3").value for _, each in rows]
    return float(np.exp(-np.polyfit([count for count, _ in rows], np.log(heights), 1)[0]))


def findings(cells: Sequence[Cell]) -> list[str]:
    """Of each algorithm: the law of KL, and where weights, gradients and rewards begin to suffer."""
    lines = []
    for algorithm in dict.fromkeys(each.algorithm for each in cells):
        apart, same = _rows(cells, algorithm, False), dict(_rows(cells, algorithm, True))
        if not apart:
            continue
        title = apart[0][1].title
        lines.append(f"{title}: KL falls by {number(slope(apart))} with each bit, from {apart[0][0]} to {apart[-1][0]}; 4 is "
                     "expected.")
        few = [count for count, each in apart if each.over_run("sequence_ess").value < ENOUGH]
        lines.append(f"{title}: effective samples of sequences are below {percent(ENOUGH)} "
                     + (f"with {max(few)} bits and fewer." if few else "with no number of bits."))
        for count, each in (apart[0], apart[-1]):
            if count in same:
                control, reward = same[count], "reward_mean"
                lines.append(
                    f"{title}, {count} bits: reward at the end {cell(each.at_end(reward), 'number')} with independent engines, "
                    f"{cell(control.at_end(reward), 'number')} with lockstep ones, whose mismatch is 0; gradient error "
                    f"{cell(each.probed('gradient_error'), 'number')} and {cell(control.probed('gradient_error'), 'number')}.")
    return lines


def figures(cells: Sequence[Cell]) -> list[Figure]:
    """One figure: everything over mantissa bits."""
    from .curves import Panel, figure

    lines = [(algorithm, is_lockstep) for algorithm in dict.fromkeys(each.algorithm for each in cells)
             for is_lockstep in (False, True) if _rows(cells, algorithm, is_lockstep)]
    titles = {each.algorithm: each.title for each in cells}
    labels = [f"{titles[algorithm]}, {'lockstep' if is_lockstep else 'independent'}" for algorithm, is_lockstep in lines]

    def panel(title: str, ylabel: str, value: Callable[[Outcome], float], log: bool = False) -> Panel:
        return Panel(title, ylabel, [_over_bits(_rows(cells, *line), value) for line in lines], log=log,
                     xlabel="mantissa bits")

    return [figure(
        "mantissa", "Over mantissa bits", "Formats with the exponent of FP32: 7 bits are BF16, 10 bits FP16 but for its range. Lockstep engines of "
        "a format have no mismatch, so what they lose is low precision as such. Their KL and spread are 0, which no "
        "logarithmic axis shows. Bands are the least and the most of any seed.", labels,
        [panel("KL(μ ‖ π)", "KL, k3, nats a token", lambda run: run.over_run("k3"), log=True),
         panel("Spread of sequences' log ratios", "std of S, nats", lambda run: run.over_run("sequence_log_ratio_std"), log=True),
         panel("Effective samples", "ESS of sequences", lambda run: run.over_run("sequence_ess")),
         panel("Masked", "share of tokens", lambda run: run.over_run("share_masked")),
         panel("Gradient error", "relative error", lambda run: run.probed("gradient_error"), log=True),
         panel("Reward at the end", "reward", lambda run: run.at_end("reward_mean"))])]


def _over_bits(rows: Sequence[tuple[int, Cell]], value: Callable[[Outcome], float]) -> Band:
    spreads = np.array([each.spread(value) for _, each in rows])
    return Band(np.array([count for count, _ in rows], float), *spreads.T)


MANTISSA = Study(
    "mantissa",
    ("KL goes with 4⁻ᵐ in the mantissa bits m, |d| and the rounding of gradients with 2⁻ᵐ.",
     "Weights of whole sequences die first: their spread grows as |d| does, and with it goes the effective sample size.",
     "Engines of one recipe are one policy, in any format."),
    ("That the reward lost with 3 or 4 bits is lost to mismatch: lockstep engines of the same format lose most of it too.",
     "That corrections beat GRPO where the mismatch is large: none did at this scale.",
     "Collapse: in an earlier study one run with 4 bits rose and fell, five others did not."),
    findings, figures)
