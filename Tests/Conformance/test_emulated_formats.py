"""Formats of any number of mantissa bits: against exact rational arithmetic, and as recipes of whole models."""

from __future__ import annotations

from fractions import Fraction
from math import frexp

import numpy as np
import pytest
from conftest import VECTORS

import lockstep

FORMATS = [("e8", n) for n in range(1, 24)] + [("e5", n) for n in range(1, 11)]
names = pytest.mark.parametrize("exponent, mantissa", FORMATS, ids=lambda part: str(part))
every_set = pytest.mark.parametrize(
    "instruction_set", [s for s in ("baseline", "avx2", "avx512", "neon") if lockstep.has_instruction_set(s)])


def rounded(x: float, exponent: str, mantissa: int, rounding: str) -> float:
    """The value of the format that rounding gives, in rational arithmetic alone."""
    if not np.isfinite(x) or x == 0:
        return x
    lowest, highest = (-126, 127) if exponent == "e8" else (-14, 15)
    magnitude, octave = abs(Fraction(float(x))), max(lowest, frexp(x)[1] - 1)
    step = Fraction(2) ** (octave - mantissa)
    steps = magnitude / step  # Python rounds a Fraction to the nearest integer, halves to the even one
    value = (round(steps) if rounding == "nearest_even" else int(steps)) * step
    largest = (2 - Fraction(2) ** -mantissa) * Fraction(2) ** highest
    result = float(value) if value <= largest else np.inf if rounding == "nearest_even" else float(largest)
    return float(np.copysign(result, x))


def values(exponent, mantissa, dtype):
    """Numbers of all sizes, midpoints of the format, and what is just beside them."""
    random = np.random.default_rng(mantissa)
    x = random.normal(size=100) * 2.0 ** random.integers(-155, 130, 100)
    near = random.normal(size=100) * 2.0 ** random.integers(-28, 18, 100)
    x = np.concatenate([x, near, [0, 65504, 65519, 65520, 3.4028234e38, 1.4e-45, np.inf]]).astype(dtype)
    up = lockstep.convert(x.astype(np.float32), f"{exponent}m{mantissa}").astype(np.float64)
    middle = ((up + np.nextafter(up.astype(np.float32), np.float32(np.inf))) / 2 if mantissa == 23
              else up * (1 + 2.0 ** -(mantissa + 1))).astype(dtype)
    x = np.concatenate([x, middle, np.nextafter(middle, dtype(0)), np.nextafter(middle, dtype(np.inf))])
    return np.concatenate([x, -x])


@names
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rounding", ["nearest_even", "toward_zero"])
@pytest.mark.filterwarnings("ignore:overflow encountered in .*:RuntimeWarning")
def test_rounding_is_that_of_rational_numbers(exponent, mantissa, dtype, rounding):
    x = values(exponent, mantissa, dtype)
    found, counts = lockstep.convert(x, f"{exponent}m{mantissa}", rounding, counts=True)
    wanted = np.array([rounded(v, exponent, mantissa, rounding) for v in x.tolist()])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.astype(np.float64), wanted)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(x))
    finite = np.isfinite(x)
    assert counts.underflow == np.sum((found == 0) & (x != 0)) and counts.nan == 0
    largest = (2 - 2.0 ** -mantissa) * 2.0 ** (127 if exponent == "e8" else 15)
    lost = np.isinf(found) if rounding == "nearest_even" else np.abs(x.astype(np.float64)) > largest
    assert counts.overflow == np.sum(lost & finite)


@names
@every_set
def test_stochastic_rounding_goes_up_as_often_as_it_should(exponent, mantissa, instruction_set):
    step = 2.0 ** -mantissa
    x = np.full(20_000, 1 + step / 4, np.float32 if mantissa < 21 else np.float64)
    found = lockstep.convert(
        x, f"{exponent}m{mantissa}", "stochastic", seed=mantissa, instruction_set=instruction_set)
    assert set(found.tolist()) == {1.0, float(np.float32(1 + step))}
    # A quarter of the draws, within five standard deviations.
    assert abs(np.mean(found > 1) - 0.25) < 5 * (3 / 16 / len(x)) ** 0.5


def test_arrays_of_the_caller():
    x = np.float32([1.0, 1.1, -70000.0])
    out = np.empty(3, np.float32)
    assert lockstep.convert(x, "e5m3", out=out) is out
    assert out.tolist() == [1, 1.125, -np.inf]
    with pytest.raises(lockstep.InvalidArgumentError, match="out: its dtype"):
        lockstep.convert(x, "e5m3", out=np.empty(3, np.float16))
    assert lockstep.ulp_distance(x, np.float32([1.5, 1.1, np.inf]), "e8m3").tolist()[:2] == [4, 0]
    with pytest.raises(lockstep.InvalidArgumentError, match="a is not of that format"):
        lockstep.ulp_distance(np.float16([1]), np.float16([1]), "e8m3")
    for name in ("e8m0", "e8m24", "e5m11", "e4m3"):
        with pytest.raises(lockstep.InvalidArgumentError, match="e8m1 to e8m23"):
            lockstep.convert(x, name)
    # Where values go to a caller in fp32 or fp64, or come in 16 bits, such a format is none.
    with pytest.raises(lockstep.InvalidArgumentError, match="dtype is 'e8m5'"):
        lockstep.overlong_penalty(np.array([3]), 4, 2, dtype="e8m5")


def test_logits_of_fewer_bits():
    random = np.random.default_rng(0)
    logits, targets = random.normal(size=(7, 300)).astype(np.float32) * 4, random.integers(0, 300, 7)
    for name in ("e8m3", "e5m3"):
        wanted = lockstep.log_probs(lockstep.convert(logits, name), targets)
        np.testing.assert_array_equal(lockstep.log_probs(logits, targets, logits_dtype=name), wanted)
    bf16 = lockstep.log_probs(logits, targets, logits_dtype="bf16")
    np.testing.assert_array_equal(lockstep.log_probs(logits, targets, logits_dtype="e8m7"), bf16)


def test_recipes():
    folder = VECTORS / "models" / "llama_untied"
    tokens = np.random.default_rng(1).integers(0, 90, 60)
    bf16, twin = lockstep.Model(folder, "bf16"), lockstep.Model(folder, "e8m7")
    assert set(twin.recipe.values()) == {"e8m7", "lockstep"}
    np.testing.assert_array_equal(bf16.score(tokens).log_probs, twin.score(tokens).log_probs)
    mixed = lockstep.Model(folder, {"activations": "e8m4", "cache": "e5m3"})
    assert mixed.recipe["cache"] == "e5m3" and mixed.recipe["logits"] == "fp32"
    rollout = next(iter(mixed.generate([[1, 2, 3]], max_tokens=12, seed=1)))
    scores = mixed.score([[1, 2, 3, *rollout.tokens]])
    np.testing.assert_array_equal(scores.log_probs[3:], rollout.raw_log_probs.astype(np.float32))
    head = lockstep.Model(folder, "e8m4-fp32head")
    assert head.recipe["logits"] == "fp32" and head.recipe["cache"] == "e8m4"
    with pytest.raises(lockstep.InvalidArgumentError, match="e8mN"):
        lockstep.Model(folder, "e8m99")
