"""Models: a checkpoint scored as a trainer does and sampled from as a rollout engine does, with the same bits."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ctypes import byref, c_int32, c_size_t, c_uint64, c_void_p, sizeof
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _library as c
from ._batch import Log, layout
from ._errors import InvalidArgumentError
from ._library import check, choice, int32, integer, library, real
from ._loading import loading
from ._tensors import EMULATED, FORMATS, Array, View, empty, format_code, view

_PARTS = ("parameters", "activations", "cache", "probabilities", "logits")
_ENTRIES = (*_PARTS, "gradients", "order")
_FORMAT_NAMES = {code: name for name, code in (FORMATS | EMULATED).items()}
#: The orders of arithmetic, as a recipe names them.
ORDERS = tuple(c.ORDERS)
_ORDER_NAMES = {code: name for name, code in c.ORDERS.items()}
_FINISH = {value: name for name, value in c.FINISHES.items()}

#: A prompt: token ids.
Prompt = Sequence[int]


class Recipe(Mapping[str, str]):
    """The precision of a model's computation: the format of each part, and the order of arithmetic.

    Args:
        recipe: a name, "fp32", "fp16", "bf16", "e8m5" and its like; with "-fp8weights", "-fp8cache" (fp8_e4m3fn both, for
            rollout engines) and, all but the first, "-fp32head" after it; for another order than "lockstep" with
            "+split-k", "+flash", "+eager" or "+fused" at the end; or a dict with any of "parameters" (also fp8_e4m3fn),
            "activations", "cache" (also fp8_e4m3fn, fp8_e5m2), "probabilities", "logits" as a format, the rest fp32,
            "gradients" (of activations, for a `Trainer`; as activations if not given) and "order".

    Raises:
        InvalidArgumentError: an unknown name, part, format or order.

    Example:
        >>> trainer = Recipe("bf16+eager")
        >>> trainer["activations"], trainer["order"]
        ('bf16', 'eager')
        >>> trainer.matches("bf16+fused")
        False
    """

    def __init__(self, recipe: str | Mapping[str, str] = "fp32") -> None:
        self._raw = c.Recipe(sizeof(c.Recipe))
        if isinstance(recipe, str):
            check(library.lockstep_recipe_named(self._raw, recipe.encode()))
            return
        if unknown := set(recipe) - set(_ENTRIES):
            raise InvalidArgumentError(
                f"recipe: '{min(unknown)}' is no part; give some of {', '.join(_ENTRIES)}")
        for part in _PARTS:
            setattr(self._raw, part, format_code(recipe.get(part, "fp32"), f"recipe[{part!r}]", emulated=True))
        if "gradients" in recipe:
            self._raw.gradients = format_code(recipe["gradients"], "recipe['gradients']", emulated=True)
        self._raw.order = choice(c.ORDERS, recipe.get("order", "lockstep"), "recipe['order']")

    def matches(self, other: str | Mapping[str, str]) -> bool:
        """Whether engines of the two give the same bits: if, and only if, formats and order are the same."""
        found = c_int32()
        check(library.lockstep_recipe_matches(byref(found), self._raw, Recipe(other)._raw))
        return bool(found.value)

    def __getitem__(self, part: str) -> str:
        if part == "order":
            return _ORDER_NAMES[self._raw.order]
        if part == "gradients":
            return _FORMAT_NAMES[self._raw.gradients or self._raw.activations]
        if part not in _PARTS:
            raise KeyError(part)
        return _FORMAT_NAMES[getattr(self._raw, part)]

    def __iter__(self) -> Iterator[str]:
        return iter(_ENTRIES)

    def __len__(self) -> int:
        return len(_ENTRIES)

    def __str__(self) -> str:
        """Its name; without one, its parts."""
        length = c_size_t()
        check(library.lockstep_recipe_text(None, 0, byref(length), self._raw))
        text = ctypes.create_string_buffer(length.value + 1)
        check(library.lockstep_recipe_text(text, len(text), None, self._raw))
        return text.value.decode()

    def __repr__(self) -> str:
        return f"<lockstep.Recipe {self}>"


class Scores(NamedTuple):
    """What `Model.score` returns."""

    #: [tokens] fp32: ln of each token's probability given those before it; 0 for a sequence's first.
    log_probs: Array
    #: [tokens] fp32, nats, of the distribution each token was drawn from; 0 for a sequence's first.
    entropy: Array


@dataclass(frozen=True)
class Overflows:
    """What `Model.score` met where it counts overflows."""

    #: Sequences that were scored.
    sequences: int
    #: Sequences in which a value left the recipe's range, and their tokens.
    overflows: int
    overflow_tokens: int
    #: The first of them, its layer (-1 the embedding, the number of layers what follows them) and operation; -1, -1
    #: and "" without.
    overflow_sequence: int
    overflow_layer: int
    overflow_operation: str


class CountedScores(NamedTuple):
    """What `Model.score` returns with ``overflow="count"``."""

    #: As of `Scores`; NaN for all tokens of a sequence in which something overflowed.
    log_probs: Array
    entropy: Array
    report: Overflows


@dataclass(frozen=True)
class Rollout:
    """A sequence that was drawn."""

    #: Which sequence.
    id: int
    #: The tokens drawn; not the prompt.
    tokens: NDArray[np.int32]
    #: ln of each token's probability under the model, at temperature 1, nothing cut: the bits of `Model.score`.
    raw_log_probs: NDArray[np.float64]
    #: Under what it was drawn from: temperature, top-k, top-p, min-p.
    processed_log_probs: NDArray[np.float64]
    #: The probability, at the temperature, of what the cuts kept.
    kept_mass: NDArray[np.float64]
    #: "stop" (a stop id), "length" (max_tokens, or the end of the context), "running" (taken before it ended).
    finish: str


class Model:
    """A decoder-only transformer from a Hugging Face folder.

    Families: Llama, Mistral, Qwen2, Qwen3, Mixtral, Qwen3-MoE; config.json and safetensors, fp32, fp16 or bf16.
    Weights are held once, in the recipe's format. May be used from many threads.

    Args:
        path: the folder.
        recipe: a `Recipe`, or what makes one: "fp16", "bf16-fp32head", "e8m5", "bf16+eager", {"cache": "fp16"}...
        adapter: a folder with a LoRA adapter in PEFT's layout, merged into the weights.
        progress: as in `loading`.

    Raises:
        FileError, BadDataError: the folder cannot be read, or is not what it should be; file and tensor are named.
        UnsupportedError: a family or a setting that is not known.
        NonFiniteError: a weight that the recipe cannot hold.
        InvalidArgumentError: an unknown recipe.
    """

    def __init__(
        self, path: str | os.PathLike[str], recipe: str | Mapping[str, str] = "fp32", *,
        adapter: str | os.PathLike[str] | None = None, progress: Callable[[int, int], None] | None = None,
    ) -> None:
        #: The format of each part, and the order.
        self.recipe: Recipe = recipe if isinstance(recipe, Recipe) else Recipe(recipe)
        handle = c_void_p()

        def load() -> None:
            check(library.lockstep_model_load(
                byref(handle), os.fsencode(path), None if adapter is None else os.fsencode(adapter),
                self.recipe._raw))

        if progress is None:
            load()
        else:
            with loading(progress):
                load()
        self._take(handle)

    @classmethod
    def from_bytes(cls, data: Any, recipe: str | Mapping[str, str] = "fp32") -> Model:
        """A model of bytes such as `Run.policy` gives: a safetensors file whose metadata has config.json as "config".

        Args:
            data: bytes, or a contiguous array of them; not needed afterwards.
            recipe: as in the class.

        Raises:
            BadDataError: they are no model's. NonFiniteError, InvalidArgumentError: as the class.
        """
        raw = np.frombuffer(data, np.uint8)
        recipe = recipe if isinstance(recipe, Recipe) else Recipe(recipe)
        handle = c_void_p()
        check(library.lockstep_model_load_bytes(byref(handle), raw.ctypes.data, len(raw), recipe._raw))
        return cls._of(handle, recipe)

    @classmethod
    def _of(cls, handle: c_void_p, recipe: Recipe) -> Model:
        """A model that the library made."""
        model = cls.__new__(cls)
        model.recipe = recipe
        model._take(handle)
        return model

    def _take(self, handle: c_void_p) -> None:
        self._handle = handle
        self._finalizer = weakref.finalize(self, library.lockstep_model_destroy, handle)
        info = c.ModelInfo(sizeof(c.ModelInfo))
        check(library.lockstep_model_get_info(info, handle))
        #: "llama", "mistral", "qwen2", "qwen3", "mixtral" or "qwen3_moe".
        self.family: str = info.family.decode()
        #: Number of layers, of token ids, of elements in a hidden state, of weights; the longest sequence.
        self.layers: int = info.layers
        self.vocab: int = info.vocab
        self.hidden_size: int = info.hidden_size
        self.parameters: int = info.parameters
        self.positions: int = info.positions

    def score(
        self, tokens: Log, offsets: Array | None = None, *, temperature: float = 1.0, threads: int = 0,
        instruction_set: str = "best", overflow: str = "error",
    ) -> Scores | CountedScores:
        """Log-prob of each token given those before it in its sequence, teacher-forced.

        The bits depend on a sequence's tokens and the recipe alone.

        Args:
            tokens: token ids, int32 or int64: packed [tokens] with `offsets` (without: one sequence), or a list
                with one array (or list) for each sequence.
            offsets: [sequences + 1]; sequence i is [offsets[i], offsets[i + 1]).
            temperature: divides the logits; in [1e-6, 1e6].
            threads: 0 is one for each processor this process may use.
            instruction_set: see `has_instruction_set`.
            overflow: "error", or "count": a sequence in which a value leaves the recipe's range gets NaN throughout, the
                others have the bits they have without it.

        Returns:
            Scores(log_probs, entropy), packed [tokens], of the caller's kind of array; with "count"
            CountedScores(log_probs, entropy, report).

        Raises:
            InvalidArgumentError: a token outside the vocabulary, an empty sequence, one longer than the context.
            NonFiniteError: a value left the recipe's range, with "error"; layer and operation are named.

        Example:
            >>> model = Model(checkpoint)
            >>> model.score([[1, 5, 9], [2, 2]]).log_probs.shape
            (5,)
        """
        ids, bounds = _tokens(tokens, offsets)
        outputs = [empty(ids.shape, c.FLOAT32, ids) for _ in range(2)]
        written = [view(each, name, written=True) for each, name in zip(outputs, ("log_probs", "entropy"))]
        options = _score_options(threads, instruction_set, temperature)
        given = (written[0].tensor(), written[1].tensor(), self._handle, ids.tensor(),
                 None if bounds is None else bounds.tensor(), options)
        if not choice({"error": 0, "count": 1}, overflow, "overflow"):
            check(library.lockstep_model_score(*given))
            return Scores(*outputs)
        report = c.ScoreReport(sizeof(c.ScoreReport))
        check(library.lockstep_model_score_counting(report, *given))
        return CountedScores(*outputs, Overflows(
            report.sequences, report.overflows, report.overflow_tokens, report.overflow_sequence, report.overflow_layer,
            report.overflow_operation.decode()))

    def logits(
        self, tokens: Log, offsets: Array | None = None, *, threads: int = 0, instruction_set: str = "best",
    ) -> Array:
        """The logits that follow each token, as its log-softmax sees them: [tokens x vocab] fp32.

        They are rounded to the recipe's logits; one that it cannot hold is infinite. Much memory, which `score` does
        without; for exact divergences of two recipes (`exact_mismatch`), or to distil from.

        Args:
            tokens, offsets, threads, instruction_set: as in `score`.

        Raises:
            as `score`.
        """
        ids, bounds = _tokens(tokens, offsets)
        out = empty((*ids.shape, self.vocab), c.FLOAT32, ids)
        check(library.lockstep_model_logits(
            view(out, "logits", written=True).tensor(), self._handle, ids.tensor(),
            None if bounds is None else bounds.tensor(), _score_options(threads, instruction_set, 1.0)))
        return out

    def generate(
        self, prompts: Iterable[Prompt], *, samples: int = 1, **settings: object,
    ) -> list[Rollout]:
        """Draws `samples` sequences for each prompt; those of one prompt share its keys and values.

        Args:
            prompts: token ids.
            samples: sequences a prompt; sample j of prompt i has the id `i * samples + j`.
            settings: of `RolloutEngine`: temperature, top_k, top_p, min_p, seed, stop_ids, max_tokens…

        Returns:
            Rollouts in the order of ids.

        Raises:
            as `RolloutEngine`.
        """
        engine = RolloutEngine(self, **settings)  # type: ignore[arg-type]
        integer(samples, "samples", 1, 1 << 24)
        for index, prompt in enumerate(prompts):
            engine.add(prompt, range(index * samples, (index + 1) * samples))
        return sorted(engine.run(), key=lambda rollout: rollout.id)

    def __repr__(self) -> str:
        return f"<lockstep.Model {self.family}, {self.parameters:,} parameters, {self.recipe}>"


class RolloutEngine:
    """Samples from a model with a cache of keys and values; sequences join and leave a running batch.

    What is drawn for a sequence depends on its prompt, its id and these settings: not on the batch, nor on threads.
    Not for concurrent use.

    Args:
        model: keeps it alive.
        temperature: in [1e-6, 1e6]; 0 takes the most probable token.
        top_k: keep only the largest logits; 0: all.
        top_p: then the smallest set whose probability reaches this; 1: all.
        min_p: and only logits of at least this share of the largest probability; 0: all.
        seed: with a sequence's id and a position, decides each draw.
        stop_ids: a sequence ends with one of these, which is part of it.
        max_tokens: drawn for a sequence, at most.
        capacity: sequences that run at a time, 1 to 512.
        threads, instruction_set: as in `Model.score`.

    Raises:
        InvalidArgumentError: a setting out of range.
    """

    def __init__(
        self, model: Model, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
        min_p: float = 0.0, seed: int = 0, stop_ids: Iterable[int] = (), max_tokens: int = 256,
        capacity: int = 32, threads: int = 0, instruction_set: str = "best",
    ) -> None:
        stops = np.ascontiguousarray([int32(each, "stop_ids") for each in stop_ids], np.int32)
        options = c.EngineOptions(
            sizeof(c.EngineOptions), int32(top_k, "top_k"), real(temperature, "temperature"),
            real(top_p, "top_p"), real(min_p, "min_p"), integer(seed, "seed", 0, 2**64 - 1),
            stops.ctypes.data if len(stops) else None, len(stops),
            integer(max_tokens, "max_tokens", -2**63, 2**63 - 1),
            integer(capacity, "capacity", -2**63, 2**63 - 1), int32(threads, "threads"),
            choice(c.INSTRUCTION_SETS, instruction_set, "instruction_set"))
        handle = c_void_p()
        check(library.lockstep_engine_create(byref(handle), model._handle, options))
        self._handle = handle
        self._finalizer = weakref.finalize(self, library.lockstep_engine_destroy, handle)

    def add(self, prompt: Prompt, ids: Iterable[int]) -> None:
        """Adds sequences that answer one prompt, one for each id.

        Raises:
            InvalidArgumentError: an empty prompt, one that fills the context, a token outside the vocabulary.
        """
        tokens = view(_ids(prompt, "prompt"), "prompt")
        each = [integer(one, "ids", 0, 2**64 - 1) for one in ids]
        check(library.lockstep_engine_add(
            self._handle, tokens.tensor(), (c_uint64 * len(each))(*each), len(each)))

    def step(self) -> tuple[int, int]:
        """Draws a token for every running sequence; returns how many wait or run, and how many can be taken.

        Raises:
            NonFiniteError: a value left the recipe's range; what was drawn before can be taken, with
                `unfinished`, and until then every step fails as this one did.
        """
        running, finished = c_size_t(), c_size_t()
        check(library.lockstep_engine_step(self._handle, byref(running), byref(finished)))
        return running.value, finished.value

    def take(self, *, unfinished: bool = False) -> Iterator[Rollout]:
        """Takes finished sequences out of the engine; with `unfinished` all, as far as they have come."""
        while True:
            raw = c.Rollout()
            check(library.lockstep_engine_take(raw, self._handle, int(unfinished)))
            if raw.token_count < 0:
                return
            yield Rollout(
                raw.id, _copied(raw.tokens, raw.token_count, np.int32),
                *(_copied(each, raw.token_count, np.float64)
                  for each in (raw.raw_log_probs, raw.processed_log_probs, raw.kept_mass)),
                _FINISH[raw.finish])

    def run(self) -> Iterator[Rollout]:
        """Draws until all sequences have ended, and gives each when it does."""
        running = 1
        while running:
            running, finished = self.step()
            if finished:
                yield from self.take()


def _score_options(threads: int, instruction_set: str, temperature: float) -> c.ScoreOptions:
    return c.ScoreOptions(
        sizeof(c.ScoreOptions), int32(threads, "threads"),
        choice(c.INSTRUCTION_SETS, instruction_set, "instruction_set"), 0, real(temperature, "temperature"))


def _tokens(tokens: Log, offsets: Array | None) -> tuple[View, View | None]:
    """Packed token ids and the bounds of their sequences."""
    if isinstance(tokens, (list, tuple)) and any(isinstance(each, (list, tuple)) for each in tokens):
        tokens = [np.asarray(each, np.int64) for each in tokens]
    bounds, arrays = layout({"tokens": tokens}, offsets, "tokens")
    return view(_ids(arrays["tokens"], "tokens"), "tokens"), bounds


def _ids(tokens: object, name: str) -> Array:
    """Token ids as int32 or int64; other integers are copied."""
    found = tokens if hasattr(tokens, "__dlpack__") else np.asarray(tokens)
    kind = str(found.dtype).removeprefix("torch.")
    if kind in ("int32", "int64"):
        return found
    if not kind.startswith(("int", "uint")) and found.size:
        raise InvalidArgumentError(f"{name}: dtype {kind}; give token ids, int32 or int64")
    return np.asarray(found, np.int64)


def _copied(address: int | None, count: int, dtype: type) -> np.ndarray:
    out = np.empty(count, dtype)
    if count:
        ctypes.memmove(out.ctypes.data, address, out.nbytes)
    return out
