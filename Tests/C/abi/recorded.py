"""The ABI as it was recorded, and as the header makes it. `make abi` compares them, `make abi-record` runs this file.

`lockstep-1.abi.xml` (libabigail's) holds the functions of soname liblockstep.so.1 and their types, `layout.h`, which the C
tests compile, every size, offset and constant. Recording writes both anew, if what differs is additions: functions, constants,
types, and fields at the end of a struct that begins with struct_size. Whatever else differs is refused: programs are out
there that were compiled against what is recorded.

A Swift library has no debug information that speaks C, so the header is read by clang, each function becomes a C function
that does nothing, and libabigail reads those. Needs clang (Swift brings one), a C compiler, abidw and abidiff.
Standard library only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
INCLUDE = ROOT / "include"
SONAME = "liblockstep.so.1"
TYPES = "lockstep-1.abi.xml"
LAYOUT = "layout.h"
# What a release changes.
NOT_RECORDED = re.compile(r"LOCKSTEP_VERSION_")


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{Path(command[0]).name} failed: {(done.stderr or done.stdout).strip()[:2000]}")
    return done.stdout


def clang():
    """Swift's own clang, or any."""
    swift = shutil.which(os.environ.get("SWIFT", "swift"))
    beside = swift and Path(swift).resolve().parent / "clang"
    return str(beside) if beside and beside.exists() else shutil.which("clang")


def missing():
    """The tools that are not here."""
    tools = {"clang": clang(), "abidw": shutil.which("abidw"), "abidiff": shutil.which("abidiff")}
    return [name for name, path in tools.items() if path is None]


class Header:
    """What clang sees in a folder's lockstep.h."""

    def __init__(self, include):
        self.include = Path(include)
        path = self.include / "lockstep.h"
        tree = json.loads(run(clang(), "-x", "c", "-std=c99", "-fsyntax-only", "-Xclang", "-ast-dump=json", path))
        nodes = [node for node in tree["inner"] if not node.get("isImplicit")]
        self.functions = [
            node for node in nodes
            if node["kind"] == "FunctionDecl" and node["name"].startswith("lockstep_")
            and node.get("storageClass") != "static"]
        records = {node["id"]: node for node in nodes if node["kind"] == "RecordDecl" and "inner" in node}
        self.structs = {}
        for node in nodes:
            if node["kind"] == "TypedefDecl" and node["name"].startswith("lockstep_"):
                owned = [each.get("ownedTagDecl", {}).get("id") for each in node["inner"]]
                if owned[0] in records:
                    self.structs[node["name"]] = [
                        (field["name"], field["type"]["qualType"]) for field in records[owned[0]]["inner"]
                        if field["kind"] == "FieldDecl"]
        text = re.sub(r"/\*.*?\*/", " ", path.read_text(), flags=re.S)
        self.constants = [
            each["name"] for node in nodes if node["kind"] == "EnumDecl" for each in node["inner"]
            if each["kind"] == "EnumConstantDecl" and each["name"].startswith("LOCKSTEP_")]
        self.constants += re.findall(r"#define (LOCKSTEP_\w+) +[-(\d]", text)
        self.constants = [name for name in self.constants if not NOT_RECORDED.match(name)]

    def grows(self, struct):
        return self.structs[struct][0][0] == "struct_size"

    def stubs(self):
        """A C function that does nothing for each function of the header."""
        lines = ["#include <lockstep.h>"]
        for function in self.functions:
            parameters = [each for each in function.get("inner", []) if each["kind"] == "ParmVarDecl"]
            written = ", ".join(f"__typeof__({each['type']['qualType']}) {each['name']}" for each in parameters)
            result = function["type"]["qualType"].partition("(")[0].strip()
            body = "" if result == "void" else f"static {result.replace('const ', '')} nothing; return nothing;"
            lines.append(f"{result} {function['name']}({written or 'void'}) {{ {body} }}")
        return "\n".join(lines) + "\n"


def types(header, symbols, folder):
    """Writes libabigail's XML of a header into a folder; returns its path."""
    source, library, script, target = (folder / name for name in ("stubs.c", SONAME, "stubs.map", TYPES))
    source.write_text(header.stubs())
    script.write_text(run(ROOT / "bindings" / "c" / "version-script.sh", symbols))
    run(clang(), "-std=c99", "-g", "-fno-eliminate-unused-debug-types", "-fPIC", "-shared", "-I", header.include, source, "-o",
        library, f"-ffile-prefix-map={folder}=.", "-fuse-ld=lld", f"-Wl,-soname,{SONAME},--version-script={script},--no-undefined-version")
    run("abidw", "--headers-dir", header.include, "--no-corpus-path", "--no-comp-dir-path", "--no-show-locs",
        "--out-file", target, library)
    return target


def layout(header, folder):
    """The text of layout.h: what the compiler makes of every struct and constant."""
    expressions = []
    for struct, fields in header.structs.items():
        expressions.append(f"sizeof({struct})")
        for name, _ in fields:
            expressions += [f"offsetof({struct}, {name})", f"sizeof((({struct} *)0)->{name})"]
    expressions += header.constants
    source, program = folder / "layout.c", folder / "layout"
    source.write_text("#include <stdio.h>\n#include <lockstep.h>\nint main(void) {\n" + "".join(
        f'    printf("%lld\\n", (long long)({each}));\n' for each in expressions) + "    return 0;\n}\n")
    run(clang(), "-std=c99", "-I", header.include, source, "-o", program)
    values = iter(run(program).split())
    lines = [
        "/* Every size, offset and constant that programs have compiled in. Written by `make abi-record`, which refuses what",
        " * they could not bear; layout_test.c holds the header to it. LAYOUT_GROWS is the size of a struct that may grow. */"]
    for struct, fields in header.structs.items():
        lines.append(f"LAYOUT_{'GROWS' if header.grows(struct) else 'SIZE'}({struct}, {next(values)})")
        lines += [f"LAYOUT_FIELD({struct}, {name}, {next(values)}, {next(values)})" for name, _ in fields]
    lines += [f"LAYOUT_CONSTANT({name}, {next(values)})" for name in header.constants]
    return "\n".join(lines) + "\n"


def shape(text):
    """layout.h as a dictionary: what a line is about, and its numbers."""
    found = {}
    for kind, arguments in re.findall(r"^LAYOUT_(\w+)\((.*)\)$", text, flags=re.M):
        words = arguments.split(", ")
        names = [word for word in words if not re.fullmatch(r"-?\d+", word)]
        found[(kind, *names)] = [int(word) for word in words[len(names):]]
    return found


def compare_layout(old, new):
    """(what breaks programs, whether anything was added)"""
    before, now = shape(old), shape(new)
    broken = []
    for key, numbers in before.items():
        there, what = now.get(key), " ".join(key[1:])
        if there is None:
            broken.append(f"{what} is not there any more, or not of the same kind")
        elif there[0] < numbers[0] if key[0] == "GROWS" else there != numbers:
            broken.append(f"{what}: {key[0].lower()} was {numbers}, is {there}")
    return broken, before != now


def compare_types(old, new, growing, folder):
    """(what breaks programs, whether anything was added), by abidiff."""
    allowed = folder / "allowed.suppr"
    allowed.write_text("".join(
        f"[suppress_type]\n  name = {name}\n  has_data_member_inserted_at = end\n\n" for name in growing))
    command = ["abidiff", "--no-show-locs", old, new]
    strict = subprocess.run(command, capture_output=True, text=True)
    # Bits 1 and 2 are abidiff's own failures, 4 and 8 what it found.
    if strict.returncode & 3:
        raise RuntimeError(f"abidiff failed: {strict.stderr.strip()[:2000]}")
    lenient = subprocess.run(
        [*command, "--no-added-syms", "--suppressions", allowed], capture_output=True, text=True)
    return lenient.stdout.splitlines() if lenient.returncode else [], strict.returncode != 0


def rules(header, layout_text):
    """What a header must be so that its structs can grow at all."""
    problems = []
    sizes = shape(layout_text)
    for struct, fields in header.structs.items():
        end = 0
        for name, kind in fields:
            offset, size = sizes[("FIELD", struct, name)]
            if offset != end:
                problems.append(f"{struct}: padding before {name}, which would read as whatever was there; say `reserved`")
            end = offset + size
            if kind.split("[")[0].strip() in header.structs and header.grows(kind.split("[")[0].strip()):
                problems.append(f"{struct}.{name} is a {kind}, which may grow: hold a pointer to it")
        total = sizes[("GROWS" if header.grows(struct) else "SIZE", struct)][0]
        if end != total:
            problems.append(f"{struct}: padding at its end, which a later field could not use; say `reserved`")
    return problems


def compare(include=INCLUDE, symbols=None, recorded=HERE):
    """(problems, whether the record lacks additions, the new XML's bytes, the new layout)"""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        header = Header(include)
        new_types = types(header, symbols or Path(include) / "lockstep.symbols", folder)
        new_layout = layout(header, folder)
        problems, grown = rules(header, new_layout), False
        if (recorded / TYPES).exists():
            broken, more = compare_types(
                recorded / TYPES, new_types, [each for each in header.structs if header.grows(each)], folder)
            problems += broken
            grown |= more
            broken, more = compare_layout((recorded / LAYOUT).read_text(), new_layout)
            problems += broken
            grown |= more
        else:
            grown = True
        return problems, grown, new_types.read_bytes(), new_layout


def main():
    if missing():
        sys.exit(f"recorded.py: {', '.join(missing())} not found (Debian: abigail-tools; clang comes with Swift)")
    problems, grown, new_types, new_layout = compare()
    if problems:
        print(*problems, sep="\n")
        sys.exit("The ABI is not what programs were compiled against. Restore it, or give the library a new soname "
                 "(CONTRIBUTING.md, Versions).")
    (HERE / TYPES).write_bytes(new_types)
    (HERE / LAYOUT).write_text(new_layout)
    print("recorded" if grown else "recorded: nothing was new")


if __name__ == "__main__":
    main()
