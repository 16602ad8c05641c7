"""Draws docs/pictures/advantages.svg: what a right and a wrong answer get, by how many of a group of 8 are right.

    python docs/pictures/advantages.py
"""

from pathlib import Path

import matplotlib

import lockstep

PICTURE = Path(__file__).with_name("advantages.svg")
ANSWERS = 8
PANELS = {
    "grpo": "GRPO", "dr_grpo": "Dr. GRPO", "leave_one_out": "leave-one-out (RLOO)", "max_rl": "MaxRL",
    "pass_at_k": "pass@k", "gpg": "GPG, other groups half right",
}


def curves(estimator: str) -> tuple[list[int], list[float], list[float]]:
    """How many are right, the advantage of one of them, and that of one of the others."""
    counts = list(range(1, ANSWERS))
    right, wrong = [], []
    for count in counts:
        rewards = [1.0] * count + [0.0] * (ANSWERS - count)
        # GPG divides by a share of the batch: what the other prompts earned counts.
        others = [1.0, 0.0] * 28 if estimator == "gpg" else []
        groups = [0] * ANSWERS + [1 + i // ANSWERS for i in range(len(others))]
        found = lockstep.advantages(rewards + others, groups=groups, estimator=estimator)
        right.append(found[0])
        wrong.append(found[ANSWERS - 1])
    return counts, right, wrong


def main() -> None:
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "lockstep", "svg.fonttype": "none"})
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 3, figsize=(10, 5), sharex=True, constrained_layout=True)
    for axes, (estimator, title) in zip(panels.ravel(), PANELS.items()):
        counts, right, wrong = curves(estimator)
        axes.axhline(0, color="#bbbbbb", lw=0.8)
        axes.plot(counts, right, "o-", color="#4477aa", ms=4, label="a right answer")
        axes.plot(counts, wrong, "s--", color="#ee6677", ms=4, label="a wrong answer")
        axes.set_title(title, fontsize=10)
        axes.set_xticks(counts)
    for axes in panels[1]:
        axes.set_xlabel(f"right answers of {ANSWERS}")
    for axes in panels[:, 0]:
        axes.set_ylabel("advantage")
    panels[0, 0].legend(fontsize=8)
    figure.savefig(PICTURE, metadata={"Date": None})
    print(PICTURE)


if __name__ == "__main__":
    main()
