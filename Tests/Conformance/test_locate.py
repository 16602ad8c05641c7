"""Where two engines part: dumps against dumps, recipes against recipes, the command."""

import io
import json
import re
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from click.testing import CliRunner

import lockstep
from conftest import ROOT
from lockstep.commands import commands
from lockstep.dumps import OPERATIONS, compare_dumps, open_dump
from lockstep.report.locate import HINTS, of_dumps
from lockstep.report.locate_page import page

MODELS = ROOT / "Tests" / "Vectors" / "models"
FOLDER = MODELS / "llama_untied"
SEQUENCES = [[5, 9, 96, 0], [3], [7] * 20]


def save(path, tensors, dtypes=None):
    """A safetensors file, as the format's description says."""
    header, parts, at = {}, [], 0
    for name, each in tensors.items():
        dtype = (dtypes or {}).get(name, {"f4": "F32", "f2": "F16", "f8": "F64", "i8": "I64", "u2": "BF16"}[each.dtype.str[1:]])
        raw = np.ascontiguousarray(each).tobytes()
        header[name] = {"dtype": dtype, "shape": list(each.shape), "data_offsets": [at, at + len(raw)]}
        parts.append(raw)
        at += len(raw)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))
    return path


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A dump of ours, and its tensors."""
    path = tmp_path_factory.mktemp("dumps") / "ours.safetensors"
    lockstep.dump(lockstep.Model(FOLDER, "fp32"), path, SEQUENCES)
    dump = open_dump(path)
    return path, {("" if place[1] not in OPERATIONS else f"layer.{place[0]}.") + place[1]: dump.read(place)
                  for place in dump.places}


def run(*arguments):
    return CliRunner().invoke(commands, ["locate", *map(str, arguments)], standalone_mode=False)


def test_a_dump_holds_what_scoring_is_made_of(ours):
    path, tensors = ours
    dump = open_dump(path)
    assert dump.unknown == []
    assert dump.integers("tokens").tolist() == sum(SEQUENCES, [])
    assert dump.integers("offsets").tolist() == [0, 4, 5, 25]
    assert len(tensors) == 1 + 2 * 11 + 2
    logits = tensors["logits"].astype(np.float64)
    scores = lockstep.Model(FOLDER, "fp32").score(SEQUENCES).log_probs
    for row in [0, 1, 2, 6, 20]:
        token = sum(SEQUENCES, [])[row + 1]
        assert abs(logits[row, token] - np.log(np.exp(logits[row]).sum()) - scores[row + 1]) < 1e-5
    residual = tensors["layer.0.residual sum after attention"]
    assert np.array_equal(tensors["embedding"] + tensors["layer.0.attention output"], residual)


@pytest.mark.parametrize("recipe", ["bf16", "fp16"])
def test_dumps_say_what_the_engines_say(ours, tmp_path, recipe):
    path = tmp_path / "other.safetensors"
    lockstep.dump(lockstep.Model(FOLDER, recipe), path, SEQUENCES)
    compared = compare_dumps(open_dump(ours[0]), open_dump(path))
    found = lockstep.locate(lockstep.Model(FOLDER, "fp32"), lockstep.Model(FOLDER, recipe), SEQUENCES)
    assert compared.skipped == []
    assert [each for each in compared.differences if each.operation != "logits"] == found.differences[:-1]
    assert found.first.operation == "embedding" and found.differences[-1].operation == "log-probs"


@pytest.mark.parametrize("name", ["layer.1.attention output", "embedding", "layer.0.MLP down", "logits"])
def test_a_planted_change_is_found_where_it_is(ours, tmp_path, name):
    path, tensors = ours
    changed = {key: each.copy() for key, each in tensors.items()}
    changed[name][17, 3] = np.nextafter(changed[name][17, 3], np.float32(np.inf))
    np.savez(tmp_path / "planted.npz", **changed)
    compared = compare_dumps(open_dump(path), open_dump(tmp_path / "planted.npz"))
    found = [each for each in compared.differences if each.differs]
    assert len(found) == 1 and compared.first is found[0]
    assert found[0].first == (17, 3) and found[0].differing == 1
    assert ("" if found[0].operation not in OPERATIONS else f"layer.{found[0].layer}.") + found[0].operation == name
    result = run("--dumps", path, tmp_path / "planted.npz")
    assert result.exception is None
    assert "the first at token 17, element 3" in " ".join(result.output.split())
    assert found[0].operation in result.output


def test_the_same_twice_differs_nowhere(ours):
    result = run("--dumps", ours[0], ours[0])
    assert "Nothing differs" in result.output and "what if" not in result.output
    model = lockstep.Model(FOLDER, "bf16")
    found = lockstep.locate(model, model, SEQUENCES)
    assert found.first is None and all(not each.differs for each in found.differences)
    assert np.array_equal(*found.log_probs["none"])
    assert found.mask.sum() == 25 - 3 and found.offsets.tolist() == [0, 4, 5, 25]


def test_statistics_are_numpys():
    rng = np.random.default_rng(1)
    one = rng.normal(size=(300, 40)).astype(np.float32)
    other = one + np.where(rng.random(one.shape) < 0.1, rng.normal(size=one.shape) * 1e-3, 0).astype(np.float32)
    found = lockstep.measure_difference(one, other)
    error = np.abs(one.astype(np.float64) - other)
    assert found.differing == np.count_nonzero(one != other) and found.max_abs == error.max()
    assert found.first == tuple(np.argwhere(one != other)[0])
    assert found.rms == pytest.approx(np.sqrt((error**2).mean()), rel=1e-12)
    assert found.mean_abs == pytest.approx(error.mean(), rel=1e-12)
    assert found.relative_rms == pytest.approx(np.sqrt((error**2).sum() / (one.astype(np.float64)**2).sum()), rel=1e-12)
    halves = lockstep.measure_difference(one.astype(np.float16), one)
    assert halves.differing == np.count_nonzero(one.astype(np.float16).astype(np.float32) != one)
    assert lockstep.measure_difference(one[:, ::1][::2], one[::2]).count == 150 * 40
    with pytest.raises(lockstep.InvalidArgumentError, match=r"second: shape is \[299"):
        lockstep.measure_difference(one, other[:299])


def test_names_of_others_are_understood(ours, tmp_path):
    _, tensors = ours
    width = tensors["layer.0.MLP gate and up"].shape[1] // 2
    theirs = {"tokens": np.array(sum(SEQUENCES, [])), "model.embed_tokens": tensors["embedding"][None],
              "model.norm": tensors["final norm"], "lm_head": tensors["logits"]}
    for layer in range(2):
        ends = {"attention norm": "input_layernorm", "attention": "self_attn.o_proj.input",
                "attention output": "self_attn.o_proj", "residual sum after attention": "post_attention_layernorm.input",
                "MLP norm": "post_attention_layernorm", "MLP activation": "mlp.down_proj.input", "MLP down": "mlp.down_proj"}
        for name, module in ends.items():
            theirs[f"model.layers.{layer}.{module}"] = tensors[f"layer.{layer}.{name}"]
        theirs[f"model.layers.{layer}"] = tensors[f"layer.{layer}.residual sum after the MLP"]
        wide = tensors[f"layer.{layer}.MLP gate and up"]
        theirs[f"model.layers.{layer}.mlp.gate_proj"], theirs[f"model.layers.{layer}.mlp.up_proj"] = np.split(wide, [width], 1)
        theirs[f"model.layers.{layer}.self_attn.qkv_proj"] = tensors[f"layer.{layer}.attention projection"]
    theirs["visual.blocks.0"] = np.zeros((2, 2), np.float32)
    np.savez(tmp_path / "theirs.npz", **theirs)
    compared = compare_dumps(open_dump(ours[0]), open_dump(tmp_path / "theirs.npz"))
    assert compared.first is None and len(compared.differences) == 3 + 2 * 10
    assert len(compared.skipped) == 3  # queries, keys and values of two layers; what is no operation
    assert any("queries, keys and values: only in" in line for line in compared.skipped)
    assert any("visual.blocks.0" in line for line in compared.skipped)


def test_bfloat16_and_halves_are_read_exactly(tmp_path):
    values = np.array([[1.5, -2.25, 0.0, 3e38]], np.float32)
    upper = (values.view(np.uint32) >> 16).astype(np.uint16)
    exact = (upper.astype(np.uint32) << 16).view(np.float32)
    path = save(tmp_path / "b.safetensors", {"embedding": upper, "logits": values.astype(np.float64)})
    dump = open_dump(path)
    assert np.array_equal(dump.read((-1, "embedding")), exact)
    assert dump.read((0, "logits")).dtype == np.float64


def test_what_cannot_be_compared_is_listed(ours, tmp_path):
    path, tensors = ours
    changed = dict(tensors)
    del changed["layer.0.attention"]
    changed["layer.1.MLP down"] = changed["layer.1.MLP down"][:, :-1]
    np.savez(tmp_path / "b.npz", **changed)
    result = run("--dumps", path, tmp_path / "b.npz")
    assert "layer.0.attention: only in" in result.output.replace("\n", " ")
    compared = compare_dumps(open_dump(path), open_dump(tmp_path / "b.npz"))
    assert [line.split(":")[0] for line in compared.skipped] == ["layer.0.attention", "layer.1.MLP down"]


def test_other_tokens_are_refused(ours, tmp_path):
    _, tensors = ours
    ids = np.array(sum(SEQUENCES, []))
    ids[6] = 8
    np.savez(tmp_path / "b.npz", tokens=ids, **tensors)
    with pytest.raises(lockstep.BadDataError, match="tokens differ from index 6 on"):
        compare_dumps(open_dump(ours[0]), open_dump(tmp_path / "b.npz"))


def test_damaged_files_are_refused(ours, tmp_path):
    whole = ours[0].read_bytes()
    length, = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8:8 + length])

    def refused(data, match):
        path = tmp_path / "bad.safetensors"
        path.write_bytes(data)
        with pytest.raises(lockstep.LockstepError, match=match):
            dump = open_dump(path)
            for place in dump.places:
                dump.read(place)

    def with_entry(**changes):
        text = json.dumps(header | {"embedding": header["embedding"] | changes}).encode()
        return struct.pack("<Q", len(text)) + text + whole[8 + length:]

    for cut in (0, 3, 8, 20, length):
        refused(whole[:cut], "cut off|no JSON|neither")
    refused(whole[:-1], "do not lie in the file")
    refused(struct.pack("<Q", 2**63) + whole[8:], "neither")
    refused(struct.pack("<Q", 9) + b"[1, 2, 3]", "not an object")
    refused(struct.pack("<Q", 6) + b'{"a":"' + bytes(4), "no JSON")
    refused(struct.pack("<Q", 10 ** 5) + b"[" * 10 ** 5, "no JSON")
    for changes in ({"shape": [-1, 2]}, {"shape": None}, {"shape": [1e3, 2]}, {"data_offsets": [0, 10**15]},
                    {"data_offsets": [5]}, {"dtype": None}, {"shape": [2**62, 2**62]}, {"dtype": "F99"}):
        refused(with_entry(**changes), "tensor 'embedding'")
    rng = np.random.default_rng(2)
    for _ in range(300):
        data = bytearray(whole)
        data[rng.integers(0, 8 + length)] ^= 1 << rng.integers(0, 8)
        (tmp_path / "flip.safetensors").write_bytes(data)
        try:
            dump = open_dump(tmp_path / "flip.safetensors")
            for place in dump.places:
                dump.read(place)
        except lockstep.LockstepError:
            pass


def test_pickles_are_not_read(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.array([print], object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "p.npz", "w") as archive:
        archive.writestr("embedding.npy", buffer.getvalue())
    with pytest.raises(lockstep.BadDataError, match="allow_pickle|pickle"):
        open_dump(tmp_path / "p.npz").read((-1, "embedding"))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "p.npz").read_bytes()[:60])
    with pytest.raises(lockstep.BadDataError):
        open_dump(tmp_path / "cut.npz")


def log_of(path):
    with lockstep.LogWriter(path) as writer:
        for index, tokens in enumerate(SEQUENCES):
            zeros = [-1.0] * len(tokens)
            writer.append(id=index, rollout=zeros, trainer=zeros, token_ids=tokens)
    return path


def test_two_recipes(tmp_path):
    log = log_of(tmp_path / "log.lockstep")
    report = tmp_path / "where.html"
    result = run(FOLDER, "--trainer", "bf16", "--rollout", "activations=fp16,logits=fp16", "--tokens", log, "--json",
                 "--fp32-layers", "1-", "--fp32-layers", "0", "--html", report)
    found = json.loads(result.stdout)
    assert found["first"]["operation"] == "embedding" and found["differences"][0]["rows"] == 25
    swaps = {row["name"]: row for row in found["swaps"]}
    assert swaps["heads alone differ"]["k3"] < swaps["as they are"]["k3"]
    assert {"fp32: layer 1 on, head too", "fp32: layer 0"} < set(swaps)
    assert 0 < found["head_share"] < 0.5
    text = report.read_text()
    assert "Where two engines part" in text and "<svg" in text and "prefers-color-scheme: dark" in text
    assert run(FOLDER, "--trainer", "bf16", "--rollout", "bf16", "--tokens", log, "--html", report).exception is None
    only = run(FOLDER, "--trainer", "bf16", "--rollout", "bf16-fp32head", "--fp32-layers", "none")
    assert "First divergent operation: log-probs" in only.output and "fp32: " not in only.output
    assert "fp32 logits on both sides would make KL 0." in only.output.replace("\n", " ")


def test_a_page_shows_what_a_file_says_as_text(ours, tmp_path):
    path, tensors = ours
    np.savez(tmp_path / "b.npz", **{"<script>": tensors["embedding"], "embedding": tensors["embedding"] + 1})
    html = page(of_dumps("two", "<a>", "b", compare_dumps(open_dump(path), open_dump(tmp_path / "b.npz"))))
    assert "<script>" not in html and "&lt;script&gt;" in html and "&lt;a&gt;" in html
    assert "more than rounding makes" in html


def test_every_operation_has_a_hint():
    assert {"embedding", *OPERATIONS, "final norm", "logits", "log-probs"} == set(HINTS)


def test_misuse_is_told_in_one_line(tmp_path, ours):
    log = log_of(tmp_path / "log.lockstep")
    for arguments, words in (
            ((), "give a MODEL"), ((FOLDER,), "both --trainer and --rollout"),
            ((FOLDER, "--trainer", "bf17", "--rollout", "bf16"), "'bf17' is not known"),
            ((FOLDER, "--trainer", "bits=bf16", "--rollout", "bf16"), "'bits' is no part"),
            ((FOLDER, "--dumps", ours[0], ours[0]), "give no MODEL"),
            ((FOLDER, "--trainer", "bf16", "--rollout", "fp16", "--fp32-layers", "7"), "layers 0 to 1"),
            ((FOLDER, "--trainer", "bf16", "--rollout", "fp16", "--fp32-layers", "x"), "give a layer as"),
            ((FOLDER, "--trainer", "bf16", "--dump", tmp_path / "d"), "give --tokens"),
            (("--dumps", ours[0], log), "neither"),
            ((FOLDER, "--trainer", "bf16", "--rollout", "fp16", "--html", log), "not a report")):
        result = run(*arguments)
        assert result.exception is not None and words in str(getattr(result.exception, "message", result.exception))
    target = tmp_path / "d.safetensors"
    assert "25 tokens of 3 sequences" in run(FOLDER, "--trainer", "fp32", "--tokens", log, "--dump", target).output
    assert target.read_bytes() == ours[0].read_bytes()
    assert "exists" in str(run(FOLDER, "--trainer", "fp32", "--tokens", log, "--dump", target).exception)


@pytest.mark.parametrize("family", ["llama_untied", "qwen3_qknorm", "qwen3_moe"])
def test_against_hugging_faces_engine(tmp_path, family):
    """transformers in fp32 parts from ours by the order of sums alone, in every operation that both name."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    pytest.importorskip("safetensors")
    (tmp_path / "tokens.json").write_text(json.dumps(SEQUENCES))
    subprocess.run([sys.executable, ROOT / "examples" / "tools" / "dump_hf.py", MODELS / family,
                    tmp_path / "tokens.json", tmp_path / "hf.safetensors", "--dtype", "float32"], check=True,
                   capture_output=True)
    lockstep.dump(lockstep.Model(MODELS / family, "fp32"), tmp_path / "ours.safetensors", SEQUENCES)
    compared = compare_dumps(open_dump(tmp_path / "ours.safetensors"), open_dump(tmp_path / "hf.safetensors"))
    names = {each.operation for each in compared.differences}
    assert {"embedding", "attention norm", "attention projection", "attention", "attention output", "MLP norm",
            "residual sum after attention", "residual sum after the MLP", "final norm", "logits"} <= names
    assert ("mixture of experts" if family == "qwen3_moe" else "MLP gate and up") in names
    assert not compared.differences[0].differs, "the embedding is copied"
    assert all(each.relative_rms < 2e-5 for each in compared.differences)


def test_the_docs_run(tmp_path, monkeypatch):
    """The block of docs/Locate.md, and the names in its table."""
    text = (ROOT / "docs" / "Locate.md").read_text()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama_untied").symlink_to(FOLDER)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "docs/Locate.md", "exec"), names)  # noqa: S102
    assert names["compared"].first.differs
    assert all(f"`layer.3.{operation}`" in text for operation in OPERATIONS)
