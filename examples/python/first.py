import numpy as np

import lockstep

logits = np.array([[1, 2, 3, 4], [0, 0, 8, 0]], np.float32)  # or fp16, bf16, a PyTorch tensor, DLPack
trainer = lockstep.log_probs(logits, np.array([3, 2], np.int32))
rollout = np.array([-0.45, -0.001], np.float32)
found = lockstep.mismatch(trainer, rollout)
print(f"log-probs {trainer[0]:.6f} {trainer[1]:.6f}")
print(f"mean |log ratio| {found.mean_abs_log_ratio.value:.6f}, k3 {found.k3.value:.3e}")
