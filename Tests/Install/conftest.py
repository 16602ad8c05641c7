"""What the tests of the wheel share: the repository, wheels made once, and clean virtual environments.

Nothing is fetched and the library is not built again: wheels carry the one in build/ (LOCKSTEP_PREBUILT), and an environment
gets the packages that metadata asks for from the one the tests run in. A wheel built from nothing: `make check-long`.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "build" / "liblockstep.so.1"


def run(command, *, check=True, **options):
    """Runs a program, and shows what it said where it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if check and done.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))}\nended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def pip_wheel(source, target):
    """`pip wheel` of a source folder, with the library that is built; the wheel's path."""
    run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", target, source],
        env=os.environ | {"LOCKSTEP_PREBUILT": str(LIBRARY)})
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def source_archive(tmp_path_factory):
    """The sdist."""
    folder = tmp_path_factory.mktemp("sdist")
    run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder], cwd=ROOT)
    (archive,) = folder.glob("lockstep-*.tar.gz")
    return archive


@pytest.fixture(scope="session")
def unpacked(source_archive, tmp_path_factory):
    """The folder of the sdist, far from the repository."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(source_archive) as archive:
        archive.extractall(folder)
    (inside,) = folder.iterdir()
    return inside


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel of the repository."""
    return pip_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def wheel_of_archive(unpacked, tmp_path_factory):
    """The wheel of the sdist."""
    return pip_wheel(unpacked, tmp_path_factory.mktemp("wheel_of_archive"))


def requirements(wheel):
    """What the wheel's metadata asks for."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith(".dist-info/METADATA")]
        text = archive.read(name).decode()
    return [Requirement(line) for line in re.findall(r"^Requires-Dist: (.*)$", text, flags=re.M)]


def needed(asked, extra, found):
    """Adds to `found` the installed distributions that requirements and their own ask for; skips where one is missing."""
    for requirement in asked:
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found:
            continue
        try:
            distribution = importlib.metadata.distribution(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{requirement.name} is not installed here")
        found[name] = distribution
        inner = [Requirement(text) for text in distribution.requires or ()]
        for each in requirement.extras or {""}:
            needed(inner, each, found)


@pytest.fixture(scope="session")
def environment(wheel, tmp_path_factory):
    """environment(extra): the Python of a virtual environment with the wheel, and with what it asks for with that extra."""
    made = {}

    def make(extra=""):
        if extra not in made:
            found = {}
            needed(requirements(wheel), extra, found)
            folder = tmp_path_factory.mktemp(f"environment_{extra}")
            run([sys.executable, "-m", "venv", "--without-pip", folder])
            python = folder / "bin" / "python"
            (site,) = folder.glob("lib/python3*/site-packages")
            for distribution in found.values():
                for top in {file.parts[0] for file in distribution.files if file.parts[0] not in ("..", "__pycache__")}:
                    place = site / top
                    if not place.exists():
                        place.symlink_to(distribution.locate_file(top))
            run([sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", "--no-deps", wheel])
            made[extra] = python
        return made[extra]

    return make


@pytest.fixture(scope="session")
def bare():
    """bare(python, argument...): runs it without PATH or any other variable, in a folder that is not the repository's."""
    def call(python, *arguments, check=True, **options):
        return run([python, *arguments], check=check, env={"PATH": "", "HOME": "/nonexistent", **options.pop("variables", {})},
                   cwd=options.pop("cwd", "/"), **options)

    return call
