"""Does something with files again and again, and fails or kills it at each of its calls: run by test_faults_files.py.

    LD_PRELOAD=file_faults.so file_faults.py SCENARIO FOLDER all|some

`some` leaves out the middle of long rows of writes, which are alike, and of many calls three in four that give no names.

A scenario is a generator function: it makes a state, then yields, from a child process, what was acknowledged, and a check
that looks at what is left. The last line is a count of faults.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
import traceback
from collections import Counter
from pathlib import Path

import numpy as np

import lockstep
from lockstep import Run, SupervisedRun, Task
from lockstep.logs import open_log
from lockstep.logs.write import write_log
from lockstep.report import page
from lockstep.report.page import GENERATOR
from lockstep.whole_files import write_json

shim = ctypes.CDLL(None)
shim.file_faults_trace.restype = ctypes.c_char_p
KINDS = {"none": 0, "full": 1, "broken": 2, "short": 3, "interrupted": 4, "killed": 5, "torn": 6}
FATAL = {"killed", "torn"}


class Say:
    """Tells the parent what was acknowledged, one line each, at once."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __call__(self, word: object) -> None:
        os.write(self._descriptor, f"{word}\n".encode())


def attempt(work, folder: Path, number: int, kind: int):
    """Runs `work(folder, say)` in a child, with a fault at a call; returns (how it ended, what it said, its calls)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        status = 70
        try:
            os.close(reader)
            say = Say(writer)
            shim.file_faults_arm(str(folder).encode(), ctypes.c_long(number), kind)
            try:
                work(folder, say)
                status = 0
            except (lockstep.LockstepError, OSError) as error:
                # A fault is told as what it is.
                status = 3 if isinstance(error, (OSError, lockstep.FileError)) else 4
                say(f"error {type(error).__name__}: {error}")
            except BaseException:
                traceback.print_exc()
                raise
            trace = shim.file_faults_trace().decode()
            shim.file_faults_arm(b"", ctypes.c_long(0), 0)
            say(f"trace {trace}")
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read().splitlines()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    trace = next((line[6:] for line in said if line.startswith("trace ")), "")
    return status, [line for line in said if not line.startswith("trace ")], trace


# --- A log -------------------------------------------------------------------------------------------------------------


def record(index: int) -> dict:
    rng = np.random.default_rng(index)
    values = -rng.exponential(size=40 + 500 * (index % 3)).astype(np.float32)
    return {"id": index, "rollout": values, "trainer": values + np.float32(0.01)}


def read(path: Path) -> list[int]:
    """The ids of a log, whose records must have the bits that were written."""
    ids = []
    for batch in lockstep.LogReader(path):
        for place, id_ in enumerate(batch.ids.tolist()):
            span = slice(int(batch.offsets[place]), int(batch.offsets[place + 1]))
            assert batch.rollout[span].tobytes() == record(id_)["rollout"].tobytes(), id_
            ids.append(id_)
    return ids


def log_prepare(folder: Path) -> None:
    with lockstep.LogWriter(folder / "log.lockstep", model="m") as log:
        log.append(**record(0))
    with open(folder / "log.lockstep", "r+b") as file:  # of a writer that died in the middle of a record
        file.truncate(file.seek(0, 2) - 7)


def log_work(folder: Path, say) -> None:
    """Goes on with a log, and makes a new one."""
    for name, mode, first in [("log", "append", 1), ("new", "create", 0)]:
        with lockstep.LogWriter(folder / f"{name}.lockstep", mode=mode, sync_every=2) as log:
            for index in range(first, 5):
                try:
                    log.append(**record(index))
                except lockstep.FileError:
                    log.append(**record(index))  # "the call may be made again"
                say(f"{name} {index}")
            log.sync()


def log_check(folder: Path, status: int, said: list[str], kind: str) -> None:
    for name, first in [("log", 0), ("new", 0)]:
        path = folder / f"{name}.lockstep"
        told = [int(line.split()[1]) for line in said if line.startswith(f"{name} ")]
        if not path.exists():
            assert name == "new" and not told
            continue
        if path.stat().st_size == 0 or not told and name == "new":
            # The header may be missing: the next writer begins there.
            with lockstep.LogWriter(path, mode="append"):
                pass
            found = read(path)
            assert found == list(range(len(found)))
            continue
        found = read(path)
        wanted = ([0] if name == "log" else []) + told
        assert found[: len(wanted)] == wanted and found == list(range(len(found))), (found, wanted)
        assert len(found) <= len(wanted) + 1, (found, wanted)
        with lockstep.LogWriter(path, mode="append") as log:
            log.append(**record(len(found)))
        assert read(path) == list(range(len(found) + 1))
    assert {each.name for each in folder.iterdir()} <= {"log.lockstep", "new.lockstep"}


# --- Checkpoints -------------------------------------------------------------------------------------------------------


def make() -> Run:
    return Run(Task("chain", size=4), prompts=2, samples=2, model_seed=1, threads=1)


def metrics_of(run: Run) -> str:
    return repr(run.step())


def run_prepare(folder: Path) -> None:
    run = make()
    run.step()
    run.save(folder / "run", keep=1)


def run_work(folder: Path, say) -> None:
    """Goes on from step 1 and saves step 2 twice, which replaces it; one checkpoint is kept."""
    run = make()
    assert run.resume(folder / "run") == 1
    step = run.step().step
    for _ in range(2):
        try:
            run.save(folder / "run", keep=1)
        except lockstep.FileError as error:
            say(f"refused {step}: {error}")
        else:
            say(f"saved {step}")


EXPECTED: dict[int, str] = {}


def run_check(folder: Path, status: int, said: list[str], kind: str) -> None:
    if not EXPECTED:
        run = make()
        for step in range(1, 6):
            EXPECTED[step] = metrics_of(run)
    last = max([1, *(int(line.split()[1]) for line in said if line.startswith("saved"))])
    run = make()
    step = run.resume(folder / "run")
    assert step >= last, (step, last)
    assert metrics_of(run) == EXPECTED[step + 1], f"resumed at {step}"
    names = {each.name for each in (folder / "run").iterdir()}
    if kind not in FATAL and kind != "broken":
        # Where the disk lets nothing be named, a checkpoint that was out of the way keeps the name it had there.
        assert all(name.startswith("step-") or name == ".step-00000002.old" for name in names), names
    run.save(folder / "run", keep=1)  # which leaves nothing of what was unfinished
    assert {each.name for each in (folder / "run").iterdir()} == {f"step-{step + 1:08}"}


# --- Models, dumps and what Python writes ------------------------------------------------------------------------------


def model_work(folder: Path, say) -> None:
    run = SupervisedRun(Task("chain", size=4), steps=10, batch=2, threads=1)
    run.step()
    run.save_model(folder / "model")
    say("model")


def model_check(folder: Path, status: int, said: list[str], kind: str) -> None:
    """A folder is told to be written, or it is not; a model in it is whole, or refused."""
    try:
        parameters = lockstep.Model(folder / "model").parameters
        assert parameters > 1000
    except lockstep.LockstepError:
        assert "model" not in said


def old_and_new(name: str, old: bytes, work, read_back):
    """A file that is replaced: it is the old one or the new one, whole."""

    def prepare(folder: Path) -> None:
        (folder / name).write_bytes(old)

    def doing(folder: Path, say) -> None:
        work(folder / name)
        say("written")

    def check(folder: Path, status: int, said: list[str], kind: str) -> None:
        found = (folder / name).read_bytes()
        assert found == old or read_back(found), found[:100]
        if "written" in said:
            assert found != old
        strays = {each.name for each in folder.iterdir()} - {name}
        assert not strays or kind in FATAL or kind == "broken", strays
        work(folder / name)
        assert read_back((folder / name).read_bytes())

    return prepare, doing, check


def report(path: Path) -> None:
    page.write(path, f"<html>{GENERATOR} " + "new " * 20_000 + "</html>")


def document(path: Path) -> None:
    write_json(path, {"new": list(range(5000))})


def converted(path: Path) -> None:
    source = path.parent.parent / "source.lockstep"
    if not source.exists():
        with lockstep.LogWriter(source) as log:
            for index in range(30):
                log.append(**record(index))
    write_log(open_log(source, batch_tokens=5000), path)


def count(log: bytes) -> int:
    reader = lockstep.LogReader(log)
    found = sum(len(batch) for batch in reader)
    return found if reader.summary.is_closed else -1


SCENARIOS = {
    "log": (log_prepare, log_work, log_check),
    "run": (run_prepare, run_work, run_check),
    "model": (lambda folder: None, model_work, model_check),
    "report": old_and_new("report.html", f"<html>{GENERATOR} old</html>".encode(), report, lambda found: found.endswith(b"new </html>")),
    "json": old_and_new("c.json", b"{}", document, lambda found: len(json.loads(found)["new"]) == 5000),
    "convert": old_and_new("c.lockstep", b"old", converted, lambda found: found != b"" and count(found) == 30),
    "convert_json": old_and_new("c.jsonl", b"old\n", converted, lambda found: len(found.splitlines()) == 30),
}


def main(name: str, below: str, how_many: str) -> None:
    prepare, work, check = SCENARIOS[name]
    base = Path(below)
    outcomes: Counter[str] = Counter()
    pristine = base / "pristine"
    pristine.mkdir()
    prepare(pristine)

    def met(kind: str, number: int) -> str:
        folder = base / "it"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(pristine, folder)
        status, said, trace = attempt(work, folder, number, KINDS[kind])
        try:
            if kind in FATAL:
                assert status in (0, -signal.SIGKILL)
            elif kind in ("none", "interrupted"):
                assert status == 0
            else:
                assert status in (0, 3)
            check(folder, status, said, kind)
        except (AssertionError, lockstep.LockstepError, OSError) as error:
            sys.exit(f"{name}: {kind} at call {number}: ended with {status} and said {said}\n"
                     f"{type(error).__name__}: {error}\n{sorted(map(str, folder.rglob('*')))}")
        return trace

    trace = met("none", 0)
    for kind in list(KINDS)[1:]:
        for place, call in enumerate(trace):
            if how_many == "some" and (trace[max(place - 1, 0) : place + 2] == "www"
                                       or len(trace) > 100 and call != "n" and place % 4):
                continue
            if call == "w" or kind not in ("short", "torn"):
                met(kind, place + 1)
                outcomes[kind] += 1
    print(f"{name}: {len(trace)} calls; " + ", ".join(f"{count} {kind}" for kind, count in outcomes.items()))


if __name__ == "__main__":
    main(*sys.argv[1:])
