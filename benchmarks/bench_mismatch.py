"""lockstep_mismatch_measure against NumPy's vectorised code for the same statistics.

    python benchmarks/bench_mismatch.py [--tokens N] [--sequences N] [--rounds N]

fp32 log-probs with a mask, packed. Both sides run in one process, pinned to one core, turn by turn;
medians. Both results are compared before anything is timed. Writes benchmarks/results/mismatch.json.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "Tests" / "Conformance"))
from mismatch_library import measure  # noqa: E402

QUANTILES = [0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999]


def numpy_statistics(trainer, rollout, mask, offsets):
    """What lockstep_mismatch holds, as one would write it in NumPy with speed in mind: masked tokens are
    dropped once, every per-token array is made once, sequences are summed by reduceat."""
    a, b = trainer[mask].astype(np.float64), rollout[mask].astype(np.float64)
    bounds = np.concatenate([[0], np.cumsum(mask)])[offsets]
    lengths = np.diff(bounds)
    starts = bounds[:-1][lengths > 0]
    owner = np.flatnonzero(lengths > 0)
    lengths = lengths[lengths > 0].astype(np.float64)
    n, k = len(a), len(lengths)
    d = a - b
    size = np.abs(d)
    r, q = np.exp(d), np.exp(b)
    p = np.exp(a)
    gap = np.abs(p - q)
    ratio_square = r * r
    worst = np.maximum(r, 1 / r)

    def average(x):
        sums = np.add.reduceat(x, starts, dtype=np.float64)
        mean = sums.sum() / n
        residual = sums - mean * lengths
        return mean, np.sqrt(k / (k - 1) * (residual @ residual)) / n, sums

    mean, error, log_ratio = average(d)
    square, square_error, _ = average(d * d)
    worst_mean, worst_error, worst_sums = average(worst)
    largest = int(size.argmax())
    sequence = int(np.searchsorted(starts, largest, side="right")) - 1
    p_centred, q_centred = p - p.mean(), q - q.mean()
    pp, qq = p_centred @ p_centred, q_centred @ q_centred
    z = p_centred / np.sqrt(pp) - q_centred / np.sqrt(qq)
    rollout_mean = average(b)
    weights = np.exp(log_ratio - log_ratio.max())
    centred = lengths - lengths.mean()
    slope = centred @ log_ratio / (centred @ centred)
    residual = log_ratio - log_ratio.mean() - slope * centred
    row_mean, row_worst = log_ratio / lengths, worst_sums / lengths
    masked = row_worst > 2
    return {
        "tokens": n, "mean_log_ratio": (mean, error), "k2": (square / 2, square_error / 2),
        "k3": average(np.expm1(d) - d)[:2], "mean_abs_log_ratio": average(size)[:2],
        "rms_log_ratio": (np.sqrt(square), square_error / (2 * np.sqrt(square))),
        "max_abs_log_ratio": size[largest], "max_abs_sequence": owner[sequence],
        "mean_abs_prob_diff": average(gap)[:2], "max_abs_prob_diff": gap.max(),
        "one_minus_pearson": z @ z / 2,
        "share_differing": average(a != b)[:2],
        "share_outside_mlperf": average((r < 0.999) | (r > 1.002))[:2],
        "share_outside_1pct": average((r < 0.99) | (r > 1.01))[:2],
        "share_outside_5pct": average((r < 0.95) | (r > 1.05))[:2],
        "share_outside_10pct": average((r < 0.9) | (r > 1.1))[:2],
        "chi_square": tuple(np.subtract(average(ratio_square)[:2], (1, 0))),
        "mean_ratio": average(r)[:2], "ess": r.sum() ** 2 / (n * ratio_square.sum()),
        "mean_exp_abs_log_ratio": (worst_mean, worst_error),
        "mean_rollout_log_prob": rollout_mean[:2], "trainer_perplexity": np.exp(-rollout_mean[0] - mean),
        "log_ratio_quantiles": np.quantile(d, QUANTILES),
        "sequence_log_ratio": (log_ratio.mean(), log_ratio.std(ddof=1) / np.sqrt(k)),
        "sequence_mean_log_ratio": (row_mean.mean(), row_mean.std(ddof=1) / np.sqrt(k)),
        "sequence_mean_exp_abs": (row_worst.mean(), row_worst.std(ddof=1) / np.sqrt(k)),
        "share_sequences_masked": (masked.mean(), masked.std(ddof=1) / np.sqrt(k)),
        "sequence_ess": weights.sum() ** 2 / (k * (weights @ weights)),
        "slope_per_1000": (1000 * slope, 1000 * np.sqrt(
            k / (k - 2) * ((centred * residual) ** 2).sum()) / (centred @ centred)),
        "max_sequence_length": lengths.max(),
    }


def check(ours, theirs):
    """Every figure of NumPy's is ours."""
    for name, value in theirs.items():
        mine = getattr(ours, name)
        if hasattr(mine, "standard_error"):
            mine = mine.value, mine.standard_error
        # A reduceat sum of 10 M tokens carries about 1e-12; a token at a band's edge may fall either way.
        np.testing.assert_allclose(
            list(mine) if np.ndim(value) else mine, value, rtol=1e-6 if "share" in name else 1e-9,
            atol=1e-14, err_msg=name)


def seconds(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def machine():
    cpu = platform.processor()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(": ")[1] for line in info.read_text().splitlines()
                    if line.startswith("model name")), cpu)
    return {"cpu": cpu, "cores": os.cpu_count(), "numpy": np.__version__, "python": platform.python_version()}


def commit():
    found = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=12"],
                           capture_output=True, text=True)
    return found.stdout.strip() or None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--sequences", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "benchmarks/results/mismatch.json")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    # Probabilities as a language model has them, most near 1; noise that grows with 1 - p, as rounding's.
    rng = np.random.default_rng(0)
    n = arguments.tokens
    cuts = np.sort(rng.choice(np.arange(1, n), arguments.sequences - 1, replace=False))
    offsets = np.concatenate([[0], cuts, [n]]).astype(np.int64)
    rollout = np.log(rng.beta(3, 0.6, n)).astype(np.float32)
    noise = 0.03 * rng.standard_normal(n).astype(np.float32) * (1 - np.exp(rollout))
    trainer = rollout + noise
    mask = rng.random(n) < 0.95
    log = trainer, rollout, mask, offsets

    check(measure(*log, threads=1), numpy_statistics(*log))
    read = np.ones(n, dtype=np.float64)
    times = {"ours": [], "numpy": [], "read": []}
    for _ in range(arguments.rounds):
        times["ours"].append(seconds(lambda: measure(*log, threads=1)))
        times["numpy"].append(seconds(lambda: numpy_statistics(*log)))
        times["read"].append(seconds(read.sum))
    median = {name: statistics.median(values) for name, values in times.items()}
    bandwidth = read.nbytes / median["read"]
    input_bytes = trainer.nbytes + rollout.nbytes + mask.nbytes
    floor = 2 * input_bytes / bandwidth
    row = {
        "work": "mismatch, all statistics", "tokens": n, "sequences": arguments.sequences,
        "format": "fp32", "mask": True, "threads": 1,
        "ours_ms": 1e3 * median["ours"], "numpy_ms": 1e3 * median["numpy"],
        "ratio": median["numpy"] / median["ours"], "ns_a_token": 1e9 * median["ours"] / n,
        "read_gb_s": bandwidth / 1e9, "floor_ms": 1e3 * floor, "share_of_floor": floor / median["ours"],
        "machine": machine(), "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    print(f"mismatch, {n:,} tokens, {arguments.sequences:,} sequences, fp32, mask, 1 thread")
    print(f"  Lockstep {row['ours_ms']:8.1f} ms   {row['ns_a_token']:.1f} ns a token")
    print(f"  NumPy    {row['numpy_ms']:8.1f} ms   {row['ratio']:.1f} times as long")
    print(f"  Floor    {row['floor_ms']:8.1f} ms   two reads of the input at {row['read_gb_s']:.1f} GB/s; "
          f"{100 * row['share_of_floor']:.0f} % of it reached (the rest is arithmetic: two exponentials a token)")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
