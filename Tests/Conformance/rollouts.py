"""Rollout logs for the tests: those that are shipped, and small ones made on the spot."""

import gzip
import json
from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "examples" / "data"

SHIPPED = {
    name: DATA / f"smollm2-135m.{name}.jsonl.gz"
    for name in ("bf16", "fp16", "bf16-rollout.fp32-trainer", "fp16-rollout.fp32-trainer")
}


def sequence(**changes):
    """One good line: a prompt token and three that count."""
    record = {
        "schema_version": 1,
        "step": 0,
        "rank": 0,
        "env_name": "math",
        "token_ids": [5, 6, 7, 8],
        "loss_mask": [False, True, True, True],
        "inference_logprobs": [0.0, -1.0, -2.5, -0.125],
        "trainer_logprobs": [0.0, -1.25, -2.0, -0.125],
        "entropy": None,
    }
    record.update(changes)
    return {key: value for key, value in record.items() if value is not ...}


def write(path, *lines):
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path
