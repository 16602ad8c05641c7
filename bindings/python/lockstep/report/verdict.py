"""The verdict in words: what the numbers mean, by whose measure, and what to do.

Every judgement is against a published threshold, named with its source, and takes the standard error
into account: "above" and "below" mean by at least two standard errors. What noise "looks like" is a
comparison with the 2⁻ᵐ law and says no more than that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import lockstep

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
    "TRL PR 7269": "https://github.com/huggingface/trl/pull/7269",
    "MaxText PR 5231": "https://github.com/AI-Hypercomputer/maxtext/pull/5231",
    "IcePop": "https://arxiv.org/abs/2510.18855",
    "MLPerf Training": "https://github.com/mlcommons/training",
    "Fast-LLM PR 525": "https://github.com/ServiceNow/Fast-LLM/pull/525",
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

# mean |d| = NOISE_ABS 2⁻ᵐ and k3 = NOISE_KL 2⁻²ᵐ. The constants are those of this repository's
# examples/data, where m is known (BF16 7, FP16 10): 4.64 and 4.78; 22.5 and 24.1. Models, lengths and
# engines move mean |d| by about a factor of two, one bit (Fast-LLM PR 525: 0.5B and 7B, three engines).
NOISE_ABS = 4.7
NOISE_KL = 23.2
MOST_EXCESS = 4.0  # k3 over the law's, above which a few tokens carry it: one bit is a factor of 4
FORMATS = ((3.0, "FP8 E4M3"), (7.0, "BF16"), (10.0, "FP16"))

LENGTHS = (256, 1_024, 4_096, 16_384, 65_536)


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    level: Level
    text: str
    source: str = ""
    """Whose threshold or observation it rests on; "" where it is arithmetic on the log alone."""


@dataclass(frozen=True)
class Verdict:
    """What to make of one log."""

    level: Level
    headline: str
    findings: tuple[Finding, ...]
    advice: tuple[str, ...]
    noise_bits: float
    """Mantissa bits that noise of this mean |d| looks like; NaN without noise or tokens."""


def judge(diagnosis: Diagnosis) -> Verdict:
    """The verdict on one log."""
    statistics = diagnosis.statistics
    if statistics.tokens == 0:
        return Verdict("unknown", "No token counts in this log: there is nothing to say.", (),
                       ("Look at loss_mask: it leaves every token out.",), math.nan)
    stored = _stored(diagnosis)
    if statistics.share_differing.value == 0:
        return Verdict("exact", "Trainer and rollout log-probs are the same bits on every token.", stored, (
            "Nothing needs correcting. If you did not expect equality, make sure that the two columns were"
            " computed by two engines and that one is not a copy of the other.",), math.nan)
    enough = statistics.tokens >= FEWEST_TOKENS and statistics.sequences >= FEWEST_SEQUENCES
    crossed, close = _thresholds(statistics, enough)
    biased = _biased(statistics, enough)
    bits = math.log2(NOISE_ABS / statistics.mean_abs_log_ratio.value)
    excess = statistics.k3.value / (NOISE_KL * 4 ** -bits)
    tails = _tails(diagnosis)
    sequences = _sequences(diagnosis, enough)
    level: Level = "small"
    for finding in (*crossed, *biased, *stored):
        if finding.level == "severe" or (finding.level == "raised" and level != "severe"):
            level = finding.level
    if not enough:
        level = "unknown"
    findings = (*crossed, *close, *biased, *stored, *_noise(bits, excess, enough), *tails, *sequences)
    return Verdict(level, _headline(diagnosis, level, crossed, biased, stored, close), findings,
                   _advice(diagnosis, level, bits, excess, biased), bits)


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


def _biased(statistics: lockstep.Mismatch, enough: bool) -> list[Finding]:
    """Whether the mean ratio is off 1, which rounding cannot do."""
    off = statistics.mean_ratio.value - 1
    if not enough or abs(off) < max(0.005, 2 * STANDARD_ERRORS * statistics.mean_ratio.standard_error):
        return []
    return [Finding(
        "raised", f"Mean r is {number(statistics.mean_ratio.value, 4)}, not 1. Rounding does not do that: the"
        " tokens were not drawn from the distribution whose log-probs are in the rollout column. Suspects:"
        " top-p, top-k or min-p on one side only (mean r is then the kept mass), another temperature,"
        " other weights", "TRL PR 7269")]


def _stored(diagnosis: Diagnosis) -> tuple[Finding, ...]:
    """What the stored values give away."""
    checks, findings = diagnosis.checks, []
    for side, form in (("trainer", checks.trainer_stored_as), ("rollout", checks.rollout_stored_as)):
        if form is not None:
            findings.append(Finding(
                "raised", f"The {side} log-probs lie on the {form.upper()} grid: they were computed or stored"
                f" in 16 bits. Part of the mismatch is that rounding; keep log-probs in float32"))
    above = checks.trainer_above_zero + checks.rollout_above_zero
    if above:
        findings.append(Finding(
            "raised", f"{_many(above, 'log-prob is', 'log-probs are')} above 0, as no log of a probability"
            " is: the log-softmax ran in 16 bits; run it in float32", "MaxText PR 5231"))
    if checks.at_vllm_floor:
        findings.append(Finding(
            "severe", f"{_many(checks.at_vllm_floor, 'rollout log-prob is', 'rollout log-probs are')} -9999,"
            " vLLM's mark for one that it did not compute: mask these tokens out", "vLLM"))
    return tuple(findings)


def _noise(bits: float, excess: float, enough: bool) -> list[Finding]:
    """What the noise looks like, by the 2⁻ᵐ law; `excess` is k3 over what the law gives for these bits."""
    if not enough:
        return []
    law = "mean |d| ~ 2⁻ᵐ, calibrated on examples/data; good to about one bit"
    coarsest, finest = FORMATS[0], FORMATS[-1]
    nearest = min(FORMATS, key=lambda form: abs(form[0] - bits))
    if abs(nearest[0] - bits) <= 1:
        seen = f"{nearest[1]} has {nearest[0]:.0f}"
    elif bits < coarsest[0]:
        seen = (f"no format in use is as coarse ({coarsest[1]} has {coarsest[0]:.0f}), so this is not"
                " rounding alone")
    elif bits > finest[0]:
        seen = (f"finer than {finest[1]}'s {finest[0]:.0f}, as where neither engine rounds all it keeps to 16"
                " bits")
    else:
        below = max(form for form in FORMATS if form[0] < bits)
        above = min(form for form in FORMATS if form[0] > bits)
        seen = (f"between {below[1]}'s {below[0]:.0f} and {above[1]}'s {above[0]:.0f}, as where only one of"
                " the two engines rounds coarsely")
    text = f"The noise looks like {number(bits, 2)} mantissa bits: {seen}"
    findings = [Finding("small", text, law)]
    if excess > MOST_EXCESS:
        findings.append(Finding(
            "small", f"k3 is {number(excess, 2)} times what rounding noise of this mean |d| gives: a few"
            " tokens carry it. Rounding is not the whole story; look at the worst tokens", law))
    return findings


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
                                         " and would be masked", "MLPerf Training"))
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


def _headline(diagnosis: Diagnosis, level: Level, crossed: Sequence[Finding], biased: Sequence[Finding],
              stored: Sequence[Finding], close: Sequence[Finding]) -> str:
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
    if biased:
        return "Raised mismatch: the mean ratio of trainer to rollout is off 1, which rounding does not do."
    return "The mismatch is small, but the stored log-probs have a defect."


def _advice(diagnosis: Diagnosis, level: Level, bits: float, excess: float,
            biased: Sequence[Finding]) -> tuple[str, ...]:
    length = _tokens(diagnosis.sequence_weight.half_life)
    advice = []
    if level == "unknown":
        return ("Log more sequences. What is listed here is what these few show, without an error bar.",)
    if biased:
        advice.append("Make both engines score the same distribution: the temperature and the kept set"
                      " (top-p, top-k) of the sampler in the trainer too, or sample without truncation.")
    if level == "severe":
        if bits < 5.5:
            advice.append("Look for a defect before correcting: stale weights in the rollout engine, another"
                          " chat template or tokenisation, masks off by one, an adapter that one side lacks."
                          " The worst tokens in the report show where to begin.")
        advice.append("Until it is found, drop tokens with r outside [0.5, 5] (IcePop) and watch the share"
                      " that is dropped.")
    elif level == "raised":
        if excess > MOST_EXCESS:
            advice.append("Find out what is special about the worst tokens before changing formats; until"
                          " then drop tokens with r outside [0.5, 5] (IcePop).")
        elif bits < 8.5:
            advice.append("Run both engines in FP16 with loss scaling: it takes mean |d| down about 8 times"
                          " and KL about 60 times where BF16 rounding is the cause (Qi et al. 2025). If you"
                          " stay in BF16, keep the head and the log-softmax in float32 in both engines.")
        advice.append(f"Correct per token (truncated importance weights, C = 2); weights of whole sequences"
                      f" lose half of their samples at about {length} tokens here.")
    else:
        advice.append("No correction is needed for rounding. Token weights truncated at 2 cost nothing here"
                      " and guard against what comes later.")
    advice.append("Log k3 at every step and act when it doubles: in the paper's BF16 runs the KL rose some"
                  " hundred steps before the reward fell (Qi et al. 2025; read off a figure, one seed).")
    return tuple(advice)
