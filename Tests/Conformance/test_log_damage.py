"""Logs that are wrong, cut off or hostile: an error with file, line and field, or a count; never more."""

import io
import json
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rollouts import write
from log_writers import ANSWERS, WRITERS, chat, prompt_logprobs, trl_binary, trl_generate

from lockstep.logs import LogError, find_files, open_log

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
parquet = pytest.importorskip("pyarrow.parquet")

GOOD = {
    "id": 1,
    "step": 2,
    "token_ids": [5, 6, 7],
    "mask": [0, 1, 1],
    "trainer": [-1.0, -2.0, -3.0],
    "rollout": [-1.5, -2.5, -3.5],
}


def changed(record, **changes):
    return {key: value for key, value in (record | changes).items() if value is not ...}


def check(path, words, line, field, good, **options):
    """Strict: the batches before, then the error. With skip_bad: all the others, and a count."""
    got = []
    with pytest.raises(LogError, match=words) as caught:
        for batch in open_log(path, **options):
            got += batch.lines.tolist()
    error = caught.value
    assert (error.file, error.line, error.field) == (str(path), line, field), str(error)
    assert got == [each for each in good if line is not None and each < line]
    log = open_log(path, skip_bad=True, **options)
    assert [each for batch in log for each in batch.lines.tolist()] == good
    assert log.skipped_lines == 1 and log.files[0].first_skipped == str(error)


NAMED = {
    "no trainer": (changed(GOOD, trainer=...), "trainer", "the field is missing"),
    "null column": (changed(GOOD, rollout=None), "rollout", "is null, so it was not recorded"),
    "no array": (changed(GOOD, trainer="x"), "trainer", "is a string where an array"),
    "short": (changed(GOOD, rollout=[-1.0]), "rollout", "has 1 values but trainer has 3"),
    "mask short": (changed(GOOD, mask=[1]), "mask", "has 1 values but trainer has 3"),
    "mask null": (
        changed(GOOD, mask=[0, None, 1]),
        "mask",
        "token 1 is null where true or false, or 1 or 0,",
    ),
    "mask of two": (changed(GOOD, mask=[0, 2, 1]), "mask", "a number other than 0 and 1"),
    "mask huge": (changed(GOOD, mask=[0, 10**300, 1]), "mask", "a number other than 0 and 1"),
    "text": (changed(GOOD, trainer=[-1, "2", -3]), "trainer", "token 1 is a string where a number"),
    "counts and null": (changed(GOOD, trainer=[-1, None, -3]), "trainer", "token 1 counts but is null"),
    "counts and infinite": (
        changed(GOOD, trainer=[-1, -1e39, -3]),
        "trainer",
        "token 1 counts but is infinite",
    ),
    "huge number": (changed(GOOD, trainer=[-1, -1e308, -3]), "trainer", "token 1 counts but is infinite"),
    "no id": (changed(GOOD, id=None), "id", "the id is missing"),
    "id of the wrong kind": (changed(GOOD, id=[1]), "id", "is an array where an id"),
    "id beyond 64 bits": (changed(GOOD, id=2**63 * 3), "id", "is a number where an id"),
    "id twice": (changed(GOOD, id=100), "id", "is the same sequence as one before"),
    "step of text": (changed(GOOD, step="3"), "step", "is a string where an integer"),
    "step of a fraction": (changed(GOOD, step=2.5), "step", "is a number where an integer"),
    "token ids of text": (changed(GOOD, token_ids=["a"] * 3), "token_ids", "is not an array of integers"),
    "nested hostilely": ('{"trainer":' + "[" * 200_000 + "\n", None, "is not JSON"),
    "half a batch": (
        changed(GOOD, trainer=[[-1], [-2]], rollout=[[-1]], mask=[[1]], token_ids=[[1]]),
        "trainer",
        "has 2 sequences but rollout has 1",
    ),
    "JSON of another kind": ("[1, 2]\n", None, "holds an array where one JSON object"),
    "NaN": ('{"trainer": [NaN]}\n', None, "holds NaN or Infinity"),
}


@pytest.mark.parametrize("line, field, words", NAMED.values(), ids=NAMED)
def test_named_columns(tmp_path, line, field, words):
    path = write(tmp_path / "log.jsonl", changed(GOOD, id=100), line, changed(GOOD, id=102))
    check(path, words, 2, field, [1, 3])


RESPONSES = {
    "no log-probs asked for": (
        changed(chat(0), choices=[{"index": 0, "logprobs": None}]),
        "choices[0].logprobs",
        "ask the server for log-probs",
    ),
    "text for log-probs": (
        changed(chat(0), choices=[{"index": 0, "logprobs": "x"}]),
        "choices[0].logprobs",
        "is a string where an object",
    ),
    "null content": (
        changed(chat(0), choices=[{"logprobs": {"content": None}}]),
        "choices[0].logprobs.content",
        "is null",
    ),
    "an entry without": (
        changed(chat(0), choices=[{"logprobs": {"content": [{"token": "a"}]}}]),
        "choices[0].logprobs.content",
        "token 0 has no logprob",
    ),
    "neither shape": (
        changed(chat(0), choices=[{"logprobs": {"x": 1}}]),
        "token_logprobs",
        "the field is missing",
    ),
    "no choice": (changed(chat(0), choices=[]), None, "holds no sequence"),
    "a number for a choice": (changed(chat(0), choices=[3]), "choices[0]", "is a number where an object"),
    "index of text": (
        changed(chat(0), choices=[{"index": "a", "logprobs": {"content": []}}]),
        "choices[0].index",
        "is a string where an integer",
    ),
    "null in the middle": (
        changed(prompt_logprobs(2), prompt_logprobs=[None, None]),
        "prompt_logprobs",
        "token 1 is null",
    ),
    "the token is not scored": (
        changed(prompt_logprobs(2), prompt_token_ids=[1] + [49_999] * 9),
        "prompt_logprobs",
        "token 1 has no log-prob of token 49999",
    ),
    "null log-prob": (
        changed(chat(0), choices=[{"logprobs": {"content": [{"logprob": None}]}}]),
        "logprobs",
        "token 0 counts but is null",
    ),
    "TRL: sequences missing": (
        changed(trl_generate(), completion_ids=[[1]]),
        "completion_ids",
        "does not have the 12 sequences",
    ),
    "TRL: no k": (
        changed(trl_generate(), logprobs=[[[]]] + [[[-1.0]]] * 11),
        "logprobs[0]",
        "token 0 is an array",
    ),
    "TRL: not base64": (
        changed(trl_binary(), actual_logprobs_b64="*"),
        "actual_logprobs_b64",
        "is not base64",
    ),
    "TRL: base64 of null": (
        changed(trl_binary(), actual_token_ids_b64=3),
        "actual_token_ids_b64",
        "is not base64",
    ),
    "TRL: cut off": (
        changed(trl_binary(), actual_logprobs_b64="AAAA"),
        "actual_logprobs_b64",
        "has 3 bytes where 432 are expected",
    ),
    "TRL: huge shape": (changed(trl_binary(), shape=[12, 2**60, 1]), "shape", "beyond 512 MiB"),
    "TRL: negative shape": (changed(trl_binary(), shape=[12, -1, 1]), "shape", "is not"),
    "TRL: long": (changed(trl_binary(), completion_lengths=[10] * 12), "completion_lengths", "of at most 9"),
}


@pytest.mark.parametrize("record, field, words", RESPONSES.values(), ids=RESPONSES)
def test_answers(tmp_path, record, field, words):
    path = write(tmp_path / "answers.jsonl", chat(4), record, chat(5))
    check(path, words, 2, field, [1, 3])


# Tables


def table_with(**columns):
    base = {
        "id": [1, 2, 3],
        "step": [1, 1, 1],
        "token_ids": [[1, 2]] * 3,
        "mask": [[True, True]] * 3,
        "trainer": [[-1.0, -2.0]] * 3,
        "rollout": [[-1.0, -2.5]] * 3,
    }
    return pa.table(
        {name: pa.array(values) for name, values in (base | columns).items() if values is not ...}
    )


TABLES = {
    "null list": (
        {"trainer": [[-1.0, -2.0], None, [-1.0, -2.0]]},
        "trainer",
        "is null, so it was not recorded",
    ),
    "short list": (
        {"rollout": [[-1.0, -2.0], [-1.0], [-1.0, -2.0]]},
        "rollout",
        "has 1 values but trainer has 2",
    ),
    "null that counts": (
        {"rollout": [[-1.0, -2.0], [None, -1.0], [-1.0, -2.0]]},
        "rollout",
        "token 0 counts but is null or NaN",
    ),
    "NaN that counts": (
        {"rollout": [[-1.0, -2.0], [-1.0, float("nan")], [-1.0, -2.0]]},
        "rollout",
        "token 1 counts but is null or NaN",
    ),
    "beyond float32": ({"rollout": [[-1.0, -2.0], [-1.0, -1e60], [-1.0, -2.0]]}, "rollout", "beyond float32"),
    "null in the mask": (
        {"mask": [[True, True], [True, None], [True, True]]},
        "mask",
        "token 1 is null where true",
    ),
    "mask of two": ({"mask": [[1, 1], [2, 1], [0, 1]]}, "mask", "token 0 is a number other than 0 and 1"),
    "null token": (
        {"token_ids": [[1, 2], [None, 1], [1, 2]]},
        "token_ids",
        "token 0 is null where a token id",
    ),
    "wide token": ({"token_ids": [[1, 2], [2**40, 1], [1, 2]]}, "token_ids", "beyond 32 bits"),
    "id twice": ({"id": [1, 1, 3]}, "id", "is the same sequence as one before"),
}


@pytest.mark.parametrize("columns, field, words", TABLES.values(), ids=TABLES)
def test_rows_of_a_table(tmp_path, columns, field, words):
    parquet.write_table(table_with(**columns), tmp_path / "log.parquet")
    check(tmp_path / "log.parquet", words, 2, field, [1, 3])


WHOLE_TABLES = {
    "text": ({"trainer": [["a"], ["b"], ["c"]]}, "trainer", "holds string where numbers"),
    "lists of lists": ({"trainer": [[[1.0]]] * 3}, "trainer", "holds list.* where numbers"),
    "plain numbers beside lists": (
        {"rollout": [1.0, 2.0, 3.0]},
        "rollout",
        "where a list, one value a token",
    ),
    "ids of numbers with fractions": ({"id": [1.5, 2.5, 3.5]}, "id", "where text or integers"),
    "an id that is null": ({"id": [1, None, 3]}, "id", "is null in some rows"),
    "no log-probs": ({"trainer": ..., "rollout": ...}, None, "say which columns hold them"),
}


@pytest.mark.parametrize("columns, field, words", WHOLE_TABLES.values(), ids=WHOLE_TABLES)
def test_tables_of_another_kind(tmp_path, columns, field, words):
    parquet.write_table(table_with(**columns), tmp_path / "log.parquet")
    check(tmp_path / "log.parquet", words, None, field, [])


def test_tokens_out_of_order_or_without_sequences(tmp_path):
    columns = {"trainer": [-1.0, -2.0, -3.0], "rollout": [-1.0, -2.0, -3.0]}
    path = tmp_path / "log.parquet"
    parquet.write_table(pa.table(columns), path)
    with pytest.raises(LogError, match="no column that tells the sequences apart; say which"):
        list(open_log(path))
    parquet.write_table(pa.table({**columns, "id": [1, 1, 2], "position": [1, 0, 0]}), path)
    with pytest.raises(LogError, match="row 2 is not after the row before it"):
        list(open_log(path))
    parquet.write_table(pa.table({**columns, "id": [1, 2, 1]}), path)
    with pytest.raises(LogError, match="the same sequence as one before"):
        list(open_log(path))


def test_a_damaged_group_of_rows_keeps_those_before(tmp_path):
    """The second half of the pages is overwritten; checksums of the pages find it."""
    path = WRITERS["groups.parquet"](tmp_path / "log.parquet")
    parquet.write_table(parquet.read_table(path), path, row_group_size=3, write_page_checksum=True)
    start = parquet.ParquetFile(path).metadata.row_group(2).column(0).dictionary_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 200] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(LogError, match="is damaged, or cut off, after row"):
        list(open_log(path))
    log = open_log(path, skip_bad=True, batch_tokens=1)
    lines = [line for batch in log for line in batch.lines.tolist()]
    assert lines == [1, 2, 3, 4, 5, 6] and log.skipped_lines == 1


# Arrays


def arrays(**changes):
    base = {
        "trainer": np.full((3, 2), -1, np.float32),
        "rollout": np.full((3, 2), -2, np.float32),
        "mask": np.ones((3, 2), bool),
    }
    return {name: value for name, value in (base | changes).items() if value is not ...}


NPZ = {
    "objects": (arrays(trainer=np.array([[1.0], [1.0, 2.0], None], object)), "trainer", "which is a pickle"),
    "other shapes": (
        arrays(rollout=np.zeros((3, 1))),
        "rollout",
        r"has shape \[3, 1\] but trainer has \[3, 2\]",
    ),
    "three dimensions": (
        arrays(**dict.fromkeys(("trainer", "rollout", "mask"), np.zeros((3, 2, 1)))),
        "trainer",
        "where .B, T., or .tokens. with offsets",
    ),
    "packed without offsets": (
        arrays(**dict.fromkeys(("trainer", "rollout"), np.zeros(4)), mask=np.ones(4)),
        "trainer",
        "neither offsets, cu_seqlens nor lengths",
    ),
    "offsets that do not fit": (
        arrays(
            **dict.fromkeys(("trainer", "rollout"), np.zeros(4)), mask=np.ones(4), offsets=np.array([0, 5])
        ),
        "offsets",
        "does not cut trainer, of 4 values",
    ),
    "lengths that wrap": (
        arrays(
            **dict.fromkeys(("trainer", "rollout"), np.zeros(4)),
            mask=np.ones(4),
            lengths=np.array([2**62, 2**62, 2**62, 2**62, 4]),
        ),
        "lengths",
        "does not cut",
    ),
    "lengths below 0": (
        arrays(
            **dict.fromkeys(("trainer", "rollout"), np.zeros(4)), mask=np.ones(4), lengths=np.array([5, -1])
        ),
        "lengths",
        "does not cut",
    ),
    "text": (arrays(trainer=np.full((3, 2), "a")), "trainer", "holds text where numbers"),
    "bfloat16 as raw bytes": (arrays(trainer=np.zeros((3, 2), "V2")), "trainer", "convert it to float32"),
    "Fortran order": (
        arrays(trainer=np.asfortranarray(np.random.rand(3, 2))),
        "trainer",
        "ascontiguousarray",
    ),
    "a step of text": (arrays(step=np.array("a")), "step", "holds no integers"),
    "steps of another count": (arrays(step=np.array([1, 2])), "step", r"has shape \[2\] where \[3\]"),
    "no log-probs": ({"x": np.zeros(3)}, None, "say which arrays hold them"),
}


@pytest.mark.parametrize("columns, field, words", NPZ.values(), ids=NPZ)
def test_archives(tmp_path, columns, field, words):
    np.savez(tmp_path / "log.npz", **columns)
    check(tmp_path / "log.npz", words, None, field, [])


def test_a_pickle_in_an_archive_is_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    np.savez(tmp_path / "log.npz", **arrays(trainer=np.array([Bomb()], object)))
    with pytest.raises(LogError, match="pickles are never read"):
        list(open_log(tmp_path / "log.npz"))
    (tmp_path / "log.pkl").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(LogError, match="a Python pickle, as verl's DataProto.save_to_disk writes"):
        open_log(tmp_path / "log.pkl")
    assert not (tmp_path / "ran").exists()


def member(path, name, shape, body, descr="<f4"):
    """Adds a .npy of any header to an archive."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name + ".npy", header.getvalue() + body)


def test_an_archive_that_unpacks_to_a_huge_one_is_bounded(tmp_path):
    path = tmp_path / "bomb.npz"
    for name in ("trainer", "rollout"):
        member(path, name, (50, 1_000_000), bytes(200_000_000))  # 0.2 MB of archive
    tracemalloc.start()
    tokens = sum(batch.tokens for batch in open_log(path, batch_tokens=1 << 20))
    assert tokens == 50_000_000 and tracemalloc.get_traced_memory()[1] < 60_000_000
    tracemalloc.stop()


def test_a_header_that_promises_more_than_there_is(tmp_path):
    for shape, words in (
        ((2**40, 2), "ends before its shape says"),
        ((1, 2**40), "which is no sequence"),
        ((2, 2**61), "which is no sequence"),
    ):
        path = tmp_path / f"{len(words)}-{shape[0]}.npz"
        for name in ("trainer", "rollout"):
            member(path, name, shape, bytes(800))
        with pytest.raises(LogError, match=words):
            list(open_log(path))


# Files of another kind

TORCH = io.BytesIO()
with zipfile.ZipFile(TORCH, "w") as archive:
    archive.writestr("archive/data.pkl", b"\x80\x02.")

OTHERS = {
    "dump.pkl": (pickle.dumps({"a": 1}), "a Python pickle"),
    "dump.pt": (TORCH.getvalue(), "as torch.save writes"),
    "one.npy": (b"\x93NUMPY\x01\x00", "a single NumPy array"),
    "log.zst": (b"\x28\xb5\x2f\xfd" + bytes(9), "compressed with zstd"),
    "log.h5": (b"\x89HDF\r\n", "an HDF5 file"),
    "noise": (bytes(range(200, 232)), "no log of a known format: it begins with the bytes"),
    "text": (b"step,loss\n1,2\n", "no log of a known format"),
    "verl.jsonl": (
        json.dumps({"input": "a", "output": "b", "gts": "c", "score": 1, "step": 1}).encode() + b"\n",
        "the fields 'gts', 'input', 'output', 'score', 'step', which are those of no known log",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_log_is_told_from_one(tmp_path, name):
    data, words = OTHERS[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(LogError, match=words):
        open_log(path)


def test_several_formats_are_no_log(tmp_path):
    lines = WRITERS["lockstep.jsonl"](tmp_path / "a.jsonl")
    prime = WRITERS["prime-rl.jsonl"](tmp_path / "b.jsonl")
    with pytest.raises(
        LogError, match=r"b.jsonl: is a prime-rl token export, but .*a.jsonl is JSON with named"
    ):
        list(open_log([lines, prime]))
    WRITERS["table.parquet"](tmp_path / "c.parquet")
    with pytest.raises(LogError, match="holds logs of several kinds, .* give the files of one"):
        find_files(tmp_path)


def test_one_engine_here_and_two_there_is_an_error(tmp_path):
    write(tmp_path / "a.jsonl", {"rollout_log_probs": [-1.0]})
    write(tmp_path / "b.jsonl", {"rollout_log_probs": [-1.0], "old_log_probs": [-1.0]})
    with pytest.raises(LogError, match="has the log-probs of trainer and rollout, but what comes before"):
        list(open_log(tmp_path))


def test_a_rank_without_sequences_is_no_error(tmp_path):
    WRITERS["prime-rl.jsonl"](tmp_path / "rank_1.jsonl")
    (tmp_path / "rank_0.jsonl").touch()
    log = open_log(tmp_path)
    assert log.format == "prime-rl" and sum(batch.sequences for batch in log) == 12


# Any damage at all


@pytest.mark.parametrize("name", [*WRITERS, *(f"answers: {name}" for name in ANSWERS)])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_damage_is_an_error_or_nothing(tmp_path, name, data):
    """Bytes changed, cut off or doubled anywhere: LogError, or a log that reads; nothing else."""
    path = tmp_path / name.removeprefix("answers: ")
    whole = (ANSWERS[name.removeprefix("answers: ")] if name.startswith("answers") else WRITERS[name])(
        path
    ).read_bytes()
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        kind = data.draw(st.sampled_from(["change", "cut", "insert", "remove"]))
        if kind == "change":
            damaged[at] = data.draw(st.integers(0, 255))
        elif kind == "cut" and at:
            del damaged[at:]
        elif kind == "insert":
            damaged[at:at] = data.draw(st.binary(min_size=1, max_size=4))
        else:
            del damaged[at : at + data.draw(st.integers(1, 8))]
        if not damaged:
            damaged = bytearray(b"{")
    path.write_bytes(damaged)
    for options in ({}, {"skip_bad": True, "exclude_non_finite": True}):
        try:
            for batch in open_log(path, **options):
                assert batch.offsets[-1] == len(batch.mask) == len(batch.trainer) == len(batch.rollout)
        except LogError as error:
            assert str(path) in str(error)
