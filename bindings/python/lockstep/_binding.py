"""How Python reaches the library: through the extension where it is built, else through ctypes.

The extension (bindings/python/extension) does the slow parts of a call, the description of arrays and the conversion of
arguments. Everything else is the same code, so results and errors are too.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from types import ModuleType

#: "ctypes" or "extension" makes the choice.
VARIABLE = "LOCKSTEP_PYTHON_BINDING"
FILE_NAME = "_fast.abi3.so"


def places() -> list[str]:
    """Where built files are: beside this one (a wheel), or in build/ (a checkout)."""
    here = os.path.dirname(os.path.abspath(__file__))
    return [here, os.path.normpath(os.path.join(here, "..", "..", "..", "build"))]


def choose(wanted: str | None) -> ModuleType | None:
    """The extension, or None for ctypes.

    Raises:
        ImportError: what is wanted cannot be had, or is unknown.
    """
    if wanted not in (None, "", "ctypes", "extension"):
        raise ImportError(f"lockstep: {VARIABLE} is {wanted!r}; give 'ctypes' or 'extension', or leave it out")
    if wanted == "ctypes":
        return None
    try:
        return _load()
    except ImportError as error:
        if wanted == "extension":
            raise ImportError(
                f"lockstep: {VARIABLE} is 'extension', but {error}; install lockstep again where Python.h and a C "
                "compiler are, or leave the variable out") from None
        return None


def _load() -> ModuleType:
    if sys.implementation.name != "cpython" or sys.version_info < (3, 11):
        raise ImportError("the extension needs CPython 3.11 or later")
    path = next((each for each in (os.path.join(place, FILE_NAME) for place in places()) if os.path.exists(each)), None)
    if path is None:
        raise ImportError(f"{FILE_NAME} is neither in {' nor in '.join(places())}")
    name = f"{__package__}._fast"
    loader = ExtensionFileLoader(name, path)
    module = module_from_spec(spec_from_loader(name, loader))  # type: ignore[arg-type]
    loader.exec_module(module)
    return module


fast = choose(os.environ.get(VARIABLE))

#: Which one is in use: "extension" or "ctypes".
binding = "ctypes" if fast is None else "extension"
