"""Who a sequence is does not depend on how a log is cut, converted or read."""


import numpy as np
import pytest
from log_writers import COLUMNS, ROLLOUTS, read, same, write_prime_rl
from rollouts import write

from lockstep.logs import LogError, open_log, write_log

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
parquet = pytest.importorskip("pyarrow.parquet")

def test_ids_do_not_depend_on_the_container(tmp_path):
    """The same id of the same step is the same sequence in JSON, Parquet and NPZ, by number and by text."""
    for make in (int, str):
        ids = [make(100 + i) for i in range(12)]
        records = [record | {"id": id_} for record, id_ in zip(ROLLOUTS.records(), ids, strict=True)]
        lines = write(tmp_path / "a.jsonl", *records)
        parquet.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
        np.savez(
            tmp_path / "a.npz",
            id=np.array(ids),
            lengths=ROLLOUTS.lengths,
            step=ROLLOUTS.steps,
            **{name: np.concatenate(values) for name, values in ROLLOUTS.columns().items()},
        )
        seen = [read(path)["ids"].tolist() for path in (lines, tmp_path / "a.parquet", tmp_path / "a.npz")]
        assert seen[0] == seen[1] == seen[2] and len(set(seen[0])) == 12


def test_a_converted_prime_rl_log_keeps_its_ids(tmp_path):
    path = write_prime_rl(tmp_path / "a.jsonl")
    before = read(path)
    for name in ("b.jsonl", "b.jsonl.gz", "b.parquet", "b.arrow", "b.lockstep"):
        assert write_log(open_log(path, batch_tokens=9), tmp_path / name) == 12
        after = read(tmp_path / name)
        same(before, after, *COLUMNS, "ids")
        if not name.endswith(".lockstep"):
            assert before["environments"] == after["environments"]


def test_ids_do_not_depend_on_which_process_reads_which_file(tmp_path):
    paths = [
        write(tmp_path / f"rank_{i}.jsonl", *list(ROLLOUTS.records())[i * 3 : i * 3 + 3]) for i in range(4)
    ]
    whole = read(paths)["ids"].tolist()
    assert len(set(whole)) == 12
    assert [read([paths[i]], file_indices=[i])["ids"].tolist() for i in range(4)] == [
        whole[i * 3 : i * 3 + 3] for i in range(4)
    ]
    halves = [read(paths, shard=(i, 2))["ids"].tolist() for i in range(2)]
    assert halves == [whole[0:3] + whole[6:9], whole[3:6] + whole[9:12]], "whole files where there are enough"


def test_a_prime_rl_id_is_step_rank_and_place_in_the_micro_batch(tmp_path):
    keys = ("step", "rank", "micro_step", "micro_sequence_idx")
    base = {
        "schema_version": 1,
        "loss_mask": [True],
        "trainer_logprobs": [-1],
        "inference_logprobs": [-2],
        **dict.fromkeys(keys, 0),
    }
    variants = [base, *(base | {key: 1} for key in keys), base | {"run_id": "b"}]
    assert len(set(read(write(tmp_path / "a.jsonl", *variants))["ids"].tolist())) == 6


@pytest.mark.parametrize("name", ["lockstep.jsonl", "prime-rl.jsonl", "table.parquet"])
def test_a_sequence_that_is_there_twice(tmp_path, name):
    records = [record | {"id": i} for i, record in enumerate(ROLLOUTS.records())]
    records.insert(9, records[4])
    if name == "prime-rl.jsonl":
        lines = write_prime_rl(tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
        lines.insert(9, lines[4])
        path = write(tmp_path / name, *lines)
    elif name.endswith("jsonl"):
        path = write(tmp_path / name, *records)
    else:
        path = tmp_path / name
        parquet.write_table(pa.Table.from_pylist(records), path)
    for batch_tokens in (3, 10**6):
        batches = iter(open_log(path, batch_tokens=batch_tokens))
        got = []
        with pytest.raises(LogError, match="is the same sequence as one before") as caught:
            for batch in batches:
                got += batch.lines.tolist()
        assert caught.value.line == 10 and got == list(range(1, 10)), "what comes before was given"
        log = open_log(path, skip_bad=True, batch_tokens=batch_tokens)
        assert sum(batch.sequences for batch in log) == 12 and log.skipped_lines == 1
