"""What the commands share: reading logs with progress, names for them, and errors told in one line."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

import lockstep

from ..logs import Log, LogError, LogFile, LogStream, find_files, gather, open_log
from ..logs.files import SUFFIXES
from ..logs.formats import FORMATS
from ..logs.join import Batches
from ..logs.reader import ROLES
from ..parallel import P, read_logs
from ..parts import Part
from ..report.terminal import printable

Gathered = Log | Batches | Part

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


@dataclass(frozen=True)
class ReadOptions:
    """How the logs of a command are read: what `read_options` makes of its options."""

    format: str | None
    columns: dict[str, str]
    skip_bad: bool
    exclude_non_finite: bool
    mixed: bool

    def open(self, paths: Path | Sequence[Path], label: str | None = None, *, token_ids: bool = True,
             side: str = "rollout", advance: Callable[[int], None] | None = None) -> LogStream:
        """Opens a log with them."""
        return open_log(paths, format=self.format, columns=self.columns, side=side, label=label,
                        skip_bad=self.skip_bad, exclude_non_finite=self.exclude_non_finite,
                        token_ids=token_ids, mixed=self.mixed, advance=advance)

    @property
    def given(self) -> list[str]:
        """The options that change what is measured, by name, for the report."""
        flags = {"--skip-bad": self.skip_bad, "--exclude-non-finite": self.exclude_non_finite,
                 "--mixed": self.mixed}
        return [name for name, is_given in flags.items() if is_given]


def read_options(command: Callable) -> Callable:
    """Adds the options by which every command reads logs of every format, and passes them as `reading`."""
    def wrapped(*arguments, format, columns, skip_bad, exclude_non_finite, mixed, **options):
        reading = ReadOptions(format, _columns(columns), skip_bad, exclude_non_finite, mixed)
        return command(*arguments, reading=reading, **options)

    functools.update_wrapper(wrapped, command)
    for option in reversed((
        click.option("--format", type=click.Choice(list(FORMATS)), metavar="NAME",
                     help=f"What the files are ({', '.join(FORMATS)}). Default: recognised from what they"
                          " hold."),
        click.option("--column", "columns", multiple=True, metavar="ROLE=NAME",
                     help="The log's own name of a column, such as trainer=my_logp; once for each. Roles:"
                          f" {', '.join(ROLES)}."),
        click.option("--skip-bad", is_flag=True, help="Leave out lines that cannot be read, and count them."),
        click.option("--exclude-non-finite", is_flag=True,
                     help="Leave out tokens whose log-prob is NaN or infinite (null in the log), and count"
                          " them."),
        click.option("--mixed", is_flag=True,
                     help="Accept a log that says its sequences were sampled at several temperatures or the"
                          " like."),
    )):
        wrapped = option(wrapped)
    return wrapped


def sequences_of(path: Path, reading: ReadOptions, limit: int) -> list[np.ndarray]:
    """Token ids of a log's sequences, up to `limit` tokens."""
    found: list[np.ndarray] = []
    for batch in reading.open(path):
        if batch.token_ids is None:
            raise BadInput(f"{path}: has no token ids; give a log that has them, or leave --tokens out")
        for first, end in zip(batch.offsets[:-1], batch.offsets[1:]):
            if found and sum(map(len, found)) + end - first > limit:
                return found
            if end > first:
                found.append(np.asarray(batch.token_ids[first:end], np.int32))
    return found


@dataclass(frozen=True)
class Work:
    """By how many a log is read: what `work_options` makes of its options."""

    threads: int
    processes: int


def work_options(command: Callable) -> Callable:
    """Adds the options by which every command that computes shares its work out, and passes them as `work`."""
    def wrapped(*arguments, threads, processes, **options):
        return command(*arguments, work=Work(threads, processes), **options)

    functools.update_wrapper(wrapped, command)
    wrapped = click.option(
        "--processes", type=click.IntRange(min=0), default=1, metavar="N", show_default=True,
        help="Processes that read; 0: one for each processor. Worth it from some hundred MB of JSON on. The result"
             " does not depend on it.")(wrapped)
    return click.option(
        "--threads", type=click.IntRange(min=0), default=0, metavar="N",
        help="Threads that compute, of one process; 0: one for each processor. The result does not depend on it.",
    )(wrapped)


def _columns(given: Sequence[str]) -> dict[str, str]:
    columns = {}
    for text in given:
        role, equals, name = text.partition("=")
        if role not in ROLES or not equals or not name:
            raise click.UsageError(f"--column {printable(text)}: give ROLE=NAME, where ROLE is one of"
                                   f" {', '.join(ROLES)}")
        columns[role] = name
    return columns


def hold_logs(paths: Sequence[Path], labels: Sequence[str], reading: ReadOptions,
              token_ids: bool) -> list[Log]:
    """The logs, held in memory, with what was left out told on stderr."""
    groups = [find_files(path) for path in paths]
    logs = []
    with progress(sum(file.stat().st_size for group in groups for file in group)) as advance:
        for path, label in zip(paths, labels, strict=True):
            log = gather(reading.open(path, label, token_ids=token_ids, advance=advance), token_ids=token_ids)
            _refuse_empty(log, path)
            logs.append(log)
    for log in logs:
        tell_skipped(log)
    return logs


def read_parts(logs: Sequence[tuple[P, Sequence[Path]]], reading: ReadOptions, work: Work) -> list[P]:
    """What is kept of some logs, each given as (empty part, paths); what was left out is told on stderr."""
    sizes = [sum(file.stat().st_size for path in paths for file in find_files(path)) for _, paths in logs]
    with progress(sum(sizes)) as advance:
        done = None if advance is None else lambda _, parts: advance(sum(sizes) // parts)
        how = {"advance": advance} if work.processes == 1 else {"done": done}
        found = read_logs(logs, processes=work.processes, threads=work.threads, format=reading.format,
                          columns=reading.columns, skip_bad=reading.skip_bad, mixed=reading.mixed, **how)
    for part, (_, paths) in zip(found, logs, strict=True):
        _refuse_empty(part, paths[0])
    for part in found:
        tell_skipped(part)
    return found


def _files(log: Gathered) -> Iterable[LogFile]:
    return log.files.values() if isinstance(log, Part) else log.files


def _refuse_empty(log: Gathered, path: Path | str) -> None:
    if not any(file.sequences for file in _files(log)):
        first = next((file.first_skipped for file in _files(log) if file.first_skipped), "")
        reason = f"; no line could be read, the first: {first}" if first else ""
        raise LogError("holds no sequence" + reason, str(path))


def tell_skipped(log: Gathered) -> None:
    """Says on stderr what was left out of a log."""
    skipped = sum(file.skipped_lines for file in _files(log))
    if skipped:
        first = next(file.first_skipped for file in _files(log) if file.first_skipped)
        lines = skipped + sum(file.sequences for file in _files(log))
        click.echo(f"{printable(log.label)}: left out {skipped:,} of {lines:,} lines; the first:"
                   f" {printable(first)}", err=True)


@contextmanager
def progress(size: int) -> Iterator[Callable[[int], None] | None]:
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
def loading_bar() -> Iterator[None]:
    """A progress bar on stderr while checkpoints are loaded, where somebody watches and they are large."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    bar = Progress(TextColumn("loading"), BarColumn(), TimeRemainingColumn(), console=console, transient=True)
    task = bar.add_task("loading", total=None)

    def tell(done: int, total: int) -> None:
        if 2 * total < LARGE:  # of 16 bits
            return
        bar.start()  # again and again does no harm
        bar.update(task, completed=done, total=total)
        if done == total:
            bar.stop()

    try:
        with lockstep.loading(tell):
            yield
    finally:
        bar.stop()


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
