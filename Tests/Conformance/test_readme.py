"""README shows examples that `make test-examples` runs, and figures that benchmarks/results holds."""

from __future__ import annotations

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("file", [
    "examples/c/first.c", "examples/python/first.py", "examples/swift/Sources/first/main.swift",
    "examples/first.expected"])
def test_examples_are_the_files(file):
    assert f"\n{(ROOT / file).read_text()}```" in README


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_table_is_what_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import table

    assert f"\n{table.table()}\n" in README
