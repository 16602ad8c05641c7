"""`lockstep.adapters.verl` beside verl's own functions: losses, gradients, corrections, masks and metrics.

What differs is a line of docs/Adapters.md and has a test at the end of this file.
"""

from __future__ import annotations

import inspect
import json
import math

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
helper_metrics = helper.compute_offpolicy_metrics
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
        batch.without_empty()  # see below
    for settings in SETTINGS.get(loss, [{}]):
        for mode in MODES:
            for weights, info in ((False, {}), (True, GLOBAL)):
                about = config(info=info, **settings)
                compare(
                    batch, run(THEIRS[loss], batch, mode, about, weights),
                    run(adapter.LOSSES[loss], batch, mode, about, weights))


def test_the_loss_may_be_changed_in_place():
    """verl's actor takes entropy and divergence from it that way."""
    batch, current = Batch(4), Batch(4).current.requires_grad_()
    loss, _ = adapter.LOSSES["vanilla"](
        batch.trainer, current, batch.advantages, batch.mask, config=config())
    loss -= 0.5 * current.sum()
    loss.backward()
    alone = run(adapter.LOSSES["vanilla"], batch, "token-mean", config(), False)[1]
    torch.testing.assert_close(current.grad, alone - 0.5)


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


def test_offpolicy_metrics_without_rollout():
    batch = Batch(5)
    theirs = helper_metrics(batch.trainer, None, batch.mask)
    ours = adapter.compute_offpolicy_metrics(batch.trainer, None, batch.mask)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=1e-6)


def test_the_mean_weight_of_all_processes(tmp_path):
    """With several processes verl normalises over all; one process of one is enough to take that way."""
    batch = Batch(6)
    how = {"rollout_is": "token", "rollout_is_batch_normalize": True}
    alone = corrected(adapter.compute_rollout_correction_and_rejection_mask, batch, **how)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        together = corrected(adapter.compute_rollout_correction_and_rejection_mask, batch, **how)
        theirs = corrected(CORRECT, batch, **how)
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(together[0], alone[0])
    torch.testing.assert_close(together[0], theirs[0], rtol=1e-6, atol=0)
    name = "rollout_corr/rollout_is_batch_norm_factor"
    assert together[2][name] == pytest.approx(theirs[2][name], rel=1e-6)


def test_arguments_are_verls():
    """Names, order and defaults; annotations are ours."""
    pairs = [(THEIRS[name], adapter.LOSSES[name]) for name in THEIRS] + [
        (CORRECT, adapter.compute_rollout_correction_and_rejection_mask), (core.agg_loss, adapter.agg_loss),
        (helper_metrics, adapter.compute_offpolicy_metrics),
        (core.compute_policy_loss_reinforce, adapter.compute_policy_loss_reinforce)]
    for theirs, ours in pairs:
        shape = lambda function: [  # noqa: E731
            (each.name, each.default) for each in inspect.signature(function).parameters.values()]
        assert shape(ours) == shape(theirs), theirs.__name__


@pytest.fixture
def restored(monkeypatch):
    """verl's own functions come back after a test that installs ours."""
    for name, each in THEIRS.items():
        monkeypatch.setitem(core.POLICY_LOSS_REGISTRY, name, each)
    for name in ("compute_rollout_correction_and_rejection_mask", "compute_offpolicy_metrics"):
        monkeypatch.setattr(helper, name, getattr(helper, name))


def test_install(restored):
    """verl's own steps then take ours: the correction of a batch, and the loss that a worker looks up."""
    from verl.protocol import DataProto
    from verl.trainer.config.algorithm import RolloutCorrectionConfig

    adapter.install()
    assert all(core.get_policy_loss_fn(name) is each for name, each in adapter.LOSSES.items())
    batch = Batch(7)
    data = DataProto.from_dict(tensors={
        "old_log_probs": batch.trainer, "rollout_log_probs": batch.rollout,
        "response_mask": batch.mask.long()})
    # A case that verl's own function cannot do shows whose it is.
    about = RolloutCorrectionConfig(rollout_is="token", rollout_is_threshold="900_901")
    data, metrics = helper.compute_rollout_correction_and_add_to_batch(data, about)
    assert (data.batch["rollout_is_weights"] == 0).all()
    assert metrics["rollout_corr/rollout_is_eff_sample_size"] == 0


# What differs on purpose, the table of docs/Adapters.md. Each test also shows that verl still does what it says.

def same_metrics(ours, theirs, but=()):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if name not in but:
            assert ours[name] == pytest.approx(value, rel=1e-6, abs=1e-7), name


@pytest.mark.parametrize("how", CORRECTIONS[:4], ids=str)
def test_figures_of_sequences_without_tokens(how):
    """T1: ours are those of the other sequences alone; so are verl's, if it does not see the empty ones."""
    whole, part = Batch(8, empty=True), Batch(8, empty=True).without_empty()
    theirs = corrected(CORRECT, whole, **how)[2]
    ours = corrected(adapter.compute_rollout_correction_and_rejection_mask, whole, **how)[2]
    same_metrics(ours, corrected(CORRECT, part, **how)[2])
    for name in ("training_ppl", "rollout_ppl", "chi2_seq", "log_ppl_abs_diff"):
        assert abs(theirs[f"rollout_corr/{name}"] - ours[f"rollout_corr/{name}"]) > 1e-3


def test_geo_mean_of_sequences_without_tokens():
    """T6: the mean is over those that have tokens."""
    whole, part = Batch(9, empty=True), Batch(9, empty=True).without_empty()
    about = config()
    theirs, ours, right = (run(function, batch, "token-mean", about, False)[0] for function, batch in (
        (THEIRS["geo_mean"], whole), (adapter.LOSSES["geo_mean"], whole), (THEIRS["geo_mean"], part)))
    assert ours == pytest.approx(float(right), rel=1e-7)
    assert theirs == pytest.approx(float(right) * len(part.mask) / len(whole.mask), rel=1e-7)


def test_every_weight_rejected():
    """T4: an exception there."""
    batch = Batch(10)
    how = {"rollout_is": "token", "rollout_is_threshold": "900_901"}
    with pytest.raises(ZeroDivisionError):
        corrected(CORRECT, batch, **how)
    for more in ({}, {"rollout_is_batch_normalize": True}):
        weights, mask, metrics = corrected(
            adapter.compute_rollout_correction_and_rejection_mask, batch, **how, **more)
        assert (weights == 0).all() and metrics["rollout_corr/rollout_is_eff_sample_size"] == 0
        assert torch.equal(mask.bool(), batch.mask)
        assert metrics.get("rollout_corr/rollout_is_batch_norm_factor", 1) == 1


def test_every_token_rejected():
    """0 / 0 there: the loss is not a number; ours is 0 and so is its gradient."""
    batch, about = Batch(11), config(rollout_correction={
        "loss_type": "reinforce", "rollout_rs": "token_k1", "rollout_rs_threshold": "900_901"})
    assert run(THEIRS["bypass_mode"], batch, "token-mean", about, False)[0].isnan()
    loss, gradient, metrics = run(adapter.LOSSES["bypass_mode"], batch, "token-mean", about, False)
    assert loss == 0 and (gradient == 0).all() and metrics["rollout_corr/rollout_rs_masked_fraction"] == 1


def test_nan_padding():
    """NaN times 0 is NaN."""
    batch, about = Batch(12), config()
    clean = run(adapter.LOSSES["vanilla"], batch, "seq-mean-token-mean", about, False)
    for name in ("current", "trainer", "advantages"):
        setattr(batch, name, getattr(batch, name).masked_fill(~batch.mask, math.nan))
    assert run(THEIRS["vanilla"], batch, "seq-mean-token-mean", about, False)[0].isnan()
    found = run(adapter.LOSSES["vanilla"], batch, "seq-mean-token-mean", about, False)
    assert found[0] == clean[0] and torch.equal(found[1], clean[1]) and found[2] == clean[2]


def test_non_finite_log_probs_are_errors():
    """T3: figures of minus infinity and NaN there."""
    batch = Batch(13)
    batch.rollout[0, 0] = -math.inf
    assert math.isinf(corrected(CORRECT, batch)[2]["rollout_corr/kl"])
    with pytest.raises(lockstep.NonFiniteError, match="sequence 0"):
        corrected(adapter.compute_rollout_correction_and_rejection_mask, batch)


def test_large_log_ratios_in_float32():
    """T3: exp overflows there."""
    batch = Batch(14, torch.float32)
    batch.rollout[0, 0] = batch.trainer[0, 0] - 100
    assert math.isinf(corrected(CORRECT, batch)[2]["rollout_corr/k3_kl"])
    found = corrected(adapter.compute_rollout_correction_and_rejection_mask, batch)[2]["rollout_corr/k3_kl"]
    assert found == pytest.approx(math.exp(100) / int(batch.mask.sum()), rel=1e-4)


def test_sums_beyond_the_clamp():
    """There each token's log ratio is held within 20 before it is added; ours holds the sum."""
    batch = Batch(15, sequences=1, length=3)
    batch.mask[:] = True
    gap = torch.tensor([[30.0, -10.0, -10.0]], dtype=torch.float64)
    batch.rollout = batch.trainer - gap
    how = {"rollout_rs": "seq_sum_k1", "rollout_rs_threshold": str(math.exp(9))}
    assert corrected(CORRECT, batch, **how)[1].all()  # 20 - 20 = 0
    assert not corrected(adapter.compute_rollout_correction_and_rejection_mask, batch, **how)[1].any()  # 10


def test_the_random_share_of_clip_cov():
    """As many tokens, chosen by torch's seed, but not the same ones."""
    batch, about = Batch(16), config(clip_cov_ratio=0.02, clip_cov_lb=0.01)
    theirs = [run(THEIRS["clip_cov"], batch, "token-mean", about, False, seed) for seed in range(8)]
    ours = [run(adapter.LOSSES["clip_cov"], batch, "token-mean", about, False, seed) for seed in range(8)]
    again = run(adapter.LOSSES["clip_cov"], batch, "token-mean", about, False, 3)
    assert torch.equal(again[1], ours[3][1])
    shares = {round(each[2]["actor/pg_clipfrac"], 6) for each in theirs + ours}
    assert len(shares) == 1 and shares != {0.0}
    assert any(not torch.equal(one[1], other[1]) for one, other in zip(theirs, ours))


def test_advantages_in_16_bits_are_refused():
    batch, about = Batch(17), config()
    batch.advantages = batch.advantages.bfloat16()
    run(THEIRS["vanilla"], batch, "token-mean", about, False)
    with pytest.raises(lockstep.LockstepError, match="advantages"):
        run(adapter.LOSSES["vanilla"], batch, "token-mean", about, False)


def test_the_interval_of_k1_is_verls():
    """T2: of rollout / trainer, the inverse of IcePop's. A bound in a config means what it meant."""
    batch = Batch(18, sequences=2, length=1)
    batch.mask[:] = True
    batch.rollout = batch.trainer - torch.tensor([[3.0], [0.3]], dtype=torch.float64).log()
    for function in (CORRECT, adapter.compute_rollout_correction_and_rejection_mask):
        how = {"rollout_rs": "token_k1", "rollout_rs_threshold": "0.5_5.0"}
        assert corrected(function, batch, **how)[1].tolist() == [[0], [1]]
        weights = corrected(function, batch, rollout_is="token", rollout_is_threshold="0.5_5.0")[0]
        assert (weights > 0).tolist() == [[True], [False]]


@pytest.mark.parametrize("how, match", [
    ({"rollout_is": "word"}, "rollout_is is 'word'; give 'token'"),
    ({"rollout_is": "token", "rollout_is_threshold": "3_2"}, "give a positive number, or two"),
    ({"rollout_is": "token", "rollout_is_threshold": True}, "rollout_is_threshold is True"),
    ({"rollout_rs": "token_k9", "rollout_rs_threshold": 1}, "no rule 'token_k9'; there are seq_max_k2"),
    ({"rollout_rs": "token_k1"}, "rollout_rs_threshold: is missing"),
    ({"rollout_rs": "token_k1,token_k2", "rollout_rs_threshold": "1,2,3"}, "3 thresholds for 2 rules"),
    ({"rollout_rs": "token_k2", "rollout_rs_threshold": "1_2"}, "upper bound only"),
])
def test_words_and_thresholds(how, match):
    """verl refuses these too."""
    batch = Batch(19)
    with pytest.raises((ValueError, TypeError)):
        corrected(CORRECT, batch, **how)
    with pytest.raises(lockstep.InvalidArgumentError, match=match):
        corrected(adapter.compute_rollout_correction_and_rejection_mask, batch, **how)


def test_missing_parts():
    batch = Batch(20)
    with pytest.raises(lockstep.InvalidArgumentError, match="no token counts"):
        adapter.compute_offpolicy_metrics(batch.trainer, batch.rollout, batch.mask & False)
    with pytest.raises(lockstep.InvalidArgumentError, match="shapes"):
        adapter.compute_offpolicy_metrics(batch.trainer, batch.rollout[:1], batch.mask)
    with pytest.raises(lockstep.InvalidArgumentError, match="config: is missing"):
        run(adapter.LOSSES["vanilla"], batch, "token-mean", None, False)
    with pytest.raises(lockstep.InvalidArgumentError, match="dro_beta is None"):
        run(adapter.LOSSES["dro"], batch, "token-mean", config(), False)
    with pytest.raises(lockstep.InvalidArgumentError, match="loss_agg_mode is 'mean'"):
        adapter.agg_loss(batch.trainer, batch.mask, "mean")
    with pytest.raises(lockstep.InvalidArgumentError, match="batch_num_tokens: is missing"):
        adapter.agg_loss(batch.trainer, batch.mask, "token-mean", dp_size=2)
