"""How often the bounds of a certificate are wrong: sequences drawn from sources whose truth is known.

    python benchmarks/certificate_coverage.py [REPLICATES]
    python benchmarks/certificate_coverage.py table        as in docs/Certificate.md

Writes results/certificate_coverage.json: for each source, statistic and number of sequences, how often the
truth lies beyond the one-sided 95 % bounds (nominal: 0.05 above, 0.05 below). Sources are the rollouts of
examples/data, whose sequences are drawn with replacement, and made ones: tokens outside in clusters
(beta-binomial), sequences that are outside as a whole, and noise whose size differs from sequence to sequence
(log-normal).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

import lockstep
from lockstep.certificate import STATISTICS, SequenceSums, bounds
from lockstep.logs import read_prime_rl

ROOT = Path(__file__).resolve().parent
DATA = ROOT.parent / "examples" / "data"
ALPHA = 0.05
REAL = ("bf16", "fp16", "bf16-rollout.fp32-trainer", "fp16-rollout.fp32-trainer")
LENGTHS = ("equal", "log-normal")
# Of the logarithm of the size of noise.
SPREADS = (0.25, 0.5, 1.0)
# Tokens outside as a share, their correlation within a sequence, and the share of sequences outside as a whole.
MADE = ((0.05, 0, 0), (0.05, 0.1, 0), (0.01, 0, 0), (0.01, 0.1, 0), (0.01, 0.5, 0), (0.001, 0.0, 0),
        (0.001, 0.1, 0), (0.0001, 0, 0.01), (0.001, 0, 0.003), (0.001, 0, 0.05))
OF_REAL = ("k1", "k3", "mean_abs_log_ratio", "mean_ratio", "chi_square", "ess", "mean_exp_abs_log_ratio",
           "share_outside_mlperf", "share_outside_1pct", "share_outside_5pct",
           "share_outside_10pct", "share_sequences_outside_mlperf")


def source(share: float, correlation: float, whole: float, lengths: str) -> str:
    return f"share {share:g}, correlation {correlation:g}, whole {whole:g}, {lengths}"


def missed(sums: SequenceSums, name: str, truth: float) -> tuple[bool, bool]:
    """Whether the truth is above the upper bound, and below the lower one."""
    statistic = STATISTICS[name]
    value, influence = statistic.measure(sums)
    spread = bounds.spread(value, influence, tokens=sums.tokens, like_one_length=sums.like_one_length,
                           share=statistic.share)
    slack = 1e-9 * abs(truth)
    return bounds.upper(spread, ALPHA) < truth - slack, bounds.lower(spread, ALPHA) > truth + slack


def made(random: np.random.Generator, k: int, share: float, correlation: float, whole: float,
         lengths: str) -> SequenceSums:
    """k sequences with a known share of tokens outside ±1 %: clustered, some of them as a whole."""
    n = np.full(k, 200) if lengths == "equal" else np.clip(random.lognormal(5, 0.8, k), 1, 2000).astype(int)
    if correlation:
        spread = 1 / correlation - 1
        p = random.beta(share * spread, (1 - share) * spread, k)
    else:
        p = np.full(k, share)
    events = np.where(random.random(k) < whole, n, random.binomial(n, p))
    sums = SequenceSums()
    sums._parts = [{name: np.zeros(k) for name in sums.columns} | {
        "tokens": n.astype(float), "outside_1pct": events.astype(float)}]
    sums.__dict__.pop("columns")
    return sums


def noisy(random: np.random.Generator, k: int, spread: float) -> SequenceSums:
    """k sequences of 100 tokens with Gaussian d whose size is log-normal over sequences; mean d² is 1e-4."""
    scale = 0.01 * np.exp(random.normal(-spread**2, spread, k))
    square = scale**2 * random.chisquare(100, k)
    sums = SequenceSums()
    sums._parts = [{name: np.zeros(k) for name in sums.columns} | {
        "tokens": np.full(k, 100.0), "square": square}]
    sums.__dict__.pop("columns")
    return sums


def rates(draw, name: str, truth: float, replicates: int) -> dict[str, float]:
    count = np.zeros(2)
    for _ in range(replicates):
        count += missed(draw(), name, truth)
    return {"truth_above_upper": count[0] / replicates, "truth_below_lower": count[1] / replicates}


# Rows of the table: what it is called, and which statistics of which sources it is the worst of.
KINDS = [
    ("shares of tokens, real logs", REAL, [name for name in OF_REAL if name.startswith("share_outside")]),
    ("shares of tokens, made sources", [source(*each, lengths) for lengths in LENGTHS for each in MADE],
     ["share_outside_1pct"]),
    ("shares of sequences, real logs", REAL, ["share_sequences_outside_mlperf"]),
    (r"k1, mean \|d\|, mean exp\|d\|, mean r, chi², real logs", REAL,
     ["k1", "mean_abs_log_ratio", "mean_exp_abs_log_ratio", "mean_ratio", "chi_square"]),
    ("k3, real logs", REAL, ["k3"]),
    ("ESS of tokens, real logs", REAL, ["ess"]),
    *((f"k2, noise whose size is log-normal, sigma {spread:g}", [f"log-normal noise {spread:g}"], ["k2"])
      for spread in SPREADS),
]


def table() -> str:
    """The worst rates of each kind, as docs/Certificate.md shows them."""
    rows = json.loads((ROOT / "results" / "certificate_coverage.json").read_text())["rows"]
    lines = [r"| beyond the upper \| lower bound, %, at most | 20 sequences | 50 | 300 | 1,000 |",
             "|---|---|---|---|---|"]
    for name, sources, statistics in KINDS:
        cells = []
        for k in (20, 50, 300, 1000):
            found = [row for row in rows if row["source"] in sources and row["statistic"] in statistics
                     and row["sequences"] == k]
            worst = [max(row[side] for row in found) for side in ("truth_above_upper", "truth_below_lower")
                     ] if found else []
            cells.append(r" \| ".join(f"{100 * rate:.1f}" for rate in worst))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:] == ["table"]:
        return print(table())
    replicates = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    random = np.random.default_rng(20261122)
    rows = []

    def record(label: str, name: str, k: int, truth: float, found: dict[str, float]) -> None:
        rows.append({"source": label, "statistic": name, "sequences": k, "truth": truth} | found)
        print(f"{label:40} {name:32} {k:5} {truth:10.4g}  {found['truth_above_upper']:.4f}"
              f"  {found['truth_below_lower']:.4f}", flush=True)

    for label in REAL:
        log = read_prime_rl([DATA / f"smollm2-135m.{label}.jsonl.gz"], label=label)
        whole = SequenceSums().add(log.trainer, log.rollout, log.mask, log.offsets)
        for name in OF_REAL:
            truth = STATISTICS[name].measure(whole)[0]
            for k in (20, 50, 300):
                def draw(k=k, whole=whole):
                    return whole.take(random.integers(0, whole.sequences, k))
                record(label, name, k, truth, rates(draw, name, truth, replicates))
    for lengths in LENGTHS:
        for share, correlation, whole in MADE:
            truth = share * (1 - whole) + whole
            for k in (20, 50, 300, 1000):
                record(source(share, correlation, whole, lengths), "share_outside_1pct", k, truth, rates(
                    lambda: made(random, k, share, correlation, whole, lengths), "share_outside_1pct", truth,
                    replicates))
    for spread in SPREADS:
        for k in (20, 50, 300, 1000):
            # E scale² = 1e-4 exp(-2 s² + 2 s²) = 1e-4
            record(f"log-normal noise {spread:g}", "k2", k, 0.5e-4, rates(
                lambda: noisy(random, k, spread), "k2", 0.5e-4, replicates))
    document = {"alpha": ALPHA, "replicates": replicates, "lockstep_version": lockstep.__version__,
                "rows": rows}
    (ROOT / "results" / "certificate_coverage.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
