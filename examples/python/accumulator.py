"""A log on many machines: each worker adds up its sequences and sends some bytes; merged, they say what one
pass over the whole log says, bit for bit, and what made the mismatch. Here the trainer's log-probs were
stored in BF16."""

import numpy as np

import lockstep

SEQUENCES, LENGTH = 40, 500


def values(count, first=0):
    """Some values in [-0.5, 0.5), the same in every language."""
    x = np.arange(first, first + count, dtype=np.uint32) * np.uint32(2654435761)
    x = (x ^ x >> np.uint32(15)) * np.uint32(2246822519)
    return ((x ^ x >> np.uint32(13)) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24) - np.float32(0.5)


def work(worker, workers):
    """A worker's share of the log, every so-many-th sequence, added as it is read."""
    accumulator = lockstep.MismatchAccumulator()
    for id in range(worker, SEQUENCES, workers):
        half = values(LENGTH, id * LENGTH) + np.float32(0.5)
        rollout = np.float32(-8) * half * half
        accumulator.update(lockstep.convert(rollout, "bf16"), rollout, ids=np.array([id]))
    return accumulator.to_bytes()


for workers in 1, 2, 7:
    total = lockstep.MismatchAccumulator()
    for worker in reversed(range(workers)):  # in any order
        total.merge(lockstep.MismatchAccumulator.from_bytes(work(worker, workers)))
    found = total.report()
    hash = 2166136261
    for byte in total.to_bytes():  # FNV-1a of all that the accumulator holds
        hash = (hash ^ byte) * 16777619 & 0xFFFFFFFF
    print(f"{workers} worker{': ' if workers == 1 else 's:'} {found.tokens} tokens, k3 ({1e5 * found.k3.value:.4f} +- "
          f"{1e5 * found.k3.standard_error:.4f})e-5, hash {hash:08x}")

cause = total.causes()[0]
print(f"cause: {cause.name.replace('_', ' ')}, {100 * cause.confidence:.0f} % sure, explains {100 * cause.score:.0f} %")
