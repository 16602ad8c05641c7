"""Mismatch: how far the trainer policy pi is from the rollout policy mu that drew the tokens.

Per token, d = ln pi - ln mu (log ratio) and r = exp(d) (ratio); all logarithms are natural.
"""

from __future__ import annotations

import ctypes
from ctypes import sizeof
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from . import _library as c
from ._batch import Log, as_mask, layout, sequence_count
from ._errors import InvalidArgumentError
from ._library import check, choice, int32, library
from ._log_probs import _options as _log_probs_options
from ._log_probs import _tensor
from ._records import reader
from ._tensors import Array, row_matrix, token_vector, view

#: The shares at which `Mismatch.log_ratio_quantiles` are taken.
LOG_RATIO_QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)


class Estimate(NamedTuple):
    """A mean and its standard error, clustered by sequence; NaN with fewer than two sequences."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class Mismatch:
    """The statistics of one log. Values are NaN where no token counts."""

    #: Tokens that count; that the mask leaves out; that were dropped as non-finite ("exclude").
    tokens: int
    masked_tokens: int
    excluded_tokens: int
    #: Sequences with a token that counts; without.
    sequences: int
    empty_sequences: int
    #: mean d
    mean_log_ratio: Estimate
    #: KL(mu || pi) as mean(-d), unbiased, may be negative; as mean(d^2 / 2); as mean(exp(d) - 1 - d) >= 0.
    k1: Estimate
    k2: Estimate
    k3: Estimate
    #: mean |d|
    mean_abs_log_ratio: Estimate
    #: sqrt(mean d^2)
    rms_log_ratio: Estimate
    #: max |d|, its sequence (the first of equals) and its index in that sequence
    max_abs_log_ratio: float
    max_abs_sequence: int
    max_abs_position: int
    #: |exp(ln pi) - exp(ln mu)|: mean and largest
    mean_abs_prob_diff: Estimate
    max_abs_prob_diff: float
    #: Correlation of the two probabilities, and one minus it without cancellation.
    pearson: float
    one_minus_pearson: float
    #: Share of tokens whose two log-probs differ in bits; with r outside [0.999, 1.002] (MLPerf's band),
    #: [0.99, 1.01], [0.95, 1.05], [0.9, 1.1].
    share_differing: Estimate
    share_outside_mlperf: Estimate
    share_outside_1pct: Estimate
    share_outside_5pct: Estimate
    share_outside_10pct: Estimate
    #: mean(r^2) - 1: a sample value, may be negative.
    chi_square: Estimate
    #: mean r: 1 in expectation.
    mean_ratio: Estimate
    #: Effective sample size (sum r)^2 / (n sum r^2), in (0, 1].
    ess: float
    #: mean exp|d|: "multiplicative probability error".
    mean_exp_abs_log_ratio: Estimate
    #: exp(-mean ln pi), exp(-mean ln mu) over tokens, and trainer / rollout.
    trainer_perplexity: float
    rollout_perplexity: float
    perplexity_ratio: float
    #: mean ln mu: minus the rollout's sample entropy.
    mean_rollout_log_prob: Estimate
    #: Quantiles of d at `LOG_RATIO_QUANTILES`, linear between order statistics.
    log_ratio_quantiles: tuple[float, ...]
    #: S = sum of d over a sequence: its mean over sequences and sample standard deviation (n - 1).
    sequence_log_ratio: Estimate
    sequence_log_ratio_std: float
    #: Mean over sequences of mean d; of mean exp|d|.
    sequence_mean_log_ratio: Estimate
    sequence_mean_exp_abs: Estimate
    #: Effective sample size of the weights exp(S).
    sequence_ess: float
    #: Share of sequences with mean exp|d| > 2 (MLPerf's mask).
    share_sequences_masked: Estimate
    #: Least-squares slope of S on length, per 1,000 tokens.
    slope_per_1000: Estimate
    #: Counted tokens a sequence: mean and largest.
    mean_sequence_length: float
    max_sequence_length: int
    #: Standard errors of `ess`, the perplexities, their ratio, and `sequence_log_ratio_std`.
    ess_standard_error: float
    trainer_perplexity_standard_error: float
    rollout_perplexity_standard_error: float
    perplexity_ratio_standard_error: float
    sequence_log_ratio_std_standard_error: float
    #: Share of sequences with exp(mean d) outside [0.999, 1.002].
    share_sequences_outside_mlperf: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers. NaN stays NaN (JSON has none: choose what it becomes)."""
        return {
            name: value._asdict() if isinstance(value, Estimate)
            else list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
        }


class Divergence(NamedTuple):
    """Exact divergences over the vocabulary, in nats."""

    #: KL(mu || pi) and KL(pi || mu), >= 0; inf where one policy gives 0 to what the other can draw.
    kl_rollout_trainer: float
    kl_trainer_rollout: float
    #: sum |pi - mu| / 2, in [0, 1].
    total_variation: float
    #: In [0, ln 2].
    jensen_shannon: float
    #: Share of rows whose first maximum is at one id.
    same_top1: float


class ExactMismatch(NamedTuple):
    """What `exact_mismatch` returns."""

    #: The means over counted rows; NaN without any.
    mean: Divergence
    #: [...] structured array with the fields of `Divergence`; zeros for masked rows.
    rows: np.ndarray


def _record(struct: type[ctypes.Structure]) -> np.dtype:
    """The NumPy dtype of a frozen C struct of 64-bit integers and doubles."""
    kinds = {ctypes.c_int64: np.int64, ctypes.c_uint64: np.uint64, ctypes.c_double: np.float64}
    return np.dtype([(name, kinds[kind]) for name, kind in struct._fields_])  # type: ignore


_SEQUENCE = _record(c.MismatchSequence)
_BUCKET = _record(c.MismatchBucket)
_DIVERGENCE = _record(c.Divergence)


def mismatch(
    trainer_log_probs: Log,
    rollout_log_probs: Log,
    mask: Log | None = None,
    offsets: Array | None = None,
    *,
    non_finite: str = "strict",
    threads: int = 0,
    instruction_set: str = "best",
) -> Mismatch:
    """Measures the mismatch of two log-prob arrays: all statistics in one call.

    A masked token is never read: a NaN there changes nothing. The bits depend on the values alone, not on
    how the log was laid out, nor on `threads` or `instruction_set`.

    Args:
        trainer_log_probs: ln pi, nats, fp32, fp64, fp16 or bf16. One of: packed [tokens], with `offsets`
            (without: one sequence); padded [sequences x length]; a list with one array for each sequence.
        rollout_log_probs: ln mu, laid out the same.
        mask: which tokens count, laid out the same; uint8 or bool, other dtypes are compared with 0.
        offsets: [sequences + 1], for packed logs: sequence i is [offsets[i], offsets[i + 1]).
        non_finite: what to do with a NaN or infinity at a token that counts: "strict" is an error naming
            sequence and position, "exclude" drops the token and counts it.
        threads: 0 is one for each processor this process may use.
        instruction_set: see `has_instruction_set`.

    Returns:
        `Mismatch`; each mean is an `Estimate` with its standard error.

    Raises:
        InvalidArgumentError: shapes, dtypes or offsets that do not fit.
        NonFiniteError: a NaN or infinity at a token that counts (strict).

    Example:
        >>> trainer = [np.array([-1.0, -2.0]), np.array([-0.5])]
        >>> rollout = [np.array([-1.1, -2.0]), np.array([-0.7])]
        >>> result = mismatch(trainer, rollout)
        >>> result.tokens, round(result.mean_log_ratio.value, 6)
        (3, 0.1)
    """
    log = _Log(trainer_log_probs, rollout_log_probs, mask, offsets)
    raw = c.Mismatch(sizeof(c.Mismatch))
    options = _options(non_finite, threads, instruction_set)
    check(library.lockstep_mismatch_measure(raw, *log.tensors(), options))
    return _statistics(raw)


def mismatch_sequences(
    trainer_log_probs: Log,
    rollout_log_probs: Log,
    mask: Log | None = None,
    offsets: Array | None = None,
    *,
    non_finite: str = "strict",
    threads: int = 0,
    instruction_set: str = "best",
) -> np.ndarray:
    """The per-sequence values behind `mismatch`.

    Args:
        as in `mismatch`.

    Returns:
        [sequences] structured array: tokens (that count), log_ratio (S = sum d), mean_log_ratio,
        mean_abs_log_ratio, max_abs_log_ratio, mean_exp_abs (mean exp|d|), k3. All 0 for a sequence without
        counted tokens.

    Raises:
        InvalidArgumentError, NonFiniteError: as in `mismatch`.

    Example:
        >>> trainer, rollout = np.array([[-1.0, -2.0]]), np.array([[-1.5, -2.5]])
        >>> mismatch_sequences(trainer, rollout)["log_ratio"]
        array([1.])
    """
    log = _Log(trainer_log_probs, rollout_log_probs, mask, offsets)
    rows = np.empty(log.sequences, _SEQUENCE)
    check(library.lockstep_mismatch_sequences(
        rows.ctypes.data, len(rows), *log.tensors(), _options(non_finite, threads, instruction_set)))
    return rows


def mismatch_profile(
    trainer_log_probs: Log,
    rollout_log_probs: Log,
    mask: Log | None = None,
    offsets: Array | None = None,
    *,
    edges: Array,
    axis: str = "position",
    non_finite: str = "strict",
    threads: int = 0,
    instruction_set: str = "best",
) -> np.ndarray:
    """Statistics by bucket of position, of probability, or of the log ratio.

    Args:
        trainer_log_probs, rollout_log_probs, mask, offsets, …: as in `mismatch`.
        edges: [buckets + 1] strictly increasing; -inf and inf are allowed at the ends. The last bucket
            includes its upper edge; tokens outside all buckets are left out.
        axis: "position" (how many counted tokens of the sequence came before), "probability" (exp(ln mu)),
            or "log_ratio" (d itself: a histogram).

    Returns:
        [buckets] structured array: lower, upper, tokens, mean_log_ratio, mean_abs_log_ratio, k3. Means are
        NaN in an empty bucket.

    Raises:
        InvalidArgumentError, NonFiniteError: as in `mismatch`; also edges that do not increase.

    Example:
        >>> trainer, rollout = np.array([-1.0, -2.0, -0.1]), np.array([-1.0, -2.5, -0.1])
        >>> mismatch_profile(trainer, rollout, edges=[0, 2, 4])["tokens"]
        array([2, 1])
    """
    log = _Log(trainer_log_probs, rollout_log_probs, mask, offsets)
    bounds = np.ascontiguousarray(edges, np.float64)
    if bounds.ndim != 1 or len(bounds) < 2:
        raise InvalidArgumentError(f"edges: shape {list(bounds.shape)}; give [buckets + 1], at least two")
    buckets = np.empty(len(bounds) - 1, _BUCKET)
    check(library.lockstep_mismatch_profile(
        buckets.ctypes.data, len(buckets), bounds.ctypes.data, choice(c.AXES, axis, "axis"),
        *log.tensors(), _options(non_finite, threads, instruction_set)))
    return buckets


def exact_mismatch(
    trainer_logits: Array,
    rollout_logits: Array,
    mask: Array | None = None,
    *,
    temperature: float = 1.0,
    soft_cap: float | None = None,
    logits_dtype: object = None,
    threads: int = 0,
    instruction_set: str = "best",
) -> ExactMismatch:
    """Exact divergences of two logits matrices, over the whole vocabulary: nothing is estimated.

    Args:
        trainer_logits: [..., vocab] fp32, fp16 or bf16; the last dimension contiguous.
        rollout_logits: of the same shape; its format may differ.
        mask: [...] which rows count; uint8 or bool, other dtypes are compared with 0.
        temperature, soft_cap, logits_dtype: as in `log_probs`, for both sides.
        threads: 0 is one for each processor this process may use.
        instruction_set: see `has_instruction_set`.

    Returns:
        ExactMismatch(mean, rows).

    Raises:
        InvalidArgumentError: shapes or dtypes that do not fit.
        NonFiniteError: a counted row holds a NaN or +inf, or only -inf; the row is named.

    Example:
        >>> logits = np.array([[0.0, 1.0, 2.0]], np.float32)
        >>> exact_mismatch(logits, logits).mean.total_variation
        0.0
    """
    trainer = view(trainer_logits, "trainer_logits")
    rollout = view(rollout_logits, "rollout_logits")
    shape = trainer.shape[:-1]
    if rollout.shape != trainer.shape:
        raise InvalidArgumentError(
            f"rollout_logits: shape {list(rollout.shape)} is not that of trainer_logits, "
            f"{list(trainer.shape)}")
    counted = None if mask is None else token_vector(as_mask(mask), "mask", shape, "trainer_logits")
    options = _log_probs_options(temperature, soft_cap, -100, logits_dtype, threads, instruction_set)
    rows = np.empty(shape, _DIVERGENCE)
    mean = c.Divergence()
    check(library.lockstep_mismatch_exact(
        mean, rows.ctypes.data, rows.size, row_matrix(trainer).tensor(), row_matrix(rollout).tensor(),
        _tensor(counted), options))
    return ExactMismatch(Divergence(*(getattr(mean, name) for name in Divergence._fields)), rows)


class _Log:
    """The four inputs every measurement takes, as the library wants them."""

    def __init__(self, trainer: Log, rollout: Log, mask: Log | None, offsets: Array | None) -> None:
        inputs = {"trainer_log_probs": trainer, "rollout_log_probs": rollout, "mask": mask}
        self.offsets, arrays = layout(inputs, offsets)
        self.trainer = view(arrays["trainer_log_probs"], "trainer_log_probs")
        self.rollout = view(arrays["rollout_log_probs"], "rollout_log_probs")
        self.mask = None if mask is None else view(as_mask(arrays["mask"]), "mask")

    def tensors(self) -> list[c.Tensor | None]:
        inputs = (self.trainer, self.rollout, self.mask, self.offsets)
        return [_tensor(each) for each in inputs]

    @property
    def sequences(self) -> int:
        return sequence_count(self.trainer, self.offsets)


def _options(non_finite: str, threads: int, instruction_set: str) -> c.MismatchOptions:
    return c.MismatchOptions(
        sizeof(c.MismatchOptions), choice(c.NON_FINITE, non_finite, "non_finite"),
        int32(threads, "threads"), choice(c.INSTRUCTION_SETS, instruction_set, "instruction_set"))


_fields = reader(c.Mismatch, {c.Estimate: Estimate._make})


def _statistics(raw: c.Mismatch) -> Mismatch:
    values = _fields(raw)
    del values["struct_size"], values["reserved"]
    found = object.__new__(Mismatch)
    found.__dict__.update(values)  # its __init__ would set 48 fields one by one
    return found
