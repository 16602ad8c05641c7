"""Lockstep's own log among the formats of `lockstep.logs`: header, damage, a log that is still written."""

import os

import numpy as np
import pytest
from click.testing import CliRunner
from rollouts import write

import lockstep
from lockstep.commands import commands
from lockstep.logs import LogError, gather, join_logs, open_log, own, write_log

SEQUENCES = 5


def write_own(path, sides=("trainer", "rollout"), count=SEQUENCES, **header):
    """Sequences of 1 to `count` tokens; returns the byte where each record begins, and the end of the last."""
    ends = []
    with lockstep.LogWriter(path, **header) as log:
        ends.append(path.stat().st_size)
        for i in range(count):
            values = {"trainer": [-1.25 - t for t in range(i + 1)], "rollout": [-1.0 - t for t in range(i + 1)]}
            log.append(id=100 + i, step=3, token_ids=list(range(i + 1)), **{side: values[side] for side in sides})
            ends.append(path.stat().st_size)
    return ends


def lines(log):
    return [line for batch in log for line in batch.lines.tolist()]


def test_the_header_is_told_by_the_names_of_all_logs(tmp_path):
    path = tmp_path / "log.lockstep"
    write_own(path, model="tiny", trainer_engine="FSDP", trainer_version="2.15", trainer_body="bf16",
              trainer_logits="fp32", rollout_engine="vLLM", rollout_weights="sha:1", temperature=0.5, top_p=1.0,
              top_k=0, log_prob_mode="processed", extra={"host": "a", "recipe": "r2"})
    log = open_log(path)
    assert sum(batch.sequences for batch in log) == SEQUENCES
    assert log.header == {
        "model": "tiny",
        "trainer_engine": "FSDP 2.15",
        "rollout_engine": "vLLM",
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": 0,
        "logprobs_mode": "processed_logprobs",
        "recipe": "r2",
        "trainer_recipe": "body bf16, logits fp32",
    }


HEADERS = {
    "what the header has": {"model": "m", "trainer_engine": "e", "rollout_engine": "f", "temperature": 0.7,
                            "top_p": 0.9, "top_k": 50, "min_p": 0.0, "logprobs_mode": "raw_logprobs"},
    "what it has not": {"engine": "vllm", "recipe": "a", "trainer_recipe": "b", "logprobs_mode": "raw_logits"},
    "numbers it cannot hold": {"temperature": -1.0, "top_p": 2.0, "top_k": -1, "min_p": 7.0},
    "nothing": {},
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_what_a_log_says_of_itself_is_kept(tmp_path, header):
    path = write(tmp_path / "in.jsonl", {"trainer": [-1], "rollout": [-2], **header})
    write_log(open_log(path), tmp_path / "out.lockstep")
    log = open_log(tmp_path / "out.lockstep")
    assert lines(log) == [1] and log.header == header


def test_a_header_that_is_known_at_the_end_is_written(tmp_path):
    """Two temperatures, accepted: "mixed", which the first batch does not know; and nothing else changes."""
    path = write(tmp_path / "in.jsonl", *(
        {"trainer": [-1.0], "rollout": [-2.0], "temperature": t, "token_ids": [3] if t == 1 else None}
        for t in (0.5, 1, 1)))
    options = {"mixed": True, "batch_tokens": 1}
    assert write_log(open_log(path, **options), tmp_path / "out.lockstep") == 3
    log = open_log(tmp_path / "out.lockstep", **options)
    assert [None if batch.token_ids is None else batch.token_ids.tolist() for batch in log] == [None, [3], [3]]
    assert log.header == {"temperature": "mixed"}
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.lockstep"], "no file is left behind"


@pytest.mark.parametrize("side, other", [("trainer", "rollout"), ("rollout", "trainer")])
def test_one_engine_alone_and_joined(tmp_path, side, other):
    write_own(tmp_path / "a.lockstep", [side])
    log = open_log(tmp_path / "a.lockstep")
    (batch,) = log
    assert log.sides == (side,) and log.has_ids and batch.ids.tolist() == [100, 101, 102, 103, 104]
    assert np.isnan(getattr(batch, other)).all() and np.isfinite(getattr(batch, side)).all()
    with pytest.raises(LogError, match=f"has the log-probs of the {side} only"):
        gather(log)
    write_own(tmp_path / "b.lockstep", [other])
    logs = {side: log, other: open_log(tmp_path / "b.lockstep")}
    joined = gather(join_logs(logs["trainer"], logs["rollout"]))
    np.testing.assert_array_equal(joined.trainer, joined.rollout - np.float32(0.25))


def test_sequences_without_the_columns_of_the_others(tmp_path):
    path = tmp_path / "log.lockstep"
    with lockstep.LogWriter(path) as log:
        log.append(id=1, trainer=[-1.0], rollout=[-2.0])
        log.append(id=2, rollout=[-2.0])
        log.append(id=3, token_ids=[5])
        log.append(id=4, rollout=[-2.0])
        log.append(id=5, trainer=[-1.0], rollout=[-2.0], token_ids=[7])
    with pytest.raises(LogError, match="record 2: has the log-probs of rollout, but what comes before has those of"):
        list(open_log(path))
    log = open_log(path, skip_bad=True)
    assert lines(log) == [1, 5] and log.skipped_lines == 3


@pytest.mark.parametrize("record", [1, 3, SEQUENCES])
def test_damage_keeps_what_is_before_and_can_be_skipped(tmp_path, record):
    path = tmp_path / "log.lockstep"
    begins = write_own(path)
    data = bytearray(path.read_bytes())
    data[begins[record] - 1] ^= 1  # the last byte of the record
    path.write_bytes(data)
    got = []
    with pytest.raises(LogError, match=f"byte {begins[record - 1]}, .* is damaged") as caught:
        for batch in open_log(path, batch_tokens=2):
            got += batch.lines.tolist()
    assert (caught.value.file, caught.value.line, caught.value.unit) == (str(path), record, "record")
    assert got == list(range(1, record))
    log = open_log(path, batch_tokens=2, skip_bad=True)
    assert lines(log) == [line for line in range(1, SEQUENCES + 1) if line != record]
    assert log.skipped_lines == 1 and log.files[0].first_skipped == str(caught.value)


def test_two_damages(tmp_path):
    path = tmp_path / "log.lockstep"
    begins = write_own(path)
    data = bytearray(path.read_bytes())
    data[begins[1] + 1] ^= 1  # the beginning of the second record: where it ends is not known
    data[begins[4] - 1] ^= 1
    path.write_bytes(data)
    log = open_log(path, skip_bad=True)
    assert [i for batch in log for i in batch.ids.tolist()] == [100, 102, 104] and log.skipped_lines == 2


def test_a_log_that_is_not_closed_is_read(tmp_path):
    path = tmp_path / "log.lockstep"
    log = lockstep.LogWriter(path)
    log.append(id=1, trainer=[-1.0], rollout=[-2.0])
    reading = open_log(path)
    assert lines(reading) == [1]
    log.append(id=2, trainer=[-1.0], rollout=[-2.0])
    assert lines(reading) == [1, 2]
    log.close()


def test_a_record_that_is_being_written_is_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "log.lockstep"
    begins = write_own(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: begins[3] + 7])
    monkeypatch.setattr(own.time, "sleep", lambda _: path.write_bytes(whole[: begins[4]]))
    assert lines(open_log(path)) == [1, 2, 3, 4]


def test_a_log_whose_writer_died(tmp_path, monkeypatch):
    path = tmp_path / "log.lockstep"
    begins = write_own(path)
    path.write_bytes(path.read_bytes()[: begins[3] + 7])
    monkeypatch.setattr(own.time, "sleep", lambda _: None)
    got = []
    with pytest.raises(LogError, match=f"record 4: was not written whole: 7 bytes .* at byte {begins[3]}: its writer"):
        for batch in open_log(path):
            got += batch.lines.tolist()
    assert got == [1, 2, 3]
    log = open_log(path, skip_bad=True)
    assert lines(log) == [1, 2, 3] and log.skipped_lines == 1 and "7 bytes" in log.files[0].first_skipped


@pytest.mark.parametrize("data, words", [
    (b"\x89LSLOG\r\n\x01", "log"),
    (b"\x89LSLOG\n" + bytes(40), "log"),
])
def test_what_only_begins_as_a_log(tmp_path, data, words):
    path = tmp_path / "log.lockstep"
    path.write_bytes(data)
    with pytest.raises(LogError, match=words) as caught:
        list(open_log(path))
    assert caught.value.file == str(path) and str(caught.value).count(str(path)) == 1
    assert lines(open_log(path, skip_bad=True)) == []


def test_a_folder_of_own_logs(tmp_path):
    for rank in (0, 1):
        with lockstep.LogWriter(tmp_path / f"rank_{rank}.lockstep") as log:
            log.append(id=rank, trainer=[-1.0], rollout=[-2.0])
    (batch,) = open_log(tmp_path)
    assert batch.ids.tolist() == [0, 1] and batch.file_of.tolist() == [0, 1]


def test_the_command_line_reads_and_writes_it(tmp_path):
    write_own(tmp_path / "in.lockstep", count=40)
    for arguments in (["convert", tmp_path / "in.lockstep", "-o", tmp_path / "out.lockstep"],
                      ["diagnose", "--json", tmp_path / "out.lockstep"]):
        result = CliRunner().invoke(commands, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
    assert (tmp_path / "in.lockstep").read_bytes() == (tmp_path / "out.lockstep").read_bytes()
