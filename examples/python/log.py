"""A log of two engines: written one sequence a call, read back in batches, measured as it is read."""

import os

import numpy as np

import lockstep

SEQUENCES, LENGTH, PROMPT = 20, 500, 100
PATH = "log.lockstep"


def values(count, first=0):
    """Some values in [-0.5, 0.5), the same in every language."""
    x = np.arange(first, first + count, dtype=np.uint32) * np.uint32(2654435761)
    x = (x ^ x >> np.uint32(15)) * np.uint32(2246822519)
    return ((x ^ x >> np.uint32(13)) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24) - np.float32(0.5)


if os.path.exists(PATH):
    os.remove(PATH)
with lockstep.LogWriter(PATH, model="example-0.1B", rollout_engine="vLLM", rollout_body="bf16", temperature=1,
                        log_prob_mode="raw") as log:
    for s in range(SEQUENCES):
        half = values(LENGTH, s * LENGTH) + np.float32(0.5)
        mask = np.arange(LENGTH) >= PROMPT
        rollout = np.float32(-8) * half * half * mask + np.float32(0)
        noise = np.float32(0.03125) * half * values(LENGTH, s * LENGTH + 1_000_000)
        log.append(id=s, step=s // 10, prompt_tokens=PROMPT, token_ids=(half * np.float32(50000)).astype(np.int32),
                   rollout=rollout, trainer=rollout + noise * mask, mask=mask)

log = lockstep.LogReader(PATH, max_tokens=6000)
header = log.header
print(f"{header.model}, sampled by {header.rollout_engine} in {header.rollout_body} at temperature {header.temperature:g}")
for batch in log:
    found = lockstep.mismatch(batch.trainer, batch.rollout, batch.mask, offsets=batch.offsets)
    print(f"{len(batch)} sequences from id {batch.ids[0]}, {found.tokens} tokens that count, k3 {found.k3.value:.4g}")
summary = log.summary
print(f"{summary.tokens} tokens, closed: {'yes' if summary.is_closed else 'no'}")
hash = 2166136261
with open(PATH, "rb") as file:  # FNV-1a of the file: the same bytes in every language
    for byte in file.read():
        hash = (hash ^ byte) * 16777619 & 0xFFFFFFFF
print(f"{summary.size / summary.tokens:.2f} bytes a token, file hash {hash:08x}")
os.remove(PATH)
