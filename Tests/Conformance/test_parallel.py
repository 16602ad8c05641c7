"""One log surveyed in parts: by calls, processes, Arrow batches, or a Ray cluster, one of whose workers dies. The
result has the bytes of one process's."""

import itertools
import json
import os
import random
import signal

import numpy as np
import pytest
from rollouts import SHIPPED, sequence, write

import lockstep
from lockstep.logs import LogError, batches_of_table, open_log
from lockstep.parallel import survey_files
from lockstep.survey import SAMPLE_TOKENS, Survey, survey


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A prime-rl export of three steps on three ranks, of real rollouts."""
    root = tmp_path_factory.mktemp("token_exports")
    lines = [line for path in (SHIPPED["bf16"], SHIPPED["fp16"]) for line in _lines(path)]
    for index, (step, rank) in enumerate(itertools.product(range(3), range(3))):
        part = root / f"step_{step}" / f"rank_{rank}.jsonl"
        part.parent.mkdir(exist_ok=True)
        records = [dict(json.loads(line), step=step, rank=rank, export_sequence_idx=number)
                   for number, line in enumerate(lines[index::9])]
        part.write_text("".join(json.dumps(record) + "\n" for record in records))
    return root


def _lines(path):
    import gzip

    with gzip.open(path, "rt") as file:
        return file.readlines()


@pytest.fixture(scope="module")
def whole(folder):
    return survey(open_log(folder), threads=1)


def test_it_is_what_the_core_says_of_the_log_at_once(whole, folder):
    batches = list(open_log(folder, batch_tokens=1 << 40))
    assert len(batches) == 1
    (batch,) = batches
    at_once = lockstep.mismatch(batch.trainer, batch.rollout, batch.mask, batch.offsets)
    for name, value in at_once.to_dict().items():
        if name not in ("log_ratio_quantiles", "max_abs_sequence"):
            assert whole.statistics.to_dict()[name] == pytest.approx(value, rel=0, abs=0, nan_ok=True), name
    assert [step for step, _ in whole.by_step()] == [0, 1, 2]
    for step, values in whole.by_step():
        part = batch.take(batch.steps == step)
        assert values.k3 == lockstep.mismatch(part.trainer, part.rollout, part.mask, part.offsets).k3


@pytest.mark.parametrize("batch_tokens", [1, 3_000, 1 << 20])
@pytest.mark.parametrize("parts", [1, 2, 4, 40])
def test_any_cut_and_any_order_of_merging_gives_the_same_bytes(whole, folder, parts, batch_tokens):
    shards = [survey(open_log(folder, shard=(index, parts), batch_tokens=batch_tokens)) for index in range(parts)]
    random.Random(parts).shuffle(shards)
    while len(shards) > 1:
        a = shards.pop(random.Random(len(shards)).randrange(len(shards)))
        shards[0].merge(Survey.from_bytes(a.to_bytes()))
    shards[0].label = whole.label
    assert shards[0].to_bytes() == whole.to_bytes()


def test_processes(whole, folder):
    seen = []
    found = survey_files(folder, processes=3, done=lambda *each: seen.append(each))
    assert found.to_bytes() == whole.to_bytes() and seen == [(1, 3), (2, 3), (3, 3)]


def test_processes_tell_of_a_bad_line(folder, tmp_path):
    bad = tmp_path / "rank_0.jsonl"
    bad.write_text((folder / "step_0" / "rank_0.jsonl").read_text() + "{not json}\n")
    with pytest.raises(LogError, match=r"rank_0\.jsonl, line \d+: is not JSON"):
        survey_files(bad, processes=2)


def test_what_is_kept_does_not_grow_with_the_log(whole, folder):
    rollout, trainer = whole.sample()
    assert 0 < len(rollout) == len(trainer) <= whole.statistics.tokens
    many = Survey()
    for batch in open_log(folder):
        for copy in range(12):
            many.add(type(batch)(**{**batch.__dict__, "ids": batch.ids + np.uint64(copy)}))
    assert SAMPLE_TOKENS <= len(many.sample()[0]) < SAMPLE_TOKENS + 5_000
    assert len(many.to_bytes()) < len(whole.to_bytes()) + 9 * SAMPLE_TOKENS + 200_000


def test_the_worst_tokens_are_found_again_in_the_log(whole, folder):
    paths = list(whole.files.values())
    for token in whole.total.worst()[:8]:
        place = whole.place(token["id"])
        with open(paths[place.file].path) as file:
            record = json.loads(next(itertools.islice(file, place.line - 1, None)))
        at = int(token["position"])
        assert np.float32(record["trainer_logprobs"][at]) - np.float64(np.float32(record["inference_logprobs"][at])) \
            == token["log_ratio"]
        assert whole.token_id(token["id"], at) == record["token_ids"][at]


def test_damaged_bytes_are_refused(whole):
    data = whole.to_bytes()
    for broken in (b"", data[:30], data[:-1], data[:100] + bytes([data[100] ^ 1]) + data[101:], b"LSSURVEY" + bytes(60)):
        with pytest.raises(lockstep.BadDataError, match="survey"):
            Survey.from_bytes(broken)


def test_a_non_finite_token_leaves_the_survey_as_it_was(tmp_path):
    path = write(tmp_path / "log.jsonl", [sequence(seed=1), sequence(seed=2)])
    (batch,) = open_log(path)
    found = Survey()
    found.add(batch)
    before = found.to_bytes()
    batch.trainer[np.flatnonzero(batch.mask)[0]] = np.nan
    with pytest.raises(lockstep.NonFiniteError):
        found.add(batch)
    assert found.to_bytes() == before


def table_of(folder):
    pyarrow = pytest.importorskip("pyarrow")
    columns = {"trainer": [], "rollout": [], "mask": [], "token_ids": [], "step": []}
    for batch in open_log(folder):
        for index in range(batch.sequences):
            tokens = slice(batch.offsets[index], batch.offsets[index + 1])
            for name in ("trainer", "rollout", "mask", "token_ids"):
                columns[name].append(getattr(batch, name)[tokens])
            columns["step"].append(int(batch.steps[index]))
    return pyarrow.table(columns)


def test_arrow_batches(whole, folder):
    table = table_of(folder)
    found = survey(batches_of_table(table))
    parts = [survey(batches_of_table(part)) for part in table.to_batches(max_chunksize=100)]
    for part in parts[1:]:
        parts[0].merge(part)
    assert parts[0].total == found.total, "ids come from the rows' content, not from where they stand"
    mine, its = found.statistics.to_dict(), whole.statistics.to_dict()
    assert {key: mine[key] for key in mine if key != "max_abs_sequence"} \
        == {key: its[key] for key in its if key != "max_abs_sequence"}


# Ray

@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray", reason="Ray is not installed: make test RAY=1")
    pytest.importorskip("ray.data")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    yield ray
    ray.shutdown()


def start(ray, workers):
    ray.shutdown()
    paths = os.pathsep.join(filter(None, [os.path.dirname(os.path.dirname(lockstep.__file__)),
                                          os.environ.get("PYTHONPATH")]))
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
             runtime_env={"env_vars": {"PYTHONPATH": paths, **{
                 name: os.environ[name] for name in ("LOCKSTEP_LIBRARY",) if name in os.environ}}})


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_ray_cluster(ray, whole, folder, workers):
    import lockstep.ray

    start(ray, workers)
    found = lockstep.ray.survey_files(folder, label=whole.label, parts=7)
    assert found.to_bytes() == whole.to_bytes()


def test_a_ray_worker_that_is_killed_changes_nothing(ray, whole, folder, tmp_path, monkeypatch):
    import lockstep.ray

    start(ray, 2)
    flag, part_of = tmp_path / "killed", lockstep.ray.survey_part

    def killed_once(files, part, *others):
        if part == 3 and not flag.exists():
            flag.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return part_of(files, part, *others)

    monkeypatch.setattr(lockstep.ray, "survey_part", killed_once)
    found = lockstep.ray.survey_files(folder, label=whole.label, parts=7)
    assert int(flag.read_text()) != os.getpid(), "a worker was killed"
    assert found.to_bytes() == whole.to_bytes()


def test_a_ray_task_tells_of_a_bad_line(ray, tmp_path):
    import lockstep.ray

    start(ray, 2)
    bad = tmp_path / "rank_0.jsonl"
    bad.write_text("{not json}\n")
    with pytest.raises(LogError, match="line 1: is not JSON"):
        lockstep.ray.survey_files(bad, parts=2, format="prime-rl")


def test_a_ray_dataset(ray, folder):
    import lockstep.ray

    start(ray, 2)
    table = table_of(folder)
    found = lockstep.ray.survey_dataset(ray.data.from_arrow([table.slice(0, 300), table.slice(300)]))
    assert found.total == survey(batches_of_table(table)).total
