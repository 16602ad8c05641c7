"""`lockstep sanity`: the paper's experiment in miniature."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import lockstep

from ..report import sanity as report
from ..report.mantissa import MANTISSA
from ..report.sanity import PRECISION
from ..report.terminal import WIDEST_PROSE, printable
from ..sanity import experiment, results, runs
from ..sanity.experiment import ALGORITHMS, Pair, Settings
from ..whole_files import write_json, write_whole
from .shared import BadInput, told

PLAIN = ("bf16", "fp16", "fp32")
LOCKSTEP = tuple(f"{name}:lockstep" for name in PLAIN)
MIXED = ("bf16/fp32", "bf16/fp16", "fp16/bf16")
BITS = tuple(f"e8m{bits}{end}" for bits in range(3, 11) for end in ("", ":lockstep"))


@dataclass(frozen=True)
class Defaults:
    """What a study runs if nothing else is said."""

    pairs: tuple[str, ...]
    algorithms: tuple[str, ...]
    seeds: int = 3
    steps: int = 500
    probe_every: int = 50


#: By study, and whether it is a quick one: some minutes on two processors.
DEFAULTS = {
    ("precision", False): Defaults(PLAIN + LOCKSTEP + MIXED, tuple(ALGORITHMS)),
    ("precision", True): Defaults(PLAIN[:2] + LOCKSTEP[:2], ("grpo", "pg-seq-is"), 1, 40, 20),
    ("mantissa", False): Defaults(BITS, ("grpo", "grpo-seq-mis", "pg-seq-is")),
    ("mantissa", True): Defaults(BITS, ("grpo",), 1, 10, 10),
}
STUDIES = {study.name: study for study in (PRECISION, MANTISSA)}


class Names(click.ParamType):
    """Names with commas between them, each checked by a function."""

    name = "names"

    def __init__(self, check: Callable[[str], object]) -> None:
        self.check = check

    def convert(self, value: str | tuple[str, ...], param: click.Parameter | None,
                context: click.Context | None) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(value.split(",") if isinstance(value, str) else value))
        for name in names:
            try:
                self.check(name)
            except lockstep.InvalidArgumentError as error:
                self.fail(printable(str(error)), param, context)
        return names


def _algorithm(name: str) -> None:
    if name not in ALGORITHMS:
        raise lockstep.InvalidArgumentError(f"algorithm {name!r}: give some of {', '.join(ALGORITHMS)}")


@click.command(short_help="The paper's experiment in miniature: precisions, algorithms, seeds.")
@click.option("--study", type=click.Choice(list(STUDIES)), default="precision", show_default=True,
              help="precision: BF16, FP16 and FP32 as in the paper. mantissa: formats of 3 to 10 mantissa bits.")
@click.option("--quick", is_flag=True,
              help="A first picture in some two minutes on two processors: fewer pairs and algorithms, one seed, 40 steps.")
@click.option("--pairs", type=Names(Pair.named), metavar="NAME,...",
              help="Engines: FORMAT (independent), TRAINER/ROLLOUT, FORMAT:lockstep. Default: bf16, fp16, fp32, each also"
                   " :lockstep, and bf16/fp32, bf16/fp16, fp16/bf16 with the first algorithm; of mantissa e8m3 to e8m10.")
@click.option("--algorithms", type=Names(_algorithm), metavar="NAME,...",
              help=f"Some of {', '.join(ALGORITHMS)}. Default: all; of mantissa grpo, grpo-seq-mis, pg-seq-is.")
@click.option("--seeds", type=click.IntRange(min=1), metavar="N", help="Default: 3.")
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Default: 500.")
@click.option("--probe-every", type=click.IntRange(min=1), metavar="N",
              help="Steps between probes, which measure gradients. Default: 50.")
@click.option("--model", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR",
              help="Hugging Face folder to start from. Default: the built-in one, which make pretrain makes.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("sanity"), show_default=True,
              metavar="DIR", help="A file of JSON lines for each run, the report, its figures as JSON and SVG.")
@click.option("--jobs", "processes", type=click.IntRange(min=0), default=0, metavar="N",
              help="Runs at a time, a thread each; 0: one for each processor. They do not change the result.")
def sanity(study: str, quick: bool, pairs: tuple[str, ...] | None, algorithms: tuple[str, ...] | None, seeds: int | None,
           steps: int | None, probe_every: int | None, model: Path | None, out: Path, processes: int) -> int:
    """Trains the built-in model by reinforcement learning in pairs of precisions, by the paper's algorithms, over seeds.

    64 problems that the starting model solves now and then; what precision does to mismatch, gradients and reward. What
    was run, what was expected, and what does not reproduce at this scale are printed with the result. Runs that are in
    DIR are not run again, and one that was broken off goes on, to the same bits.

    \b
    The first picture, in some minutes:
        lockstep sanity --quick
    BF16 against FP16 with one algorithm:
        lockstep sanity --pairs bf16,fp16 --algorithms grpo --seeds 5 --out bf16-fp16
    How many mantissa bits it takes:
        lockstep sanity --study mantissa --out mantissa

    Exit status: 0; 1 if engines of one recipe did not have the same bits, which would be an error in Lockstep; 2 for an
    error of the input.
    """
    defaults, asked = DEFAULTS[study, quick], STUDIES[study]
    chosen = Settings(steps=steps or defaults.steps, probe_every=probe_every or defaults.probe_every)
    algorithms = algorithms or defaults.algorithms
    with told():
        from ..report import page  # Jinja2 and matplotlib are missed before hours of work
        from ..report.sheet import sheet

        start = model or experiment.starting_model()
        if model is None and not (start / "config.json").exists():
            raise BadInput("the built-in starting model is not installed; give --model")
        out.mkdir(parents=True, exist_ok=True)
        page.check_path(out / "report.html")
        jobs = experiment.jobs(
            [Pair.named(name) for name in pairs or defaults.pairs], algorithms, seeds or defaults.seeds, chosen, start,
            mixed_algorithms=None if pairs else algorithms[:1])
        with _progress(sum(job.settings.steps for job in jobs), len(jobs)) as progress:
            runs.carry_out_all(jobs, out, processes=processes or len(os.sched_getaffinity(0)), progress=progress)
        cells = results.cells(results.read(job, out) for job in jobs)
        write_json(out / "summary.json", report.document(asked, cells))
        for figure in asked.figures(cells):
            write_whole(out / f"{figure.name}.svg", sheet(figure))
        page.write(out / "report.html", report.page(asked, cells))
    console = Console(highlight=False)
    content = report.render(asked, cells)
    if not console.is_terminal:
        console.width = 10_000  # a measure is never more
        console.width = max(WIDEST_PROSE, console.measure(content.renderables[0]).maximum)
    console.print(content.renderables[0])
    console.print(Group(*content.renderables[1:]), width=min(console.width, WIDEST_PROSE))
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
