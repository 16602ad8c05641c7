"""The examples in the docstrings are what the functions give, and everything public has a docstring."""

from __future__ import annotations

import doctest
import importlib
import inspect

import numpy as np
import pytest

import lockstep

MODULES = [
    "lockstep", "lockstep._accumulator", "lockstep._advantages", "lockstep._corrections",
    "lockstep._formats", "lockstep._locate", "lockstep._log_file", "lockstep._log_probs",
    "lockstep._metrics", "lockstep._mismatch", "lockstep._monitor", "lockstep._objectives",
    "lockstep._optimizer", "lockstep._presets", "lockstep._tasks",
    "lockstep.advice", "lockstep.certificate.certificate", "lockstep.survey", "lockstep.torch",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    if name == "lockstep.torch":
        pytest.importorskip("torch", reason="PyTorch is not installed")
    module = importlib.import_module(name)
    names = vars(lockstep) | vars(module) | {"np": np, "lockstep": lockstep}
    result = doctest.testmod(module, extraglobs=names)
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("name", lockstep.__all__)
def test_public_names_are_documented(name):
    thing = getattr(lockstep, name)
    if isinstance(thing, tuple):
        return  # a constant
    text = inspect.getdoc(thing)
    assert text and text != inspect.getdoc(tuple)
    if inspect.isfunction(thing):
        parameters = inspect.signature(thing).parameters.values()
        assert all(each.annotation is not inspect.Parameter.empty for each in parameters)
        if name not in ("has_instruction_set", "loss_scaler_names", "presets", "task_names"):
            for section in ("Args:", "Returns:", "Raises:", "Example:"):
                assert section in text, f"{name} has no {section}"
