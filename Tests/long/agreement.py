"""Same everywhere: writes docs/Agreement.md, the bits of every language, build, instruction set and thread count.

    agreement.py [--record]

Each of C, Python and Swift, in release and in debug, computes the subjects of Tests/Vectors/agreement.txt (formats, log-probs
and their gradients, scoring, decoding, a training step, accumulators, corrections, objectives) on every instruction set this
machine has and on 1, 2 and 4 threads; the digests must be those of the file. The kernels alone also run on an emulated
aarch64, and kernels, library and C tests on an emulated AVX-512 where this machine has none. Exits with 1, and writes nothing, if a bit differs. --record writes the file first, from C in release, baseline, one
thread: after a change that is meant to change bits. Takes as long as three Swift builds. Needs `make library` first.
"""

import datetime
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]
RECORD = ROOT / "Tests/Vectors/agreement.txt"
PAGE = ROOT / "docs/Agreement.md"
SWIFT = os.environ.get("SWIFT", "swift")
SET_NAMES = {"baseline": "baseline", "avx2": "AVX2", "avx512": "AVX-512", "neon": "NEON"}


def call(*command, **variables):
    """The standard output of a command; its failure is ours."""
    print("==", *command, file=sys.stderr, flush=True)
    found = subprocess.run(
        [str(word) for word in command], cwd=ROOT, env=os.environ | {key: str(value) for key, value in variables.items()},
        stdout=subprocess.PIPE, text=True)
    if found.returncode:
        sys.exit(f"{found.stdout[-4000:]}\n{command[0]} ended with status {found.returncode}")
    return found.stdout


def rows_of(text):
    """{(instruction set, threads): {subject: digest}} of lines SET THREADS SUBJECT DIGEST."""
    rows = {}
    for line in text.splitlines():
        instruction_set, threads, subject, digest = line.split()
        rows.setdefault((instruction_set, int(threads)), {})[subject] = digest
    return rows


def swift_rows(folder, *options):
    """What AgreementTests computes, built with `options`; it fails itself where a digest is another."""
    path = pathlib.Path(folder) / "swift.txt"
    call(SWIFT, "test", *options, "--filter", "AgreementTests", LOCKSTEP_AGREEMENT=path)
    return rows_of(path.read_text())


def library_rows(library):
    """(language, rows) of C and Python over one build of the library."""
    yield "C", rows_of(call("build/c/agreement_test", "print", LD_LIBRARY_PATH=library.parent))
    yield "Python", rows_of(call(sys.executable, "Tests/Conformance/test_agreement.py", LOCKSTEP_LIBRARY=library))


def debug_library():
    """The library without optimisation, with the runtime's checks, under the name programs look for."""
    arguments = ["--scratch-path", ".build-debug", "-c", "debug"]
    call(SWIFT, "build", *arguments, "--product", "lockstep")
    built = pathlib.Path(call(SWIFT, "build", *arguments, "--show-bin-path").strip()) / "liblockstep.so"
    (ROOT / "build/debug").mkdir(parents=True, exist_ok=True)
    library = ROOT / "build/debug/liblockstep.so.1"
    library.unlink(missing_ok=True)
    library.symlink_to(built)
    return library, arguments


def kernels():
    """[(where, digests, outcome)] of the kernels alone."""
    lines = call("sh", "Tests/C/check_aarch64.sh").splitlines()
    found = [re.match(r"(ok|SKIP)\s+([\w-]+)(?:: (\d+) digests)?", line) for line in lines]
    return [(each[2], each[3] or "", each[1]) for each in found if each]


def emulated_avx512():
    """Lines about AVX-512 in an emulator, by Tests/long/check_avx512.sh; none where what it needs is not installed."""
    found = subprocess.run(["sh", "Tests/long/check_avx512.sh"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if found.returncode not in (0, 77):
        sys.exit(f"{found.stdout}\ncheck_avx512.sh ended with status {found.returncode}")
    rows = re.findall(r"^ok   ([\w-]+), emulated: (.*)", found.stdout, re.MULTILINE)
    if not rows:
        return []
    return [
        "", "## AVX-512, emulated", "",
        f"This machine has no AVX-512. `make check-avx512` emulates one that has it ({found.stdout.splitlines()[0]}), boots Linux there and "
        "runs the kernels, the library's subjects (C, release), and C tests with the best instruction set there is, which is AVX-512:", "",
        "| What | Outcome |", "|---|---|",
        *(f"| {what} | {outcome} |" for what, outcome in rows),
    ]


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def page(recorded, matrix, kernel_rows, avx512):
    subjects = len(recorded)
    threads = sorted({key[1] for *_, rows in matrix for key in rows})
    sets = [name for name in SET_NAMES if any((name, 1) in rows for *_, rows in matrix)]
    lines = [
        "# Agreement: the same bits everywhere", "",
        f"Written by `make agreement` on {datetime.date.today()} ({processor()}, {platform.machine()}; "
        f"{call(SWIFT, '--version').splitlines()[0].split(' (')[0]}). Each cell says how many of {subjects} subjects had the bits "
        "that are recorded in [agreement.txt](../Tests/Vectors/agreement.txt), in each of these numbers of threads: "
        + ", ".join(map(str, threads)) + ".", "",
        "| Language | Build | " + " | ".join(SET_NAMES[name] for name in sets) + " |",
        "|---|---|" + "---|" * len(sets),
    ]
    for language, build, rows in matrix:
        cells = [
            ", ".join(str(sum(rows[name, count].get(subject) == digest for subject, digest in recorded.items()))
                      for count in threads) for name in sets]
        lines.append(f"| {language} | {build} | " + " | ".join(cells) + " |")
    lines += [
        "", "Release is optimised (`-Osize` for the library, `-O` for Swift); debug is not, neither Swift nor C, and has "
        "the runtime's checks.", "",
        "## The kernels alone", "",
        "What is computed for each logit, row, token and layer is in the kernels. They also run on an emulated aarch64, built "
        "by the C compiler alone; the whole library would need a Swift for that processor to build with. Digests equal to "
        "the baseline's of this machine:", "",
        "| Where | Digests | |", "|---|---:|---|",
    ]
    lines += [f"| {where} | {digests} | {'the same' if outcome == 'ok' else 'not on this machine'} |"
              for where, digests, outcome in kernel_rows]
    lines += avx512
    lines += [
        "", "## Subjects", "",
        "| Subject | CRC-32 |", "|---|---|",
    ]
    lines += [f"| {subject} | `{digest}` |" for subject, digest in recorded.items()]
    lines += [
        "", "What each is: [agreement_test.c](../Tests/C/agreement_test.c), "
        "[test_agreement.py](../Tests/Conformance/test_agreement.py) and "
        "[AgreementTests.swift](../Tests/LockstepTests/AgreementTests.swift), which compute the same from their own inputs and "
        "run in `make test`. So a machine with other instruction sets is held to these bits too.", "",
    ]
    return "\n".join(lines)


def main():
    call("sh", "-c", "Tests/C/run.sh agreement > build/agreement.log 2>&1 || test -x build/c/agreement_test")
    library = ROOT / "build/liblockstep.so.1"
    if sys.argv[1:] == ["--record"]:
        found = rows_of(call("build/c/agreement_test", "print", LD_LIBRARY_PATH=library.parent))["baseline", 1]
        RECORD.write_text("".join(f"{subject} {digest}\n" for subject, digest in sorted(found.items())))
    elif sys.argv[1:]:
        sys.exit(__doc__)
    recorded = dict(line.split() for line in RECORD.read_text().splitlines())
    matrix = [(language, "release", rows) for language, rows in library_rows(library)]
    debug, debug_arguments = debug_library()
    matrix += [(language, "debug", rows) for language, rows in library_rows(debug)]
    with tempfile.TemporaryDirectory() as folder:
        matrix.append(("Swift", "release", swift_rows(
            folder, "-c", "release", "-Xswiftc", "-enable-testing", "--disable-xctest", "--scratch-path", ".build-test")))
        matrix.append(("Swift", "debug", swift_rows(folder, "--disable-xctest", *debug_arguments)))
    differing = [
        f"{language}, {build}, {instruction_set}, {threads} threads: {subject} is {found.get(subject)}, not {digest}"
        for language, build, rows in matrix for (instruction_set, threads), found in rows.items()
        for subject, digest in recorded.items() if found.get(subject) != digest]
    if differing:
        sys.exit("\n".join(differing))
    emulated = [] if ("avx512", 1) in matrix[0][2] else emulated_avx512()
    PAGE.write_text(page(recorded, matrix, kernels(), emulated))
    cells = sum(len(rows) for *_, rows in matrix)
    print(f"{cells * len(recorded)} digests are those recorded: {cells} ways to compute {len(recorded)} subjects; wrote {PAGE}")


if __name__ == "__main__":
    main()
