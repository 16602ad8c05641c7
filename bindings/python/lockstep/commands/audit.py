"""`lockstep audit`: whether a checkpoint fits FP16, and which operation would overflow."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import click
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import lockstep

from .._audit import Headroom, audit_headroom
from ..report.rows import percent
from ..report.terminal import printable
from .shared import BadInput, ReadOptions, loading_bar, read_options, sequences_of, told

SCHEMA = "lockstep-audit/2"

# Tokens of a log that are run, unless --limit says otherwise: magnitudes settle long before.
LIMIT = 8192
# Factors of 2 below 65,504 under which a value is called close: gradients and other inputs vary by more.
CLOSE = 3


@click.command(short_help="Does a checkpoint fit FP16, and what would overflow?")
@click.argument("model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--tokens", type=click.Path(path_type=Path, exists=True), metavar="LOG",
              help="A log with token ids: what each operation gives for them is looked at too.")
@click.option("--limit", type=click.IntRange(1), default=LIMIT, show_default=True, metavar="N",
              help="Tokens of the log to run, in whole sequences.")
@click.option("--backward", is_flag=True, help="With --tokens: look at the backward pass too, in the memory of training.")
@click.option("--loss-scale", type=click.FloatRange(2**-60, 2**60), default=65536, show_default=True, metavar="X",
              help="What --backward multiplies the loss by, the mean of the tokens' negative log-probs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document with every tensor and operation.")
@read_options
def audit(model: Path, tokens: Path | None, limit: int, backward: bool, loss_scale: float, as_json: bool,
          reading: ReadOptions) -> int:
    """How much room does a checkpoint leave in FP16?

    MODEL is a Hugging Face folder. FP16 holds magnitudes from 6e-8 (with all its bits from 6.1e-5) to 65,504. For
    each kind of tensor the largest magnitude in all layers is shown, in which, how many factors of 2 are left
    above it ("bits"), which share has fewer than FP16's 11 bits ("subnormal") or becomes 0, and how many
    values are over 65,504. With a log the same is shown for every operation of the forward pass, run in
    float32: what exceeds 65,504 there would overflow in FP16.

    \b
    The weights:
        lockstep audit ~/models/SmolLM2-135M
    And what they make of tokens that were sampled:
        lockstep audit ~/models/SmolLM2-135M --tokens rollouts.jsonl
    And the gradients, with the largest loss scale at which none would overflow:
        lockstep audit ~/models/SmolLM2-135M --tokens rollouts.jsonl --limit 512 --backward

    Exit status: 0 if all of it fits, 1 if something would overflow (a gradient: at any loss scale from 1 on), 2 for an
    error.
    """
    if backward and tokens is None:
        raise click.UsageError("--backward: gradients need --tokens")
    with told():
        try:
            sequences = None if tokens is None else sequences_of(tokens, reading, limit)
            with loading_bar():
                found = audit_headroom(model, sequences, loss_scale=loss_scale if backward else None)
        except lockstep.LockstepError as error:
            raise BadInput(str(error)) from None
    fits = not any(map(_overflows, filter(_forward, found))) and largest_scale(found, loss_scale) >= 1
    if as_json:
        click.echo(json.dumps({
            "schema": SCHEMA, "lockstep_version": lockstep.__version__, "model": str(model),
            "tokens": sum(map(len, sequences or [])), "fits": fits,
            "loss_scale": loss_scale if backward else None,
            "largest_loss_scale": largest_scale(found, loss_scale) if backward else None,
            "rows": [asdict(row) | {"bits": row.bits if row.largest else None} for row in found],
        }, indent=2, allow_nan=False))
    else:
        _print(Console(highlight=False), found, sequences, loss_scale)
    return 0 if fits else 1


def _overflows(row: Headroom) -> bool:
    return row.overflowing + row.non_finite > 0


def _forward(row: Headroom) -> bool:
    return row.kind in ("weight", "activation")


def largest_scale(found: list[Headroom], loss_scale: float) -> float:
    """The largest power of two as loss scale at which no gradient of `found`, at `loss_scale`, exceeds 65,504; 2^60 at
    most, and without gradients."""
    top = max((row.largest for row in found if not _forward(row)), default=0.0)
    if any(row.non_finite for row in found if not _forward(row)):
        return 0.0
    return 2.0 ** min(60, math.floor(math.log2(65504 / top * loss_scale))) if top else 2.0**60


def _print(console: Console, found: list[Headroom], sequences: list[np.ndarray] | None, loss_scale: float) -> None:
    count = f"{sum(map(len, sequences or [])):,} tokens"
    titles = {"weight": "Weights", "activation": f"Operations, for {count}",
              "gradient": f"Gradients of what operations were given, at a loss scale of {loss_scale:,.10g}",
              "weight gradient": f"Gradients of tensors, at a loss scale of {loss_scale:,.10g}"}
    for kind, rows in groupby(found, key=lambda row: row.kind):
        console.print(_table(titles[kind], _kinds(rows)))
        console.print()
    for line in verdict(found, with_tokens=sequences is not None, loss_scale=loss_scale):
        console.print(Text(line), soft_wrap=False)


def _kinds(rows: Iterable[Headroom]) -> dict[str, list[Headroom]]:
    """The rows of all layers by what they are."""
    kinds: dict[str, list[Headroom]] = {}
    for row in rows:
        name = re.sub(r"^model\.|layers\.\d+\.|experts\.\d+\.|\.weight$", "", row.name) if "weight" in row.kind else row.name
        kinds.setdefault(name, []).append(row)
    return kinds


def _layer(row: Headroom) -> str:
    if "weight" in row.kind:
        layer = re.search(r"layers\.(\d+)\.", row.name)
        return layer[1] if layer else ""
    return str(row.layer) if row.layer >= 0 and row.name != "final norm" else ""


def _named(row: Headroom) -> str:
    return row.name if "weight" in row.kind or not _layer(row) else f"{row.name} of layer {row.layer}"


def _table(title: str, kinds: dict[str, list[Headroom]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 0, 0, 1), collapse_padding=True, title=title,
                  title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    for name in ("largest", "layer", "bits", "subnormal", "to 0", "over"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, rows in kinds.items():
        top = max(rows, key=lambda row: row.largest)
        count = sum(row.count for row in rows) or 1
        over = sum(row.overflowing + row.non_finite for row in rows)
        table.add_row(
            printable(name), f"{top.largest:.4g}", _layer(top), f"{top.bits:.1f}",
            percent(sum(row.subnormal for row in rows) / count),
            percent(sum(row.vanishing for row in rows) / count), f"{over:,}" if over else "",
            style="red" if over else "yellow" if top.bits < CLOSE else None)
    return table


def verdict(all_found: list[Headroom], *, with_tokens: bool, loss_scale: float = 1) -> list[str]:
    """What it comes to, in a few lines."""
    found = list(filter(_forward, all_found))
    gradients = [row for row in all_found if not _forward(row)]
    over = [row for row in found if _overflows(row)]
    top = max(found, key=lambda row: row.largest)
    if over:
        lines = ["Does not fit FP16: "
                 + ", ".join(map(_named, over[:5]))
                 + (f" and {len(over) - 5} more" if len(over) > 5 else "") + " would overflow."]
        lines.append("Keep those in FP32 or BF16, or scale them down.")
    elif top.bits < CLOSE:
        lines = [f"Fits FP16, but closely: {_named(top)} reaches {top.largest:.4g}, {top.bits:.1f} factors of 2 below "
                 "65,504. Other inputs may overflow."]
    else:
        lines = [f"Fits FP16: the largest magnitude is {top.largest:.4g} ({_named(top)}), {top.bits:.1f} factors of 2 "
                 "below 65,504."]
    if not with_tokens:
        lines.append("Only weights were looked at: give --tokens for what operations make of them.")
    if not gradients:
        lines.append("Gradients were not looked at: FP16 training needs loss scaling for those; give --backward.")
        return lines
    top = max(gradients, key=lambda row: row.largest)
    scale = largest_scale(all_found, loss_scale)
    lines.append(f"The largest safe loss scale is {_power(scale)}: the gradient of {_named(top)} reaches"
                 f" {top.largest / loss_scale:.3g} without one.")
    if over := [row for row in gradients if _overflows(row)]:
        lines.append(f"At {loss_scale:,.10g} would overflow: {', '.join(map(_named, over[:5]))}"
                     + (f" and {len(over) - 5} more." if len(over) > 5 else "."))
    return lines


def _power(scale: float) -> str:
    return f"{scale:,.10g}" if 1 <= scale <= 2**30 else f"2^{math.log2(scale):.0f}" if scale else "none"
