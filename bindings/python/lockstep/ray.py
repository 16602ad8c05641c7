"""A log read by a Ray cluster, with the result of one process, bit for bit.

    import lockstep.ray
    found = lockstep.ray.survey_files("/shared/outputs/token_exports", parts=64)
    certificate = lockstep.ray.certify_dataset(ray.data.read_parquet("s3://bucket/rollouts"), band="5%")
    print(found.statistics.k3, certificate.outcome)

Files are read by tasks, one for each part of the log; a dataset by tasks over its blocks. A task sends back what it
keeps of its part, and merging is exact, so the result depends neither on the number of workers nor on which finishes
first, nor on a part being read again because its worker died. Connect to a cluster first (`ray.init`); without, Ray
starts one on this machine. `pip install 'lockstep[ray]'`. docs/Parallel.md.
"""

from __future__ import annotations

from typing import Any

import ray

from . import parallel
from .advice import Advice
from .certificate import Certificate
from .logs import batches_of_table
from .parallel import Done, P, Paths, cut, merged, read_part
from .survey import Survey

#: A worker that dies (preempted, out of memory) is replaced so many times for each part.
RETRIES = 5


def read_files(into: P, paths: Paths, *, parts: int = 0, done: Done | None = None, **options: Any) -> P:
    """Reads one log, whose files every worker can see.

    Args:
        into, paths, done, options: as in `lockstep.parallel.read_files`.
        parts: tasks to cut the log into; 0 for two for each processor of the cluster.

    Raises:
        LogError, NonFiniteError: as `Part.read`.
        ray.exceptions.RayError: a part could not be read after so many retries.
    """
    if not ray.is_initialized():
        ray.init()
    jobs = cut([(into, paths)], parts or 2 * max(1, int(ray.cluster_resources().get("CPU", 1))))
    task = ray.remote(num_cpus=1, max_retries=RETRIES)(read_part)
    waiting = {task.remote(*job, **options): index for index, job in enumerate(jobs)}
    found: list[P | BaseException | None] = [None] * len(jobs)
    left = list(waiting)
    while left:
        (ready, *_), left = ray.wait(left)
        try:
            found[waiting[ready]] = ray.get(ready)
        except ray.exceptions.RayTaskError as error:  # what the task itself raised: LogError and the like
            found[waiting[ready]] = error.cause if error.cause is not None else error
        if done is not None:
            done(len(jobs) - len(left), len(jobs))
    return merged(jobs, found, options)[0]


def read_dataset(into: P, dataset: ray.data.Dataset, **options: Any) -> P:
    """Reads a Ray Data dataset, one row a sequence.

    Columns are found by name as in a Parquet log (docs/Logs.md), or given as `columns`. A sequence is called by
    its id column, or, without one, by a hash of its content. Blocks are read apart from each other, so a
    sequence that is there twice is not noticed.

    Args:
        into: an empty part, which says what is to be kept: a `Survey`, `SequenceSums`…
        dataset: rows with both engines' log-probs.
        options: of `lockstep.logs.batches_of_table`: columns…

    Raises:
        LogError, NonFiniteError: as `Part.read`.
    """
    kind, empty = type(into), into.to_bytes()

    def part(table):
        import pyarrow

        found = kind.from_bytes(empty)
        found.read(batches_of_table(table, exclude_non_finite=found.exclude_non_finite, **options), threads=1)
        return pyarrow.table({"part": pyarrow.array([found.to_bytes()], pyarrow.large_binary())})

    for row in dataset.map_batches(part, batch_format="pyarrow", batch_size=None).iter_rows():
        into.merge(kind.from_bytes(row["part"]))
    return into


def survey_files(paths: Paths, **options: Any) -> Survey:
    """As `lockstep.parallel.survey_files`, with the options of this module's `read_files`."""
    return parallel.survey_files(paths, read=read_files, **options)


def certify_files(paths: Paths, **options: Any) -> Certificate:
    """As `lockstep.parallel.certify_files`, with the options of this module's `read_files`."""
    return parallel.certify_files(paths, read=read_files, **options)


def advise_files(paths: Paths, **options: Any) -> Advice:
    """As `lockstep.parallel.advise_files`, with the options of this module's `read_files`."""
    return parallel.advise_files(paths, read=read_files, **options)


def survey_dataset(dataset: ray.data.Dataset, **options: Any) -> Survey:
    """As `lockstep.parallel.survey_files`, of a dataset, with the options of `read_dataset`."""
    return parallel.survey_files(dataset, read=read_dataset, **options)


def certify_dataset(dataset: ray.data.Dataset, **options: Any) -> Certificate:
    """As `lockstep.parallel.certify_files`, of a dataset, with the options of `read_dataset`."""
    return parallel.certify_files(dataset, read=read_dataset, **options)
