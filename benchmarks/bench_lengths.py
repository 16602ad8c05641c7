"""What a sequence costs, however short: nanoseconds a token at 50, 500 and 5,000 tokens a sequence.

    python benchmarks/bench_lengths.py [--quick] [--rounds N]

Objectives, corrections and the statistics of a log on the batches of bench_objectives.py, one thread; the least of some
rounds, as what is sought is the cost and not what else the machine does. The difference between two lengths is what is
done for each sequence. --quick takes a small batch, to see that everything runs; its figures are not written.
"""

import argparse
import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import harness
from bench_objectives import CASES, batch
from lockstep import MismatchAccumulator, Rejection, correct, mismatch, objective_loss

LENGTHS = 50, 500, 5_000


def works(x):
    """Each work, as a function of nothing."""
    given = x["current"], x["trainer"], x["advantages"], x["mask"]
    out = x["current"].clone()

    def objective(parts, options):
        more = {{"reference": "reference_log_probs"}.get(name, name): x[name] for name in parts}
        return lambda: objective_loss(*given, **more, **options, out=out, threads=1)

    def accumulate(summary):
        MismatchAccumulator(summary=summary).update(x["current"], x["trainer"], x["mask"], threads=1)

    pair = x["current"], x["trainer"], x["mask"]
    mask = [Rejection("ratio", "sequence_mean", low=0.999, high=1.002)]
    return {work: objective(parts, options) for work, (_, _, parts, options) in CASES.items()} | {
        "DAPO": objective([], {"high": 1.28}),
        "token TIS": lambda: correct(*pair, high=2.0, threads=1),
        "token TIS, MLPerf's mask": lambda: correct(*pair, high=2.0, reject=mask, threads=1),
        "mismatch, all statistics": lambda: mismatch(*pair, threads=1),
        "accumulator, summary": lambda: accumulate(True),
        "accumulator, everything": lambda: accumulate(False)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    harness.pin(1)
    tokens = 100_000 if arguments.quick else 200_000
    rows = {}
    for length in LENGTHS:
        for work, action in works(batch(tokens // length, length)).items():
            action()
            seconds = min(harness.seconds(action) for _ in range(arguments.rounds))
            row = rows.setdefault(work, {"work": work, "format": "fp32", "mask": True, "threads": 1, "tokens": tokens,
                                         "instruction_set": harness.instruction_set()})
            row[f"ns_a_token_{length}"] = 1e9 * seconds / tokens
    print(f"{'ns a token':28}" + "".join(f"{length:8,}" for length in LENGTHS) + "  ns a sequence")
    for row in rows.values():
        few, _, many = (row[f"ns_a_token_{length}"] for length in LENGTHS)
        row["ns_a_sequence"] = (few - many) / (1 / LENGTHS[0] - 1 / LENGTHS[-1])
        print(f"{row['work']:28}" + "".join(f"{row[f'ns_a_token_{length}']:8.1f}" for length in LENGTHS)
              + f"  {row['ns_a_sequence']:8.0f}")
    if not arguments.quick:
        harness.write("lengths", list(rows.values()))


if __name__ == "__main__":
    main()
