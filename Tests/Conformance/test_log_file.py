"""Lockstep's own log: what is written comes back, whatever happens to the file or is in it."""

from __future__ import annotations

import gzip
import io
import os
import resource
import signal
import struct
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import log_format
import lockstep
from lockstep.logs import read_prime_rl
from rollouts import SHIPPED

NAMES = ("token_ids", "rollout", "trainer", "mask")


def bits(values):
    return np.asarray(values, np.float32).view(np.uint32).tolist()


def write(path, *sequences, **options):
    with lockstep.LogWriter(path, **options) as log:
        for sequence in sequences:
            log.append(**sequence)
    return path.read_bytes()


def small(index=0, tokens=5, **changes):
    """A short sequence with everything in it."""
    rng = np.random.default_rng(index)
    rollout = -rng.exponential(size=tokens).astype(np.float32)
    return {
        "id": index, "step": 3, "prompt_tokens": min(2, tokens), "reward": 0.5, "advantage": -1.25,
        "token_ids": rng.integers(0, 50_000, tokens, np.int32), "rollout": rollout,
        "trainer": rollout + np.float32(0.01), "mask": np.arange(tokens) >= 2,
    } | changes


def sequences_of(source, **options):
    """Every sequence of a log, as plain values, each column by its bits."""
    found = []
    for batch in lockstep.LogReader(source, **options):
        for index in range(len(batch)):
            part = slice(batch.offsets[index], batch.offsets[index + 1])
            columns = int(batch.columns[index])
            found.append({
                "id": int(batch.ids[index]), "step": int(batch.steps[index]),
                "prompt_tokens": int(batch.prompt_tokens[index]), "mask": batch.mask[part].tolist(),
                "reward": bits(batch.rewards[index:index + 1]), "advantage": bits(batch.advantages[index:index + 1]),
                "token_ids": batch.token_ids[part].tolist() if columns & 1 else None,
                "rollout": bits(batch.rollout[part]) if columns & 2 else None,
                "trainer": bits(batch.trainer[part]) if columns & 4 else None})
            if not columns & 2:
                assert np.isnan(batch.rollout[part]).all()
            if not columns & 4:
                assert np.isnan(batch.trainer[part]).all()
    return found


def expected(sequence):
    """What `sequences_of` gives for a sequence that was appended."""
    tokens = next(len(sequence[name]) for name in NAMES if sequence.get(name) is not None)
    mask = sequence.get("mask")
    scalar = {name: bits([np.nan if sequence.get(name) is None else sequence[name]])
              for name in ("reward", "advantage")}
    columns = {name: None if sequence.get(name) is None else bits(sequence[name]) for name in ("rollout", "trainer")}
    ids = sequence.get("token_ids")
    return {"id": sequence["id"], "step": sequence.get("step", -1),
            "prompt_tokens": sequence.get("prompt_tokens", -1),
            "mask": [True] * tokens if mask is None else np.asarray(mask, bool).tolist(),
            "token_ids": None if ids is None else np.asarray(ids).tolist()} | scalar | columns


# What is written comes back

any_float = st.integers(0, 2**32 - 1).map(lambda word: struct.unpack("<f", struct.pack("<I", word))[0])
words = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from(
    [0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF, 1, 0xBF800000]))


@st.composite
def any_sequence(draw):
    tokens = draw(st.one_of(st.integers(0, 5), st.sampled_from([127, 128, 129, 300])))
    word = draw(st.sampled_from([words, st.integers(0xBF000000, 0xBF00FFFF), st.just(0)]))
    column = st.lists(word, min_size=tokens, max_size=tokens).map(
        lambda values: np.array(values, np.uint32).view(np.float32))
    present = draw(st.integers(1, 7))
    return {
        "id": draw(st.integers(0, 2**64 - 1)), "step": draw(st.integers(-(2**63), 2**63 - 1)),
        "prompt_tokens": draw(st.integers(-1, tokens)),
        "reward": draw(st.none() | st.floats(width=32, allow_nan=False)),
        "advantage": draw(st.none() | st.floats(width=32, allow_nan=False)),
        "token_ids": draw(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=tokens, max_size=tokens).map(
            lambda ids: np.array(ids, np.int32))) if present & 1 else None,
        "rollout": draw(column) if present & 2 else None,
        "trainer": draw(column) if present & 4 else None,
        "mask": draw(st.none() | st.lists(st.booleans(), min_size=tokens, max_size=tokens).map(
            lambda mask: np.array(mask, bool)))}


@settings(max_examples=150, deadline=None)
@given(sequences=st.lists(any_sequence(), max_size=4), max_tokens=st.sampled_from([1, 7, 200, 10**6]))
def test_round_trip(tmp_path_factory, sequences, max_tokens):
    path = tmp_path_factory.mktemp("log") / "a.lockstep"
    data = write(path, *sequences)
    assert sequences_of(path, max_tokens=max_tokens) == [expected(each) for each in sequences]
    assert sequences_of(data, max_tokens=max_tokens) == [expected(each) for each in sequences]
    header, found, closed = log_format.read(data)
    assert header == {} and closed and len(found) == len(sequences)
    for mine, each in zip(found, map(expected, sequences)):
        for name in ("id", "mask", *(name for name in NAMES[:3] if each[name] is not None)):
            assert mine[name] == each[name], name
        assert mine.get("step", -1) == each["step"] and mine.get("prompt_tokens", -1) == each["prompt_tokens"]


def test_the_header_comes_back(tmp_path):
    given = lockstep.LogHeader(
        **{name: f"{name} é" for name in lockstep._log_file._TEXTS}, temperature=0.0, top_p=0.95, top_k=50, min_p=0.0,
        log_prob_mode="processed", created=1_790_000_000, extra={"zeta": "1", "alpha": "", "é": "ü"})
    data = write(tmp_path / "a.lockstep", small(), header=given)
    assert lockstep.LogReader(data).header == given
    fields, _, _ = log_format.read(data)
    assert fields["trainer_logits"] == "trainer_logits é" and fields["log_prob_mode"] == 2
    assert fields["top_k"] == 50 and fields["min_p"] == 0 and list(fields["extra"]) == ["alpha", "zeta", "é"]
    assert write(tmp_path / "b.lockstep", small(), header=lockstep.LogReader(data).header) == data
    assert lockstep.LogReader(write(tmp_path / "c.lockstep")).header == lockstep.LogHeader()


def test_a_batch_holds_whole_sequences(tmp_path):
    data = write(tmp_path / "a.lockstep", *(small(index, tokens) for index, tokens in enumerate([3, 4, 9, 0, 1])))
    assert [len(batch) for batch in lockstep.LogReader(data, max_tokens=7)] == [2, 1, 2]
    reader = lockstep.LogReader(data)
    assert reader.next(1).ids.tolist() == [0] and reader.next(100).ids.tolist() == [1, 2, 3, 4]
    assert reader.next() is None and reader.next() is None
    batch = next(iter(reader))
    reader.seek(int(batch.positions[2]))
    assert reader.next(1).ids.tolist() == [2]
    trainer = batch.trainer.copy()
    reader.next()
    assert (batch.trainer == trainer).all(), "a batch is the caller's own"


def test_sixteen_bit_columns_and_strides(tmp_path, ml_dtypes):
    half = np.array([-1.5, -0.25, 0.0, -7.0], np.float16)
    brain = half.astype(ml_dtypes.bfloat16)
    data = write(tmp_path / "a.lockstep", {"id": 0, "rollout": half, "trainer": brain},
                 {"id": 1, "rollout": np.repeat(half, 2).astype(np.float32)[::2], "token_ids": np.arange(8)[::-2]})
    first, second = sequences_of(data)
    assert first["rollout"] == first["trainer"] == second["rollout"] == bits(half)
    assert second["token_ids"] == [7, 5, 3, 1]


def test_the_shipped_rollouts_take_a_tenth_of_the_json(tmp_path):
    for name, source in SHIPPED.items():
        log = read_prime_rl([source], label=name, token_ids=True)
        path = tmp_path / f"{name}.lockstep"
        with lockstep.LogWriter(path) as writer:
            for index in range(log.sequences):
                part = slice(log.offsets[index], log.offsets[index + 1])
                writer.append(id=index, token_ids=log.token_ids[part], rollout=log.rollout[part],
                              trainer=log.trainer[part], mask=log.mask[part])
        batches = list(lockstep.LogReader(path))
        for column in ("trainer", "rollout", "mask", "token_ids"):
            found = np.concatenate([getattr(batch, column) for batch in batches])
            assert found.tobytes() == getattr(log, column).tobytes(), column
        # The full export has 115 bytes a token (benchmarks/results/logs.json).
        assert path.stat().st_size < 11.5 * len(log.mask)


def test_masked_zeros_cost_next_to_nothing(tmp_path):
    one, other = np.full(10_000, -0.7, np.float32), np.random.default_rng(0).random(1_000, np.float32)
    zeros = np.concatenate([np.zeros(10_000, np.float32), other])
    mask = np.arange(11_000) >= 10_000
    assert len(write(tmp_path / "a.lockstep", {"id": 0, "rollout": zeros, "mask": mask})) < 4_700
    assert len(write(tmp_path / "b.lockstep", {"id": 0, "rollout": other})) > 3_000
    assert len(write(tmp_path / "c.lockstep", {"id": 0, "rollout": one})) < 700


def test_gzip_streams_and_memory(tmp_path):
    data = write(tmp_path / "a.lockstep", small(0), small(1))
    squeezed = gzip.open(io.BytesIO(gzip.compress(data)))
    assert sequences_of(squeezed) == sequences_of(bytearray(data)) == sequences_of(memoryview(data)) != []


# What may happen to a file

def test_cut_off_at_every_byte(tmp_path):
    """Every whole record is read, and the rest is reported; a writer goes on from there."""
    data = write(tmp_path / "whole.lockstep", *map(small, range(3)), model="tiny")
    whole = sequences_of(data)
    ends = [int(each) for batch in lockstep.LogReader(data) for each in batch.positions]
    mark = lockstep.LogReader(data)
    list(mark)
    ends = [*ends[1:], mark.summary.size - 32, len(data)]
    start = int(lockstep.LogReader(data).next().positions[0])
    for length in range(len(data)):
        part = data[:length]
        path = tmp_path / "part.lockstep"
        path.write_bytes(part)
        if length < start:
            with pytest.raises(lockstep.BadDataError, match="empty" if length == 0 else "cut off in its header"):
                lockstep.LogReader(path)
        else:
            reader = lockstep.LogReader(path)
            count = sum(len(batch) for batch in reader)
            assert count == sum(end <= length for end in ends[:3])
            assert sequences_of(part) == whole[:count]
            last = max([start, *(end for end in ends if end <= length)])
            assert reader.summary.cut_off_bytes == length - last and not reader.summary.is_closed
            assert reader.summary.position == last
            assert ("cut off" in str(reader.summary)) == (length > last)
        if length % 7 == 0 or length > len(data) - 20:  # each file is synced: some are enough
            with lockstep.LogWriter(path, mode="append", model="tiny") as log:
                log.append(**small(9))
            kept = 0 if length < start else count
            assert sequences_of(path) == whole[:kept] + [expected(small(9))]
            reader = lockstep.LogReader(path)
            list(reader)
            assert reader.summary.is_closed and reader.summary.cut_off_bytes == 0


def test_zeros_at_the_end_are_a_cut(tmp_path):
    data = write(tmp_path / "a.lockstep", small(0), small(1))
    for zeros in (1, 15, 16, 5_000):
        reader = lockstep.LogReader(data + bytes(zeros))
        assert sum(len(batch) for batch in reader) == 2 and reader.summary.cut_off_bytes == zeros


def test_every_bit_flip_is_seen(tmp_path):
    data = write(tmp_path / "a.lockstep", small(0), small(1, 3), model="tiny", extra={"k": "v"})
    whole, header = sequences_of(data), lockstep.LogReader(data).header
    positions = next(iter(lockstep.LogReader(data))).positions.tolist()
    for bit in range(8 * len(data)):
        spoilt = bytearray(data)
        spoilt[bit >> 3] ^= 1 << (bit & 7)
        if bit >> 3 < positions[0]:
            with pytest.raises((lockstep.BadDataError, lockstep.UnsupportedError)):
                lockstep.LogReader(spoilt)
            continue
        reader = lockstep.LogReader(spoilt)
        assert reader.header == header
        before = sum(position <= bit >> 3 for position in positions) - (bit >> 3 < len(data) - 32)
        if before:
            assert len(reader.next()) == before
        for _ in range(2):
            with pytest.raises(lockstep.BadDataError, match="byte"):
                reader.next()
        skipping = lockstep.LogReader(spoilt, damage="skip")
        found = [int(id) for batch in skipping for id in batch.ids]
        hit = None if bit >> 3 >= len(data) - 32 else max(index for index, at in enumerate(positions) if at <= bit >> 3)
        assert found == [each["id"] for index, each in enumerate(whole) if index != hit]
        assert skipping.summary.damaged_places == 1 and skipping.summary.skipped_bytes > 0


def test_a_damaged_record_is_named_and_what_is_before_it_kept(tmp_path):
    path = tmp_path / "a.lockstep"
    data = bytearray(write(path, *map(small, range(5))))
    third = int(next(iter(lockstep.LogReader(bytes(data)))).positions[3])
    data[third + 30] ^= 4
    path.write_bytes(data)
    reader = lockstep.LogReader(path)
    assert reader.next().ids.tolist() == [0, 1, 2]
    with pytest.raises(lockstep.BadDataError, match=f"{path.name}: the record at byte {third}, after 3 sequences"):
        reader.next()
    reader.seek(0)
    assert reader.next(1).ids.tolist() == [0]
    with pytest.raises(lockstep.BadDataError, match="damaged"):
        lockstep.LogWriter(path, mode="append")
    assert path.read_bytes() == data, "a damaged log is left as it is"
    path.write_bytes(bytes(data)[: third + 40] + bytes(12))  # nothing whole follows: a writer goes on before it
    with lockstep.LogWriter(path, mode="append") as log:
        log.append(**small(7))
    assert [each["id"] for each in sequences_of(path)] == [0, 1, 2, 7]


def test_missing_records_are_seen(tmp_path):
    data = write(tmp_path / "a.lockstep", *map(small, range(3)))
    first, second = next(iter(lockstep.LogReader(data))).positions[1:3]
    with pytest.raises(lockstep.BadDataError, match="closes a log of 3 sequences and 15 tokens, but there are 2"):
        sequences_of(data[:first] + data[second:])


def test_a_newer_format_is_refused_by_name():
    with pytest.raises(lockstep.UnsupportedError, match="format version 2, but this library .1.0.0.* reads up to"):
        lockstep.LogReader(log_format.header_bytes(version=2))


@pytest.mark.parametrize("payload", [
    b"", b"\x00\x00\x00",  # no column
    bytes([log_format.ROLLOUT]) + log_format.varint(2**28 + 1) + b"\0",  # more tokens than a log has
    bytes([log_format.ROLLOUT]) + log_format.varint(2**28) + b"\0" * 100,  # a count without its blocks
    bytes([log_format.ROLLOUT]) + b"\xff" * 9 + b"\x7f",  # beyond 64 bits
    bytes([log_format.ROLLOUT, 1, 0, 33, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5]),  # width 33
    bytes([log_format.ROLLOUT, 1, 0, 2, 31, 0, 0, 0, 0, 1]),  # width + shift
    bytes([log_format.ROLLOUT, 1, 0, 8, 0, 0, 0, 0, 0]),  # no bits
    bytes([log_format.ROLLOUT, 1, 0, 8, 0, 0, 0, 0, 0, 1, 1]),  # a byte too many
    bytes([log_format.ROLLOUT | log_format.MASK, 2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0]),  # an empty run
    bytes([log_format.ROLLOUT | log_format.MASK, 2, 0, 1, 2, 0, 0, 0, 0, 0, 0]),  # runs beyond the tokens
    bytes([log_format.ROLLOUT | log_format.PROMPT, 1, 0, 2, 0, 0, 0, 0, 0, 0]),  # a prompt beyond the tokens
    bytes([log_format.ROLLOUT | log_format.REWARD, 1, 0, 2]),  # ends in the reward
])
def test_lies_under_a_good_checksum(payload):
    start = log_format.header_bytes()
    good = log_format.frame_bytes(bytes([log_format.ROLLOUT, 1, 5, 0, 0, 1, 0, 0, 0]))
    reader = lockstep.LogReader(start + good + log_format.frame_bytes(payload) + good)
    assert reader.next().ids.tolist() == [5]
    with pytest.raises(lockstep.BadDataError, match="does not fit together"):
        reader.next()
    skipping = lockstep.LogReader(start + good + log_format.frame_bytes(payload) + good, damage="skip")
    assert [batch.ids.tolist() for batch in skipping] == [[5, 5]]


@pytest.mark.parametrize("fields", [
    struct.pack("<HI", 1, 100) + b"x",  # beyond the fields
    struct.pack("<HI", 1, 0),  # an empty text
    struct.pack("<HI", 1, 2) + b"\xff\xfe",  # not UTF-8
    struct.pack("<HI", 1, 2) + b"a\0",
    2 * (struct.pack("<HI", 1, 1) + b"a"),  # twice
    struct.pack("<HI", 4, 4) + b"abcd",  # a temperature of four bytes
    struct.pack("<HId", 4, 8, float("nan")),
    struct.pack("<HI", 64, 3) + b"abc",  # a pair without its 0
    struct.pack("<HI", 64, 2) + b"b\0" + struct.pack("<HI", 64, 2) + b"a\0",  # out of order
])
def test_headers_that_lie(fields):
    with pytest.raises(lockstep.BadDataError, match="header"):
        lockstep.LogReader(log_format.header_bytes(fields))


def test_an_unknown_field_is_passed_over():
    unknown = struct.pack("<HI", 40, 3) + b"new"
    assert lockstep.LogReader(log_format.header_bytes(unknown)).header == lockstep.LogHeader()


def test_a_length_that_lies_takes_no_memory():
    """A header of 1 GB, a record of 4 GB, in files of a few bytes: refused, or the end of the log."""
    with pytest.raises(lockstep.BadDataError):
        lockstep.LogReader(log_format.header_bytes(length=2**30))
    reader = lockstep.LogReader(log_format.header_bytes() + log_format.frame_bytes(b"abc", length=2**32 - 1))
    assert reader.next() is None and reader.summary.cut_off_bytes == 19


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_bytes(data):
    """Random damage to a log, or random payloads under good checksums: an error or sequences."""
    payloads = data.draw(st.lists(st.binary(max_size=60), max_size=4))
    log = bytearray(log_format.header_bytes() + b"".join(map(log_format.frame_bytes, payloads)))
    for _ in range(data.draw(st.integers(0, 3))):
        log[data.draw(st.integers(0, len(log) - 1))] = data.draw(st.integers(0, 255))
    for damage in ("strict", "skip"):
        try:
            for batch in lockstep.LogReader(log, damage=damage):
                assert batch.offsets[-1] == len(batch.trainer) <= 128 * len(log)
        except (lockstep.BadDataError, lockstep.UnsupportedError):
            pass


# Writers

def test_modes(tmp_path):
    path = tmp_path / "a.lockstep"
    write(path, small(0), model="tiny", created=1)
    with pytest.raises(lockstep.FileError, match="File exists; append to it or replace it"):
        lockstep.LogWriter(path)
    with pytest.raises(lockstep.InvalidArgumentError, match="header: model differs"):
        lockstep.LogWriter(path, mode="append", model="large")
    with pytest.raises(lockstep.InvalidArgumentError, match="trainer_head differs"):
        lockstep.LogWriter(path, mode="append", model="tiny", trainer_head="bf16")
    write(path, small(1), mode="append", model="tiny", created=2)
    write(path, small(2), mode="append")
    assert [each["id"] for each in sequences_of(path)] == [0, 1, 2]
    assert lockstep.LogReader(path).header.created == 1
    size = path.stat().st_size
    write(path, mode="append")
    assert path.stat().st_size == size, "a second end mark is not written"
    write(path, small(3), mode="replace")
    assert [each["id"] for each in sequences_of(path)] == [3]
    write(tmp_path / "new.lockstep", small(4), mode="append")
    other = tmp_path / "precious.txt"
    other.write_text("do not overwrite me\n")
    for mode in ("append", "replace"):
        with pytest.raises(lockstep.BadDataError, match="no Lockstep log"):
            lockstep.LogWriter(other, mode=mode)
    assert other.read_text() == "do not overwrite me\n"
    with pytest.raises(lockstep.FileError, match="not a regular file"):
        lockstep.LogReader(tmp_path)
    with pytest.raises(lockstep.FileError, match="No such file"):
        lockstep.LogReader(tmp_path / "missing")


def test_one_writer_a_file(tmp_path):
    path = tmp_path / "a.lockstep"
    with lockstep.LogWriter(path) as log:
        log.append(**small(0))
        for mode in ("append", "replace"):
            with pytest.raises(lockstep.FileError, match="another writer has this log open"):
                lockstep.LogWriter(path, mode=mode)
        assert [each["id"] for each in sequences_of(path)] == [0], "readers are welcome"
        log.append(**small(1))
    write(path, small(2), mode="append")
    assert [each["id"] for each in sequences_of(path)] == [0, 1, 2]


def test_a_log_can_be_followed(tmp_path):
    path = tmp_path / "a.lockstep"
    with lockstep.LogWriter(path) as log:
        reader = lockstep.LogReader(path)
        for index in range(3):
            assert reader.next() is None
            log.append(**small(index))
            assert reader.next().ids.tolist() == [index] and not reader.summary.is_closed
    assert reader.next() is None and reader.summary.is_closed


def test_a_forked_child_does_not_write(tmp_path):
    path = tmp_path / "a.lockstep"
    log = lockstep.LogWriter(path)
    log.append(**small(0))
    child = os.fork()
    if child == 0:
        try:
            log.append(**small(1))
            os._exit(1)
        except lockstep.InvalidArgumentError as error:
            log._handle.destroy()
            os._exit(0 if "belongs to process" in str(error) else 2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    log.append(**small(2))
    log.close()
    assert [each["id"] for each in sequences_of(path)] == [0, 2]


def test_closed_writers_and_readers(tmp_path):
    log = lockstep.LogWriter(tmp_path / "a.lockstep")
    log.close()
    log.close()
    for call in (lambda: log.append(**small()), log.sync):
        with pytest.raises(lockstep.InvalidArgumentError, match="closed"):
            call()
    reader = lockstep.LogReader(tmp_path / "a.lockstep")
    reader.close()
    reader.close()
    with pytest.raises(lockstep.InvalidArgumentError, match="closed"):
        reader.next()


@pytest.mark.parametrize("changes, match", [
    ({"rollout": np.zeros(5)}, "rollout_log_probs: dtype must be one of fp32"),
    ({"trainer": np.zeros(4, np.float32)}, "trainer_log_probs: has 4 tokens but token_ids has 5"),
    ({"mask": np.ones(6, bool)}, "mask: has 6 tokens but token_ids has 5"),
    ({"token_ids": [0, 1, 2, 2**31, 4]}, r"token_ids\[3\] is 2147483648, beyond 32 bits"),
    ({"prompt_tokens": 6}, "prompt_tokens is 6 but the sequence has 5 tokens"),
    ({"token_ids": None, "rollout": None, "trainer": None}, "give one of them"),
    ({"id": -1}, "id"), ({"id": 2**64}, "id"), ({"reward": "much"}, "reward"),
])
def test_sequences_that_do_not_fit(tmp_path, changes, match):
    with lockstep.LogWriter(tmp_path / "a.lockstep") as log:
        log.append(**small(0))
        with pytest.raises(lockstep.InvalidArgumentError, match=match):
            log.append(**small(1, **changes))
        log.append(**small(2))
    assert [each["id"] for each in sequences_of(tmp_path / "a.lockstep")] == [0, 2]


@pytest.mark.parametrize("fields, match", [
    ({"temperature": -0.5}, "temperature is -0.5"), ({"temperature": float("nan")}, "temperature is nan"),
    ({"top_p": 0.0}, "top_p is 0"), ({"min_p": 1.5}, "min_p is 1.5"), ({"top_k": -3}, "top_k"),
    ({"model": "a\0b"}, "model"), ({"model": 7}, "model"), ({"model": "x" * 70_000}, "model has 70000 bytes"),
    ({"colour": "red"}, "no field 'colour'"), ({"extra": {"": "x"}}, "keys"), ({"log_prob_mode": "cooked"}, "cooked"),
])
def test_headers_that_cannot_be_stored(tmp_path, fields, match):
    with pytest.raises(lockstep.InvalidArgumentError, match=match):
        lockstep.LogWriter(tmp_path / "a.lockstep", **fields)
    assert not (tmp_path / "a.lockstep").exists()


def test_a_full_disk(tmp_path):
    """Beyond the file size limit writing fails as on a full disk; what was acknowledged stays."""
    path = tmp_path / "a.lockstep"
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        log = lockstep.LogWriter(path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, old[1]))
        written = 0
        with pytest.raises(lockstep.FileError, match=r"cannot be written at byte \d+: File too large"):
            while True:
                log.append(**small(written, 100))
                written += 1
        assert written > 3
        log.sync()
        assert [each["id"] for each in sequences_of(path)] == list(range(written))
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        log.append(**small(written, 100))  # room again
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, old_handler)
    assert [each["id"] for each in sequences_of(path)] == list(range(written + 1))


def test_a_killed_writer(tmp_path):
    """kill -9 at a random moment: every record that was acknowledged is read, and a writer goes on."""
    program = textwrap.dedent("""
        import sys, numpy as np, lockstep
        rng = np.random.default_rng(0)
        log = lockstep.LogWriter(sys.argv[1], mode="append")
        index = int(sys.argv[2])
        while True:
            log.append(id=index, rollout=rng.random(50_000, np.float32))
            sys.stdout.write(f"{index}\\n")
            sys.stdout.flush()
            index += 1
    """)
    path, rng, begun = tmp_path / "a.lockstep", np.random.default_rng(), 0
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", program, str(path), str(begun)], stdout=subprocess.PIPE)
        acknowledged = [int(process.stdout.readline()) for _ in range(int(rng.integers(1, 30)))]
        process.kill()
        acknowledged += map(int, process.stdout.read().split())
        process.wait()
        reader = lockstep.LogReader(path, max_tokens=50_000)
        found = [int(id) for batch in reader for id in batch.ids]
        assert found[: len(acknowledged) + begun] == list(range(acknowledged[-1] + 1))
        assert found == list(range(len(found))) and not reader.summary.is_closed
        begun = len(found)


def test_threads_share_a_writer(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    with lockstep.LogWriter(tmp_path / "a.lockstep") as log, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda index: log.append(**small(index, 500)), range(200)))
    found = sequences_of(tmp_path / "a.lockstep")
    assert sorted(found, key=lambda each: each["id"]) == [expected(small(index, 500)) for index in range(200)]
