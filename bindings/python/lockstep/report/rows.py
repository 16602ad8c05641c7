"""The rows of the table: which statistics, in which group, in which words and units.

One list serves the terminal, the HTML report and the glossary under it, so that a statistic has the
same name everywhere. Keys are the fields of lockstep_mismatch in lockstep.h.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import lockstep

from .diagnosis import Diagnosis

Kind = Literal["count", "plain", "number", "share"]


@dataclass(frozen=True)
class Row:
    """One statistic."""

    key: str
    group: str
    name: str
    meaning: str
    """The formula in words and symbols, with its unit and source."""
    kind: Kind = "number"
    main: bool = False
    """Whether it is in the short table."""
    ratio: bool = False
    """Whether the quotient of two logs means something: a size, never signed and never near 0 or 1."""


SIZE, LOG_RATIO, KL = "Size", "Log ratio d = ln π − ln μ", "KL(μ ‖ π), nats a token"
PROBABILITY, RATIO, SEQUENCES = "Probabilities", "Ratio r = π/μ", "Sequences, S = sum of d"

ROWS = (
    Row("tokens", SIZE, "tokens", "tokens that count", "count", main=True),
    Row("masked_tokens", SIZE, "masked tokens", "tokens the loss mask leaves out (prompt, tools)", "count"),
    Row("excluded_tokens", SIZE, "excluded tokens",
        "counted tokens dropped because a log-prob is NaN or infinite", "count"),
    Row("sequences", SIZE, "sequences", "sequences with a token that counts", "count", main=True),
    Row("empty_sequences", SIZE, "empty sequences", "sequences without; they enter no mean", "count"),
    Row("mean_sequence_length", SIZE, "mean length", "counted tokens a sequence", "plain", main=True),
    Row("max_sequence_length", SIZE, "longest", "counted tokens of the longest sequence", "count"),

    Row("mean_abs_log_ratio", LOG_RATIO, "mean |d|", "mean of |d| over tokens, nats; rounding to m mantissa "
        "bits gives noise that goes with 2⁻ᵐ", main=True, ratio=True),
    Row("rms_log_ratio", LOG_RATIO, "RMS d", "square root of the mean of d², nats", ratio=True),
    Row("max_abs_log_ratio", LOG_RATIO, "largest |d|", "maximum of |d|, nats", main=True, ratio=True),
    Row("max_abs_sequence", LOG_RATIO, "… in sequence", "id of its sequence: a hash of where it stands, or its own id (the worst tokens are listed with their lines)", "count"),
    Row("max_abs_position", LOG_RATIO, "… at position", "its index in that sequence, prompt included",
        "count"),
    Row("mean_log_ratio", LOG_RATIO, "mean d", "mean of d, nats; minus k1"),
    Row("log_ratio_quantiles", LOG_RATIO, "quantiles of d",
        "0.1, 1, 5, 25, 50, 75, 95, 99 and 99.9 % of d, nats"),

    Row("k3", KL, "k3", "mean of exp(d) − 1 − d, at least 0 (Schulman 2020; prime-rl mismatch_kl, verl"
        " k3_kl); rounding noise goes with 2⁻²ᵐ", main=True, ratio=True),
    Row("k1", KL, "k1", "mean of −d: unbiased, noisy, may be negative (verl kl, Oat and Tinker v1)",
        main=True),
    Row("k2", KL, "k2", "mean of d²/2 (Oat and Tinker v2)", ratio=True),

    Row("mean_abs_prob_diff", PROBABILITY, "mean |π − μ|",
        "mean absolute difference of the token's two probabilities (verl rollout_probs_diff_mean)",
        main=True, ratio=True),
    Row("max_abs_prob_diff", PROBABILITY, "largest |π − μ|", "its maximum", ratio=True),
    Row("one_minus_pearson", PROBABILITY, "1 − Pearson",
        "one minus the correlation of the two probabilities, without cancellation", main=True, ratio=True),
    Row("pearson", PROBABILITY, "Pearson",
        "correlation of the two probabilities (verl rollout_actor_probs_pearson_corr)", "plain"),
    Row("trainer_perplexity", PROBABILITY, "trainer perplexity", "exp(−mean ln π) over tokens", "plain"),
    Row("rollout_perplexity", PROBABILITY, "rollout perplexity", "exp(−mean ln μ) over tokens", "plain"),
    Row("perplexity_ratio", PROBABILITY, "perplexity ratio", "trainer over rollout perplexity", "plain"),
    Row("mean_rollout_log_prob", PROBABILITY, "mean ln μ",
        "nats; minus the entropy of the rollout policy, as its samples show it"),
    Row("share_differing", PROBABILITY, "bits differ", "tokens whose two log-probs are not the same bits",
        "share", main=True),

    Row("mean_exp_abs_log_ratio", RATIO, "mean exp|d|",
        "multiplicative probability error (NeMo RL token_mult_prob_error); 1 without mismatch", main=True),
    Row("share_outside_mlperf", RATIO, "outside [0.999, 1.002]",
        "tokens with r outside the bounds that MLPerf sets for whole sequences", "share"),
    Row("share_outside_1pct", RATIO, "outside ±1 %", "tokens with r outside [0.99, 1.01]", "share"),
    Row("share_outside_5pct", RATIO, "outside ±5 %", "tokens with r outside [0.95, 1.05]", "share"),
    Row("share_outside_10pct", RATIO, "outside ±10 %", "tokens with r outside [0.9, 1.1]", "share",
        main=True),
    Row("mean_ratio", RATIO, "mean r",
        "1 in expectation, as μ drew the tokens; other values mean that it did not (truncation, temperature)",
        main=True),
    Row("chi_square", RATIO, "chi²", "mean of r² − 1; a sample value, may be negative (verl chi2_token)"),
    Row("ess", RATIO, "ESS, tokens", "(sum r)² / (n sum r²): share of effective samples with token weights",
        "plain"),

    Row("sequence_log_ratio", SEQUENCES, "mean S",
        "nats a sequence; minus the KL of the paper's figure (its k1 estimate)"),
    Row("sequence_log_ratio_std", SEQUENCES, "std of S", "sample standard deviation, nats", main=True,
        ratio=True),
    Row("slope_per_1000", SEQUENCES, "slope of S",
        "least-squares slope of S on length, nats per 1,000 tokens, as in the paper's figure", main=True),
    Row("sequence_ess", SEQUENCES, "ESS, sequences", "share of effective samples with weights exp(S)",
        "plain", main=True),
    Row("sequence_mean_log_ratio", SEQUENCES, "mean of mean d", "each sequence weighs the same, nats"),
    Row("sequence_mean_exp_abs", SEQUENCES, "mean of mean exp|d|", "each sequence weighs the same"),
    Row("share_sequences_outside_mlperf", SEQUENCES, "outside [0.999, 1.002]",
        "sequences with exp(mean d) outside the bounds of MLPerf's sequence mask", "share"),
    Row("share_sequences_masked", SEQUENCES, "mean exp|d| above 2",
        "sequences that NeMo RL's recipes drop (seq_logprob_error_threshold)", "share"),
)


@dataclass(frozen=True)
class Cell:
    """A value as text; `error` is its standard error, "" where it has none."""

    value: str
    error: str = ""
    unit: str = ""
    """What follows both: " %", "×", a power of ten."""

    def __str__(self) -> str:
        if not self.error:
            return self.value + self.unit
        if self.unit.startswith("e"):
            return f"({self.value} ± {self.error}){self.unit}"
        return f"{self.value} ± {self.error}{self.unit}"


@dataclass(frozen=True)
class TableRow:
    """A row with one cell a log, and the quotient of the two where there are exactly two."""

    row: Row
    cells: tuple[Cell, ...]
    ratio: Cell | None


NOTHING = Cell("–")


def table(diagnoses: Sequence[Diagnosis], *, every: bool = False) -> list[TableRow]:
    """The rows for these logs: the main ones, or all.

    A row that is not a main one is shown all the same where it says that something was left out.
    """
    rows = []
    for row in ROWS:
        values = [_statistic(diagnosis.statistics, row.key) for diagnosis in diagnoses]
        left_out = row.key in ("excluded_tokens", "empty_sequences", "share_sequences_masked") and any(
            _value(value) > 0 for value in values)
        if every or row.main or left_out:
            ratio = None
            if len(diagnoses) == 2:
                ratio = quotient(values[0], values[1]) if row.ratio else Cell("")
            rows.append(TableRow(row, tuple(cell(value, row.kind) for value in values), ratio))
    return rows


def _statistic(statistics: lockstep.Mismatch, key: str):
    """A field; with its standard error where that has a field of its own."""
    value, error = getattr(statistics, key), getattr(statistics, key + "_standard_error", None)
    return value if error is None else lockstep.Estimate(value, error)


def cell(value, kind: Kind) -> Cell:
    """A statistic as text: few digits, as many as its standard error supports."""
    if kind == "count":
        return Cell(f"{value:,}") if value >= 0 else NOTHING
    if isinstance(value, lockstep.Estimate):
        if kind == "share":
            return _with_error(100 * value.value, 100 * value.standard_error, " %", plain=True)
        return _with_error(value.value, value.standard_error)
    if isinstance(value, tuple):
        return Cell(" ".join(number(item, 2) for item in value))
    return Cell(number(value, 4 if kind == "plain" else 3))


def quotient(first, second) -> Cell:
    """first / second, with the standard error of two independent estimates (delta method)."""
    a, b = _value(first), _value(second)
    if not (math.isfinite(a) and math.isfinite(b)) or b == 0:
        return NOTHING
    ratio = a / b
    errors = [getattr(value, "standard_error", math.nan) / size if size else math.nan
              for value, size in ((first, a), (second, b))]
    error = abs(ratio) * math.hypot(*errors)
    return _with_error(ratio, error, "×", plain=True)


def number(value: float, digits: int = 3) -> str:
    """A number with `digits` significant ones: 0.0362, 1.37e-3, 12,345."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    mantissa, power = f"{abs(value):.{digits - 1}e}".split("e")
    exponent = int(power)
    if _is_plain(exponent):
        text = f"{float(f'{mantissa}e{power}'):,.{max(0, digits - 1 - exponent)}f}"
    else:
        text = f"{mantissa}e{exponent}"
    return "−" + text if value < 0 else text


def percent(share: float) -> str:
    """A share as text, to two digits; what is below 0.1 % is not told apart."""
    if 0 < share < 1e-3:
        return "< 0.1 %"
    return f"{number(100 * share, 2)} %"


def sure(confidence: float) -> str:
    """A confidence as text: nothing is certain."""
    return percent(confidence) if confidence < 0.99 else "> 99 %"


def _is_plain(exponent: int) -> bool:
    """Whether 10^exponent is written out, not as a power."""
    return -2 <= exponent <= 6


def _value(value) -> float:
    return float(getattr(value, "value", value))


def _with_error(value: float, error: float, unit: str = "", plain: bool = False) -> Cell:
    """Value and error on one scale, rounded at the error's last digit (its second after a leading 1)."""
    if not math.isfinite(value):
        return Cell(number(value))
    if not math.isfinite(error) or error == 0:
        return Cell(number(value), unit=unit)
    exponent = math.floor(math.log10(max(abs(value), error)))
    scale = 0 if plain or _is_plain(exponent) else exponent
    value, error = value / 10.0**scale, error / 10.0**scale
    mantissa, power = f"{error:.1e}".split("e")
    places = max(0, -int(power) + (1 if mantissa < "2" else 0))
    text = f"{abs(value):,.{places}f}"
    sign = "−" if value < 0 and float(text.replace(",", "")) else ""
    return Cell(sign + text, f"{error:,.{places}f}", unit if scale == 0 else f"e{scale}")
