"""`lockstep watch`: steps found by name, the table, the JSON document and the exit status."""

import json
import math

import numpy as np
import pytest
from click.testing import CliRunner
from rollouts import sequence, write

import lockstep
from lockstep.commands import commands


def run(*arguments, status=0):
    result = CliRunner().invoke(commands, ["watch", *map(str, arguments)])
    assert result.exit_code == status, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def write_step(path, rng, scale, sequences=4, length=100, steps=(0,)):
    """One rank's file of a step, or of several, with Gaussian noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(sequences * len(steps)):
        rollout = np.full(length, -1, np.float32)
        trainer = (rollout + scale * rng.standard_normal(length)).astype(np.float32)
        rows.append(sequence(loss_mask=[True] * length, token_ids=[1] * length, inference_logprobs=rollout.tolist(),
                             trainer_logprobs=trainer.tolist(), step=steps[index // sequences]))
    write(path, *rows)


@pytest.fixture(scope="module")
def drifting(tmp_path_factory):
    """90 steps, two ranks each; |d| doubles every 10 steps from step 60 on."""
    folder, rng = tmp_path_factory.mktemp("run") / "token_exports", np.random.default_rng(3)
    for step in range(90):
        for rank in range(2):
            write_step(folder / f"step_{step}" / f"rank_{rank}.jsonl", rng, 0.03 * 2 ** (max(step - 60, 0) / 10))
    return folder


def test_an_alarm_is_told_and_exits_3(drifting):
    text = run(drifting, status=3).output
    assert "ALARM at step 6" in text and "has left its floor since about step 6" in text
    assert "learning" in text and "times in 1,000 steps" in text


def test_the_document_is_what_the_monitor_says(drifting):
    document = json.loads(run(drifting, "--json", status=3).stdout)
    assert document["schema"] == "lockstep-watch/1" and document["alarmed"] is True
    assert [each["step"] for each in document["steps"]] == list(range(90))
    (alarm,) = document["alarms"]
    assert 60 < alarm["step"] < 70 and alarm["last_step"] == 89 and 58 <= alarm["since_step"] <= alarm["step"]
    assert alarm["lowest_false_alarms_per_1000"] == 0.1 < alarm["false_alarms_per_1000"] <= 1
    monitor = lockstep.Monitor()
    for each in document["steps"]:
        columns = {"trainer_logprobs": [], "inference_logprobs": []}
        for rank in range(2):
            for line in (drifting / f"step_{each['step']}" / f"rank_{rank}.jsonl").read_text().splitlines():
                for name, values in columns.items():
                    values.append(np.array(json.loads(line)[name], np.float32))
        found = monitor.update(each["step"], lockstep.mismatch(columns["trainer_logprobs"], columns["inference_logprobs"]))
        assert found.level == each["level"] and found.score == each["score"]
        assert each["floor"] is None if math.isnan(found.floor) else each["floor"] == found.floor


def test_steps_before_the_growth_are_quiet(drifting):
    quiet = [drifting / f"step_{step}" for step in range(60)]
    assert "No alarm in 60 steps" in run(*quiet).output
    assert "Still learning the floor: 20 more steps" in run(*quiet[:20]).output
    assert run(*quiet, "--all").output.count(" ok ") >= 15


def test_a_reset_learns_anew(drifting):
    output = run(drifting, "--reset-at", 60).output
    assert "Still learning the floor: 10 more steps" in output


def test_one_log_of_all_steps(tmp_path):
    rng = np.random.default_rng(0)
    file = tmp_path / "run.jsonl"
    write_step(file, rng, 0.02, steps=(3, 4, 7, 9))
    steps = json.loads(run(file, "--json").stdout)["steps"]
    assert [each["step"] for each in steps] == [3, 4, 7, 9] and steps[-1]["steps_to_learn"] == 36


def test_a_log_need_not_be_sorted_by_step(tmp_path):
    file = tmp_path / "run.jsonl"
    write_step(file, np.random.default_rng(0), 0.02, steps=(3, 5, 4, 9))
    steps = run(file, "--json").stdout
    lines = file.read_text().splitlines(keepends=True)
    write(file, *lines[::-1])
    assert run(file, "--json").stdout == steps and [each["step"] for each in json.loads(steps)["steps"]] == [3, 4, 5, 9]


def test_processes_change_nothing(drifting, tmp_path):
    steps = [drifting / f"step_{step}" for step in range(52, 75)]
    expected = run(*steps, "--json").stdout
    assert run(*steps, "--json", "--processes", 3).stdout == expected
    file = tmp_path / "run.jsonl"
    write_step(file, np.random.default_rng(0), 0.02, steps=(3, 5, 4, 9))
    assert run(file, "--json", "--processes", 2).stdout == run(file, "--json").stdout


def test_files_in_order_where_nothing_has_a_step(tmp_path):
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{letter}.jsonl" for letter in "abcd"]
    for file in files:
        write_step(file, rng, 0.02, steps=(-1,))
    steps = json.loads(run(*files, "--json").stdout)["steps"]
    assert [each["step"] for each in steps] == [0, 1, 2, 3]


def test_exactly_equal_policies(tmp_path):
    rng = np.random.default_rng(0)
    for step in range(45):
        write_step(tmp_path / f"step_{step}.jsonl", rng, 0.0 if step < 44 else 1e-5)
    output = run(*sorted(tmp_path.iterdir()), status=3).output
    assert "ALARM at step 44: the two policies were equal to the bit" in output and "never" in output
    document = json.loads(run(*tmp_path.iterdir(), "--json", status=3).stdout)
    assert document["alarms"][0]["score"] is None


def test_bad_input_is_one_line_and_2(tmp_path, drifting):
    rng = np.random.default_rng(0)
    write_step(tmp_path / "step_3.jsonl", rng, 0.02)
    write_step(tmp_path / "other.jsonl", rng, 0.02)
    (tmp_path / "step_4.jsonl").write_text("{")
    for arguments, text in (
            ((tmp_path / "step_3.jsonl", tmp_path / "other.jsonl"), "other.jsonl: has no step_N in its name"),
            ((tmp_path / "step_4.jsonl",), "the last line is cut off"),
            ((tmp_path / "nothing.jsonl",), "does not exist"),
            ((drifting, "--false-alarms", "0"), "false_alarms_per_1000 is 0"),
            ((drifting, "--learning-steps", "7"), "learning_steps is 7")):
        output = run(*arguments, status=2).output
        assert text in output and "Traceback" not in output
