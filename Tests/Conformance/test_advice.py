"""Corrections advice: each rule against its formula, thresholds against exhaustive search, known laws, the command."""

import json
import math

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import ROOT
from rollouts import SHIPPED, write

import lockstep
from lockstep.advice import RULES, Bins, CorrectionHistograms, Histogram, advise_on, thresholds
from lockstep.commands import commands
from lockstep.logs import read_prime_rl


@pytest.fixture(scope="module")
def logs():
    return {name: read_prime_rl([path], label=name) for name, path in SHIPPED.items()}


def columns(log):
    return log.trainer, log.rollout, log.mask, log.offsets


def effect(advice, rule):
    return next(each for each in advice.effects if each.rule == rule)


def threshold(advice, kind):
    return next(each for each in advice.thresholds if each.kind == kind)


def gaussian(sigma, length, sequences, seed=1):
    """Log-probs whose d is normal with mean -sigma²/2, so that the mean ratio is 1."""
    d = np.random.default_rng(seed).normal(-sigma**2 / 2, sigma, (sequences, length))
    return d - 1.0, np.full(d.shape, -1.0)


# Rules


def by_hand(d_of):
    """(ratios, weights, truncated or dropped) of the units of each rule, with plain loops."""
    out = {rule.name: ([], [], []) for rule in RULES}
    for d in d_of:
        s, n = sum(d), len(d)
        r = [math.exp(x) for x in d]
        geometric = 0.999 <= math.exp(s / n) <= 1.002
        drops = {"drop mean exp|d| > 2": sum(math.exp(abs(x)) for x in d) / n > 2,
                 "drop mean k3 > 0.01": sum(math.exp(x) - 1 - x for x in d) / n > 0.01,
                 "veto r < 1e-4": min(r) < 1e-4}
        for x in r:
            for name, weight, cut in (
                ("none", 1.0, False), ("token weight", x, False), ("token TIS, C = 2", min(x, 2.0), x > 2),
                ("token mask [0.5, 5]", x if 0.5 <= x <= 5 else 0.0, not 0.5 <= x <= 5),
                ("geometric mask [0.999, 1.002]", x if geometric else 0.0, not geometric),
                *((name, float(not drop), drop) for name, drop in drops.items())):
                for into, value in zip(out[name], (x, weight, cut)):
                    into.append(value)
        rho = math.exp(s)
        for name, weight, cut in (
            ("no sequence weight", 1.0, False), ("sequence weight", rho, False),
            ("sequence TIS, C = 2", min(rho, 2.0), rho > 2),
            ("sequence MIS, C = 3", rho if rho <= 3 else 0.0, rho > 3), ("geometric weight", math.exp(s / n), False)):
            for into, value in zip(out[name], (rho, weight, cut)):
                into.append(value)
    return out


def test_every_rule_by_hand():
    random = np.random.default_rng(5)
    d_of = [np.round(random.normal(0, scale, n), 3) for scale, n in
            ((0.0, 4), (1e-3, 6), (0.5, 3), (1.5, 9), (0.01, 2), (0.3, 1))] + [np.array([0.1, -9.5, 0.2])]
    advice = lockstep.advise([d - 20.0 for d in d_of], [np.full(len(d), -20.0) for d in d_of])
    exact = [(np.asarray(d - 20.0) - -20.0).tolist() for d in d_of]
    for name, (ratio, weight, cut) in by_hand(exact).items():
        ratio, weight = np.array(ratio), np.array(weight)
        found, n = effect(advice, name), len(ratio)
        assert found.modified[0] == pytest.approx(np.mean(cut)), name
        assert found.dropped[0] == pytest.approx(np.mean(weight == 0)), name
        assert found.ess_before[0] == pytest.approx(ratio.sum() ** 2 / (n * (ratio**2).sum())), name
        expected = weight.sum() ** 2 / (n * (weight**2).sum()) if weight.any() else 0.0
        assert found.ess[0] == pytest.approx(expected), name
        assert found.bias[0] == pytest.approx(np.abs(ratio - weight).mean()), name
        assert found.second_moment[0] == pytest.approx((weight**2).mean()), name
        assert found.error == pytest.approx(math.sqrt(found.bias[0] ** 2 + found.second_moment[0] / len(d_of)))


def test_ess_before_is_the_core_s(logs):
    for log in logs.values():
        measured, advice = lockstep.mismatch(*columns(log)), lockstep.advise(*columns(log))
        assert effect(advice, "token weight").ess[0] == pytest.approx(measured.ess, rel=1e-9)
        assert effect(advice, "sequence weight").ess[0] == pytest.approx(measured.sequence_ess, rel=1e-9)
        assert effect(advice, "token weight").second_moment[0] - 1 == pytest.approx(measured.chi_square.value, rel=1e-6)
        assert effect(advice, "token weight").second_moment[1] == pytest.approx(measured.chi_square.standard_error, rel=1e-6)


def test_errors_are_the_spread_over_repetitions():
    repeated = [lockstep.advise(*gaussian(0.05, 64, 200, seed)) for seed in range(120)]
    for rule, field in (("sequence TIS, C = 2", "ess"), ("sequence TIS, C = 2", "bias"), ("token weight", "ess"),
                        ("sequence weight", "second_moment"), ("sequence TIS, C = 2", "modified")):
        pairs = [getattr(effect(advice, rule), field) for advice in repeated]
        spread = np.std([value for value, _ in pairs], ddof=1)
        assert np.mean([error for _, error in pairs]) == pytest.approx(spread, rel=0.3), (rule, field)


def test_bias_bounds_what_a_bounded_objective_can_be_off(logs):
    log = logs["bf16"]
    rows = lockstep.mismatch_sequences(*columns(log))
    rho = np.exp(rows["log_ratio"])
    objective = np.random.default_rng(2).uniform(-1, 1, (50, len(rho)))
    for weight, rule in ((np.minimum(rho, 2), "sequence TIS, C = 2"), (np.where(rho > 3, 0, rho), "sequence MIS, C = 3")):
        bound = effect(lockstep.advise(*columns(log)), rule).bias[0]
        assert np.abs((objective * (rho - weight)).mean(1)).max() <= bound
        assert np.abs((np.ones(len(rho)) * (rho - weight)).mean()) == pytest.approx(bound), "and is reached"


# Laws


@pytest.mark.parametrize("sigma, length, dropped, ess", [(0.02, 2048, 0.050, 0.44), (0.05, 512, 0.059, 0.22)])
def test_sequence_weights_die_with_length(sigma, length, dropped, ess):
    """TRL's default, sequence_mask with C = 3, under pure rounding noise. S is normal of variance v, mean -v/2: a
    share Phi(-(ln 3 + v/2) / sqrt v) of sequences is dropped, and raw weights keep exp(-v)."""
    v = sigma**2 * length
    assert 0.5 * math.erfc((math.log(3) + v / 2) / math.sqrt(2 * v)) == pytest.approx(dropped, abs=0.004)
    assert math.exp(-v) == pytest.approx(ess, abs=0.065)
    # S drawn as such: one token a sequence carries it.
    advice = lockstep.advise(*gaussian(math.sqrt(v), 1, 40_000))
    value, error = effect(advice, "sequence MIS, C = 3").dropped
    assert abs(value - 0.5 * math.erfc((math.log(3) + v / 2) / math.sqrt(2 * v))) < 4 * error
    value, error = effect(advice, "sequence weight").ess
    assert abs(value - math.exp(-v)) < 5 * error


def test_the_half_life_is_where_half_is_left():
    advice = lockstep.advise(*gaussian(0.05, 100, 4000))
    assert advice.variance_per_token == pytest.approx(0.05**2, rel=0.06)
    assert advice.half_life == pytest.approx(math.log(2) / advice.variance_per_token)
    at_half = lockstep.advise(*gaussian(0.05, round(math.log(2) / 0.05**2), 4000, seed=9))
    assert effect(at_half, "sequence weight").ess[0] == pytest.approx(0.5, abs=0.04)
    assert lockstep.advise(*gaussian(0.05, 100, 400), ess=0.25).longest == pytest.approx(
        2 * lockstep.advise(*gaussian(0.05, 100, 400)).half_life)


def test_no_mismatch_needs_nothing():
    rollout = -np.random.default_rng(0).exponential(1.0, (20, 7))
    advice = lockstep.advise(rollout, rollout)
    assert math.isinf(advice.half_life) and all(each.bias[0] == 0 and each.ess[0] == 1 for each in advice.effects)
    assert all(math.isinf(threshold(advice, kind).value) for kind in ("token TIS", "sequence TIS", "sequence MIS"))


# Thresholds


def applied(kind, x, threshold):
    """(ESS, share cut, bias) of a threshold, from the values themselves."""
    r = np.exp(np.clip(x, -20, 20))
    base = np.ones(len(r)) if kind == "geometric mask" else r
    if "TIS" in kind:
        weight = np.minimum(r, threshold)
    elif "MIS" in kind:
        weight = np.where(r <= threshold, r, 0.0)
    else:
        weight = np.where((r >= 1 / threshold) & (r <= threshold), base, 0.0)
    square = (weight**2).sum()
    ess = weight.sum() ** 2 / (len(r) * square) if square else 0.0
    return ess, np.mean(weight != base), np.mean(base - weight)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("wanted", [0.2, 0.5, 0.8, 0.97])
def test_thresholds_do_what_they_promise_and_the_next_does_not(logs, name, wanted):
    """Applied to the values themselves, not to bins; what bins may cost is in docs/Advice.md."""
    log = logs[name]
    rows = lockstep.mismatch_sequences(*columns(log))
    tokens = (log.trainer.astype(float) - log.rollout)[log.mask]
    advice = lockstep.advise(*columns(log), ess=wanted)
    for kind, x in (("token TIS", tokens), ("token mask", tokens), ("sequence TIS", rows["log_ratio"]),
                    ("sequence MIS", rows["log_ratio"]), ("geometric mask", rows["mean_log_ratio"])):
        found = threshold(advice, kind)
        r = np.exp(x)
        if math.isinf(found.value):
            assert applied(kind, x, math.inf)[0] >= wanted - 5e-4, kind
            continue
        # Every value of the log is tried as the threshold; a looser one would do worse.
        edges = np.unique(np.maximum(r, 1 / r) if "mask" in kind else r)
        others = np.array([applied(kind, x, edge * (1 + 1e-12))[0] for edge in edges[:: max(1, len(edges) // 300)]])
        tried = edges[:: max(1, len(edges) // 300)]
        looser = tried < found.value * (1 - 1e-3) if "mask" in kind else tried > found.value * (1 + 3e-3)
        if math.isnan(found.value):
            assert (others < wanted + 5e-4).all(), kind
            continue
        ess, cut, bias = applied(kind, x, found.value)
        assert ess == pytest.approx(found.ess, abs=5e-4) and ess >= wanted - 5e-4, kind
        # In float64, exp does not tell the end of a bin near d = 0 from the beginning of the next: some tokens.
        assert cut == pytest.approx(found.modified, abs=1.1 / 96 if kind == "sequence TIS" else 3e-4), kind
        assert bias == pytest.approx(found.bias, abs=5e-4), kind
        assert (others[looser] < wanted + 5e-4).all(), kind


def test_a_mask_that_nothing_saves():
    """Half of the weight is in one sequence of a hundred: no C keeps half with MIS, one does with TIS."""
    trainer, rollout = gaussian(3.0, 1, 4000)
    advice = lockstep.advise(trainer, rollout, ess=0.5)
    assert math.isnan(threshold(advice, "sequence MIS").value)
    assert threshold(advice, "sequence MIS").text == "no threshold keeps it"
    truncation = threshold(advice, "sequence TIS")
    assert truncation.value < 1 and "below 1" in truncation.text and truncation.ess == pytest.approx(0.5, abs=0.02)


def test_bins_are_one_256th_of_a_power_of_two():
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(0, 1, 4000) * 10.0 ** random.integers(-9, 3, 4000), [0.0, -0.0, 0.0]])
    histogram = Histogram()
    histogram.add(values)
    bins = histogram.bins()
    middle, count = bins.middle, bins.count
    assert count.sum() == len(values) and (np.diff(middle) > 0).all() and count[middle == 0] == 3
    nearest = middle[np.abs(values[:, None] - middle).argmin(1)]
    assert (np.abs(nearest - values) <= np.abs(values) / 512).all()
    assert (bins.last >= middle).all() and (bins.last[:-1] < middle[1:]).all() and (bins.outer >= np.abs(middle)).all()


def test_thresholds_from_histograms_of_others(logs):
    """As an accumulator has them: edges and counts, in any order, coarser bins, open ends."""
    log = logs["bf16"]
    rows = lockstep.mismatch_sequences(*columns(log))
    tokens = (log.trainer.astype(float) - log.rollout)[log.mask]
    size = 2.0 ** np.arange(-20, 4, 1 / 128)
    edges = np.concatenate([[-np.inf], -size[::-1], [0.0], size, [np.inf]])

    def bins(values):
        count = np.histogram(values, edges)[0]
        some = np.flatnonzero(count)[::-1]
        return Bins.between(edges[some], edges[some + 1], count[some])

    found = thresholds(bins(tokens), bins(rows["log_ratio"]), bins(rows["mean_log_ratio"]), 0.8)
    for one, other in zip(found, lockstep.advise(*columns(log), ess=0.8).thresholds):
        assert one.kind == other.kind
        if math.isfinite(other.value):
            assert abs(math.log(one.value / other.value)) <= abs(math.log(other.value)) / 50
            assert one.ess == pytest.approx(other.ess, abs=0.01) and one.bias == pytest.approx(other.bias, abs=0.01)
        else:
            assert one.text == other.text
    far = Bins.between([-np.inf, 25.0], [-30.0, np.inf], [3, 4])
    assert far.middle.tolist() == [-20.0, 20.0] and far.count.tolist() == [3.0, 4.0]


# Streaming


def test_cut_and_merged_is_the_same(logs):
    log = logs["bf16"]
    parts = [slice(a, b) for a, b in zip(log.offsets[:-1], log.offsets[1:])]
    lists = [[column[part] for part in parts] for column in (log.trainer, log.rollout, log.mask)]
    merged = CorrectionHistograms()
    for some in (slice(60, 96), slice(0, 1), slice(1, 60)):
        merged.merge(CorrectionHistograms().add(*[each[some] for each in lists]))
    found, expected = advise_on(merged, ess=0.7), lockstep.advise(*columns(log), ess=0.7)
    assert found.thresholds == expected.thresholds
    for one, other in zip(found.effects, expected.effects):
        for field in ("modified", "dropped", "ess_before", "ess", "bias", "second_moment"):
            assert getattr(one, field) == pytest.approx(getattr(other, field), rel=1e-9, abs=1e-9)
    assert [each.shortest for each in found.by_length] == [8, 16, 32, 64, 128]


def test_length_classes_are_logs_of_their_own(logs):
    log = logs["bf16"]
    advice = lockstep.advise(*columns(log))
    assert sum(each.tokens for each in advice.by_length) == advice.tokens == 11709
    rows = lockstep.mismatch_sequences(*columns(log))
    long = [slice(a, b) for a, b, n in zip(log.offsets[:-1], log.offsets[1:], rows["tokens"]) if n >= 128]
    alone = lockstep.advise(*[[column[part] for part in long] for column in (log.trainer, log.rollout, log.mask)])
    assert advice.by_length[-1].thresholds == alone.thresholds
    for one, other in zip(advice.by_length[-1].effects, alone.effects):
        assert one.ess == pytest.approx(other.ess) and one.bias == pytest.approx(other.bias)


def test_masks_come_first_and_empty_sequences_do_not_exist():
    trainer, rollout = gaussian(0.1, 10, 40)
    mask = np.ones(trainer.shape, bool)
    mask[:, 7:], mask[5] = False, False
    kept = np.delete(np.arange(40), 5)
    expected = lockstep.advise(trainer[kept, :7], rollout[kept, :7])
    trainer[:, 7:], rollout[5] = np.nan, -np.inf
    assert lockstep.advise(trainer, rollout, mask) == expected


def test_clamped_ratios_are_counted():
    trainer, rollout = gaussian(0.01, 5, 30)
    rollout[3] -= 100.0
    advice = lockstep.advise(trainer, rollout)
    assert effect(advice, "token weight").clamped == 5 and effect(advice, "sequence weight").clamped == 1
    assert all(math.isfinite(each.second_moment[0]) for each in advice.effects)


def test_one_sequence_has_no_errors():
    trainer, rollout = gaussian(0.1, 10, 1)
    advice = lockstep.advise(trainer, rollout)
    assert math.isnan(advice.half_life) and math.isnan(effect(advice, "token weight").ess[1])
    json.dumps(advice.to_dict(), allow_nan=False)


def test_bad_input():
    trainer, rollout = gaussian(0.1, 10, 3)
    for share in (0, 1, -1, 50, math.nan):
        with pytest.raises(lockstep.InvalidArgumentError, match="ess"):
            lockstep.advise(trainer, rollout, ess=share)
    with pytest.raises(lockstep.InvalidArgumentError, match="no token counts"):
        lockstep.advise(trainer, rollout, np.zeros(trainer.shape, bool))
    trainer[1, 4] = np.nan
    with pytest.raises(lockstep.NonFiniteError, match="sequence 1"):
        lockstep.advise(trainer, rollout)
    assert lockstep.advise(trainer, rollout, non_finite="exclude").tokens == 29


# The command


def run(*arguments, status=0):
    result = CliRunner().invoke(commands, ["advise", *map(str, arguments)])
    assert result.exit_code == status, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_table(tmp_path):
    out = run(SHIPPED["bf16"], SHIPPED["fp16"], "--ess", "0.9").stdout
    assert "geometric mask [0.999, 1.002]" in out and "no threshold keeps it" in out and "128 to 255" in out
    assert "…" not in out and out.count("lose half") == 2
    run(SHIPPED["bf16"], "--ess", "1.5", status=2)
    run(write(tmp_path / "empty.jsonl"), status=2)


def test_the_document():
    out = json.loads(run(SHIPPED["fp16"], "--json").stdout)
    (log,) = out["logs"]
    assert out["schema"] == "lockstep-advice/1" and log["tokens"] == 12013
    assert {each["rule"] for each in log["effects"]} == {rule.name for rule in RULES}
    assert log["thresholds"][0]["value"] is None and log["thresholds"][0]["text"].startswith("none needed")


def test_the_guide_shows_what_is_printed(monkeypatch):
    monkeypatch.chdir(ROOT)
    guide = (ROOT / "docs" / "Advice.md").read_text()
    (block,) = (block.split("```")[0] for block in guide.split("```console\n")[1:])
    command, _, printed = block.partition("\n")
    result = CliRunner().invoke(commands, command.removeprefix("$ lockstep ").split())
    assert [line.rstrip() for line in result.stdout.splitlines()] == printed.rstrip().splitlines()
