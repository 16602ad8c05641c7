"""Batches of sequences as the library takes them: packed or padded tokens, masks, offsets, and what goes
with them in a `lockstep_batch`."""

from __future__ import annotations

from ctypes import sizeof
from math import prod
from numbers import Number
from typing import Any, Sequence, TypeAlias

import numpy as np

from . import _library as c
from ._errors import InvalidArgumentError
from ._tensors import Array, View, address, compact, empty, view

#: An array (packed or padded), or one array for each sequence.
Log: TypeAlias = "Array | Sequence[Array]"

_LOG_PROBS = ("trainer_log_probs", "rollout_log_probs", "current_log_probs", "reference_log_probs")
_MASKS = ("mask", "kept", "selected")


class Batch:
    """The arrays of a `lockstep_batch`, kept alive with it.

    Args:
        tokens: each part of `lockstep_batch` by its name: [tokens] packed with `offsets`,
            [sequences x length] padded, or a list with one array for each sequence, all laid out alike.
            Others are laid out with them, and are the caller's to pass: `view`.
        advantages: also [sequences].
    """

    def __init__(
        self, *, offsets: Array | None = None, advantages: Log | None = None, groups: Array | None = None,
        ids: Array | None = None, **tokens: Log | None,
    ) -> None:
        tokens = {name: each for name, each in tokens.items() if each is not None}
        self._name = next((name for name in tokens if name in _LOG_PROBS), next(iter(tokens), "mask"))
        self._ragged = is_ragged(tokens.get(self._name))
        if self._ragged and is_ragged(advantages):
            tokens["advantages"], advantages = advantages, None
        self.offsets, tokens = layout(tokens, offsets, self._name)
        if advantages is not None:
            tokens["advantages"] = advantages
        self._views = {
            name: view(as_mask(each) if name in _MASKS else each, name) for name, each in tokens.items()}
        for name, each in (("groups", groups), ("ids", ids)):
            if each is not None:
                self._views[name] = view(_integers(each, name), name)
        if self.offsets is not None:
            self._views["offsets"] = self.offsets
        self._tensors = {name: each.tensor() for name, each in self._views.items()}
        self.raw = c.Batch(sizeof(c.Batch))
        for name, tensor in self._tensors.items():
            if hasattr(c.Batch, name):
                setattr(self.raw, name, address(tensor))

    @property
    def like(self) -> View:
        """The array of tokens whose kind outputs take."""
        return self._views[self._name]

    def view(self, name: str) -> View | None:
        """An array, if it was given."""
        return self._views.get(name)

    @property
    def tokens(self) -> View | None:
        """The array that says how tokens are laid out, if there is any."""
        return self._views.get(self._name)

    @property
    def sequences(self) -> int:
        """Number of sequences, empty ones included."""
        return sequence_count(self.like, self.offsets)

    def laid_out(self, array: Array) -> Log:
        """An output as the caller's log-probs are: a list of its sequences where they were one."""
        if not self._ragged:
            return array
        bounds = np.asarray(self.offsets.owner)
        return [array[start:end] for start, end in zip(bounds[:-1], bounds[1:])]

    def output(self, code: int, name: str) -> tuple[Array, View]:
        """A new array of one value for each token, of the caller's kind."""
        array = empty(self.like.shape, code, self.like)
        return array, view(array, name, written=True)


def layout(
    arrays: dict[str, Any], offsets: Array | None, name: str = "trainer_log_probs"
) -> tuple[View | None, dict[str, Any]]:
    """The offsets of the arrays, and the arrays, packed where they were lists of sequences.

    Arrays that are None stay so; `name` is the one that says how all are laid out.
    """
    lengths = _lengths(arrays.get(name), name)
    if lengths is not None:
        if offsets is not None:
            raise InvalidArgumentError("offsets: not with a list of sequences, which has its own")
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        arrays = {
            key: None if each is None else _packed(each, key, lengths, name) for key, each in arrays.items()}
    return None if offsets is None else view(_integers(offsets, "offsets"), "offsets"), arrays


def sequence_count(tokens: View, offsets: View | None) -> int:
    """Number of sequences of a layout."""
    if offsets is not None:
        return max(offsets.shape[0] - 1, 0)
    return tokens.shape[0] if len(tokens.shape) == 2 else 1


def as_mask(mask: Array) -> Array:
    """A mask as uint8 or bool: others, such as an int64 attention mask, are compared with 0."""
    found = mask if hasattr(mask, "__dlpack__") else np.asarray(mask)
    return found if str(found.dtype).removeprefix("torch.") in ("bool", "uint8") else found != 0


def is_ragged(log: Any) -> bool:
    return isinstance(log, (list, tuple)) and not any(isinstance(each, Number) for each in log)


def _lengths(log: Log | None, name: str) -> list[int] | None:
    """The lengths of a list of sequences; None if the log is one array (a list of numbers is)."""
    if not is_ragged(log):
        return None
    return [prod(view(each, f"{name}[{index}]").shape) for index, each in enumerate(log)]


def _packed(log: Log, name: str, lengths: list[int], like: str) -> Array:
    """One array of a list of sequences: the one copy this needs."""
    if not isinstance(log, (list, tuple)) or len(log) != len(lengths):
        raise InvalidArgumentError(f"{name}: give a list of {len(lengths)} sequences, as {like} is")
    views: list[View] = []
    for index, (each, length) in enumerate(zip(log, lengths)):
        found = view(each, f"{name}[{index}]")
        if found.shape != (length,):
            raise InvalidArgumentError(
                f"{name}[{index}]: shape {list(found.shape)}; the sequence has {length} tokens, "
                f"give [{length}]")
        views.append(found)
    if views and all(each.is_torch for each in views):
        import torch  # already imported: these are its tensors

        return torch.cat([each.detach() for each in log])
    return np.concatenate([np.asarray(each) for each in log]) if views else np.empty(0)


def _integers(values: Array, name: str) -> Array:
    """Integers as int64 (uint64 stays), C order: they are few, so other integers are copied."""
    found = values if hasattr(values, "__dlpack__") else np.asarray(values)
    kind = str(found.dtype).removeprefix("torch.")
    if kind == "int64" or (kind == "uint64" and name == "ids"):
        return found
    if not kind.startswith(("int", "uint")):
        raise InvalidArgumentError(f"{name}: dtype {kind}; give int64")
    return np.asarray(compact(found, name), np.int64)
