"""docs/Glossary.md names everything that is measured, and other systems by names they have."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import fields

import pytest

import lockstep
from conftest import ROOT
from lockstep import _mismatch
from peers import GOLDEN

GLOSSARY = (ROOT / "docs" / "Glossary.md").read_text()
#: Where a system's source can be looked into, by its column or the word before a name.
PACKAGES = {"verl": "verl", "TRL": "trl", "tinker-cookbook": "tinker-cookbook", "SkyRL": "skyrl",
            "OpenRLHF": "openrlhf", "AReaL": "areal"}
#: What the golden vectors call them.
GOLDEN_NAMES = {"verl": "verl", "NeMo-RL": "nemo-rl", "prime-rl": "prime-rl", "slime": "slime",
                "tinker-cookbook": "tinker-cookbook", "torchtitan": "titan", "Oat": "oat", "TRL": "trl"}
#: Names neither a package nor a vector can be asked for: read at their source, in a part that is not on PyPI.
READ_AT_SOURCE = {("slime", "train/train_rollout_logprob_abs_diff")}


def tables():
    """Each table as its header and rows of cells."""
    for block in re.findall(r"(?:^\|.*\n)+", GLOSSARY, flags=re.M):
        lines = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
        yield lines[0], lines[2:]


TABLES = list(tables())
FIELDS = {each.name for each in fields(lockstep.Mismatch)}


def table(*header):
    return next(rows for found, rows in TABLES if found == list(header))


CALLED = table("ours", "verl", "TRL", "prime-rl", "NeMo-RL", "slime", "others")
COLUMNS = ("verl", "TRL", "prime-rl", "NeMo-RL", "slime")
NAMES = [
    (system, name) for _, *cells, others in CALLED
    for system, name in [
        *((system, name) for system, cell in zip(COLUMNS, cells) for name in re.findall(r"`([^`]+)`", cell)),
        *re.findall(r"([\w-]+) `([^`]+)`", others)]]


def test_every_field_has_its_row():
    """In a table that says its formula, error and unit, or what is counted."""
    rows = {name for header, lines in TABLES if header[0] == "name" for line in lines
            for name in re.findall(r"`(\w+)`", line[0])}
    # The standard error of another field stands in its row.
    assert {name for name in FIELDS if not name.endswith("_standard_error")} - rows == set()
    assert set(lockstep.Divergence._fields) - rows == set()
    assert rows <= FIELDS | set(lockstep.Divergence._fields)


def test_every_error_is_said():
    """Where the result has a standard error, the row says how it comes about; where not, a dash."""
    estimates = {each.name for each in fields(lockstep.Mismatch) if each.type == "Estimate"}
    assert estimates
    for header, rows in TABLES:
        if "error" in header:
            for row in rows:
                for name in re.findall(r"`(\w+)`", row[0]):
                    given = name in estimates or f"{name}_standard_error" in FIELDS
                    assert (row[header.index("error")] != "-") == given, name


def test_every_column_of_sequences_and_profiles_is_named():
    named = set(re.findall(r"`(\w+)`", GLOSSARY))
    assert set(_mismatch._SEQUENCE.names) | set(_mismatch._BUCKET.names) <= named


def test_every_metric_is_explained():
    found = lockstep.metrics(lockstep.mismatch([[-1.0, -2], [-1, -2]], [[-1.5, -2], [-1, -2]]), prefix="")
    named = set(re.findall(r"`(\w+)`", GLOSSARY))
    assert {name.removesuffix("_se") for name in found} - named == set()


def test_tables_of_other_systems_are_of_our_fields():
    limits = table("statistic", "limit", "whose", "source")
    for row in [*CALLED, *limits]:
        names = set(re.findall(r"`(\w+)`", row[0]))
        assert names and names <= FIELDS
    assert all(re.search(r"\]\(https://github\.com/[^)]+\)", row[3]) for row in limits)


def test_the_names_were_understood():
    assert len(NAMES) == sum(row[i].count("`") // 2 for row in CALLED for i in range(1, 7)) > 40
    assert {system for system, _ in NAMES} == PACKAGES.keys() | GOLDEN_NAMES.keys()


def golden(system, name):
    """Whether a vector holds the name: None if there are none of the system."""
    known = {key for case in GOLDEN["cases"] for key in case["expected"]
             if case["system"] == GOLDEN_NAMES.get(system)}
    known |= {case["function"] for case in GOLDEN["cases"] if case["system"] == GOLDEN_NAMES.get(system)}
    prefix = {"NeMo-RL": "nemo"}.get(system, GOLDEN_NAMES.get(system))
    known |= {key.removeprefix(f"{prefix}.").replace(".", "/") for case in GOLDEN["cases"]
              if case["system"] == "formula" for key in case["expected"] if key.startswith(f"{prefix}.")}
    parts = [part for part in name.split("/") if part not in ("mean", "max", "all")]
    return any(parts[-1] in key for key in known) if known else None


def source(system, name):
    """Whether the installed package's source holds the name, or its last part as a string of its own; None if
    it is not installed."""
    try:
        files = importlib.metadata.files(PACKAGES.get(system, "")) or []
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    wanted = re.compile(rf"{re.escape(name)}|[\"'/{{]{re.escape(name.split('/')[-1])}[\"':}}]|"
                        rf"\b{re.escape(name.split('/')[-1])}\s*=")
    return any(wanted.search(each.locate().read_text(errors="replace")) for each in files
               if each.suffix == ".py" and each.locate().exists())


@pytest.mark.parametrize("system, name", sorted(set(NAMES) - READ_AT_SOURCE))
def test_other_systems_have_the_name(system, name):
    found = source(system, name), golden(system, name)
    if found == (None, None) or (found[0] is None and not found[1] and system in PACKAGES):
        pytest.skip(f"{system} is not installed (make test PEERS=1)")
    assert True in found
