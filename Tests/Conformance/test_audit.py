"""The FP16 headroom audit: counts against NumPy's, verdicts, exit statuses."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import lockstep
from conftest import ROOT
from lockstep.commands import commands

MODELS = ROOT / "Tests" / "Vectors" / "models"


def tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file of F32, as the format's description says."""
    data = path.read_bytes()
    size, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    return {name: np.frombuffer(data[8 + size:][slice(*each["data_offsets"])], np.float32).reshape(each["shape"])
            for name, each in header.items()}


def store(folder: Path, weights: dict[str, np.ndarray]) -> None:
    header, parts, at = {}, [], 0
    for name, each in weights.items():
        raw = np.ascontiguousarray(each, np.float32).tobytes()
        header[name] = {"dtype": "F32", "shape": list(each.shape), "data_offsets": [at, at + len(raw)]}
        parts.append(raw)
        at += len(raw)
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))
    (folder / "config.json").write_bytes((MODELS / "llama_untied" / "config.json").read_bytes())


@pytest.fixture
def folder(tmp_path):
    """A model of ours, whose weights a test may change."""
    def make(**changed):
        weights = {name: each.copy() for name, each in tensors(MODELS / "llama_untied" / "model.safetensors").items()}
        for name, value in changed.items():
            weights[name.replace("__", ".")] *= np.float32(value)
        store(tmp_path, weights)
        return tmp_path
    return make


def test_weights_are_counted_as_numpy_counts_them(folder):
    path = folder()
    weights = tensors(path / "model.safetensors")
    odd = weights["model.norm.weight"].copy()
    odd[:8] = [0, 2.0**-14, np.nextafter(np.float32(2.0**-14), np.float32(0)), 2.0**-25,
               np.nextafter(np.float32(2.0**-25), np.float32(1)), 65519, 65520, np.inf]
    store(path, weights | {"model.norm.weight": odd})
    found = {row.name: row for row in lockstep.audit_headroom(path)}
    assert list(found) == sorted(weights)
    for name, values in (weights | {"model.norm.weight": odd}).items():
        size, row = np.abs(values), found[name]
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        assert row.is_weight and row.count == values.size
        assert row.largest == size[np.isfinite(size)].max()
        assert row.subnormal == np.count_nonzero((size > 0) & (size < 2.0**-14))
        assert row.vanishing == np.count_nonzero((halves == 0) & (size > 0))
        assert row.overflowing == np.count_nonzero(np.isinf(halves) & np.isfinite(values))
        assert row.non_finite == np.count_nonzero(~np.isfinite(values))


def test_operations_are_those_of_the_forward_pass(folder):
    rows = [row for row in lockstep.audit_headroom(folder(), [[1, 2, 3], [4, 5]]) if not row.is_weight]
    per_layer = ["attention norm", "attention projection", "queries, keys and values", "attention", "attention output",
                 "residual sum after attention", "MLP norm", "MLP gate and up", "MLP activation", "MLP down",
                 "residual sum after the MLP"]
    assert [(row.layer, row.name) for row in rows] == [
        (-1, "embedding"), *((layer, name) for layer in range(2) for name in per_layer), (2, "final norm")]
    assert all(row.count % 5 == 0 and row.overflowing == row.non_finite == 0 for row in rows)
    weights = tensors(MODELS / "llama_untied" / "model.safetensors")
    assert rows[0].largest == np.abs(weights["model.embed_tokens.weight"][1:6]).max()


def run(*arguments):
    return CliRunner().invoke(commands, ["audit", *map(str, arguments)], standalone_mode=False)


def test_a_model_that_fits(folder):
    result = run(folder())
    assert result.return_value == 0 and "Fits FP16" in result.output and "Only weights" in result.output


def test_what_overflows_is_named(folder, tmp_path):
    log = tmp_path / "log.lockstep"
    with lockstep.LogWriter(log) as writer:
        writer.append(id=1, rollout=[-1.0, -1.0], trainer=[-1.0, -1.0], token_ids=[3, 4])
    path = folder(model__layers__1__mlp__down_proj__weight=1e9)
    result = run(path, "--tokens", log, "--json")
    found = json.loads(result.output)
    assert result.return_value == 1 and not found["fits"] and found["tokens"] == 2
    over = {(row["layer"], row["name"]) for row in found["rows"] if row["overflowing"] and row["kind"] == "activation"}
    assert {(1, "MLP down"), (1, "residual sum after the MLP")} <= over
    assert "MLP down of layer 1" in run(path, "--tokens", log).output


def test_bad_input_is_told_in_one_line(tmp_path, folder):
    result = run(tmp_path)  # an empty folder
    assert result.exception is not None and "config.json" in str(result.exception)
    log = tmp_path / "log.lockstep"
    with lockstep.LogWriter(log) as writer:
        writer.append(id=1, rollout=[-1.0], trainer=[-1.0])
    assert "token ids" in str(run(folder(), "--tokens", log).exception)


def test_gradients_are_those_of_a_trainer(folder):
    path, sequences = folder(), [[1, 2, 3, 4], [5, 6]]
    rows = lockstep.audit_headroom(path, sequences, loss_scale=1024, threads=2)
    trainer = lockstep.Trainer(path)
    trainer.accumulate(sequences, np.full(6, -0.25))
    gradients = trainer.gradients() * np.float32(1024)
    found = {row.name: row for row in rows if row.kind == "weight gradient"}
    assert list(found) == [each.name for each in trainer.parameters]
    for each in trainer.parameters:
        size, row = np.abs(gradients[each.range]), found[each.name]
        assert (row.count, row.largest) == (size.size, size.max())
        assert row.subnormal == np.count_nonzero((size > 0) & (size < 2.0**-14))
    ops = [row for row in rows if row.kind == "gradient"]
    # The gradient of the residual stream at the bottom is that of the embedding's rows.
    assert (ops[-1].layer, ops[-1].name) == (0, "residual sum after attention")
    assert ops[-1].largest == found["model.embed_tokens.weight"].largest
    assert {row.count for row in ops if row.name == "MLP norm"} == {6 * 64}
    # On one thread or several, and at another power of two, the same.
    for scale, threads in ((1024, 1), (1, 3)):
        again = [row for row in lockstep.audit_headroom(path, sequences, loss_scale=scale, threads=threads)
                 if row.kind == "gradient"]
        assert [(row.name, row.layer, row.count, row.largest * 1024 / scale) for row in again] == [
            (row.name, row.layer, row.count, row.largest) for row in ops]
    with pytest.raises(lockstep.InvalidArgumentError, match="tokens"):
        lockstep.audit_headroom(path, loss_scale=1024)
    with pytest.raises(lockstep.InvalidArgumentError, match="loss_scale"):
        lockstep.audit_headroom(path, sequences, loss_scale=-1)


def test_the_largest_safe_loss_scale(folder, tmp_path):
    log = tmp_path / "log.lockstep"
    with lockstep.LogWriter(log) as writer:
        writer.append(id=1, rollout=[-1.0] * 5, trainer=[-1.0] * 5, token_ids=[3, 4, 9, 20, 7])
    path = folder()
    result = run(path, "--tokens", log, "--backward", "--json")
    found = json.loads(result.output)
    largest = max(row["largest"] for row in found["rows"] if "gradient" in row["kind"]) / found["loss_scale"]
    scale = found["largest_loss_scale"]
    assert result.return_value == 0 and found["fits"] and scale * largest <= 65504 < 2 * scale * largest
    # At that scale a trainer in fp16 goes through, at 64 times it does not.
    for times, overflows in ((1, 0), (64, 1)):
        trainer = lockstep.Trainer(path, "fp16")
        done = trainer.accumulate([[3, 4, 9, 20, 7]], np.full(5, -0.25), loss_scale=times * scale)
        assert done.overflows == overflows
    text = run(path, "--tokens", log, "--backward", "--loss-scale", 64 * scale)
    assert "The largest safe loss scale is" in text.output and "would overflow: " in text.output
    assert text.return_value == 0
    assert "tokens" in str(run(path, "--backward").exception)
