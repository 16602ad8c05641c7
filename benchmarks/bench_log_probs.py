"""Log-probs against PyTorch: its usual code and its best code, in one process, turn by turn, pinned.

    python benchmarks/bench_log_probs.py [--quick] [--rounds N] [--only SECTION] [--formats fp32,bf16]

--quick takes small shapes, to see that everything runs; its figures mean nothing and are not written.
--only measures one section again (logits, fused, large, token, backward), --formats some formats; other rows of the
results stay.
"""

from __future__ import annotations

import argparse
import os
import statistics

os.environ.update(OMP_NUM_THREADS="2", MKL_NUM_THREADS="2")
import numpy as np
import torch

import harness
import lockstep

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
rows: list[dict] = []


def report(work: str, dtype: str, threads: int, ours: float, theirs: dict[str, float], **more) -> None:
    """One row: milliseconds of both sides, ratios, share of the physical limit, extra memory."""
    row = {"work": work, "format": dtype, "threads": threads, "instruction_set": harness.instruction_set(),
           "ours_ms": 1e3 * ours}
    for name, found in theirs.items():
        row[f"{name}_ms"] = 1e3 * found
        row[f"{name}_ratio"] = found / ours
    row.update(more)
    rows.append(row)
    ratios = "  ".join(f"{found / ours:5.1f}x {name}" for name, found in theirs.items())
    extras = "  ".join(
        f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}" for key, value in more.items())
    print(f"{work:38} {dtype:5} {threads} thr {1e3 * ours:9.2f} ms  {ratios}  {extras}", flush=True)


def usual_log_softmax(logits, targets):
    return torch.log_softmax(logits.float(), -1).gather(-1, targets[:, None])[:, 0]


def best_log_softmax(logits, targets):
    """Row by row: gather minus logsumexp, so that no second matrix is made (the fastest form we know)."""
    out = torch.empty(len(targets))
    for i in range(len(targets)):
        row = logits[i].float()
        out[i] = row[targets[i]] - torch.logsumexp(row, -1)
    return out


def from_logits(tokens: int, vocab: int, rounds: int, limits: harness.Limits, names) -> None:
    base = torch.randn(tokens, vocab) * 3
    targets = torch.randint(vocab, (tokens,))
    for name in names:
        logits = base.to(DTYPES[name])
        exact = torch.log_softmax(logits.double(), -1).gather(-1, targets[:, None])[:, 0]
        ours = lockstep.log_probs(logits, targets, threads=1)
        assert (ours.double() - exact).abs().max() < 1e-5
        torch.set_num_threads(1)
        harness.pin(1)
        found = harness.interleaved(
            rounds, ours=lambda: lockstep.log_probs(logits, targets, threads=1),
            read=lambda: limits.read(logits.data_ptr(), logits.nbytes),
            usual=lambda: usual_log_softmax(logits, targets), best=lambda: best_log_softmax(logits, targets))
        share = found.pop("read") / found["ours"]
        report(
            f"log-softmax + gather {tokens} x {vocab}", name, 1, found.pop("ours"), found,
            bandwidth_share=share,
            extra_mb=harness.extra_memory(lambda: lockstep.log_probs(logits, targets, threads=1)),
            usual_extra_mb=harness.extra_memory(lambda: usual_log_softmax(logits, targets)))
        two_threads(f"log-softmax + gather {tokens} x {vocab}", name, rounds,
                    lambda threads: lockstep.log_probs(logits, targets, threads=threads))


def two_threads(work: str, name: str, rounds: int, action) -> None:
    """One thread against two of ours, on two processors; the results must have the same bits."""
    harness.pin(2)
    assert torch.equal(action(1), action(2))
    found = harness.interleaved(rounds, two=lambda: action(2), one=lambda: action(1))
    report(work, name, 2, found["two"], {"one_thread": found["one"]})


def torch_linear(hidden, weight, targets):
    return torch.log_softmax((hidden @ weight.T).float(), -1).gather(-1, targets[:, None])[:, 0]


def torch_linear_upcast(hidden, weight, targets):
    return torch_linear(hidden.float(), weight.float(), targets)


def fused(tokens: int, size: int, vocab: int, rounds: int, limits: harness.Limits, names) -> None:
    base, head = torch.randn(tokens, size), torch.randn(vocab, size) * size**-0.5 * 2
    targets = torch.randint(vocab, (tokens,))
    work = f"fused {tokens} x {size} x {vocab}"
    for name in names:
        hidden, weight = base.to(DTYPES[name]), head.to(DTYPES[name])
        exact = torch_linear(hidden.double(), weight.double(), targets)
        assert (lockstep.linear_log_probs(hidden, weight, targets, threads=1).double() - exact).abs().max() < 2e-5
        torch.set_num_threads(1)
        harness.pin(1)
        theirs = {"torch": lambda: torch_linear(hidden, weight, targets)}
        if name != "fp32":
            theirs["upcast"] = lambda: torch_linear_upcast(hidden, weight, targets)
        peaks = []
        found = harness.interleaved(
            rounds, ours=lambda: lockstep.linear_log_probs(hidden, weight, targets, threads=1),
            peak=lambda: peaks.append(limits.gflops()), **theirs)
        del found["peak"]
        rate = 2e-9 * tokens * size * vocab / found["ours"]
        report(
            work, name, 1, found.pop("ours"), found, peak_share=rate / statistics.median(peaks),
            extra_mb=harness.extra_memory(lambda: lockstep.linear_log_probs(hidden, weight, targets, threads=1)),
            torch_extra_mb=harness.extra_memory(lambda: torch_linear(hidden, weight, targets)))
        two_threads(work, name, rounds,
                    lambda threads: lockstep.linear_log_probs(hidden, weight, targets, threads=threads))


def one_token(size: int, vocab: int, rounds: int, limits: harness.Limits, names) -> None:
    """A packed head and one token: what decoding does. Rotates over heads, so that none stays in a cache."""
    work = f"fused 1 x {size} x {vocab}, packed head"
    hidden32, targets = torch.randn(1, size), torch.tensor([vocab // 2])
    for name in names:
        weights = [(torch.randn(vocab, size) * 0.05).to(DTYPES[name]) for _ in range(6)]
        heads = [lockstep.Head(weight) for weight in weights]
        hidden = hidden32.to(DTYPES[name])
        torch.set_num_threads(1)
        harness.pin(1)
        turn = iter(range(1 << 30))

        def ours():
            heads[next(turn) % len(heads)].log_probs(hidden, targets, threads=1)

        def read():
            weight = weights[next(turn) % len(weights)]
            limits.read(weight.data_ptr(), weight.nbytes)

        found = harness.interleaved(
            5 * rounds, ours=ours, read=read,
            torch=lambda: torch_linear(hidden, weights[next(turn) % len(weights)], targets))
        share = found.pop("read") / found["ours"]
        report(work, name, 1, found.pop("ours"), found, bandwidth_share=share)


def backward(tokens: int, size: int, vocab: int, rounds: int, names) -> None:
    """Forward and backward: the log-probs, then the gradients of hidden states and head."""
    import lockstep.torch

    work = f"fused forward + backward {tokens} x {size} x {vocab}"
    base, head = torch.randn(tokens, size), torch.randn(vocab, size) * size**-0.5 * 2
    targets, upstream = torch.randint(vocab, (tokens,)), torch.randn(tokens)
    for name in names:
        # Copies: to float32 `to` gives the tensor itself, whose gradient the other formats' would then be.
        hidden = base.to(DTYPES[name], copy=True).requires_grad_()
        weight = head.to(DTYPES[name], copy=True).requires_grad_()

        def run(form):
            hidden.grad = weight.grad = None
            form(hidden, weight, targets).backward(upstream)

        def ours(threads=1):
            run(lambda *arguments: lockstep.torch.linear_log_probs(*arguments, threads=threads))

        torch.set_num_threads(1)
        harness.pin(1)
        found = harness.interleaved(rounds, ours=ours, torch=lambda: run(torch_linear))
        report(
            work, name, 1, found.pop("ours"), found, extra_mb=harness.extra_memory(ours),
            torch_extra_mb=harness.extra_memory(lambda: run(torch_linear)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small shapes, results not written")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["logits", "fused", "large", "token", "backward"])
    parser.add_argument("--formats", default="fp32,fp16,bf16", type=lambda text: text.split(","))
    arguments = parser.parse_args()
    rounds, names = arguments.rounds, arguments.formats
    torch.manual_seed(0)
    limits = harness.Limits()
    harness.pin(1)
    print(f"one core: {limits.gflops():.0f} GFLOP/s, {limits.gb_s():.1f} GB/s", flush=True)
    if arguments.quick:
        from_logits(16, 20_000, 2, limits, names)
        fused(32, 128, 4096, 2, limits, names)
        one_token(128, 4096, 2, limits, names)
        backward(32, 128, 4096, 2, names)
        return
    if arguments.only in (None, "logits"):
        from_logits(512, 151_936, rounds, limits, names)
    if arguments.only in (None, "fused"):
        fused(512, 576, 49_152, rounds, limits, names)
    if arguments.only in (None, "large"):
        fused(512, 1536, 151_936, 2, limits, names)
    if arguments.only in (None, "token"):
        one_token(576, 49_152, rounds, limits, names)
    if arguments.only in (None, "backward"):
        backward(512, 576, 49_152, min(rounds, 2), names)  # PyTorch in fp16 takes half a minute a round
    harness.write(
        "log_probs", rows, torch=torch.__version__, numpy=np.__version__, lockstep=lockstep.__version__,
        peak_gflops=limits.gflops(), read_gb_s=limits.gb_s())


if __name__ == "__main__":
    main()
