"""The proof on a real model: check_real.py FOLDER

What the rollout engine says of every token it drew is what scoring says of it, bit for bit: in fp32, fp16 and bf16,
one sequence at a time and eight, prompts shorter and longer than the 512 rows that are worked on at a time, on one
thread and two. `make check-real` makes the folder of SmolLM2-135M. Minutes, not seconds.
"""

import sys
import time

import numpy as np

import lockstep

TOKENS = 24
SAMPLES = 4


def main(folder):
    rng = np.random.default_rng(7)
    passed = failed = 0
    for recipe in ("fp32", "fp16", "bf16"):
        start = time.monotonic()
        model = lockstep.Model(folder, recipe)
        prompts = [rng.integers(0, model.vocab, length).tolist() for length in (5, 130, 700)]
        runs = {}
        for capacity in (1, 8):
            for threads in (1, 2):
                rollouts = model.generate(
                    prompts, samples=SAMPLES, seed=1, max_tokens=TOKENS, capacity=capacity, threads=threads)
                runs[f"capacity {capacity}, {threads} threads"] = rollouts
        first = runs["capacity 1, 1 threads"]
        whole = [prompts[rollout.id // SAMPLES] + rollout.tokens.tolist() for rollout in first]
        scores = {}
        for threads in (1, 2):
            found = model.score(whole, threads=threads).log_probs
            ends = np.cumsum([len(tokens) for tokens in whole])
            scores[f"scored together, {threads} threads"] = np.split(found, ends[:-1])
        scores["scored alone"] = [model.score(tokens, threads=1).log_probs for tokens in whole]
        for name, rollouts in runs.items():
            equal = all(
                np.array_equal(one.tokens, other.tokens)
                and np.array_equal(one.raw_log_probs, other.raw_log_probs)
                for one, other in zip(rollouts, first))
            print(f"{'ok  ' if equal else 'FAIL'} {recipe}: drawn with {name}: {len(rollouts) * TOKENS} tokens")
            passed, failed = passed + equal, failed + (not equal)
        for name, rows in scores.items():
            equal = all(
                np.array_equal(row[-len(rollout.tokens):], rollout.raw_log_probs.astype(np.float32))
                for row, rollout in zip(rows, first))
            print(f"{'ok  ' if equal else 'FAIL'} {recipe}: {name}, against what was drawn")
            passed, failed = passed + equal, failed + (not equal)
        print(f"     {recipe}: {time.monotonic() - start:.0f} s")
    print(f"{passed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
