"""Where two engines part, in rows and words: what the terminal and the page say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import lockstep

from .._locate import Difference, Location
from .rows import number, percent

# Beyond this, the results of one operation differ by more than any rounding of 7 bits and more makes of them.
MORE_THAN_ROUNDING = 0.05
# KL that is this many times smaller is worth a change.
WORTH = 1.5

# What to look at where the first difference is of an operation.
HINTS = {
    "embedding": "The embedding's weights differ, or their format does: compare checkpoint, merge and dtype.",
    "attention norm": "The norm: epsilon, the order of its sum, whether the weight is multiplied before or after "
                      "the rounding.",
    "attention projection": "A matrix product: other weights (stale, quantised, merged otherwise), a bias that is "
                            "missing, or another order of the sum.",
    "queries, keys and values": "Rotary embedding or head norms: base, stretching, precision of sines and cosines.",
    "attention": "Attention: precision of the softmax, the format of the cache, the mask, the scale.",
    "attention output": "A matrix product: its weights, or split sums (tensor parallelism) and their order.",
    "residual sum after attention": "The residual sum: kept in another precision, or fused with the norm after it.",
    "MLP norm": "The norm: epsilon, the order of its sum, fused with the residual sum or not.",
    "MLP gate and up": "A matrix product: its weights, or the order of its sum.",
    "MLP activation": "The activation: computed in another precision, or an approximation.",
    "MLP down": "A matrix product: its weights, or split sums (tensor parallelism) and their order.",
    "mixture of experts": "The mixture: tokens sent to other experts, precision of the router, order of the sum.",
    "residual sum after the MLP": "The residual sum: kept in another precision.",
    "final norm": "The norm: epsilon, the order of its sum.",
    "logits": "The head: its weights, or the precision of logits.",
    "log-probs": "The head: its weights, the precision of logits, or the log-softmax.",
}


@dataclass(frozen=True)
class LayerRow:
    """One line of the table of growth."""

    name: str
    #: What stands for the layer: its last operation.
    last: Difference
    #: The operation that is furthest apart, relative to its size.
    furthest: Difference
    #: The quotient of relative RMS to that of the layer before; NaN without.
    growth: float


@dataclass(frozen=True)
class SwapRow:
    """One experiment."""

    name: str
    mean_abs: float
    k3: float
    #: How many times smaller k3 is than as it is; inf where nothing is left, NaN where nothing was.
    times_smaller: float


@dataclass(frozen=True)
class Finding:
    """What was found, ready to be shown."""

    title: str
    what: str
    differences: Sequence[Difference]
    skipped: Sequence[str] = ()
    swaps: Sequence[SwapRow] = ()
    #: The head's share of head and body, by k3; NaN where it is not known.
    head_share: float = math.nan
    advice: Sequence[str] = field(default=())

    @property
    def first(self) -> Difference | None:
        """The first operation that gave different bits."""
        return next((each for each in self.differences if each.differs), None)

    @property
    def headline(self) -> str:
        """The first divergent operation, in a sentence."""
        first = self.first
        if first is None:
            return "Nothing differs: both give the same bits in every operation."
        row, column = first.first
        return (f"First divergent operation: {named(first)}. {percent(first.differing / first.count)} of its elements "
                f"differ, the first at token {row:,}, element {column:,}; relative RMS "
                f"{number(first.relative_rms)}, largest difference {number(first.max_abs)}.")

    @property
    def layers(self) -> list[LayerRow]:
        """The table of growth: one line a layer, and one for what is before and after."""
        rows: list[LayerRow] = []
        for _, group in groupby(self.differences, key=lambda each: (each.layer, outside(each) and each.operation)):
            found = list(group)
            last = found[-1]
            before = next((row.last.relative_rms for row in rows[-1:] if row.last.columns == last.columns), 0.0)
            rows.append(LayerRow(
                last.operation if outside(last) else f"layer {last.layer}", last,
                max(found, key=lambda each: each.relative_rms),
                last.relative_rms / before if before > 0 else math.nan))
        return rows


def outside(difference: Difference) -> bool:
    """Whether an operation is of no layer."""
    return difference.operation in ("embedding", "final norm", "logits", "log-probs")


def named(difference: Difference) -> str:
    """An operation with its layer."""
    return difference.operation if outside(difference) else f"{difference.operation} of layer {difference.layer}"


def of_engines(title: str, trainer: str, rollout: str, location: Location) -> Finding:
    """What `lockstep.locate` found of two recipes."""
    layer_count = location.differences[-1].layer

    def measured(pair) -> lockstep.Mismatch:
        return lockstep.mismatch(*pair, location.mask, location.offsets)

    given = measured(location.log_probs["none"])
    names = {
        "none": "as they are", "head_alone": "heads alone differ", "body_alone": "bodies alone differ",
        "fp32_heads": "fp32 logits on both sides", "fp32_head_of_trainer": "fp32 logits of the trainer",
        "fp32_head_of_rollout": "fp32 logits of the rollout engine"}
    found = {name: measured(pair) for name, pair in location.log_probs.items()}
    rows = [_swap(names[name], found[name], given) for name in names]
    for (first, end), pair in location.layers.items():
        where = f"layers {first} to {end - 1}" if end - first > 1 else f"layer {first}"
        if end == layer_count:
            where = "everything" if first == 0 else f"layer {first} on, head too"
        rows.append(_swap(f"fp32: {where}", measured(pair), given))
    head, body = found["head_alone"].k3.value, found["body_alone"].k3.value
    share = head / (head + body) if head + body > 0 else math.nan
    tokens = int(location.mask.sum())
    finding = Finding(
        title, f"trainer {trainer}, rollout engine {rollout}; {tokens:,} tokens", location.differences,
        swaps=rows, head_share=share)
    return _advised(finding, _swap_advice(finding, trainer, rollout))


def of_dumps(title: str, first: str, second: str, compared) -> Finding:
    """What two dumps have in common."""
    rows = max(each.rows for each in compared.differences)
    finding = Finding(title, f"{first} against {second}; {rows:,} tokens", compared.differences, compared.skipped)
    return _advised(finding, [])


def _swap(name: str, found: lockstep.Mismatch, given: lockstep.Mismatch) -> SwapRow:
    k3, before = found.k3.value, given.k3.value
    times = math.nan if before == 0 else math.inf if k3 == 0 else before / k3
    return SwapRow(name, found.mean_abs_log_ratio.value, k3, times)


def _advised(finding: Finding, more: list[str]) -> Finding:
    first = finding.first
    if first is None:
        advice = ["If a log of these engines shows a mismatch, it comes from elsewhere: other weights, other tokens, "
                  "other sampling settings (lockstep diagnose)."]
    else:
        advice = [HINTS[first.operation]]
        if first.relative_rms > MORE_THAN_ROUNDING:
            advice.append("That is more than rounding makes: look for other weights, tokens or settings there first.")
    return Finding(finding.title, finding.what, finding.differences, finding.skipped, finding.swaps,
                   finding.head_share, advice + more)


def _swap_advice(finding: Finding, trainer: str, rollout: str) -> list[str]:
    given, by_name = finding.swaps[0], {row.name: row for row in finding.swaps}
    if given.k3 == 0:
        return []
    heads = by_name["fp32 logits on both sides"]
    lines = [
        f"fp32 logits on both sides would make KL {_times(heads.times_smaller)}." if heads.times_smaller >= WORTH else
        f"fp32 logits on both sides would gain little: {percent(1 - finding.head_share)} of head and body is the "
        "body's."]
    layers = [row for row in finding.swaps if row.name.startswith("fp32: ") and "everything" not in row.name]
    best = max(layers, key=lambda row: row.times_smaller, default=None)
    if best is not None and best.times_smaller >= WORTH:
        lines.append(f"{best.name} would make KL {_times(best.times_smaller)}.")
    if "bf16" in trainer or "bf16" in rollout:
        lines.append("FP16 on both sides has 3 bits more than BF16: KL between engines that differ by rounding alone is "
                     "about 64 times smaller there. The same recipe and order on both sides makes it 0.")
    return lines


def _times(value: float) -> str:
    return "0" if math.isinf(value) else f"{number(value)} times smaller"
