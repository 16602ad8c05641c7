"""The pictures of the report, as inline SVG: one a panel, which the page puts beside or below each other.

All are of one width, that of a phone and of half a page, so that their text is legible on both. Text stays
text, so the page's fonts and a screen reader get it; ink and grid are CSS variables, so a dark page is dark;
clouds of points are embedded as PNG, so that a million of them cost no more than a thousand. Series differ in
colour (distinct for colour-blind readers, legible on white and on black) and in dash or marker.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from .._memory import give_back_memory
from .diagnosis import Diagnosis
from .rows import cell, number

COLOURS = ("#d9662b", "#2f86c9", "#1f9a78", "#a060c0", "#b08a1e", "#7d8794")
DASHES: tuple[Any, ...] = (
    "-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (9, 2)), (0, (3, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")

# Stand-ins that nothing else is drawn in; in the SVG they become the page's variables.
INK, GRID, QUIET = "#010203", "#040506", "#070809"
VARIABLES = {INK: "var(--ink)", GRID: "var(--grid)", QUIET: "var(--quiet)"}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # measures the layout; the page's own font is set in its stead
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
}

WIDTH = 4.8
FEWEST_IN_BUCKET = 10
BINS = 161  # odd: one of them has its middle at 0


def scatter(diagnoses: Sequence[Diagnosis]) -> list[str]:
    """Token probabilities, trainer against rollout: one panel a log, the same axes."""
    panels = []
    for index, diagnosis in enumerate(diagnoses):
        with matplotlib.rc_context(STYLE):
            figure, ax = _panel(WIDTH + 0.1)
            rollout, trainer = diagnosis.survey.sample()
            with np.errstate(over="ignore", invalid="ignore"):
                rollout, trainer = np.exp(rollout), np.exp(trainer)
            ax.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8, zorder=1)
            ax.scatter(rollout, trainer, s=5, color=_colour(index), alpha=0.45, linewidths=0, rasterized=True,
                       zorder=2)
            statistics = diagnosis.statistics
            ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", xlabel="rollout probability μ",
                   ylabel="trainer probability π", title=_title(diagnosis.label))
            ax.text(0.03, 0.97, f"mean |π − μ|  {number(statistics.mean_abs_prob_diff.value)}\n"
                                f"1 − Pearson  {number(statistics.one_minus_pearson)}",
                    transform=ax.transAxes, va="top", linespacing=1.5)
            ticks = FixedLocator([0, 0.2, 0.4, 0.6, 0.8, 1.0])
            ax.xaxis.set_major_locator(ticks)
            ax.yaxis.set_major_locator(ticks)
            panels.append(_svg(figure, f"scatter-{index}"))
    return panels


def sequences(diagnoses: Sequence[Diagnosis]) -> list[str]:
    """Log ratio of whole sequences against their length, with the least-squares line."""
    counted = [diagnosis.survey.total.sample() for diagnosis in diagnoses]
    longest = max(1.0, *(values["tokens"].max(initial=0) for values in counted))
    highest = 1.35 * max(np.abs(values["log_ratio"]).max(initial=0.0) for values in counted) or 1.0
    panels = []
    for index, (diagnosis, values) in enumerate(zip(diagnoses, counted, strict=True)):
        with matplotlib.rc_context(STYLE):
            figure, ax = _panel(3.3)
            statistics = diagnosis.statistics
            ax.axhline(0, color=QUIET, linewidth=0.8)
            ax.scatter(values["tokens"], values["log_ratio"], s=14, color=_colour(index),
                       alpha=0.6, linewidths=0, marker=_marker(index),
                       rasterized=len(values) > 500)
            slope = statistics.slope_per_1000
            mean = statistics.sequence_log_ratio
            note = f"KL a sequence (k1)  {cell(mean._replace(value=-mean.value), 'number')} nats"
            if math.isfinite(slope.value):
                x = np.array([float(values["tokens"].min()), float(values["tokens"].max())])
                middle = statistics.mean_sequence_length
                ax.plot(x, statistics.sequence_log_ratio.value + slope.value / 1000 * (x - middle), color=INK,
                        linewidth=1.4)
                note = f"slope  {cell(slope, 'number')} per 1,000 tokens\n{note}"
            ax.text(0.03, 0.97, note, transform=ax.transAxes, va="top", linespacing=1.5)
            ax.set(xlim=(0, longest * 1.04), ylim=(-highest, highest), xlabel="length, tokens",
                   ylabel="S = ln π − ln μ, sequence", title=_title(diagnosis.label))
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            panels.append(_svg(figure, f"sequences-{index}"))
    return panels


def distribution(diagnoses: Sequence[Diagnosis]) -> tuple[str, int]:
    """The distribution of the log ratio, all logs on one axis; and how many tokens lie outside it."""
    measured = [diagnosis.statistics for diagnosis in diagnoses if diagnosis.statistics.tokens]
    furthest = max((each.max_abs_log_ratio for each in measured), default=0.0)
    tail = max((abs(each.log_ratio_quantiles[end]) for each in measured for end in (0, -1)), default=0.0)
    reach = min(2 * tail, furthest) or furthest or 1.0  # one wild token must not squeeze the rest
    edges = np.linspace(-reach, reach, BINS + 1)
    floor = 0.5 / max(1, *(d.statistics.tokens for d in diagnoses))  # below one token
    outside = 0
    with matplotlib.rc_context(STYLE):
        figure, ax = _panel(3.1)
        for index, diagnosis in enumerate(diagnoses):
            bins = diagnosis.profile("log_ratio")
            tokens = diagnosis.statistics.tokens
            # The bins of the sketch are far finer than those of the picture: each goes where its middle is.
            counts, _ = np.histogram(_middles(bins), edges, weights=bins["tokens"])
            outside += tokens - int(counts.sum())
            share = np.maximum(counts / max(tokens, 1), floor)
            ax.stairs(share, edges, color=_colour(index), alpha=0.14, fill=True, baseline=floor)
            ax.stairs(share, edges, color=_colour(index), linewidth=1.4, baseline=None,
                      linestyle=_dash(index))
        _log_axis(ax, 1.05 * floor, 1.5)
        ax.set(xlim=(-reach, reach), xlabel="log ratio d = ln π − ln μ, nats",
               ylabel=f"share of tokens, bins of {2 * reach / BINS:.2g}")
        return _svg(figure, "distribution"), outside


def _middles(bins: NDArray) -> NDArray:
    """The middle of each bin; its finite end, where the other is infinite."""
    lower, upper = bins["lower"], bins["upper"]
    return np.where(np.isinf(lower), upper, np.where(np.isinf(upper), lower, (lower + upper) / 2))


# Where the picture by probability ends: what is nearer to 0 or 1 is drawn there.
MOST_LOGIT = 14.0


def _logits(probabilities: NDArray) -> NDArray:
    with np.errstate(divide="ignore", invalid="ignore"):
        logits = np.log(probabilities) - np.log1p(-np.minimum(probabilities, 1.0))
    return np.clip(logits, -MOST_LOGIT, MOST_LOGIT)


def where(diagnoses: Sequence[Diagnosis]) -> list[str]:
    """Mean |d| by position and by probability, with the tokens in each bucket."""
    longest = max(1, *(d.statistics.max_sequence_length for d in diagnoses))
    with matplotlib.rc_context(STYLE):
        position, top, counts = _panel_with_counts(diagnoses)
        for index, diagnosis in enumerate(diagnoses):
            buckets = diagnosis.profile("position")
            # From 1, as the axis is logarithmic.
            _bucket_lines(top, counts, 1 + np.minimum(_edges(buckets), longest), buckets, index, np.sqrt)
        top.set_xscale("log")
        top.set(title="by position in the sequence", xlim=(1, 1 + longest))
        counts.set(xlabel="place among the tokens that count, from 1")
        counts.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        counts.xaxis.set_minor_formatter(NullFormatter())
        _whole_decades(top)
        probability, top, counts = _panel_with_counts(diagnoses)
        for index, diagnosis in enumerate(diagnoses):
            buckets = diagnosis.profile("probability")
            _bucket_lines(top, counts, _logits(_edges(buckets)), buckets, index)
        top.set(title="by the rollout's probability", xlim=(-MOST_LOGIT, MOST_LOGIT))
        counts.set(xlabel="rollout probability μ of the token, % (logit scale)")
        ticks = (1e-4, 1e-2, 0.1, 0.5, 0.9, 0.99, 0.9999)
        counts.xaxis.set_major_locator(FixedLocator([math.log(p / (1 - p)) for p in ticks]))
        names = {round(math.log(p / (1 - p)), 3): f"{100 * p:g}" for p in ticks}
        counts.xaxis.set_major_formatter(FuncFormatter(lambda x, _: names.get(round(x, 3), "")))
        _whole_decades(top)
        return [_svg(position, "position"), _svg(probability, "probability")]


def _panel_with_counts(diagnoses: Sequence[Diagnosis]) -> tuple[Figure, Axes, Axes]:
    """A panel of mean |d| over a low one of numbers of tokens, on one x axis."""
    figure = Figure(figsize=(WIDTH, 3.9), layout=_layout())
    top, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.set(ylabel="mean |d|, nats")
    counts.set(ylabel="tokens")
    most = max(1, *(diagnosis.statistics.tokens for diagnosis in diagnoses))
    _log_axis(counts, 0.8, 1.5 * most, ticks=4)
    return figure, top, counts


STEP_PANELS = (
    ("k3", "KL(μ ‖ π), k3, nats a token"), ("mean_abs_log_ratio", "mean |d|, nats"),
    ("max_abs_log_ratio", "largest |d|, nats"), ("chi_square", "chi², mean r² − 1"))


def steps(diagnoses: Sequence[Diagnosis]) -> list[str]:
    """Statistics over training steps, with bands of two standard errors; dotted: where a warning begins."""
    panels = []
    for key, title in STEP_PANELS:
        with matplotlib.rc_context(STYLE):
            figure, ax = _panel(2.7)
            heights = []
            for index, diagnosis in enumerate(diagnoses):
                known = [(step, getattr(values, key)) for step, values in diagnosis.steps if values.tokens]
                at = np.array([step for step, _ in known], float)
                values = np.array([getattr(value, "value", value) for _, value in known], float)
                errors = np.array([getattr(value, "standard_error", math.nan) for _, value in known], float)
                shown = values > 0
                ax.plot(at[shown], values[shown], color=_colour(index), linestyle=_dash(index),
                        linewidth=1.4, marker=_marker(index) if len(at) <= 40 else None, markersize=4)
                band = shown & np.isfinite(errors) & (values > 2 * errors)
                ax.fill_between(at[band], (values - 2 * errors)[band], (values + 2 * errors)[band],
                                color=_colour(index), alpha=0.15, linewidth=0)
                heights += values[shown].tolist()
                if diagnosis.alarm_since is not None:
                    ax.axvline(diagnosis.alarm_since, color=_colour(index), linestyle=":", linewidth=1.4)
            low, high = (min(heights), max(heights)) if heights else (1e-4, 1.0)
            _log_axis(ax, 10.0 ** math.floor(math.log10(low)), 10.0 ** (math.floor(math.log10(high)) + 1))
            ax.set(title=title, xlabel="training step")
            ax.xaxis.set_major_locator(MaxNLocator(7, integer=True))
            panels.append(_svg(figure, f"steps-{key}"))
    return panels


def sequence_weight(diagnoses: Sequence[Diagnosis]) -> str:
    """Effective samples left with weights of whole sequences, against their length."""
    lengths = np.geomspace(10, 100_000, 400)
    with matplotlib.rc_context(STYLE):
        figure, ax = _panel(2.9)
        for index, diagnosis in enumerate(diagnoses):
            weight, statistics = diagnosis.sequence_weight, diagnosis.statistics
            if not math.isfinite(weight.variance_per_token):
                continue
            ax.plot(lengths, 100 * np.exp(-weight.variance_per_token * lengths), color=_colour(index),
                    linestyle=_dash(index))
            ax.plot([statistics.mean_sequence_length], [100 * statistics.sequence_ess], color=_colour(index),
                    marker=_marker(index), markersize=7, linestyle="none")
        ax.axhline(50, color=QUIET, linewidth=0.8)
        ax.set_xscale("log")
        ax.set(xlim=(lengths[0], lengths[-1]), ylim=(0, 104), xlabel="length of the sequences, tokens",
               ylabel="effective samples, %")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        return _svg(figure, "weight")


def growth(lines: Sequence[tuple[str, Sequence[int], Sequence[float]]]) -> str:
    """Relative RMS over layers, one line for each kind of operation: its name, layers, values."""
    with matplotlib.rc_context(STYLE):
        figure, ax = _panel(3.3)
        heights = [1e-4]
        for index, (name, layers, values) in enumerate(lines):
            at, height = np.array(layers, float), np.array(values, float)
            shown = (height > 0) & np.isfinite(height)
            ax.plot(at[shown], height[shown], color=_colour(index), linestyle=_dash(index),
                    marker=_marker(index) if len(at) <= 40 else None, markersize=4, label=name)
            heights += height[shown].tolist()
        low, high = (min(heights[1:]), max(heights[1:])) if len(heights) > 1 else (1e-4, 1e-3)
        _log_axis(ax, 10.0 ** math.floor(math.log10(low)), 10.0 ** (math.floor(math.log10(high)) + 1))
        ax.set(xlabel="layer", ylabel="relative RMS of the difference")
        ax.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        if lines:
            ax.legend(frameon=False, fontsize=8.5, loc="best")
        return _svg(figure, "growth")


def key(index: int, place: str) -> str:
    """The sign of a log in the legend at a place: its line, with its marker."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.42, 0.14))
        ax = figure.add_axes((0, 0, 1, 1), xlim=(0, 1), ylim=(0, 1))
        ax.set_axis_off()
        ax.plot([0.02, 0.5, 0.98], [0.5] * 3, color=_colour(index), linestyle=_dash(index))
        ax.plot([0.5], [0.5], color=_colour(index), marker=_marker(index), markersize=5)
        return _svg(figure, f"key-{place}-{index}", "key")


def _edges(buckets: NDArray) -> NDArray:
    return np.append(buckets["lower"], buckets["upper"][-1])


def _bucket_lines(ax: Axes, counts: Axes, edges: NDArray, buckets: NDArray, index: int, middle=None) -> None:
    """Mean |d| of each bucket with enough tokens, and under it the number of tokens.

    `middle` makes the middle of a bucket out of the product of its edges; without it their mean is taken.
    """
    middles = middle(edges[:-1] * edges[1:]) if middle is not None else (edges[:-1] + edges[1:]) / 2
    shown = (buckets["tokens"] >= FEWEST_IN_BUCKET) & (buckets["mean_abs_log_ratio"] > 0)
    ax.plot(middles[shown], buckets["mean_abs_log_ratio"][shown], color=_colour(index),
            linestyle=_dash(index), marker=_marker(index), markersize=4.5)
    drawn = np.append(np.diff(edges) > 0, True)
    counts.stairs(np.maximum(buckets["tokens"][drawn[:-1]], 0.1), edges[drawn], color=_colour(index), linewidth=1.4,
                  linestyle=_dash(index), baseline=None)


def _panel(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout=_layout())
    return figure, figure.add_subplot()


def _layout() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _dash(index: int) -> Any:
    """Where colours come again, dash and marker are others."""
    return DASHES[(index + index // len(COLOURS)) % len(DASHES)]


def _marker(index: int) -> str:
    return MARKERS[(index + 2 * (index // len(COLOURS))) % len(MARKERS)]


def _title(label: str) -> str:
    """A label over a panel, on two lines if need be."""
    return "\n".join(textwrap.wrap(label if len(label) <= 60 else label[:29] + "…" + label[-30:], 42))


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _whole_decades(ax: Axes) -> None:
    """A log axis over the decades that the lines lie in, so that at least two of them are named."""
    heights = np.concatenate([line.get_ydata() for line in ax.lines])
    low, high = (math.log10(heights.min()), math.log10(heights.max())) if len(heights) else (-4, 0)
    _log_axis(ax, 10.0 ** math.floor(low), 10.0 ** (math.floor(high) + 1))


def _log_axis(ax: Axes, low: float, high: float, ticks: int = 8) -> None:
    """A log axis with ticks as 10⁻³, in plain text."""
    ax.set_yscale("log")
    ax.set_ylim(low, high)
    ax.yaxis.set_major_locator(LogLocator(numticks=ticks))
    ax.yaxis.set_major_formatter(FuncFormatter(
        lambda y, _: f"10{str(round(math.log10(y))).translate(_SUPERSCRIPT)}" if y > 0 else ""))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _svg(figure: Figure, name: str, style: str = "picture") -> str:
    """The figure as an <svg> element for inlining: no prolog, the page's fonts and colours."""
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": f"lockstep-{name}"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has it; here it is only measured
        # Dots an inch of clouds of points: more are not seen, and take megabytes while they are drawn.
        figure.savefig(out, format="svg", dpi=144, metadata={"Date": None, "Creator": None})
    figure.clear()  # figure and axes hold each other, and so what they have drawn
    give_back_memory()
    text = out.getvalue()
    text = text[text.index("<svg"):]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda found: found.group() if found.group(1) in used else "", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    head, body = text.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return head.replace("<svg", f'<svg class="{style}" aria-hidden="true"', 1) + ">" + body
