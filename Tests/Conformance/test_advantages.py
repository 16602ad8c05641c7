"""Advantages in Python: against what verl's own functions gave, NeMo RL's formula, and bad input."""

from __future__ import annotations

import doctest
import importlib.util
import json
import re

import numpy as np
import pytest
from conftest import ROOT, VECTORS
from hypothesis import given, settings
from hypothesis import strategies as st

import lockstep
from lockstep import InvalidArgumentError, NonFiniteError
from lockstep._library import ADVANTAGES

GOLDEN = json.loads((VECTORS / "advantages.json").read_text())

# verl's functions by our names and options. Its groups of one keep their reward (`singles`), but for
# rloo_vectorized; its group statistics are float32 in the functions named in FLOAT32.
FLOAT32 = ("grpo", "grpo_vectorized", "gdpo")
WHITENED = ("gae", "gdpo", "reinforce_plus_plus", "reinforce_plus_plus_baseline")


def arguments(name: str, inputs: dict, params: dict) -> dict:
    """Our arguments for a call of a verl function."""
    def array(key):
        return np.array(inputs[key], np.float64)

    common = {"groups": inputs["group"], "singles": "raw"}
    match name:
        case "grpo" | "grpo_vectorized":
            estimator = "grpo" if params["norm_adv_by_std_in_grpo"] else "dr_grpo"
            return common | {"estimator": estimator, "epsilon": params.get("epsilon")}
        case "grpo_passk":
            return common | {
                "estimator": "pass_at_k", "scale": None if params["norm_adv_by_std_in_grpo"] else "none"}
        case "rloo":
            return common | {"estimator": "leave_one_out"}
        case "rloo_vectorized":
            return common | {"estimator": "leave_one_out", "singles": "zero"}
        case "gdpo":
            kinds = np.stack([array(key) for key in params["keys"]], 1)
            return common | {"rewards": kinds, "estimator": "gdpo", "kind_weights": params["weights"]}
        case "gae":
            return {"estimator": "gae", "values": array("values"), "gamma": params["gamma"], "lam": params["lam"]}
        case "reinforce_plus_plus":
            return {"estimator": name, "gamma": params["gamma"]}
        case "remax":
            return {"estimator": name, "baselines": array("reward_baselines")}
        case "optimal_token_baseline" | "tir_optimal_token_baseline":
            return common | {
                "estimator": "multi_turn_token_baseline" if name.startswith("tir") else name,
                "trainer_log_probs": array("old_log_probs"), "squared_mass": array("sum_pi_squared"),
                "weights": array("rollout_is_weights") if params["use_rollout_is_weights"] else None,
                "tail_baseline": not params["handle_zero_tail"]}
        case _:
            return common | {"estimator": name}


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['input']}/{case['id']}")
def test_verls_functions(case):
    name = case["function"].split("'")[1]
    inputs, params, expected = GOLDEN["inputs"][case["input"]], case["params"], case["expected"]
    mask = np.array(inputs["mask"], bool)
    rewards = np.array(inputs[params.get("rewards", "token_level_rewards")], np.float64)
    call = {"rewards": rewards} | arguments(name, inputs, params)
    if "error" in expected:
        with pytest.raises(InvalidArgumentError, match="is alone in group"):
            lockstep.advantages(mask=mask, **call)
        return
    found, returns = lockstep.advantages(mask=mask, per_token=True, with_returns=True, **call)
    theirs = np.array(expected["advantages"])
    tolerance = 1e-6 if name in FLOAT32 else 1e-7 if name in WHITENED else 1e-9
    # An advantage is a difference of rewards (whitened: of advantages): small ones have the error of large ones.
    scale = max(np.abs(rewards).max(), np.abs(theirs[mask]).max())
    np.testing.assert_allclose(found[mask], theirs[mask], rtol=0, atol=tolerance * scale)
    assert (found[~mask] == 0).all() and (returns[~mask] == 0).all()
    if "returns" in expected:
        theirs = np.array(expected["returns"])[mask]
        np.testing.assert_allclose(returns[mask], theirs, rtol=0, atol=1e-9 * max(np.abs(theirs).max(), 1e-3))


@pytest.mark.parametrize("leave_one_out", [True, False])
def test_nemo_rls_grpo(leave_one_out):
    """Trap T13: NeMo RL's GRPO leaves the sequence out of its baseline and of its std, by default.

    Its formulas: baseline = sum of others / n', std = sqrt((sum of others' squares / n' - baseline^2) n' / (n' - 1)),
    n' being the number of others, and no division where std is 0.
    """
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(20), 6)
    rewards = rng.integers(0, 2, 120).astype(np.float64)
    kept = 1 - np.eye(6) if leave_one_out else np.ones((6, 6))
    count = kept.sum(1)[0]
    expected = []
    for group in rewards.reshape(20, 6):
        baseline = kept @ group / count
        variance = np.maximum((kept @ group**2 / count - baseline**2) * count / (count - 1), 0)
        std = np.where(variance < 1e-12, 0, np.sqrt(variance))
        expected.append(np.where(std > 0, (group - baseline) / (std + 1e-6), group - baseline))
    found = lockstep.advantages(
        rewards, groups=groups, estimator="leave_one_out" if leave_one_out else "grpo",
        scale="others_std" if leave_one_out else None)
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-9, atol=1e-12)
    textbook = lockstep.advantages(rewards, groups=groups)
    assert (np.abs(found - textbook).max() > 0.1) == leave_one_out


def test_trls_scales():
    """TRL's scale_rewards: "group" and "batch", epsilon 1e-4, standard deviations over n - 1."""
    rewards = np.array([1, 0, 0.5, 0.25, 1, 1, 0, 0.75])
    group, batch = rewards.reshape(2, 4), rewards.std(ddof=1)
    centred = (group - group.mean(1, keepdims=True)).ravel()
    stds = np.repeat(group.std(1, ddof=1), 4)
    np.testing.assert_allclose(
        lockstep.advantages(rewards, groups=4, epsilon=1e-4), centred / (stds + 1e-4), rtol=1e-12)
    np.testing.assert_allclose(
        lockstep.advantages(rewards, groups=4, epsilon=1e-4, scale="batch_std"), centred / (batch + 1e-4),
        rtol=1e-12)
    np.testing.assert_allclose(
        lockstep.advantages(rewards, groups=4, epsilon=0, population_std=True),
        centred / np.repeat(group.std(1), 4), rtol=1e-12)


def test_max_rl():
    rewards = [1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]
    found = lockstep.advantages(rewards, groups=4, estimator="max_rl", epsilon=0)
    np.testing.assert_array_equal(found, [3, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0])


def test_rewards_in_16_bits_are_refused(torch):
    """Rewards 1, 1, 1, 1.0078 in bf16 became advantages 0, 0, 0, 2 in one system: they are nearly equal."""
    rewards = torch.tensor([1, 1, 1, 1.0078125], dtype=torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(InvalidArgumentError, match="rewards: .* give fp32 or fp64"):
            lockstep.advantages(rewards.to(dtype), groups=4)
    found = lockstep.advantages(rewards.float(), groups=4, estimator="dr_grpo")
    assert found.dtype == torch.float32 and found.tolist() == [-0.001953125] * 3 + [0.005859375]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_properties(data):
    """For any rewards and groups: zero sum in each group, whatever the order of sequences and names of groups."""
    count = data.draw(st.integers(1, 40))
    rewards = np.array(data.draw(st.lists(
        st.floats(-1e6, 1e6, width=32), min_size=count, max_size=count)), np.float64)
    groups = np.array(data.draw(st.lists(st.integers(0, 6), min_size=count, max_size=count)))
    order = np.array(data.draw(st.permutations(range(count))))
    for estimator in ("grpo", "dr_grpo", "leave_one_out", "gpg"):
        found = lockstep.advantages(rewards, groups=groups, estimator=estimator)
        other = lockstep.advantages(rewards[order], groups=9 - 3 * groups[order], estimator=estimator)
        assert found[order].tobytes() == other.tobytes()
        for group in np.unique(groups):
            own = found[groups == group]
            assert abs(own.sum()) <= 1e-12 * max(np.abs(own).sum(), np.abs(rewards).max(), 1)
            if len(own) == 1 or len(set(rewards[groups == group])) == 1:
                assert (own == 0).all()


def test_layouts_agree():
    """Padded, packed, and one array for each sequence."""
    rng = np.random.default_rng(2)
    lengths = [3, 5, 1, 4]
    lists = [rng.standard_normal(n) for n in lengths]
    values = [rng.standard_normal(n) for n in lengths]
    mask = np.arange(5) < np.array(lengths)[:, None]

    def padded(sequences):
        full = np.full((4, 5), np.nan)
        full[mask] = np.concatenate(sequences)
        return full

    offsets = np.concatenate([[0], np.cumsum(lengths)])
    for options in ({"estimator": "gae", "gamma": 0.9, "lam": 0.5}, {"estimator": "reinforce_plus_plus"}):
        beside = options["estimator"] == "gae"
        ragged = lockstep.advantages(lists, values=values if beside else None, **options)
        packed = lockstep.advantages(
            np.concatenate(lists), offsets=offsets, values=np.concatenate(values) if beside else None, **options)
        full = lockstep.advantages(padded(lists), mask, values=padded(values) if beside else None, **options)
        assert ragged.tobytes() == packed.tobytes() == full[mask].tobytes() and (full[~mask] == 0).all()
    # Sequences' own rewards, their lengths from offsets or a mask.
    rewards = [1.0, 0, 1, 0]
    by_offsets = lockstep.advantages(rewards, offsets=offsets, groups=2, estimator="opo")
    np.testing.assert_allclose(by_offsets, [1 - 3 / 8, -3 / 8, 1 - 1 / 5, -1 / 5])
    assert by_offsets.tobytes() == lockstep.advantages(rewards, mask, groups=2, estimator="opo").tobytes()


def test_reward_of_a_sequence_stands_at_its_last_token():
    mask = np.array([[0, 1, 1, 0, 1, 0], [1, 0, 0, 0, 0, 0]])
    found, returns = lockstep.advantages(
        [8.0, 3.0], mask, estimator="reinforce_plus_plus", gamma=0.5, whiten=False, with_returns=True)
    np.testing.assert_array_equal(found, [[0, 2, 4, 0, 8, 0], [3, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(returns, found)


@pytest.mark.parametrize("rule", ["zero", "drop"])
def test_truncated_responses_teach_a_critic_nothing(rule):
    mask = np.ones((3, 2), bool)
    values = np.array([[0.5, 0.25], [1, 2], [0.25, 0.5]])
    found, returns = lockstep.advantages(
        [1.0, 2.0, 0.0], mask, estimator="gae", values=values, whiten=False, truncated=[0, 1, 0], on_truncated=rule,
        with_returns=True)
    np.testing.assert_array_equal(found, [[0.5, 0.75], [0, 0], [-0.25, -0.5]])
    np.testing.assert_array_equal(returns, [[1, 1], [1, 2], [0, 0]])
    # Whitening is over those that teach.
    whitened = lockstep.advantages(
        [1.0, 2.0, 0.0], mask, estimator="gae", values=values, truncated=[0, 1, 0], on_truncated=rule)
    assert (whitened[1] == 0).all() and abs(whitened.sum()) < 1e-12
    assert abs(whitened[[0, 2]].std(ddof=1) - 1) < 1e-7


def test_kinds_of_arrays(torch):
    mask = torch.tensor([[1, 1], [1, 0]])
    found, returns = lockstep.advantages(
        torch.tensor([1.0, 0.0]), mask, groups=torch.tensor([4, 4]), estimator="dr_grpo", per_token=True,
        with_returns=True)
    assert found.tolist() == [[0.5, 0.5], [-0.5, 0]] and returns.tolist() == [[1, 1], [0, 0]]
    assert isinstance(found, torch.Tensor) and found.dtype == torch.float32
    whole = lockstep.advantages(torch.tensor([1, 0]), groups=2, estimator="dr_grpo")
    assert whole.dtype == torch.float64 and whole.tolist() == [0.5, -0.5]
    assert lockstep.advantages(np.array([True, False]), groups=2, dtype="fp32").dtype == np.float32
    penalties = lockstep.overlong_penalty(torch.tensor([10, 90, 100]), 100, 20)
    assert isinstance(penalties, torch.Tensor) and penalties.tolist() == [0, -0.5, -1]


BAD = {
    "estimator is 'ppo'": {"estimator": "ppo"},
    "groups: missing": {"groups": None},
    "groups is 3, but 4 sequences": {"groups": 3},
    "groups: dtype": {"groups": ["a", "a", "b", "b"]},
    "groups: has 3 values": {"groups": [0, 0, 1]},
    "gamma is 1.5": {"gamma": 1.5},
    "lambda is -0.1": {"lam": -0.1},
    "epsilon is -0.5": {"epsilon": -0.5},
    "scale is 'std'": {"scale": "std"},
    "singles is 'keep'": {"singles": "keep"},
    "truncated: given, so say": {"truncated": [0, 0, 1, 0]},
    "truncated: missing": {"on_truncated": "drop"},
    "truncated: has 1 values": {"on_truncated": "drop", "truncated": [1]},
    "baselines: missing": {"estimator": "remax"},
    "opo needs the tokens": {"estimator": "opo"},
    "gae needs the tokens": {"estimator": "gae"},
    "squared_mass: missing": {"estimator": "optimal_token_baseline", "trainer_log_probs": -np.ones((4, 2))},
    "alone in group 3": {"estimator": "pass_at_k", "groups": [3, 1, 1, 1]},
    "-1.0 for sequence 1": {"estimator": "max_rl"},
    "sequences x kinds": {"estimator": "gdpo"},
    "dtype must be one of": {"dtype": "fp16"},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    call = {"groups": 2} | BAD[message]
    with pytest.raises(InvalidArgumentError, match=message):
        lockstep.advantages([1.0, -1.0, 0.0, 0.5], **call)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rewards_must_be_finite(value):
    with pytest.raises(NonFiniteError, match=f"rewards: {value} at index 2"):
        lockstep.advantages([1.0, 0.0, value, 0.5], groups=2)
    # One that does not count is never read.
    found = lockstep.advantages(
        [1.0, 0.0, value, 0.5], groups=2, estimator="dr_grpo", truncated=[0, 0, 1, 0], on_truncated="drop")
    np.testing.assert_array_equal(found, [0.5, -0.5, 0, 0])


PAGE = ROOT / "docs" / "Advantages.md"


def test_the_page_runs():
    result = doctest.testfile(str(PAGE), module_relative=False)
    assert result.attempted >= 6 and result.failed == 0


def test_the_page_shows_the_examples():
    """Its blocks of C, Python and Swift are lines of the examples, which `examples/run.sh` runs."""
    def lines(text):
        return [line.strip() for line in text.splitlines() if line.strip()]

    sources = {
        "text": "expected/advantages.txt", "c": "c/advantages.c", "python": "python/advantages.py",
        "swift": "swift/Sources/advantages/main.swift"}
    shown = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)
    blocks = [(kind, lines(body)) for kind, body in shown if ">>>" not in body]
    assert [kind for kind, _ in blocks] == list(sources)
    for kind, block in blocks:
        source = lines((ROOT / "examples" / sources[kind]).read_text())
        assert all(line in source for line in block), kind


def test_every_estimator_is_on_the_page():
    text = PAGE.read_text()
    assert all(f"| `{name}` |" in text for name in ADVANTAGES)


def test_the_picture():
    """What it draws follows from the formulas: one right of eight."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    spec = importlib.util.spec_from_file_location("picture_of_advantages", ROOT / "docs" / "pictures" / "advantages.py")
    plot = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plot)
    std = np.sqrt(7) / np.sqrt(56)
    expected = {
        "grpo": (7 / 8 / (std + 1e-6), -1 / 8 / (std + 1e-6)), "dr_grpo": (7 / 8, -1 / 8),
        "leave_one_out": (1, -1 / 7), "max_rl": (7, -1), "pass_at_k": (1 / (std + 1e-6), 0),
        "gpg": (7 / 8 * 64 / 29, -1 / 8 * 64 / 29)}
    assert set(expected) == set(plot.PANELS)
    for estimator, (right, wrong) in expected.items():
        counts, rights, wrongs = plot.curves(estimator)
        assert counts == list(range(1, 8))
        np.testing.assert_allclose((rights[0], wrongs[0]), (right, wrong), rtol=1e-4)
