"""Early warning: a training loop whose two engines begin to drift apart at step 80, and one call a step
that says so."""

import numpy as np

import lockstep

TOKENS, STEPS, DRIFTS_FROM = 4000, 200, 80


def values(count, first=0):
    """Some values in [-0.5, 0.5), the same in every language."""
    x = np.arange(first, first + count, dtype=np.uint32) * np.uint32(2654435761)
    x = (x ^ x >> np.uint32(15)) * np.uint32(2246822519)
    return ((x ^ x >> np.uint32(13)) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24) - np.float32(0.5)


def sample(step):
    """What your trainer has at a step: both engines' log-probs of the tokens that were sampled."""
    noise = np.float32(0.125) * np.float32(1 + 0.03125 * max(step - DRIFTS_FROM, 0))
    half = values(TOKENS, step * TOKENS) + np.float32(0.5)
    rollout = np.float32(-8) * half * half
    return rollout + noise * half * values(TOKENS, step * TOKENS + 1_000_000), rollout


monitor, last = lockstep.Monitor(), None
for step in range(STEPS):
    alarm = monitor.update(step, lockstep.mismatch(*sample(step)))
    if alarm.level != last:
        print(f"step {step:3}: {alarm.level}")
    last = alarm.level
    if alarm:  # look before the reward falls
        break

print(f"{alarm.statistic} is {alarm.value:.4g}, its floor {alarm.floor:.4g}, growing since step {alarm.since_step}")
print(f"score {alarm.score:.1f}, an alarm from {alarm.threshold:.1f} on")
