"""Runs make targets, all of them whatever fails, and adds up their tests.

    run.py MAKE TARGET...

Two at a time, in their order: most of a Swift build, and of the Python tests, keeps one core busy. The longest come first.

A target is counted by the closing line of its runner: Swift Testing's, pytest's, or "N passed, N failed".
A target that fails without a count, or that counts nothing, is one failure: silence is not success.
Standard library only.
"""

import concurrent.futures
import re
import subprocess
import sys
import time

AT_ONCE = 2
COUNT = r"(\d+) (passed|failed|skipped|errors?)\b"


def count(output):
    """(passed, failed, skipped) of the last closing line in `output`, or None."""
    swift = re.findall(r"Test run with (\d+) tests?.* (passed|failed) after", output)
    if swift:
        total = sum(int(number) for number, _ in swift)
        # One line for each test that failed; issues of one test are several lines of another form.
        failed = len(re.findall(r"^\W*Test .* failed after [\d.]+ seconds with", output, flags=re.M))
        failed -= len(re.findall(r"^\W*Test run with .* failed after", output, flags=re.M))
        return total - failed, failed, len(re.findall(r"^\W*Test .* skipped", output, flags=re.M))
    for line in reversed(output.splitlines()):
        found = re.findall(COUNT, line)
        if found and re.search(r"passed|failed", line):
            sums = {"passed": 0, "failed": 0, "skipped": 0}
            for number, kind in found:
                sums["failed" if kind.startswith("error") else kind] += int(number)
            return sums["passed"], sums["failed"], sums["skipped"]
    return None


def run(make, target):
    """Runs a target, printing each of its lines behind its name: (target, passed, failed, skipped, seconds)."""
    start = time.monotonic()
    output = []
    process = subprocess.Popen(
        [make, "--no-print-directory", target], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace")
    for line in process.stdout:
        output.append(line)
        print(f"{target:13} | {line.rstrip()}\n", end="", flush=True)
    status = process.wait()
    passed, failed, skipped = count("".join(output)) or (0, 0, 0)
    if failed == 0 and (status != 0 or passed + skipped == 0):
        failed = 1
    return target, passed, failed, skipped, time.monotonic() - start


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    make, *targets = sys.argv[1:]
    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        rows = list(pool.map(lambda target: run(make, target), targets))
    print(f"\n{'':15}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}")
    for target, passed, failed, skipped, seconds in rows:
        print(f"{target:15}{passed:8}{failed:8}{skipped:9}{seconds:9.0f}")
    passed, failed, skipped = (sum(row[column] for row in rows) for column in (1, 2, 3))
    print(f"{'all':15}{passed:8}{failed:8}{skipped:9}{time.monotonic() - start:9.0f}")
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
