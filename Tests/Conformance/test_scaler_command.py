"""`lockstep scaler`: replays of recorded gradients, their table, JSON and page."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner

import lockstep
from lockstep.commands import commands


def run(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(commands, ["scaler", *map(str, arguments)], env={"COLUMNS": "120"})
    return result.exit_code, result.output


@pytest.fixture
def series(tmp_path):
    """A run whose gradients shrink, with spikes; and quantiles of which a known part becomes 0."""
    rng = np.random.default_rng(1)
    steps = 3000
    top = np.exp2(-2 - np.arange(steps) / 500 + rng.normal(0, 0.3, steps))
    top[::500] *= 2.0**12
    parts = np.tile([0.0, 2.0**-60, 2.0**-50, 2.0**-5], (steps, 1))
    rows = [{"step": step, "max_abs_grad": float(top[step]), "parts": parts[step].tolist()} for step in range(steps)]
    (tmp_path / "g.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "g.csv").write_text("gmax,parts\n" + "\n".join(
        f'{row["max_abs_grad"]!r},"{row["parts"]}"' for row in rows))
    np.savez(tmp_path / "g.npz", max_abs_grad=top, parts=parts)
    return tmp_path, top


def test_figures(series):
    folder, top = series
    status, text = run(folder / "g.jsonl", "--quantiles", "parts", "--json")
    document = json.loads(text)
    assert status == 0 and document["steps"] == 3000 and document["schema"] == "lockstep-scaler/1"
    for row in document["scalers"]:
        replay = lockstep.replay_loss_scaler(top, row["scaler"])
        assert row["skipped"] == replay.report.skipped and row["scale"] == replay.report.scale
        assert row["wasted"] == row["skipped"] / 3000
        taken = ~replay.skipped
        assert row["unused_bits"] == pytest.approx(np.log2(65504 / (top * replay.scales))[taken].mean())
        fp16 = np.float16(np.array([2.0**-60, 2.0**-50, 2.0**-5]) * replay.scales[taken][:, None])
        assert row["underflow"] == pytest.approx((fp16 == 0).sum() / (4 * taken.sum()))
    assert set(document["best"]) == {"torch", "deepspeed", "megatron"}
    best = document["best"]["torch"]
    tried = {each: lockstep.replay_loss_scaler(top, "torch", growth_interval=each)
             for each in (50, 100, 200, 400, 1000, 2000, 4000)}
    unused = {each: np.log2(65504 / (top * found.scales))[~found.skipped].mean() for each, found in tried.items()
              if found.report.skipped <= 30}
    assert best["growth_interval"] == min(unused, key=unused.get)
    # Without any share to waste, the one that skips least.
    _, text = run(folder / "g.jsonl", "--most-skipped", 0, "--json", "--scaler", "torch")
    fewest = min(found.report.skipped for found in tried.values())
    assert fewest > 0 and json.loads(text)["best"]["torch"]["skipped"] == fewest


def test_every_format_gives_the_same(series):
    folder, _ = series
    first = run(folder / "g.jsonl", "--quantiles", "parts", "--json")
    assert first[0] == 0
    assert run(folder / "g.csv", "--maxima", "gmax", "--quantiles", "parts", "--json") == first
    assert run(folder / "g.npz", "--quantiles", "parts", "--json") == first


def test_table_and_page(series):
    folder, _ = series
    page = folder / "page.html"
    status, text = run(folder / "g.jsonl", "--html", page)
    assert status == 0 and "3,000 steps" in text and "Underflow was not told" in text
    assert re.search(r"torch, best +\d", text) and "paper" in text
    html = page.read_text()
    assert html.count("<svg") == 7 and "prefers-color-scheme: dark" in html and "http" not in re.sub(r'xmlns[^>]*', "", html)
    assert run(folder / "g.jsonl", "--html", page)[0] == 0  # ours: replaced
    page.write_text("not ours")
    assert run(folder / "g.jsonl", "--html", page)[0] == 2 and page.read_text() == "not ours"


def test_an_alarm_is_never_silent(tmp_path):
    (tmp_path / "g.csv").write_text("max_abs_grad\n" + "nan\n" * 40)
    status, text = run(tmp_path / "g.csv")
    assert status == 0 and "ALARM: torch" in text and "ALARM: deepspeed" in text


@pytest.mark.parametrize("name, content, arguments, word", [
    ("g.jsonl", "{", (), "line 1"), ("g.jsonl", "[]", (), "line 1"), ("g.jsonl", '{"x": 1}', (), "max_abs_grad"),
    ("g.jsonl", '{"max_abs_grad": "a"}', (), "not a number"), ("g.jsonl", '{"max_abs_grad": -1}', (), "step 0"),
    ("g.jsonl", "", (), "no steps"), ("g.csv", "a,b\n1,2\n", (), "a, b"), ("g.npz", "text", (), "g.npz"),
    ("g.jsonl", '{"max_abs_grad": 1, "q": 2}', ("--quantiles", "q"), "list of magnitudes"),
    ("g.jsonl", '{"max_abs_grad": 1, "q": [1]}\n{"max_abs_grad": 1, "q": []}', ("--quantiles", "q"), "as many"),
    ("g.jsonl", '{"max_abs_grad": 1}', ("--initial-scale", "0"), "initial_scale"),
])
def test_bad_input(tmp_path, name, content, arguments, word):
    (tmp_path / name).write_text(content)
    status, text = run(tmp_path / name, *arguments)
    assert status == 2 and word in text.replace("\n", " "), text
