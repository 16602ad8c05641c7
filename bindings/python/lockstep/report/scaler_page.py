"""The page of `lockstep scaler`: the table, and the scale over the steps, one panel a scaler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

import lockstep

from . import page, plots

POINTS = 2000  # of a line: more would not be seen


def write(path: Path, name: str, maxima: NDArray, own: Sequence[Any], best: Mapping[str, Any],
          options: Mapping[str, float], most_skipped: float) -> None:
    """Writes the page whole or not at all; `own` and `best` are rows of `commands.scaler.Result`."""
    rows = [(each, False) for each in own] + [(each, True) for each in best.values()]
    # One colour for a scaler, its best included: the last of the colours is the grey of the bound.
    names = list(dict.fromkeys(row.scaler for row, _ in rows))
    panels = [Markup(_panel(index, names.index(row.scaler), maxima, row, is_best, options))
              for index, (row, is_best) in enumerate(rows)]
    page.write(path, page.template("scaler.html").render(
        name=name, steps=len(maxima), rows=rows, panels=panels, most_skipped=most_skipped))


def _panel(index: int, colour: int, maxima: NDArray, row: Any, is_best: bool, options: Mapping[str, float]) -> str:
    given = dict(options) if row.scaler == "constant" else {**options, "growth_interval": row.growth_interval}
    replay = lockstep.replay_loss_scaler(maxima, row.scaler, **given)
    every = max(1, len(maxima) // POINTS)
    steps = np.arange(0, len(maxima), every)
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = np.log2(65504 / maxima)[steps]
        scale = np.log2(replay.scales)[steps]
    bound[~np.isfinite(bound)], scale[~np.isfinite(scale)] = np.nan, np.nan
    with matplotlib.rc_context(plots.STYLE):
        figure, ax = plots._panel(2.9)
        ax.plot(steps, bound, color=plots.QUIET, linewidth=0.8)
        ax.step(steps, scale, where="post", color=plots._colour(colour), linewidth=1.6)
        skipped = np.flatnonzero(replay.skipped)[:POINTS]
        ax.scatter(skipped, np.log2(np.maximum(replay.scales[skipped], 2.0**-149)), s=14, marker="x",
                   color=plots.INK, linewidths=0.9, zorder=3)
        title = row.scaler + (", best" if is_best else "")
        ax.set(xlabel="step", ylabel="log₂ of the scale", title=f"{title}: {row.skipped:,} skipped (×)")
        return plots._svg(figure, f"scaler-{index}")
