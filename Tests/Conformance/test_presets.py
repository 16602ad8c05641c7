"""Presets: the same options in C, Python and Swift's text; peers' golden results; docs/Presets.md; bad names."""

from __future__ import annotations

import ctypes
import json
import math
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import ROOT, VECTORS

import lockstep
from lockstep import InvalidArgumentError
from lockstep import _library as c
from lockstep.commands import commands

sys.path.insert(0, str(ROOT / "Tests" / "Conformance" / "parity"))
import correction_translations as corrections  # noqa: E402
import objectives as objectives  # noqa: E402

NAMES = lockstep.presets()
GOLDEN = {case["id"]: case for case in json.loads((VECTORS / "objectives.json").read_text())["cases"]}
INPUTS = json.loads((VECTORS / "objectives.json").read_text())["inputs"]
PAGE = (ROOT / "docs" / "Presets.md").read_text()


# ---- names

def test_names_are_unique_and_said_by_their_presets():
    assert len(set(NAMES)) == len(NAMES) > 50
    assert [lockstep.preset(name).name for name in NAMES] == list(NAMES)
    assert c.library.lockstep_preset_name(len(NAMES)) is None
    assert c.library.lockstep_preset_name(2**64 - 1) is None


@pytest.mark.parametrize("name, nearest", [
    ("paper/grpo-tokn-tis", "paper/grpo-token-tis"), ("Paper/GSPO", "paper/gspo"), ("mlpref", "mlperf"),
    ("seq-mis", "paper/pg-seq-mis"), ("trl/dapo ", "trl/dapo"), ("ipo", "prime-rl/ipo"),
    ("grpo-tis", "paper/grpo-token-tis"), ("verl", "verl/decoupled-token-is"),
])
def test_an_unknown_name_lists_the_nearest(name, nearest):
    with pytest.raises(InvalidArgumentError, match="is no preset; the nearest are") as error:
        lockstep.preset(name)
    assert nearest in re.split(r"[ ,]+", str(error.value))


@pytest.mark.parametrize("name", ["", "x" * 100_000, "π/µ", "\udc80", "a\0b", None, 3])
def test_hostile_names(name):
    with pytest.raises(InvalidArgumentError) as error:
        lockstep.preset(name)
    assert len(str(error.value)) < 600


def test_an_unknown_name_and_a_bad_struct_touch_nothing():
    for name, correction_size in ((b"nothing", ctypes.sizeof(c.CorrectionOptions)), (b"paper/grpo", 3)):
        about = c.Preset(ctypes.sizeof(c.Preset))
        options = c.CorrectionOptions(correction_size), c.AdvantageOptions(ctypes.sizeof(c.AdvantageOptions))
        before = [bytes(each) for each in (about, *options)]
        assert c.library.lockstep_preset_read(about, *options, None, name) == 1
        assert [bytes(each) for each in (about, *options)] == before
    assert c.library.lockstep_preset_read(None, None, None, None, None) == 1
    assert c.library.lockstep_preset_read(None, None, None, None, b"paper/grpo") == 0


# ---- every preset computes

LENGTHS = (5, 1, 9, 3)


def batch():
    rng = np.random.default_rng(7)
    tokens = sum(LENGTHS)
    rollout = -rng.exponential(1, tokens)
    trainer, current = (np.minimum(rollout + rng.normal(0, 0.1, tokens), 0) for _ in range(2))
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    return current, trainer, rollout, offsets


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_computes(name):
    preset = lockstep.preset(name)
    current, trainer, rollout, offsets = batch()
    if preset.advantage_options["estimator"] == "gae":
        advantages = preset.advantages(
            np.linspace(0, 1, len(current)), np.ones(len(current), bool), offsets=offsets,
            values=np.zeros(len(current)))
    else:
        advantages = preset.advantages([1.0, 0.0, 0.0, 0.5], groups=2)
    length = {}
    if preset.objective_options["aggregation"] == "seq_mean_token_sum_norm":
        with pytest.raises(InvalidArgumentError, match="length is 0"):
            preset.loss(current, trainer, rollout, advantages, offsets=offsets)
        length = {"length": 9}
    result = preset.loss(current, trainer, rollout, advantages, offsets=offsets, **length)
    correction = preset.correct(
        trainer, rollout, offsets=offsets, current_log_probs=current, advantages=advantages)
    again = preset.loss(
        current, trainer, rollout, advantages, offsets=offsets, correction=correction, **length)
    assert math.isfinite(result.loss) and result.loss == again.loss
    if preset.policies == "two":  # the trainer's log-probs are not read
        assert preset.loss(current, None, rollout, advantages, offsets=offsets, **length).loss == result.loss
        with pytest.raises(InvalidArgumentError, match="current_log_probs: is missing"):
            preset.correct(trainer, rollout, offsets=offsets)


# ---- the text says what the options do

@pytest.mark.parametrize("name", NAMES)
def test_the_text_has_every_part_and_number(name):
    preset = lockstep.preset(name)
    lines = preset.text.split("\n")
    assert lines[:2] == [name, "  " + preset.summary] and str(preset) == preset.text
    parts = {line[2:17].strip(): line[17:] for line in lines[2:]}
    assert list(parts)[:7] == ["from", "policies", "weights", "mask", "advantage", "term", "aggregation"]
    assert parts["from"] == preset.source and parts.get("not confirmed", "") == preset.doubts
    correction, objective = preset.correction_options, preset.objective_options
    assert all(parts.values())

    def said(value, text):
        return re.search(rf"(?<![\d.]){re.escape(f'{value:.17g}' if value % 1 == 0 else repr(value))}(?![\d])", text)

    if correction["weights"] in ("truncate", "mask"):
        assert said(correction["high"], parts["weights"])
    if correction["weights"] == "mask" and correction["low"]:
        assert said(correction["low"], parts["weights"])
    for rule in correction["reject"]:
        assert all(said(each, parts["mask"]) for each in (rule.low, rule.high) if math.isfinite(each))
        assert ("A" in parts["mask"]) == (rule.side != "both")
    if objective["term"] in ("clip", "cispo"):
        assert said(objective["low"], parts["term"]) and said(objective["high"], parts["term"])
    assert ("mean over the sequence of x" in parts["term"]) == (objective["ratio_level"] == "sequence")
    assert ("current - ln rollout" in parts["term"]) == (
        preset.policies == "two" and objective["term"] != "reinforce")
    assert parts["aggregation"].endswith(
        "stay in the number" if objective["denominator"] == "original" else "as if masked")
    assert ("divergence" in parts) == (objective["kl"] != "none")


# ---- peers' golden results

def close(mine, theirs, rtol=2e-9):
    theirs = objectives.np.array(theirs, np.float64)
    np.testing.assert_allclose(mine, theirs, rtol=rtol, atol=1e-12 + rtol * 1e-3 * np.max(np.abs(theirs)))


def assert_golden(name, case, rtol=2e-9, advantages=None, correction=None, **more):
    """The whole preset, correction and loss, against what a peer's function gave."""
    x = objectives.Inputs(INPUTS[case["input"]])
    preset = lockstep.preset(name)
    if advantages is None:
        advantages = x.advantages
    done = preset.correct(x.trainer, x.rollout, x.mask, current_log_probs=x.current, advantages=advantages,
                          **correction or {})
    result = preset.loss(x.current, x.trainer, x.rollout, advantages, x.mask, correction=done, **more)
    close(result.loss, float(case["expected"]["loss"]), rtol)
    close(result.d_log_probs, case["expected"]["grad"], rtol)


def golden(prefix, skip=()):
    found = [case for name, case in GOLDEN.items() if name.startswith(prefix) and case["input"] not in skip]
    assert found, prefix
    return found


FORMULAS = {
    "reinforce": "reinforce", "pg_seq_is": "paper/pg-seq-is", "pg_seq_tis": "paper/pg-seq-tis",
    "pg_seq_mis": "paper/pg-seq-mis", "pg_token_tis": "pg-token-tis", "grpo": "paper/grpo",
    "grpo_token_tis": "paper/grpo-token-tis", "grpo_seq_mis": "paper/grpo-seq-mis", "gspo": "paper/gspo",
}


@pytest.mark.parametrize("formula", FORMULAS)
def test_the_papers_formulas(formula):
    """Its structure; the bounds, and which length, are those of the case."""
    assert {case["function"].removeprefix("precision-rl ") for case in GOLDEN.values()
            if case["system"] == "formula"} == set(FORMULAS)
    # Ratios beyond the clamp; advantages that differ in a sequence, which GSPO-token's gradient tells from GSPO's.
    skip = ("large_ratio", "token_adv") if formula == "gspo" else ("large_ratio",)
    for case in golden(f"precision_rl/{formula}/", skip):
        params = case["params"]
        norm = {"aggregation": "seq_mean_token_mean"} if params["row_normaliser"] == "row mean" else {
            "aggregation": "seq_mean_token_sum_norm", "length": 16}
        clip = {} if formula == "gspo" else {"low": 1 - params["clip"][0], "high": 1 + params["clip"][1]}
        weights = lockstep.preset(FORMULAS[formula]).correction_options["weights"]
        bound = {"high": params["C"]} if weights in ("truncate", "mask") else {}
        assert_golden(FORMULAS[formula], case, correction=bound, **norm, **clip)


def test_the_papers_numbers():
    """C = 3 and clip 0.2 / 0.28 in the paper; what its scripts have instead."""
    for name in ("pg-seq-tis", "pg-seq-mis", "grpo-token-tis", "grpo-seq-mis"):
        assert lockstep.preset(f"paper/{name}").correction_options["high"] == 3
    assert lockstep.preset("paper/grpo").objective_options["high"] == 1.28
    assert lockstep.preset("precision-rl/grpo-token-tis").correction_options["high"] == 2
    assert lockstep.preset("precision-rl/grpo-seq-mis").correction_options["high"] == 10
    assert lockstep.preset("precision-rl/pg-seq-mis").correction_options["weights"] == "truncate"
    assert {lockstep.preset(name).objective_options["high"] for name in NAMES
            if name.startswith("precision-rl/grpo")} == {1.2}


@pytest.mark.parametrize("name, prefix", [
    ("verl/bypass-pg-is", "verl/bypass/reinforce/sequence+2.0/"),
    ("verl/bypass-ppo-clip-k3-rs", "verl/bypass/ppo_clip/seq_mean_k3+0.03/"),
])
def test_verls_bypass_modes(name, prefix):
    """Without a number of tokens from the trainer: KEPT. Its counts have 1e-8 added."""
    for case in golden(prefix):
        if case["params"]["loss_agg_mode"] == "token-mean":
            clip, rule = {}, {}
            if "ppo" in name:
                clip = {"high": 1.28}
                rule = {"reject": lockstep.Rejection("k3", "sequence_mean", high=0.03)}
            assert_golden(name, case, 1e-7, correction=rule, denominator="kept", **clip)


def assert_correction(name, system, params, **options):
    """The preset's weights against every golden case of these settings, as the corrections' own test."""
    cases = [case for case in corrections.GOLDEN["cases"] if case["system"] == system
             and params.items() <= case["params"].items() and not case["params"].get("rollout_is_batch_normalize")
             and "weights" in case["expected"] | case.get("exact", {}) and not case.get("flags")]
    assert cases
    for case in cases:
        x = corrections.INPUTS[case["input"]]
        found = lockstep.preset(name).correct(x.trainer, x.rollout, x.mask, **options)
        theirs = case["expected"] | case.get("exact", {})
        for figure, (wanted, mine) in corrections.figures(case, theirs, found).items():
            if figure == "weights":
                np.testing.assert_allclose(mine, wanted, rtol=1e-9, err_msg=f"{case['id']}: {figure}")


@pytest.mark.parametrize("name, params", [
    ("decoupled-token-is", {"rollout_is": "token", "rollout_is_threshold": 2.0}),
    ("decoupled-seq-is", {"rollout_is": "sequence", "rollout_is_threshold": 2.0}),
    ("decoupled-token-icepop", {"rollout_is": "token", "rollout_is_threshold": "0.5_5.0"}),
])
def test_verls_weights(name, params):
    assert_correction(f"verl/{name}", "verl", params)


@pytest.mark.parametrize("name", ["token-truncate", "token-mask", "sequence-truncate", "sequence-mask"])
def test_trls_weights(name):
    assert_correction(
        f"trl/{name}", "trl", {"mode": name.replace("-", "_"), "clip_min": None, "clip_max": 3.0})


@pytest.mark.parametrize("name, params", [
    ("geo-rs", {"rollout_rs": "seq_mean_k1", "rollout_rs_threshold": "0.999_1.001"}),
    ("seq-is-rs", {"rollout_rs": "seq_sum_k1", "rollout_rs_threshold": "0.5_2.0"}),
    ("k3-rs", {"rollout_rs": "seq_mean_k3"}),
])
def test_verls_rejections(name, params):
    cases = [case for case in corrections.GOLDEN["cases"] if case["system"] == "verl"
             and case["function"] != "compute_rollout_correction_weights"
             and params.items() <= case["params"].items() and not case.get("flags")]
    assert cases
    for case in cases:
        x = corrections.INPUTS[case["input"]]
        options = {}
        if name == "k3-rs":  # the cases have bounds of their own
            (rule,) = lockstep.preset("verl/decoupled-k3-rs").correction_options["reject"]
            options["reject"] = replace(rule, high=float(case["params"]["rollout_rs_threshold"]))
        found = lockstep.preset(f"verl/decoupled-{name}").correct(x.trainer, x.rollout, x.mask, **options)
        wanted, mine = corrections.figures(case, case["expected"], found)["mask"]
        assert (wanted == mine).all(), case["id"]


@pytest.mark.parametrize("name, golden_name", [
    ("dapo", "dapo/plain"), ("grpo", "grpo/plain"), ("bnpo", "bnpo/plain"), ("dr-grpo", "dr_grpo/plain"),
    ("gspo", "grpo/sequence"), ("cispo", "cispo/eps_high5"), ("sapo", "sapo/plain"), ("luspo", "luspo/sequence"),
    ("vespo", "vespo/plain"),
])
def test_trls_losses(name, golden_name):
    """The losses without a correction, which has its own test; means over all rows, as TRL's are."""
    for case in golden(f"trl/{golden_name}/"):
        if case.get("flags"):
            continue
        x = objectives.Inputs(INPUTS[case["input"]])
        more = {"scale": x.rows} if name in ("grpo", "dr-grpo", "gspo", "sapo", "luspo") else {}
        if name == "dr-grpo":
            more["length"] = case["params"]["max_completion_length"]
        if name == "gspo":
            more |= {"low": 0.8, "high": 1.2}
        rtol = 1e-6 if name == "sapo" else 2e-9  # temperatures in float32
        assert_golden(f"trl/{name}", case, rtol, x.row_advantages, {"weights": "one"}, **more)


@pytest.mark.parametrize("name, prefix", [("prime-rl", "prime/default/"), ("prime-rl/ipo", "prime/ipo/")])
def test_prime_rls_losses(name, prefix):
    """The whole preset: the mask, the two policies, and the divergence from the rollout."""
    for case in golden(prefix):
        if not case.get("flags"):
            assert_golden(name, case)


def test_mlperfs_masks():
    """Of three sequences: within both rules; a mean ratio outside; every |d| large, cancelling in the mean."""
    rollout = np.full((3, 4), -2.0)
    trainer = rollout + np.array([[0.0] * 4, [0.01] * 4, [1.5, -1.5, 1.5, -1.5]])
    result = lockstep.preset("mlperf").correct(trainer, rollout)
    assert result.kept.any(1).tolist() == [True, False, False]
    assert [count.sequences for count in result.counts] == [1, 1]
    np.testing.assert_allclose(result.weights, np.exp(trainer - rollout), rtol=1e-12)


@pytest.mark.parametrize("name, function, params", [
    ("verl/disabled", "grpo", {"norm_adv_by_std_in_grpo": True, "epsilon": 1e-6}),
    ("trl/dapo", "grpo", {"norm_adv_by_std_in_grpo": True, "epsilon": 1e-4}),
    ("paper/grpo", "grpo", {"norm_adv_by_std_in_grpo": False, "epsilon": 1e-6}),
])
def test_advantages(name, function, params):
    data = json.loads((VECTORS / "advantages.json").read_text())
    cases = [case for case in data["cases"] if f"'{function}'" in case["function"] and case["params"] == params
             and (name.startswith("verl") or case["input"] != "singletons")]
    assert cases
    for case in cases:
        inputs, theirs = data["inputs"][case["input"]], np.array(case["expected"]["advantages"])
        mask = np.array(inputs["mask"], bool)
        rewards = np.array(inputs["token_level_rewards"], np.float64)
        found = lockstep.preset(name).advantages(rewards, mask, groups=inputs["group"], per_token=True)
        # Its statistics are float32.
        np.testing.assert_allclose(found[mask], theirs[mask], rtol=0, atol=1e-6 * max(1, np.abs(rewards).max()))


# ---- docs/Presets.md

def span(low, high):
    return f"[{low:.10g}, {high:.10g}]"


def row(name):
    """A preset as a row of the page's tables, in the words of the header."""
    preset = lockstep.preset(name)
    correction, objective, earned = (
        preset.correction_options, preset.objective_options, preset.advantage_options)
    kind, level = correction["weights"].upper(), correction["level"].upper()
    weights = {"ONE": kind, "RAW": f"{kind}, {level}", "TRUNCATE": f"{kind}, {level}, {correction['high']:g}",
               "MASK": f"{kind}, {level}, {span(correction['low'], correction['high'])}"}[kind]
    rules = []
    for rule in correction["reject"]:
        words = [rule.statistic, rule.level] + [
            word for word in (rule.policies, rule.side) if word not in ("trainer_rollout", "both")]
        rules.append(", ".join(word.upper() for word in words) + ", " + span(rule.low, rule.high))
    term = objective["term"].upper()
    if objective["ratio_level"] != "token":
        term += ", " + objective["ratio_level"].upper()
    if term.startswith(("CLIP", "CISPO")):
        term += " " + span(objective["low"], objective["high"])
    if objective["dual"]:
        term += f", dual {objective['dual']:g}"
    if objective["kl"] != "none":
        term += f"; {objective['kl'].upper()}, {objective['kl_coefficient']:g}"
    aggregation = objective["aggregation"].upper()
    if objective["denominator"] == "kept":
        aggregation += ", KEPT"
    advantages = earned["estimator"].upper()
    if earned["epsilon"] is not None:
        advantages += f", epsilon {earned['epsilon']:g}"
    if earned["singles"] != "zero":
        advantages += ", RAW"
    cells = (f"`{name}`", preset.policies, weights, "; ".join(rules), term, aggregation, advantages)
    return "| " + " | ".join(cells) + " |"


def test_the_page_has_the_table():
    assert re.findall(r"^\| `.*\|$", PAGE, flags=re.M) == [row(name) for name in NAMES]


def test_the_page_shows_the_text():
    shown = re.search(r"^    \$ lockstep presets (\S+)\n\n?((?:    .*\n)+)", PAGE, flags=re.M)
    assert re.sub("^    ", "", shown[2], flags=re.M).rstrip() == lockstep.preset(shown[1]).text


# ---- the command

def run(*arguments):
    return CliRunner().invoke(commands, ["presets", *arguments])


def test_the_command_lists_and_prints():
    assert [line.split()[0] for line in run().output.splitlines()] == list(NAMES)
    assert run("mlperf").output == lockstep.preset("mlperf").text + "\n"


def test_the_command_in_json():
    document = json.loads(run("--json").output)
    assert document["schema"] == "lockstep-presets/1"
    assert [each["name"] for each in document["presets"]] == list(NAMES)
    (one,) = json.loads(run("prime-rl", "--json").output)["presets"]
    assert one["correction_options"]["reject"][0]["low"] == -0.2 and one["objective_options"]["kl_input_max"] is None


def test_the_command_and_an_unknown_name():
    result = run("paper/grop")
    assert result.exit_code == 2 and "paper/grpo" in result.output and "Traceback" not in result.output


def test_the_pages_snippets_are_of_files_that_run():
    """`examples/run.sh` runs the examples; each shown part is one of theirs."""
    files = {"python": "examples/python/presets.py", "c": "examples/c/presets.c",
             "swift": "examples/swift/Sources/presets/main.swift"}
    for language, name in files.items():
        shown = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.S)
        assert shown and all(each in (ROOT / name).read_text() for each in shown)
