"""One set of rollouts, as every format of logs and every server writes it."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from rollouts import write

import lockstep
from lockstep.logs import open_log

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
