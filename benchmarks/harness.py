"""What every benchmark here shares: pinned threads, the two sides turn by turn, medians, peak memory, the
physical limits of the machine measured in the same run, and results with machine, commit and date."""

from __future__ import annotations

import ctypes
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def pin(cores: int) -> None:
    """Runs on the last `cores` processors only: an unpinned run may put two threads on one of them."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(_processors[-cores:]))


def processors() -> list[int]:
    """The processors that this process was given."""
    return _processors


_processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]


def instruction_set() -> str:
    """The best that this processor has, and so the one that is measured."""
    from lockstep import has_instruction_set

    return [each for each in ("baseline", "neon", "avx2", "avx512") if has_instruction_set(each)][-1]


def seconds(action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def interleaved(rounds: int, **actions) -> dict[str, float]:
    """Median seconds of each action: one round runs each of them once, in turn, after one warm-up."""
    times = {name: [] for name in actions}
    for action in actions.values():
        action()
    for _ in range(rounds):
        for name, action in actions.items():
            times[name].append(seconds(action))
    return {name: statistics.median(found) for name, found in times.items()}


def extra_memory(action) -> float:
    """MB by which the action raises the process's peak resident size; NaN where /proc cannot say."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed must not hide what this one takes
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # reset the peak to what is resident now
        before = _status("VmRSS")
        action()
        return (_status("VmHWM") - before) / 1024
    except OSError:
        return float("nan")


def _status(field: str) -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise OSError(field)


class Limits:
    """Peak FMA rate and read bandwidth of one pinned core, measured by benchmarks/limits.c."""

    def __init__(self) -> None:
        import numpy as np

        with tempfile.TemporaryDirectory() as folder:
            library = pathlib.Path(folder) / "limits.so"
            subprocess.run(
                [os.environ.get("CC", "cc"), "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", "-o", library,
                 ROOT / "benchmarks" / "limits.c"], check=True)
            self._c = ctypes.CDLL(str(library))
        self._c.peak_gflops.restype = ctypes.c_double
        self._c.read_gb_s.restype = ctypes.c_double
        self._c.read_gb_s.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._buffer = np.ones(1 << 26, np.float32)  # 256 MB: beyond any cache

    def read(self, address: int, size: int) -> None:
        """Reads `size` bytes once: what a kernel that did nothing else would take over that memory."""
        skip = -address % 64
        self._c.read_gb_s(address + skip, (size - skip) // 512 * 128)

    def gflops(self) -> float:
        return max(self._c.peak_gflops() for _ in range(3))

    def gb_s(self) -> float:
        address = self._buffer.ctypes.data
        skip = -address % 64 // 4
        count = (len(self._buffer) - skip) // 128 * 128
        return max(self._c.read_gb_s(address + 4 * skip, count) for _ in range(3))


def machine() -> dict:
    """What the figures were measured on."""
    cpu = platform.processor()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), cpu)
    return {"cpu": cpu, "cores": len(_processors), "python": platform.python_version()}


def write(name: str, rows: list[dict], **more) -> None:
    """Writes benchmarks/results/NAME.json. Each row says at which commit and when it was measured; rows of
    other work that the file holds, or of another instruction set where rows say which, stay as they are."""
    found = subprocess.run(
        ["git", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True)
    stamp = {"commit": found.stdout.strip() or None,
             "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}
    path = RESULTS / f"{name}.json"
    merged = {_key(row): row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}
    merged.update({_key(row): {**row, **stamp} for row in rows})
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **more, "rows": list(merged.values())}, indent=1) + "\n")


def _key(row: dict) -> tuple:
    return row["work"], row["format"], row["threads"], row.get("instruction_set")
