"""A reinforcement learning step of the built-in model, whole, against the same loop in PyTorch, turn by turn, pinned.

    python benchmarks/bench_training.py [--quick] [--rounds N]

A step is 16 prompts of the chain task, 8 responses to each, log-probs by the trainer, group-relative advantages, and two
updates: log-probs by the policy as it is, clipped objective, backward pass, clipping to a global norm, AdamW. PyTorch's
side is the same model in eager mode with as few operations as it takes (fused projections, scaled_dot_product_attention,
rms_norm, a cache of keys and values that is there before, the fused AdamW of float32 masters); its rewards are random
numbers, which cost nothing, ours are checked answers. --quick takes one round, to see that everything runs; its figures are
not written.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics

os.environ.update(OMP_NUM_THREADS="2", MKL_NUM_THREADS="2")
import numpy as np

import harness
import lockstep

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = None

FOLDER = harness.ROOT / "examples" / "data" / "chain-sft"
FORMATS = ("fp16", "fp32")
PROMPTS, SAMPLES, UPDATES = 16, 8, 2
rows: list[dict] = []


def report(work: str, dtype: str, threads: int, ours: float, **more) -> None:
    """One row: milliseconds, and what they are compared with."""
    rows.append({"work": work, "format": dtype, "threads": threads, "instruction_set": harness.instruction_set(),
                 "ours_ms": 1e3 * ours, **more})
    extras = "  ".join(f"{key} {value:.2f}" for key, value in more.items())
    print(f"{work:24} {dtype:5} {threads} thr {1e3 * ours:9.2f} ms  {extras}", flush=True)


class Peer:
    """The loop in PyTorch: parameters and activations in a format, float32 masters, a loss scale for fp16."""

    def __init__(self, dtype: str, task: lockstep.Task) -> None:
        from safetensors.torch import load_file

        c = json.loads((FOLDER / "config.json").read_text())
        self.dtype = {"fp16": torch.float16, "fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        self.layers, self.heads, self.size = c["num_hidden_layers"], c["num_attention_heads"], c["head_dim"]
        self.epsilon = c["rms_norm_eps"]
        weights = load_file(FOLDER / "model.safetensors")

        def of(layer: int, *names: str) -> torch.Tensor:
            return torch.cat([weights[f"model.layers.{layer}.{name}.weight"] for name in names])

        named = [weights["model.embed_tokens.weight"], weights["model.norm.weight"], weights["lm_head.weight"]]
        for layer in range(self.layers):
            named += [
                of(layer, "input_layernorm"), of(layer, *(f"self_attn.{x}_proj" for x in "qkv")),
                of(layer, "self_attn.o_proj"), of(layer, "post_attention_layernorm"),
                of(layer, "mlp.gate_proj", "mlp.up_proj"), of(layer, "mlp.down_proj")]
        self.masters = [each.clone() for each in named]
        self.weights = (self.masters if dtype == "fp32" else [each.to(self.dtype) for each in named])
        for each in self.weights:
            each.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.masters, lr=2e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        self.scale = 65536.0 if dtype == "fp16" else 1.0
        self.task, self.length = task, task.longest_response
        self.step_number = 0
        prompt = len(task.prompt(0))
        positions = torch.arange(prompt + self.length)[:, None]
        angles = positions / c["rope_theta"] ** (torch.arange(0, self.size, 2) / self.size)
        self.cosines, self.sines = (x.to(self.dtype) for x in (angles.cos(), angles.sin()))

    def turn(self, x: torch.Tensor, first: int) -> torch.Tensor:
        """Rotary embedding of [batch, heads, tokens, size]."""
        cosines, sines = (t[first:first + x.shape[2]] for t in (self.cosines, self.sines))
        a, b = x.chunk(2, -1)
        return torch.cat((a * cosines - b * sines, b * cosines + a * sines), -1)

    def logits(self, ids: torch.Tensor, cache: torch.Tensor | None = None, first: int = 0) -> torch.Tensor:
        """[batch, tokens, vocab]; the cache, if there is one, is [layers, 2, batch, heads, positions, size]."""
        embedding, norm, head, *layers = self.weights
        x = F.embedding(ids, embedding)
        batch, count, hidden = x.shape
        for layer in range(self.layers):
            norm1, projection, output, norm2, wide, down = layers[6 * layer:6 * layer + 6]
            y = F.linear(F.rms_norm(x, (hidden,), norm1, self.epsilon), projection)
            q, k, v = y.view(batch, count, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
            q, k = self.turn(q, first), self.turn(k, first)
            if cache is not None:
                cache[layer, 0, :, :, first:first + count], cache[layer, 1, :, :, first:first + count] = k, v
                k, v = cache[layer, :, :, :, :first + count]
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=count > 1)
            x = x + F.linear(attended.transpose(1, 2).reshape(batch, count, hidden), output)
            gate, up = F.linear(F.rms_norm(x, (hidden,), norm2, self.epsilon), wide).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, down)
        return F.linear(F.rms_norm(x, (hidden,), norm, self.epsilon), head)

    def log_probs(self, ids: torch.Tensor) -> torch.Tensor:
        logits = torch.log_softmax(self.logits(ids[:, :-1]).float(), -1)
        return logits.gather(-1, ids[:, 1:, None])[..., 0]

    def sample(self, prompts: torch.Tensor) -> torch.Tensor:
        batch, count = prompts.shape
        cache = torch.empty(
            self.layers, 2, batch, self.heads, count + self.length, self.size, dtype=self.dtype)
        ids, new = prompts, prompts
        for position in range(self.length):
            first = 0 if position == 0 else count + position - 1
            logits = self.logits(new, cache, first)[:, -1].float()
            new = torch.multinomial(torch.softmax(logits, -1), 1)
            ids = torch.cat((ids, new), 1)
        return ids

    def step(self) -> None:
        prompts = np.stack([self.task.prompt(PROMPTS * self.step_number + each) for each in range(PROMPTS)])
        self.step_number += 1
        prompts = torch.as_tensor(prompts, dtype=torch.int64).repeat_interleave(SAMPLES, 0)
        with torch.no_grad():
            ids = self.sample(prompts)
            old = self.log_probs(ids)
            rewards = torch.rand(PROMPTS, SAMPLES)
            advantages = (rewards - rewards.mean(1, True)).reshape(-1, 1)
        first = prompts.shape[1] - 1
        for part in torch.arange(len(ids)).chunk(UPDATES):
            ratio = torch.exp(self.log_probs(ids[part]) - old[part])[:, first:]
            a = advantages[part]
            loss = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a).mean()
            (loss * self.scale).backward()
            if self.weights is not self.masters:
                for master, weight in zip(self.masters, self.weights):
                    master.grad, weight.grad = weight.grad.float().div_(self.scale), None
            torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.weights is not self.masters:
                with torch.no_grad():
                    torch._foreach_copy_(self.weights, self.masters)


def start(dtype: str, threads: int) -> lockstep.Run:
    return lockstep.Run(
        lockstep.Task("chain"), model=FOLDER, algorithm="paper/grpo", trainer=dtype, prompts=PROMPTS, samples=SAMPLES,
        updates=UPDATES, threads=threads)


def operations(tokens: int) -> float:
    """Multiply-adds of a step, times two: of weights and attention (which sees half of the positions), four and a half times
    for each token: sampled, scored, scored again in the second update, and twice in the backward pass."""
    c = json.loads((FOLDER / "config.json").read_text())
    hidden, wide, layers = c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"]
    weights = layers * (4 * hidden * hidden + 3 * hidden * wide) + c["vocab_size"] * hidden
    attention = layers * 2 * hidden * tokens / 2
    return 2 * PROMPTS * SAMPLES * tokens * (weights + attention) * 4.5


def check(dtype: str) -> None:
    """The peer is the same model."""
    task = lockstep.Task("chain")
    tokens = np.concatenate([task.prompt(0), task.demonstration(0)])
    with torch.no_grad():
        theirs = Peer(dtype, task).log_probs(torch.as_tensor(tokens, dtype=torch.int64)[None])[0].numpy()
    ours = lockstep.Model(FOLDER, dtype).score(tokens).log_probs[1:]
    assert np.abs(theirs - ours).max() < {"fp32": 1e-4, "fp16": 0.05}[dtype], np.abs(theirs - ours).max()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, results not written")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    limits = harness.Limits()
    task = lockstep.Task("chain")
    tokens = len(task.prompt(0)) + task.longest_response
    one = {}
    for dtype in FORMATS:
        if torch:
            check(dtype)
        for threads in (1, 2):
            harness.pin(threads)
            memory = {}
            if threads == 1:
                memory["extra_mb"] = harness.extra_memory(lambda: [next(start(dtype, 1)) for _ in range(2)])
            run = start(dtype, threads)
            peaks = []
            actions = {"ours": lambda: next(run), "peak": lambda: peaks.append(limits.gflops())}
            if torch:
                torch.set_num_threads(threads)
                for form in dict.fromkeys((dtype, "fp32")):
                    actions[f"torch_{form}"] = Peer(form, task).step
            if threads == 2:
                single = start(dtype, 1)
                actions["single"] = lambda: next(single)
            found = harness.interleaved(rounds, **actions)
            del found["peak"]
            own = found.pop("ours")
            more = {}
            if threads == 2:
                more["one_thread_ratio"] = found.pop("single") / own
            for name, taken in found.items():
                more[f"{name}_ms"], more[f"{name}_ratio"] = 1e3 * taken, taken / own
            floor = 1e-9 * operations(tokens) / statistics.median(peaks) / threads
            report("RL step, chain-sft", dtype, threads, own, **more, peak_share=floor / own, **memory)
            one[dtype] = own
    if not arguments.quick:
        versions = {torch.__name__: torch.__version__} if torch else {}
        harness.write("training", rows, **versions, lockstep=lockstep.__version__, load=os.getloadavg()[0])


if __name__ == "__main__":
    main()
