"""Causes in words: what each is, why this log shows it, and what to do about it.

The rules are in the core (docs/Causes.md); here is only prose around their figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .._causes import Cause, CauseEvidence


@dataclass(frozen=True)
class Explanation:
    """A cause in words."""

    title: str
    what: str
    why: str
    """The evidence, with its numbers."""
    advice: tuple[str, ...]
    """What to do, the likeliest first."""


def explain(cause: Cause) -> Explanation:
    """Puts a cause in words."""
    return _EXPLAIN[cause.name](cause.evidence)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _many(count: int, one: str) -> str:
    return f"{count:,} {one}{'' if count == 1 else 's'}"


def _fit(e: CauseEvidence) -> str:
    return (f"d is proportional to ln q + H with H = {e.entropy_scale:.2g} (1 - p), as the entropy of the"
            f" distribution would have it: this explains {_percent(e.slope_r2)} of the variance (slope"
            f" {e.slope:+.3g}, t = {e.slope_t:.0f}). ")


def _temperature(e: CauseEvidence) -> Explanation:
    return Explanation(
        "Different temperatures",
        "Trainer and rollout divide the same logits by different temperatures.",
        _fit(e) + f"Mean r is {1 + e.mean_ratio_excess:.4f}, 1 within its error: the rollout's log-probs are those it"
        f" sampled from. The trainer's log-probs are those of about {1 + e.slope:.3g} times the rollout's inverse"
        " temperature.",
        (f"Divide the trainer's logits by the sampling temperature before the log-softmax. If it does not divide at all,"
         f" that temperature is about {1 + e.slope:.2g}.",
         "TRL, NeMo RL, verl: the temperature of the loss and of the sampler must come from one setting.",
         "If the trainer does scale, check that a default (generation_config.json) does not set another temperature in"
         " the rollout engine."))


def _raw(e: CauseEvidence) -> Explanation:
    return Explanation(
        "Raw rollout log-probs",
        "The rollout logged log-probs from before its temperature was applied; the trainer scores what was sampled from.",
        _fit(e) + f"Mean r is {1 + e.mean_ratio_excess:.4f}, above 1 by {e.mean_ratio_t:.1f} standard errors: the"
        " tokens were not drawn from the distribution whose log-probs were logged.",
        ("vLLM: logprobs_mode=\"processed_logprobs\" (the default logs raw ones).",
         "SGLang, TensorRT-LLM: ask for the log-probs after sampling parameters, or divide what they return.",
         f"If the trainer is right, the sampling temperature is about {1 / (1 + e.slope):.2g}."
         if e.slope > -1 else "Compare the sampling parameters of both engines.",
         "Do not correct with importance weights until this is fixed: they would be of the wrong distribution."))


def _truncation(e: CauseEvidence) -> Explanation:
    below = e.mean_ratio_excess < 0
    zeros = e.rollout_zeros - e.rollout_zeros_far
    return Explanation(
        "Truncated sampling on one side",
        ("The rollout's log-probs are renormalised over what top-p, top-k or min-p kept; the trainer's are not."
         if below else
         "The trainer renormalises over the kept tokens, or the rollout logged log-probs from before truncation."),
        f"{_percent(e.share_up)} of the differing tokens have d > 0, and mean r is {1 + e.mean_ratio_excess:.4f}"
        f" ({abs(e.mean_ratio_t):.0f} standard errors off 1): "
        + ("the mean kept mass. " if below else "one over the kept mass. ")
        + (f"{_many(zeros, 'rollout log-prob')} are exactly 0, where one token was left. " if zeros and below else ""),
        ("Sample with top_p = 1, top_k = -1 (vLLM) or 0 (Hugging Face), min_p = 0: what RL without truncation assumes.",
         "Or record the kept set and score over it on both sides (keep-sampling-mask in prime-rl, SkyRL; top_k and top_p"
         " of lockstep.log_probs). Recomputing it from the trainer's logits may keep other tokens.",
         "Look into generation_config.json: several models ship top_p and top_k that engines apply unasked."))


def _stored(e: CauseEvidence) -> Explanation:
    # Every value of BF16 is one of FP16's significands, and one in eight the other way round.
    found = [f"{_percent(max(bf16, fp16))} of the {side} log-probs are values of {'BF16' if 2 * bf16 > fp16 else 'FP16'}"
             for side, bf16, fp16 in (("trainer", e.trainer_bf16_share, e.trainer_fp16_share),
                                      ("rollout", e.rollout_bf16_share, e.rollout_fp16_share))
             if max(bf16, fp16) > 0.02]
    above = e.trainer_above_zero + e.rollout_above_zero
    if above:
        found.append(f"{_many(above, 'log-prob')} above 0, which a log-softmax in 16 bits makes")
    share = f". Their rounding makes {_percent(e.stored_share)} of the sum of d²" if e.stored_share else ""
    return Explanation(
        "Log-probs in 16 bits", "A column of log-probs was computed, sent or stored in a 16-bit format.",
        "; ".join(found) + share + ".",
        ("Take the log-softmax in float32 and keep its result in float32 until the loss: 4 bytes a token cost nothing.",
         "Usual places: autocast around the log-softmax, .to(dtype) on the result, a 16-bit tensor in the batch that"
         " crosses processes."))


def _misalignment(e: CauseEvidence) -> Explanation:
    shifted = e.sequences_ahead + e.sequences_behind
    if shifted:
        side = "next" if e.sequences_ahead >= e.sequences_behind else "previous"
        why = (f"In {_many(shifted, 'sequence')} the trainer's log-probs fit the rollout's {side} token at least twice"
               " as well as its own. These sequences are left out of the other figures.")
    else:
        why = (f"The probabilities of the two columns have a correlation of {e.pearson:.2f}: they are not of the same"
               " tokens.")
    return Explanation(
        "Columns that do not belong together", "Tokens or sequences of the two columns are out of step.", why,
        ("Log-prob t must be of token t + 1's logits row t on both sides: look for a missing or doubled shift"
         " (logits[:, :-1] with labels[:, 1:]).",
         "Compare token ids of both columns; re-tokenising a decoded text gives other tokens. Pass ids, not text.",
         "If whole sequences are swapped, sort both by one key before joining: micro-batches may come back reordered.",
         "Then ask again: where columns are out of step, nothing else can be told."))


def _ends(e: CauseEvidence) -> Explanation:
    found = []
    for side, marks, zeros in (("trainer", e.trainer_marks, e.trainer_zeros_far),
                               ("rollout", e.rollout_marks, e.rollout_zeros_far)):
        if marks:
            found.append(f"{_many(marks, side + ' log-prob')} of -1000 or less: a mark for \"not computed\"")
        if zeros:
            found.append(f"{_many(zeros, side + ' log-prob')} of 0 where the other side's is below -1: a fill value")
    for name, far, count in (("first", e.first_far, e.first_tokens), ("last", e.last_far, e.last_tokens)):
        if count and far / count > max(0.01, 2 * e.far_share):
            found.append(f"{far:,} of {count:,} {name} tokens are far off ({_percent(e.far_share)} of all others are)")
    return Explanation(
        "First or last tokens, or the mask", "Tokens at the ends of responses differ, or tokens count that should not.",
        "; ".join(found) + "." if found else "No single token shows it.",
        ("Check that the mask covers sampled tokens only: not the prompt, not padding, not tool output.",
         "Last token: does the rollout return a log-prob for the stop token, and is it the one that the trainer scores?"
         " Does the trainer score EOS where a stop string ended the response?",
         "First token: both sides must see the same prompt, with one BOS and the same chat template.",
         "vLLM reports -9999 for log-probs it did not compute: mask them."))


def _outliers(e: CauseEvidence) -> Explanation:
    return Explanation(
        "A few one-sided outliers",
        "A few tokens are far beyond all others, most of them on one side: no rounding does that.",
        f"{e.far_down:,} tokens with d < 0 and {e.far_up:,} with d > 0 have a noise more than 32 times the median, of"
        f" {e.tokens:,}; they make {_percent(e.far_square_share)} of the sum of squares.",
        ("Look at the worst tokens of the report: special tokens, rare ids, tool results or positions beyond a window?",
         "Mixture of experts: replay the rollout's routing in the trainer (R3), or compare the routers' precision.",
         "Overflow: FP16 activations that saturate hit few tokens hard; count them on both sides.",
         "Until found, drop tokens with r outside [0.5, 5] (IcePop)."))


def _other(e: CauseEvidence) -> Explanation:
    return Explanation(
        "Other weights, or coarser than 16 bits",
        "The differences behave like rounding, but are larger than BF16 makes them: stale or other weights in one engine,"
        " another prompt or template, or 8-bit arithmetic.",
        f"The noise looks like {e.noise_bits:.1f} mantissa bits (BF16 has 7, FP8 E4M3 has 3); mean r is"
        f" {1 + e.mean_ratio_excess:.3f}. From log-probs alone, weights that moved and coarse rounding are the same"
        " thing: see what both engines ran.",
        ("Compare a checksum of the weights in both engines right after a weight update; flush the prefix cache with it.",
         "Asynchronous training: log each sequence's policy version and look at the mismatch by its age.",
         "LoRA: is the adapter loaded, merged, and scaled alike on both sides?",
         "FP8 or INT8 rollout: 3 bits are what to expect; correct for it, or sample in 16 bits."))


def _rounding(e: CauseEvidence) -> Explanation:
    bits = e.noise_bits
    names = ((3.0, "FP8 E4M3"), (7.0, "BF16"), (10.0, "FP16"))
    nearest = min(names, key=lambda each: abs(each[0] - bits)) if math.isfinite(bits) else names[1]
    looks = (f"{nearest[1]} has {nearest[0]:.0f}" if abs(nearest[0] - bits) <= 1
             else "less than FP16's rounding: the engines compute most in float32" if bits > 11
             else "between formats: one engine keeps more in float32 than the other")
    return Explanation(
        "Rounding", "Two engines that do the same sums in another order.",
        f"The differences grow with 1 - p as rounding's do (median |d| / (1 - p) is {e.noise_scale:.3g}), they have no"
        f" side ({_percent(e.share_up)} up) and mean r is {1 + e.mean_ratio_excess:.5f}. They look like {bits:.1f}"
        f" mantissa bits: {looks}.",
        (() if bits > 8.5 else  # finer than BF16 already
         ("FP16 on both sides: 3 bits more than BF16, so |d| about 8 and KL about 64 times smaller; use loss scaling.",))
        + ("Keep the head and its logits in float32 on both sides: it takes away a quarter to a half of the KL. On one"
           " side only it may not help.",
           "Or remove it: engines with one order of arithmetic on both sides give the same bits (docs/Numerics.md)."))


def _unknown(e: CauseEvidence) -> Explanation:
    return Explanation(
        "None of these", "The mismatch behaves like no cause that is known here.",
        f"From unlikely to likely tokens, |d| / (1 - p) grows {2 ** e.noise_growth:.1f} times (rounding: 1 to 2); the sums"
        f" of whole sequences vary {e.clustering:.1f} times as much as those of independent tokens.",
        ("Look at the pictures by probability and position, and at the sequences with the largest |S|.",
         "Noise that does not vanish for likely tokens was added after the softmax; an offset that a whole sequence"
         " shares comes from its context: prompt, adapter, system message, dropout left on."))


_EXPLAIN: dict[str, Callable[[CauseEvidence], Explanation]] = {
    "temperature": _temperature, "raw_log_probs": _raw, "truncation": _truncation, "stored_in_16_bits": _stored,
    "misalignment": _misalignment, "ends": _ends, "outliers": _outliers, "other_weights": _other,
    "rounding": _rounding, "unknown": _unknown,
}
