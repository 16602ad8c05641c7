"""Mismatch through the Python functions: layouts, kinds of arrays, results as plain numbers, exact divergences."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import lockstep

RNG = np.random.default_rng(7)
LENGTHS = [5, 0, 12, 1, 8]
ROLLOUT = [-RNG.exponential(1, length).astype(np.float32) for length in LENGTHS]
TRAINER = [each + RNG.normal(0, 0.05, len(each)).astype(np.float32) for each in ROLLOUT]
MASK = [RNG.random(length) < 0.8 for length in LENGTHS]
MASK[3][:] = False
OFFSETS = np.concatenate([[0], np.cumsum(LENGTHS)])


def padded(sequences, filler):
    out = np.full((len(sequences), max(LENGTHS)), filler, np.asarray(sequences[0]).dtype)
    for row, each in zip(out, sequences):
        row[: len(each)] = each
    return out


def packed(sequences):
    return np.concatenate(sequences)


def same(x: lockstep.Mismatch, y: lockstep.Mismatch) -> None:
    """Equal in every bit; NaN equals NaN. Padding is what a mask leaves out, so that count may differ."""
    left, right = x.to_dict(), y.to_dict()
    left.pop("masked_tokens"), right.pop("masked_tokens")
    assert json.dumps(left) == json.dumps(right)


# mismatch

def test_all_layouts_are_one_log():
    expected = lockstep.mismatch(TRAINER, ROLLOUT, MASK)
    assert expected.tokens == sum(map(np.sum, MASK)) and expected.sequences == 3
    assert expected.masked_tokens == sum(LENGTHS) - expected.tokens and expected.empty_sequences == 2
    same(lockstep.mismatch(packed(TRAINER), packed(ROLLOUT), packed(MASK), OFFSETS), expected)
    same(lockstep.mismatch(padded(TRAINER, np.nan), padded(ROLLOUT, np.nan), padded(MASK, False)), expected)
    # Plain lists are fp64, which changes only what "differing in bits" is asked of.
    lists = [[x.astype(float).tolist() for x in log] for log in (TRAINER, ROLLOUT)]
    same(lockstep.mismatch(*lists, [m.tolist() for m in MASK]), expected)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_masks_of_any_dtype(dtype):
    mask = [each.astype(dtype) for each in MASK]
    same(lockstep.mismatch(TRAINER, ROLLOUT, mask), lockstep.mismatch(TRAINER, ROLLOUT, MASK))
    same(lockstep.mismatch(padded(TRAINER, 0), padded(ROLLOUT, 0), padded(mask, 0)),
         lockstep.mismatch(TRAINER, ROLLOUT, MASK))


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64, list])
def test_offsets_of_any_integer(dtype):
    offsets = OFFSETS.tolist() if dtype is list else OFFSETS.astype(dtype)
    found = lockstep.mismatch(packed(TRAINER), packed(ROLLOUT), None, offsets)
    same(found, lockstep.mismatch(TRAINER, ROLLOUT))


def test_one_sequence():
    x, y = packed(TRAINER), packed(ROLLOUT)
    one = lockstep.mismatch(x, y)
    assert one.sequences == 1 and math.isnan(one.k1.standard_error)
    same(one, lockstep.mismatch(x.tolist(), y.tolist()))
    same(one, lockstep.mismatch([x], [y]))


def test_torch_logs(torch):
    expected = lockstep.mismatch(TRAINER, ROLLOUT, MASK)
    x, y = ([torch.from_numpy(each) for each in log] for log in (TRAINER, ROLLOUT))
    x = [each.clone().requires_grad_() for each in x]
    mask = [torch.from_numpy(each) for each in MASK]
    same(lockstep.mismatch(x, y, mask), expected)
    offsets = torch.from_numpy(OFFSETS).int()
    same(lockstep.mismatch(torch.cat(x), torch.cat(y), torch.cat(mask).long(), offsets), expected)
    half = [[each.detach().bfloat16() for each in log] for log in (x, y)]
    wide = [[each.float().numpy() for each in log] for log in half]
    same(lockstep.mismatch(*half, mask), lockstep.mismatch(*wide, MASK))


def test_against_numpy():
    d = packed(TRAINER).astype(float) - packed(ROLLOUT)
    d = d[packed(MASK)]
    result = lockstep.mismatch(TRAINER, ROLLOUT, MASK)
    assert math.isclose(result.mean_log_ratio.value, d.mean(), rel_tol=1e-12)
    assert math.isclose(result.k3.value, (np.exp(d) - 1 - d).mean(), rel_tol=1e-9)
    assert result.max_abs_log_ratio == abs(d).max()
    assert np.allclose(result.log_ratio_quantiles, np.quantile(d, lockstep.LOG_RATIO_QUANTILES), rtol=1e-12)
    sums = [float(np.sum((x.astype(float) - y)[m])) for x, y, m in zip(TRAINER, ROLLOUT, MASK) if m.any()]
    assert math.isclose(result.sequence_log_ratio.value, np.mean(sums), rel_tol=1e-12)
    assert math.isclose(result.sequence_log_ratio_std, np.std(sums, ddof=1), rel_tol=1e-12)


def test_results_are_plain_numbers():
    result = lockstep.mismatch(TRAINER, ROLLOUT, MASK)
    document = json.loads(json.dumps(result.to_dict()))
    assert document["tokens"] == result.tokens and type(result.tokens) is int
    assert document["k3"] == {"value": result.k3.value, "standard_error": result.k3.standard_error}
    assert document["log_ratio_quantiles"] == list(result.log_ratio_quantiles)
    assert len(result.log_ratio_quantiles) == len(lockstep.LOG_RATIO_QUANTILES) == 9
    value, error = result.mean_ratio
    assert value == result.mean_ratio.value and error > 0
    with pytest.raises(AttributeError):
        result.tokens = 3


def test_empty_logs():
    for arguments in (([], []), (np.zeros(0), np.zeros(0)), (np.zeros((0, 4)), np.zeros((0, 4))),
                      ([np.zeros(0)], [np.zeros(0)])):
        result = lockstep.mismatch(*arguments)
        assert result.tokens == 0 and math.isnan(result.k3.value)
    assert lockstep.mismatch_sequences([], []).shape == (0,)
    assert lockstep.mismatch_profile([], [], edges=[0, 1])["tokens"].tolist() == [0]


def test_non_finite_values():
    x = [each.copy() for each in TRAINER]
    x[2][3] = np.nan
    mask = [np.ones(length, bool) for length in LENGTHS]
    with pytest.raises(lockstep.NonFiniteError, match="trainer_log_probs: sequence 2, position 3"):
        lockstep.mismatch(x, ROLLOUT, mask)
    excluded = lockstep.mismatch(x, ROLLOUT, mask, non_finite="exclude")
    assert excluded.excluded_tokens == 1 and excluded.tokens == sum(LENGTHS) - 1
    mask[2][3] = False
    same(lockstep.mismatch(x, ROLLOUT, mask), lockstep.mismatch(TRAINER, ROLLOUT, mask))


def test_threads_and_sets_change_no_bit():
    expected = lockstep.mismatch(TRAINER, ROLLOUT, MASK)
    for name in ("baseline", "avx2", "avx512", "neon"):
        if lockstep.has_instruction_set(name):
            same(lockstep.mismatch(TRAINER, ROLLOUT, MASK, threads=3, instruction_set=name), expected)


def test_sequences():
    rows = lockstep.mismatch_sequences(TRAINER, ROLLOUT, MASK)
    assert rows.dtype.names[:2] == ("tokens", "log_ratio") and rows.shape == (5,)
    assert rows["tokens"].tolist() == [int(each.sum()) for each in MASK]
    for row, x, y, m in zip(rows, TRAINER, ROLLOUT, MASK):
        d = (x.astype(float) - y)[m]
        assert math.isclose(row["log_ratio"], d.sum(), rel_tol=1e-12)
        assert row["max_abs_log_ratio"] == (abs(d).max() if len(d) else 0)
    packed_rows = lockstep.mismatch_sequences(packed(TRAINER), packed(ROLLOUT), packed(MASK), OFFSETS)
    padded_rows = lockstep.mismatch_sequences(padded(TRAINER, 0), padded(ROLLOUT, 0), padded(MASK, False))
    assert rows.tobytes() == packed_rows.tobytes() == padded_rows.tobytes()


def test_profiles():
    positions = lockstep.mismatch_profile(TRAINER, ROLLOUT, edges=[0, 1, 4, np.inf])
    assert positions["tokens"].tolist() == [4, 3 * 3, 1 + 8 + 4]
    assert positions["upper"][-1] == np.inf
    p = np.exp(packed(ROLLOUT).astype(float))
    edges = np.linspace(0, 1, 6)
    chances = lockstep.mismatch_profile(TRAINER, ROLLOUT, edges=edges, axis="probability")
    assert chances["tokens"].tolist() == np.histogram(p, edges)[0].tolist()
    d = packed(TRAINER).astype(float) - packed(ROLLOUT)
    ratios = lockstep.mismatch_profile(TRAINER, ROLLOUT, edges=[-9, -0.02, 0.02, 9], axis="log_ratio")
    assert ratios["tokens"].tolist() == np.histogram(d, [-9, -0.02, 0.02, 9])[0].tolist()


# exact mismatch

def test_exact_mismatch():
    pi, mu = RNG.normal(0, 2, (2, 3, 4, 50)).astype(np.float32)
    result = lockstep.exact_mismatch(pi, mu, temperature=0.7)
    assert result.rows.shape == (3, 4)
    a, b = (x.astype(float) / 0.7 for x in (pi, mu))
    a, b = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (a, b))
    assert np.allclose(result.rows["kl_rollout_trainer"], (np.exp(b) * (b - a)).sum(-1), rtol=1e-5)
    assert np.allclose(result.rows["kl_trainer_rollout"], (np.exp(a) * (a - b)).sum(-1), rtol=1e-5)
    assert np.allclose(result.rows["total_variation"], abs(np.exp(a) - np.exp(b)).sum(-1) / 2, rtol=1e-5)
    assert result.rows["same_top1"].tolist() == (a.argmax(-1) == b.argmax(-1)).astype(float).tolist()
    assert math.isclose(result.mean.jensen_shannon, result.rows["jensen_shannon"].mean(), rel_tol=1e-12)
    mask = np.arange(12).reshape(3, 4) % 2
    some = lockstep.exact_mismatch(pi, mu, mask, temperature=0.7)
    counted = result.rows["total_variation"][mask == 1]
    assert math.isclose(some.mean.total_variation, counted.mean(), rel_tol=1e-12)
    assert (some.rows["total_variation"] == result.rows["total_variation"] * mask).all()
