"""Reading prime-rl token exports: what is packed, and what every bad line is told."""

import gzip
import hashlib
import json

import numpy as np
import pytest
from rollouts import SHIPPED, sequence, write

from lockstep.logs import LogError, files, find_files, gather, open_log, read_prime_rl


def test_packs_the_columns(tmp_path):
    path = write(
        tmp_path / "log.jsonl",
        sequence(),
        "\n",
        sequence(
            env_name="code",
            token_ids=[1, 2],
            loss_mask=[True, True],
            trainer_logprobs=[-1, None],
            inference_logprobs=[-1e-3, -3.5],
        ),
    )
    log = read_prime_rl([path], label="run", token_ids=True, exclude_non_finite=True)
    assert log.label == "run" and log.sequences == 2
    assert log.offsets.tolist() == [0, 4, 6] and log.offsets.dtype == np.int64
    np.testing.assert_array_equal(log.trainer, np.float32([0, -1.25, -2, -0.125, -1, np.nan]))
    np.testing.assert_array_equal(log.rollout, np.float32([0, -1, -2.5, -0.125, -1e-3, -3.5]))
    assert log.trainer.dtype == log.rollout.dtype == np.float32
    assert log.mask.tolist() == [False, True, True, True, True, True] and log.mask.dtype == np.bool_
    assert log.token_ids.tolist() == [5, 6, 7, 8, 1, 2]
    assert log.environments == ("math", "code") and log.environment_of.tolist() == [0, 1]
    assert log.lines.tolist() == [1, 3], "a blank line counts as a line and is no sequence"
    (file,) = log.files
    assert (file.bytes, file.sequences, file.skipped_lines) == (path.stat().st_size, 2, 0)
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_gzip_is_recognised_by_content_and_gives_the_same(tmp_path):
    plain = write(tmp_path / "log.jsonl", sequence(), sequence())
    packed = tmp_path / "log.dat"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    one, other = (read_prime_rl([path], label="") for path in (plain, packed))
    assert one.trainer.tobytes() == other.trainer.tobytes() and one.offsets.tolist() == other.offsets.tolist()
    assert other.files[0].bytes == packed.stat().st_size
    assert other.files[0].sha256 == hashlib.sha256(packed.read_bytes()).hexdigest()


def test_several_files_are_one_log_and_progress_sees_every_byte(tmp_path):
    paths = [
        write(tmp_path / "rank_0.jsonl", sequence()),
        write(tmp_path / "rank_1.jsonl.gz", sequence(), sequence()),
    ]
    seen = []
    log = read_prime_rl(paths, label="", advance=seen.append)
    assert log.sequences == 3 and log.file_of.tolist() == [0, 1, 1] and log.lines.tolist() == [1, 1, 2]
    assert sum(seen) == sum(path.stat().st_size for path in paths)


def test_a_folder_is_the_files_in_it(tmp_path):
    step = tmp_path / "step_3"
    step.mkdir()
    (step / "STABLE").touch()
    second, first = write(step / "rank_1.jsonl", sequence()), write(step / "rank_0.jsonl.gz", sequence())
    assert find_files(step) == [first, second]


def test_a_folder_of_steps_is_one_log_in_the_order_of_numbers(tmp_path):
    files = []
    for step in (2, 10):
        (tmp_path / f"step_{step}").mkdir()
        for rank in (2, 10):
            path = tmp_path / f"step_{step}" / f"rank_{rank}.jsonl"
            files.append(write(path, sequence(step=..., env_name=f"{step}.{rank}")))
    assert find_files(tmp_path) == files
    (batch,) = open_log(tmp_path)
    assert batch.steps.tolist() == [2, 2, 10, 10], "from the folder's name, where the line has none"
    assert batch.file_of.tolist() == [0, 1, 2, 3] and batch.environments == ("2.2", "2.10", "10.2", "10.10")


def test_a_folder_without_logs(tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(LogError, match=r"holds no log .* give one of its folders, such as other"):
        find_files(tmp_path)


def test_an_empty_file_has_no_sequences(tmp_path):
    log = read_prime_rl([write(tmp_path / "log.jsonl")], label="")
    assert log.sequences == 0 and log.offsets.tolist() == [0] and len(log.trainer) == 0


def test_optional_columns_may_be_missing(tmp_path):
    path = write(tmp_path / "log.jsonl", sequence(token_ids=..., env_name=...), sequence(token_ids=None))
    log = read_prime_rl([path], label="", token_ids=True)
    assert log.token_ids is None and log.environments == ("", "math")


# What is wrong with the second line -> the field and the words that say so.
BAD_LINES = {
    "not JSON": ("{oops}\n", None, r"is not JSON \("),
    "NaN": ('{"trainer_logprobs": [NaN]}\n', None, "holds NaN or Infinity, which JSON does not have"),
    "not UTF-8": ('"\udcff"\n', None, "is not JSON"),
    "deeply nested": ("[" * 100_000 + "\n", None, "is not JSON"),
    "an array": ("[1, 2]\n", None, "holds an array where one JSON object"),
    "a number": ("3\n", None, "holds a number where"),
    "no schema": (
        sequence(schema_version=...),
        "schema_version",
        "missing: this is no prime-rl token export",
    ),
    "new schema": (sequence(schema_version=2), "schema_version", "is 2, but this reader knows version 1"),
    "schema true": (sequence(schema_version=True), "schema_version", "is true, but"),
    "no mask": (sequence(loss_mask=...), "loss_mask", r"missing.*fields found: 'entropy', 'env_name'"),
    "null mask": (sequence(loss_mask=None), "loss_mask", "is null, so it was not recorded"),
    "mask of numbers": (
        sequence(loss_mask=[0, 1, 1, 1]),
        "loss_mask",
        "token 0 is a number where true or false",
    ),
    "mask of text": (sequence(loss_mask=[True, True, "x", True]), "loss_mask", "token 2 is a string"),
    "mask no array": (sequence(loss_mask="1111"), "loss_mask", "is a string where an array"),
    "no trainer": (sequence(trainer_logprobs=...), "trainer_logprobs", "the field is missing"),
    "null trainer": (sequence(trainer_logprobs=None), "trainer_logprobs", "there is nothing to compare"),
    "null rollout": (sequence(inference_logprobs=None), "inference_logprobs", "there is nothing to compare"),
    "short": (sequence(trainer_logprobs=[-1.0]), "trainer_logprobs", "has 1 values but loss_mask has 4"),
    "text": (
        sequence(inference_logprobs=[0, "-1", 0, 0]),
        "inference_logprobs",
        "token 1 is a string where a number",
    ),
    "nested": (sequence(inference_logprobs=[0, [1], 0, 0]), "inference_logprobs", "token 1 is an array"),
    "boolean": (sequence(inference_logprobs=[0, True, 0, 0]), "inference_logprobs", "token 1 is a boolean"),
    "null that counts": (
        sequence(trainer_logprobs=[0, -1, None, -1]),
        "trainer_logprobs",
        r"token 2 counts but is null \(non-finite when it was written\)",
    ),
    "too large": (
        sequence(trainer_logprobs=[0, -1e300, -1, -1]),
        "trainer_logprobs",
        "token 1 .* beyond float32",
    ),
    "token ids short": (sequence(token_ids=[1]), "token_ids", "has 1 values but loss_mask has 4"),
    "token ids wide": (sequence(token_ids=[1, 2, 3, 2**40]), "token_ids", "beyond 32 bits"),
    "token ids text": (sequence(token_ids=["a"] * 4), "token_ids", "is not an array of integers"),
}


def bad_log(path, line):
    good = json.dumps(sequence()).encode() + b"\n"
    bad = (
        line.encode("utf-8", "surrogateescape")
        if isinstance(line, str)
        else json.dumps(line).encode() + b"\n"
    )
    path.write_bytes(good + bad + good)
    return path


@pytest.mark.parametrize("line, field, words", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named_or_skipped(tmp_path, line, field, words):
    path = bad_log(tmp_path / "log.jsonl", line)
    with pytest.raises(LogError, match=words) as caught:
        read_prime_rl([path], label="", token_ids=True)
    error = caught.value
    assert (error.file, error.line, error.field) == (str(path), 2, field)
    assert str(error).startswith(f"{path}, line 2{f', {field}' if field else ''}: ")

    log = read_prime_rl([path], label="", token_ids=True, skip_bad=True)
    assert log.sequences == 2 and log.lines.tolist() == [1, 3]
    assert log.skipped_lines == 1 and log.files[0].first_skipped == str(error)


def test_a_cut_off_last_line_is_told_from_nonsense(tmp_path):
    path = write(tmp_path / "log.jsonl", sequence(), json.dumps(sequence())[:50])
    with pytest.raises(LogError, match="the last line is cut off") as caught:
        read_prime_rl([path], label="")
    assert caught.value.line == 2
    assert read_prime_rl([path], label="", skip_bad=True).skipped_lines == 1


def test_a_last_line_without_newline_is_good_if_it_is_whole(tmp_path):
    path = write(tmp_path / "log.jsonl", sequence(), json.dumps(sequence()))
    assert read_prime_rl([path], label="").sequences == 2


def test_a_masked_null_is_nobody_s_business(tmp_path):
    path = write(tmp_path / "log.jsonl", sequence(trainer_logprobs=[None, -1, -1, -1]))
    log = read_prime_rl([path], label="")
    assert np.isnan(log.trainer[0]) and log.sequences == 1


def test_a_cut_off_gzip_stream_keeps_the_lines_before(tmp_path):
    path = tmp_path / "log.jsonl.gz"
    lines = "".join(
        json.dumps(sequence(step=step, note=hashlib.sha256(bytes(step)).hexdigest())) + "\n"
        for step in range(500)
    )
    whole = gzip.compress(lines.encode())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LogError, match="gzip stream is damaged or cut off"):
        read_prime_rl([path], label="")
    log = read_prime_rl([path], label="", skip_bad=True)
    assert 0 < log.sequences < 500 and log.skipped_lines == 1
    assert log.files[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_endless_line_is_refused_without_reading_it_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST_LINE", 1 << 16)
    path = write(tmp_path / "log.jsonl", sequence(), "x" * 300_000 + "\n", sequence())
    with pytest.raises(LogError, match="line is longer than"):
        read_prime_rl([path], label="")
    log = read_prime_rl([path], label="", skip_bad=True)
    assert log.sequences == 2 and log.lines.tolist() == [1, 3]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(LogError, match="cannot be opened: No such file"):
        read_prime_rl([tmp_path / "log.jsonl"], label="", skip_bad=True)


@pytest.mark.parametrize("path", SHIPPED.values(), ids=SHIPPED)
def test_the_shipped_logs_keep_every_bit(path):
    """Each log-prob in examples/data is the shortest decimal of its float32."""
    with gzip.open(path, "rt") as lines:
        for record in map(json.loads, lines):
            for name in ("trainer_logprobs", "inference_logprobs"):
                assert [str(np.float32(value)) for value in record[name]] == [
                    str(value) for value in record[name]
                ]


def test_a_part_of_a_log_knows_its_files(tmp_path):
    paths = [write(tmp_path / f"rank_{i}.jsonl", sequence(), sequence()) for i in range(3)]
    part = gather(open_log(paths, shard=(1, 2)))
    assert part.file_of.tolist() == [0, 0] and [file.path for file in part.files] == [str(paths[1])]
    assert [batch.file_of.tolist() for batch in open_log(paths, shard=(1, 2))] == [[1, 1]]
