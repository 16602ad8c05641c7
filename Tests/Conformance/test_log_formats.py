"""Every format gives the same log for the same rollouts, whole, cut into batches or into shards."""

import gzip
import json
import tracemalloc

import numpy as np
import pytest
from log_writers import COLUMNS, EXPECTED, ROLLOUTS, WRITERS, read, same, table
from rollouts import write

from lockstep.logs import LogError, open_log

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
parquet = pytest.importorskip("pyarrow.parquet")

@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_log(tmp_path, name):
    path = WRITERS[name](tmp_path / name)
    log = open_log(path, batch_tokens=11)
    out = read(path, log=log)
    same(out, EXPECTED)
    assert log.sides == ("trainer", "rollout") and log.sequences == 12 and log.skipped_lines == 0
    assert len(set(out["ids"].tolist())) == 12
    if "token-rows" not in name and not name.endswith((".npz", ".lockstep")):
        assert out["environments"] == ROLLOUTS.environment
    (file,) = log.files
    assert (file.bytes, file.sequences) == (path.stat().st_size, 12) and len(file.sha256) == 64


@pytest.mark.parametrize("name", WRITERS)
def test_batches_and_shards_are_cuts_of_one_log(tmp_path, name):
    path = WRITERS[name](tmp_path / name)
    whole = read(path)
    for batch_tokens in (1, 7, 10**6):
        batches = list(open_log(path, batch_tokens=batch_tokens))
        same(read(path, batch_tokens=batch_tokens), whole, *COLUMNS, "ids")
        assert all(batch.tokens - np.diff(batch.offsets)[-1] < max(batch_tokens, 1) for batch in batches)
    order = {id_: i for i, id_ in enumerate(whole["ids"].tolist())}
    for parts in (2, 3, 5):
        seen = {}
        for part in range(parts):
            for batch in open_log(path, shard=(part, parts), batch_tokens=5):
                for i in range(batch.sequences):
                    span = slice(batch.offsets[i], batch.offsets[i + 1])
                    assert int(batch.ids[i]) not in seen, "in two shards"
                    seen[int(batch.ids[i])] = (batch.trainer[span], batch.steps[i])
        got = [seen[id_] for id_ in sorted(seen, key=order.__getitem__)]
        np.testing.assert_array_equal(np.concatenate([each[0] for each in got]), whole["trainer"])
        assert [each[1] for each in got] == whole["steps"].tolist()


def test_progress_sees_every_byte(tmp_path):
    for name in ("lockstep.jsonl", "table.parquet", "own.lockstep", "file.arrow", "offsets.npz", "prime-rl.jsonl.gz"):
        path, seen = WRITERS[name](tmp_path / name), []
        list(open_log(path, advance=seen.append))
        assert sum(seen) == path.stat().st_size, name


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_padded_arrays_with_a_mask(tmp_path, save):
    path = tmp_path / "padded.npz"
    save(
        path,
        old_log_probs=ROLLOUTS.padded(ROLLOUTS.trainer, np.nan),
        rollout_log_probs=ROLLOUTS.padded(ROLLOUTS.rollout, np.inf),
        response_mask=ROLLOUTS.padded(ROLLOUTS.mask, False).astype(np.int64),
        responses=ROLLOUTS.padded(ROLLOUTS.token_ids, -1),
        step=np.array(9),
        temperature=np.array(0.5),
    )
    log = open_log(path, batch_tokens=20)
    out = read(path, log=log)
    assert out["lengths"].tolist() == [9] * 12 and out["steps"].tolist() == [9] * 12
    assert log.header == {"temperature": 0.5}
    for name in ("trainer", "rollout", "token_ids"):
        np.testing.assert_array_equal(out[name][out["mask"]], EXPECTED[name][EXPECTED["mask"]])


def test_padded_lists_with_a_mask(tmp_path):
    """[B][T] in JSON and fixed-size lists in Parquet: what padding holds is not read."""
    mask = ROLLOUTS.padded(ROLLOUTS.mask, False)
    columns = {
        "trainer": ROLLOUTS.padded(ROLLOUTS.trainer, np.nan),
        "rollout": ROLLOUTS.padded(ROLLOUTS.rollout, 0),
    }
    rows = [
        {"mask": mask[i].astype(int).tolist()}
        | {name: [None if np.isnan(x) else float(x) for x in value[i]] for name, value in columns.items()}
        for i in range(12)
    ]
    json_path = write(tmp_path / "padded.jsonl", *rows)
    kind = pa.list_(pa.float32(), 9)
    parquet.write_table(
        pa.table(
            {
                "mask": pa.array(list(mask), pa.list_(pa.bool_(), 9)),
                **{name: pa.array(list(value), kind) for name, value in columns.items()},
            }
        ),
        tmp_path / "padded.parquet",
    )
    a, b = read(json_path), read(tmp_path / "padded.parquet", batch_tokens=30)
    same(a, b, "trainer", "rollout", "mask", "lengths")
    np.testing.assert_array_equal(a["trainer"][a["mask"]], EXPECTED["trainer"][EXPECTED["mask"]])


def test_columns_of_any_name(tmp_path):
    names = {"trainer": "lp_a", "rollout": "lp_b", "mask": "keep", "token_ids": "toks"}
    mapping = names | {"step": "n", "id": "who", "environment": "task"}
    records = [
        {"n": ROLLOUTS.steps[i], "who": f"q{i}", "task": ROLLOUTS.environment[i]}
        | {name: values[i].tolist() for name, values in ROLLOUTS.columns(**names).items()}
        for i in range(12)
    ]
    lines = write(tmp_path / "own.jsonl", *records)
    parquet.write_table(pa.Table.from_pylist(records), tmp_path / "own.parquet")
    np.savez(
        tmp_path / "own.npz",
        n=np.array(ROLLOUTS.steps),
        who=np.array([f"q{i}" for i in range(12)]),
        task=np.array(ROLLOUTS.environment),
        lengths=np.array(ROLLOUTS.lengths),
        **{name: np.concatenate(values) for name, values in ROLLOUTS.columns(**names).items()},
    )
    logs = [read(path, columns=mapping) for path in (lines, tmp_path / "own.parquet", tmp_path / "own.npz")]
    for log in logs:
        same(log, EXPECTED)
        assert log["ids"].tolist() == logs[0]["ids"].tolist() and log["environments"] == ROLLOUTS.environment
    with pytest.raises(LogError, match=r"none of|say which columns"):
        open_log(lines)
    with pytest.raises(LogError, match="there is no such column for rollout"):
        list(open_log(lines, columns={"trainer": "lp_a", "rollout": "lp_c"}))


def test_columns_with_dots_in_their_names(tmp_path):
    path = tmp_path / "own.parquet"
    parquet.write_table(table(trainer="policy.train", rollout="policy.sample"), path)
    names = {"trainer": "policy.train", "rollout": "policy.sample"}
    batches = list(open_log(path, columns=names, batch_tokens=20))
    assert len(batches) > 1
    same(read(path, columns=names), EXPECTED)


def test_the_columns_of_another_log_are_not_forced_on_prime_rl(tmp_path):
    """Given columns win over what is recognised: here the entropy stands in for the trainer."""
    path = write(
        tmp_path / "log.jsonl",
        json.loads(
            json.dumps(
                {
                    "schema_version": 1,
                    "loss_mask": [True],
                    "trainer_logprobs": [-1],
                    "inference_logprobs": [-2],
                    "again": [-3.0],
                }
            )
        ),
    )
    assert read(path, columns={"trainer": "again"})["trainer"].tolist() == [-3.0]
    assert read(path)["trainer"].tolist() == [-1.0]


# What a log says of how it was made


def test_header_and_mixed_recipes(tmp_path):
    def records(*temperatures):
        return [
            record | {"temperature": t, "engine": "vllm"}
            for record, t in zip(ROLLOUTS.records(), temperatures, strict=False)
        ]

    path = write(tmp_path / "one.jsonl", *records(1.0, 1, 1.0))
    log = open_log(path)
    list(log)
    assert log.header == {"temperature": 1.0, "engine": "vllm"}
    mixed = write(tmp_path / "two.jsonl", *records(1.0, 1.0, 0.7))
    table_path = tmp_path / "two.parquet"
    parquet.write_table(pa.Table.from_pylist(records(1.0, 1.0, 0.7)), table_path)
    for path in (mixed, table_path):
        with pytest.raises(LogError, match="the figures would be of several policies at once") as caught:
            list(open_log(path))
        assert caught.value.field == "temperature"
        log = open_log(path, mixed=True)
        assert sum(batch.sequences for batch in log) == 3 and log.header["temperature"] == "mixed"
    assert open_log(mixed, skip_bad=True).__iter__().__next__().sequences == 2


# Memory


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz", "log.parquet", "log.npz", "log.arrow"])
def test_memory_does_not_grow_with_the_log(tmp_path, name):
    """Reading twenty times as much takes no more: what is held is a batch."""
    random = np.random.default_rng(3)

    def make(path, sequences, length=500):
        values = np.float32(-random.exponential(1, (sequences, length)))
        if path.suffix == ".npz":
            np.savez_compressed(path, trainer=values, rollout=values)
        elif path.suffix in (".parquet", ".arrow"):
            kind = pa.list_(pa.float32())
            whole = pa.table({name: pa.array(list(values), kind) for name in ("trainer", "rollout")})
            if path.suffix == ".parquet":
                parquet.write_table(whole, path, row_group_size=64)
            else:
                with pa.ipc.new_file(path, whole.schema) as writer:
                    writer.write_table(whole, max_chunksize=64)
        else:
            line = json.dumps({"trainer": values[0].tolist(), "rollout": values[0].tolist()}) + "\n"
            with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as file:
                file.writelines([line] * sequences)
        return path

    def peak(path):
        pool = pa.default_memory_pool()
        tracemalloc.start()
        held, tokens = 0, 0
        for batch in open_log(path, batch_tokens=20_000):
            held = max(held, pool.bytes_allocated())
            tokens += batch.tokens
        highest = tracemalloc.get_traced_memory()[1] + held
        tracemalloc.stop()
        return highest, tokens

    small, tokens = peak(make(tmp_path / name, 100))
    folder = tmp_path / "large"
    folder.mkdir()
    large, more = peak(make(folder / name, 2000))
    assert more == 20 * tokens == 1_000_000
    assert large < 1.25 * small + 200_000, (small, large)
    assert large < more * 8, "less than the log's own log-probs"
