"""Mismatch against its formulas in NumPy, and on the real rollouts of examples/data."""

import ctypes
import dataclasses
import gzip
import json
import math

import numpy as np
import pytest

import lockstep
from conftest import ROOT
from lockstep import _library as c
from lockstep import exact_mismatch, mismatch
from lockstep._mismatch import _statistics


def synthetic(seed=0, count=60, longest=700, dtype=np.float32):
    """Packed logs whose noise is heavy-tailed and grows with 1 - p, some of it exactly 0; the mask has holes,
    and some sequences are empty or nothing but holes."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest, count)
    lengths[[3, 17]] = 0
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = int(offsets[-1])
    rollout = np.log(rng.beta(2, 0.5, tokens)).astype(dtype)
    noise = 0.05 * rng.standard_t(3, tokens) * (1 - np.exp(rollout)) * (rng.random(tokens) < 0.9)
    trainer = (rollout + noise).astype(dtype)
    mask = rng.random(tokens) < 0.8
    mask[offsets[5]:offsets[6]] = False
    return trainer, rollout, mask, offsets


def statistics(trainer, rollout, mask, offsets):
    """The header's formulas in plain NumPy: (field or (field, "standard_error"), value)."""
    a, b = trainer.astype(np.float64), rollout.astype(np.float64)
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))[mask]
    position = (np.arange(len(a)) - np.repeat(offsets[:-1], np.diff(offsets)))[mask]
    a, b = a[mask], b[mask]
    d = a - b
    r, p, q = np.exp(d), np.exp(a), np.exp(b)
    lengths = np.bincount(owner, minlength=len(offsets) - 1).astype(float)
    there = lengths > 0
    n, k = len(d), int(there.sum())

    def average(name, x, offset=0.0):
        sums = np.bincount(owner, x, minlength=len(offsets) - 1)
        residual = (sums - x.mean() * lengths)[there]
        yield name, x.mean() + offset
        yield (name, "standard_error"), math.sqrt(k / (k - 1) * (residual**2).sum()) / n

    def over_sequences(name, x):
        yield name, x.mean()
        yield (name, "standard_error"), x.std(ddof=1) / math.sqrt(k)

    def outside(low, high):
        return ((r < low) | (r > high)).astype(float)

    yield from average("mean_log_ratio", d)
    yield from average("k1", -d)
    yield from average("k2", d * d / 2)
    yield from average("k3", np.expm1(d) - d)
    yield from average("mean_abs_log_ratio", abs(d))
    yield from average("mean_abs_prob_diff", abs(p - q))
    yield from average("share_differing", (a != b).astype(float))
    yield from average("share_outside_mlperf", outside(0.999, 1.002))
    yield from average("share_outside_1pct", outside(0.99, 1.01))
    yield from average("share_outside_5pct", outside(0.95, 1.05))
    yield from average("share_outside_10pct", outside(0.9, 1.1))
    yield from average("chi_square", r * r, -1)
    yield from average("mean_ratio", r)
    yield from average("mean_exp_abs_log_ratio", np.exp(abs(d)))
    yield from average("mean_rollout_log_prob", b)
    rms = math.sqrt((d * d).mean())
    yield "rms_log_ratio", rms
    yield ("rms_log_ratio", "standard_error"), dict(average("", d * d))[("", "standard_error")] / (2 * rms)
    yield "max_abs_log_ratio", abs(d).max()
    yield "max_abs_sequence", owner[abs(d).argmax()]
    yield "max_abs_position", position[abs(d).argmax()]
    yield "max_abs_prob_diff", abs(p - q).max()
    yield "pearson", np.corrcoef(p, q)[0, 1]
    z = (p - p.mean()) / p.std() - (q - q.mean()) / q.std()
    yield "one_minus_pearson", (z * z).mean() / 2
    ess = r.sum() ** 2 / (n * (r * r).sum())
    yield "ess", ess
    yield "trainer_perplexity", math.exp(-a.mean())
    yield "rollout_perplexity", math.exp(-b.mean())
    yield "perplexity_ratio", math.exp(-d.mean())

    # Functions of means, by the delta method.
    def error(x):
        return dict(average("", x))[("", "standard_error")]

    yield "trainer_perplexity_standard_error", math.exp(-a.mean()) * error(a)
    yield "rollout_perplexity_standard_error", math.exp(-b.mean()) * error(b)
    yield "perplexity_ratio_standard_error", math.exp(-d.mean()) * error(d)
    influence = ess * (2 * r / r.sum() - r * r / (r * r).sum() - 1 / n)
    by_sequence = np.bincount(owner, influence, minlength=len(offsets) - 1)[there]
    yield "ess_standard_error", math.sqrt(k / (k - 1) * (by_sequence**2).sum())
    for index, quantile in enumerate(np.quantile(d, QUANTILES)):
        yield ("log_ratio_quantiles", index), quantile

    sums = np.bincount(owner, d, minlength=len(offsets) - 1)[there]
    worst = np.bincount(owner, np.exp(abs(d)), minlength=len(offsets) - 1)[there] / lengths[there]
    length = lengths[there]
    yield from over_sequences("sequence_log_ratio", sums)
    yield "sequence_log_ratio_std", sums.std(ddof=1)
    centred = sums - sums.mean()
    yield "sequence_log_ratio_std_standard_error", math.sqrt(
        ((centred**4).mean() - (centred**2).mean() ** 2) / (k - 1)) / (2 * sums.std())
    yield from over_sequences("sequence_mean_log_ratio", sums / length)
    yield from over_sequences("sequence_mean_exp_abs", worst)
    yield from over_sequences("share_sequences_masked", (worst > 2).astype(float))
    outside = (sums / length < math.log(0.999)) | (sums / length > math.log(1.002))
    yield from over_sequences("share_sequences_outside_mlperf", outside.astype(float))
    weights = np.exp(sums)
    yield "sequence_ess", weights.sum() ** 2 / (k * (weights**2).sum())
    centred = length - length.mean()
    slope, level = np.polyfit(length, sums, 1)
    residual = sums - slope * length - level
    yield "slope_per_1000", 1000 * slope
    yield ("slope_per_1000", "standard_error"), 1000 * math.sqrt(
        k / (k - 2) * ((centred * residual) ** 2).sum()) / (centred**2).sum()
    yield "mean_sequence_length", n / k
    yield "max_sequence_length", length.max()
    yield "tokens", n
    yield "masked_tokens", len(mask) - n
    yield "excluded_tokens", 0
    yield "sequences", k
    yield "empty_sequences", len(offsets) - 1 - k


QUANTILES = [0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999]


def fields(result):
    """Every number of a Mismatch, by the names `statistics` uses."""
    values = {}
    for name, value in vars(result).items():
        if isinstance(value, lockstep.Estimate):
            values[name], values[(name, "standard_error")] = value
        elif isinstance(value, tuple):
            values.update({(name, i): v for i, v in enumerate(value)})
        else:
            values[name] = value
    return values


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_every_field_is_its_formula(dtype):
    log = synthetic(dtype=np.float64 if dtype == "float64" else np.float32)
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    trainer, rollout = log[0].astype(dtype), log[1].astype(dtype)
    expected = dict(statistics(trainer, rollout, *log[2:]))
    ours = fields(mismatch(trainer, rollout, *log[2:]))
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, rtol=2e-11, atol=1e-16, err_msg=str(name))


def test_one_minus_pearson_does_not_cancel():
    """Where the policies differ by 1e-9, 1 - correlation is 1e-18: below what subtracting from 1 can say."""
    rng = np.random.default_rng(1)
    rollout = np.log(rng.uniform(0.01, 1, 5000))
    trainer = rollout + 1e-9 * rng.standard_normal(5000)
    d = (trainer - rollout).astype(np.longdouble)
    q = np.exp(rollout.astype(np.longdouble))
    p = q * np.exp(d)
    z = (p - p.mean()) / p.std() - (q - q.mean()) / q.std()
    result = mismatch(trainer, rollout)
    np.testing.assert_allclose(result.one_minus_pearson, float((z * z).mean() / 2), rtol=1e-9)
    assert result.one_minus_pearson < 1e-17


def test_padded_is_packed():
    trainer, rollout, mask, offsets = synthetic()
    shape = (len(offsets) - 1, int(np.diff(offsets).max()) + 5)
    padded = [np.full(shape, np.nan, x.dtype) for x in (trainer, rollout)] + [np.zeros(shape, bool)]
    for row in range(shape[0]):
        for target, source in zip(padded, (trainer, rollout, mask)):
            part = source[offsets[row]:offsets[row + 1]]
            target[row, :len(part)] = part
    packed = fields(mismatch(trainer, rollout, mask, offsets))
    both = fields(mismatch(*padded))
    both["masked_tokens"] = packed["masked_tokens"]  # the padding
    np.testing.assert_equal(both, packed)
    # Rows of a larger array, and padding on the left: the sums of a sequence may round otherwise.
    left = [np.roll(x, 3, axis=1) for x in padded]
    np.testing.assert_allclose(
        fields(mismatch(*(x[:, 3:] for x in left)))["k3"], packed["k3"], rtol=1e-14)


@pytest.mark.parametrize("axis", ["position", "probability", "log_ratio"])
def test_profile_is_its_formula(axis):
    trainer, rollout, mask, offsets = synthetic()
    edges = {
        "position": [0, 1, 10, 50, 51, 400], "probability": np.linspace(0, 1, 21),
        "log_ratio": [-np.inf, -0.1, -0.01, 0, 0.01, 0.1, np.inf]}[axis]
    d = trainer.astype(np.float64) - rollout
    before = np.cumsum(mask) - mask
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    first = np.concatenate([[0], np.cumsum(mask)])[offsets[:-1]]
    value = {
        "position": before - first[owner], "probability": np.exp(rollout.astype(np.float64)),
        "log_ratio": d}[axis]
    buckets = lockstep.mismatch_profile(trainer, rollout, mask, offsets, edges=edges, axis=axis)
    for index, bucket in enumerate(buckets):
        low, high = edges[index], edges[index + 1]
        last = index == len(buckets) - 1
        here = mask & (value >= low) & ((value < high) | (last & (value == high)))
        assert (bucket["lower"], bucket["upper"], bucket["tokens"]) == (low, high, here.sum())
        figures = (bucket["mean_log_ratio"], bucket["mean_abs_log_ratio"], bucket["k3"])
        if here.any():
            expected = d[here].mean(), abs(d[here]).mean(), (np.expm1(d[here]) - d[here]).mean()
            np.testing.assert_allclose(figures, expected, rtol=1e-11, atol=1e-16)
        else:
            assert all(map(math.isnan, figures))


# log: tokens, mean abs d, max abs d, k1, k3, sequence log ratio mean and std, as in examples/data/README.md.
REAL = {
    "smollm2-135m.bf16": (11709, "0.03624", "0.458", "1.07e-03", "1.371e-03", "-0.130", "0.687"),
    "smollm2-135m.fp16": (12013, "0.00467", "0.130", "5.3e-05", "2.295e-05", "-0.007", "0.074"),
    "smollm2-135m.bf16-rollout.fp32-trainer": (
        11709, "0.01019", "0.287", "-6.3e-05", "1.239e-04", "0.008", "0.189"),
    "smollm2-135m.fp16-rollout.fp32-trainer": (
        12013, "0.00153", "0.033", "1.2e-05", "2.737e-06", "-0.002", "0.026"),
}


@pytest.mark.parametrize("name", REAL)
def test_real_rollouts(name):
    with gzip.open(ROOT / "examples" / "data" / f"{name}.jsonl.gz", "rt") as lines:
        log = [json.loads(line) for line in lines]
    offsets = np.cumsum([0] + [len(row["loss_mask"]) for row in log]).astype(np.int64)
    trainer, rollout, mask = (
        np.concatenate([np.asarray(row[field], dtype) for row in log]) for field, dtype in [
            ("trainer_logprobs", np.float32), ("inference_logprobs", np.float32), ("loss_mask", bool)])
    m = mismatch(trainer, rollout, mask, offsets)
    # Ours is the sample standard deviation, the table's that of the population.
    population_std = m.sequence_log_ratio_std * math.sqrt((m.sequences - 1) / m.sequences)
    assert REAL[name] == (
        m.tokens, f"{m.mean_abs_log_ratio.value:.5f}", f"{m.max_abs_log_ratio:.3f}",
        f"{m.k1.value:.{2 if name.endswith('.bf16') else 1}e}", f"{m.k3.value:.3e}",
        f"{m.sequence_log_ratio.value:.3f}", f"{population_std:.3f}")


def divergences(trainer, rollout):
    """The definitions, in the widest floats there are; rows of logits in, rows of five figures out.

    A KL is summed as p (q / p - 1 - ln(q / p)), which adds a zero (sum q - sum p) and then does not cancel."""
    def distribution(y):
        y = y.astype(np.longdouble)
        y = y - y.max(axis=1, keepdims=True)
        return y - np.log(np.exp(y).sum(axis=1, keepdims=True))

    def kl(ln_p, q, x):
        return np.where(np.isneginf(ln_p), q, np.exp(ln_p) * (np.expm1(x) - x)).sum(axis=1)

    p, q = distribution(trainer), distribution(rollout)
    with np.errstate(invalid="ignore", over="ignore"):
        forward, backward = p - q, q - p
        # ln(m / q) and ln(m / p) for the middle m = (p + q) / 2
        to_middle = [np.log1p(np.expm1(x) / 2) for x in (forward, backward)]
        middle = (np.exp(p) + np.exp(q)) / 2
        return np.stack([
            kl(q, np.exp(p), forward), kl(p, np.exp(q), backward),
            np.where(np.isneginf(q), np.exp(p), np.exp(q) * abs(np.expm1(forward))).sum(axis=1) / 2,
            (kl(q, middle, to_middle[0]) + kl(p, middle, to_middle[1])) / 2,
            trainer.argmax(axis=1) == rollout.argmax(axis=1)], axis=1).astype(np.float64)


def figures(rows):
    """The rows of exact_mismatch as a plain matrix."""
    return np.stack([rows[name] for name in lockstep.Divergence._fields], axis=1)


@pytest.mark.parametrize("noise", [1e-6, 1e-3, 0.05, 1, 20])
def test_exact_is_its_definition(noise):
    """Also near equality, where plain sums of p ln(p / q) would leave nothing: a KL of 1e-12 has its digits."""
    rng = np.random.default_rng(2)
    rollout = (3 * rng.standard_normal((20, 1003))).astype(np.float32)
    trainer = (rollout + noise * rng.standard_normal(rollout.shape)).astype(np.float32)
    mean, rows = exact_mismatch(trainer, rollout)
    expected = divergences(trainer, rollout)
    # The total variation is of first order in the normalisers, which are known to about 1e-15.
    tolerance = np.array([0, 0, 2e-15, 0, 0])
    assert (abs(figures(rows) - expected) <= 1e-11 * expected + tolerance).all()
    np.testing.assert_allclose(mean, expected.mean(axis=0), rtol=1e-8)


def test_exact_with_impossible_tokens():
    """A token one policy never draws makes one KL infinite; one neither draws adds nothing."""
    rng = np.random.default_rng(3)
    rollout = rng.standard_normal((4, 50)).astype(np.float32)
    trainer = rng.standard_normal((4, 50)).astype(np.float32)
    trainer[0, 7] = rollout[1, 9] = -np.inf
    trainer[2, 1] = rollout[2, 1] = -np.inf
    trainer[3, 2:] = rollout[3, :-2] = -np.inf
    _, rows = exact_mismatch(trainer, rollout)
    ours = figures(rows)
    np.testing.assert_allclose(ours, divergences(trainer, rollout), rtol=1e-12)
    assert np.isinf(ours[:, 0]).tolist() == [True, False, False, True]
    assert np.isinf(ours[:, 1]).tolist() == [False, True, False, True]
    assert ours[3, 2] == 1 and ours[3, 3] == pytest.approx(math.log(2), rel=1e-15)


def test_exact_options():
    rng = np.random.default_rng(4)
    rollout = (4 * rng.standard_normal((6, 300))).astype(np.float32)
    trainer = (rollout + 0.1 * rng.standard_normal(rollout.shape)).astype(np.float32)
    wide = [x.astype(np.float64) for x in (trainer, rollout)]
    for options, rule in [
            ({"temperature": 0.7}, lambda x: x / 0.7), ({"soft_cap": 5.0}, lambda x: 5 * np.tanh(x / 5)),
            ({"soft_cap": 30.0, "temperature": 2.0}, lambda x: 30 * np.tanh(x / 30) / 2),
            ({"logits_dtype": np.float16}, lambda x: x.astype(np.float16))]:
        _, rows = exact_mismatch(trainer, rollout, **options)
        np.testing.assert_allclose(figures(rows), divergences(*map(rule, wide)), rtol=1e-11, err_msg=options)
    narrow = [x.astype(np.float16) for x in (trainer, rollout)]
    np.testing.assert_array_equal(
        figures(exact_mismatch(*narrow).rows),
        figures(exact_mismatch(trainer, rollout, logits_dtype=np.float16).rows))
    with pytest.raises(ValueError, match=r"rollout_logits: row 2 .*\+inf"):
        large = rollout.copy()
        large[2, 5] = 70000
        exact_mismatch(trainer, large, logits_dtype=np.float16)


def test_exact_of_equal_logits_is_zero():
    rng = np.random.default_rng(5)
    logits = (10 * rng.standard_normal((5, 777))).astype(np.float32)
    logits[:, 5] = -np.inf
    assert figures(exact_mismatch(logits, logits).rows).tolist() == [[0, 0, 0, 0, 1]] * 5
    # Nor does a constant added to a row.
    whole = np.round(logits).astype(np.float32)
    assert figures(exact_mismatch(whole, whole + np.float32(64)).rows)[:, :4].max() == 0


def test_exact_row_depends_on_its_row_alone():
    rng = np.random.default_rng(6)
    rollout = rng.standard_normal((33, 517)).astype(np.float32)
    trainer = rollout + np.float32(0.01) * rng.standard_normal(rollout.shape).astype(np.float32)
    whole = figures(exact_mismatch(trainer, rollout).rows)
    mask = rng.random(33) < 0.7
    for threads in (1, 2, 5):
        np.testing.assert_array_equal(figures(exact_mismatch(trainer, rollout, threads=threads).rows), whole)
    mean, masked = exact_mismatch(trainer, rollout, mask)
    np.testing.assert_array_equal(figures(masked), whole * mask[:, None])
    np.testing.assert_allclose(mean, whole[mask].mean(axis=0), rtol=1e-14)
    np.testing.assert_array_equal(figures(exact_mismatch(trainer[7:8], rollout[7:8]).rows)[0], whole[7])
    assert math.isnan(exact_mismatch(trainer, rollout, np.zeros(33, bool)).mean.kl_rollout_trainer)


BANDS = {
    "mlperf": (0.999, 1.002), "1pct": (0.99, 1.01), "5pct": (0.95, 1.05), "10pct": (0.9, 1.1),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("band, bound", [(name, bound) for name, bounds in BANDS.items() for bound in bounds])
def test_edges_of_bands(band, bound, dtype):
    """d on either side of each edge, as near as the edge is exact: ln of the bound to 21 bits (docs/Glossary.md)."""
    steps = np.arange(1, 41) * 2.0**-22 if dtype == np.float32 else 5e-8 + np.arange(40) * 1e-8
    rollout = np.full(40, -1.0, dtype)
    below, above = ((-1 + math.log(bound) + side * steps).astype(dtype) for side in (-1, 1))
    inside, outside = (above, below) if bound < 1 else (below, above)

    def share(trainer):
        return getattr(mismatch(trainer, rollout), f"share_outside_{band}").value
    assert share(inside) == 0 and share(outside) == 1


def test_every_figure_is_read_where_the_struct_has_it():
    """A struct of random bytes, field by field through ctypes, and all at once."""
    raw = c.Mismatch()
    size = ctypes.sizeof(raw)
    ctypes.memmove(ctypes.byref(raw), np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes(), size)
    found = _statistics(raw)
    names = [name for name, _ in c.Mismatch._fields_][2:]
    assert list(vars(found)) == names == [each.name for each in dataclasses.fields(lockstep.Mismatch)]
    for name in names:
        value, wanted = getattr(found, name), getattr(raw, name)
        if isinstance(wanted, c.Estimate):
            assert isinstance(value, lockstep.Estimate)
            wanted = (wanted.value, wanted.standard_error)
        elif isinstance(wanted, ctypes.Array):
            wanted = tuple(wanted)
        assert repr(tuple(value) if isinstance(value, tuple) else value) == repr(wanted), name
