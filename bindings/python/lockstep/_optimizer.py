"""FP16 training: loss scalers, gradient norms, AdamW and learning-rate schedules."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from ctypes import byref, c_double, c_void_p, sizeof
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _library as c
from ._errors import InvalidArgumentError
from ._library import check, choice, int32, integer, library, real
from ._saved import loaded, saved
from ._tensors import Array, view

#: From here on a value rounds to infinity in fp16.
FP16_OVERFLOW = 65520.0

_KINDS = {value: name for name, value in c.SCALERS.items()}


@dataclass(frozen=True)
class ScalerReport:
    """What a loss scaler says after a step."""

    #: Whether the optimiser must leave the weights as they are: the gradients were not finite.
    skip: bool
    #: The scale of the next step's loss.
    scale: float
    #: An alarm: the last overflow left the scale at its floor (the minimum, but at least 1; of a constant scale,
    #: itself), so the next one cannot be backed off from. Until it grows, or, if constant, until a clean step.
    at_floor: bool
    #: Updates so far; of them, those to be skipped.
    steps: int
    skipped: int
    growths: int
    backoffs: int
    #: Overflows that left the scale at its floor.
    floor_overflows: int
    skipped_in_a_row: int
    #: The most steps skipped in a row.
    longest_skip: int
    #: The last skipped step, counted from 0; None if there is none.
    last_skipped: int | None


class Replay(NamedTuple):
    """What a scaler would have done in a recorded run."""

    #: After the last step.
    report: ScalerReport
    #: [steps] fp64: the scale each step ran with.
    scales: NDArray[np.float64]
    #: [steps] bool: whether each step was skipped.
    skipped: NDArray[np.bool_]


class GradientNorm(NamedTuple):
    """The gradients of a step."""

    #: Their 2-norm, divided by `scale`; infinite or NaN if one is.
    norm: float
    #: The largest magnitude as it stands, not divided.
    largest: float
    #: What to multiply gradients by: min(1, max_norm / (norm + 1e-6)) / scale.
    factor: float
    #: How many are infinite or NaN: if any, skip the step.
    non_finite: int


def loss_scaler_names() -> list[str]:
    """The names `LossScaler` knows."""
    return [*c.SCALERS, "paper"]


class LossScaler:
    """A dynamic loss scale as PyTorch, DeepSpeed or Megatron-LM move it, state for state.

    Names: "torch" (`torch.amp.GradScaler`), "deepspeed" and "megatron" (with hysteresis), "constant", and "paper":
    torch's with the growth interval of 400 of "Defeating the training-inference mismatch via FP16". Defaults are the
    peers'. One difference: no scale grows beyond the largest float32 (torch's own rule).

    Not for concurrent use.

    Args:
        name: one of `loss_scaler_names()`.
        initial_scale: positive.
        growth_factor: more than 1. DeepSpeed's back-off divides by it.
        backoff_factor: between 0 and 1.
        growth_interval: clean steps before a growth.
        minimum_scale: the floor of back-off; 1 for DeepSpeed and Megatron, 0 for torch.
        maximum_scale: a growth beyond this is not made.
        hysteresis: overflows until a back-off; DeepSpeed and Megatron.
        consecutive_hysteresis: DeepSpeed: refill the hysteresis at every clean step.

    Raises:
        InvalidArgumentError: an unknown name, or an option out of range or not of that scaler.

    Example:
        >>> scaler = LossScaler("torch", growth_interval=2)
        >>> [scaler.update(overflow).scale for overflow in (False, False, True)]
        [65536.0, 131072.0, 65536.0]
        >>> scaler.report.skipped
        1
    """

    def __init__(self, name: str = "torch", **options: float) -> None:
        pointer = c_void_p()
        check(library.lockstep_scaler_create(byref(pointer), _scaler_options(name, options)))
        self._own(pointer)

    def _own(self, pointer: c_void_p) -> None:
        self._pointer = pointer
        weakref.finalize(self, library.lockstep_scaler_destroy, pointer)

    def update(self, found_non_finite: bool) -> ScalerReport:
        """Takes a step: whether its gradients, of all ranks together, hold an infinity or a NaN."""
        raw = c.ScalerReport(sizeof(c.ScalerReport))
        check(library.lockstep_scaler_update(raw, self._pointer, 1 if found_non_finite else 0))
        return _report(raw)

    @property
    def report(self) -> ScalerReport:
        """As of the last step; before the first, the initial scale and zeros."""
        raw = c.ScalerReport(sizeof(c.ScalerReport))
        check(library.lockstep_scaler_read(raw, self._pointer))
        return _report(raw)

    @property
    def scale(self) -> float:
        """What to multiply the next loss by."""
        return self.report.scale

    @property
    def options(self) -> dict[str, Any]:
        """All options, by name, with "kind"."""
        raw = c.ScalerOptions(sizeof(c.ScalerOptions))
        check(library.lockstep_scaler_get_options(raw, self._pointer))
        found = {name: getattr(raw, name) for name, _ in c.ScalerOptions._fields_[1:]}
        return found | {"kind": _KINDS[raw.kind], "consecutive_hysteresis": bool(raw.consecutive_hysteresis)}

    def to_bytes(self) -> bytes:
        """Options and state with a checksum, for a checkpoint: `from_bytes` goes on with the same scales."""
        return saved(library.lockstep_scaler_save, self._pointer)

    @classmethod
    def from_bytes(cls, data: bytes) -> LossScaler:
        """The scaler that `to_bytes` saved.

        Raises:
            BadDataError: the bytes are damaged, cut off, or no scaler. UnsupportedError: of a newer version.
        """
        scaler = cls.__new__(cls)
        scaler._own(loaded(library.lockstep_scaler_load, data))
        return scaler

    def __reduce__(self) -> tuple:
        return LossScaler.from_bytes, (self.to_bytes(),)


def replay_loss_scaler(maxima: Array, name: str = "torch", *, limit: float = FP16_OVERFLOW,
                       **options: float) -> Replay:
    """What a loss scaler would have done in a run whose gradients are known.

    A step overflows where maximum x scale, in float64, is at least `limit`, or is not finite. The gradients are taken
    as recorded: a skip would in truth have changed those that follow.

    Args:
        maxima: [steps] fp32 or fp64: the largest |gradient| of each step before scaling.
        name, options: as of `LossScaler`.
        limit: what overflows: fp16's by default.

    Returns:
        `Replay`.

    Raises:
        InvalidArgumentError: a negative maximum, a wrong shape or option.

    Example:
        >>> replay_loss_scaler(np.array([0.5, 2.0, 0.5]), "torch").skipped.tolist()
        [False, True, False]
    """
    values = view(maxima, "maxima")
    steps = values.shape[0] if len(values.shape) == 1 else 0
    scales, skipped = np.empty(steps), np.empty(steps, np.bool_)
    raw = c.ScalerReport(sizeof(c.ScalerReport))
    check(library.lockstep_scaler_replay(
        raw, view(scales, "scales").tensor(), view(skipped, "skipped").tensor(), values.tensor(),
        real(limit, "limit"), _scaler_options(name, options)))
    return Replay(_report(raw), scales, skipped)


def _scaler_options(name: str, options: dict[str, float]) -> c.ScalerOptions:
    raw = c.ScalerOptions(sizeof(c.ScalerOptions))
    if not isinstance(name, str):
        raise InvalidArgumentError(f"name is {name!r}; give one of {', '.join(loss_scaler_names())}")
    check(library.lockstep_scaler_options_named(raw, name.encode()))
    kinds = dict(c.ScalerOptions._fields_[2:])
    for key, value in options.items():
        if key not in kinds:
            raise InvalidArgumentError(f"{key} is no option of a loss scaler; known are {', '.join(kinds)}")
        if kinds[key] is c_double:
            setattr(raw, key, real(value, key))
        elif key == "growth_interval":
            raw.growth_interval = integer(value, key, -(2**63), 2**63 - 1)
        else:
            setattr(raw, key, int32(value, key))
    return raw


def _report(raw: c.ScalerReport) -> ScalerReport:
    return ScalerReport(
        skip=bool(raw.skip), scale=raw.scale, at_floor=bool(raw.at_floor), steps=raw.steps, skipped=raw.skipped,
        growths=raw.growths, backoffs=raw.backoffs, floor_overflows=raw.floor_overflows,
        skipped_in_a_row=raw.skipped_in_a_row, longest_skip=raw.longest_skip,
        last_skipped=None if raw.last_skipped < 0 else raw.last_skipped)


def gradient_norm(gradients: Array | Sequence[Array], *, max_norm: float = 0.0, scale: float = 1.0,
                  threads: int = 0, instruction_set: str = "best") -> GradientNorm:
    """The norm of a model's gradients together, and what clips it: `torch.nn.utils.clip_grad_norm_`, but in a fixed
    order of additions, so that its bits do not depend on threads.

    Args:
        gradients: fp32, contiguous, any shape; one array or a list.
        max_norm: the bound of the norm after the division; 0: none.
        scale: what the gradients are to be divided by: loss scale times accumulated micro-batches.
        threads, instruction_set: the result does not depend on them.

    Returns:
        `GradientNorm`.

    Raises:
        InvalidArgumentError: another dtype, strides, a scale that is not positive, a negative bound.

    Example:
        >>> gradient_norm([np.array([3, 0], np.float32), np.array([4], np.float32)])
        GradientNorm(norm=5.0, largest=4.0, factor=1.0, non_finite=0)
    """
    arrays = list(gradients) if isinstance(gradients, (list, tuple)) else [gradients]
    tensors = [view(each, "gradients").tensor() for each in arrays]
    together = (c.Tensor * len(tensors)).from_buffer_copy(b"".join(tensors))
    raw = c.GradientNorm()
    check(library.lockstep_gradients_measure(
        raw, together, len(tensors),
        _gradient_options(scale, max_norm, threads, instruction_set)))
    return GradientNorm(raw.norm, raw.largest, raw.factor, raw.non_finite)


def _gradient_options(scale: float, max_norm: float, threads: int, instruction_set: str) -> c.GradientOptions:
    return c.GradientOptions(
        sizeof(c.GradientOptions), int32(threads, "threads"),
        choice(c.INSTRUCTION_SETS, instruction_set, "instruction_set"), 0, real(max_norm, "max_norm"),
        real(scale, "scale"))


def _adamw_options(step: int = 1, learning_rate: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
                   epsilon: float = 1e-8, weight_decay: float = 0.01, gradient_scale: float = 1.0,
                   largest: float = 0.0, rounding: str = "nearest", seed: int = 0, threads: int = 0,
                   instruction_set: str = "best") -> c.AdamwOptions:
    return c.AdamwOptions(
        sizeof(c.AdamwOptions), int32(threads, "threads"),
        choice(c.INSTRUCTION_SETS, instruction_set, "instruction_set"),
        choice(c.MASTER_ROUNDINGS, rounding, "rounding"), integer(step, "step", -(2**63), 2**63 - 1),
        real(learning_rate, "learning_rate"), real(betas[0], "beta1"), real(betas[1], "beta2"),
        real(epsilon, "epsilon"), real(weight_decay, "weight_decay"), real(gradient_scale, "gradient_scale"),
        real(largest, "largest"), integer(seed, "seed", 0, 2**64 - 1))


def adamw_step(masters: Array, first_moments: Array, second_moments: Array, gradients: Array, *,
               compensation: Array | None = None, **options: Any) -> None:
    """One step of AdamW, in place; arrays of one shape, contiguous.

    Args:
        masters: fp32; fp16 and bf16 for study.
        first_moments, second_moments: fp32, zeros before the first step.
        gradients: fp32; only read.
        compensation: of rounding "kahan": the dtype of masters, zeros before the first step.
        options: step (from 1), learning_rate, betas, epsilon, weight_decay, gradient_scale (what gradients are
            multiplied by: `GradientNorm.factor`), largest (`GradientNorm.largest`, saves a pass), rounding
            ("nearest", "stochastic", "kahan") and seed of 16-bit masters, threads, instruction_set.

    Returns:
        None.

    Raises:
        NonFiniteError: a gradient is infinite, NaN or, scaled, beyond 1e18. Nothing is written.
        InvalidArgumentError: shapes, dtypes or options that are wrong.

    Example:
        >>> masters, first, second = np.ones(2, np.float32), np.zeros(2, np.float32), np.zeros(2, np.float32)
        >>> adamw_step(masters, first, second, np.array([1, -1], np.float32), learning_rate=0.5, weight_decay=0)
        >>> masters
        array([0.5, 1.5], dtype=float32)
    """
    check(library.lockstep_adamw_step(
        *(view(each, name, written=True).tensor() for each, name in (
            (masters, "masters"), (first_moments, "first_moments"), (second_moments, "second_moments"))),
        None if compensation is None else view(compensation, "compensation", written=True).tensor(),
        view(gradients, "gradients").tensor(), _adamw_options(**options)))


class AdamWStep(NamedTuple):
    """What a step of `AdamW` did."""

    #: Nothing was changed: a gradient was not finite.
    skipped: bool
    #: Steps taken, this one included if it was not skipped.
    step: int
    gradients: GradientNorm


class AdamW:
    """AdamW over arrays of the caller: fp32 masters written in place, moments of its own.

    A step with a gradient that is not finite changes nothing, and says so: tell the loss scaler.

    Args:
        parameters: fp32 arrays, contiguous and writable.
        betas, epsilon, weight_decay: as of `torch.optim.AdamW`.
        decays: for each parameter whether weight decay applies; None: to arrays of two dimensions and more.
        threads: 0: one for each processor. The result does not depend on it.

    Example:
        >>> weights = [np.ones((2, 2), np.float32)]
        >>> optimiser, scaler = AdamW(weights), LossScaler("constant", initial_scale=4.0)
        >>> step = optimiser.step([np.full((2, 2), 8, np.float32)], learning_rate=0.1, scale=scaler.scale, max_norm=1)
        >>> step.gradients.norm, scaler.update(step.skipped).skip, bool(abs(weights[0][0, 0] - 0.899) < 1e-6)
        (4.0, False, True)
    """

    def __init__(self, parameters: Sequence[Array], *, betas: tuple[float, float] = (0.9, 0.999),
                 epsilon: float = 1e-8, weight_decay: float = 0.01, decays: Sequence[bool] | None = None,
                 threads: int = 0) -> None:
        self.parameters = list(parameters)
        if decays is None:
            decays = [len(each.shape) > 1 for each in self.parameters]
        if len(decays) != len(self.parameters):
            raise InvalidArgumentError(f"decays has {len(decays)} values; give {len(self.parameters)}")
        self.decays = list(decays)
        self.options = {"betas": betas, "epsilon": epsilon, "threads": threads}
        self.weight_decay = weight_decay
        #: Steps taken, and the moments, in the order of the parameters: save and restore them together.
        self.steps = 0
        self.first_moments = [np.zeros(tuple(each.shape), np.float32) for each in self.parameters]
        self.second_moments = [np.zeros(tuple(each.shape), np.float32) for each in self.parameters]

    def step(self, gradients: Sequence[Array], *, learning_rate: float, scale: float = 1.0,
             max_norm: float = 0.0) -> AdamWStep:
        """Takes a step, or skips it.

        Args:
            gradients: fp32, of the scaled loss, in the order of the parameters.
            learning_rate: of this step: `learning_rate(...)`.
            scale: what the gradients are to be divided by: loss scale times accumulated micro-batches.
            max_norm: the global norm is clipped to this; 0: not.
        """
        gradients = list(gradients)
        if len(gradients) != len(self.parameters):
            raise InvalidArgumentError(f"gradients has {len(gradients)} arrays; give {len(self.parameters)}")
        for index, (mine, given) in enumerate(zip(self.parameters, gradients)):
            if tuple(mine.shape) != tuple(given.shape):
                raise InvalidArgumentError(
                    f"gradients[{index}]: shape is {tuple(given.shape)}, but the parameter's is {tuple(mine.shape)}")
        norm = gradient_norm(gradients, max_norm=max_norm, scale=scale, threads=self.options["threads"])
        if norm.non_finite:
            return AdamWStep(True, self.steps, norm)
        for index, given in enumerate(gradients):
            adamw_step(
                self.parameters[index], self.first_moments[index], self.second_moments[index], given,
                step=self.steps + 1, learning_rate=learning_rate, gradient_scale=norm.factor, largest=norm.largest,
                weight_decay=self.weight_decay if self.decays[index] else 0.0, **self.options)
        self.steps += 1
        return AdamWStep(False, self.steps, norm)


def learning_rate(step: int, peak: float, *, shape: str = "constant", warmup_steps: int = 0,
                  total_steps: int = 0, final_share: float = 0.0) -> float:
    """The learning rate of update number `step`, the first being 1.

    The values are those of transformers' schedules of the same names, from their second update on, up to the end.

    Args:
        step: from 1.
        peak: the highest rate.
        shape: "constant", "linear" or "cosine" (half of one), after the warm-up.
        warmup_steps: in which the rate rises from 0 to the peak; 0: at once.
        total_steps: where linear and cosine end; from there on the rate stays.
        final_share: the last rate as a share of the peak.

    Returns:
        The rate.

    Raises:
        InvalidArgumentError: a step below 1, or an option out of range.

    Example:
        >>> [learning_rate(step, 0.5, shape="linear", warmup_steps=2, total_steps=4) for step in (1, 2, 3, 4)]
        [0.25, 0.5, 0.25, 0.0]
    """
    rate = c_double()
    check(library.lockstep_learning_rate(
        byref(rate), integer(step, "step", -(2**63), 2**63 - 1), c.ScheduleOptions(
            sizeof(c.ScheduleOptions), choice(c.SCHEDULES, shape, "shape"), real(peak, "peak"),
            integer(warmup_steps, "warmup_steps", -(2**63), 2**63 - 1),
            integer(total_steps, "total_steps", -(2**63), 2**63 - 1), real(final_share, "final_share"))))
    return rate.value
