"""Weights and mask of a correction: token ratios truncated at 2 (TIS), and a sequence left out if one of its
tokens is all but impossible for the trainer (a veto)."""

import lockstep

trainer = [[-0.10, -1.20, -0.05], [-2.30, -0.70], [-0.40, -9.90, -0.30, -1.10]]
rollout = [[-0.11, -2.20, -0.05], [-2.25, -0.72], [-0.38, -0.20, -0.30, -1.00]]
veto = lockstep.Rejection("ratio", "sequence_every", low=1e-4)
found = lockstep.correct(trainer, rollout, high=2.0, reject=[veto])

for weights, kept in zip(found.weights, found.kept):
    print(*(f"{weight:.4f}{'' if keep else ' out'}" for weight, keep in zip(weights, kept)), sep="  ")
print(f"{found.above} of {found.tokens} truncated, {found.rejected_sequences} of {found.sequences} sequences out")
print(f"mean ratio {found.ratio.mean:.4f}, mean weight {found.weight.mean:.4f}, of those kept {found.kept_weight.mean:.4f}")
