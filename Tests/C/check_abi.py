"""Checks that header, export list, library and layers agree, and that programs of yesterday can bear the header:
check_abi.py LIBRARY BUILD_FOLDER

LIBRARY is the built liblockstep.so.1, BUILD_FOLDER the `swift build --show-bin-path` it came from.
Each check prints one line; the last line counts them. Standard library only.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from abi import mutations, recorded

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "include" / "lockstep.h"
SYMBOLS = ROOT / "include" / "lockstep.symbols"
CORE = sorted((ROOT / "Sources" / "Lockstep").rglob("*.swift"))
BOUNDARY = sorted((ROOT / "Sources" / "LockstepABI").rglob("*.swift"))
LARGEST_STRIPPED = 8 * 1024 * 1024
ALLOWED_LIBRARIES = {
    "linux-vdso", "ld-linux-x86-64", "ld-linux-aarch64",
    "libc", "libm", "libgcc_s", "libstdc++", "libpthread", "libdl",
}


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT)
    return done.returncode, done.stdout, done.stderr


def without_comments(text):
    return re.sub(r"/\*.*?\*/", " ", text, flags=re.S)


def header_names():
    """Functions the header declares; `static inline` helpers are not exports."""
    text = re.sub(r"^\s*#.*$", " ", without_comments(HEADER.read_text()), flags=re.M)
    text = re.sub(r"static inline [^{]*\{.*?\n\}", " ", text, flags=re.S)
    return set(re.findall(r"\b(lockstep_\w+)\s*\(", text))


def listed():
    """The lines of the list of symbols, each as [name, version]."""
    lines = SYMBOLS.read_text().splitlines()
    return [line.split() for line in lines if line and not line.startswith("#")]


def difference(left, left_name, right, right_name):
    """Empty if the sets are equal, else what each side has alone."""
    problems = [f"{name} is in {left_name} but not in {right_name}" for name in sorted(left - right)]
    return problems + [f"{name} is in {right_name} but not in {left_name}" for name in sorted(right - left)]


def check_list():
    """header declarations == include/lockstep.symbols, where no version is newer than the header's"""
    number = [int(part) for part in re.findall(r"#define LOCKSTEP_VERSION_\w+ (\d+)", HEADER.read_text())]
    problems, names = [], []
    for words in listed():
        if not re.fullmatch(r"lockstep_\w+ \d+\.\d+\.\d+", " ".join(words)):
            problems.append(f"malformed line in the list (want: name version): {' '.join(words)}")
        elif [int(part) for part in words[1].split(".")] > number:
            problems.append(f"{words[0]} came in {words[1]}, but the header is {'.'.join(map(str, number))}")
        names.append(words[0])
    problems += [f"{name} is listed twice" for name in sorted({name for name in names if names.count(name) > 1})]
    return problems + difference(header_names(), "lockstep.h", set(names), "lockstep.symbols")


def check_exports(library):
    """exports of the library == include/lockstep.symbols, each under its version"""
    status, output, error = run("nm", "-D", "--defined-only", "--with-symbol-versions", library)
    if status != 0:
        return [error.strip()]
    exported = {line.split()[-1] for line in output.splitlines() if " A " not in line}
    wanted = {f"{name}@@LOCKSTEP_{version}" for name, version in listed()}
    return difference(exported, library.name, wanted, "lockstep.symbols")


def check_recorded():
    """programs compiled against the recorded ABI can use the library, and the record is complete"""
    problems, grown, _, _ = recorded.compare()
    return problems + (["the header has more than is recorded: make abi-record"] if grown and not problems else [])


def check_header(compiler, language, standard):
    with tempfile.TemporaryDirectory() as folder:
        # Twice, so that the include guard is tested too; and used, so that nothing is skipped.
        source = Path(folder) / "header"
        source.write_text("#include <lockstep.h>\n#include <lockstep.h>\n"
                          "int main(void) { return lockstep_version() != 0; }\n")
        status, _, error = run(compiler, "-x", language, f"-std={standard}", "-Wall", "-Wextra", "-pedantic",
                               "-Werror", "-I", ROOT / "include", "-fsyntax-only", source)
    return [] if status == 0 else error.splitlines()[:10]


def check_c():
    """the header is clean C99"""
    return check_header("gcc", "c", "c99")


def check_cxx():
    """the header is clean C++11"""
    return check_header("g++", "c++", "c++11")


def check_self_contained(library):
    """the library needs the system's C and C++ libraries only"""
    status, output, error = run("ldd", library)
    if status != 0:
        return [error.strip()]
    names = [line.split()[0] for line in output.splitlines()]
    stems = {name: os.path.basename(name).split(".so")[0] for name in names}
    return [f"{library.name} needs {name}" for name, stem in stems.items() if stem not in ALLOWED_LIBRARIES]


def check_soname(library):
    """the soname is liblockstep.so.1"""
    _, output, _ = run("readelf", "-d", library)
    found = re.search(r"SONAME.*\[(.*)\]", output)
    name = found.group(1) if found else "missing"
    return [] if name == "liblockstep.so.1" else [f"the soname is {name}"]


def check_size(library):
    """the library is at most 8 MB, stripped"""
    size = library.stat().st_size
    _, sections, _ = run("readelf", "-S", "-W", library)
    problems = [f"{library.name} is {size} bytes, more than {LARGEST_STRIPPED}"] if size > LARGEST_STRIPPED else []
    return problems + (["it has a .symtab: it is not stripped"] if ".symtab" in sections else [])


def lines_matching(files, pattern):
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(pattern, line)
    ]


def check_core_imports():
    """the core imports neither Foundation nor the C API"""
    return lines_matching(CORE, r"^\s*(@\w+\s+)*(public |internal |private )?import\s+(\w+\s+)?"
                                r"(Foundation\w*|Dispatch|CLockstep|LockstepABI)\b")


def check_implementations():
    """every @_cdecl is an @implementation, so the compiler compares it with the header"""
    exports = lines_matching(BOUNDARY, r'@_cdecl\("')
    checked = r'@_cdecl\("\w+"\) @implementation( public func .*)?$'
    unchecked = [line for line in exports if not re.search(checked, line)]
    problems = [f"write it as: @_cdecl(\"name\") @implementation: {line}" for line in unchecked]
    problems += [f"an export outside Sources/LockstepABI: {line}"
                 for line in lines_matching(CORE, r"@_cdecl|@c\b|@_expose")]
    return problems if exports else ["found no @_cdecl at all"]


def check_no_arithmetic(build):
    """LockstepABI does no floating-point arithmetic"""
    # Asked of the compiler, before it optimises: every operator a source line uses is a reference
    # here, with its type, so nothing has to be guessed from the text. SwiftPM names a package after its folder.
    status, code, error = run(
        "swiftc", "-emit-silgen", "-whole-module-optimization", "-parse-as-library", "-swift-version", "6",
        "-module-name", "LockstepABI", "-package-name", re.sub(r"\W", "_", ROOT.name.lower()), "-I", build / "Modules",
        "-I", ROOT / "include", "-I", ROOT / "Sources" / "CLockstepKernels" / "include",
        "-Xcc", f"-fmodule-map-file={build / 'CLockstepKernels.build' / 'module.modulemap'}", *BOUNDARY)
    if status != 0 or "infix(" not in code:
        return ["swiftc -emit-silgen failed"] + error.splitlines()[:5]
    used = re.findall(
        r"// function_ref (?:static )?((?:Float|Double|Float16|Float80|SIMD\w*|FloatingPoint|BinaryFloatingPoint"
        r"|Numeric|AdditiveArithmetic)(?:<[^>]*>)?\.(?:[-+*/]=? infix|- prefix|addingProduct|addProduct|squareRoot"
        r"|round\w*|remainder|truncatingRemainder|negate)\b.*)", code)
    used += re.findall(r"// function_ref (?:@objc )?((?:exp|exp2|expm1|log|log2|log1p|pow|sqrt|tanh|fma)f?\(.*)", code)
    return [f"LockstepABI uses {name}" for name in sorted(set(used))]


def check_unicode(library, build):
    """our objects ask for no properties of Unicode scalars, whose tables the library leaves out"""
    asks = re.compile(r"_swift_stdlib_get[A-Z]|Unicode\.Scalar\.[Pp]roperties|Unicode\.GeneralCategory"
                      r"|Swift\.(Character|StringProtocol|String)\.(lowercased|uppercased|capitalized|wholeNumberValue"
                      r"|is(Letter|Number|WholeNumber|Newline|Whitespace|Symbol|MathSymbol|CurrencySymbol|Punctuation"
                      r"|Cased|Lowercase|Uppercase))")
    objects = sorted([*(build / "Lockstep.build").glob("*.o"), *(build / "LockstepABI.build").glob("*.o")])
    status, output, error = run("nm", "--undefined-only", *objects)
    if status != 0 or not output:
        return ["nm failed"] + error.splitlines()[:5]
    names = sorted({line.split()[-1] for line in output.splitlines() if " U " in line})
    status, output, error = run("swift-demangle", *names)
    if status != 0 or not output:
        return ["swift-demangle failed"] + error.splitlines()[:5]
    problems = [f"{line}: see Sources/CLockstepRuntime/unicode.c" for line in output.splitlines() if asks.search(line)]
    _, text, _ = run("strings", "-n", "12", library)
    return problems + (["the tables are in the library"] if "LATIN CAPITAL LETTER" in text else [])


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    library, build = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    checks = [
        (check_list,), (check_exports, library), (check_c,), (check_cxx,), (check_self_contained, library),
        (check_soname, library), (check_size, library), (check_core_imports,), (check_implementations,),
        (check_no_arithmetic, build), (check_unicode, library, build),
    ]
    of_types = [(check_recorded,), (mutations.check_refusals,), (mutations.check_additions,)]
    skipped = len(of_types) if recorded.missing() else 0
    if skipped:
        for check, in of_types:
            print(f"skip {check.__doc__}: there is no {', no '.join(recorded.missing())}")
    else:
        checks += of_types
    failed = 0
    for check, *arguments in checks:
        problems = check(*arguments)
        failed += bool(problems)
        print(f"{'FAIL' if problems else 'ok  '} {check.__doc__}")
        for problem in problems:
            print(f"       {problem}")
    print(f"{len(checks) - failed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
