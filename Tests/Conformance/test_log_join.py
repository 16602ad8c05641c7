"""Joining the logs of two engines, checking that two logs have the same tokens, and `lockstep convert`."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from rollouts import SHIPPED, write

import lockstep
from lockstep.commands import commands
from lockstep.logs import LogError, check_same_tokens, gather, join, join_logs, open_log

COUNT = 20


def rows(side, *, order=None, ids=True, change=None, skip=(), tokens=True):
    """One engine's log of COUNT sequences; the trainer's values are the rollout's minus 0.25."""
    out = []
    for i in order if order is not None else range(COUNT):
        if i in skip:
            continue
        values = [-(i + 1) / 8 - t for t in range(1 + i % 5)]
        record = {"rollout": values} if side == "rollout" else {"trainer": [value - 0.25 for value in values]}
        if ids:
            record["id"] = f"q{i}"
        if tokens:
            record["token_ids"] = [i, *range(100, 100 + i % 5)]
        out.append(record | ((change or {}).get(i, {})))
    return out


def logs(tmp_path, trainer, rollout, **options):
    return (
        open_log(write(tmp_path / "scores.jsonl", *trainer), side="trainer", **options),
        open_log(write(tmp_path / "samples.jsonl", *rollout), **options),
    )


def joined(*arguments, **options):
    log = join_logs(*arguments, **options)
    return log, gather(log)


@pytest.mark.parametrize("batch_tokens", [1, 7, 1000])
@pytest.mark.parametrize("ids", [True, False])
def test_two_logs_are_one(tmp_path, batch_tokens, ids):
    trainer, rollout = logs(
        tmp_path, rows("trainer", ids=ids), rows("rollout", ids=ids), batch_tokens=batch_tokens
    )
    log, whole = joined(trainer, rollout, batch_tokens=batch_tokens)
    assert whole.file_of.tolist() == [0] * COUNT, "the rollout log's"
    assert whole.sequences == COUNT and log.agreement.checked and log.agreement.missing == (0, 0)
    np.testing.assert_array_equal(whole.trainer, whole.rollout - np.float32(0.25))
    assert lockstep.mismatch(whole.trainer, whole.rollout, whole.mask, whole.offsets).k1.value == 0.25
    assert [file.path.rpartition("/")[2] for file in log.files] == ["samples.jsonl", "scores.jsonl"]


def test_the_order_does_not_matter_where_there_are_ids(tmp_path):
    shuffled = np.random.default_rng(0).permutation(COUNT).tolist()
    trainer, rollout = logs(tmp_path, rows("trainer", order=shuffled), rows("rollout"), batch_tokens=6)
    _, whole = joined(trainer, rollout)
    assert sorted(whole.lines.tolist()) == list(range(1, COUNT + 1)), "lines are the rollout log's"
    np.testing.assert_array_equal(whole.trainer, whole.rollout - np.float32(0.25))


def test_an_order_that_cannot_be_held_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(join, "MOST_WAITING", 10)
    trainer, rollout = logs(
        tmp_path, rows("trainer", order=range(COUNT - 1, -1, -1)), rows("rollout"), batch_tokens=3
    )
    with pytest.raises(LogError, match="tokens wait for their other half .* sort one by sequence id"):
        list(join_logs(trainer, rollout))
    trainer, rollout = logs(tmp_path, rows("trainer"), rows("rollout"), batch_tokens=3)
    assert sum(batch.sequences for batch in join_logs(trainer, rollout)) == COUNT


def test_tokens_that_differ_are_named(tmp_path):
    other = {13: {"token_ids": [13, 100, 999, 102]}}
    trainer, rollout = logs(tmp_path, rows("trainer", change=other), rows("rollout"))
    with pytest.raises(LogError, match=r"first at position 2: 999 and 101; both logs must") as caught:
        list(join_logs(trainer, rollout))
    assert "scores.jsonl, line 14 and" in str(caught.value) and "samples.jsonl, line 14 (sequence 13)" in str(
        caught.value
    )


def test_lengths_that_differ_are_named(tmp_path):
    for tokens, words in ((True, "first at position 3: 102 and no token"), (False, "have 4 and 3 tokens")):
        short = {13: {"rollout": [-1, -2, -3]} | ({"token_ids": [13, 100, 101]} if tokens else {})}
        pair = logs(tmp_path, rows("trainer", tokens=tokens), rows("rollout", change=short, tokens=tokens))
        with pytest.raises(LogError, match=words):
            list(join_logs(*pair))


@pytest.mark.parametrize("ids", [True, False])
def test_missing_sequences_are_named_or_counted(tmp_path, ids):
    skipped = (4, 9) if ids else (18, 19)
    pair = logs(tmp_path, rows("trainer", skip=skipped, ids=ids), rows("rollout", ids=ids))
    with pytest.raises(LogError, match="2 sequences of the rollout log are not in the trainer log") as caught:
        list(join_logs(*pair))
    assert f"samples.jsonl, line {skipped[0] + 1}, id" in str(caught.value)
    log, whole = joined(*pair, missing="count")
    assert whole.sequences == COUNT - 2 and log.agreement.missing == (0, 2)
    assert set(range(1, COUNT + 1)) - set(whole.lines.tolist()) == {i + 1 for i in skipped}


def test_a_log_of_both_engines_is_no_half(tmp_path):
    both = open_log(SHIPPED["fp16"])
    with pytest.raises(LogError, match="has the log-probs of both engines"):
        list(join_logs(both, both))


def test_a_duplicated_sequence_is_named(tmp_path):
    pair = logs(tmp_path, rows("trainer"), rows("rollout") + rows("rollout")[3:4])
    with pytest.raises(LogError, match="samples.jsonl, line 21, id: is the same sequence as one before"):
        list(join_logs(*pair))


def test_the_mask_of_a_joined_log_is_both_masks(tmp_path):
    pair = logs(
        tmp_path,
        rows(
            "trainer",
            change={4: {"mask": [0, 1, 1, 1, 1]}}
            | {i: {"mask": [1] * (1 + i % 5)} for i in range(COUNT) if i != 4},
        ),
        rows("rollout"),
    )
    _, whole = joined(*pair)
    assert np.flatnonzero(~whole.mask).tolist() == [whole.offsets[4]]


def test_headers_say_whose_they_are(tmp_path):
    pair = logs(
        tmp_path,
        [record | {"temperature": 1.0, "engine": "fsdp"} for record in rows("trainer")],
        [record | {"temperature": 1.0, "engine": "vllm", "top_p": 0.9} for record in rows("rollout")],
    )
    log, _ = joined(*pair)
    assert log.header == {
        "temperature": 1.0,
        "trainer_engine": "fsdp",
        "rollout_engine": "vllm",
        "rollout_top_p": 0.9,
    }


def test_two_measurements_of_one_run_have_the_same_tokens():
    same = check_same_tokens(open_log(SHIPPED["bf16"]), open_log(SHIPPED["bf16-rollout.fp32-trainer"]))
    assert (same.sequences, same.differing, same.checked) == (96, 0, True)


def test_two_runs_do_not():
    with pytest.raises(LogError, match="differ in their tokens, first at position"):
        check_same_tokens(open_log(SHIPPED["bf16"]), open_log(SHIPPED["fp16"]))
    counted = check_same_tokens(open_log(SHIPPED["bf16"]), open_log(SHIPPED["fp16"]), differing="count")
    assert counted.differing > 0 and counted.sequences + counted.differing == 96


# lockstep convert


def run(*arguments, status=0):
    result = CliRunner().invoke(commands, ["convert", *map(str, arguments)])
    assert result.exit_code == status, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.parquet", "out.arrow", "out.lockstep"])
def test_convert(tmp_path, name):
    if not name.startswith("out.jsonl"):
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    out = tmp_path / name
    assert f"{out}: 96 sequences" in run(SHIPPED["bf16"], "-o", out).stdout
    before, after = (gather(open_log(path)) for path in (SHIPPED["bf16"], out))
    assert (
        before.trainer.tobytes() == after.trainer.tobytes() and before.mask.tobytes() == after.mask.tobytes()
    )
    assert before.token_ids.tobytes() == after.token_ids.tobytes()
    assert "there already; --force" in run(SHIPPED["bf16"], "-o", out, status=2).stderr
    run(SHIPPED["bf16"], "-o", out, "--force")
    assert sorted(path.name for path in tmp_path.iterdir()) == [name], "no file is left behind"


def test_convert_joins(tmp_path):
    write(tmp_path / "scores.jsonl", *rows("trainer", skip=(3,)))
    write(tmp_path / "samples.jsonl", *rows("rollout"))
    arguments = (
        tmp_path / "samples.jsonl",
        "--trainer",
        tmp_path / "scores.jsonl",
        "-o",
        tmp_path / "out.jsonl",
    )
    assert "1 sequences of the rollout log are not in the trainer log" in run(*arguments, status=2).stderr
    assert not (tmp_path / "out.jsonl").exists()
    assert "left out 1 sequences without the trainer's log-probs" in run(*arguments, "--skip-missing").stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == COUNT - 1


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((SHIPPED["bf16"], "-o", "out.xls"), "the name must end in one of"),
        ((SHIPPED["bf16"], "-o", "out.jsonl", "--skip-missing"), "--skip-missing is for --trainer"),
        ((SHIPPED["bf16"], "-o", "out.jsonl", "--column", "pi=x"), "--column pi=x: give ROLE=NAME"),
        ((SHIPPED["bf16"], "-o", "out.jsonl", "--column", "trainer"), "--column trainer: give ROLE=NAME"),
        (
            (SHIPPED["bf16"], "-o", "out.jsonl", "--column", "trainer=nope"),
            "there is no such column for trainer",
        ),
        ((SHIPPED["bf16"], "-o", "out.jsonl", "--format", "pickle"), "Invalid value for '--format'"),
    ],
)
def test_convert_usage(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert words in run(*arguments, status=2).stderr
    assert not any(tmp_path.iterdir())


def test_diagnose_reads_every_format(tmp_path):
    """The same figures from the columns of the user as from prime-rl's."""
    log = gather(open_log(SHIPPED["fp16"]))
    np.savez(
        tmp_path / "run.npz",
        lp=log.trainer,
        rollout_log_probs=log.rollout,
        mask=log.mask,
        offsets=log.offsets,
    )
    document = []
    for arguments in ([tmp_path / "run.npz", "--column", "trainer=lp"], [SHIPPED["fp16"]]):
        result = CliRunner().invoke(commands, ["diagnose", "--json", *map(str, arguments)])
        assert result.exit_code == 0, result.output
        document.append(json.loads(result.stdout)["logs"][0]["mismatch"])
        del document[-1]["max_abs_sequence"]  # an id, which comes from the place in the file
    assert document[0] == document[1] and document[0]["tokens"] == 12013
