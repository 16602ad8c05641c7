"""`lockstep offline`: a model sampled and rescored in pairs of recipes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from .._models import ORDERS
from ..offline import (
    INDEPENDENT, LOCKSTEP, Engines, Pair, Settings, own_prompts, read_prompts, run, stop_ids,
)
from ..offline import Progress as Tell
from ..report import offline as report
from ..report.terminal import WIDEST_PROSE, printable
from ..whole_files import write_json
from .shared import loading_bar, told

_orders = click.Choice(ORDERS)


@click.command(short_help="The paper's figure on a model: sample and rescore in BF16, FP16 and FP32.")
@click.argument("model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--prompts", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
              help="Prompts, one a line: token ids, or text if the package tokenizers and the model's tokenizer.json are"
                   " there. Default: the model makes up 16 tokens after its BOS token, for each sequence anew.")
@click.option("--samples", type=click.IntRange(min=1), default=16, show_default=True, metavar="N",
              help="Sequences drawn for each prompt; without --prompts, in all.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=256, show_default=True, metavar="N",
              help="Tokens drawn for a sequence, at most; it ends at the model's EOS token before.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Decides the draws.")
@click.option("--recipe", "recipes", multiple=True, metavar="NAME",
              help="A row and a column of the table, once for each: bf16, fp16, fp32, bf16-fp32head, fp16-fp32head."
                   " Default: bf16, fp16, fp32.")
@click.option("--pairs", type=click.Choice(["both", INDEPENDENT.name, LOCKSTEP.name]), default="both", show_default=True,
              help="Engines that differ as in the field, engines that share one order, or both.")
@click.option("--rollout-order", type=_orders, default=INDEPENDENT.rollout, show_default=True,
              help="Order of arithmetic of the independent rollout engine.")
@click.option("--trainer-order", type=_orders, default=INDEPENDENT.trainer, show_default=True,
              help="And of the independent trainer.")
@click.option("--exact-kl", is_flag=True,
              help="Also the KL over the whole vocabulary: about twice the time, and memory for the logits of a sequence.")
@click.option("--html", "html", type=click.Path(path_type=Path, dir_okay=False), metavar="PATH",
              help="Write the report with pictures there.")
@click.option("--json", "as_json", type=click.Path(path_type=Path, dir_okay=False), metavar="PATH",
              help="Write every statistic of every pair there.")
@click.option("--logs", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
              help="Keep each pair's log there, for `lockstep diagnose` and `certify`.")
@click.option("--threads", type=click.IntRange(min=0), default=0, metavar="N",
              help="Threads that compute; 0: one for each processor. The result does not depend on it.")
def offline(model: Path, prompts: Path | None, samples: int, max_tokens: int, seed: int, recipes: tuple[str, ...],
            pairs: str, rollout_order: str, trainer_order: str, exact_kl: bool, html: Path | None,
            as_json: Path | None, logs: Path | None, threads: int) -> int:
    """How far are a trainer and a rollout engine apart on this model, in BF16, FP16 and FP32?

    MODEL is a Hugging Face folder. The rollout engine draws sequences in each recipe, the trainer scores them in each,
    and the log-probs are compared: rows are the rollout's recipe, columns the trainer's. "independent" engines
    compute in different orders with different roundings, as an inference engine with fused kernels and a trainer that
    runs the model's own code do; "lockstep" engines share one order: where their formats are the same too, the
    difference is exactly 0.

    \b
    About 4,000 tokens a row, and a report:
        lockstep offline ~/models/SmolLM2-135M --html offline.html
    What an FP32 head on both sides would help:
        lockstep offline ~/models/SmolLM2-135M --recipe bf16 --recipe bf16-fp32head
    One pair in full:
        lockstep offline ~/models/SmolLM2-135M --logs logs && lockstep diagnose logs/independent.bf16-bf16.lockstep

    Exit status: 0; 1 if engines of one recipe did not have the same bits, which would be an error in Lockstep; 2 for an
    error of the input.
    """
    engines = [each for each in (Engines(INDEPENDENT.name, rollout_order, trainer_order), LOCKSTEP)
               if pairs in ("both", each.name)]
    recipes = tuple(dict.fromkeys(recipes)) or ("bf16", "fp16", "fp32")
    if ordered := next((name for name in recipes if "+" in name), None):
        raise click.UsageError(f"--recipe {printable(ordered)}: leave the order to --rollout-order and --trainer-order")
    settings = Settings(samples, max_tokens, seed, stop_ids(model) if (model / "config.json").exists() else ())
    with told():
        if html is not None:
            from ..report import page  # Jinja2 and matplotlib are needed only where pictures are wanted

            page.check_path(html)
        for path in (as_json, logs):
            if path is not None and not path.absolute().parent.is_dir():
                raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist")
        if prompts:
            known = read_prompts(prompts, model)
        else:
            with loading_bar():
                known = own_prompts(model, samples, seed, threads)
        if not prompts:
            settings = replace(settings, samples=1)
        with _folder(logs) as folder, _progress() as progress:
            found = run(model, known, recipes, engines, settings, folder, exact_kl=exact_kl, threads=threads,
                        progress=progress)
    name = model.resolve().name
    source = f"{len(known):,} of {prompts.name}" if prompts else f"{len(known)} of 16 tokens that the model made up in fp32, after token {known[0][0]}"
    if as_json is not None:
        with told():
            write_json(as_json, report.document(found, settings, name, source))
    if html is not None:
        with told():
            page.write(html, report.page(found, settings, name, source))
    _print(found)
    if html is not None:
        click.echo(f"\nReport: {printable(str(html))}")
    return 1 if any(pair.must_be_zero and not pair.is_zero for pair in found) else 0


def _print(found: list[Pair]) -> None:
    console = Console(highlight=False)
    content = report.render(found)
    if not console.is_terminal:
        console.width = max(WIDEST_PROSE, console.measure(content.renderables[0]).maximum)
    console.print(content)


@contextmanager
def _folder(wanted: Path | None) -> Iterator[Path]:
    """Where the logs go: a folder that stays, or one that does not."""
    if wanted is not None:
        wanted.mkdir(exist_ok=True)
        yield wanted
        return
    with tempfile.TemporaryDirectory(prefix="lockstep-") as folder:
        yield Path(folder)


@contextmanager
def _progress() -> Iterator[Tell]:
    """A bar on stderr, where somebody watches."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text, share: None
        return
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console,
                  transient=True) as bar:
        task = bar.add_task("loading", total=1.0)
        yield lambda text, share: bar.update(task, description=text, completed=share)
