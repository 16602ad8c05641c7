"""A named algorithm: what it means, and a loss by it with one option changed."""

import numpy as np

import lockstep

trainer, rollout, current = np.log([[[0.5, 0.25, 0.5]], [[0.125, 0.25, 0.5]], [[0.5, 0.25, 0.25]]])

preset = lockstep.preset("paper/grpo-token-tis")
print(preset)

correction = preset.correct(trainer, rollout, high=2)  # C = 2, as its released script has it
result = preset.loss(current, trainer, rollout, [1.0], correction=correction, length=4)
print(f"weights up to {correction.weights.max():.2f}, loss {result.loss:.4f}")
