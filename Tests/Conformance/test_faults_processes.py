"""Threads, processes and signals around the library: no hang, nothing lost, the same bits.

Every program here runs in a process of its own, with a deadline: one that hangs is a failure and not the end of the tests.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time

import pytest


BUSY = textwrap.dedent("""
    import multiprocessing, os, sys, threading
    import numpy as np
    import lockstep

    rng = np.random.default_rng(0)
    logits = rng.normal(size=(64, 3000)).astype(np.float32)
    targets = np.arange(64)
    pi = -rng.exponential(size=(50, 40)).astype(np.float32)
    mu = pi + rng.normal(scale=0.01, size=pi.shape).astype(np.float32)
    model = None

    def compute(which):
        global model
        if model is None:
            model = lockstep.Model(MODEL, "bf16")
        accumulator = lockstep.MismatchAccumulator()
        accumulator.update(pi, mu, ids=np.arange(50), threads=2)
        return (
            lockstep.log_probs(logits, targets, threads=3).tobytes() + accumulator.to_bytes()
            + model.score([[1, 2, 3, 4, 5]] * 4, threads=2).log_probs.tobytes())

    def keep_busy(stop, wrong):
        expected = compute(0)
        while not stop.is_set():
            if compute(0) != expected:
                wrong.append(1)
""")

POOL = BUSY + textwrap.dedent("""
    if __name__ == "__main__":
        expected, stop, wrong = compute(0), threading.Event(), []
        threads = [threading.Thread(target=keep_busy, args=(stop, wrong)) for _ in range(3)]
        for thread in threads: thread.start()
        context = multiprocessing.get_context(sys.argv[1])
        done = 0
        for _ in range(ROUNDS):
            with context.Pool(3) as pool:
                found = pool.map_async(compute, range(6)).get(100)
                assert all(each == expected for each in found)
                done += len(found)
        stop.set()
        for thread in threads: thread.join()
        assert not wrong
        print(done, "results of children while three threads were busy")
""")


def program(code: str, *arguments: object, timeout: float = 240, **values: object) -> str:
    """Runs a program and returns what it printed."""
    from conftest import ROOT

    values["MODEL"] = str(ROOT / "Tests" / "Vectors" / "models" / "llama_untied")
    for name, value in values.items():
        code = code.replace(name, repr(value))
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, *map(str, arguments)], capture_output=True,
        text=True, timeout=timeout)
    assert done.returncode == 0, f"{done.returncode}\\n{done.stdout}\\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("method, rounds", [("fork", 6), ("spawn", 1), ("forkserver", 1)])
def test_children_of_a_busy_process(tmp_path, method, rounds):
    """multiprocessing, started while threads are inside calls: its children compute too, with threads."""
    from conftest import ROOT

    path = tmp_path / "busy.py"  # spawn imports it again
    code = POOL.replace("MODEL", repr(str(ROOT / "Tests" / "Vectors" / "models" / "llama_untied")))
    path.write_text(code.replace("ROUNDS", str(rounds)))
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", path, method], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    assert int(done.stdout.split()[0]) == 6 * rounds


RUN = textwrap.dedent("""
    import os, signal, sys, threading, time
    import numpy as np
    import lockstep
    from lockstep import Environment, Run, Task

    def make(environment=None):
        return Run(environment or Task("chain", size=6), prompts=4, samples=4, model_seed=1, threads=2)

    def policy_after(steps):
        run = make()
        for _ in range(steps): run.step()
        return run.policy().tobytes()
""")


def test_an_interrupt_leaves_a_run_whole():
    """KeyboardInterrupt out of step after step, at random: each step was taken or not; the end has the bits of no break."""
    out = program(RUN + textwrap.dedent("""
        def interrupted(number, frame): raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, interrupted)
        rng, interrupts, run = np.random.default_rng(), 0, make()
        def at(): return run.requests()[0].step - 1
        while at() < 12:
            before = at()
            try:
                signal.setitimer(signal.ITIMER_REAL, float(rng.uniform(0.001, 0.03)))
                while at() < 12: run.step()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupts += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert at() >= before
        assert run.policy().tobytes() == policy_after(12)
        print(interrupts)
    """))
    assert int(out) >= 3


def test_an_interrupt_in_a_callback():
    """Raised in a reward, it comes out of step; the step was not taken and can be taken again."""
    program(RUN + textwrap.dedent("""
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
        calls = 0
        task = Task("chain", size=6)
        def reward(problem, prompt, response):
            global calls
            calls += 1
            if calls == 7: os.kill(os.getpid(), signal.SIGINT); time.sleep(0)
            return float(task.reward(prompt, response))
        run = make(Environment(prompts=lambda problem: task.prompt(problem), rewards=reward, max_tokens=6))
        try:
            run.step()
            sys.exit("it was not interrupted")
        except KeyboardInterrupt:
            pass
        assert run.requests()[0].step == 1
        run.step()
        assert run.requests()[0].step == 2
    """))


def test_signals_while_files_are_read_and_written(tmp_path):
    """A handler runs every 300 microseconds and interrupts system calls: they are made again, and files have the same bytes."""
    out = program(RUN + textwrap.dedent("""
        from pathlib import Path
        below = Path(sys.argv[1])
        def files(name):
            folder = below / name
            folder.mkdir()
            rng = np.random.default_rng(1)
            with lockstep.LogWriter(folder / "log.lockstep", sync_every=1) as log:
                for index in range(60): log.append(id=index, rollout=rng.random(20_000, np.float32))
            tokens = sum(len(batch.rollout) for batch in lockstep.LogReader(folder / "log.lockstep", max_tokens=30_000))
            run = make()
            run.step()
            run.save(folder / "run")
            again = make()
            assert tokens == 1_200_000 and again.resume(folder / "run") == 1
            return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        quiet, caught = files("quiet"), 0
        def handler(number, frame):
            global caught
            caught += 1
        signal.signal(signal.SIGALRM, handler)
        signal.siginterrupt(signal.SIGALRM, True)
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
        loud = files("loud")
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert loud == quiet
        print(caught)
    """), tmp_path)
    assert int(out) > 20


def train(folder, *more):
    arguments = ["train", "--size", "4", "--prompts", "2", "--samples", "2", "--model-seed", "1", "--save-every", "1", "--steps", "12"]
    return subprocess.Popen(
        [sys.executable, "-m", "lockstep.cli", *arguments, "--out", str(folder), *more], stderr=subprocess.PIPE, text=True)


def checkpoint(folder) -> dict[str, bytes]:
    return {name: (folder / "step-00000012" / name).read_bytes()
            for name in ("model.safetensors", "optimizer.safetensors", "run.json")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without a break."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    process = train(folder)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return checkpoint(folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_command_that_is_ended_goes_on(tmp_path, whole, number):
    """`lockstep train`, ended by a signal at some moment, resumes to the bits of a run without a break."""
    process = train(tmp_path / "broken")
    deadline = time.monotonic() + 60
    while not list((tmp_path / "broken").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert "Traceback" not in said, said
    assert process.returncode in (0, 130, -number), said
    again = train(tmp_path / "broken", "--resume")
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert checkpoint(tmp_path / "broken") == whole


def test_a_pipe_that_closes():
    """The library writes to no pipe: with SIGPIPE as systems have it at first, a reader that ends kills no computation."""
    out = program(RUN + textwrap.dedent("""
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        reader, writer = os.pipe()
        os.close(reader)
        try:
            lockstep.LogWriter(f"/dev/fd/{writer}", mode="replace")
            sys.exit("it was taken for a file")
        except lockstep.FileError:
            pass
        run = make()
        run.step()
        print(run.requests()[0].step)
    """))
    assert int(out) == 2
