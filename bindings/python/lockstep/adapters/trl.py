"""TRL's GRPO, with Lockstep's correction and loss: a mixin for `GRPOTrainer`, or `patch` for one that exists.

    class Trainer(lockstep.adapters.trl.LockstepMixin, trl.GRPOTrainer):
        pass

Options and names of metrics are those of `GRPOConfig`. docs/Adapters.md says where results differ on purpose.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from .. import _corrections, _objectives
from .._corrections import Rejection
from .._errors import InvalidArgumentError, UnsupportedError
from ..torch import objective_loss

_NO_CLAMP = {"log_ratio_min": -math.inf, "log_ratio_max": math.inf}
_CLIPPED = ("grpo", "bnpo", "dapo", "dr_grpo", "luspo")
_MODEL_INPUTS = (
    "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles",
    "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids")
Inputs = dict[str, Any]


def importance_sampling_ratio(
    old_per_token_logps: torch.Tensor,
    sampling_per_token_logps: torch.Tensor,
    mask: torch.Tensor,
    *,
    mode: str = "sequence_mask",
    clip_min: float | None = None,
    clip_max: float | None = 3.0,
) -> tuple[torch.Tensor, _corrections.Correction]:
    """TRL's `inputs["importance_sampling_ratio"]`, by `lockstep.correct`.

    Args:
        old_per_token_logps: of the trainer policy, [sequences x length].
        sampling_per_token_logps: of the rollout policy; a NaN is a token that it could not score, which counts for
            nothing: its weight is 0, and a sequence's is of its other tokens.
        mask: which tokens count.
        mode: vllm_importance_sampling_mode.
        clip_min: vllm_importance_sampling_clip_min.
        clip_max: vllm_importance_sampling_clip_max.

    Returns:
        The weights, [sequences x length] or, at sequence level, [sequences x 1], 1 where no token counts; and the
        correction with its figures.

    Raises:
        InvalidArgumentError: a mode that there is not, or bounds that make no sense.
    """
    level, _, kind = mode.partition("_")
    if level not in ("token", "sequence") or kind not in ("truncate", "mask"):
        raise InvalidArgumentError(
            f"vllm_importance_sampling_mode is {mode!r}; give token_truncate, token_mask, sequence_truncate or "
            "sequence_mask")
    counted = mask.cpu().bool()
    found = _corrections.correct(
        old_per_token_logps.detach().cpu(), sampling_per_token_logps.detach().cpu(), counted,
        weights="clip" if kind == "truncate" else "mask",
        level="token" if level == "token" else "sequence_sum", low=0.0 if clip_min is None else clip_min,
        high=math.inf if clip_max is None else clip_max, non_finite="exclude", **_NO_CLAMP)
    weights = found.weights
    if level == "sequence":
        weights, counted = weights.amax(1, keepdim=True), counted.any(1, keepdim=True)
    return weights.where(counted, 1.0).to(old_per_token_logps.device, old_per_token_logps.dtype), found


def grpo_loss(
    trainer: Any, inputs: Inputs, per_token_logps: torch.Tensor, kept: torch.Tensor | None = None,
) -> tuple[torch.Tensor, _objectives.ObjectiveReport]:
    """The policy's part of `GRPOTrainer._compute_loss`, before the entropy bonus.

    Args:
        trainer: whose options are used.
        inputs: its inputs, as `_compute_loss` has them.
        per_token_logps: of the current policy, [sequences x length].
        kept: tokens that keep their policy term, as by top_entropy_quantile.

    Returns:
        The loss, differentiable, and the report.

    Raises:
        InvalidArgumentError: options that make no sense, as an epsilon_high below 1 for CISPO.
        NonFiniteError: a NaN or infinity at a token that counts.
    """
    current = per_token_logps.cpu()
    old = _old(inputs, per_token_logps).cpu()
    mask, advantages = _mask(inputs).cpu(), inputs["advantages"].cpu()
    parts: dict[str, Any] = {"kept": None if kept is None else kept.cpu().bool()}
    if trainer.off_policy_mask_threshold is not None:
        near = _near(trainer, inputs, current, old, mask, advantages)
        parts["kept"] = near if kept is None else near & parts["kept"]
    if trainer.use_vllm and trainer.vllm_importance_sampling_correction:
        parts["weights"] = inputs["importance_sampling_ratio"].cpu().expand_as(current).contiguous()
    if trainer.beta != 0.0:
        parts["reference_log_probs"] = inputs["ref_per_token_logps"].cpu()
    term, kl, whole = _term(trainer), _kl(trainer), _aggregation(trainer, inputs, mask)
    apart = trainer.loss_type == "vespo" and kl.get("kl_gradient") == "ratio"
    loss, report = objective_loss(current, old, advantages, mask, **parts, **term, **({} if apart else kl), **whole)
    if apart:  # VESPO's own ratio is another than the divergence's
        loss = loss + objective_loss(
            current, old, torch.zeros_like(advantages), mask, **kl, **whole, **_NO_CLAMP,
            ratio_level=trainer.importance_sampling_level, reference_log_probs=parts["reference_log_probs"])[0]
    return loss.to(per_token_logps.device), report


def _old(inputs: Inputs, per_token_logps: torch.Tensor) -> torch.Tensor:
    """What the ratio is against: on policy, TRL gives nothing."""
    old = inputs.get("old_per_token_logps")
    return per_token_logps.detach() if old is None else old


def _mask(inputs: Inputs) -> torch.Tensor:
    tools = inputs.get("tool_mask")
    return inputs["completion_mask"] if tools is None else inputs["completion_mask"] * tools


def _near(trainer, inputs, current, old, mask, advantages) -> torch.Tensor:
    """Which tokens off-policy sequence masking keeps; tokens without a sampling log-prob are no evidence."""
    sampled = inputs.get("sampling_per_token_logps", old).cpu()
    found = _corrections.correct(
        current.detach(), sampled, mask, weights="one", advantages=advantages, non_finite="exclude",
        reject=Rejection("ratio", "sequence_mean", low=math.exp(-trainer.off_policy_mask_threshold),
                         side="negative_advantage"), **_NO_CLAMP)
    return found.kept | ~sampled.isfinite()


def _term(trainer: Any) -> dict[str, Any]:
    args, kind = trainer.args, trainer.loss_type
    level = {"token": "token", "sequence": "sequence"}.get(trainer.importance_sampling_level)
    if level is None:
        raise InvalidArgumentError(
            f"importance_sampling_level is {trainer.importance_sampling_level!r}; give 'token' or 'sequence'")
    term = _NO_CLAMP | {"ratio_level": level}
    if kind == "cispo":
        if trainer.epsilon_high < 1:
            raise InvalidArgumentError(
                f"epsilon_high is {trainer.epsilon_high}; for loss_type 'cispo' it is the largest ratio itself, so "
                "every token of an unchanged policy would be scaled by it: give 5.0, or 1 + what you mean")
        return term | {"term": "cispo", "low": 0.0, "high": trainer.epsilon_high}
    if kind == "sapo":
        return term | {
            "term": "sapo", "tau_positive": args.sapo_temperature_pos, "tau_negative": args.sapo_temperature_neg}
    if kind == "vespo":
        return {
            "term": "vespo", "shape_positive": args.vespo_k_pos, "rate_positive": args.vespo_lambda_pos,
            "shape_negative": args.vespo_k_neg, "rate_negative": args.vespo_lambda_neg}
    if kind not in _CLIPPED:
        raise InvalidArgumentError(f"loss_type is {kind!r}; give {', '.join(_CLIPPED)}, cispo, sapo or vespo")
    return term | {"low": 1 - trainer.epsilon_low, "high": 1 + trainer.epsilon_high, "ratio_max": args.delta}


def _kl(trainer: Any) -> dict[str, Any]:
    if trainer.beta == 0.0:
        return {}
    gradient = "ratio" if trainer.args.use_bias_correction_kl else "direct"
    return {"kl": "k3", "kl_coefficient": trainer.beta, "kl_input_max": None, "kl_gradient": gradient}


def _steps(trainer: Any) -> float:
    """Micro-batches of an optimizer step."""
    return trainer.current_gradient_accumulation_steps if trainer.model.training else 1.0


def _aggregation(trainer: Any, inputs: Inputs, mask: torch.Tensor) -> dict[str, Any]:
    """TRL divides by all sequences, those without tokens too, as truncated ones may be."""
    kind, sequences, steps = trainer.loss_type, len(mask), _steps(trainer)
    if kind in ("grpo", "sapo"):
        whole = int((mask != 0).any(1).sum())
        return {"aggregation": "seq_mean_token_mean", "scale": whole / (sequences * steps)}
    if kind == "bnpo":
        return {"aggregation": "token_mean", "scale": 1 / steps}
    if kind in ("dr_grpo", "luspo"):
        length = trainer.max_completion_length if kind == "dr_grpo" else 1
        return {"aggregation": "token_sum", "scale": 1 / (sequences * length * steps)}
    items = max(float(inputs["num_items_in_batch"]), 1.0) / trainer.accelerator.num_processes
    if trainer.model.training:
        items *= steps / trainer.args.steps_per_generation
    return {"aggregation": "token_sum", "scale": 1 / items}


class LockstepMixin:
    """Lockstep's correction and loss for a `GRPOTrainer`: name it before the trainer."""

    def _generate_and_score_completions(self, inputs: Any) -> Inputs:
        output = super()._generate_and_score_completions(inputs)
        if "importance_sampling_ratio" in output:
            output["importance_sampling_ratio"], found = importance_sampling_ratio(
                output["old_per_token_logps"], output["sampling_per_token_logps"], _mask(output),
                mode=self.vllm_importance_sampling_mode, clip_min=self.vllm_importance_sampling_clip_min,
                clip_max=self.vllm_importance_sampling_clip_max)
            self._log_correction(found)
        return output

    def _compute_loss(self, model: Any, inputs: Inputs) -> torch.Tensor:
        _check(self)
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        logps, entropies, aux_loss = self._get_per_token_logps_and_entropies(
            model, ids, attention, inputs["completion_ids"].size(1), compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled, **{name: inputs.get(name) for name in _MODEL_INPUTS})
        mask = _mask(inputs)
        uncertain = None
        if self.top_entropy_quantile < 1.0:
            uncertain = self.get_high_entropy_mask(entropies, mask, 1 - self.top_entropy_quantile)
        loss, _ = grpo_loss(self, inputs, logps, uncertain)
        steps = _steps(self)
        figures = _figures(self, inputs, logps.detach(), entropies.detach())
        if self._entropy_bonus_enabled:
            whole = self.loss_type in ("cispo", "dapo", "vespo")
            policy_loss = loss.detach() if whole else loss.detach() * steps
            figures["policy_loss"] = self.accelerator.gather(policy_loss).nanmean().item()
            acting = mask.bool() if uncertain is None else mask.bool() & uncertain.bool()
            bonus = torch.where(acting, entropies, 0.0).sum() / acting.sum().clamp(min=1)
            loss = loss - self.entropy_coef * bonus / steps
            if self.model.training and self.accelerator.sync_gradients:
                figures["entropy_coef"] = self.entropy_coef
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * aux_loss / steps
            figures["aux_loss"] = self.accelerator.gather_for_metrics(aux_loss).mean().item()
        self._log_figures(figures)
        return loss

    def _log_correction(self, found: _corrections.Correction) -> None:
        """The ratio before the bounds, beside TRL's figures of it after them."""
        name = "sampling/importance_sampling_ratio"
        self._log_figures({
            f"{name}/raw_min": found.ratio.min, f"{name}/raw_mean": found.ratio.mean,
            f"{name}/raw_max": found.ratio.max, f"{name}/effective_sample_size": found.weight.ess,
            "sampling/unscored_tokens": float(found.excluded_tokens)})

    def _log_figures(self, figures: dict[str, float]) -> None:
        mode = "train" if self.model.training else "eval"
        for name, value in figures.items():
            self._metrics[mode][name].append(value)


def _figures(trainer, inputs, logps, entropies) -> dict[str, float]:
    """TRL's metrics of a loss, over all processes."""
    mask = _mask(inputs).bool()
    counted = mask.any(1)
    lengths = mask.sum(1)[counted]

    def rows(values):  # the mean of each sequence that has tokens
        return torch.where(mask, values, 0.0).sum(1)[counted] / lengths

    def mean(total, count):
        both = torch.tensor([float(total), float(count)], device=logps.device)
        total, count = trainer.accelerator.reduce(both, reduction="sum").tolist()
        return total / max(count, 1.0)

    def extreme(values, reduce, none):
        own = values if len(values) else torch.full((1,), none, device=logps.device)
        return getattr(trainer.accelerator.gather(getattr(own, reduce)().reshape(1)), reduce)().item()

    figures = {"entropy": mean(torch.where(mask, entropies, 0.0).sum(), mask.sum())}
    advantages = inputs["advantages"]
    advantages = advantages[:, None] if advantages.dim() == 1 else advantages
    gap = torch.where(mask, logps - _old(inputs, logps), 0.0)
    whole = trainer.importance_sampling_level == "sequence"
    ratio = (gap.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1) if whole else gap).exp()
    if trainer.beta != 0.0:
        weights = ratio.expand_as(gap).contiguous().cpu() if trainer.args.use_bias_correction_kl else None
        each = _objectives.kl_penalty(
            logps.cpu(), inputs["ref_per_token_logps"].cpu(), mask.cpu(), weights=weights, kl_input_max=None)
        figures["kl"] = mean(each.sum(), mask.sum())
    if trainer.loss_type == "vespo":
        phi = trainer.get_gamma_weights(
            advantages, gap, mask, inputs.get("importance_sampling_ratio"), *(
                getattr(trainer.args, f"vespo_{name}") for name in ("k_pos", "lambda_pos", "k_neg", "lambda_neg")))
        return figures | {"vespo/phi_seq_mean": mean(phi[counted].sum(), counted.sum())}

    def share(flags):  # of tokens, or of sequences where they have the ratio
        flags = flags.expand_as(mask).double()
        each = rows(flags)
        return each, mean(each.sum(), len(each)) if whole else mean(flags[mask].sum(), mask.sum())

    if trainer.loss_type == "cispo":
        return figures | {"cispo_clip_ratio": share((ratio > trainer.epsilon_high) & (advantages > 0))[1]}
    if trainer.loss_type in _CLIPPED:
        low, low_mean = share((ratio < 1 - trainer.epsilon_low) & (advantages < 0))
        if trainer.args.delta is not None:
            ratio = ratio.clamp(max=trainer.args.delta)
        high, high_mean = share((ratio > 1 + trainer.epsilon_high) & (advantages > 0))
        figures |= {
            "clip_ratio/low_mean": low_mean, "clip_ratio/high_mean": high_mean,
            "clip_ratio/region_mean": low_mean + high_mean, "clip_ratio/low_min": extreme(low, "min", 1.0),
            "clip_ratio/high_max": extreme(high, "max", 0.0)}
    return figures


def _check(trainer: Any) -> None:
    """Refuses what is not offered, before anything is computed."""
    if trainer.use_adaptive_entropy:
        raise UnsupportedError("use_adaptive_entropy: not offered; give a fixed entropy_coef")
    _term(trainer)


def patch(trainer: Any) -> Any:
    """Gives a `GRPOTrainer`, or a subclass of it, Lockstep's correction and loss.

    Args:
        trainer: is changed in place.

    Returns:
        The trainer.

    Raises:
        InvalidArgumentError, UnsupportedError: options that `grpo_loss` refuses.
    """
    _check(trainer)
    kind = type(trainer)
    if not isinstance(trainer, LockstepMixin):
        trainer.__class__ = type(kind.__name__, (LockstepMixin, kind), {"__module__": kind.__module__})
    return trainer
