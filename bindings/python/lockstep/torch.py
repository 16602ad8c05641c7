"""Log-probs and objectives for PyTorch's autograd: the library computes both directions.

    >>> import torch, lockstep.torch
    >>> logits = torch.zeros(1, 4, requires_grad=True)
    >>> lockstep.torch.log_probs(logits, torch.tensor([0])).sum().backward()
    >>> logits.grad
    tensor([[ 0.7500, -0.2500, -0.2500, -0.2500]])

Options, shapes and errors are those of `lockstep.log_probs`, `lockstep.linear_log_probs` and
`lockstep.objective_loss`. CPU
tensors; gradients of gradients are not offered.
"""

from __future__ import annotations

from typing import Any

try:
    import torch
except ModuleNotFoundError as missing:
    if missing.name != "torch":
        raise
    raise ModuleNotFoundError("lockstep.torch needs PyTorch: pip install 'lockstep[torch]'", name="torch") from None
from torch.autograd.function import once_differentiable

from . import _log_probs, _objectives


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits, targets, entropy, options):
        result = _log_probs.log_probs(logits, targets, entropy=entropy, log_sum_exp=True, **options)
        ctx.save_for_backward(logits, targets, result.log_sum_exp)
        ctx.options = options
        return (result.log_probs, result.entropy) if entropy else result.log_probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_log_probs, d_entropy=None):
        logits, targets, log_sum_exp = ctx.saved_tensors
        gradient = _log_probs.log_probs_backward(
            logits, targets, d_log_probs, d_entropy, log_sum_exp=log_sum_exp, **ctx.options)
        return gradient, None, None, None


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden, weight, targets, bias, entropy, options):
        result = _log_probs.linear_log_probs(
            hidden, weight, targets, bias, entropy=entropy, log_sum_exp=True, **options)
        ctx.save_for_backward(hidden, weight, targets, bias, result.log_sum_exp)
        ctx.options = options
        return (result.log_probs, result.entropy) if entropy else result.log_probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_log_probs, d_entropy=None):
        hidden, weight, targets, bias, log_sum_exp = ctx.saved_tensors
        needs_hidden, needs_weight, _, needs_bias, *_ = ctx.needs_input_grad
        # The head's gradient is made in the head's own format: an fp32 copy would be twice its size.
        d_weight = torch.zeros_like(weight, memory_format=torch.contiguous_format) if needs_weight else False
        gradients = _log_probs.linear_log_probs_backward(
            hidden, weight, targets, bias, d_log_probs=d_log_probs, d_entropy=d_entropy,
            log_sum_exp=log_sum_exp, d_hidden=needs_hidden, d_weight=d_weight, d_bias=needs_bias,
            **ctx.options)
        return gradients.d_hidden, gradients.d_weight, None, gradients.d_bias, None, None


def log_probs(
    logits: torch.Tensor, targets: torch.Tensor, *, entropy: bool = False, **options: Any
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`lockstep.log_probs`, differentiable with respect to logits.

    Args:
        logits: [..., vocab] fp32, fp16 or bf16.
        targets: [...] int32 or int64.
        entropy: return (log_probs, entropy), both differentiable.
        options: temperature, soft_cap, ignore_index, logits_dtype, threads, instruction_set.

    Returns:
        [...] fp32 log-probs, or the pair.
    """
    return _LogProbs.apply(logits, targets, entropy, options)


def linear_log_probs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    entropy: bool = False,
    **options: Any,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`lockstep.linear_log_probs`, differentiable with respect to hidden, weight and bias.

    Neither direction holds tokens x vocab.

    Args:
        hidden: [..., H] fp32, fp16 or bf16.
        weight: [vocab x H] fp32, fp16 or bf16.
        targets: [...] int32 or int64.
        bias: [vocab], or None.
        entropy: return (log_probs, entropy), both differentiable.
        options: temperature, soft_cap, ignore_index, logits_dtype, threads, instruction_set.

    Returns:
        [...] fp32 log-probs, or the pair.
    """
    return _LinearLogProbs.apply(hidden, weight, targets, bias, entropy, options)


class _ObjectiveLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, current_log_probs, entropies, call):
        result = call(current_log_probs, entropies)
        ctx.save_for_backward(result.d_log_probs, result.d_entropies)
        ctx.dtypes = current_log_probs.dtype, None if entropies is None else entropies.dtype
        kind = torch.float64 if current_log_probs.dtype is torch.float64 else torch.float32
        return torch.tensor(result.loss, dtype=kind)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss):
        # The gradient of a loss that nothing was done to is there already.
        gradients = [
            None if saved is None or not needed else (saved if d_loss == 1 else saved * d_loss).to(dtype)
            for saved, needed, dtype in zip(ctx.saved_tensors, ctx.needs_input_grad, ctx.dtypes)]
        return *gradients, None


def objective_loss(
    current_log_probs: torch.Tensor,
    trainer_log_probs: torch.Tensor | None,
    advantages: torch.Tensor,
    mask: torch.Tensor | None = None,
    offsets: torch.Tensor | None = None,
    *,
    entropies: torch.Tensor | None = None,
    **parts_and_options: Any,
) -> tuple[torch.Tensor, _objectives.ObjectiveReport]:
    """`lockstep.objective_loss`, differentiable with respect to current_log_probs and entropies.

    >>> current = torch.tensor([[-0.5, -0.7]], requires_grad=True)
    >>> loss, report = lockstep.torch.objective_loss(current, current.detach(), torch.tensor([2.0]))
    >>> loss.backward()
    >>> current.grad, report.ratio_mean
    (tensor([[-1., -1.]]), 1.0)

    Args:
        current_log_probs: of the policy that is updated, [tokens] or [sequences x length].
        trainer_log_probs: what the ratio is against; None for "reinforce".
        advantages: one for each token, or [sequences].
        mask: which tokens count.
        offsets: [sequences + 1], for packed log-probs.
        entropies: of the current policy; differentiable too.
        parts_and_options: everything else that `lockstep.objective_loss` takes.

    Returns:
        The loss, a scalar in fp64 where the log-probs are, else in fp32; and the report.
    """
    reports = []

    def call(current, entropies):
        result = _objectives.objective_loss(
            current, trainer_log_probs, advantages, mask, offsets, entropies=entropies, **parts_and_options)
        reports.append(_objectives.ObjectiveReport(**result.to_dict()))
        return result

    loss = _ObjectiveLoss.apply(current_log_probs, entropies, call)
    return loss, reports[0]
