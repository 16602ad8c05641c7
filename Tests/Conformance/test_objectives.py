"""Objectives: gradients against differences, what must not show, what is refused, and the traps of other systems."""

from __future__ import annotations

import gzip
import itertools
import json
import math

import numpy as np
import pytest

import lockstep
from rollouts import SHIPPED

RNG = np.random.default_rng(7)
SETS = [name for name in ("baseline", "avx2", "avx512", "neon") if lockstep.has_instruction_set(name)]


def batch(rows=7, length=37, dtype=np.float64):
    """Padded log-probs with everything an objective may read; NaN where no token counts."""
    trainer = -RNG.exponential(1, (rows, length))
    arrays = {
        "current_log_probs": trainer + RNG.normal(0, 0.4, trainer.shape), "trainer_log_probs": trainer,
        "reference_log_probs": trainer + RNG.normal(0, 0.5, trainer.shape),
        "entropies": RNG.exponential(1, trainer.shape), "weights": RNG.exponential(1, trainer.shape)}
    mask = np.arange(length) < RNG.integers(1, length + 1, (rows, 1))
    mask &= RNG.random(mask.shape) < 0.9
    if rows > 2:
        mask[2] = False
    arrays = {name: np.where(mask, each, np.nan).astype(dtype) for name, each in arrays.items()}
    return arrays | {
        "advantages": RNG.normal(0, 1, rows), "mask": mask, "kept": RNG.random(mask.shape) < 0.8,
        "selected": RNG.random(mask.shape) < 0.2, "groups": np.arange(rows) // 2}


TERMS = ["clip", "reinforce", "ratio", "cispo", "sapo", "topr", "squared", "kl_cov", "gmpo", "vespo"]
LEVELS = ["token", "sequence", "sequence_token", "sequence_sum"]
AGGREGATIONS = ["token_mean", "token_sum", "seq_mean_token_sum", "seq_mean_token_mean", "seq_mean_token_sum_norm",
                "prompt_mean"]
KLS = list(itertools.product(["k1", "k2", "k3", "abs"], ["direct", "ratio"]))


def options_of(index, term, level="token"):
    """Some combination of all else, another for each index."""
    kl, gradient = KLS[index % len(KLS)]
    if term in ("gmpo", "vespo"):
        level, gradient = "token", "direct"
    return {
        "term": term, "ratio_level": level, "aggregation": AGGREGATIONS[index % 6], "length": 50,
        "denominator": ["original", "kept"][index % 2], "kl": kl, "kl_gradient": gradient, "kl_coefficient": 0.1,
        "entropy_coefficient": 0.01, "coefficient": 0.3, "scale": 1.5, "dual": [None, 1.5][index % 2],
        "ratio_max": [None, 1.4][index // 2 % 2]}


COMBINATIONS = [options_of(i, term, level) for i, (term, level) in enumerate(itertools.product(TERMS, LEVELS))]


def name_of(options):
    return f"{options['term']}-{options['ratio_level']}-{options['kl']}-{options['kl_gradient']}"


# What a bracket holds is a constant to the gradient: differences are taken with it held, through a weight.
DETACHED = ("cispo", "topr", "vespo")


@pytest.mark.parametrize("options", COMBINATIONS, ids=name_of)
def test_gradients_are_central_differences(options):
    """Where nothing is a constant to the gradient, it is the derivative of the loss."""
    if options["term"] in DETACHED or options["ratio_level"] == "sequence_token":
        pytest.skip("has a bracket: test_brackets_are_constants")
    x = batch(rows=4, length=9)
    result = lockstep.objective_loss(**x, **options)
    step = 1e-6
    for name, gradient in (("current_log_probs", result.d_log_probs), ("entropies", result.d_entropies)):
        for place in np.ndindex(x["mask"].shape):
            sides = []
            for sign in (1, -1):
                moved = dict(x) | {name: x[name].copy()}
                moved[name][place] += sign * step
                sides.append(lockstep.objective_loss(**moved, **options).loss)
            slope = (sides[0] - sides[1]) / (2 * step)
            assert gradient[place] == pytest.approx(slope, rel=2e-6, abs=2e-8), (name, place)


@pytest.mark.parametrize("term", DETACHED)
def test_brackets_are_constants(term):
    """The gradient of [w] A c is that of REINFORCE with the weight w, which its value says."""
    x = batch(rows=5, length=11)
    found = lockstep.objective_loss(**x, term=term, low=0.7, high=1.3)
    a = np.broadcast_to(x["advantages"][:, None], x["mask"].shape)
    acts = x["mask"] & x["kept"] & (a != 0)
    weight = -found.d_log_probs[acts] * x["mask"].sum() / a[acts]
    assert np.sum(-weight * a[acts] * x["current_log_probs"][acts]) / x["mask"].sum() == pytest.approx(found.loss)
    ratio = np.exp(x["current_log_probs"] - x["trainer_log_probs"])[acts]
    if term == "cispo":
        np.testing.assert_allclose(weight, np.clip(ratio, 0.7, 1.3) * x["weights"][acts], rtol=1e-12)
    if term == "topr":
        np.testing.assert_allclose(
            weight, np.where(a[acts] > 0, 1, np.minimum(ratio, 1)) * x["weights"][acts], rtol=1e-12)


def bits(result):
    return np.array([v for v in result.to_dict().values()], np.float64).tobytes()


@pytest.mark.parametrize("options", COMBINATIONS, ids=name_of)
def test_what_must_not_show(options):
    """Padding, garbage in it, order, layout, threads and instruction sets: the same bits."""
    x = batch()
    wanted = lockstep.objective_loss(**x, **options)
    counts = ("masked_tokens", "empty_sequences")

    def same(found, gradient):
        mine, theirs = found.to_dict(), wanted.to_dict()
        for name in counts:  # what padding is there may differ
            mine.pop(name), theirs.pop(name)
        assert np.array(list(mine.values()), float).tobytes() == np.array(list(theirs.values()), float).tobytes()
        assert np.asarray(gradient)[x["mask"]].tobytes() == wanted.d_log_probs[x["mask"]].tobytes()

    assert not wanted.d_log_probs[~x["mask"]].any()
    tokens = [name for name, each in x.items() if np.ndim(each) == 2]
    # Other garbage; leading and trailing padding.
    other = dict(x) | {
        name: np.where(x["mask"], x[name], 123.0) for name in tokens if x[name].dtype == np.float64}
    found = lockstep.objective_loss(**other, **options)
    same(found, found.d_log_probs)
    wide = dict(x) | {name: np.pad(x[name], ((0, 0), (5, 3))) for name in tokens}
    found = lockstep.objective_loss(**wide, **options)
    same(found, found.d_log_probs[:, 5:-3])
    # Another order of the sequences.
    order = RNG.permutation(len(x["mask"]))
    found = lockstep.objective_loss(**{name: each[order] for name, each in x.items()}, **options)
    same(found, found.d_log_probs[np.argsort(order)])
    # Packed, and a list of sequences.
    lengths = x["mask"].shape[1] - np.argmax(x["mask"][:, ::-1], 1)
    lists = {name: [row[:n] for row, n in zip(x[name], lengths)] for name in tokens}
    found = lockstep.objective_loss(**(x | lists), **options)
    same(found, [np.pad(each, (0, x["mask"].shape[1] - len(each))) for each in found.d_log_probs])
    for name in SETS:
        found = lockstep.objective_loss(**x, **options, threads=3, instruction_set=name)
        same(found, found.d_log_probs)


@pytest.mark.parametrize("options", COMBINATIONS, ids=name_of)
def test_parts_have_the_bits_of_the_whole(options):
    x = batch(rows=12)
    whole = lockstep.objective_loss(**x, **options)
    objective = lockstep.Objective(**options)
    cuts = [range(0, 1), range(1, 8), range(8, 12)]
    parts = [{name: each[list(cut)] for name, each in x.items()} for cut in cuts]
    for part in parts:
        objective.count(**part)
    order = [2, 0, 1]
    found = {index: objective.evaluate(**parts[index]) for index in order}
    assert bits(objective.report()) == bits(whole)
    for index, place in ((0, 0), (1, 1)):
        joined = np.concatenate([found[i][place] for i in range(3)])
        assert joined.tobytes() == (whole.d_log_probs, whole.d_entropies)[index].tobytes()
    objective.reset()
    assert objective.counts == (0, 0, 0) and objective.report().empty


def test_ranks_add_up():
    """Each rank counts its own, adds the others' counts, and evaluates its own: losses and gradients of the whole."""
    x = batch(rows=8)
    options = {"aggregation": "seq_mean_token_mean"}
    whole = lockstep.objective_loss(**{name: x[name] for name in CLIP}, **options)
    halves = [{name: x[name][rows] for name in CLIP} for rows in (slice(0, 4), slice(4, 8))]
    ranks = [lockstep.Objective(**options) for _ in halves]
    for rank, half in zip(ranks, halves):
        rank.count(**half)
    counts = [rank.counts for rank in ranks]
    for rank, others in zip(ranks, reversed(counts)):
        rank.add_counts(others)
    gradients = [rank.evaluate(**half) for rank, half in zip(ranks, halves)]
    assert np.concatenate(gradients).tobytes() == whole.d_log_probs.tobytes()
    assert sum(rank.report().loss for rank in ranks) == pytest.approx(whole.loss, rel=1e-14)


CLIP = ("current_log_probs", "trainer_log_probs", "advantages", "mask")


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_aggregations(aggregation):
    """Against a sentence each, in NumPy."""
    x = batch(rows=6)
    mask, a = x["mask"], x["advantages"][:, None]
    terms = np.where(mask, -a * x["current_log_probs"], 0)
    rows, n = terms.sum(1), mask.sum(1)
    some = n > 0
    groups = x["groups"]
    wanted = {
        "token_mean": terms.sum() / n.sum(), "token_sum": terms.sum(), "seq_mean_token_sum": rows[some].mean(),
        "seq_mean_token_mean": (rows[some] / n[some]).mean(), "seq_mean_token_sum_norm": rows[some].mean() / 50,
        "prompt_mean": np.mean([rows[groups == g].sum() / n[groups == g].sum() for g in np.unique(groups[some])]),
    }[aggregation]
    found = lockstep.objective_loss(
        x["current_log_probs"], None, x["advantages"], mask, term="reinforce", aggregation=aggregation, length=50,
        groups=groups)
    assert found.loss == pytest.approx(wanted, rel=1e-13)
    assert (found.d_log_probs * np.where(mask, x["current_log_probs"], 0)).sum() == pytest.approx(wanted, rel=1e-12)
    assert math.isnan(found.ratio_mean) and not found.empty and found.empty_sequences == 1


def test_denominators():
    """T15: a rejection that keeps the denominator does not scale the others up; "kept" does, and is a mask."""
    x = batch()
    arguments = {name: x[name] for name in CLIP}
    original = lockstep.objective_loss(**arguments, kept=x["kept"])
    kept = lockstep.objective_loss(**arguments, kept=x["kept"], denominator="kept")
    masked = lockstep.objective_loss(**(arguments | {"mask": x["mask"] & x["kept"]}))
    share = (x["mask"] & x["kept"]).sum() / x["mask"].sum()
    assert kept.loss == masked.loss and kept.d_log_probs.tobytes() == masked.d_log_probs.tobytes()
    assert original.loss == pytest.approx(kept.loss * share, rel=1e-13)
    np.testing.assert_allclose(original.d_log_probs, kept.d_log_probs * share, rtol=1e-13)
    assert original.rejected_tokens == (x["mask"] & ~x["kept"]).sum()
    # The statistics are those before the rejection.
    everything = lockstep.objective_loss(**arguments)
    assert original.ratio_mean == everything.ratio_mean and original.approx_kl_k3 == everything.approx_kl_k3


def test_empty_rows_do_not_dilute():
    """T6: GMPO is a mean over the sequences that have a token."""
    x = batch(rows=2)
    arguments = {name: x[name] for name in CLIP} | {"term": "gmpo", "aggregation": "seq_mean_token_mean"}
    wanted = lockstep.objective_loss(**arguments)
    more = {name: np.concatenate([x[name], np.zeros_like(x[name])]) for name in CLIP}
    found = lockstep.objective_loss(**(arguments | more))
    assert found.loss == wanted.loss and found.empty_sequences == 2
    assert found.d_log_probs[:2].tobytes() == wanted.d_log_probs.tobytes() and not found.d_log_probs[2:].any()


def test_a_mean_looks_at_its_mask():
    """T8: the token mean of 1, 1, 7, 7 with the last two masked is 1."""
    found = lockstep.objective_loss(
        np.array([[1.0, 1, 7, 7]]), None, [-1.0], [[1, 1, 0, 0]], term="reinforce", aggregation="token_mean")
    assert found.loss == 1 and found.d_log_probs.tolist() == [[0.5, 0.5, 0, 0]]


def test_an_upper_bound_below_1_is_refused():
    """T10: epsilon_high taken for a bound would scale every token of an on-policy step to 0.2."""
    with pytest.raises(lockstep.InvalidArgumentError, match="high is 0.2; give an upper bound of the ratio itself"):
        lockstep.objective_loss([-1.0], [-1.0], np.array([1.0]), term="cispo", low=0, high=0.2)
    found = lockstep.objective_loss([-1.0], [-1.0], np.array([1.0]), term="cispo", low=0, high=5)
    assert found.d_log_probs == [-1] and found.clip_high == 0


@pytest.mark.parametrize("options", COMBINATIONS[:8], ids=name_of)
def test_nothing_left_is_a_loss_of_0(options):
    x = batch()
    # Everything rejected: of the loss only regularisers are left, and with "kept" nothing is.
    found = lockstep.objective_loss(**(x | {"kept": np.zeros_like(x["kept"])}), **options)
    assert found.empty and found.policy_loss == 0 and math.isfinite(found.loss)
    plain = options | {"kl": "none", "entropy_coefficient": 0.0, "term": "clip"}
    for nothing in ({"kept": np.zeros_like(x["kept"])}, {"mask": np.zeros_like(x["mask"])}):
        found = lockstep.objective_loss(**(x | nothing), **plain)
        assert found.empty and found.loss == 0 and not found.d_log_probs.any()
    none = {name: each[:0] for name, each in x.items()}
    found = lockstep.objective_loss(**none, **plain)
    assert found.empty and found.loss == 0 and found.tokens == 0 and math.isnan(found.ratio_mean)


def test_far_log_ratios_are_clamped_and_counted():
    current, trainer = np.array([[-1.0, -1.0, 0.0]]), np.array([[-1.0, -900.0, -30.0]])
    found = lockstep.objective_loss(current, trainer, [-1.0], term="ratio", aggregation="token_sum")
    assert found.clamped_tokens == 2 and found.ratio_max == pytest.approx(math.exp(20))
    assert found.d_log_probs.tolist() == [[1, 0, 0]]
    free = {"log_ratio_min": -math.inf, "log_ratio_max": math.inf}
    found = lockstep.objective_loss(current, trainer, [-1.0], term="ratio", aggregation="token_sum", **free)
    assert found.clamped_tokens == 1 and found.ratio_max == pytest.approx(math.exp(700))  # where exp ends


@pytest.mark.parametrize("name", ["current_log_probs", "trainer_log_probs", "advantages", "weights"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named_or_dropped(name, value):
    x = batch(rows=3, length=5)
    x["mask"] = np.ones_like(x["mask"])
    x = {each: np.nan_to_num(x[each]) if x[each].dtype == np.float64 else x[each] for each in (*CLIP, "weights")}
    x["advantages"] = np.broadcast_to(x["advantages"][:, None], x["mask"].shape).copy()
    x[name][1, 3] = value
    with pytest.raises(lockstep.NonFiniteError, match=f"{name}: sequence 1, position 3 counts but is"):
        lockstep.objective_loss(**x)
    dropped = lockstep.objective_loss(**x, non_finite="exclude")
    masked = lockstep.objective_loss(**(x | {"mask": x["mask"] & np.isfinite(x[name])}))
    assert dropped.loss == masked.loss and dropped.excluded_tokens == 1
    assert dropped.d_log_probs.tobytes() == masked.d_log_probs.tobytes()


@pytest.mark.parametrize("arguments, text", [
    ({"term": "clap"}, "term is 'clap'; give one of 'clip'"),
    ({"aggregation": "mean"}, "aggregation is 'mean'"),
    ({"low": 1.2, "high": 0.8}, "low is 1.2"),
    ({"low": -0.1}, "low is -0.1"),
    ({"high": math.nan}, "high is nan"),
    ({"dual": 1.0}, "dual is 1.0"),
    ({"dual": 0}, "dual is 0; give a positive bound, or None"),
    ({"ratio_max": 0.5}, "ratio_max is 0.5"),
    ({"term": "sapo", "tau_positive": 0.0}, "tau_positive is 0.0"),
    ({"log_ratio_min": 1.0}, "log_ratio_min is 1.0"),
    ({"log_ratio_max": -1.0}, "log_ratio_max is -1.0"),
    ({"kl": "k3"}, "reference_log_probs: is missing"),
    ({"kl": "k3", "kl_input_max": -1.0}, "kl_input_max is -1.0"),
    ({"entropy_coefficient": 0.1}, "entropies: is missing"),
    ({"coefficient": math.inf}, "coefficient is inf"),
    ({"aggregation": "seq_mean_token_sum_norm"}, "length is 0.0"),
    ({"aggregation": "prompt_mean"}, "groups: is missing"),
    ({"term": "kl_cov"}, "selected: is missing"),
    ({"scale": -1.0}, "scale is -1.0"),
    ({"weights": np.ones((2, 4))}, r"weights: shape is \[2, 4\]"),
    ({"trainer_log_probs": None}, "trainer_log_probs: is missing"),
    ({"advantages": np.ones(5)}, r"advantages: shape is \[5\]"),
    ({"advantages": None}, "advantages: is missing"),
    ({"threads": -1}, "threads is -1"),
    ({"epsilon": 0.2}, "epsilon: no such option; there are term, "),
], ids=str)
def test_bad_arguments(arguments, text):
    given = {"current_log_probs": -np.ones((2, 3)), "trainer_log_probs": -np.ones((2, 3)), "advantages": np.ones(2)}
    with pytest.raises(lockstep.InvalidArgumentError, match=text):
        lockstep.objective_loss(**(given | arguments))


def test_combinations_that_are_not_offered():
    with pytest.raises(lockstep.UnsupportedError, match="ratio of its own"):
        lockstep.Objective(term="gmpo", ratio_level="sequence_sum")
    with pytest.raises(lockstep.UnsupportedError, match="kl_gradient is ratio"):
        lockstep.Objective(term="vespo", kl="k3", kl_gradient="ratio")


def test_what_was_not_counted_is_refused():
    x = batch()
    part = {name: x[name] for name in CLIP}
    objective = lockstep.Objective()
    with pytest.raises(lockstep.InvalidArgumentError, match="tokens were evaluated but 0 counted"):
        objective.evaluate(**part)
    assert objective.report().tokens == 0
    objective = lockstep.Objective(aggregation="prompt_mean")
    objective.count(**part, groups=x["groups"])
    with pytest.raises(lockstep.InvalidArgumentError, match="prompt 100 of sequence 0 was not counted"):
        objective.evaluate(**part, groups=x["groups"] + 100)


def test_covariance_rules():
    x = batch(rows=30)
    a = np.broadcast_to(x["advantages"][:, None], x["mask"].shape)
    mask, current = x["mask"], x["current_log_probs"]
    covariance = np.where(mask, (a - a[mask].mean()) * (current - current[mask].mean()), -np.inf)
    arguments = [current, x["trainer_log_probs"], x["advantages"], mask]
    picked = lockstep.covariance_select(*arguments, rule="kl", share=0.1)
    wanted = int(0.1 * mask.sum())
    assert picked.sum() == wanted and covariance[picked].min() >= np.sort(covariance, axis=None)[-wanted]
    ids = np.arange(30)
    clip = {"rule": "clip", "low": 0.1, "high": 1.0, "share": 0.05, "seed": 3}
    chosen = lockstep.covariance_select(*arguments, **clip, ids=ids)
    assert chosen.sum() == int(0.05 * mask.sum()) and ((covariance[chosen] > 0.1) & (covariance[chosen] < 1)).all()
    ratio = np.exp(current - x["trainer_log_probs"])
    held = ((ratio < 0.8) & (a < 0)) | ((ratio > 1.2) & (a > 0))
    assert not (chosen & held).any()
    order = RNG.permutation(30)
    moved = lockstep.covariance_select(*(each[order] for each in arguments), **clip, ids=ids[order])
    assert (moved == chosen[order]).all()
    assert (lockstep.covariance_select(*arguments, **(clip | {"seed": 4}), ids=ids) != chosen).any()
    assert not lockstep.covariance_select(*arguments[:3], np.zeros_like(mask), **clip).any()
    everything = lockstep.covariance_select(*arguments, **(clip | {"share": 1.0}))
    assert (everything == (mask & ~held & (covariance > 0.1) & (covariance < 1))).all()
    with pytest.raises(lockstep.InvalidArgumentError, match="share is 1.5"):
        lockstep.covariance_select(*arguments, share=1.5)


def test_real_rollouts():
    """Importance sampling over the log-probs of examples/data: the ratio is the mismatch's."""
    columns = {"trainer_logprobs": [], "inference_logprobs": [], "loss_mask": []}
    for line in gzip.open(SHIPPED["bf16"], "rt"):
        record = json.loads(line)
        for name, values in columns.items():
            values.append(np.array(record[name]))
    trainer, rollout, mask = columns.values()
    measured = lockstep.mismatch(trainer, rollout, mask)
    found = lockstep.objective_loss(trainer, rollout, np.ones(len(trainer)), mask, term="ratio")
    assert found.tokens == measured.tokens > 1000
    assert found.ratio_mean == pytest.approx(measured.mean_ratio.value, rel=1e-12)
    assert found.approx_kl_k1 == pytest.approx(measured.k1.value, rel=1e-9)
    assert found.approx_kl_k3 == pytest.approx(measured.k3.value, rel=1e-12)
    assert found.loss == pytest.approx(-measured.mean_ratio.value, rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_autograd(torch, dtype):
    import lockstep.torch

    x = batch(dtype=np.float32)
    given = {name: torch.tensor(each) for name, each in x.items()}
    kind = getattr(torch, dtype)
    current = given.pop("current_log_probs").to(kind).requires_grad_()
    entropies = given.pop("entropies").to(kind).requires_grad_()
    options = {"kl": "k3", "kl_coefficient": 0.1, "entropy_coefficient": 0.01}
    loss, report = lockstep.torch.objective_loss(current, **given, entropies=entropies, **options)
    (3 * loss).backward()
    wanted = lockstep.objective_loss(current.detach(), **given, entropies=entropies.detach(), **options)
    assert loss.item() == np.float32(wanted.loss) or loss.item() == wanted.loss
    assert torch.equal(current.grad, (3 * wanted.d_log_probs).to(kind)) and report.tokens == wanted.tokens
    assert torch.equal(entropies.grad, (3 * wanted.d_entropies).to(kind))


def test_autograd_of_a_plain_form(torch):
    """GRPO with weights, written out in PyTorch: the same gradient through autograd."""
    import lockstep.torch

    x = {name: torch.tensor(np.nan_to_num(each)) if each.dtype != bool else torch.tensor(each)
         for name, each in batch().items()}
    current = x["current_log_probs"].requires_grad_()
    ratio = torch.exp(current - x["trainer_log_probs"])
    a = x["advantages"][:, None]
    terms = torch.maximum(-a * ratio, -a * ratio.clamp(0.8, 1.28)) * x["weights"] * x["mask"]
    wanted = torch.autograd.grad(terms.sum() / x["mask"].sum(), current)[0]
    loss, _ = lockstep.torch.objective_loss(
        current, x["trainer_log_probs"], x["advantages"], x["mask"], weights=x["weights"], high=1.28)
    loss.backward()
    torch.testing.assert_close(current.grad, wanted, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("level", ["token", "sequence", "sequence_token"])
def test_a_gradient_is_written_where_it_is_asked_for(level):
    given = batch(dtype=np.float32)
    parts = [given[name] for name in ("current_log_probs", "trainer_log_probs", "advantages", "mask")]
    wanted = lockstep.objective_loss(*parts, ratio_level=level)
    out = np.full(given["mask"].shape, np.nan, np.float32)
    found = lockstep.objective_loss(*parts, ratio_level=level, out=out)
    assert found.d_log_probs is out and out.tobytes() == wanted.d_log_probs.tobytes()
    objective = lockstep.Objective(ratio_level=level)
    objective.count(*parts)
    wide = np.empty(out.shape)
    assert objective.evaluate(*parts, out=wide) is wide
    assert wide.astype(np.float32).tobytes() == out.tobytes()


def test_a_list_of_sequences_is_written_to_one_array():
    sequences = [np.log(np.float32([0.5, 0.4])), np.log(np.float32([0.3]))]
    out = np.empty(3, np.float32)
    found = lockstep.objective_loss(sequences, sequences, [1.0, -1.0], out=out)
    assert [len(each) for each in found.d_log_probs] == [2, 1]
    assert np.concatenate(found.d_log_probs).tobytes() == out.tobytes()


@pytest.mark.parametrize("out", [np.empty(3, np.float32), np.empty((2, 2), np.float16)])
def test_an_array_that_does_not_fit_is_refused(out):
    current = np.log(np.float32([[0.5, 0.4], [0.9, 0.3]]))
    before = out.tobytes()
    with pytest.raises(lockstep.InvalidArgumentError, match=r"^out: .*\[2, 2\]"):
        lockstep.objective_loss(current, current, [1.0, -1.0], out=out)
    assert out.tobytes() == before


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("length", [3, 8, 21])
def test_every_bound_of_the_clip_acts_where_it_stands(advantage, length):
    """Sequences whose tokens all have one ratio, a little inside or outside of a bound: nothing else there acts."""
    low, high, dual = 0.8, 1.3, 3.0
    ratios = np.array([bound * (1 + side * 1e-3) for bound in (low, high, dual) for side in (-100, -1, 1, 100)])
    trainer = np.full((len(ratios), length), -2.0, np.float32)
    current = (trainer + np.log(ratios)[:, None]).astype(np.float32)
    found = lockstep.objective_loss(
        current, trainer, np.full(len(ratios), advantage), term="clip", low=low, high=high, dual=dual,
        aggregation="token_sum")
    ratio = np.exp(current.astype(np.float64) - trainer)
    clipped = np.minimum(ratio * advantage, np.clip(ratio, low, high) * advantage)
    bounded = np.maximum(clipped, dual * advantage) if advantage < 0 else clipped
    np.testing.assert_allclose(found.loss, -bounded.sum(), rtol=1e-12)
    # The gradient is that of the ratio where no bound acts, and 0 where one does.
    np.testing.assert_allclose(
        found.d_log_probs, np.where(bounded == ratio * advantage, -ratio * advantage, 0), rtol=1e-6)
