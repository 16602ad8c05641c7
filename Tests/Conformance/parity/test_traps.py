"""Mistakes found in other systems, each with a test that ours is free of it.

The numbers are those of the collection they come from (T1 ...). Where a system with the mistake is installed,
the test shows it there too, so a repaired one is noticed; what differs in a figure of its metrics is a line of
known-differences.txt instead. Some are about objectives, which this library does not compute
yet, and come with them: T6 (GMPO divides by empty rows), T8 (a mean that never looks at its mask),
T10 (CISPO's absolute bound below 1), T13 (leave-one-out under the name of GRPO), T15 (which count divides
after rejection).
"""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

import lockstep
from conftest import ROOT
from peers import Absent, load
from test_parity import KNOWN, log

GLOSSARY = (ROOT / "docs" / "Glossary.md").read_text()


def installed(name):
    """A module of another system; the test is skipped where it is not installed."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    try:
        return load(name)
    except Absent as reason:
        pytest.skip(f"{reason} (make test PEERS=1)")


@pytest.fixture(scope="module")
def verl():
    return installed("verl.trainer.ppo.rollout_corr_helper")


def values(result, *without):
    return {name: value for name, value in result.to_dict().items() if name not in without}


# T1: rows of padding dilute every mean over sequences.

def test_t1_a_row_of_padding_changes_nothing():
    full = log("ragged")
    padded = [np.concatenate([each, np.zeros_like(each)]) for each in (full.trainer, full.rollout, full.mask)]
    with_rows = lockstep.mismatch(*padded)
    without = lockstep.mismatch(full.trainer, full.rollout, full.mask)
    counts = ("masked_tokens", "empty_sequences")
    np.testing.assert_equal(values(with_rows, *counts), values(without, *counts))
    assert with_rows.empty_sequences == 3 and without.empty_sequences == 0


# T2: one interval, two meanings.

def test_t2_intervals_are_on_trainer_over_rollout():
    """[0.999, 1.002] has room above 1: r = 1.0015 lies inside, 1 / 1.0015 outside."""
    def share(ratio):
        found = lockstep.mismatch([math.log(ratio) - 1], [-1.0])
        return found.share_outside_mlperf.value

    assert share(1.0015) == 0 and share(1 / 1.0015) == 1


def test_t2_verl_rejects_on_the_inverse(verl):
    import torch

    d = torch.tensor([[math.log(3), math.log(0.3)]], dtype=torch.float64)
    mask = torch.ones(1, 2, dtype=torch.bool)
    kept, _ = verl.compute_rollout_rejection_mask(d, mask, "token_k1", "0.5_5.0")
    weights, _ = verl.compute_rollout_correction_weights(d, mask, "token", "0.5_5.0")
    assert kept.tolist() == [[False, True]]
    np.testing.assert_allclose(weights, [[3, 0]])


def test_t2_weights_and_rejections_have_one_interval():
    """[0.5, 5] keeps a ratio of 3 and drops one of 0.3, as a bound of weights and as a rejection."""
    trainer, rollout = np.log([0.3, 0.3]), np.log([0.1, 1.0])
    masked = lockstep.correct(trainer, rollout, weights="mask", low=0.5, high=5)
    np.testing.assert_allclose(masked.weights, [3, 0])
    rejected = lockstep.correct(trainer, rollout, reject=lockstep.Rejection("ratio", low=0.5, high=5))
    assert rejected.kept.tolist() == [True, False]


# T3 and T9: infinities that become plausible numbers, or swallow the whole mean.

def test_t3_a_large_ratio_is_finite_where_the_log_is_float32():
    found = lockstep.mismatch(np.float32([-1, -1]), np.float32([-101, -1]))
    assert found.k3.value == pytest.approx((math.exp(100) - 101) / 2, rel=1e-14)
    assert found.chi_square.value == pytest.approx((math.exp(200) - 1) / 2, rel=1e-14)


@pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan])
def test_t9_an_impossible_token_is_named_or_dropped_and_never_counts_as_agreement(value):
    trainer = [np.array([-1.0, -2, -1]), np.array([-0.5, -2, -0.25])]
    rollout = [np.array([-1.5, -2, -2]), np.array([-1, value, -1])]
    with pytest.raises(lockstep.NonFiniteError, match=r"sequence 1.*position 1|position 1.*sequence 1"):
        lockstep.mismatch(trainer, rollout)
    dropped = lockstep.mismatch(trainer, rollout, non_finite="exclude")
    mask = [np.array([True] * 3), np.array([True, False, True])]
    same = lockstep.mismatch(trainer, rollout, mask)
    assert dropped.excluded_tokens == 1 and dropped.tokens == 5
    counts = ("masked_tokens", "excluded_tokens")
    np.testing.assert_equal(values(dropped, *counts), values(same, *counts))


@pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan])
def test_t9_a_correction_names_it_or_drops_it(value):
    """Neither kept with weight 1 (AReaL) nor given weight 0 and kept in the denominator (NeMo RL)."""
    trainer, rollout = np.array([[-1.0, -2, -1]]), np.array([[-1.5, value, -2]])
    with pytest.raises(lockstep.NonFiniteError, match="rollout_log_probs.*sequence 0, position 1"):
        lockstep.correct(trainer, rollout)
    found = lockstep.correct(trainer, rollout, non_finite="exclude", level="sequence_mean", weights="raw")
    np.testing.assert_allclose(found.weights, [[math.exp(0.75), 0, math.exp(0.75)]])
    assert found.kept.tolist() == [[True, False, True]] and found.excluded_tokens == 1 and found.tokens == 2


def test_t3_verl_lets_one_token_take_the_mean(verl):
    import torch

    found = verl.compute_offpolicy_metrics(
        torch.tensor([[-1.0, -1]]), torch.tensor([[-math.inf, -1]]), torch.ones(1, 2, dtype=torch.bool))
    assert found["kl"] == -math.inf and math.isnan(found["k3_kl"]) and found["chi2_token"] > 1e17


def test_t9_areal_counts_it_as_agreement():
    import torch

    functional = installed("areal.utils.functional.functional")
    arguments = installed("areal.api.cli_args")
    found = functional.apply_rejection_sampling(
        torch.tensor([[-1.0, -1]]), torch.tensor([[-math.inf, -1]]), torch.ones(1, 2), None,
        arguments.RejectionSamplingConfig(level="token", metric="ratio", action="mask", upper=2.0))
    assert found.behave_imp_weight.tolist() == [[1, 1]]


# T4: nothing within the interval.

def test_t4_weights_that_are_all_extreme_have_an_effective_sample_size():
    found = lockstep.mismatch([-6.0, -7.5, -0.5], [-1.0, -1, -20])
    r = np.exp([-5.0, -6.5, 19.5])
    assert found.ess == pytest.approx(r.sum() ** 2 / (3 * (r @ r)), rel=1e-12) and 0 < found.ess <= 1


@pytest.mark.parametrize("level", ["token", "sequence_sum", "segment_mean"])
def test_t4_nothing_left_is_an_answer(level):
    rule = lockstep.Rejection("ratio", level, low=0.5, high=5)
    found = lockstep.correct(
        np.array([[-6.0, -7]]), np.array([[-1.0, -1]]), weights="mask", level=level, low=0.5, high=5, normalize=True,
        reject=rule)
    assert found.empty and not found.kept.any() and not found.weights.any()
    assert (found.weight.mean, found.weight.std, found.weight.ess, found.normalizer) == (0, 0, 0, 1)
    assert found.rejected_tokens == 2 and found.kept_weight.units == 0 and math.isnan(found.kept_weight.mean)


def test_t4_verl_divides_by_zero(verl):
    import torch

    with pytest.raises(ZeroDivisionError):
        verl.compute_rollout_correction_and_rejection_mask(
            torch.tensor([[-6.0, -7]]), torch.tensor([[-1.0, -1]]), torch.ones(1, 2, dtype=torch.bool),
            rollout_is="token", rollout_is_threshold="0.5_5.0")


# T5: a sample's chi square below 0.

def test_t5_chi_square_may_be_negative_and_says_so():
    found = lockstep.mismatch([-1.5, -2.0], [-1.0, -1.0])
    assert found.chi_square.value == pytest.approx((math.exp(-1) + math.exp(-2)) / 2 - 1, rel=1e-14)
    assert found.chi_square.value < 0
    for text in (ROOT / "include" / "lockstep.h", ROOT / "docs" / "Glossary.md"):
        line = next(each for each in text.read_text().splitlines() if "mean(r^2) - 1" in each)
        assert "may be negative" in line


def test_t5_verl_is_negative_too(verl):
    import torch

    found = verl.compute_offpolicy_metrics(
        torch.tensor([[-1.5, -2]]), torch.tensor([[-1.0, -1]]), torch.ones(1, 2, dtype=torch.bool))
    assert found["chi2_token"] < 0 and found["chi2_seq"] < 0


# T7 and T14: metrics that the mask, or the code, has made constant.

def test_t7_padding_does_not_widen_a_constant_ratio():
    """SkyRL's standard deviation of it, 0.638, is in known-differences.txt."""
    each = log("constant ratio")
    found = lockstep.mismatch(each.trainer, each.rollout, each.mask)
    np.testing.assert_allclose(found.log_ratio_quantiles, 0.1, rtol=1e-14)
    assert found.chi_square.value + 1 == pytest.approx(found.mean_ratio.value**2, rel=1e-14)
    assert found.ess == pytest.approx(1, rel=1e-14)
    assert any(line.figure == "is_ratio_std" and line.witness == "constant ratio" for line in KNOWN)


def test_t14_no_statistic_is_dead():
    """Every number of the result moves with the log; a metric that cannot is one that nobody measured."""
    results = [lockstep.metrics(lockstep.mismatch(each.trainer, each.rollout, each.mask, non_finite="exclude"))
               for each in map(log, ("ragged", "full", "three empty rows", "vectors/wide", "vectors/identical"))]
    trainer, rollout = log("vectors/wide").trainer.copy(), log("vectors/wide").rollout
    trainer[0, 0] = np.nan
    results.append(lockstep.metrics(lockstep.mismatch(trainer - 2, rollout, non_finite="exclude")))
    results.append(lockstep.metrics(lockstep.mismatch([[-1.0], [-0.5], [-4.0]], [[-1.0], [-0.25], [-1.0]])))
    names = set().union(*results)
    assert len(names) > 60
    dead = {name for name in names if len({each[name] for each in results if name in each}) == 1}
    assert dead == set()


def test_t14_a_mean_does_not_grow_with_the_batch():
    """The log three times over: the same means, extremes and quantiles; smaller errors."""
    each = log("ragged")
    once = lockstep.mismatch(each.trainer, each.rollout, each.mask)
    thrice = lockstep.mismatch(*(np.concatenate([part] * 3) for part in (each.trainer, each.rollout, each.mask)))
    counts = {"tokens", "masked_tokens", "sequences"}
    for name, value in values(once).items():
        other = values(thrice)[name]
        if isinstance(value, dict):
            np.testing.assert_allclose(other["value"], value["value"], rtol=1e-12, err_msg=name)
            assert other["standard_error"] <= value["standard_error"], name
        elif name in counts:
            assert other == 3 * value
        elif name == "log_ratio_quantiles":  # between order statistics, so only roughly
            assert other[4] == pytest.approx(value[4], abs=0.05)
        elif name.endswith("_standard_error"):
            assert not other > value, name
        elif name != "sequence_log_ratio_std":  # divides by k - 1
            np.testing.assert_allclose(other, value, rtol=1e-12, err_msg=name)


# T11: truncated before it is measured.

def test_t11_the_raw_ratio_is_measured():
    """TRL reports ratios after clipping them at 3, so its maximum never tells. Ours are never clipped."""
    found = lockstep.mismatch(np.full(100, -0.5), np.where(np.arange(100) == 7, -4.5, -0.5))
    assert found.max_abs_log_ratio == 4 and found.max_abs_position == 7
    assert found.mean_ratio.value == pytest.approx((99 + math.exp(4)) / 100, rel=1e-14)


def test_t11_a_correction_says_what_it_changed():
    """Before the bound, after it, and how many it changed."""
    trainer, rollout = np.full((1, 100), -0.5), np.where(np.arange(100) == 7, -4.5, -0.5)[None]
    found = lockstep.correct(trainer, rollout, high=3)
    assert found.ratio.max == pytest.approx(math.exp(4)) and found.weight.max == 3 and found.above == 1
    assert found.ratio.ess < found.weight.ess < 1
    mask = np.ones((1, 103), bool)
    mask[:, 100:] = False
    poisoned = [np.pad(each, ((0, 0), (0, 3)), constant_values=math.nan) for each in (trainer, rollout)]
    other = lockstep.correct(*poisoned, mask, high=3)
    assert other.ratio == found.ratio and other.weight == found.weight


def test_t11_nan_in_padding_is_not_read():
    """It poisons systems that multiply by the mask (known-differences.txt: SkyRL, OpenRLHF)."""
    clean, poisoned = log("ragged"), log("NaN padding")
    np.testing.assert_equal(
        values(lockstep.mismatch(poisoned.trainer, poisoned.rollout, poisoned.mask)),
        values(lockstep.mismatch(clean.trainer, clean.rollout, clean.mask)))


# T12: products over a sequence die with its length.

def test_t12_sequence_weights_die_with_length():
    """Nothing but noise of 0.05 a token, its mean ratio 1: S is normal with deviation s = 0.05 sqrt(T) and mean
    -s^2 / 2, and the effective sample size goes as exp(-s^2). The figures are docs/Glossary.md's."""
    rng = np.random.default_rng(12)
    table = re.findall(r"^\| ([\d,]+) \| ([\d.]+) \| ([\d.]+) % \| ([\d.]+) \|$", GLOSSARY, flags=re.M)
    assert [int(row[0].replace(",", "")) for row in table] == [128, 512, 2048, 8192]
    for written, deviation, dropped, ess in table:
        length = int(written.replace(",", ""))
        noise = rng.standard_normal(1000 * length, dtype=np.float32) * np.float32(0.05) - np.float32(0.00125)
        log = noise - 1, np.full(noise.size, -1, np.float32), None, np.arange(1001) * length
        found = lockstep.mismatch(*log)
        sums = lockstep.mismatch_sequences(*log)["log_ratio"]
        s = 0.05 * math.sqrt(length)
        above = math.erfc((math.log(3) + s * s / 2) / s / math.sqrt(2)) / 2
        assert (sums > math.log(3)).mean() == pytest.approx(above, abs=0.02)  # what a cap of 3 leaves out
        assert found.sequence_ess == pytest.approx(math.exp(-s * s), abs=0.1)
        assert found.ess > 0.99 and found.mean_sequence_length == length  # token weights do not care
        measured = (f"{found.sequence_log_ratio_std:.2f}", f"{100 * (sums > math.log(3)).mean():.1f}",
                    f"{found.sequence_ess:.3f}")
        assert measured == (deviation, dropped, ess), length


def test_t12_a_correction_shows_length_beside_sample_size():
    """What TRL's default (mask sequences above 3) does to noise alone, and at which length."""
    rng = np.random.default_rng(12)
    for length in (512, 8192):
        noise = rng.standard_normal((400, length), dtype=np.float32) * np.float32(0.05) - np.float32(0.00125)
        found = lockstep.correct(
            noise - 1, np.full_like(noise, -1), weights="mask", level="sequence_sum", high=3)
        assert found.mean_sequence_length == found.max_sequence_length == length
        variance = 0.0025 * length
        above = math.erfc((math.log(3) + variance / 2) / math.sqrt(2 * variance)) / 2
        assert found.above / found.sequences == pytest.approx(above, abs=0.05)
        assert found.ratio.ess == pytest.approx(math.exp(-variance), abs=0.15)
    assert found.ratio.ess < 0.05


# T16 and T17: a row's log-prob depends on how many rows it is computed with.

@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_t16_t17_log_probs_do_not_depend_on_the_batch(dtype, ml_dtypes):
    """The measure of verl issue 6280 (share of tokens with r outside [0.9, 1.1] between two batch sizes) is 0,
    and so is the share that differ in a bit."""
    rng = np.random.default_rng(16)
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    hidden = rng.standard_normal((64, 576)).astype(kind)
    head = (rng.standard_normal((1000, 576)) / 8).astype(kind)
    targets = rng.integers(0, 1000, 64)
    whole = lockstep.linear_log_probs(hidden, head, targets)
    for size in (1, 8, 23):
        parts = np.concatenate([lockstep.linear_log_probs(hidden[i:i + size], head, targets[i:i + size])
                                for i in range(0, 64, size)])
        found = lockstep.mismatch(whole, parts)
        assert found.share_differing.value == 0 and found.share_outside_10pct.value == 0


def test_t16_torch_depends_on_the_batch(torch):
    """What the test above is worth: on this machine PyTorch's product gives a row other bits in a batch."""
    generator = torch.Generator().manual_seed(16)
    hidden = torch.randn(64, 576, generator=generator)
    head = torch.randn(576, 1000, generator=generator) / 8
    whole = (hidden @ head).log_softmax(-1)
    alone = torch.cat([(hidden[i:i + 1] @ head).log_softmax(-1) for i in range(64)])
    if torch.equal(whole, alone):
        pytest.skip("this build of PyTorch multiplies one row as it multiplies many")
    found = lockstep.mismatch(whole[:, 0].contiguous(), alone[:, 0].contiguous())
    assert found.share_differing.value > 0


# T18: a temperature applied to the wrong thing.

def test_t18_temperature_divides_logits_and_not_log_probs():
    rng = np.random.default_rng(18)
    logits = (3 * rng.standard_normal((50, 200))).astype(np.float32)
    targets = rng.integers(0, 200, 50)
    scaled = logits.astype(np.float64) / 0.7
    right = scaled[np.arange(50), targets] - np.log(np.exp(scaled).sum(axis=1))
    found = lockstep.log_probs(logits, targets, temperature=0.7)
    np.testing.assert_allclose(found, right, rtol=1e-6, atol=1e-6)
    wrong = lockstep.log_probs(logits, targets) / 0.7
    assert abs(found - wrong).min() > 1e-3


def test_t18_raw_against_processed_shows_as_a_mean_ratio_off_one():
    """A rollout drawn at temperature 0.7 whose log-probs were recorded before it: on its own tokens the ratio
    has no reason to be 1, and rounding cannot move it so."""
    rng = np.random.default_rng(181)
    logits = (2 * rng.standard_normal((4000, 50))).astype(np.float32)
    processed = np.exp(logits / np.float32(0.7), dtype=np.float64)
    processed /= processed.sum(axis=1, keepdims=True)
    tokens = (processed.cumsum(axis=1) > rng.random((4000, 1))).argmax(axis=1)
    trainer = lockstep.log_probs(logits, tokens, temperature=0.7)
    raw, offsets = lockstep.log_probs(logits, tokens), np.arange(0, 4001, 40)
    bad = lockstep.mismatch(trainer, raw, None, offsets)
    good = lockstep.mismatch(trainer, lockstep.log_probs(logits / np.float32(0.7), tokens), None, offsets)
    assert abs(bad.mean_ratio.value - 1) > 10 * bad.mean_ratio.standard_error
    assert abs(good.mean_ratio.value - 1) < 1e-6


def test_every_trap_is_here():
    """T1 to T18: a test, or named above as coming with what it is about."""
    import test_traps

    tested = {int(number) for name in vars(test_traps) for number in re.findall(r"(?<=_t)\d+", name)}
    later = {int(number) for number in re.findall(r"\bT(\d+) \(", __doc__)}
    assert tested | later == set(range(1, 19)) and not tested & later
