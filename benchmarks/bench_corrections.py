"""lockstep_correct against PyTorch's eager code for the same weights, masks and statistics.

    python benchmarks/bench_corrections.py [--quick] [--rounds N]

fp32 log-probs with a mask, padded, one thread. Both sides run in one process, pinned to one core, turn by turn;
medians. Their weights and masks are compared before anything is timed. --quick takes a small batch, to see that
everything runs; its figures mean nothing and are not written.
"""

import argparse
import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
import numpy as np
import torch

import harness

import lockstep
from lockstep import Rejection


def statistics(w, raw, mask, high):
    """What a report says of token weights, as one would write it."""
    n = mask.sum()
    counted = w[mask]
    mean, square = counted.mean(), (counted * counted).mean()
    return (mean, (square - mean * mean).clamp(min=0).sqrt(), counted.min(), counted.max(), mean * mean / square,
            ((raw > high) & mask).sum() / n)


def truncated(trainer, rollout, mask):
    """Token TIS with its statistics before and after."""
    raw = torch.exp((trainer - rollout).clamp(-20, 20))
    weights = raw.clamp(max=2) * mask
    return weights, mask, statistics(raw, raw, mask, 2), statistics(weights, raw, mask, 2)


def sequences(trainer, rollout, mask):
    """Sequence MIS."""
    sums = ((trainer - rollout) * mask).sum(1)
    ratio = torch.exp(sums.clamp(-20, 20))
    weights = torch.where(ratio <= 3, ratio, 0.0)
    mean, square = weights.mean(), (weights * weights).mean()
    return weights[:, None] * mask, mask, (mean, mean * mean / square, ratio.max())


def rejected(trainer, rollout, mask):
    """Token TIS, MLPerf's sequence mask and a veto."""
    weights, _, *report = truncated(trainer, rollout, mask)
    d = trainer - rollout
    ratio = torch.exp((d * mask).sum(1) / mask.sum(1))
    keep = (ratio >= 0.999) & (ratio <= 1.002) & ~((d < np.log(1e-4)) & mask).any(1)
    kept = mask & keep[:, None]
    return weights, kept, (statistics(weights, weights, kept, 2), *report)


WORK = (
    ("token TIS, report", truncated, {"high": 2}),
    ("sequence MIS, report", sequences, {"weights": "mask", "level": "sequence_sum", "high": 3}),
    ("token TIS, MLPerf's mask, veto, report", rejected, {
        "high": 2, "reject": [Rejection("ratio", "sequence_mean", 0.999, 1.002),
                              Rejection("ratio", "sequence_every", low=1e-4)]}),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    harness.pin(1)
    torch.set_num_threads(1)
    count, length = (50, 400) if arguments.quick else (2500, 4000)
    rng = np.random.default_rng(0)
    rollout = np.log(rng.beta(3, 0.6, (count, length))).astype(np.float32)
    noise = 0.03 * rng.standard_normal((count, length)).astype(np.float32) * (1 - np.exp(rollout))
    mask = np.arange(length) < rng.integers(length // 2, length, (count, 1))
    batch = rollout + noise, rollout, mask
    tensors = tuple(map(torch.from_numpy, batch))
    rows = []
    for work, theirs, options in WORK:
        weights, kept, *_ = theirs(*tensors)
        found = lockstep.correct(*batch, threads=1, **options)
        np.testing.assert_allclose(found.weights, weights, rtol=2e-3 if "sequence" in work else 1e-6)
        # A geometric mean in float32 may fall to either side of a bound.
        assert (found.kept != kept.numpy()).any(1).mean() < 0.01
        median = harness.interleaved(
            arguments.rounds, ours=lambda: lockstep.correct(*batch, threads=1, **options),
            torch=lambda: theirs(*tensors))
        row = {
            "work": work, "tokens": mask.size, "sequences": count, "format": "fp32", "mask": True, "threads": 1,
            "ours_ms": 1e3 * median["ours"], "torch_ms": 1e3 * median["torch"],
            "torch_ratio": median["torch"] / median["ours"], "ns_a_token": 1e9 * median["ours"] / mask.size,
            "extra_mb": harness.extra_memory(lambda: lockstep.correct(*batch, threads=1, **options)),
            "torch_extra_mb": harness.extra_memory(lambda: theirs(*tensors))}
        rows.append(row)
        print(f"{work}: Lockstep {row['ours_ms']:.1f} ms ({row['ns_a_token']:.1f} ns a token), {row['extra_mb']:.0f} MB;"
              f" PyTorch {row['torch_ms']:.1f} ms, {row['torch_ratio']:.1f} times as long, {row['torch_extra_mb']:.0f} MB")
    if not arguments.quick:
        harness.write("corrections", rows, torch=torch.__version__)


if __name__ == "__main__":
    main()
