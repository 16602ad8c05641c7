"""Every format gives the same log for the same rollouts, whole, cut into batches or into shards."""

import base64
import gzip
import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rollouts import SHIPPED, write

import lockstep
from lockstep.logs import LogError, gather, open_log, write_log

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
parquet = pytest.importorskip("pyarrow.parquet")

COLUMNS = ("trainer", "rollout", "mask", "lengths", "steps", "token_ids")


def read(path, **options):
    """A log as one array a column."""
    log = options.pop("log", None) or open_log(path, **options)
    batches = list(log)
    assert batches, "a log of no batches"
    out = {name: np.concatenate([getattr(batch, name) for batch in batches]) for name in COLUMNS[:3]}
    out["lengths"] = np.concatenate([np.diff(batch.offsets) for batch in batches])
    out["steps"] = np.concatenate([batch.steps for batch in batches])
    out["ids"] = np.concatenate([batch.ids for batch in batches])
    out["environments"] = [batch.environments[i] for batch in batches for i in batch.environment_of]
    if all(batch.token_ids is not None for batch in batches):
        out["token_ids"] = np.concatenate([batch.token_ids for batch in batches])
    return out


def same(a, b, *names):
    for name in names or COLUMNS:
        np.testing.assert_array_equal(a[name], b[name], name)
        assert np.asarray(a[name]).dtype == np.asarray(b[name]).dtype, name


class Rollouts:
    """Twelve sequences of 1 to 9 tokens, made once: what every format below writes."""

    def __init__(self):
        random = np.random.default_rng(5)
        self.lengths = [3, 1, 9, 4, 4, 2, 7, 5, 1, 8, 6, 2]
        self.steps = [7] * 6 + [8] * 6
        self.rollout = [np.float32(-random.exponential(1.5, n)) for n in self.lengths]
        self.trainer = [np.float32(x + random.normal(0, 0.05, len(x))) for x in self.rollout]
        self.mask = [np.arange(n) >= (n > 3) for n in self.lengths]
        self.token_ids = [random.integers(0, 50_000, n).astype(np.int32) for n in self.lengths]
        self.environment = ["math", "code"] * 6

    def __len__(self):
        return len(self.lengths)

    def columns(self, trainer="trainer", rollout="rollout", mask="mask", token_ids="token_ids"):
        return {trainer: self.trainer, rollout: self.rollout, mask: self.mask, token_ids: self.token_ids}

    def records(self, **names):
        columns = self.columns(**names)
        for i in range(len(self)):
            record = {"step": self.steps[i], "env_name": self.environment[i]}
            yield record | {name: values[i].tolist() for name, values in columns.items()}

    def padded(self, values, fill):
        out = np.full((len(self), max(self.lengths)), fill, values[0].dtype)
        for row, value in zip(out, values, strict=True):
            row[: len(value)] = value
        return out

    def expected(self):
        return {
            "trainer": np.concatenate(self.trainer),
            "rollout": np.concatenate(self.rollout),
            "mask": np.concatenate(self.mask),
            "lengths": np.array(self.lengths, np.int64),
            "steps": np.array(self.steps, np.int64),
            "token_ids": np.concatenate(self.token_ids),
        }


ROLLOUTS = Rollouts()
EXPECTED = ROLLOUTS.expected()


def write_prime_rl(path):
    return write(
        path,
        *(
            {
                "schema_version": 1,
                "rank": 0,
                "micro_step": i // 4,
                "micro_sequence_idx": i % 4,
                "export_sequence_idx": i,
            }
            | record
            | {"entropy": [None] * ROLLOUTS.lengths[i], "mismatch_kl": None}
            for i, record in enumerate(
                ROLLOUTS.records(trainer="trainer_logprobs", rollout="inference_logprobs", mask="loss_mask")
            )
        ),
    )


def write_batch_line(path):
    """A line a step, as a trainer writes `tensor.tolist()`: [B][T]."""
    records = list(
        ROLLOUTS.records(
            trainer="old_log_probs", rollout="rollout_log_probs", mask="response_mask", token_ids="responses"
        )
    )
    lines = []
    for step in (7, 8):
        chosen = [record for record in records if record["step"] == step]
        lines.append(
            {"step": step}
            | {name: [record[name] for record in chosen] for name in records[0] if name != "step"}
        )
    return write(path, *lines)


def write_document(path):
    path.write_text(json.dumps(list(ROLLOUTS.records()), indent=1))
    return path


def write_slime(path):
    """Tokens begin with the prompt; the log-probs are those of the response."""
    return write(
        path,
        *(
            record | {"tokens": [1, 2, 3, *record["tokens"]], "response_length": len(record["log_probs"])}
            for record in ROLLOUTS.records(
                trainer="log_probs", rollout="rollout_log_probs", mask="loss_mask", token_ids="tokens"
            )
        ),
    )


def table(list_of=pa.list_, float_type=None, **names):
    columns = {}
    for name, values in ROLLOUTS.columns(**names).items():
        kind = pa.from_numpy_dtype(values[0].dtype)
        kind = float_type or kind if kind == pa.float32() else kind
        columns[name] = pa.array([value.tolist() for value in values], list_of(kind))
    columns["step"] = pa.array(ROLLOUTS.steps, pa.int32())
    columns["env_name"] = pa.array(ROLLOUTS.environment).dictionary_encode()
    return pa.table(columns)


def write_parquet(path, **options):
    names = {
        key: options.pop(key) for key in ("list_of", "float_type", "trainer", "rollout") if key in options
    }
    parquet.write_table(table(**names), path, **options)
    return path


def write_ipc(path, make=pa.ipc.new_file, rows=5):
    whole = table()
    with make(path, whole.schema) as writer:
        for batch in whole.to_batches(max_chunksize=rows):
            writer.write_batch(batch)
    return path


def write_token_rows(path, row_group_size=4):
    """A token a row, with the sequence's number within its step."""
    count = np.array(ROLLOUTS.lengths)
    parquet.write_table(
        pa.table(
            {
                "sequence_id": np.repeat(np.arange(len(count)), count),
                "position": np.concatenate([np.arange(n) for n in count]),
                "step": np.repeat(ROLLOUTS.steps, count),
                **{name: np.concatenate(values) for name, values in ROLLOUTS.columns().items()},
            }
        ),
        path,
        row_group_size=row_group_size,
    )
    return path


def write_npz(path, kind, save=np.savez):
    columns = ROLLOUTS.columns(
        trainer="old_log_probs", rollout="rollout_log_probs", mask="response_mask", token_ids="responses"
    )
    packed = {name: np.concatenate(values) for name, values in columns.items()}
    offsets = np.concatenate([[0], np.cumsum(ROLLOUTS.lengths)])
    where = {
        "offsets": {"offsets": offsets},
        "cu_seqlens": {"cu_seqlens": offsets.astype(np.int32)},
        "lengths": {"lengths": np.array(ROLLOUTS.lengths)},
    }[kind]
    save(path, **packed, **where, step=np.array(ROLLOUTS.steps))
    return path


def write_own(path):
    path.unlink(missing_ok=True)
    with lockstep.LogWriter(path) as log:
        for i in range(len(ROLLOUTS)):
            columns = {name: values[i] for name, values in ROLLOUTS.columns().items()}
            log.append(id=i, step=ROLLOUTS.steps[i], **columns)
    return path


WRITERS = {
    "prime-rl.jsonl": write_prime_rl,
    "prime-rl.jsonl.gz": write_prime_rl,
    "lockstep.jsonl": lambda path: write(path, *ROLLOUTS.records()),
    "verl.jsonl": lambda path: write(
        path,
        *ROLLOUTS.records(
            trainer="old_log_probs", rollout="rollout_log_probs", mask="response_mask", token_ids="responses"
        ),
    ),
    "trl.jsonl": lambda path: write(
        path,
        *ROLLOUTS.records(
            trainer="old_per_token_logps",
            rollout="sampling_per_token_logps",
            mask="completion_mask",
            token_ids="completion_ids",
        ),
    ),
    "nemo-rl.jsonl": lambda path: write(
        path,
        *ROLLOUTS.records(
            trainer="prev_logprobs", rollout="generation_logprobs", mask="token_mask", token_ids="input_ids"
        ),
    ),
    "areal.jsonl": lambda path: write(
        path,
        *ROLLOUTS.records(trainer="prox_logp", rollout="logprobs", mask="loss_mask", token_ids="input_ids"),
    ),
    "skyrl.jsonl": lambda path: write(
        path,
        *ROLLOUTS.records(
            trainer="action_log_probs", rollout="rollout_logprobs", mask="loss_mask", token_ids="response_ids"
        ),
    ),
    "openrlhf.jsonl": lambda path: write(
        path, *ROLLOUTS.records(trainer="action_log_probs", rollout="rollout_log_probs", mask="action_mask")
    ),
    "slime.jsonl": write_slime,
    "batch-a-line.jsonl": write_batch_line,
    "document.json": write_document,
    "table.parquet": write_parquet,
    "groups.parquet": lambda path: write_parquet(path, row_group_size=3),
    "large.parquet": lambda path: write_parquet(path, list_of=pa.large_list),
    "double.parquet": lambda path: write_parquet(path, float_type=pa.float64()),
    "verl.parquet": lambda path: write_parquet(path, trainer="old_log_probs", rollout="rollout_log_probs"),
    "token-rows.parquet": write_token_rows,
    "file.arrow": write_ipc,
    "stream.arrows": lambda path: write_ipc(path, pa.ipc.new_stream),
    "own.lockstep": write_own,
    "offsets.npz": lambda path: write_npz(path, "offsets"),
    "cu-seqlens.npz": lambda path: write_npz(path, "cu_seqlens", np.savez_compressed),
    "lengths.npz": lambda path: write_npz(path, "lengths"),
}


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


# Identity


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


# Answers of servers: one engine's log-probs


def chat(i, *, ids=True):
    return {
        "id": f"chatcmpl-{i}",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "x"},
                "finish_reason": "stop",
                "logprobs": {
                    "content": [
                        {"token": f"t{t}", "logprob": float(p), "bytes": [116], "top_logprobs": []}
                        for t, p in zip(ROLLOUTS.token_ids[i], ROLLOUTS.rollout[i], strict=True)
                    ]
                },
                **({"token_ids": ROLLOUTS.token_ids[i].tolist()} if ids else {}),
            }
        ],
        "usage": {"prompt_tokens": 3},
    }


def completion(i):
    return {
        "id": f"cmpl-{i}",
        "object": "text_completion",
        "model": "m",
        "choices": [
            {
                "index": 0,
                "text": "x",
                "logprobs": {
                    "text_offset": list(range(ROLLOUTS.lengths[i])),
                    "token_logprobs": ROLLOUTS.rollout[i].tolist(),
                    "tokens": [f"token_id:{t}" for t in ROLLOUTS.token_ids[i]],
                    "top_logprobs": None,
                },
            }
        ],
    }


def prompt_logprobs(i):
    """A prompt of one token and the scores of what follows it, with the likeliest other token beside each."""
    entries = [
        {
            str(t): {"logprob": float(p), "rank": 2, "decoded_token": "x"},
            "1": {"logprob": -0.1, "rank": 1, "decoded_token": "y"},
        }
        if t != 1
        else {"1": {"logprob": float(p), "rank": 1, "decoded_token": "y"}}
        for t, p in zip(ROLLOUTS.token_ids[i], ROLLOUTS.rollout[i], strict=True)
    ]
    return {
        "id": f"p-{i}",
        "prompt_token_ids": [1, *ROLLOUTS.token_ids[i].tolist()],
        "prompt_logprobs": [None, *entries],
    }


def trl_generate():
    return {
        "prompt_ids": [[1]] * 12,
        "completion_ids": [ids.tolist() for ids in ROLLOUTS.token_ids],
        "logprobs": [[[float(p)] for p in row] for row in ROLLOUTS.rollout],
        "logprob_token_ids": [[[int(t)] for t in row] for row in ROLLOUTS.token_ids],
    }


def trl_top_k():
    """Two log-probs a token: the sampled one is second."""
    return {
        "prompt_ids": [[1]] * 12,
        "completion_ids": [ids.tolist() for ids in ROLLOUTS.token_ids],
        "logprobs": [[[-0.5, float(p)] for p in row] for row in ROLLOUTS.rollout],
        "logprob_token_ids": [[[60_000, int(t)] for t in row] for row in ROLLOUTS.token_ids],
    }


def trl_binary():
    def pack(values, dtype, fill):
        return base64.b64encode(ROLLOUTS.padded(values, fill).astype(dtype).tobytes()).decode()

    return {
        "shape": [12, 9, 1],
        "completion_lengths": ROLLOUTS.lengths,
        "logprobs_b64": pack(ROLLOUTS.trainer, "<f4", -np.inf),
        "token_ids_b64": pack(ROLLOUTS.token_ids, "<i4", 0),
        "actual_logprobs_b64": pack(ROLLOUTS.rollout, "<f4", -np.inf),
        "actual_token_ids_b64": pack(ROLLOUTS.token_ids, "<i4", 0),
    }


ANSWERS = {
    "chat": lambda path: write(path, *map(chat, range(12))),
    "completion": lambda path: write(path, *map(completion, range(12))),
    "wrapped": lambda path: write(
        path, *({"custom_id": i, "id": f"q{i}", "temperature": 1.0, "response": chat(i)} for i in range(12))
    ),
    "batch API": lambda path: write(
        path, *({"id": f"q{i}", "response": {"status_code": 200, "body": chat(i)}} for i in range(12))
    ),
    "prompt_logprobs": lambda path: write(path, *map(prompt_logprobs, range(12))),
    "completion with prompt_logprobs": lambda path: write(
        path,
        *(
            {"id": f"c{i}", "choices": [{"index": 0, "text": "", "logprobs": None} | prompt_logprobs(i)]}
            for i in range(12)
        ),
    ),
    "TRL generate": lambda path: write(path, trl_generate()),
    "TRL top k": lambda path: write(path, trl_top_k()),
    "TRL binary": lambda path: write(path, trl_binary()),
    "several choices": lambda path: write(
        path,
        *(
            chat(i) | {"choices": [chat(i)["choices"][0], chat(i + 1)["choices"][0] | {"index": 1}]}
            for i in range(0, 12, 2)
        ),
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_of_servers(tmp_path, name):
    path = ANSWERS[name](tmp_path / "answers.jsonl")
    log = open_log(path, batch_tokens=8)
    out = read(path, log=log)
    assert log.sides == ("rollout",) and log.format == "responses"
    same(out, EXPECTED, "rollout", "lengths", "token_ids")
    assert np.isnan(out["trainer"]).all() and out["mask"].all() and len(set(out["ids"].tolist())) == 12
    other = read(path, side="trainer")
    same({"rollout": other["trainer"]}, EXPECTED, "rollout")
    with pytest.raises(LogError, match="has the log-probs of the rollout only"):
        gather(open_log(path))


def test_an_answer_saved_as_an_indented_document(tmp_path):
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(chat(2), indent=2))
    log = open_log(path)
    assert read(path, log=log)["rollout"].tolist() == ROLLOUTS.rollout[2].tolist()
    assert log.header == {"model": "m"}


def test_text_without_token_ids_has_none(tmp_path):
    (batch,) = open_log(write(tmp_path / "a.jsonl", chat(0, ids=False)))
    assert batch.token_ids is None and batch.tokens == 3


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


# Round trips


SEQUENCES = st.lists(
    st.lists(
        st.tuples(
            st.floats(-60, 0, width=32), st.floats(-60, 0, width=32), st.booleans(), st.integers(0, 2**31 - 1)
        ),
        min_size=1,
        max_size=12,
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sequences=SEQUENCES, batch_tokens=st.integers(1, 40))
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".arrow", ".lockstep"])
def test_writing_and_reading_keeps_every_bit(tmp_path, suffix, sequences, batch_tokens):
    records = [
        {
            "trainer": [t[0] for t in tokens],
            "rollout": [t[1] for t in tokens],
            "mask": [t[2] for t in tokens],
            "token_ids": [t[3] for t in tokens],
        }
        for tokens in sequences
    ]
    path = write(tmp_path / "in.jsonl", *records)
    before = read(path)
    np.testing.assert_array_equal(
        before["trainer"], np.float32([t[0] for tokens in sequences for t in tokens])
    )
    write_log(open_log(path, batch_tokens=batch_tokens), tmp_path / f"out{suffix}")
    same(before, read(tmp_path / f"out{suffix}"), *COLUMNS, "ids")


@pytest.mark.parametrize("path", SHIPPED.values(), ids=SHIPPED)
def test_the_shipped_logs_by_every_container(tmp_path, path):
    before = read(path)
    for suffix in (".jsonl", ".parquet", ".arrow", ".lockstep"):
        write_log(open_log(path, batch_tokens=1000), tmp_path / f"out{suffix}")
        same(before, read(tmp_path / f"out{suffix}"), *COLUMNS, "ids")


def test_pyarrow_is_asked_for_only_where_it_is_needed(tmp_path):
    """Importing the readers, and reading JSON, does without; a table says what to install."""
    lines, rows = (WRITERS[name](tmp_path / name) for name in ("lockstep.jsonl", "table.parquet"))
    code = f"""
import sys
class Missing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("pyarrow", "orjson", "simdjson"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
import lockstep, lockstep.logs as logs
assert sum(batch.sequences for batch in logs.open_log({str(lines)!r})) == 12
logs.write_log(logs.open_log({str(lines)!r}), {str(tmp_path / "out.jsonl")!r})
try:
    list(logs.open_log({str(rows)!r}))
except logs.LogError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == f"{rows}: reading Parquet and Arrow needs pyarrow: pip install 'lockstep[parquet]'\n"
    same(read(tmp_path / "out.jsonl"), EXPECTED)
