"""Models from Python: scored and sampled from with the same bits, close to what others compute, bad folders refused."""

from __future__ import annotations

import json
import re
import shutil
import struct

import numpy as np
import pytest
from conftest import ROOT, VECTORS, read_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

import lockstep

FAMILIES = ["llama_untied", "llama_tied_rope_llama3", "qwen2_bias", "qwen3_qknorm", "qwen3_moe"]
FOLDER = VECTORS / "models"


def golden(family):
    found = read_safetensors(FOLDER / family / "expected.safetensors")
    count = sum(name.startswith("tokens.") for name in found)
    return [(found[f"tokens.{i}"], found[f"logprobs.{i}"], found[f"logits.{i}"]) for i in range(count)]


def write_safetensors(path, tensors):
    """fp32 tensors as a safetensors file."""
    header, data = {}, b""
    for name, values in tensors.items():
        raw = np.asarray(values, "<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.fixture
def folder(tmp_path):
    """A copy of a checkpoint, to be spoilt."""
    copied = tmp_path / "model"
    shutil.copytree(FOLDER / "llama_untied", copied)
    return copied


@pytest.mark.parametrize("extra", range(1, 8))
def test_a_header_of_any_length(folder, extra):
    """Values then stand at odd addresses (which UndefinedBehaviorSanitizer saw read as they were)."""
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    (length,) = struct.unpack_from("<Q", whole)
    tokens = [[1, 5, 9, 2]]
    wanted = lockstep.Model(folder).score(tokens).log_probs
    path.write_bytes(struct.pack("<Q", length + extra) + whole[8 : 8 + length] + b" " * extra + whole[8 + length :])
    assert (lockstep.Model(folder).score(tokens).log_probs == wanted).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_golden_ones(family):
    model = lockstep.Model(FOLDER / family)
    rows = golden(family)
    scores = model.score([tokens for tokens, _, _ in rows])
    first = 0
    for tokens, wanted, logits in rows:
        found = slice(first + 1, first + len(tokens))
        np.testing.assert_allclose(scores.log_probs[found], wanted, rtol=0, atol=1e-5)
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        np.testing.assert_allclose(scores.entropy[found], -(p * np.log(p)).sum(1)[:-1], rtol=0, atol=1e-5)
        assert scores.log_probs[first] == scores.entropy[first] == 0
        first += len(tokens)


@pytest.mark.parametrize("recipe", ["fp32", "fp16", "bf16", {"activations": "fp16", "cache": "bf16"}])
def test_rollouts_have_the_bits_of_scoring(recipe):
    model = lockstep.Model(FOLDER / "qwen3_moe", recipe)
    prompts = [[1, 2, 3], [50], list(range(90))]
    rollouts = model.generate(prompts, samples=4, seed=3, max_tokens=12, stop_ids=[5], threads=2)
    assert [rollout.id for rollout in rollouts] == list(range(12))
    whole = [prompts[rollout.id // 4] + rollout.tokens.tolist() for rollout in rollouts]
    scores = model.score(whole).log_probs
    first = 0
    for rollout, tokens in zip(rollouts, whole):
        first += len(tokens)
        count = len(rollout.tokens)
        np.testing.assert_array_equal(rollout.raw_log_probs.astype(np.float32), scores[first - count : first])
        assert rollout.finish == ("stop" if rollout.tokens[-1] == 5 else "length")
    again = model.generate(prompts, samples=4, seed=3, max_tokens=12, stop_ids=[5], capacity=1)
    for one, other in zip(rollouts, again):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.raw_log_probs, other.raw_log_probs)


def test_processed_log_probs_are_those_of_log_probs():
    """What the engine drew from is `log_probs` of the same logits with the same options."""
    model = lockstep.Model(FOLDER / "llama_untied")
    cuts = {"temperature": 0.7, "top_k": 30, "top_p": 0.9, "min_p": 0.05}
    tokens, _, logits = golden("llama_untied")[0]
    engine = lockstep.RolloutEngine(model, max_tokens=1, **cuts)
    engine.add(tokens, range(50))
    for rollout in engine.run():
        row = lockstep.log_probs(
            logits[-1].astype(np.float32), rollout.tokens[0], kept_mass=True, dtype="fp64", **cuts)
        assert abs(rollout.processed_log_probs[0] - row.log_probs) < 1e-5
        assert abs(rollout.kept_mass[0] - row.kept_mass) < 1e-5
        assert row.kept_mass < 0.95


def test_an_adapter():
    tokens, wanted, _ = golden("llama_untied_lora")[0]
    model = lockstep.Model(FOLDER / "llama_untied", adapter=FOLDER / "llama_untied_lora")
    np.testing.assert_allclose(model.score(tokens).log_probs[1:], wanted, rtol=0, atol=1e-5)


def test_what_a_model_says_of_itself():
    model = lockstep.Model(FOLDER / "qwen3_moe", "bf16-fp32head")
    assert (model.family, model.layers, model.vocab, model.hidden_size, model.positions) == (
        "qwen3_moe", 2, 97, 64, 128)
    assert model.recipe == dict.fromkeys(
        ["parameters", "activations", "cache", "probabilities", "gradients"], "bf16") | {
            "logits": "fp32", "order": "lockstep"}
    assert model.parameters == sum(
        values.size // (2 if values.dtype.itemsize == 1 else 1) for values in weights("qwen3_moe").values())
    assert "qwen3_moe" in repr(model)


def weights(family):
    """Of bf16 checkpoints too, as fp32."""
    data = (FOLDER / family / "model.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        raw = data[start:end]
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
        else:
            values = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2"}[entry["dtype"]]).astype("<f4")
        tensors[name] = values.reshape(entry["shape"])
    return tensors


@pytest.mark.parametrize("family", ["mistral", "mixtral"])
def test_families_without_golden_log_probs_are_those_of_transformers(family, tmp_path, torch):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    shape = {
        "vocab_size": 97, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 16,
        "sliding_window": None,
    }
    torch.manual_seed(4)
    if family == "mistral":
        theirs = transformers.MistralForCausalLM(transformers.MistralConfig(**shape))
    else:
        theirs = transformers.MixtralForCausalLM(transformers.MixtralConfig(
            **shape, num_local_experts=4, num_experts_per_tok=2))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs = theirs.eval()
    theirs.save_pretrained(tmp_path)
    tokens = np.random.default_rng(1).integers(0, 97, 60)
    with torch.no_grad():
        wanted = theirs(torch.tensor(tokens)[None]).logits[0].double().log_softmax(-1).numpy()
    found = lockstep.Model(tmp_path).score(tokens).log_probs
    assert np.abs(found[1:] - wanted[np.arange(59), tokens[1:]]).max() < 1e-4


# Bad input


def test_arguments_are_named(folder):
    model = lockstep.Model(folder)
    for call, word in [
        (lambda: model.score([1, 97]), r"tokens\[1\] is 97"),
        (lambda: model.score([[1], [2, -5]]), r"tokens\[2\] is -5"),
        (lambda: model.score([[1], []]), "sequence 1 is empty"),
        (lambda: model.score([0] * 129), "129 tokens"),
        (lambda: model.score([0.5, 1.0]), "tokens"),
        (lambda: model.score([1, 2], temperature=0), "temperature"),
        (lambda: model.score([1, 2], offsets=np.array([0, 3])), "offsets"),
        (lambda: model.generate([[]]), "prompt: is empty"),
        (lambda: model.generate([[1, 200]]), r"prompt\[1\] is 200"),
        (lambda: model.generate([[1] * 128]), "128"),
        (lambda: model.generate([[1]], samples=0), "samples"),
        (lambda: model.generate([[1]], max_tokens=0), "max_tokens"),
        (lambda: model.generate([[1]], min_p=-1), "min_p"),
        (lambda: model.generate([[1]], seed=-1), "seed"),
        (lambda: model.generate([[1]], stop_ids=["a"]), "stop_ids"),
        (lambda: model.generate([[1]], capacity=10**6), "capacity"),
        (lambda: lockstep.Model(folder, "fp8"), "-fp32head"),
        (lambda: lockstep.Model(folder, {"weights": "fp16"}), "weights"),
        (lambda: lockstep.Model(folder, {"cache": "e4m3fn"}), "cache"),
    ]:
        with pytest.raises(lockstep.InvalidArgumentError, match=word):
            call()
    with pytest.raises(lockstep.FileError, match=r"config\.json"):
        lockstep.Model("/nowhere")


def test_settings_that_are_not_known(folder):
    config = json.loads((folder / "config.json").read_text())
    for change, kind, word in [
        ({"model_type": "gemma3"}, lockstep.UnsupportedError, "gemma3"),
        ({"quantization_config": {"bits": 4}}, lockstep.UnsupportedError, "quantization_config"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4}}, lockstep.UnsupportedError, "yarn"),
        ({"hidden_act": "gelu"}, lockstep.UnsupportedError, "gelu"),
        ({"vocab_size": "97"}, lockstep.BadDataError, "vocab_size"),
        ({"rms_norm_eps": None}, lockstep.BadDataError, "rms_norm_eps"),
    ]:
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(kind, match=word):
            lockstep.Model(folder)
    (folder / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(lockstep.BadDataError, match="config.json"):
        lockstep.Model(folder)


def test_weights_that_are_not_those_of_the_model(folder):
    tensors = weights("llama_untied")
    name = "model.layers.1.mlp.down_proj.weight"

    def load(changed, recipe="fp32"):
        write_safetensors(folder / "model.safetensors", changed)
        return lockstep.Model(folder, recipe)

    load(tensors)
    for changed, kind, word in [
        ({key: value for key, value in tensors.items() if key != name}, lockstep.BadDataError, "is missing"),
        (tensors | {"extra": np.ones(3)}, lockstep.BadDataError, "'extra' belongs to no part"),
        (tensors | {name: tensors[name].T}, lockstep.BadDataError, r"shape is \[48, 64\]"),
        (tensors | {name: tensors[name] * np.nan}, lockstep.NonFiniteError, name),
    ]:
        with pytest.raises(kind, match=word):
            load(changed)
    large = tensors | {name: tensors[name] * 1e7}
    load(large, "bf16")
    with pytest.raises(lockstep.NonFiniteError, match=f"{name}.*fp16"):
        load(large, "fp16")
    # Weights that fit, and a value in the forward pass that does not: layer and operation are named.
    with pytest.raises(lockstep.NonFiniteError, match="MLP gate and up of layer 1"):
        up = "model.layers.1.mlp.up_proj.weight"
        load(tensors | {up: np.sign(tensors[up]) * 60000}, "fp16").score(list(range(30)))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_files_are_refused_or_read(tmp_path_factory, data):
    """Any byte of the three files changed, cut or repeated: an error of ours, or a model."""
    folder = tmp_path_factory.mktemp("damaged")
    source = FOLDER / "llama_untied"
    name = data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    raw = bytearray((source / name).read_bytes())
    place = data.draw(st.integers(0, min(len(raw), 4000) - 1))
    match data.draw(st.sampled_from(["change", "cut", "repeat"])):
        case "change":
            raw[place] = data.draw(st.integers(0, 255))
        case "cut":
            del raw[place : place + data.draw(st.integers(1, 50))]
        case "repeat":
            raw[place:place] = raw[place : place + data.draw(st.integers(1, 50))]
    for other in ("config.json", "model.safetensors"):
        (folder / other).write_bytes(raw if other == name else (source / other).read_bytes())
    try:
        lockstep.Model(folder)
    except lockstep.LockstepError:
        pass
    finally:
        shutil.rmtree(folder)


def test_the_page_runs(monkeypatch):
    """Every block of docs/Models.md, one after another."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "Models.md").read_text(), re.DOTALL)
    assert len(blocks) >= 4
    monkeypatch.chdir(FOLDER)
    names: dict = {}
    for block in blocks:
        exec(compile(block, "docs/Models.md", "exec"), names)  # noqa: S102
    assert names["adapted"].family == "llama"


def test_the_table_of_recipes():
    rows = re.findall(r"^\| `(\S+)` \| (\S+) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$",
                      (ROOT / "docs" / "Models.md").read_text(), re.MULTILINE)
    assert len(rows) == 5
    for name, *formats in rows:
        assert list(lockstep.Model(FOLDER / "llama_untied", name).recipe.values()) == [*formats, "lockstep"]


def test_fp8_is_stored_and_rounds_as_numpy_says(tmp_path):
    """A weight of 8 bits is its row's power of two times a value of e4m3fn: a model of such values is not changed by it."""
    import ml_dtypes

    source = read_safetensors(FOLDER / "llama_untied" / "model.safetensors")
    rounded = {}
    for name, weight in source.items():
        if "layers" not in name or weight.ndim == 1:
            rounded[name] = weight.astype(ml_dtypes.bfloat16).astype(np.float32)
            continue
        scale = 2.0 ** np.ceil(np.log2(np.abs(weight).max(1, keepdims=True) / 448))
        rounded[name] = ((weight / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale).astype(np.float32)
    write_safetensors(tmp_path / "model.safetensors", rounded)
    shutil.copy(FOLDER / "llama_untied" / "config.json", tmp_path)
    tokens = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5]]
    eight = lockstep.Model(FOLDER / "llama_untied", "bf16-fp8weights").score(tokens)
    for recipe in ("bf16", "bf16-fp8weights"):  # wide or narrow, these values are kept
        kept = lockstep.Model(tmp_path, recipe).score(tokens)
        assert (kept.log_probs == eight.log_probs).all() and (kept.entropy == eight.entropy).all()
    assert (lockstep.Model(FOLDER / "llama_untied", "bf16").score(tokens).log_probs != eight.log_probs).any()


@pytest.mark.parametrize("recipe", ["bf16-fp8weights-fp8cache", {"activations": "fp16", "cache": "fp8_e5m2"}])
@pytest.mark.parametrize("family", ["qwen3_moe", "qwen2_bias"])
def test_fp8_rollouts_have_the_bits_of_scoring(family, recipe):
    model = lockstep.Model(FOLDER / family, recipe)
    for capacity, threads in ((1, 1), (6, 2)):
        for rollout in model.generate([[1, 2, 3], [4] * 90], samples=3, max_tokens=20, capacity=capacity, threads=threads):
            prompt = [[1, 2, 3], [4] * 90][rollout.id // 3]
            scores = model.score(np.array(prompt + rollout.tokens.tolist())).log_probs[len(prompt):]
            assert (scores == rollout.raw_log_probs.astype(np.float32)).all()


def test_trainers_refuse_fp8():
    with pytest.raises(lockstep.UnsupportedError, match="cache is fp8_e4m3fn.*rollout engine"):
        lockstep.Trainer(FOLDER / "llama_untied", "bf16-fp8cache")


def test_overflows_are_counted(folder):
    weights = {name: each.copy() for name, each in read_safetensors(folder / "model.safetensors").items()}
    weights["model.embed_tokens.weight"][96] = 6e4
    weights["model.layers.0.self_attn.o_proj.weight"][0] *= 3e4
    write_safetensors(folder / "model.safetensors", weights)
    model = lockstep.Model(folder, "fp16")
    sequences = [[1, 2, 3], [4, 96, 5], [6, 7]]
    with pytest.raises(lockstep.NonFiniteError) as error:
        model.score(sequences)
    log_probs, entropy, report = model.score(sequences, overflow="count")
    fine = model.score([sequences[0], sequences[2]])
    keep = [0, 1, 2, 6, 7]
    assert (log_probs[keep] == fine.log_probs).all() and (entropy[keep] == fine.entropy).all()
    assert np.isnan(log_probs[3:6]).all() and np.isnan(entropy[3:6]).all()
    assert (report.sequences, report.overflows, report.overflow_tokens, report.overflow_sequence) == (3, 1, 3, 1)
    assert f"{report.overflow_operation} of layer {report.overflow_layer}" in str(error.value)
    with pytest.raises(lockstep.InvalidArgumentError, match="overflow"):
        model.score(sequences, overflow="ignore")
    with pytest.raises(lockstep.InvalidArgumentError, match=r"tokens\[0\]"):
        model.score([[97]], overflow="count")


def test_loading_is_told():
    told = []
    model = lockstep.Model(FOLDER / "llama_untied", progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (model.parameters, model.parameters)
    assert [done for done, _ in told] == sorted({done for done, _ in told}) and len(told) > 10
    seen = len(told)
    lockstep.Model(FOLDER / "llama_untied")
    assert len(told) == seen

    def fails(done, total):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        lockstep.Model(FOLDER / "llama_untied", progress=fails)
    with lockstep.loading(lambda done, total: told.append((done, total))):
        lockstep.audit_headroom(FOLDER / "llama_untied")
        lockstep.Trainer(FOLDER / "llama_untied")
    assert told[-1][0] == told[-1][1] and len(told) > seen + 20
