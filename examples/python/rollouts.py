"""Rollouts from elsewhere: a run's policy as bytes, its requests, and an engine that could be on another machine. What
it draws is given back, and the step has the bits of a run that draws by itself. usage: rollouts.py FOLDER"""

import sys

import lockstep


def start():
    # The engine is not the trainer's: there is a mismatch.
    return lockstep.Run(
        lockstep.Task("chain"), model=sys.argv[1], algorithm="paper/grpo-token-tis", rollout="bf16+fused", prompts=4,
        samples=8)


run, alone = start(), start()
for _ in range(3):
    policy, requests = run.policy(), run.requests()  # to be sent to another process, which has all it needs
    model = lockstep.Model.from_bytes(policy, run.rollout_recipe)
    run.give(requests[0].step, lockstep.draw_rollouts(model, requests))
    given, drawn = run.step(), alone.step()
    print(f"step {given.step}: policy {len(policy)} bytes, reward {given.reward_mean:.6f}, KL {given.k3:.6e}, "
          f"loss {given.loss:.9f}; drawn here: {'the same bits' if given == drawn else 'different'}")
