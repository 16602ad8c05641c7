"""Draws docs/pictures/corrections.svg: the weight of a token as a function of its log ratio, as `lockstep.correct` gives it.

    python docs/pictures/corrections.py
"""

from __future__ import annotations

import pathlib

import matplotlib
import numpy as np

import lockstep

PICTURE = pathlib.Path(__file__).with_name("corrections.svg")
CURVES = (
    ("raw", {"weights": "raw"}, "#8a8f98", "-"),
    ("truncate, high = 2 (TIS)", {"weights": "truncate", "high": 2}, "#0b6bcb", "-"),
    ("clip into [0.5, 2]", {"weights": "clip", "low": 0.5, "high": 2}, "#c4621b", "--"),
    ("mask outside [0.5, 5] (IcePop)", {"weights": "mask", "low": 0.5, "high": 5}, "#2e7d32", "-"),
)


def main() -> None:
    matplotlib.use("svg")
    matplotlib.rcParams.update({
        "svg.hashsalt": "lockstep", "svg.fonttype": "none", "path.simplify_threshold": 0.1, "font.size": 9})
    import matplotlib.pyplot as plt

    d = np.linspace(-2, 2, 401)
    figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    for label, arguments, colour, style in CURVES:
        weights = lockstep.correct(d, np.zeros_like(d), **arguments).weights
        # A jump is a gap, not a slope.
        weights = np.where(np.abs(np.diff(weights, prepend=weights[0])) > 0.3, np.nan, weights)
        axes.plot(d, weights, style, color=colour, label=label, linewidth=1.8)
    axes.set(xlabel="log ratio d = ln pi - ln mu", ylabel="weight", xlim=(-2, 2), ylim=(-0.1, 5.5))
    axes.axvline(0, color="#d0d4da", linewidth=0.8, zorder=0)
    axes.axhline(1, color="#d0d4da", linewidth=0.8, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
