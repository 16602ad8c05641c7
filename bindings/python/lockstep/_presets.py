"""Presets: the field's named algorithms as options of `correct`, `advantages` and `objective_loss`."""

from __future__ import annotations

from ctypes import Structure, sizeof
from dataclasses import dataclass
from typing import Any, Mapping

from . import _library as c
from ._advantages import advantages as _advantages
from ._batch import Log
from ._corrections import Correction, Rejection, correct
from ._errors import InvalidArgumentError
from ._library import check, library
from ._objectives import ObjectiveLoss, objective_loss
from ._tensors import Array


@dataclass(frozen=True)
class Preset:
    """A named algorithm. `print` it for what it means; its methods call with its options, which keywords override."""

    #: Such as "paper/grpo-token-tis".
    name: str
    #: What it is, in a sentence.
    summary: str
    #: Where it is from.
    source: str
    #: What of it is inferred and not confirmed; "" if nothing is.
    doubts: str
    #: "three": the correction compares trainer and rollout, the objective's ratio is current over trainer
    #: (decoupled). "two": the current policy stands as trainer in the correction, the rollout in the objective
    #: (bypass).
    policies: str
    #: Whether the rollout's log-probs are also the reference's.
    reference_is_rollout: bool
    #: A line for each part: weights, mask, advantage, term, aggregation.
    text: str
    #: Keywords of `lockstep.correct`, `lockstep.advantages`, `lockstep.objective_loss` and `lockstep.Objective`.
    correction_options: Mapping[str, Any]
    advantage_options: Mapping[str, Any]
    objective_options: Mapping[str, Any]

    def __str__(self) -> str:
        return self.text

    def correct(
        self, trainer_log_probs: Log | None, rollout_log_probs: Log, mask: Log | None = None,
        offsets: Array | None = None, *, current_log_probs: Log | None = None, **options: Any,
    ) -> Correction:
        """`lockstep.correct` with the preset's options.

        Args:
            trainer_log_probs: not read where there are two policies: None then.
            rollout_log_probs, mask, offsets: as there.
            current_log_probs: needed where there are two policies, or a rejection compares it.
            options: more keywords; they replace the preset's.

        Returns:
            `Correction`.

        Raises:
            InvalidArgumentError: as `lockstep.correct`.
        """
        if self.policies == "two":
            if current_log_probs is None:
                raise InvalidArgumentError(
                    f"current_log_probs: is missing; {self.name} compares the current policy with the rollout")
            trainer_log_probs = current_log_probs
        return correct(trainer_log_probs, rollout_log_probs, mask, offsets, **(
            {"current_log_probs": current_log_probs} | self.correction_options | options))

    def advantages(self, rewards: Log, mask: Log | None = None, **options: Any) -> Any:
        """`lockstep.advantages` with the preset's options; keywords replace them."""
        return _advantages(rewards, mask, **(dict(self.advantage_options) | options))

    def loss(
        self, current_log_probs: Log, trainer_log_probs: Log | None, rollout_log_probs: Log, advantages: Log,
        mask: Log | None = None, offsets: Array | None = None, *, correction: Correction | None = None,
        **options: Any,
    ) -> ObjectiveLoss:
        """The loss of a batch as the preset has it: `lockstep.correct`, then `lockstep.objective_loss`.

        Args:
            current_log_probs: of the policy that is updated.
            trainer_log_probs: not read where there are two policies: None then.
            rollout_log_probs: of the policy that drew the tokens.
            advantages, mask, offsets: as in `lockstep.objective_loss`.
            correction: of `correct`, so that it is not made again.
            options: more keywords of `lockstep.objective_loss`; they replace the preset's. `length` where the
                aggregation needs it.

        Returns:
            `ObjectiveLoss`.

        Raises:
            InvalidArgumentError: as `lockstep.correct` and `lockstep.objective_loss`.

        Example:
            >>> current, trainer, rollout = np.log([[[0.5, 0.4]], [[0.5, 0.2]], [[0.25, 0.1]]])
            >>> preset = lockstep.preset("paper/grpo-token-tis")
            >>> preset.loss(current, trainer, rollout, [1.0], length=2).d_log_probs
            array([[-1.,  0.]])
        """
        if correction is None:
            correction = self.correct(
                trainer_log_probs, rollout_log_probs, mask, offsets, current_log_probs=current_log_probs,
                advantages=advantages)
        if self.policies == "two":
            trainer_log_probs = rollout_log_probs
        given = {"weights": correction.weights, "kept": correction.kept} | dict(self.objective_options)
        if self.reference_is_rollout:
            given["reference_log_probs"] = rollout_log_probs
        return objective_loss(current_log_probs, trainer_log_probs, advantages, mask, offsets, **(given | options))

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain dicts, lists and values."""
        correction = dict(self.correction_options)
        correction["reject"] = [vars(each) for each in correction["reject"]]
        return vars(self) | {
            "correction_options": correction, "advantage_options": dict(self.advantage_options),
            "objective_options": dict(self.objective_options)}


def presets() -> tuple[str, ...]:
    """The names of all presets, by whose they are: "paper/...", "precision-rl/...", "verl/...", "trl/...", ...

    Example:
        >>> lockstep.presets()[:3]
        ('paper/pg-seq-is', 'paper/pg-seq-tis', 'paper/pg-seq-mis')
    """
    names: list[str] = []
    while (name := library.lockstep_preset_name(len(names))) is not None:
        names.append(name.decode())
    return tuple(names)


def preset(name: str) -> Preset:
    """A named algorithm of the field.

    Args:
        name: one of `presets()`.

    Returns:
        `Preset`.

    Raises:
        InvalidArgumentError: the name is unknown; the nearest are listed.

    Example:
        >>> preset = lockstep.preset("paper/grpo-token-tis")
        >>> preset.correction_options["high"], preset.objective_options["high"]
        (3.0, 1.28)
        >>> print(preset.text.splitlines()[4])
          weights        w = min(r, 3); r = exp(d), d = ln trainer - ln rollout, log ratio held in [-20, 20]
    """
    if not isinstance(name, str) or "\0" in name:
        raise InvalidArgumentError(f"name is {name!r}; give one of lockstep.presets()")
    about = c.Preset(sizeof(c.Preset))
    correction, advantages, objective = (
        kind(sizeof(kind)) for kind in (c.CorrectionOptions, c.AdvantageOptions, c.ObjectiveOptions))
    check(library.lockstep_preset_read(about, correction, advantages, objective, name.encode(errors="replace")))
    texts = (getattr(about, each).decode() for each in ("name", "summary", "source", "doubts"))
    policies = {c.PRESET_THREE_POLICIES: "three", c.PRESET_TWO_POLICIES: "two"}[about.policies]
    return Preset(
        *texts, policies, bool(about.reference_is_rollout), about.text.decode(), _correction(correction),
        _advantage(advantages), _objective(objective))


def _words(raw: Structure, words: Mapping[str, dict[str, int]]) -> dict[str, Any]:
    """The members of an options struct as keywords, constants as their words; without how a call runs."""
    return {
        name: next(word for word, value in words[name].items() if value == getattr(raw, name))
        if name in words else getattr(raw, name)
        for name, *_ in raw._fields_
        if name not in ("struct_size", "reserved", "non_finite", "threads", "instruction_set")}


def _correction(raw: c.CorrectionOptions) -> dict[str, Any]:
    out = _words(raw, {"weights": c.WEIGHTS, "level": c.LEVELS})
    rules = {"statistic": c.STATISTICS, "level": c.LEVELS, "policies": c.POLICIES, "side": c.SIDES}
    pointer, count = out.pop("rejections"), out.pop("rejection_count")
    return out | {
        "normalize": bool(raw.normalize),
        "reject": tuple(Rejection(**_words(pointer[index], rules)) for index in range(count))}


def _advantage(raw: c.AdvantageOptions) -> dict[str, Any]:
    scales = {None: c.SCALE_OF_ESTIMATOR} | c.ADVANTAGE_SCALES
    out = _words(raw, {
        "estimator": c.ADVANTAGES, "scale": scales, "singles": c.SINGLES, "truncated": c.TRUNCATED,
        "whiten": {None: c.WHITEN_AS_ESTIMATOR, False: c.WHITEN_NO, True: c.WHITEN_YES}})
    out["on_truncated"], out["lam"] = out.pop("truncated"), out.pop("lambda")
    return out | {
        "population_std": bool(raw.population_std), "tail_baseline": bool(raw.tail_baseline),
        "epsilon": None if raw.epsilon == -1 else raw.epsilon}


def _objective(raw: c.ObjectiveOptions) -> dict[str, Any]:
    out = _words(raw, {
        "term": c.TERMS, "ratio_level": c.RATIO_LEVELS, "aggregation": c.AGGREGATIONS,
        "denominator": c.DENOMINATORS, "kl": c.KL_ESTIMATORS, "kl_gradient": c.KL_GRADIENTS})
    for bound in ("dual", "ratio_max", "kl_input_max", "kl_output_max"):
        out[bound] = out[bound] or None
    return out
