"""A real model: scoring against transformers, and decoding against the memory's bandwidth, turn by turn, pinned.

    python benchmarks/bench_models.py FOLDER [--quick] [--rounds N] [--only SECTION]

FOLDER is a Hugging Face folder, SmolLM2-135M for the results that are kept; without it nothing is measured.
transformers is the peer where it is installed. --only measures one section again (score, orders, decode); other rows of the
results stay. --quick takes few tokens, to see that everything runs; its figures mean nothing and are not written.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics

os.environ.update(OMP_NUM_THREADS="2", MKL_NUM_THREADS="2")
import numpy as np

import harness
import lockstep

try:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
except ImportError:
    torch = transformers = None

FORMATS = ("fp32", "fp16", "bf16")
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
rows: list[dict] = []


def report(work: str, dtype: str, threads: int, ours: float, **more) -> None:
    """One row: milliseconds, and what they are compared with."""
    rows.append({"work": work, "format": dtype, "threads": threads, "instruction_set": harness.instruction_set(),
                 "ours_ms": 1e3 * ours, **more})
    extras = "  ".join(f"{key} {value:.2f}" for key, value in more.items())
    print(f"{work:34} {dtype:5} {threads} thr {1e3 * ours:9.2f} ms  {extras}", flush=True)


def multiplied(folder: pathlib.Path, model: lockstep.Model) -> int:
    """Weights that a token is multiplied by: all but an embedding that is not the head too."""
    tied = json.loads((folder / "config.json").read_text()).get("tie_word_embeddings", False)
    return model.parameters - (0 if tied else model.vocab * model.hidden_size)


def peer(folder: pathlib.Path, name: str, tokens: np.ndarray):
    """Log-probs of the tokens by transformers, in a format, as people write it."""
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    ids = torch.as_tensor(tokens)[None]

    def run() -> np.ndarray:
        with torch.no_grad():
            logits = model(ids).logits[0, :-1]
            return torch.log_softmax(logits.float(), -1).gather(1, ids[0, 1:, None])[:, 0].numpy()

    return run


def score(folder: pathlib.Path, count: int, rounds: int, limits: harness.Limits) -> None:
    work = f"score {count} tokens"
    for name in FORMATS:
        model = lockstep.Model(folder, name)
        weights = multiplied(folder, model)
        tokens = np.random.default_rng(0).integers(0, model.vocab, count)
        ours = {threads: model.score(tokens, threads=threads).log_probs for threads in (1, 2)}
        assert (ours[1] == ours[2]).all()
        peers = {}
        if transformers:
            torch.set_num_threads(1)
            peers = {form: peer(folder, form, tokens) for form in dict.fromkeys((name, "fp32"))}
            assert np.abs(peers["fp32"]() - ours[1][1:]).mean() < {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.5}[name]
        harness.pin(1)
        peaks = []
        found = harness.interleaved(
            rounds, ours=lambda: model.score(tokens, threads=1),
            peak=lambda: peaks.append(limits.gflops()), **peers)
        del found["peak"]
        rate = 2e-9 * count * weights / found["ours"]
        own = found.pop("ours")
        more = {f"transformers_{form}_ms": 1e3 * taken for form, taken in found.items()}
        more.update({f"transformers_{form}_ratio": taken / own for form, taken in found.items()})
        report(work, name, 1, own, **more, peak_share=rate / statistics.median(peaks))
        harness.pin(2)
        found = harness.interleaved(
            rounds, two=lambda: model.score(tokens, threads=2), one=lambda: model.score(tokens, threads=1))
        report(work, name, 2, found["two"], one_thread_ratio=found["one"] / found["two"])


def orders(folder: pathlib.Path, count: int, rounds: int) -> None:
    """Scoring in every order: what the order that has the same bits on both sides costs."""
    harness.pin(1)
    for name in ("fp16", "bf16"):
        models = {order: lockstep.Model(folder, {**lockstep.Recipe(name), "order": order}) for order in lockstep.ORDERS}
        tokens = np.random.default_rng(0).integers(0, models["lockstep"].vocab, count)
        found = harness.interleaved(rounds, **{
            order: lambda model=model: model.score(tokens, threads=1) for order, model in models.items()})
        own = found.pop("lockstep")
        more = {f"{order.replace('-', '_')}_ratio": taken / own for order, taken in found.items()}
        report(f"score {count} tokens, orders", name, 1, own, **more, fastest_ratio=min(found.values()) / own)


def decode(folder: pathlib.Path, prompt: int, count: int, rounds: int, limits: harness.Limits) -> None:
    """A token of each sequence: long answers less those of one token, which read the prompt alone."""
    for name in FORMATS:
        model = lockstep.Model(folder, name)
        weights = multiplied(folder, model)
        tokens = np.random.default_rng(0).integers(0, model.vocab, prompt)
        memory = np.ones(weights * BYTES[name], np.uint8)

        def generate(sequences: int, limit: int, threads: int) -> None:
            model.generate(
                [tokens], samples=sequences, capacity=sequences, max_tokens=limit, threads=threads, seed=1)

        one = {}
        for threads in (1, 2):
            harness.pin(threads)
            actions = {
                f"{kind}_{sequences}": lambda sequences=sequences, limit=limit: generate(sequences, limit, threads)
                for sequences in (1, 8) for kind, limit in (("short", 1), ("long", count + 1))}
            peaks = []
            found = harness.interleaved(
                rounds, **actions, read=lambda: limits.read(memory.ctypes.data, memory.nbytes),
                peak=lambda: peaks.append(limits.gflops()))
            steps = {n: (found[f"long_{n}"] - found[f"short_{n}"]) / count for n in (1, 8)}
            for sequences, step in steps.items():
                more = {"tokens_per_s": sequences / step}
                if threads == 1:
                    # No order of the work is faster than the slower of reading the weights and multiplying.
                    multiplying = 2e-9 * sequences * weights / statistics.median(peaks)
                    more["bandwidth_share"] = found["read"] / step
                    more["peak_share"] = multiplying / step
                    more["limit_share"] = max(found["read"], multiplying) / step
                    one[sequences] = step
                else:
                    more["one_thread_ratio"] = one[sequences] / step
                if sequences > 1:
                    more["one_sequence_gain"] = sequences * steps[1] / step
                report(f"decode, {sequences} sequence{'s' * (sequences > 1)}", name, threads, step, **more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=pathlib.Path, help="a Hugging Face folder")
    parser.add_argument("--quick", action="store_true", help="few tokens, results not written")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["score", "orders", "decode"])
    arguments = parser.parse_args()
    if arguments.folder is None:
        print("no folder of a model was given: nothing is measured")
        return
    limits = harness.Limits()
    harness.pin(1)
    peak, bandwidth = limits.gflops(), limits.gb_s()
    print(f"one core: {peak:.0f} GFLOP/s, {bandwidth:.1f} GB/s; load {os.getloadavg()[0]:.2f}", flush=True)
    rounds = 1 if arguments.quick else arguments.rounds
    if arguments.only in (None, "score"):
        score(arguments.folder, 32 if arguments.quick else 512, rounds, limits)
    if arguments.only in (None, "orders"):
        orders(arguments.folder, 32 if arguments.quick else 256, rounds)
    if arguments.only in (None, "decode"):
        decode(arguments.folder, 32, 4 if arguments.quick else 64, rounds, limits)
    if not arguments.quick:
        versions = {library.__name__: library.__version__ for library in (torch, transformers) if library}
        harness.write(
            "models", rows, **versions, lockstep=lockstep.__version__, peak_gflops=peak, read_gb_s=bandwidth,
            load=os.getloadavg()[0])


if __name__ == "__main__":
    main()
