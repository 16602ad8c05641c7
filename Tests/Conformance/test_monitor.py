"""The early warning in Python: against its prototype, on drifting and quiet runs, saved and restored."""

from __future__ import annotations

import gc
import json
import math
import pickle
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT, VECTORS

import lockstep
from lockstep import Estimate, Monitor
from lockstep.logs import read_prime_rl

sys.path.insert(0, str(ROOT / "benchmarks"))
import calibrate_monitor

GOLDEN = json.loads((VECTORS / "monitor.json").read_text())
CALIBRATION = json.loads((ROOT / "benchmarks" / "results" / "monitor.json").read_text())
PLAIN = lockstep.mismatch(np.full(8, -1.0), np.linspace(-1.1, -0.9, 8))
STATISTICS = ("k3", "chi_square", "ess_loss", "max_abs_log_ratio")


def of_row(row: dict) -> lockstep.Mismatch:
    means = {name: Estimate(row[name], math.nan) for name in ("k3", "chi_square", "mean_ratio")}
    return replace(PLAIN, tokens=row["tokens"], ess=row["ess"], max_abs_log_ratio=row["max_abs_log_ratio"], **means)


def measured(rng, scale: float, tokens: int = 2000) -> lockstep.Mismatch:
    rollout = np.full(tokens, -1.0)
    return lockstep.mismatch(rollout + scale * rng.standard_normal(tokens), rollout,
                             offsets=np.arange(0, tokens + 1, 100))


def steps(seed: int, count: int, onset: int, doubling: float = 40, scale: float = 0.03):
    """(step, mismatch): a floor, then |d| that doubles every `doubling` steps."""
    rng = np.random.default_rng(seed)
    for step in range(count):
        yield step, measured(rng, scale * 2 ** (max(step - onset, 0) / doubling))


def plain(alarm: lockstep.Alarm) -> str:
    return repr(alarm)


def test_scores_and_floors_are_the_prototypes():
    monitor, levels = Monitor(), []
    for step, row in enumerate(GOLDEN["steps"]):
        levels.append(monitor.update(step, of_row(row)).level)
        readings = monitor.readings()
        assert tuple(readings) == tuple(GOLDEN["statistics"]) == STATISTICS
        if row["scores"] is None:
            assert levels[-1] == "learning"
            continue
        for index, (name, found) in enumerate(readings.items()):
            assert found.score == pytest.approx(row["scores"][index], rel=1e-9, abs=1e-9), (step, name)
            assert (-1 if found.since_step is None else found.since_step) == row["since"][index]
            floor = math.exp(row["floors"][index])
            if name == "ess_loss":
                floor = floor / (1 + floor)
            if name == "max_abs_log_ratio":
                floor *= math.log(row["tokens"]) + 0.5772156649015329
            assert found.floor == pytest.approx(floor, rel=1e-9)
    # The broken step at 100 is no alarm; the growth from 150 on is one, and stays.
    first = levels.index("alarm")
    assert 150 < first < 175 and set(levels[first:]) == {"alarm"}


def test_thresholds_are_the_calibrations():
    table = CALIBRATION["thresholds"]
    assert table["statistics"] == list(STATISTICS)
    for rate, scores in zip(table["rates_per_1000"], zip(*table["scores"])):
        if rate > 10:
            continue  # only where a watch begins
        readings = Monitor(false_alarms_per_1000=rate).readings()
        assert [readings[name].threshold for name in STATISTICS] == pytest.approx(list(scores))


def test_the_simulation_has_the_librarys_statistics():
    """The sums from which the calibration makes its steps are those of lockstep.mismatch."""
    log = read_prime_rl([ROOT / "examples" / "data" / "smollm2-135m.bf16.jsonl.gz"], label="bf16")
    pool = calibrate_monitor.pool("bf16")
    for index in (20, 93, 250):
        scale = calibrate_monitor.SCALES[index]
        rollout = log.rollout.astype(np.float64)
        found = lockstep.mismatch(rollout + scale * (log.trainer - rollout), rollout, log.mask, log.offsets)
        k3, ratio, square, gap = pool.sums[:, index].sum(0) / pool.tokens.sum()
        assert found.tokens == pool.tokens.sum()
        assert found.k3.value == pytest.approx(k3, rel=1e-9)
        assert found.mean_ratio.value == pytest.approx(1 + ratio, rel=1e-9)
        assert found.chi_square.value == pytest.approx(square + 2 * ratio, rel=1e-6)
        assert found.mean_abs_prob_diff.value == pytest.approx(gap, rel=1e-9)
        assert found.max_abs_log_ratio == pytest.approx(scale * pool.largest.max(), rel=1e-9)
    count = 50
    steps = calibrate_monitor.make_steps(np.random.default_rng(0), pool, np.full(count, 64), np.full(count, 2.0),
                                         np.zeros(count), 0.0, 0.0)
    whole = lockstep.mismatch(log.trainer, log.rollout, log.mask, log.offsets)
    assert steps.k3.mean() == pytest.approx(whole.k3.value, rel=0.05)
    assert steps.tokens.mean() == pytest.approx(128 * whole.mean_sequence_length, rel=0.05)
    assert steps.largest.max() == pytest.approx(whole.max_abs_log_ratio, rel=0.02)


def test_the_documented_tables_are_the_results():
    assert calibrate_monitor.tables(CALIBRATION) in (ROOT / "docs" / "EarlyWarning.md").read_text()


def test_the_guides_example_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "EarlyWarning.md").read_text(), flags=re.S)
    found = {}
    exec(code, found)
    step, since = map(int, re.match(r"step (\d+): \w+ has left its floor since step (\d+)", capsys.readouterr().out).groups())
    assert 120 < step < 150 and 115 <= since <= step and Monitor.from_bytes(found["saved"])


def test_the_stated_rates_are_the_measured_ones():
    """What the documentation promises: held-out runs of the calibrated kind keep the rate, with 95 %."""
    rows = [row for row in CALIBRATION["measured"]["false_alarms"]
            if row["kind"] in ("independent", "autocorrelated") and row["learning_steps"] == 40]
    assert {row["promised_per_1000"] for row in rows} == {0.1, 1, 10}
    assert all(row["interval_95"][0] <= row["promised_per_1000"] for row in rows)


@pytest.mark.parametrize("seed", range(3))
def test_a_quiet_run_has_no_alarm(seed):
    assert not any(Monitor().run(steps(seed, 300, onset=300)))


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.03])
def test_growth_is_reported_early_and_dated(scale):
    alarms = list(Monitor().run(steps(5, 200, onset=100, scale=scale)))
    first = next(alarm for alarm in alarms if alarm)
    assert 100 < first.step < 130 and 95 <= first.since_step <= first.step
    assert first.statistic in STATISTICS and first.value > first.floor > 0
    assert first.false_alarms_per_1000 <= 1 and first.false_alarm_probability == pytest.approx(
        1 - math.exp(-first.false_alarms_per_1000))
    assert [alarm.level for alarm in alarms[:40]] == ["learning"] * 39 + ["ok"]


def test_fewer_false_alarms_are_later():
    at = [next(alarm.step for alarm in Monitor(false_alarms_per_1000=rate).run(steps(5, 300, onset=100)) if alarm)
          for rate in (10, 1, 0.1)]
    assert at == sorted(at) and len(set(at)) == 3


def test_equal_policies_alarm_at_the_first_difference():
    rng, monitor = np.random.default_rng(0), Monitor()
    for step in range(60):
        assert not monitor.update(step, measured(rng, 0.0))
    alarm = monitor.update(60, measured(rng, 1e-7))
    assert alarm and alarm.since_step == 60 and alarm.score == math.inf and alarm.false_alarm_probability == 0


def test_saved_and_restored_it_says_the_same():
    for cut in (0, 20, 40, 110):
        run = list(steps(9, 130, onset=90))
        monitor = Monitor(false_alarms_per_1000=3, learning_steps=30)
        list(monitor.run(run[:cut]))
        copies = [Monitor.from_bytes(monitor.to_bytes()), pickle.loads(pickle.dumps(monitor))]
        expected = list(map(plain, monitor.run(run[cut:])))
        for copy in copies:
            assert list(map(plain, copy.run(run[cut:]))) == expected
            assert copy.to_bytes() == monitor.to_bytes()


def test_damaged_bytes_are_refused():
    monitor = Monitor()
    list(monitor.run(steps(1, 45, onset=45)))
    saved = monitor.to_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        spoiled = bytearray(saved)
        spoiled[rng.integers(len(saved))] ^= 1 << rng.integers(8)
        with pytest.raises((lockstep.BadDataError, lockstep.UnsupportedError), match="^bytes"):
            Monitor.from_bytes(spoiled)
    for data in (b"", saved[:-1], saved[:-8], saved + bytes(8), bytes(1 << 21), rng.bytes(len(saved))):
        with pytest.raises((lockstep.BadDataError, lockstep.UnsupportedError), match="^bytes"):
            Monitor.from_bytes(data)
    with pytest.raises(lockstep.InvalidArgumentError, match="data is str"):
        Monitor.from_bytes("no bytes")


def test_bytes_that_no_monitor_writes_are_refused():
    # Under a right checksum: "there is a last step" is said by 2, and an absent one has a value (found by fuzzing).
    monitor = Monitor()
    monitor.update(3, PLAIN)
    for saved, place, value in ((monitor, 5, 2), (Monitor(), 6, 9)):
        words = np.frombuffer(saved.to_bytes(), "<u8").copy()
        assert Monitor.from_bytes(words.tobytes())
        words[place] = value
        checksum = 0xCBF29CE484222325
        for word in words[:-1].tolist():
            checksum = (checksum ^ word) * 0x100000001B3 % 2**64
        words[-1] = checksum
        with pytest.raises(lockstep.BadDataError, match="damaged"):
            Monitor.from_bytes(words.tobytes())


@pytest.mark.parametrize("options, text", [
    ({"learning_steps": 19}, "learning_steps is 19"), ({"learning_steps": 2**40}, "learning_steps is"),
    ({"learning_steps": 40.5}, "learning_steps is 40.5"), ({"false_alarms_per_1000": 0}, "false_alarms_per_1000"),
    ({"false_alarms_per_1000": math.nan}, "false_alarms_per_1000"), ({"false_alarms_per_1000": "few"}, "'few'"),
])
def test_bad_options_are_named(options, text):
    with pytest.raises(lockstep.InvalidArgumentError, match=text):
        Monitor(**options)


def test_bad_steps_are_named_and_change_nothing():
    monitor = Monitor()
    monitor.update(3, PLAIN)
    before = monitor.to_bytes()
    nan = Estimate(math.nan, math.nan)
    for step, mismatch, error, text in (
            (3, PLAIN, lockstep.InvalidArgumentError, "step is 3 but the last was 3: steps must increase"),
            (-1, PLAIN, lockstep.InvalidArgumentError, "step is -1"),
            (2**63, PLAIN, lockstep.InvalidArgumentError, "step is 9223372036854775808"),
            (1.5, PLAIN, lockstep.InvalidArgumentError, "step is 1.5"),
            (4, {"k3": 1e-3}, lockstep.InvalidArgumentError, "mismatch is dict"),
            (4, replace(PLAIN, k3=nan), lockstep.NonFiniteError, "k3"),
            (4, replace(PLAIN, max_abs_log_ratio=math.inf), lockstep.NonFiniteError, "max_abs_log_ratio"),
            (4, replace(PLAIN, tokens=-1), lockstep.InvalidArgumentError, "tokens")):
        with pytest.raises(error, match=text):
            monitor.update(step, mismatch)
        assert monitor.to_bytes() == before


def test_monitors_are_freed():
    for _ in range(200):
        Monitor.from_bytes(Monitor().to_bytes())
    gc.collect()
    assert Monitor().readings()["k3"].since_step is None
