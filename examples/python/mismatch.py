"""How far apart are two engines? Here the trainer's log-probs are the rollout's, stored in 16 bits:
what BF16 costs against FP16, before any arithmetic differs."""

import numpy as np

import lockstep

SEQUENCES, LENGTH = 8, 500


def values(count, first=0):
    """Some values in [-0.5, 0.5), the same in every language."""
    x = np.arange(first, first + count, dtype=np.uint32) * np.uint32(2654435761)
    x = (x ^ x >> np.uint32(15)) * np.uint32(2246822519)
    return ((x ^ x >> np.uint32(13)) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24) - np.float32(0.5)


half = values(SEQUENCES * LENGTH) + np.float32(0.5)
rollout = (np.float32(-8) * half * half).reshape(SEQUENCES, LENGTH)
b, f = (lockstep.mismatch(lockstep.convert(rollout, format), rollout) for format in ("bf16", "fp16"))

print(f"{b.tokens} tokens in {b.sequences} sequences {'bf16':>15} {'fp16':>12}")
for name, bf16, fp16 in (
    ("mean |log ratio|", b.mean_abs_log_ratio.value, f.mean_abs_log_ratio.value),
    ("max |log ratio|", b.max_abs_log_ratio, f.max_abs_log_ratio),
    ("KL(rollout || trainer), k3", b.k3.value, f.k3.value),
    ("tokens that differ", b.share_differing.value, f.share_differing.value),
    ("effective sample size, sequences", b.sequence_ess, f.sequence_ess),
):
    print(f"{name:32} {bf16:12.4g} {fp16:12.4g}")
print(
    f"FP16 is {b.mean_abs_log_ratio.value / f.mean_abs_log_ratio.value:.1f} times nearer a token, "
    f"{b.k3.value / f.k3.value:.0f} times in KL"
)
