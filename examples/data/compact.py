"""Makes the compact logs of this folder from full prime-rl token exports.

    python compact.py SOURCE.jsonl... --to FOLDER

Keeps the columns that `lockstep diagnose` reads and the scalars that identify a sequence. Log-probs
are written as the shortest decimal that reads back as the same float32, so both columns keep every
bit; the script reads its own output back and fails if one differs. The gzip header carries neither
a time nor a name: the same input gives the same bytes.
"""

import argparse
import gzip
import json
import sys
from pathlib import Path

import numpy as np

SCALARS = ("schema_version", "step", "rank", "micro_step", "micro_sequence_idx", "export_sequence_idx",
           "env_name")
LOG_PROBS = ("inference_logprobs", "trainer_logprobs")


def shortest(value: float | None) -> str:
    """The shortest JSON number that is the float32 `value`; null (non-finite) stays null."""
    if value is None:
        return "null"
    if float(np.float32(value)) != value:
        raise ValueError(f"{value!r} is not a float32: its bits would be lost")
    return str(np.float32(value))


def compact(line: str) -> str:
    """One sequence of the export, with the needed columns only."""
    record = json.loads(line)
    kept = {name: record[name] for name in SCALARS}
    kept["token_ids"] = record["token_ids"]
    kept["loss_mask"] = record["loss_mask"]
    text = json.dumps(kept, separators=(",", ":"))
    columns = (f'"{name}":[{",".join(shortest(value) for value in record[name])}]' for name in LOG_PROBS)
    return ",".join((text[:-1], *columns)) + "}"


def same_bits(line: str, compacted: str) -> bool:
    """Whether both lines hold the same float32 log-probs, the same mask and the same tokens."""
    before, after = json.loads(line), json.loads(compacted)

    def bits(record: dict, name: str) -> bytes:
        return np.array(record[name], dtype=np.float32).tobytes()

    return (all(bits(before, name) == bits(after, name) for name in LOG_PROBS)
            and before["loss_mask"] == after["loss_mask"]
            and before["token_ids"] == after["token_ids"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE.jsonl")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    arguments = parser.parse_args()
    for source in arguments.sources:
        lines = source.read_text(encoding="utf-8").splitlines()
        compacted = [compact(line) for line in lines]
        for number, (line, short) in enumerate(zip(lines, compacted, strict=True), start=1):
            if not same_bits(line, short):
                print(f"{source}, line {number}: the compact line reads back different", file=sys.stderr)
                return 1
        destination = arguments.to / (source.name + ".gz")
        data = "".join(line + "\n" for line in compacted).encode()
        destination.write_bytes(gzip.compress(data, compresslevel=9, mtime=0))
        print(f"{destination}: {len(lines)} sequences, {destination.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
