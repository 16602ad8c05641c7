"""Loss scalers: every golden trace of the peers' own, saved states, replays, and the peers themselves."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from conftest import VECTORS

import lockstep
from lockstep import LossScaler, replay_loss_scaler

CASES = json.loads((VECTORS / "scaler.json").read_text())["cases"]
NAMES = {"torch": "torch", "deepspeed": "deepspeed", "megatron-core": "megatron"}
OPTIONS = {
    "init_scale": "initial_scale", "initial_scale": "initial_scale", "growth_factor": "growth_factor",
    "backoff_factor": "backoff_factor", "growth_interval": "growth_interval", "scale_window": "growth_interval",
    "min_scale": "minimum_scale", "delayed_shift": "hysteresis", "hysteresis": "hysteresis",
    "consecutive_hysteresis": "consecutive_hysteresis",
}


def scaler_of(case) -> LossScaler:
    return LossScaler(NAMES[case["system"]], **{OPTIONS[key]: value for key, value in case["params"].items()})


def flags_of(case) -> list[bool]:
    return [bool(flag) for flag, count in case["found_inf_rle"] for _ in range(count)]


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_golden_traces(case):
    scaler, flags = scaler_of(case), flags_of(case)
    before, after, skipped = [], [], []
    for index, flag in enumerate(flags):
        before.append(scaler.scale)
        report = scaler.update(flag)
        after.append(report.scale)
        skipped.append(int(report.skip))
        if index == len(flags) // 2:
            scaler = pickle.loads(pickle.dumps(scaler))  # goes on with the same scales
    if "scale_after" in case:
        assert before == case["scale_before"] and after == case["scale_after"] and skipped == case["skipped"]
    else:
        start = case["params"].get("init_scale", case["params"].get("initial_scale"))
        changes = [[index, new] for index, (old, new) in enumerate(zip([start] + after, after)) if old != new]
        assert changes == case["scale_changes"] and sum(skipped) == case["skipped_steps"]
    report = scaler.report
    assert report.steps == len(flags) and report.skipped == sum(flags)
    scales = [before[0]] + after
    assert report.growths == sum(b > a for a, b in zip(scales, scales[1:]))
    assert report.backoffs == sum(b < a for a, b in zip(scales, scales[1:]))
    assert report.last_skipped == max((i for i, flag in enumerate(flags) if flag), default=None)


def test_all_golden_traces_are_there():
    assert len(CASES) == 90


def test_a_scale_at_its_floor_is_an_alarm():
    for name in ("torch", "deepspeed", "megatron"):
        scaler = LossScaler(name, initial_scale=4.0, growth_interval=3)
        alarms = [scaler.update(True).at_floor for _ in range(6)]
        assert alarms[-1] and not alarms[0], name
        assert scaler.report.floor_overflows == sum(alarms) and scaler.report.longest_skip == 6
        for _ in range(20):
            report = scaler.update(False)
        assert report.scale > 1 and not report.at_floor, name
    constant = LossScaler("constant", initial_scale=8.0)
    assert [constant.update(flag).at_floor for flag in (False, True, True, False)] == [False, True, True, False]
    assert constant.scale == 8


def test_no_scale_becomes_infinite():
    for name in ("torch", "deepspeed", "megatron"):
        scaler = LossScaler(name, initial_scale=2.0**126, growth_interval=1)
        for _ in range(8):
            scaler.update(False)
        assert scaler.scale == 2.0**127, name


def test_defaults():
    assert LossScaler("paper").options == LossScaler("torch").options | {"growth_interval": 400}
    assert LossScaler("torch").options["growth_interval"] == 2000
    assert LossScaler("megatron").scale == 2.0**32 and LossScaler("megatron").options["hysteresis"] == 2
    assert lockstep.loss_scaler_names() == ["constant", "torch", "deepspeed", "megatron", "paper"]
    for name in lockstep.loss_scaler_names():
        LossScaler(name)


@pytest.mark.parametrize("name, options, word", [
    ("adam", {}, "adam"), (3, {}, "name"), ("torch", {"grow": 2}, "grow"),
    ("torch", {"initial_scale": 0}, "initial_scale"), ("torch", {"initial_scale": float("nan")}, "initial_scale"),
    ("torch", {"initial_scale": 1e39}, "initial_scale"), ("torch", {"growth_factor": 1}, "growth_factor"),
    ("torch", {"backoff_factor": 1}, "backoff_factor"), ("torch", {"backoff_factor": 0}, "backoff_factor"),
    ("deepspeed", {"backoff_factor": 0.25}, "backoff_factor"), ("torch", {"growth_interval": 0}, "growth_interval"),
    ("torch", {"hysteresis": 2}, "hysteresis"), ("megatron", {"hysteresis": 0}, "hysteresis"),
    ("megatron", {"consecutive_hysteresis": True}, "consecutive"), ("torch", {"minimum_scale": 1e6}, "minimum_scale"),
    ("torch", {"maximum_scale": 1}, "maximum_scale"), ("torch", {"minimum_scale": -1}, "minimum_scale"),
])
def test_bad_options(name, options, word):
    with pytest.raises(lockstep.InvalidArgumentError, match=word):
        LossScaler(name, **options)


def test_damaged_bytes_are_refused():
    scaler = LossScaler("deepspeed", growth_interval=3)
    for step in range(50):
        scaler.update(step % 7 == 3)
    data = scaler.to_bytes()
    assert LossScaler.from_bytes(data).report == scaler.report
    for index in range(len(data)):
        damaged = bytearray(data)
        damaged[index] ^= 1 << index % 8
        with pytest.raises((lockstep.BadDataError, lockstep.UnsupportedError)):
            LossScaler.from_bytes(bytes(damaged))
    for size in range(len(data)):
        with pytest.raises(lockstep.BadDataError):
            LossScaler.from_bytes(data[:size])
    with pytest.raises(lockstep.BadDataError):
        LossScaler.from_bytes(data + b"\0")
    with pytest.raises(lockstep.InvalidArgumentError):
        LossScaler.from_bytes("text")


@pytest.mark.parametrize("name, options", [
    ("megatron", {"minimum_scale": 1.000000886619091, "initial_scale": 4.0}), ("torch", {"initial_scale": 0.7, "minimum_scale": 0.7}),
    ("torch", {"initial_scale": 0.3, "maximum_scale": 0.3}), ("deepspeed", {"minimum_scale": 0.7, "initial_scale": 4.0}),
])
def test_what_float32_moves_across_a_bound_loads_again(name, options):
    # torch and Megatron keep a scale in float32, whose nearest to a bound may lie beyond it (found by fuzzing).
    scaler = LossScaler(name, **options)
    for _ in range(9):
        assert LossScaler.from_bytes(scaler.to_bytes()).report == scaler.report
        scaler.update(True)


def test_a_replay_is_the_scaler_told_of_each_overflow():
    rng = np.random.default_rng(1)
    maxima = np.exp(rng.normal(0, 3, 500)).astype(np.float32)
    maxima[[50, 51, 300]] = [np.inf, np.nan, 0]
    for name in lockstep.loss_scaler_names():
        found = replay_loss_scaler(maxima, name, **({} if name == "constant" else {"growth_interval": 5}))
        scaler = LossScaler(name, **({} if name == "constant" else {"growth_interval": 5}))
        for step, maximum in enumerate(maxima):
            assert found.scales[step] == scaler.scale
            report = scaler.update(not float(maximum) * scaler.scale < 65520)
            assert found.skipped[step] == report.skip
        assert found.report == scaler.report and found.report.skipped > 5
    # To the last value that fp16 rounds down to 65,504.
    edge = replay_loss_scaler(np.array([65519.0, 65520.0]), "constant", initial_scale=1.0)
    assert edge.skipped.tolist() == [False, True] 
    assert replay_loss_scaler(np.empty(0)).report.steps == 0
    with pytest.raises(lockstep.InvalidArgumentError, match="maxima: step 1"):
        replay_loss_scaler(np.array([1.0, -1.0]))
    with pytest.raises(lockstep.InvalidArgumentError, match="limit"):
        replay_loss_scaler(np.array([1.0]), limit=0)
    with pytest.raises(lockstep.InvalidArgumentError, match="maxima"):
        replay_loss_scaler(np.ones((2, 2)))


def test_beside_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    theirs = torch.amp.GradScaler("cpu", init_scale=128.0, growth_factor=1.7, backoff_factor=0.3, growth_interval=3)
    mine = LossScaler("torch", initial_scale=128.0, growth_factor=1.7, backoff_factor=0.3, growth_interval=3)
    parameter = torch.nn.Parameter(torch.ones(1))
    optimiser = torch.optim.SGD([parameter], lr=0.0)
    for overflow in rng.random(200) < 0.2:
        assert mine.scale == theirs.get_scale()
        theirs.scale(parameter.sum())
        parameter.grad = torch.full((1,), float("inf") if overflow else 1.0)
        theirs.step(optimiser)
        theirs.update()
        mine.update(overflow)
