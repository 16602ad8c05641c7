"""A real model is trained: check_training.py FOLDER [supervised | reinforcement]

A LoRA adapter of SmolLM2-135M, in fp16 with a loss scale, takes ten steps on real responses to four prompts
(examples/data): the loss falls at every one, and a step has the same bits on one thread and two. Then a
reinforcement learning run of an adapter: no mismatch, and the same bits on one thread and two. Tokens per second and the
share of the machine's peak of fused multiply-adds, measured beside the steps, go to benchmarks/results/training_real.json.
`make check-real` makes the folder. Minutes, not seconds.
"""

import gzip
import json
import statistics
import sys
from pathlib import Path

import numpy as np

import lockstep

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import harness  # noqa: E402

LOG = ROOT / "examples" / "data" / "smollm2-135m.fp16.jsonl.gz"
RECIPE, RANK, ALPHA, RATE, STEPS, LENGTH = "fp16", 16, 32.0, 1e-3, 10, 96


def rows():
    """The first long response to each of four prompts, cut to one length, as two threads share whole sequences: ids, and
    which of them are the response's."""
    found = {}
    for line in gzip.open(LOG):
        row = json.loads(line)
        if len(row["token_ids"]) >= LENGTH and len(found) < 4:
            found.setdefault(row["env_name"], row)
    return [row["token_ids"][:LENGTH] for row in found.values()], [row["loss_mask"][:LENGTH] for row in found.values()]


class Training:
    """Supervised: the mean of -ln p over the responses' tokens."""

    def __init__(self, folder, tokens, masks, threads):
        self.trainer = lockstep.Trainer(folder, RECIPE, rank=RANK, alpha=ALPHA, seed=1, threads=threads)
        self.tokens = tokens
        self.weights = -np.concatenate(masks).astype(np.float64) / sum(map(sum, masks))
        self.scaler = lockstep.LossScaler("torch")
        self.moments = np.zeros((2, self.trainer.count), np.float32)
        self.updates = 0

    def step(self):
        """The loss before the update."""
        passed = self.trainer.accumulate(self.tokens, self.weights, loss_scale=self.scaler.scale)
        gradients = self.trainer.gradients()
        self.trainer.clear()
        norm = lockstep.gradient_norm(gradients, max_norm=1.0)
        if not self.scaler.update(norm.non_finite > 0).skip:
            self.updates += 1
            lockstep.adamw_step(
                self.trainer.masters, *self.moments, gradients, step=self.updates, learning_rate=RATE,
                gradient_scale=norm.factor, weight_decay=0.0)
        return self.weights @ passed.scores.log_probs

    def state(self):
        """All bits that a step changes."""
        return self.trainer.masters.tobytes() + self.moments.tobytes()


def operations(folder, lengths):
    """Two for each multiply-add of a step: of weights and of attention, which sees half of the positions, forward; the
    same again backward, of attention five products for two. The weights are frozen: no gradients of theirs, and what the
    adapter itself takes, less than 2 % of it, is not counted; nor is what is computed again."""
    c = json.loads((Path(folder) / "config.json").read_text())
    hidden, layers, size = c["hidden_size"], c["num_hidden_layers"], c["head_dim"]
    queries, keys = size * c["num_attention_heads"], size * c["num_key_value_heads"]
    weights = layers * hidden * (2 * queries + 2 * keys + 3 * c["intermediate_size"]) + c["vocab_size"] * hidden
    return sum(2 * length * (2 * weights + (2 + 5) * layers * queries * length / 2) for length in lengths)


def supervised(folder):
    tokens, masks = rows()
    lengths = [len(row) for row in tokens]
    limits, timed, states = harness.Limits(), [], {}
    for threads in (1, 2):
        harness.pin(threads)
        training = Training(folder, tokens, masks, threads)
        losses, seconds, peaks = [], [], []
        for step in range(STEPS if threads == 2 else 3):
            seconds.append(harness.seconds(lambda: losses.append(training.step())))
            peaks.append(limits.gflops())
            if step == 0:
                states[threads] = losses[-1], training.state()
        taken = statistics.median(seconds[1:])
        row = {
            "work": f"LoRA step, SmolLM2-135M, {sum(lengths)} tokens", "format": RECIPE, "threads": threads,
            "ours_ms": 1e3 * taken, "tokens_per_s": sum(lengths) / taken,
            "peak_share": 1e-9 * operations(folder, lengths) / (threads * statistics.median(peaks) * taken)}
        if timed:
            row["one_thread_ratio"] = timed[0]["ours_ms"] / row["ours_ms"]
        timed.append(row)
    yield states[1] == states[2], f"{RECIPE}: a step has the same bits on 1 thread and 2"
    yield training.updates == STEPS, f"{RECIPE}: {training.updates} of {STEPS} updates taken"
    yield (all(after < before for before, after in zip(losses, losses[1:])),
           f"{RECIPE}: the loss falls at every step, {' '.join(f'{loss:.3f}' for loss in losses)}")
    for row in timed:
        print(f"     {row['work']}, {row['threads']} thr: {row['ours_ms']:.0f} ms, {row['tokens_per_s']:.0f} tokens/s, "
              f"{row['peak_share']:.0%} of FMA peak")
    harness.write("training_real", timed, lockstep=lockstep.__version__, how="make check-real")


def reinforcement(folder):
    """Responses to the same prompts, worth the share of different tokens among them."""
    tokens, masks = rows()
    prompts = [row[:mask.index(True)] for row, mask in zip(tokens, masks)]

    def run(threads):
        environment = lockstep.Environment(
            prompts=lambda problem: prompts[problem % len(prompts)], max_tokens=16,
            rewards=lambda problem, prompt, response: len(set(response.tolist())) / len(response))
        made = lockstep.Run(
            environment, model=folder, lora_rank=RANK, lora_alpha=ALPHA, model_seed=1, learning_rate=RATE,
            trainer=RECIPE, prompts=2, samples=4, threads=threads)
        return [made.step().to_dict() for _ in range(2)]

    one, two = run(1), run(2)
    yield repr(one) == repr(two), f"{RECIPE}: two steps of a run have the same metrics on 1 thread and 2"
    yield (all(step["k3"] == step["max_abs_log_ratio"] == 0 and step["skipped"] == 0 for step in two),
           f"{RECIPE}: no mismatch in {sum(step['tokens'] for step in two)} tokens of a run of an adapter")
    yield two[0]["gradient_norm"] > 0, f"{RECIPE}: the gradient's norm is {two[0]['gradient_norm']:.3g}"


def main(folder, *names):
    passed = failed = 0
    checks = {"supervised": supervised, "reinforcement": reinforcement}
    for name in names or checks:
        for holds, text in checks[name](folder):
            print(f"{'ok  ' if holds else 'FAIL'} {text}", flush=True)
            passed, failed = passed + bool(holds), failed + (not holds)
    print(f"{passed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
