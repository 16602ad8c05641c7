"""`lockstep train` and `lockstep pretrain`: runs with metrics as JSON lines, checkpoints and a live view."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import lockstep

from ..step_lines import StepLines
from .shared import BadInput, loading_bar, told

METRICS = "metrics.jsonl"
# Digits of the view, by metric.
SHOWN = {
    "reward_mean": "reward", "share_right": "right", "response_length": "tokens a response", "k3": "KL (k3)",
    "max_abs_log_ratio": "max |d|", "ess": "ESS", "share_masked": "masked", "clip_share": "clipped",
    "entropy": "entropy", "gradient_norm": "gradient norm", "loss_scale": "loss scale",
    "skipped_total": "skipped updates", "monitor": "early warning",
}


class RecipeName(click.ParamType):
    """The name of a recipe: "fp16", "bf16-fp32head", for a rollout engine with an order too, "bf16+fused"."""

    name = "recipe"

    def convert(self, value: str, param: click.Parameter | None, context: click.Context | None) -> str:
        try:
            lockstep.Recipe(value)
        except lockstep.InvalidArgumentError as error:
            self.fail(str(error), param, context)
        return value


def _view(progress: Progress, metrics: dict[str, Any], means: dict[str, deque], seconds: float) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row(progress)
    numbers = Table(box=None, padding=(0, 2, 0, 0))
    for column, justify in (("", "left"), ("step", "right"), ("last 25", "right")):
        numbers.add_column(column, justify=justify)
    for name, label in SHOWN.items():
        if name not in metrics:
            continue
        value = metrics[name]
        if isinstance(value, str):
            style = {"alarm": "bold red", "watch": "yellow", "ok": "green"}.get(value, "dim")
            numbers.add_row(label, f"[{style}]{value}[/]", "")
        else:
            mean = sum(means[name]) / len(means[name])
            numbers.add_row(label, f"{value:.4g}", f"{mean:.4g}")
    numbers.add_row("ms a step", f"{1000 * seconds:.0f}", "")
    table.add_row(numbers)
    return table


def _drive(run: Any, steps: int, start: int, out: Path, save_every: int, quiet: bool,
           save: Callable[[], None]) -> dict[str, Any]:
    """Takes the steps that are left; the last metrics."""
    metrics_file = StepLines(out / METRICS, start)
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), console=console)
    task = progress.add_task("steps", total=steps, completed=start)
    means: dict[str, deque] = {}
    metrics: dict[str, Any] = {}
    with Live(console=console, auto_refresh=False, transient=not console.is_terminal) as live:
        shown = 0.0
        for step in range(start + 1, steps + 1):
            began = time.perf_counter()
            metrics = vars(run.step()).copy()
            now = time.perf_counter()
            metrics_file.add(metrics)
            for name, value in metrics.items():
                if not isinstance(value, str):
                    means.setdefault(name, deque(maxlen=25)).append(value)
            progress.update(task, completed=step)
            if not quiet and console.is_terminal and (now - shown > 0.2 or step == steps):
                live.update(_view(progress, metrics, means, now - began), refresh=True)
                shown = now
            if step % save_every == 0 or step == steps:
                save()
    return metrics


def _begin(out: Path, resume: bool, run: Any, allow_older: bool) -> int:
    """The step to go on after."""
    out.mkdir(parents=True, exist_ok=True)
    if not resume:
        if any(out.iterdir()):
            raise BadInput(f"{out}: is not empty; give --resume to go on there, or another folder")
        return 0
    return run.resume(out, allow_older=allow_older)


def _options(options: Iterable[Callable]) -> Callable:
    def wrap(command: Callable) -> Callable:
        for option in reversed(list(options)):
            command = option(command)
        return command
    return wrap


def output_options() -> Callable:
    """The options of every run."""
    return _options((
        click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, metavar="DIR",
                     help="Folder for metrics.jsonl and checkpoints step-N: Hugging Face models, and what it takes to"
                          " go on."),
        click.option("--resume", is_flag=True,
                     help="Go on from the newest checkpoint in DIR, to the same bits as without a break."),
        click.option("--allow-older", is_flag=True,
                     help="With --resume: if the newest checkpoint is damaged, take the newest that is whole."),
        click.option("--save-every", type=click.IntRange(min=1), default=50, show_default=True, metavar="N",
                     help="Steps between checkpoints; the last two are kept."),
        click.option("--threads", type=int, default=0, metavar="N",
                     help="0: one for each processor. They do not change the result."),
        click.option("--quiet", is_flag=True, help="No live view."),
    ))


@click.command(short_help="Train a policy by reinforcement learning.")
@click.option("--task", "task_name", default="chain", show_default=True, metavar="NAME",
              help=f"Problems whose answers are checked: {', '.join(lockstep.task_names())}, or file:PATH (JSON lines"
                   " with prompt and answer).")
@click.option("--size", type=int, default=0, metavar="N", help="How large its problems are; 0: the task's default.")
@click.option("--task-seed", type=int, default=1, show_default=True, help="Which problems there are.")
@click.option("--perfectible", type=click.IntRange(min=0), default=0, metavar="N",
              help="Train on the first N problems of which the starting model, in fp32, solves 20 to 80 % of 32"
                   " samples: the paper's choice. 0: new problems in every step.")
@click.option("--model", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR",
              help="Hugging Face folder to start from. Default: a new model of the chain task, which knows nothing;"
                   " see lockstep pretrain.")
@click.option("--model-seed", type=int, default=0, show_default=True, help="Of a new model, or adapter.")
@click.option("--lora-rank", type=click.IntRange(min=0), default=0, metavar="R",
              help="Train a LoRA adapter of this rank instead of all weights.")
@click.option("--lora-alpha", type=float, metavar="X", help="Its alpha; twice the rank if not given.")
@click.option("--algorithm", default="paper/grpo", show_default=True, metavar="PRESET",
              help="Advantages, correction and objective: lockstep presets lists them.")
@click.option("--trainer", type=RecipeName(), default="fp16", show_default=True,
              help="Formats of the trainer.")
@click.option("--rollout", type=RecipeName(), help="Formats of the rollout engine, and its order (bf16+fused);"
              " as the trainer's if not given: then both agree bit for bit.")
@click.option("--steps", type=click.IntRange(min=1), default=500, show_default=True, metavar="N")
@click.option("--prompts", type=int, default=16, show_default=True, help="Prompts a step.")
@click.option("--samples", type=int, default=8, show_default=True, help="Responses to each: the group.")
@click.option("--updates", type=int, default=2, show_default=True, help="Updates from the rollouts of a step.")
@click.option("--learning-rate", type=float, default=2e-4, show_default=True)
@click.option("--temperature", type=float, default=1.0, show_default=True)
@click.option("--scaler", type=click.Choice(lockstep.loss_scaler_names()),
              help="How the loss scale moves; torch if the trainer is fp16, else none.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of prompts and tokens.")
@output_options()
def train(task_name: str, size: int, task_seed: int, perfectible: int, model: Path | None, model_seed: int,
          lora_rank: int, lora_alpha: float | None, algorithm: str, trainer: str, rollout: str | None, steps: int,
          prompts: int, samples: int, updates: int, learning_rate: float, temperature: float, scaler: str | None,
          seed: int, out: Path, resume: bool, allow_older: bool, save_every: int, threads: int,
          quiet: bool) -> None:
    """Train a policy by reinforcement learning, in FP16, BF16 or FP32, to the same bits every time.

    Each step draws groups of responses with the rollout engine, checks them, and updates the policy. The result is a
    function of the options alone: not of threads, breaks or the machine's instruction set.

    \b
    The paper's experiment in miniature, after lockstep pretrain --out sft:
        lockstep train --model sft/model --perfectible 64 --algorithm paper/grpo --out run
    A mismatch, and a correction for it:
        lockstep train --model sft/model --trainer fp32 --rollout bf16 --algorithm paper/grpo-token-tis --out run
    After a break, or kill -9:
        lockstep train ... --out run --resume

    DIR/metrics.jsonl has a line a step; DIR/step-N loads in transformers. Exit status: 0 done, 2 bad input or a run
    that diverged (the last good checkpoint is kept). What a step does: docs/ReinforcementLearning.md.
    """
    with told():
        task = lockstep.Task(task_name, size=size)
        problems = None
        if perfectible:
            if model is None:
                raise BadInput("--perfectible asks for problems that the starting model can solve now and then; give"
                               " --model")
            with loading_bar():
                start_model = lockstep.Model(model)
            problems = lockstep.perfectible(
                start_model, lockstep.Environment(task, seed=task_seed), count=perfectible, seed=task_seed,
                threads=threads)
        with loading_bar():
            run = lockstep.Run(
                lockstep.Environment(task, seed=task_seed, problems=problems), algorithm=algorithm, trainer=trainer,
                rollout=rollout, model=model, model_seed=model_seed, lora_rank=lora_rank,
                lora_alpha=2 * lora_rank if lora_alpha is None else lora_alpha, prompts=prompts, samples=samples,
                updates=updates, learning_rate=learning_rate, temperature=temperature, scaler=scaler, seed=seed,
                threads=threads)
        start = _begin(out, resume, run, allow_older)
        metrics = _drive(run, steps, start, out, save_every, quiet, lambda: run.save(out))
        if metrics:
            click.echo(f"step {metrics['step']}: reward {metrics['reward_mean']:.3f}, KL (k3) {metrics['k3']:.3g},"
                       f" {metrics['skipped_total']} updates skipped; {out}")
        else:
            click.echo(f"step {start}: nothing left to do; {out}")


@click.command(short_help="Train a model on demonstrations, before reinforcement learning.")
@click.option("--task", "task_name", default="chain", show_default=True, metavar="NAME",
              help="Whose demonstrations: as of lockstep train.")
@click.option("--size", type=int, default=0, metavar="N", help="How large its problems are; 0: the task's default.")
@click.option("--error-rate", type=float, default=0.018, show_default=True, metavar="P",
              help="How often a step of a demonstration is wrong: so that something is left to learn.")
@click.option("--model", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR",
              help="Hugging Face folder to start from. Default: a new model of the chain task.")
@click.option("--model-seed", type=int, default=0, show_default=True, help="Of a new model, or adapter.")
@click.option("--lora-rank", type=click.IntRange(min=0), default=0, metavar="R",
              help="Train a LoRA adapter of this rank instead of all weights.")
@click.option("--lora-alpha", type=float, metavar="X", help="Its alpha; twice the rank if not given.")
@click.option("--recipe", type=RecipeName(), default="fp32", show_default=True, help="Formats.")
@click.option("--steps", type=click.IntRange(min=1), default=1200, show_default=True, metavar="N")
@click.option("--batch", type=int, default=64, show_default=True, help="Demonstrations a step.")
@click.option("--learning-rate", type=float, default=3e-3, show_default=True, help="The peak of a cosine.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the demonstrations.")
@output_options()
def pretrain(task_name: str, size: int, error_rate: float, model: Path | None, model_seed: int, lora_rank: int,
             lora_alpha: float | None, recipe: str, steps: int, batch: int, learning_rate: float, seed: int, out: Path,
             resume: bool, allow_older: bool, save_every: int, threads: int, quiet: bool) -> None:
    """Train a model on demonstrations of a task (SFT): the cross-entropy of the responses' tokens.

    \b
        lockstep pretrain --out sft

    The model is DIR/model, a Hugging Face folder (PEFT's, of an adapter), the same bits every time. Exit status: 0 done, 2 bad input.
    """
    with told():
        with loading_bar():
            run = lockstep.SupervisedRun(
                lockstep.Task(task_name, size=size), steps=steps, batch=batch, recipe=recipe, model=model,
                model_seed=model_seed, lora_rank=lora_rank,
                lora_alpha=2 * lora_rank if lora_alpha is None else lora_alpha, seed=seed, error_rate=error_rate,
                learning_rate=learning_rate, threads=threads)
        start = _begin(out, resume, run, allow_older)
        metrics = _drive(run, steps, start, out, save_every, quiet, lambda: run.save(out))
        if not (out / "model").exists():
            run.save_model(out / "model")
        click.echo(f"loss {metrics['loss']:.4f}; {out / 'model'}" if metrics else f"nothing left to do; {out}")
