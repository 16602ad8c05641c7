"""`lockstep convert`: any readable log to a format of Lockstep's columns."""

from __future__ import annotations

from pathlib import Path

import click

from ..logs import find_files, join_logs, write_log
from ..logs.write import SUFFIXES
from ..report.terminal import printable
from .shared import ReadOptions, progress, read_options, tell_skipped, told


@click.command(short_help="Write a log of any format as .lockstep, Parquet, Arrow or JSON lines; join two.")
@click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True)
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PATH",
    help=f"What to write; the ending says the format: {', '.join(SUFFIXES)}.",
)
@click.option(
    "--trainer",
    "scores",
    type=click.Path(path_type=Path, exists=True),
    metavar="PATH",
    help="A log of the trainer's log-probs for the same sequences, where FILE has the rollout engine's alone."
    " They are joined by sequence id, or by order where there are none, and their tokens compared.",
)
@click.option(
    "--skip-missing", is_flag=True, help="With --trainer: leave out sequences that one log does not have."
)
@click.option("--force", is_flag=True, help="Replace PATH if it is there.")
@read_options
def convert(
    files: tuple[Path, ...],
    output: Path,
    scores: Path | None,
    skip_missing: bool,
    force: bool,
    reading: ReadOptions,
) -> None:
    """Write a log of any format as Lockstep's own, Parquet, Arrow or JSON lines, in constant memory.

    All FILEs together are one log. Nothing is lost but what a log has beside ids, steps, environments (which
    .lockstep does not have), token ids, mask and the two log-probs.

    \b
    A tenth of the size of a prime-rl export:
        lockstep convert run.jsonl -o run.lockstep
    A prime-rl run, all steps, as one table:
        lockstep convert outputs/token_exports -o run.parquet
    Columns of your own:
        lockstep convert dump.npz --column trainer=lp_train --column rollout=lp_gen -o run.jsonl
    Samples of vLLM with the trainer's scores of them:
        lockstep convert samples.jsonl --trainer scores.jsonl -o run.parquet
    """
    if not output.name.endswith(SUFFIXES):
        raise click.UsageError(
            f"-o {printable(str(output))}: the name must end in one of {', '.join(SUFFIXES)}"
        )
    if output.exists() and not force:
        raise click.UsageError(f"{printable(str(output))} is there already; --force replaces it")
    if skip_missing and scores is None:
        raise click.UsageError("--skip-missing is for --trainer")
    with told():
        inputs = [file for path in (*files, *([scores] if scores else [])) for file in find_files(path)]
        with progress(sum(file.stat().st_size for file in inputs)) as advance:
            log = source = reading.open(files, advance=advance)
            if scores is not None:
                log = join_logs(
                    reading.open(scores, side="trainer", advance=advance),
                    source,
                    missing="count" if skip_missing else "error",
                )
            try:
                count = write_log(log, output)
            except ValueError as error:
                raise click.UsageError(str(error)) from error
    tell_skipped(log)
    if scores is not None and sum(log.agreement.missing):
        click.echo(
            f"left out {log.agreement.missing[1]:,} sequences without the trainer's log-probs and"
            f" {log.agreement.missing[0]:,} without the rollout engine's",
            err=True,
        )
    click.echo(f"{printable(str(output))}: {count:,} sequences, {output.stat().st_size:,} bytes")
