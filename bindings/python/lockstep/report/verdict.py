"""The verdict in words: how large the mismatch is, by whose measure, what made it, and what to do.

Every judgement of size is against a published threshold, named with its source, and takes the standard error
into account: "above" and "below" mean by at least two standard errors. Causes are judged by the core from the
log alone (docs/Causes.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import lockstep

from .causes import Explanation, explain
from .diagnosis import Diagnosis
from .rows import number, percent

Level = Literal["unknown", "exact", "small", "raised", "severe"]

# Below these, standard errors clustered by sequence are not to be trusted, and no verdict is given.
FEWEST_TOKENS = 500
FEWEST_SEQUENCES = 10
STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class Threshold:
    """A published limit for one statistic."""

    key: str
    name: str
    low: float
    high: float
    """The statistic is fine in [low, high]."""
    level: Level
    """What leaving the interval means: "raised" (look into it) or "severe" (the source calls it broken)."""
    source: str


_VERL, _VERL_FAQ = "verl, rollout_corr.md", "verl, faq.rst"
_NEMO, _NEMO_MODELS = "NeMo RL, grpo.md", "NeMo RL, adding-new-models.md"

# What a `source` that stands on the web is called here, and where it is.
SOURCES = {
    _VERL: "https://github.com/verl-project/verl/blob/main/docs/algo/rollout_corr.md",
    _NEMO: "https://github.com/NVIDIA-NeMo/RL/blob/main/docs/guides/grpo.md#metrics",
    _NEMO_MODELS: "https://github.com/NVIDIA-NeMo/RL/blob/main/docs/adding-new-models.md",
    _VERL_FAQ: "https://github.com/verl-project/verl/blob/main/docs/faq/faq.rst",
    "IcePop": "https://arxiv.org/abs/2510.18855",
    "Qi et al. 2025": "https://arxiv.org/abs/2510.26788",
}

THRESHOLDS = (
    Threshold("k3", "k3", 0, 1e-3, "raised", _NEMO),
    Threshold("mean_exp_abs_log_ratio", "Mean exp|d|", 0, 1.05, "raised", _NEMO_MODELS),
    Threshold("mean_abs_prob_diff", "Mean |π − μ|", 0, 0.005, "raised", _VERL_FAQ),
    Threshold("mean_abs_prob_diff", "Mean |π − μ|", 0, 0.01, "severe", _VERL_FAQ),
    Threshold("k1", "k1", -0.1, 0.1, "severe", _VERL),
    Threshold("chi_square", "chi²", -math.inf, 1, "severe", _VERL),
    Threshold("mean_ratio", "Mean r", 0.5, 2, "severe", _VERL),
    Threshold("ess", "ESS of token weights", 0.3, 1, "severe", _VERL),
)

# IcePop's interval, which OpenRLHF and NeMo RL use too: tokens outside are dropped there.
ICEPOP = (0.5, 5.0)

# What two engines that do the same have; all other causes are faults of a set-up.
HARMLESS = ("rounding", "unknown")

LENGTHS = (256, 1_024, 4_096, 16_384, 65_536)


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    level: Level
    text: str
    source: str = ""
    """Whose threshold or observation it rests on; "" where it is arithmetic on the log alone."""


@dataclass(frozen=True)
class Suspect:
    """A cause that was found."""

    name: str
    confidence: float
    """How strongly the log shows it, from 0.5 to 1."""
    score: float
    """About which share of the sum of d² it explains."""
    explanation: Explanation


@dataclass(frozen=True)
class Verdict:
    """What to make of one log."""

    level: Level
    headline: str
    findings: tuple[Finding, ...]
    causes: tuple[Suspect, ...]
    """The causes that were found, the likeliest and largest first."""
    advice: tuple[str, ...]
    noise_bits: float
    """Mantissa bits whose rounding the noise looks like; NaN without noise or tokens."""


def judge(diagnosis: Diagnosis) -> Verdict:
    """The verdict on one log."""
    statistics = diagnosis.statistics
    if statistics.tokens == 0:
        return Verdict("unknown", "No token counts in this log: there is nothing to say.", (), (),
                       ("Look at the loss mask: it leaves every token out.",), math.nan)
    if statistics.share_differing.value == 0:
        return Verdict("exact", "Trainer and rollout log-probs are the same bits on every token.", (), (), (
            "Nothing needs correcting. If you did not expect equality, make sure that the two columns were"
            " computed by two engines and that one is not a copy of the other.",), math.nan)
    enough = statistics.tokens >= FEWEST_TOKENS and statistics.sequences >= FEWEST_SEQUENCES
    crossed, close = _thresholds(statistics, enough)
    suspects = tuple(Suspect(cause.name, cause.confidence, cause.score, explain(cause))
                     for cause in diagnosis.causes if cause.found)
    faults = [suspect for suspect in suspects if suspect.name not in HARMLESS]
    level: Level = "small"
    if any(finding.level == "raised" for finding in crossed) or faults:
        level = "raised"
    if any(finding.level == "severe" for finding in crossed):
        level = "severe"
    if not enough:
        level = "unknown"
    findings = (*crossed, *close, *_tails(diagnosis), *_sequences(diagnosis, enough))
    return Verdict(level, _headline(diagnosis, level, crossed, faults, close), findings, suspects,
                   _advice(diagnosis, level, faults), diagnosis.evidence.noise_bits)


def compare(first: Diagnosis, second: Diagnosis) -> str:
    """What can be said of two logs beside each other."""
    a, b = first.statistics, second.statistics
    if min(a.tokens, b.tokens) < FEWEST_TOKENS or min(a.sequences, b.sequences) < FEWEST_SEQUENCES:
        return (f"Not enough to compare: it takes {FEWEST_TOKENS} tokens and {FEWEST_SEQUENCES} sequences in"
                " both logs.")
    sizes = (a.mean_abs_log_ratio.value, b.mean_abs_log_ratio.value)
    if max(sizes) == 0:
        return "Both logs are exact: the same bits on every token."
    if min(sizes) == 0:
        exact, other = (first, second) if sizes[0] == 0 else (second, first)
        return f"{exact.label} is exact, the same bits on every token; {other.label} is not."
    if sizes[0] >= sizes[1]:
        more, less = first, second
    else:
        more, less, a, b = second, first, b, a
    distance = a.mean_abs_log_ratio.value / b.mean_abs_log_ratio.value
    divergence = a.k3.value / b.k3.value
    bits, bits_by_kl = math.log2(distance), math.log2(divergence) / 2
    gap = abs(a.mean_abs_log_ratio.value - b.mean_abs_log_ratio.value)
    error = math.hypot(a.mean_abs_log_ratio.standard_error, b.mean_abs_log_ratio.standard_error)
    if gap < STANDARD_ERRORS * error:
        return (f"{more.label} and {less.label} cannot be told apart: their mean |d| differ by less than"
                f" {STANDARD_ERRORS:g} standard errors.")
    text = (f"{more.label} has {number(distance, 2)} times the mean |d| of {less.label} and"
            f" {number(divergence, 2)} times its KL (k3). ")
    if abs(bits - bits_by_kl) > 0.5:
        return text + ("The two do not go together as |d| ~ 2⁻ᵐ and KL ~ 2⁻²ᵐ would have it: rounding alone"
                       " does not explain the difference, a few tokens do. Look at the largest |d|.")
    text += (f"Both fit one law, |d| ~ 2⁻ᵐ and KL ~ 2⁻²ᵐ, with {number((bits + bits_by_kl) / 2, 2)} mantissa"
             " bits between them")
    if abs(bits - 3) < 0.5 and abs(bits_by_kl - 3) < 0.5:
        return text + ("; 3 bits, factors of 8 and 64, lie between BF16 and FP16, and that is what it looks"
                       " like.")
    return text + "."


def _thresholds(statistics: lockstep.Mismatch, enough: bool) -> tuple[list[Finding], list[Finding]]:
    """(limits crossed, limits too close to call)."""
    crossed: dict[str, Finding] = {}
    close = []
    for threshold in THRESHOLDS:
        measured = getattr(statistics, threshold.key)
        value = getattr(measured, "value", measured)
        error = getattr(measured, "standard_error", 0.0)
        margin = STANDARD_ERRORS * error if enough else 0.0
        limit = threshold.low if value < (threshold.low + threshold.high) / 2 else threshold.high
        outside = max(threshold.low - value, value - threshold.high)
        side = "below" if limit == threshold.low else "above"
        text = f"{threshold.name} is {number(value)}, {side} {_limit(limit)}"
        if outside > margin:
            crossed[threshold.key] = Finding(threshold.level, text, threshold.source)
        elif outside > -margin and enough:
            close.append(Finding("small", f"{threshold.name} is {number(value)}, within two standard errors"
                                          f" of {_limit(limit)}: too close to call", threshold.source))
    return list(crossed.values()), close


def _tails(diagnosis: Diagnosis) -> list[Finding]:
    """Tokens far out, to the width of the sketch's bins, under 1 % of the limit."""
    low, high = ICEPOP
    bins = diagnosis.profile("log_ratio")
    outside = int(bins["tokens"][(bins["upper"] <= math.log(low)) | (bins["lower"] > math.log(high))].sum())
    findings = []
    if outside:
        share = percent(outside / diagnosis.statistics.tokens)
        findings.append(Finding(
            "small", f"{_many(outside, 'token has', 'tokens have')} r outside [{low:g}, {high:g}] ({share})"
            ", where IcePop drops them", "IcePop"))
    masked = diagnosis.statistics.share_sequences_masked.value
    if masked > 0:
        findings.append(Finding("small", f"{percent(masked)} of sequences have mean exp|d| above 2"
                                         ", where NeMo RL's recipes drop them", _NEMO))
    return findings


def _sequences(diagnosis: Diagnosis, enough: bool) -> list[Finding]:
    """How far weights of whole sequences carry."""
    weight = diagnosis.sequence_weight
    if not enough or not weight.variance_per_token > 0:
        return []
    statistics = diagnosis.statistics
    now, kept = round(statistics.mean_sequence_length), percent(statistics.sequence_ess)
    ahead = next((each for each in LENGTHS if each > 1.5 * statistics.max_sequence_length), LENGTHS[-1])
    return [Finding(
        "small", f"Weights of whole sequences, exp(S), keep {kept} of their effective samples at"
        f" {now:,} tokens (mean length); with this noise half are left at about {_tokens(weight.half_life)} tokens and"
        f" {percent(weight.ess(ahead))} at {ahead:,}", "extrapolated: tokens taken as independent")]


def _limit(limit: float) -> str:
    """A limit in the notation of the value beside it."""
    return f"{limit:g}" if abs(limit) >= 0.01 else number(limit, 1)


def _many(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _tokens(length: float) -> str:
    """A length that is known to two digits, as an integer."""
    if not math.isfinite(length):
        return "∞"
    size = 10 ** max(0, math.floor(math.log10(max(length, 1))) - 1)
    return f"{round(length / size) * size:,}"


def _headline(diagnosis: Diagnosis, level: Level, crossed: Sequence[Finding], faults: Sequence[Suspect],
              close: Sequence[Finding]) -> str:
    statistics = diagnosis.statistics
    if level == "unknown":
        return (f"Not enough to say: {statistics.tokens:,} tokens in {statistics.sequences:,} sequences; a"
                f" verdict takes {FEWEST_TOKENS} tokens and {FEWEST_SEQUENCES} sequences.")
    if level == "severe":
        return "Severe mismatch: beyond the limits at which published systems stop or call it a defect."
    if level == "small":
        published = "below every published limit" if not close else "above no published limit"
        return f"Small mismatch: {published}."
    if crossed:
        return "Raised mismatch: above limits at which published systems say to look into it."
    fault = faults[0].explanation.title
    return f"The mismatch is small, but not rounding alone: {fault[0].lower()}{fault[1:]}."


def _advice(diagnosis: Diagnosis, level: Level, faults: Sequence[Suspect]) -> tuple[str, ...]:
    """What to do beside what each cause asks for."""
    length = _tokens(diagnosis.sequence_weight.half_life)
    advice = []
    if level == "unknown":
        return ("Log more sequences. What is listed here is what these few show, without an error bar.",)
    if faults:
        advice.append("First mend what made it: a correction hides a fault and does not undo it. Until then, drop tokens"
                      " with r outside [0.5, 5] (IcePop) and watch the share that is dropped.")
    elif level != "small":
        advice.append(f"Correct per token (truncated importance weights, C = 2); weights of whole sequences lose"
                      f" half of their samples at about {length} tokens here. lockstep advise compares corrections.")
    else:
        advice.append("No correction is needed for rounding. Token weights truncated at 2 cost nothing here"
                      " and guard against what comes later.")
    advice.append("Watch it at every step (lockstep.Monitor, lockstep watch): in the paper's BF16 runs the KL left its"
                  " floor some hundred steps before the reward fell (Qi et al. 2025; read off a figure, one seed).")
    return tuple(advice)
