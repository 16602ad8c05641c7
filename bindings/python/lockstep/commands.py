"""The commands of `lockstep`, with click: small, settled, and its help text is ours to write.

What a command computes is elsewhere; here are arguments, progress, output and exit status (0 success,
2 usage or bad input).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

import lockstep

from .logs import Log, LogError, find_files, read_prime_rl
from .logs.files import SUFFIXES
from .report.diagnosis import diagnose as measure
from .report.machine import document
from .report.terminal import print_diagnosis, printable
from .report.verdict import judge

DEFAULT_REPORT = Path("lockstep-report.html")

# Below this many bytes reading takes no time that a progress bar could tell of.
LARGE = 32 << 20


class BadInput(click.ClickException):
    """An error of the input, told in one line."""

    exit_code = 2


@click.group()
@click.version_option(lockstep.__version__, prog_name="lockstep")
def commands() -> None:
    """Keep the policy you train and the policy you sample from the same policy."""
    for stream in (sys.stdout, sys.stderr):  # an old terminal without π shows ? instead of failing
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


@commands.command(short_help="Measure the mismatch in rollout logs; table, verdict, report.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True,
                type=click.Path(path_type=Path, exists=True))
@click.option("--label", "labels", multiple=True, metavar="TEXT",
              help="Name of a log, once for each FILE in their order. Default: from the file's name.")
@click.option("--html", "report", type=click.Path(path_type=Path, dir_okay=False), metavar="PATH",
              help=f"Where the report goes. Default: {DEFAULT_REPORT} here (with --json: none). A file that"
                   " is not a report of ours is never replaced.")
@click.option("--no-html", is_flag=True, help="Write no report.")
@click.option("--json", "as_json", is_flag=True,
              help="Print one JSON document with every statistic, not the table.")
@click.option("--all", "every", is_flag=True, help="Show every statistic in the table.")
@click.option("--skip-bad", is_flag=True, help="Leave out lines that cannot be read, and count them.")
@click.option("--exclude-non-finite", is_flag=True,
              help="Leave out tokens whose log-prob is NaN or infinite (null in the log), and count them.")
@click.option("--threads", type=click.IntRange(min=0), default=0, metavar="N",
              help="Threads that compute; 0: one for each processor. The result does not depend on it.")
def diagnose(files: tuple[Path, ...], labels: tuple[str, ...], report: Path | None, no_html: bool,
             as_json: bool, every: bool, skip_bad: bool, exclude_non_finite: bool, threads: int) -> None:
    """Measure the training-inference mismatch in rollout logs: is it harmful, why, and what to do.

    FILE is a prime-rl token export (JSON lines, plain or gzip), or a folder with the files of all ranks of
    one step, which is one log. Two logs are compared.

    \b
    One log:
        lockstep diagnose outputs/token_exports/step_100
    BF16 against FP16, with the report where you want it:
        lockstep diagnose bf16.jsonl fp16.jsonl --label BF16 --label FP16 --html mismatch.html
    In a test, failing above a limit:
        lockstep diagnose run.jsonl --json | jq -e '.logs[0].mismatch.k3.value < 1e-3'

    prime-rl writes such files with enable_token_export in the trainer's configuration.
    """
    if labels and len(labels) != len(files):
        raise click.UsageError(f"--label was given {len(labels)} times for {len(files)} files: name each, in"
                               " their order")
    if no_html and report is not None:
        raise click.UsageError("--html and --no-html contradict each other")
    if report is None and not no_html and not as_json:
        report = DEFAULT_REPORT
    if report is not None:
        from .report import page  # matplotlib takes a second to load: only where pictures are wanted

        with _told():
            page.check_path(report)
    with _told():
        logs = _read(files, labels or default_labels(files), skip_bad, exclude_non_finite, report is not None)
        diagnoses = [measure(log, exclude_non_finite=exclude_non_finite, threads=threads) for log in logs]
        verdicts = [judge(diagnosis, threads=threads) for diagnosis in diagnoses]
    if report is not None:  # before the table, which `| head` may cut short
        given = {"--skip-bad": skip_bad, "--exclude-non-finite": exclude_non_finite}
        options = [name for name, is_given in given.items() if is_given]
        with _told():
            page.write(report, page.page(diagnoses, verdicts, options=options, threads=threads))
    if as_json:
        click.echo(json.dumps(document(diagnoses, verdicts), indent=2, allow_nan=False))
    else:
        print_diagnosis(Console(highlight=False), diagnoses, verdicts, every=every)
    if report is not None:
        click.echo(f"\nReport: {printable(str(report))}", err=as_json)


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


def _read(paths: Sequence[Path], labels: Sequence[str], skip_bad: bool, exclude_non_finite: bool,
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
def _told() -> Iterator[None]:
    """Errors of the input as one line and exit status 2, never a traceback."""
    try:
        yield
    except LogError as error:
        hint = "" if error.line is None else "\nWith --skip-bad such lines are left out and counted."
        raise BadInput(printable(str(error)) + hint) from error
    except (lockstep.LockstepError, OSError) as error:
        raise BadInput(printable(str(error))) from error
