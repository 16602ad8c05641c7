"""Files of runs of `lockstep sanity` that were made up, for its report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lockstep.sanity import results
from lockstep.sanity.experiment import Job, Pair, Settings

PAIRS = {"bf16": 6e-5, "fp16": 9e-7, "fp32": 1.3e-13, "bf16:lockstep": 0.0, "fp16:lockstep": 0.0, "bf16/fp32": 4e-5}
SETTINGS = Settings(steps=60, probe_every=20)


def write(out: Path, algorithms: tuple[str, ...] = ("grpo", "pg-seq-is"), seeds: int = 2) -> list[results.Cell]:
    """Writes runs of each pair and algorithm, KL as above, and reads them."""
    (out / "runs").mkdir()
    rng = np.random.default_rng(3)
    jobs = [Job(Pair.named(pair), algorithm, seed, SETTINGS, Path("model"), "0" * 64, tuple(range(64)))
            for seed in range(seeds) for algorithm in algorithms for pair in PAIRS]
    for job in jobs:
        kl = PAIRS[job.pair.name]
        size = np.sqrt(2 * kl)
        lines: list[dict] = [{"step": 0, "config": job.config}]
        for step in range(SETTINGS.steps + 1):
            noise = rng.uniform(0.9, 1.1, 4)
            if step:
                lines.append({
                    "step": step, "responses": 128, "tokens": 4096, "skipped": 0,
                    "reward_mean": 0.95 - 0.35 * np.exp(-step / 20) * noise[0], "k3": kl * noise[1],
                    "mean_abs_log_ratio": size / 2 * noise[1], "max_abs_log_ratio": 20 * size * noise[2],
                    "max_abs_prob_diff": 3 * size * noise[2], "sequence_ess": 1 - 60 * kl,
                    "sequence_log_ratio_std": 6 * size * noise[3], "share_masked": 0.0})
            if step % SETTINGS.probe_every == 0:
                format_size = 8 * 0.005 * noise[0] if job.pair.trainer == "bf16" else 0.005 * noise[0]
                lines.append({"step": step, "probe": {
                    "exact_kl": kl, "gradient_error": 2 * format_size, "pass_error": format_size,
                    "backward_error": format_size / 6}})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (out / "runs" / f"{job.name}.jsonl").write_text(text)
    return results.cells(results.read(job, out) for job in jobs)
