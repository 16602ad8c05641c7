"""Log-probs: from logits, from hidden states and a head without forming the logits, and backward."""

from __future__ import annotations

import weakref
from ctypes import byref, c_void_p, sizeof
from math import prod
from typing import NamedTuple

from . import _library as c
from ._errors import InvalidArgumentError
from ._library import check, choice, int32, library, real
from ._tensors import (
    Array, View, empty, format_code, row_blocks, row_matrix, token_vector, view, zeros,
)


class LogProbs(NamedTuple):
    """What `log_probs` returns when more than the log-probs is asked for; the rest is None."""

    #: Log-prob of each target, nats, never above 0.
    log_probs: Array
    #: Entropy of each row's distribution, nats.
    entropy: Array | None = None
    #: ln sum exp of each row, fp64: hand it to the backward to save it a pass.
    log_sum_exp: Array | None = None
    #: The probability of the kept set before it was cut; 1 without top_k, top_p and min_p.
    kept_mass: Array | None = None


class LinearGradients(NamedTuple):
    """What `linear_log_probs_backward` returns; None for what was not asked for."""

    d_hidden: Array | None
    d_weight: Array | None
    d_bias: Array | None


def log_probs(
    logits: Array,
    targets: Array,
    *,
    temperature: float = 1.0,
    soft_cap: float | None = None,
    ignore_index: int = -100,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    logits_dtype: object = None,
    entropy: bool = False,
    log_sum_exp: bool = False,
    kept_mass: bool = False,
    dtype: object = "fp32",
    threads: int = 0,
    instruction_set: str = "best",
) -> Array | LogProbs:
    """Log-prob of each row's target, from logits.

    With y = soft_cap(logits) / temperature::

        log_prob = y[target] - ln sum_v exp(y[v])

    The bits of a row depend on that row and the options alone: not on the batch it came in, nor on
    `threads`, nor on `instruction_set`. A logit of -inf contributes exactly nothing; a target at -inf has
    log-prob -inf. With top_k, top_p or min_p the results are those of the kept set renormalised (what a serving
    engine calls "processed"), and a target outside it has log-prob -inf.

    Args:
        logits: [..., vocab] fp32, fp16 or bf16; the last dimension contiguous. One row may be 1-D.
        targets: [...] int32 or int64, in [0, vocab) or ignore_index: one for each row of logits.
        temperature: in [1e-6, 1e6]. 0 is an error: it is a limit, not a policy.
        soft_cap: y = soft_cap * tanh(logits / soft_cap), before the temperature; None for none.
        ignore_index: rows with this target are never read; their results are 0.
        top_k: keep only this many of the largest logits; None for all. Ties with the last are kept.
        top_p: then, after min_p, keep only the smallest set of the largest whose probability reaches this.
        min_p: keep only logits whose probability is at least this share of the largest one's.
        logits_dtype: round the logits to "fp16", "bf16", or "e8m5" and its like first, as a 16-bit head does.
        entropy: also return the entropy.
        log_sum_exp: also return ln sum exp (fp64).
        kept_mass: also return the probability of the kept set before it was cut.
        dtype: of the results: "fp32" or "fp64".
        threads: 0 is one for each processor this process may use.
        instruction_set: see `has_instruction_set`.

    Returns:
        [...] log-probs, in nats, of the kind of `logits` (NumPy unless that is PyTorch's); or `LogProbs`.

    Raises:
        InvalidArgumentError: an argument is wrong: a target outside the vocabulary (the index is named),
            a shape, a dtype, a last dimension that is not contiguous (it is never copied silently).
        NonFiniteError: a counted row holds a NaN or +inf, or only -inf; the row is named.

    Example:
        >>> logits = np.array([[1, 2, 3, 4], [0, 0, 8, 0]], np.float32)
        >>> log_probs(logits, [3, 2])
        array([-0.44018972, -0.00100588], dtype=float32)
    """
    rows = view(logits, "logits")
    shape = rows.shape[:-1]
    labels = token_vector(targets, "targets", shape, "logits")
    options = _options(
        temperature, soft_cap, ignore_index, logits_dtype, threads, instruction_set, top_k, top_p, min_p)
    results = _results(rows, dtype, entropy, log_sum_exp, kept_mass)
    outputs = [_flat(each) for each in results]
    for start, (block,) in row_blocks(rows):
        count = block.shape[0]
        check(library.lockstep_log_probs(
            *(_part(each, start, count) for each in outputs),
            block.tensor(), _part(labels, start, count), options,
        ), _where(rows, start, count))
    return _answer(results)


def log_probs_backward(
    logits: Array,
    targets: Array,
    d_log_probs: Array | None,
    d_entropy: Array | None = None,
    *,
    log_sum_exp: Array | None = None,
    out: Array | None = None,
    temperature: float = 1.0,
    soft_cap: float | None = None,
    ignore_index: int = -100,
    logits_dtype: object = None,
    threads: int = 0,
    instruction_set: str = "best",
) -> Array:
    """Gradient of sum(d_log_probs * log_probs + d_entropy * entropy) with respect to the logits.

    With p = softmax(y)::

        dL/dy[v] = d_log_prob * (1[v == target] - p[v]) - d_entropy * p[v] * (ln p[v] + entropy)

    then through temperature and soft-cap. Rounding to logits_dtype passes gradients straight through.

    Args:
        logits, targets, temperature, soft_cap, ignore_index, logits_dtype: as in the forward call.
        d_log_probs: [...] fp32 or fp64, the gradient of each log-prob; None is zero.
        d_entropy: [...] fp32 or fp64, the gradient of each entropy; None is zero.
        log_sum_exp: [...] fp64, from the forward call with the same options; saves one pass. The bits
            are the same with and without.
        out: [..., vocab] fp32, fp16 or bf16 to write into, its leading dimensions mergeable; may be
            `logits` itself, which is then overwritten. By default a new array of logits' kind and dtype.
        threads: 0 is one for each processor this process may use.
        instruction_set: see `has_instruction_set`.

    Returns:
        [..., vocab] gradient; zeros in rows at ignore_index.

    Raises:
        InvalidArgumentError, NonFiniteError: as in `log_probs`.

    Example:
        >>> log_probs_backward(np.zeros((1, 4), np.float32), [0], np.ones(1, np.float32))
        array([[ 0.75, -0.25, -0.25, -0.25]], dtype=float32)
    """
    rows = view(logits, "logits")
    shape = rows.shape[:-1]
    labels = token_vector(targets, "targets", shape, "logits")
    upstream = _upstream(d_log_probs, d_entropy, log_sum_exp, shape, "logits")
    options = _options(temperature, soft_cap, ignore_index, logits_dtype, threads, instruction_set)
    if out is None:
        out = empty(rows.shape, rows.code, rows)
        blocks = row_blocks(view(out, "d_logits"), rows)
    else:
        # One call only: an error in a later block would leave the caller's array half written.
        written = view(out, "out", written=True)
        if written.shape != rows.shape:
            raise InvalidArgumentError(
                f"out: shape {list(written.shape)} is not that of logits, {list(rows.shape)}")
        blocks = iter([(0, [row_matrix(written), row_matrix(rows)])])
    for start, (gradient, block) in blocks:
        count = block.shape[0]
        check(library.lockstep_log_probs_backward(
            gradient.tensor(), *(_part(each, start, count) for each in upstream),
            block.tensor(), _part(labels, start, count), options,
        ), _where(rows, start, count))
    return out


def linear_log_probs(
    hidden: Array,
    weight: Array,
    targets: Array,
    bias: Array | None = None,
    *,
    temperature: float = 1.0,
    soft_cap: float | None = None,
    ignore_index: int = -100,
    logits_dtype: object = None,
    entropy: bool = False,
    log_sum_exp: bool = False,
    dtype: object = "fp32",
    threads: int = 0,
    instruction_set: str = "best",
) -> Array | LogProbs:
    """Log-prob of each row's target, from hidden states and a head: logits = hidden weight^T + bias.

    The logits never exist in memory (at most 8 MB are used), and the result equals, bit for bit,
    `log_probs` of the logits formed by the same product rule. For repeated use of one weight see `Head`.

    Args:
        hidden: [..., H] fp32, fp16 or bf16; the last dimension contiguous, leading ones mergeable.
        weight: [vocab x H] fp32, fp16 or bf16 (need not be hidden's); rows contiguous.
        targets: [...] int32 or int64, in [0, vocab) or ignore_index.
        bias: [vocab] fp32, fp16 or bf16; None for none.
        others: as in `log_probs`.

    Returns:
        [...] log-probs, in nats, of the kind of `hidden`; or `LogProbs` (its kept_mass is None).

    Raises:
        InvalidArgumentError, NonFiniteError: as in `log_probs`.

    Example:
        >>> hidden = np.array([[1, 0, 2]], np.float16)
        >>> weight = np.eye(4, 3, dtype=np.float16)
        >>> linear_log_probs(hidden, weight, [2])
        array([-0.4938117], dtype=float32)
    """
    rows = view(hidden, "hidden")
    head = view(weight, "weight")
    offset = None if bias is None else view(bias, "bias")
    labels = token_vector(targets, "targets", rows.shape[:-1], "hidden")
    options = _options(temperature, soft_cap, ignore_index, logits_dtype, threads, instruction_set)
    results = _results(rows, dtype, entropy, log_sum_exp)
    check(library.lockstep_linear_log_probs(
        *(_tensor(_flat(each)) for each in results[:3]),
        row_matrix(rows).tensor(), head.tensor(), _tensor(offset), labels.tensor(), options))
    return _answer(results)


def linear_log_probs_backward(
    hidden: Array,
    weight: Array,
    targets: Array,
    bias: Array | None = None,
    *,
    d_log_probs: Array | None,
    d_entropy: Array | None = None,
    log_sum_exp: Array | None = None,
    d_hidden: Array | bool = True,
    d_weight: Array | bool = True,
    d_bias: Array | bool | None = None,
    temperature: float = 1.0,
    soft_cap: float | None = None,
    ignore_index: int = -100,
    logits_dtype: object = None,
    threads: int = 0,
    instruction_set: str = "best",
) -> LinearGradients:
    """Gradients of sum(d_log_probs * log_probs + d_entropy * entropy) with respect to hidden, weight, bias.

    The logits are formed again, never stored. Micro-batches of a multiple of 128 tokens, given in order
    and added into the same fp32 arrays, leave the same bits in d_weight and d_bias as one batch.

    Args:
        hidden, weight, targets, bias, temperature, …: as in the forward call.
        d_log_probs: [...] fp32 or fp64, the gradient of each log-prob; None is zero.
        d_entropy: [...] fp32 or fp64, the gradient of each entropy; None is zero.
        log_sum_exp: [...] fp64, from the forward call with the same options; saves one pass.
        d_hidden: True for a new array of hidden's dtype, False for none, or an array [..., H] the
            gradient is ADDED to.
        d_weight: the same, [vocab x H]; a new one is fp32, a given one may be fp16 or bf16: it gets the
            sum of the whole call, rounded once as it is added.
        d_bias: the same, [vocab]; fp32. By default wanted when there is a bias.

    Returns:
        LinearGradients(d_hidden, d_weight, d_bias), None for what was not wanted.

    Raises:
        InvalidArgumentError, NonFiniteError: as in `log_probs`.

    Example:
        >>> hidden, weight = np.ones((1, 2), np.float32), np.zeros((4, 2), np.float32)
        >>> linear_log_probs_backward(hidden, weight, [0], d_log_probs=np.ones(1, np.float32)).d_weight
        array([[ 0.75,  0.75],
               [-0.25, -0.25],
               [-0.25, -0.25],
               [-0.25, -0.25]], dtype=float32)
    """
    rows = view(hidden, "hidden")
    head = view(weight, "weight")
    offset = None if bias is None else view(bias, "bias")
    labels = token_vector(targets, "targets", rows.shape[:-1], "hidden")
    upstream = _upstream(d_log_probs, d_entropy, log_sum_exp, rows.shape[:-1], "hidden")
    options = _options(temperature, soft_cap, ignore_index, logits_dtype, threads, instruction_set)
    gradients = LinearGradients(
        _gradient(d_hidden, rows.shape, rows.code, rows),
        _gradient(d_weight, head.shape, c.FLOAT32, rows),
        _gradient(bias is not None if d_bias is None else d_bias, head.shape[:1], c.FLOAT32, rows))
    to_hidden, to_weight, to_bias = (
        None if each is None else view(each, name, written=True)
        for each, name in zip(gradients, LinearGradients._fields))
    if to_hidden is not None and to_hidden.shape != rows.shape:
        raise InvalidArgumentError(
            f"d_hidden: shape {list(to_hidden.shape)} is not that of hidden, {list(rows.shape)}")
    check(library.lockstep_linear_log_probs_backward(
        None if to_hidden is None else row_matrix(to_hidden).tensor(),
        _tensor(to_weight), _tensor(to_bias), *(_tensor(each) for each in upstream),
        row_matrix(rows).tensor(), head.tensor(), _tensor(offset), labels.tensor(), options))
    return gradients


class _HeadHandle:
    """A lockstep_head, destroyed with the last reference to it: also when a call is using it."""

    def __init__(self, weight: View, bias: View | None) -> None:
        pointer = c_void_p()
        check(library.lockstep_head_create(byref(pointer), weight.tensor(), _tensor(bias)))
        self.pointer = pointer
        weakref.finalize(self, library.lockstep_head_destroy, pointer)


class Head:
    """A head copied once into the layout the kernels read, for repeated use.

    It takes as much memory as the weight and keeps no reference to it: change the weight, make a new
    head. May be used from many threads at once. Freed with the object, by `close`, or at the end of a
    ``with`` block.

    Args:
        weight: [vocab x H] fp32, fp16 or bf16; rows contiguous.
        bias: [vocab] fp32, fp16 or bf16; None for none.

    Raises:
        InvalidArgumentError: a wrong shape or dtype.
        OutOfMemoryError: no memory for the copy.

    Example:
        >>> with Head(np.eye(4, 3, dtype=np.float16)) as head:
        ...     head.log_probs(np.array([[1, 0, 2]], np.float16), [2])
        array([-0.4938117], dtype=float32)
    """

    def __init__(self, weight: Array, bias: Array | None = None) -> None:
        self._handle: _HeadHandle | None = _HeadHandle(
            view(weight, "weight"), None if bias is None else view(bias, "bias"))

    def log_probs(
        self,
        hidden: Array,
        targets: Array,
        *,
        temperature: float = 1.0,
        soft_cap: float | None = None,
        ignore_index: int = -100,
        logits_dtype: object = None,
        entropy: bool = False,
        log_sum_exp: bool = False,
        dtype: object = "fp32",
        threads: int = 0,
        instruction_set: str = "best",
    ) -> Array | LogProbs:
        """`linear_log_probs` with this head: the same bits, faster for few tokens.

        Args:
            hidden: [..., H] fp32, fp16 or bf16; the last dimension contiguous.
            targets: [...] int32 or int64, in [0, vocab) or ignore_index.
            others: as in `log_probs`.

        Returns:
            [...] log-probs, in nats, of the kind of `hidden`; or `LogProbs`.

        Raises:
            InvalidArgumentError, NonFiniteError: as in `log_probs`; also when the head is closed.
        """
        handle = self._handle
        if handle is None:
            raise InvalidArgumentError("head: it is closed; make a new one")
        rows = view(hidden, "hidden")
        labels = token_vector(targets, "targets", rows.shape[:-1], "hidden")
        options = _options(temperature, soft_cap, ignore_index, logits_dtype, threads, instruction_set)
        results = _results(rows, dtype, entropy, log_sum_exp)
        check(library.lockstep_head_log_probs(
            *(_tensor(_flat(each)) for each in results[:3]),
            handle.pointer, row_matrix(rows).tensor(), labels.tensor(), options))
        return _answer(results)

    def close(self) -> None:
        """Frees the memory, once no call is using it. Closing twice is fine."""
        self._handle = None

    def __enter__(self) -> Head:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _options(
    temperature, soft_cap, ignore_index, logits_dtype, threads, instruction_set, top_k=None, top_p=None, min_p=None
) -> c.LogProbsOptions:
    return c.LogProbsOptions(
        sizeof(c.LogProbsOptions),
        int32(ignore_index, "ignore_index"),
        real(temperature, "temperature"),
        0.0 if soft_cap is None else real(soft_cap, "soft_cap"),
        1.0 if top_p is None else real(top_p, "top_p"),
        0 if top_k is None else int32(top_k, "top_k"),
        0 if logits_dtype is None else format_code(logits_dtype, "logits_dtype", emulated=True),
        int32(threads, "threads"),
        choice(c.INSTRUCTION_SETS, instruction_set, "instruction_set"),
        0.0 if min_p is None else real(min_p, "min_p"))


def _results(rows: View, dtype, entropy, log_sum_exp, kept_mass=False) -> list[Array | None]:
    """New arrays for the fields of `LogProbs`, None where not wanted."""
    shape = rows.shape[:-1]
    code = c.FLOAT32 if dtype == "fp32" else format_code(dtype, "dtype")
    return [
        empty(shape, code, rows),
        empty(shape, code, rows) if entropy else None,
        empty(shape, c.FLOAT64, rows) if log_sum_exp else None,
        empty(shape, code, rows) if kept_mass else None,
    ]


def _answer(results: list[Array | None]) -> Array | LogProbs:
    """The log-probs alone if nothing else was wanted."""
    return LogProbs(*results) if any(each is not None for each in results[1:]) else results[0]


def _upstream(d_log_probs, d_entropy, log_sum_exp, shape, of: str) -> list[View | None]:
    named = (("d_log_probs", d_log_probs), ("d_entropy", d_entropy), ("log_sum_exp", log_sum_exp))
    return [None if each is None else token_vector(each, name, shape, of) for name, each in named]


def _gradient(wanted: Array | bool, shape, code: int, like: View) -> Array | None:
    if wanted is True:
        return zeros(shape, code, like)
    return None if wanted is False else wanted


def _flat(array: Array | None) -> View | None:
    return None if array is None else view(array, "result").flattened(0)


def _tensor(each: View | None) -> c.Tensor | None:
    return None if each is None else each.tensor()


def _part(each: View | None, start: int, count: int) -> c.Tensor | None:
    return None if each is None else each.part(start, count).tensor()


def _where(rows: View, start: int, count: int) -> str:
    """Says which rows a message counts from, where a matrix was taken in blocks."""
    if count == prod(rows.shape[:-1]):
        return ""
    return f"in the block of {count} rows that starts at row {start}: "
