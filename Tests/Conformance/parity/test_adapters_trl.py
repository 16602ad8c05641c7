"""`lockstep.adapters.trl` beside TRL's own `GRPOTrainer`: losses, gradients, importance weights and metrics.

The trainer is the real one, without the parts that load models: its log-probs are given. What differs is a line of
docs/Adapters.md and has a test at the end of this file.
"""

from __future__ import annotations

import collections
import json
import types

import numpy as np
import pytest

from conftest import VECTORS

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
trl = pytest.importorskip("trl", reason="trl is not installed (make test PEERS=1)")
try:
    from trl import GRPOConfig, GRPOTrainer
except Exception as error:  # what it imports is not installed
    pytest.skip(f"trl's GRPOTrainer cannot be imported: {error}", allow_module_level=True)

import lockstep  # noqa: E402
from lockstep.adapters import trl as adapter  # noqa: E402

GOLDEN = json.loads((VECTORS / "objectives.json").read_text())["inputs"]
LOSSES = ["grpo", "bnpo", "dapo", "dr_grpo", "luspo", "cispo", "sapo", "vespo"]


class Theirs(GRPOTrainer):
    """TRL's trainer, of which only `_compute_loss` and what it calls is used."""

    def __init__(self, config, log_probs, entropies, vllm, training=True):  # not its own: that loads a model
        self.args = config
        for name in ("loss_type", "importance_sampling_level", "off_policy_mask_threshold", "beta",
                     "top_entropy_quantile", "entropy_coef", "use_adaptive_entropy",
                     "vllm_importance_sampling_correction", "vllm_importance_sampling_mode",
                     "vllm_importance_sampling_clip_min", "vllm_importance_sampling_clip_max"):
            setattr(self, name, getattr(config, name))
        self.use_vllm, self.max_completion_length = vllm, log_probs.shape[1]
        self.epsilon_low = config.epsilon
        self.epsilon_high = config.epsilon if config.epsilon_high is None else config.epsilon_high
        self.aux_loss_enabled, self.current_gradient_accumulation_steps = False, 4
        self._entropy_bonus_enabled = config.entropy_coef != 0.0 or config.use_adaptive_entropy
        self.model = types.SimpleNamespace(training=training)
        self._metrics = {"train": collections.defaultdict(list), "eval": collections.defaultdict(list)}
        self.accelerator = types.SimpleNamespace(
            num_processes=1, sync_gradients=True, gather=lambda x: x, reduce=lambda x, reduction: x,
            pad_across_processes=lambda x, **how: x)
        self.given = log_probs, entropies

    def _get_per_token_logps_and_entropies(self, *args, **options):
        return *self.given, None

    def _generate_and_score_completions(self, inputs):
        return dict(inputs)

    def figures(self):
        metrics = self._metrics["train" if self.model.training else "eval"]
        return {name: value for name, (value,) in metrics.items()}


class Ours(adapter.LockstepMixin, Theirs):
    pass


def padded(seed, dtype=torch.float64, sequences=7, length=20, spread=0.3, empty=False):
    rng = np.random.default_rng(seed)
    make = lambda array: torch.tensor(array, dtype=dtype)  # noqa: E731
    lengths = rng.integers(1, length + 1, sequences)
    if empty:
        lengths[2] = 0
    mask = np.arange(length) < lengths[:, None]
    shape = mask.shape
    current = -rng.exponential(1, shape)
    noise = lambda: rng.normal(0, spread, shape)  # noqa: E731
    ids = torch.zeros(sequences, 3, dtype=torch.int64)
    inputs = {
        "prompt_ids": ids, "prompt_mask": ids + 1, "completion_ids": torch.zeros(shape, dtype=torch.int64),
        "completion_mask": torch.tensor(mask).long(), "advantages": make(rng.normal(0, 1, sequences)),
        "old_per_token_logps": make(current + noise()), "ref_per_token_logps": make(current + noise()),
        "sampling_per_token_logps": make(current + noise()),
        "num_items_in_batch": torch.tensor(int(mask.sum()) * 8)}
    return make(current), make(rng.uniform(0, 2, shape)), inputs


def golden(name, dtype=torch.float64):
    arrays = {key: np.array(value, float) for key, value in GOLDEN[name].items() if key != "note"}
    mask = arrays["mask"] > 0
    make = lambda key: torch.tensor(  # noqa: E731
        np.where(mask, arrays[key], -1.0), dtype=dtype)
    ids = torch.zeros(len(mask), 3, dtype=torch.int64)
    return make("log_prob"), -make("log_prob"), {
        "prompt_ids": ids, "prompt_mask": ids + 1, "completion_ids": torch.zeros(mask.shape, dtype=torch.int64),
        "completion_mask": torch.tensor(mask).long(),
        "advantages": torch.tensor(arrays["row_advantages"], dtype=dtype),
        "old_per_token_logps": make("old_log_prob"), "ref_per_token_logps": make("ref_log_prob"),
        "sampling_per_token_logps": make("rollout_log_prob"), "num_items_in_batch": torch.tensor(int(mask.sum()))}


BATCHES = {
    "ragged": lambda dtype: padded(1, dtype), "wide": lambda dtype: padded(2, dtype, spread=1.0),
    "padding": lambda dtype: padded(3, dtype, empty=True),
    **{f"golden {name}": lambda dtype, name=name: golden(name, dtype) for name in GOLDEN}}

SETTINGS = {
    "plain": {}, "kl": {"beta": 0.04, "use_bias_correction_kl": False},
    "kl corrected": {"beta": 0.1, "use_bias_correction_kl": True},
    "delta": {"delta": 1.5}, "sequences": {"importance_sampling_level": "sequence"},
    "sequences kl": {"importance_sampling_level": "sequence", "beta": 0.1, "use_bias_correction_kl": True},
    "opsm": {"off_policy_mask_threshold": 0.02}, "entropies": {"top_entropy_quantile": 0.4, "beta": 0.04},
    "bonus": {"entropy_coef": 0.01}, "wider": {"epsilon": 0.1, "epsilon_high": 0.28},
    "delta, corrected kl": {"delta": 1.5, "beta": 0.1, "use_bias_correction_kl": True},
}


def settings(loss, about, **more):
    about = {"loss_type": loss} | about | more
    if loss == "cispo":
        about["epsilon_high"] = 2.0
    return GRPOConfig(output_dir="unused", bf16=False, report_to=[], **about)


def run(kind, config, batch, mode=None, training=True):
    log_probs, entropies, inputs = batch
    log_probs, entropies = log_probs.clone().requires_grad_(), entropies.clone().requires_grad_()
    if mode is not None:
        config.vllm_importance_sampling_mode = mode
    trainer = kind(config, log_probs, entropies, vllm=mode is not None, training=training)
    if mode is not None:
        inputs = inputs | {"importance_sampling_ratio": weights(config, inputs)}
    loss = trainer._compute_loss(None, dict(inputs))
    (loss * 2).backward()
    slope = entropies.grad if entropies.grad is not None else torch.zeros_like(entropies)
    return loss.detach(), log_probs.grad / 2, slope / 2, trainer.figures()


def weights(config, inputs):
    """TRL's lines: they stand in the middle of what generates."""
    gap = (inputs["old_per_token_logps"] - inputs["sampling_per_token_logps"]) * inputs["completion_mask"]
    gap = torch.nan_to_num(gap, nan=0.0)
    level, kind = config.vllm_importance_sampling_mode.split("_")
    ratio = (gap.sum(-1, keepdim=True) if level == "sequence" else gap).exp()
    low, high = config.vllm_importance_sampling_clip_min, config.vllm_importance_sampling_clip_max
    if kind == "truncate":
        return ratio.clamp(low, high)
    return ratio.masked_fill((ratio < (low or 0)) | (ratio > high), 0.0)


def compare(theirs, ours, dtype, but=()):
    # Temperatures of SAPO are float32 there.
    tolerance = 2e-6 if dtype == torch.float64 else 2e-4
    close = lambda mine, wanted, name: np.testing.assert_allclose(  # noqa: E731
        mine, wanted, rtol=tolerance, atol=tolerance * 1e-1, err_msg=name)
    for mine, wanted, name in zip(ours, theirs, ("loss", "gradient", "entropies")):
        assert mine.dtype == wanted.dtype
        close(mine, wanted, name)
    assert ours[3].keys() == theirs[3].keys()
    for name, value in theirs[3].items():
        if name not in but:
            close(ours[3][name], value, name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("loss", LOSSES)
def test_losses(loss, name, dtype):
    batch = BATCHES[name](dtype)
    empty = not batch[2]["completion_mask"].any(1).all()
    for about in SETTINGS.values():
        level = about.get("importance_sampling_level", "token")
        but = set()  # shares of sequences have those without tokens there
        if empty and (level == "sequence" or loss == "vespo"):
            but |= {"vespo/phi_seq_mean", *(f"clip_ratio/{what}" for what in (
                "low_mean", "high_mean", "region_mean", "low_min", "high_max")), "cispo_clip_ratio"}
        for mode in (None, "token_truncate", "sequence_mask"):
            if loss == "vespo" and mode == "sequence_mask":
                continue
            training = "beta" in about or "entropy_coef" in about
            make = lambda: settings(loss, about)  # noqa: E731
            compare(run(Theirs, make(), batch, mode, training), run(Ours, make(), batch, mode, training), dtype, but)


# Importance weights

@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
@pytest.mark.parametrize("bounds", [(None, 3.0), (0.7, 1.4)])
def test_importance_sampling_ratio(mode, bounds):
    for name in BATCHES:
        for dtype in (torch.float64, torch.float32):
            _, _, inputs = BATCHES[name](dtype)
            config = settings("grpo", {}, vllm_importance_sampling_mode=mode)
            config.vllm_importance_sampling_clip_min, config.vllm_importance_sampling_clip_max = bounds
            ours, _ = adapter.importance_sampling_ratio(
                inputs["old_per_token_logps"], inputs["sampling_per_token_logps"], inputs["completion_mask"],
                mode=mode, clip_min=bounds[0], clip_max=bounds[1])
            torch.testing.assert_close(ours, weights(config, inputs), rtol=1e-5, atol=1e-12)


def test_the_weights_are_exchanged_where_batches_are_made():
    log_probs, entropies, inputs = padded(5)
    config = settings("grpo", {}, vllm_importance_sampling_mode="token_truncate")
    trainer = Ours(config, log_probs, entropies, vllm=True)
    stale = inputs | {"importance_sampling_ratio": torch.full_like(log_probs, 7.0)}
    made = trainer._generate_and_score_completions(stale)
    torch.testing.assert_close(made["importance_sampling_ratio"], weights(config, inputs))
    mask = inputs["completion_mask"].bool()
    raw = (inputs["old_per_token_logps"] - inputs["sampling_per_token_logps"]).exp()[mask]
    found = trainer.figures()
    name = "sampling/importance_sampling_ratio"
    assert found[f"{name}/raw_max"] == pytest.approx(float(raw.max()))
    assert found[f"{name}/raw_mean"] == pytest.approx(float(raw.mean()))
    assert found[f"{name}/effective_sample_size"] < 1 and found["sampling/unscored_tokens"] == 0


# What differs on purpose, the table of docs/Adapters.md. Each test also shows that TRL still does what it says.

def test_cispo_with_a_bound_below_one():
    """T10: on policy, every token is scaled to 0.2."""
    log_probs, entropies, inputs = padded(6)
    inputs["old_per_token_logps"] = log_probs
    whole = run(Theirs, settings("cispo", {}), (log_probs, entropies, inputs))[1]
    config = GRPOConfig(output_dir="unused", bf16=False, report_to=[], loss_type="cispo")
    theirs = run(Theirs, config, (log_probs, entropies, inputs))[1]
    torch.testing.assert_close(theirs, 0.2 * whole)
    with pytest.raises(lockstep.InvalidArgumentError, match="epsilon_high is 0.2.*give 5.0"):
        run(Ours, config, (log_probs, entropies, inputs))


def test_nan_padding():
    log_probs, entropies, inputs = padded(7)
    clean = run(Ours, settings("grpo", {"beta": 0.04}), (log_probs, entropies, inputs))
    hidden = inputs["completion_mask"] == 0
    for name in ("old_per_token_logps", "ref_per_token_logps"):
        inputs[name] = inputs[name].masked_fill(hidden, float("nan"))
    dirty = log_probs.masked_fill(hidden, float("nan")), entropies.masked_fill(hidden, float("nan")), inputs
    assert run(Theirs, settings("grpo", {"beta": 0.04}), dirty)[0].isnan()
    found = run(Ours, settings("grpo", {"beta": 0.04}), dirty)
    assert found[0] == clean[0] and torch.equal(found[1], clean[1]) and found[3] == clean[3]


def test_tokens_without_a_sampling_log_prob():
    """There they count as drawn by the very same policy."""
    _, _, inputs = padded(8)
    sampled = inputs["sampling_per_token_logps"].clone()
    sampled[:, 0] = float("nan")
    config = settings("grpo", {}, vllm_importance_sampling_mode="token_truncate")
    arguments = inputs["old_per_token_logps"], sampled, inputs["completion_mask"]
    assert (weights(config, inputs | {"sampling_per_token_logps": sampled})[:, 0] == 1).all()
    ours, found = adapter.importance_sampling_ratio(*arguments, mode="token_truncate")
    assert (ours[:, 0] == 0).all() and found.excluded_tokens == len(ours)
    config.vllm_importance_sampling_mode = "sequence_truncate"
    ours, _ = adapter.importance_sampling_ratio(*arguments, mode="sequence_truncate")
    torch.testing.assert_close(ours, weights(config, inputs | {"sampling_per_token_logps": sampled}))


def test_figures_of_sequences_without_tokens():
    """Shares of sequences are there of all rows."""
    batch = padded(3, spread=1.0, empty=True)
    config = lambda: settings("grpo", {"importance_sampling_level": "sequence"})  # noqa: E731
    theirs, ours = run(Theirs, config(), batch)[3], run(Ours, config(), batch)[3]
    counted = batch[2]["completion_mask"].any(1)
    share = counted.float().mean().item()
    for name in ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"):
        assert theirs[name] == pytest.approx(share * ours[name], rel=1e-6)
    assert share < 1 and theirs["clip_ratio/region_mean"] < ours["clip_ratio/region_mean"]


def test_figures_before_the_bounds():
    """T11: TRL's largest ratio is never above its bound; ours is beside it."""
    _, _, inputs = padded(9, spread=2.0)
    config = settings("grpo", {}, vllm_importance_sampling_mode="token_truncate")
    assert weights(config, inputs).max() == config.vllm_importance_sampling_clip_max
    _, found = adapter.importance_sampling_ratio(
        inputs["old_per_token_logps"], inputs["sampling_per_token_logps"], inputs["completion_mask"],
        mode="token_truncate", clip_max=config.vllm_importance_sampling_clip_max)
    assert found.ratio.max > config.vllm_importance_sampling_clip_max == found.weight.max


def test_adaptive_entropy_is_refused():
    batch = padded(10)
    config = settings("grpo", {}, use_adaptive_entropy=True)
    with pytest.raises(lockstep.UnsupportedError, match="use_adaptive_entropy.*entropy_coef"):
        adapter.patch(Theirs(config, *batch[:2], vllm=False))


def test_non_finite_log_probs_are_errors():
    log_probs, entropies, inputs = padded(11)
    log_probs[0, 0] = float("nan")
    assert run(Theirs, settings("grpo", {}), (log_probs, entropies, inputs))[0].isnan()
    with pytest.raises(lockstep.NonFiniteError):
        run(Ours, settings("grpo", {}), (log_probs, entropies, inputs))


@pytest.mark.parametrize("about, match", [
    ({"loss_type": "ppo"}, "loss_type is 'ppo'; give grpo"), ({"importance_sampling_level": "word"}, "'token' or"),
])
def test_words(about, match):
    batch = padded(12)
    trainer = Theirs(settings("grpo", {}), *batch[:2], vllm=False)
    for name, value in about.items():
        setattr(trainer, name, value)
    with pytest.raises(lockstep.InvalidArgumentError, match=match):
        adapter.patch(trainer)
    with pytest.raises(lockstep.InvalidArgumentError, match="vllm_importance_sampling_mode is 'word_mask'"):
        adapter.importance_sampling_ratio(batch[0], batch[0], batch[2]["completion_mask"], mode="word_mask")


def test_patch():
    batch = padded(13)
    trainer = Theirs(settings("grpo", {}), *batch[:2], vllm=False)
    assert adapter.patch(trainer) is trainer and adapter.patch(trainer) is trainer
    assert [each.__name__ for each in type(trainer).__mro__[:3]] == ["Theirs", "LockstepMixin", "Theirs"]


# A real trainer

def small_trainer(folder, **more):
    """A model of two layers and 32 words, with rewards that favour one of them."""
    import tokenizers
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    words = {f"w{index}": index for index in range(30)} | {"<pad>": 30, "<end>": 31}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<end>")
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=30, eos_token_id=31, bos_token_id=None)).save_pretrained(folder)
    config = GRPOConfig(
        output_dir=str(folder), bf16=False, report_to=[], use_cpu=True, per_device_train_batch_size=4,
        num_generations=4, max_completion_length=6, max_steps=2, num_iterations=2, learning_rate=0.1,
        save_strategy="no", disable_tqdm=True, seed=1, beta=0.05, logging_steps=1,
        model_init_kwargs={"dtype": "float32"}, **more)
    return GRPOTrainer(
        model=str(folder), args=config, processing_class=tokenizer,
        reward_funcs=lambda completions, **_: [float(len(set(each.split()))) for each in completions],
        train_dataset=Dataset.from_dict({"prompt": ["w1 w2", "w3 w4"] * 4}))


def test_training(tmp_path):
    """Two steps, the second off policy: the weights and the log are those of TRL alone."""
    found = []
    for prepare in (lambda trainer: trainer, adapter.patch):
        trainer = prepare(small_trainer(tmp_path))
        trainer.train()
        log = [{name: value for name, value in each.items() if name in ("loss", "kl", "entropy", "grad_norm")
                or name.startswith("clip_ratio")} for each in trainer.state.log_history if "loss" in each]
        found.append((log, torch.cat([each.detach().flatten() for each in trainer.model.parameters()])))
    (theirs, weights_of_theirs), (ours, weights_of_ours) = found
    assert len(ours) == 2 and "clip_ratio/high_mean" in ours[1] and ours[1]["grad_norm"] > 0
    for one, other in zip(theirs, ours):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-5)
    torch.testing.assert_close(weights_of_ours, weights_of_theirs, rtol=1e-3, atol=1e-4)
