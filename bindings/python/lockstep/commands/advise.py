"""`lockstep advise`: what each correction would do to a log, and which thresholds to take."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import lockstep

from ..advice import Advice, CorrectionHistograms, Effect, advise_on
from ..report.rows import number, percent
from ..report.terminal import WIDEST_PROSE, printable
from .shared import ReadOptions, Work, default_labels, read_options, read_parts, told, work_options

SCHEMA = "lockstep-advice/1"

LEVELS = {"token": "of tokens, ratio r", "sequence": "of sequences, ratio exp(S)"}

# Lengths for which the loss of sequence weights is told, besides those in the log.
LENGTHS = (1_024, 8_192, 65_536)


@click.command(short_help="What each correction would do to a log; which thresholds to take.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True,
                type=click.Path(path_type=Path, exists=True))
@click.option("--ess", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.5,
              show_default=True, metavar="SHARE", help="The share of effective samples to keep.")
@click.option("--json", "as_json", is_flag=True,
              help="Print one JSON document with every figure, not the tables.")
@read_options
@work_options
def advise(files: tuple[Path, ...], ess: float, as_json: bool, work: Work, reading: ReadOptions) -> None:
    """What would each correction do to rollout logs, and which thresholds keep enough effective samples?

    For every correction in use (truncated and masked importance weights, of tokens and of sequences, and
    rejection rules): which share it truncates or drops, the effective sample size before and after, and the
    bias it takes on; by length of sequence, as weights of whole sequences die with length.

    \b
    What can this log bear?
        lockstep advise outputs/token_exports/step_100
    Thresholds that keep 90 % of the effective samples:
        lockstep advise run.jsonl --ess 0.9

    Formulas: docs/Advice.md.
    """
    documents = []
    with told():
        labels = default_labels(files)
        logs = read_parts([(CorrectionHistograms(label, exclude_non_finite=reading.exclude_non_finite), [path])
                           for path, label in zip(files, labels, strict=True)], reading, work)
        found = [advise_on(histograms, ess=ess) for histograms in logs]
    for label, histograms, advice in zip(labels, logs, found, strict=True):
        files_read = [asdict(histograms.files[index]) for index in sorted(histograms.files)]
        documents.append({"label": label, "files": files_read} | advice.to_dict())
        if not as_json:
            _print(Console(highlight=False), label, advice, named=len(files) > 1)
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "lockstep_version": lockstep.__version__, "logs": documents},
                              indent=2, allow_nan=False))


def _table(*columns: str) -> Table:
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    for index, name in enumerate(columns):
        out.add_column(name, justify="right" if index else "left", no_wrap=True)
    return out


def _print(console: Console, label: str, advice: Advice, named: bool) -> None:
    if named:
        console.print(Text(printable(label), "bold"))
    effects = _table("correction", "cut", "dropped", "ESS before", "ESS after", "bias at most", "mean w²")
    level = None
    for effect in advice.effects:
        if effect.level != level:
            level = effect.level
            effects.add_row(Text(LEVELS[level], "dim"))
        effects.add_row("  " + effect.rule, percent(effect.modified[0]), percent(effect.dropped[0]),
                        number(effect.ess_before[0]), number(effect.ess[0]), number(effect.bias[0], 2),
                        number(effect.second_moment[0]))
    thresholds = _table(f"to keep an ESS of {advice.wanted_ess:g}", "threshold", "cut", "bias at most")
    for each in advice.thresholds:
        thresholds.add_row(each.kind, each.text, percent(each.modified), number(each.bias, 2))
    columns = {"geometric mask [0.999, 1.002]": "geometric mask", "sequence weight": "exp(S)",
               "sequence TIS, C = 2": "TIS, C = 2", "sequence MIS, C = 3": "MIS, C = 3"}
    lengths = _table("ESS after, by length", "sequences", *columns.values())
    for each in advice.by_length:
        found = {effect.rule: effect for effect in each.effects}
        lengths.add_row(f"{each.shortest:,} to {2 * each.shortest - 1:,}", f"{each.sequences:,}",
                        *(number(found[name].ess[0]) for name in columns))
    tables = (effects, thresholds, lengths)
    if not console.is_terminal:
        console.width = 1_000  # for measuring
        console.width = max(WIDEST_PROSE, *(console.measure(table).maximum for table in tables))
    for table in tables:
        console.print(table)
        console.print()
    for line in _prose(advice):
        console.print(Text("· " + line), width=min(console.width, WIDEST_PROSE))
    if named:
        console.print()


def _prose(advice: Advice) -> list[str]:
    lines = []
    if math.isfinite(advice.half_life):
        left = ((0.5 ** (length / advice.half_life), length) for length in LENGTHS)
        ahead = ", ".join(f"{percent(share)} at {length:,}" for share, length in left)
        lines.append("Weights of whole sequences lose half of their effective samples every"
                     f" {number(advice.half_life, 2)} tokens, if the noise of tokens is independent: {ahead} are"
                     f" left. They keep {advice.wanted_ess:g} up to {number(advice.longest, 2)} tokens.")
    elif math.isinf(advice.half_life):
        lines.append("No mismatch: weights of whole sequences lose nothing at any length.")
    clamped: list[Effect] = [effect for effect in advice.effects if effect.clamped]
    if clamped:
        lines.append("Log ratios beyond ±20 were clamped, as corrections do: "
                     + ", ".join(f"{effect.clamped:,} {effect.level}s" for effect in
                                 {effect.level: effect for effect in clamped}.values()) + ".")
    lines.append("Token corrections leave the mismatch of the tokens before uncorrected; only weights of whole"
                 " sequences do not.")
    return lines
