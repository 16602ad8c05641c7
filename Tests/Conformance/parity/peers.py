"""What other systems compute: their own functions, run where they are installed, and golden vectors.

Everything takes a padded log [sequences x length] (trainer, rollout, mask) and gives the system's own names.
Tensors have the log's dtype, so float64 logs leave only a system's formula to differ.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import logging
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conftest import VECTORS

GOLDEN = json.loads((VECTORS / "mismatch.json").read_text())

# More than exp(20), where verl bounds its weights: nothing is truncated.
NO_THRESHOLD = 1e9


@dataclass(frozen=True)
class Log:
    """A padded log."""

    trainer: np.ndarray
    rollout: np.ndarray
    mask: np.ndarray

    def tensors(self):
        import torch

        return tuple(map(torch.from_numpy, (self.trainer, self.rollout, self.mask)))


class Absent(Exception):
    """A system, or something it imports, is not installed."""


def load(name: str):
    """A module of a system as it is."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Absent(f"{name.split('.')[0]} cannot be imported: {error}") from error


def load_alone(name: str, never_called: tuple[str, ...] = ()):
    """A module of a system without running the `__init__` of the packages it lies in, which import whole
    engines. `never_called` are packages that its neighbours import and that nothing here reaches."""
    if name in sys.modules:
        return sys.modules[name]
    package = importlib.util.find_spec(name.split(".")[0])
    if package is None:
        raise Absent(f"{name.split('.')[0]} is not installed")
    folders = [Path(each) for each in package.submodule_search_locations]
    stand_ins = {each: types.ModuleType(each) for each in never_called if each not in sys.modules}
    parts = name.split(".")
    for depth in range(1, len(parts)):
        parent = types.ModuleType(".".join(parts[:depth]))
        parent.__path__ = [str(folder.joinpath(*parts[1:depth])) for folder in folders]
        sys.modules.setdefault(parent.__name__, parent)
    sys.modules.update(stand_ins)
    try:
        return load(name)
    finally:
        for each in stand_ins:
            del sys.modules[each]


# verl

def verl(log: Log) -> dict:
    helper = load("verl.trainer.ppo.rollout_corr_helper")
    debug = load("verl.utils.debug.metrics")
    logging.getLogger(debug.__file__).setLevel(logging.ERROR)
    trainer, rollout, mask = log.tensors()
    found = dict(helper.compute_offpolicy_metrics(trainer, rollout, mask))
    found |= debug.calculate_debug_metrics(types.SimpleNamespace(batch={
        "rollout_log_probs": rollout, "old_log_probs": trainer, "response_mask": mask, "responses": mask}))
    for level in ("token", "sequence"):
        _, _, weights = helper.compute_rollout_correction_and_rejection_mask(
            trainer, rollout, mask, rollout_is=level, rollout_is_threshold=NO_THRESHOLD)
        found |= {("" if level == "token" else "sequence/") + key.removeprefix("rollout_corr/"): value
                  for key, value in weights.items() if "rollout_is_" in key}
    return found


# tinker-cookbook

def tinker(log: Log) -> dict:
    metrics = load("tinker_cookbook.rl.metrics")
    trainer, rollout, mask = log.tensors()
    borrow = lambda tensor: types.SimpleNamespace(to_torch=lambda: tensor)  # noqa: E731
    data = [types.SimpleNamespace(loss_fn_inputs={"logprobs": borrow(row), "mask": borrow(counted)})
            for row, counted in zip(rollout, mask)]
    return metrics.compute_kl_sample_train(data, list(trainer))


# SkyRL

def skyrl(log: Log) -> dict:
    name = "skyrl.backends.skyrl_train.utils.off_policy_correction_utils"
    correction = load_alone(name)
    settings = types.SimpleNamespace(
        tis_ratio_type="token", token_tis_ratio_clip_high=NO_THRESHOLD, sequence_mask_metric=None,
        outlier_token_is_threshold_low=None, outlier_token_is_threshold_high=None,
        token_mask_is_threshold_low=None, token_mask_is_threshold_high=None)
    trainer, rollout, mask = log.tensors()
    return correction.compute_off_policy_correction(trainer, rollout, mask, settings)[1]


# OpenRLHF

def openrlhf(log: Log) -> dict:
    loss = load_alone("openrlhf.models.loss", never_called=("deepspeed",))
    trainer, rollout, mask = log.tensors()
    policy = loss.PolicyLoss(is_correction_level="token", is_correction_mode="clip")
    result = policy(trainer, trainer, trainer * 0, mask, rollout)
    return {"vllm_kl": result[3].item()}


@dataclass(frozen=True)
class Peer:
    """A system that may be installed."""

    statistics: Callable[[Log], dict]
    #: Relative accuracy its own arithmetic allows on float64 logs.
    tolerance: float = 1e-9
    #: The same for figures whose names end so.
    looser: tuple[tuple[str, float], ...] = ()

    def accuracy(self, figure: str, log: Log) -> float:
        own = [value for ending, value in self.looser if figure.endswith(ending)]
        return max([self.tolerance, *own, 1e-6 if log.trainer.dtype == np.float32 else 0])


PEERS = {
    # ESS divides by the mean weight + 1e-8; a standard deviation is the root of a difference of squares.
    "verl": Peer(verl, looser=(("eff_sample_size", 1e-6), ("is_std", 1e-6))),
    "tinker-cookbook": Peer(tinker),
    # exp is taken in float32 whatever the log's dtype.
    "skyrl": Peer(skyrl, tolerance=3e-7, looser=(("is_ratio_std", 1e-4),)),
    "openrlhf": Peer(openrlhf),
}
