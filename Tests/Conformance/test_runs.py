"""Runs: the same bits on any threads, step by step and after any break; checkpoints, callbacks, bad input."""

from __future__ import annotations

import itertools
import json
import math
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

import lockstep
from lockstep import Environment, Run, Task

SMALL = {"prompts": 4, "samples": 4, "model_seed": 1, "threads": 1}


def make(environment=None, **options) -> Run:
    return Run(environment or Task("chain", size=6), **SMALL | options)


CHAIN = ROOT / "examples" / "data" / "chain-sft"  # of `make pretrain`


def weights(run, folder: Path) -> bytes:
    run.save(folder)
    return (sorted(folder.glob("step-*"))[-1] / "model.safetensors").read_bytes()


def same(one, other) -> bool:
    """Equal metrics, NaN being equal to NaN."""
    return repr(one) == repr(other)


def test_threads_do_not_show(tmp_path):
    one, two = make(), make(threads=2)
    for _ in range(3):
        assert same(one.step(), two.step())
    assert weights(one, tmp_path / "1") == weights(two, tmp_path / "2")


def test_another_seed_is_another_run(tmp_path):
    assert make(seed=0).step().reward_mean != make(seed=1).step().reward_mean or not same(
        make(seed=0).step(), make(seed=1).step())


def test_independent_engines_follow_the_law_of_the_bits():
    """KL goes with 4^-bits, |d| with 2^-bits: three bits more make 64 and 8, here over some 12,000 tokens."""
    def steps(recipe, order):
        run = Run(Task("chain"), model=CHAIN, trainer=recipe, rollout=recipe + order)
        return [run.step() for _ in range(3)]

    bf16, fp16 = steps("bf16", "+fused"), steps("fp16", "+fused")
    def ratio(name):
        return sum(getattr(each, name) for each in bf16) / sum(getattr(each, name) for each in fp16)
    assert 30 < ratio("k3") < 130 and 5 < ratio("mean_abs_log_ratio") < 12
    for recipe in ("bf16", "fp16"):
        assert all(each.k3 == each.max_abs_log_ratio == 0 for each in steps(recipe, ""))


def test_one_recipe_has_no_mismatch():
    metrics = make(trainer="bf16").step()
    assert metrics.k3 == metrics.max_abs_log_ratio == 0 and metrics.ess == 1
    assert make(trainer="fp32", rollout="bf16").step().k3 > 0


@pytest.mark.parametrize("name", [
    "paper/grpo", "paper/grpo-token-tis", "paper/grpo-seq-mis", "paper/gspo", "paper/pg-seq-is", "paper/pg-seq-tis",
    "paper/pg-seq-mis"])
def test_the_papers_algorithms_run(name):
    metrics = make(algorithm=name, trainer="fp32", rollout="bf16").step()
    assert math.isfinite(metrics.loss) and metrics.updates == 2


def test_explicit_options_are_the_presets(tmp_path):
    preset = lockstep.preset("paper/grpo-token-tis")
    algorithm = {
        "correction": preset.correction_options, "advantages": preset.advantage_options,
        "objective": preset.objective_options | {"length": 6}, "policies": preset.policies}
    named, explicit = make(algorithm="paper/grpo-token-tis", rollout="bf16"), make(algorithm=algorithm, rollout="bf16")
    for _ in range(2):
        assert same(named.step(), explicit.step())


def test_the_reward_rises():
    """From the pretrained checkpoint, on problems it solves now and then."""
    task = Task("chain")
    problems = lockstep.perfectible(lockstep.Model(CHAIN), Environment(task, seed=1), count=8)
    run = Run(Environment(task, seed=1, problems=problems), model=CHAIN, prompts=8, learning_rate=5e-4)
    before = run.evaluate(problems, samples=16, seed=5).mean()
    for _ in range(40):
        run.step()
    after = run.evaluate(problems, samples=16, seed=5).mean()
    assert 0.2 <= before <= 0.8 and after > before + 0.1, (before, after)


def test_evaluation_depends_on_the_problem_alone(tmp_path):
    run = make()
    some = run.evaluate([5, 3, 8], samples=16, seed=2)
    assert list(some[::-1]) == list(run.evaluate([8, 3, 5], samples=16, seed=2))


def test_resuming_has_the_bits_of_no_break(tmp_path):
    whole = make(rollout="bf16")
    expected = [whole.step() for _ in range(5)]
    first = make(rollout="bf16")
    assert first.resume(tmp_path / "run") == 0
    assert same(first.step(), expected[0]) and same(first.step(), expected[1])
    first.save(tmp_path / "run")
    second = make(rollout="bf16", threads=2)
    assert second.resume(tmp_path / "run") == 2
    for metrics in expected[2:]:
        assert same(second.step(), metrics)
    assert weights(whole, tmp_path / "1") == weights(second, tmp_path / "2")


def test_old_checkpoints_go_when_a_new_one_is_there(tmp_path):
    run = make()
    for _ in range(4):
        run.step()
        run.save(tmp_path)
    assert [each.name for each in sorted(tmp_path.iterdir())] == ["step-00000003", "step-00000004"]


def test_a_damaged_checkpoint_is_refused(tmp_path):
    run = make()
    for _ in range(2):
        run.step()
        run.save(tmp_path)
    newest = tmp_path / "step-00000002"
    rng = np.random.default_rng()
    for file in sorted(newest.iterdir()):
        data = file.read_bytes()
        place = int(rng.integers(len(data)))
        for bad in (data[:place], data[:place] + bytes([data[place] ^ 1]) + data[place + 1:], None):
            file.unlink()
            if bad is not None:
                file.write_bytes(bad)
            with pytest.raises(lockstep.BadDataError, match="the checkpoint is damaged .*older one by option"):
                make().resume(tmp_path)
            assert make().resume(tmp_path, allow_older=True) == 1
        file.write_bytes(data)
    assert make().resume(tmp_path) == 2


def test_another_run_is_refused(tmp_path):
    run = make()
    run.step()
    run.save(tmp_path)
    for options, name in [
        ({"seed": 3}, "seed is '0' in the checkpoint but '3' here"), ({"rollout": "bf16"}, "rollout"),
        ({"algorithm": "paper/gspo"}, "advantages|algorithm"), ({"learning_rate": 1e-3}, "learning_rate"),
        ({"model_seed": 2}, "model_seed"),
    ]:
        with pytest.raises(lockstep.InvalidArgumentError, match=name):
            make(**options).resume(tmp_path)
    with pytest.raises(lockstep.InvalidArgumentError, match="has taken 1 steps"):
        run.resume(tmp_path)


PROGRAM = textwrap.dedent("""
    import json, sys
    from lockstep import Run, Task
    run = Run(Task("chain", size=6), prompts=4, samples=4, model_seed=1, threads=1, rollout="bf16", **json.loads(sys.argv[2]))
    step = run.resume(sys.argv[1])
    print("begun", flush=True)
    while step < 12:
        step = run.step().step
        run.save(sys.argv[1])
""")


@pytest.mark.parametrize("options", [{}, {"model": str(CHAIN), "lora_rank": 2, "lora_alpha": 4.0}])
def test_kill_and_resume(tmp_path, options):
    """kill -9 at random moments, in the middle of steps and of checkpoints: the end has the bits of no break."""
    rng, kills = np.random.default_rng(), 0
    while True:
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path / "run"), json.dumps(options)], stdout=subprocess.PIPE)
        process.stdout.readline()
        try:
            assert process.wait(float(rng.uniform(0.01, 0.2)) if kills < 15 else None) == 0
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    run = make(rollout="bf16", **options)
    for _ in range(12):
        run.step()
    run.save(tmp_path / "whole")
    kind = ("adapter_model.safetensors", "adapter_config.json") if options else ("model.safetensors", "config.json")
    for name in (*kind, "optimizer.safetensors", "run.json"):
        assert (tmp_path / "run/step-00000012" / name).read_bytes() == (
            tmp_path / "whole/step-00000012" / name).read_bytes()


def test_a_full_disk(tmp_path):
    """Beyond the file size limit writing fails as on a full disk: the checkpoint before is kept."""
    run = make()
    run.step()
    run.save(tmp_path)
    run.step()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
        with pytest.raises(lockstep.FileError, match="checkpoint of step 2: .*cannot be written: File too large.*kept"):
            run.save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, old_handler)
    assert [each.name for each in tmp_path.iterdir()] == ["step-00000001"]
    assert make().resume(tmp_path) == 1
    run.save(tmp_path)
    assert make().resume(tmp_path) == 2


def test_a_checkpoint_is_a_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    run = make(trainer="fp32")
    run.step()
    run.save(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "step-00000001", dtype=torch.float32)
    tokens = [3, 1, 4, 1, 5, 9]
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0].log_softmax(-1).numpy()
    ours = lockstep.Model(tmp_path / "step-00000001").score([tokens]).log_probs
    expected = [logits[place, tokens[place + 1]] for place in range(5)]
    np.testing.assert_allclose(np.asarray(ours).reshape(-1)[1:], expected, atol=2e-5)


# LoRA


LORA = {"model": CHAIN, "lora_rank": 4, "lora_alpha": 8.0, "learning_rate": 2e-3}


def newest(folder: Path) -> Path:
    return sorted(folder.glob("step-*"))[-1]


def adapted(**options) -> Run:
    return make(**LORA | options)


def supervised(**options) -> lockstep.SupervisedRun:
    return lockstep.SupervisedRun(Task("chain", size=6), steps=6, batch=8, **LORA | options)


@pytest.mark.parametrize("kind, options", [(adapted, {"rollout": "bf16"}), (supervised, {"recipe": "bf16"})])
def test_an_adapter_is_trained_and_goes_on(tmp_path, kind, options):
    whole, first = kind(threads=1, **options), kind(threads=2, **options)
    expected = [whole.step() for _ in range(4)]
    assert same([first.step(), first.step()], expected[:2])
    first.save(tmp_path / "run")
    second = kind(**options)
    assert second.resume(tmp_path / "run") == 2
    assert same([second.step(), second.step()], expected[2:])
    for run, name in ((whole, "1"), (second, "2")):
        run.save(tmp_path / name)
    for name in ("adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors", "run.json"):
        one, other = ((newest(tmp_path / each) / name).read_bytes() for each in ("1", "2"))
        assert one == other, name
    assert not (newest(tmp_path / "1") / "model.safetensors").exists()


def test_lockstep_engines_agree_on_an_adapter():
    metrics = [adapted(trainer="bf16").step() for _ in range(2)]
    assert metrics[0].k3 == metrics[0].max_abs_log_ratio == 0 and same(*metrics)


def test_a_saved_adapter_is_the_policy(tmp_path):
    """Read back by our own loader, beside the base; merged, as the policy's bytes are; and trained on."""
    run = adapted(trainer="fp16")
    for _ in range(3):
        run.step()
    run.save(tmp_path)
    tokens = [3, 1, 4, 1, 5, 9, 2]
    policy = lockstep.Model.from_bytes(run.policy(), "fp16").score([tokens]).log_probs
    assert np.array_equal(policy, lockstep.Model(CHAIN, "fp16", adapter=newest(tmp_path)).score([tokens]).log_probs)
    assert not np.array_equal(policy, lockstep.Model(CHAIN, "fp16").score([tokens]).log_probs)
    again = make(model=CHAIN, adapter=newest(tmp_path), trainer="fp16")
    assert np.array_equal(again.policy(), run.policy())


def test_an_adapter_in_peft_and_merged_in_transformers(tmp_path):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    run = adapted(trainer="fp32")
    for _ in range(3):
        run.step()
    run.save(tmp_path)
    tokens = [3, 1, 4, 1, 5, 9, 2]
    ours = lockstep.Model(CHAIN, "fp32", adapter=newest(tmp_path)).score([tokens]).log_probs[1:]

    def theirs(model):
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0].log_softmax(-1).numpy()
        return [logits[place, tokens[place + 1]] for place in range(len(tokens) - 1)]

    merged = tmp_path / "merged"
    merged.mkdir()
    data = bytes(run.policy())
    (merged / "model.safetensors").write_bytes(data)
    header = json.loads(data[8:8 + int.from_bytes(data[:8], "little")])
    (merged / "config.json").write_text(header["__metadata__"]["config"])
    load = transformers.AutoModelForCausalLM.from_pretrained
    np.testing.assert_allclose(theirs(load(merged, dtype=torch.float32)), ours, atol=2e-5)
    peft = pytest.importorskip("peft")
    base = load(CHAIN, dtype=torch.float32)
    np.testing.assert_allclose(theirs(peft.PeftModel.from_pretrained(base, newest(tmp_path))), ours, atol=2e-5)


def test_a_run_goes_on_with_its_own_base_model_alone(tmp_path):
    """By content: the same weights elsewhere will do, others at the same place will not."""
    base = tmp_path / "base"
    shutil.copytree(CHAIN, base)
    run = adapted(model=base)
    run.step()
    run.save(tmp_path / "run")
    assert adapted(model=CHAIN).resume(tmp_path / "run") == 1
    weights = base / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    with pytest.raises(lockstep.InvalidArgumentError, match="base_crc32c is '[0-9a-f]{8}' in the checkpoint but '"):
        adapted(model=base).resume(tmp_path / "run")


# Rollouts from elsewhere


def drawn(run, **changes):
    """What the next step needs, drawn with the policy's bytes; requests may be changed."""
    model = lockstep.Model.from_bytes(run.policy(), run.rollout_recipe)
    return lockstep.draw_rollouts(model, [replace(each, **changes) for each in run.requests()])


@pytest.mark.parametrize("options", [
    {}, {"trainer": "bf16", "rollout": "fp16"}, {"rollout": "bf16+fused"}, {"rollout": "e8m5"},
    {"rollout": {"parameters": "bf16", "cache": "fp16"}}, {"temperature": 0.7}])
def test_rollouts_drawn_elsewhere_are_the_runs(options):
    alone, run, mixed = make(**options), make(**options), make(**options)
    for step in range(1, 4):
        rollouts = drawn(run)
        run.give(step, rollouts[3:])
        run.give(step, rollouts[:5])  # some twice
        mixed.give(step, rollouts[:7])  # a prompt of which some lack
        expected = alone.step()
        assert same(run.step(), expected) and same(mixed.step(), expected)
    assert np.array_equal(run.policy(), alone.policy())


def test_rollouts_that_were_given_are_learnt_from():
    """Not drawn again: responses of another seed make another step."""
    alone, run = make(), make()
    run.give(1, drawn(run, seed=5))
    assert not same(run.step(), alone.step())


def test_a_policy_is_a_safetensors_file(tmp_path):
    run = make(rollout="bf16")
    run.step()
    data = bytes(run.policy())
    (tmp_path / "model.safetensors").write_bytes(data)
    header = json.loads(data[8:8 + int.from_bytes(data[:8], "little")])
    (tmp_path / "config.json").write_text(header["__metadata__"]["config"])
    assert {each["dtype"] for name, each in header.items() if name != "__metadata__"} == {"BF16"}
    tokens = [3, 1, 4, 1, 5]
    one = lockstep.Model(tmp_path, "bf16").score([tokens]).log_probs
    assert np.array_equal(one, lockstep.Model.from_bytes(data, "bf16").score([tokens]).log_probs)


def test_bytes_that_are_no_policy():
    data = make().policy()
    for bad in (data[:0], data[:7], data[:-1], data[:200], np.zeros(64, np.uint8)):
        with pytest.raises(lockstep.BadDataError, match="bytes"):
            lockstep.Model.from_bytes(bad)
    text = bytes(data).replace(b'"config"', b'"konfig"')
    with pytest.raises(lockstep.BadDataError, match="has no config"):
        lockstep.Model.from_bytes(text)


def test_rollouts_of_another_policy_are_refused():
    run = make()
    old = drawn(run)
    run.step()
    with pytest.raises(lockstep.InvalidArgumentError, match="step is 1, but the run's next is 2: the policy has changed"):
        run.give(1, old)
    with pytest.raises(lockstep.InvalidArgumentError, match=r"rollouts\[0\]: id \d+ is none that step 2 asked for"):
        run.give(2, old)
    new = drawn(run)
    run.give(2, new)
    with pytest.raises(lockstep.InvalidArgumentError, match=r"rollouts\[1\]: sequence \d+ was given before, with other"):
        run.give(2, [new[0], replace(new[1], raw_log_probs=new[1].raw_log_probs - 1)])


@pytest.mark.parametrize("change, word", [
    (lambda each: {"tokens": each.tokens[:2]}, "other numbers of log-probs"),
    (lambda each: {"tokens": np.full(6, 99)}, "token 0 is 99, outside the vocabulary"),
    (lambda each: {"raw_log_probs": each.raw_log_probs * np.nan}, "log-prob 0 is not finite"),
    (lambda each: {"finish": "stop"}, "has not ended as it says"),
    (lambda each: {"finish": "running"}, "has not ended as it says"),
    (lambda each: {name: getattr(each, name)[:0] for name in ("tokens", "raw_log_probs", "processed_log_probs")},
     "has 0 tokens"),
    (lambda each: {name: getattr(each, name)[:3] for name in ("tokens", "raw_log_probs", "processed_log_probs")},
     "at 6 tokens; give whole responses"),
])
def test_rollouts_that_no_engine_draws_are_refused(change, word):
    run, alone = make(), make()
    rollouts = drawn(run)
    rollouts[2] = replace(rollouts[2], **change(rollouts[2]))
    with pytest.raises(lockstep.InvalidArgumentError, match=word):
        run.give(1, rollouts)
    assert same(run.step(), alone.step())


# Callbacks


def functions(**options) -> Environment:
    return Environment(**{
        "prompts": lambda problem: [problem % 7, 1, 2], "rewards": lambda problem, prompt, response: float(
            response[-1] % 2), "max_tokens": 6} | options)


def test_callbacks_are_a_task(tmp_path):
    task = Task("chain", size=6)
    own = Environment(
        prompts=lambda problem: task.prompt(problem), max_tokens=6,
        rewards=lambda problem, prompt, response: task.reward(prompt, response))
    one, other = make(), make(own)
    for _ in range(2):
        assert same(one.step(), other.step())


def test_problems_are_drawn_from_the_whole_set():
    """Different ones in a step, and over the steps about as often each."""
    asked: list[int] = []
    run = make(functions(prompts=lambda problem: asked.append(problem) or [problem % 7, 1, 2],
                         problems=range(100, 112)))
    seen: list[int] = []
    for _ in range(30):
        run.step()
        drawn = set(asked)
        assert len(drawn) == 4 and drawn <= set(range(100, 112))
        seen += drawn
        asked.clear()
    counts = [seen.count(problem) for problem in range(100, 112)]
    assert sum(counts) == 120 and min(counts) >= 3 and max(counts) <= 20, counts  # 10 each, 2.6 standard deviation


def test_a_reward_that_raises(tmp_path):
    """The step, problem and sample are named, what was raised is the cause, and the step can be taken again."""
    bad = [True]

    def rewards(problem, prompt, response):
        if problem == 2 and bad:
            bad.pop()
            raise KeyError("no verdict")
        return float(response[-1] % 2)

    run, whole = make(functions(rewards=rewards)), make(functions())
    with pytest.raises(lockstep.InvalidArgumentError, match="step 1: reward of problem 2, sample 0") as caught:
        run.step()
    assert isinstance(caught.value.__cause__, KeyError)
    assert same(run.step(), whole.step())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_no_number(value):
    run = make(functions(rewards=lambda problem, prompt, response: value if problem == 1 else 0))
    with pytest.raises(lockstep.NonFiniteError, match="step 1: reward of problem 1, sample 0 is .*finite"):
        run.step()


def test_bad_prompts():
    with pytest.raises(lockstep.InvalidArgumentError, match="problems: is empty"):
        make(Environment(Task("chain"), problems=[]))
    with pytest.raises(lockstep.InvalidArgumentError, match="prompt of problem 0: is empty"):
        make(functions(prompts=lambda problem: [])).step()
    with pytest.raises(lockstep.InvalidArgumentError, match="prompt of problem 0: token 1 is 99, outside the vocabulary"):
        make(functions(prompts=lambda problem: [1, 99])).step()
    with pytest.raises(lockstep.InvalidArgumentError, match="prompt of problem 0: has 64 tokens, .* no room"):
        make(functions(prompts=lambda problem: [1] * 64)).step()
    with pytest.raises(lockstep.InvalidArgumentError, match="both prompts and rewards"):
        Environment(prompts=lambda problem: [1])


def test_groups_of_equal_rewards_teach_nothing(tmp_path):
    run = make(functions(rewards=lambda problem, prompt, response: 1.0))
    before = weights(make(functions()), tmp_path / "1")
    metrics = run.step()
    assert metrics.equal_groups == 4 and metrics.share_right == 1 and metrics.gradient_norm == 0
    assert weights(run, tmp_path / "2") == before


def test_a_run_that_diverges(tmp_path):
    """It names what left its format first, says so again, keeps the last checkpoint and saves nothing."""
    run = make(learning_rate=1e5, trainer="fp16", max_norm=0)
    run.save(tmp_path)
    with pytest.raises(lockstep.NonFiniteError, match=r"step \d+: the run diverged and has stopped: .*(layer|tensor)"):
        for _ in range(10):
            run.step()
    for call in (run.step, lambda: run.save(tmp_path)):
        with pytest.raises(lockstep.NonFiniteError, match="the run diverged"):
            call()
    assert [each.name for each in tmp_path.iterdir()] == ["step-00000000"]


def test_a_loss_that_is_not_finite(tmp_path):
    """An old policy of e^-690 that nothing bounds: with rewards of 1e99 an infinite loss."""
    verdicts = itertools.cycle([0.0, 1e99])
    algorithm = {"policies": "two", "objective": {"log_ratio_min": -math.inf, "log_ratio_max": math.inf}}
    run = make(functions(rewards=lambda problem, prompt, response: next(verdicts)), algorithm=algorithm)
    run.save(tmp_path)
    run.give(1, [replace(each, raw_log_probs=each.raw_log_probs * 0 - 690) for each in drawn(run)])
    message = "the run diverged .*: the loss is inf; first not finite is the gradient, of sequence 0 at position 3, inf"
    for call in (run.step, run.step, lambda: run.save(tmp_path)):
        with pytest.raises(lockstep.NonFiniteError, match=message):
            call()
    assert [each.name for each in tmp_path.iterdir()] == ["step-00000000"]
    assert make(functions(), algorithm=algorithm).step().step == 1


def test_a_supervised_run_that_diverges(tmp_path):
    run = lockstep.SupervisedRun(Task("chain", size=6), steps=40, batch=4, recipe="fp16", learning_rate=1e5)
    run.save(tmp_path)
    with pytest.raises(lockstep.NonFiniteError, match=r"step \d+: the run diverged and has stopped: .*(layer|tensor)"):
        for _ in range(40):
            run.step()
    for call in (run.step, lambda: run.save(tmp_path)):
        with pytest.raises(lockstep.NonFiniteError, match="the run diverged"):
            call()
    assert [each.name for each in tmp_path.iterdir()] == ["step-00000000"]


def test_skipped_updates_are_counted(tmp_path):
    """A scale that overflows: updates are skipped, the scale falls, and nothing is silent."""
    verdicts = itertools.cycle([0.0, 1.0])
    environment = functions(rewards=lambda problem, prompt, response: next(verdicts))
    run = make(environment, scaler={"name": "torch", "initial_scale": 2.0**60}, trainer="fp16")
    before = weights(run, tmp_path / "1")
    metrics = run.step()
    assert metrics.skipped == metrics.skipped_total == 2 and metrics.loss_scale == 2.0**58 and metrics.updates == 0
    assert math.isnan(metrics.gradient_norm)
    assert weights(run, tmp_path / "2") == before


def test_a_gradient_that_no_scale_can_save(tmp_path):
    """At its floor the first overflow is an alarm; the next one stops the run, and says where it was."""
    verdicts = itertools.cycle([0.0, 1.0])
    run = make(functions(rewards=lambda problem, prompt, response: next(verdicts)), trainer="fp16", updates=1,
               scaler={"name": "constant", "initial_scale": 2.0**60})
    run.save(tmp_path)
    metrics = run.step()
    assert metrics.scale_at_floor and metrics.skipped == 1
    message = r"step 2: the run diverged and has stopped: the gradient is not finite \(first that of .+, sequence \d+\)"
    with pytest.raises(lockstep.NonFiniteError, match=message):
        run.step()
    with pytest.raises(lockstep.NonFiniteError, match="the run diverged"):
        run.save(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["step-00000000"]


def test_a_reward_too_large_to_be_squared():
    """It is refused as it comes; the step can be taken again."""
    verdicts = itertools.chain([1e308], itertools.cycle([0.0, 1.0]))
    run = make(functions(rewards=lambda problem, prompt, response: next(verdicts)))
    with pytest.raises(lockstep.InvalidArgumentError, match=r"step 1: reward of problem .+ is 1e\+308; scale it below 1e100"):
        run.step()
    assert run.step().step == 1


def test_covariance_selection():
    """kl-cov in a run: the penalty of the selected tokens makes another loss."""
    def losses(coefficient):
        run = make(algorithm={"objective": {"term": "kl_cov", "coefficient": coefficient}}, rollout="bf16")
        return [run.step().loss for _ in range(2)]
    assert losses(1.0) != losses(0.0) and losses(1.0) == losses(1.0)


# The command


def command(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "lockstep.cli", *map(str, arguments)], capture_output=True, text=True)


def test_train(tmp_path):
    arguments = ["train", "--size", 4, "--prompts", 2, "--samples", 2, "--model-seed", 1, "--save-every", 2, "--out"]
    done = command(*arguments, tmp_path / "whole", "--steps", 5)
    assert done.returncode == 0 and done.stdout.startswith("step 5: reward "), done.stderr
    assert command(*arguments, tmp_path / "parts", "--steps", 3).returncode == 0
    assert command(*arguments, tmp_path / "parts", "--steps", 5).returncode == 2  # not empty
    assert command(*arguments, tmp_path / "parts", "--steps", 5, "--resume").returncode == 0
    one, other = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts"))
    assert one == other and [json.loads(line)["step"] for line in one.splitlines()] == [1, 2, 3, 4, 5]


def test_train_that_diverges(tmp_path):
    """Exit status 2 and one line that says what was first; the checkpoint before is whole, and what was measured is there."""
    out = tmp_path / "run"
    arguments = ["train", "--size", 4, "--prompts", 2, "--samples", 4, "--model-seed", 1, "--learning-rate", 1,
                 "--steps", 20, "--save-every", 1, "--out", out]
    done = command(*arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert re.search(r"step \d+: the run diverged and has stopped: .*(layer|tensor|logits)", done.stderr), done.stderr
    steps = len((out / "metrics.jsonl").read_text().splitlines())
    kept = newest(out)
    assert steps >= 1 and kept.name == f"step-{steps:08}"
    assert lockstep.Model(kept).parameters == 51_488
    again = command(*arguments, "--resume")  # from there it diverges again, to the letter
    assert again.returncode == 2 and again.stderr == done.stderr and newest(out) == kept


def test_train_on_a_full_disk(tmp_path):
    """Exit status 2 and what the system says; the checkpoint before is kept, and the run goes on from it elsewhere."""
    arguments = ["train", "--size", 4, "--prompts", 2, "--samples", 2, "--model-seed", 1, "--save-every", 1]
    assert command(*arguments, "--steps", 1, "--out", tmp_path / "run").returncode == 0

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    full = subprocess.run(
        [sys.executable, "-m", "lockstep.cli", *map(str, arguments), "--steps", "2", "--resume", "--out",
         str(tmp_path / "run")], capture_output=True, text=True, preexec_fn=limit)
    assert full.returncode == 2 and "Traceback" not in full.stderr, full.stderr
    assert "cannot be written: File too large" in full.stderr.replace("\n", " ")
    assert [each.name for each in (tmp_path / "run").glob("step-*")] == ["step-00000001"]
    done = command(*arguments, "--steps", 2, "--resume", "--out", tmp_path / "run")
    assert done.returncode == 0 and newest(tmp_path / "run").name == "step-00000002", done.stderr


def test_pretrain(tmp_path):
    done = command("pretrain", "--size", 4, "--steps", 6, "--batch", 4, "--out", tmp_path / "sft", "--save-every", 4)
    assert done.returncode == 0, done.stderr
    assert lockstep.Model(tmp_path / "sft" / "model").parameters == 51_488


@pytest.mark.parametrize("name", ["train", "pretrain"])
def test_the_commands_train_adapters(tmp_path, name):
    arguments = [name, "--model", CHAIN, "--lora-rank", 2, "--size", 4, "--save-every", 2, "--out"]
    arguments[1:1] = ["--prompts", 2, "--samples", 2] if name == "train" else ["--batch", 4]
    # The cosine of pretrain ends at --steps, which is the same for a run that goes on: kill it after its first checkpoint.
    assert command(*arguments, tmp_path / "whole", "--steps", 4).returncode == 0
    process = subprocess.Popen([sys.executable, "-m", "lockstep.cli", *map(str, arguments), str(tmp_path / "parts"),
                                "--steps", "4"])
    while process.poll() is None and not (tmp_path / "parts" / "step-00000002").exists():
        time.sleep(0.002)
    process.kill()
    process.wait()
    again = command(*arguments, tmp_path / "parts", "--steps", 4, "--resume")
    assert again.returncode == 0, again.stderr
    one, other = ((tmp_path / each / "step-00000004" / "adapter_model.safetensors").read_bytes()
                  for each in ("whole", "parts"))
    assert one == other
    tokens = [[1, 2, 3]]
    assert not np.array_equal(
        lockstep.Model(CHAIN, adapter=tmp_path / "whole" / "step-00000004").score(tokens).log_probs,
        lockstep.Model(CHAIN).score(tokens).log_probs)
