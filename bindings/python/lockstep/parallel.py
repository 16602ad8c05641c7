"""A log read by several processes of this machine, with the result of one.

    >>> from lockstep.parallel import certify_files, survey_files
    >>> found = survey_files("examples/data/smollm2-135m.bf16.jsonl.gz", processes=2)
    >>> round(found.statistics.k3.value, 5)
    0.00137
    >>> certify_files("examples/data/smollm2-135m.fp16.jsonl.gz", band="5%", processes=2).outcome
    'not enough'

Reading is what takes the time: parsing JSON, mostly. Each process reads a part of the log (whole files where
there are enough of them, else every n-th line) and sends back what it keeps of it; merging is exact, so the bytes of
the result do not depend on `processes`. docs/Parallel.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .advice import Advice, CorrectionHistograms, advise_on
from .certificate import Certificate, SequenceSums, decide
from .logs import LogError, find_log_files, open_log
from .logs.columns import MIXED
from .parts import Part
from .survey import Survey

Paths = str | Path | Iterable[str | Path]
Done = Callable[[int, int], None]
P = TypeVar("P", bound=Part)


def read_files(into: P, paths: Paths, *, processes: int = 0, threads: int = 0, done: Done | None = None,
               **options: Any) -> P:
    """Reads one log with several processes.

    Args:
        into: an empty part, which says what is to be kept: a `Survey`, `SequenceSums`…
        paths: a file, a folder, or several of either: one log, as in `lockstep.logs.open_log`.
        processes: how many; 0 for one for each processor this process may use.
        threads: of one process; several have one each.
        done: called with (parts done, parts) after each part, for a progress bar.
        options: of `open_log`: format, columns, skip_bad…

    Raises:
        LogError, NonFiniteError: as `Part.read`; of several bad sequences, that of the first part that has one.
        ChildProcessError: a process died.
    """
    return read_logs([(into, paths)], processes=processes, threads=threads, done=done, **options)[0]


def read_logs(logs: Sequence[tuple[P, Paths]], *, processes: int = 0, threads: int = 0, done: Done | None = None,
              **options: Any) -> list[P]:
    """`read_files` for several logs at once, each given as (empty part, paths)."""
    processes = processes or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0])
    if processes == 1:
        jobs = cut(logs, 1)
        return merged(jobs, [read_part(*job, threads=threads, **options) for job in jobs], options)
    jobs = cut(logs, -(-processes // len(logs)))
    return merged(jobs, _read_apart(jobs, min(processes, len(jobs)), done, options), options)


def _read_apart(jobs: list[Job], processes: int, done: Done | None, options: Mapping[str, Any],
                ) -> list[P | BaseException | None]:
    """What each job gave, or the error it ended with, read by processes of their own."""
    # Here, because one process has no need of what they load.
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    found: list[P | BaseException | None] = [None] * len(jobs)
    # Not fork: threads of the library and of Arrow may be at work in this process.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(read_part, *job, **options): index for index, job in enumerate(jobs)}
        for finished, future in enumerate(as_completed(futures), 1):
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                raise ChildProcessError("a process that read a part of the log died, perhaps for want of memory: give"
                                        " fewer processes") from error
            found[futures[future]] = error or future.result()
            if done is not None:
                done(finished, len(jobs))
    return found


Job = tuple[P, list[Path], tuple[int, int]]


def cut(logs: Sequence[tuple[P, Paths]], parts: int) -> list[Job]:
    """The jobs that read logs, each in so many parts: (empty part, files of the log, shard)."""
    jobs = []
    for into, paths in logs:
        files = find_log_files(paths)
        into.label = into.label or Path(paths if isinstance(paths, (str, Path)) else files[0]).name
        jobs += [(into, files, (part, parts)) for part in range(parts)]
    return jobs


def read_part(into: P, files: list[Path], shard: tuple[int, int], threads: int = 1, **options: Any) -> P:
    """What is kept of one part of a log: the work of one process."""
    log = open_log(files, label=into.label, shard=shard, exclude_non_finite=into.exclude_non_finite,
                   **{"token_ids": into.TOKEN_IDS, **options})
    return into.read(log, threads=threads)


def merged(jobs: Sequence[Job], found: Iterable[P | BaseException | None], options: Mapping[str, Any]) -> list[P]:
    """What is kept of each log, from what the jobs gave; the first job's error, where one has failed."""
    logs: list[P] = []
    for (_, files, (part, _)), result in zip(jobs, found, strict=True):
        if isinstance(result, BaseException):
            raise result
        assert result is not None, "every job has ended"
        if part == 0:
            logs.append(result)
        else:
            logs[-1].merge(result)
        for name, value in logs[-1].header.items():
            if value == MIXED and not options.get("mixed"):
                raise LogError("is not the same in all parts of the log: the figures would be of several policies at"
                               " once; split the log, or accept that (mixed)", str(files[0]), field=name)
    return logs


def survey_files(paths: Any, *, label: str = "", exclude_non_finite: bool = False, exact_quantiles: bool = False,
                 read: Callable[..., Any] = read_files, **options: Any) -> Survey:
    """Surveys one log: what `diagnose` shows.

    Args:
        paths: a file, a folder, or several of either: one log, as in `lockstep.logs.open_log`.
        label, exclude_non_finite, exact_quantiles: as in `lockstep.survey.survey`.
        read: who reads: `read_files` of this module, or that of `lockstep.ray`.
        options: of `read_files`: processes, done; and of `open_log`: format, columns, skip_bad…

    Raises:
        LogError, NonFiniteError, ChildProcessError: as `read_files`.
    """
    return read(Survey(label, exclude_non_finite=exclude_non_finite, exact_quantiles=exact_quantiles), paths, **options)


def certify_files(paths: Any, *, band: str = "mlperf", require: Sequence[str] = (), confidence: float = 0.95,
                  note: str = "", label: str = "", exclude_non_finite: bool = False,
                  read: Callable[..., Any] = read_files, **options: Any) -> Certificate:
    """Decides whether one log meets a band.

    Args:
        band, require, confidence, note: as in `lockstep.certify`.
        paths, label, exclude_non_finite, read, options: as in `survey_files`.

    Raises:
        InvalidArgumentError: as `lockstep.certify`. LogError, NonFiniteError, ChildProcessError: as `read_files`.
    """
    sums = read(SequenceSums(label, exclude_non_finite=exclude_non_finite), paths, **options)
    return decide(sums, band=band, require=require, confidence=confidence, note=note,
                  options={"non_finite": sums.non_finite})


def advise_files(paths: Any, *, ess: float = 0.5, label: str = "", exclude_non_finite: bool = False,
                 read: Callable[..., Any] = read_files, **options: Any) -> Advice:
    """What each correction would do to one log.

    Args:
        ess: as in `lockstep.advise`.
        paths, label, exclude_non_finite, read, options: as in `survey_files`.

    Raises:
        InvalidArgumentError: as `lockstep.advise`. LogError, NonFiniteError, ChildProcessError: as `read_files`.
    """
    return advise_on(read(CorrectionHistograms(label, exclude_non_finite=exclude_non_finite), paths, **options), ess=ess)
