"""Tasks: problems whose answers can be checked, made from seeds or read from a file."""

from __future__ import annotations

import ctypes
import os
import weakref
from ctypes import byref, c_double, c_int32, c_size_t, c_void_p, sizeof

import numpy as np
from numpy.typing import NDArray

from . import _library as c
from ._errors import InvalidArgumentError
from ._library import check, int32, integer, library, real
from ._tensors import Array, View, view


def task_names() -> list[str]:
    """The built-in tasks; a file's is "file:PATH"."""
    return ["chain", "arithmetic", "sort", "reverse", "countdown"]


class Task:
    """Problems with a reward that is exact and cheap. A problem is a function of (seed, index) alone.

    What each name means, and what counts as right: docs/Tasks.md. Tokens are characters. May be used from many
    threads at once.

    Args:
        name: one of `task_names()`, or "file:PATH": a JSON object a line with "prompt" and "answer".
        size: how large problems are (chain: steps, 32; arithmetic: digits, 3; sort, reverse: elements, 8; countdown:
            numbers, 4); 0: those.

    Raises:
        InvalidArgumentError: an unknown name, or a size out of range. BadDataError: a line of a file, which it names.

    Example:
        >>> task = Task("sort", size=5)
        >>> prompt = task.encode("31415=")
        >>> [task.reward(prompt, task.encode(text)) for text in ("11345\\n", "11354\\n", "11345")]
        [1.0, 0.0, 0.0]
    """

    def __init__(self, name: str, *, size: int = 0) -> None:
        if not isinstance(name, str):
            raise InvalidArgumentError(f"name is {name!r}; give one of {', '.join(task_names())}, or file:PATH")
        pointer = c_void_p()
        check(library.lockstep_task_create(
            byref(pointer), os.fsencode(name), c.TaskOptions(sizeof(c.TaskOptions), int32(size, "size"))))
        self._pointer = pointer
        weakref.finalize(self, library.lockstep_task_destroy, pointer)
        info = c.TaskInfo(sizeof(c.TaskInfo))
        check(library.lockstep_task_get_info(info, pointer))
        self.name = name
        #: Number of token ids; a model may have more.
        self.vocab: int = info.vocab
        #: The id that ends a response; None: it ends at `longest_response`.
        self.stop_id: int | None = None if info.stop_id < 0 else info.stop_id
        #: The most ids of a prompt, and of a response, stop id included.
        self.longest_prompt: int = info.longest_prompt
        self.longest_response: int = info.longest_response
        #: Problems of a file; None: as many as there are indices.
        self.problems: int | None = info.problems or None

    def prompt(self, index: int, *, seed: int = 0) -> NDArray[np.int32]:
        """The token ids of a problem; of a file, in rounds over it, in orders that the seed decides."""
        return self._tokens(library.lockstep_task_prompt, _index(index), _seed(seed))

    def demonstration(self, index: int, *, seed: int = 0, error_rate: float = 0.0) -> NDArray[np.int32]:
        """The token ids of a solution, stop id included, each step of which is wrong with probability `error_rate`."""
        return self._tokens(
            library.lockstep_task_demonstration, _index(index), _seed(seed), real(error_rate, "error_rate"))

    def reward(self, prompt: Array, response: Array) -> float:
        """1.0 if the response (token ids after the prompt, stop id included) solves the prompt's problem, else 0.0.

        Raises:
            InvalidArgumentError: the prompt is none of this task.
        """
        found = c_double()
        check(library.lockstep_task_reward(
            byref(found), self._pointer, _ids(prompt, "prompt").tensor(), _ids(response, "response").tensor()))
        return found.value

    def encode(self, text: str) -> NDArray[np.int32]:
        """The ids of a text's characters; one that the vocabulary lacks is an InvalidArgumentError with its place."""
        if "\0" in text:
            raise InvalidArgumentError("text: has U+0000, which no vocabulary has")
        return self._tokens(library.lockstep_task_encode, text.encode())

    def decode(self, tokens: Array) -> str:
        """The text of ids. The stop id is the line feed, of a file U+0003."""
        size = c_size_t()
        tensor = _ids(tokens, "tokens").tensor()
        check(library.lockstep_task_decode(None, byref(size), self._pointer, tensor))
        text = ctypes.create_string_buffer(size.value)
        check(library.lockstep_task_decode(text, byref(size), self._pointer, tensor))
        return text.raw[:-1].decode()

    def _tokens(self, function, *arguments) -> NDArray[np.int32]:
        count = c_size_t()
        check(function(None, byref(count), self._pointer, *arguments))
        tokens = np.empty(count.value, np.int32)
        room = tokens if count.value else np.empty(1, np.int32)
        check(function(room.ctypes.data_as(ctypes.POINTER(c_int32)), byref(count), self._pointer, *arguments))
        return tokens


def _index(index: int) -> int:
    return integer(index, "index", -(2**63), 2**63 - 1)


def _seed(seed: int) -> int:
    return integer(seed, "seed", 0, 2**64 - 1)


def _ids(tokens: Array, name: str) -> View:
    """Lists too; an empty one is no list of floats."""
    if isinstance(tokens, (list, tuple)):
        tokens = np.array(tokens, np.int64) if tokens else np.empty(0, np.int64)
    return view(tokens, name)
