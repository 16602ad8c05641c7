"""A run whose rollouts are drawn by Ray actors, one of which dies, has the bits of the run alone."""

import os
import re
import signal
import subprocess
import sys

import pytest
from clusters import paths, start
from conftest import ROOT

import lockstep
from lockstep import Environment, Run, Task

OPTIONS = {"prompts": 6, "samples": 4, "model_seed": 1, "threads": 1, "trainer": "fp16", "rollout": "bf16+fused",
           "algorithm": "paper/grpo-token-tis"}


def make(environment=None, **options):
    return Run(environment or Task("chain", size=6), **OPTIONS | options)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Metrics and checkpoint of four steps by one process."""
    run = make()
    return [repr(run.step()) for _ in range(4)], saved(run, tmp_path_factory.mktemp("alone"))


def saved(run, folder):
    """Masters, moments, loss scale, early warning, of a run."""
    run.save(folder)
    (step,) = folder.iterdir()
    return {file.name: file.read_bytes() for file in step.iterdir()}


def same_by_ray(alone, workers, folder):
    import lockstep.ray

    with lockstep.ray.RolloutWorkers(make(), workers=workers) as run:
        assert [repr(run.step()) for _ in range(4)] == alone[0]
        assert saved(run.run, folder) == alone[1]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_do_not_show(ray, alone, workers, tmp_path):
    start(ray, workers)
    same_by_ray(alone, workers, tmp_path)


def test_a_worker_that_is_killed_changes_nothing(ray, alone, tmp_path, monkeypatch):
    """In the middle of its share: another one draws it, to the same tokens."""
    import lockstep.ray

    start(ray, 2)
    flag = tmp_path / "killed"

    class DiesOnce(lockstep.ray.RolloutWorker):
        def draw(self, step, policy, requests):
            if step == 2 and not flag.exists():
                super().draw(step, policy, requests[:1])
                flag.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            return super().draw(step, policy, requests)

    monkeypatch.setattr(lockstep.ray, "RolloutWorker", DiesOnce)
    same_by_ray(alone, 2, tmp_path / "run")
    assert int(flag.read_text()) != os.getpid()


def test_workers_that_die_again_and_again(ray, tmp_path, monkeypatch):
    import lockstep.ray

    start(ray, 1)

    class Dies(lockstep.ray.RolloutWorker):
        def draw(self, step, policy, requests):
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(lockstep.ray, "RolloutWorker", Dies)
    monkeypatch.setattr(lockstep.ray, "RETRIES", 1)
    with lockstep.ray.RolloutWorkers(make(), workers=1) as run, pytest.raises(ray.exceptions.RayActorError):
        run.step()


def test_a_step_that_failed_is_taken_again(ray, alone):
    """A reward that raises: what was drawn is kept, and drawn again to the same."""
    import lockstep.ray

    start(ray, 2)
    task, bad = Task("chain", size=6), [True]

    def rewards(problem, prompt, response):
        if problem == 3 and bad:
            bad.pop()
            raise KeyError("no verdict")
        return task.reward(prompt, response)

    own = Environment(prompts=task.prompt, rewards=rewards, max_tokens=6)
    with lockstep.ray.RolloutWorkers(make(own), workers=2) as run:
        with pytest.raises(lockstep.InvalidArgumentError, match="step 1: reward of problem 3"):
            run.step()
        assert [repr(run.step()) for _ in range(2)] == alone[0][:2]


def test_a_policy_that_diverges_says_the_same(ray):
    import lockstep.ray

    start(ray, 2)
    # The trainer holds what the rollout engine's format does not: it is the workers that find out.
    options = {"learning_rate": 30.0, "trainer": "fp32", "rollout": "fp16", "max_norm": 0}

    def story(run):
        steps = []
        with pytest.raises(lockstep.NonFiniteError) as caught:
            for _ in range(50):
                steps.append(repr(run.step()))
        return steps, str(caught.value)

    with lockstep.ray.RolloutWorkers(make(**options), workers=2) as run:
        by_workers = story(run)
    alone = story(make(**options))
    assert by_workers == alone and "the run diverged and has stopped" in alone[1]


def test_a_worker_refuses_another_step():
    lockstep_ray = pytest.importorskip("lockstep.ray", reason="Ray is not installed: make test RAY=1")
    run = make()
    worker, requests, policy = lockstep_ray.RolloutWorker("bf16+fused", 1), run.requests(), run.policy()
    assert len(worker.draw(1, policy, requests)) == 24
    with pytest.raises(lockstep.InvalidArgumentError, match="one is of step 1, but the policy of step 2"):
        worker.draw(2, policy, requests)


def test_bad_counts():
    lockstep_ray = pytest.importorskip("lockstep.ray", reason="Ray is not installed: make test RAY=1")
    with pytest.raises(lockstep.InvalidArgumentError, match="workers is 0"):
        lockstep_ray.RolloutWorkers(make(), workers=0)


PAGE = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "ReinforcementLearning.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("code", PAGE)
def test_the_pages_examples(ray, code):
    """docs/ReinforcementLearning.md: each runs as a script, and says something."""
    ray.shutdown()
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths()}, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout, done.stderr
