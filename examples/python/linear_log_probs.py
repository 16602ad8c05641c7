"""Log-probs straight from hidden states: the logits never exist in memory. A trainer scores the whole
sequence in one pass; a sampler meets its tokens one by one with a prepared head. Same bits."""

import math

import numpy as np

import lockstep

TOKENS, H, VOCAB = 24, 256, 8000


def values(count, first=0):
    """Some values in [-0.5, 0.5), the same in every language."""
    x = np.arange(first, first + count, dtype=np.uint32) * np.uint32(2654435761)
    x = (x ^ x >> np.uint32(15)) * np.uint32(2246822519)
    return ((x ^ x >> np.uint32(13)) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24) - np.float32(0.5)


hidden = lockstep.convert(values(TOKENS * H).reshape(TOKENS, H), "bf16")
weight = lockstep.convert(values(VOCAB * H, 1000003).reshape(VOCAB, H), "bf16")
targets = np.arange(TOKENS, dtype=np.int32) * 331 % VOCAB
# The head's logits are rounded to BF16, as a 16-bit head does.
options = dict(temperature=0.8, logits_dtype="bf16")

# The trainer: all tokens at once.
whole = lockstep.linear_log_probs(hidden, weight, targets, entropy=True, **options)

# The sampler: one token after another.
with lockstep.Head(weight) as head:
    single = np.concatenate([head.log_probs(hidden[i : i + 1], targets[i : i + 1], **options) for i in range(TOKENS)])

for i in range(4):
    log_prob, entropy = whole.log_probs[i], whole.entropy[i]
    print(f"token {i}: log-prob {log_prob:.6f}, bits {log_prob.view(np.uint32):08x}, entropy {entropy:.6f}")
total = 0.0
for log_prob in whole.log_probs:
    total += float(log_prob)
same = int((whole.log_probs.view(np.uint32) == single.view(np.uint32)).sum())
print(f"perplexity {math.exp(-total / TOKENS):.4f}")
print(f"one pass and one by one: {same} of {TOKENS} tokens have the same bits")
raise SystemExit(same != TOKENS)
