"""`lockstep certify`: does a log meet a band? Pass, fail, or not enough tokens to say."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..certificate import BANDS, BETWEEN, STATISTICS, Certificate, Finding, SequenceSums, check, decide
from ..logs import Log, LogError, find_files, join_logs
from ..report.rows import number
from ..report.terminal import WIDEST_PROSE, printable
from ..whole_files import write_whole
from .shared import (
    BadInput, ReadOptions, Work, default_labels, hold_logs, read_options, read_parts, tell_skipped, told, work_options,
)

STATUS = {"pass": 0, "fail": 1, "not enough": 4}
STYLES = {"pass": "bold green", "fail": "bold red", "not enough": "bold yellow"}


@click.command(short_help="Pass or fail against a band, with confidence; a JSON certificate.")
@click.argument("files", metavar="A [B]", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--band", type=click.Choice([*BANDS, "custom"]),
              help="What is required. Default: mlperf; custom, if --require is given.")
@click.option("--require", multiple=True, metavar="TEXT",
              help="A requirement of your own, such as 'k3 < 1e-3'; as often as you like.")
@click.option("--confidence", type=click.FloatRange(0.5, 1, min_open=True, max_open=True), default=0.95,
              show_default=True, metavar="SHARE", help="Of each decision.")
@click.option("--margin", type=click.FloatRange(min=0), default=0.1, show_default=True, metavar="SHARE",
              help="With B: how much larger than B's the mismatch of A may be and still count as not worse.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="PATH",
              help="Write the certificate here. A file that is no certificate is never replaced.")
@click.option("--json", "as_json", is_flag=True, help="Print the certificate, not the table.")
@click.option("--note", default="", metavar="TEXT", help="A line of your own in the certificate.")
@click.option("--check", "to_check", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              metavar="PATH",
              help="Check a certificate: that it was not edited, and that the FILES given are its inputs.")
@read_options
@work_options
@click.pass_context
def certify(context: click.Context, files: tuple[Path, ...], band: str | None, require: tuple[str, ...],
            confidence: float, margin: float, out: Path | None, as_json: bool, note: str,
            to_check: Path | None, work: Work, reading: ReadOptions) -> None:
    """Does the mismatch in rollout log A meet a band? Pass, fail, or not enough tokens to say.

    With B, a log of the same tokens, such as one from before a change, A must also not be worse than B. Where
    each has the log-probs of one engine alone, A the trainer's and B the rollout's, they are one log. Two logs are
    read by one process.

    \b
    Bands:
      mlperf   at most 5 % of sequences have a geometric mean ratio outside [0.999, 1.002], and 1 % a mean
               exp|d| above 2, where MLPerf drops them; the mean ratio is within [0.999, 1.002]
      1%, 5%   at most 1 % of tokens, and of sequences in the geometric mean, have a ratio off 1 by more
      bitwise  the same bits on every token
      custom   what --require says

    \b
    In a pipeline: exit status 0 pass, 1 fail, 4 not enough tokens to say, 2 bad input:
        lockstep certify outputs/token_exports/step_100 --band 5% --out certificate.json
    Limits of your own:
        lockstep certify run.jsonl --require 'k3 < 1e-3' --require 'share_outside_1pct <= 0.1%'
    Did the new kernel make it worse?
        lockstep certify after.jsonl before.jsonl --band 5%
    Is this certificate of these files?
        lockstep certify --check certificate.json run.jsonl

    Formulas, and how often decisions are wrong: docs/Certificate.md.
    """
    if to_check is not None:
        context.exit(_check(to_check, files))
    if not 1 <= len(files) <= 2:
        raise click.UsageError("give one log, A, or two of the same tokens, A and B")
    if out is not None:
        with told():
            _check_path(out)
    with told():
        sums = _read(files, reading, work)
        certificate = decide(
            sums[0], band=band or ("custom" if require else "mlperf"), require=require, confidence=confidence,
            baseline=sums[1] if len(sums) == 2 else None, margin=margin, note=note, options=asdict(reading))
        if out is not None:
            write_whole(out, certificate.to_json())
    if as_json:
        click.echo(certificate.to_json(), nl=False)
    else:
        _print(Console(highlight=False), certificate)
    context.exit(STATUS[certificate.outcome])


def _read(files: tuple[Path, ...], reading: ReadOptions, work: Work) -> list[SequenceSums]:
    """The sums of one log (of two files, if each has one engine's log-probs), or of two of the same tokens."""
    labels = default_labels(files)
    sums = [SequenceSums(label, exclude_non_finite=reading.exclude_non_finite) for label in labels]
    if len(files) == 1:
        return read_parts([(sums[0], files)], reading, work)
    readers = [reading.open(path, label, side=side) for path, label, side in
               zip(files, labels, ("trainer", "rollout"), strict=True)]
    for reader in readers:  # whose log-probs a log has is known from its first batch
        next(iter(reader), None)
    if all(len(reader.sides) == 1 for reader in readers):
        if readers[0].sides == ("rollout",):
            readers.reverse()
        if readers[0].sides == readers[1].sides:
            raise LogError(f"has the log-probs of the {readers[1].sides[0]}, as {labels[0]} has: give one log of"
                           " each engine", str(files[1]))
        joined = join_logs(*readers)
        found = [SequenceSums(joined.label, exclude_non_finite=reading.exclude_non_finite).read(
            joined, threads=work.threads)]
        tell_skipped(joined)
        return found
    logs = hold_logs(files, labels, reading, token_ids=True)
    _same_tokens(*logs)
    for into, log in zip(sums, logs, strict=True):
        into.add(log.trainer, log.rollout, log.mask, log.offsets, non_finite=into.non_finite, threads=work.threads,
                 places=(log.file_of, log.lines))
        into.finish(log)
    return sums


def _same_tokens(first: Log, second: Log) -> None:
    """Raises LogError, with the place, unless two logs hold the same tokens in the same order."""
    def place(log: Log, sequence: int) -> str:
        return f"{log.files[log.file_of[sequence]].path}, line {log.lines[sequence]}"

    hint = "; A and B must hold the same tokens in the same order, as they are compared sequence by sequence"
    if first.sequences != second.sequences:
        raise LogError(f"holds {second.sequences:,} sequences, {first.label} {first.sequences:,}{hint}",
                       second.label)
    lengths = [np.diff(log.offsets) for log in (first, second)]
    if (different := np.flatnonzero(lengths[0] != lengths[1])).size:
        at = int(different[0])
        raise LogError(f"{lengths[1][at]:,} tokens, but {lengths[0][at]:,} in {place(first, at)}{hint}",
                       place(second, at))
    both = ("loss_mask", first.mask, second.mask), ("token_ids", first.token_ids, second.token_ids)
    for name, a, b in both:
        if a is None or b is None or np.array_equal(a, b):
            continue
        token = int(np.flatnonzero(a != b)[0])
        at = int(np.searchsorted(first.offsets, token, "right")) - 1
        raise LogError(f"token {token - int(first.offsets[at])} is {b[token]}, but {a[token]} in"
                       f" {place(first, at)}{hint}", place(second, at), field=name)


def _check_path(path: Path) -> None:
    """Refuses to replace what is no certificate."""
    if path.exists():
        try:
            with open(path, "rb") as file:
                ours = b'"schema": "lockstep-certificate/' in file.read(200)
        except OSError as error:
            raise LogError(f"cannot be opened: {error.strerror or error}", str(path)) from error
        if not ours:
            raise LogError("exists and is no certificate of ours: give another --out", str(path))


def _check(path: Path, files: tuple[Path, ...]) -> int:
    """Tells whether a certificate and its inputs are as they were; the exit status, 1 if not."""
    with told():
        try:
            document = json.loads(path.read_bytes(), parse_constant=lambda name: float(name))
        except (ValueError, RecursionError) as error:
            raise BadInput(printable(f"{path}: is not JSON ({error})")) from error
        try:
            check(document)
        except ValueError as error:
            click.echo(printable(f"{path}: {error}"))
            return STATUS["fail"]
        inputs = {file["sha256"]: file["path"] for each in document["inputs"] for file in each["files"]}
        left = dict(inputs)
        status = STATUS["pass"]
        for file in (file for given in files for file in find_files(given)):
            found = hashlib.sha256()
            with open(file, "rb") as opened:
                while chunk := opened.read(1 << 20):
                    found.update(chunk)
            if found.hexdigest() not in inputs:
                click.echo(printable(f"{file}: is none of the certificate's inputs, or was changed since"
                                     f" (sha256 {found.hexdigest()})"))
                status = STATUS["fail"]
            left.pop(found.hexdigest(), None)
    click.echo(printable(f"{path}: as it was made: {document['outcome']}, band {document['band']['name']},"
                         f" sha256 {document['sha256']}"))
    if left:
        click.echo(printable("Inputs that were not checked: " + ", ".join(left.values())))
    return status


def _print(console: Console, certificate: Certificate) -> None:
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    for name in ("requirement", "measured", "lower", "upper", ""):
        out.add_column(name, justify="left" if name in ("requirement", "") else "right", no_wrap=True)
    for finding in certificate.findings:
        out.add_row(_wanted(finding), *_figures(finding), Text(finding.outcome, STYLES[finding.outcome]))
    for finding in certificate.comparison:
        out.add_row(f"{finding.requirement.statistic}, A / B <= {finding.requirement.limit:.6g}",
                    *_figures(finding, quotient=True), Text(finding.outcome, STYLES[finding.outcome]))
    lines = [Text.assemble((certificate.outcome.capitalize(), STYLES[certificate.outcome]),
                           f": band {certificate.band.name}, {100 * certificate.confidence:.6g} % confidence,"
                           f" {certificate.tokens:,} tokens in {certificate.sequences:,} sequences.")]
    if certificate.outcome == "not enough":
        needed = certificate.sequences_needed
        lines.append(Text(
            "No log of a size in use would settle it: a value is at its limit." if needed is None else
            f"About {_rounded(needed)} sequences like these would settle it, if the values stay."))
    for finding in (*certificate.findings, *certificate.comparison):
        if finding.outcome != "pass" and finding.reason not in ("", BETWEEN):
            lines.append(Text(f"· {finding.requirement.statistic}: {finding.reason}."))
    if any(each.outcome != "pass" for each in certificate.baseline):
        failed = [str(each.requirement) for each in certificate.baseline if each.outcome != "pass"]
        lines.append(Text(f"B itself does not show: {'; '.join(failed)}."))
    if not console.is_terminal:
        console.width = 1_000  # for measuring
        console.width = max(WIDEST_PROSE, console.measure(out).maximum)
    console.print(out)
    console.print()
    for line in lines:
        console.print(line, width=min(console.width, WIDEST_PROSE), soft_wrap=False)


def _wanted(finding: Finding) -> str:
    wanted = finding.requirement
    limit = f"{100 * wanted.limit:.6g} %" if STATISTICS[wanted.statistic].share else f"{wanted.limit:.6g}"
    return f"{wanted.statistic} {wanted.relation} {limit}"


def _figures(finding: Finding, quotient: bool = False) -> list[str]:
    share = STATISTICS[finding.requirement.statistic].share and not quotient
    return [f"{number(100 * value)} %" if share else number(value, 5)
            for value in (finding.value, finding.lower, finding.upper)]


def _rounded(count: int) -> str:
    """Two significant digits, upwards."""
    size = 10 ** max(0, len(str(count)) - 2)
    return f"{-(-count // size) * size:,}"
