"""`lockstep scaler`: what each loss scaler would have done in a run whose gradients were recorded."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

import lockstep

from ..report.rows import percent
from ..report.terminal import printable
from .shared import BadInput, told

SCHEMA = "lockstep-scaler/1"
INTERVALS = (50, 100, 200, 400, 1000, 2000, 4000)
SCALERS = ("torch", "deepspeed", "megatron", "paper")
LARGEST = 65504.0
# fp16 makes 0 of a magnitude of 2^-25 and below.
VANISHING = 2.0**-25


@dataclass(frozen=True)
class Result:
    """One scaler over the run."""

    scaler: str
    growth_interval: int
    #: Steps skipped, and their share.
    skipped: int
    wasted: float
    #: log2(65504 / (maximum x scale)), mean over the steps that were taken: range left unused.
    unused_bits: float
    #: Share of gradients (of taken steps) that became 0; None where no smaller gradients were recorded.
    underflow: float | None
    #: The scale after the last step, the lowest, and how often an overflow left it at its floor.
    scale: float
    lowest: float
    floor_overflows: int


@click.command(short_help="How would each loss scaler have done in a recorded run?")
@click.argument("path", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--maxima", default="max_abs_grad", show_default=True, metavar="NAME",
              help="Column of the largest |gradient| of each step, before scaling.")
@click.option("--quantiles", metavar="NAME",
              help="Column of lists: quantiles of |gradient| of each step, equally spaced. Needed for the underflow share.")
@click.option("--scaler", "scalers", multiple=True, type=click.Choice(lockstep.loss_scaler_names()),
              help=f"A scaler to try; once for each. Default: {', '.join(SCALERS)}.")
@click.option("--initial-scale", type=float, metavar="X", help="First scale, in place of the scaler's own.")
@click.option("--most-skipped", type=click.FloatRange(0, 1), default=0.01, show_default=True, metavar="SHARE",
              help="Share of steps that may be skipped, in the choice of the best interval.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a page with the scale over the steps.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, not the table.")
def scaler(path: Path, maxima: str, quantiles: str | None, scalers: Sequence[str], initial_scale: float | None,
           most_skipped: float, html: Path | None, as_json: bool) -> None:
    """How would each loss scaler have done in a recorded run?

    PATH has a row a step: JSON lines, CSV with a header, or a NumPy .npz. From each step's largest |gradient| (not
    scaled; null, nan or inf where it overflowed by itself) follow the skipped steps and the range left unused. Which
    share of gradients fell to 0 needs --quantiles beside it: of, say, 101 quantiles each stands for 1 % of them.

    Each scaler runs with its own growth interval, and with each of 50 to 4000. The best interval is the one with
    the least range left unused among those that skip at most --most-skipped of the steps; if none does, the one that
    skips least. Gradients are taken as recorded: a skipped step would in truth have changed those that follow.

    \b
    Every scaler with its defaults:
        lockstep scaler gradients.jsonl
    PyTorch's, from a CSV, with a page:
        lockstep scaler grads.csv --maxima gmax --scaler torch --html scaler.html

    Exit status: 0; 2 for an error.
    """
    with told():
        columns = _read(path, [maxima] if quantiles is None else [maxima, quantiles])
        try:
            tops = np.array([math.nan if each in (None, "") else float(each) for each in columns[maxima]])
        except (TypeError, ValueError) as error:
            raise BadInput(f"{path}: {maxima} is not a number a step: {error}") from None
        parts = None if quantiles is None else _matrix(path, quantiles, columns[quantiles])
        if not len(tops):
            raise BadInput(f"{path}: has no steps")
        options = {} if initial_scale is None else {"initial_scale": initial_scale}
        own = [_run(tops, parts, name, None, options) for name in scalers or SCALERS]
        best = {name: _best([_run(tops, parts, name, each, options) for each in INTERVALS], most_skipped)
                for name in dict.fromkeys(scalers or SCALERS) if name not in ("constant", "paper")}
        if html is not None:
            from ..report import scaler_page

            scaler_page.write(html, path.name, tops, own, best, options, most_skipped)
    if as_json:
        click.echo(json.dumps({
            "schema": SCHEMA, "lockstep_version": lockstep.__version__, "steps": len(tops),
            "scalers": [_finite(asdict(each)) for each in own], "most_skipped": most_skipped,
            "best": {name: _finite(asdict(each)) for name, each in best.items()},
        }, indent=2, allow_nan=False))
        return
    console = Console(highlight=False)
    console.print(f"{printable(path.name)}: {len(tops):,} steps")
    console.print(_table(own, best))
    for result in own:
        if result.floor_overflows:
            console.print(f"ALARM: {result.scaler}: {result.floor_overflows:,} overflows left the scale at its floor.",
                          style="bold red")
    if parts is None:
        console.print("Underflow was not told: give --quantiles, a column of quantiles of |gradient|.")


def _run(tops: NDArray, parts: NDArray | None, name: str, interval: int | None, options: dict) -> Result:
    given = options if interval is None else options | {"growth_interval": interval}
    replay = lockstep.replay_loss_scaler(tops, name, **given)
    taken = ~replay.skipped
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = np.log2(LARGEST / (tops * replay.scales))[taken & (tops > 0)]
    underflow = None
    if parts is not None and taken.any():
        scaled = (parts * replay.scales[:, None])[taken]
        underflow = float(((scaled <= VANISHING) & (scaled > 0)).mean())
    scales = np.append(replay.scales, replay.report.scale)
    return Result(
        name, interval or lockstep.LossScaler(name, **options).options["growth_interval"], replay.report.skipped,
        replay.report.skipped / len(tops), float(bits.mean()) if len(bits) else math.nan, underflow,
        replay.report.scale, float(scales.min()), replay.report.floor_overflows)


def _best(results: Sequence[Result], most_skipped: float) -> Result:
    """The least range unused among those that skip few enough; else the one that skips least."""
    allowed = [each for each in results if each.wasted <= most_skipped and not math.isnan(each.unused_bits)]
    return min(allowed, key=lambda each: each.unused_bits) if allowed else min(results, key=lambda each: each.skipped)


def _table(own: Sequence[Result], best: dict[str, Result]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 0, 0, 2))
    for name in ("scaler", "interval", "skipped", "wasted", "unused bits", "underflow", "lowest", "last scale"):
        table.add_column(name, justify="left" if name == "scaler" else "right", no_wrap=True)
    for each in [*own, *best.values()]:
        is_best = any(each is one for one in best.values())
        table.add_row(
            each.scaler + (", best" if is_best else ""),
            "" if each.scaler == "constant" else f"{each.growth_interval:,}", f"{each.skipped:,}", percent(each.wasted),
            f"{each.unused_bits:.1f}", "" if each.underflow is None else percent(each.underflow), f"{each.lowest:.4g}",
            f"{each.scale:.4g}", style="red" if each.floor_overflows else None)
    return table


def _read(path: Path, names: Sequence[str]) -> dict[str, Sequence]:
    """The columns of those names."""
    found: dict[str, list] = {name: [] for name in names}
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in names}
        except (ValueError, OSError, KeyError) as error:
            raise BadInput(f"{path}: {error}") from None
    for line, row in _rows(path):
        for name in names:
            if not isinstance(row, dict) or name not in row:
                known = ", ".join(list(row)[:10]) if isinstance(row, dict) else "none"
                raise BadInput(f"{path}: line {line} has no column '{name}'; it has {known}. Name it with --maxima or"
                               " --quantiles")
            found[name].append(row[name])
    return found


def _rows(path: Path) -> Iterator[tuple[int, dict]]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                yield from enumerate(csv.DictReader(file), 2)
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except ValueError as error:
                        raise BadInput(f"{path}: line {number}: {error}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: is not text: {error}") from None


def _matrix(path: Path, name: str, values: Sequence) -> NDArray:
    try:
        parts = np.array([json.loads(each) if isinstance(each, str) else each for each in values], float)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{path}: {name} is not a list of as many numbers at every step: {error}") from None
    if parts.ndim != 2 or not parts.shape[1] or not (parts >= 0).all():
        raise BadInput(f"{path}: {name} is not a list of magnitudes at every step")
    return parts


def _finite(row: dict) -> dict:
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
