"""The logs on which we and the others are compared: vectors, small witnesses, random and real ones."""

from __future__ import annotations

import functools
import gzip
import json

import numpy as np

import rollouts
from peers import GOLDEN, Log


def number(value):
    return float(value) if isinstance(value, str) else value


def _vector(source) -> Log:
    return Log(np.array(source["train_logprobs"], np.float64), np.array(source["rollout_logprobs"], np.float64),
               np.array(source["mask"], bool))


def _padded(sequences, filler=0.0, dtype=np.float64) -> Log:
    """From (trainer, rollout, mask) of each sequence."""
    length = max(len(each[0]) for each in sequences)
    out = [np.full((len(sequences), length), filler, dtype) for _ in range(2)]
    out.append(np.zeros((len(sequences), length), bool))
    for row, sequence in enumerate(sequences):
        for target, source in zip(out, sequence):
            target[row, :len(source)] = source
    return Log(*out)


def _random(seed) -> Log:
    """Ragged, holes in the mask, single tokens, heavy tails; garbage in the padding. Values are float32."""
    rng = np.random.default_rng(seed)
    sequences = []
    for length in rng.choice([1, 1, 2, 3, 17, 60, 250], size=int(rng.integers(2, 14))):
        rollout = np.log(rng.beta(2, 0.5, length)).astype(np.float32)
        noise = rng.choice([0, 1e-4, 0.03, 0.5]) * rng.standard_t(2, length).clip(-15, 15)
        mask = rng.random(length) < rng.choice([0.3, 0.8, 1])
        mask[rng.integers(length)] = True
        sequences.append((np.minimum(rollout + noise, 0).astype(np.float32), rollout, mask))
    return _padded(sequences, filler=rng.normal(0, 3))


def _real(path) -> Log:
    with gzip.open(path, "rt") as lines:
        records = [json.loads(line) for line in lines]
    return _padded([(np.float32(each["trainer_logprobs"]), np.float32(each["inference_logprobs"]),
                     np.array(each["loss_mask"], bool)) for each in records])


_ROLLOUT = np.array([[-1, -2, -0.5, -3], [-0.25, -1.5, -0.125, -2], [-0.75, -1, -1, -1]])
_D = np.array([[0.5, -0.25, 0.125, 1], [-0.5, 0.25, -1, 0.5], [0.25, 0.25, 0.25, 0.25]])
_RAGGED = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], bool)
_NAN_PADDING = [np.where(_RAGGED, each, np.nan) for each in (_ROLLOUT + _D, _ROLLOUT)]
# T1: one sequence of two tokens, three that hold nothing.
_DILUTED = np.array([[1, 1], [0, 0], [0, 0], [0, 0]], bool)

LOGS = {
    **{f"vectors/{name}": functools.partial(_vector, source) for name, source in GOLDEN["inputs"].items()},
    "ragged": lambda: Log(_ROLLOUT + _D, _ROLLOUT, _RAGGED),
    "full": lambda: Log(_ROLLOUT + _D, _ROLLOUT, np.ones((3, 4), bool)),
    "NaN padding": lambda: Log(*_NAN_PADDING, _RAGGED),
    # Two tokens with ln pi = -2 and ln mu = -1, and three rows of padding.
    "three empty rows": lambda: Log(np.where(_DILUTED, -2.0, 0), np.where(_DILUTED, -1.0, 0), _DILUTED),
    "empty rows, d > 0": lambda: Log(
        np.where(_DILUTED, -1.0, 0), np.where(_DILUTED, -2.0, 0), _DILUTED),
    # T7: the ratio is 1.105 everywhere, and half of the positions are padding.
    "constant ratio": lambda: Log(
        np.array([[-0.9, -0.9, 0, 0]]), np.array([[-1.0, -1, 0, 0]]), np.array([[1, 1, 0, 0]], bool)),
    # T3, in the float32 of a training loop.
    "overflow in float32": lambda: Log(
        np.array([[-1, -1]], np.float32), np.array([[-101, -1]], np.float32), np.ones((1, 2), bool)),
    # Ratios of e^-19: the 1e-8 that guards verl's division is as large as the weights.
    "tiny weights": lambda: Log(
        np.array([[-19.5, -20, -20]]), np.array([[-0.5, -0.5, -1]]), np.ones((1, 3), bool)),
    **{f"random/{seed}": functools.partial(_random, seed) for seed in range(8)},
    **{f"real/{name}": functools.partial(_real, path) for name, path in rollouts.SHIPPED.items()},
}

# What a line of known-differences.txt may be tied to.
CONDITIONS = {
    "padding": lambda log: not log.mask.all(),
    "NaN padding": lambda log: np.isnan(log.trainer[~log.mask]).any(),
    "empty rows": lambda log: not log.mask.any(axis=1).all(),
    "one token": lambda log: log.mask.sum() == 1,
    "float32, d > 88": lambda log: log.trainer.dtype == np.float32 and _largest(log) > 88,
    "sum of d above 20": lambda log: np.where(log.mask, log.trainer - log.rollout, 0).sum(axis=1).max() > 20,
    "every d below -10": lambda log: _largest(log) < -10,
}


def _largest(log):
    return (log.trainer - log.rollout)[log.mask].max()


@functools.cache
def log(name: str) -> Log:
    return LOGS[name]()
