"""The accumulator: parts are the whole, bit for bit; exact sums against rational arithmetic; its bytes."""

from __future__ import annotations

import math
import multiprocessing
import pickle
import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lockstep
from lockstep import MismatchAccumulator


def a_log(seed: int = 0, sequences: int = 60, longest: int = 400):
    """Lists of log-probs and masks, one for each sequence; some have no token that counts."""
    rng = np.random.default_rng(seed)
    trainer, rollout, mask = [], [], []
    for length in rng.integers(0, longest, sequences):
        b = np.log(rng.beta(3, 0.6, length)).astype(np.float32)
        a = b + (0.05 * rng.standard_normal(length) * (1 - np.exp(b))).astype(np.float32)
        m = rng.random(length) < rng.choice([0, 0.5, 1], p=[0.1, 0.4, 0.5])
        a[~m] = np.nan
        trainer.append(a), rollout.append(b), mask.append(m)
    return trainer, rollout, mask


def accumulated(log, which, **options):
    accumulator = MismatchAccumulator(**options)
    accumulator.update(*([each[i] for i in which] for each in log), ids=np.asarray(which, np.uint64))
    return accumulator


def bits(result: lockstep.Mismatch) -> bytes:
    return b"".join(
        struct.pack("q", value) if isinstance(value, int) else struct.pack(f"{np.size(value)}d", *np.atleast_1d(value))
        for value in vars(result).values())


LOG = a_log()
WHOLE = accumulated(LOG, range(60), exact_quantiles=True)


def test_equals_measure_bit_for_bit():
    assert bits(WHOLE.report()) == bits(lockstep.mismatch(*LOG))
    sketched = accumulated(LOG, range(60)).report()
    exact = WHOLE.report()
    for name, value in vars(sketched).items():
        if name != "log_ratio_quantiles":
            np.testing.assert_array_equal(value, getattr(exact, name))
    np.testing.assert_allclose(sketched.log_ratio_quantiles, exact.log_ratio_quantiles, rtol=2**-8, atol=2**-24)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_cut_and_any_merge_tree(data):
    """Random parts, some empty, merged in a random order, some of them saved and loaded on the way."""
    order = data.draw(st.permutations(range(60)))
    cuts = sorted(data.draw(st.lists(st.integers(0, 60), max_size=8)))
    parts = [
        accumulated(LOG, order[low:high], exact_quantiles=True) for low, high in zip([0, *cuts], [*cuts, 60])]
    while len(parts) > 1:
        one = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        if data.draw(st.booleans()):
            one = MismatchAccumulator.from_bytes(one.to_bytes())
        parts[data.draw(st.integers(0, len(parts) - 1))].merge(one)
    assert parts[0] == WHOLE and bits(parts[0].report()) == bits(WHOLE.report())


finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@settings(max_examples=200, deadline=None)
@given(st.lists(finite, min_size=1, max_size=40))
def test_sums_are_those_of_fractions(values):
    """One token a sequence, so that a sequence's sum is the token; then mean and spread are of exact sums."""
    accumulator = MismatchAccumulator()
    for index, value in enumerate(values):
        accumulator.update([np.array([value])], [np.array([0.0])], ids=[index])
    report = accumulator.report()
    exact = [Fraction(value) for value in values]
    assert report.mean_log_ratio.value == float(sum(exact)) / len(exact)
    assert report.sequence_log_ratio.value == float(sum(exact)) / len(exact)
    assert report.mean_abs_log_ratio.value == float(sum(map(abs, exact))) / len(exact)
    if len(exact) > 1:
        mean = sum(exact) / len(exact)
        variance = sum((value - mean) ** 2 for value in exact) / (len(exact) - 1)
        # A spread below 1e-13 of the values is below what 106 bits hold.
        scale = max(map(abs, exact))
        expected = square_root(variance)
        assert report.sequence_log_ratio_std == pytest.approx(expected, rel=1e-11, abs=1e-15 * float(scale))


def square_root(value: Fraction) -> float:
    """The root of a fraction of any size."""
    if value == 0:
        return 0.0
    shift = (value.denominator.bit_length() - value.numerator.bit_length()) // 2 + 80
    scaled = value * Fraction(4) ** shift
    return float(Fraction(math.isqrt(scaled.numerator // scaled.denominator)) / Fraction(2) ** shift)


def test_errors_do_not_cancel():
    """Sums that hardly differ from one another, beside their size: the error has its digits."""
    rng = np.random.default_rng(1)
    rollout = [np.full(1000, -3.0 + 1e-10 * x) for x in rng.standard_normal(50)]
    report = lockstep.mismatch(rollout, rollout)
    sums = [sum(map(Fraction, map(float, each))) for each in rollout]
    mean = sum(sums) / 50
    expected = square_root(Fraction(50, 49) * sum((each - mean) ** 2 for each in sums)) / 50_000
    # The kernel's own sum of 1,000 tokens has an error of 1e-13 or so beside a spread of 1e-7.
    assert report.mean_rollout_log_prob.standard_error == pytest.approx(expected, rel=1e-4)


def test_weights_of_any_size():
    """exp S far outside a double, of both signs, from parts that hold only one kind."""
    values = [5000.0, -20_000.0, 5000.5, 900_000.0, 900_000.25]
    parts = []
    for index, value in enumerate(values):
        parts.append(MismatchAccumulator())
        parts[-1].update([np.array([value])], [np.array([0.0])], ids=[index])
    total = MismatchAccumulator()
    for part in reversed(parts):
        total.merge(part)
    w = np.exp(np.array([-0.25, 0]))
    assert total.report().sequence_ess == pytest.approx(w.sum() ** 2 / (5 * (w**2).sum()), rel=1e-10)


def test_infinite_ratios():
    """r and r^2 beyond the range of doubles are infinite, as in one pass, and never a wrong number."""
    accumulator = MismatchAccumulator()
    accumulator.update([np.array([0.0]), np.array([-1.0])], [np.array([-800.0]), np.array([-1.0])])
    report = accumulator.report()
    assert report.mean_ratio.value == report.k3.value == report.chi_square.value == math.inf
    assert math.isnan(report.k3.standard_error) and math.isnan(report.ess)
    assert report.mean_log_ratio.value == 400 and report.sequence_ess == 0.5
    assert MismatchAccumulator.from_bytes(accumulator.to_bytes()) == accumulator


def test_every_kind_of_array():
    trainer, rollout = np.array([[-1.0, -2.0], [-3.0, -0.5]], np.float32), np.full((2, 2), -1.0, np.float32)
    padded, packed = MismatchAccumulator(), MismatchAccumulator()
    padded.update(trainer, rollout, ids=[3, 4])
    packed.update(trainer.ravel(), rollout.ravel(), offsets=[0, 2, 4], ids=np.array([3, 4], np.int32))
    assert padded == packed


def test_torch_tensors(torch):
    trainer, rollout = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -2.0]])
    accumulator = MismatchAccumulator()
    accumulator.update(trainer, rollout, ids=torch.tensor([9]))
    assert accumulator.worst().tolist() == [(9, 0, 0.5, -1.5)]


@pytest.mark.parametrize("ids, text", [
    ([1], "ids: has 1 values but there are 2 sequences"), ([1.5, 2.5], "ids: dtype float64; give uint64"),
    ([[1], [2]], "ids: has 2 dimensions"), (["a", "b"], "ids: dtype")])
def test_bad_ids(ids, text):
    accumulator = MismatchAccumulator()
    with pytest.raises(lockstep.InvalidArgumentError, match=text):
        accumulator.update(np.zeros((2, 2)), np.zeros((2, 2)), ids=ids)
    assert accumulator == MismatchAccumulator()


def test_bad_arguments():
    accumulator = MismatchAccumulator()
    with pytest.raises(lockstep.InvalidArgumentError, match="other: int"):
        accumulator.merge(3)
    with pytest.raises(lockstep.InvalidArgumentError, match="lacks exact_quantiles"):
        MismatchAccumulator(exact_quantiles=True).merge(accumulator)
    with pytest.raises(lockstep.InvalidArgumentError, match="lacks all but a summary"):
        accumulator.merge(MismatchAccumulator(summary=True))
    with pytest.raises(lockstep.InvalidArgumentError, match="axis is 'length'"):
        accumulator.profile("length")
    with pytest.raises(lockstep.InvalidArgumentError, match="quantity is 'k3'"):
        accumulator.histogram("k3")
    with pytest.raises(lockstep.NonFiniteError, match="sequence 1, position 0"):
        accumulator.update([np.zeros(1), np.array([np.nan])], [np.zeros(1), np.zeros(1)])
    assert accumulator == MismatchAccumulator() and accumulator != 3


def test_bytes_that_are_none():
    data = WHOLE.to_bytes()
    for bad, text in [
            (b"", "not a saved"), (b"LOCKMACC", "damaged"), (data[:-1], "damaged"), (data + b"\0", "damaged"),
            (data[:100] + b"?" + data[101:], "damaged .its checksum is wrong"), (b"\0" * 5000, "not a saved"),
            (data[:8] + b"\2" + data[9:], "written by a newer version .format 2, this library reads 1")]:
        kind = lockstep.UnsupportedError if "newer" in text else lockstep.BadDataError
        with pytest.raises(kind, match=text):
            MismatchAccumulator.from_bytes(bad)


def _work(which):
    return accumulated(LOG, which, exact_quantiles=True)


def test_processes_give_the_bits_of_one():
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        parts = pool.map(_work, [range(0, 7), range(7, 41), range(41, 60)])
    total = MismatchAccumulator(exact_quantiles=True)
    for part in parts:
        total.merge(part)
    assert total == WHOLE and pickle.loads(pickle.dumps(total)) == WHOLE


def test_arrays_of_the_details():
    report = WHOLE.report()
    for axis in ("position", "probability", "log_ratio"):
        buckets = WHOLE.profile(axis)
        assert buckets["tokens"].sum() == report.tokens
        assert (buckets["upper"][:-1] <= buckets["lower"][1:]).all()
    for quantity in ("log_ratio", "mean_log_ratio"):
        assert WHOLE.histogram(quantity)["sequences"].sum() == report.sequences
    rows = lockstep.mismatch_sequences(*LOG)
    sample = WHOLE.sample()
    assert len(sample) == report.sequences
    for name in rows.dtype.names:
        np.testing.assert_array_equal(sample[name], rows[name][sample["id"]])
    worst = WHOLE.worst()
    assert abs(worst["log_ratio"][0]) == report.max_abs_log_ratio
    assert (worst["id"][0], worst["position"][0]) == (report.max_abs_sequence, report.max_abs_position)
    assert "sequences" in repr(WHOLE)


def test_a_summary_is_small_and_takes_what_it_needs_of_others():
    summary = accumulated(LOG, range(60), summary=True)
    merged = MismatchAccumulator(summary=True)
    merged.merge(WHOLE)
    assert merged == summary and len(summary.to_bytes()) < 6000 < len(accumulated(LOG, range(60)).to_bytes()) / 4
    assert MismatchAccumulator.from_bytes(summary.to_bytes()) == summary
    mine, its = vars(summary.report()), vars(WHOLE.report())
    assert np.isnan(mine.pop("log_ratio_quantiles")).all() and its.pop("log_ratio_quantiles")
    assert repr(mine) == repr(its)
    assert not len(summary.worst()) and not len(summary.sample()) and not summary.profile("position")["tokens"].any()
    with pytest.raises(lockstep.InvalidArgumentError, match="a summary has no quantiles"):
        MismatchAccumulator(summary=True, exact_quantiles=True)


def test_the_worst_sequences_are_those_of_largest_s():
    values = lockstep.mismatch_sequences(*LOG)
    order = sorted(np.flatnonzero(values["log_ratio"] != 0).tolist(), key=lambda i: (-abs(values["log_ratio"][i]), i))
    worst = WHOLE.worst_sequences()
    assert worst["id"].tolist() == order[:32] and len(order) > 32
    for name in values.dtype.names:
        assert np.array_equal(worst[name], values[name][order[:32]]), name
