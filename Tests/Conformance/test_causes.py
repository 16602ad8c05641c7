"""Causes, found in logs whose causes are known. `causes_validation.py` prints the whole confusion matrix."""

import dataclasses

import numpy as np
import pytest
from causes_logs import (
    CHANGES, backgrounds, coarser, distributions, foreign, permuted, real, samplers, shifted, singles, stored,
    tiny, unmasked, wrong_end,
)
from causes_validation import faults, judge, validate

import lockstep
from lockstep.report.causes import explain

HELD_OUT = 1


def found(log):
    return faults(judge(log))


def test_single_causes_are_found_in_prompts_that_set_no_threshold():
    result = validate(singles(HELD_OUT, seed=3))
    assert result.logs == 250
    assert result.exact >= 0.95 * result.logs, result.misses
    for cause in ("ends", "misalignment", "stored_in_16_bits", "temperature", "truncation", "rounding"):
        assert result.found[cause] == result.there[cause], (cause, result.misses)
    assert result.found["raw_log_probs"] >= 0.7 * result.there["raw_log_probs"], result.misses
    assert result.found["outliers"] >= 0.8 * result.there["outliers"], result.misses


def test_nothing_but_rounding_is_found_where_nothing_else_is():
    for part in (0, 1):
        for log in backgrounds(part):
            assert found(log) == {"rounding"}, log.name
            assert found(tiny(log, np.random.default_rng(1))) == {"rounding"}, log.name


def test_noise_looks_like_its_format():
    bits = {name: judge(real(name, HELD_OUT))[0].evidence.noise_bits for name in ("bf16", "fp16")}
    assert bits["bf16"] == pytest.approx(7, abs=0.25)
    assert bits["fp16"] == pytest.approx(10, abs=0.25)


def test_the_temperature_can_be_read_off_the_slope():
    temperatures = [sampler["temperature"] for sampler in samplers()]
    for log in distributions(HELD_OUT, divisors=(8,)):
        if log.causes == {"temperature"}:
            sampler = temperatures[[f"{t:g}" in log.name for t in temperatures].index(True)]
            assert 1 + judge(log)[0].evidence.slope == pytest.approx(sampler, rel=0.08), log.name


def test_two_causes_are_both_found():
    name = "fp32/1 unscaled (temperature 0.9)"
    log = next(log for log in distributions(HELD_OUT) if log.name == name)
    random = np.random.default_rng(2)
    assert found(stored("bf16", "tr")(log, random)) == {"temperature", "stored_in_16_bits"}
    assert found(wrong_end("last", "rollout", 1, -9999.0)(log, random)) == {"temperature", "ends"}
    assert found(shifted(1, 0.1)(log, random)) == {"temperature", "misalignment"}


def test_identical_columns_have_no_cause():
    log = real("bf16", HELD_OUT)
    assert not any(cause.found for cause in judge(dataclasses.replace(log, trainer=log.rollout)))


def test_no_cause_is_named_for_noise_that_is_none():
    random = np.random.default_rng(4)
    for kind in ("flat", "sequence"):
        assert found(foreign(kind, 0.1)(real("fp16", HELD_OUT), random)) == {"unknown"}, kind
    assert found(coarser(8)(real("bf16", HELD_OUT), random)) == {"other_weights"}


def test_few_tokens_show_only_what_single_tokens_show():
    log = real("bf16", HELD_OUT)
    short = dataclasses.replace(log, trainer=log.trainer[:400], rollout=log.rollout[:400],
                                offsets=np.array([0, 200, 400]))
    assert not any(cause.found for cause in judge(short))
    marked = short.trainer.copy()
    marked[7] = -9999
    assert found(dataclasses.replace(short, trainer=marked)) == {"ends"}


def test_what_the_mask_leaves_out_is_no_evidence():
    log = real("fp16", HELD_OUT)
    random = np.random.default_rng(5)
    padded = unmasked("padding", 8, 1)(log, random)
    mask = np.ones(len(padded.trainer), np.bool_)
    for sequence in padded.sequences():
        mask[sequence.stop - 8 : sequence.stop] = False
    plain, masked = lockstep.MismatchAccumulator(), lockstep.MismatchAccumulator()
    plain.update(log.trainer, log.rollout, offsets=log.offsets)
    garbage = np.where(mask, padded.trainer, np.nan).astype(np.float32)
    masked.update(garbage, padded.rollout, mask, offsets=padded.offsets)
    assert masked.causes() == plain.causes()


def test_every_finding_is_put_in_words():
    logs = [*backgrounds(HELD_OUT), *(change(real("fp16", HELD_OUT), np.random.default_rng(6))
                                      for changes in CHANGES.values() for change in changes)]
    logs += [permuted(logs[0], np.random.default_rng(7)), *distributions(HELD_OUT, divisors=(1,))]
    for log in logs:
        for cause in judge(log):
            words = explain(cause)
            assert words.title and words.what and words.why and words.advice
            assert "nan" not in words.why or not cause.found, (log.name, words.why)
    for cause in lockstep.MismatchAccumulator().causes():
        assert explain(cause).advice


def test_truncation_says_which_side():
    sides = {mode: [log for log in distributions(HELD_OUT, divisors=(1,)) if f" {mode} " in log.name]
             for mode in ("kept", "replayed")}
    for mode, logs in sides.items():
        assert logs
        for log in logs:
            cause = next(cause for cause in judge(log) if cause.name == "truncation")
            assert (cause.evidence.mean_ratio_excess < 0) == (mode == "kept")
            assert ("The rollout's log-probs are renormalised" in explain(cause).what) == (mode == "kept")
