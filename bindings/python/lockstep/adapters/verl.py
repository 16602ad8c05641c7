"""verl's corrections and policy losses, computed by Lockstep: the same names, arguments, results and metrics.

Importing this module registers the losses as "lockstep_vanilla", "lockstep_gspo" and so on; `install` puts them, and
the correction, in place of verl's own. docs/Adapters.md says how to turn that on from a command line, and where
results differ on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from verl.protocol import DataProto
from verl.trainer.ppo import core_algos, rollout_corr_helper

from .. import _corrections, _mismatch, _objectives
from .._corrections import Rejection
from .._errors import InvalidArgumentError
from ..torch import objective_loss

Threshold = str | float
PolicyLoss = Callable[..., tuple[torch.Tensor, dict[str, Any]]]

_LEVELS = {"token": "token", "sequence": "sequence_sum"}
_RULES = {"token": "token", "seq_sum": "sequence_sum", "seq_mean": "sequence_mean", "seq_max": "sequence_every"}
_NO_CLAMP = {"log_ratio_min": -math.inf, "log_ratio_max": math.inf}


# Corrections

def compute_rollout_correction_and_rejection_mask(
    old_log_prob: torch.Tensor,
    rollout_log_prob: torch.Tensor,
    response_mask: torch.Tensor,
    rollout_is: str | None = None,
    rollout_is_threshold: Threshold | None = 2.0,
    rollout_is_batch_normalize: bool = False,
    rollout_rs: str | None = None,
    rollout_rs_threshold: Threshold | None = None,
) -> tuple[DataProto | None, torch.Tensor, dict[str, float]]:
    """verl's function of this name, by `lockstep.correct`.

    Args:
        old_log_prob: of the trainer policy, [sequences x length].
        rollout_log_prob: of the rollout policy.
        response_mask: which tokens count.
        rollout_is: "token", "sequence", or None for no weights.
        rollout_is_threshold: 2.0 truncates at 2; "0.5_2.0" masks what is outside.
        rollout_is_batch_normalize: divide the weights by their mean, over all processes where there are several.
        rollout_rs: rules such as "token_k1,seq_mean_k3", all of which must keep a token.
        rollout_rs_threshold: one for all, or one for each: "0.5_2.0" (k1, an interval of rollout / trainer: the
            inverse of ours), "0.01".

    Returns:
        The weights as "rollout_is_weights" of a DataProto or None, the mask without rejected tokens, the metrics.

    Raises:
        InvalidArgumentError: an empty mask, or words and thresholds that make no sense.
        NonFiniteError: a NaN or infinity at a token that counts.
    """
    device, dtype = old_log_prob.device, old_log_prob.dtype
    tokens = _Tokens(old_log_prob, rollout_log_prob, response_mask)
    rules = _rules(rollout_rs, rollout_rs_threshold)
    weighted = rollout_is is not None and rollout_is_threshold is not None
    how = _weights(rollout_is, rollout_is_threshold) if weighted else {"weights": "one"}
    shared = rollout_is_batch_normalize and torch.distributed.is_available() and torch.distributed.is_initialized()
    found = _corrections.correct(
        tokens.trainer, tokens.rollout, tokens.mask, reject=list(rules.values()),
        normalize=weighted and rollout_is_batch_normalize and not shared, **how)
    metrics, proto = {}, None
    if weighted:
        weights, mean = found.weights, found.normalizer
        metrics |= _weight_metrics(tokens, rollout_is, weights.double() * mean, found, how)
        if rollout_is_batch_normalize:
            if shared:
                mean = _mean_of_all(found.weight.mean * found.weight.units, found.weight.units, device)
                weights = weights / mean
            metrics["rollout_is_batch_norm_factor"] = mean
        proto = DataProto.from_dict(tensors={"rollout_is_weights": weights.to(device, dtype)})
    if rules:
        for (name, rule), count in zip(rules.items(), found.counts):
            metrics |= _rejection_metrics(tokens, name, rule)
            metrics[f"rollout_rs_{name}_masked_fraction"] = count.tokens / found.tokens
            metrics[f"rollout_rs_{name}_seq_masked_fraction"] = count.touched_sequences / found.sequences
        metrics["rollout_rs_masked_fraction"] = found.rejected_tokens / found.tokens
        metrics["rollout_rs_seq_masked_fraction"] = found.touched_sequences / found.sequences
    metrics |= _policy_metrics(tokens)
    mask = response_mask * found.kept.to(device, response_mask.dtype)
    return proto, mask, {f"rollout_corr/{name}": float(value) for name, value in metrics.items()}


def compute_offpolicy_metrics(
    old_log_prob: torch.Tensor, rollout_log_prob: torch.Tensor | None, response_mask: torch.Tensor
) -> dict[str, float]:
    """verl's function of this name, over the sequences that have tokens.

    Args:
        old_log_prob: of the trainer policy, [sequences x length].
        rollout_log_prob: of the rollout policy; None leaves only the trainer's perplexity.
        response_mask: which tokens count.

    Returns:
        The metrics, without prefix.

    Raises:
        InvalidArgumentError: an empty mask.
        NonFiniteError: a NaN or infinity at a token that counts.
    """
    alone = rollout_log_prob is None
    found = _policy_metrics(_Tokens(old_log_prob, old_log_prob if alone else rollout_log_prob, response_mask))
    return {name: found[name] for name in ("training_ppl", "training_log_ppl")} if alone else found


class _Tokens:
    """The tokens that count, on the CPU, and the sequences that have any."""

    def __init__(self, trainer: torch.Tensor, rollout: torch.Tensor, mask: torch.Tensor) -> None:
        if trainer.shape != rollout.shape or trainer.shape != mask.shape:
            raise InvalidArgumentError(
                f"old_log_prob, rollout_log_prob, response_mask: shapes {list(trainer.shape)}, "
                f"{list(rollout.shape)}, {list(mask.shape)}; give one shape")
        self.trainer, self.rollout = trainer.detach().cpu(), rollout.detach().cpu()
        self.mask = mask.detach().cpu().bool()
        if not self.mask.any():
            raise InvalidArgumentError("response_mask: no token counts; give at least one")
        self.rows = self.mask.any(1)
        self.lengths = self.mask.sum(1)[self.rows]
        self.log_ratio = self._clean(self.trainer) - self._clean(self.rollout)
        self.clamped = self.log_ratio.clamp(-20, 20)

    def _clean(self, values: torch.Tensor) -> torch.Tensor:
        return torch.where(self.mask, values.double(), 0.0)

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        return self._clean(values).sum(1)[self.rows]

    def means(self, values: torch.Tensor) -> torch.Tensor:
        return self.sums(values) / self.lengths

    def spread(self, rows: torch.Tensor) -> torch.Tensor:
        """The value of each sequence at each of its tokens."""
        return rows.repeat_interleave(self.lengths)


def _weights(level: str, threshold: Threshold) -> dict[str, Any]:
    if level not in _LEVELS:
        raise InvalidArgumentError(f"rollout_is is {level!r}; give 'token' or 'sequence'")
    ends = _numbers("rollout_is_threshold", threshold)
    if len(ends) == 1:
        return {"weights": "truncate", "level": _LEVELS[level], "high": ends[0]}
    return {"weights": "mask", "level": _LEVELS[level], "low": ends[0], "high": ends[1]}


def _rules(names: str | None, thresholds: Threshold | None) -> dict[str, Rejection]:
    """The rules of a text by their names."""
    if names is None:
        return {}
    if thresholds is None:
        raise InvalidArgumentError("rollout_rs_threshold: is missing; rollout_rs needs one")
    parts = list(dict.fromkeys(each.strip() for each in names.split(",") if each.strip()))
    values = [each.strip() for each in str(thresholds).split(",") if each.strip()]
    if not parts or len(values) not in (1, len(parts)):
        raise InvalidArgumentError(
            f"rollout_rs_threshold: {len(values)} thresholds for {len(parts)} rules; give one, or one for each")
    return {
        name: _rule(name, value) for name, value in zip(parts, values * len(parts) if len(values) == 1 else values)}


def _rule(name: str, threshold: str) -> Rejection:
    if name not in rollout_corr_helper.SUPPORTED_ROLLOUT_RS_OPTIONS:
        known = ", ".join(sorted(rollout_corr_helper.SUPPORTED_ROLLOUT_RS_OPTIONS))
        raise InvalidArgumentError(f"rollout_rs: no rule {name!r}; there are {known}")
    level, statistic = name.rsplit("_", 1)
    ends = _numbers("rollout_rs_threshold", threshold)
    if statistic == "k1":  # of rollout / trainer
        low, high = ends if len(ends) == 2 else (1 / ends[0], ends[0])
        return Rejection("ratio", _RULES[level], low=1 / high, high=1 / low)
    if len(ends) == 2:
        raise InvalidArgumentError(f"rollout_rs_threshold is {threshold!r}; {name} has an upper bound only")
    return Rejection(statistic, _RULES[level], high=ends[0])


def _numbers(name: str, threshold: Threshold) -> list[float]:
    """One or two positive numbers, the second no smaller."""
    try:
        ends = [float(each) for each in str(threshold).split("_", 1)]
    except ValueError:
        ends = []
    if not ends or isinstance(threshold, bool) or min(ends) <= 0 or ends != sorted(ends):
        raise InvalidArgumentError(f"{name} is {threshold!r}; give a positive number, or two such as '0.5_2.0'")
    return ends


def _mean_of_all(total: float, units: int, device: torch.device) -> float:
    """A mean over the units of all processes; 1 if it is 0."""
    both = torch.tensor([total, units], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(both)
    return float(both[0] / both[1]) or 1.0


def _weight_metrics(
    tokens: _Tokens, level: str, weights: torch.Tensor, found: _corrections.Correction, how: Mapping[str, Any],
) -> dict[str, float]:
    rows = tokens.means(weights)
    masks, high = how["weights"] == "mask", how["high"]
    low = how["low"] if masks else 1 / high
    if level == "token":
        ratio = tokens.clamped.exp()
        raw, units = tokens.means(ratio), ratio[tokens.mask]
        each, statistics, least, most = units, found.weight, found.weight.min, found.weight.max
    else:
        # verl takes mean and spread over tokens, of which a long sequence has more, and the extremes of the ratio.
        whole = tokens.sums(tokens.log_ratio)
        raw = units = whole.clamp(-20, 20).exp()
        each, statistics, least, most = (
            tokens.spread(units), _spread(tokens.spread(rows)), whole.min().exp(), raw.max())
    return {
        "rollout_is_mean": statistics.mean, "rollout_is_std": statistics.std,
        "rollout_is_eff_sample_size": statistics.ess, "rollout_is_max": most, "rollout_is_min": least,
        "rollout_is_ratio_fraction_high": _share(units > high),
        "rollout_is_ratio_fraction_low": _share(units < low),
        **_row_metrics("rollout_is", rows, raw, 1.0, low, high),
        **({"rollout_is_oob_ratio": _share((each < low) | (each > high))} if masks else {})}


def _spread(values: torch.Tensor) -> _corrections.WeightStatistics:
    mean, square = float(values.mean()), float(values.square().mean())
    return _corrections.WeightStatistics(
        len(values), mean, float(values.std(correction=0)), float(values.min()), float(values.max()),
        mean * mean / square if square else 0.0)


def _row_metrics(
    prefix: str, rows: torch.Tensor, raw: torch.Tensor, centre: float, low: float | None, high: float,
) -> dict[str, float]:
    below = {} if low is None else {f"{prefix}_seq_fraction_low": _share(raw < low)}
    return below | {
        f"{prefix}_seq_mean": rows.mean(), f"{prefix}_seq_std": rows.std() if len(rows) > 1 else 0.0,
        f"{prefix}_seq_max": rows.max(), f"{prefix}_seq_min": rows.min(),
        f"{prefix}_seq_max_deviation": (rows - centre).abs().max(), f"{prefix}_seq_fraction_high": _share(raw > high)}


def _share(flags: torch.Tensor) -> float:
    return float(flags.double().mean())


def _rejection_metrics(tokens: _Tokens, name: str, rule: Rejection) -> dict[str, float]:
    """Of a rule's statistic, as verl has it: k1 is the logarithm of rollout / trainer."""
    level, kind = name.rsplit("_", 1)
    prefix, d = f"rollout_rs_{name}", tokens.clamped
    statistic = {"k1": -d, "k2": d.square() / 2, "k3": d.expm1() - d}[kind]
    high, low = (-math.log(rule.low), -math.log(rule.high)) if kind == "k1" else (rule.high, None)
    if level == "token":
        rows, each = tokens.means(statistic), statistic[tokens.mask]
        units = each
    else:
        units = rows = {
            "seq_sum": tokens.sums, "seq_mean": tokens.means,
            "seq_max": lambda x: x.where(tokens.mask, -math.inf).amax(1)[tokens.rows]}[level](statistic)
        each = tokens.spread(rows)
    return {
        f"{prefix}_mean": each.mean(), f"{prefix}_max": units.max(), f"{prefix}_min": units.min(),
        f"{prefix}_fraction_high": _share(units > high),
        f"{prefix}_fraction_low": 0.0 if low is None else _share(units < low),
        f"{prefix}_std": each.clamp(0.0 if low is None else low, high).std(correction=0),
        **_row_metrics(prefix, rows, rows, 0.0, low, high)}


def _policy_metrics(tokens: _Tokens) -> dict[str, float]:
    found = _mismatch.mismatch(tokens.trainer, tokens.rollout, tokens.mask)
    trainer, rollout = -tokens.means(tokens.trainer), -tokens.means(tokens.rollout)
    gap = trainer - rollout
    values = {
        "training_ppl": trainer.exp().mean(), "training_log_ppl": trainer.mean(), "kl": found.k1.value,
        "k3_kl": found.k3.value, "rollout_ppl": rollout.exp().mean(), "rollout_log_ppl": rollout.mean(),
        "log_ppl_diff": gap.mean(), "log_ppl_abs_diff": gap.abs().mean(), "log_ppl_diff_max": gap.max(),
        "log_ppl_diff_min": gap.min(), "ppl_ratio": gap.exp().mean(),
        "chi2_token": (2 * tokens.clamped[tokens.mask]).exp().mean() - 1,
        "chi2_seq": (2 * tokens.sums(tokens.log_ratio).clamp(-20, 20)).exp().mean() - 1}
    return {name: float(value) for name, value in values.items()}


# Losses

def agg_loss(
    loss_mat: torch.Tensor,
    loss_mask: torch.Tensor,
    loss_agg_mode: str,
    dp_size: int = 1,
    batch_num_tokens: int | None = None,
    global_batch_size: int | None = None,
    loss_scale_factor: int | None = None,
) -> torch.Tensor:
    """verl's function of this name: a loss of one number for each token; differentiable.

    Args:
        loss_mat: [sequences x length].
        loss_mask: which tokens count.
        loss_agg_mode: "token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean" or
            "seq-mean-token-sum-norm".
        dp_size: number of data-parallel processes.
        batch_num_tokens: of all processes; the mask's own without.
        global_batch_size: sequences of all processes; the mask's own that have tokens without.
        loss_scale_factor: of "seq-mean-token-sum-norm"; the mask's length without.

    Returns:
        A scalar.

    Raises:
        InvalidArgumentError: a mode that there is not, or a missing number where dp_size is above 1.
        NonFiniteError: a NaN or infinity at a token that counts.
    """
    how = _aggregation(loss_mask, loss_agg_mode, dp_size, batch_num_tokens, global_batch_size, loss_scale_factor)
    # The term -A c with A = -1 is the number itself.
    loss, _ = objective_loss(
        loss_mat.cpu(), None, torch.full((len(loss_mat),), -1.0), loss_mask.cpu(), term="reinforce", **how)
    return loss.to(loss_mat.device)


def _aggregation(
    mask: torch.Tensor, mode: str, dp_size: int = 1, batch_num_tokens: int | None = None,
    global_batch_size: int | None = None, loss_scale_factor: int | None = None,
) -> dict[str, Any]:
    """A sum, and what it is divided by."""
    if mode == "token-sum":
        return {"aggregation": "token_sum", "scale": dp_size}
    name, count = ("batch_num_tokens", batch_num_tokens) if mode == "token-mean" else (
        "global_batch_size", global_batch_size)
    if count is None and dp_size > 1:
        raise InvalidArgumentError(f"{name}: is missing; {mode} over {dp_size} processes needs it")
    rows = int((mask != 0).any(1).sum())
    if mode == "seq-mean-token-mean":
        return {"aggregation": "seq_mean_token_mean", "scale": dp_size * (1 if count is None else rows / float(count))}
    if mode == "token-mean":
        whole = int((mask != 0).sum()) if count is None else count
    elif mode in ("seq-mean-token-sum", "seq-mean-token-sum-norm"):
        whole = rows if count is None else count
        if mode.endswith("norm"):
            whole = whole * (mask.shape[-1] if loss_scale_factor is None else loss_scale_factor)
    else:
        raise InvalidArgumentError(
            f"loss_agg_mode is {mode!r}; give token-mean, token-sum, seq-mean-token-sum, seq-mean-token-mean or "
            "seq-mean-token-sum-norm")
    return {"aggregation": "token_sum", "scale": dp_size / max(float(whole), 1.0)}


class _Batch:
    """What a loss is given, on the CPU; the gradient finds its way back."""

    def __init__(self, old, current, advantages, mask, config, weights) -> None:
        if config is None:
            raise InvalidArgumentError("config: is missing; give the actor's")
        self.device, self.config = current.device, config
        self.parts = {
            "current_log_probs": current.cpu(), "trainer_log_probs": old.detach().cpu(),
            "advantages": advantages.detach().cpu(), "mask": mask.cpu()}
        self.weights = None if weights is None else weights.detach().cpu()

    @property
    def clip(self) -> tuple[float, float]:
        """clip_ratio_low and clip_ratio_high."""
        config = self.config
        return tuple(
            config.clip_ratio if each is None else each for each in (config.clip_ratio_low, config.clip_ratio_high))

    @property
    def log_ratio(self) -> torch.Tensor:
        """Current less trainer; anything where no token counts."""
        return self.parts["current_log_probs"].detach() - self.parts["trainer_log_probs"]

    @property
    def bounds(self) -> dict[str, float]:
        low, high = self.clip
        return {"low": 1 - low, "high": 1 + high}

    def loss(self, mode: str | None, *, ratio: bool = True, **options: Any):
        """Loss and report; without a mode the mean over sequences of this batch alone."""
        how = {"aggregation": "seq_mean_token_mean"} if mode is None else _aggregation(
            self.parts["mask"], mode, **self.config.global_batch_info)
        parts = self.parts if ratio else self.parts | {"trainer_log_probs": None}
        loss, report = objective_loss(**parts, weights=self.weights, **how, **options)
        return loss.to(self.device), report


def _metrics(report: _objectives.ObjectiveReport, clipped: float | None = None, dual: float | None = None):
    """verl's three, 0 where nothing counts."""
    values = {
        "actor/pg_clipfrac": report.clip_low + report.clip_high if clipped is None else clipped,
        "actor/ppo_kl": report.approx_kl_k1, "actor/pg_clipfrac_lower": report.clip_dual if dual is None else dual}
    return {name: 0.0 if math.isnan(value) else value for name, value in values.items()}


#: verl's losses by its names.
LOSSES: dict[str, PolicyLoss] = {}


def _loss(name: str, mode: str = "token-mean"):
    """Gives a function of batch and aggregation mode verl's arguments, and a place in both registries."""

    def decorate(compute: Callable[[_Batch, str], tuple[torch.Tensor, dict[str, float]]]) -> PolicyLoss:
        def policy_loss(
            old_log_prob: torch.Tensor, log_prob: torch.Tensor, advantages: torch.Tensor,
            response_mask: torch.Tensor, loss_agg_mode: str = mode, config: Any = None,
            rollout_is_weights: torch.Tensor | None = None,
        ) -> tuple[torch.Tensor, dict[str, float]]:
            batch = _Batch(old_log_prob, log_prob, advantages, response_mask, config, rollout_is_weights)
            return compute(batch, loss_agg_mode)

        policy_loss.__name__ = policy_loss.__qualname__ = compute.__name__
        policy_loss.__doc__ = compute.__doc__
        LOSSES[name] = core_algos.register_policy_loss(f"lockstep_{name}")(policy_loss)
        return policy_loss

    return decorate


@_loss("vanilla")
def compute_policy_loss_vanilla(batch, mode):
    """PPO's clipped ratio, with dual clip."""
    loss, report = batch.loss(mode, **batch.bounds, dual=batch.config.get("clip_ratio_c", 3.0))
    return loss, _metrics(report)


@_loss("gspo", "seq-mean-token-mean")
def compute_policy_loss_gspo(batch, mode):
    """The clipped ratio of whole sequences, in its token form."""
    loss, report = batch.loss(
        mode, ratio_level="sequence_token", **batch.bounds, log_ratio_min=-math.inf, log_ratio_max=10)
    return loss, _metrics(report)


@_loss("cispo")
def compute_policy_loss_cispo(batch, mode):
    """REINFORCE weighted by the clipped ratio."""
    loss, report = batch.loss(mode, term="cispo", **batch.bounds)
    return loss, _metrics(report, dual=0.0)


@_loss("sapo", "seq-mean-token-mean")
def compute_policy_loss_sapo(batch, mode):
    """A soft gate in place of the clip; always the mean over sequences of their means."""
    loss, report = batch.loss(
        "seq-mean-token-mean", term="sapo", tau_positive=batch.config.tau_pos, tau_negative=batch.config.tau_neg)
    return loss, _metrics(report, 0.0, 0.0)


@_loss("gpg")
def compute_policy_loss_gpg(batch, mode):
    """REINFORCE."""
    loss, _ = batch.loss(mode, ratio=False, term="reinforce")
    return loss, {}


@_loss("dro")
def compute_policy_loss_dro(batch, mode):
    """REINFORCE and a square of the log ratio."""
    beta = batch.config.policy_loss.dro_beta
    if beta is None or beta <= 0:
        raise InvalidArgumentError(f"policy_loss.dro_beta is {beta}; give a positive number")
    loss, report = batch.loss(mode, term="squared", coefficient=beta, **_NO_CLAMP)
    return loss, {"actor/ppo_kl": _metrics(report)["actor/ppo_kl"]}


@_loss("geo_mean")
def compute_policy_loss_geo_mean(batch, mode):
    """GMPO: the geometric mean of clipped ratios; the mean over the sequences that have tokens."""
    low, high = batch.clip
    loss, report = batch.loss(None, term="gmpo", low=math.exp(-low), high=math.exp(high), **_NO_CLAMP)
    advantages, gap = batch.parts["advantages"], batch.log_ratio
    held = ((gap < -low) | (gap > high)) & batch.parts["mask"].bool()
    tokens = max(report.tokens, 1)
    return loss, _metrics(
        report, *(int((held & sign).sum()) / tokens for sign in (advantages > 0, advantages < 0)))


def _divergence(name: str, statistic: str) -> PolicyLoss:
    def compute(batch, mode):
        low, high = batch.clip
        parts = batch.parts
        found = _corrections.correct(
            parts["current_log_probs"].detach(), parts["trainer_log_probs"], parts["mask"], weights="one",
            advantages=parts["advantages"],
            reject=Rejection(statistic, low=-low, high=high, side="by_advantage"))
        top = batch.config.get("clip_ratio_c", 20.0)
        loss, report = batch.loss(mode, term="cispo", low=0.0, high=top, kept=found.kept)
        held = found.kept & (batch.log_ratio > math.log(top))
        tokens = max(found.tokens, 1)
        return loss, _metrics(report, found.rejected_tokens / tokens, int(held.sum()) / tokens)

    compute.__name__ = f"compute_policy_loss_{name}"
    compute.__doc__ = f"REINFORCE weighted by the ratio, without tokens that went too far: DPPO by {statistic}."
    return _loss(name)(compute)


compute_policy_loss_dppo_tv = _divergence("dppo_tv", "probability_difference")
compute_policy_loss_dppo_kl = _divergence("dppo_kl", "binary_kl")


@_loss("clip_cov")
def compute_policy_loss_clip_cov(batch, mode):
    """PPO's clipped ratio without a random share of the tokens of high covariance."""
    config, parts = batch.config.policy_loss, batch.parts
    selected = _objectives.covariance_select(
        parts["current_log_probs"].detach(), *list(parts.values())[1:], share=_or(config.clip_cov_ratio, 2e-4),
        low=_or(config.clip_cov_lb, 1.0), high=_or(config.clip_cov_ub, 5.0), ratio_low=batch.bounds["low"],
        ratio_high=batch.bounds["high"], seed=int(torch.randint(2**62, ())))
    loss, report = batch.loss(mode, **batch.bounds, selected=selected, **_NO_CLAMP)
    metrics = _metrics(report, int(selected.sum()) / max(report.tokens, 1))
    return loss, {name: metrics[name] for name in ("actor/pg_clipfrac", "actor/ppo_kl")}


@_loss("kl_cov")
def compute_policy_loss_kl_cov(batch, mode):
    """The ratio, with a penalty on the tokens of the highest covariance."""
    config, parts = batch.config.policy_loss, batch.parts
    selected = _objectives.covariance_select(
        parts["current_log_probs"].detach(), *list(parts.values())[1:], rule="kl",
        share=_or(config.kl_cov_ratio, 2e-4))
    loss, _ = batch.loss(
        mode, term="kl_cov", selected=selected, coefficient=_or(config.ppo_kl_coef, 1.0), **_NO_CLAMP)
    gap = batch.log_ratio.double().abs()[parts["mask"].bool()]
    return loss, {"actor/ppo_kl": float(gap.mean()) if len(gap) else 0.0}


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def compute_policy_loss_reinforce(
    rollout_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "seq-mean-token-sum",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """verl's function of this name.

    Args:
        rollout_log_prob: of the rollout policy, for the metric.
        log_prob: of the current policy, [sequences x length].
        advantages: one for each token.
        response_mask: which tokens count.
        loss_agg_mode: see `agg_loss`.
        config: the actor's.
        rollout_is_weights: of a correction.

    Returns:
        Loss and metrics.
    """
    batch = _Batch(rollout_log_prob, log_prob, advantages, response_mask, config, rollout_is_weights)
    loss, report = batch.loss(loss_agg_mode, term="reinforce", **_NO_CLAMP)
    return loss, {"actor/ppo_kl": _metrics(report)["actor/ppo_kl"]}


def compute_policy_loss_bypass_mode(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """verl's function of this name: two policies, where the rollout's stands for the trainer's.

    Args:
        old_log_prob: of the rollout policy, [sequences x length].
        log_prob: of the current policy.
        advantages: one for each token.
        response_mask: which tokens count.
        loss_agg_mode: see `agg_loss`.
        config: the actor's; `policy_loss.rollout_correction` says which correction and loss.
        rollout_is_weights: not looked at.

    Returns:
        Loss and metrics, the correction's included.
    """
    about = config.policy_loss.rollout_correction
    kind = about.get("loss_type", "ppo_clip")
    if kind not in ("reinforce", "ppo_clip"):
        raise InvalidArgumentError(f"loss_type is {kind!r}; give 'reinforce' or 'ppo_clip'")
    proto, mask, found = compute_rollout_correction_and_rejection_mask(
        log_prob.detach(), old_log_prob, response_mask, about.get("rollout_is"),
        about.get("rollout_is_threshold", 2.0), about.get("rollout_is_batch_normalize", False),
        about.get("rollout_rs"), about.get("rollout_rs_threshold"))
    weights = proto.batch["rollout_is_weights"] if proto is not None and kind == "reinforce" else None
    compute = compute_policy_loss_reinforce if kind == "reinforce" else compute_policy_loss_vanilla
    loss, metrics = compute(old_log_prob, log_prob, advantages, mask, loss_agg_mode, config, weights)
    return loss, metrics | found


LOSSES["bypass_mode"] = core_algos.register_policy_loss("lockstep_bypass_mode")(compute_policy_loss_bypass_mode)


def install() -> None:
    """Puts the losses and the correction in place of verl's, under verl's names."""
    core_algos.POLICY_LOSS_REGISTRY.update(LOSSES)
    for each in (compute_rollout_correction_and_rejection_mask, compute_offpolicy_metrics):
        setattr(rollout_corr_helper, each.__name__, each)
