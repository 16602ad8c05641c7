"""`lockstep watch`: the early warning over the steps of a finished or running log."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import lockstep

from ..logs import LogError, find_files
from ..logs.files import step_of
from ..report.rows import number
from ..survey import StepSums
from .shared import ReadOptions, Work, read_options, read_parts, told, work_options

SCHEMA = "lockstep-watch/1"
ALARMED = 3
NAMES = {"k3": "KL (k3)", "chi_square": "chi-square", "ess_loss": "1 - ESS", "max_abs_log_ratio": "max |d|"}
WIDEST = 100  # of the table, where no terminal says how wide it is
STYLES = {"learning": "dim", "ok": "green", "watch": "yellow", "alarm": "bold red"}


@dataclass(frozen=True)
class Episode:
    """A run of steps at which the level was "alarm"."""

    first: lockstep.Alarm
    strongest: lockstep.Alarm
    last_step: int


@click.command(short_help="Warn when the mismatch of a run leaves its own floor, step by step.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True,
                type=click.Path(path_type=Path, exists=True))
@click.option("--false-alarms", type=float, default=1.0, metavar="RATE", show_default=True,
              help="False alarms tolerated in 1,000 steps, 0.1 to 10. Fewer means later.")
@click.option("--learning-steps", type=int, default=40, metavar="N", show_default=True,
              help="Steps that teach the floor, 20 to 1000. The rates were calibrated with 40.")
@click.option("--reset-at", "resets", type=int, multiple=True, metavar="STEP",
              help="Learn the floor anew from this step on: where the level was shifted on purpose (another weight"
                   " format, engine version, batch size). Once for each such step.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document with every step, not the table.")
@click.option("--all", "every", is_flag=True, help="Show every step in the table, not only what changed.")
@read_options
@work_options
def watch(files: tuple[Path, ...], false_alarms: float, learning_steps: int, resets: tuple[int, ...],
          as_json: bool, every: bool, work: Work, reading: ReadOptions) -> None:
    """Tell from a run's log whether, since which step and in which statistic the mismatch left its own floor.

    FILE is the folder of a run, with one folder or file step_N a step; or such folders or files; or a log that
    has the step of each sequence, in any order; else each FILE is a step. Formats are those of diagnose.

    \b
    A run, finished or going on:
        lockstep watch outputs/token_exports
    The weights went from BF16 to FP16 at step 400:
        lockstep watch outputs/token_exports --reset-at 400
    In a script, stopping at an alarm:
        lockstep watch outputs/token_exports --json > watch.json || [ $? -ne 3 ] || stop-training

    Exit status: 0 no alarm, 3 an alarm, 2 bad input. The first 40 steps teach the floor and cannot alarm. How
    it works, and how often it is wrong: docs/EarlyWarning.md. In a training loop: lockstep.Monitor.
    """
    with told():
        monitor = lockstep.Monitor(false_alarms_per_1000=false_alarms, learning_steps=learning_steps)
        alarms, left = [], sorted(resets)
        for step, mismatch in _measured(files, reading, work):
            while left and left[0] <= step:
                monitor.reset()
                left.pop(0)
            alarms.append(monitor.update(step, mismatch))
    episodes = list(_episodes(alarms))
    if as_json:
        click.echo(json.dumps(_document(alarms, episodes, false_alarms, learning_steps, resets), indent=2,
                              allow_nan=False))
    else:
        _print(alarms, episodes, every)
    if episodes:
        sys.exit(ALARMED)


def _measured(paths: Sequence[Path], reading: ReadOptions, work: Work) -> list[tuple[int, lockstep.Mismatch]]:
    """(step, mismatch) of every step, ascending; some kilobytes a step in memory."""
    logs = _by_name(paths) if any(map(_named, paths)) else [
        (StepSums(step=place), [path]) for place, path in enumerate(paths)]
    for into, _ in logs:
        into.exclude_non_finite = reading.exclude_non_finite
    found = StepSums()
    for part in read_parts(logs, reading, work):
        found.merge_steps(part)
    return found.reports()


def _named(path: Path) -> bool:
    """Whether the steps are in the names: of the path, or of folders in it."""
    return _step(path) is not None or (path.is_dir() and any(_step(child) is not None for child in path.iterdir()))


def _by_name(paths: Sequence[Path]) -> list[tuple[StepSums, list[Path]]]:
    """The files of each step, ascending, the step being in the names of files or folders."""
    files: dict[int, list[Path]] = {}
    for path in paths:
        inside = [child for child in path.iterdir() if _step(child) is not None] if path.is_dir() else []
        for place in [path] if _step(path) is not None else inside or [path]:
            step = _step(place)
            if step is None:
                raise LogError("has no step_N in its name, but others do: rename it, or give it on its own",
                               str(place))
            files.setdefault(step, []).extend(find_files(place))
    return [(StepSums(str(step), step=step, always=True), files[step]) for step in sorted(files)]


def _step(path: Path) -> int | None:
    """N of a name with step_N in it."""
    found = step_of(path.resolve().name)
    return None if found < 0 else found


def _episodes(alarms: Sequence[lockstep.Alarm]) -> Iterator[Episode]:
    for on, found in groupby(alarms, bool):
        if on:
            episode = list(found)
            yield Episode(episode[0], min(episode, key=lambda each: each.false_alarms_per_1000), episode[-1].step)


def _document(alarms: Sequence[lockstep.Alarm], episodes: Sequence[Episode], false_alarms: float,
              learning_steps: int, resets: Sequence[int]) -> dict:
    def plain(alarm: lockstep.Alarm) -> dict:
        return {name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in asdict(alarm).items()}

    return {
        "schema": SCHEMA, "lockstep_version": lockstep.__version__,
        "false_alarms_per_1000": false_alarms, "learning_steps": learning_steps, "resets": sorted(resets),
        "alarmed": bool(episodes),
        "alarms": [{**plain(each.first), "last_step": each.last_step,
                    "lowest_false_alarms_per_1000": each.strongest.false_alarms_per_1000} for each in episodes],
        "steps": [plain(alarm) for alarm in alarms],
    }


def _print(alarms: Sequence[lockstep.Alarm], episodes: Sequence[Episode], every: bool) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("step", justify="right")
    table.add_column("level")
    table.add_column("statistic")
    for name in ("since", "value", "floor", "score", "alarm from", "per 1,000"):
        table.add_column(name, justify="right")
    before = None
    for alarm in alarms:
        key = (alarm.level, alarm.statistic if alarm.level in ("watch", "alarm") else None)
        if every or key != before:
            table.add_row(*_cells(alarm))
        before = key
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDEST
    console.print(table)
    console.print()
    for line, style in _verdict(alarms, episodes):
        console.print(Text(line, style), soft_wrap=True)


def _cells(alarm: lockstep.Alarm) -> list[Text]:
    since = "" if alarm.since_step is None else str(alarm.since_step)
    often = _often(alarm)
    texts = [str(alarm.step), alarm.level, NAMES[alarm.statistic], since, number(alarm.value), number(alarm.floor),
             f"{alarm.score:.1f}", "" if math.isnan(alarm.threshold) else f"{alarm.threshold:.1f}", often]
    if alarm.level == "learning":
        texts[2:] = [f"{alarm.steps_to_learn} to learn" if alarm.steps_to_learn else "", *[""] * 6]
    return [Text(text, STYLES[alarm.level] if index == 1 else "") for index, text in enumerate(texts)]


def _often(alarm: lockstep.Alarm) -> str:
    """How often noise gets that far, as far as it was calibrated."""
    rate = alarm.false_alarms_per_1000
    if math.isnan(rate) or alarm.score == 0:
        return ""
    return "never" if rate == 0 else f"{'<= ' if rate <= 0.1 else ''}{rate:.2g}"


def _verdict(alarms: Sequence[lockstep.Alarm], episodes: Sequence[Episode]) -> Iterator[tuple[str, str]]:
    for each in episodes:
        first = each.first
        if math.isinf(first.score):
            yield (f"ALARM at step {first.step}: the two policies were equal to the bit on every step that taught the"
                   f" floor, and differ since step {first.since_step} (max |d| {number(first.value)}).",
                   STYLES["alarm"])
            continue
        until = "to the end" if each.last_step == alarms[-1].step else f"until step {each.last_step}"
        yield (f"ALARM at step {first.step}, {until}: {NAMES[first.statistic]} has left its floor since about step"
               f" {first.since_step}: {number(first.value)} where {number(first.floor)} is usual. Noise gets this far"
               f" {_often(first)} times in 1,000 steps, as far as at step {each.strongest.step}"
               f" {_often(each.strongest)} times.", STYLES["alarm"])
    last = alarms[-1]
    if not episodes and last.level == "learning":
        yield (f"Still learning the floor: {last.steps_to_learn} more steps with tokens are needed.", STYLES["watch"])
    elif not episodes:
        watched = sum(alarm.level == "watch" for alarm in alarms)
        watch = f"; {watched} on watch" if watched else ""
        yield f"No alarm in {len(alarms)} steps{watch}.", STYLES["ok"]
