"""Training: forward and backward passes in a recipe's formats, over float32 masters."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Mapping
from ctypes import POINTER, byref, c_float, c_size_t, c_void_p, cast, sizeof
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import _library as c
from ._batch import Log
from ._library import check, choice, int32, integer, library, real
from ._models import Model, Recipe, Scores, _tokens
from ._tensors import Array, empty, view


@dataclass(frozen=True)
class Parameter:
    """A tensor of the flat buffers of masters and gradients."""

    #: In a checkpoint, or in PEFT's layout.
    name: str
    shape: tuple[int, ...]
    #: Where its elements are.
    range: slice
    #: Whether weight decay is meant for it: matrices yes, norms and biases no.
    decays: bool


@dataclass(frozen=True)
class Backward:
    """What `Trainer.accumulate` returns."""

    #: What `Model.score` says of the tokens.
    scores: Scores
    #: Sequences in whose backward pass a value left its format: the gradients are NaN until `Trainer.clear`.
    overflows: int
    #: The first of them, its layer (-1 the embedding, the number of layers what follows them) and the operation whose
    #: gradient it was; -1, -1 and "" without.
    overflow_sequence: int
    overflow_layer: int
    overflow_operation: str


class Trainer:
    """A model that is trained: float32 masters, and gradients in a recipe's formats.

    A sequence's log-probs have the bits of `Model.score`. Gradients are exact sums over sequences, rounded once: they
    depend on neither threads, nor the order of a batch, nor how it is cut into calls. Not for concurrent use.

    Args:
        path: a Hugging Face folder, as in `Model`.
        recipe: as in `Model`.
        adapter: a LoRA adapter in PEFT's layout, which alone is trained.
        rank, alpha, targets: a new LoRA adapter, W + alpha / rank B A, which alone is trained; targets are ends of the
            names of the adapted matrices.
        deviation: begin anew: only config.json is read, matrices are normal numbers of this deviation.
        seed: of a new adapter or model.
        recompute: keep only the layers' inputs for the backward pass; the bits are the same.
        threads, instruction_set: as in `Model.score`.

    Raises:
        as `Model`; InvalidArgumentError for an adapter of two kinds, or a target that no matrix has.

    Example:
        >>> trainer = Trainer(checkpoint, "fp16")
        >>> trainer.accumulate([[1, 5, 9]], [0, -0.5, -0.5]).overflows
        0
    """

    def __init__(
        self, path: str | os.PathLike[str], recipe: str | Mapping[str, str] = "fp32", *,
        adapter: str | os.PathLike[str] | None = None, rank: int = 0, alpha: float = 0.0,
        targets: Iterable[str] = ("q_proj", "k_proj", "v_proj", "o_proj"), deviation: float = 0.0, seed: int = 0,
        recompute: bool = False, threads: int = 0, instruction_set: str = "best",
    ) -> None:
        self._recipe = recipe if isinstance(recipe, Recipe) else Recipe(recipe)
        options = c.TrainerOptions(
            sizeof(c.TrainerOptions), int32(threads, "threads"),
            choice(c.INSTRUCTION_SETS, instruction_set, "instruction_set"), int(bool(recompute)),
            None if adapter is None else os.fsencode(adapter), integer(rank, "rank", -2**63, 2**63 - 1),
            real(alpha, "alpha"), " ".join(targets).encode(), integer(seed, "seed", 0, 2**64 - 1),
            real(deviation, "deviation"))
        handle = c_void_p()
        check(library.lockstep_trainer_create(byref(handle), os.fsencode(path), self._recipe._raw, options))
        self._handle = handle
        self._finalizer = weakref.finalize(self, library.lockstep_trainer_destroy, handle)
        tensors, elements, raw, found = c_size_t(), c_size_t(), c.Parameter(), []
        check(library.lockstep_trainer_parameter(None, byref(tensors), byref(elements), handle, 0))
        for index in range(tensors.value):
            check(library.lockstep_trainer_parameter(raw, None, None, handle, index))
            found.append(Parameter(
                raw.name.decode(), tuple(raw.shape[: raw.dimensions]), slice(raw.offset, raw.offset + raw.count),
                bool(raw.decays)))
        #: What is trained, in the order of names.
        self.parameters: list[Parameter] = found
        #: Elements of the flat buffers.
        self.count: int = elements.value

    @property
    def masters(self) -> NDArray[np.float32]:
        """The float32 masters, [count], in place: take them anew before each change.

        The next pass and the next snapshot have what was changed. Valid as long as the trainer.
        """
        place, count = c_void_p(), c_size_t()
        check(library.lockstep_trainer_masters(byref(place), byref(count), self._handle))
        values = cast(place, POINTER(c_float * count.value)).contents
        values._trainer = self  # keeps the memory
        return np.frombuffer(values, np.float32)

    def accumulate(
        self, tokens: Log, d_log_probs: Array, offsets: Array | None = None, *, d_entropy: Array | None = None,
        loss_scale: float = 1.0, temperature: float = 1.0,
    ) -> Backward:
        """Adds the gradients of sum_t d_log_probs[t] log_prob_t + d_entropy[t] entropy_t.

        Args:
            tokens, offsets: as in `Model.score`.
            d_log_probs: [tokens] packed, fp32 or fp64; a sequence's first is not read.
            d_entropy: [tokens], likewise.
            loss_scale: multiplies them on the way, and is taken out again where gradients are added.
            temperature: divides the logits.

        Returns:
            Backward: what `Model.score` says of the tokens, and what overflowed.

        Raises:
            InvalidArgumentError: as `Model.score`; gradients that are not finite; nothing was added.
            NonFiniteError: a value left the recipe's range in the forward pass; gradients are NaN until `clear`.
        """
        ids, bounds = _tokens(tokens, offsets)
        outputs = [empty(ids.shape, c.FLOAT32, ids) for _ in range(2)]
        written = [view(each, name, written=True) for each, name in zip(outputs, ("log_probs", "entropy"))]
        given = view(d_log_probs, "d_log_probs")
        entropy = None if d_entropy is None else view(d_entropy, "d_entropy")
        report = c.BackwardReport(sizeof(c.BackwardReport))
        check(library.lockstep_trainer_accumulate(
            report, written[0].tensor(), written[1].tensor(), self._handle, ids.tensor(),
            None if bounds is None else bounds.tensor(), given.tensor(),
            None if entropy is None else entropy.tensor(), real(loss_scale, "loss_scale"),
            real(temperature, "temperature")))
        return Backward(
            Scores(*outputs), report.overflows, report.overflow_sequence, report.overflow_layer,
            report.overflow_operation.decode())

    def gradients(self) -> NDArray[np.float32]:
        """What was added since `clear`, [count], unscaled, each sum rounded once; NaN after an overflow."""
        out = np.empty(self.count, np.float32)
        check(library.lockstep_trainer_gradients(view(out, "gradients", written=True).tensor(), self._handle))
        return out

    def clear(self) -> None:
        """Sets the gradients to zero."""
        check(library.lockstep_trainer_clear(self._handle))

    def snapshot(self) -> Model:
        """The masters as they are, rounded to the recipe's parameters: for the rollout engine.

        Raises:
            NonFiniteError: a master that is NaN, or infinite there; its tensor is named.
        """
        handle = c_void_p()
        check(library.lockstep_trainer_snapshot(byref(handle), self._handle))
        return Model._of(handle, self._recipe)

    def __repr__(self) -> str:
        return f"<lockstep.Trainer {len(self.parameters)} tensors, {self.count:,} parameters>"
