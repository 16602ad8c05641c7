"""Objectives: the loss of a batch, its exact gradient with respect to the current log-probs, and what happened.

A *term* says what one token contributes, *weights* and *kept* come from a correction, an *aggregation* makes a
loss of the terms.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_double, c_size_t, c_void_p, sizeof
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from . import _library as c
from ._batch import Batch, Log
from ._errors import InvalidArgumentError
from ._library import check, choice, int32, integer, library, real
from ._tensors import Array, View, view


@dataclass(frozen=True)
class ObjectiveReport:
    """The loss and what happened.

    Means and shares are over the tokens that count, rejected ones included unless the denominator is "kept", and
    NaN where there is nothing to take them of.
    """

    #: No token has a policy term: all were rejected, or none counts. `policy_loss` is then 0.
    empty: bool
    #: policy_loss + kl_loss + entropy_loss
    loss: float
    policy_loss: float
    kl_loss: float
    entropy_loss: float
    #: Tokens that count; that the masks leave out; that were dropped as non-finite ("exclude"); that count but
    #: have no policy term.
    tokens: int
    masked_tokens: int
    excluded_tokens: int
    rejected_tokens: int
    #: Sequences with a token that counts; without; that count but have no policy term.
    sequences: int
    empty_sequences: int
    rejected_sequences: int
    #: Tokens whose log ratio, or their sequence's, was clamped; whose divergence was.
    clamped_tokens: int
    kl_clamped_tokens: int
    #: Of the ratio.
    ratio_mean: float
    ratio_min: float
    ratio_max: float
    #: Shares of tokens held at the lower bound, the upper one, the dual one.
    clip_low: float
    clip_high: float
    clip_dual: float
    #: KL(trainer || current): mean(-delta); mean(exp(delta) - 1 - delta).
    approx_kl_k1: float
    approx_kl_k3: float
    #: The divergence from the reference, without coefficient and ratio.
    kl: float
    entropy: float

    def to_dict(self) -> dict[str, Any]:
        """Everything but the arrays."""
        return {each.name: getattr(self, each.name) for each in fields(ObjectiveReport)}


@dataclass(frozen=True)
class ObjectiveLoss(ObjectiveReport):
    """The report, and the gradients, laid out as the log-probs were; 0 where no token counts."""

    #: d loss / d current log-prob: fp64 where the current log-probs are, else fp32.
    d_log_probs: Log
    #: d loss / d entropy; None without entropies.
    d_entropies: Log | None


class ObjectiveCounts(NamedTuple):
    """What the denominators count."""

    tokens: int
    sequences: int
    prompts: int = 0


def objective_loss(
    current_log_probs: Log,
    trainer_log_probs: Log | None,
    advantages: Log,
    mask: Log | None = None,
    offsets: Array | None = None,
    *,
    weights: Log | None = None,
    kept: Log | None = None,
    reference_log_probs: Log | None = None,
    entropies: Log | None = None,
    selected: Log | None = None,
    groups: Array | None = None,
    out: Array | None = None,
    term: str = "clip",
    **options: Any,
) -> ObjectiveLoss:
    """The loss of a whole batch, its gradient, and what happened.

    Masked tokens are never read; the bits depend neither on padding nor on the order of the sequences.

    Args:
        current_log_probs: of the policy that is updated, laid out as in `mismatch`.
        trainer_log_probs: what the ratio is against; None for "reinforce".
        advantages: fp32 or fp64, one for each token, or [sequences].
        mask: which tokens count.
        offsets: [sequences + 1], for packed log-probs.
        weights: of a correction (`correct`).
        kept: which tokens a correction kept.
        reference_log_probs: for `kl`.
        entropies: of the current policy, for `entropy_coefficient`.
        selected: tokens that `covariance_select` picked, for "clip" and "kl_cov".
        groups: [sequences] which prompt a sequence answers, for "prompt_mean".
        out: where d_log_probs goes: fp32 or fp64, shaped as the log-probs ([tokens] for a list of sequences). A loop
            that gives the same array every time allocates nothing.
        term: the objective of a token; see `Objective`.
        options: the other options of `Objective`.

    Returns:
        `ObjectiveLoss`. If every token was rejected `empty` is true; that is no error.

    Raises:
        InvalidArgumentError: shapes, dtypes, words or bounds that do not fit; a part that is missing.
        NonFiniteError: a NaN or infinity at a token that counts (strict).

    Example:
        >>> current, trainer = np.log([[0.5, 0.4], [0.9, 0.3]]), np.log([[0.5, 0.2], [0.8, 0.3]])
        >>> result = objective_loss(current, trainer, [1.0, -1.0], term="clip", high=1.28)
        >>> round(result.loss, 4), result.clip_high
        (-0.0388, 0.25)
        >>> result.d_log_probs
        array([[-0.25   ,  0.     ],
               [ 0.28125,  0.25   ]])
    """
    batch = _Parts(
        current_log_probs, trainer_log_probs, advantages, mask, offsets, weights, kept, reference_log_probs,
        entropies, selected, groups, out=out)
    raw = c.ObjectiveReport(sizeof(c.ObjectiveReport))
    check(library.lockstep_objective_loss(
        raw, *batch.outputs(), batch.raw, _options(term=term, **options)))
    return ObjectiveLoss(**_report(raw), d_log_probs=batch.gradient, d_entropies=batch.entropy_gradient)


class Objective:
    """The loss of a batch that comes in parts: the bits of the whole, however it was cut.

    First `count` every part, then `evaluate` every part, then `report`. Of each part the sequences must be whole.

    Letters: A advantage, c current log-prob, x = c - trainer log-prob, r = exp(x); [..] a constant to the gradient.

    Args:
        term: "clip" max(-A min(r, ratio_max), -A clamp(r, low, high)), at most -A dual where A < 0 (PPO, GRPO,
            DAPO); "reinforce" -A c; "ratio" -A r; "cispo" -[clamp(r, low, high)] A c; "sapo" -A 4 / tau
            sigmoid(tau (r - 1)); "topr" -A c where A > 0, else -[min(r, 1)] A c; "squared" -A c + coefficient / 2
            x^2 (Kimi k1.5, DRO); "kl_cov" -A r, + coefficient |x| where selected; "gmpo"; "vespo" (lockstep.h has
            these two).
        ratio_level: "token"; "sequence" exp(mean x), GSPO; "sequence_token" the same value with the gradient of a
            token's own ratio; "sequence_sum" exp(sum x).
        aggregation: "token_mean", "token_sum", "seq_mean_token_sum", "seq_mean_token_mean",
            "seq_mean_token_sum_norm" (by the constant `length`), "prompt_mean" (by `groups`).
        denominator: "original": a rejected token stays in the number; "kept": it is as if it were masked.
        low, high: bounds of the ratio itself, low in [0, 1], high at least 1.
        dual, ratio_max: None for none.
        coefficient: of "squared" and "kl_cov".
        tau_positive, tau_negative: SAPO's, by the sign of A.
        shape_positive, rate_positive, shape_negative, rate_negative: VESPO's, by the sign of A.
        log_ratio_min, log_ratio_max: what a log ratio is clamped to before it is exponentiated; clamped tokens are
            counted and have no gradient through the ratio.
        kl: "none", or the estimator of the divergence from the reference, of y = reference - current: "k1" -y;
            "k2" y^2 / 2; "k3" exp(y) - 1 - y; "abs" |y|.
        kl_gradient: "direct"; "ratio": of the estimator times r; "score_function": with the estimator added; "k2": of
            k2, whatever the estimator.
        kl_coefficient, entropy_coefficient: what they count in the loss; the entropy is subtracted.
        kl_input_max, kl_output_max: what |y| and the estimate are held at; None for none.
        length: of "seq_mean_token_sum_norm".
        scale: of the whole loss.
        non_finite: "strict": a NaN or infinity at a token that counts is an error; "exclude": it drops the token.
        threads, instruction_set: no bit depends on them.

    Raises:
        InvalidArgumentError: words and bounds that make no sense.

    Example:
        >>> objective = Objective(term="clip", aggregation="seq_mean_token_mean")
        >>> parts = [(np.log([[0.5, 0.4]]), np.log([[0.5, 0.2]]), [1.0]), (np.log([[0.3]]), np.log([[0.3]]), [-1.0])]
        >>> for part in parts:
        ...     objective.count(*part)
        >>> gradients = [objective.evaluate(*part) for part in parts]
        >>> objective.counts
        ObjectiveCounts(tokens=3, sequences=2, prompts=0)
        >>> round(objective.report().loss, 4)
        -0.05
    """

    def __init__(self, *, term: str = "clip", **options: Any) -> None:
        self._handle = c_void_p()
        check(library.lockstep_objective_create(byref(self._handle), _options(term=term, **options)))

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            library.lockstep_objective_destroy(self._handle)
            self._handle = None

    def count(self, current_log_probs: Log, trainer_log_probs: Log | None, advantages: Log, mask: Log | None = None,
              offsets: Array | None = None, **parts: Any) -> None:
        """Adds a part to the denominators; its arguments are those of `objective_loss`."""
        batch = _Parts(current_log_probs, trainer_log_probs, advantages, mask, offsets, **parts)
        check(library.lockstep_objective_count(self._handle, batch.raw))

    @property
    def counts(self) -> ObjectiveCounts:
        """The denominators so far."""
        raw = c.ObjectiveCounts()
        check(library.lockstep_objective_counted(raw, self._handle))
        return ObjectiveCounts(raw.tokens, raw.sequences, raw.prompts)

    def add_counts(self, counts: ObjectiveCounts) -> None:
        """Adds what was counted elsewhere, as on another rank, which has other sequences and other prompts."""
        raw = c.ObjectiveCounts(*(integer(each, name, 0, 2**48) for each, name in zip(counts, counts._fields)))
        check(library.lockstep_objective_add_counts(self._handle, raw))

    def evaluate(self, current_log_probs: Log, trainer_log_probs: Log | None, advantages: Log,
                 mask: Log | None = None, offsets: Array | None = None, **parts: Any) -> Log | tuple[Log, Log]:
        """Adds a part to the loss; returns d_log_probs (written to `out` if that is given), or with entropies
        (d_log_probs, d_entropies)."""
        batch = _Parts(current_log_probs, trainer_log_probs, advantages, mask, offsets, **parts)
        check(library.lockstep_objective_evaluate(self._handle, *batch.outputs(), batch.raw))
        return batch.gradient if batch.entropy_gradient is None else (batch.gradient, batch.entropy_gradient)

    def report(self) -> ObjectiveReport:
        """The loss of what was evaluated so far, and what happened."""
        raw = c.ObjectiveReport(sizeof(c.ObjectiveReport))
        check(library.lockstep_objective_read(raw, self._handle))
        return ObjectiveReport(**_report(raw))

    def reset(self) -> None:
        """Forgets what was counted and evaluated: for the next batch."""
        check(library.lockstep_objective_reset(self._handle))


def kl_penalty(
    current_log_probs: Log,
    reference_log_probs: Log,
    mask: Log | None = None,
    offsets: Array | None = None,
    *,
    kl: str = "k3",
    weights: Log | None = None,
    kl_coefficient: float = 1.0,
    gradient: bool = False,
    **options: Any,
) -> Log | tuple[Log, Log]:
    """The divergence from the reference, token by token, for use in rewards.

    Args:
        current_log_probs: of the policy, laid out as in `mismatch`.
        reference_log_probs: of the reference, laid out the same.
        mask: which tokens count.
        offsets: [sequences + 1], for packed log-probs.
        kl: the estimator: "k1", "k2", "k3" or "abs".
        weights: what each estimate is multiplied by.
        kl_coefficient: what all are multiplied by.
        gradient: also return the derivative by the current log-prob.
        options: kl_gradient, kl_input_max, kl_output_max, non_finite, threads, instruction_set of `Objective`.

    Returns:
        One value for each token, 0 where none counts; with `gradient` the pair.

    Raises:
        InvalidArgumentError: shapes, dtypes, words or bounds that do not fit.
        NonFiniteError: a NaN or infinity at a token that counts (strict).

    Example:
        >>> kl_penalty(np.log([0.5, 0.2]), np.log([0.4, 0.3]), kl="k1").round(3)
        array([ 0.223, -0.405])
    """
    batch = _Parts(
        current_log_probs, None, None, mask, offsets, weights, reference_log_probs=reference_log_probs)
    values, values_view = batch.output()
    slopes, slopes_view = batch.output() if gradient else (None, None)
    check(library.lockstep_kl_penalty(
        values_view.tensor(), slopes_view.tensor() if slopes_view else None, batch.raw,
        _options(kl=kl, kl_coefficient=kl_coefficient, **options)))
    values = batch.batch.laid_out(values)
    return (values, batch.batch.laid_out(slopes)) if gradient else values


def adapted_kl_coefficient(
    coefficient: float, kl: float, *, target: float, horizon: float, steps: float = 1.0
) -> float:
    """The next coefficient of an adaptive divergence penalty (Ziegler et al. 2019).

    coefficient (1 + clamp(kl / target - 1, -0.2, 0.2) steps / horizon)

    Args:
        coefficient: the present one.
        kl: the divergence that was measured.
        target: the divergence to steer to.
        horizon: steps in which the coefficient changes by at most a fifth, or so.
        steps: how many since the last update.

    Returns:
        The next coefficient.

    Raises:
        InvalidArgumentError: a number that is not finite or out of range.

    Example:
        >>> round(adapted_kl_coefficient(0.2, 3.0, target=6.0, horizon=10000, steps=64), 6)
        0.199744
    """
    value = c_double(real(coefficient, "coefficient"))
    check(library.lockstep_kl_coefficient_update(
        byref(value), real(kl, "kl"), real(target, "target"), real(horizon, "horizon"), real(steps, "steps")))
    return value.value


def covariance_select(
    current_log_probs: Log,
    trainer_log_probs: Log | None,
    advantages: Log,
    mask: Log | None = None,
    offsets: Array | None = None,
    *,
    rule: str = "clip",
    share: float = 2e-4,
    low: float = 1.0,
    high: float = 5.0,
    ratio_low: float = 0.8,
    ratio_high: float = 1.2,
    seed: int = 0,
    ids: Array | None = None,
) -> Log:
    """Picks the tokens whose covariance (A - mean A) (c - mean c) drives entropy down (Cui et al. 2025).

    Over a whole batch; what is picked is `selected` of the objective.

    Args:
        current_log_probs: of the policy that is updated, laid out as in `mismatch`.
        trainer_log_probs: for "clip"; None for "kl".
        advantages: one for each token, or [sequences].
        mask: which tokens count.
        offsets: [sequences + 1], for packed log-probs.
        rule: "clip" a random share of the tokens with a covariance in (low, high) that the clip does not hold
            already; "kl" the share with the largest covariance.
        share: of the tokens that count; at least one is picked.
        low, high: bounds of the covariance for "clip".
        ratio_low, ratio_high: bounds of the ratio, as in the objective.
        seed: which random share.
        ids: [sequences], so that the choice does not depend on where a sequence stands.

    Returns:
        Booleans, laid out as the log-probs.

    Raises:
        InvalidArgumentError: shapes, dtypes, words or bounds that do not fit.
        NonFiniteError: a NaN or infinity at a token that counts.

    Example:
        >>> covariance_select(np.log([0.9, 0.1, 0.5]), None, np.array([1.0, -2.0, 0.1]), rule="kl", share=0.4)
        array([False,  True, False])
    """
    batch = _Parts(current_log_probs, trainer_log_probs, advantages, mask, offsets, ids=ids)
    selected, selected_view = batch.batch.output(c.BOOL, "selected")
    options = c.CovarianceOptions(
        sizeof(c.CovarianceOptions), choice(c.COVARIANCE_RULES, rule, "rule"), real(share, "share"),
        real(low, "low"), real(high, "high"), real(ratio_low, "ratio_low"), real(ratio_high, "ratio_high"),
        integer(seed, "seed", 0, 2**64 - 1))
    check(library.lockstep_covariance_select(selected_view.tensor(), byref(c_size_t()), batch.raw, options))
    return batch.batch.laid_out(selected)


class _Parts:
    """A batch and the arrays its gradients go to."""

    def __init__(
        self, current_log_probs: Log, trainer_log_probs: Log | None, advantages: Log | None,
        mask: Log | None = None, offsets: Array | None = None, weights: Log | None = None,
        kept: Log | None = None, reference_log_probs: Log | None = None, entropies: Log | None = None,
        selected: Log | None = None, groups: Array | None = None, ids: Array | None = None,
        out: Array | None = None,
    ) -> None:
        if current_log_probs is None:
            raise InvalidArgumentError("current_log_probs: is missing; give it, objectives are of the current policy")
        self.batch = Batch(
            current_log_probs=current_log_probs, trainer_log_probs=trainer_log_probs, advantages=advantages,
            mask=mask, offsets=offsets, weights=weights, kept=kept, reference_log_probs=reference_log_probs,
            entropies=entropies, selected=selected, groups=groups, ids=ids)
        self.raw = self.batch.raw
        self._has_entropies = entropies is not None
        self._out = out
        self.gradient: Log = None
        self.entropy_gradient: Log | None = None

    def output(self) -> tuple[Array, View]:
        """A new array of one value for each token: NumPy's memory, which comes in large pages where there are any."""
        like = self.batch.like
        array = np.empty(like.shape, np.float64 if like.code == c.FLOAT64 else np.float32)
        kept: Array = array
        if like.is_torch:
            import torch  # already imported: the log-probs are its tensors

            kept = torch.from_numpy(array)
        return kept, view(array, "d_log_probs", written=True)

    def outputs(self) -> tuple[c.Tensor, c.Tensor | None]:
        """The two outputs as tensors; the arrays behind them are `gradient` and `entropy_gradient`."""
        gradient, place = self.output() if self._out is None else (self._out, view(self._out, "out", written=True))
        if place.shape != self.batch.like.shape or place.code not in (c.FLOAT32, c.FLOAT64):
            raise InvalidArgumentError(
                f"out: give an fp32 or fp64 array of the shape of the log-probs, {list(self.batch.like.shape)}")
        self.gradient = self.batch.laid_out(gradient)
        if not self._has_entropies:
            return place.tensor(), None
        entropy_gradient, entropy_view = self.output()
        self.entropy_gradient = self.batch.laid_out(entropy_gradient)
        return place.tensor(), entropy_view.tensor()


def _options(
    *, term: str = "clip", ratio_level: str = "token", aggregation: str = "token_mean",
    denominator: str = "original", kl: str = "none", kl_gradient: str = "direct", non_finite: str = "strict",
    low: float = 0.8, high: float = 1.2, dual: float | None = None, ratio_max: float | None = None,
    coefficient: float = 0.0, tau_positive: float = 1.0, tau_negative: float = 1.05,
    shape_positive: float = 2.0, rate_positive: float = 3.0, shape_negative: float = 3.0,
    rate_negative: float = 2.0, log_ratio_min: float = -20.0, log_ratio_max: float = 20.0,
    kl_coefficient: float = 0.0, kl_input_max: float | None = 20.0, kl_output_max: float | None = None,
    entropy_coefficient: float = 0.0, length: float = 0.0, scale: float = 1.0, threads: int = 0,
    instruction_set: str = "best", **unknown: Any,
) -> c.ObjectiveOptions:
    if unknown:
        known = ", ".join(name for name in _options.__kwdefaults__)
        raise InvalidArgumentError(f"{next(iter(unknown))}: no such option; there are {known}")
    words = (
        choice(c.TERMS, term, "term"), choice(c.RATIO_LEVELS, ratio_level, "ratio_level"),
        choice(c.AGGREGATIONS, aggregation, "aggregation"), choice(c.DENOMINATORS, denominator, "denominator"),
        choice(c.KL_ESTIMATORS, kl, "kl"), choice(c.KL_GRADIENTS, kl_gradient, "kl_gradient"),
        choice(c.NON_FINITE, non_finite, "non_finite"))
    return c.ObjectiveOptions(
        sizeof(c.ObjectiveOptions), *words, real(low, "low"), real(high, "high"), _bound(dual, "dual"),
        _bound(ratio_max, "ratio_max"), real(coefficient, "coefficient"), real(tau_positive, "tau_positive"),
        real(tau_negative, "tau_negative"), real(shape_positive, "shape_positive"),
        real(rate_positive, "rate_positive"), real(shape_negative, "shape_negative"),
        real(rate_negative, "rate_negative"), real(log_ratio_min, "log_ratio_min"),
        real(log_ratio_max, "log_ratio_max"), real(kl_coefficient, "kl_coefficient"),
        _bound(kl_input_max, "kl_input_max"), _bound(kl_output_max, "kl_output_max"),
        real(entropy_coefficient, "entropy_coefficient"), real(length, "length"), real(scale, "scale"),
        int32(threads, "threads"), choice(c.INSTRUCTION_SETS, instruction_set, "instruction_set"))


def _bound(value: float | None, name: str) -> float:
    """A bound as the library takes it, for which 0 is none: so a 0 of the caller's is refused here."""
    if value is None:
        return 0.0
    if value == 0:
        raise InvalidArgumentError(f"{name} is 0; give a positive bound, or None for none")
    return real(value, name)


def _report(raw: ctypes.Structure) -> dict[str, Any]:
    values = {each.name: getattr(raw, each.name) for each in fields(ObjectiveReport)}
    return values | {"empty": bool(raw.empty)}
