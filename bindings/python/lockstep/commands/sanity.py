"""`lockstep sanity`: the paper's experiment in miniature."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..report import sanity as report
from ..report.terminal import WIDEST_PROSE, printable
from ..sanity import experiment, results, runs
from ..sanity.experiment import ALGORITHMS, Pair, Settings
from .shared import BadInput, told

SAME = ("bf16", "fp16", "fp32")
LOCKSTEP = tuple(f"{name}:lockstep" for name in SAME)
MIXED = ("bf16/fp32", "bf16/fp16", "fp16/bf16")


@click.command(short_help="The paper's experiment in miniature: precisions, algorithms, seeds.")
@click.option("--quick", is_flag=True,
              help="Some minutes on two processors: BF16 and FP16, independent and lockstep, two algorithms, 24 steps, one seed.")
@click.option("--pair", "pairs", multiple=True, metavar="NAME",
              help="Engines, once for each: FORMAT (independent), TRAINER/ROLLOUT, FORMAT:lockstep. Default: bf16, fp16, fp32,"
                   " each also :lockstep, and with the first algorithm bf16/fp32, bf16/fp16, fp16/bf16.")
@click.option("--algorithm", "algorithms", multiple=True, type=click.Choice(list(ALGORITHMS)), metavar="NAME",
              help=f"Once for each: {', '.join(ALGORITHMS)}. Default: all.")
@click.option("--seeds", type=click.IntRange(min=1), metavar="N", help="Default: 3.")
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Default: 500.")
@click.option("--probe-every", type=click.IntRange(min=1), metavar="N", help="Steps between probes. Default: 50.")
@click.option("--model", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR",
              help="Hugging Face folder to start from. Default: the built-in one, which make pretrain makes.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("sanity"), show_default=True,
              metavar="DIR", help="A file of JSON lines for each run, the report, and its figures as JSON.")
@click.option("--jobs", "processes", type=click.IntRange(min=0), default=0, metavar="N",
              help="Runs at a time, a thread each; 0: one for each processor. They do not change the result.")
def sanity(quick: bool, pairs: tuple[str, ...], algorithms: tuple[str, ...], seeds: int | None, steps: int | None,
           probe_every: int | None, model: Path | None, out: Path, processes: int) -> int:
    """Trains the built-in model by reinforcement learning in pairs of precisions, by the paper's algorithms, over seeds.

    64 problems that the starting model solves now and then; what precision does to mismatch, gradients and reward. What
    was run, what was expected, and what does not reproduce at this scale are printed with the result. Runs that are in
    DIR are not run again, and one that was broken off goes on, to the same bits.

    \b
    The first picture, in some minutes:
        lockstep sanity --quick
    BF16 against FP16 with one algorithm:
        lockstep sanity --pair bf16 --pair fp16 --algorithm grpo --seeds 5

    Exit status: 0; 1 if engines of one recipe did not have the same bits, which would be an error in Lockstep; 2 for an
    error of the input.
    """
    chosen = Settings(
        steps=steps or (24 if quick else 500), probe_every=probe_every or (12 if quick else 50))
    mixed = None
    if not pairs:
        pairs = ("bf16", "fp16", "bf16:lockstep", "fp16:lockstep") if quick else SAME + LOCKSTEP + MIXED
        mixed = [next(iter(algorithms or ALGORITHMS))]
    if not algorithms:
        algorithms = ("grpo", "pg-seq-is") if quick else tuple(ALGORITHMS)
    with told():
        from ..report import page  # Jinja2 and matplotlib are missed before hours of work

        found = [Pair.named(name) for name in dict.fromkeys(pairs)]
        start = model or experiment.starting_model()
        if not (start / "config.json").exists():
            raise BadInput("the built-in starting model is not installed; give --model")
        out.mkdir(parents=True, exist_ok=True)
        page.check_path(out / "report.html")
        jobs = experiment.jobs(found, tuple(dict.fromkeys(algorithms)), seeds or (1 if quick else 3), chosen, start,
                               mixed_algorithms=mixed)
        with _progress(sum(job.settings.steps for job in jobs), len(jobs)) as progress:
            runs.carry_out_all(jobs, out, processes=processes or len(os.sched_getaffinity(0)), progress=progress)
        cells = results.cells(results.read(job, out) for job in jobs)
        (out / "summary.json").write_text(
            json.dumps(report.document(cells), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        page.write(out / "report.html", report.page(cells))
    console = Console(highlight=False)
    content = report.render(cells)
    if not console.is_terminal:
        console.width = max(WIDEST_PROSE, console.measure(content.renderables[0]).maximum)
    console.print(content)
    click.echo(f"Report: {printable(str(out / 'report.html'))}")
    return 1 if any(each.pair.must_be_zero and each.differs for each in cells) else 0


@contextmanager
def _progress(steps: int, count: int) -> Iterator[runs.Progress]:
    """A bar on stderr, where somebody watches."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda steps, ended: None
        return
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"),
                  TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(f"0 of {count} runs", total=steps)
        yield lambda done, ended: bar.update(task, description=f"{ended} of {count} runs", completed=done)
