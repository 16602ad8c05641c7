"""Reinforcement learning, step by step, with prompts and rewards of one's own: chains y' = (a y + b) mod 7, and the share
of a response that is right before its first error. Trainer and rollout engine are FP16: no mismatch.
usage: run.py FOLDER"""

import sys

import lockstep

TOKENS = 32


def prompt(problem):
    return [1 + problem % 6, problem // 6 % 7, problem // 42 % 7]


def reward(problem, prompt, response):
    """The ids of a digit's two fonts are 7 apart."""
    a, b, y = prompt
    for right, token in enumerate(response):
        y = (a * y + b) % 7
        if token >= 14 or token % 7 != y:
            return right / TOKENS
    return 1.0


def evaluate(run):
    return run.evaluate(range(1000, 1008), samples=8, seed=7).mean()


environment = lockstep.Environment(prompts=prompt, rewards=reward, max_tokens=TOKENS)
run = lockstep.Run(environment, model=sys.argv[1], algorithm="paper/grpo", trainer="fp16", prompts=8)
print(f"before: {evaluate(run):.6f}")
for _ in range(4):
    metrics = run.step()
    print(f"step {metrics.step}: reward {metrics.reward_mean:.6f}, gradient norm {metrics.gradient_norm:.9f}, "
          f"entropy {metrics.entropy:.9f}, KL {metrics.k3:g}")
print(f"after: {evaluate(run):.6f}")
