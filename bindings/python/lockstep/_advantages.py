"""Advantages: how much better a sequence, or a token, did than was to be expected."""

from __future__ import annotations

from ctypes import sizeof
from typing import Any

import numpy as np

from . import _library as c
from ._batch import Batch, Log, as_mask, is_ragged
from ._errors import InvalidArgumentError
from ._library import check, choice, integer, library, real
from ._tensors import Array, View, address, empty, format_code, view

#: Estimators that give each token its own advantage.
_TOKEN_ESTIMATORS = ("reinforce_plus_plus", "gae", "optimal_token_baseline", "multi_turn_token_baseline")


def advantages(
    rewards: Log,
    mask: Log | None = None,
    *,
    groups: Array | int | None = None,
    estimator: str = "grpo",
    offsets: Array | None = None,
    scale: str | None = None,
    whiten: bool | None = None,
    epsilon: float | None = None,
    population_std: bool = False,
    singles: str = "zero",
    truncated: Array | None = None,
    on_truncated: str = "keep",
    gamma: float = 1.0,
    lam: float = 1.0,
    baselines: Array | None = None,
    values: Log | None = None,
    kind_weights: Array | None = None,
    trainer_log_probs: Log | None = None,
    squared_mass: Log | None = None,
    weights: Log | None = None,
    tail_baseline: bool = False,
    per_token: bool | None = None,
    with_returns: bool = False,
    dtype: object = None,
) -> Any:
    """What sequences earned, compared with what was to be expected: (R - baseline) / scale.

    R is the reward of a sequence, n, mean and std are those of its group, G_t are discounted rewards to go:

    - "grpo": (R - mean) / (std + epsilon); "dr_grpo": R - mean
    - "leave_one_out": R - mean of the group's others (RLOO)
    - "reinforce_plus_plus": G_t, whitened; "reinforce_plus_plus_baseline": R - mean, whitened
    - "opo": R - mean weighted by lengths; "remax": R - `baselines`
    - "gpg": (R - mean) / share of the batch's rewards that are not 0
    - "pass_at_k": (best - second best) / (std + epsilon) for the group's best, 0 for the others
    - "max_rl": (R - mean) / (mean + epsilon)
    - "gdpo": "grpo" of each kind of reward, weighted, summed, whitened
    - "gae": generalised advantage estimation from a critic's `values`, whitened
    - "optimal_token_baseline": G_t - the group's mean of G_t weighted by path variance;
      "multi_turn_token_baseline": the same, positions counted by tokens that count

    Sums are exact: the order of sequences and groups, and padding, do not change a bit. Equal rewards in a
    group give advantages of exactly 0; where a scale is 0 the difference stays as it is.

    Args:
        rewards: [sequences], or one for each token; "gdpo": [sequences x kinds]. Float32 or float64: 16 bits
            are refused, as they cannot hold differences of rewards. Integers and bools are taken as float64.
        mask: which tokens count; uint8 or bool, other dtypes are compared with 0. For estimators that need
            lengths or tokens: [sequences x length] padded, [tokens] packed, or a list with one for each sequence.
        groups: [sequences] integers, the prompt that each sequence answers; a number n is groups of n that
            stand one after the other.
        estimator: see above.
        offsets: [sequences + 1], where packed sequences begin.
        scale: instead of the estimator's: "none", "group_std", "others_std" (of the group without the sequence:
            with "leave_one_out" NeMo RL's GRPO), "batch_std", "group_mean" or "non_zero_share".
        whiten: instead of what the estimator does: whether to subtract the mean over the batch's tokens and
            divide by sqrt(variance + 1e-8).
        epsilon: added to the scale; 1e-6 (optimal token baselines: 1e-8) if None.
        population_std: standard deviations over n instead of n - 1.
        singles: what a group of one gets: "zero", or "raw", its reward as if mean and std were 0 and 1.
        truncated: [sequences], which were cut off at the length limit ...
        on_truncated: ... and what becomes of them: "keep" (nothing special), "zero" (the reward counts in the
            group, the advantage is 0) or "drop" (neither).
        gamma, lam: discount and GAE's lambda, in [0, 1].
        baselines: [sequences], "remax": the reward of the prompt's greedy answer.
        values: one for each token, "gae".
        kind_weights: [kinds], "gdpo"; 1 each if None.
        trainer_log_probs, squared_mass, weights: one for each token, optimal token baselines: log-probs, the sum
            of squared probabilities over the vocabulary, and (optional) a correction's weights.
        tail_baseline: optimal token baselines hold also where only the longest sequence of a group goes on.
        per_token: whether the result has one value for each token (0 where it does not count); None: where
            tokens differ.
        with_returns: also return what was compared: R or G_t (GAE: what a critic is to learn).
        dtype: of the result, "fp32" or "fp64"; that of the rewards if None.

    Returns:
        Advantages, [sequences] or in the shape of the mask, as an array of the kind of `rewards`; with
        `with_returns` (advantages, returns).

    Raises:
        InvalidArgumentError: something is missing, does not fit, or is out of range.
        NonFiniteError: a reward or value that counts is NaN or infinite; it is named.

    Example:
        >>> lockstep.advantages([1, 0, 0, 0, 1, 1, 1, 0], groups=4, estimator="leave_one_out")
        array([ 1.        , -0.33333333, -0.33333333, -0.33333333,  0.33333333,
                0.33333333,  0.33333333, -1.        ])
    """
    if truncated is not None and on_truncated == "keep":
        raise InvalidArgumentError('truncated: given, so say what becomes of them: on_truncated="zero" or "drop"')
    options = _options(
        estimator, on_truncated=on_truncated, scale=scale, whiten=whiten, singles=singles,
        population_std=population_std, tail_baseline=tail_baseline, epsilon=epsilon, gamma=gamma, lam=lam)
    ragged = estimator != "gdpo" and is_ragged(rewards)
    if ragged:
        rewards = [floats(each, f"rewards[{index}]") for index, each in enumerate(rewards)]
    earned = None if ragged else view(floats(rewards, "rewards"), "rewards")
    tokens = {
        "trainer_log_probs": trainer_log_probs, "weights": weights, "mask": mask, "values": values,
        "squared_mass": squared_mass, "rewards": rewards if ragged else None}
    if trainer_log_probs is None and weights is None and mask is None:
        tokens["mask"] = _every_token(rewards, earned, offsets, estimator)
    if offsets is not None:
        sequences = max(len(offsets) - 1, 0)
    else:
        sequences = len(rewards) if earned is None else earned.shape[0] if earned.shape else 0
    batch = Batch(
        offsets=offsets, groups=_consecutive(groups, sequences) if isinstance(groups, int) else groups, **tokens)
    if earned is None:
        earned = batch.view("rewards")
    given = {
        "rewards": earned, "values": batch.view("values"), "squared_mass": batch.view("squared_mass"),
        "truncated": None if truncated is None else view(as_mask(truncated), "truncated"),
        "baselines": None if baselines is None else view(floats(baselines, "baselines"), "baselines"),
        "kind_weights": None if kind_weights is None else view(floats(kind_weights, "kind_weights"), "kind_weights"),
    }
    tensors = {name: each.tensor() for name, each in given.items() if each is not None}
    raw = c.Rewards(sizeof(c.Rewards), **{name: address(each) for name, each in tensors.items()})
    if per_token is None:
        per_token = estimator in _TOKEN_ESTIMATORS or (
            estimator == "remax" and batch.tokens is not None and earned.shape == batch.tokens.shape)
    shape = batch.tokens.shape if per_token and batch.tokens is not None else (sequences,)
    kind = format_code(dtype, "dtype") if dtype is not None else c.FLOAT32 if earned.code == c.FLOAT32 else c.FLOAT64
    results = [empty(shape, kind, earned) for _ in range(2 if with_returns else 1)]
    outputs = [view(each, "advantages", written=True).tensor() for each in results] + [None]
    check(library.lockstep_advantages(outputs[0], outputs[1], raw, batch.raw, options))
    return tuple(results) if with_returns else results[0]


def overlong_penalty(
    lengths: Array, max_length: int, buffer: int, factor: float = 1.0, *, dtype: object = "fp64"
) -> Array:
    """DAPO's soft penalty of long responses, to be added to rewards.

    0 up to `max_length - buffer` tokens, then falling evenly to `-factor` at `max_length`, and staying there.

    Args:
        lengths: [sequences] integers, the tokens of each response: `mask.sum(-1)`.
        max_length: the length limit.
        buffer: in how many tokens before the limit the penalty grows; 1 to max_length.
        factor: the penalty at the limit, 0 or more.
        dtype: of the result, "fp32" or "fp64".

    Returns:
        Penalties, [sequences], as an array of the kind of `lengths`.

    Raises:
        InvalidArgumentError: a number out of range.

    Example:
        >>> lockstep.overlong_penalty([100, 900, 950, 1000], max_length=1000, buffer=100)
        array([ 0. ,  0. , -0.5, -1. ])
    """
    found = view(lengths, "lengths")
    out = empty(found.shape, format_code(dtype, "dtype"), found)
    bound = 2**63 - 1
    check(library.lockstep_overlong_penalty(
        view(out, "penalties", written=True).tensor(), found.tensor(),
        integer(max_length, "max_length", -bound, bound), integer(buffer, "buffer", -bound, bound),
        real(factor, "factor")))
    return out


def floats(values: Array, name: str) -> Array:
    """Integers and bools as float64; what has a floating-point dtype stays as it is."""
    found = values if hasattr(values, "dtype") else np.asarray(values)
    kind = str(found.dtype).removeprefix("torch.")
    if not kind.startswith(("int", "uint", "bool")):
        return found
    return found.double() if hasattr(found, "double") else np.asarray(found, np.float64)


def _consecutive(size: int, sequences: int) -> np.ndarray:
    if size < 1 or sequences % size:
        raise InvalidArgumentError(
            f"groups is {size}, but {sequences} sequences are no groups of {size}; give each sequence's prompt")
    return np.arange(sequences, dtype=np.int64) // size


def _every_token(rewards: Any, earned: View | None, offsets: Array | None, estimator: str) -> Any:
    """The mask of a batch in which all tokens count; None where nothing says which tokens there are."""
    if earned is None:
        return [np.ones(len(each), bool) for each in rewards]
    if offsets is not None:
        return np.ones(int(offsets[-1]) if len(offsets) else 0, bool)
    return np.ones(earned.shape, bool) if estimator != "gdpo" and len(earned.shape) == 2 else None


def _options(
    estimator: str = "grpo", *, on_truncated: str = "keep", scale: str | None = None, whiten: bool | None = None,
    singles: str = "zero", population_std: bool = False, tail_baseline: bool = False,
    epsilon: float | None = None, gamma: float = 1.0, lam: float = 1.0,
) -> c.AdvantageOptions:
    return c.AdvantageOptions(
        sizeof(c.AdvantageOptions), choice(c.ADVANTAGES, estimator, "estimator"),
        c.SCALE_OF_ESTIMATOR if scale is None else choice(c.ADVANTAGE_SCALES, scale, "scale"),
        c.WHITEN_AS_ESTIMATOR if whiten is None else c.WHITEN_YES if whiten else c.WHITEN_NO,
        choice(c.SINGLES, singles, "singles"), choice(c.TRUNCATED, on_truncated, "on_truncated"),
        bool(population_std), bool(tail_baseline),
        -1.0 if epsilon is None else real(epsilon, "epsilon"), real(gamma, "gamma"), real(lam, "lam"))
