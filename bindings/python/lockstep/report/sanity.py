"""The report of `lockstep sanity`: tables, findings and expectations, in a terminal, as HTML and for machines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

import lockstep

from ..sanity.experiment import Pair
from ..sanity.results import LEARNED, Cell
from ..step_lines import finite
from .blocks import Block, Line
from .blocks import render as render_blocks
from .rows import NOTHING, Kind, cell, quotient

if TYPE_CHECKING:
    from .curves import Figure  # matplotlib, for which nobody should wait who wants no page

SCHEMA = "lockstep-sanity/1"


@dataclass(frozen=True)
class Study:
    """What is asked of the runs."""

    name: str
    expectations: Sequence[str]
    """What a reader may expect, before the result."""
    not_reproduced: Sequence[str]
    """What the paper found and a model of this size does not show."""
    findings: Callable[[Sequence[Cell]], list[str]]
    """What is found beyond what holds of every study."""
    figures: Callable[[Sequence[Cell]], list[Figure]]


#: What is in a cell of the table: name, kind, value.
FIGURES: tuple[tuple[str, Kind, Callable[[Cell], Any]], ...] = (
    ("reward, at the end", "number", lambda each: each.at_end("reward_mean")),
    ("reward, best", "number", lambda each: each.best()),
    ("0.95 reached at step", "number", lambda each: each.learned_at()),
    ("KL, k3", "number", lambda each: each.over_run("k3")),
    ("KL, exact", "number", lambda each: each.probed("exact_kl")),
    ("mean |d|", "number", lambda each: each.over_run("mean_abs_log_ratio")),
    ("largest |d|", "number", lambda each: each.largest("max_abs_log_ratio")),
    ("largest |π − μ|", "number", lambda each: each.largest("max_abs_prob_diff")),
    ("std of S", "number", lambda each: each.over_run("sequence_log_ratio_std")),
    ("ESS, sequences", "number", lambda each: each.over_run("sequence_ess")),
    ("masked", "share", lambda each: each.over_run("share_masked")),
    ("gradient error", "number", lambda each: each.probed("gradient_error")),
    ("rounding of a pass", "number", lambda each: each.probed("pass_error")),
    ("rounding backward", "number", lambda each: each.probed("backward_error")),
    ("updates skipped", "count", lambda each: each.total("skipped")),
)

EXPECTATIONS = (
    "Rounding to m mantissa bits is noise that goes with 2⁻ᵐ: BF16 (7 bits) over FP16 (10) is 8 in |d| and in gradients, and 64 "
    "in KL.",
    "Engines of one recipe are one policy: their log-probs differ in no bit, in any format.",
    f"GRPO learns the task in every format: a mean reward of {LEARNED} within the 500 steps of the full experiment.",
    "FP16 needs a loss scale; an update whose gradient overflows is skipped, and counted.",
)

NOT_REPRODUCED = (
    "A gap in reward between BF16 and FP16: none was ever significant at this scale, whatever the algorithm.",
    "Collapse of BF16 runs, and a mismatch that grows in training: the KL stayed where it began, or fell.",
    "The paper's 24 times in KL: an estimate from sequences of thousands of tokens. What holds here is 64.",
    "Sequences that a mask or bound of 3 leaves out: ratios of 32 tokens do not get there.",
    "The paper's runs have 1.5 billion parameters and more, and up to 8,000 tokens a response; these 51,488 and 32.",
)


def tables(cells: Sequence[Cell]) -> tuple[list[str], list[Block]]:
    """Columns, one a pair, and a block for each algorithm."""
    columns = list(dict.fromkeys(each.pair.name for each in cells))
    blocks = []
    for algorithm in dict.fromkeys(each.algorithm for each in cells):
        row = {each.pair.name: each for each in cells if each.algorithm == algorithm}
        blocks.append(Block(next(iter(row.values())).title, tuple(
            Line(name, tuple(cell(value(row[column]), kind) if column in row else NOTHING for column in columns))
            for name, kind, value in FIGURES)))
    return columns, blocks


def by_pair(cells: Sequence[Cell], algorithm: str) -> dict[str, Cell]:
    """The cells of one algorithm by the names of their pairs."""
    return {each.pair.name: each for each in cells if each.algorithm == algorithm}


def formats(cells: Sequence[Cell]) -> list[str]:
    """BF16 over FP16, by algorithm."""
    rows = (by_pair(cells, algorithm) for algorithm in dict.fromkeys(each.algorithm for each in cells))
    return [_formats(row["bf16"], row["fp16"]) for row in rows if "bf16" in row and "fp16" in row]


def findings(study: Study, cells: Sequence[Cell]) -> list[str]:
    """What was found, in sentences: what happened, whatever was expected."""
    lines = study.findings(cells)
    same = [each for each in cells if each.pair.must_be_zero]
    if wrong := [f"{each.pair.name} ({each.title})" for each in same if each.differs]:
        lines.append(f"NOT ZERO: engines of one recipe differ, in {', '.join(wrong)}. That is an error in Lockstep: "
                     "please report it.")
    elif same:
        names = ", ".join(dict.fromkeys(each.pair.name for each in same))
        tokens = sum(each.total("tokens") for each in same)
        lines.append(f"Engines of one recipe ({names}): exactly 0 in every step, all {tokens:,} log-probs have the same bits.")
    enough = [each for each in cells if each.settings.steps >= 400]
    if enough:
        short = [f"{each.pair.name} with {each.title} ({each.best().value:.3f})" for each in enough
                 if not each.best().value >= LEARNED]
        lines.append(f"The task was learned (a mean reward of {LEARNED} over 25 steps) by "
                     + (f"all {len(enough)} pairs of engines and algorithm." if not short
                        else f"{len(enough) - len(short)} of {len(enough)}; not by {', '.join(short)}."))
    skipped = sum(each.total("skipped") for each in cells)
    updates = sum(each.settings.updates * each.total("responses") // (each.settings.prompts * each.settings.samples)
                  for each in cells)
    lines.append(f"{skipped} of {updates:,} updates were skipped, as a gradient had overflowed.")
    for each in cells:
        lines += [f"{each.pair.name} with {each.title} diverged, {failure}." for failure in each.failures]
    return lines


def _formats(bf16: Cell, fp16: Cell) -> str:
    """BF16 over FP16, with independent engines."""
    ratios = [f"{name} {quotient(value(bf16), value(fp16))}" for name, value in (
        ("KL (k3)", lambda each: each.over_run("k3")), ("exact KL", lambda each: each.probed("exact_kl")),
        ("mean |d|", lambda each: each.over_run("mean_abs_log_ratio")),
        ("rounding of a pass", lambda each: each.probed("pass_error")),
        ("gradient error", lambda each: each.probed("gradient_error")))]
    first, second = bf16.at_end("reward_mean"), fp16.at_end("reward_mean")
    error = math.hypot(first.standard_error, second.standard_error)
    gap = cell(lockstep.Estimate(first.value - second.value, error), "number")
    return (f"{bf16.title}, BF16 over FP16, independent engines: {', '.join(ratios)}. Reward at the "
            f"end (the last fifth of the steps), BF16 minus FP16: {gap}.")


def setting_lines(cells: Sequence[Cell]) -> list[str]:
    """What was run, in sentences."""
    settings, seeds = cells[0].settings, max(len(each.outcomes) for each in cells)
    pairs: dict[str, Pair] = {each.pair.name: each.pair for each in cells}
    return [
        f"Task {settings.task}, size {settings.task_size}; {settings.problems} problems of which the starting model solves 20 to "
        f"80 % of 32 samples; {settings.prompts} prompts x {settings.samples} responses a step, {settings.updates} "
        f"updates, learning rate {settings.learning_rate:g}, {settings.steps} steps, {seeds} "
        + ("seed." if seeds == 1 else "seeds."),
        "Pairs, trainer | rollout engine: " + ", ".join(
            f"{pair.name} = {pair.trainer} | {pair.rollout}" for pair in pairs.values()) + ".",
        f"Probes every {settings.probe_every} steps: as many rollouts again from a checkpoint. Gradient errors are against the "
        "masters in fp32, with exact weights π/μ of whole sequences; that reference is within a relative 5e-6 of float64.",
    ]


def render(study: Study, cells: Sequence[Cell]) -> Group:
    """Tables and prose, for `rich.console.Console.print`."""
    columns, blocks = tables(cells)
    parts: list[RenderableType] = [
        render_blocks("mean over seeds ± standard error", columns, blocks), Text()]
    for title, lines in prose(study, cells):
        parts += [Text(title, "bold"), *(Text(f"· {line}") for line in lines), Text()]
    return Group(*parts)


def prose(study: Study, cells: Sequence[Cell]) -> list[tuple[str, Sequence[str]]]:
    """What is printed with the table, by headings."""
    return [("What was run", setting_lines(cells)), ("What was found", findings(study, cells)),
            ("What was expected", study.expectations), ("What does not reproduce at this scale", study.not_reproduced)]


def document(study: Study, cells: Sequence[Cell]) -> dict[str, Any]:
    """Plain dicts, lists, numbers and strings. NaN and infinities are None, as JSON has neither."""
    def plain(value: Any) -> Any:
        return value._asdict() if isinstance(value, lockstep.Estimate) else value

    return finite({
        "schema": SCHEMA, "lockstep_version": lockstep.__version__,
        "config": {key: value for key, value in cells[0].outcomes[0].job.config.items()
                   if key not in ("pair", "algorithm", "seed")},
        "study": study.name, "findings": findings(study, cells),
        "cells": [{
            "pair": each.pair.name, "trainer": each.pair.trainer, "rollout": each.pair.rollout,
            "algorithm": each.algorithm, "seeds": [outcome.job.seed for outcome in each.outcomes],
            "failures": each.failures, "figures": {name: plain(value(each)) for name, _, value in FIGURES},
        } for each in cells],
    })


def page(study: Study, cells: Sequence[Cell]) -> str:
    """The report as one HTML document. The same runs give the same bytes."""
    from .page import template

    columns, blocks = tables(cells)
    return template("sanity.html").render(
        prose=prose(study, cells), columns=columns, blocks=blocks, figures=study.figures(cells),
        failed=any(each.pair.must_be_zero and each.differs for each in cells))


def figures(cells: Sequence[Cell]) -> list[Figure]:
    """The paper's figures: rewards, mismatch, ablation of formats, and gradients."""
    from .curves import Panel, figure

    algorithms = {each.algorithm: each.title for each in cells}
    names = list(dict.fromkeys(each.pair.name for each in cells))
    pairs = {each.pair.name: each.pair for each in cells}
    plain = [name for name in names if not pairs[name].is_mixed]
    apart = [name for name in plain if not pairs[name].must_be_zero]
    mixed = [name for name in names if pairs[name].is_mixed]

    def panels(shown: Sequence[str], ylabel: str, band: Callable[[Cell], Any], titles: dict[str, str],
               **options: Any) -> list[Panel]:
        return [Panel(title, ylabel, [band(row[name]) if name in row else None for name in shown], **options)
                for algorithm, title in titles.items() for row in [by_pair(cells, algorithm)]]

    def reward(each: Cell) -> Any:
        return each.band("reward_mean", smooth=True)

    out = []
    if plain:
        out.append(figure(
            "reward", "Reward", "Mean reward of a step, smoothed over 25 steps (a quarter of a short run); bands are the least and "
            "the most of any seed. In the paper those of BF16 collapse.", plain,
            panels(plain, "reward", reward, algorithms)))
    if apart:
        caption = "Independent engines; lockstep ones are at 0 in every step, which no logarithmic axis shows."
        out += [
            figure("kl", "Mismatch: KL(μ ‖ π)", f"k3, nats a token. {caption}", apart,
                   panels(apart, "KL, k3", lambda each: each.band("k3"), algorithms, log=True)),
            figure("prob", "Mismatch: largest |π − μ|", f"The largest of any token of a step. {caption}", apart,
                   panels(apart, "largest |π − μ|", lambda each: each.band("max_abs_prob_diff"), algorithms, log=True))]
    if mixed:
        shown = [name for name in ("bf16", "fp16") if name in names] + mixed
        with_mixed = {each.algorithm: each.title for each in cells if each.pair.is_mixed}
        out.append(figure(
            "ablation", "Ablation: trainer / rollout", "Formats of the trainer and of the rollout engine, where they differ.", shown,
            panels(shown, "reward", reward, with_mixed)
            + panels(shown, "KL, k3", lambda each: each.band("k3"), with_mixed, log=True)))
    out += [
        figure("gradient", "Gradient error", "Relative distance of the algorithm's gradient from that of the same masters in fp32 with "
               "exact weights π/μ of whole sequences, on the same rollouts. A lockstep pair has no mismatch; what is left of its error is "
               "the trainer's own rounding.", plain or names,
               panels(plain or names, "relative error", lambda each: each.probe_band("gradient_error"), algorithms, log=True)),
        figure("pass", "Rounding of a pass", "The same gradients of log-probs through forward and backward passes in the trainer's format, "
               "and in fp32: rounding alone.", plain or names,
               panels(plain or names, "relative error", lambda each: each.probe_band("pass_error"), algorithms, log=True))]
    return out


PRECISION = Study("precision", EXPECTATIONS, NOT_REPRODUCED, formats, figures)
