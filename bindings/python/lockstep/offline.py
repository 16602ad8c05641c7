"""The paper's offline figure: one model sampled from and rescored in pairs of recipes.

A rollout engine draws sequences in one recipe, a trainer scores them in another, and the two streams of log-probs are
measured as any log is. Where both recipes are the same, order included, the difference is 0 in every bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ._errors import InvalidArgumentError
from ._log_file import LogWriter
from ._mismatch import exact_mismatch
from ._models import Model, Recipe, Rollout, RolloutEngine
from .logs import open_log
from .survey import Survey, survey

#: Told what is being done, and how much of it all is done, in [0, 1].
Progress = Callable[[str, float], None]

# Sequences that run at a time; what is drawn does not depend on it.
_CAPACITY = 32


@dataclass(frozen=True)
class Engines:
    """Two engines by the orders of their arithmetic; the formats are the table's rows and columns."""

    name: str
    rollout: str
    trainer: str


#: As in the field: an inference engine with fused kernels, a trainer that runs the model's own code.
INDEPENDENT = Engines("independent", "fused", "eager")
#: Both on this library.
LOCKSTEP = Engines("lockstep", "lockstep", "lockstep")


@dataclass(frozen=True)
class Settings:
    """What is drawn."""

    samples: int
    """Sequences for each prompt."""
    max_tokens: int
    """Tokens drawn for a sequence, at most."""
    seed: int
    stop_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Pair:
    """What was found of two engines: a cell of the table."""

    engines: Engines
    rollout: Recipe
    trainer: Recipe
    survey: Survey
    exact_kl: float | None
    """KL(μ ‖ π) over the whole vocabulary, the mean over tokens that were drawn; None if it was not asked for."""

    @property
    def must_be_zero(self) -> bool:
        """Whether the recipes are the same."""
        return self.rollout.matches(self.trainer)

    @property
    def is_zero(self) -> bool:
        """Whether no log-prob differs in any bit."""
        return self.survey.statistics.share_differing.value == 0


@dataclass(frozen=True)
class _Drawn:
    recipe: Recipe
    prompts: list[list[int]]
    rollouts: list[Rollout]

    @property
    def sequences(self) -> list[list[int]]:
        return [prompt + rollout.tokens.tolist() for prompt, rollout in zip(self.prompts, self.rollouts, strict=True)]


def run(folder: Path, prompts: Sequence[Sequence[int]], recipes: Sequence[str], engines: Sequence[Engines],
        settings: Settings, logs: Path, *, exact_kl: bool = False, threads: int = 0,
        progress: Progress = lambda text, share: None) -> list[Pair]:
    """Samples and rescores in every pair of recipes, by every pair of engines.

    Args:
        folder: a Hugging Face folder, as `Model` takes it.
        prompts: token ids; each is answered `settings.samples` times.
        recipes: names without an order, "bf16" or "fp16-fp32head"; each is a row and a column.
        engines: pairs of orders; each is a table.
        settings: what is drawn.
        logs: a folder that gets the log of each pair, ``independent.bf16-fp16.lockstep``: rollout's recipe first.
        exact_kl: form the logits of both sides too, and take the KL over the vocabulary.
        threads: 0 is one for each processor this process may use.
        progress: told how far it is.

    Returns:
        By engines, then rollout, then trainer.

    Raises:
        LockstepError: the folder, the prompts; a value that left a recipe's range.
    """
    # Drawing a token at a time takes about three times as long as scoring as many.
    total = len(engines) * len(recipes) * (3 + len(recipes) * (3 if exact_kl else 1))
    done = 0.0

    def advance(text: str, work: float) -> None:
        nonlocal done
        done += work
        progress(text, min(1.0, done / total))

    def load(recipe: Recipe) -> Model:
        return Model(folder, recipe, progress=lambda read, values: advance(f"loading {recipe}: {read / values:.0%}", 0))

    found: list[Pair] = []
    for each in engines:
        drawn = [_draw(load(Recipe(_name(recipe, each.rollout))), prompts, settings, threads, advance)
                 for recipe in recipes]
        pairs: dict[tuple[int, int], Pair] = {}
        for column, recipe in enumerate(recipes):
            trainer = load(Recipe(_name(recipe, each.trainer)))
            for row, rollouts in enumerate(drawn):
                advance(f"{each.name}: {trainer.recipe} scores what {rollouts.recipe} drew", 1)
                path = logs / f"{each.name}.{recipes[row]}-{recipe}.lockstep"
                _write(path, folder, rollouts, trainer, settings, threads)
                label = f"{rollouts.recipe} → {trainer.recipe}"
                kl = _exact_kl(load(rollouts.recipe), rollouts, trainer, threads, advance) if exact_kl else None
                pairs[row, column] = Pair(
                    each, rollouts.recipe, trainer.recipe, survey(open_log(path, label=label), threads=threads), kl)
        found += [pairs[place] for place in sorted(pairs)]
    return found


def _name(recipe: str, order: str) -> str:
    return recipe if order == "lockstep" else f"{recipe}+{order}"


def _draw(model: Model, prompts: Sequence[Sequence[int]], settings: Settings, threads: int,
          advance: Callable[[str, float], None]) -> _Drawn:
    recipe = model.recipe
    engine = RolloutEngine(model, seed=settings.seed, stop_ids=settings.stop_ids, max_tokens=settings.max_tokens,
                           capacity=_CAPACITY, threads=threads)
    count = settings.samples
    for index, prompt in enumerate(prompts):
        engine.add(prompt, range(index * count, (index + 1) * count))
    text, steps = f"{recipe} draws", settings.max_tokens * -(-count * len(prompts) // _CAPACITY)
    rollouts: list[Rollout] = []
    running, told = 1, 0.0
    while running:
        running, finished = engine.step()
        part = min(3 / steps, 3 - told)
        told += part
        advance(text, part)
        if finished:
            rollouts += engine.take()
    advance(text, 3 - told)
    rollouts.sort(key=lambda rollout: rollout.id)
    return _Drawn(recipe, [list(prompts[rollout.id // count]) for rollout in rollouts], rollouts)


def _write(path: Path, folder: Path, drawn: _Drawn, trainer: Model, settings: Settings, threads: int) -> None:
    sequences = drawn.sequences
    scores = np.split(trainer.score(sequences, threads=threads).log_probs,
                      np.cumsum([len(sequence) for sequence in sequences])[:-1])
    with LogWriter(path, mode="replace", model=str(folder.resolve().name), temperature=1.0, top_p=1.0, top_k=0, min_p=0.0,
                   log_prob_mode="raw", rollout_engine="lockstep", trainer_engine="lockstep",
                   rollout_body=str(drawn.recipe), trainer_body=str(trainer.recipe),
                   rollout_logits=drawn.recipe["logits"], trainer_logits=trainer.recipe["logits"],
                   extra={"seed": str(settings.seed)}) as log:
        for sequence, rollout, score in zip(sequences, drawn.rollouts, scores, strict=True):
            prompt = len(sequence) - len(rollout.tokens)
            said = np.zeros(len(sequence), np.float32)
            said[prompt:] = rollout.raw_log_probs
            log.append(id=rollout.id, token_ids=np.array(sequence, np.int32), rollout=said, trainer=score,
                       mask=np.arange(len(sequence)) >= prompt, prompt_tokens=prompt)


def _exact_kl(rollout: Model, drawn: _Drawn, trainer: Model, threads: int,
              advance: Callable[[str, float], None]) -> float:
    total, count = 0.0, 0
    for sequence, said in zip(drawn.sequences, drawn.rollouts, strict=True):
        # The logits that a token was drawn from follow the token before it.
        counted = slice(len(sequence) - len(said.tokens) - 1, len(sequence) - 1)
        rows = exact_mismatch(trainer.logits(sequence, threads=threads)[counted],
                              rollout.logits(sequence, threads=threads)[counted], threads=threads).rows
        total += float(rows["kl_rollout_trainer"].sum())
        count += len(rows)
        advance(f"{trainer.recipe} against {drawn.recipe}, over the vocabulary", 2 / len(drawn.rollouts))
    return total / count


def own_prompts(folder: Path, count: int, seed: int, threads: int = 0) -> list[list[int]]:
    """Prompts that the model makes up: 16 tokens after the one that config.json says a text begins with, or token 0.

    They are drawn in fp32, and are the same for every recipe. Right after a lone first token some models are at the edge
    of a massive activation, where any rounding shows a hundredfold: what is measured begins later.
    """
    found = _configuration(folder).get("bos_token_id")
    first = found if isinstance(found, int) else 0
    rollouts = Model(folder).generate([[first]], samples=count, max_tokens=16, seed=seed, threads=threads)
    return [[first, *rollout.tokens.tolist()] for rollout in rollouts]


def stop_ids(folder: Path) -> tuple[int, ...]:
    """The tokens that config.json says a text ends with."""
    found = _configuration(folder).get("eos_token_id")
    each = found if isinstance(found, list) else [found]
    return tuple(token for token in each if isinstance(token, int))


def _configuration(folder: Path) -> dict:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        return {}  # `Model` says what is wrong with it
    return found if isinstance(found, dict) else {}


def read_prompts(path: Path, folder: Path) -> list[list[int]]:
    """The prompts of a text file, one a line: token ids where every line is made of integers, else text.

    Text takes the package tokenizers and the model's tokenizer.json.

    Raises:
        InvalidArgumentError: no prompt; text without a tokenizer.
    """
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise InvalidArgumentError(f"{path}: holds no prompt; give one on each line")
    ids = [_integers(line) for line in lines]
    if all(each is not None for each in ids):
        return ids  # type: ignore[return-value]
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise InvalidArgumentError(
            f"{path}: holds text, which takes a tokenizer: pip install tokenizers, or give token ids") from None
    vocabulary = folder / "tokenizer.json"
    if not vocabulary.exists():
        raise InvalidArgumentError(f"{path}: holds text, but {vocabulary} does not exist; give token ids")
    tokenizer = Tokenizer.from_file(str(vocabulary))
    return [tokenizer.encode(line).ids for line in lines]


def _integers(line: str) -> list[int] | None:
    try:
        return [int(word) for word in line.replace(",", " ").strip("[] \t").split()]
    except ValueError:
        return None
