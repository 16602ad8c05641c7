"""Which of ours each figure of another system is: conventions written out, sign, padding, clamp and weighting.

TRANSLATED gives a figure from what we measure (`Ours`); UNTRANSLATED says why a figure has no counterpart.
Both must be complete: a figure in neither fails a test.
"""

from __future__ import annotations

import functools
import math

import numpy as np

import lockstep


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values)


def deviation(values):
    """The sample standard deviation; 0 for one value, as verl has it."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def rows(ours, figure):
    """slime's two forms: the rows, and their mean by tokens."""
    values = [figure(row) for row in ours.rows]
    return [*values, math.fsum(v * row.tokens for v, row in zip(values, ours.rows)) / ours.all.tokens]


def clamp(value):
    """The bound that verl and slime put on a log ratio before they exponentiate it."""
    return min(max(value, -20.0), 20.0)


def clamped(trainer, rollout):
    return rollout + np.clip(trainer - rollout, -20, 20)


class Row:
    """What we say of one sequence: the per-sequence call, and the statistics of that sequence alone."""

    def __init__(self, sequence, trainer, rollout, mask):
        self.tokens, self.k3, self.mean_exp_abs = (
            int(sequence["tokens"]), float(sequence["k3"]), float(sequence["mean_exp_abs"]))
        self.log_ratio, self.mean_log_ratio = float(sequence["log_ratio"]), float(sequence["mean_log_ratio"])
        alone = lockstep.mismatch(trainer, rollout, mask)
        self.mean_rollout = alone.mean_rollout_log_prob.value
        self.mean_trainer = -math.log(alone.trainer_perplexity)
        bounded = lockstep.mismatch(clamped(trainer, rollout), rollout, mask)
        self.chi_square, self.mean_ratio = bounded.chi_square.value, bounded.mean_ratio.value


class Ours:
    """What we measure on a padded log: all of it, the two policies exchanged, with d clamped to +-20, and the
    sequences that have tokens."""

    def __init__(self, trainer, rollout, mask):
        self._log = trainer, rollout, mask
        self.all = lockstep.mismatch(trainer, rollout, mask)

    @functools.cached_property
    def exchanged(self):
        trainer, rollout, mask = self._log
        return lockstep.mismatch(rollout, trainer, mask)

    @functools.cached_property
    def clamped(self):
        trainer, rollout, mask = self._log
        return lockstep.mismatch(clamped(trainer, rollout), rollout, mask)

    @functools.cached_property
    def rows(self):
        sequences = lockstep.mismatch_sequences(*self._log)
        return [Row(sequence, *(each[i] for each in self._log))
                for i, sequence in enumerate(sequences) if sequence["tokens"]]

    @property
    def population_variance(self):
        """Of the clamped ratio: mean r^2 - (mean r)^2."""
        return max(self.clamped.chi_square.value + 1 - self.clamped.mean_ratio.value**2, 0.0)

    @property
    def sequence_weights(self):
        """(weight, tokens) of each sequence: verl lays a sequence's weight on each of its tokens."""
        return (np.array([math.exp(clamp(row.log_ratio)) for row in self.rows]),
                np.array([row.tokens for row in self.rows]))

    @property
    def sequence_mean(self):
        """The mean sequence weight as verl takes it, over tokens: long sequences count for more."""
        weights, tokens = self.sequence_weights
        return float(weights @ tokens / tokens.sum())

    @property
    def sequence_variance(self):
        weights, tokens = self.sequence_weights
        steps = weights - weights[0]  # 0 where all are equal, however large
        return float(steps**2 @ tokens / tokens.sum() - (steps @ tokens / tokens.sum()) ** 2)


TRANSLATED = {
    # kl is mu minus pi, as our k1. Its perplexities and log_ppl figures are means over sequences; chi2 and the
    # weights clamp d to +-20.
    "verl": {
        "training_ppl": lambda o: mean(math.exp(-row.mean_trainer) for row in o.rows),
        "training_log_ppl": lambda o: mean(-row.mean_trainer for row in o.rows),
        "rollout_ppl": lambda o: mean(math.exp(-row.mean_rollout) for row in o.rows),
        "rollout_log_ppl": lambda o: mean(-row.mean_rollout for row in o.rows),
        "kl": lambda o: o.all.k1.value,
        "k3_kl": lambda o: o.all.k3.value,
        "log_ppl_diff": lambda o: -o.all.sequence_mean_log_ratio.value,
        "log_ppl_abs_diff": lambda o: mean(abs(row.mean_log_ratio) for row in o.rows),
        "log_ppl_diff_max": lambda o: max(-row.mean_log_ratio for row in o.rows),
        "log_ppl_diff_min": lambda o: min(-row.mean_log_ratio for row in o.rows),
        "ppl_ratio": lambda o: mean(math.exp(-row.mean_log_ratio) for row in o.rows),
        "chi2_token": lambda o: o.clamped.chi_square.value,
        "chi2_seq": lambda o: mean(math.exp(2 * clamp(row.log_ratio)) for row in o.rows) - 1,
        "training/rollout_probs_diff_valid": lambda o: 1 if o.all.tokens else 0,
        "training/rollout_probs_diff_max": lambda o: o.all.max_abs_prob_diff,
        "training/rollout_probs_diff_mean": lambda o: o.all.mean_abs_prob_diff.value,
        "training/rollout_actor_probs_pearson_corr": lambda o: o.all.pearson,
        "rollout_is_mean": lambda o: o.clamped.mean_ratio.value,
        "rollout_is_std": lambda o: math.sqrt(o.population_variance),
        "rollout_is_eff_sample_size": lambda o: o.clamped.ess,
        "rollout_is_seq_mean": lambda o: mean(row.mean_ratio for row in o.rows),
        "rollout_is_seq_std": lambda o: deviation([row.mean_ratio for row in o.rows]),
        "rollout_is_seq_max": lambda o: max(row.mean_ratio for row in o.rows),
        "rollout_is_seq_min": lambda o: min(row.mean_ratio for row in o.rows),
        "rollout_is_seq_max_deviation": lambda o: max(abs(row.mean_ratio - 1) for row in o.rows),
        # At sequence level: a sequence's weight on each of its tokens, then as above.
        "sequence/rollout_is_mean": lambda o: o.sequence_mean,
        "sequence/rollout_is_std": lambda o: math.sqrt(o.sequence_variance),
        "sequence/rollout_is_eff_sample_size": lambda o: 1 / (1 + o.sequence_variance / o.sequence_mean**2),
        "sequence/rollout_is_max": lambda o: math.exp(min(max(row.log_ratio for row in o.rows), 20.0)),
        "sequence/rollout_is_min": lambda o: math.exp(min(row.log_ratio for row in o.rows)),
        "sequence/rollout_is_seq_mean": lambda o: mean(o.sequence_weights[0]),
        "sequence/rollout_is_seq_std": lambda o: deviation(o.sequence_weights[0]),
        "sequence/rollout_is_seq_max": lambda o: max(o.sequence_weights[0]),
        "sequence/rollout_is_seq_min": lambda o: min(o.sequence_weights[0]),
        "sequence/rollout_is_seq_max_deviation": lambda o: max(abs(o.sequence_weights[0] - 1)),
    },
    "prime-rl": {
        "mean": lambda o: o.all.k3.value,
        "per_row_mean": lambda o: [row.k3 for row in o.rows],
    },
    "nemo-rl": {
        "token_mult_prob_error": lambda o: o.all.mean_exp_abs_log_ratio.value,
        "gen_kl_error": lambda o: o.all.k3.value,
        "policy_kl_error": lambda o: o.exchanged.k3.value,
        "sampling_importance_ratio": lambda o: o.all.mean_ratio.value,
    },
    "tinker-cookbook": {
        "optim/kl_sample_train_v1": lambda o: o.all.k1.value,
        "optim/kl_sample_train_v2": lambda o: o.all.k2.value,
        "optim/entropy": lambda o: -o.all.mean_rollout_log_prob.value,
    },
    # slime's figures: a mean for each row; per_token_mean is the token-weighted mean of those.
    "slime": {
        "training_log_ppl": lambda o: rows(o, lambda row: -row.mean_trainer),
        "training_ppl": lambda o: rows(o, lambda row: math.exp(-row.mean_trainer)),
        "rollout_log_ppl": lambda o: rows(o, lambda row: -row.mean_rollout),
        "rollout_ppl": lambda o: rows(o, lambda row: math.exp(-row.mean_rollout)),
        "kl": lambda o: rows(o, lambda row: -row.mean_log_ratio),
        "k3_kl": lambda o: rows(o, lambda row: row.k3),
        "log_ppl_diff": lambda o: rows(o, lambda row: -row.mean_log_ratio),
        "log_ppl_abs_diff": lambda o: rows(o, lambda row: abs(row.mean_log_ratio)),
        "ppl_ratio": lambda o: rows(o, lambda row: math.exp(-row.mean_log_ratio)),
        "chi2_token": lambda o: rows(o, lambda row: row.chi_square),
        "chi2_seq": lambda o: rows(o, lambda row: math.exp(2 * clamp(row.log_ratio)) - 1),
    },
    # Clamps d to +-20; the standard deviation is the sample's.
    "skyrl": {
        "is_ratio_mean": lambda o: o.clamped.mean_ratio.value,
        "is_ratio_std": lambda o: math.sqrt(
            o.population_variance * o.all.tokens / (o.all.tokens - 1)) if o.all.tokens > 1 else math.nan,
    },
    "openrlhf": {"vllm_kl": lambda o: o.all.k1.value},
    # Restated from the sources of Oat, TRL, torchtitan and NeMo-RL.
    "formula": {
        "oat.kl_sample_train_v1": lambda o: o.all.k1.value,
        "oat.kl_sample_train_v2": lambda o: o.all.k2.value,
        "trl.sampling_logp_difference.mean": lambda o: o.all.mean_abs_log_ratio.value,
        "trl.sampling_logp_difference.max": lambda o: o.all.max_abs_log_ratio,
        "titan.logprob_diff.mean": lambda o: o.all.mean_log_ratio.value,
        "titan.logprob_diff.max": lambda o: o.all.max_abs_log_ratio,
        "nemo.seq_logprob_error.per_row": lambda o: [row.mean_exp_abs for row in o.rows],
    },
}

_STD = "we give the standard error of the mean, by sequence"
_CORRECTION = "of a correction's thresholds, which a diagnosis does not have"
_EXTREME = "we give max |d| with its place, and quantiles; max and min of r are functions of d"

# (system, figure): why it has no counterpart.
UNTRANSLATED = {
    ("verl", "training/rollout_probs_diff_std"): _STD,
    ("verl", "rollout_is_max"): _EXTREME,
    ("verl", "rollout_is_min"): _EXTREME,
    **{("verl", level + "rollout_is_" + name): _CORRECTION for level in ("", "sequence/") for name in (
        "ratio_fraction_high", "ratio_fraction_low", "seq_fraction_high", "seq_fraction_low")},
    ("prime-rl", "std"): _STD,
    ("prime-rl", "max"): "we give max |d| with its place; k3 is a function of d",
    ("nemo-rl", "js_divergence_error"): "an estimate; we give the exact one over the vocabulary",
    ("nemo-rl", "approx_entropy"): "of the current policy, which a pair of logs does not have",
    ("skyrl", "is_ratio_min"): _EXTREME,
    ("skyrl", "is_ratio_max"): _EXTREME,
    ("skyrl", "tis_token_clip_high_ratio"): _CORRECTION,
    ("formula", "oat.sampler_learner_prob_diff_max"): "signed, and padding enters as 0; we give max |p - q|",
    ("formula", "oat.sampler_learner_prob_diff_min"): "signed, and padding enters as 0; we give max |p - q|",
    ("formula", "titan.ratio_tokens_different"): "|d| above 1e-6; we count bits that differ, and the bands",
}
