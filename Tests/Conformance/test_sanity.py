"""`lockstep sanity`: what precision does to mismatch and gradients, and that a run is a function of its configuration."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from dataclasses import replace

import pytest
from click.testing import CliRunner
from conftest import ROOT

import lockstep
from lockstep.commands import commands
from lockstep.report import mantissa
from lockstep.sanity import experiment, results, runs
from lockstep.sanity.experiment import Pair, Settings
from lockstep.sanity.probe import probe

CHAIN = ROOT / "examples" / "data" / "chain-sft"
SMALL = Settings(steps=4, probe_every=2, problems=8, prompts=4, samples=4)


def make_jobs(names, algorithms=("grpo",), seeds=1, settings=SMALL):
    pairs = [name if isinstance(name, Pair) else Pair.named(name) for name in names]
    return experiment.jobs(pairs, algorithms, seeds, settings, CHAIN)


def carried_out(jobs, out):
    for job in jobs:
        runs.carry_out(job, out, threads=2)
    return results.cells(results.read(job, out) for job in jobs)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Two steps of the full experiment's size in bf16 and fp16, about 8,000 tokens each, by pair."""
    jobs = make_jobs(("bf16", "fp16", "bf16:lockstep", "fp16:lockstep", Pair("fp32 head", "fp16", "fp16-fp32head")),
                     settings=Settings(steps=2, probe_every=2, problems=32))
    return {each.pair.name: each for each in carried_out(jobs, tmp_path_factory.mktemp("runs"))}


def test_mismatch_follows_the_bits(cells):
    """Three mantissa bits more: 64 in KL, 8 in |d|."""
    def ratio(value):
        return value(cells["bf16"]).value / value(cells["fp16"]).value

    assert 30 < ratio(lambda each: each.probed("exact_kl")) < 130
    assert 30 < ratio(lambda each: each.over_run("k3")) < 130
    assert 5 < ratio(lambda each: each.over_run("mean_abs_log_ratio")) < 12
    # The exact KL and its estimate are of the same thing.
    for name in ("bf16", "fp16"):
        assert 0.5 < cells[name].probed("exact_kl").value / cells[name].over_run("k3").value < 2


def test_rounding_of_gradients_follows_the_bits(cells):
    for name in ("pass_error", "backward_error"):
        ratio = cells["bf16"].probed(name).value / cells["fp16"].probed(name).value
        assert 4 < ratio < 16, (name, ratio)
        # Of two gradients that far apart, the angle is what a random difference makes: 1 - cos is about error² / 2.
        error, angle = cells["bf16"].probed(name).value, cells["bf16"].probed(name.replace("error", "angle")).value
        assert 0.1 < 2 * angle / error**2 < 1.1


def test_lockstep_engines_are_one_policy_and_others_are_not(cells):
    for name in ("bf16:lockstep", "fp16:lockstep"):
        assert cells[name].pair.must_be_zero and not cells[name].differs
        assert cells[name].probed("exact_kl").value == 0 and cells[name].largest("max_abs_prob_diff").value == 0
    # The control: one rounding less in one of the engines is enough to show.
    perturbed = cells["fp32 head"]
    assert not perturbed.pair.must_be_zero and perturbed.differs and perturbed.probed("exact_kl").value > 0


def test_gradients_of_a_lockstep_pair_err_by_the_trainers_rounding_alone(cells):
    """With mismatch and without it, the error is of one size: most of it is the trainer's own."""
    for name in ("bf16", "fp16"):
        apart, same = (cells[pair].probed("gradient_error").value for pair in (name, f"{name}:lockstep"))
        assert 0.3 < apart / same < 3
        assert same > cells[name].probed("backward_error").value


def test_fp16_needs_a_loss_scale():
    """Unscaled gradients vanish in part; one too large overflows, is seen, and halved until it does not."""
    def measured(scale):
        return probe(CHAIN, Pair.named("fp16:lockstep"), "grpo", range(8), SMALL, seed=0, loss_scale=scale)

    scaled, unscaled, large = measured(2.0**16), measured(1.0), measured(2.0**40)
    assert unscaled["backward_error"] > 2 * scaled["backward_error"]
    assert unscaled["loss_scale"] == 1 and scaled["loss_scale"] == 2.0**16
    assert 2.0**16 < large["loss_scale"] < 2.0**40 and large["backward_error"] < unscaled["backward_error"]


def test_the_reference_needs_no_correction():
    """A trainer in the reference's precision that is the rollout engine has the exact weight 1: no error at all."""
    found = probe(CHAIN, Pair.named("fp32:lockstep"), "pg-seq-is", range(8), SMALL, seed=0)
    assert found["gradient_error"] < 1e-6 and found["pass_error"] == found["backward_error"] == found["exact_kl"] == 0


def test_kl_against_mantissa_bits(tmp_path):
    """A factor of 4 for each bit, from 3 to 10: the exponent within 25 % of 2."""
    jobs = make_jobs([f"e8m{bits}" for bits in range(3, 11)],
                     settings=replace(SMALL, steps=1, probe_every=1, prompts=8))
    found = carried_out(jobs, tmp_path)
    factor = mantissa.slope([(mantissa.bits(each), each) for each in found])
    assert abs(math.log2(factor) / 2 - 1) < 0.25, factor
    kl = [each.over_run("k3").value for each in found]
    assert kl == sorted(kl, reverse=True)


# A run is a function of its configuration


class Break(Exception):
    """The end of a process, before it could do anything about it."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without a break, on one thread, and its lines."""
    out = tmp_path_factory.mktemp("whole")
    [job] = make_jobs(["fp16"], ["grpo-token-tis"])
    runs.carry_out(job, out, threads=1)
    return job, (out / "runs" / f"{job.name}.jsonl").read_bytes()


def test_threads_do_not_show(whole, tmp_path):
    job, lines = whole
    runs.carry_out(job, tmp_path, threads=2)
    assert (tmp_path / "runs" / f"{job.name}.jsonl").read_bytes() == lines
    assert not (tmp_path / "checkpoints" / job.name).exists()


@pytest.mark.parametrize("name, calls", [("step", 1), ("step", 2), ("step", 3), ("save", 1), ("save", 2)])
def test_a_break_does_not_show(whole, tmp_path, monkeypatch, name, calls):
    """After a step whose line is not written, or after a checkpoint whose probe is not."""
    job, lines = whole
    original, left = getattr(lockstep.Run, name), [calls]

    def breaking(self, *arguments):
        found = original(self, *arguments)
        left[0] -= 1
        if left[0] == 0:
            raise Break
        return found

    with monkeypatch.context() as patch:
        patch.setattr(lockstep.Run, name, breaking)
        with pytest.raises(Break):
            runs.carry_out(job, tmp_path)
    path = tmp_path / "runs" / f"{job.name}.jsonl"
    assert not runs.is_done(job, path)
    with path.open("ab") as file:
        file.write(b'{"step": 4, "rew')  # a line that was cut off
    runs.carry_out(job, tmp_path)
    assert path.read_bytes() == lines


def test_another_seed_is_another_run(whole, tmp_path):
    job, lines = whole
    runs.carry_out(replace(job, seed=1), tmp_path)
    other = (tmp_path / "runs" / f"{replace(job, seed=1).name}.jsonl").read_bytes()
    assert other.count(b"\n") == lines.count(b"\n") and other.splitlines()[1:] != lines.splitlines()[1:]


def test_a_run_that_diverges_ends_with_a_line(tmp_path):
    [job] = make_jobs(["fp16"])
    job = replace(job, settings=replace(SMALL, learning_rate=1e6))
    runs.carry_out(job, tmp_path)
    [found] = results.cells([results.read(job, tmp_path)])
    assert runs.is_done(job, tmp_path / "runs" / f"{job.name}.jsonl")
    assert len(found.failures) == 1 and "diverged" in found.failures[0]


def test_figures_over_seeds(whole, tmp_path):
    """Means, standard errors and bands, of lines that were made up: seeds 0, 1 and 2 have rewards of 0, 1 and 5."""
    job, _ = whole
    jobs = [replace(job, seed=seed) for seed in range(3)]
    (tmp_path / "runs").mkdir()
    for each, reward in zip(jobs, (0.0, 1.0, 5.0)):
        steps = [{"step": step, "reward_mean": reward + step, "skipped": 2} for step in range(1, 5)]
        lines = [{"step": 0, "config": each.config}, *steps, {"step": 4, "probe": {"exact_kl": reward}}]
        (tmp_path / "runs" / f"{each.name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    [cell] = results.cells(results.read(each, tmp_path) for each in jobs)
    assert cell.over_run("reward_mean") == pytest.approx((4.5, math.sqrt(7 / 3)))
    assert cell.at_end("reward_mean").value == 6.0 and cell.total("skipped") == 24
    assert cell.probed("exact_kl").value == 2.0 and cell.probed("no such figure").value != 2.0
    band = cell.band("reward_mean")
    assert [list(row) for row in (band.at, band.mean, band.low, band.high)] == [
        [1, 2, 3, 4], [3, 4, 5, 6], [1, 2, 3, 4], [6, 7, 8, 9]]


def test_the_page(tmp_path, monkeypatch, capsys):
    """The commands of docs/Sanity.md are commands, and its Python runs."""
    text = (ROOT / "docs" / "Sanity.md").read_text()
    [shell], [python] = (re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("sh", "python"))
    for line in shell.splitlines():
        assert line.startswith("lockstep sanity ")
        commands.get_command(None, "sanity").make_context("sanity", line.split()[2:])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment, "starting_model", lambda: CHAIN)
    exec(compile(python, "docs/Sanity.md", "exec"), {})  # noqa: S102
    apart, same = (line.split() for line in capsys.readouterr().out.splitlines())
    assert apart[0] == "bf16" and float(apart[1]) > 0 and same[:2] == ["bf16:lockstep", "0.0"]


# The command


def invoke(*arguments):
    return CliRunner().invoke(commands, ["sanity", *map(str, arguments)], catch_exceptions=False, standalone_mode=False)


TINY = ("--model", CHAIN, "--algorithms", "grpo", "--steps", 2, "--probe-every", 2, "--jobs", 2)


PAIRS = ("--pairs", "bf16,fp16,bf16:lockstep", "--seeds", 1)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, invoke(*TINY, *PAIRS, "--out", out)


def test_the_command(command):
    out, done = command
    assert done.return_value == 0, done.output
    text = re.sub(r"\s+", " ", done.output)
    for words in ("GRPO, BF16 over FP16, independent engines", "Engines of one recipe (bf16:lockstep): exactly 0",
                  "What was expected", "What does not reproduce at this scale", "Collapse of BF16 runs"):
        assert words in text
    assert sorted(path.stem for path in (out / "runs").iterdir()) == sorted(
        f"{pair}.grpo.0" for pair in ("bf16", "fp16", "bf16_lockstep"))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["schema"] == "lockstep-sanity/1" and len(summary["config"]["problems"]) == 64
    by_pair = {cell["pair"]: cell for cell in summary["cells"]}
    assert by_pair["bf16:lockstep"]["figures"]["KL, exact"]["value"] == 0
    assert by_pair["bf16"]["figures"]["KL, k3"]["value"] > 0
    page = (out / "report.html").read_text()
    assert page.count('<svg class="picture"') == 5 and not re.search(r">\s*(nan|None)\s*<", page)
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert (out / "kl.svg").read_text().startswith("<svg xmlns=")


def test_what_is_there_is_not_run_again(command):
    out, _ = command
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").iterdir()}
    page = (out / "report.html").read_bytes()
    assert invoke(*TINY, *PAIRS, "--out", out).return_value == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").iterdir()} == before
    assert (out / "report.html").read_bytes() == page


def test_what_cannot_be_written_leaves_the_old_file(command, tmp_path, monkeypatch):
    out = shutil.copytree(command[0], tmp_path / "out")
    (out / "summary.json").write_text("old")
    before = {path.name for path in out.iterdir()}

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    done = CliRunner().invoke(commands, ["sanity", *map(str, (*TINY, *PAIRS)), "--out", str(out)])
    assert done.exit_code == 2 and "No space left" in done.output
    assert (out / "summary.json").read_text() == "old" and {path.name for path in out.iterdir()} == before


def test_a_lockstep_pair_that_differs_is_an_error(command, tmp_path):
    """A run's file in which one log-prob of one step was off by a little."""
    out, _ = command
    (tmp_path / "runs").mkdir()
    text = (out / "runs" / "bf16_lockstep.grpo.0.jsonl").read_text()
    changed = text.replace('"max_abs_log_ratio": 0.0', '"max_abs_log_ratio": 1e-07', 1)
    assert changed != text
    (tmp_path / "runs" / "bf16_lockstep.grpo.0.jsonl").write_text(changed)
    done = invoke(*TINY, "--pairs", "bf16:lockstep", "--seeds", 1, "--out", tmp_path)
    assert done.return_value == 1 and "NOT ZERO: engines of one recipe differ, in bf16:lockstep (GRPO)" in done.output


def test_the_mantissa_study(tmp_path):
    done = invoke(*TINY, "--study", "mantissa", "--pairs", "e8m4,e8m4:lockstep,e8m7", "--seeds", 1, "--steps", 1,
                  "--out", tmp_path)
    assert done.return_value == 0
    text = re.sub(r"\s+", " ", done.output)
    assert re.search(r"GRPO: KL falls by [34]\.\d+ with each bit, from 4 to 7", text)
    assert "4 bits: reward at the end" in text and (tmp_path / "mantissa.svg").read_text().count("<svg") == 1 + 2 + 6  # with keys and panels


def test_bad_input(command, tmp_path):
    out, _ = command
    for arguments, words in [
        (("--pairs", "bf17"), "bf17"), (("--pairs", "bf16/fp16:lockstep"), "FORMAT:lockstep"),
        (("--algorithms", "ppo"), "ppo"), (("--seeds", 0), "--seeds"),
        (("--model", CHAIN, "--pairs", "bf16", "--algorithms", "grpo", "--steps", 3, "--out", out), "settings differs"),
        (("--model", tmp_path, "--out", tmp_path), "config.json"),
    ]:
        done = CliRunner().invoke(commands, ["sanity", *map(str, arguments)])
        assert done.exit_code == 2 and words in done.output and "Traceback" not in done.output, done.output
