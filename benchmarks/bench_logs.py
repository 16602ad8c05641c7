"""Lockstep's log: bytes a token against JSON, and how fast it is written and read; and how fast JSON lines are.

    python benchmarks/bench_logs.py [--quick] [--rounds N] [FILE.jsonl...]

Sizes are those of real rollouts: examples/data, whose JSON keeps the four columns, or prime-rl exports given as
FILEs, which have all of prime-rl's columns. Speed is of one core, through the C functions Python calls: sequences of
2,000 tokens (a prompt of 300) with ids, mask and both log-probs, written to a file of the temporary folder and read
back from the page cache. GB/s are of the columns in memory, 13 bytes a token.

JSON lines: 60 copies of the first FILE, or of a log of examples/data, as steps of one log; and the same with 16 sequences
joined to one, as long as those of a reasoning model. CPU seconds, the best of the rounds, of all that `open_log` does, and
of its parts alone: the parser, with the four columns made arrays; reading lines and hashing the file.

--quick takes a small log, to see that everything runs; its figures mean nothing and are not written.
"""

import argparse
import ctypes
import gzip
import json
import math
import os
import pathlib
import sys
import tempfile
import time

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
import numpy as np

import harness
import lockstep
import simdjson
from lockstep import _library as c
from lockstep.logs import open_log, read_prime_rl
from lockstep.logs.files import LineReader

COLUMNS = ("token_ids", "loss_mask", "inference_logprobs", "trainer_logprobs")
BYTES = 13  # of a token in memory: id, two log-probs, mask


def size(source, folder):
    """Bytes a token of one real log: its JSON as it is, with the four columns alone, and ours."""
    log = read_prime_rl([source], label="log", token_ids=True)
    with gzip.open(source) if source.suffix == ".gz" else open(source, "rb") as file:
        lines = file.read().splitlines()
    records = [json.loads(line) for line in lines]
    minimal = sum(len(json.dumps({name: record[name] for name in COLUMNS}, separators=(",", ":"))) + 1
                  for record in records)
    path = pathlib.Path(folder) / "real.lockstep"
    with lockstep.LogWriter(path, mode="replace") as writer:
        for index in range(log.sequences):
            part = slice(log.offsets[index], log.offsets[index + 1])
            writer.append(id=index, step=0, token_ids=log.token_ids[part], rollout=log.rollout[part],
                          trainer=log.trainer[part], mask=log.mask[part])
    tokens, ours = len(log.mask), path.stat().st_size
    given = sum(map(len, lines)) + len(lines)
    name = pathlib.Path(source).name.removesuffix(".gz").removesuffix(".jsonl")
    columns = len(records[0])
    return {"work": f"log size, {name}, {columns} fields", "format": "fp32", "threads": 1, "tokens": tokens,
            "json_bytes_a_token": given / tokens, "minimal_json_bytes_a_token": minimal / tokens,
            "bytes_a_token": ours / tokens, "json_ratio": given / ours, "minimal_json_ratio": minimal / ours}


def sequences(count, tokens=2_000, prompt=300):
    """Probabilities as a language model has them, noise that grows with 1 - p, zeros over the prompt."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        mask = np.arange(tokens) >= prompt
        rollout = np.log(rng.beta(3, 0.6, tokens)).astype(np.float32)
        noise = 0.03 * rng.standard_normal(tokens).astype(np.float32) * (1 - np.exp(rollout))
        found.append({"token_ids": rng.integers(0, 151_936, tokens, np.int32), "mask": mask,
                      "rollout": np.where(mask, rollout, np.float32(0)),
                      "trainer": np.where(mask, rollout + noise, np.float32(0))})
    return found


def write(path, some, count):
    """Writes and closes: the time has the wait for the disk in it."""
    path.unlink(missing_ok=True)
    with lockstep.LogWriter(path) as writer:
        for index in range(count):
            writer.append(id=index, **some[index % len(some)])


def read(path):
    """Every batch, as C sees it: nothing is copied out of it."""
    reader = lockstep.LogReader(path)
    batch = c.LogBatch(ctypes.sizeof(c.LogBatch))
    tokens = 0
    while True:
        c.check(c.library.lockstep_log_reader_next(ctypes.byref(batch), reader._handle.pointer(), 1 << 16))
        if batch.sequences == 0:
            return tokens
        tokens += batch.tokens


def copies(source, path, count, join):
    """Writes `count` copies of a log to `path`, each as a step, with `join` sequences made one."""
    with gzip.open(source) if source.suffix == ".gz" else open(source, "rb") as file:
        records = [json.loads(line) for line in file]
    arrays = [name for name, value in records[0].items() if isinstance(value, list)]
    with open(path, "w") as file:
        for step in range(count):
            for start in range(0, len(records), join):
                some = records[start : start + join]
                long = {name: [value for record in some for value in record[name]] for name in arrays}
                file.write(json.dumps(some[0] | long | {"step": step}) + "\n")


def parse_only(lines):
    """What the parser alone takes: each line, and the four columns as arrays."""
    parser = simdjson.Parser()
    for line in lines:
        found = parser.parse(line)
        np.frombuffer(found["trainer_logprobs"].as_buffer(of_type="d"))
        np.frombuffer(found["inference_logprobs"].as_buffer(of_type="d"))
        np.frombuffer(found["token_ids"].as_buffer(of_type="i"), np.int64)
        np.frombuffer(bytes(found["loss_mask"].as_list()), np.bool_)
        del found


def read_json(source, folder, join, count, rounds):
    """CPU time of reading JSON lines, and of its parts."""
    path = pathlib.Path(folder) / "lines.jsonl"
    copies(source, path, count, join)
    lines = path.read_bytes().splitlines(keepends=True)
    tokens = 0

    def whole():
        nonlocal tokens
        tokens = sum(batch.tokens for batch in open_log(path))

    def lines_only():
        with LineReader(path) as reader:
            for _ in reader.blocks():
                pass

    best = {}
    for _ in range(rounds):
        for name, action in (("ours", whole), ("parser", lambda: parse_only(lines)), ("lines", lines_only)):
            start = time.process_time()
            action()
            best[name] = min(best.get(name, math.inf), time.process_time() - start)
    size = path.stat().st_size
    return {"work": f"read JSON lines, {tokens / len(lines):.0f} tokens a sequence", "format": "fp32", "threads": 1,
            "tokens": tokens, "bytes": size, "ours_ms": 1e3 * best["ours"], "parser_ms": 1e3 * best["parser"],
            "lines_and_hash_ms": 1e3 * best["lines"], "mb_s": size / best["ours"] / 1e6,
            "times_the_parser": best["ours"] / best["parser"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    harness.pin(1)
    files = arguments.files + sorted((harness.ROOT / "examples" / "data").glob("*.jsonl.gz"))
    with tempfile.TemporaryDirectory() as folder:
        rows = [size(file, folder) for file in files]
        path = pathlib.Path(folder) / "large.lockstep"
        some, count = sequences(50), 100 if arguments.quick else 5_000
        tokens = 2_000 * count
        write(path, some, count)
        assert read(path) == tokens
        median = harness.interleaved(
            arguments.rounds, write=lambda: write(path, some, count), read=lambda: read(path))
        for work, seconds in median.items():
            rows.append({"work": f"log {work}", "format": "fp32", "threads": 1, "tokens": tokens,
                         "bytes_a_token": path.stat().st_size / tokens, "ours_ms": 1e3 * seconds,
                         "ns_a_token": 1e9 * seconds / tokens, "columns_gb_s": BYTES * tokens / seconds / 1e9,
                         "file_gb_s": path.stat().st_size / seconds / 1e9})
        for join in (1, 16):
            rows.append(read_json(files[0], folder, join, 2 if arguments.quick else 60, arguments.rounds))
    for row in rows:
        print(", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{value}"
                        for name, value in row.items() if name not in ("format", "threads")))
    if not arguments.quick:
        harness.write("logs", rows)


if __name__ == "__main__":
    sys.exit(main())
