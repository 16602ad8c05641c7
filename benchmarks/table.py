"""README's table, from benchmarks/results: python benchmarks/table.py. A test compares the two."""

from __future__ import annotations

import json
import pathlib

RESULTS = pathlib.Path(__file__).resolve().parent / "results"
SET = "avx512"  # of the processor that README names


def cell(row: dict, name: str, peer: str) -> str:
    return f"{row[f'{name}_ratio']:.1f}x {peer}" if f"{name}_ratio" in row else ""


def rows(name: str) -> list[dict]:
    return [row for row in json.loads((RESULTS / f"{name}.json").read_text())["rows"] if row["instruction_set"] == SET]


def table() -> str:
    """One line for each single-threaded row; `2 threads` is the gain over one, of the same work."""
    log_probs = rows("log_probs")
    two = {(row["work"], row["format"]): row["one_thread_ratio"] for row in log_probs if row["threads"] == 2}
    lines = ["| work | format | one thread | against PyTorch | limit reached | extra memory | 2 threads |",
             "|---|---|---|---|---|---|---|"]
    for row in log_probs:
        if row["threads"] != 1:
            continue
        peers = [cell(row, "usual", "usual code"), cell(row, "best", "best code"), cell(row, "torch", "same format"),
                 cell(row, "upcast", "fp32 upcast")]
        limit = (f"{row['peak_share']:.0%} of FMA peak" if "peak_share" in row else
                 f"{row['bandwidth_share']:.0%} of bandwidth" if "bandwidth_share" in row else "")
        theirs = row.get("usual_extra_mb", row.get("torch_extra_mb"))
        memory = f"{row['extra_mb']:.1f} MB, PyTorch {theirs:.0f}" if "extra_mb" in row else ""
        gain = two.get((row["work"], row["format"]))
        lines.append(
            f"| {row['work']} | {row['format']} | {row['ours_ms']:.1f} ms | {', '.join(filter(None, peers))} | {limit} "
            f"| {memory} | {f'{gain:.2f}x' if gain else ''} |")
    row = rows("mismatch")[0]
    lines.append(
        f"| {row['work']}, {row['tokens']:,} tokens | {row['format']} | {row['ours_ms']:.1f} ms "
        f"| {row['numpy_ratio']:.1f}x NumPy | | {row['extra_mb']:.1f} MB, NumPy {row['numpy_extra_mb']:.0f} | |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
