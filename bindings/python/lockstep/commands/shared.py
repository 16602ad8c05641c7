"""What the commands share: reading logs with progress, names for them, and errors told in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

import lockstep

from ..logs import Log, LogError, find_files, read_prime_rl
from ..logs.files import SUFFIXES
from ..report.terminal import printable

# Below this many bytes reading takes no time that a progress bar could tell of.
LARGE = 32 << 20


class BadInput(click.ClickException):
    """An error of the input, told in one line."""

    exit_code = 2


def default_labels(paths: Sequence[Path]) -> list[str]:
    """What tells the paths apart: file names without suffix, with folders before them only where it takes
    them, and without the words, up to a dot, with which all begin: run.bf16.jsonl, run.fp16.jsonl are bf16
    and fp16."""
    parts = []
    for path in paths:
        *folders, name = path.resolve().parts
        suffix = next((end for end in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(end)), "")
        parts.append([*folders, name[: len(name) - len(suffix)] or name])
    depth = 1
    while depth < max(map(len, parts)) and len({tuple(each[-depth:]) for each in parts}) < len(parts):
        depth += 1
    words = ["/".join(each[-depth:]).split(".") for each in parts]
    while len(words) > 1 and all(len(each) > 1 and each[0] == words[0][0] for each in words):
        words = [each[1:] for each in words]
    return [".".join(each) for each in words]


def read_logs(paths: Sequence[Path], labels: Sequence[str], skip_bad: bool, exclude_non_finite: bool,
          token_ids: bool) -> list[Log]:
    """The logs, read one after the other, with what was left out told on stderr."""
    groups = [find_files(path) for path in paths]
    logs = []
    with _progress(sum(file.stat().st_size for group in groups for file in group)) as advance:
        for path, group, label in zip(paths, groups, labels, strict=True):
            log = read_prime_rl(group, label=label, skip_bad=skip_bad, exclude_non_finite=exclude_non_finite,
                                token_ids=token_ids, advance=advance)
            if log.sequences == 0:
                first = next((file.first_skipped for file in log.files if file.first_skipped), "")
                reason = f"; no line could be read, the first: {first}" if first else ""
                raise LogError("holds no sequence" + reason, str(path))
            logs.append(log)
    for log in logs:
        if log.skipped_lines:
            first = next(file.first_skipped for file in log.files if file.first_skipped)
            lines = log.skipped_lines + log.sequences
            click.echo(f"{printable(log.label)}: left out {log.skipped_lines:,} of {lines:,} lines; the"
                       f" first: {printable(first)}", err=True)
    return logs


@contextmanager
def _progress(size: int) -> Iterator[Callable[[int], None] | None]:
    """A progress bar on stderr over `size` bytes, where somebody watches and it takes a while."""
    console = Console(stderr=True)
    if not console.is_terminal or size < LARGE:
        yield None
        return
    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("reading", total=size)
        yield lambda count: progress.advance(task, count)


@contextmanager
def told() -> Iterator[None]:
    """Errors of the input as one line and exit status 2, never a traceback."""
    try:
        yield
    except LogError as error:
        hint = "" if error.line is None else "\nWith --skip-bad such lines are left out and counted."
        raise BadInput(printable(str(error)) + hint) from error
    except (lockstep.LockstepError, OSError) as error:
        raise BadInput(printable(str(error))) from error
