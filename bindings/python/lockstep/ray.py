"""Rollouts of a run drawn, and logs read, by a Ray cluster: with the result of one process, bit for bit.

    with lockstep.ray.RolloutWorkers(lockstep.Run(lockstep.Task("chain")), workers=4) as run:
        for metrics in run: ...

The learner is the process that has the run; workers are actors with a rollout engine. In each step they get the policy,
draw shares of the prompts, and are replaced if they die: a draw depends on seed, id and position alone, so nobody sees
who made it. docs/ReinforcementLearning.md.

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

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import parallel
from ._errors import InvalidArgumentError, NonFiniteError
from ._models import Model, Rollout
from ._runs import RolloutRequest, Run, StepMetrics, draw_rollouts
from .advice import Advice
from .certificate import Certificate
from .logs import batches_of_table
from .parallel import Done, P, Paths, cut, merged, read_part
from .survey import Survey

try:
    import ray
except ModuleNotFoundError as missing:
    if missing.name != "ray":
        raise
    raise ModuleNotFoundError("lockstep.ray needs Ray: pip install 'lockstep[ray]'", name="ray") from None

#: A worker that dies (preempted, out of memory) is replaced so many times for each part of a log, or step of a run.
RETRIES = 5


class RolloutWorker:
    """A rollout engine in a process of its own, which has the policy of one step at a time."""

    def __init__(self, recipe: Mapping[str, str], threads: int) -> None:
        self._recipe, self._threads = recipe, threads
        self._step = 0
        self._model: Model | None = None

    def draw(self, step: int, policy: NDArray[np.uint8], requests: Sequence[RolloutRequest]) -> list[Rollout]:
        """Draws requests of a step, from its policy (`Run.policy`), which is loaded if it is another than before.

        Raises:
            InvalidArgumentError: a request of another step, whose policy is another.
        """
        for request in requests:
            if request.step != step:
                raise InvalidArgumentError(f"requests: one is of step {request.step}, but the policy of step {step}")
        if step != self._step or self._model is None:
            self._model, self._step = Model.from_bytes(policy, self._recipe), step
        return draw_rollouts(self._model, requests, threads=self._threads)


class RolloutWorkers:
    """A run whose rollouts are drawn by Ray actors: an iterator of `StepMetrics`, with the bits of the run alone.

    Args:
        run: stays in this process, the learner; save, resume and evaluate it as ever.
        workers: how many actors.
        threads: of each, for which Ray reserves as many processors; 1 is best for small models.

    Example:
        >>> with RolloutWorkers(Run(Task("chain", size=4)), workers=2) as run:      # doctest: +SKIP
        ...     print(run.step().reward_mean)
    """

    def __init__(self, run: Run, workers: int = 2, *, threads: int = 1) -> None:
        if workers < 1 or threads < 1:
            raise InvalidArgumentError(f"workers is {workers} and threads {threads}; give at least 1 of each")
        if not ray.is_initialized():
            ray.init()
        self.run, self._threads = run, threads
        self._idle = [self._start() for _ in range(workers)]

    def _start(self) -> Any:
        return ray.remote(num_cpus=self._threads)(RolloutWorker).remote(dict(self.run.rollout_recipe), self._threads)

    def step(self) -> StepMetrics:
        """Takes a step: the workers draw, the learner learns.

        Raises:
            as `Run.step`; ray.exceptions.RayActorError: workers died more than RETRIES times.
        """
        try:
            policy = ray.put(self.run.policy())
        except NonFiniteError:
            return self.run.step()  # which says so too, and stops the run
        requests = self.run.requests()
        step = requests[0].step
        # Two shares for each worker, so that one that is slow or dies holds up little.
        size = -(-len(requests) // (2 * len(self._idle)))
        shares = deque(requests[first:first + size] for first in range(0, len(requests), size))
        busy: dict[Any, tuple[Any, Sequence[RolloutRequest]]] = {}
        deaths = 0
        try:
            while shares or busy:
                while shares and self._idle:
                    worker, share = self._idle.pop(), shares.popleft()
                    busy[worker.draw.remote(step, policy, share)] = worker, share
                (ready, *_), _ = ray.wait(list(busy))
                worker, share = busy.pop(ready)
                try:
                    rollouts = ray.get(ready)
                except ray.exceptions.RayActorError:
                    deaths += 1
                    self._idle.append(self._start())
                    shares.appendleft(share)
                    if deaths > RETRIES:
                        raise
                    continue
                except ray.exceptions.RayTaskError as error:
                    self._idle.append(worker)
                    if isinstance(error.cause, NonFiniteError):
                        continue  # the run draws this share itself, comes to the same, and stops
                    raise (error.cause or error) from None
                self._idle.append(worker)
                self.run.give(step, rollouts)
        finally:
            self._idle += [worker for worker, _ in busy.values()]
        return self.run.step()

    def __iter__(self) -> Iterator[StepMetrics]:
        return self

    def __next__(self) -> StepMetrics:
        return self.step()

    def close(self) -> None:
        """Ends the actors."""
        for worker in self._idle:
            ray.kill(worker)
        self._idle = []

    def __enter__(self) -> RolloutWorkers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


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
