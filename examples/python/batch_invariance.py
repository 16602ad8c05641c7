"""A row's bits do not depend on its batch: 64 tokens are scored at once, one by one, and in between.
PyTorch's own result stands beside it, if it is installed."""

import numpy as np

import lockstep

TOKENS, H, VOCAB = 64, 576, 4096


def values(count, first=0):
    """Some values in [-0.5, 0.5), the same in every language."""
    x = np.arange(first, first + count, dtype=np.uint32) * np.uint32(2654435761)
    x = (x ^ x >> np.uint32(15)) * np.uint32(2246822519)
    return ((x ^ x >> np.uint32(13)) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24) - np.float32(0.5)


hidden = values(TOKENS * H).reshape(TOKENS, H)
weight = values(VOCAB * H, 1000003).reshape(VOCAB, H)
targets = np.arange(TOKENS, dtype=np.int32) * 61 % VOCAB


def score(log_probs, batch):
    """The log-probs of all tokens, `batch` tokens in a call."""
    cuts = [slice(first, first + batch) for first in range(0, TOKENS, batch)]
    return np.concatenate([log_probs(hidden[cut], targets[cut]) for cut in cuts])


def compare(name, log_probs):
    """Prints how many tokens keep their bits; returns how many do not."""
    whole, wrong = score(log_probs, TOKENS).view(np.uint32), 0
    for batch in (64, 63, 8, 2, 1):
        found = score(log_probs, batch)
        same = int((found.view(np.uint32) == whole).sum())
        print(f"{name}in batches of {batch:2}: {same} of {TOKENS} tokens have the same bits "
              f"(token 17: {found[17]:.6f}, {found.view(np.uint32)[17]:08x})")
        wrong += TOKENS - same
    return wrong


wrong = compare("", lambda x, y: lockstep.linear_log_probs(x, weight, y))

try:
    import torch
except ImportError:
    pass
else:
    def torch_log_probs(x, y):
        logits = torch.from_numpy(x) @ torch.from_numpy(weight).T
        return logits.log_softmax(-1).gather(-1, torch.from_numpy(y).long()[:, None])[:, 0].numpy()

    compare(f"PyTorch {torch.__version__} ", torch_log_probs)

raise SystemExit(wrong != 0)
