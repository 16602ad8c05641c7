"""docs/Adapters.md: its code runs, its settings turn on what they say, and each line of its table has its test."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys

import pytest

from conftest import ROOT

PAGE = (ROOT / "docs" / "Adapters.md").read_text()


def snippets(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_each_difference_has_its_test():
    rows = [line for line in PAGE.splitlines() if line.startswith(("| verl", "| TRL"))]
    files = {"verl": "test_adapters_verl.py", "TRL": "test_adapters_trl.py"}
    for row in rows:
        system, *_, test = (part.strip(" `") for part in row.strip("|").split("|"))
        assert f"\ndef {test}(" in (ROOT / "Tests/Conformance/parity" / files[system]).read_text(), row
    assert len(rows) > 15


def test_every_loss_is_on_the_page():
    pytest.importorskip("verl", reason="verl is not installed (make test PEERS=1)")
    adapter = importlib.import_module("lockstep.adapters.verl")
    assert all(f"`{name}`" in PAGE for name in adapter.LOSSES)


def test_snippets_for_verl(monkeypatch):
    pytest.importorskip("verl", reason="verl is not installed (make test PEERS=1)")
    import test_adapters_verl as tests

    batch = tests.Batch(21)
    names = {"old_log_prob": batch.trainer, "rollout_log_prob": batch.rollout, "response_mask": batch.mask}
    for name, each in tests.THEIRS.items():
        monkeypatch.setitem(tests.core.POLICY_LOSS_REGISTRY, name, each)
    for name in ("compute_rollout_correction_and_rejection_mask", "compute_offpolicy_metrics"):
        monkeypatch.setattr(tests.helper, name, getattr(tests.helper, name))
    for text in snippets("python"):
        if "adapters.verl" in text:
            exec(text, names)
    assert "rollout_is_weights" in names["weights"].batch and names["metrics"]


def test_settings_for_verl():
    """A process that is told by the environment has ours under verl's names; the other setting only adds names."""
    pytest.importorskip("verl", reason="verl is not installed (make test PEERS=1)")
    settings = "".join(snippets("text"))
    [(library, variable)] = zip(
        re.findall(r"external_lib=(\S+)", settings), re.findall(r"VERL_USE_EXTERNAL_MODULES=(\S+)", settings))
    [loss] = re.findall(r"loss_mode=(\S+)", settings)
    program = (
        "import sys; from verl.trainer.ppo import core_algos; from verl.utils.import_utils import "
        "import_external_libs; import_external_libs(sys.argv[1] or None); "
        "print(*(core_algos.get_policy_loss_fn(each).__module__ for each in sys.argv[2:]))")

    def modules(environment, *arguments):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], env=os.environ | environment, capture_output=True,
            text=True, check=True)
        return done.stdout.split()[-len(arguments) + 1:]

    ours = "lockstep.adapters.verl"
    assert modules({"VERL_USE_EXTERNAL_MODULES": variable}, "", "vanilla", "gspo") == [ours, ours]
    assert modules({}, library, loss, "gspo") == [ours, "verl.trainer.ppo.core_algos"]


def test_snippets_for_trl():
    pytest.importorskip("trl", reason="trl is not installed (make test PEERS=1)")
    import test_adapters_trl as tests

    batch = tests.padded(21)
    names = {"trainer": tests.Theirs(tests.settings("grpo", {}), *batch[:2], vllm=False)}
    for text in snippets("python"):
        if "adapters.trl" in text:
            exec(text, names)
    adapter = tests.adapter
    assert isinstance(names["trainer"], adapter.LockstepMixin)
    assert issubclass(names["Trainer"], adapter.LockstepMixin) and issubclass(names["Trainer"], tests.GRPOTrainer)
