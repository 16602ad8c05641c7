"""docs/Logs.md: its snippets run on what the frameworks hold, and what they write is read."""

import json
import re
import types
from pathlib import Path

import numpy as np
import pytest
from log_writers import EXPECTED, ROLLOUTS, chat, read, same, write_prime_rl

from lockstep.logs import columns, gather

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "Logs.md").read_text()
SNIPPETS = {
    re.search(r"def (\w+)|(join_logs|open_log)\(", text)[0].split()[-1].rstrip("("): text
    for text in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
}


def run(name, **variables):
    exec(compile(SNIPPETS[name], f"docs/Logs.md, {name}", "exec"), variables)
    return variables.get(name)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def padded(torch, **names):
    """A framework's padded tensors."""
    out = {}
    for name, values in ROLLOUTS.columns(**names).items():
        out[name] = torch.from_numpy(ROLLOUTS.padded(values, 0))
    return out


def check_padded(folder, step, token_ids=True):
    out = read(folder)
    assert set(out["steps"].tolist()) == {step}
    for name in ("trainer", "rollout", *(["token_ids"] if token_ids else [])):
        np.testing.assert_array_equal(out[name][out["mask"]], EXPECTED[name][EXPECTED["mask"]])


def test_reading(tmp_path, capsys):
    (tmp_path / "outputs" / "token_exports" / "step_7").mkdir(parents=True)
    write_prime_rl(tmp_path / "outputs" / "token_exports" / "step_7" / "rank_0.jsonl")
    run("open_log")
    assert capsys.readouterr().out.startswith("12 float32 float32 8\nprime-rl {} (LogFile(")


def test_verl(torch):
    tensors = padded(
        torch,
        trainer="old_log_probs",
        rollout="rollout_log_probs",
        mask="response_mask",
        token_ids="responses",
    )
    run("export_verl")(types.SimpleNamespace(batch=tensors), 41)
    check_padded("lockstep-logs", 41)


def test_trl(torch):
    run("export_trl")(
        padded(
            torch,
            trainer="old_per_token_logps",
            rollout="sampling_per_token_logps",
            mask="completion_mask",
            token_ids="completion_ids",
        ),
        3,
    )
    check_padded("lockstep-logs", 3)


def test_openrlhf(torch):
    tensors = padded(torch, trainer="action_log_probs", rollout="rollout_log_probs", mask="action_mask")
    run("export_openrlhf")(types.SimpleNamespace(**tensors), 5, rank=1)
    check_padded("lockstep-logs", 5, token_ids=False)


def test_slime(torch):
    columns = ROLLOUTS.columns(
        trainer="log_probs", rollout="rollout_log_probs", mask="loss_masks", token_ids="tokens"
    )
    data = {name: [torch.from_numpy(value) for value in values] for name, values in columns.items()}
    data["tokens"] = [[1, 2, *value.tolist()] for value in data["tokens"]]
    run("export_slime")(data, 6)
    out = read("lockstep-logs")
    same(out, EXPECTED, "trainer", "rollout", "mask", "lengths", "token_ids")
    assert set(out["steps"].tolist()) == {6}


def test_servers_and_joining(tmp_path, capsys):
    save = run("save_answer")
    with open("samples.jsonl", "w") as file:
        for i in range(12):
            save(file, f"q{i}", chat(i), 1.0, "processed_logprobs")
    with open("scores.jsonl", "w") as file:
        for i in reversed(range(12)):
            file.write(
                json.dumps(
                    {
                        "id": f"q{i}",
                        "trainer": ROLLOUTS.trainer[i].tolist(),
                        "token_ids": ROLLOUTS.token_ids[i].tolist(),
                    }
                )
                + "\n"
            )
    variables = {}
    exec(SNIPPETS["join_logs"], variables)
    assert (
        "Agreement(sequences=12, tokens=52, missing=(0, 0), differing=0, checked=True)"
        in capsys.readouterr().out
    )
    log = variables["log"]
    assert log.header["rollout_logprobs_mode"] == "processed_logprobs"
    whole = gather(log)
    assert sorted(whole.trainer.tolist()) == sorted(EXPECTED["trainer"].tolist())


def test_the_table_of_names_is_the_code_s():
    for framework, (trainer, rollout, masks, token_ids) in columns.FRAMEWORKS.items():
        if framework != "prime-rl":
            row = next(line for line in PAGE.splitlines() if line.startswith(f"| {framework} |"))
            for name in (trainer, rollout, masks[0], *token_ids):
                assert f"`{name}`" in row, (framework, name)
