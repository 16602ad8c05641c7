"""Carrying out runs: one in this process, or many in processes of one thread each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import lockstep

from .._errors import InvalidArgumentError, NonFiniteError
from ..step_lines import StepLines
from .experiment import Job
from .probe import probe

#: Told how many steps of all have been taken, and how many runs have ended.
Progress = Callable[[int, int], None]


def carry_out(job: Job, out: Path, *, threads: int = 1) -> None:
    """Takes a run to its end, from where it is.

    ``out/runs/NAME.jsonl`` gets a line with the run's configuration, one a step, and one a probe. Until the run ends,
    ``out/checkpoints/NAME`` has what it takes to go on; a break leaves no trace in the lines. A policy that diverges ends its
    run, with a line that says how.

    Raises:
        InvalidArgumentError: the file is of a run with another configuration.
        LockstepError: the model; the disk.
    """
    path, checkpoints = out / "runs" / f"{job.name}.jsonl", out / "checkpoints" / job.name
    if is_done(job, path):
        return
    for folder in (path.parent, checkpoints):
        folder.mkdir(parents=True, exist_ok=True)
    settings = job.settings
    run = lockstep.Run(
        settings.environment(job.problem_numbers), algorithm=f"paper/{job.algorithm}", trainer=job.pair.trainer,
        rollout=job.pair.rollout, model=job.model, prompts=settings.prompts, samples=settings.samples,
        updates=settings.updates, seed=job.seed, learning_rate=settings.learning_rate, threads=threads)
    start = run.resume(checkpoints)
    lines = StepLines(path, start)
    if start == 0:
        lines.add({"step": 0, "config": job.config})
        scale = 2.0**16  # where torch's scaler begins; of a power of two no trace is left where the range is wide
    else:
        steps, probes, _ = read_lines(path)
        scale = steps[-1]["loss_scale"]
    if start == 0 or probes[-1]["step"] < start:
        _probe(job, start, newest(checkpoints) if start else job.model, scale, lines, threads)
    for step in range(start + 1, settings.steps + 1):
        try:
            metrics = run.step().to_dict()
            lines.add(metrics)
            if step % settings.probe_every == 0 or step == settings.steps:
                run.save(checkpoints)
                _probe(job, step, newest(checkpoints), metrics["loss_scale"], lines, threads)
        except NonFiniteError as error:
            lines.add({"step": step, "failed": str(error)})
            break
    lines.close()
    shutil.rmtree(checkpoints, ignore_errors=True)


def _probe(job: Job, step: int, folder: Path, scale: float, lines: StepLines, threads: int) -> None:
    settings = job.settings
    first = step // settings.probe_every * settings.prompts
    numbers = [job.problem_numbers[(first + index) % len(job.problem_numbers)] for index in range(settings.prompts)]
    found = probe(folder, job.pair, job.algorithm, numbers, settings, seed=job.seed << 32 | step, loss_scale=scale,
                  threads=threads)
    lines.add({"step": step, "probe": found})


def newest(checkpoints: Path) -> Path:
    """The folder of the last checkpoint."""
    return max(checkpoints.glob("step-*"))


def read_lines(path: Path) -> tuple[list[dict], list[dict], str | None]:
    """Of a run's file: lines of steps, lines of probes, and how it failed, if it did. A line that was cut off is left out."""
    steps, probes, failed = [], [], None
    for text in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not text.endswith("\n"):
            break
        line = json.loads(text)
        if "probe" in line:
            probes.append({"step": line["step"], **line["probe"]})
        elif "failed" in line:
            failed = line["failed"]
        elif "config" not in line:
            steps.append(line)
    return steps, probes, failed


def is_done(job: Job, path: Path) -> bool:
    """Whether a run has ended.

    Raises:
        InvalidArgumentError: the file is of a run with another configuration.
    """
    if not path.exists():
        return False
    with path.open(encoding="utf-8") as file:
        first = file.readline()
    if not first.endswith("\n"):
        return False
    config = json.loads(first)["config"]
    if config != json.loads(json.dumps(job.config)):
        differs = min(key for key in {*config, *job.config}
                      if json.dumps(config.get(key)) != json.dumps(job.config.get(key)))
        raise InvalidArgumentError(
            f"{path}: is of a run with other options ({differs} differs); give another folder")
    steps, probes, failed = read_lines(path)
    return failed is not None or bool(probes and probes[-1]["step"] == job.settings.steps)


def carry_out_all(jobs: Sequence[Job], out: Path, *, processes: int,
                  progress: Progress = lambda steps, ended: None) -> None:
    """Takes all runs to their ends, some at a time, each in a process of one thread.

    Raises:
        as `carry_out`: the first error, after which no other run is begun.
    """
    left = [job for job in jobs if not is_done(job, out / "runs" / f"{job.name}.jsonl")]
    if not left:
        progress(sum(job.settings.steps for job in jobs), len(jobs))
        return
    # Not fork: threads of the library may be at work in this process.
    with ProcessPoolExecutor(min(processes, len(left)), mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(carry_out, job, out) for job in left}
        try:
            while waiting:
                ended, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in ended:
                    future.result()
                done = sum(min(job.settings.steps, _lines(out / "runs" / f"{job.name}.jsonl")) for job in left)
                before = sum(job.settings.steps for job in jobs) - sum(job.settings.steps for job in left)
                progress(before + done, len(jobs) - len(waiting))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    with suppress(OSError):
        (out / "checkpoints").rmdir()


def _lines(path: Path) -> int:
    """About how many steps a run has taken: its lines."""
    return path.read_bytes().count(b"\n") if path.exists() else 0
