"""A log surveyed by several processes of this machine, with the result of one.

    >>> from lockstep.parallel import survey_files
    >>> found = survey_files("outputs/token_exports", processes=4)   # doctest: +SKIP
    >>> found.statistics.k3   # doctest: +SKIP
    Estimate(value=0.00137, standard_error=6.1e-05)

Reading is what takes the time: parsing JSON, mostly. Each process reads a part of the log (whole files where
there are enough of them, else every n-th line) and sends back its survey, some hundred kilobytes; merging
is exact, so the bytes of the result do not depend on `processes`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from .logs import find_log_files, open_log
from .survey import Survey, survey

Paths = str | Path | Iterable[str | Path]


def survey_files(paths: Paths, *, processes: int = 0, label: str | None = None, exclude_non_finite: bool = False,
                 exact_quantiles: bool = False, done: Callable[[int, int], None] | None = None,
                 **options: Any) -> Survey:
    """Surveys one log with several processes.

    Args:
        paths: a file, a folder, or several of either: one log, as in `lockstep.logs.open_log`.
        processes: how many; 0 for one for each processor this process may use.
        label, exclude_non_finite, exact_quantiles: as in `lockstep.survey.survey`.
        done: called with (parts done, parts) after each part, for a progress bar.
        options: of `open_log`: format, columns, skip_bad…

    Raises:
        LogError, NonFiniteError: as `survey`; of several bad sequences, that of the first part that has one.
    """
    files = find_log_files(paths)
    processes = processes or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0])
    name = label if label is not None else _label(paths)
    jobs = [(files, part, processes, name, exclude_non_finite, exact_quantiles, options) for part in range(processes)]
    if processes == 1:
        return survey_part(*jobs[0])
    found: list[Survey | BaseException | None] = [None] * processes
    # Not fork: threads of the library and of Arrow may be at work in this process.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(survey_part, *job): index for index, job in enumerate(jobs)}
        for finished, future in enumerate(as_completed(futures), 1):
            found[futures[future]] = future.exception() or future.result()
            if done is not None:
                done(finished, processes)
    return merged(found)


def survey_part(files: list[Path], part: int, parts: int, label: str, exclude_non_finite: bool,
                exact_quantiles: bool, options: dict[str, Any]) -> Survey:
    """The survey of one of several parts of a log: the work of one process."""
    log = open_log(files, label=label, shard=(part, parts), exclude_non_finite=exclude_non_finite, **options)
    return survey(log, exclude_non_finite=exclude_non_finite, exact_quantiles=exact_quantiles,
                  threads=0 if parts == 1 else 1)


def merged(parts: Iterable[Survey | BaseException | None]) -> Survey:
    """The survey of all parts; the first part's error, where one has failed."""
    out: Survey | None = None
    for part in parts:
        if isinstance(part, BaseException):
            raise part
        if out is None:
            out = part
        elif part is not None:
            out.merge(part)
    assert out is not None, "there is at least one part"
    return out


def _label(paths: Paths) -> str:
    first = paths if isinstance(paths, (str, Path)) else next(iter(paths))
    return Path(first).name
