"""Figures of runs: panels of lines with bands, one key for all of a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from ..sanity.results import Band
from . import plots


@dataclass(frozen=True)
class Panel:
    """Lines over one axis; a line's place in the list is its colour and dash. None: nothing is drawn of it here."""

    title: str
    ylabel: str
    lines: Sequence[Band | None]
    log: bool = False
    """A log axis, on which what is 0 is not seen."""
    limits: tuple[float, float] | None = None
    xlabel: str = "training step"


@dataclass(frozen=True)
class Figure:
    """Panels with one key."""

    name: str
    heading: str
    caption: str
    keys: tuple[tuple[Markup, str], ...]
    panels: tuple[Markup, ...]


def figure(name: str, heading: str, caption: str, labels: Sequence[str], panels: Sequence[Panel]) -> Figure:
    """A figure of the panels; `labels` are those of their lines, `name` tells its pictures from others'."""
    return Figure(
        name, heading, caption, tuple((Markup(plots.key(index, name)), label) for index, label in enumerate(labels)),
        tuple(Markup(draw(panel, f"{name}-{index}")) for index, panel in enumerate(panels)))


def draw(panel: Panel, name: str) -> str:
    """A panel as SVG."""
    with matplotlib.rc_context(plots.STYLE):
        picture, ax = plots._panel(2.9)
        heights: list[float] = []
        for index, band in enumerate(panel.lines):
            if band is None:
                continue
            shown = np.isfinite(band.mean) & ((band.mean > 0) | (not panel.log))
            colour = plots._colour(index)
            ax.plot(band.at[shown], band.mean[shown], color=colour, linestyle=plots._dash(index),
                    marker=plots._marker(index) if shown.sum() <= 16 else None, markersize=4.5,
                    linewidth=1.4)
            wide = shown & np.isfinite(band.low) & np.isfinite(band.high) & ((band.low > 0) | (not panel.log))
            ax.fill_between(band.at[wide], band.low[wide], band.high[wide], color=colour, alpha=0.15, linewidth=0)
            heights += [*band.mean[shown], *band.low[wide], *band.high[wide]]
        if panel.log:
            low, high = (min(heights), max(heights)) if heights else (1e-4, 1e-3)
            plots._log_axis(ax, 10.0 ** math.floor(math.log10(low)), 10.0 ** (math.floor(math.log10(high)) + 1))
        if panel.limits is not None:
            ax.set_ylim(*panel.limits)
        ax.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel)
        ax.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        return plots._svg(picture, name)
