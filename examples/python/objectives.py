"""A policy step in parts: GRPO's clipped objective on two micro-batches, with the loss of the whole."""

import numpy as np

import lockstep

SEQUENCES, LENGTH = 6, 100


def values(count, first=0):
    """Some values in [-0.5, 0.5), the same in every language."""
    x = np.arange(first, first + count, dtype=np.uint32) * np.uint32(2654435761)
    x = (x ^ x >> np.uint32(15)) * np.uint32(2246822519)
    return ((x ^ x >> np.uint32(13)) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24) - np.float32(0.5)


tokens = SEQUENCES * LENGTH
trainer = (values(tokens) - np.float32(0.5)).reshape(SEQUENCES, LENGTH)
current = trainer + values(tokens, tokens).reshape(SEQUENCES, LENGTH)
advantages = np.array([1, -1, 0.5, -0.5, 2, -2])

objective = lockstep.Objective(term="clip", low=0.8, high=1.28, aggregation="seq_mean_token_mean")
parts = [slice(0, 4), slice(4, 6)]
for part in parts:  # first what the denominators count, ...
    objective.count(current[part], trainer[part], advantages[part])
for part in parts:  # ... then loss and gradient
    gradient = objective.evaluate(current[part], trainer[part], advantages[part])
    print(f"d loss / d log-prob of {len(gradient)} sequences: {gradient[0, 0]:.9f}, {gradient[0, 1]:.9f}")

report = objective.report()
print(f"loss {report.loss:.9f} over {report.tokens} tokens of {report.sequences} sequences")
print(f"ratio {report.ratio_min:.4f} to {report.ratio_max:.4f}, mean {report.ratio_mean:.4f}")
print(f"clipped {100 * report.clip_low:.1f} % below, {100 * report.clip_high:.1f} % above")
whole = lockstep.objective_loss(
    current, trainer, advantages, term="clip", low=0.8, high=1.28, aggregation="seq_mean_token_mean")
print(f"the whole at once: {'the same bits' if whole.loss == report.loss else 'another loss'}")
