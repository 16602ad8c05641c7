"""Coverage-guided fuzzing: every target of Tests/Fuzz by libFuzzer, against a library whose Swift code counts its edges and
that AddressSanitizer watches, with Swift's checks of overflow, bounds and exclusive access on.

    run.py all --seconds 60            each family so many seconds; adds what was done to record.json
    run.py log config --seconds 600 --jobs 2
    run.py all --keep                  afterwards: the smallest corpus with the same coverage, to Tests/Fuzz/corpus
    run.py --add OTHER/record.json     adds what was done elsewhere (--work)

Needs the Swift toolchain alone: its clang has libFuzzer. The first build takes minutes. What is found is left in
build/fuzz/faults/FAMILY: make it a file of Tests/Fuzz/corpus/FAMILY, which `make test` replays, and mend the library.
"""

import argparse
import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SCRATCH = ROOT / ".build-fuzz"
#: The readers of logs are Python's, and run under atheris.
FAMILIES = sorted([*(path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.c")), "readers"])
#: Of a family's corpus in the repository.
LARGEST_CORPUS = 48 * 1024
FAULTS_A_ROUND = 5


def build_library():
    swift = os.environ.get("SWIFT", "swift")
    subprocess.run(
        [swift, "build", "-c", "release", "--product", "lockstep", "--package-path", ROOT, "--scratch-path", SCRATCH,
         "--static-swift-stdlib", "--sanitize=address", "-Xswiftc", "-sanitize=fuzzer", "-Xswiftc", "-parse-as-library",
         "-Xcc", "-fsanitize=fuzzer-no-link"], check=True)


def build_readers(work):
    """A virtual environment with atheris, over the one that the tests run in."""
    venv = work / "venv"
    if not venv.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([venv / "bin" / "pip", "install", "-q", "--disable-pip-version-check", "atheris"], check=True)
        packages = next((ROOT / ".venv" / "lib").glob("python3*")) / "site-packages"
        own = next((venv / "lib").glob("python3*")) / "site-packages"
        (own / "tests.pth").write_text(f"import site; site.addsitedir({str(packages)!r})\n")


def program(family, work):
    if family == "readers":
        return [work / "venv" / "bin" / "python", HERE / "readers.py"]
    return [work / "programs" / family]


def build_target(family, work):
    if family == "readers":
        return build_readers(work)
    swift = shutil.which(os.environ.get("SWIFT", "swift"))
    clang = Path(swift).resolve().parent / "clang"
    target = work / "programs" / family
    target.parent.mkdir(parents=True, exist_ok=True)
    library = SCRATCH / "release"
    subprocess.run(
        [clang, "-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-fuse-ld=lld", "-fsanitize=address,fuzzer",
         "-I", ROOT / "include", f'-DROOT="{ROOT}"', HERE / f"fuzz_{family}.c", HERE / "engine.c", HERE / "files.c",
         "-o", target, "-L", library, "-llockstep", f"-Wl,-rpath,{library}", "-lm", "-lpthread"], check=True)


def environment():
    options = "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=512:detect_odr_violation=0"
    return os.environ | {"ASAN_OPTIONS": options, "SWIFT_BACKTRACE": "enable=no"}


def arguments(family, work):
    dictionary = HERE / f"{family}.dict"
    return ["-timeout=25", "-rss_limit_mb=4096", "-malloc_limit_mb=3000", "-max_len=16384",
            *([f"-dict={dictionary}"] if dictionary.exists() else []),
            f"-artifact_prefix={work}/faults/{family}/"]


def fuzz(family, seconds, work):
    """Runs a family; after a fault it goes on. Returns what was done."""
    corpus = work / "corpus" / family
    for folder in (corpus, work / "faults" / family, work / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
    done = {"cpu_seconds": 0.0, "executions": 0, "edges": 0, "faults": 0}
    end = time.monotonic() + seconds
    with open(work / "logs" / family, "a") as log:
        while (left := int(end - time.monotonic())) > 0 and done["faults"] < FAULTS_A_ROUND:
            start = log.tell()
            process = subprocess.Popen(
                [*program(family, work), *arguments(family, work), f"-max_total_time={left}", "-print_final_stats=1", corpus,
                 HERE / "corpus" / family], stdout=log, stderr=log, env=environment())
            _, status, used = os.wait4(process.pid, 0)
            text = (work / "logs" / family).read_text(errors="replace")[start:]
            done["cpu_seconds"] += used.ru_utime + used.ru_stime
            done["executions"] += sum(map(int, re.findall(r"stat::number_of_executed_units: (\d+)", text)))
            done["edges"] = max([done["edges"], *map(int, re.findall(r"cov: (\d+)", text))])
            done["faults"] += status != 0
    return family, done


def read(path):
    return json.loads(path.read_text()) if path.exists() else {}


def add(path, family, done):
    """Adds to a record: seconds, inputs and faults of all runs, the most edges of one."""
    record = read(path)
    entry = record.setdefault(family, {"cpu_seconds": 0, "executions": 0, "edges": 0, "faults": 0})
    for key in ("cpu_seconds", "executions", "faults"):
        entry[key] = round(entry[key] + done[key])
    entry["edges"] = max(entry["edges"], done["edges"])
    path.write_text(json.dumps(dict(sorted(record.items())), indent=1) + "\n")


def write_table(record):
    """The table of docs/Robustness.md, of the record."""
    rows = [f"| `{family}` | {done['cpu_seconds'] / 60:.1f} | {done['executions']:,} | {done['edges']:,} "
            f"| {done['faults']} |" for family, done in record.items()]
    sums = [sum(done[key] for done in record.values()) for key in ("cpu_seconds", "executions", "faults")]
    table = "\n".join(["| target | CPU minutes | inputs | edges | faults met |", "|---|---|---|---|---|", *rows,
                       f"| all | {sums[0] / 60:.1f} | {sums[1]:,} | | {sums[2]} |"])
    page = ROOT / "docs" / "Robustness.md"
    text = re.sub(r"(<!-- fuzzing.*? -->\n).*?(<!-- end -->)", lambda found: f"{found[1]}{table}\n{found[2]}",
                  page.read_text(), flags=re.S)
    page.write_text(text)


def keep(family, work):
    """Replaces a family's corpus in the repository by the smallest files that reach the same edges. Files that faults left
    stay, whatever they reach: their names do not begin with a digit or a letter up to f, as libFuzzer's do."""
    target, merged = HERE / "corpus" / family, work / "merged" / family
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir(parents=True)
    subprocess.run(
        [*program(family, work), *arguments(family, work), "-merge=1", "-set_cover_merge=1", "-use_counters=0",
         "-max_len=8192", merged, work / "corpus" / family, target], env=environment(), check=True, stderr=subprocess.DEVNULL)
    for old in target.iterdir():
        if re.fullmatch(r"[0-9a-f]{40}|seed-.*", old.name):
            old.unlink()
    room = LARGEST_CORPUS
    for path in sorted(merged.iterdir(), key=lambda path: (path.stat().st_size, path.name)):
        room -= path.stat().st_size
        if room >= 0:
            shutil.copy(path, target / path.name)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="all, or of: " + ", ".join(FAMILIES))
    parser.add_argument("--seconds", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "fuzz")
    parser.add_argument("--record", type=Path, default=HERE / "record.json")
    parser.add_argument("--built", action="store_true", help="the library and the targets are built")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--add", type=Path)
    options = parser.parse_args()
    families = FAMILIES if options.families == ["all"] else options.families
    for family in families:
        if family not in FAMILIES:
            parser.error(f"{family} is none of {', '.join(FAMILIES)}")
        (HERE / "corpus" / family).mkdir(parents=True, exist_ok=True)
    if options.add:
        for family, done in read(options.add).items():
            add(options.record, family, done)
    work = options.work.resolve()
    if families and not options.built:
        build_library()
        for family in families:
            build_target(family, work)
    faults = 0
    if options.seconds:
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            for family, done in pool.map(lambda family: fuzz(family, options.seconds, work), families):
                print(f"{family:12} {done['cpu_seconds']:7.0f} s {done['executions']:10,} inputs {done['edges']:6,} edges "
                      f"{done['faults']} faults", flush=True)
                add(options.record, family, done)
                faults += done["faults"]
    if options.keep:
        for family in families:
            keep(family, work)
    if options.record == HERE / "record.json":
        write_table(read(options.record))
    return faults > 0


if __name__ == "__main__":
    sys.exit(main())
