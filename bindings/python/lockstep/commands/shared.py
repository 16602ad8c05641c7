"""What the commands share: reading logs with progress, names for them, and errors told in one line."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

import lockstep

from ..logs import Log, LogBatch, LogError, LogFile, LogStream, find_files, gather, open_log
from ..logs.files import SUFFIXES
from ..logs.formats import FORMATS
from ..logs.join import Batches
from ..logs.reader import ROLES
from ..parallel import survey_files
from ..report.terminal import printable
from ..survey import Survey, survey

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

    def survey(self, paths: Path | Sequence[Path], label: str, *, exact_quantiles: bool = False, threads: int = 0,
               processes: int = 1, advance: Callable[[int], None] | None = None) -> Survey:
        """Surveys a log with them; `advance` is for one process only."""
        if processes == 1:
            return survey(self.open(paths, label, advance=advance), exclude_non_finite=self.exclude_non_finite,
                          exact_quantiles=exact_quantiles, threads=threads)
        return survey_files(paths, processes=processes, label=label, exclude_non_finite=self.exclude_non_finite,
                            exact_quantiles=exact_quantiles, format=self.format, columns=self.columns,
                            skip_bad=self.skip_bad, mixed=self.mixed)

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


def _columns(given: Sequence[str]) -> dict[str, str]:
    columns = {}
    for text in given:
        role, equals, name = text.partition("=")
        if role not in ROLES or not equals or not name:
            raise click.UsageError(f"--column {printable(text)}: give ROLE=NAME, where ROLE is one of"
                                   f" {', '.join(ROLES)}")
        columns[role] = name
    return columns


def read_logs(paths: Sequence[Path], labels: Sequence[str], reading: ReadOptions,
              token_ids: bool) -> list[Log]:
    """The logs, read one after the other, with what was left out told on stderr."""
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


def read_batches(log: Batches) -> Iterator[LogBatch]:
    """The batches of a log of both engines' log-probs, in constant memory; what was left out is told on stderr."""
    for batch in log:
        if len(log.sides) == 1:
            raise LogError(f"has the log-probs of the {log.sides[0]} only, and nothing to compare them with: give"
                           " the other engine's log of the same sequences too", log.files[0].path)
        yield batch
    _refuse_empty(log, log.files[0].path if log.files else log.label)
    tell_skipped(log)


def survey_logs(paths: Sequence[Path], labels: Sequence[str], reading: ReadOptions, *, exact_quantiles: bool = False,
                threads: int = 0, processes: int = 1) -> list[Survey]:
    """The surveys of some logs, read one after the other, with what was left out told on stderr."""
    groups = [find_files(path) for path in paths]
    surveys = []
    with progress(sum(file.stat().st_size for group in groups for file in group)) as advance:
        for path, label in zip(paths, labels, strict=True):
            found = reading.survey(path, label, exact_quantiles=exact_quantiles, threads=threads, processes=processes,
                                   advance=advance)
            _refuse_empty(found, path)
            surveys.append(found)
    for found in surveys:
        tell_skipped(found)
    return surveys


def _files(log: Log | Batches | Survey) -> Iterable[LogFile]:
    return log.files.values() if isinstance(log, Survey) else log.files


def _refuse_empty(log: Log | Batches | Survey, path: Path | str) -> None:
    if log.sequences == 0:
        first = next((file.first_skipped for file in _files(log) if file.first_skipped), "")
        reason = f"; no line could be read, the first: {first}" if first else ""
        raise LogError("holds no sequence" + reason, str(path))


def tell_skipped(log: Log | Batches | Survey) -> None:
    """Says on stderr what was left out of a log."""
    if log.skipped_lines:
        first = next(file.first_skipped for file in _files(log) if file.first_skipped)
        lines = log.skipped_lines + log.sequences
        click.echo(f"{printable(log.label)}: left out {log.skipped_lines:,} of {lines:,} lines; the"
                   f" first: {printable(first)}", err=True)


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
def told() -> Iterator[None]:
    """Errors of the input as one line and exit status 2, never a traceback."""
    try:
        yield
    except LogError as error:
        hint = "" if error.line is None else "\nWith --skip-bad such lines are left out and counted."
        raise BadInput(printable(str(error)) + hint) from error
    except (lockstep.LockstepError, OSError) as error:
        raise BadInput(printable(str(error))) from error
