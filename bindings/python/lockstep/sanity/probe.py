"""What a policy's engines do to its gradients, measured on rollouts of its own.

The masters of a checkpoint are run as trainer and as rollout engine, and once more in fp32, whose own error (a relative
5e-6 of any tensor's gradient against float64 at most: docs/Training.md) is thousands of times below what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lockstep

from .experiment import Pair, Settings

# Seeds of probes' draws; runs' are small numbers.
_SEEDS = 1 << 63
REFERENCE = "fp32"


def probe(folder: Path, pair: Pair, algorithm: str, problems: Sequence[int], settings: Settings, *, seed: int,
          loss_scale: float = 1.0, threads: int = 1) -> dict[str, float]:
    """Measures the policy in a folder, on as many rollouts as a step has.

    Args:
        folder: Hugging Face folder with the float32 masters.
        pair: the engines.
        algorithm: a key of `ALGORITHMS`.
        problems: which problems to draw responses to.
        settings: of the run.
        seed: of the draws.
        loss_scale: the trainer's; halved while gradients overflow, as a scaler would.
        threads: they do not change the result.

    Returns:
        ``exact_kl``: KL(μ ‖ π) over the vocabulary, nats a token.
        ``gradient_error``, ``gradient_angle``: relative distance, and 1 − cosine, of the algorithm's gradient from that
        of the reference policy on the same rollouts, with the exact weight π/μ of each sequence and no bound:
        an unbiased estimate of the on-policy gradient.
        ``pass_error``, ``pass_angle``: the same of forward and backward passes in the trainer's format and in fp32, for
        the same gradients of log-probs: rounding alone, without the loss. ``backward_error``, ``backward_angle``: of
        backward passes of one forward pass, that in the trainer's format.
        ``loss_scale``: with which the gradients did not overflow.
    """
    preset = lockstep.preset(f"paper/{algorithm}")
    batch = _Batch(folder, pair.rollout, problems, settings, seed, threads)
    trainer = lockstep.Model(folder, pair.trainer)
    pi = batch.score(trainer, threads)
    advantages = preset.advantages(batch.rewards, groups=batch.groups)
    options: dict[str, Any] = {"groups": batch.groups}
    if preset.objective_options["aggregation"] == "seq_mean_token_sum_norm":
        options["length"] = float(batch.longest)
    loss = preset.loss(pi, pi, batch.mu, advantages, batch.mask, batch.offsets, **options)

    recipe = lockstep.Recipe(pair.trainer)
    gradient, scale = _gradient(folder, recipe, batch, loss.d_log_probs, loss_scale, threads)
    unrounded, _ = _gradient(folder, dict(recipe) | {"gradients": REFERENCE}, batch, loss.d_log_probs, 1.0, threads)
    in_fp32, _ = _gradient(folder, REFERENCE, batch, loss.d_log_probs, 1.0, threads)

    exact = batch.score(lockstep.Model(folder, REFERENCE), threads)
    ratios = np.exp(np.add.reduceat(np.where(batch.mask, exact - batch.mu, 0.0), batch.offsets[:-1]))
    weights = np.repeat(ratios, np.diff(batch.offsets))
    ideal = preset.loss(exact, exact, batch.mu, advantages, batch.mask, batch.offsets, weights=weights,
                        kept=np.ones(len(weights), bool), **options)
    reference, _ = _gradient(folder, REFERENCE, batch, ideal.d_log_probs, 1.0, threads)
    found = {
        "exact_kl": batch.exact_kl(trainer, lockstep.Model(folder, pair.rollout), threads), "loss_scale": scale}
    for name, other in (("gradient", reference), ("pass", in_fp32), ("backward", unrounded)):
        found[f"{name}_error"], found[f"{name}_angle"] = _difference(gradient, other)
    return found


class _Batch:
    """Rollouts of a policy, packed, prompts included."""

    def __init__(self, folder: Path, rollout: str, problems: Sequence[int], settings: Settings, seed: int,
                 threads: int) -> None:
        task = lockstep.Task(settings.task, size=settings.task_size)
        prompts = [task.prompt(number, seed=settings.task_seed) for number in problems]
        drawn = lockstep.Model(folder, rollout).generate(
            prompts, samples=settings.samples, seed=_SEEDS + seed, max_tokens=task.longest_response,
            stop_ids=() if task.stop_id is None else (task.stop_id,), capacity=64, threads=threads)
        asked = [prompts[each.id // settings.samples] for each in drawn]
        self.longest = task.longest_response
        self.rewards = np.array([task.reward(prompt, each.tokens) for prompt, each in zip(asked, drawn)])
        self.groups = np.array([each.id // settings.samples for each in drawn])
        self.sequences = [np.concatenate([prompt, each.tokens]) for prompt, each in zip(asked, drawn)]
        self.offsets = np.cumsum([0, *map(len, self.sequences)])
        self.tokens = np.concatenate(self.sequences).astype(np.int32)
        self.mask = np.concatenate([
            np.arange(len(prompt) + len(each.tokens)) >= len(prompt) for prompt, each in zip(asked, drawn)])
        self.mu = np.zeros(len(self.tokens))
        self.mu[self.mask] = np.concatenate([each.raw_log_probs for each in drawn])

    def score(self, model: lockstep.Model, threads: int) -> NDArray[np.float64]:
        """ln π of each token, by a model."""
        return model.score(self.tokens, self.offsets, threads=threads).log_probs.astype(np.float64)

    def exact_kl(self, trainer: lockstep.Model, rollout: lockstep.Model, threads: int) -> float:
        """KL(μ ‖ π) over the vocabulary, the mean over tokens that were drawn."""
        pi, mu = (model.logits(self.tokens, self.offsets, threads=threads) for model in (trainer, rollout))
        before = np.append(self.mask[1:], False)  # the logits that a token was drawn from follow the one before it
        return lockstep.exact_mismatch(pi[before], mu[before], threads=threads).mean.kl_rollout_trainer


def _gradient(folder: Path, recipe: Any, batch: _Batch, d_log_probs: NDArray, scale: float,
              threads: int) -> tuple[NDArray[np.float64], float]:
    trainer = lockstep.Trainer(folder, recipe, threads=threads)
    while trainer.accumulate(batch.tokens, d_log_probs, batch.offsets, loss_scale=scale).overflows and scale > 1:
        trainer.clear()
        scale /= 2
    return trainer.gradients().astype(np.float64), scale


def _difference(found: NDArray[np.float64], reference: NDArray[np.float64]) -> tuple[float, float]:
    """Relative distance, and 1 − cosine; NaN where one is 0."""
    norms = np.linalg.norm(found), np.linalg.norm(reference)
    if not norms[0] or not norms[1]:
        return float("nan"), float("nan")
    # Of unit vectors: 1 - cos = |a - b|² / 2, without its cancellation.
    apart = found / norms[0] - reference / norms[1]
    return float(np.linalg.norm(found - reference) / norms[1]), float(apart @ apart / 2)
