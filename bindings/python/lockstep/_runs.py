"""Reinforcement learning runs: rollouts, rewards, advantages, corrections, updates, step after step."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from ctypes import byref, c_int64, c_size_t, c_void_p, sizeof
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _library as c
from ._advantages import _options as _advantage_options
from ._corrections import _options as _correction_options
from ._corrections import _rejections
from ._errors import InvalidArgumentError
from ._library import check, choice, int32, integer, library, real
from ._models import Model, Recipe, Rollout, RolloutEngine, _copied
from ._objectives import _options as _objective_options
from ._presets import Preset
from ._tasks import Task
from ._optimizer import _scaler_options

_LEVELS = {value: name for name, value in c.MONITOR_LEVELS.items()}
_STATISTICS = {value: name for name, value in c.MONITOR_STATISTICS.items()}


@dataclass(frozen=True)
class StepMetrics:
    """What happened in a step: pi is the trainer before its updates, mu the rollout engine.

    Means over tokens are of the responses'; NaN where there is nothing to take a mean of.
    """

    #: From 1.
    step: int
    responses: int
    #: Of the responses.
    tokens: int
    #: Groups all of whose rewards are equal: where advantages are differences in a group they teach nothing.
    equal_groups: int
    #: Updates since the start of the run; of this step, and of the run, those that were skipped as a gradient was not
    #: finite.
    updates: int
    skipped: int
    skipped_total: int
    reward_mean: float
    #: Of responses with a reward of at least 1.
    share_right: float
    #: Mean tokens of a response; share of responses that were cut off.
    response_length: float
    share_truncated: float
    #: KL(mu || pi) of a token; |ln pi - ln mu|; effective sample sizes of tokens' and sequences' ratios, shares.
    k3: float
    mean_abs_log_ratio: float
    max_abs_log_ratio: float
    #: |pi - mu|.
    max_abs_prob_diff: float
    ess: float
    sequence_ess: float
    sequence_log_ratio_std: float
    #: Of pi, nats.
    entropy: float
    #: Mean over the updates.
    loss: float
    #: Of tokens that a bound of the objective held; that the correction left out: rejected, or of weight 0.
    clip_share: float
    share_masked: float
    #: Before clipping, the largest of the updates that were not skipped.
    gradient_norm: float
    learning_rate: float
    #: After the step; an alarm: the next overflow cannot be backed off from.
    loss_scale: float
    scale_at_floor: bool
    #: What the early warning says ("learning", "ok", "watch", "alarm"), its evidence, and the statistic with the most.
    monitor: str
    monitor_score: float
    monitor_statistic: str

    def to_dict(self) -> dict[str, Any]:
        """The metrics by their names, as for a line of JSON."""
        return dict(vars(self))


@dataclass(frozen=True)
class RolloutRequest:
    """Responses to one prompt that a step needs: one for each id, drawn with these settings from `Run.policy`."""

    #: From 1.
    step: int
    problem: int
    prompt: NDArray[np.int32]
    ids: range
    temperature: float
    seed: int
    #: Of a response.
    max_tokens: int
    #: Each ends a response.
    stop_ids: tuple[int, ...]


def draw_rollouts(model: Model, requests: Sequence[RolloutRequest], *, threads: int = 0) -> list[Rollout]:
    """What a step of a run draws for some of its requests, by the id.

    Args:
        model: of `Run.policy`, in the run's rollout recipe.
        requests: of one step.
        threads: 0 is one for each processor this process may use.

    Returns:
        the rollouts, as `Run.give` takes them.

    Raises:
        NonFiniteError: a value left the recipe's range; layer and operation are named.

    Example:
        >>> run = Run(Task("chain", size=4), prompts=2, samples=4)
        >>> model = Model.from_bytes(run.policy(), run.rollout_recipe)
        >>> len(draw_rollouts(model, run.requests()))
        8
    """
    if not requests:
        return []
    first = requests[0]
    engine = RolloutEngine(
        model, temperature=first.temperature, seed=first.seed, max_tokens=first.max_tokens, stop_ids=first.stop_ids,
        capacity=64, threads=threads)
    for request in requests:
        engine.add(request.prompt, request.ids)
    return sorted(engine.run(), key=lambda rollout: rollout.id)


class Environment:
    """Where prompts come from, and what responses are worth: a task, or functions of your own.

    Problems have numbers. A prompt is a function of its problem's number, and a reward one of prompt and response.

    Args:
        task: a `Task`; with it, neither `prompts` nor `rewards`.
        seed: of the task's problems.
        problems: the numbers of those to draw from; without, each step takes the next ones, without an end.
        prompts: a function of a problem's number that gives token ids.
        rewards: a function of (problem, prompt, response), two arrays of token ids, that gives a finite number.
        max_tokens: of a response; 0: the task's.
        stop_ids: with functions: what ends a response.
        name: with functions: what checkpoints call it.

    Raises:
        InvalidArgumentError: both or neither, or something out of range.
    """

    def __init__(
        self, task: Task | None = None, *, seed: int = 0, problems: Sequence[int] | None = None,
        prompts: Callable[[int], Sequence[int]] | None = None,
        rewards: Callable[[int, NDArray[np.int32], NDArray[np.int32]], float] | None = None, max_tokens: int = 0,
        stop_ids: Sequence[int] = (), name: str = "callbacks",
    ) -> None:
        if (task is None) != (prompts is not None and rewards is not None) or (
                task is not None and (prompts is not None or rewards is not None)):
            raise InvalidArgumentError("environment: give a task, or both prompts and rewards")
        #: What a callback raised, to be raised again on this side.
        self.raised: BaseException | None = None
        self._kept: list[Any] = [task]
        raw = c.Environment(sizeof(c.Environment), int32(max_tokens, "max_tokens"))
        if problems is not None:
            numbers = np.array([integer(each, "problems", 0, 2**44) for each in problems] or [0], np.int64)
            self._kept.append(numbers)
            raw.problems, raw.problem_count = numbers.ctypes.data, len(problems)
        if task is not None:
            raw.task, raw.task_seed = task._pointer, integer(seed, "seed", 0, 2**64 - 1)
        else:
            ids = np.array([int32(each, "stop_ids") for each in stop_ids] or [0], np.int32)
            self._kept.append(ids)
            raw.stop_ids, raw.stop_id_count, raw.name = ids.ctypes.data, len(stop_ids), name.encode()
            raw.prompt = c.PROMPT_CALLBACK(self._guard(self._prompt(prompts)))
            raw.reward = c.REWARD_CALLBACK(self._guard(self._reward(rewards)))
        self._raw = raw

    def _guard(self, body: Callable[..., None]) -> Callable[..., int]:
        """A callback that keeps what was raised: nothing may pass through the library."""
        this = weakref.proxy(self)

        def call(context, *arguments):
            try:
                body(*arguments)
                return 0
            except BaseException as error:
                this.raised = error
                return 1
        return call

    @staticmethod
    def _prompt(prompts: Callable) -> Callable:
        def write(tokens, count, room, problem):
            ids = np.ascontiguousarray(prompts(problem), np.int32).reshape(-1)
            if len(ids) > room:
                raise InvalidArgumentError(f"prompt of problem {problem}: has {len(ids)} ids; give {room} at most")
            count[0] = len(ids)
            ctypes.memmove(tokens, ids.ctypes.data, ids.nbytes)
        return write

    @staticmethod
    def _reward(rewards: Callable) -> Callable:
        def write(reward, step, problem, sample, prompt, prompt_count, response, response_count):
            def ids(pointer, count):
                return np.ctypeslib.as_array(pointer, (count,)).copy() if count else np.empty(0, np.int32)
            reward[0] = float(rewards(problem, ids(prompt, prompt_count), ids(response, response_count)))
        return write

    def _check(self, status: int) -> None:
        """As `check`, with what a callback raised as the cause."""
        raised, self.raised = self.raised, None
        try:
            check(status)
        except Exception as error:
            if raised is not None and not isinstance(raised, Exception):
                raise raised
            raise error from raised


class Run:
    """A reinforcement learning run: an iterator of `StepMetrics`, a step at a time.

    A pure function of its arguments: the same bits on any number of threads. docs/ReinforcementLearning.md says what a
    step does. Not for concurrent use.

    Args:
        environment: a `Task`, or an `Environment`.
        algorithm: a preset's name, a `Preset`, or a dict with any of "correction", "advantages", "objective" (keywords of
            `lockstep.correct`, `lockstep.advantages`, `lockstep.objective_loss`) and "policies" ("three", "two").
        trainer: formats of the trainer, as `Model`'s recipe.
        rollout: formats of the rollout engine; None: the trainer's.
        model: a Hugging Face folder; None: a new model of the chain task.
        adapter: a LoRA adapter that is trained in place of the model.
        lora_rank, lora_alpha: of a new adapter; rank 0: none.
        model_seed, deviation: of a new model's matrices, or a new adapter.
        prompts, samples, updates: of a step: prompts, responses to each, updates from them.
        temperature: of drawing and scoring.
        seed: of prompts and tokens.
        learning_rate: the peak; `schedule` is "constant", "linear" or "cosine", with `warmup_steps`, `total_steps` (of
            updates) and `final_share`.
        betas, epsilon, weight_decay, max_norm: AdamW and clipping (0: none).
        scaler: a name of `LossScaler`, or a dict with "name" and its options; None: torch's if the trainer's
            activations are fp16, else none.
        learning_steps, false_alarms_per_1000: of the early warning.
        recompute: keep less of the forward pass; the same bits.
        threads: 0 is one for each processor this process may use.

    Raises:
        InvalidArgumentError: an option; it is named. As `Model` for the model.

    Example:
        >>> run = Run(Task("chain", size=4), algorithm="paper/grpo", trainer="fp16", prompts=2, samples=4)
        >>> [next(run).step for _ in range(2)]
        [1, 2]
    """

    def __init__(
        self, environment: Task | Environment, *, algorithm: str | Preset | Mapping[str, Any] = "paper/grpo",
        trainer: str | Mapping[str, str] = "fp16", rollout: str | Mapping[str, str] | None = None,
        model: str | os.PathLike[str] | None = None, adapter: str | os.PathLike[str] | None = None,
        lora_rank: int = 0, lora_alpha: float = 0.0, model_seed: int = 0, deviation: float = 0.1,
        prompts: int = 16, samples: int = 8, updates: int = 2, temperature: float = 1.0, seed: int = 0,
        learning_rate: float = 2e-4, schedule: str = "constant", warmup_steps: int = 0, total_steps: int = 0,
        final_share: float = 0.0, betas: tuple[float, float] = (0.9, 0.95), epsilon: float = 1e-8,
        weight_decay: float = 0.0, max_norm: float = 1.0, scaler: str | Mapping[str, Any] | None = None,
        learning_steps: int = 40, false_alarms_per_1000: float = 1.0, recompute: bool = False, threads: int = 0,
        instruction_set: str = "best",
    ) -> None:
        self.environment = environment if isinstance(environment, Environment) else Environment(environment)
        raw = c.RunOptions(
            sizeof(c.RunOptions), int32(prompts, "prompts"), int32(samples, "samples"), int32(updates, "updates"))
        raw.model = None if model is None else os.fsencode(model)
        raw.adapter = None if adapter is None else os.fsencode(adapter)
        raw.model_seed = integer(model_seed, "model_seed", 0, 2**64 - 1)
        raw.deviation = real(deviation, "deviation")
        raw.lora_rank, raw.lora_alpha = int32(lora_rank, "lora_rank"), real(lora_alpha, "lora_alpha")
        raw.recompute = bool(recompute)
        raw.trainer = ctypes.pointer(Recipe(trainer)._raw)
        #: The formats of the rollout engine, and its order.
        self.rollout_recipe: Recipe = Recipe(trainer if rollout is None else rollout)
        if rollout is not None:
            raw.rollout = ctypes.pointer(self.rollout_recipe._raw)
        _set_algorithm(raw, algorithm)
        raw.threads = int32(threads, "threads")
        raw.instruction_set = choice(c.INSTRUCTION_SETS, instruction_set, "instruction_set")
        raw.temperature = real(temperature, "temperature")
        raw.seed = integer(seed, "seed", 0, 2**64 - 1)
        raw.beta1, raw.beta2 = (real(each, "betas") for each in betas)
        raw.epsilon, raw.weight_decay = real(epsilon, "epsilon"), real(weight_decay, "weight_decay")
        raw.max_norm = real(max_norm, "max_norm")
        raw.schedule = ctypes.pointer(c.ScheduleOptions(
            sizeof(c.ScheduleOptions), choice(c.SCHEDULES, schedule, "schedule"),
            real(learning_rate, "learning_rate"), integer(warmup_steps, "warmup_steps", 0, 2**40),
            integer(total_steps, "total_steps", 0, 2**40), real(final_share, "final_share")))
        if scaler is not None:
            options = {"name": scaler} if isinstance(scaler, str) else dict(scaler)
            raw.scaler = ctypes.pointer(_scaler_options(options.pop("name", "torch"), options))
        raw.learning_steps = int32(learning_steps, "learning_steps")
        raw.false_alarms_per_1000 = real(false_alarms_per_1000, "false_alarms_per_1000")
        pointer = c_void_p()
        self.environment._check(library.lockstep_run_create(byref(pointer), raw, self.environment._raw))
        self._pointer = pointer
        weakref.finalize(self, library.lockstep_run_destroy, pointer)

    def __iter__(self) -> Iterator[StepMetrics]:
        return self

    def __next__(self) -> StepMetrics:
        return self.step()

    def step(self) -> StepMetrics:
        """Takes a step.

        Raises:
            NonFiniteError: the policy diverged (layer and operation, or tensor, are named): every further step says so;
                or a reward is no finite number, and the step can be taken again.
            InvalidArgumentError: `prompts` or `rewards` raised; what they raised is its cause. The run is as it was.
        """
        raw = c.RunMetrics(sizeof(c.RunMetrics))
        self.environment._check(library.lockstep_run_step(raw, self._pointer))
        values = {name: getattr(raw, name) for name, *_ in raw._fields_ if name != "struct_size"}
        values["scale_at_floor"] = bool(raw.scale_at_floor)
        values["monitor"] = _LEVELS[raw.monitor]
        values["monitor_statistic"] = _STATISTICS[raw.monitor_statistic]
        return StepMetrics(**values)

    def requests(self) -> list[RolloutRequest]:
        """What the next step needs to be drawn, elsewhere perhaps: `draw_rollouts` does it, and `give` takes what was drawn.

        The same until that step was taken.

        Raises:
            as `step` for prompts.
        """
        count, raw, found = c_size_t(), c.RolloutRequest(sizeof(c.RolloutRequest)), []
        self.environment._check(library.lockstep_run_request(None, byref(count), self._pointer, 0))
        for index in range(count.value):
            self.environment._check(library.lockstep_run_request(raw, None, self._pointer, index))
            found.append(RolloutRequest(
                raw.step, raw.problem, _copied(raw.prompt, raw.prompt_count, np.int32),
                range(raw.first_id, raw.first_id + raw.samples), raw.temperature, raw.seed, raw.max_tokens,
                tuple(_copied(raw.stop_ids, raw.stop_id_count, np.int32).tolist())))
        return found

    def give(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """Takes responses of the next step that were drawn elsewhere; the step draws the prompts of which some lack.

        Args:
            step: which they are of, `RolloutRequest.step`.
            rollouts: whole responses.

        Raises:
            InvalidArgumentError: they are of another step, whose policy was another, or no draws of this run; nothing was
                taken.
        """
        raw = (c.Rollout * len(rollouts))()
        kept = []
        for each, rollout in zip(raw, rollouts):
            tokens = np.ascontiguousarray(rollout.tokens, np.int32)
            arrays = [np.ascontiguousarray(values, np.float64)
                      for values in (rollout.raw_log_probs, rollout.processed_log_probs)]
            if any(len(values) != len(tokens) for values in arrays):
                raise InvalidArgumentError(
                    f"rollouts: sequence {rollout.id} has {len(tokens)} tokens but other numbers of log-probs")
            kept += [tokens, *arrays]
            each.id, each.token_count, each.tokens = rollout.id, len(tokens), tokens.ctypes.data
            each.raw_log_probs, each.processed_log_probs = (values.ctypes.data for values in arrays)
            each.finish = choice(c.FINISHES, rollout.finish, "finish")
        self.environment._check(library.lockstep_run_give(
            self._pointer, integer(step, "step", 0, 2**63 - 1), raw, len(rollouts)))

    def policy(self) -> NDArray[np.uint8]:
        """The policy as it is, in bytes for engines elsewhere: `Model.from_bytes(bytes, run.rollout_recipe)`.

        They are a safetensors file, in fp16 or bf16 if the rollout recipe's parameters are that, else in fp32, that any
        reader of the format can load.

        Raises:
            NonFiniteError: a weight that the format cannot hold; its tensor is named.
        """
        size = c_size_t()
        check(library.lockstep_run_policy(None, byref(size), self._pointer))
        out = np.empty(size.value, np.uint8)
        check(library.lockstep_run_policy(out.ctypes.data, byref(size), self._pointer))
        return out

    def save(self, folder: str | os.PathLike[str], *, keep: int = 2) -> None:
        """Saves the run in a folder, as a folder step-N that transformers loads (PEFT, if an adapter is trained).

        It is there as a whole or not at all; checkpoints before the last `keep` are removed after it.

        Raises:
            FileError: the disk is full, or the like; the checkpoints before are still there.
        """
        check(library.lockstep_run_save(self._pointer, os.fsencode(folder), integer(keep, "keep", 1, 2**31 - 1)))

    def resume(self, folder: str | os.PathLike[str], *, allow_older: bool = False) -> int:
        """Goes on where the newest checkpoint in a folder was taken; before the first step.

        Args:
            folder: what `save` was given.
            allow_older: if the newest is damaged, take the newest that is whole.

        Returns:
            The checkpoint's step; 0 if there is none, and the run begins.

        Raises:
            BadDataError: the checkpoint is damaged.
            InvalidArgumentError: it is of a run with other options, or steps were taken.
        """
        return _resume(library.lockstep_run_resume, self._pointer, folder, allow_older)

    def evaluate(
        self, problems: Sequence[int], *, samples: int = 1, seed: int = 0, temperature: float = 1.0,
    ) -> NDArray[np.float64]:
        """[problems] The mean reward of `samples` responses to each problem, by the policy as it is.

        Args:
            problems: their numbers.
            samples: responses to each.
            seed: of the draws, which are not those of a run with the same seed.
            temperature: 0 takes the most probable tokens.
        """
        numbers = np.array([integer(each, "problems", 0, 2**44) for each in problems], np.int64)
        rewards = np.empty(len(numbers))
        self.environment._check(library.lockstep_run_evaluate(
            rewards.ctypes.data, self._pointer, numbers.ctypes.data, len(numbers),
            integer(samples, "samples", 1, 2**16), integer(seed, "seed", 0, 2**64 - 1),
            real(temperature, "temperature")))
        return rewards


@dataclass(frozen=True)
class SupervisedMetrics:
    """What happened in a step of supervised training."""

    #: From 1.
    step: int
    #: Of the responses.
    tokens: int
    #: Mean -ln p of them, nats.
    loss: float
    #: Before clipping.
    gradient_norm: float
    learning_rate: float
    #: After the step.
    loss_scale: float
    #: Whether the update was skipped, as a gradient was not finite.
    skipped: bool


class SupervisedRun:
    """Supervised training on a task's demonstrations: an iterator of `SupervisedMetrics`.

    The mean cross-entropy of the responses' tokens, AdamW (0.9, 0.95), a cosine to 0 after a warm-up of 50 steps, norm
    clipped to 1. A pure function of its arguments. Not for concurrent use.

    Args:
        task: whose demonstrations.
        steps: where the cosine ends.
        batch: demonstrations of a step.
        recipe: formats, as `Model`'s.
        model: a Hugging Face folder; None: a new model of the chain task.
        adapter: a LoRA adapter that is trained in place of the model.
        lora_rank, lora_alpha: of a new adapter; rank 0: none.
        model_seed, deviation: of a new model's matrices, or a new adapter.
        seed: of the demonstrations.
        error_rate: how often a step of one is wrong.
        learning_rate: the peak.
        threads: 0 is one for each processor this process may use.

    Raises:
        InvalidArgumentError: an option; it is named.

    Example:
        >>> run = SupervisedRun(Task("chain", size=4), steps=3, batch=8)
        >>> [next(run).tokens for _ in range(3)]
        [32, 32, 32]
    """

    def __init__(
        self, task: Task, *, steps: int = 1200, batch: int = 64, recipe: str | Mapping[str, str] = "fp32",
        model: str | os.PathLike[str] | None = None, adapter: str | os.PathLike[str] | None = None,
        lora_rank: int = 0, lora_alpha: float = 0.0, model_seed: int = 0, deviation: float = 0.1, seed: int = 0,
        error_rate: float = 0.0, learning_rate: float = 3e-3, threads: int = 0,
    ) -> None:
        self._task = task
        raw = c.SupervisedOptions(
            sizeof(c.SupervisedOptions), int32(batch, "batch"), task._pointer,
            None if model is None else os.fsencode(model), integer(model_seed, "model_seed", 0, 2**64 - 1),
            real(deviation, "deviation"), ctypes.pointer(Recipe(recipe)._raw), integer(steps, "steps", 1, 2**40),
            integer(seed, "seed", 0, 2**64 - 1), real(error_rate, "error_rate"),
            real(learning_rate, "learning_rate"), int32(threads, "threads"), int32(lora_rank, "lora_rank"),
            real(lora_alpha, "lora_alpha"), None if adapter is None else os.fsencode(adapter))
        pointer = c_void_p()
        check(library.lockstep_supervised_create(byref(pointer), raw))
        self._pointer = pointer
        weakref.finalize(self, library.lockstep_supervised_destroy, pointer)

    def __iter__(self) -> Iterator[SupervisedMetrics]:
        return self

    def __next__(self) -> SupervisedMetrics:
        return self.step()

    def step(self) -> SupervisedMetrics:
        """Takes a step; a NonFiniteError names layer and operation, or tensor, where values left their formats."""
        raw = c.SupervisedMetrics(sizeof(c.SupervisedMetrics))
        check(library.lockstep_supervised_step(raw, self._pointer))
        values = {name: getattr(raw, name) for name, *_ in raw._fields_ if name != "struct_size"}
        return SupervisedMetrics(**values | {"skipped": bool(raw.skipped)})

    def save(self, folder: str | os.PathLike[str], *, keep: int = 2) -> None:
        """As `Run.save`."""
        check(library.lockstep_supervised_save(
            self._pointer, os.fsencode(folder), integer(keep, "keep", 1, 2**31 - 1)))

    def resume(self, folder: str | os.PathLike[str], *, allow_older: bool = False) -> int:
        """As `Run.resume`."""
        return _resume(library.lockstep_supervised_resume, self._pointer, folder, allow_older)

    def save_model(self, folder: str | os.PathLike[str]) -> None:
        """Writes config.json and model.safetensors, or an adapter as PEFT has it, into a folder; none may be there yet."""
        check(library.lockstep_supervised_save_model(self._pointer, os.fsencode(folder)))


def _resume(function: Any, pointer: c_void_p, folder: str | os.PathLike[str], allow_older: bool) -> int:
    step = c_int64()
    check(function(byref(step), pointer, os.fsencode(folder), bool(allow_older)))
    return step.value


def perfectible(
    model: Model, environment: Task | Environment, *, count: int = 64, candidates: int = 4096, samples: int = 32,
    low: float = 0.2, high: float = 0.8, seed: int = 0, threads: int = 0,
) -> list[int]:
    """The first problems to which a model's answers have a mean reward in [low, high]: the paper's perfectible set.

    Args:
        model: what is sampled from.
        environment: a `Task`, or an `Environment`.
        count: problems that are wanted.
        candidates: problems that are tried, from 0 on, or the environment's own.
        samples: responses to each.
        low, high: bounds of the mean reward.
        seed: of the draws.
        threads: 0 is one for each processor this process may use.

    Returns:
        Their numbers.

    Raises:
        InvalidArgumentError: there are too few; the message says how many.

    Example:
        >>> perfectible(Model(checkpoint), Task("chain"), count=3)
        [0, 1, 2]
    """
    environment = environment if isinstance(environment, Environment) else Environment(environment)
    found = np.empty(integer(count, "count", 1, 2**24), np.int64)
    environment._check(library.lockstep_find_perfectible(
        found.ctypes.data, len(found), model._handle, environment._raw,
        integer(candidates, "candidates", 1, 2**40), integer(samples, "samples", 1, 2**16), real(low, "low"),
        real(high, "high"), integer(seed, "seed", 0, 2**64 - 1), int32(threads, "threads")))
    return found.tolist()


def _set_algorithm(raw: c.RunOptions, algorithm: str | Preset | Mapping[str, Any]) -> None:
    if isinstance(algorithm, Preset):
        algorithm = algorithm.name
    if isinstance(algorithm, str):
        raw.algorithm = algorithm.encode()
        return
    parts = dict(algorithm)
    correction = dict(parts.pop("correction", {"weights": "one"}))
    correction["rules"] = _rejections(correction.pop("reject", ()))
    raw.correction = ctypes.pointer(_correction_options(**correction))
    raw.advantages = ctypes.pointer(_advantage_options(**parts.pop("advantages", {"estimator": "dr_grpo"})))
    raw.objective = ctypes.pointer(_objective_options(**parts.pop("objective", {})))
    raw.policies = choice({"three": 0, "two": 1}, parts.pop("policies", "three"), "policies")
    if parts:
        raise InvalidArgumentError(
            f"algorithm: '{min(parts)}' is no part; give correction, advantages, objective, policies")
