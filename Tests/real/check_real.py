"""The proof on a real model: check_real.py FOLDER

What the rollout engine says of every token it drew is what scoring says of it, bit for bit: in fp32, fp16 and bf16,
one sequence at a time and eight, prompts shorter and longer than the 512 rows that are worked on at a time, on one
thread and two. Independent engines differ, in bf16 by 30 to 130 times the KL of fp16. `make check-real` makes the folder of SmolLM2-135M. Minutes, not seconds.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import lockstep
from lockstep import offline

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
    for holds, text in ratios(Path(folder)):
        print(f"{'ok  ' if holds else 'FAIL'} {text}")
        passed, failed = passed + holds, failed + (not holds)
    print(f"{passed} passed, {failed} failed")
    return failed != 0


def ratios(folder):
    """What a pair of engines comes to in bf16 and fp16, on about 2,000 tokens each."""
    engines = (offline.INDEPENDENT, offline.LOCKSTEP)
    with tempfile.TemporaryDirectory() as logs:
        pairs = offline.run(folder, offline.own_prompts(folder, 16, 5), ("bf16", "fp16"), engines,
                            offline.Settings(1, 128, 5), Path(logs))
    for pair in pairs:
        if pair.must_be_zero:
            yield pair.is_zero, f"{pair.rollout} on both sides: exactly 0"
    found = {str(pair.rollout)[:4]: pair.survey.statistics for pair in pairs
             if pair.engines == offline.INDEPENDENT and str(pair.rollout)[:4] == str(pair.trainer)[:4]}
    for key, low, high in (("mean_abs_log_ratio", 5, 12), ("k3", 30, 130)):
        ratio = getattr(found["bf16"], key).value / getattr(found["fp16"], key).value
        yield low < ratio < high, f"independent engines, {key}: bf16 over fp16 is {ratio:.1f}, in [{low}, {high}]"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
