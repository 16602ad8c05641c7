"""Builds the shared library and the optional extension and puts them into the wheel, with the built-in starting model."""

from __future__ import annotations

import os
import subprocess
import sys

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from platform_tag import platform_tag  # noqa: E402

LIBRARY = "liblockstep.so.1"
# What `lockstep sanity` starts from.
STARTING_MODEL = "chain-sft"


class CustomBuildHook(BuildHookInterface):
    """Runs bindings/c/build-library.sh before a wheel is packed.

    LOCKSTEP_PREBUILT names a library that was built before, of the same sources: it is packed, and no Swift is needed.

    A standard wheel carries the library inside the package. An editable one leaves it in build/,
    where the package looks for it, so that rebuilding the library is enough. So for the model in examples/.
    """

    def initialize(self, version: str, build_data: dict) -> None:
        binaries = {self.library(): f"lockstep/{LIBRARY}"}  # on disk, and where in the wheel
        extension = build_extension(self.root, os.path.join(self.root, "build"))
        if extension:
            binaries[extension] = f"lockstep/{os.path.basename(extension)}"
        if version != "editable":
            build_data["force_include"] |= binaries
            model = os.path.join(self.root, "examples", "data", STARTING_MODEL)
            build_data["force_include"][model] = f"lockstep/sanity/{STARTING_MODEL}"
        # Any Python 3 on this platform: ctypes needs no Python ABI. With the extension too, which is only looked at by
        # the Pythons that it is for; the tag cp311-abi3 would keep the wheel from all others, which need none.
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag(binaries)}"

    def library(self) -> str:
        """The path of the shared library, built unless it was before."""
        prebuilt = os.environ.get("LOCKSTEP_PREBUILT")
        if prebuilt:
            if not os.path.isfile(prebuilt):
                raise FileNotFoundError(f"LOCKSTEP_PREBUILT is '{prebuilt}', where there is no file")
            return os.path.abspath(prebuilt)
        folder = os.path.join(self.root, "build")
        script = os.path.join(self.root, "bindings", "c", "build-library.sh")
        subprocess.run(["sh", script, folder], check=True)  # says so itself where Swift is missing
        return os.path.join(folder, LIBRARY)


def build_extension(root: str, folder: str) -> str | None:
    """Runs bindings/python/extension/build.py; the path of what it made, if it could.

    LOCKSTEP_PYTHON_BINDING says "extension" where it must, "ctypes" where it shall not.
    """
    wanted = os.environ.get("LOCKSTEP_PYTHON_BINDING")
    if wanted == "ctypes":
        return None
    script = os.path.join(root, "bindings", "python", "extension", "build.py")
    if subprocess.run([sys.executable, script, folder], check=wanted == "extension").returncode:
        return None
    return os.path.join(folder, "_fast.abi3.so")
