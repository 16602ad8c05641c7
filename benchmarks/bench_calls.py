"""What a call from Python costs at small sizes, through ctypes and through the extension.

    python benchmarks/bench_calls.py [--quick] [--rounds N]

Two processes, one for each binding, are pinned to one core and called turn by turn: each times a few hundred calls, and
the medians of the rounds are compared. The work is the same; its results are compared before anything is timed.
--quick times little, to see that everything runs; its figures mean nothing and are not written.
"""

import argparse
import os
import statistics
import subprocess
import sys

import harness

BINDINGS = ("ctypes", "extension")


def work() -> dict:
    """One call of each kind, as a training loop makes them; PyTorch's only where it is installed."""
    import tempfile

    import numpy as np

    import lockstep
    from lockstep._tensors import view

    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(1, 32)).astype(np.float32), np.array([3], np.int32)
    trainer = np.log(rng.uniform(0.1, 1, 64)).astype(np.float32)
    rollout, halves = trainer + np.float32(0.01), np.empty(64, np.float16)
    found, scaler, monitor, steps = lockstep.mismatch(trainer, rollout), lockstep.LossScaler(), lockstep.Monitor(), [0]
    log = lockstep.LogWriter(tempfile.mkdtemp() + "/calls.lockstep")

    def watch():
        steps[0] += 1
        return monitor.update(steps[0], found)

    calls = {
        "a NumPy array as a tensor": ("fp32", lambda: view(logits, "logits").tensor() and None),
        "log_probs, 1 x 32": ("fp32", lambda: lockstep.log_probs(logits, targets, threads=1)),
        "convert, 64 values": ("fp32", lambda: lockstep.convert(trainer, "fp16", out=halves, threads=1)),
        "mismatch, 64 tokens": ("fp32", lambda: lockstep.mismatch(trainer, rollout, threads=1)),
        "correct, 64 tokens": ("fp32", lambda: lockstep.correct(trainer, rollout, threads=1).weights),
        "objective_loss, 64 tokens": ("fp32", lambda: lockstep.objective_loss(trainer, rollout, trainer, threads=1).loss),
        "gradient_norm, 8 x 64": ("fp32", lambda: lockstep.gradient_norm([trainer] * 8, threads=1)),
        "LogWriter.append, 64 tokens": ("fp32", lambda: log.append(id=1, rollout=rollout, trainer=trainer)),
        "Monitor.update": ("", watch), "LossScaler.update": ("", lambda: scaler.update(False)),
    }
    try:
        import torch
    except ImportError:
        return calls
    row, label = torch.from_numpy(logits).to(torch.bfloat16), torch.tensor([3])
    return calls | {
        "a PyTorch tensor as a tensor": ("bf16", lambda: view(row, "logits").tensor() and None),
        "log_probs, 1 x 32, PyTorch": ("bf16", lambda: lockstep.log_probs(row, label, threads=1).item())}


def serve() -> None:
    """A worker: reads a name and how many calls, answers with the nanoseconds of one, or with the result."""
    calls = work()
    print("\t".join(calls), flush=True)
    for line in sys.stdin:
        name, count = line.rstrip("\n").split("\t")
        call = calls[name][1]
        if count == "0":
            print(" ".join(repr(call()).split()), flush=True)
            continue

        def repeated():
            for _ in range(int(count)):
                call()

        print(1e9 * harness.seconds(repeated) / int(count), flush=True)


class Worker:
    def __init__(self, binding: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            env=os.environ | {"LOCKSTEP_PYTHON_BINDING": binding, "OMP_NUM_THREADS": "1"})
        self.names = self._process.stdout.readline().rstrip("\n").split("\t")

    def ask(self, name: str, count: int) -> str:
        self._process.stdin.write(f"{name}\t{count}\n")
        return self._process.stdout.readline().rstrip("\n")

    def end(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    harness.pin(1)
    if arguments.serve:
        return serve()
    rounds, calls = (1, 5) if arguments.quick else (arguments.rounds, 300)
    workers = {binding: Worker(binding) for binding in BINDINGS}
    formats = {name: kind for name, (kind, _) in work().items()}
    rows = []
    for name in workers["ctypes"].names:
        assert workers["ctypes"].ask(name, 0) == workers["extension"].ask(name, 0), name
        times = {binding: [] for binding in BINDINGS}
        for _ in range(rounds):
            for binding, worker in workers.items():
                times[binding].append(float(worker.ask(name, calls)))
        us = {binding: statistics.median(found) / 1e3 for binding, found in times.items()}
        rows.append({
            "work": name, "format": formats[name], "threads": 1, "ctypes_us": us["ctypes"], "extension_us": us["extension"],
            "saved_us": us["ctypes"] - us["extension"], "ctypes_ratio": us["ctypes"] / us["extension"]})
        print(f"{name}: ctypes {us['ctypes']:.1f} us, extension {us['extension']:.1f} us, {rows[-1]['ctypes_ratio']:.1f} times")
    for worker in workers.values():
        worker.end()
    if not arguments.quick:
        harness.write("calls", rows)


if __name__ == "__main__":
    main()
