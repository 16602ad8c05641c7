"""The flat dictionary of metrics: its names are for keeps, and hold what the result holds."""

from __future__ import annotations

import math

import numpy as np

import lockstep

# Dashboards of others hang on these: a name may be added, never taken away or given another meaning.
FROZEN = """
tokens masked_tokens excluded_tokens sequences empty_sequences mean_log_ratio mean_log_ratio_se k1 k1_se k2 k2_se
k3 k3_se mean_abs_log_ratio mean_abs_log_ratio_se rms_log_ratio rms_log_ratio_se max_abs_log_ratio
max_abs_sequence max_abs_position mean_abs_prob_diff mean_abs_prob_diff_se max_abs_prob_diff pearson
one_minus_pearson share_differing share_differing_se share_outside_mlperf share_outside_mlperf_se
share_outside_1pct share_outside_1pct_se share_outside_5pct share_outside_5pct_se share_outside_10pct
share_outside_10pct_se chi_square chi_square_se mean_ratio mean_ratio_se ess mean_exp_abs_log_ratio
mean_exp_abs_log_ratio_se trainer_perplexity rollout_perplexity perplexity_ratio mean_rollout_log_prob
mean_rollout_log_prob_se log_ratio_p0_1 log_ratio_p1 log_ratio_p5 log_ratio_p25 log_ratio_p50 log_ratio_p75
log_ratio_p95 log_ratio_p99 log_ratio_p99_9 sequence_log_ratio sequence_log_ratio_se sequence_log_ratio_std
sequence_mean_log_ratio sequence_mean_log_ratio_se sequence_mean_exp_abs sequence_mean_exp_abs_se sequence_ess
share_sequences_masked share_sequences_masked_se slope_per_1000 slope_per_1000_se mean_sequence_length
max_sequence_length share_sequences_outside_mlperf share_sequences_outside_mlperf_se undefined
""".split()

RNG = np.random.default_rng(3)
ROLLOUT = [-RNG.exponential(1, length) for length in (5, 40, 12, 3)]
TRAINER = [each + RNG.normal(0, 0.05, len(each)) for each in ROLLOUT]


def test_names_are_kept():
    found = lockstep.metrics(lockstep.mismatch(TRAINER, ROLLOUT), prefix="")
    assert [name for name in found if name in FROZEN] == FROZEN
    assert all(type(value) is float and not math.isnan(value) for value in found.values())


def test_values_are_the_results():
    result = lockstep.mismatch(TRAINER, ROLLOUT)
    found = lockstep.metrics(result, prefix="rl/")
    assert all(name.startswith("rl/") for name in found)
    assert (found["rl/k3"], found["rl/k3_se"]) == result.k3
    assert found["rl/log_ratio_p99_9"] == result.log_ratio_quantiles[-1]
    assert found["rl/log_ratio_p0_1"] == result.log_ratio_quantiles[0]
    assert found["rl/tokens"] == 60 and found["rl/undefined"] == 0


def test_undefined_values_are_left_out_and_counted():
    one = lockstep.metrics(lockstep.mismatch(TRAINER[:1], ROLLOUT[:1]), prefix="")
    errors = {name for name in FROZEN if name.endswith("_se")}
    assert not errors & one.keys()
    assert one["undefined"] >= len(errors) and one["undefined"] == int(one["undefined"])
    nothing = lockstep.metrics(lockstep.mismatch(TRAINER, ROLLOUT, [np.zeros(len(x), bool) for x in ROLLOUT]))
    assert nothing["lockstep/tokens"] == 0 and nothing["lockstep/masked_tokens"] == 60
    assert "lockstep/k3" not in nothing and nothing["lockstep/undefined"] > one["undefined"]
    everything = lockstep.metrics(lockstep.mismatch(TRAINER, ROLLOUT))
    assert len(nothing) + nothing["lockstep/undefined"] == len(everything)


def test_infinity_is_a_value():
    found = lockstep.metrics(lockstep.mismatch([-1.0, -1.0], [-800.0, -1.0]), prefix="")
    assert found["k3"] == math.inf
