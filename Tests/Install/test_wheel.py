"""The wheel and the source archive: what is in them, and that a clean environment can use them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

import lockstep
from conftest import LIBRARY, ROOT, run

sys.path.insert(0, str(ROOT / "bindings" / "python"))
import platform_tag  # noqa: E402

SHIPPED = ROOT / "examples" / "data" / "smollm2-135m.bf16.jsonl.gz"
MODEL = ROOT / "Tests" / "Vectors" / "models" / "llama_untied"


EXTENSION = "lockstep/_fast.abi3.so"  # where it can be built


def contents(wheel):
    """The files of a wheel and their checksums, without those that say how it was packed."""
    with zipfile.ZipFile(wheel) as archive:
        return {each.filename: each.CRC for each in archive.infolist() if not each.filename.endswith("/RECORD")}


def test_the_wheel_has_what_it_should_and_nothing_else(wheel):
    names = set(contents(wheel))
    ours = {f"lockstep/{path.relative_to(ROOT / 'bindings/python/lockstep')}"
            for path in (ROOT / "bindings" / "python" / "lockstep").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts}
    model = {f"lockstep/sanity/chain-sft/{name}" for name in ("config.json", "model.safetensors")}
    metadata = {name for name in names if ".dist-info/" in name}
    assert names - metadata - {EXTENSION} == ours | model | {"lockstep/liblockstep.so.1"}
    assert {Path(name).name for name in metadata} == {"METADATA", "WHEEL", "LICENSE", "entry_points.txt"}


def test_its_library_is_the_built_one(wheel):
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("lockstep/liblockstep.so.1") == LIBRARY.read_bytes()


def test_a_wheel_of_the_source_archive_is_the_same(wheel, wheel_of_archive):
    assert wheel.name == wheel_of_archive.name
    first, second = contents(wheel), contents(wheel_of_archive)
    assert first.keys() == second.keys()
    first.pop(EXTENSION, None)  # its own bytes name the folder it was compiled in
    assert first.items() <= second.items()


def test_swift_accepts_the_source_archive(unpacked):
    """SwiftPM refuses a manifest whose folders are missing. (Building it: make check-long.)"""
    swift = shutil.which(os.environ.get("SWIFT", "swift"))
    if swift is None:
        pytest.skip("there is no swift on PATH")
    described = run([swift, "package", "describe", "--package-path", unpacked]).stdout
    for name in ("Lockstep", "LockstepABI", "CLockstepKernels", "CLockstepRuntime", "LockstepTests", "LockstepABITests"):
        assert f"Name: {name}\n" in described


def test_the_source_archive_has_what_builds_it_and_nothing_that_was_built(source_archive):
    with tarfile.open(source_archive) as archive:
        members = archive.getmembers()
    names = {each.name.partition("/")[2] for each in members}
    assert {"Package.swift", "LICENSE", "README.md", "pyproject.toml"} <= names
    for folder in ("Sources", "Tests/LockstepTests", "Tests/LockstepABITests", "bindings", "include",
                   "examples/data/chain-sft"):
        ours = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*")
                if path.is_file() and "__pycache__" not in path.parts}
        assert ours and ours <= names, ours - names
    assert not [each.name for each in members if re.search(r"\.(so|o|a|pyc)(\.\d+)?$|/\.build|/build/", each.name)]
    assert sum(each.size for each in members) < 16 << 20


def test_the_tag_is_what_auditwheel_finds(wheel):
    pytest.importorskip("auditwheel", reason="auditwheel is not installed")
    said = run([sys.executable, "-m", "auditwheel", "show", wheel]).stdout
    (found,) = re.findall(r'platform tag:\s+"(\w+)"', " ".join(said.split()))
    assert wheel.name.endswith(f"-py3-none-{found}.whl") and found.startswith("manylinux_2_")


def test_the_tag_is_of_what_a_library_needs(tmp_path, monkeypatch):
    assert platform_tag.platform_tag([LIBRARY]) == f"manylinux_2_{platform_tag.oldest_glibc(LIBRARY)}_" + os.uname().machine
    libraries, versions = platform_tag.needs(str(LIBRARY))
    dynamic, listed = (run(["readelf", "-W", option, LIBRARY]).stdout for option in ("-d", "-V"))
    assert libraries == set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
    assert versions == set(re.findall(r"Name: (\S+)  Flags.*Version: [1-9]", listed)) and len(versions) > 5

    monkeypatch.setattr(platform_tag, "glibc_here", lambda: 38)

    def needing(libraries, versions):
        monkeypatch.setattr(platform_tag, "needs", lambda path: (libraries, versions))
        return platform_tag.platform_tag(["x"])

    machine = os.uname().machine
    assert needing({"libc.so.6"}, {"GLIBC_2.2.5"}) == f"manylinux_2_17_{machine}"
    assert needing({"libc.so.6"}, {"GLIBC_2.38", "GLIBC_2.4"}) == f"manylinux_2_38_{machine}"
    assert needing({"libstdc++.so.6"}, {"GLIBCXX_3.4.29"}) == f"manylinux_2_34_{machine}"
    assert needing({"libstdc++.so.6"}, {"CXXABI_1.3.13"}) == f"manylinux_2_34_{machine}"
    for strange in (({"libfoo.so.1"}, set()), ({"libc.so.6"}, {"GLIBC_PRIVATE"}), ({"libc.so.6"}, {"GLIBCXX_3.4.99"}),
                    ({"libc.so.6"}, {"GLIBC_2.39"})):
        assert needing(*strange) == f"linux_{machine}"


def test_a_file_that_is_no_library(tmp_path, capsys):
    path = tmp_path / "text"
    path.write_text("no library")
    assert platform_tag.platform_tag([str(path)]) == f"linux_{os.uname().machine}"
    assert "not a 64-bit" in capsys.readouterr().out


def test_a_prebuilt_library_that_is_not_there(tmp_path):
    failed = run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path, ROOT],
                 env=os.environ | {"LOCKSTEP_PREBUILT": "/nowhere/liblockstep.so.1"}, check=False)
    assert failed.returncode != 0 and "LOCKSTEP_PREBUILT is '/nowhere/liblockstep.so.1'" in failed.stdout + failed.stderr


CODE = """
import sys, numpy as np, lockstep
from lockstep import _library
logits = np.random.default_rng(0).normal(size=(50, 1000)).astype(np.float32)
targets = np.arange(50)
sys.stdout.write(lockstep.log_probs(logits, targets, threads=2).tobytes().hex() + "\\n")
sys.stdout.write(_library.library.path + "\\n")
mapped = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
sys.stdout.write(" ".join(sorted(each for each in mapped if "swift" in each.lower())) + "\\n")
"""


def test_it_computes_in_a_clean_environment(environment, bare):
    """No PATH, no Swift, NumPy alone: the bits of the package under test."""
    python = environment()
    bits, path, swift = bare(python, "-c", CODE).stdout.split("\n")[:3]
    logits = np.random.default_rng(0).normal(size=(50, 1000)).astype(np.float32)
    assert bytes.fromhex(bits) == lockstep.log_probs(logits, np.arange(50)).tobytes()
    assert Path(path).is_relative_to(python.parents[1]) and swift == ""


def test_without_an_extra_each_part_says_which(environment, bare):
    python = environment()
    command = bare(python.parent / "lockstep", "diagnose", SHIPPED, check=False)
    assert command.returncode == 2 and command.stdout == ""
    assert command.stderr == "lockstep: the command line needs click: pip install 'lockstep[report]'\n"
    for extra, name in (("torch", "PyTorch"), ("ray", "Ray")):
        failed = bare(python, "-c", f"import lockstep.{extra}", check=False)
        assert failed.stderr.endswith(f"lockstep.{extra} needs {name}: pip install 'lockstep[{extra}]'\n"), failed.stderr
    # Reading logs needs no extra; without orjson it is slower.
    code = f"import lockstep.logs as logs; print(logs.gather(logs.open_log({str(SHIPPED)!r})).trainer.size)"
    assert int(bare(python, "-c", code).stdout) > 1000


@pytest.mark.parametrize("package", ["click", "jinja2", "matplotlib", "rich"])
def test_the_command_line_names_what_is_missing(environment, bare, package, tmp_path):
    """As if one package of the extra had been removed."""
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('no {package}', name='{package}')")
    failed = bare(environment("report").parent / "lockstep", "diagnose", SHIPPED, "--html", tmp_path / "page.html",
                  check=False, variables={"PYTHONPATH": str(tmp_path)})
    assert failed.returncode == 2
    assert failed.stderr.endswith(f"lockstep: the command line needs {package}: pip install 'lockstep[report]'\n")


def test_report_is_enough_for_the_command_line(environment, bare, tmp_path):
    """Every command is there; those that are quick do their work."""
    python = environment("report")
    code = ("from lockstep.commands import commands\n"
            "for name in commands.list_commands(None): commands([name, '--help'], prog_name='lockstep', standalone_mode=False)")
    assert len(re.findall(r"^Usage: lockstep \w+ ", bare(python, "-c", code).stdout, flags=re.M)) > 10
    program = python.parent / "lockstep"
    page, log, table = tmp_path / "page.html", tmp_path / "log.lockstep", tmp_path / "log.jsonl"
    bare(program, "diagnose", SHIPPED, "--html", page)
    assert "<svg" in page.read_text() and page.stat().st_size > 50_000
    bare(program, "convert", SHIPPED, "-o", log)
    bare(program, "convert", log, "-o", table)
    assert bare(program, "certify", log, check=False).returncode in (0, 1, 3, 4)
    bare(program, "advise", log)
    bare(program, "watch", SHIPPED)
    bare(program, "presets", "grpo")
    bare(program, "audit", MODEL)
    refused = bare(program, "convert", SHIPPED, "-o", tmp_path / "log.parquet", check=False)
    assert refused.returncode == 2 and "pip install 'lockstep[parquet]'" in refused.stderr


def test_parquet_is_enough_for_tables(environment, bare, tmp_path):
    python = environment("parquet")
    table = tmp_path / "log.parquet"
    code = (f"import lockstep.logs as logs; logs.write_log(logs.open_log({str(SHIPPED)!r}), {str(table)!r})\n"
            f"a, b = (logs.gather(logs.open_log(each)).trainer for each in ({str(table)!r}, {str(SHIPPED)!r}))\n"
            "print(a.size > 0 and a.tobytes() == b.tobytes())")
    assert bare(python, "-c", code).stdout == "True\n"


@pytest.mark.parametrize("extra, code, wanted", [
    ("torch", "import torch, lockstep.torch\nx = torch.zeros(1, 4, requires_grad=True)\n"
     "lockstep.torch.log_probs(x, torch.tensor([0])).sum().backward()\nprint(x.grad[0, 0].item())", "0.75"),
    ("ray", "import lockstep.ray\nprint(lockstep.ray.RETRIES > 0)", "True"),
])
def test_extras_bring_what_their_module_imports(environment, bare, extra, code, wanted, tmp_path):
    if importlib.util.find_spec(extra) is None:
        pytest.skip(f"{extra} is not installed")
    assert bare(environment(extra), "-c", code).stdout.split()[-1] == wanted
