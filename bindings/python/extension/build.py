"""Builds lockstep._fast, the package's optional extension, where there are Python's headers and a C compiler.

    python build.py FOLDER      leaves FOLDER/_fast.abi3.so

One file serves CPython 3.11 and later (the limited API, which has the buffer protocol from there on). Standard library only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig

HERE = os.path.dirname(os.path.abspath(__file__))
INCLUDE = os.path.join(HERE, "..", "..", "..", "include")
FILE = "_fast.abi3.so"
WARNINGS = ("-Wall", "-Wextra", "-pedantic")

# Parameters of the header, as the letters that fast.c converts by; functions with others are left to ctypes.
_LETTERS = {"int32_t": "i", "int64_t": "l", "uint64_t": "l", "size_t": "l", "double": "d"}
_MEMBERS = {"p": "p", "i": "i", "l": "i", "d": "d"}


def functions(header: str) -> str:
    """functions.h: one call for each function of the header, which the compiler compares with its declaration."""
    text = re.sub(r"/\*.*?\*/", " ", header, flags=re.S)
    letters = _LETTERS | {name: "i" for name in re.findall(r"typedef int32_t (\w+);", text)}
    calls, entries = [], []
    for result, name, parameters in re.findall(r"^(\w+) (lockstep_\w+)\(([^)]*)\)\s*;", text, flags=re.M):
        kinds = [
            "p" if "*" in each else letters.get(each.replace("const ", "").split()[0])
            for each in parameters.split(",")]
        if None in kinds or (result != "void" and letters.get(result) != "i"):
            continue
        given = ", ".join(
            f"({'int32_t' if kind == 'i' else 'int64_t'})a[{index}].i" if kind in "il" else f"a[{index}].{kind}"
            for index, kind in enumerate(kinds))
        call = f"((__typeof__(&{name}))f)({given})"
        calls.append(
            f"static int32_t call_{name}(Address f, const Value *a) {{\n"
            f"    {call + '; return 0' if result == 'void' else 'return ' + call};\n}}\n")
        entries.append(f'    {{"{name}", "{"".join(kinds)}", {"false" if result == "void" else "true"}, call_{name}}},\n')
    return f"{''.join(calls)}\nstatic const Entry entries[] = {{\n{''.join(entries)}}};\n"


def build(folder: str, *flags: str) -> str | None:
    """Makes FOLDER/_fast.abi3.so; without what that needs, says so in a line and gives None."""
    target = os.path.join(folder, FILE)
    if os.path.exists(target):
        os.remove(target)  # never an old one; a process that has it loaded keeps it
    headers = sysconfig.get_path("include")
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    missing = (
        "CPython 3.11 or later" if sys.implementation.name != "cpython" or sys.version_info < (3, 11)
        else "a Python with the limited API" if sysconfig.get_config_var("Py_GIL_DISABLED")
        else "Python.h (Debian: libpython3-dev)" if not os.path.exists(os.path.join(headers, "Python.h"))
        else "a C compiler" if compiler is None else None)
    if missing:
        print(f"lockstep: built without its CPython extension, which needs {missing}; calls go through ctypes")
        return None
    os.makedirs(folder, exist_ok=True)
    made = os.path.join(folder, "extension")
    os.makedirs(made, exist_ok=True)
    with open(os.path.join(INCLUDE, "lockstep.h")) as header, open(os.path.join(made, "functions.h"), "w") as out:
        out.write(functions(header.read()))
    command = [
        *compiler.split(), "-shared", "-fPIC", "-std=c11", "-O2", "-fvisibility=hidden", *WARNINGS, *flags,
        "-DPy_LIMITED_API=0x030b0000", f"-I{made}", f"-I{INCLUDE}", f"-isystem{headers}", os.path.join(HERE, "fast.c"),
        "-o", target]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print("lockstep: built without its CPython extension, which did not compile; calls go through ctypes",
              getattr(error, "stderr", None) or error, sep="\n")
        return None
    return target


if __name__ == "__main__":
    sys.exit(build(*sys.argv[1:]) is None)
