"""The examples in the docstrings are what the functions give, and everything public has a docstring."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pathlib

import numpy as np
import pytest

import lockstep
from conftest import ROOT

PACKAGE = pathlib.Path(lockstep.__file__).parent
# Every module with an example. Two need what is not here: a cluster, two engines' logs.
MODULES = [
    ".".join(["lockstep", *file.relative_to(PACKAGE).with_suffix("").parts])
    for file in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in file.read_text() and file.stem != "__init__" and file.stem not in ("ray", "join")]


@pytest.mark.parametrize("name", ["lockstep", *MODULES])
def test_examples(name, tmp_path, monkeypatch):
    if name == "lockstep.torch":
        pytest.importorskip("torch", reason="PyTorch is not installed")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    names = vars(lockstep) | vars(module) | {"np": np, "lockstep": lockstep, "checkpoint": "examples/data/chain-sft"}
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
