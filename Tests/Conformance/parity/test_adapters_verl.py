"""`lockstep.adapters.verl` beside verl's own functions: losses, gradients, corrections, masks and metrics.

What differs is a line of docs/Adapters.md and has a test at the end of this file.
"""

from __future__ import annotations

import inspect
import json
import math
import types

import numpy as np
import pytest

from conftest import VECTORS

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
core = pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl is not installed (make test PEERS=1)")

from verl.trainer.ppo import rollout_corr_helper as helper  # noqa: E402
from verl.workers.config.actor import ActorConfig, PolicyLossConfig  # noqa: E402

import lockstep  # noqa: E402
from lockstep.adapters import verl as adapter  # noqa: E402

GOLDEN = json.loads((VECTORS / "objectives.json").read_text())["inputs"]
#: verl's own, before anything is installed in their place.
THEIRS = {name: each for name, each in core.POLICY_LOSS_REGISTRY.items() if not name.startswith("lockstep_")}
CORRECT = helper.compute_rollout_correction_and_rejection_mask
MODES = ["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
GLOBAL = {"dp_size": 2, "batch_num_tokens": 1000, "global_batch_size": 16, "loss_scale_factor": 64}


class Batch:
    """A padded batch; of every sequence at least a token counts, unless `empty`."""

    def __init__(self, seed, dtype=torch.float64, sequences=9, length=24, spread=0.3, empty=False):
        rng = np.random.default_rng(seed)
        lengths = rng.integers(1, length + 1, sequences)
        mask = np.arange(length) < lengths[:, None]
        mask &= (rng.random(mask.shape) < 0.9) | (np.arange(length) == 0)
        if empty:
            mask[[0, -1]] = False
        shape = mask.shape
        current = -rng.exponential(1, shape)
        self._fill(
            dtype, current, np.minimum(current + rng.normal(0, spread, shape), -1e-3), rng.normal(0, spread, shape),
            rng.normal(0, 1, shape), mask, rng.uniform(0.2, 2, shape))

    def _fill(self, dtype, current, trainer, gap, advantages, mask, weights):
        make = lambda array: torch.tensor(array, dtype=dtype)  # noqa: E731
        self.current, self.trainer, self.rollout = make(current), make(trainer), make(trainer - gap)
        self.advantages, self.weights, self.mask = make(advantages), make(weights), torch.tensor(mask)

    @classmethod
    def golden(cls, name, dtype=torch.float64):
        arrays = {key: np.array(value, float) for key, value in GOLDEN[name].items() if key != "note"}
        batch = cls.__new__(cls)
        mask = arrays["mask"] > 0
        trainer, rollout = (np.where(mask, arrays[key], -1) for key in ("old_log_prob", "rollout_log_prob"))
        batch._fill(
            dtype, np.where(mask, arrays["log_prob"], -1), trainer, trainer - rollout,
            np.where(mask, arrays["advantages"], 0), mask, np.where(mask, arrays["rollout_is_weights"], 1))
        return batch

    def without_empty(self):
        rows = self.mask.any(1)
        for name, each in vars(self).items():
            setattr(self, name, each[rows])
        return self

    @property
    def tolerance(self):
        """verl's counts have 1e-8 added; SAPO's gate is in the advantages' type."""
        return 1e-7 if self.current.dtype == torch.float64 else 3e-5


def config(**more):
    policy = {name: more.pop(name) for name in list(more) if name in PolicyLossConfig.__dataclass_fields__}
    info = more.pop("info", {})
    return ActorConfig(**{
        "strategy": "fsdp", "rollout_n": 1, "ppo_micro_batch_size_per_gpu": 1, "clip_ratio_high": 0.28,
        "policy_loss": PolicyLossConfig(**policy), "global_batch_info": info} | more)


def run(function, batch, mode, about, weights, seed=0):
    torch.manual_seed(seed)
    current = batch.current.clone().requires_grad_()
    loss, metrics = function(
        old_log_prob=batch.trainer, log_prob=current, advantages=batch.advantages, response_mask=batch.mask,
        loss_agg_mode=mode, config=about, rollout_is_weights=batch.weights if weights else None)
    (loss * 3).backward()
    return loss.detach(), current.grad / 3, metrics


def compare(batch, theirs, ours):
    (loss, gradient, metrics), (my_loss, my_gradient, my_metrics) = theirs, ours
    close = lambda mine, wanted, atol: np.testing.assert_allclose(  # noqa: E731
        mine, wanted, rtol=batch.tolerance, atol=atol)
    assert my_loss.dtype == loss.dtype and my_gradient.dtype == gradient.dtype
    close(my_loss, loss, batch.tolerance * float(gradient.abs().sum()))
    close(my_gradient, gradient, batch.tolerance * float(gradient.abs().max()))
    assert my_metrics.keys() == metrics.keys()
    for name, value in metrics.items():
        same_metric(batch, name, my_metrics[name], value)


def same_metric(batch, name, mine, theirs):
    """Standard deviations are differences of nearly equal squares there."""
    single = batch.current.dtype == torch.float32
    loose = (2e-3 if single else 2e-7) if "std" in name else (3e-6 if single else 1e-12)
    np.testing.assert_allclose(mine, theirs, rtol=max(batch.tolerance, 2e-6), atol=loose, err_msg=name)


BATCHES = {
    "ragged": lambda dtype: Batch(1, dtype), "wide": lambda dtype: Batch(2, dtype, spread=1.5),
    "padding": lambda dtype: Batch(3, dtype, empty=True),
    **{f"golden {name}": lambda dtype, name=name: Batch.golden(name, dtype) for name in GOLDEN}}
#: What the random share of clip_cov is left to: every candidate, or none.
SETTINGS = {
    "dro": [{"dro_beta": 0.1}],
    "clip_cov": [{"clip_cov_ratio": 1.0, "clip_cov_lb": 0.1}, {"clip_cov_lb": 900.0, "clip_cov_ub": 901.0}],
    "kl_cov": [{"kl_cov_ratio": 0.05, "ppo_kl_coef": 0.3}],
    "bypass_mode": [{"rollout_correction": each} for each in (
        {"loss_type": "reinforce", "rollout_is": "token"},
        {"loss_type": "reinforce", "rollout_is": "sequence", "rollout_is_batch_normalize": True},
        {"loss_type": "ppo_clip", "rollout_rs": "token_k1", "rollout_rs_threshold": "0.6_1.5"},
        {"loss_type": "reinforce", "rollout_rs": "token_k3", "rollout_rs_threshold": 0.1})],
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("loss", sorted(adapter.LOSSES))
def test_losses(loss, name, dtype):
    batch = BATCHES[name](dtype)
    empty = not batch.mask.any(1).all()
    if empty and loss in ("geo_mean", "bypass_mode"):
        pytest.skip("T6, T1: see below")
    for settings in SETTINGS.get(loss, [{}]):
        for mode in MODES:
            for weights in (False, True):
                for info in ({}, GLOBAL):
                    if loss == "clip_cov" and info:
                        continue
                    about = config(info=info, **settings)
                    compare(
                        batch, run(THEIRS[loss], batch, mode, about, weights),
                        run(adapter.LOSSES[loss], batch, mode, about, weights))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("info", [{}, GLOBAL], ids=["one process", "two"])
def test_agg_loss(mode, info):
    batch = Batch(4)
    found = []
    for function in (core.agg_loss, adapter.agg_loss):
        values = batch.weights.clone().requires_grad_()
        loss = function(values, batch.mask, mode, **info)
        loss.backward()
        found.append((loss.detach(), values.grad))
    for theirs, ours in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=0)


CORRECTIONS = [
    {}, {"rollout_is": "token"}, {"rollout_is": "sequence"}, {"rollout_is": "token", "rollout_is_threshold": 1.2},
    {"rollout_is": "token", "rollout_is_threshold": "0.5_5.0"},
    {"rollout_is": "sequence", "rollout_is_threshold": "0.2_4.0", "rollout_is_batch_normalize": True},
    {"rollout_is": "token", "rollout_is_batch_normalize": True},
    {"rollout_is": None, "rollout_rs": "token_k1", "rollout_rs_threshold": "0.5_3.0"},
    {"rollout_is": "sequence", "rollout_rs": "seq_mean_k3,token_k2", "rollout_rs_threshold": "0.05,0.1"},
    *({"rollout_rs": name, "rollout_rs_threshold": "0.8_1.5" if name.endswith("k1") else 0.1}
      for name in sorted(helper.SUPPORTED_ROLLOUT_RS_OPTIONS)),
    {"rollout_rs": "seq_sum_k1, seq_max_k2", "rollout_rs_threshold": 1.7},
]


def corrected(function, batch, **how):
    proto, mask, metrics = function(batch.trainer, batch.rollout, batch.mask.to(torch.int64), **how)
    return None if proto is None else proto.batch["rollout_is_weights"], mask, metrics


@pytest.mark.parametrize("how", CORRECTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", ["ragged", "wide", "golden ragged", "golden large_ratio"])
def test_corrections(name, dtype, how):
    batch = BATCHES[name](dtype).without_empty()
    weights, mask, metrics = corrected(CORRECT, batch, **how)
    my_weights, my_mask, my_metrics = corrected(adapter.compute_rollout_correction_and_rejection_mask, batch, **how)
    assert (weights is None) == (my_weights is None)
    if weights is not None:
        torch.testing.assert_close(my_weights, weights, rtol=batch.tolerance, atol=0)
    assert my_mask.dtype == mask.dtype and torch.equal(my_mask, mask)
    assert my_metrics.keys() == metrics.keys()
    for key, value in metrics.items():
        same_metric(batch, key, my_metrics[key], value)
