"""`lockstep diagnose`: table, verdict, report."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console

from ..report.diagnosis import Diagnosis
from ..report.machine import document
from ..report.terminal import print_diagnosis, printable
from ..report.verdict import judge
from ..survey import Survey
from .shared import ReadOptions, Work, default_labels, read_options, read_parts, told, work_options

DEFAULT_REPORT = Path("lockstep-report.html")


@click.command(short_help="Measure the mismatch in rollout logs; table, verdict, report.")
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
@read_options
@work_options
@click.option("--exact-quantiles", is_flag=True,
              help="Quantiles to the last digit, for 8 bytes of memory a token; without, they are within 0.4 %.")
def diagnose(files: tuple[Path, ...], labels: tuple[str, ...], report: Path | None, no_html: bool,
             as_json: bool, every: bool, exact_quantiles: bool, work: Work, reading: ReadOptions) -> None:
    """Measure the training-inference mismatch in rollout logs: is it harmful, why, and what to do.

    FILE is a log with both engines' log-probs: a prime-rl token export, or JSON lines, Parquet, Arrow or .npz
    with the columns of verl, TRL, slime and others, or your own (--column). A folder with the files of all
    ranks of one step, or of all steps, is one log. Two logs are compared.

    \b
    One log:
        lockstep diagnose outputs/token_exports/step_100
    BF16 against FP16, with the report where you want it:
        lockstep diagnose bf16.jsonl fp16.jsonl --label BF16 --label FP16 --html mismatch.html
    In a test, failing above a limit:
        lockstep diagnose run.jsonl --json | jq -e '.logs[0].mismatch.k3.value < 1e-3'

    prime-rl writes such files with enable_token_export in the trainer's configuration; docs/Logs.md says how
    to get them from the others.
    """
    if labels and len(labels) != len(files):
        raise click.UsageError(f"--label was given {len(labels)} times for {len(files)} files: name each, in"
                               " their order")
    if no_html and report is not None:
        raise click.UsageError("--html and --no-html contradict each other")
    if report is None and not no_html and not as_json:
        report = DEFAULT_REPORT
    if report is not None:
        from ..report import page  # Jinja2 and matplotlib are needed only where pictures are wanted

        with told():
            page.check_path(report)
    with told():
        diagnoses = [Diagnosis(found) for found in read_parts(
            [(Survey(label, exclude_non_finite=reading.exclude_non_finite, exact_quantiles=exact_quantiles), [path])
             for path, label in zip(files, labels or default_labels(files), strict=True)], reading, work)]
        verdicts = [judge(diagnosis) for diagnosis in diagnoses]
    if report is not None:  # before the table, which `| head` may cut short
        with told():
            page.write(report, page.page(diagnoses, verdicts, options=reading.given))
    if as_json:
        click.echo(json.dumps(document(diagnoses, verdicts), indent=2, allow_nan=False))
    else:
        print_diagnosis(Console(highlight=False), diagnoses, verdicts, every=every)
    if report is not None:
        click.echo(f"\nReport: {printable(str(report))}", err=as_json)
