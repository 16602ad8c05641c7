"""Advantages: two prompts with four answers each, under three estimators, and the penalty of long answers."""

import numpy as np

import lockstep

rewards = np.array([1, 0, 0, 0, 1, 1, 1, 0], np.float32)
lengths = [700, 900, 950, 1000, 400, 600, 980, 1000]


def show(name, values):
    print(f"{name:14}" + "".join(f" {value:7.4f}" for value in values))


for estimator in ("grpo", "dr_grpo", "leave_one_out"):
    show(estimator, lockstep.advantages(rewards, groups=4, estimator=estimator, dtype="fp64"))
show("overlong", lockstep.overlong_penalty(lengths, max_length=1000, buffer=200))
