"""Loss and gradient of an objective against PyTorch's eager forward and backward of the same one.

    python benchmarks/bench_objectives.py [--quick] [--rounds N]

fp32, padded, with a mask; one thread. Both sides run in one process, pinned to one core, turn by turn; medians.
"usual" is how trainers write it: a multiplication by the mask, a division by its sum; "best" is the same
after what the mask leaves out was dropped. "reused" is ours with the gradient written to an array that is there
already. Memory is what is taken beyond the inputs; "beyond the gradient" what is left of it without the gradient,
which both sides hand out. Results are compared before anything is timed. --quick takes a small
batch, to see that everything runs; its figures mean nothing and are not written.
"""

import argparse
import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
import numpy as np
import torch

import harness
from lockstep import Objective, objective_loss

torch.set_num_threads(1)


def batch(rows, length):
    """Log-probs as a language model has them, most near 0; lengths that differ; one advantage a sequence."""
    rng = np.random.default_rng(0)
    shape = rows, length
    trainer = np.log(rng.beta(3, 0.6, shape)).astype(np.float32)
    noise = 0.1 * rng.standard_normal(shape).astype(np.float32) * (1 - np.exp(trainer))
    mask = np.arange(length) < rng.integers(length * 3 // 4, length + 1, (rows, 1))
    arrays = {
        "current": trainer + noise, "trainer": trainer,
        "reference": trainer + 0.05 * rng.standard_normal(shape).astype(np.float32),
        "weights": np.exp(0.05 * rng.standard_normal(shape)).astype(np.float32), "mask": mask,
        "advantages": rng.standard_normal(rows).astype(np.float32)}
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def clipped(ratio, A, low, high):
    return torch.maximum(-A * ratio, -A * torch.clamp(ratio, low, high))


def grpo(x, current):
    ratio = torch.exp(torch.clamp(current - x["trainer"], -20, 20))
    terms = clipped(ratio, x["advantages"][:, None], 0.8, 1.28) * x["weights"]
    return (terms * x["mask"]).sum() / x["mask"].sum()


def gspo(x, current):
    mask = x["mask"]
    lengths = mask.sum(1).clamp(min=1)
    whole = torch.exp(((current - x["trainer"]) * mask).sum(1) / lengths)
    terms = clipped(whole, x["advantages"], 0.9997, 1.0004)[:, None].expand_as(current)
    return ((terms * mask).sum(1) / lengths).mean()


def gspo_token(x, current):
    """GSPO as verl writes it: each token's own gradient under the ratio of its sequence, and a clip for each."""
    mask = x["mask"]
    lengths = mask.sum(1).clamp(min=1)
    whole = ((current - x["trainer"]) * mask).sum(1) / lengths
    log_ratio = current - current.detach() + whole.detach()[:, None]
    terms = clipped(torch.exp(torch.clamp(log_ratio, max=10)), x["advantages"][:, None], 0.9997, 1.0004)
    return ((terms * mask).sum(1) / lengths).mean()


def cispo(x, current):
    ratio = torch.exp(torch.clamp(current - x["trainer"], -20, 20))
    terms = -torch.clamp(ratio, 0, 5).detach() * x["advantages"][:, None] * current
    apart = torch.clamp(x["reference"] - current, -20, 20)
    terms = terms + 0.01 * (torch.exp(apart) - apart - 1)
    return (terms * x["mask"]).sum() / x["mask"].sum()


def eager(loss, x):
    current = x["current"].detach().requires_grad_()
    value = loss(x, current)
    value.backward()
    return value.item(), current.grad


def packed(x):
    """Only the tokens that count, one row: what the best code works on."""
    mask = x["mask"]
    out = {name: x[name][mask] for name in ("current", "trainer", "reference", "weights")}
    return out | {"advantages": x["advantages"].repeat_interleave(mask.sum(1)), "lengths": mask.sum(1)}


def best_grpo(x, current):
    ratio = torch.exp(torch.clamp(current - x["trainer"], -20, 20))
    return (clipped(ratio, x["advantages"], 0.8, 1.28) * x["weights"]).mean()


def best_cispo(x, current):
    ratio = torch.exp(torch.clamp(current - x["trainer"], -20, 20).detach())
    apart = torch.clamp(x["reference"] - current, -20, 20)
    return (0.01 * (torch.exp(apart) - apart - 1) - torch.clamp(ratio, 0, 5) * x["advantages"] * current).mean()


CASES = {
    "GRPO, clip, weights": (grpo, best_grpo, ["weights"], {"high": 1.28}),
    "GSPO": (gspo, None, [], {
        "ratio_level": "sequence", "aggregation": "seq_mean_token_mean", "low": 0.9997, "high": 1.0004}),
    "GSPO, token form": (gspo_token, None, [], {
        "ratio_level": "sequence_token", "aggregation": "seq_mean_token_mean", "low": 0.9997, "high": 1.0004}),
    "CISPO, k3": (cispo, best_cispo, ["reference"], {
        "term": "cispo", "low": 0.0, "high": 5.0, "kl": "k3", "kl_coefficient": 0.01}),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    harness.pin(1)
    rows, length = (50, 512) if arguments.quick else (20_000, 512)
    x = batch(rows, length)
    tokens = x["mask"].numel()
    dense = packed(x)
    results = []
    buffer = torch.zeros_like(x["current"])
    gradient_mb = buffer.numel() * 4 / 2**20
    for work, (usual, best, parts, options) in CASES.items():
        more = {{"reference": "reference_log_probs"}.get(name, name): x[name] for name in parts}

        def ours(out=None):
            return objective_loss(
                x["current"], x["trainer"], x["advantages"], x["mask"], **more, **options, out=out, threads=1)

        def parts_of_it():
            objective = Objective(**options, threads=1)
            given = x["current"], x["trainer"], x["advantages"], x["mask"]
            objective.count(*given, **more)
            return objective.evaluate(*given, **more)

        value, gradient = eager(usual, x)
        found = ours()
        np.testing.assert_allclose(found.loss, value, rtol=2e-3, atol=1e-5)
        scale = gradient.abs().max()
        # Sums in fp32 may put a sequence on the other side of a clip bound.
        assert ((found.d_log_probs - gradient).abs() > 1e-3 * scale).float().mean() < 1e-3
        assert torch.equal(ours(buffer).d_log_probs, found.d_log_probs)
        del found, gradient
        sides = {"ours": ours, "reused": lambda: ours(buffer), "handle": parts_of_it, "usual": lambda: eager(usual, x)}
        if best is not None:
            sides["best"] = lambda: eager(best, dense)
        median = harness.interleaved(arguments.rounds, **sides)
        row = {"work": work, "tokens": tokens, "sequences": rows, "format": "fp32", "threads": 1,
               "instruction_set": harness.instruction_set(),
               "ours_ms": 1e3 * median["ours"], "reused_ms": 1e3 * median["reused"], "handle_ms": 1e3 * median["handle"],
               "usual_ms": 1e3 * median["usual"], "usual_ratio": median["usual"] / median["ours"],
               "ns_a_token": 1e9 * median["ours"] / tokens, "extra_mb": harness.extra_memory(ours),
               "reused_extra_mb": harness.extra_memory(lambda: ours(buffer)),
               "usual_extra_mb": harness.extra_memory(lambda: eager(usual, x)), "gradient_mb": gradient_mb}
        if best is not None:
            row |= {"best_ms": 1e3 * median["best"], "best_ratio": median["best"] / median["ours"]}
        row["beyond_gradient_mb"] = row["reused_extra_mb"]
        row["usual_beyond_gradient_mb"] = row["usual_extra_mb"] - gradient_mb
        row["memory_ratio"] = row["usual_extra_mb"] / row["extra_mb"]
        results.append(row)
        print(f"{work}, {tokens:,} tokens in {rows:,} sequences, fp32, 1 thread")
        print(f"  Lockstep        {row['ours_ms']:8.1f} ms   {row['ns_a_token']:.1f} ns a token, {row['extra_mb']:.0f} MB"
              f"; in two calls {row['handle_ms']:.1f} ms")
        print(f"  into an array   {row['reused_ms']:8.1f} ms   {row['reused_extra_mb']:.1f} MB beyond the gradient, "
              f"PyTorch {row['usual_beyond_gradient_mb']:.0f} MB")
        print(f"  PyTorch, usual  {row['usual_ms']:8.1f} ms   {row['usual_ratio']:.1f} times as long, "
              f"{row['usual_extra_mb']:.0f} MB ({row['memory_ratio']:.1f} times)")
        if best is not None:
            print(f"  PyTorch, best   {row['best_ms']:8.1f} ms   {row['best_ratio']:.1f} times as long")
    if not arguments.quick:
        harness.write("objectives", results, torch=torch.__version__)


if __name__ == "__main__":
    main()
