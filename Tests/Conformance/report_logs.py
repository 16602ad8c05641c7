"""A training run made of a shipped log, whose mismatch begins to grow: for reports over training steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from rollouts import SHIPPED

from lockstep.logs import gather, open_log

STEPS, GROWS_FROM, SEQUENCES = 80, 55, 12


def write_run(path: Path, shipped: str = "bf16") -> Path:
    """Each step has some sequences of the shipped log; from a step on their d grow by 8 % a step."""
    log = gather(open_log(SHIPPED[shipped]))
    draw = np.random.default_rng(1)
    with open(path, "w") as file:
        for step in range(STEPS):
            growth = np.float32(1.08 ** max(step - GROWS_FROM, 0))
            for index, sequence in enumerate(draw.integers(len(log.offsets) - 1, size=SEQUENCES)):
                part = slice(log.offsets[sequence], log.offsets[sequence + 1])
                d = log.trainer[part] - log.rollout[part]
                file.write(json.dumps({
                    "lockstep_id": step * SEQUENCES + index, "step": step, "mask": log.mask[part].tolist(),
                    "rollout": log.rollout[part].tolist(),
                    "trainer": np.minimum(log.rollout[part] + growth * d, 0).tolist()}) + "\n")
    return path
