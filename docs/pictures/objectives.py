"""Draws docs/pictures/objectives.svg: what each term does with a token, as a function of its ratio.

    python docs/pictures/objectives.py

The weight of a token is the derivative of its term by its log-prob, divided by -A: 1 is the policy gradient's. Every curve is
what `lockstep.objective_loss` gives.
"""

import pathlib

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np

import lockstep

TERMS = {
    "PPO, GRPO: clip, 0.8 to 1.28, dual 3": {"term": "clip", "high": 1.28, "dual": 3.0},
    "importance sampling": {"term": "ratio"},
    "REINFORCE": {"term": "reinforce"},
    "CISPO, 0 to 3": {"term": "cispo", "low": 0.0, "high": 3.0},
    "SAPO": {"term": "sapo"},
    "TOPR": {"term": "topr"},
    "VESPO, a sequence of one token": {"term": "vespo"},
}
COLOURS = ["#0072b2", "#999999", "#000000", "#d55e00", "#009e73", "#cc79a7", "#e69f00"]


def weights(options, ratio, advantage):
    trainer = np.full(len(ratio), -10.0)
    packed = {"offsets": np.arange(len(ratio) + 1)}  # each token a sequence: VESPO's ratio is a sequence's
    found = lockstep.objective_loss(
        trainer + np.log(ratio), trainer, np.full(len(ratio), advantage), aggregation="token_sum", **packed, **options)
    return -found.d_log_probs / advantage


def main():
    matplotlib.rcParams.update({"svg.hashsalt": "lockstep", "font.size": 9, "svg.fonttype": "path"})
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    ratio = np.geomspace(0.1, 10, 1201)
    for axis, advantage in zip(axes, (1.0, -1.0)):
        for (name, options), colour in zip(TERMS.items(), COLOURS):
            axis.plot(ratio, weights(options, ratio, advantage), color=colour, label=name, linewidth=1.4)
        axis.set(xscale="log", xlabel="ratio r = current / trainer", xlim=(0.1, 10), ylim=(-0.05, 4),
                 title=f"A {'> 0: raised' if advantage > 0 else '< 0: lowered'}")
        axis.set_xticks([0.1, 0.5, 1, 2, 5, 10], ["0.1", "0.5", "1", "2", "5", "10"])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("weight of the token")
    axes[0].legend(frameon=False, fontsize=7.5)
    figure.savefig(pathlib.Path(__file__).with_name("objectives.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
