"""README shows examples that `make test-examples` runs, and figures that benchmarks/results holds."""

from __future__ import annotations

import pathlib
import re

import pytest
from click.testing import CliRunner
from rollouts import SHIPPED

from lockstep.commands import commands

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("file", [
    "examples/c/first.c", "examples/python/first.py", "examples/swift/Sources/first/main.swift",
    "examples/expected/first.txt"])
def test_examples_are_the_files(file):
    assert f"\n{(ROOT / file).read_text()}```" in README


def test_the_table_is_what_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import table

    assert f"\n{table.table()}\n" in README


def test_the_diagnosis_is_what_is_printed():
    [block] = re.findall(r"```text\n( +bf16 .*?)```", README, re.DOTALL)
    logs = [str(SHIPPED["bf16"]), str(SHIPPED["fp16"]), "--label", "bf16", "--label", "fp16", "--no-html"]
    printed = CliRunner(env={"COLUMNS": "100"}).invoke(commands, ["diagnose", *logs]).stdout
    lines = [line.rstrip() for line in printed.splitlines()]
    assert [line for line in block.splitlines() if line != "…" and line not in lines] == []


def test_every_command_is_told_of():
    told = set(re.findall(r"`lockstep (\w+) ", README))
    assert told == set(commands.list_commands(None))
