"""Other systems' corrections in our words: what each configuration of theirs is as arguments of `correct`, and
which of our figures each of theirs is."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np

import lockstep
from conftest import VECTORS
from lockstep import Rejection

GOLDEN = json.loads((VECTORS / "corrections.json").read_text())

LEVELS = {"token": "token", "sequence": "sequence_sum", "geometric": "sequence_mean", "product": "sequence_sum"}
VERL_LEVELS = {
    "token": "token", "seq_sum": "sequence_sum", "seq_mean": "sequence_mean", "seq_max": "sequence_every"}
NO_CLAMP = {"log_ratio_min": -math.inf, "log_ratio_max": math.inf}


def numbers(value):
    """Lists and texts of the vectors as an array of floats."""
    if isinstance(value, list):
        return np.array([numbers(each) for each in value])
    return float(value)


@dataclass(frozen=True)
class Input:
    trainer: np.ndarray
    rollout: np.ndarray
    mask: np.ndarray
    current: np.ndarray
    advantages: np.ndarray


INPUTS = {
    name: Input(
        *(numbers(arrays[key]) for key in ("train_logprobs", "rollout_logprobs")),
        numbers(arrays["mask"]).astype(bool), *(numbers(arrays[key]) for key in ("current_logprobs", "advantages")))
    for name, arrays in GOLDEN["inputs"].items()}


def verl(params):
    """The interval of its k1 is on q / p: ours is the inverse."""
    arguments = {"weights": "one"}
    if params.get("rollout_is"):
        threshold = params["rollout_is_threshold"]
        arguments = {
            "level": LEVELS[params["rollout_is"]], "normalize": params["rollout_is_batch_normalize"]}
        if isinstance(threshold, str):
            low, high = map(float, threshold.split("_"))
            arguments |= {"weights": "mask", "low": low, "high": high}
        else:
            arguments |= {"weights": "truncate", "low": 1 / threshold, "high": threshold}
    rules = []
    if params.get("rollout_rs"):
        names = list(dict.fromkeys(params["rollout_rs"].split(",")))
        thresholds = params["rollout_rs_threshold"].split(",")
        for name, threshold in zip(names, thresholds * (len(names) if len(thresholds) == 1 else 1)):
            level, statistic = name.rsplit("_", 1)
            if statistic == "k1":
                ends = [float(each) for each in threshold.split("_")]
                low, high = ends if len(ends) == 2 else (1 / ends[0], ends[0])
                rules.append(Rejection("ratio", VERL_LEVELS[level], low=1 / high, high=1 / low))
            else:
                rules.append(Rejection(statistic, VERL_LEVELS[level], high=float(threshold)))
    return arguments, rules


def trl(params):
    level, mode = params["mode"].split("_")
    return {
        "level": LEVELS[level], "weights": "mask" if mode == "mask" else "clip", "low": params["clip_min"] or 0,
        "high": params["clip_max"]} | NO_CLAMP, []


def slime_mis(params):
    """Its mask is a rejection beside raw weights; a bound that is not given is that of the weights."""
    low, high, mode = params["tis_lower_bound"], params["tis_upper_bound"], params["tis_mode"]
    level = LEVELS[params["tis_level"]]
    arguments = {
        "level": level, "normalize": params["tis_batch_normalize"], "low": low or 0, "high": high,
        "weights": {"truncate": "truncate", "clip": "clip", "mask": "raw"}[mode]}
    rules = [Rejection("ratio", level, low=low, high=high)] if mode == "mask" else []
    if params["use_rs"]:
        top = params["rs_upper_bound"] or high
        bottom = params["rs_lower_bound"] or low or 1 / top
        rules.append(Rejection("ratio", LEVELS[params["rs_level"]], low=bottom, high=top))
        if params["rs_veto_threshold"] is not None:
            rules.append(Rejection("ratio", "sequence_every", low=params["rs_veto_threshold"]))
    return arguments, rules


def slime_tis(weights):
    return lambda params: (
        {"weights": weights, "low": params["tis_clip_low"], "high": params["tis_clip"]} | NO_CLAMP, [])


def off_policy_mask(params):
    return {"weights": "one"}, [Rejection(
        "ratio", "sequence_mean", low=math.exp(-params["delta"]), policies="current_rollout",
        side="negative_advantage")]


def skyrl(params):
    if "tis_ratio_type" in params:
        level = params["tis_ratio_type"]
        return {"level": LEVELS[level], "high": params[f"{level}_tis_ratio_clip_high"]}, []
    level, low, high = {
        "product_mask_low": ("sequence_sum", "product_mask_low", "product_mask_high"),
        "geo_mask_low": ("sequence_mean", "geo_mask_low", "geo_mask_high"),
        "outlier_token_is_threshold_low": (
            "sequence_every", "outlier_token_is_threshold_low", "outlier_token_is_threshold_high"),
        "token_mask_is_threshold_low": ("token", "token_mask_is_threshold_low", "token_mask_is_threshold_high"),
    }[next(name for name in params if name.endswith("low"))]
    return {"weights": "one"}, [Rejection("ratio", level, low=params[low], high=params[high])]


FUNCTIONS = {
    "compute_rollout_correction_weights": verl,
    "compute_rollout_rejection_mask": verl,
    "compute_rollout_correction_and_rejection_mask": verl,
    "GRPOTrainer (importance-sampling block)": trl,
    "vanilla_tis_function": slime_tis("clip"),
    "icepop_function": slime_tis("mask"),
    "compute_mis_weights": slime_mis,
    "compute_opsm_mask / GRPOTrainer.get_off_policy_mask": off_policy_mask,
    "compute_off_policy_correction": skyrl,
}


def ours(case):
    """Our correction of a golden case."""
    arguments, rules = FUNCTIONS[case["function"]](case["params"])
    given = INPUTS[case["input"]]
    return lockstep.correct(
        given.trainer, given.rollout, given.mask, reject=rules, current_log_probs=given.current,
        advantages=given.advantages, **arguments)


def metrics(case, found):
    """verl's figures that are ours, by its names."""
    params = case["params"]
    result = {
        "rollout_rs_masked_fraction": found.rejected_tokens / found.tokens,
        "rollout_rs_seq_masked_fraction": found.touched_sequences / found.sequences}
    for count, name in zip(found.counts, dict.fromkeys((params.get("rollout_rs") or "").split(","))):
        result[f"rollout_rs_{name}_masked_fraction"] = count.tokens / found.tokens
        result[f"rollout_rs_{name}_seq_masked_fraction"] = count.touched_sequences / found.sequences
        if name.startswith(("token_k2", "token_k3")):
            result |= {f"rollout_rs_{name}_{what}": getattr(count, what) for what in ("mean", "min", "max")}
    if not params.get("rollout_is"):
        return result
    weight, sample = found.weight, math.sqrt(found.weight.units / max(found.weight.units - 1, 1))
    if params["rollout_is"] == "token":
        result |= {
            "rollout_is_mean": weight.mean, "rollout_is_max": weight.max, "rollout_is_min": weight.min,
            "rollout_is_std": weight.std, "rollout_is_eff_sample_size": weight.ess,
            "rollout_is_ratio_fraction_high": found.above / found.tokens,
            "rollout_is_ratio_fraction_low": found.below / found.tokens}
    else:
        result |= {
            "rollout_is_seq_mean": weight.mean, "rollout_is_seq_max": weight.max,
            "rollout_is_seq_min": weight.min, "rollout_is_seq_std": weight.std * sample,
            "rollout_is_seq_fraction_high": found.above / found.sequences,
            "rollout_is_seq_fraction_low": found.below / found.sequences}
    if params["rollout_is_batch_normalize"]:
        result["rollout_is_batch_norm_factor"] = found.normalizer
    return result


def figures(case, theirs, found):
    """{figure: (theirs, ours)} of everything in a result of theirs that has a counterpart."""
    mask = INPUTS[case["input"]].mask
    result = {}
    if theirs.get("weights") is not None:
        weights = np.broadcast_to(numbers(theirs["weights"]), mask.shape)
        # Padding apart: TRL has weight 1 there, slime what it finds.
        result["weights"] = weights[mask], found.weights[mask]
    if theirs.get("mask") is not None:
        result["mask"] = (numbers(theirs["mask"]) > 0) & mask, found.kept
    for name in ("keep_slime", "keep_trl", "keep"):
        if name in theirs:
            rows = mask.any(1)
            result[name] = numbers(theirs[name])[rows] > 0, found.kept.any(1)[rows]
    mine = metrics(case, found)
    for name, value in theirs.get("metrics", {}).items():
        name = name.removeprefix("rollout_corr/")
        if name in mine:
            result[name] = float(value), mine[name]
    return result
