"""How high the monitor's scores get without cause, and how early it warns with one.

    python benchmarks/calibrate_monitor.py thresholds   development seeds: the table of MonitorThresholds.swift
    python benchmarks/calibrate_monitor.py measure      held-out seeds: false alarms, delays, lead times
    python benchmarks/calibrate_monitor.py tables       the tables of docs/EarlyWarning.md, from the results
    python benchmarks/calibrate_monitor.py picture      docs/pictures/early-warning.svg, one run of each kind

`thresholds` and `measure` write their part of benchmarks/results/monitor.json; with --quick they take a few
runs, to see that everything works, and write nothing. The detector is the library's: this script makes
runs, feeds them to lockstep.Monitor's functions and counts.

A run is a series of steps. A step is a batch of sequences drawn with replacement from the real rollouts in
examples/data, each of some segments and with a log-ratio scale of its own; the statistics of the step are
those lockstep_mismatch would report. What varies in a run, and what is meant by a drift, is said beside the
functions below.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import time
from concurrent.futures import ProcessPoolExecutor
from ctypes import byref, c_void_p, sizeof
from dataclasses import dataclass

import numpy as np

import lockstep
from lockstep import _library as c
from lockstep.logs import read_prime_rl

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "monitor.json"
PICTURE = ROOT / "docs" / "pictures" / "early-warning.svg"
LOGS = ("bf16", "fp16", "bf16-rollout.fp32-trainer", "fp16-rollout.fp32-trainer")
RATES = (30, 10, 3, 1, 0.3, 0.1)  # false alarms in 1,000 steps
STATISTICS = tuple(c.MONITOR_STATISTICS)
LEARNING = 40  # the monitor's default

# Scales of d for which the sums of each real sequence are made once: 0.25 to 96, 1.5 % apart.
SCALES = 0.25 * 1.015 ** np.arange(400)
LARGEST = 20.0  # |d| beyond this is cut: no exponential overflows
SEGMENTS = 1500  # most sequence draws in one step, to bound the work


class Pool:
    """The sequences of one real log, summed at every scale."""

    def __init__(self, name: str) -> None:
        log = read_prime_rl([ROOT / "examples" / "data" / f"smollm2-135m.{name}.jsonl.gz"], label=name)
        trainer, rollout = log.trainer.astype(np.float64), log.rollout.astype(np.float64)
        pieces = [(trainer[a:b] - rollout[a:b], rollout[a:b], log.mask[a:b])
                  for a, b in zip(log.offsets, log.offsets[1:])]
        pieces = [(d[mask], b[mask]) for d, b, mask in pieces if mask.any()]
        self.tokens = np.array([len(d) for d, _ in pieces], np.float64)
        #: [sequences x scales x 4]: sums of exp(d) - 1 - d, r - 1, (r - 1)^2, |pi - mu|
        self.sums = np.empty((len(pieces), len(SCALES), 4))
        for i, (d, b) in enumerate(pieces):
            scaled = np.clip(SCALES[:, None] * d, -LARGEST, LARGEST)
            excess = np.expm1(scaled)
            for j, each in enumerate((excess - scaled, excess, excess**2, np.exp(b) * np.abs(excess))):
                self.sums[i, :, j] = each.sum(1)
        self.largest = np.array([np.abs(d).max() for d, _ in pieces])
        every = np.abs(np.concatenate([d for d, _ in pieces]))
        self.mean, self.tail = every.mean(), np.quantile(every, 0.998)


_pools: dict[str, Pool] = {}


def pool(name: str) -> Pool:
    if name not in _pools:
        _pools[name] = Pool(name)
    return _pools[name]


@dataclass
class Steps:
    """The statistics of each step of a run, [steps]."""

    tokens: np.ndarray
    k3: np.ndarray
    mean_ratio: np.ndarray
    chi_square: np.ndarray
    ess: np.ndarray
    largest: np.ndarray
    prob_diff: np.ndarray


def make_steps(rng, source: Pool, batch, segments, log_scale, spread, outliers, tail=None) -> Steps:
    """The steps of a run.

    batch, segments [steps]: sequences, and real sequences joined to one, on average. log_scale [steps]: of d.
    spread: standard deviation of a sequence's own log scale. outliers: tokens of a Pareto tail (exponent 2.5,
    from the 99.8 % quantile of |d|) a token. tail: (share of tokens, [steps] their mean |d|), on top.
    """
    count = len(batch)
    segments = np.minimum(segments, np.maximum(1, SEGMENTS / batch))
    kept = []
    first = 0
    while first < count:  # some steps at a time: the draws fit the cache
        last, draws = first, 0.0
        while last < count and draws < 60000:
            draws += batch[last] * segments[last]
            last += 1
        step = np.repeat(np.arange(last - first), batch[first:last])
        parts = 1 + rng.poisson(np.maximum(segments[first:last][step] - 1, 0))
        own = log_scale[first:last][step] + spread * rng.standard_normal(len(step))
        step, own = np.repeat(step, parts), np.repeat(own, parts)
        drawn = rng.integers(0, len(source.tokens), len(step))
        scale = np.clip(np.rint((own - np.log(SCALES[0])) / np.log(1.015)), 0, len(SCALES) - 1).astype(int)
        starts = np.searchsorted(step, np.arange(last - first))
        sums = np.add.reduceat(source.sums[drawn, scale], starts)
        tokens = np.add.reduceat(source.tokens[drawn], starts)
        largest = np.maximum.reduceat(source.largest[drawn] * SCALES[scale], starts)
        kept.append(np.column_stack([tokens, sums, np.minimum(largest, LARGEST)]))
        first = last
    tokens, k3, ratio, square, gap, largest = np.concatenate(kept).T.copy()

    def add(share, sizes):
        """Single tokens of |d| sizes(steps of the tokens), either sign."""
        where = np.repeat(np.arange(count), rng.poisson(share * tokens))
        d = np.clip(sizes(where) * rng.choice([-1, 1], len(where)), -LARGEST, LARGEST)
        excess = np.expm1(d)
        np.add.at(k3, where, excess - d)
        np.add.at(ratio, where, excess)
        np.add.at(square, where, excess**2)
        np.add.at(gap, where, np.minimum(0.1 * np.abs(excess), 0.9))  # at a probability of 0.1
        np.maximum.at(largest, where, np.abs(d))

    if outliers:
        add(outliers, lambda at: np.exp(log_scale[at]) * source.tail * (rng.pareto(2.5, len(at)) + 1))
    if tail is not None:
        add(tail[0], lambda at: tail[1][at] * rng.exponential(1, len(at)))
    mean_ratio, mean_square = 1 + ratio / tokens, square / tokens
    second = 1 + 2 * ratio / tokens + mean_square  # mean r^2
    return Steps(tokens, k3 / tokens, mean_ratio, second - 1, mean_ratio**2 / second, largest, gap / tokens)


def walk(rng, count: int, deviation: float, correlation: float) -> np.ndarray:
    """A stationary AR(1) series."""
    noise = rng.standard_normal(count) * math.sqrt(1 - correlation**2)
    noise[0] = rng.standard_normal()
    for t in range(1, count):
        noise[t] += correlation * noise[t - 1]
    return deviation * noise


def in_control(rng, count: int, kind: str) -> Steps:
    """A run without cause for alarm.

    All kinds: one of the four logs; 8 to 512 sequences a step, in 3 of 10 runs varying from a quarter to all of it;
    1 to 4 joined real sequences (122 tokens each), drifting to 0.5 to 3 times in 1,000 steps; sequences differ in
    scale by 5 to 30 %. "independent": nothing else. "autocorrelated" adds a floor that wanders (AR(1) of correlation
    0, 0.5, 0.8 or 0.95, log KL deviating by up to 0.24) and trends (log KL by -0.7 to +0.4 in 1,000 steps), bursts
    (1 % of steps, each going on with probability 1/2, log |d| up by 0.3 |Student t of 3|) and outlier tokens (1 in
    100,000). The others make one thing worse than that family has it, to see what breaks.
    """
    source = pool(LOGS[rng.integers(len(LOGS))])
    base = int(np.exp(rng.uniform(np.log(8), np.log(512))))
    batch = np.full(count, 8 if kind == "batch of 8" else base)
    if rng.random() < 0.3 and kind != "batch of 8":
        batch = np.maximum(4, (base * rng.uniform(0.25, 1, count)).astype(int))
    thousands = np.arange(count) / 1000
    segments = np.exp(rng.uniform(0, np.log(4))) * np.exp(rng.uniform(np.log(0.5), np.log(3))) ** thousands
    log_scale, outliers = np.zeros(count), 0.0
    if kind != "independent":
        deviation, correlation = rng.uniform(0, 0.12), rng.choice([0, 0.5, 0.8, 0.95])
        trend, chance, outliers = rng.uniform(-0.7, 0.4), 0.01, 1e-5
        if kind == "correlation 0.95, deviation 0.24":
            deviation, correlation = 0.12, 0.95
        if kind == "correlation 0.99, deviation 0.24":
            deviation, correlation = 0.12, 0.99
        if kind == "deviation 0.5":
            deviation = 0.25
        if kind == "KL doubles in 1,000 steps":
            trend = np.log(2)
        if kind == "bursts in 4 % of steps":
            chance = 0.04
        log_scale = walk(rng, count, deviation, correlation) + 0.5 * trend * thousands
        going = False
        for t, starts in enumerate(rng.random(count) < chance):
            if starts or going:
                log_scale[t] += 0.3 * abs(rng.standard_t(3))
                going = rng.random() < 0.5
    return make_steps(rng, source, batch, segments, log_scale, rng.uniform(0.05, 0.3), outliers)


STRESS = ("batch of 8", "correlation 0.95, deviation 0.24", "correlation 0.99, deviation 0.24", "deviation 0.5",
          "KL doubles in 1,000 steps", "bursts in 4 % of steps")


@dataclass(frozen=True)
class Drift:
    """What a run does from `onset` on. `lost`: the step at which the reward of the published run peaked."""

    title: str
    onset: int
    count: int
    lost: int | None
    log_kl: object = None  # step -> growth of log KL
    tail: object = None  # step -> mean |d| of 1 token in 10,000, in units of the log's mean |d|


def _growth(onset: int, factor: float, over: int):
    return lambda t: np.maximum(0, t - onset) * np.log(factor) / over


# The first four are read off published figures by eye: KL floor, start of growth, and a later value.
DRIFTS = {
    "oat-grpo": Drift("Oat GRPO: 2,200 times the floor in 490 steps", 110, 600, 390, _growth(110, 2200, 490)),
    "oat-token-tis": Drift("Oat Token-TIS: 150 times in 720", 350, 900, 850, _growth(350, 150, 720)),
    "oat-gspo": Drift("Oat GSPO: 350 times in 890", 250, 1050, 1000, _growth(250, 350, 890)),
    "vexact": Drift("VeXact's vLLM run: 2, 10, 1,000 times in 20, 65, 95", 235, 400, 280, lambda t: np.interp(
        t, [235, 255, 300, 330, 400], np.log([1, 2, 10, 1000, 40000]))),
    "step-2": Drift("KL doubles at once", 300, 700, None, lambda t: np.log(2) * (t >= 300)),
    "step-1.5": Drift("KL up by half at once", 300, 700, None, lambda t: np.log(1.5) * (t >= 300)),
    "step-1.25": Drift("KL up by a quarter at once", 300, 1000, None, lambda t: np.log(1.25) * (t >= 300)),
    "linear": Drift("KL grows by its floor every 500 steps", 200, 1200, None,
                    lambda t: np.log1p(np.maximum(0, t - 200) / 500)),
    "tail": Drift("1 token in 10,000 grows from 5 mean |d|, doubling in 60 steps", 300, 900, None,
                  lambda t: 0.0 * t, lambda t: 5 * 2 ** (np.maximum(0, t - 300) / 60) * (t >= 300)),
}


def drifting(rng, name: str) -> Steps:
    """An autocorrelated run, without bursts or trend, of 32 to 512 sequences of the bf16 log, with a drift."""
    drift, source = DRIFTS[name], pool("bf16")
    t = np.arange(drift.count)
    log_scale = walk(rng, drift.count, rng.uniform(0, 0.12), rng.choice([0, 0.5, 0.8, 0.95]))
    log_scale += np.minimum(0.5 * drift.log_kl(t), np.log(80))
    batch = np.full(drift.count, int(np.exp(rng.uniform(np.log(32), np.log(512)))))
    segments = np.full(drift.count, np.exp(rng.uniform(0, np.log(4))))
    tail = None if drift.tail is None else (1e-4, np.minimum(drift.tail(t) * source.mean, LARGEST))
    return make_steps(rng, source, batch, segments, log_scale, rng.uniform(0.05, 0.3), 1e-5, tail)


class Watch:
    """The library's monitor, by its C functions: what every step of a run says."""

    def __init__(self, steps: Steps, rate: float = 1.0, learning: int = LEARNING, scores: bool = False) -> None:
        library, monitor = c.library, c_void_p()
        options = c.MonitorOptions(sizeof(c.MonitorOptions), learning, rate)
        c.check(library.lockstep_monitor_create(byref(monitor), options))
        count = len(steps.tokens)
        self.level, self.since = np.empty(count, np.int8), np.empty(count, np.int64)
        self.statistic = np.empty(count, np.int8)
        self.scores = np.zeros((count, len(STATISTICS)), np.float32) if scores else None
        mismatch, alarm = c.Mismatch(sizeof(c.Mismatch)), c.MonitorAlarm(sizeof(c.MonitorAlarm))
        reading = c.MonitorReading()
        for t in range(count):
            mismatch.tokens = int(steps.tokens[t])
            mismatch.k3.value, mismatch.chi_square.value = steps.k3[t], steps.chi_square[t]
            mismatch.mean_ratio.value, mismatch.ess = steps.mean_ratio[t], steps.ess[t]
            mismatch.max_abs_log_ratio = steps.largest[t]
            c.check(library.lockstep_monitor_update(alarm, monitor, t, mismatch))
            self.level[t], self.since[t], self.statistic[t] = alarm.level, alarm.since_step, alarm.statistic
            if scores:
                for j in range(len(STATISTICS)):
                    library.lockstep_monitor_read(reading, monitor, j)
                    self.scores[t, j] = reading.score
        library.lockstep_monitor_destroy(monitor)

    @property
    def alarms(self) -> np.ndarray:
        """The steps at which an alarm began."""
        return begins(self.level == c.MONITOR_ALARM)


def begins(on: np.ndarray) -> np.ndarray:
    return np.flatnonzero(on & ~np.concatenate([[False], on[:-1]]))


# thresholds -----------------------------------------------------------------------------------------------


def _scores(task) -> np.ndarray:
    seed, run, count = task
    steps = in_control(np.random.default_rng([seed, run]), count, "autocorrelated")
    return Watch(steps, scores=True).scores[LEARNING:]


def peaks(scores: np.ndarray) -> np.ndarray:
    """The highest score of each excursion from 0, descending. scores [runs x steps]"""
    found = []
    for run in scores:
        padded = np.concatenate([[0], run, [0]])
        zero = np.flatnonzero(padded == 0)
        found.append(np.maximum.reduceat(padded, zero[:-1]))
    every = np.concatenate(found)
    return np.sort(every[every > 0])[::-1]


def entries(scores: np.ndarray, alarm: np.ndarray, watch: np.ndarray) -> int:
    """How often an alarm begins: some score reaches `alarm`; it ends when all are below `watch`."""
    above, below = (scores >= alarm).any(2), (scores < watch).all(2)
    alarmed, total = np.zeros(len(scores), bool), 0
    for t in range(scores.shape[1]):
        total += int((above[:, t] & ~alarmed).sum())
        alarmed = above[:, t] | (alarmed & ~below[:, t])
    return total


def thresholds(workers, runs: int, count: int, seed: int) -> dict:
    """For each rate, the score each statistic reaches equally often, such that any of them does at the rate."""
    scores = np.stack(list(workers.map(_scores, [(seed, run, count) for run in range(runs)], chunksize=4)))
    thousands = scores.shape[0] * scores.shape[1] / 1000
    ranked = [peaks(scores[..., j]) for j in range(len(STATISTICS))]

    def at(rate):  # the scores that each statistic reaches `rate` times in 1,000 steps
        return np.array([r[min(max(int(rate * thousands) - 1, 0), len(r) - 1)] for r in ranked])

    table = []
    for index, rate in enumerate(RATES):
        watch = table[max(0, index - 2)] if table else None
        low, high = 0.1, 1.0  # share of the rate that each statistic gets
        for _ in range(7):
            share = (low + high) / 2
            alarm = at(rate * share)
            found = entries(scores, alarm, alarm if watch is None else watch) / thousands
            low, high = (low, share) if found > rate else (share, high)
        table.append([round(float(x), 2) for x in at(rate * low)])
        print(rate, table[-1], f"share {low:.2f}", flush=True)
    return {
        "rates_per_1000": RATES, "statistics": STATISTICS, "scores": np.array(table).T.tolist(),
        "runs": runs, "steps": int(thousands * 1000), "seed": seed, "kind": "autocorrelated",
    }


# measure --------------------------------------------------------------------------------------------------


def smoothed(values: np.ndarray) -> np.ndarray:
    """Mean of the last 10 steps."""
    sums = np.concatenate([[0], np.cumsum(values)])
    last = np.arange(1, len(values) + 1)
    first = np.maximum(0, last - 10)
    return (sums[last] - sums[first]) / (last - first)


def doubled(values: np.ndarray) -> np.ndarray:
    """Steps at which the 10-step mean is above twice the median of the learning steps."""
    above = smoothed(values) > 2 * np.median(values[:LEARNING])
    above[:LEARNING] = False
    return above


BASELINES = {
    "KL above 0.01": lambda s: s.k3 > 0.01,
    "KL above 0.1": lambda s: s.k3 > 0.1,
    "KL, mean of 10, above twice its floor": lambda s: doubled(s.k3),
    "mean |pi - mu|, mean of 10, above twice its floor": lambda s: doubled(s.prob_diff),
}


def _false_alarms(task) -> dict:
    kind, seed, run, count, rate, learning = task
    steps = in_control(np.random.default_rng([seed, run]), count, kind)
    watch = Watch(steps, rate, learning)
    out = {"monitor": len(watch.alarms), "first": bool((watch.alarms < learning + 1000).any()),
           "share": float((watch.level == c.MONITOR_ALARM).mean())}
    if rate == 1:
        out["two"] = len(begins(doubled(steps.k3)))
    return out


def interval(counts: np.ndarray, thousands: float, rng) -> list[float]:
    """95 % of a rate: percentiles over resampled runs, as alarms of one run are not independent. Without any, the
    95 % bound of independent ones."""
    if not counts.any():
        return [0.0, 3.0 / (thousands * len(counts))]
    sums = rng.choice(counts, (4000, len(counts))).mean(1) / thousands
    return [float(x) for x in np.quantile(sums, [0.025, 0.975])]


def false_alarms(workers, runs: int, count: int, seed: int) -> list[dict]:
    cells = [("independent", 1.0, LEARNING, 1), ("autocorrelated", 1.0, LEARNING, 1)]
    cells += [("autocorrelated", rate, LEARNING, 1) for rate in (10.0, 0.1)]
    cells += [("autocorrelated", 1.0, learning, 0.4) for learning in (20, 100)]
    cells += [(kind, 1.0, LEARNING, 0.2) for kind in STRESS]
    rng, table = np.random.default_rng(seed), []
    for kind, rate, learning, part in cells:
        n = max(2, int(runs * part))
        found = list(workers.map(_false_alarms, [(kind, seed, r, count, rate, learning) for r in range(n)], chunksize=4))
        thousands = (count - learning) / 1000
        alarms = np.array([f["monitor"] for f in found])
        row = {
            "kind": kind, "promised_per_1000": rate, "learning_steps": learning, "runs": n,
            "steps": int(n * thousands * 1000), "alarms": int(alarms.sum()),
            "per_1000": float(alarms.mean() / thousands), "interval_95": interval(alarms, thousands, rng),
            "share_of_runs_alarmed_in_1000": float(np.mean([f["first"] for f in found])),
            "share_of_steps_in_alarm": float(np.mean([f["share"] for f in found])),
        }
        if rate == 1:
            twice = np.array([f["two"] for f in found])
            row["baseline_kl_doubled_per_1000"] = float(twice.mean() / thousands)
        table.append(row)
        print({k: v for k, v in row.items() if k not in ("steps",)}, flush=True)
    return table


def _detections(task) -> dict:
    name, seed, run = task
    drift = DRIFTS[name]
    steps = drifting(np.random.default_rng([seed, sorted(DRIFTS).index(name), run]), name)
    watch = Watch(steps)
    after = watch.alarms[watch.alarms >= drift.onset]
    on = watch.level == c.MONITOR_ALARM
    at = drift.onset if on[drift.onset] else int(after[0]) if len(after) else None
    out = {"early": bool(on[: drift.onset].any()), "at": at}
    if at is not None:
        out.update(since=int(watch.since[at]), statistic=STATISTICS[watch.statistic[at]],
                   growth=float(np.exp(drift.log_kl(np.array(at)))))
    for title, rule in BASELINES.items():
        hits = np.flatnonzero(rule(steps)[drift.onset:])
        out[title] = drift.onset + int(hits[0]) if len(hits) else None
    return out


def spread_of(values: list) -> dict | None:
    """Median and the middle 80 %, None counting as never."""
    if not values:
        return None
    ranked = sorted(math.inf if v is None else v for v in values)
    pick = [ranked[min(len(ranked) - 1, int(q * len(ranked)))] for q in (0.1, 0.5, 0.9)]
    return {"p10_median_p90": [None if math.isinf(v) else v for v in pick],
            "never": sum(v is None for v in values)}


def detections(workers, runs: int, seed: int) -> list[dict]:
    table = []
    for name, drift in DRIFTS.items():
        every = list(workers.map(_detections, [(name, seed, run) for run in range(runs)], chunksize=4))
        found = [f for f in every if not f["early"]]  # a run already in alarm measures nothing
        seen = [f for f in found if f["at"] is not None]
        row = {
            "drift": name, "title": drift.title, "onset": drift.onset, "lost": drift.lost, "runs": len(found),
            "runs_alarmed_before": len(every) - len(found),
            "delay": spread_of([None if f["at"] is None else f["at"] - drift.onset for f in found]),
            "growth_of_kl_at_alarm": spread_of([f["growth"] for f in seen]),
            "since_minus_onset": spread_of([f["since"] - drift.onset for f in seen]),
            "statistic": {s: sum(f["statistic"] == s for f in seen) for s in STATISTICS},
            "baseline_delay": {title: spread_of([None if f[title] is None else f[title] - drift.onset for f in found])
                               for title in BASELINES},
        }
        if drift.lost is not None:
            row["lead"] = spread_of([drift.lost - f["at"] for f in seen])
            row["baseline_lead"] = {
                title: spread_of([drift.lost - f[title] for f in found if f[title] is not None]) for title in BASELINES}
        table.append(row)
        print(name, "delay", row["delay"], "lead", row.get("lead"), "since", row["since_minus_onset"], row["statistic"],
              "early", row["runs_alarmed_before"], flush=True)
    return table


# tables ---------------------------------------------------------------------------------------------------


def tables(results: dict) -> str:
    """The tables of docs/EarlyWarning.md."""
    measured = results["measured"]
    lines = ["| held-out runs | asked for | learning steps | steps | measured [95 %] | runs with one in 1,000 steps |"
             " rule \"KL doubled\" |", "|---|---|---|---|---|---|---|"]
    for row in measured["false_alarms"]:
        low, high = row["interval_95"]
        other = row.get("baseline_kl_doubled_per_1000")
        lines.append(
            f"| {row['kind']} | {row['promised_per_1000']:g} | {row['learning_steps']} | {row['steps']:,} |"
            f" {row['per_1000']:.2f} [{low:.2f}, {high:.2f}] | {row['share_of_runs_alarmed_in_1000']:.0%} |"
            f" {'' if other is None else f'{other:.2f}'} |")
    lines += ["", "| drift | alarm after | KL has grown | lead | \"since\" off by | first to alarm | alarmed before |",
              "|---|---|---|---|---|---|---|"]
    for row in measured["drifts"]:
        first = max(row["statistic"], key=row["statistic"].get)
        growth = _range(row["growth_of_kl_at_alarm"], "{:.2f}")
        lines.append(f"| {row['title']} | {_range(row['delay'])} | {growth} | {_range(row.get('lead'))} |"
                     f" {_range(row['since_minus_onset'])} | {first} {row['statistic'][first]} |"
                     f" {row['runs_alarmed_before']} of {row['runs'] + row['runs_alarmed_before']} |")
    lines += ["", "| lead over the peak | monitor | " + " | ".join(BASELINES) + " |", "|---|" + "---|" * (1 + len(BASELINES))]
    for row in measured["drifts"]:
        if row["lost"] is not None:
            cells = [_range(row["baseline_lead"][title]) for title in BASELINES]
            lines.append(f"| {row['title']} | {_range(row['lead'])} | " + " | ".join(cells) + " |")
    return "\n".join(line.replace("|d|", "\\|d\\|").replace("|pi - mu|", "\\|pi - mu\\|") for line in lines)


def _range(found: dict | None, form: str = "{:.0f}") -> str:
    """Median and middle 80 %."""
    if found is None:
        return "–"
    low, middle, high = ("never" if each is None else form.format(each) for each in found["p10_median_p90"])
    return f"**{middle}** ({low} to {high})"


# picture --------------------------------------------------------------------------------------------------


def picture() -> None:
    """One run of three drifts: the KL against its floor, and when the monitor warned."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "lockstep", "svg.fonttype": "none", "path.simplify_threshold": 0.5})
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(11, 3.2), constrained_layout=True)
    for axes, name in zip(panels, ("oat-grpo", "vexact", "tail")):
        drift = DRIFTS[name]
        steps = drifting(np.random.default_rng([5, sorted(DRIFTS).index(name), 3]), name)
        watch = Watch(steps)
        at = watch.alarms[watch.alarms >= drift.onset][0]
        axes.semilogy(steps.k3, color="#4477aa", lw=1, label="KL (k3)")
        axes.semilogy(steps.largest, color="#bbbbbb", lw=1, label="max |d|")
        axes.axvspan(0, LEARNING, color="#eeeeee", label="floor is learnt")
        axes.axvline(watch.since[at], color="#ccbb44", ls=":", label=f"since step {watch.since[at]}")
        axes.axvline(at, color="#ee6677", label=f"alarm at {at} ({STATISTICS[watch.statistic[at]]})")
        if drift.lost is not None:
            axes.axvline(drift.lost, color="black", ls="--", label=f"reward peaks at {drift.lost}")
        axes.set_title(drift.title.replace(": ", ":\n") if ":" in drift.title else drift.title.replace(", ", ",\n"),
                       fontsize=8)
        axes.set_xlim(0, 30 + (drift.lost or drift.onset + 200))
        axes.set_ylim(5e-4, 500)
        axes.set_xlabel("step")
        axes.legend(fontsize=6, loc="upper left", ncols=2)
    figure.savefig(PICTURE, metadata={"Date": None})
    print(PICTURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("thresholds", "measure", "tables", "picture"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if arguments.task == "picture":
        return picture()
    if arguments.task == "tables":
        return print(tables(json.loads(RESULTS.read_text())))
    quick, started = arguments.quick, time.time()
    written = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with ProcessPoolExecutor(arguments.workers) as workers:
        if arguments.task == "thresholds":
            written["thresholds"] = thresholds(workers, 8 if quick else 1600, 300 if quick else 2000, seed=1)
        else:
            written["measured"] = {
                "library": lockstep.__version__, "seed": 2, "numpy": np.__version__,
                "false_alarms": false_alarms(workers, 6 if quick else 500, 300 if quick else 2000, seed=2),
                "drifts": detections(workers, 4 if quick else 150, seed=2),
            }
    print(f"{time.time() - started:.0f} s")
    if not quick:
        RESULTS.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
