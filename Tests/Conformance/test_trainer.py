"""Training from Python: golden gradients, what must not show in them, PyTorch beside it, steps, bad input."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from conftest import ROOT, VECTORS, read_safetensors

import lockstep

FOLDER = VECTORS / "models"
FAMILIES = ["llama_untied", "llama_tied_rope_llama3", "qwen2_bias", "qwen3_qknorm", "qwen3_moe"]


def golden(name):
    """Sequences, the gradients of the loss with respect to log-probs, and what the parameters' gradients are."""
    found = read_safetensors(FOLDER / name / "expected.safetensors")
    rows = json.loads((FOLDER / name / "expected.json").read_text())["rows"]
    tokens = [found[f"tokens.{i}"] for i in range(len(rows))]
    count = sum(row["length"] - row["prompt_length"] for row in rows)
    given = [np.where(np.arange(row["length"]) < row["prompt_length"], 0, -1 / count) for row in rows]
    return tokens, np.concatenate(given), found


def gradients(trainer):
    flat = trainer.gradients()
    return {each.name: flat[each.range].reshape(each.shape) for each in trainer.parameters}


@pytest.mark.parametrize("name", [*FAMILIES, "llama_untied_lora"])
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_the_golden_ones(name, recompute):
    family, adapter = (name.removesuffix("_lora"), FOLDER / name) if name.endswith("_lora") else (name, None)
    trainer = lockstep.Trainer(FOLDER / family, adapter=adapter, recompute=recompute)
    tokens, given, wanted = golden(name)
    step = trainer.accumulate(tokens, given)
    assert step.overflows == 0 and step.overflow_sequence == -1 and step.overflow_operation == ""
    loss = given @ step.scores.log_probs.astype(np.float64)
    np.testing.assert_allclose(loss, wanted["loss"][0], rtol=1e-6)
    found = gradients(trainer)
    assert {f"grad.{key}" for key in found} == {key for key in wanted if key.startswith("grad.")}
    for key, value in found.items():
        exact = wanted[f"grad.{key}"]
        assert np.linalg.norm(value - exact) < 5e-6 * np.linalg.norm(exact), key


def test_gradients_beside_pytorch():
    """In float32 both are as far from float64 as float32 is; PyTorch's own backward pass is the peer."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    for family in FAMILIES:
        tokens, given, wanted = golden(family)
        peer = transformers.AutoModelForCausalLM.from_pretrained(FOLDER / family, dtype=torch.float32)
        first, loss = 0, 0
        for row in tokens:
            ids = torch.tensor(np.asarray(row, np.int64))
            log_probs = torch.log_softmax(peer(ids[None]).logits[0].float(), -1)
            chosen = log_probs[:-1].gather(1, ids[1:, None])[:, 0]
            loss = loss + (chosen * torch.tensor(given[first + 1:first + len(row)], dtype=torch.float32)).sum()
            first += len(row)
        loss.backward()
        trainer = lockstep.Trainer(FOLDER / family)
        trainer.accumulate(tokens, given)
        found, compared = gradients(trainer), 0
        for key, value in peer.named_parameters():
            if key not in found:
                continue  # experts, which transformers holds in one tensor
            compared += 1
            other = value.grad.numpy()
            assert np.linalg.norm(found[key] - other) < 2e-5 * np.linalg.norm(other), (family, key)
            exact = wanted[f"grad.{key}"]
            ours, theirs = np.linalg.norm(found[key] - exact), np.linalg.norm(other - exact)
            assert ours < 10 * theirs + 1e-6 * np.linalg.norm(exact), (family, key, ours, theirs)
        assert compared > 10


def test_neither_threads_nor_order_nor_cuts_show():
    random = np.random.default_rng(1)
    lengths = [3, 40, 1, 17, 5, 2, 60]
    tokens = [random.integers(0, 97, length) for length in lengths]
    given = [random.normal(0, 0.1, length) for length in lengths]

    def found(cuts, **options):
        trainer = lockstep.Trainer(FOLDER / "qwen3_moe", "bf16", **options)
        for part in cuts:
            trainer.accumulate(
                [tokens[i] for i in part], np.concatenate([given[i] for i in part]),
                d_entropy=np.full(sum(lengths[i] for i in part), 0.01), loss_scale=64.0)
        return trainer.gradients().tobytes()

    wanted = found([range(7)], threads=1)
    assert found([[6, 2], [0], [5, 4, 3, 1]], threads=3) == wanted
    assert found([[i] for i in reversed(range(7))], threads=2, recompute=True) == wanted
    assert found([range(7)], instruction_set="baseline") == wanted
    assert found([range(6)]) != wanted


def test_a_step_and_its_snapshot():
    trainer = lockstep.Trainer(FOLDER / "qwen2_bias", {"parameters": "fp16", "activations": "fp16", "gradients": "fp32"})
    tokens, given, _ = golden("qwen2_bias")
    before = trainer.snapshot()
    assert before.recipe["gradients"] == "fp32" and before.family == "qwen2"
    step = trainer.accumulate(tokens, given)
    assert step.scores.log_probs.tobytes() == before.score(tokens).log_probs.tobytes()
    trainer.masters[:] -= 0.05 * trainer.gradients()
    after = trainer.snapshot()
    scores = after.score(tokens).log_probs
    assert given @ scores < given @ step.scores.log_probs
    # The rollout engine has the same model; an old snapshot stays what it was.
    drawn = after.generate([[1, 2, 3]], max_tokens=8)[0]
    again = trainer.accumulate([[1, 2, 3, *drawn.tokens.tolist()]], np.zeros(3 + len(drawn.tokens)))
    assert again.scores.log_probs[3:].tobytes() == drawn.raw_log_probs.astype(np.float32).tobytes()
    assert before.score(tokens).log_probs.tobytes() == step.scores.log_probs.tobytes()
    trainer.masters[5] = np.nan
    with pytest.raises(lockstep.NonFiniteError, match="parameters: tensor"):
        trainer.snapshot()


def test_an_overflow_is_said():
    trainer = lockstep.Trainer(FOLDER / "llama_untied", "fp16")
    tokens, given, _ = golden("llama_untied")
    step = trainer.accumulate(tokens, given, loss_scale=2.0**40)
    assert (step.overflows, step.overflow_sequence, step.overflow_layer) == (3, 0, 2)
    assert step.overflow_operation == "output head"
    assert step.scores.log_probs.tobytes() == trainer.snapshot().score(tokens).log_probs.tobytes()
    assert np.isnan(trainer.gradients()).all()
    trainer.clear()
    assert not trainer.gradients().any()


def test_beginnings():
    made = [lockstep.Trainer(FOLDER / "qwen3_moe", deviation=0.02, seed=seed).masters for seed in (1, 1, 2)]
    assert made[0].tobytes() == made[1].tobytes() != made[2].tobytes()
    adapter = lockstep.Trainer(FOLDER / "llama_untied", rank=3, alpha=6, targets=["k_proj"], seed=1)
    assert [each.shape for each in adapter.parameters] == [(3, 64), (32, 3)] * 2
    assert all(each.decays for each in adapter.parameters) and "4 tensors" in repr(adapter)


def test_bad_input():
    path = FOLDER / "llama_untied"
    for options, word in [
        ({"rank": -1}, "rank is -1"), ({"rank": 2, "targets": ["x"]}, "'x'"), ({"rank": 2, "targets": []}, "targets"),
        ({"deviation": -1.0}, "deviation"), ({"rank": 2, "adapter": FOLDER / "llama_untied_lora"}, "adapter"),
        ({"recipe": {"gradients": "fp8"}}, "gradients"), ({"threads": -1}, "threads"),
    ]:
        with pytest.raises(lockstep.LockstepError, match=re.escape(word)):
            lockstep.Trainer(path, **options)
    trainer = lockstep.Trainer(path)
    for arguments, word in [
        (([[1, 97]], np.zeros(2)), "tokens[1] is 97"), (([[1, 2]], np.zeros(3)), "d_log_probs"),
        (([[1, 2]], np.array([0, np.inf])), "d_log_probs[1] is inf"),
    ]:
        with pytest.raises(lockstep.InvalidArgumentError, match=re.escape(word)):
            trainer.accumulate(*arguments)
    with pytest.raises(lockstep.InvalidArgumentError, match="loss_scale"):
        trainer.accumulate([[1, 2]], np.zeros(2), loss_scale=0)
    assert not trainer.gradients().any()


def test_the_page(monkeypatch):
    monkeypatch.chdir(FOLDER)
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "Training.md").read_text(), re.S)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
