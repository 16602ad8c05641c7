"""Log-probs for PyTorch's autograd: the library computes both directions.

    >>> import torch, lockstep.torch
    >>> logits = torch.zeros(1, 4, requires_grad=True)
    >>> lockstep.torch.log_probs(logits, torch.tensor([0])).sum().backward()
    >>> logits.grad
    tensor([[ 0.7500, -0.2500, -0.2500, -0.2500]])

Options, shapes and errors are those of `lockstep.log_probs` and `lockstep.linear_log_probs`. CPU
tensors; gradients of gradients are not offered.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from . import _log_probs


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
