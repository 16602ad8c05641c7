"""Coverage-guided fuzzing: every target of Tests/Fuzz by libFuzzer, against a library whose Swift code counts its edges and
that AddressSanitizer watches, with Swift's checks of overflow, bounds and exclusive access on.

    run.py all --seconds 60            each target so many seconds of CPU time; adds what was done to record.json
    run.py log config --seconds 600 --jobs 2
    run.py all --seconds 60 --until-stopped    again and again, the family with the least time next; SIGTERM ends it
    run.py all --keep                  afterwards: the smallest corpus with the same coverage, to Tests/Fuzz/corpus
    run.py --add OTHER/record.json     adds what was done elsewhere (--work)

Needs the Swift toolchain alone: its clang has libFuzzer. The first build takes minutes. What is found is left in
build/fuzz/faults/TARGET: make it a file of Tests/Fuzz/corpus/TARGET, which `make test` replays, and mend the library.
"""

import argparse
import concurrent.futures
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SCRATCH = ROOT / ".build-fuzz"
#: Families of what is given, and their targets. The readers of logs are Python's, and run under atheris.
FAMILIES = {
    "safetensors": ["safetensors"],
    "configs": ["config"],
    "logs": ["log", "readers"],
    "accumulator and checkpoint bytes": ["accumulator", "checkpoint", "monitor", "scaler"],
    "options": ["names", "optimiser", "runs", "task"],
    "tensors": ["batches", "log_probs", "mismatch", "models", "tensors"],
}
TARGETS = sorted(target for targets in FAMILIES.values() for target in targets)
WANTED_MINUTES = 60  # of CPU time, for each family
#: Of a target's corpus in the repository.
LARGEST_CORPUS = 48 * 1024
FAULTS_A_ROUND = 5
stopping = []  # not empty after SIGTERM


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


def program(target, work):
    if target == "readers":
        return [work / "venv" / "bin" / "python", HERE / "readers.py"]
    return [work / "programs" / target]


def build_target(target, work):
    if target == "readers":
        return build_readers(work)
    swift = shutil.which(os.environ.get("SWIFT", "swift"))
    clang = Path(swift).resolve().parent / "clang"
    path = work / "programs" / target
    path.parent.mkdir(parents=True, exist_ok=True)
    library = SCRATCH / "release"
    subprocess.run(
        [clang, "-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-fuse-ld=lld", "-fsanitize=address,fuzzer",
         "-I", ROOT / "include", f'-DROOT="{ROOT}"', HERE / f"fuzz_{target}.c", HERE / "engine.c", HERE / "files.c",
         "-o", path, "-L", library, "-llockstep", f"-Wl,-rpath,{library}", "-lm", "-lpthread"], check=True)


def environment():
    options = "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=512:detect_odr_violation=0"
    return os.environ | {"ASAN_OPTIONS": options, "SWIFT_BACKTRACE": "enable=no"}


def arguments(target, work):
    dictionary = HERE / f"{target}.dict"
    return ["-timeout=120", "-rss_limit_mb=4096", "-malloc_limit_mb=3000", "-max_len=16384",
            *([f"-dict={dictionary}"] if dictionary.exists() else []),
            f"-artifact_prefix={work}/faults/{target}/"]


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fuzz(target, seconds, work):
    """Runs a target for so much CPU time; after a fault it goes on. Returns what was done."""
    corpus = work / "corpus" / target
    for folder in (corpus, work / "faults" / target, work / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
    done = {"cpu_seconds": 0.0, "executions": 0, "edges": 0, "faults": 0}
    with open(work / "logs" / target, "a") as log:
        while not stopping and (left := seconds - done["cpu_seconds"]) > 0 and done["faults"] < FAULTS_A_ROUND:
            start = log.tell()
            process = subprocess.Popen(
                [*program(target, work), *arguments(target, work), "-print_final_stats=1", corpus, HERE / "corpus" / target],
                stdout=log, stderr=log, env=environment())
            while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
                time.sleep(0.5)
                if stopping or cpu_seconds(process.pid) > left:
                    os.kill(process.pid, signal.SIGUSR1)  # libFuzzer says what it did, and exits
            _, status, used = ended
            with open(log.name, "rb") as written:
                written.seek(start)
                text = written.read().decode(errors="replace")
            done["cpu_seconds"] += used.ru_utime + used.ru_stime
            done["executions"] += sum(map(int, re.findall(r"stat::number_of_executed_units: (\d+)", text)))
            done["edges"] = max([done["edges"], *map(int, re.findall(r"cov: (\d+)", text))])
            done["faults"] += status != 0
    return target, done


def read(path):
    return json.loads(path.read_text()) if path.exists() else {}


def add(path, target, done):
    """Adds to a record: seconds, inputs and faults of all runs, the most edges of one."""
    record = read(path)
    entry = record.setdefault(target, {"cpu_seconds": 0, "executions": 0, "edges": 0, "faults": 0})
    for key in ("cpu_seconds", "executions", "faults"):
        entry[key] = round(entry[key] + done[key])
    entry["edges"] = max(entry["edges"], done["edges"])
    path.write_text(json.dumps(dict(sorted(record.items())), indent=1) + "\n")


def write_table(record):
    """The table of docs/Robustness.md, of the record."""
    def row(title, target, done, wanted=""):
        edges = f"{done['edges']:,}" if target else ""
        return (f"| {title} | {target} | {done['cpu_seconds'] / 60:.1f}{wanted} | {done['executions']:,} | {edges} "
                f"| {done['faults']} |")

    def total(entries):
        return {key: sum(done[key] for done in entries) for key in ("cpu_seconds", "executions", "faults")}

    rows = ["| family | target | CPU minutes | inputs | edges | faults met |", "|---|---|---|---|---|---|"]
    for family, targets in FAMILIES.items():
        entries = {target: record[target] for target in targets if target in record}
        rows.append(row(f"**{family}**", "", total(entries.values()), f" of {WANTED_MINUTES}"))
        rows += [row("", f"`{target}`", done) for target, done in entries.items()]
    table = "\n".join([*rows, row("all", "", total(record.values()), f" of {WANTED_MINUTES * len(FAMILIES)}")])
    page = ROOT / "docs" / "Robustness.md"
    text = re.sub(r"(<!-- fuzzing.*? -->\n).*?(<!-- end -->)", lambda found: f"{found[1]}{table}\n{found[2]}",
                  page.read_text(), flags=re.S)
    page.write_text(text)


def next_target(record, gained):
    """A target of the family that has had the least time: there the one with the least for what its last round reached,
    up to four times as much as one that finds nothing more."""
    def had(target):
        return record.get(target, {}).get("cpu_seconds", 0)

    family = min(FAMILIES, key=lambda family: sum(map(had, FAMILIES[family])))
    return min(FAMILIES[family], key=lambda target: had(target) / (1 + min(gained.get(target, 30), 30) / 10))


def fuzz_until_stopped(seconds, work, path):
    gained = {}
    while not stopping:
        record = read(path)
        target, done = fuzz(next_target(record, gained), seconds, work)
        gained[target] = done["edges"] - record.get(target, done)["edges"]
        print_done(target, done)
        add(path, target, done)


def print_done(target, done):
    print(f"{target:12} {done['cpu_seconds']:7.0f} s {done['executions']:10,} inputs {done['edges']:6,} edges "
          f"{done['faults']} faults", flush=True)


def keep(target, work):
    """Replaces a target's corpus in the repository by the smallest files that reach the same edges. Files that faults left
    stay, whatever they reach: their names do not begin with a digit or a letter up to f, as libFuzzer's do."""
    kept, merged = HERE / "corpus" / target, work / "merged" / target
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir(parents=True)
    subprocess.run(
        [*program(target, work), *arguments(target, work), "-merge=1", "-set_cover_merge=1", "-use_counters=0",
         "-max_len=8192", merged, work / "corpus" / target, kept], env=environment(), check=True, stderr=subprocess.DEVNULL)
    for old in kept.iterdir():
        if re.fullmatch(r"[0-9a-f]{40}|seed-.*", old.name):
            old.unlink()
    room = LARGEST_CORPUS
    for path in sorted(merged.iterdir(), key=lambda path: (path.stat().st_size, path.name)):
        room -= path.stat().st_size
        if room >= 0:
            shutil.copy(path, kept / path.name)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all, or of: " + ", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=0)
    parser.add_argument("--until-stopped", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "fuzz")
    parser.add_argument("--record", type=Path, default=HERE / "record.json")
    parser.add_argument("--built", action="store_true", help="the library and the targets are built")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--add", type=Path)
    options = parser.parse_args()
    targets = TARGETS if options.targets == ["all"] else options.targets
    for target in targets:
        if target not in TARGETS:
            parser.error(f"{target} is none of {', '.join(TARGETS)}")
        (HERE / "corpus" / target).mkdir(parents=True, exist_ok=True)
    if options.add:
        for target, done in read(options.add).items():
            add(options.record, target, done)
    work = options.work.resolve()
    if targets and not options.built:
        build_library()
        for target in targets:
            build_target(target, work)
    faults = 0
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    if options.until_stopped:
        fuzz_until_stopped(options.seconds or 60, work, options.record)
    elif options.seconds:
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            for target, done in pool.map(lambda target: fuzz(target, options.seconds, work), targets):
                print_done(target, done)
                add(options.record, target, done)
                faults += done["faults"]
    if options.keep:
        for target in targets:
            keep(target, work)
    if options.record == HERE / "record.json":
        write_table(read(options.record))
    return faults > 0


if __name__ == "__main__":
    sys.exit(main())
