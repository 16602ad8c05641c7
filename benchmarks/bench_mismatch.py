"""lockstep_mismatch_measure and the accumulator against NumPy's vectorised code for the same statistics.

    python benchmarks/bench_mismatch.py [--quick] [--rounds N]

fp32 log-probs with a mask, packed, one thread. Then the accumulator, with two threads too: everything (profiles,
histograms, a sample, the worst tokens and the evidence of causes as well) and its summary, beside NumPy's code for
the plain means over tokens, which have neither errors nor quantiles nor sequences. Both sides run in one process,
pinned to as many cores as threads, turn by turn; medians. Their results are compared before anything is timed. --quick takes a small log, to see that
everything runs; its figures mean nothing and are not written.
"""

import argparse
import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
import numpy as np

import harness

from lockstep import MismatchAccumulator
from lockstep import mismatch as measure

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


def numpy_means(trainer, rollout, mask, offsets):
    """The plain means over tokens, no errors: what a trainer logs at the least. Every array is made once."""
    a, b = trainer[mask].astype(np.float64), rollout[mask].astype(np.float64)
    d = a - b
    size, r = np.abs(d), np.exp(d)
    gap = np.abs(np.exp(a) - np.exp(b))
    mean_ratio, mean_square = r.mean(), (r * r).mean()
    return {
        "mean_log_ratio": d.mean(), "k2": (d * d).mean() / 2, "k3": (r - 1 - d).mean(),
        "mean_abs_log_ratio": size.mean(), "max_abs_log_ratio": size.max(), "mean_abs_prob_diff": gap.mean(),
        "max_abs_prob_diff": gap.max(), "chi_square": mean_square - 1, "mean_ratio": mean_ratio,
        "ess": mean_ratio ** 2 / mean_square, "mean_exp_abs_log_ratio": np.maximum(r, 1 / r).mean(),
        "mean_rollout_log_prob": b.mean(),
        "share_outside_mlperf": ((r < 0.999) | (r > 1.002)).mean(),
        "share_outside_1pct": ((r < 0.99) | (r > 1.01)).mean(),
        "share_outside_5pct": ((r < 0.95) | (r > 1.05)).mean(),
        "share_outside_10pct": ((r < 0.9) | (r > 1.1)).mean(),
    }


def check(ours, theirs):
    """Every figure of NumPy's is ours."""
    for name, value in theirs.items():
        mine = getattr(ours, name)
        if hasattr(mine, "standard_error"):
            mine = (mine.value, mine.standard_error) if np.ndim(value) else mine.value
        # A reduceat sum of 10 M tokens carries about 1e-12; a token at a band's edge may fall either way.
        np.testing.assert_allclose(
            list(mine) if np.ndim(value) else mine, value, rtol=1e-6 if "share" in name else 1e-9,
            atol=1e-14, err_msg=name)


# Float64 operations a token, a fused multiply-add being two: two exponentials (34 each), what follows from
# them (28), sums, bands and the histogram bin (30).
OPERATIONS = 126


def accumulate(*log, threads, summary=False):
    """What adding a part of a log costs."""
    accumulator = MismatchAccumulator(summary=summary)
    accumulator.update(*log, threads=threads)
    return accumulator


def rollouts(tokens, sequences):
    """Probabilities as a language model has them, most near 1, and noise that grows with 1 - p, as
    rounding's does."""
    rng = np.random.default_rng(0)
    cuts = np.sort(rng.choice(np.arange(1, tokens), sequences - 1, replace=False))
    rollout = np.log(rng.beta(3, 0.6, tokens)).astype(np.float32)
    noise = 0.03 * rng.standard_normal(tokens).astype(np.float32) * (1 - np.exp(rollout))
    offsets = np.concatenate([[0], cuts, [tokens]]).astype(np.int64)
    return rollout + noise, rollout, rng.random(tokens) < 0.95, offsets


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    harness.pin(1)
    tokens, sequences = (100_000, 200) if arguments.quick else (10_000_000, 20_000)
    log = rollouts(tokens, sequences)
    check(measure(*log, threads=1), numpy_statistics(*log))
    check(accumulate(*log, threads=1, summary=True).report(), numpy_means(*log))
    median = harness.interleaved(
        arguments.rounds, ours=lambda: measure(*log, threads=1), numpy=lambda: numpy_statistics(*log))

    limits = harness.Limits()
    read, flops = limits.gb_s(), limits.gflops() / 2  # float64 has half the lanes of float32
    floors = {
        "read_floor_ms": 2e3 * sum(array.nbytes for array in log) / (1e9 * read),
        "arithmetic_floor_ms": 1e3 * OPERATIONS * tokens / (1e9 * flops)}
    row = {
        "work": "mismatch, all statistics", "tokens": tokens, "sequences": sequences, "format": "fp32",
        "mask": True, "threads": 1, "instruction_set": harness.instruction_set(),
        "ours_ms": 1e3 * median["ours"], "numpy_ms": 1e3 * median["numpy"],
        "numpy_ratio": median["numpy"] / median["ours"], "ns_a_token": 1e9 * median["ours"] / tokens,
        "read_gb_s": read, "float64_gflops": flops, **floors,
        "share_of_limit": max(floors.values()) / (1e3 * median["ours"]),
        "extra_mb": harness.extra_memory(lambda: measure(*log, threads=1)),
        "numpy_extra_mb": harness.extra_memory(lambda: numpy_statistics(*log))}
    print(f"mismatch, {tokens:,} tokens, {sequences:,} sequences, fp32, mask, 1 thread")
    print(f"  Lockstep {row['ours_ms']:8.1f} ms   {row['ns_a_token']:.1f} ns a token, {row['extra_mb']:.0f} MB")
    print(f"  NumPy    {row['numpy_ms']:8.1f} ms   {row['numpy_ratio']:.1f} times as long, "
          f"{row['numpy_extra_mb']:.0f} MB")
    print(f"  Floors   {row['arithmetic_floor_ms']:8.1f} ms   {OPERATIONS} float64 operations a token at "
          f"{flops:.0f} GFLOP/s ({100 * row['share_of_limit']:.0f} % reached); two reads of the input at "
          f"{read:.1f} GB/s: {row['read_floor_ms']:.1f} ms")
    rows = [row] + accumulator_rows(row, log, arguments.rounds)
    if not arguments.quick:
        harness.write("mismatch", rows, numpy=np.__version__)


def accumulator_rows(measured, log, rounds):
    """The accumulator, everything and a summary, on one thread and on two, beside NumPy's plain means."""
    threads = [1, 2] if len(harness.processors()) > 1 else [1]
    harness.pin(len(threads))
    median = harness.interleaved(
        rounds, numpy=lambda: numpy_means(*log),
        **{f"{summary} {count}": lambda summary=summary, count=count: accumulate(*log, threads=count, summary=summary)
           for summary in (False, True) for count in threads})
    print(f"  NumPy, plain means {1e3 * median['numpy']:8.1f} ms")
    rows = []
    for summary in (False, True):
        for count in threads:
            seconds = median[f"{summary} {count}"]
            row = {name: measured[name] for name in ("tokens", "sequences", "format", "mask", "instruction_set")} | {
                "work": "accumulator, summary" if summary else "accumulator, everything", "threads": count,
                "ours_ms": 1e3 * seconds, "numpy_means_ms": 1e3 * median["numpy"],
                "numpy_means_ratio": median["numpy"] / seconds, "ns_a_token": 1e9 * seconds / measured["tokens"],
                "speedup": median[f"{summary} 1"] / seconds,
                "extra_mb": harness.extra_memory(lambda: accumulate(*log, threads=count, summary=summary))}
            rows.append(row)
            print(f"  {row['work'].capitalize()}, {count} thread{'s' * (count > 1)} {row['ours_ms']:8.1f} ms   NumPy's "
                  f"means take {row['numpy_means_ratio']:.1f} times as long, {row['extra_mb']:.0f} MB"
                  + (f", {row['speedup']:.2f} times as fast as one thread" if count > 1 else ""))
    return rows


if __name__ == "__main__":
    main()
