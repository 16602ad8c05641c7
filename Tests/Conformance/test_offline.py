"""Orders of arithmetic as pairs of engines, and `lockstep offline`, which makes the table of them."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import VECTORS
from test_models import weights, write_safetensors

import lockstep
from lockstep.commands import commands
from lockstep.logs import open_log
from lockstep.offline import INDEPENDENT, read_prompts
from lockstep.survey import survey

TINY = VECTORS / "models" / "llama_tied_rope_llama3"
ORDERS = ["lockstep", "split-k", "flash", "eager", "fused"]


def named(recipe, order):
    return recipe if order == "lockstep" else f"{recipe}+{order}"


def invoke(*arguments):
    return CliRunner().invoke(commands, ["offline", *map(str, arguments)], catch_exceptions=False)


# Recipes


def test_a_recipe_has_a_name_and_parts():
    recipe = lockstep.Recipe("bf16-fp32head+eager")
    assert str(recipe) == "bf16-fp32head+eager" and repr(recipe) == "<lockstep.Recipe bf16-fp32head+eager>"
    assert dict(recipe) == dict.fromkeys(
        ["parameters", "activations", "cache", "probabilities", "gradients"], "bf16") | {
            "logits": "fp32", "order": "eager"}
    assert lockstep.Recipe(dict(recipe)) == recipe and lockstep.Recipe(recipe) == recipe
    mixed = lockstep.Recipe({"activations": "fp16", "order": "split-k"})
    assert str(mixed) == ("parameters fp32, activations fp16, cache fp32, probabilities fp32, logits fp32"
                          "+split-k")
    assert lockstep.Model(TINY, mixed).recipe == mixed


def test_recipes_match_if_nothing_differs():
    recipes = [named(name, order) for name in ("fp32", "fp16", "bf16", "bf16-fp32head") for order in ORDERS]
    for one in recipes:
        assert [lockstep.Recipe(one).matches(other) for other in recipes] == [one == other for other in recipes]


@pytest.mark.parametrize("recipe, word", [
    ("bf16+none", "split-k"), ("bf16+", "order"), ("+eager", "-fp32head"), ({"order": "none"}, "'flash'"),
    ({"orders": "flash"}, "'orders' is no part"), ({"order": 3}, "recipe"), ({"cache": "fp12"}, "cache"),
])
def test_bad_recipes(recipe, word):
    with pytest.raises(lockstep.InvalidArgumentError, match=re.escape(word)):
        lockstep.Recipe(recipe)


# Engines


def drawn(recipe, capacity, folder=TINY, samples=6):
    model = lockstep.Model(folder, recipe)
    prompts = [[1, 2, 3], [50], list(range(70))]
    rollouts = model.generate(prompts, samples=samples, seed=3, max_tokens=20, capacity=capacity)
    return ([prompts[each.id // samples] + each.tokens.tolist() for each in rollouts],
            [each.raw_log_probs.astype(np.float32) for each in rollouts])


def rescored(recipe, sequences, folder=TINY):
    scores = lockstep.Model(folder, recipe).score(sequences).log_probs
    return [row[-20:] for row in np.split(scores, np.cumsum([len(each) for each in sequences])[:-1])]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("recipe", ["fp32", "fp16", "bf16"])
def test_one_recipe_is_exactly_zero_in_any_batch(recipe, order, tmp_path):
    name = named(recipe, order)
    sequences, said = drawn(name, 16)
    for capacity in (1, 3):
        again, said_again = drawn(name, capacity)
        assert again == sequences
        np.testing.assert_array_equal(said_again, said)
    np.testing.assert_array_equal(rescored(name, sequences), said)
    found = lockstep.mismatch(list(rescored(name, sequences)), said)
    assert found.share_differing.value == found.mean_abs_log_ratio.value == found.k3.value == 0
    # The control: one weight of one layer is another.
    changed = weights(TINY.name)
    changed["model.layers.0.self_attn.k_proj.weight"][3, 5] += 0.5
    shutil.copy(TINY / "config.json", tmp_path)
    write_safetensors(tmp_path / "model.safetensors", changed)
    control = lockstep.mismatch(rescored(name, sequences, tmp_path), said)
    assert control.mean_abs_log_ratio.value > 1e-4 and control.share_differing.value > 0.5


@pytest.fixture(scope="module")
def noise():
    """mean |d| and the exact KL of independent engines, in each format, on about 4,000 tokens."""
    found = {}
    for recipe in ("fp32", "fp16", "bf16"):
        rollout, trainer = (lockstep.Model(TINY, f"{recipe}+{order}")
                            for order in (INDEPENDENT.rollout, INDEPENDENT.trainer))
        rollouts = rollout.generate([[1]], samples=64, seed=9, max_tokens=64)
        differences, kl = [], []
        for each in rollouts:
            sequence = [1, *each.tokens.tolist()]
            mine, other = (model.logits(sequence)[:-1] for model in (trainer, rollout))
            kl.append(lockstep.exact_mismatch(mine, other).rows["kl_rollout_trainer"])
            scores = trainer.score(sequence).log_probs
            # Logits are those that scoring takes its log-probs from.
            np.testing.assert_array_equal(lockstep.log_probs(mine, sequence[1:]), scores[1:])
            differences.append(np.abs(scores[1:] - each.raw_log_probs))
        found[recipe] = np.concatenate(differences).mean(), np.concatenate(kl).mean()
    return found


def test_rounding_goes_with_the_mantissa(noise):
    """2^-m for |d| and 2^-2m for the KL, m being 7 and 10: engines that round at different points show it on two layers."""
    assert 5 < noise["bf16"][0] / noise["fp16"][0] < 12
    assert 30 < noise["bf16"][1] / noise["fp16"][1] < 130
    assert noise["fp32"][0] < 1e-5 and 0 <= noise["fp32"][1] < 1e-9


# The command


@pytest.fixture(scope="module")
def figure(tmp_path_factory):
    folder = tmp_path_factory.mktemp("offline")
    done = invoke(TINY, "--samples", 24, "--max-tokens", 40, "--seed", 4, "--exact-kl", "--html", folder / "out.html",
                  "--json", folder / "out.json", "--logs", folder / "logs")
    return done, folder, json.loads((folder / "out.json").read_text())


def test_the_table(figure):
    done, _, found = figure
    assert done.exit_code == 0
    assert found["schema"] == "lockstep-offline/1" and len(found["pairs"]) == 18
    pairs = {(each["engines"], each["rollout"], each["trainer"]): each for each in found["pairs"]}
    for (engines, rollout, trainer), each in pairs.items():
        value = each["mismatch"]["mean_abs_log_ratio"]["value"]
        assert each["same_recipe"] == (engines == "lockstep" and rollout == trainer)
        assert each["mismatch"]["sequences"] == 24 and 24 < each["mismatch"]["tokens"] <= 24 * 40
        if each["same_recipe"]:
            assert value == each["exact_kl"] == each["mismatch"]["share_differing"]["value"] == 0
        else:
            assert value > 0 and each["exact_kl"] > 0
            assert 0.3 < each["mismatch"]["k3"]["value"] / each["exact_kl"] < 3 or "fp32" in (rollout[:4], trainer[:4])
    bf16, fp16 = (pairs["independent", f"{name}+fused", f"{name}+eager"] for name in ("bf16", "fp16"))
    assert 5 < bf16["mismatch"]["mean_abs_log_ratio"]["value"] / fp16["mismatch"]["mean_abs_log_ratio"]["value"] < 12
    assert 30 < bf16["exact_kl"] / fp16["exact_kl"] < 130
    for word in ("independent engines", "lockstep engines", "bf16+fused", "fp32+eager", "KL, exact", "BF16 over FP16",
                 "exactly 0, all"):
        assert word in done.output
    assert found["findings"][1] in re.sub(r"\s+", " ", done.output)


def test_the_logs_are_what_was_measured(figure):
    _, folder, found = figure
    assert len(list((folder / "logs").glob("*.lockstep"))) == 18
    log = folder / "logs" / "independent.bf16-fp16.lockstep"
    again = survey(open_log(log)).statistics.to_dict()
    wanted = next(each["mismatch"] for each in found["pairs"]
                  if (each["rollout"], each["trainer"]) == ("bf16+fused", "fp16+eager"))
    assert json.loads(json.dumps(again)) == wanted
    with lockstep.LogReader(log) as reader:
        assert (reader.header.rollout_body, reader.header.trainer_body) == ("bf16+fused", "fp16+eager")
        batch = next(iter(reader))
        first = slice(batch.offsets[0], batch.offsets[1])
        tokens = batch.token_ids[first]
        np.testing.assert_array_equal(lockstep.Model(TINY, "bf16+fused").score(tokens).log_probs[17:],
                                      batch.rollout[first][17:])
        assert not batch.mask[first][:17].any() and batch.mask[first][17:].all()
    done = CliRunner().invoke(commands, ["diagnose", str(log), "--no-html"])
    assert done.exit_code == 0 and "Rounding" in done.output


def test_the_report(figure):
    _, folder, _ = figure
    text = (folder / "out.html").read_text()
    assert text.count('<svg class="picture"') == 2 + 1 + 1 + 2 + 2
    assert "Independent engines" in text and "Lockstep engines" in text and "exactly 0" in text
    assert not re.search(r">\s*(nan|None)\s*<", text) and "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    # A report of ours is replaced, another file is not.
    other = folder / "other.html"
    other.write_text("mine")
    assert invoke(TINY, "--samples", 1, "--max-tokens", 2, "--html", other).exit_code == 2
    assert other.read_text() == "mine"


def test_what_cannot_be_written_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "out.json").write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    done = invoke(TINY, "--samples", 1, "--max-tokens", 2, "--recipe", "fp16", "--pairs", "lockstep",
                  "--json", tmp_path / "out.json")
    assert done.exit_code == 2 and "No space left" in done.output
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"out.json": "old"}


def test_the_json_goes_down_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    done = invoke(TINY, "--samples", 1, "--max-tokens", 2, "--recipe", "fp16", "--pairs", "lockstep", "--json", pipe)
    assert done.exit_code == 0 and json.loads(os.read(reader, 1 << 16))["pairs"] and pipe.is_fifo()
    os.close(reader)


def test_the_same_whatever_the_threads(tmp_path):
    texts = []
    for threads in (1, 2):
        done = invoke(TINY, "--samples", 3, "--max-tokens", 9, "--pairs", "independent", "--recipe", "bf16", "--recipe",
                      "bf16-fp32head", "--rollout-order", "flash", "--trainer-order", "split-k", "--threads", threads,
                      "--json", tmp_path / "out.json")
        assert done.exit_code == 0 and "bf16-fp32head+flash" in done.output and "lockstep engines" not in done.output
        texts.append((tmp_path / "out.json").read_text())
    assert texts[0] == texts[1]


def test_prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("1 2 3\n\n[4, 5]\n")
    assert read_prompts(file, TINY) == [[1, 2, 3], [4, 5]]
    done = invoke(TINY, "--prompts", file, "--samples", 2, "--max-tokens", 3, "--recipe", "fp16", "--pairs", "lockstep",
                  "--json", tmp_path / "out.json")
    assert done.exit_code == 0 and "exactly 0, all 12 log-probs" in re.sub(r"\s+", " ", done.output)
    assert json.loads((tmp_path / "out.json").read_text())["prompts"] == "2 of prompts.txt"


@pytest.mark.parametrize("text, word", [
    ("", "no prompt"), ("once upon a time\n", "token"), ("1 97\n", "prompt[1] is 97"), ("3\n[]\n", "empty")])
def test_bad_prompts(tmp_path, text, word):
    file = tmp_path / "prompts.txt"
    file.write_text(text)
    done = invoke(TINY, "--prompts", file, "--max-tokens", 2, "--samples", 1)
    assert done.exit_code == 2 and word in done.output and "Traceback" not in done.output


def test_text_is_tokenized(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "rose": 1, "is": 2}, unk_token="a"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "prompts.txt").write_text("a rose is\nrose\n")
    assert read_prompts(tmp_path / "prompts.txt", tmp_path) == [[0, 1, 2], [1]]


def test_bad_arguments(tmp_path):
    for arguments, word in [
        ([TINY, "--recipe", "fp8"], "e8mN"), ([TINY, "--recipe", "bf16+eager"], "leave the order"),
        ([tmp_path], "config.json"), ([TINY, "--logs", tmp_path / "no" / "such"], "does not exist"),
    ]:
        done = invoke(*arguments, "--samples", 1, "--max-tokens", 2)
        assert done.exit_code == 2 and word in done.output, done.output
