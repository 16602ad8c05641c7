"""One log read in parts: by calls, processes, Arrow batches, or a Ray cluster, one of whose workers dies. What is kept
of it has the bytes of one process's: of a survey, of the sums of a certificate, of advice, and of each step."""

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from clusters import paths, start
from conftest import ROOT
from rollouts import SHIPPED, sequence, write

import lockstep
from lockstep.advice import CorrectionHistograms
from lockstep.certificate import SequenceSums
from lockstep.commands import commands
from lockstep.logs import LogError, batches_of_table, open_log, write_log
from lockstep.parallel import advise_files, certify_files, read_files, survey_files
from lockstep.survey import SAMPLE_TOKENS, StepSums, Survey, survey

KINDS = (Survey, SequenceSums, CorrectionHistograms, StepSums)


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


@pytest.fixture(scope="module")
def of_one(folder):
    """What each kind of part keeps of the whole log, read by one process at once."""
    return {kind: kind("log").read(open_log(folder), threads=1) for kind in KINDS}


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
@pytest.mark.parametrize("kind", KINDS)
def test_any_cut_and_any_order_of_merging_gives_the_same_bytes(of_one, folder, kind, parts, batch_tokens):
    shards = [kind("log").read(open_log(folder, shard=(index, parts), batch_tokens=batch_tokens))
              for index in range(parts)]
    random.Random(parts).shuffle(shards)
    while len(shards) > 1:
        a = shards.pop(random.Random(len(shards)).randrange(len(shards)))
        shards[0].merge(kind.from_bytes(a.to_bytes()))
    assert shards[0].to_bytes() == of_one[kind].to_bytes()


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_processes(of_one, folder, kind, processes):
    seen = []
    found = read_files(kind("log"), folder, processes=processes, done=lambda *each: seen.append(each))
    assert found.to_bytes() == of_one[kind].to_bytes()
    assert seen == [(index, processes) for index in range(1, processes + 1)]


def test_what_is_decided_does_not_depend_on_the_processes(folder):
    certificate = certify_files(folder, band="bitwise", processes=1)
    assert certificate.outcome == "fail" and certificate.inputs[0]["role"] == "log"
    assert certify_files(folder, band="bitwise", processes=2).to_json() == certificate.to_json()
    assert advise_files(folder, processes=2) == advise_files(folder, processes=1)
    for command, status in (("certify", 1), ("advise", 0), ("diagnose", 0)):
        printed = [CliRunner().invoke(commands, [command, str(folder), "--json", "--processes", str(processes)])
                   for processes in (1, 2)]
        assert printed[0].exit_code == status and printed[0].stdout == printed[1].stdout, command


def test_the_first_difference_is_the_first_of_the_log(tmp_path):
    equal = [-1.0, -1.0, -1.0, -1.0]
    same = sequence(inference_logprobs=equal, trainer_logprobs=equal)
    paths = [write(tmp_path / "a.jsonl", same, same), write(tmp_path / "b.jsonl", same, same, same, sequence(), sequence())]
    for parts in (1, 2, 3, 5):
        shards = [SequenceSums().read(open_log(paths, shard=(index, parts))) for index in reversed(range(parts))]
        for other in shards[1:]:
            shards[0].merge(other)
        assert shards[0].first_difference == (1, 4, 1)
    assert f"{paths[1]}, line 4, at position 1" in certify_files(paths, band="bitwise", processes=1).findings[0].reason


# Parts that are unlike each other


@pytest.mark.parametrize("kind", KINDS)
def test_more_parts_than_lines_and_a_part_without_sequences(tmp_path, kind):
    paths = [write(tmp_path / "a.jsonl", sequence(), sequence(step=1)), write(tmp_path / "b.jsonl"),
             write(tmp_path / "c.jsonl", sequence(loss_mask=[False] * 4))]
    whole = kind("log").read(open_log(paths))
    for parts in (2, 3, 4, 9):
        shards = [kind("log").read(open_log(paths, shard=(index, parts))) for index in range(parts)]
        out = kind("log")
        for each in shards:
            out.merge(each)
        assert out.to_bytes() == whole.to_bytes()
    assert kind.from_bytes(kind("nothing").to_bytes()).to_bytes() == kind("nothing").to_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_out_is_told_of_as_by_one(tmp_path, kind):
    lines = [json.dumps(sequence()) + "\n" if number not in (8, 9, 10, 11) else "{\n" for number in range(20)]
    path = write(tmp_path / "log.jsonl", *lines)
    whole = kind("log").read(open_log(path, skip_bad=True))
    assert whole.skipped_lines == 4 and "line 9:" in whole.files[0].first_skipped
    found = read_files(kind("log"), path, processes=3, skip_bad=True)
    assert found.to_bytes() == whole.to_bytes()


@pytest.mark.parametrize("ending", [".lockstep", ".parquet", ".jsonl.gz", ".npz"])
@pytest.mark.parametrize("damage", ["flipped", "cut off"])
def test_a_damage_is_told_of_once(tmp_path, ending, damage):
    path = tmp_path / f"log{ending}"
    if ending == ".jsonl.gz":
        path.write_bytes(SHIPPED["bf16"].read_bytes())
    elif ending == ".npz":
        np.savez(path, trainer=-np.ones((500, 20), np.float32), rollout=-np.ones((500, 20), np.float32))
    else:
        pytest.importorskip("pyarrow")
        write_log(open_log(SHIPPED["bf16"]), path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data if damage == "flipped" else data[: len(data) // 2])
    whole, parts = (SequenceSums("log") for _ in range(2))
    whole.read(open_log(path, skip_bad=True))
    for index in range(3):
        parts.merge(SequenceSums("log").read(open_log(path, skip_bad=True, shard=(index, 3))))
    assert whole.skipped_lines >= 1 or (ending, damage) == (".parquet", "flipped"), "that has no checksums"
    assert (parts.files, parts.to_bytes()) == (whole.files, whole.to_bytes())


def test_a_log_of_several_recipes_is_refused_wherever_it_is_cut(tmp_path):
    paths = [tmp_path / f"{name}.jsonl" for name in "ab"]
    for path, temperature in zip(paths, (1.0, 0.5), strict=True):
        write(path, json.dumps({"trainer": [-1.0], "rollout": [-1.0], "temperature": temperature}) + "\n")
    for processes in (1, 2):
        with pytest.raises(LogError, match="several policies"):
            survey_files(paths, processes=processes)
    found = [survey_files(paths, processes=processes, mixed=True).to_bytes() for processes in (1, 2)]
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_overflow_merges_too(tmp_path, kind):
    rows = [sequence(inference_logprobs=[-1e30, -3e38, -1.0, -2.0]), sequence(), sequence(trainer_logprobs=[-3e38] * 4)]
    path = write(tmp_path / "log.jsonl", *rows)
    whole = kind("log").read(open_log(path))
    for order in ((0, 1, 2), (2, 0, 1)):
        out = kind("log")
        for index in order:
            out.merge(kind("log").read(open_log(path, shard=(index, 3))))
        assert out.to_bytes() == whole.to_bytes()


def test_a_process_that_dies_is_told_of(folder):
    with pytest.raises(ChildProcessError, match="fewer processes"):
        read_files(Dies("log"), folder, processes=2)


class Dies(StepSums):
    """A part whose reader is killed."""

    def add_batch(self, batch, *, threads=0):
        os.kill(os.getpid(), signal.SIGKILL)


def test_parts_of_different_kinds_are_not_merged():
    with pytest.raises(lockstep.InvalidArgumentError, match="give a Survey"):
        Survey().merge(SequenceSums())


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
            many.add_batch(type(batch)(**{**batch.__dict__, "ids": batch.ids + np.uint64(copy)}))
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


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_bytes_are_refused(of_one, kind):
    data = of_one[kind].to_bytes()
    for broken in (b"", data[:30], data[:-1], data[:100] + bytes([data[100] ^ 1]) + data[101:], kind.MAGIC + bytes(60)):
        with pytest.raises(lockstep.BadDataError, match=kind.__name__):
            kind.from_bytes(broken)
    newer = (kind.VERSION + 1).to_bytes(4, "little")
    with pytest.raises(lockstep.UnsupportedError, match="newer"):
        kind.from_bytes(data[:40] + newer + data[44:])


def test_a_non_finite_token_leaves_the_survey_as_it_was(tmp_path):
    path = write(tmp_path / "log.jsonl", [sequence(seed=1), sequence(seed=2)])
    (batch,) = open_log(path)
    found = Survey()
    found.add_batch(batch)
    before = found.to_bytes()
    batch.trainer[np.flatnonzero(batch.mask)[0]] = np.nan
    with pytest.raises(lockstep.NonFiniteError):
        found.add_batch(batch)
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


@pytest.mark.parametrize("kind", KINDS)
def test_arrow_batches(of_one, folder, kind):
    table = table_of(folder)
    found = kind("log").read(batches_of_table(table))
    parts = [kind("log").read(batches_of_table(part)) for part in table.to_batches(max_chunksize=100)]
    for part in parts[:-1]:
        parts[-1].merge(part)
    assert parts[-1].to_bytes() == found.to_bytes(), "ids come from the rows' content, not from where they stand"
    if kind is Survey:
        mine, its = found.statistics.to_dict(), of_one[kind].statistics.to_dict()
        assert {key: mine[key] for key in mine if key != "max_abs_sequence"} \
            == {key: its[key] for key in its if key != "max_abs_sequence"}


# docs/Parallel.md

EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "Parallel.md").read_text(), re.DOTALL)


def example(tmp_path, folder, word):
    """What the example with that word prints, run as a script."""
    (code,) = (each for each in EXAMPLES if word in each)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "token_exports").symlink_to(folder)
    (tmp_path / "example.py").write_text(code)
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths()},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


def test_the_example_with_processes(whole, folder, tmp_path):
    k3, outcome, threshold = example(tmp_path, folder, "lockstep.parallel")
    assert float(k3) == whole.statistics.k3.value
    assert outcome == f"{certify_files(folder, band='5%', processes=1).outcome} {whole.statistics.tokens}"
    assert threshold == advise_files(folder, ess=0.9, processes=1).thresholds[0].text


def test_the_examples_with_arrow_and_arrays(folder, tmp_path):
    pytest.importorskip("pyarrow")
    assert example(tmp_path, folder, "batches_of_table") == ["3"]
    (k3,) = example(tmp_path / "outputs", folder, "get_context")
    assert 0 < float(k3) < 1e-3


# Ray

def same_by_ray(folder, of_one, **options):
    """Reads the log on the cluster, and compares with one process."""
    import lockstep.ray

    for kind in KINDS:
        found = lockstep.ray.read_files(kind("log"), folder, **options)
        assert found.to_bytes() == of_one[kind].to_bytes(), kind


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_ray_cluster(ray, of_one, folder, workers):
    start(ray, workers)
    same_by_ray(folder, of_one, parts=7)


def test_a_ray_worker_that_is_killed_changes_nothing(ray, of_one, folder, tmp_path, monkeypatch):
    import lockstep.ray

    start(ray, 2)
    read_part = lockstep.ray.read_part

    def killed_once(into, files, shard, **options):
        flag = tmp_path / type(into).__name__
        if shard[0] == 3 and not flag.exists():
            flag.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return read_part(into, files, shard, **options)

    monkeypatch.setattr(lockstep.ray, "read_part", killed_once)
    same_by_ray(folder, of_one, parts=7)
    killed = [int((tmp_path / kind.__name__).read_text()) for kind in KINDS]
    assert os.getpid() not in killed, "workers were killed"


def test_a_ray_cluster_decides_as_one_process(ray, folder, tmp_path):
    import lockstep.ray

    start(ray, 2)
    one = certify_files(folder, band="5%", processes=1)
    assert lockstep.ray.certify_files(folder, band="5%").to_json() == one.to_json()
    assert lockstep.ray.advise_files(folder, parts=3) == advise_files(folder, processes=1)
    assert lockstep.ray.survey_files(folder, parts=3).to_bytes() == survey_files(folder, processes=1).to_bytes()
    bad = tmp_path / "rank_0.jsonl"
    bad.write_text("{not json}\n")
    with pytest.raises(LogError, match="line 1: is not JSON"):
        lockstep.ray.survey_files(bad, parts=2, format="prime-rl")


def test_a_ray_dataset(ray, folder):
    import lockstep.ray

    start(ray, 2)
    table = table_of(folder)
    dataset = ray.data.from_arrow([table.slice(0, 300), table.slice(300)])
    found = lockstep.ray.survey_dataset(dataset)
    assert found.to_bytes() == survey(batches_of_table(table)).to_bytes()
    whole = SequenceSums().read(batches_of_table(table))
    expected = lockstep.certificate.decide(whole, band="bitwise", options={"non_finite": "strict"})
    assert lockstep.ray.certify_dataset(dataset, band="bitwise").to_json() == expected.to_json()
    with pytest.raises(Exception, match="is not a log-prob|NaN|null|finite"):
        lockstep.ray.survey_dataset(ray.data.from_items([{"trainer": [float("nan")], "rollout": [-1.0]}]))
    dropped = ray.data.from_items([{"trainer": [float("nan"), -1.0], "rollout": [-1.0, -1.0]}])
    assert lockstep.ray.survey_dataset(dropped, exclude_non_finite=True).statistics.tokens == 1


def test_the_example_with_ray(ray, whole, folder, tmp_path):
    ray.shutdown()
    k3, outcome, tokens, of_dataset = (line for line in example(tmp_path, folder, "import lockstep.ray") if line)
    assert float(k3) == whole.statistics.k3.value
    assert outcome == f"{certify_files(folder, band='5%', processes=1).outcome} {whole.statistics.tokens}"
    assert (tokens, of_dataset) == ("60", "fail")
