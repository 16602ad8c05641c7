"""A row's bits do not depend on its batch: token 17 is scored alone and among others."""

import numpy as np

import lockstep

TOKENS, H, VOCAB, TOKEN = 64, 576, 4096, 17


def values(count, first=0):
    """Some values in [-0.5, 0.5), the same in every language."""
    x = np.arange(first, first + count, dtype=np.uint32) * np.uint32(2654435761)
    x = (x ^ x >> np.uint32(15)) * np.uint32(2246822519)
    return ((x ^ x >> np.uint32(13)) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24) - np.float32(0.5)


hidden = values(TOKENS * H).reshape(TOKENS, H)
weight = values(VOCAB * H, 1000003).reshape(VOCAB, H)
targets = np.arange(TOKENS, dtype=np.int32) * 61 % VOCAB


def score(batch):
    """The log-prob of token 17 in a batch."""
    return lockstep.linear_log_probs(hidden[batch], weight, targets[batch])[TOKEN - batch.start]


def bits(number):
    return f"{np.float32(number).view(np.uint32):08x}"


batches = [slice(first, first + count) for first, count in ((17, 1), (16, 2), (15, 3), (10, 8), (0, 64))]
for batch in batches:
    found = score(batch)
    print(f"in a batch of {batch.stop - batch.start:2}: log-prob {found:.6f}, bits {bits(found)}")
same = len({bits(score(batch)) for batch in batches}) == 1
print("the same bits:", "yes" if same else "no")

# What PyTorch makes of the same question, if it is installed.
try:
    import torch
except ImportError:
    torch = None
if torch:
    x, w, y = torch.from_numpy(hidden), torch.from_numpy(weight), torch.from_numpy(targets).long()
    for format in (torch.float32, torch.bfloat16):
        found = set()
        for batch in batches:
            logits = x[batch].to(format) @ w.to(format).T
            log_probs = logits.float().log_softmax(-1).gather(-1, y[batch, None])
            found.add(bits(log_probs[TOKEN - batch.start].item()))
        print(f"PyTorch {torch.__version__}, {format}: {len(found)} different results: {', '.join(sorted(found))}")

raise SystemExit(not same)
