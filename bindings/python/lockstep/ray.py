"""A log surveyed by a Ray cluster, with the result of one process, bit for bit.

    import lockstep.ray
    found = lockstep.ray.survey_files("/shared/outputs/token_exports", parts=64)
    found = lockstep.ray.survey_dataset(ray.data.read_parquet("s3://bucket/rollouts"))
    print(found.statistics.k3)

Files are read by tasks, one for each part of the log; a dataset by tasks over its blocks. A task sends back a
survey of some hundred kilobytes, and merging surveys is exact, so the result depends neither on the number
of workers nor on which finishes first, nor on a part being read again because its worker died. Connect to a
cluster first (`ray.init`); without, Ray starts one on this machine. `pip install 'lockstep-rl[ray]'`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from .logs import batches_of_table, find_log_files
from .parallel import Paths, merged, survey_part
from .survey import Survey, survey

#: A worker that dies (preempted, out of memory) is replaced so many times for each part.
RETRIES = 5


def survey_files(paths: Paths, *, parts: int = 0, label: str = "", exclude_non_finite: bool = False,
                 exact_quantiles: bool = False, done: Callable[[int, int], None] | None = None,
                 **options: Any) -> Survey:
    """Surveys one log, whose files every worker can see.

    Args:
        paths: a file, a folder, or several of either: one log, as in `lockstep.logs.open_log`.
        parts: tasks to cut the log into; 0 for two for each processor of the cluster.
        label, exclude_non_finite, exact_quantiles: as in `lockstep.survey.survey`.
        done: called with (parts done, parts) after each part, for a progress bar.
        options: of `open_log`: format, columns, skip_bad…

    Raises:
        LogError, NonFiniteError: as `survey`.
        ray.exceptions.RayError: a part could not be read after so many retries.
    """
    if not ray.is_initialized():
        ray.init()
    parts = parts or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    files = find_log_files(paths)
    task = ray.remote(num_cpus=1, max_retries=RETRIES)(survey_part)
    waiting = {task.remote(files, part, parts, label, exclude_non_finite, exact_quantiles, options): part
               for part in range(parts)}
    found: list[Survey | BaseException | None] = [None] * parts
    left = list(waiting)
    while left:
        (ready, *_), left = ray.wait(left)
        try:
            found[waiting[ready]] = ray.get(ready)
        except ray.exceptions.RayTaskError as error:  # what the task itself raised: LogError and the like
            found[waiting[ready]] = error.cause if error.cause is not None else error
        if done is not None:
            done(parts - len(left), parts)
    return merged(found)


def survey_dataset(dataset: ray.data.Dataset, *, label: str = "", exclude_non_finite: bool = False,
                   exact_quantiles: bool = False, **options: Any) -> Survey:
    """Surveys a Ray Data dataset, one row a sequence.

    Columns are found by name as in a Parquet log (docs/Logs.md), or given as `columns`. A sequence is called by
    its id column, or, without one, by a hash of its content. Blocks are read apart from each other, so a
    sequence that is there twice is not noticed.

    Args:
        dataset: rows with both engines' log-probs.
        label, exclude_non_finite, exact_quantiles: as in `lockstep.survey.survey`.
        options: of `lockstep.logs.batches_of_table`: columns…

    Raises:
        LogError, NonFiniteError: as `survey`.
    """
    def part(table):
        import pyarrow

        found = survey(batches_of_table(table, **options), label=label, exclude_non_finite=exclude_non_finite,
                       exact_quantiles=exact_quantiles, threads=1)
        return pyarrow.table({"survey": pyarrow.array([found.to_bytes()], pyarrow.large_binary())})

    out = Survey(label, exclude_non_finite=exclude_non_finite, exact_quantiles=exact_quantiles)
    for row in dataset.map_batches(part, batch_format="pyarrow", batch_size=None).iter_rows():
        out.merge(Survey.from_bytes(row["survey"]))
    return out
