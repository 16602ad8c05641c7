"""Corrections against their formulas in NumPy, on real rollouts, and what bad input is told."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lockstep
import lockstep.logs
from lockstep import InvalidArgumentError, NonFiniteError, Rejection, correct
from conftest import ROOT
from rollouts import SHIPPED
from test_mismatch import synthetic

INF, NAN = math.inf, math.nan
LEVELS = ["token", "sequence_sum", "sequence_mean", "segment_sum", "segment_mean", "sequence_every"]
STATISTICS = ["ratio", "k2", "k3", "exp_abs", "probability_difference", "binary_kl"]


def binary_kl(a, b):
    p, q = np.exp(a), np.exp(b)
    with np.errstate(invalid="ignore", divide="ignore"):
        kl = q * (b - a) + (1 - q) * (np.log1p(-q) - np.log1p(-p))
    return np.sign(p - q) * kl


def token_statistic(name, a, b):
    d = np.clip(a - b, -20, 20)
    return {
        "ratio": np.exp(d), "k2": d * d / 2, "k3": np.expm1(d) - d, "exp_abs": np.exp(abs(d)),
        "probability_difference": np.exp(a) - np.exp(b), "binary_kl": binary_kl(a, b)}[name]


def units(level, mask, offsets):
    """For each counted token, which sequence or segment it is of."""
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    if level.startswith("segment"):
        starts = mask & ~np.concatenate([[False], mask[:-1] & (owner[1:] == owner[:-1])])
        owner = np.cumsum(starts) - 1
    return np.unique(owner[mask], return_inverse=True)[1] if mask.any() else owner[mask]


def at_level(level, name, a, b, owner):
    """The statistic of each counted token's unit."""
    if level in ("token", "sequence_every"):
        return token_statistic(name, a, b)
    values = a - b if name == "ratio" else token_statistic(name, a, b)
    sums = np.bincount(owner, values)
    if level.endswith("mean"):
        sums = sums / np.bincount(owner)
    return (np.exp(np.clip(sums, -20, 20)) if name == "ratio" else sums)[owner]


def expected(log, rule, current, advantages):
    """Which counted tokens a rule keeps."""
    trainer, rollout, mask, offsets = log
    policies = {"trainer": trainer, "rollout": rollout, "current": current}
    a, b = (policies[name].astype(np.float64)[mask] for name in rule.policies.split("_"))
    x = at_level(rule.level, rule.statistic, a, b, units(rule.level, mask, offsets))
    advantage = np.repeat(advantages, np.diff(offsets))[mask]
    passed = {
        "both": (x >= rule.low) & (x <= rule.high),
        "by_advantage": np.where(advantage > 0, x <= rule.high, x >= rule.low),
        "negative_advantage": (advantage >= 0) | ((x >= rule.low) & (x <= rule.high))}[rule.side]
    if rule.level == "sequence_every":
        owner = units(rule.level, mask, offsets)
        passed = (np.bincount(owner, ~passed) == 0)[owner]
    return passed


@pytest.fixture(scope="module")
def log():
    return synthetic(seed=3, count=50, longest=300)


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("level", LEVELS)
def test_rejections_follow_their_formulas(log, statistic, level):
    trainer, rollout, mask, offsets = log
    rng = np.random.default_rng(5)
    current = np.minimum(rollout + rng.normal(0, 0.05, len(rollout)), -1e-6).astype(np.float32)
    advantages = rng.choice([-1.0, 0, 0.5], len(offsets) - 1)
    for policies in ("trainer_rollout", "current_rollout", "current_trainer"):
        for side in ("both", "by_advantage", "negative_advantage"):
            everything = correct(
                trainer, rollout, mask, offsets, current_log_probs=current, advantages=advantages,
                reject=Rejection(statistic, level, policies=policies, side=side))
            count = everything.counts[0]
            assert count.tokens == 0 and everything.kept.sum() == mask.sum()
            # Bounds at which about half is kept.
            spread = (count.max - count.min) / 20
            middle = count.mean
            low = max(middle - spread, 0) if count.min >= 0 else middle - spread
            rule = Rejection(statistic, level, low, middle + spread / 2, policies, side)
            found = correct(
                trainer, rollout, mask, offsets, current_log_probs=current, advantages=advantages, reject=rule)
            wanted = expected((trainer, rollout, mask, offsets), rule, current, advantages)
            assert (found.kept[mask] == wanted).all() and not found.kept[~mask].any()
            assert found.counts[0].tokens == found.rejected_tokens == (~wanted).sum()
            owner = units("sequence_sum", mask, offsets)
            rejected, tokens = np.bincount(owner, ~wanted), np.bincount(owner)
            assert found.touched_sequences == (rejected > 0).sum() == found.counts[0].touched_sequences
            assert found.rejected_sequences == (rejected == tokens).sum() == found.counts[0].sequences
            assert (side == "both") <= (0 < found.rejected_tokens)


@pytest.mark.parametrize("level", LEVELS[:-1])
@pytest.mark.parametrize("weights", ["one", "raw", "truncate", "clip", "mask"])
@pytest.mark.parametrize("normalize", [False, True])
def test_weights_follow_their_formulas(log, level, weights, normalize):
    trainer, rollout, mask, offsets = log
    low, high = 0.97, 1.05
    rules = [Rejection("k3", high=1e-3), Rejection("ratio", "sequence_every", low=0.8)]
    found = correct(
        trainer, rollout, mask, offsets, weights=weights, level=level, low=low, high=high, normalize=normalize,
        reject=rules)
    a, b = (each.astype(np.float64)[mask] for each in (trainer, rollout))
    owner = np.arange(mask.sum()) if level == "token" else units(level, mask, offsets)
    ratio = at_level(level, "ratio", a, b, owner)
    weight = {
        "one": np.ones_like(ratio), "raw": ratio, "truncate": np.minimum(ratio, high),
        "clip": np.clip(ratio, low, high), "mask": np.where((ratio >= low) & (ratio <= high), ratio, 0)}[weights]
    kept = found.kept[mask]
    first = np.unique(owner, return_index=True)[1]
    left = np.unique(owner[kept], return_index=True)[1]
    for statistics, values in (
            (found.ratio, ratio[first]), (found.weight, weight[first]), (found.kept_weight, weight[kept][left])):
        assert statistics.units == len(values)
        np.testing.assert_allclose(
            statistics[1:], [values.mean(), values.std(), values.min(), values.max(),
                             values.sum() ** 2 / (len(values) * (values ** 2).sum())], rtol=1e-10, atol=1e-12)
    mean = weight[first].mean() if normalize else 1
    assert found.normalizer == pytest.approx(mean, rel=1e-13)
    assert found.weights.dtype == np.float32
    np.testing.assert_allclose(found.weights[mask], weight / mean, rtol=6e-8)
    assert not found.weights[~mask].any()
    assert found.above == (ratio[first] > high).sum() and found.below == (ratio[first] < low).sum()
    lengths = np.bincount(units("sequence_sum", mask, offsets))
    assert found.max_sequence_length == lengths.max() and found.mean_sequence_length == lengths.mean()
    assert found.sequences == len(lengths) and found.empty_sequences == len(offsets) - 1 - len(lengths)
    assert found.masked_tokens == (~mask).sum() and found.tokens == mask.sum() and not found.empty


def test_rules_are_joined_and_counted_apart(log):
    trainer, rollout, mask, offsets = log
    rules = [
        Rejection("ratio", "sequence_mean", 0.999, 1.002), Rejection("exp_abs", "token", high=1.1),
        Rejection("probability_difference", "token", -0.02, 0.02)]
    together = correct(trainer, rollout, mask, offsets, reject=rules, second_moment=1e-4)
    alone = [correct(trainer, rollout, mask, offsets, reject=rule) for rule in rules]
    moment = correct(trainer, rollout, mask, offsets, second_moment=1e-4)
    assert tuple(each.counts[0] for each in alone) == together.counts
    assert moment.second_moment_tokens == together.second_moment_tokens > 0
    np.testing.assert_array_equal(together.kept, np.logical_and.reduce([each.kept for each in [*alone, moment]]))
    np.testing.assert_array_equal(together.weights, moment.weights)  # a rejected token keeps its weight


def test_second_moment():
    """M2PO: the largest d^2 go until the mean of the rest is below; ties together, in whatever order."""
    d = np.array([0.1, -0.5, 0.5, 0.2, -0.1, 1.0])
    order = np.array([5, 2, 0, 4, 1, 3])
    for here in (np.arange(6), order):
        found = correct(d[here], np.zeros(6), weights="one", second_moment=0.1)
        # Without the three largest the mean is 0.02; with one of the two 0.25 it would be 0.0775.
        assert found.kept.tolist() == (abs(d[here]) < 0.4).tolist()
        assert found.second_moment_cut == pytest.approx(0.1) and found.second_moment_tokens == 3
    # Five have the mean 0.112, all six 0.26.
    assert correct(d, np.zeros(6), second_moment=0.2).second_moment_tokens == 1
    assert correct(d, np.zeros(6), second_moment=0.27).second_moment_cut == INF
    # Not one token is near enough.
    assert correct(d[[1, 2, 5]], np.zeros(3), second_moment=0.1).empty


def test_clamps_are_counted():
    trainer, rollout = np.array([[-1.0, -1, -30, -1]]), np.array([[-1.0, -30, -1, -21]])
    found = correct(trainer, rollout, weights="raw", reject=[
        Rejection("k2", "token"), Rejection("ratio", "sequence_sum"), Rejection("probability_difference")])
    np.testing.assert_allclose(found.weights, np.exp([[0, 20, -20, 20]]))
    assert found.clamped == 2 and [each.clamped for each in found.counts] == [2, 0, 0]
    assert found.counts[0].max == 200
    free = correct(trainer, rollout, high=1e30, log_ratio_min=-INF, log_ratio_max=INF)
    np.testing.assert_allclose(free.weights, np.exp([[0, 29, -29, 20]]))
    assert free.clamped == 0


@pytest.mark.parametrize("name", SHIPPED)
def test_real_rollouts(name):
    """What a correction finds before it corrects is what the mismatch statistics say of the same log."""
    [batch] = lockstep.logs.open_log(SHIPPED[name])
    log = batch.trainer, batch.rollout, batch.mask, batch.offsets
    measured = lockstep.mismatch(*log)
    bands = Rejection("ratio", "sequence_mean", 0.999, 1.002), Rejection("ratio", low=0.99, high=1.01)
    found = correct(*log, reject=[*bands, Rejection("k3"), Rejection("exp_abs", "sequence_mean")])
    assert (found.tokens, found.sequences) == (measured.tokens, measured.sequences)
    assert found.ratio.mean == pytest.approx(measured.mean_ratio.value, rel=1e-14)
    assert found.ratio.ess == pytest.approx(measured.ess, rel=1e-13)
    mlperf, percent, k3, exp_abs = found.counts
    assert mlperf.sequences / found.sequences == pytest.approx(measured.share_sequences_outside_mlperf.value)
    assert percent.tokens / found.tokens == pytest.approx(measured.share_outside_1pct.value)
    assert k3.mean == pytest.approx(measured.k3.value, rel=1e-13)
    assert exp_abs.mean == pytest.approx(measured.sequence_mean_exp_abs.value, rel=1e-13)
    sums = correct(*log, level="sequence_sum", weights="raw")
    assert sums.ratio.ess == pytest.approx(measured.sequence_ess, rel=1e-12)
    assert sums.max_sequence_length == measured.max_sequence_length


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(LEVELS[:-1]), st.booleans(), st.floats(0, 0.1))
def test_order_and_layout_do_not_show(seed, level, normalize, second_moment):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 40, 12)
    sequences = [np.log(rng.beta(2, 0.5, length)) for length in lengths]
    trainer = [each + 0.2 * rng.standard_t(3, len(each)) for each in sequences]
    mask = [rng.random(len(each)) < 0.8 for each in sequences]
    arguments = {
        "level": level, "normalize": normalize, "second_moment": second_moment,
        "reject": [Rejection("k3", "segment_mean", high=0.1), Rejection("ratio", "sequence_every", low=0.5)]}
    found = correct(trainer, sequences, mask, **arguments)
    order = rng.permutation(len(lengths))
    other = correct(*([part[i] for i in order] for part in (trainer, sequences, mask)), **arguments)
    width = lengths.max() + 3
    left = rng.integers(0, 3, len(lengths))

    def padded(parts, fill):
        rows = np.full((len(parts), width + 2), fill)
        for row, part, start in zip(rows, parts, left):
            row[start:start + len(part)] = part
        return rows

    third = correct(padded(trainer, NAN), padded(sequences, NAN), padded(mask, False), **arguments)
    np.testing.assert_equal(other.to_dict(), found.to_dict())
    np.testing.assert_equal(third.to_dict() | {"masked_tokens": 0}, found.to_dict() | {"masked_tokens": 0})
    for place, index in enumerate(order):
        np.testing.assert_array_equal(other.weights[place], found.weights[index])
        np.testing.assert_array_equal(other.kept[place], found.kept[index])
    for row, kept, part, wanted, start in zip(third.weights, third.kept, found.weights, found.kept, left):
        np.testing.assert_array_equal(row[start:start + len(part)], part)
        np.testing.assert_array_equal(kept[start:start + len(part)], wanted)
        assert not np.delete(row, slice(start, start + len(part))).any()


def test_kinds_of_arrays(torch):
    trainer, rollout = torch.tensor([[-1.0, -2], [-0.5, -3]]), torch.tensor([[-1.5, -2], [-0.5, -2]])
    found = correct(trainer, rollout, mask=torch.tensor([[1, 1], [1, 0]]))
    assert isinstance(found.weights, torch.Tensor) and found.weights.dtype == torch.float32
    assert found.kept.dtype == torch.bool and found.kept.tolist() == [[True, True], [True, False]]
    parts = correct(list(trainer), list(rollout))
    assert [each.shape for each in parts.weights] == [(2,), (2,)] and parts.kept[0].dtype == torch.bool
    half = correct(trainer.bfloat16(), rollout.half())
    np.testing.assert_allclose(half.weights, correct(trainer, rollout).weights)
    # One advantage for each sequence, or one for each token.
    rule = Rejection("ratio", low=0.9, side="negative_advantage")
    for advantages in ([1.0, -1.0], [[1.0], [-1.0]], [[1.0, 1], [-1, -1]]):
        kept = correct(trainer, rollout, advantages=torch.tensor(advantages), reject=rule).kept
        assert kept.tolist() == [[True, True], [True, False]]


A, B = np.log([[0.5, 0.2], [0.3, 0.9]]), np.log([[0.4, 0.2], [0.6, 0.8]])
SIDED = Rejection("ratio", side="by_advantage")
THREE = Rejection("ratio", policies="current_rollout")


@pytest.mark.parametrize("call, message", [
    (lambda: correct(A, B[:1]), "rollout_log_probs: shape"),
    (lambda: correct(A, B, mask=np.ones((2, 3))), "mask: shape"),
    (lambda: correct(A, B, offsets=[0, 2]), "offsets"),
    (lambda: correct(A, B, weights="tis"), "weights is 'tis'; give one of 'one', 'raw', 'truncate'"),
    (lambda: correct(A, B, level="geometric"), "level is 'geometric'"),
    (lambda: correct(A, B, level="sequence_every"), "level"),
    (lambda: correct(A, B, low=3), "low is 3.0 and high is 2.0"),
    (lambda: correct(A, B, low=-1), "low is -1.0"),
    (lambda: correct(A, B, high=NAN), "high is nan"),
    (lambda: correct(A, B, high="2"), None),
    (lambda: correct(A, B, high="two"), "high is 'two'; give a number"),
    (lambda: correct(A, B, weights="raw", log_ratio_max=INF), "log_ratio_max"),
    (lambda: correct(A, B, log_ratio_min=1), "log_ratio_min"),
    (lambda: correct(A, B, second_moment=-0.1), "second_moment is -0.1"),
    (lambda: correct(A, B, reject="veto"), r"reject\[0\] is 'v'; give a lockstep.Rejection"),
    (lambda: correct(A, B, reject=[Rejection("k1")]), r"reject\[0\]: statistic is 'k1'; give one of"),
    (lambda: correct(A, B, reject=[Rejection(), Rejection(level="row")]), r"reject\[1\]: level is 'row'"),
    (lambda: correct(A, B, reject=Rejection(low=2, high=1)), r"rejections\[0\]: low = 2.0 is above high = 1.0"),
    (lambda: correct(A, B, reject=Rejection(high=-1)), r"rejections\[0\].*never negative"),
    (lambda: correct(A, B, reject=Rejection(low=NAN)), r"rejections\[0\]: a bound is NaN"),
    (lambda: correct(A, B, reject=[Rejection()] * 17), "there are 17; give 16 at most"),
    (lambda: correct(A, B, reject=SIDED), r"advantages: is missing; the side of rejections\[0\]"),
    (lambda: correct(A, B, reject=[Rejection(), THREE]), r"current_log_probs: is missing; rejections\[1\]"),
    (lambda: correct(A, B, reject=SIDED, advantages=[1.0]), "advantages: shape"),
    (lambda: correct(A, B, reject=THREE, current_log_probs=A[0]), "current_log_probs: shape"),
    (lambda: correct([A[0]], [B[0], B[1]]), "rollout_log_probs: give a list of 1"),
])
def test_bad_input(call, message):
    if message is None:
        call()
        return
    with pytest.raises(InvalidArgumentError, match=message):
        call()


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_non_finite_input(value):
    spoiled = A.copy()
    spoiled[1, 0] = value
    with pytest.raises(NonFiniteError, match="trainer_log_probs.*sequence 1, position 0"):
        correct(spoiled, B)
    with pytest.raises(NonFiniteError, match="current_log_probs.*sequence 1, position 0"):
        correct(A, B, current_log_probs=spoiled, reject=THREE)
    with pytest.raises(NonFiniteError, match="advantages.*sequence 1, position 0"):
        correct(A, B, advantages=[1.0, value], reject=SIDED)
    # What no rule asks for is not looked at, nor what the mask leaves out.
    correct(A, B, current_log_probs=spoiled, advantages=[1.0, value])
    found = correct(spoiled, B, [[1, 1], [0, 1]])
    assert found.weights[1, 0] == 0 and not found.kept[1, 0]
    assert correct(spoiled, B, non_finite="exclude").excluded_tokens == 1


def test_nothing():
    for shape in ((0,), (0, 5), (3, 0)):
        found = correct(np.zeros(shape), np.zeros(shape), normalize=True, second_moment=0.1)
        assert found.empty and found.weights.shape == shape == found.kept.shape and found.tokens == 0
    assert correct([], []).empty


# docs/Corrections.md

PAGE = (ROOT / "docs" / "Corrections.md").read_text()


@pytest.mark.parametrize("file, language", [
    ("examples/python/corrections.py", "python"), ("examples/c/corrections.c", "c"),
    ("examples/swift/Sources/corrections/main.swift", "swift"), ("examples/expected/corrections.txt", "text")])
def test_the_page_shows_the_examples(file, language):
    assert f"```{language}\n{(ROOT / file).read_text()}```" in PAGE


RECIPES = re.findall(r"^\| [^|]+ \| `((?:Rejection\(|weights=|second|normal)[^`]+)`", PAGE, flags=re.M)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipes_of_the_page_run(recipe):
    """Each with numbers for its letters; what it rejects or weighs, it does to some of these tokens."""
    trainer, rollout, mask, offsets = synthetic(seed=9, count=20, longest=200)
    trainer = trainer.astype(np.float64)
    half = len(trainer) // 2
    trainer[:half:7] -= 0.5
    trainer[3:half:40] -= 20
    trainer[half::7] += 0.5
    trainer[half + 5::90] += 1.8
    letters = {"a": 0.9, "b": 1.2, "low": 0.2, "high": 0.2, "level": "token", "delta": 1e-4, "exp": math.exp,
               "Rejection": Rejection}
    recipe = recipe.replace("...", "0.1")
    if recipe.startswith("Rejection"):
        arguments = {"weights": "raw", "reject": eval(recipe.replace(", low, high)", ", 0.9, 1.1)"), letters)}
    else:
        arguments = eval(f"dict({recipe})", letters)
    found = correct(
        trainer, rollout, mask, offsets, current_log_probs=trainer, advantages=-np.ones(len(offsets) - 1),
        **arguments)
    raw = correct(
        trainer, rollout, mask, offsets, weights="raw", level=arguments.get("level", "token"), high=80)
    assert 0 < found.rejected_tokens or not np.array_equal(found.weights, raw.weights)


def test_there_are_recipes():
    assert len(RECIPES) >= 14
