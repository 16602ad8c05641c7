"""`lockstep locate`: where two engines part, and what would change it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

import lockstep

from ..dumps import compare_dumps, open_dump
from ..report.locate import Finding, of_dumps, of_engines
from ..report.rows import number, percent
from ..report.terminal import printable
from .shared import BadInput, ReadOptions, loading_bar, read_options, sequences_of, told

SCHEMA = "lockstep-locate/1"

# Tokens of a log that are run, unless --limit says otherwise.
LIMIT = 2048
# What the rollout engine draws where no log is given: sequences, and tokens of each.
DRAWN = 8, 128
WIDEST = 100
MOST_SKIPPED = 8


@click.command(short_help="In which operation do two engines part, and what would change it?")
@click.argument("model", type=click.Path(path_type=Path, exists=True, file_okay=False), required=False)
@click.option("--trainer", metavar="RECIPE", help="The trainer's: bf16, fp16, fp32, bf16-fp32head, fp16-fp32head; or"
              " parts, as activations=bf16,cache=fp16 (the rest fp32).")
@click.option("--rollout", metavar="RECIPE", help="The rollout engine's.")
@click.option("--tokens", type=click.Path(path_type=Path, exists=True), metavar="LOG",
              help="A log with token ids. Default: the rollout engine draws some.")
@click.option("--limit", type=click.IntRange(1), default=LIMIT, show_default=True, metavar="N",
              help="Tokens of the log to run, in whole sequences.")
@click.option("--fp32-layers", "ranges", multiple=True, metavar="FIRST-LAST",
              help="What if these layers were in fp32 on both sides: 3, 3-5, 8- (to the end, with the head); once for"
                   " each experiment. Default: from each quarter on; none: no such experiment, which saves a third"
                   " model's memory.")
@click.option("--dumps", nargs=2, type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="A B",
              help="Compare two dumps (safetensors or .npz) instead of two recipes.")
@click.option("--dump", "out", type=click.Path(path_type=Path), metavar="FILE",
              help="Write what the operations give under --trainer (or, alone, --rollout) to FILE, and end.")
@click.option("--html", "report", type=click.Path(path_type=Path), metavar="PATH", help="Write a report too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document with every operation.")
@click.option("--threads", type=click.IntRange(0), default=0, help="Default: one for each processor.")
@read_options
def locate(model: Path | None, trainer: str | None, rollout: str | None, tokens: Path | None, limit: int,
           ranges: tuple[str, ...], dumps: tuple[Path, Path] | None, out: Path | None, report: Path | None,
           as_json: bool, threads: int, reading: ReadOptions) -> None:
    """Find the first operation whose results differ between two engines, and how the difference grows.

    Either two recipes of MODEL, a Hugging Face folder, run side by side on the same tokens; or two dumps of what
    the operations of any engines gave, whose names are Lockstep's, Hugging Face's or vLLM's.

    \b
    BF16 trainer, FP16 rollout engine:
        lockstep locate ~/models/SmolLM2-135M --trainer bf16 --rollout fp16 --tokens rollouts.jsonl
    What others' engines gave (docs/Locate.md says how to dump it):
        lockstep locate --dumps trainer.safetensors rollout.npz --html where.html
    A dump of ours, to compare with another engine's:
        lockstep locate ~/models/SmolLM2-135M --trainer fp32 --tokens rollouts.jsonl --dump ours.safetensors

    Exit status: 0, also where something differs; 2 for bad input.
    """
    if dumps is not None and (model is not None or trainer or rollout or tokens or ranges or out):
        raise click.UsageError("--dumps compares files: give no MODEL, recipe, --tokens, --fp32-layers or --dump with it")
    if dumps is None and model is None:
        raise click.UsageError("give a MODEL with --trainer and --rollout, or --dumps A B")
    if report is not None:
        from ..report import page  # Jinja2 and matplotlib are needed only where pictures are wanted

        with told():
            page.check_path(report)
    with told():
        if dumps is not None:
            finding = _dumps(*dumps)
        elif out is not None:
            return _dump(model, trainer or rollout, tokens, limit, out, threads, reading)
        elif not trainer or not rollout:
            raise click.UsageError("give both --trainer and --rollout")
        else:
            finding = _engines(model, trainer, rollout, tokens, limit, ranges, threads, reading)
    if report is not None:
        from ..report.locate_page import page as page_of

        with told():
            page.write(report, page_of(finding))
    if as_json:
        click.echo(json.dumps(_document(finding), indent=2, allow_nan=False))
    else:
        _print(finding)
    if report is not None:
        click.echo(f"\nReport: {printable(str(report))}", err=as_json)


def _dumps(first: Path, second: Path) -> Finding:
    names = (first.name, second.name) if first.name != second.name else (str(first), str(second))
    with _progress("comparing") as progress:
        compared = compare_dumps(open_dump(first), open_dump(second), progress)
    return of_dumps("two dumps", *names, compared)


def _engines(model: Path, trainer: str, rollout: str, tokens: Path | None, limit: int, ranges: tuple[str, ...],
             threads: int, reading: ReadOptions) -> Finding:
    with loading_bar():
        first = lockstep.Model(model, _recipe(trainer))
        layers = _ranges(ranges, first.layers)
        second = lockstep.Model(model, _recipe(rollout))
        reference = lockstep.Model(model, "fp32") if layers else None
    sequences = _drawn(second, threads) if tokens is None else sequences_of(tokens, reading, limit)
    with _progress("running") as progress:
        location = lockstep.locate(first, second, sequences, reference=reference, layers=layers, threads=threads,
                                   progress=progress)
    return of_engines(model.resolve().name, trainer, rollout, location)


def _dump(model: Path, recipe: str | None, tokens: Path | None, limit: int, out: Path, threads: int,
          reading: ReadOptions) -> None:
    if recipe is None:
        raise click.UsageError("--dump: give the recipe with --trainer")
    if tokens is None:
        raise click.UsageError("--dump: give --tokens LOG, so that the other engine can be given the same")
    engine = lockstep.Model(model, _recipe(recipe))
    sequences = sequences_of(tokens, reading, limit)
    lockstep.dump(engine, out, sequences, threads=threads)
    click.echo(f"{printable(str(out))}: {sum(map(len, sequences)):,} tokens of {len(sequences):,} sequences, {recipe}")


def _recipe(text: str) -> str | dict[str, str]:
    if "=" not in text:
        return text
    return dict(part.split("=", 1) for part in text.split(",") if "=" in part)


def _ranges(texts: tuple[str, ...], layers: int) -> list[tuple[int, int]]:
    """Pairs (first, after the last) of what --fp32-layers says."""
    if texts == ("none",):
        return []
    if not texts:
        return [(first, layers) for first in sorted({quarter * layers // 4 for quarter in range(4)})]
    found = []
    for text in texts:
        match = re.fullmatch(r"(\d{1,6})(-)?(\d{1,6})?", text)
        if match is None or match[3] and not match[2]:
            raise BadInput(f"--fp32-layers {printable(text)}: give a layer as 3, layers as 3-5, or 8- to the end")
        first = int(match[1])
        end = int(match[3]) + 1 if match[3] else layers if match[2] else first + 1
        if not first < end <= layers:
            raise BadInput(f"--fp32-layers {printable(text)}: the model has layers 0 to {layers - 1}")
        found.append((first, end))
    return found


def _drawn(model: lockstep.Model, threads: int) -> list[np.ndarray]:
    """Sequences that the rollout engine draws, so that k3 estimates KL: each after a token of its own."""
    count, length = DRAWN
    starts = np.random.default_rng(0).integers(0, model.vocab, count)
    rollouts = model.generate([[int(start)] for start in starts], max_tokens=min(length, model.positions - 1), seed=1,
                              threads=threads)
    return [np.concatenate([[start], each.tokens]) for start, each in zip(starts, rollouts)]


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on stderr, where somebody watches."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with Progress(TextColumn(what), BarColumn(), TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print(finding: Finding) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDEST
    console.print(Text.assemble((printable(finding.title), "bold"), ": " + printable(finding.what)))
    console.print(Text(finding.headline, "bold green" if finding.first is None else "bold yellow"))
    if finding.first is not None:
        console.print(_growth(finding))
    if finding.swaps and finding.first is not None:
        console.print(_swaps(finding))
        if not math.isnan(finding.head_share):
            console.print(Text(f"Of what head and body make alone, {percent(finding.head_share)} of k3 is the head's, "
                               f"{percent(1 - finding.head_share)} the body's."))
    for line in finding.advice:
        console.print(Text("→ " + line))
    for line in finding.skipped[:MOST_SKIPPED]:
        console.print(Text("not compared: " + printable(line), "dim"))
    if len(finding.skipped) > MOST_SKIPPED:
        console.print(Text(f"not compared: {len(finding.skipped) - MOST_SKIPPED} more", "dim"))


def _table(*names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    for index, name in enumerate(names):
        left = index == 0 or name == "furthest apart"
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    return table


def _growth(finding: Finding) -> Table:
    table = _table("", "differ", "relative RMS", "growth", "largest", "furthest apart", "")
    for row in finding.layers:
        far = row.furthest
        table.add_row(
            row.name, percent(row.last.differing / row.last.count), number(row.last.relative_rms),
            "" if math.isnan(row.growth) else number(row.growth) + "x", number(row.last.max_abs),
            far.operation if far.differs else "", number(far.relative_rms) if far.differs else "")
    return table


def _swaps(finding: Finding) -> Table:
    table = _table("what if", "mean |d|", "k3", "times smaller")
    for index, row in enumerate(finding.swaps):
        shown = index > 0 and not math.isnan(row.times_smaller)
        table.add_row(row.name, number(row.mean_abs), number(row.k3), number(row.times_smaller) if shown else "")
    return table


def _document(finding: Finding) -> dict:
    def plain(row) -> dict:
        return {name: value if not isinstance(value, float) or math.isfinite(value) else None
                for name, value in asdict(row).items()}

    return {
        "schema": SCHEMA, "lockstep_version": lockstep.__version__, "title": finding.title, "what": finding.what,
        "first": None if finding.first is None else plain(finding.first),
        "differences": [plain(each) for each in finding.differences],
        "swaps": [plain(each) for each in finding.swaps],
        "head_share": None if math.isnan(finding.head_share) else finding.head_share,
        "skipped": list(finding.skipped), "advice": list(finding.advice),
    }
