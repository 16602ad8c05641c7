"""How other systems' objectives are said in ours: a case of Tests/Vectors/objectives.json as arguments of
`lockstep.objective_loss`, and their metrics as figures of its report."""

from __future__ import annotations

from math import inf

import numpy as np

FREE = {"log_ratio_min": -inf, "log_ratio_max": inf}


class Inputs:
    """The arrays of an input, in float64."""

    def __init__(self, arrays: dict) -> None:
        self.current, self.trainer, self.rollout, self.reference, self.advantages, self.weights = (
            np.array(arrays[name], np.float64) for name in (
                "log_prob", "old_log_prob", "rollout_log_prob", "ref_log_prob", "advantages",
                "rollout_is_weights"))
        self.row_advantages = np.array(arrays["row_advantages"], np.float64)
        self.mask = np.array(arrays["mask"], bool)
        self.lengths = self.mask.sum(1)
        #: What turns a mean over the rows that count into one over all.
        self.rows = (self.lengths > 0).sum() / len(self.mask)

    def row_sum(self, x):
        return np.where(self.mask, x, 0).sum(1, keepdims=True)

    def row_mean(self, x):
        return self.row_sum(x) / np.maximum(self.lengths, 1)[:, None]

    def everywhere(self, x):
        return np.broadcast_to(x, self.mask.shape).copy()


def translate(case: dict, x: Inputs) -> tuple[dict, dict]:
    """The arguments, and {their metric: ours as a function of the report}."""
    system, params = case["system"], case["params"]
    if system == "verl":
        return _verl(case, params, x)
    return {"trl": _trl, "liger": _trl, "nemo-rl": _nemo, "openrlhf": _openrlhf, "prime-rl": _prime,
            "slime": _slime, "formula": _formula}[system](case, params, x)


def _call(x, *, current=None, trainer=None, advantages=None, **more):
    return {"current_log_probs": x.current, "trainer_log_probs": x.trainer if trainer is None else trainer,
            "advantages": x.advantages if advantages is None else advantages, "mask": x.mask} | more


def _both(report):
    return report.clip_low + report.clip_high


# ---- verl

def _verl_aggregation(params, x):
    mode = params.get("loss_agg_mode", "token-mean").replace("-", "_")
    about = params.get("global_batch_info") or {
        key: params[key] for key in ("dp_size", "batch_num_tokens", "global_batch_size", "loss_scale_factor")
        if key in params}
    scale = about.get("dp_size", 1)
    if mode == "token_mean" and "batch_num_tokens" in about:
        scale *= x.mask.sum() / about["batch_num_tokens"]
    if mode.startswith("seq_mean") and "global_batch_size" in about:
        scale *= (x.lengths > 0).sum() / about["global_batch_size"]
    out = {"aggregation": mode, "scale": scale}
    if mode == "seq_mean_token_sum_norm":
        out["length"] = about.get("loss_scale_factor", x.mask.shape[1])
    return out


def _verl(case, params, x):
    if case["function"] == "agg_loss":
        # The squared log-prob is twice k2 against a reference of log-prob 0.
        return _call(x, trainer=False, advantages=np.zeros(len(x.mask)), reference_log_probs=np.zeros_like(x.current),
                     term="reinforce", kl="k2", kl_coefficient=2, kl_input_max=None,
                     **_verl_aggregation(params, x)), {}
    mode = params.get("loss_mode", "bypass")
    metrics = {"actor/ppo_kl": lambda r: r.approx_kl_k1}
    if mode == "clip_cov" and _reach(x, x.trainer) > 20:
        metrics = {}  # of a log ratio without clamps
    clip = {"actor/pg_clipfrac": _both, "actor/pg_clipfrac_lower": lambda r: r.clip_dual}
    more = _verl_aggregation(params, x)
    if params.get("use_rollout_is_weights"):
        more["weights"] = x.weights
    if "clip_ratio_low" in params:
        low, high, dual = params["clip_ratio_low"], params["clip_ratio_high"], params.get("clip_ratio_c")
        bounds = {"low": 1 - low, "high": 1 + high}
    if mode == "vanilla":
        return _call(x, **bounds, dual=dual, **more), metrics | clip
    if mode == "gpg":
        return _call(x, term="reinforce", **more), {}
    if mode == "cispo":
        return _call(x, term="cispo", **bounds, **more), metrics | {"actor/pg_clipfrac": _both}
    if mode == "dro":
        return _call(x, term="squared", coefficient=params["policy_loss"]["dro_beta"], **more, **FREE), metrics
    if mode == "gspo":
        return _call(x, ratio_level="sequence_token", **bounds, **(more | FREE | {"log_ratio_max": 10})), metrics | clip
    if mode == "sapo":
        return _call(x, term="sapo", tau_positive=params["tau_pos"], tau_negative=params["tau_neg"], **more), metrics
    if mode == "geo_mean":
        return _call(x, term="gmpo", low=np.exp(-low), high=np.exp(high), **more, **FREE), metrics
    if mode in ("dppo_tv", "dppo_kl"):
        kept = _dppo(mode, x, low, high)
        return _call(x, term="cispo", low=0, high=params["clip_ratio_c"], kept=kept, **more), metrics | {
            "actor/pg_clipfrac": lambda r: r.rejected_tokens / r.tokens}
    if mode == "clip_cov":
        selected = _clip_cov(x, 1 - low, 1 + high, params["policy_loss"])
        return _call(x, **bounds, selected=selected, **more), metrics
    if mode == "kl_cov":
        return _call(x, term="kl_cov", selected=_kl_cov(x, params["policy_loss"]["kl_cov_ratio"]),
                     coefficient=params["policy_loss"]["ppo_kl_coef"], **more, **FREE), {}
    return _bypass(params, x, more)


def _reach(x, other):
    return np.abs(x.current - other)[x.mask].max()


def _dppo(mode, x, low, high):
    p, q = np.exp(x.current), np.exp(x.trainer)
    up = x.advantages > 0
    if mode == "dppo_tv":
        return np.where(up, p - q <= high, p - q >= -low)
    p, q = np.where(x.mask, p, 0.5), np.where(x.mask, q, 0.5)
    kl = q * (x.trainer - x.current) + (1 - q) * np.log((1 - q + 1e-8) / (1 - p + 1e-8))
    return np.where(up, (kl <= high) | (p <= q), (kl <= low) | (p >= q))


def _covariance(x):
    def centred(values):
        return values - values[x.mask].mean()
    return centred(x.advantages) * centred(x.current)


def _clip_cov(x, low, high, params):
    ratio = np.exp(np.clip(x.current - x.trainer, -20, 20))
    held = ((ratio < low) & (x.advantages < 0)) | ((ratio > high) & (x.advantages > 0))
    covariance = _covariance(x)
    candidates = x.mask & ~held & (covariance > params["clip_cov_lb"]) & (covariance < params["clip_cov_ub"])
    places = np.flatnonzero(candidates)[:max(int(params["clip_cov_ratio"] * x.mask.sum()), 1)]
    selected = np.zeros(x.mask.shape, bool)
    selected.flat[places] = True
    return selected


def _kl_cov(x, share):
    covariance = np.where(x.mask, _covariance(x), -inf)
    selected = np.zeros(x.mask.shape, bool)
    selected.flat[np.argsort(-covariance, axis=None, kind="stable")[:max(int(share * x.mask.sum()), 1)]] = True
    return selected & x.mask


def _bypass(params, x, more):
    about = params["rollout_correction"]
    d = np.clip(x.current - x.rollout, -20, 20)
    raw = x.current - x.rollout
    if about["rollout_is"] == "token":
        more["weights"] = np.minimum(np.exp(d), about["rollout_is_threshold"])
    elif about["rollout_is"] == "sequence":
        more["weights"] = x.everywhere(
            np.minimum(np.exp(np.clip(x.row_sum(raw), -20, 20)), about["rollout_is_threshold"]))
    if about.get("rollout_is_batch_normalize"):
        more["weights"] = more["weights"] / more["weights"][x.mask].mean()
    if about.get("rollout_rs") == "token_k1":
        low, high = map(float, about["rollout_rs_threshold"].split("_"))
        more["kept"] = (np.log(low) <= -d) & (-d <= np.log(high))
    elif about.get("rollout_rs") == "seq_mean_k3":
        more["kept"] = x.everywhere(x.row_mean(np.exp(d) - 1 - d) <= about["rollout_rs_threshold"])
    more["denominator"] = "kept"
    metrics = {} if _reach(x, x.rollout) > 20 else {"actor/ppo_kl": lambda r: r.approx_kl_k1}
    if about["loss_type"] == "reinforce":
        return _call(x, trainer=x.rollout, term="reinforce", **more), metrics
    return _call(
        x, trainer=x.rollout, low=1 - params["clip_ratio_low"], high=1 + params["clip_ratio_high"],
        dual=params["clip_ratio_c"], **more), metrics | {
            "actor/pg_clipfrac": _both, "actor/pg_clipfrac_lower": lambda r: r.clip_dual}


# ---- TRL and Liger

def _trl(case, params, x):
    kind = params["loss_type"]
    more = dict(FREE)
    if kind in ("grpo", "sapo"):
        more |= {"aggregation": "seq_mean_token_mean", "scale": x.rows}
    elif kind == "dr_grpo":
        more |= {"aggregation": "seq_mean_token_sum_norm", "length": params["max_completion_length"],
                 "scale": x.rows}
    elif kind == "luspo":
        more |= {"aggregation": "seq_mean_token_sum", "scale": x.rows}
    if params["use_is_ratio"]:
        more["weights"] = np.where(x.mask, x.weights, 1)
    if params["beta"]:
        more |= {"kl": "k3", "kl_coefficient": params["beta"], "reference_log_probs": x.reference,
                 "kl_input_max": None}
        if params["use_bias_correction_kl"]:
            more["kl_gradient"] = "ratio"
    if params["importance_sampling_level"] == "sequence":
        more["ratio_level"] = "sequence"
    if params.get("off_policy_mask_threshold"):
        off = x.row_mean(x.rollout - x.current) > params["off_policy_mask_threshold"]
        more["kept"] = x.everywhere(~(off & (x.row_advantages[:, None] < 0)))
    if params["delta"]:
        more["ratio_max"] = params["delta"]
    low, high = 1 - params["epsilon_low"], 1 + params["epsilon_high"]
    metrics = {}
    if kind == "cispo":
        more |= {"term": "cispo", "low": 0, "high": params["epsilon_high"]}
    elif kind == "sapo":
        more |= {"term": "sapo", "tau_positive": params["sapo_temperature_pos"],
                 "tau_negative": params["sapo_temperature_neg"]}
    elif kind == "vespo":
        more |= {"term": "vespo", "log_ratio_min": -20, "log_ratio_max": 20}
    else:
        more |= {"low": low, "high": high}
        if params["importance_sampling_level"] == "token":
            metrics = {"clip_fraction": _both, "clip_ratio/low_mean": lambda r: r.clip_low,
                       "clip_ratio/high_mean": lambda r: r.clip_high, "clip_ratio/region_mean": _both}
    return _call(x, advantages=x.row_advantages, **more), metrics


# ---- NeMo-RL, OpenRLHF, prime-rl, slime

def _nemo(case, params, x):
    config = params["config"]
    more = dict(FREE)
    metrics = {"probs_ratio": lambda r: r.ratio_mean, "probs_ratio_min": lambda r: r.ratio_min,
               "probs_ratio_max": lambda r: r.ratio_max}
    trainer = x.trainer
    more |= {"low": 0.8, "high": 1 + config.get("ratio_clip_max", 0.2), "dual": config.get("ratio_clip_c")}
    if config.get("disable_ppo_ratio"):
        more["term"], metrics = "reinforce", {}
    if config.get("force_on_policy_ratio"):
        trainer = x.current
    if config.get("use_cispo"):
        more["term"] = "cispo"
    if config.get("sequence_level_importance_ratios"):
        more["ratio_level"] = "sequence"
    if config.get("token_level_loss") is False:
        more["aggregation"] = "seq_mean_token_mean"
    if config["reference_policy_kl_penalty"]:
        more |= {"kl": "k3", "kl_coefficient": config["reference_policy_kl_penalty"],
                 "reference_log_probs": x.reference, "kl_output_max": 10,
                 "kl_gradient": "ratio" if config.get("use_on_policy_kl_approximation") else "score_function"}
    if config.get("use_importance_sampling_correction"):
        ratio = np.exp(x.trainer - x.rollout)
        low = config.get("truncated_importance_sampling_ratio_min", 0)
        high = config["truncated_importance_sampling_ratio"]
        kind = config["truncated_importance_sampling_type"]
        more["weights"] = _correct(kind, ratio, x, low, high)
    return _call(x, trainer=trainer, **more), metrics


def _correct(kind, ratio, x, low, high):
    if kind == "tis":
        return np.clip(ratio, low, high)
    if kind == "icepop":
        return np.where((ratio >= low) & (ratio <= high), ratio, 0)
    whole = np.exp(x.row_mean(x.trainer - x.rollout))
    return np.where((whole >= low) & (whole <= high), ratio, 0)


def _openrlhf(case, params, x):
    more = {"low": 1 - params["clip_eps_low"], "high": 1 + params["clip_eps_high"], "dual": params.get("dual_clip")}
    metrics = {"clip_ratio": _both}
    if _reach(x, x.trainer) <= 20:
        metrics["ppo_kl"] = lambda r: r.approx_kl_k1  # theirs is of a log ratio without clamps
    if params.get("policy_loss_type") == "gspo":
        more |= FREE | {"ratio_level": "sequence", "aggregation": "seq_mean_token_mean"}
    if params.get("token_level_loss") is False:
        more["aggregation"] = "seq_mean_token_mean"
    if params.get("enable_vllm_is_correction"):
        low, high = params["vllm_is_truncated_threshold"]
        more["weights"] = _correct(
            params["vllm_is_correction_type"], np.exp(x.trainer - x.rollout), x, low, high)
    return _call(x, **more), metrics


def _prime(case, params, x):
    # Two policies: the rollout's stands for trainer and reference. kl_tau d^2 is 2 kl_tau times k2.
    gap = np.exp(x.current) - np.exp(x.rollout)
    if "ipo_threshold" in params:
        kept = np.abs(gap) <= params["ipo_threshold"]
    else:
        kept = np.where(x.advantages > 0, gap <= params["dppo_mask_high"], gap >= -params["dppo_mask_low"])
    return _call(
        x, trainer=x.rollout, advantages=params["adv_tau"] * x.advantages, term="ratio", kept=kept, kl="k2",
        reference_log_probs=x.rollout, kl_coefficient=2 * params["kl_tau"], kl_input_max=None, **FREE), {}


def _slime(case, params, x):
    more = FREE | {"low": 1 - params["eps_clip"], "high": 1 + params["eps_clip_high"],
                   "aggregation": "seq_mean_token_mean"}
    if case["function"] == "compute_cispo_loss":
        return _call(x, term="cispo", **more), {}
    return _call(x, dual=params["eps_clip_c"], **more), {}


# ---- the paper

def _formula(case, params, x):
    name = case["function"].removeprefix("precision-rl ")
    more = dict(FREE)
    if params["row_normaliser"] == "row mean":
        more["aggregation"] = "seq_mean_token_mean"
    else:
        more |= {"aggregation": "seq_mean_token_sum_norm", "length": 16}
    bound = params["C"]
    # In the policy gradients the current policy stands in the weight, a constant to the gradient.
    top = x.current if name.startswith("pg_") else x.trainer
    token, whole = np.exp(top - x.rollout), x.everywhere(np.exp(x.row_sum(top - x.rollout)))
    weights = {"pg_seq_is": whole, "pg_seq_tis": np.minimum(whole, bound),
               "pg_seq_mis": np.where(whole <= bound, whole, 0), "pg_token_tis": np.minimum(token, bound),
               "grpo_token_tis": np.minimum(token, bound),
               "grpo_seq_mis": np.where(whole <= bound, whole, 0)}
    if name in weights:
        more["weights"] = weights[name]
    if name == "reinforce" or name.startswith("pg_"):
        return _call(x, term="reinforce", **more), {}
    if name == "gspo":
        more["ratio_level"] = "sequence_token"
    return _call(x, low=1 - params["clip"][0], high=1 + params["clip"][1], **more), {}
