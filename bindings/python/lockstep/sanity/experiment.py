"""What is run: pairs of engines, algorithms, seeds, and the settings that all runs share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lockstep

from .._errors import InvalidArgumentError

#: The order of a rollout engine that is not the trainer's: fewer roundings, split sums, online softmax.
INDEPENDENT_ORDER = "fused"

#: The paper's algorithms, by what they are called here; their presets are "paper/" and the name.
ALGORITHMS = {
    "grpo": "GRPO", "grpo-token-tis": "GRPO-Token-TIS", "grpo-seq-mis": "GRPO-Seq-MIS", "gspo": "GSPO",
    "pg-seq-is": "PG-Seq-IS", "pg-seq-tis": "PG-Seq-TIS", "pg-seq-mis": "PG-Seq-MIS",
}


@dataclass(frozen=True)
class Pair:
    """A trainer and a rollout engine, by their recipes."""

    name: str
    trainer: str
    rollout: str

    @classmethod
    def named(cls, name: str) -> Pair:
        """The pair of a name.

        ``bf16``: independent engines of one format. ``bf16/fp16``: trainer's and rollout's; the rollout's order is `fused`
        if it says none. ``bf16:lockstep``: both engines on this library.

        Raises:
            InvalidArgumentError: an unknown recipe.
        """
        plain, colon, end = name.partition(":")
        trainer, slash, rollout = plain.partition("/")
        if colon and (slash or end != "lockstep"):
            raise InvalidArgumentError(
                f"pair {name!r}: give FORMAT (independent engines), TRAINER/ROLLOUT, or FORMAT:lockstep")
        if not colon:
            rollout = rollout or trainer
            if "+" not in rollout:
                rollout += f"+{INDEPENDENT_ORDER}"
        else:
            rollout = trainer
        for recipe in (trainer, rollout):
            lockstep.Recipe(recipe)
        return cls(name, trainer, rollout)

    @property
    def must_be_zero(self) -> bool:
        """Whether the recipes are the same, so that no log-prob may differ in any bit."""
        return lockstep.Recipe(self.trainer).matches(self.rollout)

    @property
    def is_mixed(self) -> bool:
        """Whether the formats differ, leaving orders aside."""
        return self.trainer.partition("+")[0] != self.rollout.partition("+")[0]


@dataclass(frozen=True)
class Settings:
    """What all runs share: the experiment of 64 problems that the starting model solves now and then."""

    steps: int = 500
    probe_every: int = 50
    """Steps between probes, which need a checkpoint."""
    problems: int = 64
    """Of which the starting model solves 20 to 80 % of 32 samples."""
    prompts: int = 16
    samples: int = 8
    updates: int = 2
    learning_rate: float = 2e-4
    task: str = "chain"
    task_size: int = 32
    task_seed: int = 1

    def environment(self, problems: Sequence[int] | None = None) -> lockstep.Environment:
        """The task's problems, or some of them."""
        return lockstep.Environment(
            lockstep.Task(self.task, size=self.task_size), seed=self.task_seed, problems=problems)


@dataclass(frozen=True)
class Job:
    """A run. What it gives is a function of `config` alone."""

    pair: Pair
    algorithm: str
    seed: int
    settings: Settings
    model: Path
    model_digest: str
    """SHA-256 of the starting weights: where they are does not matter."""
    problem_numbers: tuple[int, ...]

    @property
    def name(self) -> str:
        """That of its file."""
        return f"{self.pair.name.replace('/', '_').replace(':', '_')}.{self.algorithm}.{self.seed}"

    @property
    def config(self) -> dict[str, Any]:
        """All that the run is a function of."""
        return {
            "lockstep_version": lockstep.__version__, "pair": asdict(self.pair), "algorithm": self.algorithm,
            "seed": self.seed, "settings": asdict(self.settings), "model_sha256": self.model_digest,
            "problems": list(self.problem_numbers)}


def starting_model() -> Path:
    """The built-in starting model of the chain task, which `make pretrain` makes."""
    places = (Path(__file__).parent / "chain-sft", Path(__file__).parents[4] / "examples" / "data" / "chain-sft")
    return next((place for place in places if (place / "config.json").exists()), places[0])


def digest(model: Path) -> str:
    """SHA-256 of configuration and weights of a Hugging Face folder."""
    found = hashlib.sha256()
    for file in (model / "config.json", *sorted(model.glob("*.safetensors"))):
        found.update(file.read_bytes())
    return found.hexdigest()


def jobs(pairs: Sequence[Pair], algorithms: Sequence[str], seeds: int, settings: Settings, model: Path, *,
         mixed_algorithms: Sequence[str] | None = None, threads: int = 0) -> list[Job]:
    """Every run, seed by seed, so that a first picture is there early.

    Args:
        pairs, algorithms: every pair with every algorithm.
        seeds: 0 to this, without it.
        settings: what they share.
        model: the starting model, a Hugging Face folder.
        mixed_algorithms: with which mixed pairs are run; None: with every one.
        threads: for finding the problems.

    Raises:
        LockstepError: the model; or it solves too few problems now and then.
    """
    numbers = lockstep.perfectible(
        lockstep.Model(model), settings.environment(), count=settings.problems, seed=settings.task_seed,
        threads=threads)
    weights = digest(model)
    mixed = algorithms if mixed_algorithms is None else [name for name in algorithms if name in mixed_algorithms]
    return [
        Job(pair, algorithm, seed, settings, model, weights, tuple(numbers))
        for seed in range(seeds) for algorithm in algorithms for pair in pairs
        if not pair.is_mixed or algorithm in mixed]
