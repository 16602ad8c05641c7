"""Objectives against what other systems' own functions gave: Tests/Vectors/objectives.json and kl.json.

A case that we do not reproduce has a line in parity/known-differences-objectives.txt, with its reason; a line
that is no longer true fails.
"""

from __future__ import annotations

import fnmatch
import json
import sys
import numpy as np
import pytest

import lockstep
from conftest import ROOT, VECTORS

sys.path.insert(0, str(ROOT / "Tests" / "Conformance" / "parity"))
import objectives as parity  # noqa: E402

FILE = json.loads((VECTORS / "objectives.json").read_text())
KL = json.loads((VECTORS / "kl.json").read_text())


def known_differences():
    lines = (ROOT / "Tests/Conformance/parity/known-differences-objectives.txt").read_text().splitlines()
    return [tuple(part.strip() for part in line.split("|")) for line in lines if line and line[0] != "#"]


KNOWN = known_differences()
PATTERNS = [pattern for pattern, _ in KNOWN]


def numbers(values):
    return np.array(values, np.float64)  # "NaN" and "Infinity" too


def tolerance(case):
    if case["system"] in ("nemo-rl", "openrlhf"):
        return 3e-8  # count + 1e-8
    if case["system"] == "trl" and case["params"].get("loss_type") == "sapo":
        return 1e-6  # temperatures in float32
    if "bypass" in case["function"] or "cov" in case["function"]:
        return 1e-7  # count + 1e-8
    return 2e-9


def differences(case):
    """What of a case is not ours: nothing if all is."""
    x = parity.Inputs(FILE["inputs"][case["input"]])
    arguments, metrics = parity.translate(case, x)
    if arguments["trainer_log_probs"] is False:
        arguments["trainer_log_probs"] = None
    try:
        result = lockstep.objective_loss(**arguments)
    except lockstep.LockstepError as error:
        return [f"{type(error).__name__}: {error}"]
    wanted = case["expected"]
    if "peer_bug" in (case.get("flags") or []):
        if "exact" not in case and "exact_scale" not in case:
            return ["no right value is known"]
        wanted = wanted | case.get("exact", {})
    scale = case.get("exact_scale", 1)
    found = []
    rtol = tolerance(case)

    def compare(name, mine, theirs, rtol):
        try:
            np.testing.assert_allclose(mine, theirs, rtol=rtol, atol=1e-12 + rtol * np.max(np.abs(theirs)) * 1e-3)
        except AssertionError:
            found.append(f"{name}: {mine} is not {theirs}")

    compare("loss", result.loss, float(wanted["loss"]) * scale, rtol)
    compare("gradient", result.d_log_probs, numbers(wanted["grad"]) * scale, rtol)
    for name, ours in metrics.items():
        if name in wanted.get("metrics", {}):
            # verl takes clip fractions in float32, and adds 1e-8 to its counts.
            compare(name, ours(result), float(wanted["metrics"][name]), 1e-6)
    return found


CASES = {case["id"]: case for case in FILE["cases"] if case["function"] != "compute_value_loss"}


@pytest.mark.parametrize("group", sorted({case["system"] + ": " + case["function"] for case in CASES.values()}))
def test_golden_objectives(group):
    wrong = {}
    for name, case in CASES.items():
        if case["system"] + ": " + case["function"] != group:
            continue
        found = differences(case)
        known = [pattern for pattern in PATTERNS if fnmatch.fnmatchcase(name, pattern)]
        if bool(found) != bool(known):
            wrong[name] = found or f"is ours now: take it out of the line {known}"
    assert not wrong, f"{len(wrong)} cases, as " + json.dumps(dict(list(wrong.items())[:3]), indent=1)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_known_difference_is_of_a_case(pattern):
    assert any(fnmatch.fnmatchcase(case["id"], pattern) for case in FILE["cases"])


def test_value_losses_are_the_only_ones_left_out():
    left = {case["id"] for case in FILE["cases"]} - CASES.keys()
    assert left == {case["id"] for case in FILE["cases"] if fnmatch.fnmatchcase(case["id"], "verl/value_loss/*")}
    assert len(CASES) + len(left) == 921


@pytest.mark.parametrize("case", FILE["fused"], ids=lambda case: case["id"])
def test_fused_losses_of_liger(case):
    """Loss and gradients from hidden states and a head: our log-probs, our objective, their fused function."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import lockstep.torch

    hidden, weight = (torch.tensor(case[name], requires_grad=True) for name in ("hidden", "weight"))
    mask, params = torch.tensor(case["mask"], dtype=torch.bool), case["params"]
    log_probs = lockstep.torch.linear_log_probs(
        hidden, weight, torch.tensor(case["targets"]), temperature=params["temperature"])
    high = 1 + params["epsilon_high"]
    more = {"dapo": {}, "grpo": {"aggregation": "seq_mean_token_mean"},
            "cispo": {"term": "cispo", "low": 0, "high": params["epsilon_high"]}}[params["loss_type"]]
    loss, report = lockstep.torch.objective_loss(
        log_probs, torch.tensor(case["old_log_prob"]), torch.tensor(case["advantages"]), mask,
        **({"low": 1 - params["epsilon_low"], "high": high} | more))
    loss.backward()
    wanted = case["expected"]
    # Our log-probs are fp32, their function ran in fp64.
    np.testing.assert_allclose(log_probs.detach()[mask], numbers(wanted["logprobs"])[mask.numpy()], rtol=1e-5)
    np.testing.assert_allclose(loss.item(), wanted["loss"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(hidden.grad, numbers(wanted["grad_hidden"]), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(weight.grad, numbers(wanted["grad_weight"]), rtol=1e-4, atol=1e-6)


KL_NAMES = {"kl": "k1", "mse": "k2", "low_var_kl": "k3"}


@pytest.mark.parametrize("case", KL["cases"], ids=lambda case: case["id"])
def test_golden_divergences(case):
    arrays, params, system = KL["inputs"][case["input"]], case["params"], case["system"]
    name = next(iter(params.values()))
    straight = name.endswith("+")
    name = "k3" if name.startswith("k3") else name.removesuffix("+")
    options = {"kl": KL_NAMES.get(name, name), "kl_input_max": None}
    if straight:
        options["kl_gradient"] = "k2"
    if params.get("score_function"):
        options["kl_gradient"] = "score_function"
    if system == "verl" and options["kl"] == "k3":
        options |= {"kl_input_max": 20, "kl_output_max": 10}
    elif system == "slime" and name == "low_var_kl" or system == "openrlhf":
        options["kl_output_max"] = 10
    elif system == "nemo-rl":
        options |= {"kl_input_max": params.get("input_clamp_value", 20),
                    "kl_output_max": params.get("output_clamp_value", 10)}
    weights = numbers(arrays[params["importance_ratio"]]) if "importance_ratio" in params else None
    values, slopes = lockstep.kl_penalty(
        numbers(arrays["logprob"]), numbers(arrays["ref_logprob"]), weights=weights, gradient=True, **options)
    wanted = case.get("exact", case["expected"])
    # Two peers compute in float32, NeMo takes exp(x) - 1 - x as it stands.
    rtol, atol = (1e-5, 3e-7) if system in ("slime", "openrlhf") else (1e-9, 1e-14)
    # Left out: what overflows float32, and where NeMo's k1 stands exactly at a clamp (its slope is 0 there, ours 1).
    apart = np.abs(numbers(arrays["logprob"]) - numbers(arrays["ref_logprob"]))
    large = (apart > 80) | (apart == (options.get("kl_output_max") or -1))
    for mine, theirs in ((values, numbers(wanted["value"])), (slopes, numbers(wanted["grad"]))):
        np.testing.assert_allclose(mine[~large], theirs[~large], rtol=rtol, atol=atol)


def test_adaptive_coefficient():
    for trace in KL["adaptive_kl_controller"]["traces"]:
        value = trace["init_kl_coef"]
        for step in trace["trace"]:
            value = lockstep.adapted_kl_coefficient(
                value, step["current_kl"], target=trace["target_kl"], horizon=trace["horizon"], steps=step["n_steps"])
            assert value == pytest.approx(step["value"], rel=1e-14)
