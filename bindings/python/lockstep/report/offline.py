"""The offline report: pairs of engines as tables of recipes, in a terminal, as HTML and for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from markupsafe import Markup
from rich.console import Group, RenderableType
from rich.text import Text

import lockstep

from ..offline import Engines, Pair, Settings
from ..step_lines import finite
from .blocks import Block, Line
from .blocks import render as render_blocks
from .diagnosis import Diagnosis
from .rows import NOTHING, Cell, Kind, cell, number, quotient

SCHEMA = "lockstep-offline/1"

ROWS: tuple[tuple[str, str, Kind], ...] = (
    ("mean_abs_log_ratio", "mean |d|", "number"), ("k3", "KL, k3", "number"), ("exact_kl", "KL, exact", "number"),
    ("sequence_ess", "ESS, sequences", "plain"), ("share_differing", "bits differ", "share"))


@dataclass(frozen=True)
class Ablation:
    """The table of two engines: blocks of rollout recipes, columns of trainer recipes."""

    engines: Engines
    trainers: tuple[str, ...]
    blocks: tuple[Block, ...]


def ablations(pairs: Sequence[Pair]) -> list[Ablation]:
    """The table of each two engines, in their order."""
    found = []
    for engines in dict.fromkeys(pair.engines for pair in pairs):
        mine = [pair for pair in pairs if pair.engines == engines]
        blocks = []
        for rollout in dict.fromkeys(str(pair.rollout) for pair in mine):
            row = [pair for pair in mine if str(pair.rollout) == rollout]
            blocks.append(Block(rollout, tuple(
                Line(name, tuple(cell(_statistic(pair, key), kind) for pair in row)) for key, name, kind in ROWS
                if key != "exact_kl" or any(pair.exact_kl is not None for pair in row))))
        found.append(Ablation(engines, tuple(dict.fromkeys(str(pair.trainer) for pair in mine)), tuple(blocks)))
    return found


def _statistic(pair: Pair, key: str) -> Any:
    return pair.exact_kl if key == "exact_kl" else getattr(pair.survey.statistics, key)


def same_formats(pairs: Sequence[Pair], engines: Engines) -> dict[str, Pair]:
    """The pairs with one recipe on both sides but for the order, by its name without order."""
    return {_plain(pair): pair for pair in pairs
            if pair.engines == engines and _plain(pair) == str(pair.trainer).partition("+")[0]}


def _plain(pair: Pair) -> str:
    return str(pair.rollout).partition("+")[0]


def findings(pairs: Sequence[Pair]) -> list[str]:
    """What the tables come to, in sentences."""
    lines = []
    for engines in dict.fromkeys(pair.engines for pair in pairs):
        both = same_formats(pairs, engines)
        if "bf16" in both and "fp16" in both and not both["fp16"].must_be_zero:
            ratios = [(name, quotient(_statistic(both["bf16"], key), _statistic(both["fp16"], key)))
                      for key, name in (("mean_abs_log_ratio", "mean |d|"), ("k3", "k3"))]
            exact = both["bf16"].exact_kl, both["fp16"].exact_kl
            if None not in exact and exact[1]:
                ratios.append(("the exact KL", Cell(number(exact[0] / exact[1], 3), unit="×")))
            text = ", ".join(f"{name} {ratio}" for name, ratio in ratios if ratio != NOTHING)
            lines.append(f"BF16 over FP16 on both sides, {engines.name} engines: {text}. Rounding noise goes with 2⁻ᵐ in "
                         "the mantissa bits m, KL with 2⁻²ᵐ: 8 and 64 are expected.")
    same = [pair for pair in pairs if pair.must_be_zero]
    if same:
        tokens = sum(pair.survey.statistics.tokens for pair in same)
        names = ", ".join(str(pair.rollout) for pair in same)
        if wrong := [str(pair.rollout) for pair in same if not pair.is_zero]:
            lines.append(f"NOT ZERO: engines of one recipe differ, in {', '.join(wrong)}. That is an error in Lockstep: "
                         "please report it.")
        else:
            lines.append(f"Engines of one recipe ({names}): exactly 0, all {tokens:,} log-probs have the same bits.")
    return lines


def render(pairs: Sequence[Pair]) -> Group:
    """Tables and findings, for `rich.console.Console.print`."""
    parts: list[RenderableType] = []
    for ablation in ablations(pairs):
        table = render_blocks(f"{ablation.engines.name} engines, rollout (rows) → trainer (columns)",
                              ablation.trainers, ablation.blocks)
        parts += [table, Text()]
    return Group(*parts, *map(Text, findings(pairs)))


def document(pairs: Sequence[Pair], settings: Settings, model: str, prompts: str) -> dict[str, Any]:
    """Plain dicts, lists, numbers and strings. NaN and infinities are None, as JSON has neither."""
    return finite({
        "schema": SCHEMA, "lockstep_version": lockstep.__version__, "model": model, "prompts": prompts,
        "settings": asdict(settings), "findings": findings(pairs),
        "pairs": [{
            "engines": pair.engines.name, "rollout": str(pair.rollout), "trainer": str(pair.trainer),
            "same_recipe": pair.must_be_zero, "exact_kl": pair.exact_kl,
            "mismatch": pair.survey.statistics.to_dict(),
        } for pair in pairs],
    })


def page(pairs: Sequence[Pair], settings: Settings, model: str, prompts: str) -> str:
    """The report as one HTML document. The same pairs give the same bytes."""
    from . import plots
    from .page import template

    independent = next((pair.engines for pair in pairs if not pair.must_be_zero), pairs[0].engines)
    shown = [Diagnosis(pair.survey) for name, pair in same_formats(pairs, independent).items()
             if name != "fp32"][:2] or [Diagnosis(pairs[0].survey)]
    distribution, outside = plots.distribution(shown)
    return template("offline.html").render(
        model=model, prompts=prompts, settings=settings, ablations=ablations(pairs), findings=findings(pairs),
        failed=any(pair.must_be_zero and not pair.is_zero for pair in pairs),
        shown=shown, key=lambda index, place: Markup(plots.key(index, place)), engines=independent,
        pictures={
            "sequences": [Markup(panel) for panel in plots.sequences(shown)],
            "distribution": [Markup(distribution)],
            "where": [Markup(panel) for panel in plots.where(shown)],
            "scatter": [Markup(panel) for panel in plots.scatter(shown)],
            "weight": [Markup(plots.sequence_weight(shown))],
        },
        outside=outside, fewest=plots.FEWEST_IN_BUCKET, tokens=shown[0].statistics.tokens)
